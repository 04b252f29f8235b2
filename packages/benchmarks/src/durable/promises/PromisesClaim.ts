/**
 * What is promised of what promises cost.
 */
import { count } from "../../Figures.ts"
import * as Spread from "../../Spread.ts"
import { type DurableClaim, make } from "../DurableClaim.ts"
import type { Samples } from "../Rounds.ts"
import type { Results } from "../Scenarios.ts"
import type { Cost } from "./Cost.ts"
import type { Variant } from "./Variant.ts"

/** The rate of a variant, times that of another, round by round. */
const times = (samples: Samples<Cost, Variant>, variant: Variant, other: Variant): Spread.Spread => {
  const rates = (of: Variant) => samples(of).map(({ rate }) => rate)
  return Spread.ofRatios(rates(variant), rates(other))
}

export const of = ({ samples, variants }: Results["promises"][number]): ReadonlyArray<DurableClaim> => {
  const { flood, hundredKeys, keeping, kept, oneKey, plain, unclaimed } = variants
  return [
    make("Over 100 keys, times plain", times(samples, hundredKeys, plain), "at least", 0.5),
    make("Over one key, a second", Spread.of(samples(oneKey).map(({ rate }) => rate)), "at least", 1_000),
    make(
      `Of ${count(flood.size)} with one tag, delivered before the single one of another that came last`,
      Spread.of(samples(flood).map(({ before }) => before)),
      "at most",
      100
    ),
    ...kept === undefined
      ? []
      : [make(`${kept.name}, times none kept before`, times(samples, kept, keeping), "at least", 0.9)],
    make(`${unclaimed.name}, times plain`, times(samples, unclaimed, plain), "at least", 0.9)
  ]
}
