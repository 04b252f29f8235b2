import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, Fiber, Latch } from "effect"
import { Epilogue, TestEpilogue } from "../src/index.ts"
import { makeLog } from "./support.ts"

class Mailer extends Context.Service<Mailer, { readonly send: (to: string) => Effect.Effect<void> }>()("Mailer") {}

describe("defer", () => {
  it.effect("takes an effect: its name and payload are what the options say", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.void)
        yield* Epilogue.defer(Effect.void, { name: "receipt", payload: null })
        yield* Effect.void.pipe(Epilogue.deferWith({ name: "piped", payload: [1] }))
        assert.deepStrictEqual(yield* Epilogue.intents, [
          { name: "anonymous", payload: undefined },
          { name: "receipt", payload: null },
          { name: "piped", payload: [1] }
        ])
      }))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("takes a function and its arguments, and calls it when the intent runs", () =>
    Effect.gen(function*() {
      const log = makeLog()
      function sendReceipt(to: string, copies: number) {
        log.lines.push("called")
        return log.add(`${to} ${copies}`)
      }
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(sendReceipt, "ada@example.com", 2)
        yield* Epilogue.defer(Effect.fn("traced")(function*() {}))
        yield* log.add("core")
        assert.deepStrictEqual(yield* Epilogue.intents, [
          { name: "sendReceipt", payload: ["ada@example.com", 2] },
          { name: "anonymous", payload: [] }
        ])
      }))
      assert.deepStrictEqual(log.lines, ["core", "called", "ada@example.com 2"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("a function that throws is an intent that failed", () =>
    Effect.gen(function*() {
      const { outcomes } = yield* Epilogue.report(Epilogue.defer(function boom(): Effect.Effect<void> {
        throw new Error("no")
      }))
      assert(outcomes[0]?._tag === "Ran" && Exit.isFailure(outcomes[0].exit))
      assert.isTrue(Cause.hasDies(outcomes[0].exit.cause))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("a service key is a function and an effect, and is taken as an effect", () =>
    Effect.gen(function*() {
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Mailer, { name: "mailer" })
        yield* Epilogue.deferRollback(Mailer)
      }))
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent), [{ name: "mailer", payload: undefined }])
    }).pipe(
      Effect.provideService(Mailer, { send: () => Effect.void }),
      Effect.provide(Epilogue.layer)
    ))

  it.effect("intents that are exits already have their outcome", () =>
    Effect.gen(function*() {
      const { outcomes } = yield* Epilogue.report(Effect.andThen(
        Epilogue.defer(Effect.succeed(1)),
        Epilogue.defer(Effect.fail("no"))
      ))
      assert.deepStrictEqual(outcomes.map((outcome) => outcome._tag === "Ran" && outcome.exit), [
        Exit.succeed(1),
        Exit.fail("no")
      ])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("service keys", () => {
  it("have the name of the package, so that two copies of it share what they provide", () => {
    assert.deepStrictEqual([Epilogue.Deferred.key, Epilogue.Epilogue.key, TestEpilogue.TestEpilogue.key], [
      "@epilogue/core/Deferred",
      "@epilogue/core/Epilogue",
      "@epilogue/core/TestEpilogue"
    ])
  })
})

describe("keys", () => {
  const keyed = (log: ReturnType<typeof makeLog>, name: string, key = "user:1") =>
    Epilogue.defer(log.add(name), { name, key })

  it.effect("one intent for each key: the last one counts and takes the later place", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* keyed(log, "a")
        yield* Epilogue.defer(log.add("b"), { name: "b" })
        yield* keyed(log, "other", "user:2")
        yield* keyed(log, "c")
        assert.deepStrictEqual((yield* Epilogue.intents).map(({ name }) => name), ["b", "other", "c"])
      }))
      assert.deepStrictEqual(log.lines, ["b", "other", "c"])
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["b", "other", "c"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("a keyed intent of a discarded savepoint replaces nothing, one of a committed savepoint does", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* keyed(log, "a")
        yield* Effect.exit(Epilogue.savepoint(Effect.andThen(keyed(log, "b"), Effect.fail("no"))))
      }))
      yield* Epilogue.atomic(Effect.andThen(keyed(log, "c"), Epilogue.savepoint(keyed(log, "d"))))
      assert.deepStrictEqual(log.lines, ["a", "d"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("an intent that registers a key replaces only what has not begun to run", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.andThen(log.add("a"), keyed(log, "again")), { name: "a", key: "user:1" })
        yield* Epilogue.defer(keyed(log, "newer", "user:2"), { name: "b" })
        yield* keyed(log, "older", "user:2")
      }))
      assert.deepStrictEqual(log.lines, ["a", "again", "newer"])
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["a", "b", "again", "newer"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("the same holds where intents run concurrently", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.reportWith({ concurrency: 1 + 1 })(Effect.gen(function*() {
        yield* keyed(log, "first", "user:3")
        yield* Epilogue.defer(keyed(log, "newer", "user:2"), { name: "a" })
        yield* Epilogue.defer(Effect.yieldNow, { name: "b" })
        yield* keyed(log, "older", "user:2")
        yield* keyed(log, "second", "user:3")
      }))
      assert.deepStrictEqual(log.lines, ["second", "newer"])
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["a", "b", "second", "newer"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("deferOrRun", () => {
  it.effect("defers inside a boundary", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.deferOrRun(log.add("a"), { name: "a", payload: 1 })
        assert.deepStrictEqual(yield* Epilogue.intents, [{ name: "a", payload: 1 }])
        yield* log.add("core")
      }))
      assert.deepStrictEqual(log.lines, ["core", "a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("runs at once outside of one, and fails as the effect does", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.deferOrRun(log.add("a"))
      assert.deepStrictEqual(log.lines, ["a"])
      assert.strictEqual(yield* Effect.flip(Epilogue.deferOrRun(Effect.fail("no"))), "no")
      assert.strictEqual(yield* Epilogue.deferOrRun(Effect.succeed(1)), undefined)
    }))
})

describe("many intents", () => {
  it.effect("law 14: a million intents run once each, in order, without stack growth", () =>
    Effect.gen(function*() {
      const count = 1_000_000
      let next = 0
      const intent = (i: number) => Effect.sync(() => assert.strictEqual(i, next++))
      yield* Epilogue.atomic(Effect.gen(function*() {
        for (let i = 0; i < count; i++) yield* Epilogue.defer(intent(i))
      }))
      assert.strictEqual(next, count)
    }).pipe(Effect.provide(Epilogue.layer)), 60_000)

  for (const depth of [1_023, 1_024, 1_025, 2_048, 5_000]) {
    it.effect(`law 14: ${depth} intents keep their order through savepoints inside savepoints`, () =>
      Effect.gen(function*() {
        const ran: Array<number> = []
        const program = (i: number): Effect.Effect<void, never, Epilogue.Deferred> =>
          i === depth
            ? Effect.void
            : Effect.andThen(
              Epilogue.defer(Effect.sync(() => void ran.push(i))),
              i % 500 === 499 ?
                Epilogue.savepoint(Effect.suspend(() => program(i + 1))) :
                Effect.suspend(() => program(i + 1))
            )
        yield* Epilogue.atomic(Effect.andThen(Effect.void, Epilogue.savepoint(program(0))))
        assert.deepStrictEqual(ran, Array.from({ length: depth }, (_, i) => i))
      }).pipe(Effect.provide(Epilogue.layer)))
  }

  it.effect("law 14: a cascade of a hundred thousand does not grow the stack", () =>
    Effect.gen(function*() {
      let left = 100_000
      const cascade: Effect.Effect<void, never, Epilogue.Deferred> = Effect.suspend(() =>
        left-- > 0 ? Epilogue.defer(cascade) : Effect.void
      )
      yield* Epilogue.atomic(Epilogue.defer(cascade))
      assert.strictEqual(left, -1)
    }).pipe(Effect.provide(Epilogue.layer)), 60_000)

  it.effect("law 14: a hundred thousand hooks of a savepoint run in reverse order", () =>
    Effect.gen(function*() {
      let next = 100_000
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.savepoint(Effect.gen(function*() {
          for (let i = 0; i < 100_000; i++) {
            yield* Epilogue.deferRollback(Effect.sync(() => assert.strictEqual(i, --next)))
          }
        }))
        return yield* Effect.fail("no")
      })))
      assert.strictEqual(next, 0)
    }).pipe(Effect.provide(Epilogue.layer)), 60_000)
})

describe("law 5", () => {
  it.effect("law 5: a fiber that defers while a savepoint of another fiber is open keeps out of it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(
          Effect.exit(
            Epilogue.savepoint(
              Effect.andThen(gate.await, Effect.andThen(Epilogue.defer(log.add("a")), Effect.fail("no")))
            )
          ),
          { startImmediately: true }
        )
        yield* Epilogue.defer(log.add("b"))
        yield* gate.open
        yield* Fiber.join(fiber)
      }))
      assert.deepStrictEqual(log.lines, ["b"])
    }).pipe(Effect.provide(Epilogue.layer)))
})
