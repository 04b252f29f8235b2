import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Latch, Layer, Random, Schema } from "effect"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, makeOutbox, now, Process, recorded, settled, storeWith } from "./support.ts"

class Call extends Intent.make("Call", { payload: Schema.Int }) {}
class Keyed extends Intent.make("Keyed", { payload: Schema.Int, partitionKey: (n) => `${n % 3}` }) {}
class Free extends Intent.make("Free", { payload: Schema.Int }) {}

const deferred = <Tag extends string>(intent: Intent.Intent<Tag, typeof Schema.Int>, count: number) =>
  Epilogue.atomic(Effect.forEach(Array.from({ length: count }, (_, n) => n), (n) => intent.defer(n), { discard: true }))

/** Counts what runs and what has started, over all workers and for each of them. */
const makeMeter = () => {
  const running = new Map<string, number>()
  const started = new Map<string, number>()
  const starts: Array<number> = []
  const add = (to: Map<string, number>, key: string, count: number) => to.set(key, (to.get(key) ?? 0) + count)
  const sum = () => Array.from(running.values()).reduce((total, count) => total + count, 0)
  const meter = {
    most: 0,
    running,
    started,
    starts,
    /** How many run now. */
    get now() {
      return sum()
    },
    takes: (of: string, time: Parameters<typeof Effect.sleep>[0], count = 1): Effect.Effect<void> =>
      Effect.acquireUseRelease(
        Effect.map(now, (at) => {
          add(running, of, 1)
          add(started, of, count)
          for (let each = 0; each < count; each++) starts.push(at)
          meter.most = Math.max(meter.most, sum())
        }),
        () => Effect.sleep(time),
        () => Effect.sync(() => add(running, of, -1))
      )
  }
  return meter
}

const outage = Effect.fail(new IntentSink.IntentStoreError({ message: "the store is down" }))

/** The most that have started in any time of this length. */
const mostIn = (starts: ReadonlyArray<number>, window: number): number =>
  Math.max(0, ...starts.map((from) => starts.filter((at) => at >= from && at < from + window).length))

const seeded = <A, E, R>(test: Effect.Effect<A, E, R>) =>
  test.pipe(Random.withSeed(0), Effect.provide(new CapturedLogs().layer))

describe("a concurrency over all workers", () => {
  const worker = <Tag extends string>(
    intent: Intent.Intent<Tag, typeof Schema.Int>,
    limit: number,
    handler: (n: number) => Effect.Effect<unknown, unknown>,
    options: Omit<OutboxWorker.Options<[]>, "intents"> = {}
  ) =>
    OutboxWorker.layer({ intents: [intent], ...options }).pipe(
      Layer.provide(intent.toLayer(handler, { concurrency: limit }))
    )

  for (const limit of [1, 3, 15]) {
    it.effect(`of ${limit} is never exceeded by three workers, and fully used`, () =>
      Effect.gen(function*() {
        const meter = makeMeter()
        const { isEmpty, provide, start } = yield* makeOutbox()
        for (const  of of["a", "b", "c"]) yield* start(worker(Call, limit, () => meter.takes(of, "100 millis")))
        yield* provide(deferred(Call, limit * 600))
        const seen: Array<number> = []
        for (let at = 0; at < 600; at++) {
          yield* elapse("50 millis")
          seen.push(meter.now)
          yield* elapse("50 millis")
        }
        assert.strictEqual(meter.most, limit)
        // What one of them gives up, another one has soon.
        assert.isAtLeast(seen.reduce((sum, each) => sum + each, 0) / seen.length, limit * 0.9)
        assert.isAtMost(seen.filter((each) => each < limit).length, 120)
        yield* elapse("20 seconds")
        yield* isEmpty
      }).pipe(seeded))
  }

  it.effect("that does not bind a worker keeps it from claiming nothing", () =>
    Effect.gen(function*() {
      let claims = 0
      const store = storeWith((session) => ({
        claim: (limit) => Effect.suspend(() => (claims++, session.claim(limit)))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* provide(deferred(Call, 10_000))
      yield* start(worker(Call, 1_000, () => Effect.void))
      yield* elapse("1 second")
      yield* isEmpty
      assert.isAtMost(claims, 100)
    }).pipe(seeded))

  it.effect("is shared by workers that have as much to do", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      yield* start(worker(Call, 8, () => meter.takes("a", "100 millis")))
      yield* provide(deferred(Call, 10_000))
      yield* elapse("10 seconds")
      assert.strictEqual(meter.running.get("a"), 8)
      yield* start(worker(Call, 8, () => meter.takes("b", "100 millis")))
      // Within two beats, and as long as it takes for what runs to end.
      yield* elapse("11 seconds")
      assert.deepStrictEqual(Array.from(meter.running.values()), [4, 4])
      meter.started.clear()
      yield* elapse("20 seconds")
      assert.isAtLeast(Math.min(...meter.started.values()), 700)
    }).pipe(seeded))

  it.effect("is shared with a worker that hears of nothing but its beats", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox(storeWith(() => ({ wakes: Effect.never })))
      for (const  of of["a", "b"]) yield* start(worker(Call, 4, () => meter.takes(of, "1 second")))
      yield* provide(deferred(Call, 10_000))
      yield* elapse("1 minute")
      assert.deepStrictEqual(Array.from(meter.running.values()), [2, 2])
    }).pipe(seeded))

  it.effect("is not exceeded while a worker has given up a part of it, and has not heard so", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      let hasGivenUp = false
      const store = storeWith((session, index) => ({
        permit: (wants) => {
          const givesUp = index === 0 && wants.some(({ concurrency, running }) => concurrency === running)
          return Effect.tap(session.permit(wants), () => {
            hasGivenUp ||= givesUp
            return givesUp ? Effect.sleep("3 seconds") : Effect.void
          })
        }
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker(Call, 4, () => meter.takes("a", "1 minute")))
      yield* provide(deferred(Call, 1))
      yield* Effect.repeat(elapse("100 millis"), { until: () => hasGivenUp })
      yield* start(worker(Call, 4, () => meter.takes("b", "1 minute")))
      yield* provide(deferred(Call, 20))
      yield* elapse("30 seconds")
      assert.strictEqual(meter.most, 4)
    }).pipe(seeded))

  it.effect("with fewer slots than workers, each has its turn", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      for (const  of of["a", "b", "c"]) yield* start(worker(Call, 1, () => meter.takes(of, "1 second")))
      yield* provide(deferred(Call, 1_000))
      yield* elapse("5 minutes")
      assert.strictEqual(meter.most, 1)
      assert.strictEqual(meter.started.size, 3)
      assert.isAtLeast(Math.min(...meter.started.values()), 50)
    }).pipe(seeded))

  it.effect("one that has nothing to do leaves it to the others within a beat", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      yield* start(worker(Call, 4, () => meter.takes("a", "1 second"), { concurrency: 10 }))
      yield* start(worker(Call, 4, () => meter.takes("b", "1 second"), { concurrency: 10 }))
      yield* provide(deferred(Call, 1))
      yield* elapse("1 minute")
      const third = yield* start(worker(Call, 4, () => meter.takes("c", "1 second"), { concurrency: 10 }))
      yield* elapse("1 minute")
      yield* third.close
      yield* provide(deferred(Call, 100))
      yield* elapse("6 seconds")
      yield* elapse("500 millis")
      assert.strictEqual(meter.now, 4)
    }).pipe(seeded))

  it.effect("is not exceeded while a worker shares it and the answer to a claim is on its way", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      let isSlow = false
      const store = storeWith((session, index) => ({
        claim: (limit) =>
          Effect.tap(session.claim(limit), () => index === 0 && isSlow ? Effect.sleep("20 seconds") : Effect.void)
      }))
      const { provide, start } = yield* makeOutbox(store)
      const takes = (of: string) => (n: number) => meter.takes(of, n === 0 ? "8 seconds" : "2 minutes")
      yield* start(worker(Call, 4, takes("a")))
      yield* provide(deferred(Call, 2))
      yield* elapse("1 second")
      yield* start(worker(Call, 4, takes("b")))
      isSlow = true
      yield* provide(Epilogue.atomic(Effect.forEach([11, 12, 13, 14, 15, 16], (n) => Call.defer(n))))
      yield* elapse("15 seconds")
      // One of the four has ended, and its place went to the other worker. Two are on their way.
      assert.deepStrictEqual(Array.from(meter.running.values()), [1, 1])
      yield* elapse("45 seconds")
      assert.strictEqual(meter.most, 4)
    }).pipe(seeded))

  it.effect("one whose slots are taken for long leaves it to the others, also what it has claimed", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      const gate = yield* Latch.make()
      yield* start(
        OutboxWorker.layer({ intents: [Call, Free], concurrency: 4 }).pipe(
          Layer.provide([
            Call.toLayer(() => meter.takes("a", "1 second"), { concurrency: 4 }),
            Free.toLayer(() => gate.await)
          ])
        )
      )
      yield* provide(deferred(Free, 4))
      yield* settled
      yield* provide(deferred(Call, 400))
      yield* settled
      yield* start(worker(Call, 4, () => meter.takes("b", "1 second")))
      yield* elapse("15500 millis")
      assert.deepStrictEqual(Array.from(meter.running), [["b", 4]])
      // It has its share again when it can.
      yield* gate.open
      yield* elapse("20 seconds")
      assert.deepStrictEqual(meter.running.get("a"), 2)
    }).pipe(seeded))

  it.effect("what a worker that died was permitted is free when its lease is over", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      const process = new Process()
      yield* provide(deferred(Call, 100))
      yield* start(worker(Call, 2, () => process.kill).pipe(Layer.provide(process.layer)))
      yield* start(worker(Call, 2, () => meter.takes("b", "1 second")))
      yield* elapse("10 seconds")
      assert.strictEqual(meter.started.size, 0)
      yield* elapse("50 seconds")
      assert.isAtLeast(meter.started.get("b")!, 60)
      assert.strictEqual(meter.most, 2)
    }).pipe(seeded))

  it.effect("counts a batch as one", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const sizes: Array<number> = []
      const { isEmpty, provide, start } = yield* makeOutbox()
      for (const  of of["a", "b"]) {
        yield* start(
          OutboxWorker.layer({ intents: [Call] }).pipe(
            Layer.provide(Call.toLayerBatched((deliveries) => {
              sizes.push(deliveries.length)
              return Effect.as(meter.takes(of, "1 second"), deliveries.map(() => Exit.void))
            }, { maxSize: 5, maxWait: "100 millis", concurrency: 2 }))
          )
        )
      }
      yield* provide(deferred(Call, 200))
      yield* elapse("30 seconds")
      assert.strictEqual(meter.most, 2)
      assert.strictEqual(Math.max(...sizes), 5)
      yield* isEmpty
    }).pipe(seeded))

  it.effect("counts those of one key that are claimed together as one, and each key goes on in order", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const done: Array<number> = []
      const { isEmpty, provide, start } = yield* makeOutbox()
      for (const  of of["a", "b"]) {
        yield* start(
          worker(Keyed, 2, (n) => Effect.andThen(meter.takes(of, "100 millis"), Effect.sync(() => done.push(n))))
        )
      }
      yield* provide(deferred(Keyed, 90))
      yield* elapse("1 minute")
      assert.strictEqual(meter.most, 2)
      for (const key of [0, 1, 2]) {
        assert.deepStrictEqual(done.filter((n) => n % 3 === key), Array.from({ length: 30 }, (_, n) => n * 3 + key))
      }
      yield* isEmpty
    }).pipe(seeded))

  for (const seed of Array.from({ length: 10 }, (_, n) => n)) {
    it.effect(`is not exceeded while claims and permits come late, or have to be asked for again (seed ${seed})`, () =>
      Effect.gen(function*() {
        const meter = makeMeter()
        const late = (most: number) => Effect.flatMap(Random.nextIntBetween(0, most), Effect.sleep)
        const store = storeWith((session) => ({
          permit: (wants) =>
            Effect.gen(function*() {
              yield* late(1_000)
              const permits = yield* session.permit(wants)
              yield* late(1_000)
              return (yield* Random.next) < 0.8 ? permits : yield* outage
            }),
          claim: (limit) => Effect.andThen(late(2_000), Effect.tap(session.claim(limit), late(2_000))),
          claimSuspect: Effect.andThen(late(500), Effect.tap(session.claimSuspect, late(500)))
        }))
        const { isEmpty, provide, start } = yield* makeOutbox(store)
        yield* provide(deferred(Call, 10))
        const process = new Process()
        yield* start(worker(Call, 4, () => Effect.never).pipe(Layer.provide(process.layer)))
        yield* elapse("20 seconds")
        yield* Effect.forkChild(process.kill)
        for (const  of of["a", "b", "c"]) {
          const handler = Effect.flatMap(Random.nextIntBetween(0, 3_000), (time) => meter.takes(of, time))
          yield* start(worker(Call, 4, () => handler))
        }
        for (let round = 0; round < 20; round++) {
          yield* provide(deferred(Call, 1 + round % 13))
          yield* elapse(3_000 + round * 500)
        }
        yield* elapse("10 minutes")
        assert.strictEqual(meter.most, 4)
        yield* isEmpty
      }).pipe(Random.withSeed(seed), Effect.provide(new CapturedLogs().layer)))
  }

  it.effect("that is reached keeps no other tag waiting, and costs no claim of its own", () =>
    Effect.gen(function*() {
      const log = makeLog()
      let claims = 0
      let permits = 0
      const store = storeWith((session) => ({
        claim: (limit) => Effect.suspend(() => (claims++, session.claim(limit))),
        permit: (wants) => Effect.suspend(() => (permits++, session.permit(wants)))
      }))
      const { depth, provide, start } = yield* makeOutbox(store)
      yield* start(
        OutboxWorker.layer({ intents: [Call, Free] }).pipe(
          Layer.provide([
            Call.toLayer(() => Effect.never, { concurrency: 1 }),
            Free.toLayer((n) => log.add(`${n}`))
          ])
        )
      )
      yield* provide(deferred(Call, 50))
      yield* settled
      yield* provide(deferred(Free, 50))
      yield* settled
      assert.strictEqual(log.lines.length, 50)
      assert.deepInclude(yield* depth("Call"), { claimed: 1, waiting: 49 })
      const before = [claims, permits] as const
      yield* elapse("1 minute")
      // One each beat.
      assert.isAtMost(claims - before[0], 16)
      assert.isAtMost(permits - before[1], 16)
      const asked = permits
      for (let commits = 0; commits < 100; commits++) {
        yield* provide(deferred(Free, 1))
        yield* elapse("10 millis")
      }
      assert.strictEqual(log.lines.length, 150)
      assert.isAtMost(permits - asked, 6)
    }).pipe(seeded))

  it.effect("is one for what runs alone, too", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { isEmpty, provide, start } = yield* makeOutbox()
      const process = new Process()
      yield* provide(deferred(Call, 3))
      yield* start(worker(Call, 3, () => Effect.never).pipe(Layer.provide(process.layer)))
      yield* Effect.forkChild(process.kill)
      yield* settled
      for (const  of of["a", "b", "c"]) yield* start(worker(Call, 1, () => meter.takes(of, "1 second")))
      yield* provide(deferred(Call, 60))
      yield* elapse("5 minutes")
      assert.strictEqual(meter.most, 1)
      assert.strictEqual(meter.starts.length, 63)
      yield* isEmpty
    }).pipe(seeded))

  it.effect("is not used up by what is dead of its crashes", () =>
    Effect.gen(function*() {
      class Fragile extends Intent.make("Call", { payload: Schema.Int, maxCrashes: 1 }) {}
      const done: Array<number> = []
      const { depth, provide, start } = yield* makeOutbox()
      yield* provide(deferred(Fragile, 1))
      for (let deaths = 0; deaths < 2; deaths++) {
        const process = new Process()
        const die = () => Effect.andThen(Effect.sleep("1 second"), process.kill)
        yield* start(
          OutboxWorker.layer({ intents: [Fragile] }).pipe(
            Layer.provide(Fragile.toLayer(die, { concurrency: 1 })),
            Layer.provide(process.layer)
          )
        )
        yield* elapse("1 minute")
      }
      yield* start(
        OutboxWorker.layer({ intents: [Fragile] }).pipe(
          Layer.provide(Fragile.toLayer((n) => Effect.sync(() => done.push(n)), { concurrency: 1 }))
        )
      )
      yield* elapse("1 minute")
      assert.deepInclude(yield* depth("Call"), { dead: 1 })
      yield* provide(deferred(Fragile, 3))
      yield* elapse("1 minute")
      assert.deepStrictEqual(done, [0, 1, 2])
    }).pipe(seeded))
})

describe("a rate over all workers", () => {
  const worker = (
    handler: (n: number) => Effect.Effect<unknown, unknown>,
    rateLimit: { readonly limit: number; readonly window: "1 second" | "1 minute" },
    concurrency?: number
  ) =>
    OutboxWorker.layer({ intents: [Call], concurrency: 50 }).pipe(
      Layer.provide(Call.toLayer(handler, { rateLimit, concurrency }))
    )

  for (
    const [limit, window, millis] of [[5, "1 minute", 60_000], [10, "1 second", 1_000], [
      200,
      "1 second",
      1_000
    ]] as const
  ) {
    it.effect(`of ${limit} in ${window} is never exceeded by two workers, fully used, and shared`, () =>
      Effect.gen(function*() {
        const meter = makeMeter()
        const { provide, start } = yield* makeOutbox()
        for (const  of of["a", "b"]) yield* start(worker(() => meter.takes(of, 1), { limit, window }))
        yield* provide(deferred(Call, limit * 14))
        yield* elapse(millis * 10)
        // A bucket that is full at first: what is in it, and what flows in.
        assert.isAtMost(mostIn(meter.starts, millis), limit * 2)
        for (let windows = 1; windows <= 10; windows++) {
          const started = meter.starts.filter((at) => at < millis * windows).length
          assert.isAtMost(started, limit * (windows + 1))
          assert.isAtLeast(started, Math.floor(limit * (windows + 0.8)) - 1)
        }
        assert.isAtLeast(Math.min(...meter.started.values()), limit * 3)
      }).pipe(seeded))
  }

  it.effect("counts each delivery of a batch, and each attempt", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      yield* start(
        OutboxWorker.layer({ intents: [Call] }).pipe(
          Layer.provide(Call.toLayerBatched((deliveries) =>
            Effect.as(
              meter.takes("a", 1, deliveries.length),
              deliveries.map(({ attempt }) => attempt === 1 ? Exit.fail("no") : Exit.void)
            ), { maxSize: 4, maxWait: "100 millis", rateLimit: { limit: 10, window: "1 minute" } }))
        )
      )
      yield* provide(deferred(Call, 100))
      yield* elapse("5 minutes")
      assert.isAtMost(meter.starts.length, 60)
      assert.isAtLeast(meter.starts.length, 57)
    }).pipe(seeded))

  it.effect("holds together with a concurrency", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { provide, start } = yield* makeOutbox()
      for (const  of of["a", "b"]) {
        yield* start(worker(() => meter.takes(of, "200 millis"), { limit: 10, window: "1 second" }, 3))
      }
      yield* provide(deferred(Call, 200))
      yield* elapse("10 seconds")
      assert.strictEqual(meter.most, 3)
      assert.isAtMost(meter.starts.length, 110)
      assert.isAtLeast(meter.starts.length, 95)
    }).pipe(seeded))

  it.effect("does not count what was released without having started", () =>
    Effect.gen(function*() {
      const meter = makeMeter()
      const { settles, store } = recorded()
      const { provide, start } = yield* makeOutbox(store)
      class Ordered extends Intent.make("Call", { payload: Schema.Int, partitionKey: () => "k" }) {}
      yield* start(
        OutboxWorker.layer({ intents: [Ordered] }).pipe(
          Layer.provide(Ordered.toLayer(
            () =>
              Effect.suspend(() =>
                Effect.andThen(meter.takes("a", 1), meter.starts.length < 5 ? Intent.snooze("1 second") : Effect.void)
              ),
            { rateLimit: { limit: 20, window: "1 minute" } }
          ))
        )
      )
      yield* provide(deferred(Ordered, 15))
      yield* elapse("20 seconds")
      assert.isAbove(settles.flat().filter(({ _tag }) => _tag === "Released").length, 15)
      // All of them, and five that were snoozed.
      assert.strictEqual(meter.starts.length, 20)
    }).pipe(seeded))

  it.effect("that has nothing left for long keeps no other tag waiting for what is to run alone", () =>
    Effect.gen(function*() {
      const rateLimit = { limit: 1, window: "1 hour" } as const
      const late: Array<number> = []
      const { provide, start } = yield* makeOutbox()
      const process = new Process()
      yield* provide(deferred(Call, 1))
      yield* start(
        OutboxWorker.layer({ intents: [Call] }).pipe(
          Layer.provide(Call.toLayer(() => Effect.andThen(Effect.sleep("1 second"), process.kill), { rateLimit })),
          Layer.provide(process.layer)
        )
      )
      yield* elapse("2 seconds")
      const calls: Array<number> = []
      yield* start(
        OutboxWorker.layer({ intents: [Call, Free] }).pipe(
          Layer.provide([
            Call.toLayer(() => Effect.map(now, (at) => calls.push(at)), { rateLimit }),
            Free.toLayer((since) => Effect.map(now, (at) => late.push(at - since)))
          ])
        )
      )
      for (let second = 0; second < 300; second++) {
        yield* provide(Epilogue.atomic(Effect.flatMap(now, (at) => Free.defer(at))))
        yield* elapse("1 second")
      }
      assert.strictEqual(late.length, 300)
      assert.isAtMost(Math.max(...late), 1_000)
      yield* elapse("1 hour")
      assert.strictEqual(calls.length, 1)
    }).pipe(seeded))

  it.effect("that is used up costs a question when there is more, and no claim", () =>
    Effect.gen(function*() {
      let claims = 0
      let permits = 0
      const store = storeWith((session) => ({
        claim: (limit) => Effect.suspend(() => (claims++, session.claim(limit))),
        permit: (wants) => Effect.suspend(() => (permits++, session.permit(wants)))
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker(() => Effect.void, { limit: 6, window: "1 minute" }))
      yield* provide(deferred(Call, 100))
      yield* elapse("1 second")
      const before = [claims, permits] as const
      yield* elapse("10 minutes")
      // 60 tokens, for each of which there is one that is too early. Beats cost nothing.
      assert.isAtMost(permits - before[1], 60 * 2 + 10)
      assert.isAtMost(claims - before[0], 60 * 2 + 10)
    }).pipe(seeded))
})
