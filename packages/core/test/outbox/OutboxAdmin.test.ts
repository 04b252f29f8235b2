import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, type IntentSink, OutboxAdmin, OutboxStore, OutboxWorker } from "@epilogue/core"
import { DateTime, Deferred, Duration, Effect, Layer, Option, Result, Schema, Stream } from "effect"
import { TestClock } from "effect/testing"
import { elapse, makeOutbox, settled } from "./support.ts"

class Ship extends Intent.make("Ship", {
  payload: { order: Schema.Int, of: Schema.String },
  partitionKey: ({ of }) => of,
  onExhausted: "block"
}) {}

class Notify extends Intent.make("Notify", { payload: { order: Schema.Int } }) {}

/** An operator, beside boundaries and workers over one store. */
const makeOperator = Effect.fnUntraced(function*(store: typeof OutboxStore.layerMemory = OutboxStore.layerMemory) {
  const outbox = yield* makeOutbox(store)
  const admin = yield* OutboxAdmin.OutboxAdmin.pipe(
    Effect.provide(OutboxAdmin.layer),
    Effect.provideService(OutboxStore.OutboxStore, outbox.store)
  )
  return {
    ...outbox,
    admin,
    defer: (effect: Effect.Effect<Intent.Id, never, Epilogue.Epilogue>) => outbox.provide(effect),
    ship: (order: number, of = "ada", options?: Intent.DeferOptions) =>
      outbox.provide(Epilogue.atomic(Ship.defer({ order, of }, options))),
    notify: (order: number, options?: Intent.DeferOptions) =>
      outbox.provide(Epilogue.atomic(Notify.defer({ order }, options))),
    why: (id: string) => Effect.map(admin.why(id), Option.getOrThrow),
    words: (id: string) => Effect.map(admin.why(id), (all) => Option.getOrThrow(all).map(OutboxAdmin.describe)),
    list: (filter?: OutboxAdmin.Filter) =>
      Effect.map(admin.list(filter), ({ entries }) => entries.map(({ id, state }) => [id, state]))
  }
})

/** A worker of both intents. */
const worker = (
  handle: (payload: { readonly order: number }, delivery: Intent.Delivery) => Effect.Effect<unknown, unknown>,
  options?: Partial<OutboxWorker.Options<readonly [typeof Ship, typeof Notify]>>
) =>
  OutboxWorker.layer({ ...options, intents: [Ship, Notify] }).pipe(
    Layer.provide([Ship.toLayer(handle), Notify.toLayer(handle)])
  )

const messageOf = (effect: Effect.Effect<unknown, IntentSink.IntentStoreError>) =>
  Effect.map(Effect.flip(effect), ({ message }) => message)

const noId = "0198c6e3-0000-7000-8000-000000000000"

describe("what an operator sees", () => {
  it.effect("counts tell how much there is of each tag, and for how long the oldest has been due", () =>
    Effect.gen(function*() {
      const { admin, notify, ship } = yield* makeOperator()
      yield* ship(1)
      yield* notify(1, { delay: "1 hour" })
      yield* TestClock.adjust("90 seconds")
      assert.deepStrictEqual(yield* admin.counts, [
        { tag: "Ship", waiting: 1, claimed: 0, delayed: 0, dead: 0, lag: Duration.seconds(90) },
        { tag: "Notify", waiting: 0, claimed: 0, delayed: 1, dead: 0, lag: Duration.zero }
      ])
    }))

  it.effect("a list goes on where it ended, and a stream is all of it", () =>
    Effect.gen(function*() {
      const { admin, notify } = yield* makeOperator()
      const ids = yield* Effect.forEach([1, 2, 3, 4, 5], (order) => notify(order))
      const first = yield* admin.list({ tag: "Notify" }, { limit: 3 })
      assert.deepStrictEqual(first.entries.map(({ id }) => id), ids.slice(0, 3))
      const second = yield* admin.list({ tag: "Notify" }, { limit: 3, after: first.next })
      assert.deepStrictEqual(second.entries.map(({ id }) => id), ids.slice(3))
      assert.isUndefined(second.next)
      assert.strictEqual((yield* admin.list()).entries.length, 5)
      const streamed = yield* Stream.runCollect(admin.stream())
      assert.deepStrictEqual(streamed.map(({ id }) => id), ids)
    }))

  it.effect("a stream of more than a list may have is still all of it", () =>
    Effect.gen(function*() {
      const { admin, provide } = yield* makeOperator()
      yield* provide(
        Epilogue.atomic(Effect.forEach(Array.from({ length: 1_001 }), (_, order) => Notify.defer({ order })))
      )
      assert.strictEqual((yield* Stream.runCollect(admin.stream({ tag: "Notify" }))).length, 1_001)
    }))

  it.effect("a filter means those that are all of what it says", () =>
    Effect.gen(function*() {
      const { list, notify, ship } = yield* makeOperator()
      const [a, b] = [yield* ship(1, "ada"), yield* ship(2, "bob")]
      yield* TestClock.adjust("2 hours")
      const c = yield* notify(3, { delay: "1 hour" })
      assert.deepStrictEqual(yield* list({ partitionKey: "bob" }), [[b, "waiting"]])
      assert.deepStrictEqual(yield* list({ olderThan: "1 hour", ids: [a.toUpperCase(), c] }), [[a, "waiting"]])
      assert.deepStrictEqual(yield* list({ states: ["delayed", "dead"] }), [[c, "delayed"]])
      assert.deepStrictEqual(yield* list({ tag: "Ship", partitionKey: "nobody" }), [])
      assert.deepStrictEqual(yield* list({ ids: [] }), [])
    }))

  it.effect("an intent tells its payload, its times, how it last failed, and what happened to it", () =>
    Effect.gen(function*() {
      const { admin, ship, start } = yield* makeOperator()
      const id = yield* ship(1)
      const { close } = yield* start(worker(() => Effect.fail("no carrier")))
      yield* close
      const detail = Option.getOrThrow(yield* admin.get(id))
      assert.deepStrictEqual(detail.payload, Result.succeed(`{"order":1,"of":"ada"}`))
      assert.include(detail.failure, "no carrier")
      assert.deepStrictEqual(detail.history.map(({ at, what }) => [at.epochMilliseconds, what]), [[0, "failed"]])
      assert.strictEqual(detail.state, "delayed")
      assert.deepStrictEqual([detail.enqueuedAt, detail.dueAt], [DateTime.makeUnsafe(0), DateTime.makeUnsafe(1_000)])
      assert.isTrue(Option.isNone(yield* admin.get(noId)))
    }))

  it.effect("a payload is told as the store's codec decodes it, and one that it can't decode with the reason", () =>
    Effect.gen(function*() {
      const codec: IntentSink.Codec = {
        encode: (payload) => Effect.succeed(btoa(payload)),
        decode: (stored, { tag }) => tag === "Ship" ? Effect.fail("the key is lost") : Effect.sync(() => atob(stored))
      }
      const { admin, notify, ship } = yield* makeOperator(
        OutboxStore.layerCodec(codec).pipe(Layer.provide(OutboxStore.layerMemory))
      )
      const readable = Option.getOrThrow(yield* admin.get(yield* notify(1)))
      assert.deepStrictEqual(readable.payload, Result.succeed(`{"order":1}`))
      const id = yield* ship(1)
      const unreadable = Option.getOrThrow(yield* admin.get(id))
      assert.strictEqual(unreadable.tag, "Ship")
      assert.strictEqual(
        Result.getOrThrow(Result.flip(unreadable.payload)).message,
        `The store's codec can't decode the payload of intent ${id}: the key is lost. `
          + "Give this program a codec that knows the key it was encoded with."
      )
    }))

  it.effect("what is told is JSON and back", () =>
    Effect.gen(function*() {
      const { admin, ship } = yield* makeOperator()
      const id = yield* ship(1)
      const detail = Option.getOrThrow(yield* admin.get(id))
      const codec = Schema.fromJsonString(Schema.toCodecJson(OutboxAdmin.Detail))
      assert.deepStrictEqual(
        yield* Schema.decodeEffect(codec)(yield* Schema.encodeEffect(codec)(detail)),
        detail
      )
    }))

  it.effect("workers are told with what they deliver and hold, and are gone when they close", () =>
    Effect.gen(function*() {
      const { admin, ship, start } = yield* makeOperator()
      yield* ship(1)
      const { close } = yield* start(worker(() => Effect.never, { lease: "30 seconds", drainTimeout: 0 }))
      yield* settled
      const [session, ...others] = yield* admin.workers
      assert.deepStrictEqual(others, [])
      assert.deepStrictEqual(session?.subscriptions, [{ tag: "Ship", version: 1 }, { tag: "Notify", version: 1 }])
      assert.deepStrictEqual([session?.claimed, session?.startedAt.epochMilliseconds], [1, 0])
      assert.strictEqual(session?.leaseEndsAt.epochMilliseconds, 30_000)
      yield* close
      assert.deepStrictEqual(yield* admin.workers, [])
    }))
})

describe("why an intent is blocked", () => {
  it.effect("one that the next claim may take has no reason, and one that is not there is none", () =>
    Effect.gen(function*() {
      const { admin, ship, store, why } = yield* makeOperator()
      yield* store.open({ subscriptions: [{ tag: "Ship", versions: [1] }], lease: Duration.seconds(10) })
      assert.deepStrictEqual(yield* why(yield* ship(1)), [])
      assert.isTrue(Option.isNone(yield* admin.why(noId)))
    }))

  it.effect("NoWorker: no worker delivers its tag", () =>
    Effect.gen(function*() {
      const { ship, words } = yield* makeOperator()
      assert.deepStrictEqual(yield* words(yield* ship(1)), [
        "No worker that is alive delivers version 1 of \"Ship\": start one."
      ])
    }))

  it.effect("NotDue: it was delayed, or has failed", () =>
    Effect.gen(function*() {
      const { notify, ship, start, words } = yield* makeOperator()
      yield* start(worker(() => Effect.fail("no carrier")))
      assert.deepStrictEqual(yield* words(yield* notify(1, { delay: "1 hour" })), [
        "It is not due before 1970-01-01T01:00:00.000Z."
      ])
      const failed = yield* ship(1)
      yield* settled
      assert.deepStrictEqual(yield* words(failed), ["It is not due before 1970-01-01T00:00:01.000Z."])
    }))

  it.effect("Held: a worker has claimed it; BehindIntent: another one of its key comes first", () =>
    Effect.gen(function*() {
      const { admin, ship, start, words } = yield* makeOperator()
      yield* start(worker(() => Effect.never, { drainTimeout: 0 }))
      const first = yield* ship(1)
      yield* settled
      const second = yield* ship(2)
      const [session] = yield* admin.workers
      assert.deepStrictEqual(yield* words(first), [
        `A worker has claimed it, in session ${session!.session}, whose lease ends at 1970-01-01T00:00:15.000Z `
        + "unless it is kept alive."
      ])
      assert.deepStrictEqual(yield* words(second), [`Intent ${first} comes before it in its partition key "ada".`])
    }))

  it.effect("KeyBlocked: a dead letter keeps its key; Dead: it is that dead letter", () =>
    Effect.gen(function*() {
      const { admin, list, ship, start, words } = yield* makeOperator()
      const shipped: Array<number> = []
      yield* start(worker(({ order }, { crashes }) =>
        order === 1 && crashes === 0 && shipped.length === 0
          ? Intent.reject("no such address")
          : Effect.sync(() => shipped.push(order))
      ))
      const [first, second] = [yield* ship(1), yield* ship(2)]
      yield* settled
      const [dead] = yield* words(first)
      assert.match(
        dead!,
        /^It is a dead letter since 1970-01-01T00:00:00.000Z, because it was rejected: .*no such address/
      )
      assert.deepStrictEqual(yield* words(second), [
        `The dead letter ${first} keeps its partition key "ada" from going on: retry it, or purge it.`
      ])
      assert.strictEqual(yield* admin.purge({ ids: [first] }), 1)
      yield* settled
      assert.deepStrictEqual([shipped, yield* list()], [[2], []])
    }))

  it.effect("Paused: its tag is, or its key", () =>
    Effect.gen(function*() {
      const { admin, ship, start, words } = yield* makeOperator()
      yield* start(worker(() => Effect.void))
      yield* admin.pause({ tag: "Ship" })
      yield* admin.pause({ tag: "Ship", partitionKey: "ada" })
      assert.deepStrictEqual(yield* words(yield* ship(1)), [
        "Its tag \"Ship\" is paused: resume it.",
        "Its partition key \"ada\" is paused, of the tag \"Ship\": resume it."
      ])
    }))

  it.effect("LimitReached: as many as may run are running, or as many as may start have started", () =>
    Effect.gen(function*() {
      const { notify, start, words } = yield* makeOperator()
      const Handlers = Notify.toLayer(() => Effect.never, {
        concurrency: 1,
        rateLimit: { limit: 1, window: "1 hour" }
      })
      yield* start(
        OutboxWorker.layer({ intents: [Notify], drainTimeout: 0 }).pipe(Layer.provide(Handlers))
      )
      yield* notify(1)
      yield* elapse("1 second")
      assert.deepStrictEqual(yield* words(yield* notify(2)), [
        "As many of its tag are running as may run at once.",
        "As many of its tag have started as may start in this time."
      ])
    }))

  it.effect("Suspect: its worker died while it ran", () =>
    Effect.gen(function*() {
      const { notify, store, why, words } = yield* makeOperator()
      const lease = Duration.seconds(10)
      const subscriptions = [{ tag: "Notify", versions: [1] }]
      const [mortal, other] = [yield* store.open({ subscriptions, lease }), yield* store.open({ subscriptions, lease })]
      const id = yield* notify(1)
      yield* mortal.start(yield* mortal.claim({ rows: 1, bytes: 1_000 }))
      yield* TestClock.adjust("11 seconds")
      yield* other.beat
      assert.strictEqual(yield* other.recover, 1)
      assert.deepStrictEqual(yield* why(id), [{ _tag: "Suspect" }])
      assert.deepStrictEqual(yield* words(id), [
        "It was running when its worker died, so it waits until a worker has time to run it alone."
      ])
    }))

  it.effect("Undecodable: no worker could read it", () =>
    Effect.gen(function*() {
      const { start, store, words } = yield* makeOperator()
      yield* start(worker(() => Effect.void))
      yield* store.append([{
        id: noId,
        tag: "Notify",
        version: 1,
        payload: "{}",
        partitionKey: undefined,
        idempotencyKey: undefined,
        remember: 0,
        priority: 0,
        delay: undefined,
        runAt: undefined,
        traceparent: undefined
      }])
      yield* elapse("5 seconds")
      const [sentence, ...others] = yield* words(noId)
      assert.deepStrictEqual(others, [])
      assert.match(
        sentence!,
        /^No worker could read it since 1970-.*Z, so it is put off until 1970-.*Z: start a worker that can\.$/
      )
    }))

  it.effect("Delivered: it was, and the store keeps it", () =>
    Effect.gen(function*() {
      const { notify, start, words } = yield* makeOperator(OutboxStore.layerMemoryWith({ keepDelivered: "1 day" }))
      yield* start(worker(() => Effect.void))
      const id = yield* notify(1)
      yield* settled
      assert.deepStrictEqual(yield* words(id), ["It was delivered at 1970-01-01T00:00:00.000Z."])
    }))
})

describe("what an operator decides", () => {
  it.effect("what is rejected is a dead letter for that reason, and due again when it is retried", () =>
    Effect.gen(function*() {
      const { admin, list, notify, start } = yield* makeOperator()
      const id = yield* notify(1, { delay: "1 hour" })
      assert.strictEqual(yield* admin.reject({ ids: [id] }, "there is no such order"), 1)
      const detail = Option.getOrThrow(yield* admin.get(id))
      assert.deepStrictEqual([detail.state, detail.reason, detail.failure], [
        "dead",
        "rejected",
        "there is no such order"
      ])
      assert.strictEqual(yield* admin.retry({}), 1)
      assert.deepStrictEqual(yield* list(), [[id, "waiting"]])
      const delivered = yield* Deferred.make<number>()
      yield* start(worker(({ order }) => Deferred.succeed(delivered, order)))
      assert.strictEqual(yield* Deferred.await(delivered), 1)
    }))

  it.effect("a handler that runs is interrupted within a beat when its intent is cancelled", () =>
    Effect.gen(function*() {
      const { admin, list, notify, start } = yield* makeOperator()
      const interrupted = yield* Deferred.make<void>()
      yield* start(worker(() => Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined))))
      const id = yield* notify(1)
      yield* settled
      assert.strictEqual(yield* admin.cancel({ ids: [id] }), 1)
      yield* elapse("5 seconds")
      assert.isTrue(Deferred.isDoneUnsafe(interrupted))
      assert.deepStrictEqual(yield* list(), [])
    }))

  it.effect("what is erased is gone in every tag, and what is remembered of it", () =>
    Effect.gen(function*() {
      const { admin, list, ship } = yield* makeOperator()
      const key = { idempotencyKey: "once" }
      yield* ship(1, "ada", key)
      const other = yield* ship(2, "bob")
      assert.strictEqual(yield* admin.erase({ partitionKey: "ada" }), 1)
      assert.deepStrictEqual(yield* list(), [[other, "waiting"]])
      const again = yield* ship(1, "ada", key)
      assert.deepStrictEqual(yield* list({ ids: [again] }), [[again, "waiting"]])
    }))

  it.effect("what is paused is not delivered until it is resumed", () =>
    Effect.gen(function*() {
      const { admin, list, notify, ship, start } = yield* makeOperator()
      yield* admin.pause({ tag: "Notify" })
      yield* admin.pause({ tag: "Ship", partitionKey: "ada" })
      assert.deepStrictEqual(yield* admin.paused, [
        { tag: "Notify", partitionKey: undefined },
        { tag: "Ship", partitionKey: "ada" }
      ])
      yield* start(worker(() => Effect.void))
      const [id, keyed] = [yield* notify(1), yield* ship(1)]
      yield* elapse("10 seconds")
      assert.deepStrictEqual(yield* list(), [[id, "waiting"], [keyed, "waiting"]])
      yield* admin.resume({ tag: "Notify" })
      yield* settled
      assert.deepStrictEqual(yield* list(), [[keyed, "waiting"]])
      yield* admin.resume({ tag: "Ship", partitionKey: "ada" })
      yield* settled
      assert.deepStrictEqual([yield* list(), yield* admin.paused], [[], []])
    }))

  it.effect("what means every intent has to say so, unless it only retries", () =>
    Effect.gen(function*() {
      const { admin, list, notify } = yield* makeOperator()
      const id = yield* notify(1)
      for (const filter of [{}, { olderThan: 0 }, { states: ["waiting", "dead"], all: false }] as const) {
        assert.include(yield* messageOf(admin.cancel(filter)), "Nothing was cancelled")
        assert.include(yield* messageOf(admin.reject(filter, "?")), "Nothing was rejected")
        assert.strictEqual(
          yield* messageOf(admin.purge(filter)),
          "Nothing was purged, because the selection has no `ids`, `tag` or `partitionKey`. "
            + "Give it one, or `all: true` if every intent is meant."
        )
      }
      assert.deepStrictEqual(yield* list(), [[id, "waiting"]])
      assert.strictEqual(yield* admin.reject({ all: true }, "?"), 1)
      assert.strictEqual(yield* admin.purge({ all: true }), 1)
      yield* notify(1)
      assert.strictEqual(yield* admin.cancel({ all: true, olderThan: "1 hour" }), 0)
      assert.strictEqual(yield* admin.cancel({ all: true }), 1)
    }))

  it.effect("bad input fails, and says what to give instead", () =>
    Effect.gen(function*() {
      const { admin } = yield* makeOperator()
      for (const limit of [0, -1, 1.5, 1_001, NaN]) {
        assert.strictEqual(
          yield* messageOf(admin.list({}, { limit })),
          `A list can't have a \`limit\` of ${limit}. Choose one of 1 to 1000.`
        )
      }
      const noUuid = "\"42\" is no id of an intent. Give the UUID that `defer` has answered, or that a list tells."
      for (
        const asked of [admin.get("42"), admin.why("42"), admin.retry({ ids: ["42"] }), admin.list({}, { after: "42" })]
      ) {
        assert.strictEqual(yield* messageOf(asked), noUuid)
      }
      for (const olderThan of [-1, -5n, "Infinity"] as const) {
        assert.include(yield* messageOf(admin.list({ olderThan })), "Give a duration that is not negative")
      }
      // A state that comes from the command line, say.
      const state = "done" as OutboxAdmin.State
      assert.strictEqual(
        yield* messageOf(Stream.runCollect(admin.stream({ states: [state] }))),
        "There is no state \"done\". The states are \"waiting\", \"claimed\", \"delayed\", \"dead\", \"delivered\"."
      )
      assert.include(yield* messageOf(admin.reject({ all: true }, " ")), "there is no reason")
      // As a program without types may call it.
      const nobody = {} as { readonly partitionKey: string }
      assert.include(yield* messageOf(admin.erase(nobody)), "there is no `partitionKey`")
    }))
})
