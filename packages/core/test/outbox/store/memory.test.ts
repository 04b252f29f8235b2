import { assert, describe, it } from "@effect/vitest"
import { IntentSink, OutboxStore } from "@epilogue/core"
import type { Envelope } from "@epilogue/core/IntentSink"
import { OutboxStoreConformance } from "@epilogue/core/testing"
import { Clock, Duration, Effect, Layer } from "effect"
import { TestClock } from "effect/testing"

OutboxStoreConformance.suite({
  name: "the memory store",
  describe,
  it: it.effect,
  layer: OutboxStore.layerMemory,
  layerKeeping: (keepDelivered) => OutboxStore.layerMemoryWith({ keepDelivered }),
  capabilities: { durable: false, transactional: false, ordered: true, priorities: true },
  elapse: TestClock.adjust,
  moment: Duration.seconds(1),
  histories: { runs: 1_500 }
})

const envelope = (id: string, tag: string): Envelope => ({
  id,
  tag,
  version: 1,
  payload: "{}",
  partitionKey: undefined,
  idempotencyKey: undefined,
  remember: 0,
  priority: 0,
  delay: undefined,
  runAt: undefined,
  traceparent: undefined
})

const open = Effect.fnUntraced(function*(...tags: ReadonlyArray<string>) {
  const store = yield* OutboxStore.OutboxStore
  return yield* store.open({
    subscriptions: tags.map((tag) => ({ tag, versions: [1] })),
    lease: Duration.seconds(10)
  })
})

const append = (...envelopes: ReadonlyArray<Envelope>) =>
  OutboxStore.OutboxStore.use((store) => store.append(envelopes))

const idsOf = (claimed: ReadonlyArray<OutboxStore.Claimed>) => claimed.map(({ id }) => id)

const everything = { rows: 100, bytes: 1e6 }

/** A clock of which somebody has set the time on the wall. */
const setBy = (clock: TestClock.TestClock, hours: number): Clock.Clock => ({
  ...clock,
  currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + hours * 3_600_000,
  currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(hours) * 3_600_000_000_000n
})

it.effect("what is released goes before what came after it", () =>
  Effect.gen(function*() {
    const session = yield* open("a")
    yield* append(...["1", "2", "3", "4"].map((id) => envelope(id, "a")))
    const claimed = yield* session.claim({ ...everything, rows: 3 })
    yield* session.settle(claimed.map((each) => ({ _tag: "Released", claimed: each })))
    assert.deepStrictEqual(idsOf(yield* session.claim(everything)), ["1", "2", "3", "4"])
  }).pipe(Effect.provide(OutboxStore.layerMemory)))

it.effect("tags take turns, from claim to claim as well", () =>
  Effect.gen(function*() {
    const session = yield* open("a", "b", "c")
    yield* append(...["1", "2", "3"].map((id) => envelope(`a${id}`, "a")), envelope("b1", "b"), envelope("c1", "c"))
    const ids: Array<string> = []
    for (let i = 0; i < 4; i++) ids.push(...idsOf(yield* session.claim({ ...everything, rows: 1 })))
    assert.deepStrictEqual(ids, ["a1", "b1", "c1", "a2"])
  }).pipe(Effect.provide(OutboxStore.layerMemory)))

it.effect("a clock on the wall that is set neither ends a lease nor prolongs it", () =>
  Effect.gen(function*() {
    const clock = yield* TestClock.testClockWith(Effect.succeed)
    const [session, observer] = [yield* open("a"), yield* open("a")]
    const set = <A, E, R>(effect: Effect.Effect<A, E, R>, hours: number) =>
      Effect.provideService(effect, Clock.Clock, setBy(clock, hours))
    yield* append(envelope("1", "a"))
    assert.deepStrictEqual(idsOf(yield* session.claim(everything)), ["1"])
    for (const hours of [1, -1]) {
      yield* TestClock.adjust("9 seconds")
      assert.isFalse((yield* set(observer.beat, hours)).hasExpired)
      assert.strictEqual(yield* set(observer.recover, hours), 0)
      assert.isTrue((yield* set(session.beat, -hours)).isAlive)
    }
    yield* TestClock.adjust("10 seconds")
    assert.strictEqual(yield* set(observer.recover, -1), 1)
  }).pipe(Effect.provide(OutboxStore.layerMemory)))

it.effect("a codec is one of both the sink and the store that it is set for, and leaves what is stored as it is", () =>
  Effect.gen(function*() {
    const codec: IntentSink.Codec = { encode: () => Effect.succeed("encoded"), decode: () => Effect.succeed("decoded") }
    yield* Effect.gen(function*() {
      const [sink, store] = [yield* IntentSink.IntentSink, yield* OutboxStore.OutboxStore]
      assert.strictEqual(sink.codec, codec)
      assert.strictEqual(store.codec, codec)
      const session = yield* open("a")
      yield* sink.append([envelope("1", "a")])
      assert.deepStrictEqual((yield* session.claim(everything)).map(({ payload }) => payload), ["{}"])
    }).pipe(Effect.provide(OutboxStore.layerCodec(codec).pipe(Layer.provide(OutboxStore.layerMemory))))
  }))

it.effect("a rate's clock is one that nobody sets", () =>
  Effect.gen(function*() {
    const clock = yield* TestClock.testClockWith(Effect.succeed)
    const store = yield* OutboxStore.OutboxStore
    const session = yield* store.open({
      subscriptions: [{ tag: "a", versions: [1], rateLimit: { limit: 4, window: Duration.seconds(4) } }],
      lease: Duration.minutes(1)
    })
    const tokensAt = (hours: number) =>
      session.permit([{ tag: "a", running: 0, concurrency: 0, tokens: 9 }]).pipe(
        Effect.map(([permit]) => permit!.tokens),
        Effect.provideService(Clock.Clock, setBy(clock, hours))
      )
    assert.strictEqual(yield* tokensAt(0), 4)
    assert.strictEqual(yield* tokensAt(1), 0)
    assert.strictEqual(yield* tokensAt(-1), 0)
    yield* TestClock.adjust("2 seconds")
    assert.strictEqual(yield* tokensAt(-1), 2)
    assert.strictEqual(yield* tokensAt(0), 0)
  }).pipe(Effect.provide(OutboxStore.layerMemory)))
