/**
 * An HTTP server on loopback that writes down each request it gets.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Clock, Effect } from "effect"
import { HttpServer, HttpServerRequest, type HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import { createServer } from "node:http"

export interface Recorded {
  readonly method: string
  readonly path: string
  /** Its `Idempotency-Key`. A request without one has a key of its own. */
  readonly key: string
  readonly body: unknown
  /** When it came, in milliseconds of Unix time. */
  readonly time: number
}

export const make = Effect.fn("Recorder.make")(function*(
  answer: (request: Recorded) => Effect.Effect<HttpServerResponse.HttpServerResponse>
) {
  const requests: Array<Recorded> = []
  const handle = Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    const recorded: Recorded = {
      method: request.method,
      path: request.url,
      key: request.headers["idempotency-key"] ?? randomUUID(),
      body: request.method === "DELETE" ? undefined : yield* request.json,
      time: yield* Clock.currentTimeMillis
    }
    // Before it is answered, so that the record has the requests in the order in which they came.
    requests.push(recorded)
    return yield* answer(recorded)
  })
  const server = yield* NodeHttpServer.make(() => createServer(), { host: "127.0.0.1", port: 0 })
  yield* server.serve(handle)
  return {
    url: HttpServer.formatAddress(server.address),
    requests: Effect.sync((): ReadonlyArray<Recorded> => requests.slice())
  }
})
