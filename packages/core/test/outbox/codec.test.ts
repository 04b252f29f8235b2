import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
import { Context, Effect, Exit, Layer, Schema } from "effect"
import { CapturedLogs, makeLog } from "../support.ts"
import { elapse, settled } from "./support.ts"

class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}

/** Turns payloads round, and takes its time. It says in front of them which intent they are of. */
const turning: IntentSink.Codec = {
  encode: (payload, { id, tag }) =>
    Effect.as(Effect.yieldNow, `${tag} ${id} ${Array.from(payload).toReversed().join("")}`),
  decode: (stored, { id, tag }) => {
    const prefix = `${tag} ${id} `
    return stored.startsWith(prefix)
      ? Effect.as(Effect.yieldNow, Array.from(stored.slice(prefix.length)).toReversed().join(""))
      : Effect.fail("it is of another one")
  }
}

/** The memory store with a codec, an engine over it, and workers. */
const makeOutbox = Effect.fnUntraced(function*(codec: IntentSink.Codec) {
  const memory = Context.get(yield* Layer.build(OutboxStore.layerMemory), OutboxStore.OutboxStore)
  const stored: Array<string> = []
  const store: OutboxStore.OutboxStore.Service = {
    ...memory,
    codec,
    append: (envelopes) => {
      stored.push(...envelopes.map(({ payload }) => payload))
      return memory.append(envelopes)
    }
  }
  const provided = Layer.succeed(OutboxStore.OutboxStore, store)
  return {
    store,
    stored,
    engine: Outbox.layer.pipe(Layer.provide(Layer.succeed(IntentSink.IntentSink, store))),
    start: (handler: Layer.Layer<Intent.Handler<"Greet">>) =>
      Effect.andThen(
        Layer.build(OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide([handler, provided]))),
        settled
      )
  }
})

describe("a store's codec", () => {
  it.effect("encodes each payload before it is stored, and decodes it before its handler gets it", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const { engine, start, stored } = yield* makeOutbox(turning)
      const id = yield* Effect.provide(Epilogue.atomic(Greet.defer({ name: "Ada" })), engine)
      assert.deepStrictEqual(stored, [`Greet ${id} }"adA":"eman"{`])
      yield* start(Greet.toLayer(({ name }) => log.add(name)))
      assert.deepStrictEqual(log.lines, ["Ada"])
    }))

  it.effect("does so for batches, and the order stays", () =>
    Effect.gen(function*() {
      const names = Array.from({ length: 100 }, (_, n) => `${n}`)
      const batches: Array<ReadonlyArray<string>> = []
      const { engine, start } = yield* makeOutbox({
        ...turning,
        encode: (payload, intent) =>
          Effect.andThen(payload.includes("5") ? Effect.yieldNow : Effect.void, turning.encode(payload, intent)),
        decode: (stored, intent) =>
          Effect.andThen(stored.includes("7") ? Effect.yieldNow : Effect.void, turning.decode(stored, intent))
      })
      yield* Effect.provide(Epilogue.atomic(Effect.forEach(names, (name) => Greet.defer({ name }))), engine)
      yield* start(Greet.toLayerBatched((deliveries) =>
        Effect.sync(() => {
          batches.push(deliveries.map(({ payload: { name } }) => name))
          return deliveries.map(() => Exit.void)
        }), { maxSize: 100, maxWait: "1 second" }))
      yield* elapse("1 second")
      assert.deepStrictEqual(batches.flat(), names)
    }))

  const failures: Record<string, Effect.Effect<never, unknown>> = {
    "fails": Effect.fail("no key"),
    "dies": Effect.die("no key")
  }
  for (const [name, failure] of Object.entries(failures)) {
    it.effect(`one that ${name} to decode puts the intent off like any that can't be read`, () =>
      Effect.gen(function*() {
        const logs = new CapturedLogs()
        const log = makeLog()
        let isMended = false
        const { engine, start, store } = yield* makeOutbox({
          ...turning,
          decode: (stored, intent) => Effect.suspend(() => isMended ? turning.decode(stored, intent) : failure)
        })
        yield* Effect.provide(Epilogue.atomic(Greet.defer({ name: "Ada" })), engine)
        yield* start(Greet.toLayer(({ name: greeted }, { attempt }) => log.add(`${greeted}, attempt ${attempt}`))).pipe(
          Effect.provide(logs.layer)
        )
        assert.deepInclude((yield* store.depths)[0], { delayed: 1, dead: 0 })
        assert.match(String(logs.entries[0]?.message), /^The payload of intent "Greet" could not be read/)
        isMended = true
        yield* elapse("10 minutes")
        assert.deepStrictEqual(log.lines, ["Ada, attempt 1"])
      }))

    it.effect(`one that ${name} to encode stores nothing, and the report says of which intent`, () =>
      Effect.gen(function*() {
        const { engine, stored } = yield* makeOutbox({
          ...turning,
          encode: (payload, intent) => payload.includes("Ada") ? failure : turning.encode(payload, intent)
        })
        const report = yield* Epilogue.report(
          Effect.andThen(Greet.defer({ name: "Ada" }), Greet.defer({ name: "Bob" }))
        ).pipe(Effect.provide([engine, new CapturedLogs().layer]))
        assert.deepStrictEqual(report.outcomes.map(({ _tag }) => _tag), ["Ran", "Enqueued"])
        const [ran] = report.outcomes
        assert(ran?._tag === "Ran" && Exit.isFailure(ran.exit))
        assert.include(String(ran.exit.cause), `The codec could not encode the payload of intent "Greet" with the id `)
        assert.strictEqual(stored.length, 1)
      }))
  }
})
