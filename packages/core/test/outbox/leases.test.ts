import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, type OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Layer, Metric, Random } from "effect"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, Greet, makeOutbox, now, settled, storeWith } from "./support.ts"

const outage = Effect.fail(new IntentSink.IntentStoreError({ message: "the store is down" }))

/** What a session does from a time on, until another one. */
const between =
  (from: number, to: number, down: Effect.Effect<never, IntentSink.IntentStoreError>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.flatMap(
      now,
      (at): Effect.Effect<A, E | IntentSink.IntentStoreError, R> => at >= from && at < to ? down : effect
    )

const greeting = (
  handler: (name: string, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>,
  options: Omit<OutboxWorker.Options<[]>, "intents"> = {}
) =>
  OutboxWorker.layer({ intents: [Greet], ...options }).pipe(
    Layer.provide(Greet.toLayer(({ name }, delivery) => handler(name, delivery)))
  )

describe("a lease", () => {
  const failures: Record<string, Effect.Effect<never, IntentSink.IntentStoreError>> = {
    "fails": outage,
    "hangs": Effect.never
  }
  for (const [name, down] of Object.entries(failures)) {
    it.effect(`a worker whose beat ${name} interrupts its handlers before the lease ends, and begins anew`, () =>
      Effect.gen(function*() {
        const logs = new CapturedLogs()
        const lines: Array<string> = []
        const ids = new Set<string>()
        let lastBeat = 0
        const store = storeWith((session, index) => ({
          beat: index === 0
            ? between(10_000, Infinity, down)(
              Effect.tap(session.beat, Effect.map(now, (at) => lastBeat = at))
            )
            : session.beat
        }))
        const { provide, start } = yield* makeOutbox(store)
        yield* Effect.provide(
          start(greeting((_, { attempt, crashes, id }) =>
            Effect.gen(function*() {
              lines.push(`begins at ${yield* now}, attempt ${attempt}, crashes ${crashes}`)
              ids.add(id)
              yield* Effect.sleep("40 seconds")
              lines.push("ends")
            }).pipe(Effect.onInterrupt(() => Effect.map(now, (at) => lines.push(`interrupted after ${at - lastBeat}`))))
          )),
          logs.layer
        )
        const deferred = yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
        yield* elapse("2 minutes")
        assert.deepStrictEqual(ids, new Set<string>([deferred]))
        // 15 seconds is the lease.
        const interrupted = lines.findIndex((line) => line.startsWith("interrupted"))
        const after = Number(lines[interrupted]?.split(" ").at(-1))
        assert.isAbove(after, 5_000)
        assert.isBelow(after, 15_000)
        assert.deepStrictEqual(lines.filter((_, index) => index !== interrupted), [
          "begins at 0, attempt 1, crashes 0",
          // It pauses before it opens another session.
          `begins at ${lastBeat + after + 200}, attempt 1, crashes 0`,
          "ends"
        ])
        assert.include(
          logs.entries.map(({ message }) => message),
          "A worker could not confirm its lease in time, so it interrupts what it delivers and begins anew"
        )
      }).pipe(Random.withSeed(0)))
  }

  // With this seed, the times of its beats are fractions that don't add up exactly.
  it.effect("a lease ends in time, also where its end is a fraction of a millisecond", () =>
    Effect.gen(function*() {
      const interrupted: Array<number> = []
      const store = storeWith((session) => ({ beat: between(10_000, Infinity, Effect.never)(session.beat) }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        greeting(() => Effect.onInterrupt(Effect.never, () => Effect.map(now, (at) => interrupted.push(at))))
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("25 seconds")
      assert.isBelow(interrupted[0]!, 23_000)
    }).pipe(Random.withSeed(6), Effect.provide(new CapturedLogs().layer)))

  it.effect("store operations that don't let themselves be interrupted keep no handler from being so", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const hanging = (from: number) => between(from, Infinity, Effect.uninterruptible(Effect.never))
      const store = storeWith((session, index) =>
        index > 0 ? {} : {
          beat: hanging(1_000)(session.beat),
          claim: (limit) => hanging(1)(session.claim(limit)),
          settle: () => Effect.uninterruptible(Effect.never)
        }
      )
      const { provide, start } = yield* makeOutbox(store)
      yield* provide(Epilogue.atomic(Effect.forEach(["a", "b"], (name) => Greet.defer({ name }))))
      yield* start(greeting((name) =>
        name === "a"
          ? Effect.void
          : Effect.andThen(Effect.sleep("1 minute"), log.add(name)).pipe(
            Effect.onInterrupt(() => log.add("interrupted"))
          )
      ))
      yield* elapse("1 second")
      yield* provide(Epilogue.atomic(Greet.defer({ name: "c" })))
      yield* elapse("14 seconds")
      assert.deepStrictEqual(log.lines, ["interrupted"])
      yield* elapse("2 minutes")
      assert.sameMembers(log.lines, ["interrupted", "b", "c"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  const defects: Record<string, (session: OutboxStore.Session) => Partial<OutboxStore.Session>> = {
    beat: () => ({ beat: Effect.die("the store is broken") }),
    claim: () => ({ claim: () => Effect.die("the store is broken") }),
    settle: () => ({ settle: () => Effect.die("the store is broken") }),
    wakes: () => ({ wakes: Effect.die("the store is broken") })
  }
  for (const [name, change] of Object.entries(defects)) {
    it.effect(`a store that dies in ${name} costs its session, and is told in the log`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const logs = new CapturedLogs()
        const { isEmpty, provide, start } = yield* makeOutbox(
          storeWith((session, index) => index === 0 ? change(session) : {})
        )
        yield* Effect.provide(start(greeting((greeted) => log.add(greeted))), logs.layer)
        yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
        yield* elapse("10 seconds")
        assert.include(log.lines, "Ada")
        assert.isAtMost(log.lines.length, 2)
        yield* isEmpty
        assert.deepInclude(logs.entries.map(({ level, message }) => ({ level, message })), {
          level: "Error",
          message: "A worker has come upon a defect, so it interrupts what it delivers and begins anew"
        })
      }))
  }

  /** Ends the first session after 10 seconds. */
  const endingFirst = (session: OutboxStore.Session, index: number): Partial<OutboxStore.Session> =>
    index > 0 ? {} : {
      beat: Effect.flatMap(now, (at) => Effect.map(session.beat, (beat) => ({ ...beat, isAlive: at < 10_000 })))
    }

  for (const what of ["opening a session again", "ending a session"]) {
    it.effect(`a store that dies in ${what} does not end its worker, and is told in the log`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const logs = new CapturedLogs()
        let opened = 0
        const store = storeWith(endingFirst, (open) =>
          Effect.suspend(() => {
            const nth = opened++
            if (what === "ending a session") {
              return nth > 0 ? open : Effect.tap(open, Effect.addFinalizer(() => Effect.die("the store is broken")))
            }
            return nth === 1 ? Effect.die("the store is broken") : open
          }))
        const { provide, start } = yield* makeOutbox(store)
        yield* Effect.provide(start(greeting((name) => log.add(name))), logs.layer)
        yield* elapse("20 seconds")
        yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
        yield* elapse("5 seconds")
        assert.deepStrictEqual(log.lines, ["Ada"])
        assert.deepInclude(logs.entries.map(({ level, message }) => ({ level, message })), {
          level: "Error",
          message: "A worker has come upon a defect, so it begins anew"
        })
      }))
  }

  it.effect("a store that dies in ending its last session keeps no worker from closing", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      let opened = 0
      const store = storeWith(() => ({}), (open) =>
        Effect.tap(open, () => {
          opened++
          return Effect.addFinalizer(() => Effect.die("the store is broken"))
        }))
      const { start } = yield* makeOutbox(store)
      const { close } = yield* Effect.provide(start(greeting(() => Effect.void)), logs.layer)
      yield* close
      assert.strictEqual(opened, 1)
      assert.include(logs.entries.map(({ message }) => message), "A worker has come upon a defect while it closed")
    }))

  it.effect("that is lost while a worker closes ends what it delivers in time, also where a claim hangs", () =>
    Effect.gen(function*() {
      const interrupted: Array<number> = []
      const hangs = between(1_000, Infinity, Effect.uninterruptible(Effect.never))
      const store = storeWith((session) => ({
        beat: hangs(session.beat),
        claim: (limit) => hangs(session.claim(limit))
      }))
      const { provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(
        greeting(() => Effect.onInterrupt(Effect.never, () => Effect.map(now, (at) => interrupted.push(at))))
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("1 second")
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Grace" })))
      yield* elapse("4 seconds")
      yield* Effect.forkChild(close, { startImmediately: true })
      yield* elapse("30 seconds")
      assert.strictEqual(interrupted.length, 1)
      assert.isBelow(interrupted[0]!, 15_000)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is counted from the beat that was answered, and not from those before it that failed", () =>
    Effect.gen(function*() {
      const interrupted: Array<number> = []
      let answeredAt: number | undefined
      const store = storeWith((session) => ({
        beat: Effect.flatMap(now, (at) => {
          if (at < 10_000) return session.beat
          if (at < 30_000) return outage
          if (answeredAt !== undefined) return Effect.never
          answeredAt = at
          return session.beat
        })
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        greeting(
          () => Effect.onInterrupt(Effect.never, () => Effect.map(now, (at) => interrupted.push(at))),
          { lease: "1 minute" }
        )
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("2 minutes")
      // Three quarters of the lease.
      assert.approximately(interrupted[0]!, answeredAt! + 45_000, 1)
    }).pipe(Random.withSeed(0), Effect.provide(new CapturedLogs().layer)))

  it.effect("the time that the answer to a beat takes is part of the lease", () =>
    Effect.gen(function*() {
      const interrupted: Array<number> = []
      const store = storeWith((session) => ({
        // It arrives at the store, and its answer takes 8 seconds. The second one never arrives.
        beat: between(1, Infinity, Effect.never)(Effect.tap(session.beat, Effect.sleep("8 seconds")))
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(
        greeting(() => Effect.onInterrupt(Effect.never, () => Effect.map(now, (at) => interrupted.push(at))))
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("20 seconds")
      assert.isAbove(interrupted[0]!, 8_000)
      assert.isBelow(interrupted[0]!, 15_000)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("a beat that fails and then works again interrupts nothing", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const store = storeWith((session) => ({ beat: between(10_000, 14_000, outage)(session.beat) }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* start(greeting((name) =>
        Effect.andThen(Effect.sleep("1 minute"), log.add(name)).pipe(Effect.onInterrupt(() => log.add("interrupted")))
      ))
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("2 minutes")
      assert.deepStrictEqual(log.lines, ["Ada"])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("its beat comes often enough for the lease that the worker was given", () =>
    Effect.gen(function*() {
      for (const lease of [100, 3_000, 60_000]) {
        const beats: Array<number> = []
        const store = storeWith((session) => ({
          beat: Effect.tap(session.beat, Effect.map(now, (at) => beats.push(at)))
        }))
        const { start } = yield* makeOutbox(store)
        const { close } = yield* start(greeting(() => Effect.void, { lease }))
        yield* elapse(lease * 4)
        const rests = beats.map((at, index) => at - (beats[index - 1] ?? at))
        assert.isAtLeast(beats.length, 10)
        assert.isAtMost(Math.max(...rests), Math.min(lease / 3, 5_000))
        yield* close
      }
    }))

  it.effect("a store that has to be polled is asked once a second", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const store = storeWith((session) => ({
        wakes: Effect.never,
        beat: Effect.map(session.beat, (beat) => ({ ...beat, isListening: false }))
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* start(greeting((name) => log.add(name)))
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* settled
      assert.deepStrictEqual(log.lines, [])
      yield* elapse("1 second")
      assert.deepStrictEqual(log.lines, ["Ada"])
    }))

  it.effect("a wake that is lost costs at most 5 seconds", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, start } = yield* makeOutbox(storeWith(() => ({ wakes: Effect.never })))
      yield* start(greeting((name) => log.add(name)))
      for (const name of ["a", "b", "c"]) {
        yield* provide(Epilogue.atomic(Greet.defer({ name })))
        yield* elapse("5 seconds")
      }
      assert.deepStrictEqual(log.lines, ["a", "b", "c"])
    }))
})

describe("a session that another one has ended", () => {
  /** A worker that believes that its beats arrive, and one that sees that they don't. */
  const makeTwo = Effect.fnUntraced(function*(
    handler: (of: "dead" | "alive", delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>
  ) {
    const store = storeWith((_, index) =>
      index > 0 ? {} : {
        beat: Effect.succeed<OutboxStore.Beat>({
          isAlive: true,
          isWaiting: false,
          hasExpired: false,
          isListening: true,
          hasSuspects: false,
          recalled: []
        })
      }
    )
    const { start, ...rest } = yield* makeOutbox(store)
    yield* start(greeting((_, delivery) => handler("dead", delivery)))
    yield* rest.provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
    yield* settled
    yield* start(greeting((_, delivery) => handler("alive", delivery)))
    return rest
  })

  it.effect("can't settle: what it delivered is delivered by the other, alone, and no crash is counted for that", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const { isEmpty } = yield* makeTwo((of, { attempt, crashes }) =>
        Effect.gen(function*() {
          lines.push(`${of} begins, attempt ${attempt}, crashes ${crashes}`)
          yield* Effect.sleep("30 seconds")
          lines.push(`${of} ends`)
        })
      )
      yield* elapse("29 seconds")
      assert.deepStrictEqual(lines, ["dead begins, attempt 1, crashes 0", "alive begins, attempt 1, crashes 0"])
      yield* elapse("2 seconds")
      assert.deepStrictEqual(lines.slice(2), ["dead ends"])
      yield* elapse("30 seconds")
      assert.deepStrictEqual(lines.slice(3), ["alive ends"])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("loses its failures as well: nothing is counted, or a dead letter, twice", () =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      const { depth, isEmpty } = yield* makeTwo((of, { attempt }) => {
        if (of === "dead") return Effect.andThen(Effect.sleep("30 seconds"), Intent.reject("unwanted"))
        attempts.push(attempt)
        return Effect.sleep("1 minute")
      })
      yield* elapse("50 seconds")
      assert.deepInclude(yield* depth(), { dead: 0 })
      yield* elapse("1 minute")
      assert.deepStrictEqual(attempts, [1])
      yield* isEmpty
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is counted as a loss, and told in the log", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      yield* Effect.gen(function*() {
        yield* makeTwo(() => Effect.sleep("30 seconds"))
        yield* elapse("2 minutes")
      }).pipe(Effect.provide(logs.layer))
      assert.include(
        logs.entries.map(({ message }) => message),
        "A worker died. 1 deliveries that it had claimed are free again"
      )
      const lost = yield* Metric.value(
        Metric.counter("epilogue.deliveries", {
          incremental: true,
          attributes: { "messaging.destination.name": "Greet", outcome: "lost" }
        })
      )
      assert.strictEqual(lost.count, 1)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("a worker that hears of it interrupts its handlers, and begins anew", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const log = makeLog()
      const store = storeWith((session, index) => ({
        beat: index === 0
          ? Effect.flatMap(now, (at) => Effect.map(session.beat, (beat) => ({ ...beat, isAlive: at < 10_000 })))
          : session.beat
      }))
      const { provide, start } = yield* makeOutbox(store)
      yield* Effect.provide(
        start(greeting((name) =>
          Effect.andThen(Effect.sleep("20 seconds"), log.add(name)).pipe(
            Effect.onInterrupt(() => log.add("interrupted"))
          )
        )),
        logs.layer
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("15 seconds")
      assert.deepStrictEqual(log.lines, ["interrupted"])
      yield* elapse("21 seconds")
      assert.deepStrictEqual(log.lines, ["interrupted", "Ada"])
      assert.deepStrictEqual(
        logs.entries.map(({ message }) => message),
        [
          "A worker has lost its lease, so it interrupts what it delivers and begins anew"
        ]
      )
    }))
})

describe("an outage of the store", () => {
  const names = Array.from({ length: 40 }, (_, n) => `${n}`)

  /** Delivers while some operation of the store is down, and answers how often each was delivered. */
  const survive = Effect.fnUntraced(function*(
    change: (session: OutboxStore.Session) => Partial<OutboxStore.Session>
  ) {
    const counts = new Map<string, number>()
    const { isEmpty, provide, start } = yield* makeOutbox(storeWith(change))
    yield* start(greeting((name) => Effect.sync(() => void counts.set(name, (counts.get(name) ?? 0) + 1))))
    for (const name of names) {
      yield* provide(Epilogue.atomic(Greet.defer({ name })))
      yield* elapse("1 second")
    }
    yield* elapse("1 minute")
    yield* isEmpty
    assert.sameMembers(Array.from(counts.keys()), names)
    return Array.from(counts.values())
  })

  it.effect("in claim: nothing is lost, and nothing doubled", () =>
    Effect.gen(function*() {
      const counts = yield* survive((session) => ({
        claim: (limit) => between(5_000, 25_000, outage)(session.claim(limit))
      }))
      assert.deepStrictEqual(new Set(counts), new Set([1]))
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("in settle: nothing is lost, and nothing doubled", () =>
    Effect.gen(function*() {
      const counts = yield* survive((session) => ({
        settle: (settlements) => between(5_000, 25_000, outage)(session.settle(settlements))
      }))
      assert.deepStrictEqual(new Set(counts), new Set([1]))
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("an answer to settle that is lost changes nothing", () =>
    Effect.gen(function*() {
      let lost = 0
      const counts = yield* survive((session) => ({
        settle: (settlements) =>
          Effect.flatMap(session.settle(settlements), (answer) => lost++ % 2 === 0 ? outage : Effect.succeed(answer))
      }))
      assert.deepStrictEqual(new Set(counts), new Set([1]))
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("of everything: nothing is lost, and what is delivered twice is what was not settled before", () =>
    Effect.gen(function*() {
      const down = between(5_000, 35_000, outage)
      const counts = yield* survive((session) => ({
        claim: (limit) => down(session.claim(limit)),
        settle: (settlements) => down(session.settle(settlements)),
        beat: down(session.beat),
        recover: down(session.recover)
      }))
      assert.isAtMost(Math.max(...counts), 2)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("is told in the log, by what could not be done", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const down = between(5_000, 25_000, outage)
      yield* Effect.provide(
        survive((session) => ({
          claim: (limit) => down(session.claim(limit)),
          beat: down(session.beat)
        })),
        logs.layer
      )
      const messages = logs.entries.map(({ message }) => message)
      assert.include(messages, "A worker could not claim; it tries again")
      assert.include(messages, "A worker could not beat; it tries again")
    }))

  it.effect("that keeps a worker from beginning anew is waited for", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const logs = new CapturedLogs()
      const store = storeWith(
        (session, index) => ({
          beat: Effect.map(session.beat, (beat) => ({ ...beat, isAlive: index > 0 }))
        }),
        (open, index) => index === 0 ? open : between(0, 30_000, outage)(open)
      )
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      yield* Effect.provide(start(greeting((name) => log.add(name))), logs.layer)
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* elapse("29 seconds")
      assert.deepStrictEqual(log.lines, [])
      yield* elapse("10 seconds")
      assert.deepStrictEqual(log.lines, ["Ada"])
      yield* isEmpty
      assert.include(
        logs.entries.map(({ message }) => message),
        "A worker could not open a session; it tries again"
      )
    }))
})
