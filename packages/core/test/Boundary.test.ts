import { assert, describe, it } from "@effect/vitest"
import { Cause, Data, Deferred, Effect, Exit, Fiber, Latch, Layer, Schedule } from "effect"
import { TestClock } from "effect/testing"
import { Epilogue } from "../src/index.ts"
import { CapturedLogs, defectOf, makeLog } from "./support.ts"

class CardDeclined extends Data.TaggedError("CardDeclined") {
  override readonly message = "the card was declined"
}

describe("commit", () => {
  it.effect("law 1: a commit runs every intent once, in order of registration, after the core", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const value = yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add("a"))
        yield* log.add("core")
        yield* Epilogue.defer(log.add("b"))
        yield* Epilogue.defer(log.add("c"))
        return 42
      }))
      assert.strictEqual(value, 42)
      assert.deepStrictEqual(log.lines, ["core", "a", "b", "c"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 1: one effect that is deferred twice runs twice", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const twice = Epilogue.defer(log.add("a"))
      yield* Epilogue.atomic(Effect.andThen(twice, twice))
      assert.deepStrictEqual(log.lines, ["a", "a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 1: a boundary that runs twice runs its intents once each time", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const program = Epilogue.atomic(Epilogue.defer(log.add("a")))
      yield* program
      yield* program
      assert.deepStrictEqual(log.lines, ["a", "a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 1: atomic waits for intents that are asynchronous", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Epilogue.defer(Effect.andThen(gate.await, log.add("a")))).pipe(Effect.andThen(log.add("after")))
      )
      yield* Effect.yieldNow
      assert.deepStrictEqual(log.lines, [])
      yield* gate.open
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines, ["a", "after"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("discard", () => {
  const cases = [
    ["fails", Effect.fail("no")],
    ["dies", Effect.die("no")],
    ["is interrupted", Effect.interrupt],
    ["fails and dies", Effect.failCause(Cause.combine(Cause.fail("no"), Cause.die("never")))]
  ] as const
  for (const [name, end] of cases) {
    it.effect(`law 2: a core that ${name} runs no intent, and its cause is unchanged`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const bare = yield* Effect.exit(end)
        const exit = yield* Effect.exit(Epilogue.atomic(Effect.andThen(Epilogue.defer(log.add("a")), end)))
        assert.deepStrictEqual(log.lines, [])
        assert(Exit.isFailure(exit) && Exit.isFailure(bare))
        assert.deepStrictEqual(
          exit.cause.reasons.map(({ _tag }) => _tag),
          bare.cause.reasons.map(({ _tag }) => _tag)
        )
        if (name !== "is interrupted") assert.deepStrictEqual(exit.cause, bare.cause)
      }).pipe(Effect.provide(Epilogue.layer)))
  }

  it.effect("law 2: interrupting a core from outside runs no intent", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const started = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Effect.andThen(Epilogue.defer(log.add("a")), Effect.andThen(started.open, Effect.never)))
      )
      yield* started.await
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("failing intents", () => {
  const failing = Effect.gen(function*() {
    yield* Epilogue.defer(Effect.fail("first"), { name: "one", payload: 1 })
    yield* Epilogue.defer(Effect.die("second"), { name: "two" })
    yield* Epilogue.defer(Effect.void, { name: "three" })
    return 42
  })

  it.effect("law 3: after a commit, the caller learns the core's value and every failure, and the rest still run", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const error = yield* Effect.flip(
        Epilogue.atomic(Effect.tap(failing, () => Epilogue.defer(log.add("last"), { name: "last" })))
      )
      assert(Epilogue.isEpilogueError(error))
      assert.instanceOf(error, Epilogue.EpilogueError)
      assert.strictEqual(error._tag, "EpilogueError")
      assert.strictEqual(error.value, 42)
      assert.deepStrictEqual(error.failures, [
        { intent: { name: "one", payload: 1 }, cause: Cause.fail("first") },
        { intent: { name: "two", payload: undefined }, cause: Cause.die("second") }
      ])
      assert.deepStrictEqual(error.skipped, [])
      assert.deepStrictEqual(log.lines, ["last"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: in mode stop, the intents after the failing one are skipped and named", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const error = yield* Effect.flip(
        Epilogue.atomicWith({ mode: "stop" })(Effect.gen(function*() {
          yield* Epilogue.defer(log.add("a"), { name: "a" })
          yield* Epilogue.defer(
            Effect.andThen(Epilogue.defer(log.add("cascade"), { name: "cascade" }), Effect.fail("no")),
            { name: "b" }
          )
          yield* Epilogue.defer(log.add("c"), { name: "c" })
        }))
      )
      assert(Epilogue.isEpilogueError(error))
      assert.deepStrictEqual(log.lines, ["a"])
      assert.deepStrictEqual(error.failures.map(({ intent }) => intent.name), ["b"])
      assert.deepStrictEqual(error.skipped.map(({ name }) => name), ["c", "cascade"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: the error's message names the intents, why they failed, and what to do", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Epilogue.atomicWith({ mode: "stop" })(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.fail(new CardDeclined()), { name: "charge" })
          yield* Epilogue.defer(Effect.void, { name: "receipt" })
          yield* Epilogue.defer(Effect.void, { name: "parcel" })
        }))
      )
      assert(Epilogue.isEpilogueError(error))
      assert.include(error.message, `"charge" (the card was declined)`)
      assert.include(error.message, `skipped because of that: "receipt", "parcel".`)
      assert.include(error.message, "do not run it again")
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: the message lists every failure, also what is no error, and what was interrupted", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.fail("no"), { name: "a" })
        yield* Epilogue.defer(Effect.interrupt, { name: "b" })
      })))
      assert(Epilogue.isEpilogueError(error))
      assert.include(error.message, `intents failed: "a" (no), "b" (interrupted). Its result`)
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: a boundary without intents has an empty report, and its engine has nothing to run", () =>
    Effect.gen(function*() {
      const commit = () => Effect.die("nothing to run")
      const report = yield* Effect.provideService(
        Epilogue.report(Effect.succeed(1)),
        Epilogue.Epilogue,
        Epilogue.make({ commit })
      )
      assert.deepStrictEqual(report, { value: 1, outcomes: [] })
    }))

  it.effect("law 3: a report has the value and every outcome, and no error", () =>
    Effect.gen(function*() {
      const report = yield* Epilogue.report(failing)
      assert.strictEqual(report.value, 42)
      assert.deepStrictEqual(report.outcomes, [
        { _tag: "Ran", intent: { name: "one", payload: 1 }, exit: Exit.fail("first") },
        { _tag: "Ran", intent: { name: "two", payload: undefined }, exit: Exit.die("second") },
        { _tag: "Ran", intent: { name: "three", payload: undefined }, exit: Exit.void }
      ])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: a report says what an intent returned, and what was skipped", () =>
    Effect.gen(function*() {
      const report = yield* Epilogue.reportWith({ mode: "stop" })(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.succeed("paid"), { name: "a" })
        yield* Epilogue.defer(Effect.fail("no"), { name: "b" })
        yield* Epilogue.defer(Effect.void, { name: "c" })
      }))
      assert.deepStrictEqual(report.outcomes.map((outcome) => [outcome._tag, outcome.intent.name]), [
        ["Ran", "a"],
        ["Ran", "b"],
        ["Skipped", "c"]
      ])
      assert(report.outcomes[0]?._tag === "Ran")
      assert.deepStrictEqual(report.outcomes[0].exit, Exit.succeed("paid"))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: a report of a core that fails has the core's own error", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Epilogue.report(Effect.andThen(failing, Effect.fail("core"))))
      assert.strictEqual(error, "core")
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: failures of an epilogue whose caller was interrupted go to the log and to onFailure", () =>
    Effect.gen(function*() {
      const failures: Array<Epilogue.Failure> = []
      const logs = new CapturedLogs()
      const started = yield* Latch.make()
      const gate = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.andThen(started.open, gate.await))
          yield* Epilogue.defer(Effect.fail("lost"), { name: "charge" })
        })).pipe(
          Effect.provide([
            Epilogue.layerOptions({
              onFailure: (failure) => Effect.sync(() => failures.push(failure))
            }),
            logs.layer
          ])
        )
      )
      yield* started.await
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* Effect.yieldNow
      yield* gate.open
      yield* Fiber.join(interruption)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(failures, [
        { intent: { name: "charge", payload: undefined }, cause: Cause.fail("lost") }
      ])
      assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
        ["Error", `Intent "charge" failed after the commit`]
      ])
      assert.deepStrictEqual(logs.entries[0]?.annotations, { "epilogue.intent": "charge" })
    }))

  it.effect("law 3: a report whose caller was interrupted goes to the log and to onFailure too", () =>
    Effect.gen(function*() {
      const failures: Array<string> = []
      const fiber = yield* Effect.forkChild(
        Epilogue.report(
          Epilogue.defer(
            Effect.withFiber((self) => {
              self.interruptUnsafe()
              return Effect.fail("lost")
            }),
            { name: "charge" }
          )
        ).pipe(
          Effect.provide([
            Epilogue.layerOptions({
              onFailure: ({ intent }) => Effect.sync(() => failures.push(intent.name))
            }),
            new CapturedLogs().layer
          ])
        )
      )
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(failures, ["charge"])
    }))

  it.effect("law 3: a caller who is told is told alone", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const engine = Epilogue.layerOptions({ onFailure: () => Effect.die("not for you") })
      yield* Effect.flip(Epilogue.atomic(failing)).pipe(Effect.provide([engine, logs.layer]))
      yield* Epilogue.report(failing).pipe(Effect.provide([engine, logs.layer]))
      assert.deepStrictEqual(logs.entries, [])
    }))

  it.effect("law 3: an onFailure that dies is logged, and the next failure is told all the same", () =>
    Effect.gen(function*() {
      const told: Array<string> = []
      const logs = new CapturedLogs()
      yield* Effect.andThen(
        Epilogue.atomic(failing),
        Effect.void
      ).pipe(
        Effect.provide([
          Epilogue.layerBackground({
            onFailure: ({ intent }) => {
              told.push(intent.name)
              throw new Error("pager is down")
            }
          }),
          logs.layer
        ])
      )
      assert.deepStrictEqual(told, ["one", "two"])
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [
        `Intent "one" failed after the commit`,
        `onFailure failed for intent "one"`,
        `Intent "two" failed after the commit`,
        `onFailure failed for intent "two"`
      ])
    }))

  it.effect("law 3: retrying while the error is no EpilogueError never commits twice", () =>
    Effect.gen(function*() {
      const log = makeLog()
      let attempts = 0
      const program = Epilogue.atomic(Effect.gen(function*() {
        yield* log.add("core")
        yield* Epilogue.defer(Effect.fail("intent"))
        if (++attempts < 3) return yield* Effect.fail("core")
      }))
      const error = yield* Effect.flip(
        Effect.retry(program, { while: (cause) => !Epilogue.isEpilogueError(cause), times: 10 })
      )
      assert(Epilogue.isEpilogueError(error))
      assert.deepStrictEqual(log.lines, ["core", "core", "core"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("savepoints", () => {
  it.effect("law 4: a discarded savepoint takes its own intents with it and nothing else", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add("a"))
        yield* Effect.exit(Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add("b")), Effect.fail("no"))))
        yield* Effect.exit(Epilogue.atomic(Effect.andThen(Epilogue.defer(log.add("c")), Effect.fail("no"))))
        yield* Epilogue.defer(log.add("d"))
      }))
      assert.deepStrictEqual(log.lines, ["a", "d"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 4: a committed savepoint hands its intents to the boundary around it, after those already there", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(
          Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add("inner")), gate.await))
        )
        yield* Effect.yieldNow
        yield* Epilogue.defer(log.add("outer"))
        yield* gate.open
        yield* Fiber.join(fiber)
        yield* log.add("core")
      }))
      assert.deepStrictEqual(log.lines, ["core", "outer", "inner"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 4: nothing runs before the outermost commit, and a discard there takes all", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const inner = Epilogue.atomic(Epilogue.savepoint(Epilogue.defer(log.add("a"))))
      yield* Effect.exit(Epilogue.atomic(Effect.andThen(inner, Effect.fail("no"))))
      assert.deepStrictEqual(log.lines, [])
      yield* Epilogue.atomic(Effect.andThen(inner, log.add("core")))
      assert.deepStrictEqual(log.lines, ["core", "a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 4: in a report of a boundary inside another one, intents are postponed", () =>
    Effect.gen(function*() {
      const inner = yield* Epilogue.atomic(Epilogue.report(Epilogue.defer(Effect.void, { name: "a" })))
      assert.deepStrictEqual(inner.outcomes, [{ _tag: "Postponed", intent: { name: "a", payload: undefined } }])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 4: an isolated boundary is an outermost one, whatever becomes of the boundary around it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add("outer"))
        yield* Epilogue.atomicWith({ isolated: true })(Epilogue.defer(log.add("audit")))
        assert.deepStrictEqual(log.lines, ["audit"])
        return yield* Effect.fail("no")
      })))
      assert.deepStrictEqual(log.lines, ["audit"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 4: a savepoint that outlives its boundary cannot hand anything over", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const fiber = yield* Epilogue.atomic(
        Effect.forkDetach(
          Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add("a"), { name: "late" }), gate.await)),
          {
            startImmediately: true
          }
        )
      )
      const hooked = yield* Epilogue.atomic(
        Effect.forkDetach(Epilogue.savepoint(Effect.andThen(Epilogue.deferRollback(log.add("h")), gate.await)), {
          startImmediately: true
        })
      )
      const empty = yield* Epilogue.atomic(
        Effect.forkDetach(Epilogue.savepoint(gate.await), { startImmediately: true })
      )
      yield* gate.open
      assert.include(
        defectOf(yield* Fiber.await(fiber)),
        `intent "late" was registered into a boundary that has already ended`
      )
      assert.include(
        defectOf(yield* Fiber.await(hooked)),
        `a rollback hook was registered into a boundary that has already ended`
      )
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(empty)))
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("isolation", () => {
  it.effect("law 5: boundaries that run side by side never see each other's intents", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const one = (name: string, fails: boolean) =>
        Epilogue.atomic(Effect.gen(function*() {
          for (let i = 0; i < 3; i++) {
            yield* Epilogue.defer(log.add(`${name}${i}`))
            yield* Effect.yieldNow
            assert.strictEqual((yield* Epilogue.intents).length, i + 1)
          }
          if (fails) return yield* Effect.fail("no")
        }))
      yield* Effect.all([one("a", false), Effect.exit(one("b", true)), one("c", false)], { concurrency: "unbounded" })
      assert.deepStrictEqual(log.lines.toSorted(), ["a0", "a1", "a2", "c0", "c1", "c2"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 5: fibers forked inside a boundary share it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(
        Effect.all([Epilogue.defer(log.add("a")), Epilogue.defer(log.add("b"))], { concurrency: "unbounded" })
      )
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("a boundary that has ended", () => {
  const straggler = <A, E, R>(late: Effect.Effect<A, E, R>, end: Effect.Effect<unknown, string>) =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      const forked = yield* Deferred.make<Fiber.Fiber<A, E>>()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Deferred.succeed(forked, yield* Effect.forkDetach(Effect.andThen(gate.await, late)))
        yield* end
      })))
      yield* gate.open
      return yield* Effect.flatMap(Deferred.await(forked), Fiber.await)
    }).pipe(Effect.provide(Epilogue.layer))

  for (const [name, end] of [["committed", Effect.void], ["discarded", Effect.fail("no")]] as const) {
    it.effect(`law 6: registering into a boundary that was ${name} is a defect that names the intent`, () =>
      Effect.gen(function*() {
        const defect = defectOf(yield* straggler(Epilogue.defer(Effect.void, { name: "receipt" }), end))
        assert.include(defect, `intent "receipt" was registered into a boundary that has already ended`)
        assert.include(defect, "Await the fiber inside the boundary")
      }))

    it.effect(`law 6: so is deferOrRun, and a rollback hook, into a boundary that was ${name}`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const run = yield* straggler(Epilogue.deferOrRun(log.add("a"), { name: "receipt" }), end)
        assert.include(defectOf(run), `intent "receipt" was registered into a boundary that has already ended`)
        const hook = yield* straggler(Epilogue.deferRollback(log.add("h")), end)
        assert.include(defectOf(hook), "a rollback hook was registered into a boundary that has already ended")
        assert.deepStrictEqual(log.lines, [])
      }))
  }

  it.effect("law 6: a boundary ends before its epilogue runs", () =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      let fiber: Fiber.Fiber<void> | undefined
      yield* Epilogue.atomic(Effect.gen(function*() {
        fiber = yield* Effect.forkDetach(Effect.andThen(gate.await, Epilogue.defer(Effect.void, { name: "late" })))
        yield* Epilogue.defer(Effect.andThen(gate.open, Effect.exit(Fiber.await(fiber))))
      }))
      assert.include(defectOf(yield* Fiber.await(fiber!)), `intent "late" was registered into a boundary that has`)
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 6: registering into an epilogue that is over is a defect", () =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      let fiber: Fiber.Fiber<void> | undefined
      yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
        fiber = yield* Effect.forkDetach(Effect.andThen(gate.await, Epilogue.defer(Effect.void, { name: "late" })))
      })))
      yield* gate.open
      assert.include(defectOf(yield* Fiber.await(fiber!)), `intent "late" was registered into a boundary that has`)
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 6: a fiber that outlived its boundary can open one of its own", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const exit = yield* straggler(Epilogue.atomic(Epilogue.defer(log.add("a"))), Effect.void)
      assert.isTrue(Exit.isSuccess(exit))
      assert.deepStrictEqual(log.lines, ["a"])
    }))

  it.effect("isOpen says whether intents can be deferred", () =>
    Effect.gen(function*() {
      assert.isFalse(yield* Epilogue.isOpen)
      assert.isTrue(yield* Epilogue.atomic(Epilogue.isOpen))
      assert.deepStrictEqual(yield* straggler(Epilogue.isOpen, Effect.void), Exit.succeed(false))
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("interruption", () => {
  it.effect("law 7: an interruption after the commit waits for the epilogue, and then takes effect", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const started = yield* Latch.make()
      const gate = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.andThen(started.open, gate.await))
          yield* Epilogue.defer(log.add("a"))
        })).pipe(Effect.andThen(log.add("after")))
      )
      yield* started.await
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
      assert.deepStrictEqual(log.lines, [])
      yield* gate.open
      yield* Fiber.join(interruption)
      assert.deepStrictEqual(log.lines, ["a"])
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 7: an intent can use its own timeouts", () =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(
        Epilogue.report(Epilogue.defer(Effect.timeoutOption(Effect.never, "1 second"))),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      const { outcomes } = yield* Fiber.join(fiber)
      assert(outcomes[0]?._tag === "Ran" && Exit.isSuccess(outcomes[0].exit))
    }).pipe(Effect.provide(Epilogue.layer)))

  for (
    const [name, hang] of [
      ["hangs", Effect.never],
      ["hangs and cannot be interrupted", Effect.uninterruptible(Effect.never)]
    ] as const
  ) {
    it.effect(`law 7: an intent that ${name} does not hang its caller for longer than its timeout`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const fiber = yield* Effect.forkChild(
          Effect.flip(Epilogue.atomic(Effect.gen(function*() {
            yield* Epilogue.defer(hang, { name: "slow", timeout: "5 seconds" })
            yield* Epilogue.defer(log.add("next"))
          }))),
          { startImmediately: true }
        )
        yield* TestClock.adjust("4999 millis")
        assert.deepStrictEqual(log.lines, [])
        yield* TestClock.adjust("1 millis")
        const error = yield* Fiber.join(fiber)
        assert(Epilogue.isEpilogueError(error))
        assert.deepStrictEqual(error.failures.map(({ intent }) => intent.name), ["slow"])
        const reason = Cause.squash(error.failures[0].cause)
        assert.instanceOf(reason, Cause.TimeoutError)
        assert.include(String(reason), "The intent did not end within 5s")
        assert.deepStrictEqual(log.lines, ["next"])
      }).pipe(Effect.provide(Epilogue.layer)))
  }

  it.effect("law 7: an intent that ends within its timeout keeps its result, and a timed out one is interrupted", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const fiber = yield* Effect.forkChild(
        Epilogue.report(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.succeed(1), { timeout: "1 second" })
          yield* Epilogue.defer(Effect.fail("no"), { timeout: "1 second" })
          yield* Epilogue.defer(Effect.onInterrupt(Effect.never, () => log.add("interrupted")), { timeout: "1 second" })
        })),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      const { outcomes } = yield* Fiber.join(fiber)
      assert(outcomes[0]?._tag === "Ran" && outcomes[1]?._tag === "Ran")
      assert.deepStrictEqual(outcomes[0].exit, Exit.succeed(1))
      assert.deepStrictEqual(outcomes[1].exit, Exit.fail("no"))
      assert.deepStrictEqual(log.lines, ["interrupted"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: an intent that was left behind at its timeout and fails after all is logged", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const gate = yield* Latch.make()
      const failed = yield* Latch.make()
      const stubborn = Effect.uninterruptible(
        Effect.andThen(gate.await, Effect.andThen(failed.open, Effect.fail("late")))
      )
      yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(
          Epilogue.report(Epilogue.defer(stubborn, { name: "slow", timeout: "1 second" })),
          { startImmediately: true }
        )
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(fiber)
        yield* gate.open
        yield* failed.await
        yield* Effect.yieldNow
      }).pipe(Effect.provide(logs.layer))
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [`Intent "slow" failed after its timeout`])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 3: one that ends well after its timeout, or lets itself be interrupted, is not logged", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const gate = yield* Latch.make()
      const ended = yield* Latch.make()
      const stubborn = Effect.uninterruptible(Effect.andThen(gate.await, ended.open))
      yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(
          Epilogue.reportWith({ concurrency: 2 })(Effect.gen(function*() {
            yield* Epilogue.defer(stubborn, { timeout: "1 second" })
            yield* Epilogue.defer(Effect.never, { timeout: "1 second" })
          })),
          { startImmediately: true }
        )
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(fiber)
        yield* gate.open
        yield* ended.await
        yield* Effect.yieldNow
      }).pipe(Effect.provide(logs.layer))
      assert.deepStrictEqual(logs.entries, [])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("a timeout that is no duration is a defect at the registration, and names the intent", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(
        Epilogue.atomic(Epilogue.defer(Effect.void, { name: "receipt", timeout: "soon" as never }))
      )
      assert.include(
        defectOf(exit),
        `the timeout of intent "receipt" is no duration. Give it as in \`timeout: "5 seconds"\`.`
      )
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("cascades", () => {
  it.effect("law 11: an intent that registers more adds them to the end of its epilogue", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(
          Effect.andThen(
            log.add("a"),
            Epilogue.defer(Effect.andThen(log.add("c"), Epilogue.defer(log.add("d"), { name: "d" })), { name: "c" })
          ),
          { name: "a" }
        )
        yield* Epilogue.defer(log.add("b"), { name: "b" })
      }))
      assert.deepStrictEqual(log.lines, ["a", "b", "c", "d"])
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["a", "b", "c", "d"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 11: also if the intent then fails", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.flip(
        Epilogue.atomic(Epilogue.defer(Effect.andThen(Epilogue.defer(log.add("b")), Effect.fail("no"))))
      )
      assert.deepStrictEqual(log.lines, ["b"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 11: a savepoint inside an intent hands its intents to the epilogue, or drops them", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
        yield* Epilogue.savepoint(Epilogue.defer(log.add("a")))
        yield* Effect.exit(Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add("b")), Effect.fail("no"))))
      })))
      assert.deepStrictEqual(log.lines, ["a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 11: atomic inside an intent is an outermost boundary of its own", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(
          Epilogue.atomic(Epilogue.defer(log.add("inner"))).pipe(Effect.andThen(log.add("after inner")))
        )
        yield* Epilogue.defer(log.add("outer"))
      }))
      assert.deepStrictEqual(log.lines, ["inner", "after inner", "outer"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 11: an intent can defer or run, and a boundary is open in it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
        assert.isTrue(yield* Epilogue.isOpen)
        yield* Epilogue.deferOrRun(log.add("later"))
        yield* log.add("intent")
      })))
      assert.deepStrictEqual(log.lines, ["intent", "later"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("retries and races", () => {
  it.effect("law 12: a retried savepoint leaves only the intents of the attempt that succeeded", () =>
    Effect.gen(function*() {
      const log = makeLog()
      let attempt = 0
      const step = Effect.gen(function*() {
        yield* Epilogue.defer(log.add(`attempt ${++attempt}`))
        if (attempt < 3) return yield* Effect.fail("again")
      })
      yield* Epilogue.atomic(Effect.retry(Epilogue.savepoint(step), Schedule.recurs(5)))
      assert.deepStrictEqual(log.lines, ["attempt 3"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 12: the loser of a race leaves nothing", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const side = (name: string, end: Effect.Effect<void>) =>
        Epilogue.savepoint(Effect.andThen(Epilogue.defer(log.add(name)), end))
      yield* Epilogue.atomic(Effect.race(side("loser", Effect.never), side("winner", Effect.yieldNow)))
      assert.deepStrictEqual(log.lines, ["winner"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("rollback hooks", () => {
  it.effect("law 13: hooks run on discard only, the last registered first, with the cause if they ask for it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const causes: Array<Cause.Cause<unknown>> = []
      const program = Effect.gen(function*() {
        yield* Epilogue.deferRollback(log.add("first"))
        yield* Epilogue.deferRollback((cause) => Effect.sync(() => void causes.push(cause)))
        yield* Epilogue.deferRollback(log.add("last"))
      })
      yield* Epilogue.atomic(program)
      assert.deepStrictEqual(log.lines, [])
      const exit = yield* Effect.exit(Epilogue.atomic(Effect.andThen(program, Effect.fail("no"))))
      assert.deepStrictEqual(log.lines, ["last", "first"])
      assert(Exit.isFailure(exit))
      assert.deepStrictEqual(causes, [Cause.fail("no")])
      assert.deepStrictEqual(exit.cause, Cause.fail("no"))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 13: a hook that fails is logged, keeps no other from running, and does not change the cause", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const logs = new CapturedLogs()
      const exit = yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.deferRollback(log.add("first"))
        yield* Epilogue.deferRollback(Effect.fail("hook"))
        yield* Epilogue.deferRollback((): Effect.Effect<void> => {
          throw new Error("hook")
        })
        return yield* Effect.fail("core")
      }))).pipe(Effect.provide(logs.layer))
      assert.deepStrictEqual(exit, Exit.fail("core"))
      assert.deepStrictEqual(log.lines, ["first"])
      assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
        ["Error", "A rollback hook failed; the other hooks run all the same"],
        ["Error", "A rollback hook failed; the other hooks run all the same"]
      ])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 13: a hook of a savepoint runs when the savepoint is discarded, and no other does", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.deferRollback(log.add("outer"))
        yield* Effect.exit(
          Epilogue.savepoint(Effect.andThen(Epilogue.deferRollback(log.add("inner")), Effect.fail("no")))
        )
        yield* log.add("core")
      }))
      assert.deepStrictEqual(log.lines, ["inner", "core"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 13: a hook of a committed savepoint passes to the boundary around it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.deferRollback(log.add("outer"))
        yield* Epilogue.savepoint(Epilogue.deferRollback(log.add("inner")))
        yield* Epilogue.deferRollback(log.add("last"))
        return yield* Effect.fail("no")
      })))
      assert.deepStrictEqual(log.lines, ["last", "inner", "outer"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 13: hooks run when the core is interrupted, and are not interrupted themselves", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const started = yield* Latch.make()
      const gate = yield* Latch.make()
      const fiber = yield* Effect.forkChild(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.deferRollback(Effect.andThen(gate.await, log.add("hook")))
        yield* started.open
        return yield* Effect.never
      })))
      yield* started.await
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
      yield* gate.open
      yield* Fiber.join(interruption)
      assert.deepStrictEqual(log.lines, ["hook"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 13: a hook cannot defer any more", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const log = makeLog()
      yield* Effect.exit(
        Epilogue.atomic(Effect.andThen(Epilogue.deferRollback(Epilogue.defer(log.add("a"))), Effect.fail("no")))
      ).pipe(Effect.provide(logs.layer))
      assert.strictEqual(logs.entries.length, 1)
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("concurrency", () => {
  it.effect("as many intents as asked for run at once, and they begin in order", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      let running = 0
      let most = 0
      const task = (name: string) =>
        Effect.gen(function*() {
          log.lines.push(name)
          most = Math.max(most, ++running)
          yield* gate.await
          running--
        })
      const names = ["a", "b", "c", "d", "e"]
      const fiber = yield* Effect.forkChild(
        Epilogue.reportWith({ concurrency: 2 })(Effect.forEach(names, (name) => Epilogue.defer(task, name))),
        { startImmediately: true }
      )
      assert.deepStrictEqual(log.lines, ["a", "b"])
      yield* gate.open
      const { outcomes } = yield* Fiber.join(fiber)
      assert.strictEqual(most, 2)
      assert.deepStrictEqual(log.lines, names)
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.payload), names.map((name) => [name]))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("failures are in order of registration, whichever ends first; cascades and stop hold too", () =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      const error = yield* Effect.flip(
        Epilogue.atomicWith({ concurrency: "unbounded" })(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.andThen(gate.await, Effect.fail(1)), { name: "slow" })
          yield* Epilogue.defer(
            Effect.andThen(
              Epilogue.defer(Effect.andThen(gate.open, Effect.fail(3)), { name: "cascade" }),
              Effect.fail(2)
            ),
            { name: "fast" }
          )
          yield* Epilogue.defer(gate.open)
        }))
      )
      assert(Epilogue.isEpilogueError(error))
      assert.deepStrictEqual(error.failures.map(({ intent }) => intent.name), ["slow", "fast", "cascade"])

      const stopped = yield* Effect.flip(
        Epilogue.atomicWith({ concurrency: 2, mode: "stop" })(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.andThen(Effect.yieldNow, Effect.void), { name: "a" })
          yield* Epilogue.defer(Effect.fail("no"), { name: "b" })
          yield* Epilogue.defer(Effect.void, { name: "c" })
        }))
      )
      assert(Epilogue.isEpilogueError(stopped))
      assert.deepStrictEqual(stopped.skipped.map(({ name }) => name), ["c"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("engines", () => {
  it.effect("an engine decides when the epilogue runs, and running it again does nothing", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const held: Array<Epilogue.Committed> = []
      const engine = Layer.succeed(
        Epilogue.Epilogue,
        Epilogue.make({ commit: (committed) => Effect.sync(() => void held.push(committed)) })
      )
      const report = yield* Epilogue.report(Epilogue.defer(log.add("a"), { name: "a" })).pipe(Effect.provide(engine))
      assert.deepStrictEqual(report.outcomes.map(({ _tag }) => _tag), ["Postponed"])
      assert.deepStrictEqual(log.lines, [])
      yield* held[0]!.run
      yield* held[0]!.run
      assert.deepStrictEqual(log.lines, ["a"])
      assert.deepStrictEqual(held[0]!.outcomes.map(({ _tag }) => _tag), ["Ran"])
    }))

  it.effect("while an epilogue runs, the intent that has begun is postponed like those that have not", () =>
    Effect.gen(function*() {
      const seen: Array<ReadonlyArray<string>> = []
      let epilogue: Epilogue.Committed | undefined
      const look = Effect.sync(() => void seen.push(epilogue!.outcomes.map(({ _tag }) => _tag)))
      yield* Epilogue.atomic(Effect.andThen(Epilogue.defer(look), Epilogue.defer(look))).pipe(
        Effect.provideService(
          Epilogue.Epilogue,
          Epilogue.make({
            commit: (committed) => {
              epilogue = committed
              return committed.run
            }
          })
        )
      )
      assert.deepStrictEqual(seen, [["Postponed", "Postponed"], ["Ran", "Postponed"]])
    }))

  it.effect("an engine that tells twice tells once", () =>
    Effect.gen(function*() {
      const told: Array<string> = []
      const engine = Epilogue.make({
        commit: (committed, tell) => Effect.andThen(committed.run, Effect.andThen(tell(committed), tell(committed))),
        onFailure: ({ intent }) => Effect.sync(() => void told.push(intent.name))
      })
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.fail("no"), { name: "a" })
        yield* Epilogue.defer(Effect.fail("no"), { name: "b" })
      }))).pipe(Effect.provideService(Epilogue.Epilogue, engine), Effect.provide(new CapturedLogs().layer))
      assert.deepStrictEqual(told, ["a", "b"])
    }))

  it.effect("an engine can be spread to change one thing about it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const statuses: Array<string> = []
      const engine = Epilogue.make({ onFailure: ({ intent }) => log.add(intent.name) })
      const observed = Epilogue.make({ ...engine, observe: (_, status) => void statuses.push(status) })
      yield* Effect.exit(
        Effect.forkChild(
          Epilogue.atomic(Epilogue.defer(
            Effect.withFiber((fiber) => {
              fiber.interruptUnsafe()
              return Effect.fail("no")
            }),
            { name: "a" }
          )).pipe(Effect.provideService(Epilogue.Epilogue, observed), Effect.provide(new CapturedLogs().layer))
        ).pipe(Effect.flatMap(Fiber.await))
      )
      assert.deepStrictEqual(log.lines, ["a"])
      assert.deepStrictEqual(statuses, ["deferred", "committed", "committed"])
    }))
})
