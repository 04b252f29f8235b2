import { assert, it } from "@effect/vitest"
import { Epilogue, Outbox, OutboxStore } from "@epilogue/core"
import { Context, Duration, Effect, Layer, Metric } from "effect"
import { TestClock } from "effect/testing"
import { Greet, settled } from "./support.ts"

/** What a fresh set of metrics has: each by its name and attributes. */
const values = Effect.map(Metric.snapshot, (all) =>
  Object.fromEntries(all.map((metric) => [
    `${metric.id} ${Object.values(metric.attributes ?? {}).join(" ")}`,
    metric.type === "Gauge" ? metric.state.value : metric.type === "Counter" ? metric.state.count : undefined
  ])))

const fresh = <A, E, R>(test: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => Effect.provideService(test, Metric.MetricRegistry, new Map()))

it.effect("the depth of a store and the age of its oldest intent are gauges, by tag", () =>
  Effect.gen(function*() {
    const context = yield* Layer.build(
      Layer.merge(Outbox.layer, OutboxStore.layerMetrics({ interval: "10 seconds" })).pipe(
        Layer.provideMerge(OutboxStore.layerMemory)
      )
    )
    yield* Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.andThen(
        Greet.defer({ name: "now" }),
        Greet.defer({ name: "later" }, { delay: "1 hour" })
      ))
      yield* settled
      yield* TestClock.adjust("20 seconds")
      const before = yield* values
      assert.strictEqual(before["epilogue.outbox.intents Greet waiting"], 1)
      assert.strictEqual(before["epilogue.outbox.intents Greet delayed"], 1)
      assert.strictEqual(before["epilogue.outbox.intents Greet claimed"], 0)
      assert.strictEqual(before["epilogue.outbox.oldest Greet"], 20)

      const session = yield* Context.get(context, OutboxStore.OutboxStore).open({
        subscriptions: [{ tag: "Greet", versions: [1] }],
        lease: Duration.minutes(1)
      }).pipe(Effect.orDie)
      yield* session.claim({ rows: 1, bytes: 1_000 })
      yield* TestClock.adjust("10 seconds")
      const after = yield* values
      assert.strictEqual(after["epilogue.outbox.intents Greet waiting"], 0)
      assert.strictEqual(after["epilogue.outbox.intents Greet claimed"], 1)
      assert.strictEqual(after["epilogue.outbox.oldest Greet"], 0)
    }).pipe(Effect.provideContext(context))
  }).pipe(fresh))

it.effect("what is stored, and what is a duplicate, is counted at the commit", () =>
  Effect.gen(function*() {
    const twice = Effect.andThen(
      Greet.defer({ name: "a" }, { idempotencyKey: "a" }),
      Greet.defer({ name: "a" }, { idempotencyKey: "a" })
    )
    yield* Epilogue.atomic(twice)
    yield* Effect.exit(Epilogue.atomic(Effect.andThen(twice, Effect.fail("no commit"))))
    const counted = yield* values
    assert.strictEqual(counted["epilogue.intents enqueued"], 1)
    assert.strictEqual(counted["epilogue.intents duplicate"], 1)
  }).pipe(Effect.provide(Outbox.layer.pipe(Layer.provide(OutboxStore.layerMemory))), fresh))
