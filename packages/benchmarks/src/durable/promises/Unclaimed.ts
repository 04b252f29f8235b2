/**
 * What waits for a worker that there is not.
 */
import * as Effect from "effect/Effect"
import * as Payload from "../Payload.ts"
import { deferAll, noop } from "./Variant.ts"

const unclaimed = noop("Unclaimed")

const chunk = 1_000

export const fill = (count: number) =>
  Effect.forEach(
    Array.from({ length: count / chunk }, (_, index) => Payload.many(chunk, index * chunk)),
    (payloads) => deferAll(payloads, (payload) => unclaimed.defer(payload)),
    { discard: true }
  )
