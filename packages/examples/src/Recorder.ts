/**
 * An HTTP server on loopback that writes down each request it gets.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Effect } from "effect"
import { HttpServer, HttpServerRequest, type HttpServerResponse } from "effect/http"
import { createServer } from "node:http"

export interface Request {
  readonly method: string
  readonly path: string
  readonly idempotencyKey: string | undefined
  readonly body: unknown
}

export interface Recorded extends Request {
  /** `undefined` while it has not been answered. */
  status: number | undefined
}

export const make = Effect.fn("Recorder.make")(function*(
  answer: (request: Request) => Effect.Effect<HttpServerResponse.HttpServerResponse>
) {
  const requests: Array<Recorded> = []
  const handle = Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    const recorded: Recorded = {
      method: request.method,
      path: request.url,
      idempotencyKey: request.headers["idempotency-key"],
      body: request.method === "DELETE" ? undefined : yield* request.json,
      status: undefined
    }
    // Before it is answered, so that the record has the requests in the order in which they came.
    requests.push(recorded)
    const response = yield* answer(recorded)
    recorded.status = response.status
    return response
  })
  const server = yield* NodeHttpServer.make(() => createServer(), { host: "127.0.0.1", port: 0 })
  yield* server.serve(handle)
  return {
    url: HttpServer.formatAddress(server.address),
    requests: Effect.sync((): ReadonlyArray<Recorded> => requests.slice())
  }
})
