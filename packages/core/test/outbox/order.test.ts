import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, type OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Latch, Layer, Random, Schedule, Schema } from "effect"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, makeOutbox, now, recorded, settled, storeWith } from "./support.ts"

const payload = { key: Schema.String, n: Schema.Int }
class Step extends Intent.make("Step", {
  payload,
  partitionKey: ({ key }) => key,
  retry: Schedule.spaced("10 seconds"),
  maxAttempts: 2
}) {}
class Strict extends Intent.make("Step", {
  payload,
  partitionKey: ({ key }) => key,
  maxAttempts: 1,
  onExhausted: "block"
}) {}

type Payload = typeof Step.payloadSchema.Type

const worker = (
  handler: (payload: Payload, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>,
  intent: Intent.Intent<"Step", typeof Step.payloadSchema> = Step,
  options: Omit<OutboxWorker.Options<[]>, "intents"> = {}
) => OutboxWorker.layer({ intents: [intent], ...options }).pipe(Layer.provide(intent.toLayer(handler)))

/** Defers so many of each key, the keys in turn. */
const deferred = (keys: ReadonlyArray<string>, count: number) =>
  Epilogue.atomic(
    Effect.forEach(
      Array.from({ length: count }, (_, n) => n + 1),
      (n) => Effect.forEach(keys, (key) => Step.defer({ key, n })),
      { discard: true }
    )
  )

const numberOf = ({ payload: json }: OutboxStore.Claimed): number =>
  Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct(payload)))(json).n

/** How each was settled, one list for each call of the store. */
const shown = (settles: ReadonlyArray<ReadonlyArray<OutboxStore.Settlement>>) =>
  settles.map((all) => all.map(({ _tag, claimed }) => `${_tag} ${numberOf(claimed)}`))

describe("those of one key that are claimed together", () => {
  it.effect("are delivered one after the other, and those of other keys meanwhile", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      let claims = 0
      const store = storeWith((session) => ({
        claim: (limit) =>
          Effect.tap(session.claim(limit), (all) => Effect.sync(() => claims += Math.min(1, all.length)))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* provide(deferred(["a", "b", "c"], 3))
      yield* start(worker(({ key, n }) =>
        Effect.gen(function*() {
          lines.push(`${yield* now}: ${key}${n}`)
          yield* Effect.sleep("1 second")
        })
      ))
      yield* elapse("3 seconds")
      assert.deepStrictEqual(
        lines,
        [0, 1, 2].flatMap((second) => ["a", "b", "c"].map((key) => `${second * 1000}: ${key}${second + 1}`))
      )
      assert.strictEqual(claims, 1)
      yield* isEmpty
    }))

  it.effect("are settled as each succeeds, and not when all have", () =>
    Effect.gen(function*() {
      const { depth, provide, start } = yield* makeOutbox()
      yield* provide(deferred(["a"], 3))
      yield* start(worker(() => Effect.sleep("1 second")))
      for (const left of [3, 2, 1]) {
        assert.deepInclude(yield* depth("Step"), { claimed: left })
        yield* elapse("1 second")
      }
    }))

  it.effect("take one slot, so that as many keys as there are slots go on, however much there is of one", () =>
    Effect.gen(function*() {
      const begun: Array<string> = []
      const { provide, start } = yield* makeOutbox()
      yield* start(worker(({ key }) => Effect.andThen(Effect.sync(() => begun.push(key)), Effect.never), Step, {
        concurrency: 10
      }))
      yield* provide(deferred(["a"], 500))
      yield* settled
      yield* provide(deferred(Array.from({ length: 20 }, (_, n) => `${n}`), 500))
      yield* settled
      assert.strictEqual(begun.length, 10)
      assert.strictEqual(new Set(begun).size, 10)
    }))

  it.effect("that wait for others of their key are of no more bytes than three claims, so that memory is bounded", () =>
    Effect.gen(function*() {
      class Large extends Intent.make("Large", {
        payload: { key: Schema.Int, text: Schema.String },
        partitionKey: ({ key }) => `${key}`
      }) {}
      let behind = 0
      let most = 0
      const store = storeWith((session) => ({
        claim: (limit) =>
          Effect.tap(session.claim(limit), (all) =>
            Effect.sync(() => {
              behind += all.length - new Set(all.map(({ partitionKey }) => partitionKey)).size
              most = Math.max(most, behind)
            }))
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        OutboxWorker.layer({ intents: [Large], concurrency: 40, claimBytes: 2_000 }).pipe(
          Layer.provide(Large.toLayer(() => Effect.never))
        )
      )
      for (let key = 0; key < 30; key++) {
        const text = "x".repeat(400)
        yield* provide(Epilogue.atomic(Effect.forEach([1, 2, 3, 4, 5], () => Large.defer({ key, text }))))
        yield* settled
      }
      yield* elapse("1 minute")
      // Of some 430 bytes each: three times 2,000, and what one claim adds to that.
      assert.isAtLeast(most, 10)
      assert.isAtMost(most, 18)
    }))

  const endings: Record<string, { readonly ending: Effect.Effect<never, unknown>; readonly settled: string }> = {
    "fails": { ending: Effect.fail("no"), settled: "Failed" },
    "is snoozed": { ending: Intent.snooze("10 seconds"), settled: "Snoozed" }
  }
  for (const [name, { ending, settled: tag }] of Object.entries(endings)) {
    it.effect(`after one that ${name}, the rest is released in the same call, and delivered after it`, () =>
      Effect.gen(function*() {
        const { settles, store } = recorded()
        const lines: Array<string> = []
        const { isEmpty, provide, start } = yield* makeOutbox(store)
        yield* provide(deferred(["a"], 5))
        let isFirst = true
        yield* start(worker(({ n }) =>
          Effect.gen(function*() {
            lines.push(`${yield* now}: ${n}`)
            if (n !== 3 || !isFirst) return
            isFirst = false
            return yield* ending
          })
        ))
        assert.deepStrictEqual(shown(settles).flat(), [
          "Succeeded 1",
          "Succeeded 2",
          `${tag} 3`,
          "Released 4",
          "Released 5"
        ])
        assert.include(shown(settles).at(-1)!, `${tag} 3`)
        yield* elapse("1 minute")
        assert.deepStrictEqual(lines, ["0: 1", "0: 2", "0: 3", "10000: 3", "10000: 4", "10000: 5"])
        yield* isEmpty
      }).pipe(Effect.provide(new CapturedLogs().layer)))
  }

  it.effect("after one that can't be read, the rest is released in the same call", () =>
    Effect.gen(function*() {
      class Other extends Intent.make("Step", { payload: { text: Schema.String }, partitionKey: () => "a" }) {}
      const { settles, store } = recorded()
      const log = makeLog()
      const { depth, provide, start } = yield* makeOutbox(store)
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        yield* Step.defer({ key: "a", n: 1 })
        yield* Other.defer({ text: "unreadable" })
        yield* Step.defer({ key: "a", n: 3 })
      })))
      yield* start(worker(({ n }) => log.add(`${n}`)))
      assert.deepStrictEqual(settles.flat().map(({ _tag }) => _tag), ["Succeeded", "Undecodable", "Released"])
      assert.strictEqual(settles.at(-1)?.at(-1)?._tag, "Released")
      assert.deepStrictEqual(log.lines, ["1"])
      assert.deepInclude(yield* depth("Step"), { delayed: 1, waiting: 1 })
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a dead letter lets the rest go on", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const log = makeLog()
      const { depth, provide, start } = yield* makeOutbox(store)
      yield* provide(deferred(["a"], 3))
      yield* start(worker(({ n }) => n === 2 ? Intent.reject("no") : log.add(`${n}`)))
      assert.deepStrictEqual(shown(settles).flat(), ["Succeeded 1", "Dead 2", "Succeeded 3"])
      assert.deepStrictEqual(log.lines, ["1", "3"])
      assert.deepInclude(yield* depth("Step"), { dead: 1, waiting: 0 })
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("with onExhausted \"block\", a dead letter keeps the rest of its key, and no other, until it is retried", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const log = makeLog()
      const { depth, isEmpty, provide, start, store: { operations } } = yield* makeOutbox(store)
      let isMended = false
      yield* provide(deferred(["a", "b"], 3))
      yield* start(
        worker(
          ({ key, n }) =>
            Effect.suspend(() => key === "a" && n === 2 && !isMended ? Effect.fail("no") : log.add(`${key}${n}`)),
          Strict
        )
      )
      yield* elapse("1 hour")
      assert.sameOrderedMembers(log.lines.filter((line) => line.startsWith("a")), ["a1"])
      assert.sameOrderedMembers(log.lines.filter((line) => line.startsWith("b")), ["b1", "b2", "b3"])
      assert.deepInclude(yield* depth("Step"), { dead: 1, waiting: 1 })
      const dead = settles.find((all) => all.some(({ _tag }) => _tag === "Dead"))
      assert.includeMembers(shown([dead!])[0]!, ["Dead 2", "Released 3"])
      assert.isTrue(dead!.some((each) => each._tag === "Dead" && each.blocksKey === true))
      isMended = true
      yield* operations.retry({ tag: "Step" }).pipe(Effect.orDie)
      yield* settled
      assert.sameOrderedMembers(log.lines.filter((line) => line.startsWith("a")), ["a1", "a2", "a3"])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a dead letter without a key blocks none", () =>
    Effect.gen(function*() {
      class Single extends Intent.make("Single", { payload: {}, onExhausted: "block" }) {}
      const { settles, store } = recorded()
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        OutboxWorker.layer({ intents: [Single] }).pipe(Layer.provide(Single.toLayer(() => Intent.reject("no"))))
      )
      yield* provide(Epilogue.atomic(Single.defer({})))
      yield* settled
      assert.deepStrictEqual(settles.flat().map((each) => each._tag === "Dead" && each.blocksKey), [false])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a batch never holds two of one key, and comes to them in their order", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<string>> = []
      const { isEmpty, provide, start } = yield* makeOutbox()
      yield* provide(deferred(["a", "b"], 3))
      yield* start(
        OutboxWorker.layer({ intents: [Step] }).pipe(
          Layer.provide(Step.toLayerBatched((deliveries) =>
            Effect.sync(() => {
              batches.push(deliveries.map(({ payload: { key, n } }) => `${key}${n}`))
              return deliveries.map(() => Exit.void)
            }), { maxSize: 10, maxWait: "1 second" }))
        )
      )
      yield* elapse("10 seconds")
      assert.deepStrictEqual(batches, [["a1", "b1"], ["a2", "b2"], ["a3", "b3"]])
      yield* isEmpty
    }))
})

describe("closing a worker", () => {
  it.effect("lets what is under way of a key end, and hands back the rest of it in the same call", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const gate = yield* Latch.make()
      const { depth, provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(worker(() => gate.await))
      yield* provide(deferred(["a"], 4))
      yield* settled
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* settled
      assert.deepStrictEqual(settles, [])
      yield* gate.open
      yield* settled
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(shown(settles), [["Succeeded 1", "Released 2", "Released 3", "Released 4"]])
      assert.deepInclude(yield* depth("Step"), { waiting: 3, claimed: 0 })
    }))

  it.effect("after its time, hands back what is under way of a key and what is behind it", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const { depth, provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(worker(() => Effect.never, Step, { drainTimeout: "5 seconds" }))
      yield* provide(deferred(["a"], 3))
      yield* settled
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* elapse("5 seconds")
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(shown(settles), [["Released 1", "Released 2", "Released 3"]])
      assert.deepInclude(yield* depth("Step"), { waiting: 3, claimed: 0 })
    }))
})

describe("whatever fails, and however long the store takes", () => {
  for (const seed of Array.from({ length: 20 }, (_, n) => n)) {
    it.effect(`each key is delivered in order, one at a time, by three workers (seed ${seed})`, () =>
      Effect.gen(function*() {
        const delay = Effect.flatMap(Random.nextIntBetween(0, 300), Effect.sleep)
        const store = storeWith((session) => ({
          claim: (limit) => Effect.tap(session.claim(limit), delay),
          settle: (settlements) => Effect.andThen(delay, session.settle(settlements)),
          start: (claimed) => Effect.tap(session.start(claimed), delay)
        }))
        const keys = Array.from({ length: 5 }, (_, n) => `${n}`)
        const running = new Set<string>()
        const violations: Array<string> = []
        const done = new Map<string, Array<number>>(keys.map((key) => [key, []]))
        const { isEmpty, provide, start } = yield* makeOutbox(store)
        const handler = ({ key, n }: Payload) =>
          Effect.gen(function*() {
            if (running.has(key)) violations.push(`two of ${key} run at once`)
            if ((done.get(key)!.at(-1) ?? 0) !== n - 1) {
              violations.push(`${n} of ${key} comes after ${done.get(key)?.join()}`)
            }
            const chance = yield* Random.next
            if (chance < 0.1) return yield* Intent.snooze("500 millis")
            if (chance < 0.15) return yield* Effect.fail("no")
            running.add(key)
            yield* Effect.ensuring(delay, Effect.sync(() => running.delete(key)))
            if (chance < 0.2) return yield* Effect.fail("no")
            done.get(key)!.push(n)
          })
        class Retried extends Intent.make("Step", { payload, partitionKey: ({ key }) => key, maxAttempts: 1_000 }) {}
        const workers = [1, 2, 3].map((concurrency) => worker(handler, Retried, { concurrency }))
        for (const each of workers) yield* start(each)
        yield* provide(deferred(keys, 12))
        yield* elapse("1 hour")
        assert.deepStrictEqual(violations, [])
        for (const key of keys) assert.deepStrictEqual(done.get(key), Array.from({ length: 12 }, (_, n) => n + 1))
        yield* isEmpty
      }).pipe(Random.withSeed(seed), Effect.provide(new CapturedLogs().layer)))
  }
})
