// What an append does in transactions that are open side by side.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Effect, Exit, Fiber, Latch, Queue } from "effect"
import { SqlClient, SqlError } from "effect/sql"
import { all, another, answersOf, envelope, envelopes, layerStore, open, storeOver } from "./Store.ts"

/** Waits until a statement of another connection waits for a lock. */
const untilBlocked = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  while (true) {
    const blocked = yield* sql`SELECT FROM pg_stat_activity
      WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0`
    if (blocked.length > 0) return
    yield* Effect.yieldNow
  }
})

it.layer(layerStore)("append", (it) => {
  for (const ending of ["commits", "rolls back"] as const) {
    it.effect(`one with the same idempotency key waits for a transaction that ${ending}`, () =>
      Effect.gen(function*() {
        const store = yield* OutboxStore
        const sql = yield* PgClient.PgClient
        const [first, second] = envelopes(2, { idempotencyKey: "a key" })
        const end = Latch.makeUnsafe()
        const appended = Latch.makeUnsafe()
        const transaction = yield* Effect.forkChild(Effect.exit(sql.withTransaction(Effect.gen(function*() {
          yield* store.append([first!])
          yield* appended.open
          yield* end.await
          if (ending === "rolls back") return yield* Effect.fail("rolled back")
        }))))
        yield* appended.await
        const waiting = yield* Effect.forkChild(sql.withTransaction(store.append([second!])))
        yield* untilBlocked
        yield* end.open
        yield* Fiber.join(transaction)
        assert.deepStrictEqual(
          answersOf(yield* Fiber.join(waiting)),
          ending === "commits" ? [{ id: first!.id, duplicate: true }] : [{ id: second!.id, duplicate: false }]
        )
      }))
  }

  it.effect("transactions that append the same keys in opposite orders do not deadlock", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const sql = yield* PgClient.PgClient
      const { tag } = envelope()
      const keys = Array.from({ length: 50 }, (_, index) => `key ${index}`)
      const batch = (names: ReadonlyArray<string>) => names.map((idempotencyKey) => envelope({ tag, idempotencyKey }))
      const exits = yield* Effect.forEach(
        Array.from({ length: 8 }, (_, index) => batch(index % 2 === 0 ? keys : keys.toReversed())),
        (each) => Effect.exit(sql.withTransaction(store.append(each))),
        { concurrency: "unbounded" }
      )
      const answers = exits.flatMap((exit) => Exit.isSuccess(exit) ? exit.value : [])
      assert.strictEqual(answers.length, 400)
      assert.strictEqual(answers.filter(({ duplicate }) => !duplicate).length, 50)
    }))

  it.effect("an append of more than a statement carries is still one whole, in order", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const sql = yield* PgClient.PgClient
      const payload = JSON.stringify("x".repeat(2 ** 20))
      const added = envelopes(20, { payload })
      const rolledBack = envelopes(20, { payload, tag: added[0]!.tag })
      yield* Effect.exit(sql.withTransaction(Effect.andThen(store.append(rolledBack), Effect.fail("rolled back"))))
      yield* sql.withTransaction(store.append(added))
      const session = yield* open(store, [added[0]!.tag])
      const claimed = yield* session.claim(all)
      assert.deepStrictEqual(claimed.map(({ id }) => id), added.map(({ id }) => id))
    }))

  it.effect("what the database said is kept, so that it can be told apart", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const sql = yield* PgClient.PgClient
      const [first, second] = envelopes(2, { idempotencyKey: "a key" })
      const error = yield* sql.withTransaction(Effect.gen(function*() {
        // The snapshot of the transaction is older than what it then finds.
        yield* sql`SELECT 1`
        yield* (yield* storeOver(yield* another())).append([first!])
        return yield* store.append([second!])
      })).pipe(
        Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
        Effect.flip
      )
      assert(error._tag === "IntentStoreError")
      assert(SqlError.isSqlError(error.cause))
      assert.strictEqual(error.cause.reason._tag, "SerializationError")
      assert.include(error.message, "could not serialize")
    }))

  it.effect("no notification is sent by the transaction of the boundary", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const sql = yield* PgClient.PgClient
      const channel = "epilogue:epilogue"
      const notifications = yield* sql.listen(channel)
      yield* sql.withTransaction(store.append(envelopes(3, { idempotencyKey: "one" })))
      yield* sql.notify(channel, "the first")
      assert.strictEqual((yield* Queue.take(notifications)).payload, "the first")
    }))
})
