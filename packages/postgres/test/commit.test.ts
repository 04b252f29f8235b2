// What becomes of typed intents, and of a transactional handler, where the answer to COMMIT is lost.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, OutboxWorker } from "@epilogue/core"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Effect, Layer, Redacted, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { connect } from "node:net"
import { all, another, layerStore, open, storeOver } from "./Store.ts"

/** Connections to the server, of which the first to send COMMIT breaks: before the server gets it, or when it answers. */
const lossy = (when: "before COMMIT" | "after COMMIT") =>
  PgClient.PgClient.useSync(({ config }) => {
    const { hostname, port } = new URL(Redacted.value(config.url ?? Redacted.make("")))
    let isOver = false
    return () => {
      const socket = connect(Number(port), hostname)
      const write = socket.write.bind(socket)
      const emit = socket.emit.bind(socket)
      let isLost = false
      socket.write = (data: string | Uint8Array) => {
        if (isOver || !Buffer.from(data).includes("COMMIT")) return write(data)
        isLost = isOver = true
        if (when === "after COMMIT") return write(data)
        socket.destroy()
        return false
      }
      socket.emit = (event: string | symbol, ...args: Array<unknown>) => {
        if (!isLost || event !== "data") return emit(event, ...args)
        socket.destroy()
        return true
      }
      return socket
    }
  })

const engineOver = (store: OutboxStore.Service, commitTimeout?: number) =>
  Layer.provide(Outbox.layerOptions({ commitTimeout }), Layer.succeed(IntentSink.IntentSink, store))

it.layer(layerStore, { excludeTestServices: true })("a COMMIT without an answer", (it) => {
  it.effect("stores the intents of a boundary that has committed, once, and the boundary goes on", () =>
    Effect.gen(function*() {
      class Stored extends Intent.make("Stored", { payload: { n: Schema.Int } }) {}
      const store = yield* storeOver(yield* another({ stream: yield* lossy("after COMMIT") }))
      const ran: Array<string> = []
      const report = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.sync(() => ran.push("closure")))
        return yield* Stored.defer({ n: 1 })
      })).pipe(Effect.provide(engineOver(store)))
      assert.deepStrictEqual(report.outcomes.map(({ _tag }) => _tag), ["Ran", "Enqueued"])
      assert.deepStrictEqual(ran, ["closure"])
      const session = yield* open(store, ["Stored"])
      assert.deepStrictEqual((yield* session.claim(all)).map(({ id }) => id), [report.value])
    }).pipe(Effect.scoped))

  it.effect("stores none of a boundary whose COMMIT did not reach the server", () =>
    Effect.gen(function*() {
      class Discarded extends Intent.make("Discarded", { payload: { n: Schema.Int } }) {}
      const store = yield* storeOver(yield* another({ stream: yield* lossy("before COMMIT") }))
      const error = yield* Effect.flip(Effect.provide(Epilogue.atomic(Discarded.defer({ n: 1 })), engineOver(store)))
      assert.strictEqual(error._tag === "CommitError" && error.outcome, "discarded")
      const session = yield* open(store, ["Discarded"])
      assert.deepStrictEqual(yield* session.claim(all), [])
    }).pipe(Effect.scoped))

  it.effect("is unknown where `commitTimeout` is 0", () =>
    Effect.gen(function*() {
      class Unknown extends Intent.make("Unknown", { payload: { n: Schema.Int } }) {}
      const store = yield* storeOver(yield* another({ stream: yield* lossy("after COMMIT") }))
      const error = yield* Effect.flip(Effect.provide(Epilogue.atomic(Unknown.defer({ n: 1 })), engineOver(store, 0)))
      assert.strictEqual(error._tag === "CommitError" && error.outcome, "unknown")
    }).pipe(Effect.scoped))

  it.effect("delivers to a transactional handler that has committed no second time", () =>
    Effect.gen(function*() {
      class Booked extends Intent.make("Booked", { payload: { n: Schema.Int } }) {}
      const plain = yield* SqlClient.SqlClient
      yield* plain`CREATE TABLE booked (n INT)`
      const store = yield* OutboxStore
      yield* Effect.provide(
        Epilogue.atomic(Effect.forEach([1, 2, 3], (n) => Booked.defer({ n }))),
        engineOver(store)
      )
      const sql = yield* another({ stream: yield* lossy("after COMMIT") })
      const handled: Array<number> = []
      const Handlers = Booked.toLayer(
        Effect.fnUntraced(function*({ n }) {
          handled.push(n)
          yield* sql`INSERT INTO booked VALUES (${n})`
        }),
        { transactional: true }
      )
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Layer.build(
          OutboxWorker.layer({ intents: [Booked], concurrency: 1 }).pipe(
            Layer.provide(Handlers),
            Layer.provide(Layer.succeed(OutboxStore, yield* storeOver(sql))),
            Layer.provide(Layer.succeed(SqlClient.SqlClient, sql))
          )
        )
        yield* Effect.repeat(plain`SELECT FROM booked`, { until: (rows) => rows.length >= 3 })
      }))
      assert.sameMembers(handled, [1, 2, 3])
      assert.deepStrictEqual(yield* plain`SELECT n FROM booked ORDER BY n`, [{ n: 1 }, { n: 2 }, { n: 3 }])
      const session = yield* open(store, ["Booked"])
      assert.deepStrictEqual(yield* session.claim(all), [])
    }).pipe(Effect.scoped))
})
