/**
 * Typed intents that are handled in the process that defers them.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Tracer from "effect/Tracer"
import { Deferred, type Typed } from "./Deferred.ts"
import { type EngineOptions, Epilogue, make } from "./Engine.ts"
import type { Definition, Envelope } from "./Envelope.ts"
import { Delivery, handleOne, type HandlerService } from "./Handler.ts"
import { timeoutDetached } from "./internal/timeout.ts"

/**
 * A typed intent, as engines that handle it in process need it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Handled extends Definition {
  /** The service that handles it. */
  readonly "~handler": unknown
}

/**
 * Runs the epilogue in the fiber of the boundary, as `layer` does, and handles these typed intents in it.
 *
 * **Details**
 *
 * An intent is handled once, in its place among the others, after its payload has been encoded and decoded. That its
 * handler fails is a failure of the epilogue, as with any other intent. Its `timeout` holds.
 *
 * **Gotchas**
 *
 * Nothing waits, and nothing is remembered: `retry`, `maxCrashes`, `onExhausted`, `partitionKey`, `idempotencyKey` and
 * `priority` are the business of a store. A `delay`, a `runAt`, and a handler that is `transactional` or has limits over
 * all workers are refused. For all of these, in memory too, there is `Outbox.layer` over `OutboxStore.layerMemory`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = <Intents extends ReadonlyArray<Handled>>(
  ...intents: Intents
): Layer.Layer<Epilogue, never, Intents[number]["~handler"]> => layerWithOptions({ intents })

/**
 * Like `layerWith`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWithOptions = <const Intents extends ReadonlyArray<Handled>>(
  options: EngineOptions & { readonly intents: Intents }
): Layer.Layer<Epilogue, never, Intents[number]["~handler"]> =>
  Layer.effect(Epilogue, Effect.map(typedIn(options.intents), (typed) => make({ ...options, typed })))

/** What an engine does with typed intents that it handles itself. */
export const typedIn = <Intents extends ReadonlyArray<Handled>>(
  intents: Intents
): Effect.Effect<Typed, never, Intents[number]["~handler"]> =>
  Effect.contextWith((context: Context.Context<Intents[number]["~handler"]>) => {
    const handlers = new Map<string, { readonly definition: Definition; readonly handler: HandlerService }>()
    for (const definition of intents) {
      // The requirements have asked for it.
      const handler = context.mapUnsafe.get(definition.key) as HandlerService
      const refused = handlers.has(definition._tag)
        ? `the engine names two intents with the tag "${definition._tag}". Give each its own`
        : handler.needsStore
          && `the handler of "${definition._tag}" has the option \`${handler.needsStore}\`, which takes a store. Use \`Outbox.layer\` and an \`OutboxWorker\``
      if (refused !== undefined) return Effect.die(new Error(`Epilogue: ${refused}.`))
      handlers.set(definition._tag, { definition, handler })
    }
    return Effect.succeed<Typed>({
      refuse: ({ delay, runAt, tag }) =>
        !handlers.has(tag)
          ? "this engine has no handler for it. Name it in `Epilogue.layerWith`, or store it with `Outbox.layer`"
          : delay !== undefined || runAt !== undefined
          ? "this engine handles it at the commit, and it is to wait. Use `Outbox.layer`, in memory over "
            + "`OutboxStore.layerMemory`"
          : undefined,
      show,
      perform: ({ envelope }) => {
        const { definition, handler } = handlers.get(envelope!.tag)!
        return perform(envelope!, definition, handler)
      }
    })
  })

/** Encoded and decoded once, so that a test finds what would not survive a store. */
export const show = ({ payload, version }: Envelope, definition: Definition): Exit.Exit<unknown, unknown> =>
  definition.decode(payload, version)

const perform = (envelope: Envelope, definition: Definition, handler: HandlerService) =>
  Effect.flatMap(Clock.currentTimeMillis, (now) =>
    Effect.flatMap(show(envelope, definition), (payload) => {
      const handled = handleOne(handler, new Delivery(payload, envelope.id, 1, 0, now))
      const { timeout } = definition.policy
      return Effect.updateContext(
        timeout === undefined ? handled : timeoutDetached(handled, timeout, envelope.tag),
        (epilogue: Context.Context<never>) =>
          Context.merge(
            handler.context,
            Context.pick(Deferred, Tracer.ParentSpan)(epilogue as Context.Context<Deferred>)
          )
      )
    }))
