import { assert, describe, it } from "@effect/vitest"
import { Epilogue, type Intent, IntentSink, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Fiber, Latch, Layer, Scope } from "effect"
import { TestClock } from "effect/testing"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, Greet, makeOutbox, now, settled, storeWith } from "./support.ts"

const greeting = (
  handler: (name: string, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>,
  options: Omit<OutboxWorker.Options<[]>, "intents"> = {}
) =>
  OutboxWorker.layer({ intents: [Greet], ...options }).pipe(
    Layer.provide(Greet.toLayer(({ name }, delivery) => handler(name, delivery)))
  )

const deferAll = (names: ReadonlyArray<string>) =>
  Epilogue.atomic(Effect.forEach(names, (name) => Greet.defer({ name }), { discard: true }))

const twenty = Array.from({ length: 20 }, (_, n) => `${n}`)

describe("closing a worker", () => {
  it.effect("with nothing to do takes no time", () =>
    Effect.gen(function*() {
      const { start } = yield* makeOutbox()
      const { close } = yield* start(greeting(() => Effect.void))
      yield* close
    }))

  it.effect("waits for what runs, hands back what waits, and claims no more", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { depth, provide, start } = yield* makeOutbox()
      const { close } = yield* start(
        greeting((name) => Effect.andThen(Effect.sleep("5 seconds"), log.add(name)), { concurrency: 3 })
      )
      yield* provide(deferAll(twenty))
      yield* settled
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* settled
      // Those that had not begun are free for others while it drains.
      assert.deepInclude(yield* depth(), { waiting: 17 })
      yield* provide(deferAll(["late"]))
      yield* elapse("4999 millis")
      assert.isUndefined(closing.pollUnsafe())
      yield* elapse("1 millis")
      yield* Fiber.join(closing)
      assert.deepStrictEqual(log.lines, ["0", "1", "2"])
      assert.deepInclude(yield* depth(), { waiting: 18, delayed: 0, dead: 0 })
    }))

  for (const [drainTimeout, seconds] of [[undefined, 30], ["5 seconds", 5]] as const) {
    it.effect(`after ${seconds} seconds, what runs is interrupted, and handed back uncounted`, () =>
      Effect.gen(function*() {
        const lines: Array<string> = []
        const { depth, isEmpty, provide, start } = yield* makeOutbox()
        const { close } = yield* start(
          greeting(
            () => Effect.onInterrupt(Effect.never, () => Effect.map(now, (at) => lines.push(`interrupted at ${at}`))),
            { drainTimeout }
          )
        )
        yield* provide(deferAll(["Ada"]))
        yield* settled
        const closing = yield* Effect.forkChild(close, { startImmediately: true })
        yield* elapse(seconds * 1000)
        yield* Fiber.join(closing)
        assert.deepStrictEqual(lines, [`interrupted at ${seconds * 1000}`])
        assert.deepInclude(yield* depth(), { waiting: 1, delayed: 0 })
        const other = yield* start(
          greeting((name, { attempt, crashes }) =>
            Effect.sync(() => lines.push(`${name}, attempt ${attempt}, crashes ${crashes}`))
          )
        )
        assert.deepStrictEqual(lines.slice(1), ["Ada, attempt 1, crashes 0"])
        yield* other.close
        yield* isEmpty
      }))
  }

  it.effect("another worker takes over at once what was handed back", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const { isEmpty, provide, start } = yield* makeOutbox()
      const { close } = yield* start(greeting(() => gate.await, { concurrency: 2 }))
      yield* provide(deferAll(twenty))
      yield* settled
      yield* start(greeting((name) => log.add(name)))
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* settled
      assert.sameMembers(log.lines, twenty.slice(2))
      yield* gate.open
      yield* Fiber.join(closing)
      yield* isEmpty
    }))

  it.effect("settles what has ended before it closes its session, however slow the store is", () =>
    Effect.gen(function*() {
      const store = storeWith((session) => ({
        settle: (settlements) => Effect.andThen(Effect.sleep("3 seconds"), session.settle(settlements))
      }))
      const { isEmpty, provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(greeting(() => Effect.sleep("1 second"), { concurrency: 20 }))
      yield* provide(deferAll(twenty))
      yield* settled
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* elapse("7 seconds")
      yield* Fiber.join(closing)
      yield* isEmpty
    }))

  it.effect("waits no longer for a store that is down than its lease lasts", () =>
    Effect.gen(function*() {
      const outage = Effect.fail(new IntentSink.IntentStoreError({ message: "the store is down" }))
      const store = storeWith(() => ({ settle: () => outage, beat: outage }))
      const { provide, start } = yield* makeOutbox(store)
      const { close } = yield* start(greeting(() => Effect.void))
      yield* provide(deferAll(["Ada"]))
      yield* settled
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* elapse("15 seconds")
      yield* Fiber.join(closing)
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("does not wait for ever for a handler that can't be interrupted", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      const { close } = yield* start(
        greeting(() => Effect.uninterruptible(Effect.never), { drainTimeout: "1 second", lease: "5 seconds" })
      )
      yield* provide(deferAll(["Ada"]))
      yield* settled
      const closing = yield* Effect.forkDetach(close, { startImmediately: true })
      yield* elapse("20 seconds")
      assert.isDefined(closing.pollUnsafe())
    }))

  it.effect("while its store can't be opened takes no time", () =>
    Effect.gen(function*() {
      const { store } = yield* makeOutbox()
      const Worker = greeting(() => Effect.void).pipe(
        Layer.provide(Layer.succeed(OutboxStore.OutboxStore, { ...store, open: () => Effect.never }))
      )
      const building = yield* Effect.forkChild(Effect.scoped(Layer.build(Worker)), { startImmediately: true })
      yield* elapse("1 minute")
      assert.isUndefined(building.pollUnsafe())
      yield* Fiber.interrupt(building)
    }))

  it.effect("while it waits to begin anew takes no time", () =>
    Effect.gen(function*() {
      const store = storeWith(
        (session) => ({ beat: Effect.map(session.beat, (beat) => ({ ...beat, isAlive: false })) }),
        (open, index) =>
          index === 0 ? open : Effect.fail(new IntentSink.IntentStoreError({ message: "the store is down" }))
      )
      const { start } = yield* makeOutbox(store)
      const { close } = yield* start(greeting(() => Effect.void))
      yield* elapse("1 minute")
      yield* close
    }).pipe(Effect.provide(new CapturedLogs().layer)))

  it.effect("handlers have their services until they have ended", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { provide, store } = yield* makeOutbox()
      const scope = yield* Scope.make()
      const Handlers = Layer.effectContext(
        Effect.gen(function*() {
          yield* Effect.addFinalizer(() => log.add("handlers closed"))
          return yield* Layer.build(
            Greet.toLayer(({ name }) => Effect.andThen(Effect.sleep("5 seconds"), log.add(name)))
          )
        })
      )
      const Worker = OutboxWorker.layer({ intents: [Greet] }).pipe(
        Layer.provide([Handlers, Layer.succeed(OutboxStore.OutboxStore, store)])
      )
      yield* Layer.buildWithScope(Worker, scope)
      yield* provide(deferAll(["Ada"]))
      yield* settled
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), {
        startImmediately: true
      })
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(closing)
      assert.deepStrictEqual(log.lines, ["Ada", "handlers closed"])
    }))
})
