/**
 * What order, fairness, limits and keeping cost, and whether a backlog costs others anything.
 */
import * as Effect from "effect/Effect"
import * as Comparison from "./Comparison.ts"
import type { PromisesSettings } from "./PromisesSettings.ts"
import * as variants from "./variants.ts"

export const measure = Effect.fnUntraced(function*(settings: PromisesSettings) {
  const { few, keeping, kept, plain, ...others } = variants.make(settings)
  const compare = (variant: typeof plain, without = plain) => Comparison.measure(variant, without, settings.rounds)
  return {
    hundredKeys: yield* compare(others.hundredKeys),
    hundredKeysFew: yield* compare(others.hundredKeysFew, few),
    manyKeys: yield* compare(others.manyKeys),
    oneKey: yield* compare(others.oneKey),
    priorities: yield* compare(others.priorities),
    tags: yield* compare(others.tags),
    flood: yield* compare(others.flood),
    concurrency: yield* compare(others.concurrency),
    rate: yield* compare(others.rate),
    keeping: yield* compare(keeping),
    kept: yield* compare(kept, keeping),
    unclaimed: yield* compare(others.unclaimed)
  }
})

/** What was measured. */
export type Promises = Effect.Success<ReturnType<typeof measure>>
