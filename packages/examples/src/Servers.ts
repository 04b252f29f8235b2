/**
 * The world outside of the shop: a payment provider, a mail server and a warehouse. They stand in for real ones, and
 * have the faults of real ones.
 */
import { Context, Effect, Latch, Layer } from "effect"
import { HttpServerResponse } from "effect/http"
import * as Recorder from "./Recorder.ts"

/** The provider takes the money, but the answer to the first request gets lost. */
const answerGetsLost = "A-1005"
/** The mail server knows nobody of this name. */
const unknownMailbox = "moved.away@example.org"
/** The warehouse has to search for this one, and has not found it when the customer loses patience. */
const hardToFind = "TEAPOT-ANTIQUE"

type Server = Effect.Success<ReturnType<typeof Recorder.make>>

export class Servers extends Context.Service<Servers, {
  readonly payments: Server
  readonly mail: Server
  readonly warehouse: Server
  /** Opens when the warehouse begins to search. */
  readonly searching: Latch.Latch
}>()("examples/Servers") {
  static readonly layer = Layer.effect(
    Servers,
    Effect.gen(function*() {
      const charged = new Set<string | undefined>()
      const payments = yield* Recorder.make(({ idempotencyKey }) =>
        Effect.sync(() => {
          if (charged.has(idempotencyKey)) return HttpServerResponse.empty({ status: 200 })
          charged.add(idempotencyKey)
          return HttpServerResponse.empty({ status: idempotencyKey === answerGetsLost ? 503 : 201 })
        })
      )

      const mail = yield* Recorder.make(({ body }) =>
        Effect.succeed(
          JSON.stringify(body).includes(unknownMailbox)
            ? HttpServerResponse.text(`550 5.1.1 <${unknownMailbox}>: no such mailbox`, { status: 422 })
            : HttpServerResponse.empty({ status: 202 })
        )
      )

      const searching = yield* Latch.make()
      const released = yield* Latch.make()
      const warehouse = yield* Recorder.make(Effect.fnUntraced(function*({ body, method }) {
        if (method === "DELETE" && Latch.isOpen(searching)) yield* Latch.open(released)
        if (!JSON.stringify(body ?? "").includes(hardToFind)) return HttpServerResponse.empty({ status: 204 })
        yield* Latch.open(searching)
        // The search ends when nobody wants the goods any more.
        yield* Latch.await(released)
        return HttpServerResponse.empty({ status: 410 })
      }))

      // A server closes when it has no request left. If a release never comes, the demo is to say so, and not to hang.
      yield* Effect.addFinalizer(() => Latch.open(released))

      return Servers.of({ payments, mail, warehouse, searching })
    })
  )
}
