/**
 * A way to the server on which answers can be lost.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Redacted } from "effect"
import { Reactivity } from "effect/reactivity"
import { once } from "node:events"
import { type AddressInfo, connect, createServer } from "node:net"

/** A client of the same database that goes through a proxy. While `isLossy`, the server's answers end the connection. */
export const makeProxy = Effect.gen(function*() {
  const { config } = yield* PgClient.PgClient
  const url = new URL(Redacted.value(config.url ?? Redacted.make("")))
  const state = { isLossy: false }
  const port = Number(url.port)
  const server = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const listening = createServer((client) => {
        const upstream = connect(port, url.hostname)
        const end = () => {
          client.destroy()
          upstream.destroy()
        }
        client.on("data", (data) => upstream.write(data)).on("close", end).on("error", end)
        upstream.on("data", (data) => {
          if (state.isLossy) end()
          else client.write(data)
        }).on("close", end).on("error", end)
      }).listen(0, "127.0.0.1")
      await once(listening, "listening")
      return listening
    }),
    (listening) => Effect.sync(() => listening.close())
  )
  // A server that listens on a port has an address with one.
  url.port = String((server.address() as AddressInfo).port)
  const client = yield* PgClient.make({ ...config, url: Redacted.make(url.href) })
  return { client, state }
}).pipe(Effect.provide(Reactivity.layer))
