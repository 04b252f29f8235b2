import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Latch, Layer, Metric, Scope } from "effect"
import { TestClock } from "effect/testing"
import { Epilogue } from "../src/index.ts"
import { CapturedLogs, makeLog } from "./support.ts"

/** The engine, and what closes its layer. */
const makeEngine = Effect.fnUntraced(function*(options?: Epilogue.BackgroundOptions) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Epilogue.layerBackground(options), scope)
  return { provide: Effect.provideContext(context), close: Scope.close(scope, Exit.void) }
})

describe("layerBackground", () => {
  it.effect("atomic returns at the commit, and the outcomes are postponed", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const { close, provide } = yield* makeEngine()
      const report = yield* provide(
        Epilogue.report(Epilogue.defer(Effect.andThen(gate.await, log.add("a")), { name: "a" }))
      )
      assert.deepStrictEqual(report.outcomes, [{ _tag: "Postponed", intent: { name: "a", payload: undefined } }])
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, [])
      yield* gate.open
      yield* close
      assert.deepStrictEqual(log.lines, ["a"])
    }))

  it.effect("closing the layer waits for every epilogue", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.all([
        Epilogue.atomic(Epilogue.defer(Effect.andThen(Effect.sleep("1 hour"), log.add("slow")))),
        Epilogue.atomic(Epilogue.defer(log.add("fast")))
      ]).pipe(
        Effect.provide(Epilogue.layerBackground()),
        Effect.forkChild({ startImmediately: true }),
        Effect.tap(TestClock.adjust("1 hour")),
        Effect.flatMap(Fiber.join)
      )
      assert.deepStrictEqual(log.lines, ["fast", "slow"])
    }))

  it.effect("law 3: failures go to the log and to onFailure, and the rest of the epilogue still runs", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const logs = new CapturedLogs()
      const failures: Array<Epilogue.Failure> = []
      const value = yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.fail("no"), { name: "charge", payload: 1 })
        yield* Epilogue.defer(log.add("a"))
        return 42
      })).pipe(
        Effect.provide([
          Epilogue.layerBackground({ onFailure: (failure) => Effect.sync(() => void failures.push(failure)) }),
          logs.layer
        ])
      )
      assert.strictEqual(value, 42)
      assert.deepStrictEqual(log.lines, ["a"])
      assert.deepStrictEqual(failures, [{ intent: { name: "charge", payload: 1 }, cause: Cause.fail("no") }])
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [`Intent "charge" failed after the commit`])
    }))

  it.effect("law 7: interrupting the caller does not interrupt the epilogue", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const committed = yield* Latch.make()
      const { close, provide } = yield* makeEngine()
      const fiber = yield* Effect.forkChild(provide(Effect.gen(function*() {
        yield* Epilogue.atomic(Epilogue.defer(Effect.andThen(gate.await, log.add("a"))))
        yield* committed.open
        return yield* Effect.never
      })))
      yield* committed.await
      yield* Fiber.interrupt(fiber)
      yield* gate.open
      yield* close
      assert.deepStrictEqual(log.lines, ["a"])
    }))

  it.effect("no more epilogues run at once than its concurrency allows", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const { close, provide } = yield* makeEngine({ concurrency: 2 })
      yield* provide(Effect.forEach(["a", "b", "c"], (name) =>
        Epilogue.atomic(Epilogue.defer(Effect.andThen(log.add(name), gate.await)))))
      yield* Effect.yieldNow
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, ["a", "b"])
      yield* gate.open
      yield* close
      assert.deepStrictEqual(log.lines, ["a", "b", "c"])
    }))

  it.effect("a drain that takes too long interrupts what runs, and reports the rest as skipped", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const logs = new CapturedLogs()
      const failures: Array<Epilogue.Failure> = []
      const { close, provide } = yield* makeEngine({
        concurrency: 1,
        drainTimeout: "5 seconds",
        onFailure: (failure) => Effect.sync(() => void failures.push(failure))
      })
      const closing = yield* Effect.gen(function*() {
        yield* provide(Epilogue.atomic(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.onInterrupt(Effect.never, () => log.add("interrupted")), { name: "running" })
          yield* Epilogue.defer(log.add("rest"), { name: "rest" })
        })))
        yield* provide(Epilogue.atomic(Epilogue.defer(log.add("queued"), { name: "queued" })))
        yield* provide(Epilogue.atomic(Epilogue.defer(log.add("queued too"), { name: "queued too" })))
        yield* Effect.yieldNow
        return yield* Effect.forkChild(close, { startImmediately: true })
      }).pipe(Effect.provide(logs.layer))
      yield* TestClock.adjust("4999 millis")
      assert.deepStrictEqual(log.lines, [])
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, ["interrupted"])
      assert.deepStrictEqual(failures.map(({ intent }) => intent.name).toSorted(), [
        "queued",
        "queued too",
        "rest",
        "running"
      ])
      const skipped = failures.find(({ intent }) => intent.name === "rest")!
      assert.include(String(Cause.squash(skipped.cause)), "The drainTimeout ran out before the intent began")
      assert.isTrue(Cause.hasInterruptsOnly(failures.find(({ intent }) => intent.name === "running")!.cause))
      assert.sameMembers(logs.entries.map(({ message }) => message), [
        `Intent "queued" was skipped`,
        `Intent "queued too" was skipped`,
        `Intent "rest" was skipped`,
        `Intent "running" failed after the commit`
      ])
      const skips = yield* Metric.value(Metric.withAttributes(
        Metric.counter("epilogue.intents", { incremental: true }),
        { outcome: "skipped" }
      ))
      assert.strictEqual(skips.count, 3)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("a drain that takes too long interrupts an intent that has a timeout of its own", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { close, provide } = yield* makeEngine({ drainTimeout: "5 seconds" })
      const stuck = Effect.onInterrupt(Effect.never, () => log.add("interrupted"))
      yield* provide(Epilogue.atomic(Epilogue.defer(stuck, { timeout: "1 hour" })))
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, ["interrupted"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("without onFailure, a failure is logged and that is all", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      yield* Epilogue.atomic(Epilogue.defer(Effect.fail("no"), { name: "a" })).pipe(
        Effect.provide([Epilogue.layerBackground(), logs.layer])
      )
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [`Intent "a" failed after the commit`])
    }))

  it.effect("a drain does not wait for an intent that cannot be interrupted", () =>
    Effect.gen(function*() {
      const { close, provide } = yield* makeEngine({ drainTimeout: "5 seconds" })
      yield* provide(Epilogue.atomic(Epilogue.defer(Effect.uninterruptible(Effect.never))))
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
    }))

  it.effect("a drain that is in time cuts nothing off", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { close, provide } = yield* makeEngine({ drainTimeout: "5 seconds" })
      yield* provide(
        Epilogue.atomicWith({ concurrency: 2 })(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.andThen(Effect.sleep("4 seconds"), log.add("a")))
          yield* Epilogue.defer(Effect.andThen(Effect.sleep("4 seconds"), log.add("b")))
        }))
      )
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.join(closing)
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }))

  it.effect("a drain that takes too long interrupts intents that run concurrently, too", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { close, provide } = yield* makeEngine({ drainTimeout: "5 seconds" })
      const stuck = (name: string) => Effect.onInterrupt(Effect.never, () => log.add(name))
      yield* provide(
        Epilogue.atomicWith({ concurrency: 2 })(Effect.gen(function*() {
          yield* Epilogue.defer(stuck, "a")
          yield* Epilogue.defer(stuck, "b")
          yield* Epilogue.defer(stuck, "c")
        }))
      )
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a commit that arrives while the layer closes runs in its caller", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const { close, provide } = yield* makeEngine()
      yield* provide(Epilogue.atomic(Epilogue.defer(gate.await)))
      yield* Effect.yieldNow
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      const report = yield* provide(Epilogue.report(Epilogue.defer(log.add("a"))))
      assert.deepStrictEqual(report.outcomes.map(({ _tag }) => _tag), ["Ran"])
      assert.deepStrictEqual(log.lines, ["a"])
      const error = yield* Effect.flip(provide(Epilogue.atomic(Epilogue.defer(Effect.fail("no")))))
      assert(Epilogue.isEpilogueError(error))
      yield* gate.open
      yield* Fiber.join(closing)
    }))
})
