/**
 * Listens to the engine, so that the demo can print what was discarded too. An application needs nothing of the kind.
 */
import { Epilogue } from "@epilogue/core"
import { Context, Effect, Layer } from "effect"

export class Journal extends Context.Service<Journal, {
  /** The intents that did not commit since it was last asked. */
  readonly takeDiscarded: Effect.Effect<ReadonlyArray<Epilogue.Intent>>
}>()("examples/Journal") {
  /** The engine it is given, which it listens to. */
  static readonly layer = Layer.effectContext(Effect.gen(function*() {
    const engine = yield* Epilogue.Epilogue
    const open = new Map<object, Epilogue.Intent>()
    const listening = Epilogue.make({
      ...engine,
      observe: (registered, status) => {
        if (status === "deferred") open.set(registered, registered.intent)
        else if (status !== "discarded") open.delete(registered)
      }
    })
    const takeDiscarded = Effect.sync(() => {
      const discarded = Array.from(open.values())
      open.clear()
      return discarded
    })
    return Context.make(Epilogue.Epilogue, listening).pipe(Context.add(Journal, { takeDiscarded }))
  }))
}
