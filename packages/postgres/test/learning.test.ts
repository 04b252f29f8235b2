// How sessions come to know queues, in whatever order these are committed.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Effect, Fiber, Latch } from "effect"
import { all, another, envelope, layerStore, open, storeOver } from "./Store.ts"

/**
 * A session, and a row of a priority whose queue was made before another one that the session has learned, and committed after
 * it.
 */
const late = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  const here = yield* OutboxStore
  const first = envelope()
  const { tag } = first
  yield* here.append([first])
  const session = yield* open(here, [tag])
  yield* session.claim(all)
  // It has looked at all that is there.
  yield* session.beat
  yield* session.wakes
  yield* session.claim(all)

  const [made, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
  const making = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
    const rows = yield* sql<{ id: number }>`INSERT INTO epilogue.queue (tag, version, priority) VALUES (${tag}, 1, 7)
      RETURNING id`
    yield* made.open
    yield* end.await
    yield* sql`INSERT INTO epilogue.waiting (queue, id, enqueued_at, intent, payload)
      VALUES (${rows[0]!.id}, nextval('epilogue.position'), now(), gen_random_uuid(), '{}')`
    return rows[0]!.id
  })))
  yield* made.await
  const greater = envelope({ tag, priority: 3 })
  const there = yield* storeOver(yield* another())
  yield* there.append([greater])
  // Until it has learned of the other.
  yield* Effect.repeat(Effect.andThen(session.beat, session.claim(all)), { until: (claimed) => claimed.length === 1 })
  yield* Effect.repeat(session.beat, { times: 3 })
  yield* end.open
  return { session, queue: yield* Fiber.join(making), there, tag }
})

it.layer(layerStore)("learning", (it) => {
  it.effect("a queue that is committed after a greater one is learned with the next beats", () =>
    Effect.gen(function*() {
      const { session } = yield* late
      assert.isTrue((yield* session.beat).isWaiting)
      const claimed = yield* session.claim(all)
      assert.strictEqual(claimed.length, 1)
      assert.isFalse((yield* session.beat).isWaiting)
    }))

  it.effect("a queue that is committed after a greater one is learned from what is told of it", () =>
    Effect.gen(function*() {
      const { session, tag, there } = yield* late
      const added = envelope({ tag, priority: 7 })
      yield* there.append([added])
      yield* (yield* OutboxStore).wake([added])
      yield* session.wakes
      assert.strictEqual((yield* session.claim(all)).length, 2)
    }))

  it.effect("queues of others wake nobody once they are known as such", () =>
    Effect.gen(function*() {
      const here = yield* OutboxStore
      const [own, foreign] = [envelope(), envelope()]
      const session = yield* open(here, [own.tag])
      yield* here.append([foreign])
      yield* Effect.repeat(session.beat, { until: ({ isListening }) => isListening })
      yield* session.wakes
      let waiting = yield* Effect.forkChild(session.wakes)
      yield* here.wake([foreign])
      yield* Fiber.join(waiting)
      const isWoken = Effect.gen(function*() {
        yield* session.claim(all)
        waiting = yield* Effect.forkChild(session.wakes)
        yield* here.wake([foreign])
        yield* Effect.repeat(session.beat, { times: 3 })
        return waiting.pollUnsafe() !== undefined
      })
      // What a beat has begun to look for wakes it as well.
      yield* Effect.repeat(isWoken, { until: (woken) => !woken })
      yield* here.append([own])
      yield* here.wake([own])
      yield* Fiber.join(waiting)
      assert.strictEqual((yield* session.claim(all)).length, 1)
    }))
})
