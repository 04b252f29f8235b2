/**
 * How a session comes to know its queues: those of new priorities come to be at any time.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import * as Effect from "effect/Effect"
import type { Subscribed } from "./claims.ts"
import { type Queues, wholeOf } from "./queues.ts"

export interface Learning {
  /** Looks for the queues, if there may be others than those that are known. */
  readonly refresh: Effect.Effect<void, IntentStoreError>
  readonly isStale: () => boolean
  /** Whether a queue is one of the session's, as far as it knows. */
  readonly hears: (queue: number) => boolean
  /** This is the newest queue of all. */
  readonly see: (newest: number) => void
  /** The newest queue that was looked for. */
  readonly newest: () => number
}

export const makeLearning = (queues: Queues, subscribed: Subscribed): Learning => {
  let newest = 0
  let known = 0
  let isStale = true
  const tags = Array.from(subscribed.subscriptions.keys())
  const learn = Effect.suspend(() => {
    isStale = false
    return queues.renew([
      ...tags.map(wholeOf),
      ...subscribed.versions.map(({ tag, version }) => ({ tag, version, priority: 0 }))
    ])
  }).pipe(
    Effect.andThen(queues.find(tags)),
    Effect.map((found) => {
      subscribed.learn(found)
      known = Math.max(known, ...found.map(({ id }) => id))
      newest = Math.max(newest, known)
    }),
    Effect.onError(() => Effect.sync(() => void (isStale = true)))
  )
  const see = (queue: number): void => {
    if (queue <= newest) return
    newest = queue
    isStale = true
  }
  return {
    refresh: Effect.suspend(() => isStale ? learn : Effect.void),
    isStale: () => isStale,
    hears: (queue) => {
      if (queue <= newest) return subscribed.has(queue)
      see(queue)
      return true
    },
    see,
    newest: () => known
  }
}
