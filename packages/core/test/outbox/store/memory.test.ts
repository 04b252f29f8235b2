import { assert, describe, it } from "@effect/vitest"
import { OutboxStore } from "@epilogue/core"
import type { Envelope } from "@epilogue/core/IntentSink"
import { OutboxStoreConformance } from "@epilogue/core/testing"
import { Clock, Duration, Effect } from "effect"
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
      Effect.provideService(effect, Clock.Clock, {
        ...clock,
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + hours * 3_600_000,
        currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(hours) * 3_600_000_000_000n
      })
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
