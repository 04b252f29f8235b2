/**
 * How a worker lives through an outage of its store.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { IntentStoreError } from "./IntentSink.ts"

const reconnecting = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered
)

/** Asks the store again until it answers. */
export const persistently = <A, R>(
  what: string,
  effect: Effect.Effect<A, IntentStoreError, R>
): Effect.Effect<A, never, R> =>
  effect.pipe(
    Effect.tapError((error) => Effect.logWarning(`A worker could not ${what}; it tries again`, error)),
    Effect.retry(reconnecting),
    Effect.orDie
  )
