import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, type OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Latch, Layer, Metric, Random, Schema } from "effect"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, makeOutbox, now, Process, recorded, settled, storeWith } from "./support.ts"

class Job extends Intent.make("Job", { payload: Schema.String, maxCrashes: 2 }) {}
class Other extends Intent.make("Other", { payload: Schema.String }) {}

type Handler = (name: string, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>

const worker = (handler: Handler, options: Omit<OutboxWorker.Options<[]>, "intents"> = {}) =>
  OutboxWorker.layer({ intents: [Job, Other], ...options }).pipe(
    Layer.provide([Job.toLayer(handler), Other.toLayer(handler)])
  )

const deferred = (...names: ReadonlyArray<string>) =>
  Epilogue.atomic(Effect.forEach(names, (name) => Job.defer(name), { discard: true }))

/** Starts a worker as a process of its own, whose handlers can kill it. */
const spawn = Effect.fnUntraced(function*(
  start: Effect.Success<ReturnType<typeof makeOutbox>>["start"],
  handler: (kill: Effect.Effect<never>) => Handler,
  options?: Omit<OutboxWorker.Options<[]>, "intents">
) {
  const process = new Process()
  yield* start(worker(handler(process.kill), options).pipe(Layer.provide(process.layer)))
  return process
})

/** Notes what runs when, and finds out if something runs beside what has to be alone. */
const makeWatch = () => {
  const running = new Set<string>()
  const beside: Array<string> = []
  const lines: Array<string> = []
  return {
    lines,
    beside,
    running,
    /** A handler that takes so long. */
    takes:
      (time: Parameters<typeof Effect.sleep>[0], isAlone: (name: string) => boolean = () => false): Handler =>
      (name, { attempt, crashes }) =>
        Effect.acquireUseRelease(
          Effect.map(now, (at) => {
            if (isAlone(name) || Array.from(running).some(isAlone)) beside.push(...running)
            running.add(name)
            lines.push(`${Math.round(at)}: ${name}, attempt ${attempt}, crashes ${crashes}`)
          }),
          () => Effect.sleep(time),
          () => Effect.sync(() => running.delete(name))
        )
  }
}

const idsOf = (starts: ReadonlyArray<ReadonlyArray<OutboxStore.Claimed>>) =>
  starts.flat().map(({ payload }) => payload.slice(1, -1))

describe("the record of what has started", () => {
  it.effect("has what goes on for longer than a flush, once, and does not wait for anything to be settled", () =>
    Effect.gen(function*() {
      const { settles, starts, store } = recorded()
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker((name) => name === "long" ? Effect.never : Effect.void))
      yield* provide(deferred("short", "long", "brief"))
      yield* settled
      assert.deepStrictEqual(idsOf(starts), ["long"])
      assert.strictEqual(settles.flat().length, 2)
      yield* provide(deferred("short"))
      yield* elapse("1 minute")
      assert.deepStrictEqual(idsOf(starts), ["long"])
    }))

  it.effect("has nothing of handlers that take no time, so that they cost nothing", () =>
    Effect.gen(function*() {
      const { starts, store } = recorded()
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(worker(() => Effect.void))
      yield* provide(deferred(...Array.from({ length: 5_000 }, (_, n) => `${n}`)))
      yield* elapse("1 second")
      yield* isEmpty
      assert.deepStrictEqual(starts, [])
    }))

  it.effect("has those that began while the last flush was under way together, and not those that have ended", () =>
    Effect.gen(function*() {
      const starts: Array<ReadonlyArray<string>> = []
      const store = storeWith((session) => ({
        start: (claimed) => {
          starts.push(idsOf([claimed]))
          return Effect.tap(session.start(claimed), Effect.sleep("1 second"))
        }
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker((name) => Effect.sleep(name.startsWith("short") ? "500 millis" : "1 minute")))
      yield* provide(deferred("first"))
      yield* elapse("100 millis")
      yield* provide(deferred("short 1", "long 1", "short 2", "long 2"))
      yield* elapse("2 seconds")
      assert.deepStrictEqual(starts, [["first"], ["long 1", "long 2"]])
    }))

  it.effect("has each of a batch", () =>
    Effect.gen(function*() {
      const { starts, store } = recorded()
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(Job.toLayerBatched(() => Effect.never, { maxSize: 3, maxWait: "1 second" }))
        )
      )
      yield* provide(deferred("a", "b", "c"))
      yield* settled
      assert.deepStrictEqual(idsOf(starts), ["a", "b", "c"])
    }))

  it.effect("that the lease of one was lost interrupts it, and no other", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const store = storeWith((session) => ({
        start: (claimed) =>
          Effect.map(session.start(claimed), (lost) => [
            ...lost,
            ...claimed.filter(({ payload }) => payload === `"lost"`).map(({ id }) => id)
          ])
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker((name) =>
        Effect.andThen(Effect.sleep("1 minute"), log.add(name)).pipe(
          Effect.onInterrupt(() => log.add(`${name} is interrupted`))
        )
      ))
      yield* provide(deferred("lost", "held"))
      yield* settled
      assert.include(log.lines, "lost is interrupted")
      assert.notInclude(log.lines, "held is interrupted")
      yield* elapse("1 minute")
      assert.include(log.lines, "held")
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("one that was possibly running when its worker died is on it before its handler runs", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const store = storeWith((session) => ({
        start: (claimed) =>
          Effect.tap(session.start(claimed), () =>
            Effect.andThen(
              Effect.sleep("1 second"),
              Effect.sync(() => lines.push(`${idsOf([claimed]).join()} on record`))
            ))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* provide(deferred("a"))
      yield* spawn(start, (kill) => () => kill)
      assert.deepStrictEqual(lines, [])
      yield* start(worker((name) => Effect.sync(() => lines.push(`${name} runs`))))
      yield* elapse("1 minute")
      assert.deepStrictEqual(lines, ["a on record", "a runs"])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  for (const kind of ["one", "a batch"] as const) {
    it.effect(`a lease that was lost by then keeps the handler of ${kind} from running`, () =>
      Effect.gen(function*() {
        let runs = 0
        const handler = Effect.sync(() => runs++)
        const store = storeWith((session) => ({
          claim: (limit) =>
            Effect.map(session.claim(limit), (all) => all.map((each) => ({ ...each, suspicion: "possible" as const }))),
          start: (claimed) => Effect.as(Effect.sleep("1 minute"), claimed.map(({ id }) => id))
        }))
        const { depth, provide, start } = yield* makeOutbox(store)
        const batched = Job.toLayerBatched((deliveries) => Effect.as(handler, deliveries.map(() => Exit.void)), {
          maxSize: 2,
          maxWait: "1 second"
        })
        yield* provide(deferred("a", "b"))
        yield* start(
          OutboxWorker.layer({ intents: [Job] }).pipe(
            Layer.provide(kind === "one" ? Job.toLayer(() => handler) : batched)
          )
        )
        yield* elapse("90 seconds")
        assert.strictEqual(runs, 0)
        assert.deepInclude(yield* depth("Job"), { dead: 0, delayed: 0 })
      }))
  }
})

describe("when a worker dies", () => {
  it.effect("what it ran runs alone, one after the other, and what it had only claimed does not", () =>
    Effect.gen(function*() {
      const suspects = ["a", "b", "c"]
      const watch = makeWatch()
      const { isEmpty, provide, start } = yield* makeOutbox()
      yield* provide(deferred(...suspects, "d", "e", "f"))
      const dead = yield* spawn(start, () => () => Effect.never, { concurrency: 3 })
      yield* Effect.forkChild(dead.kill)
      yield* settled
      yield* start(worker(watch.takes("1 second", (name) => suspects.includes(name)), { concurrency: 3 }))
      yield* elapse("1 minute")
      yield* isEmpty
      assert.deepStrictEqual(watch.beside, [])
      assert.sameMembers(
        watch.lines.map((line) => line.replace(/^\d+: /, "")),
        ["a", "b", "c", "d", "e", "f"].map((name) => `${name}, attempt 1, crashes 0`)
      )
      const times = watch.lines.flatMap((line) => /: [abc],/.test(line) ? [Number(line.split(":")[0])] : [])
      assert.isAtLeast(Math.min(times[1]! - times[0]!, times[2]! - times[1]!), 1_000)
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("other workers go on meanwhile", () =>
    Effect.gen(function*() {
      const one = makeWatch()
      const other = makeWatch()
      const { provide, start } = yield* makeOutbox()
      yield* provide(deferred("suspect"))
      const dead = yield* spawn(start, () => () => Effect.never)
      yield* Effect.forkChild(dead.kill)
      yield* settled
      const isAlone = (name: string) => name === "suspect"
      yield* start(worker(one.takes("1 second", isAlone)))
      yield* start(worker(other.takes("1 second", isAlone)))
      yield* provide(deferred(...Array.from({ length: 2_000 }, (_, n) => `${n}`)))
      yield* elapse("10 seconds")
      while (!one.running.has("suspect") && !other.running.has("suspect")) yield* elapse("100 millis")
      const [alone, busy] = one.running.has("suspect") ? [one, other] : [other, one]
      assert.deepStrictEqual(Array.from(alone.running), ["suspect"])
      assert.strictEqual(busy.running.size, 10)
      yield* elapse("1 minute")
      assert.deepStrictEqual([...one.beside, ...other.beside], [])
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("one that kills its worker at once is found out, and its neighbours lose nothing", () =>
    Effect.gen(function*() {
      const counts = new Map<string, number>()
      const crashes = new Map<string, number>()
      const handler = (kill: Effect.Effect<never>): Handler => (name, delivery) =>
        Effect.suspend(() => {
          counts.set(name, (counts.get(name) ?? 0) + 1)
          crashes.set(name, delivery.crashes)
          // It leaves no time for its start to be put on record.
          return name === "poison" ? kill : Effect.sleep("1 second")
        })
      const { depth, provide, start, store: { operations } } = yield* makeOutbox()
      const neighbours = Array.from({ length: 30 }, (_, n) => `${n}`)
      yield* provide(deferred(...neighbours.slice(0, 15), "poison", ...neighbours.slice(15)))
      for (let processes = 0; processes < 6; processes++) {
        yield* spawn(start, handler)
        yield* elapse("1 minute")
      }
      assert.deepInclude(yield* depth("Job"), { waiting: 0, claimed: 0, delayed: 0, dead: 1 })
      // Not on record, then on record, and then as often alone as `maxCrashes` says.
      assert.strictEqual(counts.get("poison"), 4)
      assert.deepStrictEqual(neighbours.filter((name) => crashes.get(name) !== 0), [])
      const { entries: [dead] } = yield* operations.list({ states: ["dead"] }, { limit: 1 })
      assert.deepInclude(dead, { reason: "crashed", crashes: 2, failures: 0 })
      const detail = yield* operations.find(dead!.id)
      assert.strictEqual(detail?.failure, "2 workers died while running it, and nothing else")
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("one that is dead of its crashes is told in the log, and counted", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      yield* Effect.gen(function*() {
        const { depth, provide, start } = yield* makeOutbox()
        yield* provide(deferred("poison"))
        const die = (kill: Effect.Effect<never>): Handler => () => Effect.andThen(Effect.sleep("1 second"), kill)
        for (let processes = 0; processes < 5; processes++) {
          yield* spawn(start, die)
          yield* elapse("1 minute")
        }
        assert.deepInclude(yield* depth("Job"), { dead: 1 })
      }).pipe(Effect.provide(logs.layer))
      const messages = logs.entries.map(({ message }) => message)
      assert.include(
        messages,
        `Intent "Job" was running when a worker died, so it runs alone. Of it alone, 1 have died`
      )
      assert.include(messages, `Intent "Job" is a dead letter: too many workers died of it`)
      const count = (outcome: string) =>
        Effect.map(
          Metric.value(
            Metric.counter("epilogue.deliveries", {
              incremental: true,
              attributes: { "messaging.destination.name": "Job", outcome }
            })
          ),
          (state) => state.count
        )
      assert.deepStrictEqual(
        yield* Effect.forEach(["crashed", "dead", "failed"], count),
        [1, 1, 0]
      )
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("with onExhausted \"block\", one that is dead of its crashes keeps the rest of its key", () =>
    Effect.gen(function*() {
      class Strict extends Intent.make("Strict", {
        payload: Schema.String,
        partitionKey: () => "k",
        maxCrashes: 1,
        onExhausted: "block"
      }) {}
      const log = makeLog()
      const { depth, provide, start } = yield* makeOutbox()
      yield* provide(Epilogue.atomic(Effect.forEach(["poison", "next"], (name) => Strict.defer(name))))
      for (let processes = 0; processes < 3; processes++) {
        const process = new Process()
        const handler = Strict.toLayer((name) =>
          name === "poison" ? Effect.andThen(Effect.sleep("1 second"), process.kill) : log.add(name)
        )
        yield* start(
          OutboxWorker.layer({ intents: [Strict] }).pipe(Layer.provide(handler), Layer.provide(process.layer))
        )
        yield* elapse("1 minute")
      }
      assert.deepInclude(yield* depth("Strict"), { dead: 1, waiting: 1 })
      assert.deepStrictEqual(log.lines, [])
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("one that fails alone has failed, and is tried again beside others", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const { isEmpty, provide, start } = yield* makeOutbox()
      yield* provide(deferred("a"))
      const dead = yield* spawn(start, () => () => Effect.never)
      yield* Effect.forkChild(dead.kill)
      yield* settled
      yield* start(worker((_, { attempt, crashes }) =>
        Effect.suspend(() => {
          lines.push(`attempt ${attempt}, crashes ${crashes}`)
          return attempt === 1 ? Effect.fail("no") : Effect.void
        })
      ))
      yield* elapse("1 minute")
      assert.deepStrictEqual(lines, ["attempt 1, crashes 0", "attempt 2, crashes 0"])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("one of a batched handler runs in a batch of its own, and does not wait for others", () =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<string>> = []
      const { isEmpty, provide, start } = yield* makeOutbox()
      yield* provide(deferred("a", "b"))
      const options = { maxSize: 2, maxWait: "10 minutes" } as const
      const process = new Process()
      yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(Job.toLayerBatched(() => Effect.never, options)),
          Layer.provide(process.layer)
        )
      )
      yield* settled
      yield* Effect.forkChild(process.kill)
      yield* settled
      yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(Job.toLayerBatched((deliveries) =>
            Effect.sync(() => {
              batches.push(deliveries.map(({ payload }) => payload))
              return deliveries.map(() => Exit.void)
            }), options))
        )
      )
      yield* elapse("1 minute")
      assert.sameDeepMembers(batches, [["a"], ["b"]])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))
})

describe("a worker that isolates suspects", () => {
  /** Leaves suspects of a worker that has died. */
  const makeSuspects = Effect.fnUntraced(function*(count: number, store?: typeof OutboxStore.layerMemory) {
    const outbox = yield* makeOutbox(store)
    yield* outbox.provide(deferred(...Array.from({ length: count }, (_, n) => `suspect ${n}`)))
    const dead = yield* spawn(outbox.start, () => () => Effect.never, { concurrency: count })
    yield* Effect.forkChild(dead.kill)
    yield* settled
    return outbox
  })
  const isSuspect = (name: string) => name.startsWith("suspect")
  const flood = (count: number) => deferred(...Array.from({ length: count }, (_, n) => `${n}`))

  it.effect("gets to them under constant load, and to its other work in between", () =>
    Effect.gen(function*() {
      const watch = makeWatch()
      const { provide, start } = yield* makeSuspects(20)
      yield* start(worker(watch.takes("100 millis", isSuspect)))
      yield* provide(flood(20_000))
      // Its lease is over, and with it that of the other one.
      yield* elapse("25 seconds")
      const before = watch.lines.length
      assert.deepStrictEqual(watch.lines.filter((line) => line.includes("suspect")).length > 0, true)
      yield* elapse("20 seconds")
      const suspects = watch.lines.filter((line) => line.includes("suspect")).length
      assert.strictEqual(suspects, 20)
      // At full speed it would be 2,000.
      assert.isAtLeast(watch.lines.length - before, 800)
      assert.deepStrictEqual(watch.beside, [])
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("has handed back what it had not begun, before it runs one", () =>
    Effect.gen(function*() {
      let held = 0
      const heldMeanwhile: Array<number> = []
      const counting = storeWith((session, index) =>
        index === 0 ? {} : {
          claim: (limit) => Effect.tap(session.claim(limit), (all) => Effect.sync(() => held += all.length)),
          settle: (settlements) =>
            Effect.tap(
              Effect.andThen(Effect.sleep("50 millis"), session.settle(settlements)),
              Effect.sync(() => held -= settlements.length)
            ),
          claimSuspect: Effect.tap(session.claimSuspect, (suspect) =>
            Effect.sync(() => {
              heldMeanwhile.push(held)
              if (suspect !== undefined) held++
            }))
        }
      )
      const { provide, start } = yield* makeSuspects(3, counting)
      yield* start(worker(() => Effect.sleep("1 second")))
      yield* provide(flood(1_000))
      yield* elapse("1 minute")
      assert.isAtLeast(heldMeanwhile.length, 3)
      assert.deepStrictEqual(new Set(heldMeanwhile), new Set([0]))
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("does not stand still for long where handlers take long, and gets to them in the end", () =>
    Effect.gen(function*() {
      const watch = makeWatch()
      let running = 0
      let seconds = 0
      const { provide, start } = yield* makeSuspects(1)
      let count = 0
      const takes = (name: string): Handler =>
        watch.takes(name === "suspect 0" ? "1 second" : 60_000 + (count++ % 7) * 9_000, isSuspect)
      yield* start(worker((name, delivery) => takes(name)(name, delivery), { concurrency: 4 }))
      yield* provide(flood(1_000))
      yield* elapse("1 minute")
      for (let at = 0; at < 1_800 && !watch.lines.some((line) => line.includes("suspect")); at++) {
        yield* elapse("1 second")
        running += watch.running.size
        seconds++
      }
      assert.isTrue(watch.lines.some((line) => line.includes("suspect")))
      assert.deepStrictEqual(watch.beside, [])
      // Of four.
      assert.isAbove(running / seconds, 2.5)
      // It keeps its lease meanwhile.
      yield* elapse("1 hour")
      assert.strictEqual(watch.lines.filter((line) => line.includes("suspect")).length, 1)
    }).pipe(Effect.provide(new CapturedLogs().layer), Random.withSeed(0)))

  it.effect("that is busy leaves them to others for one beat", () =>
    Effect.gen(function*() {
      let told = 0
      let areThere = false
      const store = storeWith((session) => ({
        beat: Effect.map(session.beat, (beat) => {
          if (areThere) told++
          return { ...beat, hasSuspects: areThere }
        }),
        claimSuspect: Effect.succeed(undefined)
      }))
      const begun: Array<string> = []
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker((name) =>
        Effect.andThen(Effect.sync(() => begun.push(name)), name === "long" ? Effect.never : Effect.void)
      ))
      yield* provide(deferred("long"))
      const heard = Effect.suspend(() => {
        const before = told
        return Effect.repeat(elapse("100 millis"), {
          until: () =>
            told > before
        })
      })
      areThere = true
      yield* heard
      yield* provide(deferred("after one beat"))
      yield* settled
      assert.deepStrictEqual(begun, ["long", "after one beat"])
      yield* heard
      yield* provide(deferred("after two beats"))
      yield* settled
      assert.deepStrictEqual(begun, ["long", "after one beat"])
    }))

  it.effect("that has nothing to do sees to them at its next beat", () =>
    Effect.gen(function*() {
      let areThere = false
      let asked = 0
      const store = storeWith((session) => ({
        beat: Effect.map(session.beat, (beat) => ({ ...beat, hasSuspects: areThere })),
        claimSuspect: Effect.sync(() => void asked++)
      }))
      const { start } = yield* makeOutbox(store)
      yield* start(worker(() => Effect.void))
      yield* elapse("1 minute")
      assert.strictEqual(asked, 0)
      areThere = true
      yield* elapse("5 seconds")
      assert.isAtLeast(asked, 1)
    }))

  it.effect("goes on with its work as soon as another one has them", () =>
    Effect.gen(function*() {
      const gate = yield* Latch.make()
      let isTaken = false
      const store = storeWith((session, index) => ({
        beat: Effect.map(session.beat, (beat) => ({ ...beat, hasSuspects: index === 0 && !isTaken })),
        claimSuspect: Effect.succeed(undefined)
      }))
      const begun: Array<string> = []
      const { provide, start } = yield* makeOutbox(store)
      yield* start(worker((name) =>
        Effect.suspend(() => {
          begun.push(name)
          return name === "long" ? gate.await : Effect.void
        }), { lease: "1 minute" }))
      yield* provide(deferred("long"))
      yield* elapse("20 seconds")
      yield* provide(deferred("a"))
      yield* settled
      // It waits for the long one to end.
      assert.deepStrictEqual(begun, ["long"])
      isTaken = true
      yield* elapse("5 seconds")
      assert.deepStrictEqual(begun, ["long", "a"])
    }))
})
