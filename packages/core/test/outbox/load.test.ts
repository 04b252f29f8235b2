import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, OutboxWorker } from "@epilogue/core"
import { Effect, Latch, Layer, Schema } from "effect"
import { makeLog } from "../support.ts"
import { elapse, makeOutbox, now, settled, storeWith } from "./support.ts"

class Work extends Intent.make("Work", { payload: Schema.Int }) {}
class Other extends Intent.make("Other", { payload: Schema.Int }) {}

const worker = (concurrency: number, handler: (n: number) => Effect.Effect<unknown, unknown>) =>
  OutboxWorker.layer({ intents: [Work], concurrency }).pipe(Layer.provide(Work.toLayer(handler)))

const deferred = (count: number, from = 0) =>
  Epilogue.atomic(Effect.forEach(Array.from({ length: count }, (_, n) => from + n), (n) => Work.defer(n), {
    discard: true
  }))

/** The memory store, which keeps an eye on what a session holds. */
const watched = () => {
  const seen = { held: 0, most: 0, least: Infinity, claims: 0 }
  const store = storeWith((session) => ({
    claim: (limit) =>
      Effect.map(session.claim(limit), (claimed) => {
        seen.claims++
        seen.held += claimed.length
        seen.most = Math.max(seen.most, seen.held)
        seen.least = Math.min(seen.least, limit.rows)
        return claimed
      }),
    settle: (settlements) => Effect.tap(session.settle(settlements), Effect.sync(() => seen.held -= settlements.length))
  }))
  return { seen, store }
}

describe("concurrency", () => {
  for (const concurrency of [1, 3, 10]) {
    it.effect(`${concurrency} deliveries run at once, and never more`, () =>
      Effect.gen(function*() {
        let running = 0
        let most = 0
        const { isEmpty, provide, start } = yield* makeOutbox()
        yield* start(worker(concurrency, () =>
          Effect.acquireUseRelease(
            Effect.sync(() => most = Math.max(most, ++running)),
            () => Effect.sleep("1 second"),
            () => Effect.sync(() => running--)
          )))
        yield* provide(deferred(concurrency * 10))
        for (let second = 0; second < 10; second++) {
          yield* elapse("500 millis")
          assert.strictEqual(running, concurrency)
          yield* elapse("500 millis")
        }
        assert.strictEqual(most, concurrency)
        yield* isEmpty
      }))
  }

  it.effect("a batch counts as one", () =>
    Effect.gen(function*() {
      let running = 0
      const { provide, start } = yield* makeOutbox()
      yield* start(
        OutboxWorker.layer({ intents: [Work], concurrency: 2 }).pipe(
          Layer.provide(Work.toLayerBatched(() => Effect.andThen(Effect.sync(() => running++), Effect.never), {
            maxSize: 5,
            maxWait: "1 second"
          }))
        )
      )
      yield* provide(deferred(50))
      yield* settled
      assert.strictEqual(running, 2)
    }))

  it.effect("a delivery that hangs takes one place, and the others go on", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      yield* start(worker(2, (n) => n === 0 ? Effect.never : log.add(String(n))))
      yield* provide(deferred(100))
      yield* settled
      assert.strictEqual(log.lines.length, 99)
    }))
})

describe("much to do", () => {
  it.effect("1,000 intents with concurrency 50 are each delivered once", () =>
    Effect.gen(function*() {
      const counts = Array.from({ length: 1_000 }, () => 0)
      const { isEmpty, provide, start } = yield* makeOutbox()
      yield* start(worker(50, (n) => Effect.andThen(Effect.sleep(n % 7), Effect.sync(() => counts[n]!++))))
      yield* provide(deferred(600))
      yield* Effect.forEach(Array.from({ length: 400 }, (_, n) => 600 + n), (n) => provide(deferred(1, n)))
      yield* elapse("10 seconds")
      assert.deepStrictEqual(new Set(counts), new Set([1]))
      yield* isEmpty
    }))

  it.effect("two workers share it, and each is delivered once", () =>
    Effect.gen(function*() {
      const counts = Array.from({ length: 1_000 }, () => 0)
      const shares = [0, 0]
      const { isEmpty, provide, start } = yield* makeOutbox()
      const count = (of: number) => (n: number) =>
        Effect.andThen(
          Effect.sleep("10 millis"),
          Effect.sync(() => {
            counts[n]!++
            shares[of]!++
          })
        )
      yield* start(worker(10, count(0)))
      yield* start(worker(10, count(1)))
      yield* provide(deferred(1_000))
      yield* elapse("1 minute")
      assert.deepStrictEqual(new Set(counts), new Set([1]))
      assert.isAbove(Math.min(...shares), 300)
      yield* isEmpty
    }))

  it.effect("a fast worker claims many at once, and never holds more than 1,000", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, () => Effect.void))
      yield* provide(deferred(5_000))
      yield* elapse("1 second")
      yield* isEmpty
      assert.isBelow(seen.claims, 100)
      assert.isAtMost(seen.most, 2_000)
    }))

  it.effect("a slow worker holds about what it delivers, and leaves the rest to others", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { depth, provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, () => Effect.sleep("10 minutes")))
      yield* provide(deferred(1_000))
      for (let round = 0; round < 6; round++) {
        yield* elapse("10 minutes")
        assert.isAtLeast(seen.held, 10)
      }
      assert.isAtMost(seen.most, 40)
      assert.isAtLeast((yield* depth("Work")).waiting, 1_000 - 60 - 40)
    }))

  it.effect("a worker that becomes slow leaves to others what it has not begun", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, (n) => n < 5_000 ? Effect.void : Effect.sleep("1 minute")))
      yield* provide(deferred(8_000))
      yield* elapse("1 second")
      seen.most = seen.held
      yield* elapse("3 hours")
      assert.isAtMost(seen.most, 1_000)
      assert.isAtMost(seen.held, 40)
    }))

  it.effect("a worker that has become slow hands back what it claimed while it was fast", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(worker(10, (n) => n < 5_000 ? Effect.void : Effect.sleep("1 minute")))
      yield* provide(deferred(5_000))
      yield* provide(deferred(1_000, 5_000))
      yield* settled
      assert.isAtLeast(seen.held, 500)
      yield* elapse("2 minutes")
      assert.isAtMost(seen.held, 40)
      // Nothing is lost by it, and nothing is delivered twice.
      yield* elapse("101 minutes")
      yield* isEmpty
      yield* close
    }))

  it.effect("a worker is never idle while there is something to do", () =>
    Effect.gen(function*() {
      let running = 0
      const idle: Array<number> = []
      const { seen, store } = watched()
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, (n) =>
        n < 2_000 ? Effect.void : Effect.acquireUseRelease(
          Effect.sync(() => running++),
          () => Effect.sleep("1 second"),
          () => Effect.sync(() => running--)
        )))
      yield* provide(deferred(4_000))
      yield* settled
      for (let second = 0; second < 199; second++) {
        yield* elapse("500 millis")
        if (running < 10) idle.push(yield* now)
        yield* elapse("500 millis")
      }
      assert.deepStrictEqual(idle, [])
      yield* elapse("2 seconds")
      yield* isEmpty
      assert.isAtLeast(seen.least, 1)
    }))

  it.effect("a worker that can't settle stops claiming, and goes on when it can", () =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      let claimed = 0
      const store = storeWith((session) => ({
        claim: (limit) => Effect.tap(session.claim(limit), (all) => Effect.sync(() => claimed += all.length)),
        settle: (settlements) => Effect.andThen(gate.await, session.settle(settlements))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, () => Effect.void))
      yield* provide(deferred(10_000))
      yield* elapse("1 minute")
      assert.isAtLeast(claimed, 1_000)
      assert.isAtMost(claimed, 3_000)
      yield* gate.open
      yield* elapse("1 minute")
      assert.strictEqual(claimed, 10_000)
      yield* isEmpty
    }))

  it.effect("a flood of one tag does not keep another from being delivered", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const { provide, start } = yield* makeOutbox()
      const handle = (tag: string) => Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => lines.push(tag)))
      yield* provide(deferred(500))
      yield* provide(Epilogue.atomic(Other.defer(1)))
      yield* start(
        OutboxWorker.layer({ intents: [Work, Other], concurrency: 4 }).pipe(
          Layer.provide([Work.toLayer(() => handle("work")), Other.toLayer(() => handle("other"))])
        )
      )
      yield* elapse("1 second")
      assert.include(lines, "other")
    }))

  it.effect("payloads that are larger than claimBytes together are claimed in parts, and all delivered", () =>
    Effect.gen(function*() {
      class Large extends Intent.make("Large", { payload: Schema.String }) {}
      const { seen, store } = watched()
      const log = makeLog()
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(
        OutboxWorker.layer({ intents: [Large], claimBytes: 1_000 }).pipe(
          Layer.provide(Large.toLayer((text) => Effect.andThen(Effect.sleep("1 second"), log.add(text.slice(0, 2)))))
        )
      )
      const names = Array.from({ length: 12 }, (_, n) => String(n + 10))
      yield* provide(Epilogue.atomic(Effect.forEach(names, (name) => Large.defer(name + "x".repeat(400)))))
      yield* elapse("10 seconds")
      assert.sameMembers(log.lines, names)
      assert.isAtLeast(seen.claims, 6)
      yield* isEmpty
    }))
})

describe("waking", () => {
  it.effect("a commit wakes an idle worker without waiting for a poll", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      const handled = yield* Latch.make()
      yield* start(worker(1, () => handled.open))
      yield* elapse("1 hour")
      const before = yield* now
      yield* provide(deferred(1))
      yield* handled.await
      assert.strictEqual(yield* now, before)
    }))

  it.effect("an idle worker asks its store for nothing but its beat", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { start } = yield* makeOutbox(store)
      yield* start(worker(10, () => Effect.void))
      const before = seen.claims
      yield* elapse("1 hour")
      assert.strictEqual(seen.claims, before)
    }))

  it.effect("a busy worker that has all it can do asks its store for nothing but its beat", () =>
    Effect.gen(function*() {
      const { seen, store } = watched()
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, () => Effect.never))
      yield* provide(deferred(1_000))
      yield* settled
      const before = seen.claims
      yield* elapse("1 minute")
      assert.strictEqual(seen.claims, before)
    }))

  it.effect("commits that come while a claim is under way are not missed", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const store = storeWith((session) => ({
        wakes: session.wakes,
        claim: (limit) => Effect.tap(session.claim(limit), Effect.sleep("1 second"))
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker(10, (n) => log.add(String(n))))
      yield* provide(deferred(1, 0))
      yield* elapse("500 millis")
      yield* provide(deferred(1, 1))
      yield* elapse("500 millis")
      yield* provide(deferred(1, 2))
      yield* elapse("3 seconds")
      assert.deepStrictEqual(log.lines, ["0", "1", "2"])
    }))
})
