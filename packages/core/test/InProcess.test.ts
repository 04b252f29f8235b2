import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, TestEpilogue } from "@epilogue/core"
import { Cause, Context, Effect, Exit, Fiber, Latch, Layer, Result, Schema, SchemaGetter, Scope, TxRef } from "effect"
import { TestClock } from "effect/testing"
import { CapturedLogs, defectOf, makeLog } from "./support.ts"

class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}
class Count extends Intent.make("Count", { payload: { n: Schema.Int } }) {}

/** An engine that handles both, and notes what it handles. */
const noting = (log: ReturnType<typeof makeLog>) =>
  Epilogue.layerWith(Greet, Count).pipe(
    Layer.provide([
      Greet.toLayer(({ name }) => log.add(`greet ${name}`)),
      Count.toLayer(({ n }) => log.add(`count ${n}`))
    ])
  )

describe("layerWith", () => {
  it.effect("handles typed intents in their place among the closures, after the core", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(log.add, "first")
        yield* Greet.defer({ name: "Ada" })
        yield* Epilogue.defer(log.add, "second")
        yield* Count.defer({ n: 1 })
        yield* Greet.defer({ name: "Bob" })
        yield* log.add("core")
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(log.lines, ["core", "first", "greet Ada", "second", "count 1", "greet Bob"])
    }))

  it.effect("in a report, they stand among the closures in order of registration, with their payloads", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const report = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.succeed("old"), { name: "invalidate", key: "k" })
        yield* Greet.defer({ name: "Ada" })
        yield* Epilogue.defer(Effect.succeed("new"), { name: "invalidate", key: "k" })
        yield* Count.defer({ n: 1 })
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(report.outcomes.map(({ _tag, intent }) => [_tag, intent.name, intent.payload]), [
        ["Ran", "Greet", { name: "Ada" }],
        ["Ran", "invalidate", undefined],
        ["Ran", "Count", { n: 1 }]
      ])
    }))

  it.effect("the handler gets what its payload is after it was encoded and decoded", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const Trimmed = Schema.String.pipe(
        Schema.decodeTo(Schema.String, {
          decode: SchemaGetter.transform((text) => text.trim()),
          encode: SchemaGetter.passthrough()
        })
      )
      class Note extends Intent.make("Note", { payload: { text: Trimmed, at: Schema.Date } }) {}
      const at = new Date(5)
      const report = yield* Epilogue.report(Note.defer({ text: "  a  ", at })).pipe(
        Effect.provide(
          Epilogue.layerWith(Note).pipe(Layer.provide(Note.toLayer((payload) => Effect.sync(() => seen.push(payload)))))
        )
      )
      assert.deepStrictEqual(seen, [{ text: "a", at }])
      assert.notStrictEqual((seen[0] as { at: Date }).at, at)
      assert.deepStrictEqual(report.outcomes[0]?.intent.payload, { text: "a", at })
    }))

  it.effect("a payload that its schema encodes and does not decode is a defect where it is deferred", () =>
    Effect.gen(function*() {
      const OneWay = Schema.String.pipe(
        Schema.decodeTo(Schema.String, {
          decode: SchemaGetter.forbidden(() => "it can't be read"),
          encode: SchemaGetter.passthrough()
        })
      )
      class Note extends Intent.make("Note", { payload: OneWay }) {}
      const exit = yield* Effect.exit(Effect.provide(
        Epilogue.atomic(Note.defer("a")),
        Epilogue.layerWith(Note).pipe(Layer.provide(Note.toLayer(() => Effect.void)))
      ))
      assert.include(
        defectOf(exit),
        `Epilogue: intent "Note" can't be deferred here: what its schema encodes, it does not decode`
      )
    }))

  it.effect("a delivery has the id that defer answered with, and is the first attempt", () =>
    Effect.gen(function*() {
      const deliveries: Array<Intent.Delivery<{ readonly name: string }>> = []
      yield* TestClock.setTime(1_000)
      const deferred = yield* Epilogue.atomic(Greet.defer({ name: "Ada" })).pipe(
        Effect.provide(
          Epilogue.layerWith(Greet).pipe(
            Layer.provide(Greet.toLayer((_, delivery) => Effect.sync(() => deliveries.push(delivery))))
          )
        )
      )
      assert.deepStrictEqual(
        deliveries.map(({ attempt, crashes, enqueuedAt, id, payload }) => [
          id,
          payload,
          attempt,
          crashes,
          enqueuedAt.epochMilliseconds
        ]),
        [[deferred, { name: "Ada" }, 1, 0, 1_000]]
      )
    }))

  it.effect("that a handler fails is a failure of the epilogue, and the rest still runs", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const error = yield* Effect.flip(
        Epilogue.atomic(Effect.gen(function*() {
          yield* Greet.defer({ name: "Ada" })
          yield* Epilogue.defer(log.add("after"))
          return 42
        })).pipe(
          Effect.provide(Epilogue.layerWith(Greet).pipe(Layer.provide(Greet.toLayer(() => Effect.fail("no")))))
        )
      )
      assert(error._tag === "EpilogueError")
      assert.strictEqual(error.value, 42)
      assert.deepStrictEqual(error.failures, [
        { intent: { name: "Greet", payload: { name: "Ada" } }, cause: Cause.fail("no") }
      ])
      assert.deepStrictEqual(log.lines, ["after"])
    }))

  it.effect("in a report, the failure of a handler is the exit of its intent", () =>
    Effect.gen(function*() {
      const report = yield* Epilogue.report(Greet.defer({ name: "Ada" })).pipe(
        Effect.provide(
          Epilogue.layerWith(Greet).pipe(
            Layer.provide(Greet.toLayer((): Effect.Effect<void> => {
              throw new Error("thrown")
            }))
          )
        )
      )
      assert(report.outcomes[0]?._tag === "Ran")
      assert.include(defectOf(report.outcomes[0].exit), "thrown")
    }))

  it.effect("to reject and to snooze are failures, and the error of a snooze says what it takes", () =>
    Effect.gen(function*() {
      const Handlers = Layer.mergeAll(
        Greet.toLayer(() => Intent.reject("unwanted")),
        Count.toLayer(() => Intent.snooze("1 hour"))
      )
      const error = yield* Effect.flip(
        Epilogue.atomic(Effect.andThen(Greet.defer({ name: "Ada" }), Count.defer({ n: 1 }))).pipe(
          Effect.provide(Epilogue.layerWith(Greet, Count).pipe(Layer.provide(Handlers)))
        )
      )
      assert.include(error.message, `"Greet" (The handler rejected the intent: unwanted)`)
      assert.include(error.message, `"Count" (The handler wants the intent again in 1h. That takes a store: use `)
    }))

  it.effect("its timeout interrupts the handler, and is a failure", () =>
    Effect.gen(function*() {
      const log = makeLog()
      class Slow extends Intent.make("Slow", { payload: {}, timeout: "5 seconds" }) {}
      const fiber = yield* Effect.forkChild(
        Epilogue.report(Effect.andThen(Slow.defer({}), Epilogue.defer(log.add("after")))).pipe(
          Effect.provide(
            Epilogue.layerWith(Slow).pipe(
              Layer.provide(Slow.toLayer(() => Effect.onInterrupt(Effect.never, () => log.add("interrupted"))))
            )
          )
        ),
        { startImmediately: true }
      )
      yield* TestClock.adjust("4999 millis")
      assert.deepStrictEqual(log.lines, [])
      yield* TestClock.adjust("1 millis")
      const { outcomes } = yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines.toSorted(), ["after", "interrupted"])
      assert(outcomes[0]?._tag === "Ran" && Exit.isFailure(outcomes[0].exit))
      assert.isTrue(Cause.isTimeoutError(Cause.squash(outcomes[0].exit.cause)))
    }))

  it.effect("an intent that is to wait is refused, with what to use", () =>
    Effect.gen(function*() {
      const log = makeLog()
      for (const options of [{ delay: "1 second" }, { runAt: 0 }] as const) {
        const exit = yield* Effect.exit(
          Effect.provide(Epilogue.atomic(Greet.defer({ name: "Ada" }, options)), noting(log))
        )
        assert.strictEqual(
          defectOf(exit),
          `Error: Epilogue: intent "Greet" can't be deferred here: this engine handles it at the commit, and it is to `
            + "wait. Use `Outbox.layer`, in memory over `OutboxStore.layerMemory`."
        )
      }
      assert.deepStrictEqual(log.lines, [])
    }))

  it.effect("an intent that it does not name is refused, with what to do", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(Effect.provide(
        Epilogue.atomic(Count.defer({ n: 1 })),
        Epilogue.layerWith(Greet).pipe(Layer.provide(Greet.toLayer(() => Effect.void)))
      ))
      assert.strictEqual(
        defectOf(exit),
        `Error: Epilogue: intent "Count" can't be deferred here: this engine has no handler for it. Name it in `
          + "`Epilogue.layerWith`, or store it with `Outbox.layer`."
      )
    }))

  it.effect("keys and priorities change nothing: each intent is handled once", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Greet.defer({ name: "a" }, { idempotencyKey: "k" })
        yield* Greet.defer({ name: "b" }, { idempotencyKey: "k", priority: 5 })
        yield* Greet.defer({ name: "c" }, { partitionKey: "p" })
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(log.lines, ["greet a", "greet b", "greet c"])
    }))

  it.effect("a transactional handler is refused when the layer is built", () =>
    Effect.gen(function*() {
      const Handler = Greet.toLayer(() => Effect.void, { transactional: true })
      for (
        const engine of [Epilogue.layerWith(Greet), Epilogue.layerBackground({ intents: [Greet] })]
      ) {
        const exit = yield* Effect.exit(Effect.scoped(Layer.build(engine.pipe(Layer.provide(Handler)))))
        assert.strictEqual(
          defectOf(exit),
          `Error: Epilogue: the handler of "Greet" has the option \`transactional\`, which takes a store. Use \`Outbox.layer\` and an `
            + "`OutboxWorker`."
        )
      }
    }))

  for (
    const [name, limits] of Object.entries(
      {
        concurrency: { concurrency: 1 },
        rateLimit: { rateLimit: { limit: 1, window: "1 second" } }
      } as const
    )
  ) {
    it.effect(`a handler with a ${name} over all workers is refused when the layer is built`, () =>
      Effect.gen(function*() {
        const batched = Greet.toLayerBatched(() => Effect.succeed([]), { maxSize: 1, maxWait: "1 second", ...limits })
        for (const handler of [Greet.toLayer(() => Effect.void, limits), batched]) {
          for (const engine of [Epilogue.layerWith(Greet), Epilogue.layerBackground({ intents: [Greet] })]) {
            const exit = yield* Effect.exit(Effect.scoped(Layer.build(engine.pipe(Layer.provide(handler)))))
            assert.strictEqual(
              defectOf(exit),
              `Error: Epilogue: the handler of "Greet" has the option \`${name}\`, which takes a store. Use `
                + "`Outbox.layer` and an `OutboxWorker`."
            )
          }
        }
      }))
  }

  it.effect("two intents with one tag are refused when the layer is built", () =>
    Effect.gen(function*() {
      class Again extends Intent.make("Greet", { payload: {} }) {}
      const exit = yield* Effect.exit(Effect.scoped(
        Layer.build(Epilogue.layerWith(Greet, Again).pipe(Layer.provide(Greet.toLayer(() => Effect.void))))
      ))
      assert.strictEqual(
        defectOf(exit),
        `Error: Epilogue: the engine names two intents with the tag "Greet". Give each its own.`
      )
    }))

  it.effect("a handler has the services that its layer was given, and not those of who deferred", () =>
    Effect.gen(function*() {
      class Mailer extends Context.Service<Mailer, string>()("Mailer") {}
      const log = makeLog()
      const Handler = Greet.toLayer(Effect.fnUntraced(function*({ name }) {
        yield* log.add(`${yield* Mailer}: ${name}`)
      }))
      yield* Epilogue.atomic(Effect.provideService(Greet.defer({ name: "Ada" }), Mailer, "of the caller")).pipe(
        Effect.provide(
          Epilogue.layerWith(Greet).pipe(
            Layer.provide(Handler),
            Layer.provide(Layer.succeed(Mailer, "of the handler"))
          )
        )
      )
      assert.deepStrictEqual(log.lines, ["of the handler: Ada"])
    }))

  it.effect("a batched handler gets batches of one", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<string>> = []
      const Handler = Greet.toLayerBatched((deliveries) =>
        Effect.sync(() => {
          batches.push(deliveries.map(({ payload }) => payload.name))
          return deliveries.map(({ payload }) => payload.name === "Bob" ? Result.fail("no") : Exit.succeed(1))
        }), { maxSize: 10, maxWait: "1 hour" })
      const { outcomes } = yield* Epilogue.report(
        Effect.forEach(["Ada", "Bob", "Cleo"], (name) => Greet.defer({ name }))
      ).pipe(Effect.provide(Epilogue.layerWith(Greet).pipe(Layer.provide(Handler))))
      assert.deepStrictEqual(batches, [["Ada"], ["Bob"], ["Cleo"]])
      assert.deepStrictEqual(
        outcomes.map((outcome) => outcome._tag === "Ran" && outcome.exit),
        [Exit.succeed(1), Exit.fail("no"), Exit.succeed(1)]
      )
    }))

  it.effect("a typed intent that a closure defers while it runs joins the end of the epilogue", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.report(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.andThen(Greet.defer({ name: "Ada" }), Effect.fail("no")), { name: "closure" })
        yield* Epilogue.defer(log.add, "second")
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(log.lines, ["second", "greet Ada"])
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["closure", "add", "Greet"])
    }))

  it.effect("what a handler defers while it runs joins the end of the epilogue", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const Handler = Greet.toLayer(({ name }) =>
        Effect.andThen(log.add(`greet ${name}`), Epilogue.deferOrRun(log.add(`after ${name}`)))
      )
      yield* Epilogue.atomic(Effect.andThen(Greet.defer({ name: "Ada" }), Greet.defer({ name: "Bob" }))).pipe(
        Effect.provide(Epilogue.layerWith(Greet).pipe(Layer.provide(Handler)))
      )
      assert.deepStrictEqual(log.lines, ["greet Ada", "greet Bob", "after Ada", "after Bob"])
    }))

  it.effect("a failure skips the typed intents after it in mode stop", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { outcomes } = yield* Epilogue.reportWith({ mode: "stop" })(Effect.gen(function*() {
        yield* Greet.defer({ name: "Ada" })
        yield* Epilogue.defer(Effect.fail("no"))
        yield* Greet.defer({ name: "Bob" })
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Ran", "Ran", "Skipped"])
      assert.deepStrictEqual(log.lines, ["greet Ada"])
    }))
})

describe("typed intents and boundaries", () => {
  it.effect("law 2: a discarded boundary runs none", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const exit = yield* Effect.exit(Effect.provide(
        Epilogue.atomic(Effect.andThen(Greet.defer({ name: "Ada" }), Effect.fail("no"))),
        noting(log)
      ))
      assert.deepStrictEqual(exit, Exit.fail("no"))
      assert.deepStrictEqual(log.lines, [])
    }))

  it.effect("law 4: a savepoint that is discarded takes its own with it, and an inner atomic too", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const greet = (name: string) => Greet.defer({ name })
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* greet("a")
        yield* Effect.exit(Epilogue.savepoint(Effect.andThen(greet("b"), Effect.fail("no"))))
        yield* Epilogue.savepoint(Effect.andThen(greet("c"), Epilogue.savepoint(greet("d"))))
        yield* Effect.exit(Epilogue.atomic(Effect.andThen(greet("e"), Effect.fail("no"))))
        yield* Epilogue.atomic(greet("f"))
        yield* greet("g")
        assert.deepStrictEqual(log.lines, [])
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(log.lines, ["a", "c", "d", "f", "g"].map((name) => `greet ${name}`))
    }))

  it.effect("law 9: one counts only if the attempt of Effect.tx that registered it commits", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const ref = yield* TxRef.make(0)
      const waiting = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.report(Effect.tx(Effect.gen(function*() {
          const n = yield* TxRef.get(ref)
          const id = yield* Count.defer({ n })
          if (n > 0) return id
          yield* waiting.open
          return yield* Effect.txRetry
        }))).pipe(Effect.provide(noting(log)))
      )
      yield* waiting.await
      yield* TxRef.set(ref, 1)
      const { outcomes } = yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines, ["count 1"])
      assert.strictEqual(outcomes.length, 1)
    }))

  it.effect("law 12: retries leave those of the attempt that succeeded, and races those of the winner", () =>
    Effect.gen(function*() {
      const log = makeLog()
      let n = 0
      const step = Effect.suspend(() =>
        Effect.andThen(Count.defer({ n: ++n }), n < 3 ? Effect.fail("no") : Effect.void)
      )
      const gate = yield* Latch.make()
      const loser = Effect.andThen(Greet.defer({ name: "loser" }), Effect.andThen(gate.open, Effect.never))
      const winner = Effect.andThen(gate.await, Greet.defer({ name: "winner" }))
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Effect.retry(Epilogue.savepoint(step), { times: 5 })
        yield* Effect.raceFirst(Epilogue.savepoint(loser), Epilogue.savepoint(winner))
      })).pipe(Effect.provide(noting(log)))
      assert.deepStrictEqual(log.lines, ["count 3", "greet winner"])
    }))
})

describe("layerBackground", () => {
  it.effect("handles the typed intents that it names, behind the commit, and drains them", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const logs = new CapturedLogs()
      const gate = yield* Latch.make()
      const failures: Array<Epilogue.Failure> = []
      const scope = yield* Scope.make()
      const Handlers = Layer.merge(
        Greet.toLayer(({ name }) => Effect.andThen(gate.await, log.add(`greet ${name}`))),
        Count.toLayer(() => Effect.fail("no"))
      )
      const context = yield* Layer.buildWithScope(
        Epilogue.layerBackground({
          intents: [Greet, Count],
          onFailure: (failure) => Effect.sync(() => void failures.push(failure))
        }).pipe(Layer.provide(Handlers), Layer.provide(logs.layer)),
        scope
      )
      const { outcomes } = yield* Epilogue.report(
        Effect.andThen(Greet.defer({ name: "Ada" }), Count.defer({ n: 1 }))
      ).pipe(Effect.provideContext(context), Effect.provide(logs.layer))
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Postponed", "Postponed"])
      assert.deepStrictEqual(log.lines, [])
      yield* gate.open
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(log.lines, ["greet Ada"])
      assert.deepStrictEqual(failures, [{
        intent: { name: "Count", payload: { n: 1 } },
        cause: Cause.fail("no")
      }])
    }))
})

describe("TestEpilogue", () => {
  const deferring = Effect.gen(function*() {
    yield* Greet.defer({ name: "before" })
    yield* Epilogue.atomic(Effect.gen(function*() {
      yield* Greet.defer({ name: "a" })
      yield* Count.defer({ n: 1 })
      yield* Epilogue.defer(Effect.succeed(1), { name: "closure" })
      yield* Effect.exit(Epilogue.savepoint(Effect.andThen(Greet.defer({ name: "b" }), Effect.fail("no"))))
      yield* Epilogue.savepoint(Greet.defer({ name: "c" }))
    }))
    yield* Effect.exit(Epilogue.atomic(Effect.andThen(Greet.defer({ name: "d" }), Effect.fail("no"))))
  })

  it.effect("collects typed intents beside closures, with what became of them", () =>
    Effect.gen(function*() {
      yield* deferring
      assert.deepStrictEqual(yield* TestEpilogue.intents, [
        { name: "Greet", payload: { name: "before" }, status: "deferred" },
        { name: "Greet", payload: { name: "a" }, status: "committed" },
        { name: "Count", payload: { n: 1 }, status: "committed" },
        { name: "closure", payload: undefined, status: "committed" },
        { name: "Greet", payload: { name: "b" }, status: "discarded" },
        { name: "Greet", payload: { name: "c" }, status: "committed" },
        { name: "Greet", payload: { name: "d" }, status: "discarded" }
      ])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("payloads answers with the committed ones of one intent, in order", () =>
    Effect.gen(function*() {
      yield* deferring
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [{ name: "a" }, { name: "c" }])
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Count), [{ n: 1 }])
      class Other extends Intent.make("Other", { payload: {} }) {}
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Other), [])
      yield* TestEpilogue.reset
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("a closure that is named as an intent is none of its payloads", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Epilogue.defer(Effect.void, { name: "Greet", payload: { name: "closure" } }))
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("payloads are what they are after they were encoded and decoded", () =>
    Effect.gen(function*() {
      const person = { name: "Ada", password: "secret" }
      yield* Epilogue.atomic(Greet.defer(person))
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [{ name: "Ada" }])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("run answers that typed intents are enqueued, under the id that defer answered with", () =>
    Effect.gen(function*() {
      const id = yield* Epilogue.atomic(
        Effect.tap(Greet.defer({ name: "Ada" }), Epilogue.defer(Effect.succeed(1), { name: "closure" }))
      )
      const outcomes = yield* TestEpilogue.run
      assert.deepStrictEqual(outcomes, [
        { _tag: "Enqueued", intent: { name: "Greet", payload: { name: "Ada" } }, id },
        { _tag: "Ran", intent: { name: "closure", payload: undefined }, exit: Exit.succeed(1) }
      ])
      assert.deepStrictEqual(yield* TestEpilogue.run, [])
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [{ name: "Ada" }])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("a typed intent that a closure defers is collected when that runs", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Epilogue.defer(Greet.defer({ name: "Ada" }), { name: "closure" }))
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [])
      const outcomes = yield* TestEpilogue.run
      assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Ran", "Enqueued"])
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [{ name: "Ada" }])
    }).pipe(Effect.provide(TestEpilogue.layer)))

  it.effect("takes delays and keys, since it stands for any engine", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Greet.defer({ name: "Ada" }, { delay: "1 hour", partitionKey: "p" }))
      assert.deepStrictEqual(yield* TestEpilogue.payloads(Greet), [{ name: "Ada" }])
    }).pipe(Effect.provide(TestEpilogue.layer)))
})
