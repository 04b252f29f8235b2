// Handlers and payloads that do their worst, and claims that do not come back.
import { assert, it } from "@effect/vitest"
import { Epilogue, Intent, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Layer, Result, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { layerStore } from "../Store.ts"

const Live = Outbox.layer.pipe(Layer.provideMerge(layerStore))

/** Waits for what nothing tells of, but not for ever. */
const until = <E, R>(what: string, condition: Effect.Effect<boolean, E, R>) =>
  Effect.repeat(condition, { until: (isTrue) => isTrue, schedule: Schedule.spaced("10 millis") }).pipe(
    Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.sync(() => assert.fail(what)) })
  )

const depthOf = (tag: string) =>
  OutboxStore.OutboxStore.use(({ depths }) =>
    Effect.map(depths, (all) => all.find((each) => each.tag === tag) ?? { waiting: 0, claimed: 0, delayed: 0, dead: 0 })
  )

const isDelivered = (tag: string) =>
  until(
    `"${tag}" is delivered`,
    Effect.map(depthOf(tag), ({ claimed, delayed, waiting }) => waiting + claimed + delayed === 0)
  )

class Trouble extends Intent.make("Trouble", {
  payload: { kind: Schema.String },
  retry: Schedule.spaced("5 millis"),
  maxAttempts: 3,
  timeout: "100 millis"
}) {}

const hostile = {
  get message(): string {
    throw new Error("do not look")
  },
  toString() {
    throw new Error("do not look")
  }
}

const troubles: { readonly [kind: string]: () => Effect.Effect<unknown, unknown> } = {
  hangs: () => Effect.never,
  throws: () => {
    // oxlint-disable-next-line typescript/only-throw-error -- that is the trouble
    throw "no error"
  },
  "throws nothing": () => {
    // oxlint-disable-next-line typescript/only-throw-error -- that is the trouble
    throw undefined
  },
  "is no effect": () => undefined as never,
  dies: () => Effect.die({ some: "defect" }),
  "fails with undefined": () => Effect.fail(undefined),
  "dies at length": () => Effect.die(new Error("x".repeat(50_000))),
  "dies with NUL": () => Effect.die(new Error("a\0b")),
  "dies with half a character": () => Effect.die(new Error(`\uD800${"🙂".repeat(10_000)}\uDC00`)),
  "fails with a cycle": () => {
    const error: { self?: unknown } = {}
    error.self = error
    return Effect.fail(error)
  },
  "fails with what can't be looked at": () => Effect.fail(hostile),
  "fails with a proxy": () =>
    Effect.fail(
      new Proxy({}, {
        get() {
          throw new Error("do not look")
        },
        getPrototypeOf() {
          throw new Error("do not look")
        }
      })
    ),
  "interrupts itself": () => Effect.interrupt,
  rejects: () => Intent.reject("a\0b\uD800"),
  "snoozes for what is no duration": () => Intent.snooze("soon" as never)
}

it.live("whatever a handler does becomes a dead letter, and the others go on", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const calls: Array<string> = []
    const Handler = Trouble.toLayer(({ kind }, { attempt }) => {
      calls.push(`${kind} ${attempt}`)
      return kind in troubles ? troubles[kind]!() : Effect.void
    })
    yield* Layer.build(OutboxWorker.layer({ intents: [Trouble] }).pipe(Layer.provide(Handler)))
    yield* Epilogue.atomic(Effect.forEach([...Object.keys(troubles), "none"], (kind) => Trouble.defer({ kind })))
    yield* isDelivered("Trouble")
    const dead = yield* sql<{ kind: string; failures: number; reason: string }>`
      SELECT payload::json->>'kind' AS kind, failures, reason FROM epilogue.dead ORDER BY id`
    assert.deepStrictEqual(
      dead.map(({ failures, kind, reason }) => `${kind}: ${reason} ${failures}`).toSorted(),
      Object.keys(troubles).map((kind) => kind === "rejects" ? `${kind}: rejected 1` : `${kind}: exhausted 3`)
        .toSorted()
    )
    assert.strictEqual(calls.filter((call) => call === "hangs 3").length, 1)
    assert.strictEqual(calls.length, (Object.keys(troubles).length - 1) * 3 + 2)
  }).pipe(Effect.scoped, Effect.provide(Live)))

class Bulk extends Intent.make("Bulk", {
  payload: { n: Schema.Int },
  retry: Schedule.spaced("5 millis"),
  maxAttempts: 3
}) {}

it.live("a batched handler whose results are wrong has failed for each of them", () =>
  Effect.gen(function*() {
    let round = 0
    const delivered: Array<number> = []
    const answers: ReadonlyArray<(deliveries: ReadonlyArray<unknown>) => unknown> = [
      () => [],
      () => undefined,
      (deliveries) => deliveries.map(() => null),
      (deliveries) => Array.from({ length: deliveries.length + 1 }, () => Result.void)
    ]
    const Handler = Bulk.toLayerBatched((deliveries) =>
      Effect.sync(() => {
        const answer = answers[round++]
        if (answer !== undefined) return answer(deliveries) as never
        for (const { payload } of deliveries) delivered.push(payload.n)
        return deliveries.map(({ payload: { n } }) => n % 2 === 0 ? Result.void : Exit.die(n))
      }), { maxSize: 4, maxWait: "20 millis" })
    yield* Layer.build(OutboxWorker.layer({ intents: [Bulk] }).pipe(Layer.provide(Handler)))
    yield* Epilogue.atomic(Effect.forEach([0, 2, 4, 6], (n) => Bulk.defer({ n })))
    yield* until("they have failed", Effect.sync(() => round >= 2))
    yield* isDelivered("Bulk")
    assert.strictEqual((yield* depthOf("Bulk")).dead, 4)
    round = answers.length
    yield* Epilogue.atomic(Effect.forEach([0, 1, 2, 3, 4], (n) => Bulk.defer({ n })))
    yield* isDelivered("Bulk")
    assert.deepStrictEqual(delivered.toSorted((a, b) => a - b), [0, 1, 1, 1, 2, 3, 3, 3, 4])
    assert.strictEqual((yield* depthOf("Bulk")).dead, 6)
  }).pipe(Effect.scoped, Effect.provide(Live)))

class Booking extends Intent.make("Booking", {
  payload: { kind: Schema.String },
  retry: Schedule.spaced("5 millis"),
  maxAttempts: 2,
  timeout: "500 millis"
}) {}

class Follow extends Intent.make("Follow", { payload: { kind: Schema.String } }) {}

/** What is booked, and what follows, when nothing is left to deliver. */
const bookings = {
  succeeds: ["succeeds"],
  fails: [],
  hangs: [],
  rejects: [],
  snoozes: ["snoozes"],
  "rolls back inside": ["rolls back inside"],
  "commits inside": ["commits inside", "inside"]
}

it.live("what a transactional handler writes and defers is there if and only if it has succeeded", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`CREATE TABLE booked (kind text NOT NULL)`
    const followed: Array<string> = []
    const snoozed = new Set<string>()
    const book = Effect.fnUntraced(function*(kind: string) {
      yield* sql`INSERT INTO booked VALUES (${kind})`
      yield* Follow.defer({ kind })
    })
    const Handlers = Layer.merge(
      Booking.toLayer(
        Effect.fnUntraced(function*({ kind }, { id }) {
          yield* book(kind)
          switch (kind) {
            case "fails":
              return yield* Effect.fail("on purpose")
            case "hangs":
              return yield* Effect.never
            case "rejects":
              return yield* Intent.reject("on purpose")
            case "snoozes":
              if (snoozed.has(id)) return
              snoozed.add(id)
              return yield* Intent.snooze("10 millis")
            case "rolls back inside":
              return yield* Effect.ignore(Epilogue.atomic(Effect.andThen(book("inside"), Effect.fail("on purpose"))))
            case "commits inside":
              return yield* Epilogue.atomic(book("inside"))
          }
        }),
        { transactional: true }
      ),
      Follow.toLayer(({ kind }) => Effect.sync(() => followed.push(kind)))
    )
    yield* Layer.build(OutboxWorker.layer({ intents: [Booking, Follow] }).pipe(Layer.provide(Handlers)))
    yield* Epilogue.atomic(Effect.forEach(Object.keys(bookings), (kind) => Booking.defer({ kind })))
    yield* isDelivered("Booking")
    yield* isDelivered("Follow")
    const booked = yield* sql<{ kind: string }>`SELECT kind FROM booked`
    const expected = Object.values(bookings).flat().toSorted()
    assert.deepStrictEqual(booked.map(({ kind }) => kind).toSorted(), expected)
    assert.deepStrictEqual(followed.toSorted(), expected)
    assert.strictEqual((yield* depthOf("Booking")).dead, 3)
  }).pipe(Effect.scoped, Effect.provide(Live)))
