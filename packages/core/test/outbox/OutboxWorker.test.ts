import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Context, Deferred, Effect, Exit, Layer, Result, Schedule, Schema, SchemaGetter } from "effect"
import { TestClock } from "effect/testing"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, Greet, makeOutbox, now, settled, storeWith } from "./support.ts"

type Greeting = typeof Greet.payloadSchema.Type

const greeter = (
  handler: (payload: Greeting, delivery: Intent.Delivery<Greeting>) => Effect.Effect<unknown, unknown>
) => OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide(Greet.toLayer(handler)))

describe("a delivery", () => {
  it.effect("what is deferred in a boundary is delivered after it, without a poll", () =>
    Effect.gen(function*() {
      const greeted = yield* Deferred.make<string>()
      const { isEmpty, provide, start } = yield* makeOutbox()
      const { close } = yield* start(greeter(({ name }) => Deferred.succeed(greeted, name)))
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      // No time passes under the test's clock, so there was no poll.
      assert.strictEqual(yield* Deferred.await(greeted), "Ada")
      yield* close
      yield* isEmpty
    }))

  it.effect("what was there before the worker is delivered as well", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      yield* provide(Epilogue.atomic(Effect.forEach(["a", "b"], (name) => Greet.defer({ name }))))
      yield* start(greeter(({ name }) => log.add(name)))
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }))

  it.effect("has one id over all attempts, which are counted, and the time of its commit", () =>
    Effect.gen(function*() {
      const deliveries: Array<Intent.Delivery<{ readonly name: string }>> = []
      const { provide, start } = yield* makeOutbox()
      yield* start(
        greeter((_, delivery) => Effect.suspend(() => deliveries.push(delivery) < 3 ? Effect.fail("no") : Effect.void))
      )
      yield* TestClock.adjust("10 seconds")
      const deferred = yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("1 minute")
      assert.deepStrictEqual(
        deliveries.map(({ attempt, crashes, enqueuedAt, id, payload }) => ({
          attempt,
          crashes,
          id,
          payload,
          at: enqueuedAt.epochMilliseconds
        })),
        [1, 2, 3].map((attempt) => ({ attempt, crashes: 0, id: deferred, payload: { name: "Ada" }, at: 10_000 }))
      )
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a handler has the services that its layer was given", () =>
    Effect.gen(function*() {
      class Mailer extends Context.Service<Mailer, string>()("Mailer") {}
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      const Handler = Greet.toLayer(Effect.fnUntraced(function*({ name }) {
        yield* log.add(`${yield* Mailer}: ${name}`)
        assert.isFalse(yield* Epilogue.isOpen)
      })).pipe(Layer.provide(Layer.succeed(Mailer, "of the handler")))
      yield* start(OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide(Handler)))
      yield* provide(Epilogue.atomic(Effect.provideService(Greet.defer({ name: "Ada" }), Mailer, "of the caller")))
      yield* settled
      assert.deepStrictEqual(log.lines, ["of the handler: Ada"])
    }))

  it.effect("a handler defers more with a boundary of its own", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      class First extends Intent.make("First", { payload: {} }) {}
      const Handlers = Layer.merge(
        First.toLayer(() => provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))),
        Greet.toLayer(({ name }) => log.add(name))
      )
      yield* start(OutboxWorker.layer({ intents: [First, Greet], concurrency: 1 }).pipe(Layer.provide(Handlers)))
      yield* provide(Epilogue.atomic(First.defer({})))
      yield* settled
      assert.deepStrictEqual(log.lines, ["Ada"])
    }))

  it.effect("each intent is delivered to the handler of its tag", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      class Count extends Intent.make("Count", { payload: { n: Schema.Int } }) {}
      const Handlers = Layer.merge(
        Greet.toLayer(({ name }) => log.add(`greet ${name}`)),
        Count.toLayer(({ n }) => log.add(`count ${n}`))
      )
      yield* start(OutboxWorker.layer({ intents: [Greet, Count], concurrency: 1 }).pipe(Layer.provide(Handlers)))
      yield* provide(Epilogue.atomic(Effect.all([Greet.defer({ name: "Ada" }), Count.defer({ n: 1 })])))
      yield* settled
      assert.sameMembers(log.lines, ["greet Ada", "count 1"])
    }))

  it.effect("a delayed intent is delivered when it is due, and not before", () =>
    Effect.gen(function*() {
      const delivered: Array<readonly [string, number]> = []
      const { depth, provide, start } = yield* makeOutbox()
      yield* start(greeter(({ name }) => Effect.map(now, (at) => delivered.push([name, at]))))
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        yield* Greet.defer({ name: "in 90 seconds" }, { delay: "90 seconds" })
        yield* Greet.defer({ name: "at 10 seconds" }, { runAt: 10_000 })
        yield* Greet.defer({ name: "long ago" }, { runAt: -5_000 })
        yield* Greet.defer({ name: "now" })
      })))
      yield* elapse("9999 millis")
      assert.deepStrictEqual(delivered, [["long ago", 0], ["now", 0]])
      assert.strictEqual((yield* depth()).delayed, 2)
      yield* elapse("10 minutes")
      assert.deepStrictEqual(delivered.slice(2), [["at 10 seconds", 10_000], ["in 90 seconds", 90_000]])
    }))

  it.effect("within its tag, a higher priority is delivered first", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        yield* Greet.defer({ name: "low" }, { priority: -1 })
        yield* Greet.defer({ name: "first" })
        yield* Greet.defer({ name: "second" })
        yield* Greet.defer({ name: "high" }, { priority: 1 })
      })))
      yield* start(
        OutboxWorker.layer({ intents: [Greet], concurrency: 1 }).pipe(
          Layer.provide(Greet.toLayer(({ name }) => log.add(name)))
        )
      )
      assert.deepStrictEqual(log.lines, ["high", "first", "second", "low"])
    }))

  it.effect("those of one partition key come one at a time, in order, and a failure holds up the others", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      class Step extends Intent.make("Step", {
        payload: { order: Schema.String, n: Schema.Int },
        partitionKey: ({ order }) => order,
        retry: Schedule.spaced("10 seconds")
      }) {}
      const { provide, start } = yield* makeOutbox()
      const handle = Effect.fnUntraced(function*({ n, order }: typeof Step.payloadSchema.Type, attempt: number) {
        lines.push(`${order}${n} begins at ${yield* now}`)
        yield* Effect.sleep("1 second")
        if (order === "a" && n === 1 && attempt === 1) return yield* Effect.fail("no")
      })
      yield* start(
        OutboxWorker.layer({ intents: [Step] }).pipe(
          Layer.provide(Step.toLayer((payload, { attempt }) => handle(payload, attempt)))
        )
      )
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        for (const [order, n] of [["a", 1], ["a", 2], ["b", 1], ["a", 3], ["b", 2]] as const) {
          yield* Step.defer({ order, n })
        }
      })))
      yield* elapse("1 minute")
      assert.deepStrictEqual(lines, [
        "a1 begins at 0",
        "b1 begins at 0",
        "b2 begins at 1000",
        "a1 begins at 11000",
        "a2 begins at 12000",
        "a3 begins at 13000"
      ])
    }).pipe(Effect.provide(new CapturedLogs().layer)))
})

describe("a delivery that fails", () => {
  /** When the deliveries of an intent were made that always fails, and what is left of it after an hour. */
  const attemptsOf = Effect.fnUntraced(function*(
    options: Omit<Parameters<typeof Intent.make>[1], "payload">,
    handler: (attempt: number) => Effect.Effect<unknown, unknown> = () => Effect.fail("no")
  ) {
    const times: Array<number> = []
    class Failing extends Intent.make("Failing", { payload: {}, ...options }) {}
    const { depth, provide, start } = yield* makeOutbox()
    yield* start(
      OutboxWorker.layer({ intents: [Failing] }).pipe(
        Layer.provide(
          Failing.toLayer((_, { attempt }) => Effect.andThen(Effect.map(now, (at) => times.push(at)), handler(attempt)))
        )
      )
    )
    yield* provide(Epilogue.atomic(Failing.defer({})))
    yield* elapse("1 hour")
    return { times, ...(yield* depth("Failing")) }
  })

  it.effect("is made again after a second, and then after twice as long each time, up to 5 minutes", () =>
    Effect.gen(function*() {
      const { dead, times } = yield* attemptsOf({ maxAttempts: 12 })
      const delays = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
      assert.deepStrictEqual(times.map((time, index) => time - (times[index - 1] ?? 0)), [
        0,
        ...delays.map((seconds) => seconds * 1000)
      ])
      assert.strictEqual(dead, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is a dead letter after 10 attempts, unless it says otherwise", () =>
    Effect.gen(function*() {
      const { dead, delayed, times, waiting } = yield* attemptsOf({})
      assert.strictEqual(times.length, 10)
      assert.deepStrictEqual({ dead, delayed, waiting }, { dead: 1, delayed: 0, waiting: 0 })
      assert.strictEqual((yield* attemptsOf({ maxAttempts: 1 })).times.length, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is made again as its schedule says, which goes on where it was", () =>
    Effect.gen(function*() {
      const inputs: Array<number> = []
      const retry = Schedule.spaced("1 minute").pipe(
        Schedule.setInputType<number>(),
        Schedule.modifyDelay(({ duration, input }) => {
          inputs.push(input)
          return Effect.succeed(input === 2 ? "10 minutes" : duration)
        })
      )
      const { times } = yield* attemptsOf({ retry, maxAttempts: 4 })
      assert.deepStrictEqual(times, [0, 60_000, 660_000, 720_000])
      // It is stepped up to where it was for each failure, since no worker remembers it.
      assert.deepStrictEqual(inputs, [1, 1, 2, 1, 2, 3])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is a dead letter when its schedule is done", () =>
    Effect.gen(function*() {
      const { dead, times } = yield* attemptsOf({ retry: Schedule.recurs(2) })
      assert.strictEqual(times.length, 3)
      assert.strictEqual(dead, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is a dead letter when its schedule has gone on for as long as it says", () =>
    Effect.gen(function*() {
      const retry = Schedule.max([Schedule.spaced("10 seconds"), Schedule.during("25 seconds")])
      const { dead, times } = yield* attemptsOf({ retry })
      assert.deepStrictEqual(times, [0, 10_000, 20_000, 30_000])
      assert.strictEqual(dead, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is a dead letter at once if the handler rejects it", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const { dead, times } = yield* Effect.provide(attemptsOf({}, () => Intent.reject("unwanted")), logs.layer)
      assert.deepStrictEqual(times, [0])
      assert.strictEqual(dead, 1)
      assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
        ["Error", `Intent "Failing" is a dead letter: its handler rejected it`]
      ])
    }))

  it.effect("a snooze puts it off for as long as it says, and is not counted", () =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      const { dead, times } = yield* attemptsOf(
        { maxAttempts: 2, retry: Schedule.spaced("1 second") },
        (attempt) =>
          Effect.suspend((): Effect.Effect<never, unknown> =>
            attempts.push(attempt) <= 3 ? Intent.snooze("1 minute") : Effect.fail("no")
          )
      )
      assert.deepStrictEqual(times, [0, 60_000, 120_000, 180_000, 181_000])
      assert.deepStrictEqual(attempts, [1, 1, 1, 1, 2])
      assert.strictEqual(dead, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("its timeout interrupts the handler, and it is tried again", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { dead, times } = yield* attemptsOf(
        { timeout: "5 seconds", retry: Schedule.spaced("1 second"), maxAttempts: 2 },
        () => Effect.onInterrupt(Effect.never, () => log.add("interrupted"))
      )
      assert.deepStrictEqual(times, [0, 6_000])
      assert.deepStrictEqual(log.lines, ["interrupted", "interrupted"])
      assert.strictEqual(dead, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  const endings: Record<string, () => Effect.Effect<unknown, unknown>> = {
    "dies": () => Effect.die(new Error("no")),
    "throws": () => {
      throw new Error("no")
    },
    "is interrupted by itself": () => Effect.interrupt,
    "fails with a number": () => Effect.fail(10n),
    "fails with nothing": () => Effect.fail(undefined),
    "dies of a symbol": () => Effect.die(Symbol("no")),
    "dies of an object without a prototype": () => Effect.die(Object.create(null)),
    "fails with what throws when it is encoded": () =>
      Effect.fail({
        toJSON() {
          throw new Error("no")
        }
      }),
    "dies of an error without a message": () =>
      Effect.die(Object.defineProperty(new Error("no"), "message", {
        get() {
          throw new Error("no")
        }
      }))
  }
  for (const [name, ending] of Object.entries(endings)) {
    it.effect(`one whose handler ${name} is tried again, and the worker goes on`, () =>
      Effect.gen(function*() {
        const attempts: Array<number> = []
        const { provide, start } = yield* makeOutbox()
        const { close } = yield* start(
          OutboxWorker.layer({ intents: [Greet], concurrency: 1 }).pipe(
            Layer.provide(Greet.toLayer(({ name: greeted }, { attempt }) => {
              attempts.push(attempt)
              return greeted === "fine" || attempt > 1 ? Effect.void : ending()
            }))
          )
        )
        yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
        yield* elapse("1 minute")
        yield* provide(Epilogue.atomic(Greet.defer({ name: "fine" })))
        yield* settled
        assert.deepStrictEqual(attempts, [1, 2, 1])
        yield* close
      }).pipe(Effect.provide(new CapturedLogs().layer)))
  }

  it.effect("one whose schedule dies is tried again in a minute, up to maxAttempts", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const retry = Schedule.spaced("1 second").pipe(
        Schedule.while((): boolean => {
          throw new Error("no")
        })
      )
      const { dead, times } = yield* Effect.provide(attemptsOf({ retry, maxAttempts: 3 }), logs.layer)
      assert.deepStrictEqual(times, [0, 60_000, 120_000])
      assert.strictEqual(dead, 1)
      assert.include(
        logs.entries.map(({ message }) => message),
        "The handler failed, and then its failure could not be dealt with"
      )
    }))

  it.effect("is logged with its id, and how it goes on", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      yield* Effect.provide(attemptsOf({ maxAttempts: 2 }), logs.layer)
      assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
        ["Warn", `Intent "Failing" failed at attempt 1 of 2; it is tried again in 1s`],
        ["Error", `Intent "Failing" is a dead letter: no attempts are left`]
      ])
      for (const { annotations } of logs.entries) {
        assert.strictEqual(annotations["epilogue.intent"], "Failing")
        assert.match(String(annotations["epilogue.id"]), /^[\da-f-]{36}$/)
      }
    }))

  it.effect("a dead letter of a partition key lets those behind it through", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox()
      yield* start(
        greeter(({ name }) => Effect.andThen(log.add(name), name === "a" ? Intent.reject("no") : Effect.void))
      )
      yield* provide(
        Epilogue.atomic(Effect.forEach(["a", "b"], (name) => Greet.defer({ name }, { partitionKey: "k" })))
      )
      yield* settled
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))
})

describe("payloads that a worker can't read", () => {
  const Polite = Schema.Struct({ name: Schema.String, polite: Schema.Boolean })
  class Old extends Intent.make("Greet", { payload: { name: Schema.String } }) {}
  class New extends Intent.make("Greet", { payload: Polite, version: 2 }) {}
  class Both extends Intent.make("Greet", {
    payload: Polite,
    version: 2,
    previous: {
      1: Schema.Struct({ name: Schema.String }).pipe(
        Schema.decodeTo(Polite, {
          decode: SchemaGetter.transform(({ name }) => ({ name, polite: false })),
          encode: SchemaGetter.transform(({ name }) => ({ name }))
        })
      )
    }
  }) {}
  /** It has the version of `Old`, and another payload. */
  class Changed extends Intent.make("Greet", { payload: { name: Schema.Int } }) {}

  const makeWorkers = Effect.gen(function*() {
    const log = makeLog()
    const { start, ...rest } = yield* makeOutbox()
    return {
      ...rest,
      log,
      startOld: start(
        OutboxWorker.layer({ intents: [Old] }).pipe(Layer.provide(Old.toLayer(({ name }) => log.add(`old ${name}`))))
      ),
      startNew: start(
        OutboxWorker.layer({ intents: [New] }).pipe(
          Layer.provide(New.toLayer(({ name, polite }) => log.add(`new ${name} ${polite}`)))
        )
      ),
      startBoth: start(
        OutboxWorker.layer({ intents: [Both] }).pipe(
          Layer.provide(Both.toLayer(({ name, polite }) => log.add(`both ${name} ${polite}`)))
        )
      ),
      startChanged: (options: { readonly decodeGrace?: "10 minutes" } = {}) =>
        start(
          OutboxWorker.layer({ intents: [Changed], ...options }).pipe(
            Layer.provide(Changed.toLayer(({ name }, { attempt }) => log.add(`changed ${name}, attempt ${attempt}`)))
          )
        )
    }
  })

  it.effect("of a tag or a version that it does not know, they stay for a worker that does", () =>
    Effect.gen(function*() {
      const { depth, log, provide, startNew, startOld } = yield* makeWorkers
      class Unknown extends Intent.make("Unknown", { payload: {} }) {}
      yield* startOld
      yield* provide(Epilogue.atomic(Effect.all([Unknown.defer({}), New.defer({ name: "Ada", polite: true })])))
      yield* provide(Epilogue.atomic(Old.defer({ name: "Bob" })))
      yield* elapse("1 hour")
      assert.deepStrictEqual(log.lines, ["old Bob"])
      assert.deepInclude(yield* depth("Greet"), { waiting: 1, delayed: 0, dead: 0 })
      assert.deepInclude(yield* depth("Unknown"), { waiting: 1, delayed: 0, dead: 0 })
      yield* startNew
      assert.deepStrictEqual(log.lines, ["old Bob", "new Ada true"])
    }))

  it.effect("in a rolling deploy, old and new workers deliver what they know, and the new one both", () =>
    Effect.gen(function*() {
      const { isEmpty, log, provide, startBoth, startOld } = yield* makeWorkers
      const deferBoth = (name: string) =>
        provide(Epilogue.atomic(Effect.andThen(Old.defer({ name }), New.defer({ name, polite: true }))))
      const { close: closeOld } = yield* startOld
      yield* deferBoth("a")
      yield* settled
      assert.deepStrictEqual(log.lines, ["old a"])
      const { close: closeBoth } = yield* startBoth
      assert.deepStrictEqual(log.lines, ["old a", "both a true"])
      yield* closeOld
      yield* deferBoth("b")
      yield* settled
      assert.sameMembers(log.lines.slice(2), ["both b false", "both b true"])
      yield* closeBoth
      yield* isEmpty
    }))

  it.effect("they are put off, uncounted, and read by a newer worker", () =>
    Effect.gen(function*() {
      const { depth, log, provide, startChanged, startOld } = yield* makeWorkers
      const { close } = yield* startChanged()
      yield* provide(Epilogue.atomic(Old.defer({ name: "Ada" })))
      yield* settled
      assert.deepInclude(yield* depth(), { waiting: 0, delayed: 1, dead: 0 })
      yield* elapse("30 minutes")
      assert.deepInclude(yield* depth(), { waiting: 0, delayed: 1, dead: 0 })
      yield* close
      yield* startOld
      yield* elapse("3 minutes")
      assert.deepStrictEqual(log.lines, ["old Ada"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("they count as no attempt", () =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      const { provide, startChanged, store } = yield* makeWorkers
      const { close } = yield* startChanged()
      yield* provide(Epilogue.atomic(Old.defer({ name: "Ada" })))
      yield* elapse("10 minutes")
      yield* close
      const Worker = OutboxWorker.layer({ intents: [Old] }).pipe(
        Layer.provide(Old.toLayer((_, { attempt }) => Effect.sync(() => attempts.push(attempt)))),
        Layer.provide(Layer.succeed(OutboxStore.OutboxStore, store))
      )
      yield* Layer.build(Worker)
      yield* elapse("10 minutes")
      assert.deepStrictEqual(attempts, [1])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  for (const [decodeGrace, minutes] of [[undefined, 60], ["10 minutes", 10]] as const) {
    it.effect(`after ${minutes} minutes, they are dead letters`, () =>
      Effect.gen(function*() {
        const logs = new CapturedLogs()
        const { depth, log, provide, startChanged } = yield* makeWorkers
        yield* Effect.provide(startChanged(decodeGrace === undefined ? {} : { decodeGrace }), logs.layer)
        yield* provide(Epilogue.atomic(Old.defer({ name: "Ada" })))
        yield* elapse(minutes * 60_000 - 1)
        assert.deepInclude(yield* depth(), { delayed: 1, dead: 0 })
        yield* elapse(1)
        assert.deepInclude(yield* depth(), { delayed: 0, dead: 1 })
        assert.deepStrictEqual(log.lines, [])
        assert.strictEqual(
          logs.entries[0]?.message,
          `The payload of intent "Greet" could not be read, so it is put off. In ${
            minutes === 60 ? "1h" : "10m"
          } it is a dead letter`
        )
        assert.strictEqual(
          logs.entries.at(-1)?.message,
          `Intent "Greet" is a dead letter: no worker could read its payload`
        )
      }))
  }
})

describe("batches", () => {
  class Add extends Intent.make("Add", { payload: Schema.Int, retry: Schedule.spaced("1 minute") }) {}

  const makeBatches = Effect.fnUntraced(function*(
    options: Intent.BatchOptions,
    handler: (
      deliveries: ReadonlyArray<Intent.Delivery<number>>
    ) => Effect.Effect<ReadonlyArray<Intent.BatchResult>, unknown> = (deliveries) =>
      Effect.succeed(deliveries.map(() => Exit.void)),
    intent: Intent.Intent<"Add", typeof Schema.Int> = Add
  ) {
    const batches: Array<readonly [at: number, ...payloads: Array<number>]> = []
    const { start, ...rest } = yield* makeOutbox()
    const { close } = yield* start(
      OutboxWorker.layer({ intents: [intent] }).pipe(
        Layer.provide(intent.toLayerBatched((deliveries) =>
          Effect.flatMap(now, (at) => {
            batches.push([at, ...deliveries.map(({ payload }) => payload)])
            return handler(deliveries)
          }), options))
      )
    )
    return {
      ...rest,
      batches,
      close,
      add: (...numbers: ReadonlyArray<number>) =>
        Effect.tap(rest.provide(Epilogue.atomic(Effect.forEach(numbers, (n) => Add.defer(n)))), settled)
    }
  })

  it.effect("a batch is delivered when it is full", () =>
    Effect.gen(function*() {
      const { add, batches, isEmpty } = yield* makeBatches({ maxSize: 3, maxWait: "1 hour" })
      yield* add(1, 2)
      assert.deepStrictEqual(batches, [])
      yield* add(3)
      assert.deepStrictEqual(batches, [[0, 1, 2, 3]])
      yield* add(4, 5, 6, 7, 8, 9)
      assert.deepStrictEqual(batches.slice(1), [[0, 4, 5, 6], [0, 7, 8, 9]])
      yield* isEmpty
    }))

  it.effect("a batch may be larger than what is claimed at once", () =>
    Effect.gen(function*() {
      const { add, batches } = yield* makeBatches({ maxSize: 500, maxWait: "1 hour" })
      yield* add(...Array.from({ length: 500 }, (_, n) => n))
      assert.deepStrictEqual(batches.map(({ length }) => length - 1), [500])
    }))

  it.effect("a batch that is not full is delivered when its first has waited for maxWait", () =>
    Effect.gen(function*() {
      const { add, batches, isEmpty } = yield* makeBatches({ maxSize: 3, maxWait: "10 seconds" })
      yield* add(1)
      yield* elapse("6 seconds")
      yield* add(2)
      yield* elapse("3999 millis")
      assert.deepStrictEqual(batches, [])
      yield* elapse("1 millis")
      assert.deepStrictEqual(batches, [[10_000, 1, 2]])
      yield* isEmpty
    }))

  it.effect("each batch waits for maxWait from its own first", () =>
    Effect.gen(function*() {
      const { add, batches } = yield* makeBatches({ maxSize: 2, maxWait: "10 seconds" })
      yield* add(1)
      yield* elapse("9 seconds")
      yield* add(2, 3)
      yield* elapse("9999 millis")
      assert.deepStrictEqual(batches, [[9_000, 1, 2]])
      yield* elapse("1 millis")
      assert.deepStrictEqual(batches.slice(1), [[19_000, 3]])
    }))

  it.effect("each is settled as its own result says, be it a Result or an Exit", () =>
    Effect.gen(function*() {
      const results: ReadonlyArray<Intent.BatchResult> = [
        Result.succeed(1),
        Result.fail("no"),
        Exit.succeed(1),
        Exit.fail("no"),
        Exit.die("no"),
        Result.fail(new Intent.Rejected({ reason: "unwanted" }))
      ]
      const { add, batches, depth } = yield* makeBatches(
        { maxSize: 6, maxWait: "1 second" },
        (deliveries) =>
          Effect.succeed(deliveries.map(({ attempt, payload }) => attempt > 1 ? Exit.void : results[payload]!))
      )
      yield* add(0, 1, 2, 3, 4, 5)
      assert.deepInclude(yield* depth("Add"), { waiting: 0, delayed: 3, dead: 1 })
      yield* elapse("61 seconds")
      assert.deepStrictEqual(batches.slice(1), [[61_000, 1, 3, 4]])
      assert.deepInclude(yield* depth("Add"), { waiting: 0, delayed: 0, dead: 1 })
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("if the handler fails as a whole, each has failed", () =>
    Effect.gen(function*() {
      const { add, batches, depth } = yield* makeBatches(
        { maxSize: 2, maxWait: "1 second" },
        (deliveries) =>
          deliveries[0]!.attempt === 1 ? Effect.fail("no") : Effect.succeed(deliveries.map(() => Exit.void))
      )
      yield* add(1, 2)
      assert.deepInclude(yield* depth("Add"), { delayed: 2 })
      yield* elapse("2 minutes")
      assert.deepStrictEqual(batches, [[0, 1, 2], [60_000, 1, 2]])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a timeout is one of the whole batch", () =>
    Effect.gen(function*() {
      class Slow extends Intent.make("Add", { payload: Schema.Int, timeout: "5 seconds", maxAttempts: 1 }) {}
      const { add, depth } = yield* makeBatches({ maxSize: 2, maxWait: "1 second" }, () => Effect.never, Slow)
      yield* add(1, 2)
      yield* elapse("5 seconds")
      assert.deepInclude(yield* depth("Add"), { waiting: 0, delayed: 0, dead: 2 })
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  for (const answers of [0, 1, 3]) {
    it.effect(`${answers} results for 2 deliveries is a failure of each`, () =>
      Effect.gen(function*() {
        const failures: Array<string> = []
        const { add, depth } = yield* Effect.gen(function*() {
          const store = storeWith((session) => ({
            settle: (settlements) => {
              for (const each of settlements) if (each._tag === "Failed") failures.push(each.failure)
              return session.settle(settlements)
            }
          }))
          const { depth: depthOf, provide, start } = yield* makeOutbox(store)
          yield* start(
            OutboxWorker.layer({ intents: [Add] }).pipe(
              Layer.provide(
                Add.toLayerBatched(() => Effect.succeed(Array.from({ length: answers }, () => Exit.void)), {
                  maxSize: 2,
                  maxWait: "1 second"
                })
              )
            )
          )
          return { add: provide(Epilogue.atomic(Effect.andThen(Add.defer(1), Add.defer(2)))), depth: depthOf }
        })
        yield* add
        yield* settled
        assert.deepInclude(yield* depth("Add"), { waiting: 0, delayed: 2, dead: 0 })
        assert.strictEqual(failures.length, 2)
        for (const failure of failures) {
          assert.include(
            failure,
            `Epilogue: a batched handler answered with ${answers} results for 2 deliveries. Answer with one for each, in `
              + "their order."
          )
        }
      }).pipe(Effect.provide(new CapturedLogs().layer)))
  }

  it.effect("one that can't be read is put off, and the handler gets the others", () =>
    Effect.gen(function*() {
      class Text extends Intent.make("Add", { payload: Schema.String }) {}
      const { add, batches, depth, provide } = yield* makeBatches({ maxSize: 3, maxWait: "1 second" })
      yield* provide(Epilogue.atomic(Effect.all([Add.defer(1), Text.defer("two"), Add.defer(3)])))
      yield* settled
      assert.deepStrictEqual(batches, [[0, 1, 3]])
      assert.deepInclude(yield* depth("Add"), { waiting: 0, delayed: 1, dead: 0 })
      yield* provide(Epilogue.atomic(Effect.all([Text.defer("a"), Text.defer("b"), Text.defer("c")])))
      yield* settled
      assert.strictEqual(batches.length, 1)
      assert.deepInclude(yield* depth("Add"), { delayed: 4 })
      yield* add(4, 5, 6)
      assert.deepStrictEqual(batches.slice(1), [[0, 4, 5, 6]])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("what waits for its batch when the worker closes is free at once", () =>
    Effect.gen(function*() {
      const { add, batches, close, depth } = yield* makeBatches({ maxSize: 3, maxWait: "1 hour" })
      yield* add(1, 2)
      yield* close
      assert.deepStrictEqual(batches, [])
      assert.deepInclude(yield* depth("Add"), { waiting: 2, delayed: 0, dead: 0 })
    }))
})

describe("what a worker refuses when its layer is built", () => {
  const can: OutboxStore.OutboxStore.Service["capabilities"] = {
    durable: false,
    transactional: false,
    ordered: true,
    priorities: true
  }

  const messageOf = Effect.fnUntraced(function*(
    worker: Layer.Layer<never, unknown, OutboxStore.OutboxStore>,
    capabilities: Partial<typeof can> = {}
  ) {
    const { store } = yield* makeOutbox()
    const layer = worker.pipe(
      Layer.provide(
        Layer.succeed(OutboxStore.OutboxStore, { ...store, name: "a store", capabilities: { ...can, ...capabilities } })
      )
    )
    const error = yield* Effect.flip(Effect.scoped(Layer.build(layer)))
    assert.deepInclude(error, { _tag: "IntentStoreError" })
    return String((error as { readonly message: unknown }).message)
  })

  it.effect("a number of bytes that is no positive integer", () =>
    Effect.gen(function*() {
      for (const claimBytes of [0, -1, 1.5, NaN, Infinity]) {
        assert.strictEqual(
          yield* messageOf(
            OutboxWorker.layer({ intents: [Greet], claimBytes }).pipe(Layer.provide(Greet.toLayer(() => Effect.void)))
          ),
          `Epilogue: the \`claimBytes\` of the worker is ${claimBytes}. It has to be a positive integer.`
        )
      }
    }))

  for (const lease of ["0 millis", "99 millis", "Infinity", "-1 seconds"] as const) {
    it.effect(`a lease of ${lease}`, () =>
      Effect.gen(function*() {
        const message = yield* messageOf(
          OutboxWorker.layer({ intents: [Greet], lease }).pipe(Layer.provide(Greet.toLayer(() => Effect.void)))
        )
        assert.match(message, /^Epilogue: the `lease` of the worker is /)
        assert.include(message, "It has to be finite, and at least 100 milliseconds.")
      }))
  }

  it.effect("two intents with one tag", () =>
    Effect.gen(function*() {
      class Again extends Intent.make("Greet", { payload: {} }) {}
      const Handlers = Greet.toLayer(() => Effect.void)
      assert.strictEqual(
        yield* messageOf(OutboxWorker.layer({ intents: [Greet, Again] }).pipe(Layer.provide(Handlers))),
        `Epilogue: the worker names two intents with the tag "Greet". Give each its own.`
      )
    }))

  it.effect("a concurrency that is no positive integer", () =>
    Effect.gen(function*() {
      for (const concurrency of [0, -1, 1.5, NaN, Infinity]) {
        assert.strictEqual(
          yield* messageOf(
            OutboxWorker.layer({ intents: [Greet], concurrency }).pipe(Layer.provide(Greet.toLayer(() => Effect.void)))
          ),
          `Epilogue: the \`concurrency\` of the worker is ${concurrency}. It has to be a positive integer.`
        )
      }
    }))

  it.effect("an intent with a partition key, over a store that does not order", () =>
    Effect.gen(function*() {
      class Ordered extends Intent.make("Ordered", { payload: {}, partitionKey: () => "k" }) {}
      const Worker = OutboxWorker.layer({ intents: [Ordered] }).pipe(Layer.provide(Ordered.toLayer(() => Effect.void)))
      assert.strictEqual(
        yield* messageOf(Worker, { ordered: false }),
        `Epilogue: "Ordered" has a partition key, and a store does not order deliveries. Drop the key, or use a store `
          + "that does."
      )
    }))

  it.effect("an intent with a priority, over a store that knows none", () =>
    Effect.gen(function*() {
      class Urgent extends Intent.make("Urgent", { payload: {}, priority: 1 }) {}
      const Worker = OutboxWorker.layer({ intents: [Urgent] }).pipe(Layer.provide(Urgent.toLayer(() => Effect.void)))
      assert.strictEqual(
        yield* messageOf(Worker, { priorities: false }),
        `Epilogue: "Urgent" has a priority, and a store knows none. Drop it, or use a store that does.`
      )
    }))

  it.effect("a transactional handler, over a store without transactions", () =>
    Effect.gen(function*() {
      const Worker = OutboxWorker.layer({ intents: [Greet] }).pipe(
        Layer.provide(Greet.toLayer(() => Effect.void, { transactional: true }))
      )
      assert.strictEqual(
        yield* messageOf(Worker),
        `Epilogue: the handler of "Greet" is transactional, and a store is not. Use a store in a SQL database, or make `
          + "the handler idempotent."
      )
    }))

  it.effect("a store that can't be opened fails the layer with its error", () =>
    Effect.gen(function*() {
      const { store } = yield* makeOutbox()
      const outage = new IntentSink.IntentStoreError({ message: "the store is down" })
      const layer = greeter(() => Effect.void).pipe(
        Layer.provide(Layer.succeed(OutboxStore.OutboxStore, { ...store, open: () => Effect.fail(outage) }))
      )
      assert.strictEqual(yield* Effect.flip(Effect.scoped(Layer.build(layer))), outage)
    }))
})
