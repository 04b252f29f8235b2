// What an intent sees of the transaction that it was registered in, and what core relies on in Effect to take it away.
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue } from "@epilogue/core"
import { Context, Effect, Exit, Option, Tracer } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient } from "effect/sql"
import {
  another,
  backendOf,
  inMode,
  insertInto,
  layerThings,
  levelOf,
  modes,
  owning,
  rowsIn,
  Things
} from "./Postgres.ts"

const currentTransaction = Context.Service<unknown>("effect/sql/CurrentTransactionService")

/** Every name in the context that has to do with an open transaction. */
const transactionsIn = (context: Context.Context<never>): ReadonlyArray<string> =>
  Array.from(context.mapUnsafe.keys()).filter((key) =>
    key === currentTransaction.key || key.startsWith("effect/sql/SqlClient/TransactionConnection/")
  )

it.layer(layerThings)("context", (it) => {
  for (const mode of modes) {
    describe(`with ${mode.name}`, () => {
      const { atomic } = mode

      it.effect("law 8: an intent sees no transaction, by any name", () =>
        Effect.gen(function*() {
          const sql = yield* SqlClient.SqlClient
          const seen: Array<ReadonlyArray<string>> = []
          const look = Effect.contextWith((context: Context.Context<never>) =>
            Effect.sync(() => void seen.push(transactionsIn(context)))
          )
          yield* atomic(Effect.gen(function*() {
            yield* look
            yield* Epilogue.defer(look)
            yield* sql.withTransaction(Epilogue.defer(look))
          }))
          assert.deepStrictEqual(seen.map((keys) => keys.length), [2, 0, 0])
        }).pipe(inMode(mode)))

      it.effect("law 8: a statement of an intent is in a transaction of its own", () =>
        Effect.gen(function*() {
          const sql = yield* PgClient.PgClient
          const xid = Effect.map(sql`SELECT pg_current_xact_id()::text AS id`, ([row]) => String(row?.["id"]))
          const ids: Array<string> = []
          const look = Effect.orDie(Effect.map(xid, (id) => void ids.push(id)))
          yield* atomic(Effect.gen(function*() {
            yield* look
            yield* look
            yield* Epilogue.defer(look)
            yield* Epilogue.defer(look)
          }))
          assert.strictEqual(ids.length, 4)
          assert.strictEqual(ids[0], ids[1])
          assert.strictEqual(new Set(ids).size, 3)
        }).pipe(inMode(mode)))

      it.effect("law 8: an invalidation by an intent takes effect at once, and one by the core after the commit", () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          const reactivity = yield* Reactivity.make
          const unregister = reactivity.registerUnsafe(["things"], () => notified.push("invalidated"))
          yield* atomic(Effect.gen(function*() {
            yield* Reactivity.invalidate(["things"])
            assert.deepStrictEqual(notified, [])
            yield* Epilogue.defer(Effect.gen(function*() {
              notified.length = 0
              yield* Reactivity.invalidate(["things"])
              yield* notify("after")
            }))
          })).pipe(Effect.provideService(Reactivity.Reactivity, reactivity))
          unregister()
          assert.deepStrictEqual(notified.slice(0, 2), ["invalidated", "after"])
        }).pipe(inMode(mode)))

      it.effect("law 8: intents see the services of the place where they were registered", () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          const sql = yield* SqlClient.SqlClient
          const Name = Context.Reference<string>("test/Name", { defaultValue: () => "none" })
          const say = Effect.flatMap(Name, notify)
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.defer(say)
            yield* sql.withTransaction(Epilogue.defer(say)).pipe(Effect.provideService(Name, "inner"))
          })).pipe(Effect.provideService(Name, "outer"))
          assert.deepStrictEqual(notified, ["outer", "inner"])
        }).pipe(inMode(mode)))

      it.effect("law 8: the epilogue's span is not inside the transaction's, and intents link to where they were registered", () =>
        Effect.gen(function*() {
          const { notify } = yield* Things
          const spans: Array<Tracer.Span> = []
          const tracer = Tracer.make({
            span: (options) => {
              const span = new Tracer.NativeSpan(options)
              spans.push(span)
              return span
            }
          })
          yield* atomic(Effect.withSpan(Epilogue.defer(notify(1), { name: "notify" }), "registering")).pipe(
            Effect.withSpan("request"),
            Effect.provideService(Tracer.Tracer, tracer)
          )
          const named = (name: string) => spans.find((span) => span.name === name) ?? assert.fail(`no span "${name}"`)
          const parentOf = (name: string) => Option.map(named(name).parent, ({ spanId }) => spanId)
          assert.deepStrictEqual(parentOf("epilogue"), Option.some(named("request").spanId))
          assert.deepStrictEqual(parentOf("intent notify"), Option.some(named("epilogue").spanId))
          assert.deepStrictEqual(named("intent notify").links.map(({ span }) => span.spanId), [
            named("registering").spanId
          ])
          const transaction = named("sql.transaction").status
          const epilogue = named("epilogue").status
          assert.isTrue(transaction._tag === "Ended" && Exit.isSuccess(transaction.exit))
          assert.isTrue(epilogue._tag === "Ended" && Exit.isSuccess(epilogue.exit))
        }).pipe(inMode(mode)))

      it.effect("under an outer transaction outcomes are Postponed, else they say how each intent ended", () =>
        Effect.gen(function*() {
          const { act } = yield* Things
          const sql = yield* SqlClient.SqlClient
          const core = Epilogue.reportWith({ name: "named" })(act(1))
          const { outcomes } = yield* mode.name.endsWith("inside a transaction")
            ? sql.withTransaction(core)
            : mode.name === "SqlEpilogue"
            ? core
            : Epilogue.report(sql.withTransaction(act(1)))
          assert.deepStrictEqual(
            outcomes.map(({ _tag }) => _tag),
            [mode.name.endsWith("inside a transaction") ? "Postponed" : "Ran"]
          )
        }).pipe(inMode(mode)))
    })
  }

  it.effect("law 8: the transaction that the caller is in stays out of sight of what it runs", () =>
    Effect.gen(function*() {
      const { notified, notify } = yield* Things
      const sql = yield* PgClient.PgClient
      const other = yield* another()
      const seen: Array<ReadonlyArray<string>> = []
      // An engine that keeps the epilogue for later, as one that tests or batches would.
      let later: Epilogue.Committed | undefined
      const engine = Epilogue.make({ commit: (committed) => Effect.sync(() => void (later = committed)) })
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* insertInto(sql, 1)
        yield* Epilogue.defer(Effect.gen(function*() {
          seen.push(transactionsIn(yield* Effect.context()))
          yield* notify((yield* rowsIn(sql)).join())
          yield* insertInto(sql, 3)
        }))
      })).pipe(Effect.provideService(Epilogue.Epilogue, engine))
      yield* Effect.ignore(sql.withTransaction(other.withTransaction(Effect.gen(function*() {
        const backend = yield* backendOf(sql)
        yield* insertInto(sql, 2)
        yield* Effect.uninterruptible(later?.run ?? Effect.void)
        assert.strictEqual(yield* backendOf(sql), backend)
        return yield* Effect.fail("rolled back")
      }))))
      assert.deepStrictEqual(seen, [[]])
      assert.deepStrictEqual(notified, ["1"])
      assert.deepStrictEqual(yield* rowsIn(sql), [1, 3])
    }).pipe(inMode(owning)))

  describe("canary", () => {
    it.effect("Effect keeps the key of the transaction in force under the name that core reads", () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const other = yield* another()
        assert.deepStrictEqual(transactionsIn(yield* Effect.context()), [])
        yield* sql.withTransaction(Effect.gen(function*() {
          const context = yield* Effect.context()
          assert.strictEqual(Context.getOrUndefined(context, currentTransaction), sql.transactionService)
          assert.deepStrictEqual(
            transactionsIn(context).toSorted(),
            [sql.transactionService.key, currentTransaction.key].toSorted()
          )
          yield* other.withTransaction(Effect.gen(function*() {
            const inner = yield* Effect.context()
            assert.strictEqual(Context.getOrUndefined(inner, currentTransaction), other.transactionService)
            assert.strictEqual(transactionsIn(inner).length, 3)
          }))
        }))
      }))

    it.effect("Effect names the client and Reactivity as core does", () =>
      Effect.sync(() => {
        assert.strictEqual(SqlClient.SqlClient.key, "effect/sql/SqlClient")
        assert.strictEqual(Reactivity.Reactivity.key, "effect/reactivity/Reactivity")
      }))

    it.effect("Effect knows a level by its identity: what waits in a copy of it does not wait for the rest", () =>
      Effect.gen(function*() {
        const { notified, notify } = yield* Things
        const sql = yield* SqlClient.SqlClient
        yield* sql.withTransaction(Effect.gen(function*() {
          const [connection, depth] = yield* levelOf(sql)
          yield* sql.withTransaction(sql.afterCommit(notify("copy"))).pipe(
            Effect.provideService(sql.transactionService, [connection, depth])
          )
          assert.deepStrictEqual(notified, ["copy"])
          yield* sql.withTransaction(sql.afterCommit(notify("original")))
          assert.deepStrictEqual(notified, ["copy"])
        }))
        assert.deepStrictEqual(notified, ["copy", "original"])
      }).pipe(inMode(owning)))

    it.effect("Effect tells a transaction that has ended: afterCommit is a defect", () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const level = yield* sql.withTransaction(levelOf(sql))
        const late = Effect.provideService(sql.afterCommit(Effect.void), sql.transactionService, level)
        assert.isTrue(Exit.hasDies(yield* Effect.exit(late)))
      }))
  })
})
