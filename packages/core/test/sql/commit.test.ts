// What becomes of a boundary whose BEGIN or COMMIT does not go as it should.
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import { Cause, Effect, Exit, Fiber, Latch, Redacted } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, SqlError } from "effect/sql"
import {
  another,
  backendOf,
  commitErrorOf,
  failAtCommit,
  inMode,
  insertInto,
  layerThings,
  modes,
  owning,
  rowsIn,
  slowCommit,
  terminate,
  Things
} from "./Postgres.ts"

/** Runs a test with a pool of one connection: whoever asks for a second one while it is taken waits for ever. */
const withOneConnection = <A, E, R>(test: (sql: PgClient.PgClient) => Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const sql = yield* another({ maxConnections: 1 })
    return yield* Effect.provide(
      Effect.provideService(test(sql), SqlClient.SqlClient, sql),
      SqlEpilogue.layer
    )
  })

it.layer(layerThings)("commit", (it) => {
  for (const mode of modes) {
    const ownsTransaction = mode.name === "SqlEpilogue"
    const isAround = ownsTransaction || mode.name === "Epilogue around a transaction"

    describe(`with ${mode.name}`, () => {
      const inPoolOfOne = <A, E, R>(test: (sql: PgClient.PgClient) => Effect.Effect<A, E, R>) =>
        Effect.gen(function*() {
          const sql = yield* another({ maxConnections: 1 })
          return yield* Effect.provideService(inMode(mode)(test(sql)), SqlClient.SqlClient, sql)
        })

      /** Writes a row that does not survive, and tells of everything that runs; each thing that runs queries too. */
      const core = Effect.fnUntraced(function*(sql: SqlClient.SqlClient) {
        const { notify } = yield* Things
        yield* insertInto(sql, 1)
        yield* Epilogue.defer(Effect.andThen(rowsIn(sql), notify("intent")))
        // Of a savepoint that rolls back, the hooks run while the transaction around it still has the connection.
        const rows = isAround ? Effect.map(rowsIn(sql), (nums) => nums.length) : Effect.succeed(0)
        yield* Epilogue.deferRollback((cause) =>
          Effect.flatMap(rows, (found) => notify(`hook: ${found} rows, ${cause.reasons.length} reasons`))
        )
      })

      const assertDiscarded = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, exit: Exit.Exit<unknown, unknown>) {
        const { notified } = yield* Things
        if (ownsTransaction) assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
        else {
          // The error of the application's own transaction, or of the boundary's savepoint in it.
          const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
          assert.isTrue(SqlError.isSqlError(error) || commitErrorOf(exit).outcome === "discarded")
        }
        assert.notInclude(notified, "intent")
        if (isAround) assert.deepStrictEqual(notified, ["hook: 0 rows, 1 reasons"])
        assert.deepStrictEqual(yield* rowsIn(sql), [])
      })

      it.effect("law 8: an intent that queries finds the only connection released", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          yield* mode.atomic(core(sql))
          assert.deepStrictEqual((yield* Things).notified, ["intent"])
        })))

      it.effect("law 10: a COMMIT that a deferred constraint refuses discards the intents", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const exit = yield* Effect.exit(mode.atomic(Effect.andThen(core(sql), failAtCommit(sql))))
          yield* assertDiscarded(sql, exit)
        })))

      it.effect("law 10: a COMMIT that the server answers with ROLLBACK discards the intents", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const exit = yield* Effect.exit(
            mode.atomic(Effect.andThen(core(sql), Effect.ignore(sql`SELECT no_such_column`)))
          )
          yield* assertDiscarded(sql, exit)
        })))

      it.effect("law 10: a COMMIT that fails to serialize discards the intents, and a second attempt runs them once", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const rival = yield* another()
          const serializable = Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL SERIALIZABLE")
          const writeAfterRead = (client: SqlClient.SqlClient, num: number) =>
            Effect.andThen(rowsIn(client), insertInto(client, num))
          let attempts = 0
          const exit = yield* Effect.exit(serializable(mode.atomic(Effect.gen(function*() {
            attempts++
            yield* rowsIn(sql)
            yield* core(sql)
            // Both have read what the other one writes, and the rival is the first to commit.
            yield* serializable(rival.withTransaction(writeAfterRead(rival, 2)))
          }))))
          assert.isTrue(Exit.isFailure(exit) && Cause.pretty(exit.cause).includes("serialize"))
          if (ownsTransaction) assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
          const { notified } = yield* Things
          assert.notInclude(notified, "intent")
          assert.deepStrictEqual(yield* rowsIn(sql), [2])
          yield* serializable(mode.atomic(core(sql)))
          assert.deepStrictEqual(notified.filter((what) => what === "intent"), ["intent"])
          assert.strictEqual(attempts, 1)
        })))

      it.effect("law 10: a connection that is lost inside the core discards the intents, and the client recovers", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified } = yield* Things
          const admin = yield* another()
          const exit = yield* Effect.exit(mode.atomic(Effect.gen(function*() {
            yield* core(sql)
            yield* terminate(admin, yield* backendOf(sql))
            yield* insertInto(sql, 2)
          })))
          assert.isTrue(Exit.isFailure(exit))
          if (ownsTransaction) {
            assert.isTrue(Exit.isFailure(exit) && exit.cause.reasons.length === 1)
            assert.isTrue(Exit.isFailure(exit) && SqlError.isSqlError(Cause.squash(exit.cause)))
          }
          assert.notInclude(notified, "intent")
          yield* mode.atomic(core(sql))
          assert.deepStrictEqual(yield* rowsIn(sql), [1])
          assert.deepStrictEqual(notified.filter((what) => what === "intent"), ["intent"])
        })))

      it.effect("law 10: a connection that is lost before COMMIT discards the intents", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified } = yield* Things
          const admin = yield* another()
          const exit = yield* Effect.exit(mode.atomic(Effect.gen(function*() {
            yield* core(sql)
            yield* terminate(admin, yield* backendOf(sql))
          })))
          // It was noticed before the COMMIT was sent.
          if (ownsTransaction) assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
          else assert.isTrue(Exit.isFailure(exit))
          assert.notInclude(notified, "intent")
          assert.deepStrictEqual(yield* rowsIn(sql), [])
        })))

      it.effect("law 2: interruption inside the core rolls back, and nothing runs", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified } = yield* Things
          const inside = yield* Latch.make()
          const fiber = yield* Effect.forkChild(
            mode.atomic(Effect.andThen(core(sql), Effect.andThen(inside.open, Effect.never)))
          )
          yield* inside.await
          yield* Fiber.interrupt(fiber)
          const exit = yield* Fiber.await(fiber)
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
          assert.deepStrictEqual(notified, ["hook: 0 rows, 1 reasons"])
          assert.deepStrictEqual(yield* rowsIn(sql), [])
        })))

      // With the transaction inside the core, the core has not succeeded where it is interrupted after the COMMIT.
      const interrupted = mode.name === "Epilogue around a transaction"
        ? {
          does: "law 2: interruption while COMMIT is under way is an interruption of the core",
          runs: "hook: 1 rows, 1 reasons"
        }
        : { does: "law 7: interruption while COMMIT is under way takes effect after the epilogue", runs: "intent" }

      it.effect(interrupted.does, () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified } = yield* Things
          const gate = yield* slowCommit
          const fiber = yield* Effect.forkChild(
            mode.atomic(Effect.andThen(core(sql), sql`INSERT INTO slow VALUES (1)`))
          )
          yield* gate.reached
          const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
          assert.deepStrictEqual(notified, [])
          yield* gate.open
          yield* Fiber.join(interruption)
          assert.deepStrictEqual(notified, [interrupted.runs])
          assert.deepStrictEqual(yield* rowsIn(sql), [1])
          const exit = yield* Fiber.await(fiber)
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
        })))

      // With the transaction inside the core, the boundary is still open.
      it.effect.skipIf(mode.name === "Epilogue around a transaction")(
        "law 6: a fiber that registers while COMMIT is under way is too late",
        () =>
          inPoolOfOne(Effect.fnUntraced(function*(sql) {
            const { notified, notify } = yield* Things
            const gate = yield* slowCommit
            const isUnderWay = yield* Latch.make()
            const exits: Array<Exit.Exit<void>> = []
            const register = Effect.flatMap(
              Effect.exit(Epilogue.defer(notify("late"), { name: "too late" })),
              (exit) => Effect.sync(() => void exits.push(exit))
            )
            const fiber = yield* Effect.forkChild(mode.atomic(Effect.andThen(
              sql`INSERT INTO slow VALUES (1)`,
              Effect.forkDetach(Effect.andThen(isUnderWay.await, register))
            )))
            yield* gate.reached
            yield* isUnderWay.open
            yield* Effect.repeat(Effect.yieldNow, { until: () => exits.length === 1 })
            yield* gate.open
            yield* Fiber.join(fiber)
            assert.isTrue(exits.every((exit) => Exit.isFailure(exit) && Cause.pretty(exit.cause).includes("too late")))
            assert.deepStrictEqual(notified, [])
          }))
      )

      it.effect("law 7: a COMMIT that fails runs nothing, though an interruption arrived meanwhile", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified } = yield* Things
          const gate = yield* slowCommit
          const fiber = yield* Effect.forkChild(mode.atomic(Effect.gen(function*() {
            yield* core(sql)
            yield* sql`INSERT INTO slow VALUES (1)`
            yield* failAtCommit(sql)
          })))
          yield* gate.reached
          const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
          yield* gate.open
          yield* Fiber.join(interruption)
          assert.notInclude(notified, "intent")
          assert.deepStrictEqual(yield* rowsIn(sql), [])
        })))

      it.effect("interruption while waiting for a connection is prompt, and the core does not begin", () =>
        inPoolOfOne(Effect.fnUntraced(function*(sql) {
          const { notified, notify } = yield* Things
          yield* Effect.scoped(Effect.gen(function*() {
            yield* sql.reserve
            const fiber = yield* Effect.forkChild(mode.atomic(notify("core")), { startImmediately: true })
            assert.isUndefined(fiber.pollUnsafe())
            yield* Fiber.interrupt(fiber)
            const exit = yield* Fiber.await(fiber)
            assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
          }))
          assert.deepStrictEqual(notified, [])
          yield* mode.atomic(core(sql))
          assert.deepStrictEqual(notified, ["intent"])
        })))
    })
  }

  it.effect("law 2: a core that fails after its connection was lost fails with its own cause alone", () =>
    withOneConnection(Effect.fnUntraced(function*(sql) {
      const admin = yield* another()
      const exit = yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* terminate(admin, yield* backendOf(sql))
        return yield* Effect.fail("own")
      })))
      assert.deepStrictEqual(exit, Exit.fail("own"))
    })))

  it.effect("law 3: a connection that cannot be released after COMMIT changes nothing", () =>
    Effect.gen(function*() {
      const { assertDone } = yield* Things
      const { reserve } = yield* PgClient.PgClient
      const sql = yield* SqlClient.make({
        acquirer: reserve,
        transactionAcquirer: Effect.tap(reserve, Effect.addFinalizer(() => Effect.die("not released"))),
        compiler: PgClient.makeCompiler(),
        driver: "test",
        spanAttributes: []
      })
      const core = Effect.andThen(insertInto(sql, 1), Epilogue.defer(Things.use(({ notify }) => notify(1))))
      const value = yield* Epilogue.atomic(Effect.as(core, "value")).pipe(
        Effect.provide(SqlEpilogue.layer),
        Effect.provideService(SqlClient.SqlClient, sql)
      )
      assert.strictEqual(value, "value")
      yield* assertDone([1])
    }).pipe(Effect.provide(Reactivity.layer), inMode(owning)))

  it.effect("a server that cannot be reached is a CommitError, discarded, and the core does not begin", () =>
    Effect.gen(function*() {
      const { notified, notify } = yield* Things
      const sql = yield* another({ url: Redacted.make("postgres://nobody@127.0.0.1:1/none") })
      const exit = yield* Effect.exit(Epilogue.atomic(notify("core"))).pipe(
        Effect.provide(SqlEpilogue.layer),
        Effect.provideService(SqlClient.SqlClient, sql)
      )
      assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
      assert.deepStrictEqual(notified, [])
    }).pipe(inMode(owning)))

  it.effect("a BEGIN that the server refuses is a CommitError, discarded, and the connection is usable again", () =>
    Effect.gen(function*() {
      const { act, assertDone } = yield* Things
      const exit = yield* Effect.exit(
        Effect.provideService(Epilogue.atomic(act(1)), SqlClient.BeginTransaction, "BEGIN NONSENSE")
      )
      assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
      yield* Epilogue.atomic(act(2))
      yield* assertDone([2])
    }).pipe(inMode(owning)))
})
