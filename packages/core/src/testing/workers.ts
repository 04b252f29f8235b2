/**
 * A worker over the store delivers what was appended: what Effect asks of a `PersistedQueue`, and more.
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { Envelope } from "../Envelope.ts"
import * as Epilogue from "../Epilogue.ts"
import type { Delivery } from "../Handler.ts"
import * as Intent from "../Intent.ts"
import { IntentSink } from "../IntentSink.ts"
import * as Outbox from "../Outbox.ts"
import { OutboxStore } from "../OutboxStore.ts"
import * as OutboxWorker from "../OutboxWorker.ts"
import { equal, isTrue } from "./check.ts"
import { claimNothing, claimOne, type Fixture, freshTag, idsOf, none, sorted } from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

type Payload = { readonly n: number }

export const workers = (test: Test, { capabilities }: SuiteOptions): void => {
  test("what is appended is delivered once, as it was deferred", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<Delivery<Payload>> = []
      const worker = yield* start(fixture, (delivery) => Effect.sync(() => void delivered.push(delivery)))
      const envelope = item(fixture, 42)
      yield* fixture.append(envelope)
      yield* eventually(fixture, "it is delivered", () => delivered.length > 0)
      yield* fixture.pass(3)
      yield* worker.close
      equal(
        delivered.map(({ attempt, crashes, id, payload }) => ({ attempt, crashes, id, payload })),
        [{ attempt: 1, crashes: 0, id: envelope.id, payload: { n: 42 } }],
        "what was delivered"
      )
      yield* isEmpty(fixture)
    }))

  test("what a boundary deferred is delivered after it, and what it discarded never is", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<number> = []
      const Item = intentOf(fixture)
      yield* start(fixture, ({ payload: { n } }) => Effect.sync(() => void delivered.push(n)))
      const engine = Outbox.layer.pipe(Layer.provide(Layer.succeed(IntentSink, fixture.store)))
      yield* Effect.gen(function*() {
        yield* Effect.flip(Epilogue.atomic(Effect.andThen(Item.defer({ n: 1 }), Effect.fail("discarded"))))
        const report = yield* Epilogue.report(Effect.gen(function*() {
          yield* Item.defer({ n: 2 })
          yield* Effect.flip(Epilogue.atomic(Effect.andThen(Item.defer({ n: 3 }), Effect.fail("discarded"))))
          yield* Item.defer({ n: 4 })
        }))
        equal(report.outcomes.map(({ _tag }) => _tag), ["Enqueued", "Enqueued"], "what it reports")
      }).pipe(Effect.provide(engine))
      yield* eventually(fixture, "both are delivered", () => delivered.length >= 2)
      yield* fixture.pass(3)
      equal(delivered.toSorted((a, b) => a - b), [2, 4], "what was delivered")
    }))

  test("what is being delivered is delivered to no other worker, and an interrupted one is, uncounted", (fixture) =>
    Effect.gen(function*() {
      const begun = yield* Deferred.make<void>()
      const first = yield* start(fixture, () => Effect.andThen(Deferred.succeed(begun, undefined), Effect.never), {
        drainTimeout: fixture.moments(1)
      })
      yield* fixture.append(item(fixture, 42))
      yield* Deferred.await(begun)
      const attempts: Array<number> = []
      const second = yield* start(fixture, ({ attempt }) => Effect.sync(() => void attempts.push(attempt)))
      yield* fixture.pass(12)
      equal(attempts, [], "what the second worker was given meanwhile")
      const closing = yield* Effect.forkScoped(first.close)
      yield* eventually(fixture, "the second worker has it", () => attempts.length > 0)
      yield* eventually(fixture, "the first worker is closed", () => closing.pollUnsafe() !== undefined)
      yield* Fiber.join(closing)
      yield* fixture.pass(3)
      equal(attempts, [1], "the attempts of the second worker")
      yield* second.close
      yield* isEmpty(fixture)
    }))

  test("what has succeeded is not delivered again", (fixture) =>
    Effect.gen(function*() {
      const release = yield* Deferred.make<void>()
      let count = 0
      const handle = () => Effect.suspend(() => count++ === 0 ? Deferred.await(release) : Effect.void)
      const all = [yield* start(fixture, handle), yield* start(fixture, handle)]
      yield* fixture.append(item(fixture, 42))
      yield* eventually(fixture, "it is being delivered", () => count > 0)
      yield* fixture.pass(12)
      yield* Deferred.succeed(release, undefined)
      yield* fixture.pass(12)
      equal(count, 1, "how often it was delivered")
      yield* Effect.forEach(all, ({ close }) => close)
      yield* isEmpty(fixture)
    }))

  test("a delivery that failed or died is made again after its delay, and the attempt counts", (fixture) =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      yield* start(fixture, ({ attempt }) =>
        Effect.suspend(() => {
          attempts.push(attempt)
          return attempt === 1 ? Effect.fail("boom") : attempt === 2 ? Effect.die("boom") : Effect.void
        }))
      yield* fixture.append(item(fixture, 42))
      yield* eventually(fixture, "it is delivered three times", () => attempts.length === 3)
      yield* fixture.pass(3)
      equal(attempts, [1, 2, 3], "the attempts")
    }))

  test("an intent whose attempts are used up is a dead letter", (fixture) =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      const worker = yield* start(
        fixture,
        ({ attempt }) => Effect.andThen(Effect.sync(() => void attempts.push(attempt)), Effect.fail("boom")),
        {},
        { maxAttempts: 2 }
      )
      yield* fixture.append(item(fixture, 42))
      yield* eventually(fixture, "it is delivered twice", () => attempts.length === 2)
      yield* fixture.pass(12)
      yield* worker.close
      equal(attempts, [1, 2], "the attempts")
      yield* isEmpty(fixture, 1)
    }))

  test("a handler that rejects an intent makes it a dead letter at once", (fixture) =>
    Effect.gen(function*() {
      let count = 0
      const worker = yield* start(fixture, () =>
        Effect.suspend(() => {
          count++
          return Intent.reject("there is no such order")
        }))
      yield* fixture.append(item(fixture, 42))
      yield* eventually(fixture, "it is delivered", () => count > 0)
      yield* fixture.pass(12)
      yield* worker.close
      equal(count, 1, "how often it was delivered")
      yield* isEmpty(fixture, 1)
    }))

  test("a handler that snoozes an intent is given it again later, and the attempt does not count", (fixture) =>
    Effect.gen(function*() {
      const attempts: Array<number> = []
      yield* start(
        fixture,
        ({ attempt }) =>
          Effect.suspend(() => {
            attempts.push(attempt)
            return attempts.length < 3 ? Intent.snooze(fixture.moments(2)) : Effect.void
          }),
        {},
        { maxAttempts: 1 }
      )
      yield* fixture.append(item(fixture, 42))
      yield* eventually(fixture, "it is delivered", () => attempts.length > 0)
      equal(attempts.length, 1, "how often it was delivered before it was due again")
      yield* eventually(fixture, "it is delivered three times", () => attempts.length === 3)
      equal(attempts, [1, 1, 1], "the attempts")
    }))

  test("a payload that no worker can read is a dead letter after a grace, and keeps nothing waiting", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<number> = []
      const worker = yield* start(
        fixture,
        ({ payload: { n } }) => Effect.sync(() => void delivered.push(n)),
        { decodeGrace: fixture.moments(5) }
      )
      const unreadable = [`{"n":null}`, `{`, `"n"`].map((payload) => fixture.envelope({ payload }))
      yield* fixture.append(...unreadable, item(fixture, 42))
      yield* eventually(fixture, "the other is delivered", () => delivered.length > 0)
      equal((yield* fixture.depth()).dead, 0, "how many are dead before the grace is over")
      yield* eventually(fixture, "they are dead", () => Effect.map(fixture.depth(), ({ dead }) => dead === 3))
      yield* worker.close
      equal(delivered, [42], "what was delivered")
      yield* isEmpty(fixture, 3)
    }))

  test("a second intent with an idempotency key is not delivered", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<number> = []
      yield* start(fixture, ({ payload: { n } }) => Effect.sync(() => void delivered.push(n)))
      yield* fixture.append(item(fixture, 1, { idempotencyKey: "k" }))
      yield* fixture.append(item(fixture, 2, { idempotencyKey: "k" }))
      yield* eventually(fixture, "the first is delivered", () => delivered.length > 0)
      yield* fixture.append(item(fixture, 3, { idempotencyKey: "k" }))
      yield* fixture.pass(3)
      equal(delivered, [1], "what was delivered")
    }))

  test("a delayed intent is delivered after its delay", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<number> = []
      yield* start(fixture, ({ payload: { n } }) => Effect.sync(() => void delivered.push(n)))
      yield* fixture.append(item(fixture, 1, { delay: fixture.millis(10) }), item(fixture, 2))
      yield* eventually(fixture, "the other is delivered", () => delivered.length > 0)
      equal(delivered, [2], "what was delivered before")
      yield* eventually(fixture, "both are delivered", () => delivered.length > 1)
      equal(delivered, [2, 1], "what was delivered")
    }))

  test("what a dead worker had claimed is delivered by another", (fixture) =>
    Effect.gen(function*() {
      const dead = yield* fixture.openMortal()
      const envelope = item(fixture, 42)
      yield* fixture.append(envelope)
      yield* claimOne(dead)
      const delivered: Array<Delivery<Payload>> = []
      const worker = yield* start(fixture, (delivery) => Effect.sync(() => void delivered.push(delivery)))
      yield* eventually(fixture, "it is delivered", () => delivered.length > 0)
      equal(delivered.map(({ attempt, crashes }) => [attempt, crashes]), [[1, 0]], "its attempts and crashes")
      yield* worker.close
      yield* isEmpty(fixture)
    }))

  test("workers side by side deliver each intent once", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<string> = []
      const handle = ({ id }: Delivery<Payload>) =>
        Effect.andThen(Effect.yieldNow, Effect.sync(() => delivered.push(id)))
      const all = yield* Effect.forEach([1, 2, 3], () => start(fixture, handle))
      const envelopes = Array.from({ length: 300 }, (_, n) => item(fixture, n))
      yield* Effect.forEach(
        [0, 100, 200],
        (from) => fixture.append(...envelopes.slice(from, from + 100)),
        { concurrency: "unbounded" }
      )
      yield* eventually(fixture, "all are delivered", () => delivered.length >= 300)
      yield* Effect.forEach(all, ({ close }) => close)
      equal(sorted(delivered), sorted(idsOf(envelopes)), "what was delivered")
      yield* isEmpty(fixture)
    }))

  test("a worker runs no more deliveries at once than it was told to", (fixture) =>
    Effect.gen(function*() {
      let [running, most, count] = [0, 0, 0]
      const handle = () =>
        Effect.gen(function*() {
          most = Math.max(most, ++running)
          for (let i = 0; i < 5; i++) yield* Effect.yieldNow
          running--
          count++
        })
      yield* start(fixture, handle, { concurrency: 3 })
      yield* fixture.append(...Array.from({ length: 30 }, (_, n) => item(fixture, n)))
      yield* eventually(fixture, "all are delivered", () => count === 30)
      equal(most, 3, "the most at once")
    }))

  test("a batched handler is given several at once, and each has its own result", (fixture) =>
    Effect.gen(function*() {
      const batches: Array<ReadonlyArray<readonly [number, number]>> = []
      const Item = intentOf(fixture)
      const Handlers = Item.toLayerBatched((deliveries) =>
        Effect.sync(() => {
          batches.push(deliveries.map(({ attempt, payload: { n } }) => [n, attempt] as const))
          return deliveries.map(({ attempt, payload: { n } }) =>
            n === 2 && attempt === 1 ? Result.fail("boom") : Result.succeed(undefined)
          )
        }), { maxSize: 4, maxWait: fixture.moments(1) })
      yield* fixture.append(...[1, 2, 3, 4].map((n) => item(fixture, n)))
      const worker = yield* startWith(fixture, OutboxWorker.layer({ intents: [Item] }).pipe(Layer.provide(Handlers)))
      yield* eventually(fixture, "the failed one is delivered again", () => batches.length > 1)
      equal(
        batches.map((batch) => batch.toSorted(([a], [b]) => a - b)),
        [[[1, 1], [2, 1], [3, 1], [4, 1]], [[2, 2]]],
        "the batches"
      )
      yield* worker.close
      yield* isEmpty(fixture)
    }))

  test("a payload of a version that a worker does not know waits for one that does", (fixture) =>
    Effect.gen(function*() {
      const delivered: Array<string> = []
      const handle = (by: string) => ({ payload: { n } }: Delivery<Payload>) =>
        Effect.sync(() => void delivered.push(`${n} by ${by}`))
      const old = yield* start(fixture, handle("old"))
      yield* fixture.append(item(fixture, 2, { version: 2 }), item(fixture, 1))
      yield* eventually(fixture, "what it knows is delivered", () => delivered.length > 0)
      yield* fixture.pass(3)
      equal(delivered, ["1 by old"], "what the old worker delivers")
      yield* old.close
      yield* start(fixture, handle("new"), {}, { version: 2, previous: { 1: Schema.Struct({ n: Schema.Int }) } })
      yield* eventually(fixture, "the other is delivered", () => delivered.length > 1)
      equal(delivered, ["1 by old", "2 by new"], "what was delivered")
    }))

  if (capabilities.ordered) {
    test("deliveries of one key are made one at a time and in order, over workers and through failures", (fixture) =>
      Effect.gen(function*() {
        const delivered = new Map<string, Array<string>>()
        const running = new Set<string>()
        let tooMany = 0
        const handle = ({ attempt, payload: { n } }: Delivery<Payload>) =>
          Effect.gen(function*() {
            const key = String(n % 3)
            if (running.has(key)) tooMany++
            running.add(key)
            yield* Effect.yieldNow
            running.delete(key)
            delivered.set(key, [...(delivered.get(key) ?? []), `${n}#${attempt}`])
            if (n % 5 === 0 && attempt === 1) return yield* Effect.fail("boom")
          })
        yield* Effect.forEach([1, 2], () => start(fixture, handle, {}, { partitionKey: ({ n }) => String(n % 3) }))
        const numbers = Array.from({ length: 30 }, (_, n) => n)
        yield* fixture.append(...numbers.map((n) => item(fixture, n, { partitionKey: String(n % 3) })))
        yield* eventually(
          fixture,
          "all are delivered",
          () => Array.from(delivered.values()).flat().length === 36
        )
        equal(tooMany, 0, "how many were delivered beside another of their key")
        for (const key of [0, 1, 2]) {
          const expected = numbers.filter((n) => n % 3 === key).flatMap((n) =>
            n % 5 === 0 ? [`${n}#1`, `${n}#2`] : [`${n}#1`]
          )
          equal(delivered.get(String(key)), expected, `the order of key ${key}`)
        }
      }))
  }

  if (capabilities.transactional) {
    test("what a transactional handler defers is there if it succeeds, and not if it fails", (fixture) =>
      Effect.gen(function*() {
        const Item = intentOf(fixture)
        const Next = Intent.make(freshTag(), { payload: { n: Schema.Int } })
        const attempts: Array<number> = []
        const delivered: Array<number> = []
        const Handlers = Layer.merge(
          Item.toLayer((_, { attempt }) =>
            Effect.gen(function*() {
              attempts.push(attempt)
              yield* Next.defer({ n: attempt })
              if (attempt === 1) return yield* Effect.fail("boom")
            }), { transactional: true }),
          Next.toLayer(({ n }) => Effect.sync(() => void delivered.push(n)))
        )
        const worker = yield* startWith(
          fixture,
          OutboxWorker.layer({ intents: [Item, Next] }).pipe(Layer.provide(Handlers))
        )
        yield* fixture.append(item(fixture, 42))
        yield* eventually(fixture, "what it defers is delivered", () => delivered.length > 0)
        yield* fixture.pass(3)
        equal(attempts, [1, 2], "the attempts")
        equal(delivered, [2], "what was delivered of what it deferred")
        yield* worker.close
        yield* isEmpty(fixture)
      }))
  } else {
    test("a worker with a transactional handler is refused", (fixture) =>
      Effect.gen(function*() {
        const Item = intentOf(fixture)
        const Handlers = Item.toLayer(() => Effect.void, { transactional: true })
        const exit = yield* Effect.exit(
          startWith(fixture, OutboxWorker.layer({ intents: [Item] }).pipe(Layer.provide(Handlers)))
        )
        isTrue(Exit.isFailure(exit), "that it is refused")
      }))
  }
}

const intentOf = (fixture: Fixture, options?: Intent.Options<Payload>) =>
  Intent.make(fixture.tag, {
    payload: { n: Schema.Int },
    retry: Schedule.spaced(fixture.moments(1)),
    ...options
  })

const item = (fixture: Fixture, n: number, chosen?: Partial<Envelope>): Envelope =>
  fixture.envelope({ payload: JSON.stringify({ n }), ...chosen })

const start = (
  fixture: Fixture,
  handle: (delivery: Delivery<Payload>) => Effect.Effect<unknown, unknown>,
  options?: {
    readonly concurrency?: number
    readonly drainTimeout?: Duration.Duration
    readonly decodeGrace?: Duration.Duration
  },
  of?: Intent.Options<Payload>
) => {
  const Item = intentOf(fixture, of)
  const Handlers = Item.toLayer((_, delivery) => handle(delivery))
  return startWith(
    fixture,
    OutboxWorker.layer({ intents: [Item], lease: fixture.moments(8), ...options }).pipe(Layer.provide(Handlers))
  )
}

/** Starts a worker, which runs until it is closed, or the test is over. */
const startWith = <E>(fixture: Fixture, worker: Layer.Layer<never, E, OutboxStore>) =>
  Effect.gen(function*() {
    const scope = yield* Effect.acquireRelease(
      Scope.make(),
      // What a failed test has left running is nobody's to wait for.
      (opened) => Effect.forkDetach(Scope.close(opened, Exit.void))
    )
    yield* Layer.buildWithScope(worker, scope).pipe(
      Effect.provideContext(Context.make(OutboxStore, fixture.store))
    )
    return { close: Scope.close(scope, Exit.void) }
  })

/** Lets time pass until something is so. */
const eventually = Effect.fnUntraced(function*<E = never>(
  fixture: Fixture,
  what: string,
  condition: () => boolean | Effect.Effect<boolean, E>
) {
  for (let passed = 0; passed < 100; passed++) {
    const isSo = condition()
    if (typeof isSo === "boolean" ? isSo : yield* isSo) return
    yield* fixture.pass(1)
  }
  isTrue(false, `that ${what}`)
})

/** Nothing is left but dead letters. */
const isEmpty = Effect.fnUntraced(function*(fixture: Fixture, dead: number = 0) {
  yield* claimNothing(yield* fixture.open())
  equal(yield* fixture.depth(), { ...none(fixture.tag), dead }, "what is left")
})
