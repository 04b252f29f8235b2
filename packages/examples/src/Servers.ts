/**
 * The world outside of the shop: a payment provider, a mail server and a warehouse. They stand in for real ones, and
 * have the faults of real ones.
 */
import { Context, Effect, Latch, Layer, Schema } from "effect"
import { HttpServerResponse } from "effect/http"
import { Message } from "./Mail.ts"
import { Payment } from "./Payments.ts"
import * as Recorder from "./Recorder.ts"

/** The provider takes the money, but the answer to the first request gets lost. */
const answerGetsLost = "A-1005"
/** The mail server knows nobody of this name. */
const unknownMailbox = "moved.away@example.org"
/** The warehouse has to search for this one, and has not found it when the customer loses patience. */
const hardToFind = "TEAPOT-ANTIQUE"

type Server = Effect.Success<ReturnType<typeof Recorder.make>>

export class Servers extends Context.Service<Servers, {
  readonly payments: Server & {
    /** What the provider has taken. */
    readonly taken: Effect.Effect<ReadonlyArray<Payment>>
    /** Opens when the provider has stalled. */
    readonly stalled: Latch.Latch
    /** Ends the stall, when it is opened. */
    readonly recovered: Latch.Latch
  }
  readonly mail: Server & {
    readonly delivered: Effect.Effect<ReadonlyArray<Message>>
    readonly refused: Effect.Effect<ReadonlyArray<Message>>
  }
  readonly warehouse: Server & {
    /** Opens when the warehouse begins to search. */
    readonly searching: Latch.Latch
  }
}>()("examples/Servers") {
  /** `stallsAt` makes the provider stall: it takes that many payments, and then answers nobody until it has recovered. */
  static readonly layer = (options?: { readonly stallsAt: number }) =>
    Layer.effect(
      Servers,
      Effect.gen(function*() {
        return Servers.of({
          payments: yield* makePayments(options?.stallsAt ?? Infinity),
          mail: yield* makeMail,
          warehouse: yield* makeWarehouse
        })
      })
    )
}

const makePayments = Effect.fnUntraced(function*(stallsAt: number) {
  const taken = new Map<string, Payment>()
  const yetToLose = new Set([answerGetsLost])
  const stalled = yield* Latch.make()
  const recovered = yield* Latch.make()
  const server = yield* Recorder.make(Effect.fnUntraced(function*({ body, key }) {
    const payment = yield* decodePayment(body)
    if (!taken.has(key)) taken.set(key, payment)
    if (taken.size >= stallsAt) {
      yield* Latch.open(stalled)
      yield* Latch.await(recovered)
    }
    return HttpServerResponse.empty({ status: yetToLose.delete(payment.order) ? 503 : 201 })
  }))
  return { ...server, stalled, recovered, taken: Effect.sync(() => Array.from(taken.values())) }
})

const makeMail = Effect.gen(function*() {
  const delivered = new Map<string, Message>()
  const refused = new Map<string, Message>()
  const server = yield* Recorder.make(Effect.fnUntraced(function*({ body, key }) {
    const message = yield* decodeMessage(body)
    const isRefused = message.to === unknownMailbox
    const those = isRefused ? refused : delivered
    those.set(key, message)
    return isRefused
      ? HttpServerResponse.text(`550 5.1.1 <${unknownMailbox}>: no such mailbox`, { status: 422 })
      : HttpServerResponse.empty({ status: 202 })
  }))
  return {
    ...server,
    delivered: Effect.sync(() => Array.from(delivered.values())),
    refused: Effect.sync(() => Array.from(refused.values()))
  }
})

const makeWarehouse = Effect.gen(function*() {
  const searching = yield* Latch.make()
  const released = yield* Latch.make()
  const server = yield* Recorder.make(Effect.fnUntraced(function*({ body, method }) {
    if (method === "DELETE" && Latch.isOpen(searching)) yield* Latch.open(released)
    if (!JSON.stringify(body ?? "").includes(hardToFind)) return HttpServerResponse.empty({ status: 204 })
    yield* Latch.open(searching)
    // The search ends when nobody wants the goods any more.
    yield* Latch.await(released)
    return HttpServerResponse.empty({ status: 410 })
  }))
  // A server closes when it has no request left. If a release never comes, the demo is to say so, and not to hang.
  yield* Effect.addFinalizer(() => Latch.open(released))
  return { ...server, searching }
})

const decodePayment = (body: unknown) => Effect.orDie(Schema.decodeUnknownEffect(Payment)(body))
const decodeMessage = (body: unknown) => Effect.orDie(Schema.decodeUnknownEffect(Message)(body))
