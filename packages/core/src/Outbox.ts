/**
 * The engine over a store: typed intents are stored with the boundary's commit, and workers deliver them.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Committed } from "./Committed.ts"
import type { Transact } from "./Deferred.ts"
import { type EngineOptions, Epilogue, make } from "./Engine.ts"
import type { Envelope } from "./Envelope.ts"
import { IntentSink } from "./IntentSink.ts"
import { transactWith } from "./SqlTransaction.ts"

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOptions = (options?: EngineOptions): Layer.Layer<Epilogue, never, IntentSink> =>
  Layer.effect(Epilogue, Effect.map(IntentSink, (sink) => engineOver(sink, options)))

/**
 * Stores the typed intents of a boundary when it commits. Closures run in the fiber of the boundary, after the commit.
 *
 * **Details**
 *
 * Over a store that is transactional, as `PgOutboxStore` is, `atomic` is a SQL transaction of its client: what the core
 * writes and the intents it defers commit together, or not at all, whatever dies when. The intents of a boundary are
 * one statement, just before the `COMMIT`. Everything else is as with `SqlEpilogue.layer`. That they cannot be stored is
 * a `CommitError`, and nothing is committed.
 *
 * In reports, the outcome of a typed intent is `Enqueued`, with its id. Of a duplicate, the id is that of the first.
 *
 * **Gotchas**
 *
 * Over a store that is not transactional, as `OutboxStore.layerMemory` is, intents are stored after the commit.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue, never, IntentSink> = layerOptions()

/** The engine over a sink. `around` may add to what its transactions do. */
export const engineOver = (
  sink: IntentSink.Service,
  options?: EngineOptions & { readonly around?: ((transact: Transact) => Transact) | undefined }
): Epilogue["Service"] => {
  const { append, capabilities, client, mark, marks } = sink
  const { transactional: isTransactional } = capabilities
  const transact = isTransactional && client !== undefined ? transactWith(client) : undefined
  const typed = { refuse: refuseWith(sink), append, isTransactional, mark, marks }
  return make({
    onFailure: options?.onFailure,
    client,
    transact: transact === undefined ? undefined : options?.around?.(transact) ?? transact,
    typed,
    commit: (committed) => {
      const run = Effect.andThen(
        wake(sink, committed, 0),
        (woken) => Effect.andThen(committed.run, () => wake(sink, committed, woken))
      )
      // What can't be appended as a whole is tried again one by one, so that the report tells of each.
      return isTransactional ? run : Effect.andThen(Effect.ignore(committed.append(typed)), run)
    }
  })
}

/** Lets workers know of what was appended, but for the first ones, which they know of. */
const wake = (sink: IntentSink.Service, committed: Committed, from: number): Effect.Effect<number> =>
  Effect.suspend(() => {
    const { appended } = committed
    return appended.length === from
      ? Effect.succeed(from)
      : Effect.as(sink.wake(appended.slice(from)), appended.length)
  })

const refuseWith =
  ({ capabilities, name }: IntentSink.Service) => ({ partitionKey, priority }: Envelope): string | undefined =>
    partitionKey !== undefined && !capabilities.ordered
      ? `it has a partition key, and ${name} does not order deliveries. Drop the key, or use a store that does`
      : priority !== 0 && !capabilities.priorities
      ? `it has a priority, and ${name} knows none. Drop it, or use a store that does`
      : undefined
