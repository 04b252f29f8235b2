/**
 * Lets a worker run what waits, and checks that each intent ran exactly once.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { DurableQueue } from "./DurableContender.ts"
import * as Payload from "./Payload.ts"
import { Receipts } from "./Receipts.ts"

export interface Options {
  /** How many intents wait, with the numbers from 0 on. */
  readonly expected: number
  readonly concurrency: number
  /** Milliseconds that a handler takes. */
  readonly takes: number
  /** When to stop. What is left then is left, and the rate is that of what ran. */
  readonly limit: Duration.Input
}

export interface Drained {
  /** Intents a second, from the start of the worker to the end of the last handler. */
  readonly rate: number
  /** The part of them that ran, below 1 when the limit came first. */
  readonly part: number
}

export const drain = Effect.fnUntraced(
  function*(queue: DurableQueue, { concurrency, expected, limit, takes }: Options) {
    const receipts = new Receipts(expected)
    const start = process.hrtime.bigint()
    const drained = yield* Effect.scoped(Effect.gen(function*() {
      yield* queue.work({ takes, receive: receipts.receive }, concurrency)
      const end = Option.getOrElse(yield* Effect.timeoutOption(receipts.complete, limit), () => process.hrtime.bigint())
      const { received } = receipts
      return { rate: received / (Number(end - start) / 1e9), part: received / expected } satisfies Drained
    }))
    yield* receipts.verify(queue.waiting)
    return drained
  }
)

/** Fails a turn unless each of the intents runs exactly once, however long it takes. */
export const verify = (queue: DurableQueue, expected: number): Effect.Effect<void, unknown> =>
  Effect.flatMap(
    drain(queue, { expected, concurrency: 10, takes: 0, limit: "5 minutes" }),
    ({ part }) => part === 1 ? Effect.void : Effect.die(new Error("Intents are left after five minutes"))
  )

/** As many as a thousand transactions with a thousand intents each would leave, and statistics about them. */
export const fill = (queue: DurableQueue, count: number): Effect.Effect<void, unknown> => {
  const chunk = 1_000
  return Effect.forEach(
    Array.from({ length: Math.ceil(count / chunk) }, (_, index) => index * chunk),
    (first) => queue.bulk(Payload.many(Math.min(chunk, count - first), first)),
    { discard: true }
  )
}
