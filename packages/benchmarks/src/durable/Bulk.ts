/**
 * Many intents in one transaction.
 */
import * as Effect from "effect/Effect"
import * as Drain from "./Drain.ts"
import type { DurableQueue } from "./DurableContender.ts"
import * as Payload from "./Payload.ts"

/** Intents a second. */
export const measure = Effect.fnUntraced(function*(queue: DurableQueue, count: number) {
  const payloads = Payload.many(count)
  const start = process.hrtime.bigint()
  yield* queue.bulk(payloads)
  const rate = count / (Number(process.hrtime.bigint() - start) / 1e9)
  yield* Drain.verify(queue, count)
  return rate
})
