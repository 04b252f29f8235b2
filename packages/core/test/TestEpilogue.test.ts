import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit } from "effect"
import { Epilogue, TestEpilogue } from "../src/index.ts"
import { makeLog } from "./support.ts"

const statuses = Effect.map(TestEpilogue.intents, (intents) => intents.map(({ name, status }) => [name, status]))

describe("TestEpilogue", () => {
  it.effect("collects intents, and runs none", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const report = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(log.add, "a")
        assert.deepStrictEqual(yield* TestEpilogue.intents, [{ name: "add", payload: ["a"], status: "deferred" }])
      }))
      assert.deepStrictEqual(report.outcomes.map(({ _tag }) => _tag), ["Postponed"])
      assert.deepStrictEqual(yield* TestEpilogue.intents, [{ name: "add", payload: ["a"], status: "committed" }])
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("tells what was discarded from what committed, exactly about savepoints", () =>
    Effect.gen(function*() {
      const intent = (name: string) => Epilogue.defer(Effect.void, { name })
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* intent("a")
        yield* Effect.exit(Epilogue.savepoint(Effect.andThen(intent("b"), Effect.fail("no"))))
        yield* Epilogue.savepoint(intent("c"))
      }))
      yield* Effect.exit(Epilogue.atomic(Effect.andThen(Epilogue.savepoint(intent("d")), Effect.fail("no"))))
      assert.deepStrictEqual(yield* statuses, [
        ["a", "committed"],
        ["b", "discarded"],
        ["c", "committed"],
        ["d", "discarded"]
      ])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("code without atomic works under it, and its intents are deferred", () =>
    Effect.gen(function*() {
      const log = makeLog()
      assert.isTrue(yield* Epilogue.isOpen)
      yield* Epilogue.deferOrRun(log.add("a"), { name: "a" })
      yield* Effect.exit(
        Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add("b"), { name: "b" }), Effect.fail("no")))
      )
      yield* Epilogue.savepoint(Epilogue.defer(log.add("c"), { name: "c" }))
      assert.deepStrictEqual(yield* statuses, [["a", "deferred"], ["b", "discarded"], ["c", "deferred"]])
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("its own queue is no parent: atomic under it is an outermost boundary", () =>
    Effect.gen(function*() {
      yield* Epilogue.defer(Effect.void, { name: "outside" })
      yield* Epilogue.atomic(Epilogue.defer(Effect.void, { name: "inside" }))
      assert.deepStrictEqual(yield* statuses, [["outside", "deferred"], ["inside", "committed"]])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("of one key it shows the last", () =>
    Effect.gen(function*() {
      const keyed = (name: string) => Epilogue.defer(Effect.void, { name, key: "k" })
      yield* keyed("a")
      yield* keyed("b")
      assert.deepStrictEqual(yield* statuses, [["b", "deferred"]])
      yield* TestEpilogue.reset
      yield* Epilogue.atomic(Effect.andThen(keyed("c"), keyed("d")))
      assert.deepStrictEqual(yield* statuses, [["d", "committed"]])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("run runs what has committed, once, with what that registers", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.andThen(log.add("a"), Epilogue.defer(log.add("cascade"), { name: "cascade" })), {
          name: "a"
        })
        yield* Epilogue.defer(Effect.fail("no"), { name: "b" })
      }))
      yield* Effect.exit(Epilogue.atomic(Effect.andThen(Epilogue.defer(log.add("discarded")), Effect.fail("no"))))
      yield* Epilogue.defer(log.add("deferred"))
      yield* Epilogue.atomic(Epilogue.defer(Effect.as(log.add("c"), 3), { name: "c" }))
      const outcomes = yield* TestEpilogue.run
      assert.deepStrictEqual(log.lines, ["a", "cascade", "c"])
      assert.deepStrictEqual(outcomes.map((outcome) => [outcome._tag, outcome.intent.name]), [
        ["Ran", "a"],
        ["Ran", "b"],
        ["Ran", "cascade"],
        ["Ran", "c"]
      ])
      assert(outcomes[1]?._tag === "Ran" && outcomes[3]?._tag === "Ran")
      assert.deepStrictEqual(outcomes[1].exit, Exit.fail("no"))
      assert.deepStrictEqual(outcomes[3].exit, Exit.succeed(3))
      assert.deepStrictEqual(yield* TestEpilogue.run, [])
      assert.deepInclude(yield* statuses, ["cascade", "committed"])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("an atomic inside an intent is collected again, for the next run", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Epilogue.defer(Epilogue.atomic(Epilogue.defer(log.add("inner")))))
      yield* TestEpilogue.run
      assert.deepStrictEqual(log.lines, [])
      yield* TestEpilogue.run
      assert.deepStrictEqual(log.lines, ["inner"])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("reset forgets everything", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.defer(log.add("a"))
      yield* Epilogue.atomic(Epilogue.defer(log.add("b")))
      yield* TestEpilogue.reset
      assert.deepStrictEqual(yield* TestEpilogue.intents, [])
      assert.deepStrictEqual(yield* Epilogue.intents, [])
      assert.deepStrictEqual(yield* TestEpilogue.run, [])
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("rollback hooks run as they do in production", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.exit(Epilogue.atomic(Effect.andThen(Epilogue.deferRollback(log.add("hook")), Effect.fail("no"))))
      assert.deepStrictEqual(log.lines, ["hook"])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("each test has its own", () =>
    Effect.gen(function*() {
      yield* Effect.provide(Epilogue.defer(Effect.void), TestEpilogue.layer)
      assert.deepStrictEqual(yield* Effect.provide(TestEpilogue.intents, TestEpilogue.layer), [])
    }))
})
