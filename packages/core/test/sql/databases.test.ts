// Two databases, and applications that keep their clients inside their repositories.
import type { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import { Context, Effect, Exit, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { backendOf, failAtCommit, insertInto, layerServer, makeClient, rowsIn } from "./Postgres.ts"

class Orders extends Context.Service<Orders, PgClient.PgClient>()("test/Orders") {}
class Ledger extends Context.Service<Ledger, PgClient.PgClient>()("test/Ledger") {}

const layerClients = Layer.mergeAll(
  Layer.effect(Orders, makeClient),
  Layer.effect(Ledger, makeClient)
).pipe(Layer.provide(layerServer))

const reset = Effect.gen(function*() {
  const clients = [yield* Orders, yield* Ledger]
  yield* Effect.forEach(clients, (sql) => sql`TRUNCATE things CASCADE`)
})

/** What a test does with the two: no client is in the context under a name that core could know. */
const setup = Effect.gen(function*() {
  yield* reset
  const orders = yield* Orders
  const ledger = yield* Ledger
  const log: Array<string> = []
  const note = (what: string) => Effect.sync(() => void log.push(what))
  const insert = (sql: PgClient.PgClient) => Effect.orDie(insertInto(sql, 1))
  const assertRows = (...counts: [orders: number, ledger: number]) =>
    Effect.map(
      Effect.all([rowsIn(orders), rowsIn(ledger)]),
      (rows) => assert.deepStrictEqual(rows.map(({ length }) => length), counts)
    )
  return { orders, ledger, log, note, insert, assertRows }
})

const fail = Effect.fail("rolled back")

it.layer(layerClients)("databases", (it) => {
  const engines: ReadonlyArray<{
    readonly name: string
    readonly layer: Layer.Layer<Epilogue.Epilogue, never, Orders | Ledger>
  }> = [
    { name: "Epilogue", layer: Epilogue.layer },
    {
      name: "SqlEpilogue of the one",
      layer: SqlEpilogue.layer.pipe(Layer.provide(Layer.effectContext(
        Effect.map(Orders, (sql) => Context.make(SqlClient.SqlClient, sql))
      )))
    },
    {
      name: "SqlEpilogue of the other",
      layer: SqlEpilogue.layer.pipe(Layer.provide(Layer.effectContext(
        Effect.map(Ledger, (sql) => Context.make(SqlClient.SqlClient, sql))
      )))
    }
  ]

  for (const engine of engines) {
    const { layer } = engine
    describe(`with ${engine.name}`, () => {
      for (const swapped of [false, true]) {
        const which = swapped ? "the one inside the other" : "the other inside the one"
        const pair = Effect.map(
          setup,
          ({ ledger, orders, ...rest }) =>
            swapped ? { outer: ledger, inner: orders, ...rest } : { outer: orders, inner: ledger, ...rest }
        )

        it.effect(`law 10: ${which}: intents wait for both to commit`, () =>
          Effect.gen(function*() {
            const { assertRows, inner, insert, log, note, outer } = yield* pair
            yield* Epilogue.atomic(outer.withTransaction(Effect.gen(function*() {
              yield* insert(outer)
              yield* inner.withTransaction(Effect.gen(function*() {
                yield* insert(inner)
                yield* Epilogue.defer(note("intent"))
              }))
              assert.deepStrictEqual(log, [])
            })))
            assert.deepStrictEqual(log, ["intent"])
            yield* assertRows(1, 1)
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: an intent is discarded if the inner one rolls back`, () =>
          Effect.gen(function*() {
            const { inner, insert, log, note, outer } = yield* pair
            yield* Epilogue.atomic(outer.withTransaction(Effect.gen(function*() {
              yield* insert(outer)
              yield* Epilogue.defer(note("outer"))
              yield* Effect.ignore(inner.withTransaction(Effect.andThen(Epilogue.defer(note("inner")), fail)))
            })))
            assert.deepStrictEqual(log, ["outer"])
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: an intent is discarded if the outer one rolls back, caught or not`, () =>
          Effect.gen(function*() {
            const { inner, log, note, outer } = yield* pair
            const both = outer.withTransaction(
              Effect.andThen(inner.withTransaction(Epilogue.defer(note("intent"))), fail)
            )
            yield* Epilogue.atomic(Effect.ignore(both))
            assert.deepStrictEqual(log, [])
            assert.deepStrictEqual(yield* Effect.exit(Epilogue.atomic(both)), Exit.fail("rolled back"))
            assert.deepStrictEqual(log, [])
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: a savepoint of the boundary shares the fate of both`, () =>
          Effect.gen(function*() {
            const { inner, log, note, outer } = yield* pair
            const both = (name: string, end: Effect.Effect<void, string>) =>
              outer.withTransaction(Effect.ignore(
                inner.withTransaction(Effect.andThen(Epilogue.savepoint(Epilogue.defer(note(name))), end))
              ))
            yield* Epilogue.atomic(both("kept", Effect.void))
            yield* Epilogue.atomic(both("discarded", fail))
            assert.deepStrictEqual(log, ["kept"])
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: a boundary between the two waits for the outer one`, () =>
          Effect.gen(function*() {
            const { assertRows, inner, insert, log, note, outer } = yield* pair
            const between = outer.withTransaction(Effect.gen(function*() {
              yield* insert(outer)
              const report = yield* Epilogue.report(inner.withTransaction(Effect.gen(function*() {
                yield* insert(inner)
                yield* Epilogue.defer(note("intent"), { name: "note" })
              })))
              assert.deepStrictEqual(report.outcomes.map(({ _tag, intent }) => [_tag, intent.name]), [[
                "Postponed",
                "note"
              ]])
              assert.deepStrictEqual(log, [])
            }))
            yield* between
            assert.deepStrictEqual(log, ["intent"])
            yield* assertRows(1, 1)
            yield* reset
            yield* Effect.ignore(
              Effect.andThen(
                outer.withTransaction(Effect.andThen(
                  Epilogue.atomic(inner.withTransaction(
                    Effect.andThen(insert(inner), Epilogue.defer(note("lost")))
                  )),
                  fail
                )),
                Effect.void
              )
            )
            assert.deepStrictEqual(log, ["intent"])
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: a boundary between the two is discarded with the inner COMMIT`, () =>
          Effect.gen(function*() {
            const { assertRows, inner, insert, log, note, outer } = yield* pair
            yield* outer.withTransaction(Effect.gen(function*() {
              yield* insert(outer)
              yield* Effect.ignore(Epilogue.atomic(inner.withTransaction(
                Effect.andThen(failAtCommit(inner), Epilogue.defer(note("intent")))
              )))
            }))
            assert.deepStrictEqual(log, [])
            yield* assertRows(swapped ? 0 : 1, swapped ? 1 : 0)
          }).pipe(Effect.provide(layer)))

        it.effect(`law 10: ${which}: a boundary inside both waits for both`, () =>
          Effect.gen(function*() {
            const { inner, log, note, outer } = yield* pair
            const inside = (name: string) => inner.withTransaction(Epilogue.atomic(Epilogue.defer(note(name))))
            yield* outer.withTransaction(Effect.gen(function*() {
              yield* inside("kept")
              yield* Effect.ignore(
                inner.withTransaction(Effect.andThen(Epilogue.atomic(Epilogue.defer(note("lost"))), fail))
              )
              assert.deepStrictEqual(log, [])
            }))
            yield* Effect.ignore(outer.withTransaction(Effect.andThen(inside("lost"), fail)))
            assert.deepStrictEqual(log, ["kept"])
          }).pipe(Effect.provide(layer)))

        it.effect(`law 8: ${which}: an intent is in neither transaction`, () =>
          Effect.gen(function*() {
            const { inner, log, note, outer } = yield* pair
            yield* Epilogue.atomic(outer.withTransaction(inner.withTransaction(Epilogue.defer(Effect.gen(function*() {
              const open = yield* Effect.all([
                Effect.serviceOption(outer.transactionService),
                Effect.serviceOption(inner.transactionService)
              ])
              yield* note(open.map(({ _tag }) => _tag).join())
            })))))
            assert.deepStrictEqual(log, ["None,None"])
          }).pipe(Effect.provide(layer)))
      }
    })
  }

  describe("a client inside a repository", () => {
    it.effect("law 10: a rollback inside a boundary, caught, discards the intents", () =>
      Effect.gen(function*() {
        const { log, note, orders } = yield* setup
        yield* Epilogue.atomic(
          Effect.ignore(orders.withTransaction(Effect.andThen(Epilogue.defer(note("intent")), fail)))
        )
        assert.deepStrictEqual(log, [])
      }).pipe(Effect.provide(Epilogue.layer)))

    it.effect("law 10: a boundary whose transaction fails to commit is discarded", () =>
      Effect.gen(function*() {
        const { assertRows, insert, log, note, orders } = yield* setup
        const exit = yield* Effect.exit(orders.withTransaction(Effect.gen(function*() {
          yield* insert(orders)
          yield* failAtCommit(orders)
          yield* Epilogue.atomic(Epilogue.defer(note("intent")))
        })))
        assert.isTrue(Exit.isFailure(exit))
        assert.deepStrictEqual(log, [])
        yield* assertRows(0, 0)
      }).pipe(Effect.provide(Epilogue.layer)))

    it.effect("law 10: a boundary whose transaction commits runs after it, and sees its rows from outside of it", () =>
      Effect.gen(function*() {
        const { insert, log, note, orders } = yield* setup
        yield* orders.withTransaction(Effect.gen(function*() {
          yield* insert(orders)
          const backend = yield* backendOf(orders)
          yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
            const rows = yield* rowsIn(orders)
            const isInTransaction = (yield* orders`SELECT FROM pg_stat_activity
              WHERE pid = ${backend} AND state LIKE 'idle in transaction%'`).length
            yield* note(`${rows.join()} ${isInTransaction}`)
          })))
          assert.deepStrictEqual(log, [])
        }))
        assert.deepStrictEqual(log, ["1 0"])
      }).pipe(Effect.provide(Epilogue.layer)))
  })
})
