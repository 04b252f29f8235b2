import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, type OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Latch, Layer, Metric, Schedule, Schema } from "effect"
import { CapturedLogs } from "../support.ts"
import { elapse, makeOutbox, now, recorded, settled, storeWith } from "./support.ts"

class Job extends Intent.make("Job", { payload: Schema.String }) {}
class Step extends Intent.make("Job", { payload: Schema.String, partitionKey: () => "k" }) {}

type Handler = (name: string, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>

const worker = (handler: Handler, options: Omit<OutboxWorker.Options<[]>, "intents"> = {}) =>
  OutboxWorker.layer({ intents: [Job], ...options }).pipe(Layer.provide(Job.toLayer(handler)))

/** Notes how what takes a minute goes. */
const makeMinutes = () => {
  const lines: Array<string> = []
  const handler: Handler = (name, { attempt, crashes }) =>
    Effect.gen(function*() {
      lines.push(`${name} begins, attempt ${attempt}, crashes ${crashes}`)
      yield* Effect.sleep("1 minute")
      lines.push(`${name} ends`)
    }).pipe(
      Effect.onInterrupt(() => Effect.map(now, (at) => lines.push(`${name} is interrupted at ${Math.round(at)}`)))
    )
  return { lines, handler, interrupted: () => lines.filter((line) => line.includes("interrupted")) }
}

/** The longest time between two beats, in milliseconds. */
const beat = 5_000

const quiet = <A, E, R>(test: Effect.Effect<A, E, R>) => Effect.provide(test, new CapturedLogs().layer)

describe("what an operator cancels while it runs", () => {
  it.effect("is interrupted within a beat, and gone; others go on", () =>
    Effect.gen(function*() {
      const { handler, interrupted, lines } = makeMinutes()
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(worker(handler))
      const [id] = yield* provide(Epilogue.atomic(Effect.all([Job.defer("a"), Job.defer("b")])))
      yield* elapse("10 seconds")
      yield* operations.cancel({ ids: [id] })
      yield* elapse(beat)
      assert.match(interrupted().join(), /^a is interrupted at 1\d\d\d\d$/)
      yield* elapse("2 minutes")
      assert.deepStrictEqual(lines.filter((line) => !line.includes("interrupted")), [
        "a begins, attempt 1, crashes 0",
        "b begins, attempt 1, crashes 0",
        "b ends"
      ])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("stays done if its handler has ended by itself before it hears of it", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox(store)
      yield* start(worker(() => Effect.sleep("11 seconds")))
      const id = yield* provide(Epilogue.atomic(Job.defer("a")))
      yield* elapse("10999 millis")
      yield* operations.cancel({ ids: [id] })
      yield* elapse("1 minute")
      assert.deepStrictEqual(settles.flat().map(({ _tag }) => _tag), ["Succeeded"])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("stays done if it hears of it when its handler has ended and that is not settled yet", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const ending = yield* Latch.make()
      const { depth, provide, start, store: { operations } } = yield* makeOutbox(store)
      // When to retry it takes a while to say.
      const retry = Schedule.spaced("1 hour").pipe(
        Schedule.setInputType<number>(),
        Schedule.modifyDelay(({ duration }) => Effect.as(ending.await, duration))
      )
      class Slow extends Intent.make("Job", { payload: Schema.String, retry }) {}
      yield* start(
        OutboxWorker.layer({ intents: [Slow] }).pipe(Layer.provide(Slow.toLayer(() => Effect.fail("no"))))
      )
      yield* provide(Epilogue.atomic(Slow.defer("a")))
      yield* settled
      yield* operations.pause({ tag: "Job", partitionKey: undefined })
      yield* elapse("1 minute")
      yield* ending.open
      yield* settled
      assert.deepStrictEqual(settles.flat().map(({ _tag }) => _tag), ["Failed"])
      assert.deepInclude(yield* depth("Job"), { delayed: 1 })
    }).pipe(quiet))

  it.effect("is not run if it was claimed and waits, and is let go of at once", () =>
    Effect.gen(function*() {
      const { handler, lines } = makeMinutes()
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(worker(handler, { concurrency: 1 }))
      const [, id] = yield* provide(Epilogue.atomic(Effect.all([Job.defer("a"), Job.defer("b")])))
      yield* settled
      yield* operations.cancel({ ids: [id] })
      yield* elapse(beat)
      assert.strictEqual(yield* operations.find(id), undefined)
      yield* elapse("2 minutes")
      assert.deepStrictEqual(lines, ["a begins, attempt 1, crashes 0", "a ends"])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("is not run if it waits behind others of its key, and those go on", () =>
    Effect.gen(function*() {
      const { settles, store } = recorded()
      const { handler, lines } = makeMinutes()
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox(store)
      yield* start(worker(handler))
      const ids = yield* provide(Epilogue.atomic(Effect.forEach(["a", "b", "c", "d"], (name) => Step.defer(name))))
      yield* settled
      yield* operations.cancel({ ids: [ids[2]!] })
      yield* elapse("10 minutes")
      assert.deepStrictEqual(
        lines,
        ["a", "b", "d"].flatMap((name) => [`${name} begins, attempt 1, crashes 0`, `${name} ends`])
      )
      assert.deepStrictEqual(settles.map((all) => all.map(({ _tag }) => _tag)), [
        ["Succeeded"],
        ["Succeeded", "Released", "Released"],
        ["Succeeded"]
      ])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("is not run if it was claimed with others of its key, none of which has begun", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(
        worker(
          (name) =>
            Effect.andThen(
              Effect.sync(() => lines.push(name)),
              name.length > 1 ? Effect.sleep("1 minute") : Effect.void
            ),
          { concurrency: 2 }
        )
      )
      yield* provide(Epilogue.atomic(Effect.andThen(Job.defer("first"), Job.defer("second"))))
      const ids = yield* provide(Epilogue.atomic(Effect.forEach(["a", "b", "c"], (name) => Step.defer(name))))
      yield* settled
      yield* operations.cancel({ ids: [ids[1]!] })
      // The worker has heard of it before the first of its key begins.
      yield* elapse("2 minutes")
      assert.deepStrictEqual(lines, ["first", "second", "a", "c"])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("keeps its place if it can't be interrupted, and is let go of when it has ended", () =>
    Effect.gen(function*() {
      const { depth, isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      const lines: Array<string> = []
      yield* start(worker((name) =>
        Effect.gen(function*() {
          lines.push(name)
          yield* Effect.uninterruptible(Effect.sleep("1 minute"))
        }), { concurrency: 1 }))
      const [id] = yield* provide(Epilogue.atomic(Effect.all([Job.defer("a"), Job.defer("b")])))
      yield* elapse("10 seconds")
      yield* operations.cancel({ ids: [id] })
      yield* elapse("40 seconds")
      assert.deepStrictEqual(lines, ["a"])
      assert.deepInclude(yield* depth("Job"), { claimed: 2 })
      yield* elapse("10 seconds")
      assert.deepStrictEqual(lines, ["a", "b"])
      yield* elapse("1 minute")
      yield* isEmpty
      // It is recalled at each beat, and counts as one.
      const recalled = (yield* Metric.snapshot).flatMap(({ attributes, state }) =>
        attributes?.["outcome"] === "recalled" && "count" in state ? [state.count] : []
      )
      assert.deepStrictEqual(recalled, [1])
    }).pipe(quiet, Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("takes its batch with it, whose others are delivered again, uncounted", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<string>> = []
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(Job.toLayerBatched((deliveries) => {
            batches.push(deliveries.map(({ attempt, payload }) => `${payload}, attempt ${attempt}`))
            return Effect.as(Effect.sleep("1 minute"), deliveries.map(() => Exit.void))
          }, { maxSize: 3, maxWait: "1 second" }))
        )
      )
      const ids = yield* provide(Epilogue.atomic(Effect.forEach(["a", "b", "c"], (name) => Job.defer(name))))
      yield* settled
      yield* operations.cancel({ ids: [ids[1]!] })
      yield* elapse("2 minutes")
      assert.deepStrictEqual(batches, [
        ["a, attempt 1", "b, attempt 1", "c, attempt 1"],
        ["a, attempt 1", "c, attempt 1"]
      ])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("leaves a batch that has not begun", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<string>> = []
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      const { close } = yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(Job.toLayerBatched((deliveries) => {
            batches.push(deliveries.map(({ payload }) => payload))
            return Effect.succeed(deliveries.map(() => Exit.void))
          }, { maxSize: 10, maxWait: "20 seconds" }))
        )
      )
      const ids = yield* provide(Epilogue.atomic(Effect.forEach(["a", "b", "c"], (name) => Job.defer(name))))
      yield* settled
      yield* operations.cancel({ ids: [ids[1]!] })
      yield* elapse("1 minute")
      assert.deepStrictEqual(batches, [["a", "c"]])
      const last = yield* provide(Epilogue.atomic(Job.defer("d")))
      yield* settled
      yield* operations.cancel({ ids: [last] })
      yield* elapse("1 minute")
      assert.strictEqual(batches.length, 1)
      yield* close
      yield* isEmpty
    }).pipe(quiet))
})

describe("what an operator pauses while it runs", () => {
  it.effect("is interrupted within a beat, counts as nothing, and is delivered when it is resumed", () =>
    Effect.gen(function*() {
      const { handler, interrupted, lines } = makeMinutes()
      const { depth, isEmpty, provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(worker(handler, { concurrency: 2 }))
      yield* provide(Epilogue.atomic(Effect.forEach(["a", "b", "c"], (name) => Job.defer(name))))
      yield* elapse("10 seconds")
      yield* operations.pause({ tag: "Job", partitionKey: undefined })
      yield* elapse(beat)
      assert.strictEqual(interrupted().length, 2)
      assert.deepInclude(yield* depth("Job"), { waiting: 3, claimed: 0, delayed: 0, dead: 0 })
      yield* elapse("10 minutes")
      assert.strictEqual(lines.length, 4)
      yield* operations.resume({ tag: "Job", partitionKey: undefined })
      yield* elapse("5 minutes")
      assert.sameMembers(
        lines.slice(4),
        ["a", "b", "c"].flatMap((name) => [`${name} begins, attempt 1, crashes 0`, `${name} ends`])
      )
      yield* isEmpty
    }).pipe(quiet))

  it.effect("of one key, the others go on, and it goes on in its order when it is resumed", () =>
    Effect.gen(function*() {
      class Keyed extends Intent.make("Job", { payload: Schema.String, partitionKey: (name) => name.slice(0, 1) }) {}
      const { settles, store } = recorded()
      const { handler, lines } = makeMinutes()
      const { isEmpty, provide, start, store: { operations } } = yield* makeOutbox(store)
      yield* start(worker(handler))
      yield* provide(
        Epilogue.atomic(Effect.forEach(["a1", "b1", "a2", "b2", "a3"], (name) => Keyed.defer(name)))
      )
      yield* elapse("10 seconds")
      yield* operations.pause({ tag: "Job", partitionKey: "a" })
      yield* elapse("5 minutes")
      assert.sameMembers(lines.filter((line) => line.includes("ends")), ["b1 ends", "b2 ends"])
      assert.deepStrictEqual(settles[0]?.map(({ _tag, claimed }) => `${_tag} ${claimed.payload}`), [
        `Released "a1"`,
        `Released "a2"`,
        `Released "a3"`
      ])
      yield* operations.resume({ tag: "Job", partitionKey: "a" })
      yield* elapse("5 minutes")
      assert.deepStrictEqual(lines.filter((line) => line.includes("ends")).slice(2), ["a1 ends", "a2 ends", "a3 ends"])
      yield* isEmpty
    }).pipe(quiet))

  it.effect("is counted as recalled, and as nothing else", () =>
    Effect.gen(function*() {
      const { handler } = makeMinutes()
      const { provide, start, store: { operations } } = yield* makeOutbox()
      yield* start(worker(handler))
      yield* provide(Epilogue.atomic(Effect.forEach(["a", "b"], (name) => Job.defer(name))))
      yield* settled
      yield* operations.pause({ tag: "Job", partitionKey: undefined })
      yield* elapse("1 minute")
      const counts = (yield* Metric.snapshot).flatMap(({ attributes, id, state }) =>
        id === "epilogue.deliveries" && "count" in state ? [[attributes?.["outcome"], state.count]] : []
      )
      assert.deepStrictEqual(counts, [["recalled", 2]])
    }).pipe(quiet, Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("a worker whose deliveries are recalled", () => {
  it.effect("is not told twice, goes on with all of its slots, and closes in good order", () =>
    Effect.gen(function*() {
      let most = 0
      let running = 0
      const held = new Map<string, OutboxStore.Claimed>()
      // Everything that runs at a beat is recalled.
      const store = storeWith((session) => ({
        claim: (limit) =>
          Effect.tap(session.claim(limit), (all) => Effect.sync(() => all.forEach((each) => held.set(each.id, each)))),
        settle: (settlements) => {
          for (const { claimed } of settlements) held.delete(claimed.id)
          return session.settle(settlements)
        },
        beat: Effect.map(session.beat, (each) => ({ ...each, recalled: Array.from(held.keys()) }))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(worker(() =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++running)),
          () => Effect.sleep("700 millis"),
          () => Effect.sync(() => running--)
        ), { concurrency: 3 }))
      yield* provide(
        Epilogue.atomic(Effect.forEach(Array.from({ length: 100 }, (_, n) => `${n}`), (n) => Job.defer(n)))
      )
      yield* elapse("1 minute")
      assert.strictEqual(most, 3)
      yield* isEmpty
      yield* close
    }).pipe(quiet))
})
