import { Epilogue, Intent, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
import * as Subpath from "@epilogue/core/Epilogue"
import { Deferred, Effect, Layer, Schema } from "effect"

const expect = (fact: string, actual: unknown, expected: unknown): Effect.Effect<void> =>
  JSON.stringify(actual) === JSON.stringify(expected)
    ? Effect.void
    : Effect.die(new Error(`${fact}: expected ${JSON.stringify(expected)}, got ${JSON.stringify(actual)}`))

const program = Effect.gen(function*() {
  const log: Array<string> = []
  const core = Effect.gen(function*() {
    yield* Epilogue.defer(Effect.sync(() => {
      log.push("intent")
    }))
    log.push("core")
  })

  yield* Epilogue.atomic(core)
  yield* expect("a committed core runs its intents", log, ["core", "intent"])

  log.length = 0
  yield* Effect.exit(Epilogue.atomic(Effect.andThen(core, Effect.fail("no commit"))))
  yield* expect("a failed core runs no intent", log, ["core"])

  yield* expect("the barrel and the file are one module", Epilogue.atomic === Subpath.atomic, true)
})

class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}

const durable = Effect.gen(function*() {
  const greeted = yield* Deferred.make<string>()
  const Worker = OutboxWorker.layer({ intents: [Greet] }).pipe(
    Layer.provide(Greet.toLayer(({ name }) => Deferred.succeed(greeted, name)))
  )
  const name = yield* Epilogue.atomic(Greet.defer({ name: "Ada" })).pipe(
    Effect.andThen(Deferred.await(greeted)),
    Effect.provide(Layer.merge(Outbox.layer, Worker).pipe(Layer.provide(OutboxStore.layerMemory)))
  )
  yield* expect("a worker delivers what a boundary has stored", name, "Ada")
})

/** Resolves when the boundary and the worker keep their word on the runtime that calls it, and rejects otherwise. */
export const smoke = (): Promise<void> =>
  Effect.runPromise(Effect.andThen(Effect.provide(program, Epilogue.layer), durable))
