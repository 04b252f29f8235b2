import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, OutboxStore } from "@epilogue/core"
import { Cause, Effect, Exit, Fiber, Latch, Layer, Schema, TxRef } from "effect"
import { TestClock } from "effect/testing"
import { CapturedLogs, defectOf, makeLog } from "../support.ts"
import { Greet } from "./support.ts"

/** A sink that keeps what it is given, and does it with more or less than the memory store can. */
const sinkWith = (changed: Partial<IntentSink.IntentSink.Service> = {}) => {
  const appended: Array<ReadonlyArray<string>> = []
  const woken: Array<ReadonlyArray<string>> = []
  const sink: IntentSink.IntentSink.Service = {
    name: "a sink",
    capabilities: { durable: false, transactional: false, ordered: true, priorities: true },
    append: (envelopes) =>
      Effect.sync(() => {
        appended.push(envelopes.map(({ payload }) => payload))
        return envelopes.map(({ id }) => ({ id, duplicate: false }))
      }),
    wake: (envelopes) => Effect.sync(() => void woken.push(envelopes.map(({ payload }) => payload))),
    ...changed
  }
  return { appended, woken, layer: Outbox.layer.pipe(Layer.provide(Layer.succeed(IntentSink.IntentSink, sink))) }
}

class Count extends Intent.make("Count", { payload: Schema.Int }) {}

const inMemory = Outbox.layer.pipe(Layer.provideMerge(OutboxStore.layerMemory))

describe("what a boundary stores", () => {
  it.effect("its typed intents are enqueued, under the id that defer answered with", () =>
    Effect.gen(function*() {
      const { outcomes, value } = yield* Epilogue.report(Greet.defer({ name: "Ada" }))
      assert.deepStrictEqual(outcomes, [
        { _tag: "Enqueued", intent: { name: "Greet", payload: { name: "Ada" } }, id: value }
      ])
    }).pipe(Effect.provide(inMemory)))

  it.effect("all of them are appended at once, in order, after the core, and then workers are woken", () =>
    Effect.gen(function*() {
      const { appended, layer, woken } = sinkWith()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Count.defer(1)
        yield* Epilogue.savepoint(Count.defer(2))
        yield* Count.defer(3)
        assert.deepStrictEqual(appended, [])
      })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(appended, [["1", "2", "3"]])
      assert.deepStrictEqual(woken, [["1", "2", "3"]])
    }))

  it.effect("nothing is appended for a boundary that has none", () =>
    Effect.gen(function*() {
      const { appended, layer, woken } = sinkWith()
      yield* Effect.provide(Epilogue.atomic(Epilogue.defer(Effect.void)), layer)
      assert.deepStrictEqual([appended, woken], [[], []])
    }))

  it.effect("a discarded boundary stores nothing, and neither does a discarded savepoint", () =>
    Effect.gen(function*() {
      const { appended, layer } = sinkWith()
      yield* Effect.gen(function*() {
        const exit = yield* Effect.exit(Epilogue.atomic(Effect.andThen(Count.defer(1), Effect.fail("no"))))
        assert.deepStrictEqual(exit, Exit.fail("no"))
        yield* Effect.exit(Epilogue.atomic(Effect.andThen(Count.defer(2), Effect.interrupt)))
        assert.deepStrictEqual(appended, [])
        yield* Epilogue.atomic(Effect.gen(function*() {
          yield* Effect.exit(Epilogue.savepoint(Effect.andThen(Count.defer(3), Effect.die("no"))))
          yield* Count.defer(4)
        }))
        assert.deepStrictEqual(appended, [["4"]])
      }).pipe(Effect.provide(layer))
    }))

  it.effect("law 9: of an Effect.tx that ran twice, the attempt that committed is stored", () =>
    Effect.gen(function*() {
      const { appended, layer } = sinkWith()
      const ref = yield* TxRef.make(0)
      const waiting = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Effect.tx(Effect.gen(function*() {
          const n = yield* TxRef.get(ref)
          yield* Count.defer(n)
          if (n > 0) return
          yield* waiting.open
          return yield* Effect.txRetry
        }))).pipe(Effect.provide(layer))
      )
      yield* waiting.await
      yield* TxRef.set(ref, 1)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(appended, [["1"]])
    }))

  it.effect("closures run after the typed intents were stored, and stand beside them in a report", () =>
    Effect.gen(function*() {
      const { appended, layer } = sinkWith()
      const seen: Array<number> = []
      const look = (name: string) =>
        Epilogue.defer(Effect.sync(() => seen.push(appended.length)), { name, key: name === "b" ? "k" : undefined })
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* look("a")
        yield* Count.defer(1)
        yield* look("b")
        yield* Count.defer(2)
        yield* look("b")
      })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(outcomes.map(({ _tag, intent }) => [_tag, intent.name]), [
        ["Ran", "a"],
        ["Enqueued", "Count"],
        ["Enqueued", "Count"],
        ["Ran", "b"]
      ])
      assert.deepStrictEqual(seen, [1, 1])
    }))

  it.effect("a failing closure keeps nothing from being stored, also in mode stop", () =>
    Effect.gen(function*() {
      const { appended, layer } = sinkWith()
      const { outcomes } = yield* Epilogue.reportWith({ mode: "stop" })(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.fail("no"))
        yield* Count.defer(1)
        yield* Epilogue.defer(Effect.void)
      })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Ran", "Enqueued", "Skipped"])
      assert.deepStrictEqual(appended, [["1"]])
    }))

  it.effect("what a closure defers while it runs is stored at its place, and workers are woken for it", () =>
    Effect.gen(function*() {
      const { appended, layer, woken } = sinkWith()
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.andThen(Count.defer(2), Effect.fail("no")), { name: "closure" })
        yield* Count.defer(1)
      })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(outcomes.map(({ _tag, intent }) => [_tag, intent.name]), [
        ["Ran", "closure"],
        ["Enqueued", "Count"],
        ["Enqueued", "Count"]
      ])
      assert.deepStrictEqual(appended, [["1"], ["2"]])
      assert.deepStrictEqual(woken, [["1"], ["2"]])
    }))

  it.effect("with concurrency, they are stored once as well", () =>
    Effect.gen(function*() {
      const { appended, layer } = sinkWith()
      const { outcomes } = yield* Epilogue.reportWith({ concurrency: "unbounded" })(Effect.gen(function*() {
        yield* Count.defer(1)
        yield* Epilogue.defer(Count.defer(2), { name: "closure" })
        yield* Count.defer(3)
      })).pipe(Effect.provide(layer))
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Enqueued", "Ran", "Enqueued", "Enqueued"])
      assert.deepStrictEqual(appended, [["1", "3"], ["2"]])
    }))
})

describe("duplicates", () => {
  class Once extends Intent.make("Once", {
    payload: { order: Schema.Int, text: Schema.String },
    idempotencyKey: ({ order }) => String(order),
    remember: "1 hour"
  }) {}

  it.effect("a duplicate is told as such, with the id of the first", () =>
    Effect.gen(function*() {
      const first = yield* Epilogue.atomic(Once.defer({ order: 7, text: "first" }))
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Once.defer({ order: 7, text: "second" })
        yield* Once.defer({ order: 8, text: "third" })
      }))
      assert.deepInclude(outcomes[0], { _tag: "Enqueued", id: first, duplicate: true })
      assert.notProperty(outcomes[1], "duplicate")
    }).pipe(Effect.provide(inMemory)))

  it.effect("so is one of the same boundary", () =>
    Effect.gen(function*() {
      const { outcomes, value } = yield* Epilogue.report(
        Effect.andThen(
          Once.defer({ order: 7, text: "other" }, { idempotencyKey: "k" }),
          Once.defer({ order: 8, text: "second" }, { idempotencyKey: "k" })
        )
      )
      assert(outcomes[0]?._tag === "Enqueued" && outcomes[1]?._tag === "Enqueued")
      assert.notStrictEqual(outcomes[0].id, value)
      assert.deepInclude(outcomes[1], { id: outcomes[0].id, duplicate: true })
    }).pipe(Effect.provide(inMemory)))

  it.effect("workers are not woken for a duplicate", () =>
    Effect.gen(function*() {
      const { layer, woken } = sinkWith({
        append: (envelopes) => Effect.succeed(envelopes.map(() => ({ id: "first", duplicate: true })))
      })
      const { outcomes } = yield* Effect.provide(Epilogue.report(Count.defer(1)), layer)
      assert.deepInclude(outcomes[0], { _tag: "Enqueued", id: "first", duplicate: true })
      assert.deepStrictEqual(woken, [])
    }))

  it.effect("a key is forgotten when its time is over", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Once.defer({ order: 7, text: "first" }))
      yield* TestClock.adjust("59 minutes")
      const before = yield* Epilogue.report(Once.defer({ order: 7, text: "second" }))
      yield* TestClock.adjust("1 minute")
      const after = yield* Epilogue.report(Once.defer({ order: 7, text: "third" }))
      assert.deepInclude(before.outcomes[0], { duplicate: true })
      assert.notProperty(after.outcomes[0], "duplicate")
    }).pipe(Effect.provide(inMemory)))
})

describe("a sink that fails", () => {
  const outage = new IntentSink.IntentStoreError({ message: "the store is down" })

  it.effect("over a store without transactions, each intent that could not be stored has failed", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { layer } = sinkWith({ append: () => Effect.fail(outage) })
      const error = yield* Effect.flip(
        Epilogue.atomic(Effect.gen(function*() {
          yield* Count.defer(1)
          yield* Epilogue.defer(log.add("closure"))
          yield* Count.defer(2)
          return 42
        })).pipe(Effect.provide(layer))
      )
      assert(error._tag === "EpilogueError")
      assert.strictEqual(error.value, 42)
      assert.deepStrictEqual(error.failures, [
        { intent: { name: "Count", payload: 1 }, cause: Cause.fail(outage) },
        { intent: { name: "Count", payload: 2 }, cause: Cause.fail(outage) }
      ])
      assert.deepStrictEqual(log.lines, ["closure"])
    }))

  it.effect("what can't be stored together is stored one by one, and workers are woken for what was", () =>
    Effect.gen(function*() {
      const { layer, woken } = sinkWith({
        append: (envelopes) =>
          envelopes.some(({ payload }) => payload === "2")
            ? Effect.fail(outage)
            : Effect.succeed(envelopes.map(({ id }) => ({ id, duplicate: false })))
      })
      const { outcomes } = yield* Effect.provide(
        Epilogue.report(Effect.forEach([1, 2, 3], (n) => Count.defer(n))),
        layer
      )
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Enqueued", "Ran", "Enqueued"])
      assert.deepStrictEqual(woken, [["1", "3"]])
    }))
})

describe("what a store can't do", () => {
  const can = { durable: false, transactional: false, ordered: true, priorities: true }

  it.effect("a partition key is refused where it is deferred, over a store that does not order", () =>
    Effect.gen(function*() {
      const { layer } = sinkWith({ capabilities: { ...can, ordered: false } })
      const exit = yield* Effect.exit(Effect.provide(Epilogue.atomic(Count.defer(1, { partitionKey: "k" })), layer))
      assert.strictEqual(
        defectOf(exit),
        `Error: Epilogue: intent "Count" can't be deferred here: it has a partition key, and a sink does not order `
          + "deliveries. Drop the key, or use a store that does."
      )
      yield* Effect.provide(Epilogue.atomic(Count.defer(1, { priority: 1 })), layer)
    }))

  it.effect("a priority is refused where it is deferred, over a store that knows none", () =>
    Effect.gen(function*() {
      const { layer } = sinkWith({ capabilities: { ...can, priorities: false } })
      const exit = yield* Effect.exit(Effect.provide(Epilogue.atomic(Count.defer(1, { priority: -1 })), layer))
      assert.strictEqual(
        defectOf(exit),
        `Error: Epilogue: intent "Count" can't be deferred here: it has a priority, and a sink knows none. Drop it, or `
          + "use a store that does."
      )
      yield* Effect.provide(Epilogue.atomic(Count.defer(1, { priority: 0, partitionKey: "k" })), layer)
    }))
})

describe("onFailure", () => {
  it.effect("hears of a closure that failed when nobody was left to tell", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const failures: Array<Epilogue.Failure> = []
      const gate = yield* Latch.make()
      const begun = yield* Latch.make()
      const engine = Outbox.layerOptions({ onFailure: (failure) => Effect.sync(() => void failures.push(failure)) })
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(
          Epilogue.defer(Effect.andThen(begun.open, Effect.andThen(gate.await, Effect.fail("no"))), { name: "closure" })
        ).pipe(Effect.provide([engine.pipe(Layer.provide(OutboxStore.layerMemory)), logs.layer]))
      )
      yield* begun.await
      const interrupting = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
      yield* gate.open
      yield* Fiber.join(interrupting)
      assert.deepStrictEqual(failures, [
        { intent: { name: "closure", payload: undefined }, cause: Cause.fail("no") }
      ])
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [`Intent "closure" failed after the commit`])
    }))
})
