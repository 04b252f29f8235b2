/**
 * How a session comes to know its queues: those of new priorities come to be at any time. One may be committed after another
 * that has a greater id.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import type { Subscribed } from "./claims.ts"
import { type Queues, wholeOf } from "./queues.ts"

export interface Learning {
  /** Looks for the queues, if there may be others than those that are known. */
  readonly refresh: Effect.Effect<void, IntentStoreError>
  readonly isStale: () => boolean
  /** Whether a queue is one of the session's, as far as it knows. */
  readonly hears: (queue: number) => boolean
  /** This is the sum of the ids of all queues. None ever goes, so that it grows with each that is committed. */
  readonly see: (sum: number) => void
  /** The sum that had been seen when the queues were last looked for. */
  readonly sum: () => number
}

export const makeLearning = (queues: Queues, subscribed: Subscribed): Learning => {
  let isStale = true
  let seen = 0
  let learned = 0
  /** What has been heard of since, and is either new or somebody else's. */
  let unknown = new Set<number>()
  const foreign = new Set<number>()
  const tags = Array.from(subscribed.subscriptions.keys())
  const learn = Effect.suspend(() => {
    const [sum, heard] = [seen, unknown]
    isStale = false
    unknown = new Set()
    return queues.renew([
      ...tags.map(wholeOf),
      ...subscribed.versions.map(({ tag, version }) => ({ tag, version, priority: 0 }))
    ]).pipe(
      Effect.andThen(queues.find(tags)),
      Effect.map((found) => {
        subscribed.learn(found)
        learned = sum
        for (const { id } of found) foreign.add(id)
        for (const queue of heard) foreign.add(queue)
      }),
      Effect.onError(() => Effect.sync(() => void (isStale = true)))
    )
  })
  // One after the other, so that what was found first replaces nothing that was found later.
  const inTurn = Semaphore.makeUnsafe(1)
  return {
    refresh: Effect.suspend(() =>
      isStale ? inTurn.withPermit(Effect.suspend(() => isStale ? learn : Effect.void)) : Effect.void
    ),
    isStale: () => isStale,
    hears: (queue) => {
      if (subscribed.has(queue)) return true
      if (foreign.has(queue)) return false
      unknown.add(queue)
      isStale = true
      return true
    },
    see: (sum) => {
      if (sum === seen) return
      seen = sum
      isStale = true
    },
    sum: () => learned
  }
}
