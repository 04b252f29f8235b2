/**
 * A way to the server on which answers can be lost.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Redacted } from "effect"
import { Reactivity } from "effect/reactivity"
import { once } from "node:events"
import { type AddressInfo, connect, createServer } from "node:net"

/** What the proxy does. */
interface Behaviour {
  /** The server's answers end the connection. */
  isLossy: boolean
  /** Notifications do not arrive. */
  isDeaf: boolean
  /** Connections are told the process of another one, as poolers do. */
  isPooler: boolean
  /** Where new connections lead. */
  port: number
}

// A message begins with its kind and its length.
const notification = "A".charCodeAt(0)
const keyData = Buffer.from([75, 0, 0, 0, 12])

const disguise = (data: Buffer): Buffer => {
  const at = data.indexOf(keyData)
  if (at >= 0) data.writeInt32BE(data.readInt32BE(at + keyData.length) + 1, at + keyData.length)
  return data
}

/** A client of the same database that goes through a proxy. */
export const makeProxy = Effect.gen(function*() {
  const { config } = yield* PgClient.PgClient
  const url = new URL(Redacted.value(config.url ?? Redacted.make("")))
  const state: Behaviour = { isLossy: false, isDeaf: false, isPooler: false, port: Number(url.port) }
  const server = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const listening = createServer((client) => {
        const upstream = connect(state.port, url.hostname)
        const end = () => {
          client.destroy()
          upstream.destroy()
        }
        client.on("data", (data) => upstream.write(data)).on("close", end).on("error", end)
        upstream.on("data", (data) => {
          if (state.isLossy) end()
          else if (!state.isDeaf || data[0] !== notification) client.write(state.isPooler ? disguise(data) : data)
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
