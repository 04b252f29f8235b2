// TestEpilogue within a transaction that the test wraps around itself, to roll everything back at its end.
import { assert, it } from "@effect/vitest"
import { Epilogue, TestEpilogue } from "@epilogue/core"
import { Effect, Fiber, Latch } from "effect"
import { SqlClient } from "effect/sql"
import { inMode, layerThings, levelOf, type Mode, Things } from "./Postgres.ts"

const testMode: Mode = { name: "TestEpilogue", atomic: Epilogue.atomic, layer: () => TestEpilogue.layer }

/** Runs a test in a transaction, and rolls that back. */
const inTransaction = <A, E, R>(test: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const { rows } = yield* Things
    yield* sql.withTransaction(Effect.andThen(test, Effect.fail("the end of the test" as const))).pipe(
      Effect.catchIf((error) => error === "the end of the test", () => Effect.void)
    )
    assert.deepStrictEqual(yield* rows, [])
  }).pipe(Effect.provide(TestEpilogue.layer), inMode(testMode))

const nested = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  SqlClient.SqlClient.use((sql) => sql.withTransaction(effect))
const rolledBack = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.ignore(nested(Effect.andThen(effect, Effect.fail("rolled back"))))

const statuses = Effect.map(TestEpilogue.intents, (intents) => intents.map(({ name, status }) => `${name}: ${status}`))

it.layer(layerThings)("TestEpilogue", (it) => {
  const deferred = (name: string) => Epilogue.defer(Things.use(({ notify }) => notify(name)), { name })

  it.effect("a boundary inside the test's transaction counts as committed when it ends", () =>
    inTransaction(Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* deferred("a")
        assert.deepStrictEqual(yield* statuses, ["a: deferred"])
      }))
      assert.deepStrictEqual(yield* statuses, ["a: committed"])
    })))

  it.effect("law 10: the intents of a savepoint that rolled back are discarded, and those of one released are committed", () =>
    inTransaction(Effect.gen(function*() {
      const { insert, rows } = yield* Things
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* nested(Effect.andThen(insert(1), deferred("released")))
        yield* rolledBack(Effect.andThen(insert(2), deferred("rolled back")))
        yield* deferred("beside")
        yield* rolledBack(nested(deferred("released inside")))
        yield* nested(Effect.andThen(rolledBack(deferred("rolled back inside")), deferred("released around")))
      }))
      assert.deepStrictEqual(yield* rows, [1])
      assert.deepStrictEqual(yield* statuses, [
        "released: committed",
        "rolled back: discarded",
        "beside: committed",
        "released inside: discarded",
        "rolled back inside: discarded",
        "released around: committed"
      ])
    })))

  it.effect("law 4: a savepoint of the boundary inside a SQL savepoint that rolled back is discarded with it", () =>
    inTransaction(Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* rolledBack(Epilogue.savepoint(deferred("inner")))
        yield* Effect.ignore(Epilogue.savepoint(Effect.andThen(nested(deferred("failed")), Effect.fail("failed"))))
        yield* nested(Epilogue.savepoint(deferred("kept")))
      }))
      assert.deepStrictEqual(yield* statuses, ["inner: discarded", "failed: discarded", "kept: committed"])
    })))

  it.effect("law 2: a boundary that fails is discarded, though a SQL savepoint inside it was released", () =>
    inTransaction(Effect.gen(function*() {
      yield* Effect.ignore(Epilogue.atomic(Effect.andThen(nested(deferred("a")), Effect.fail("failed"))))
      assert.deepStrictEqual(yield* statuses, ["a: discarded"])
      assert.deepStrictEqual(yield* TestEpilogue.run, [])
    })))

  it.effect("law 8: run runs what is committed, outside of the test's transaction", () =>
    inTransaction(Effect.gen(function*() {
      const { insert, notified, notify, rows } = yield* Things
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* insert(1)
        yield* Epilogue.defer(Effect.flatMap(rows, (nums) => notify(`${nums.length} rows`)))
        yield* rolledBack(deferred("never"))
      }))
      assert.deepStrictEqual(notified, [])
      const outcomes = yield* TestEpilogue.run
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Ran"])
      assert.deepStrictEqual(notified, ["0 rows"])
      assert.deepStrictEqual(yield* rows, [1])
    })))

  it.effect("law 10: what a running intent registers in a transaction of its own that rolls back is discarded", () =>
    inTransaction(Effect.gen(function*() {
      const { notified } = yield* Things
      yield* Epilogue.atomic(Epilogue.defer(
        Effect.andThen(rolledBack(deferred("rolled back")), nested(deferred("committed"))),
        { name: "a" }
      ))
      yield* TestEpilogue.run
      assert.deepStrictEqual(notified, ["committed"])
      assert.deepStrictEqual(yield* statuses, ["a: committed", "rolled back: discarded", "committed: committed"])
    })))

  it.effect("law 10: an intent whose transaction outlives the boundary is committed when that commits", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const registered = yield* Latch.make()
      const mayCommit = yield* Latch.make()
      const fiber = yield* Epilogue.atomic(Effect.gen(function*() {
        const forked = yield* Effect.forkDetach(
          nested(Effect.andThen(deferred("a"), Effect.andThen(registered.open, mayCommit.await)))
        )
        yield* registered.await
        return forked
      }))
      assert.deepStrictEqual(yield* TestEpilogue.run, [])
      yield* mayCommit.open
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* statuses, ["a: committed"])
      yield* TestEpilogue.run
      assert.deepStrictEqual(notified, ["a"])
    }).pipe(Effect.provide(TestEpilogue.layer), inMode(testMode)))

  it.effect("nor is one around code that has no boundary", () =>
    inTransaction(Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const [connection, depth] = yield* levelOf(sql)
      yield* Effect.provideService(deferred("a"), sql.transactionService, [connection, depth])
      assert.deepStrictEqual(yield* statuses, ["a: deferred"])
    })))

  it.effect("a wrapping transaction that cannot be waited for is none of the test's business", () =>
    inTransaction(Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const [connection, depth] = yield* levelOf(sql)
      yield* Effect.provideService(Epilogue.atomic(deferred("a")), sql.transactionService, [connection, depth])
      assert.deepStrictEqual(yield* statuses, ["a: committed"])
    })))
})
