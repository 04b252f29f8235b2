// What the limits of tags permit, however long they have been asked about.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Duration, Effect } from "effect"
import { envelope, layerStore } from "./Store.ts"

it.layer(layerStore)("permits", (it) => {
  it.effect("turns are counted on after more of them than an int4 can count", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const { tag } = envelope()
      const store = yield* OutboxStore
      const limits = { concurrency: 4, rateLimit: { limit: 10, window: Duration.hours(1) } }
      const open = store.open({
        subscriptions: [{ tag, versions: [1], ...limits }],
        lease: Duration.seconds(30)
      })
      const [one, other] = [yield* open, yield* open]
      const ask = (session: typeof one, tokens: number) =>
        Effect.map(session.permit([{ tag, running: 0, concurrency: 4, tokens }]), ([permit]) => permit!.tokens)
      assert.strictEqual(yield* ask(one, 1), 1)
      yield* sql`UPDATE epilogue.bucket SET turn = 2147483647`
      assert.strictEqual(yield* ask(one, 2), 2)
      assert.strictEqual(yield* ask(other, 3), 3)
      assert.strictEqual(yield* ask(one, 4), 4)
      yield* sql`UPDATE epilogue.bucket SET tokens = 0`
      // Who has waited for longest is the first, by turns that are far above what an int4 holds.
      assert.strictEqual(yield* ask(one, 1), 0)
      assert.strictEqual(yield* ask(other, 1), 0)
      yield* sql`UPDATE epilogue.bucket SET tokens = 1`
      assert.strictEqual(yield* ask(one, 1), 0)
      assert.strictEqual(yield* ask(other, 1), 1)
      const [row] = yield* sql<{ turn: number }>`SELECT turn FROM epilogue.bucket`
      assert.strictEqual(row!.turn, 2147483647 + 7)
    }))
})
