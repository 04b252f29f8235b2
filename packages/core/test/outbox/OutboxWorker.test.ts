import { assert, it } from "@effect/vitest"
import { Epilogue, Intent, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Cause, Deferred, Duration, Effect, Layer, Schema } from "effect"
import { TestClock } from "effect/testing"

class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}

const inMemory = Outbox.layer.pipe(Layer.provideMerge(OutboxStore.layerMemory))

it.effect("what is deferred in a boundary is delivered after it", () =>
  Effect.gen(function*() {
    const greeted = yield* Deferred.make<string>()
    const Worker = OutboxWorker.layer({ intents: [Greet] }).pipe(
      Layer.provide(Greet.toLayer(({ name }) => Deferred.succeed(greeted, name)))
    )
    yield* Effect.gen(function*() {
      const report = yield* Epilogue.report(Greet.defer({ name: "Ada" }))
      assert.strictEqual(report.outcomes[0]?._tag, "Enqueued")
      assert.strictEqual(yield* Deferred.await(greeted), "Ada")
    }).pipe(Effect.provide(Worker.pipe(Layer.provideMerge(inMemory))))
  }))

it.effect("a delivery that fails is made again, as its schedule says", () =>
  Effect.gen(function*() {
    const attempts: Array<number> = []
    const done = yield* Deferred.make<void>()
    const Worker = OutboxWorker.layer({ intents: [Greet] }).pipe(
      Layer.provide(Greet.toLayer((_, { attempt }) =>
        Effect.suspend(() => {
          attempts.push(attempt)
          return attempt === 3 ? Deferred.succeed(done, undefined) : Effect.fail("no")
        })
      ))
    )
    yield* Effect.gen(function*() {
      yield* Epilogue.atomic(Greet.defer({ name: "Ada" }))
      yield* TestClock.adjust("10 seconds")
      yield* Deferred.await(done)
      assert.deepStrictEqual(attempts, [1, 2, 3])
    }).pipe(Effect.provide(Worker.pipe(Layer.provideMerge(inMemory))))
  }))
void Cause
void Duration
