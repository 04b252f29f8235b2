import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Context, Effect, Layer, Schema } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient } from "effect/sql"
import { makeCompilerSqlite } from "effect/sql/Statement"
import { CapturedLogs, makeLog } from "../support.ts"
import { settled } from "./support.ts"

class Step extends Intent.make("Step", { payload: { n: Schema.Int }, partitionKey: () => "a" }) {}

/** A client of a database that does as it is told, and keeps nothing. */
const makeClient = SqlClient.make({
  acquirer: Effect.succeed({
    execute: () => Effect.succeed([]),
    executeRaw: () => Effect.succeed([]),
    executeStream: () => {
      throw new Error("nobody asks for it")
    },
    executeValues: () => Effect.succeed([]),
    executeValuesUnprepared: () => Effect.succeed([]),
    executeUnprepared: () => Effect.succeed([])
  }),
  compiler: makeCompilerSqlite(),
  driver: "test",
  spanAttributes: []
}).pipe(Effect.provide(Reactivity.layer))

/** The memory store, as if it were in a database. What is settled in a transaction is settled at once. */
const makeStore = Effect.fnUntraced(function*(
  change: (session: OutboxStore.Session) => Partial<OutboxStore.Session> = () => ({}),
  codec?: NonNullable<OutboxStore.OutboxStore.Service["codec"]>
) {
  const client = yield* makeClient
  const memory = Context.get(yield* Layer.build(OutboxStore.layerMemory), OutboxStore.OutboxStore)
  const settles: Array<ReadonlyArray<string>> = []
  const store: OutboxStore.OutboxStore.Service = {
    ...memory,
    codec,
    client,
    capabilities: { ...memory.capabilities, transactional: true },
    open: (options) =>
      Effect.map(memory.open(options), (session) => ({
        ...session,
        settle: (settlements) => {
          settles.push(settlements.map(({ _tag, claimed }) => `${_tag} ${claimed.payload}`))
          return session.settle(settlements)
        },
        settleInTransaction: (claimed) =>
          Effect.map(session.settle([{ _tag: "Succeeded", claimed }]), (lost) => lost.length === 0),
        ...change(session)
      }))
  }
  const engine = Outbox.layer.pipe(Layer.provide(Layer.succeed(IntentSink.IntentSink, store)))
  return { client, settles, store, engine }
})

const worker = (
  store: OutboxStore.OutboxStore.Service,
  handler: (n: number) => Effect.Effect<unknown, unknown, Epilogue.Deferred>
) =>
  OutboxWorker.layer({ intents: [Step] }).pipe(
    Layer.provide(Step.toLayer(({ n }) => handler(n), { transactional: true })),
    Layer.provide(Layer.succeed(OutboxStore.OutboxStore, store))
  )

const steps = Epilogue.atomic(Effect.forEach([1, 2, 3, 4], (n) => Step.defer({ n })))

describe("those of one key that settle in their own transactions", () => {
  it.effect("are delivered in order, and none of them is settled again", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { engine, settles, store } = yield* makeStore()
      yield* Effect.provide(steps, engine)
      yield* Layer.build(worker(store, (n) => log.add(`${n}`)))
      yield* settled
      assert.deepStrictEqual(log.lines, ["1", "2", "3", "4"])
      assert.deepStrictEqual(settles, [])
    }))

  it.effect("after one that lost its lease, the rest is released", () =>
    Effect.gen(function*() {
      const log = makeLog()
      let isLost = true
      const { engine, settles, store } = yield* makeStore((session) => ({
        settleInTransaction: (claimed) =>
          claimed.payload.includes("2") && isLost
            ? Effect.as(Effect.sync(() => isLost = false), false)
            : Effect.map(session.settle([{ _tag: "Succeeded", claimed }]), (lost) => lost.length === 0)
      }))
      yield* Effect.provide(steps, engine)
      yield* Layer.build(worker(store, (n) => log.add(`${n}`)))
      yield* settled
      assert.deepStrictEqual(settles[0], [`Released {"n":3}`, `Released {"n":4}`])
      assert.deepStrictEqual(log.lines.slice(0, 2), ["1", "2"])
    }))

  it.effect("after a dead letter, the rest is released with it, so that nothing is settled before it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { engine, settles, store } = yield* makeStore()
      yield* Effect.provide(steps, engine)
      yield* Layer.build(worker(store, (n) => n === 2 ? Intent.reject("no") : log.add(`${n}`)))
      yield* settled
      assert.deepStrictEqual(settles, [[`Dead {"n":2}`, `Released {"n":3}`, `Released {"n":4}`]])
      assert.deepStrictEqual(log.lines, ["1", "3", "4"])
    }).pipe(Effect.provide(new CapturedLogs().layer)))
})

describe("a codec of a transactional store", () => {
  const hiding: IntentSink.Codec = {
    encode: (payload) => Effect.succeed(payload.replace("{", "<")),
    decode: (stored) => Effect.succeed(stored.replace("<", "{"))
  }

  it.effect("encodes what a transactional handler defers, and decodes what it gets", () =>
    Effect.gen(function*() {
      class Begin extends Intent.make("Begin", { payload: { n: Schema.Int } }) {}
      const log = makeLog()
      const stored: Array<string> = []
      const { engine, store: plain } = yield* makeStore(undefined, hiding)
      const store: typeof plain = {
        ...plain,
        append: (envelopes) => {
          stored.push(...envelopes.map(({ payload }) => payload))
          return plain.append(envelopes)
        }
      }
      yield* Effect.provide(Epilogue.atomic(Begin.defer({ n: 1 })), engine)
      yield* Layer.build(
        OutboxWorker.layer({ intents: [Begin, Step] }).pipe(
          Layer.provide([
            Begin.toLayer(({ n }) => Step.defer({ n: n + 1 }), { transactional: true }),
            Step.toLayer(({ n }) => log.add(`${n}`)),
            Layer.succeed(OutboxStore.OutboxStore, store)
          ])
        )
      )
      yield* settled
      assert.deepStrictEqual(stored, [`<"n":2}`])
      assert.deepStrictEqual(log.lines, ["2"])
    }))

  it.effect("that can't encode rolls the transaction back", () =>
    Effect.gen(function*() {
      const { engine } = yield* makeStore(undefined, { ...hiding, encode: () => Effect.fail("no key") })
      const error = yield* Effect.flip(Effect.provide(Epilogue.atomic(Step.defer({ n: 1 })), engine))
      assert(error._tag === "CommitError")
      assert.strictEqual(error.outcome, "discarded")
      assert.match(
        error.message,
        /The reason: The codec could not encode the payload of intent "Step" with the id .*\.$/
      )
    }))
})
