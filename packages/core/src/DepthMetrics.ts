/**
 * How much a store holds, as metrics.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import { OutboxStore } from "./OutboxStore.ts"

/**
 * Measures how much the store holds of each tag, again and again.
 *
 * **Details**
 *
 * It sets the gauges `epilogue.outbox.intents`, with the attributes `messaging.destination.name` (the tag) and `state`
 * (`"waiting"`, `"claimed"`, `"delayed"` or `"dead"`), and `epilogue.outbox.oldest`: for how many seconds the oldest of
 * those waiting has been due. `interval` defaults to 30 seconds.
 *
 * **Gotchas**
 *
 * One process of a deployment is enough. Each measurement counts what the store holds, which may take a scan of it.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMetrics = (
  options?: { readonly interval?: Duration.Input | undefined }
): Layer.Layer<never, never, OutboxStore> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const store = yield* OutboxStore
    // A tag of which there is nothing left is still told of, as none.
    const gauges = new Map<string, ReturnType<typeof gaugesOf>>()
    const measure = Effect.flatMap(store.depths, (depths) =>
      Effect.withFiber<void>(({ context }) => {
        for (const { tag } of depths) if (!gauges.has(tag)) gauges.set(tag, gaugesOf(tag))
        for (const [tag, { claimed, dead, delayed, oldest, waiting }] of gauges) {
          const depth = depths.find((each) => each.tag === tag)
          waiting.updateUnsafe(depth?.waiting ?? 0, context)
          claimed.updateUnsafe(depth?.claimed ?? 0, context)
          delayed.updateUnsafe(depth?.delayed ?? 0, context)
          dead.updateUnsafe(depth?.dead ?? 0, context)
          oldest.updateUnsafe((depth?.oldest ?? 0) / 1000, context)
        }
        return Effect.void
      }))
    yield* Effect.ignoreCause(measure, { log: "Warn", message: "What the store holds could not be measured" }).pipe(
      Effect.repeat(Schedule.spaced(options?.interval ?? "30 seconds")),
      Effect.forkScoped
    )
  }))

const gaugesOf = (tag: string) => {
  const attributes = { "messaging.destination.name": tag }
  const intents = (state: string) => Metric.gauge("epilogue.outbox.intents", { attributes: { ...attributes, state } })
  return {
    waiting: intents("waiting"),
    claimed: intents("claimed"),
    delayed: intents("delayed"),
    dead: intents("dead"),
    oldest: Metric.gauge("epilogue.outbox.oldest", { attributes })
  }
}
