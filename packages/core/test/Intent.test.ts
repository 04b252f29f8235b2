import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, SqlEpilogue } from "@epilogue/core"
import { Cause, Deferred, Effect, Exit, Fiber, Layer, Schema, SchemaGetter } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient } from "effect/sql"
import { makeCompilerSqlite } from "effect/sql/Statement"
import { defectOf } from "./support.ts"

/** The engine over a sink that keeps what it is given. */
const recording = () => {
  const envelopes: Array<IntentSink.Envelope> = []
  const sink: IntentSink.IntentSink.Service = {
    name: "a sink",
    capabilities: { durable: false, transactional: false, ordered: true, priorities: true },
    append: (appended) =>
      Effect.sync(() => {
        envelopes.push(...appended)
        return appended.map(({ id }) => ({ id, duplicate: false }))
      }),
    wake: () => Effect.void
  }
  return { envelopes, layer: Outbox.layer.pipe(Layer.provide(Layer.succeed(IntentSink.IntentSink, sink))) }
}

/** What the store gets of what `core` defers. */
const enveloped = (core: Effect.Effect<unknown, never, Epilogue.Deferred>) =>
  Effect.gen(function*() {
    const { envelopes, layer } = recording()
    yield* Effect.provide(Epilogue.atomic(core), layer)
    return envelopes
  })

/** The defect of deferring over a store that takes everything. */
const defectOfDeferring = (core: Effect.Effect<unknown, never, Epilogue.Deferred>) =>
  Effect.map(Effect.exit(Effect.provide(Epilogue.atomic(core), recording().layer)), defectOf)

class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}

describe("make", () => {
  const payload = { name: Schema.String }

  for (const value of [0, -1, 1.5, NaN, Infinity]) {
    it(`a number that has to be a positive integer and is ${value} throws, with the intent and the option`, () => {
      assert.throws(
        () => Intent.make("Bad", { payload, version: value }),
        `Epilogue: the \`version\` of intent "Bad" is ${value}. It has to be a positive integer.`
      )
      assert.throws(
        () => Intent.make("Bad", { payload, maxAttempts: value }),
        `Epilogue: the \`maxAttempts\` of intent "Bad" is ${value}. It has to be a positive integer.`
      )
      assert.throws(
        () => Greet.toLayerBatched(() => Effect.succeed([]), { maxSize: value, maxWait: "1 second" }),
        `Epilogue: the \`maxSize\` of intent "Greet" is ${value}. It has to be a positive integer.`
      )
      assert.throws(
        () => Intent.make("Bad", { payload, maxCrashes: value }),
        `Epilogue: the \`maxCrashes\` of intent "Bad" is ${value}. It has to be a positive integer.`
      )
      const batch = { maxSize: 1, maxWait: "1 second" } as const
      for (
        const [name, limits] of [
          ["concurrency", { concurrency: value }],
          ["rateLimit.limit", { rateLimit: { limit: value, window: "1 second" } }]
        ] as const
      ) {
        const message = `Epilogue: the \`${name}\` of intent "Greet" is ${value}. It has to be a positive integer.`
        assert.throws(() => Greet.toLayer(() => Effect.void, limits), message)
        assert.throws(() => Greet.toLayerBatched(() => Effect.succeed([]), { ...batch, ...limits }), message)
      }
    })
  }

  for (const window of ["0 millis", "-1 seconds", "Infinity"] as const) {
    it(`a rate limit with a window of ${window} throws`, () => {
      assert.throws(
        () => Greet.toLayer(() => Effect.void, { rateLimit: { limit: 1, window } }),
        /^Epilogue: the `rateLimit.window` of intent "Greet" is .*\. It has to be finite, and longer than nothing\.$/
      )
    })
  }

  it("a way to be exhausted that there is not throws", () => {
    assert.throws(
      // @ts-expect-error there is no such way
      () => Intent.make("Bad", { payload, onExhausted: "stop" }),
      `Epilogue: the \`onExhausted\` of intent "Bad" is stop. It has to be "continue" or "block".`
    )
  })

  it("unless it says otherwise, an intent is a dead letter after 3 crashes, and its key goes on without it", () => {
    assert.deepInclude(Greet.policy, { maxCrashes: 3, onExhausted: "continue" })
    const { policy } = Intent.make("Other", { payload, maxCrashes: 1, onExhausted: "block" })
    assert.deepInclude(policy, { maxCrashes: 1, onExhausted: "block" })
  })

  it("an earlier version that is no positive integer throws", () => {
    assert.throws(
      () => Intent.make("Bad", { payload, version: 2, previous: { 0: Schema.Struct(payload) } }),
      `Epilogue: the \`version\` of intent "Bad" is 0. It has to be a positive integer.`
    )
  })

  it("a size that is no positive integer throws", () => {
    for (const maxPayloadBytes of [0, 1.5, NaN, Infinity]) {
      assert.throws(
        () => Intent.make("Bad", { payload, maxPayloadBytes }),
        `Epilogue: the \`maxPayloadBytes\` of intent "Bad" is ${maxPayloadBytes}. It has to be a positive integer.`
      )
    }
  })

  it("an earlier version that is the current one throws", () => {
    assert.throws(
      () => Intent.make("Bad", { payload, version: 2, previous: { 2: Schema.Struct(payload) } }),
      `Epilogue: intent "Bad" can't be made: \`previous\` has its version 2, which is the current.`
    )
  })

  it("a priority that is no integer of 32 bits throws", () => {
    for (const priority of [1.5, NaN, Infinity, 2 ** 31, -(2 ** 31)]) {
      assert.throws(
        () => Intent.make("Bad", { payload, priority }),
        `intent "Bad" can't be made: its \`priority\` is ${priority}, and has to be an integer of 32 bits`
      )
    }
    Intent.make("Good", { payload, priority: 2 ** 31 - 1 })
  })

  it("a partition key and a priority throw, with what to do", () => {
    assert.throws(
      () => Intent.make("Bad", { payload, partitionKey: ({ name }) => name, priority: 1 }),
      `Epilogue: intent "Bad" can't be made: it has both a \`partitionKey\`, which orders it by its commit, and a `
        + "`priority`. Drop one of them."
    )
    Intent.make("Good", { payload, partitionKey: ({ name }) => name, priority: 0 })
  })

  it("a time that is no duration throws", () => {
    // @ts-expect-error it is no duration
    assert.throws(() => Intent.make("Bad", { payload, timeout: "soon" }), "soon")
    // @ts-expect-error it is no duration
    assert.throws(() => Intent.make("Bad", { payload, remember: "long" }), "long")
    // @ts-expect-error it is no duration
    assert.throws(() => Greet.toLayerBatched(() => Effect.succeed([]), { maxSize: 1, maxWait: "a while" }), "a while")
  })

  it("tells which versions it can read", () => {
    assert.deepStrictEqual(Greet.versions, [1])
    const Newer = Intent.make("Greet", {
      payload,
      version: 3,
      previous: { 1: Schema.Struct(payload), 2: Schema.Struct(payload) }
    })
    assert.sameMembers([...Newer.versions], [1, 2, 3])
  })
})

describe("a payload", () => {
  it.effect("of fields is stored as the JSON of a struct of them", () =>
    Effect.gen(function*() {
      const [envelope] = yield* enveloped(Greet.defer({ name: "Ada" }))
      assert.deepInclude(envelope, { tag: "Greet", version: 1, payload: `{"name":"Ada"}` })
      assert.deepStrictEqual(Greet.decode(envelope!.payload, 1), Exit.succeed({ name: "Ada" }))
    }))

  it.effect("is stored as the JSON form of its schema, and read back as what was deferred", () =>
    Effect.gen(function*() {
      const Amount = Schema.BigInt.pipe(Schema.brand("Amount"))
      class Charge extends Intent.make("Charge", {
        payload: { at: Schema.Date, amount: Amount, tags: Schema.ReadonlySet(Schema.String) }
      }) {}
      const charge = { at: new Date(86_400_000), amount: Amount.make(2n ** 70n), tags: new Set(["a"]) }
      const [envelope] = yield* enveloped(Charge.defer(charge))
      assert.deepStrictEqual(JSON.parse(envelope!.payload), {
        at: "1970-01-02T00:00:00.000Z",
        amount: "1180591620717411303424",
        tags: ["a"]
      })
      assert.deepStrictEqual(Charge.decode(envelope!.payload, 1), Exit.succeed(charge))
    }))

  it.effect("may be a class, and is an instance of it again", () =>
    Effect.gen(function*() {
      class Order extends Schema.Class<Order>("Order")({ id: Schema.Int, placed: Schema.Date }) {
        get label() {
          return `order ${this.id}`
        }
      }
      class Ship extends Intent.make("Ship", { payload: Order }) {}
      const [envelope] = yield* enveloped(Ship.defer(new Order({ id: 7, placed: new Date(0) })))
      const exit = Ship.decode(envelope!.payload, 1)
      assert(Exit.isSuccess(exit))
      assert.instanceOf(exit.value, Order)
      assert.strictEqual(exit.value.label, "order 7")
    }))

  it.effect("may be of a schema that is no struct, and may be nothing", () =>
    Effect.gen(function*() {
      class Note extends Intent.make("Note", { payload: Schema.Union([Schema.String, Schema.Int]) }) {}
      class Sweep extends Intent.make("Sweep", { payload: Schema.Void }) {}
      const envelopes = yield* enveloped(
        Effect.all([Note.defer("a"), Note.defer(1), Sweep.defer(undefined)])
      )
      assert.deepStrictEqual(envelopes.map(({ payload }) => payload), [`"a"`, "1", "null"])
      assert.isTrue(Exit.isSuccess(Sweep.decode("null", 1)))
    }))

  it.effect("that its schema refuses is a defect that names the intent and what is wrong", () =>
    Effect.gen(function*() {
      // @ts-expect-error a name is a string
      const defect = yield* defectOfDeferring(Greet.defer({ name: 1 }))
      assert.include(
        defect,
        `Epilogue: intent "Greet" can't be deferred: its payload is not what its schema asks for: Expected string`
      )
      assert.include(defect, `["name"]`)
    }))

  it.effect("that breaks a rule of its schema is a defect too", () =>
    Effect.gen(function*() {
      class Pay extends Intent.make("Pay", { payload: { cents: Schema.Int } }) {}
      assert.include(yield* defectOfDeferring(Pay.defer({ cents: 1.5 })), `["cents"]`)
      class On extends Intent.make("On", { payload: { day: Schema.Date } }) {}
      assert.include(yield* defectOfDeferring(On.defer({ day: new Date(NaN) })), "Expected a valid Date")
    }))

  it.effect("is stored without what its schema does not have", () =>
    Effect.gen(function*() {
      const person = { name: "Ada", password: "secret" }
      const [envelope] = yield* enveloped(Greet.defer(person))
      assert.strictEqual(envelope?.payload, `{"name":"Ada"}`)
    }))

  it.effect("that its schema refuses leaves the schema's error as the cause of the defect", () =>
    Effect.gen(function*() {
      // @ts-expect-error a name is missing
      const exit = yield* Effect.exit(Effect.provide(Epilogue.atomic(Greet.defer({})), recording().layer))
      assert(Exit.isFailure(exit))
      const defect = Cause.squash(exit.cause)
      assert(defect instanceof Error && defect.cause instanceof Error)
      assert.isTrue(Schema.isSchemaError(defect.cause.cause))
    }))
})

describe("the size of a payload", () => {
  const sized = (maxPayloadBytes: number) => Intent.make("Sized", { payload: Schema.String, maxPayloadBytes })

  it.effect("is counted in bytes, not in characters", () =>
    Effect.gen(function*() {
      // With its quotes, the text has 6 characters, which are 10 bytes.
      assert.strictEqual((yield* enveloped(sized(10).defer("äöüß"))).length, 1)
      assert.include(
        yield* defectOfDeferring(sized(9).defer("äöüß")),
        `Epilogue: intent "Sized" can't be deferred: its payload takes 10 bytes, and at most 9 are allowed. Store the `
          + "data elsewhere and defer a reference to it, or raise `maxPayloadBytes`."
      )
      assert.strictEqual((yield* enveloped(sized(6).defer("abcd"))).length, 1)
      assert.include(yield* defectOfDeferring(sized(5).defer("abcd")), "its payload takes 6 bytes")
      assert.strictEqual((yield* enveloped(sized(6).defer("😀"))).length, 1)
      assert.include(yield* defectOfDeferring(sized(5).defer("😀")), "its payload takes 6 bytes")
      assert.include(yield* defectOfDeferring(sized(5).defer("äöüß")), "its payload takes 10 bytes")
    }))

  it.effect("is limited to 1 MiB unless it says otherwise", () =>
    Effect.gen(function*() {
      class Large extends Intent.make("Large", { payload: Schema.String }) {}
      assert.strictEqual((yield* enveloped(Large.defer("x".repeat(2 ** 20 - 2)))).length, 1)
      assert.include(yield* defectOfDeferring(Large.defer("x".repeat(2 ** 20 - 1))), "at most 1048576 are allowed")
    }))
})

describe("defer", () => {
  it.effect("answers with the id, which is a UUIDv7", () =>
    Effect.gen(function*() {
      const ids: Array<Intent.Id> = []
      const deferOne = Effect.map(Greet.defer({ name: "Ada" }), (id) => ids.push(id))
      const envelopes = yield* enveloped(Effect.andThen(deferOne, deferOne))
      assert.deepStrictEqual(envelopes.map(({ id }) => id), ids)
      for (const id of ids) assert.match(id, /^[\da-f]{8}-[\da-f]{4}-7[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/)
      assert.notStrictEqual(ids[0], ids[1])
    }))

  it.effect("each run of one effect is an intent of its own", () =>
    Effect.gen(function*() {
      const envelopes = yield* enveloped(Effect.repeat(Greet.defer({ name: "Ada" }), { times: 2 }))
      assert.strictEqual(new Set(envelopes.map(({ id }) => id)).size, 3)
    }))

  it.effect("what nobody has said has its defaults", () =>
    Effect.gen(function*() {
      const [envelope] = yield* enveloped(Greet.defer({ name: "Ada" }))
      assert.deepInclude(envelope, {
        partitionKey: undefined,
        idempotencyKey: undefined,
        remember: 24 * 3_600_000,
        priority: 0,
        delay: undefined,
        runAt: undefined,
        traceparent: undefined
      })
    }))

  class Keyed extends Intent.make("Keyed", {
    payload: { order: Schema.Int },
    partitionKey: ({ order }) => `order ${order}`,
    idempotencyKey: ({ order }) => `once ${order}`,
    remember: "1 minute"
  }) {}

  it.effect("keys come from the definition, and are made of the payload", () =>
    Effect.gen(function*() {
      const [envelope] = yield* enveloped(Keyed.defer({ order: 7 }))
      assert.deepInclude(envelope, { partitionKey: "order 7", idempotencyKey: "once 7", remember: 60_000 })
    }))

  it.effect("options replace what the definition says, and an option that is undefined does not", () =>
    Effect.gen(function*() {
      class Urgent extends Intent.make("Urgent", { payload: {}, priority: 5 }) {}
      const [keyed, unchanged, urgent, less] = yield* enveloped(Effect.all([
        Keyed.defer({ order: 7 }, { partitionKey: "p", idempotencyKey: "i" }),
        Keyed.defer({ order: 7 }, { partitionKey: undefined, idempotencyKey: undefined }),
        Urgent.defer({}),
        Urgent.defer({}, { priority: 0, partitionKey: "p" })
      ]))
      assert.deepInclude(keyed, { partitionKey: "p", idempotencyKey: "i" })
      assert.deepInclude(unchanged, { partitionKey: "order 7", idempotencyKey: "once 7" })
      assert.deepInclude(urgent, { priority: 5 })
      assert.deepInclude(less, { priority: 0, partitionKey: "p" })
    }))

  it.effect("a delay below 0 is none", () =>
    Effect.gen(function*() {
      const envelopes = yield* enveloped(Effect.all([
        Greet.defer({ name: "Ada" }, { delay: -5 }),
        Greet.defer({ name: "Ada" }, { delay: "-Infinity" })
      ]))
      assert.deepStrictEqual(envelopes.map(({ delay }) => delay), [0, 0])
    }))

  it.effect("delay is kept in milliseconds, and runAt as Unix time", () =>
    Effect.gen(function*() {
      const [delayed, at, date] = yield* enveloped(Effect.all([
        Greet.defer({ name: "Ada" }, { delay: "2 minutes" }),
        Greet.defer({ name: "Ada" }, { runAt: "1970-01-01T00:00:01Z" }),
        Greet.defer({ name: "Ada" }, { runAt: new Date(5) })
      ]))
      assert.deepInclude(delayed, { delay: 120_000, runAt: undefined })
      assert.deepInclude(at, { delay: undefined, runAt: 1_000 })
      assert.deepInclude(date, { delay: undefined, runAt: 5 })
    }))

  const refused: ReadonlyArray<readonly [string, Effect.Effect<unknown, never, Epilogue.Deferred>, string]> = [
    [
      "a delay together with a runAt",
      Greet.defer({ name: "Ada" }, { delay: "1 second", runAt: 0 }),
      "it has both a `delay` and a `runAt`. Give one of them"
    ],
    ["a delay without end", Greet.defer({ name: "Ada" }, { delay: "Infinity" }), "its `delay` never ends"],
    // @ts-expect-error it is no duration
    ["a delay that is none", Greet.defer({ name: "Ada" }, { delay: "soon" }), "soon"],
    ["a runAt that is no time", Greet.defer({ name: "Ada" }, { runAt: new Date(NaN) }), "Invalid date"],
    [
      "a priority for one that has a partition key",
      Keyed.defer({ order: 7 }, { priority: 1 }),
      "it has both a `partitionKey`, which orders it by its commit, and a `priority`. Drop one of them"
    ],
    [
      "a partition key for one that has a priority",
      Intent.make("Urgent", { payload: {}, priority: 5 }).defer({}, { partitionKey: "p" }),
      "it has both a `partitionKey`"
    ],
    [
      "a priority that is no integer",
      Greet.defer({ name: "Ada" }, { priority: 0.5 }),
      "its `priority` is 0.5, and has to be an integer of 32 bits"
    ],
    [
      "a partition key that is no text",
      // @ts-expect-error it is a number
      Greet.defer({ name: "Ada" }, { partitionKey: 7 }),
      "its `partitionKey` is of type number, and has to be a string"
    ],
    [
      "an idempotency key that is no text",
      // @ts-expect-error it is a number
      Greet.defer({ name: "Ada" }, { idempotencyKey: 7 }),
      "its `idempotencyKey` is of type number, and has to be a string"
    ],
    [
      "a payload that is encoded to no JSON",
      Intent.make("Odd", { payload: Schema.Any }).defer(() => 1),
      "its schema encodes the payload to what is no JSON"
    ],
    [
      "a key that can't be made",
      Intent.make("Odd", {
        payload: {},
        partitionKey: () => {
          throw new Error("no key")
        }
      }).defer({}),
      "no key"
    ]
  ]
  for (const [name, deferring, reason] of refused) {
    it.effect(`${name} is a defect`, () =>
      Effect.gen(function*() {
        const defect = yield* defectOfDeferring(deferring)
        assert.match(defect, /^Error: Epilogue: intent "\w+" can't be deferred: /)
        assert.include(defect, reason)
      }))
  }

  it.effect("a defect of deferring discards the boundary", () =>
    Effect.gen(function*() {
      const { envelopes, layer } = recording()
      const bad = Greet.defer({ name: "Ada" }, { delay: "Infinity" })
      const exit = yield* Effect.exit(
        Effect.provide(Epilogue.atomic(Effect.andThen(Greet.defer({ name: "Ada" }), bad)), layer)
      )
      assert.include(defectOf(exit), "never ends")
      assert.deepStrictEqual(envelopes, [])
    }))

  it.effect("law 6: into a boundary that has ended, it is a defect that names the intent", () =>
    Effect.gen(function*() {
      const { envelopes, layer } = recording()
      const ended = yield* Deferred.make<void>()
      const fiber = yield* Effect.provide(
        Epilogue.atomic(Effect.forkDetach(Effect.andThen(Deferred.await(ended), Greet.defer({ name: "Ada" })))),
        layer
      )
      yield* Deferred.succeed(ended, undefined)
      const defect = defectOf(yield* Fiber.await(fiber))
      assert.include(defect, `intent "Greet" was registered into a boundary that has already ended`)
      assert.deepStrictEqual(envelopes, [])
    }))

  it.effect("engines without a place for typed intents refuse them, and say what to provide", () =>
    Effect.gen(function*() {
      const client = yield* SqlClient.make({
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
      const engines = {
        "Epilogue.layer": Epilogue.layer,
        "Epilogue.layerBackground": Epilogue.layerBackground(),
        "SqlEpilogue.layer": SqlEpilogue.layer.pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, client)))
      }
      for (const [name, engine] of Object.entries(engines)) {
        const exit = yield* Effect.exit(Effect.provide(Epilogue.atomic(Greet.defer({ name: "Ada" })), engine))
        assert.strictEqual(
          defectOf(exit),
          `Error: Epilogue: intent "Greet" can't be deferred here: this engine has no handler for it. Provide `
            + "`Epilogue.layerWith` with the intent to handle it in this process, or `Outbox.layer` to store it.",
          name
        )
      }
    }))
})

describe("decode", () => {
  it("reads the versions that it knows, each with its own schema", () => {
    class Greeting extends Intent.make("Greeting", {
      payload: { name: Schema.String, polite: Schema.Boolean },
      version: 2,
      previous: {
        1: Schema.Struct({ name: Schema.String }).pipe(
          Schema.decodeTo(Schema.Struct({ name: Schema.String, polite: Schema.Boolean }), {
            decode: SchemaGetter.transform(({ name }) => ({ name, polite: false })),
            encode: SchemaGetter.transform(({ name }) => ({ name }))
          })
        )
      }
    }) {}
    assert.deepStrictEqual(
      Greeting.decode(`{"name":"Ada","polite":true}`, 2),
      Exit.succeed({ name: "Ada", polite: true })
    )
    assert.deepStrictEqual(Greeting.decode(`{"name":"Ada"}`, 1), Exit.succeed({ name: "Ada", polite: false }))
    assert.isTrue(Exit.isFailure(Greeting.decode(`{"name":"Ada"}`, 2)))
    assert.deepStrictEqual(
      Greeting.decode("{}", 3),
      Exit.fail(`no schema for version 3 of "Greeting" is known here`)
    )
  })

  it("text that is no JSON is a failure, and does not throw", () => {
    assert.isTrue(Exit.isFailure(Greet.decode("{", 1)))
  })
})
