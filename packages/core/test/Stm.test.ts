import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Latch, TxRef } from "effect"
import { Epilogue, TestEpilogue } from "../src/index.ts"
import { defectOf, makeLog } from "./support.ts"

/** Conflicts with whatever transaction has read `ref`. */
const bump = (ref: TxRef.TxRef<number>) => TxRef.update(ref, (n) => n + 1)

/** A transaction that runs `body`, and then conflicts in its first attempts. */
const conflicting = <E, R>(times: number, body: (attempt: number) => Effect.Effect<void, E, R>) =>
  Effect.gen(function*() {
    const ref = yield* TxRef.make(0)
    let attempt = 0
    yield* Effect.tx(Effect.gen(function*() {
      attempt++
      yield* TxRef.get(ref)
      yield* body(attempt)
      // Another transaction, in a fiber that does not share this one.
      if (attempt <= times) {
        yield* Effect.flatMap(Effect.forkDetach(outside(bump(ref))), Fiber.join)
      }
    }))
    assert.strictEqual(attempt, times + 1)
  })

/** Without the transaction that the context has. */
const outside = <A, E>(effect: Effect.Effect<A, E>) => Effect.promise(() => Effect.runPromise(effect))

describe("STM", () => {
  it.effect("law 9: an intent counts only if the attempt that registered it commits", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(conflicting(2, (attempt) => Epilogue.defer(log.add(`attempt ${attempt}`))))
      assert.deepStrictEqual(log.lines, ["attempt 3"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: so does one of an attempt that asked to be retried", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const ref = yield* TxRef.make(0)
      const waiting = yield* Latch.make()
      const fiber = yield* Effect.forkChild(Epilogue.atomic(Effect.tx(Effect.gen(function*() {
        const value = yield* TxRef.get(ref)
        yield* Epilogue.defer(log.add(`saw ${value}`))
        if (value === 0) {
          yield* waiting.open
          return yield* Effect.txRetry
        }
      }))))
      yield* waiting.await
      yield* bump(ref)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines, ["saw 1"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: the intents of a transaction that fails and is caught are gone", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Effect.exit(Effect.tx(Effect.andThen(Epilogue.defer(log.add("a")), Effect.fail("no"))))
        yield* Effect.tx(Epilogue.defer(log.add("b")))
      }))
      assert.deepStrictEqual(log.lines, ["b"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a savepoint in an attempt that is rolled back leaves nothing", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(
        conflicting(1, (attempt) => Epilogue.savepoint(Epilogue.defer(log.add(`attempt ${attempt}`))))
      )
      assert.deepStrictEqual(log.lines, ["attempt 2"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: intents keep the order of their registration, in and out of transactions", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add("a"))
        yield* Effect.tx(Effect.andThen(Epilogue.defer(log.add("b")), Epilogue.defer(log.add("c"))))
        yield* Epilogue.defer(log.add("d"))
        yield* Effect.tx(Epilogue.defer(log.add("e")))
      }))
      assert.deepStrictEqual(log.lines, ["a", "b", "c", "d", "e"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: two long transactions that both register do not conflict because of it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const attempts = { a: 0, b: 0 }
      const gates = { a: yield* Latch.make(), b: yield* Latch.make() }
      const long = (name: "a" | "b") =>
        Effect.tx(Effect.gen(function*() {
          attempts[name]++
          yield* Epilogue.defer(log.add(name))
          yield* gates[name].open
          yield* gates[name === "a" ? "b" : "a"].await
          yield* Epilogue.defer(log.add(name))
        }))
      yield* Epilogue.atomic(Effect.all([long("a"), long("b")], { concurrency: "unbounded" }))
      assert.deepStrictEqual(attempts, { a: 1, b: 1 })
      assert.deepStrictEqual(log.lines.toSorted(), ["a", "a", "b", "b"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a transaction that is still open when its boundary ends cannot register any more", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      const fiber = yield* Epilogue.atomic(Effect.gen(function*() {
        const forked = yield* Effect.forkDetach(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(log.add("late"), { name: "late" })
          yield* registered.open
          yield* gate.await
        })))
        yield* registered.await
        return forked
      }))
      yield* gate.open
      const exit = yield* Fiber.await(fiber)
      assert.include(defectOf(exit), `intent "late" was registered into a boundary that has already ended`)
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: the same holds for a boundary that is discarded", () =>
    Effect.gen(function*() {
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      const forked = yield* Deferred.make<Fiber.Fiber<void>>()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.forkDetach(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.void, { name: "late" })
          yield* registered.open
          yield* gate.await
        })))
        yield* Deferred.succeed(forked, fiber)
        yield* registered.await
        return yield* Effect.fail("no")
      })))
      yield* gate.open
      const exit = yield* Effect.flatMap(Deferred.await(forked), Fiber.await)
      assert.include(defectOf(exit), `intent "late" was registered into a boundary that has already ended`)
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: and for an epilogue, where the intent that opened the transaction is over", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      let forked: Fiber.Fiber<void> | undefined
      yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
        forked = yield* Effect.forkDetach(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(log.add("late"), { name: "late" })
          yield* registered.open
          yield* gate.await
        })))
        yield* registered.await
      })))
      yield* gate.open
      assert.include(defectOf(yield* Fiber.await(forked!)), `intent "late" was registered into a boundary that has`)
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a transaction that commits while the boundary is open counts, also from another fiber", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(log.add("a"))
          yield* registered.open
          yield* gate.await
        })))
        yield* registered.await
        yield* gate.open
        yield* Fiber.join(fiber)
      }))
      assert.deepStrictEqual(log.lines, ["a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: transactions inside intents cascade, and only if they commit", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
        yield* conflicting(1, (attempt) => Epilogue.defer(log.add(`attempt ${attempt}`)))
        yield* Effect.exit(Effect.tx(Effect.andThen(Epilogue.defer(log.add("failed")), Effect.fail("no"))))
        yield* Epilogue.defer(log.add("last"))
      })))
      assert.deepStrictEqual(log.lines, ["attempt 2", "last"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: one that an intent leaves open, and that commits while a later intent runs, counts", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      let forked: Fiber.Fiber<void> | undefined
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.gen(function*() {
          forked = yield* Effect.forkDetach(Effect.tx(Effect.gen(function*() {
            yield* Epilogue.defer(log.add("late"))
            yield* registered.open
            yield* gate.await
          })))
          yield* registered.await
          yield* Epilogue.defer(Effect.andThen(gate.open, Effect.suspend(() => Fiber.join(forked!))))
        }))
      }))
      assert.deepStrictEqual(log.lines, ["late"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a transaction does not see the intents of another one that is still open", () =>
    Effect.gen(function*() {
      const names = Effect.map(Epilogue.intents, (intents) => intents.map(({ name }) => name))
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.void, { name: "plain" })
        const fiber = yield* Effect.forkChild(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.void, { name: "other" })
          yield* registered.open
          yield* gate.await
        })))
        yield* registered.await
        yield* Effect.tx(Effect.gen(function*() {
          assert.deepStrictEqual(yield* names, ["plain"])
          yield* Epilogue.defer(Effect.void, { name: "own" })
          assert.deepStrictEqual(yield* names, ["plain", "own"])
        }))
        yield* gate.open
        yield* Fiber.join(fiber)
      }))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a detached fiber that carries a finished transaction registers as any other", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.tx(Effect.forkDetach(Effect.gen(function*() {
          yield* gate.await
          yield* Epilogue.defer(log.add("a"))
          yield* Epilogue.atomicWith({ isolated: true })(Epilogue.defer(log.add("isolated")))
        })))
        yield* gate.open
        yield* Fiber.join(fiber)
      }))
      assert.deepStrictEqual(log.lines, ["isolated", "a"])

      const fiber = yield* Effect.tx(Effect.forkDetach(Effect.gen(function*() {
        yield* gate.await
        yield* Epilogue.deferOrRun(log.add("ran"))
        yield* Epilogue.atomic(Epilogue.defer(log.add("own")))
      })))
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines, ["isolated", "a", "ran", "own"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: an outermost boundary inside a transaction is a defect that says to turn them inside out", () =>
    Effect.gen(function*() {
      const log = makeLog()
      for (
        const program of [
          Effect.tx(Epilogue.atomic(log.add("core"))),
          Effect.tx(Effect.asVoid(Epilogue.report(log.add("core")))),
          Epilogue.atomic(Effect.tx(Epilogue.atomicWith({ isolated: true })(log.add("core"))))
        ]
      ) {
        assert.include(
          defectOf(yield* Effect.exit(program)),
          "Epilogue: A boundary was opened inside `Effect.tx`, whose body may run again. Turn them inside out: put the "
            + "`Effect.tx` inside the boundary."
        )
      }
      const run = yield* Effect.exit(Effect.tx(Epilogue.deferOrRun(log.add("run"), { name: "ping" })))
      assert.include(defectOf(run), `Intent "ping" would run at once inside \`Effect.tx\``)
      assert.include(defectOf(run), "Turn them inside out")
      const unnamed = yield* Effect.exit(Effect.tx(Epilogue.deferOrRun(log.add("run"))))
      assert.include(defectOf(unnamed), `Intent "anonymous" would run at once`)
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: the intents of a transaction show inside it, and outside only once it has committed", () =>
    Effect.gen(function*() {
      const names = Effect.map(Epilogue.intents, (intents) => intents.map(({ name }) => name))
      const registered = yield* Latch.make()
      const gate = yield* Latch.make()
      yield* Epilogue.atomic(Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.tx(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.void, { name: "a" })
          assert.deepStrictEqual(yield* names, ["a"])
          yield* registered.open
          yield* gate.await
        })))
        yield* registered.await
        assert.deepStrictEqual(yield* names, [])
        yield* gate.open
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(yield* names, ["a"])
      }))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("laws 9, 13: hooks of abandoned attempts are gone, those of the last attempt run once", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* conflicting(2, (attempt) => Epilogue.deferRollback(log.add(`attempt ${attempt}`)))
        return yield* Effect.fail("no")
      })))
      yield* Effect.exit(
        Epilogue.atomic(Effect.tx(Effect.andThen(Epilogue.deferRollback(log.add("failed")), Effect.fail("no"))))
      )
      assert.deepStrictEqual(log.lines, ["attempt 3", "failed"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: keyed intents of an abandoned attempt replace nothing", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add("a"), { key: "k" })
        yield* Effect.exit(Effect.tx(Effect.andThen(Epilogue.defer(log.add("b"), { key: "k" }), Effect.fail("no"))))
      }))
      assert.deepStrictEqual(log.lines, ["a"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 9: a test sees the intents of abandoned attempts as discarded", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(conflicting(1, (attempt) => Epilogue.defer(Effect.void, { name: `${attempt}` })))
      assert.deepStrictEqual(
        (yield* TestEpilogue.intents).map(({ name, status }) => [name, status]),
        [["1", "discarded"], ["2", "committed"]]
      )
    }).pipe(Effect.provide(TestEpilogue.layer)))
})
