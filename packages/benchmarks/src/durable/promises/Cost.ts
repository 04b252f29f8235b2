/**
 * What a promise costs, from being registered to being acknowledged.
 */
import * as Effect from "effect/Effect"
import * as Backlog from "../Backlog.ts"
import type * as Drain from "../Drain.ts"
import type { DurableQueue } from "../DurableContender.ts"
import { Sequence, watched } from "./Sequence.ts"
import type { Variant } from "./Variant.ts"

export interface Cost extends Backlog.Backlog {
  /** How many deliveries went before the one that was appended last. */
  readonly before: number
}

export const measure = Effect.fnUntraced(
  function*(variant: Variant, queue: DurableQueue, options: Omit<Drain.Options, "expected">) {
    let sequence = new Sequence(variant)
    const backlog = yield* Backlog.measure(
      watched(queue, () => {
        sequence = new Sequence(variant)
        return sequence
      }),
      { ...options, expected: variant.size }
    )
    yield* sequence.verify
    return { ...backlog, before: sequence.before } satisfies Cost
  }
)
