/**
 * What is promised of what promises cost.
 */
import { count } from "../../Figures.ts"
import { type DurableClaim, make } from "../DurableClaim.ts"
import * as Comparison from "./Comparison.ts"
import type { Cost } from "./Cost.ts"
import type { Promises } from "./Promises.ts"

const rate = (cost: Cost) => cost.rate

/** The rate, times that without. */
const against = (comparison: Comparison.Comparison, limit: number): DurableClaim =>
  make(
    `${comparison.variant.name}, times ${comparison.without.name}`,
    Comparison.times(comparison, rate),
    "at least",
    limit
  )

export const of = (
  { flood, hundredKeys, hundredKeysFew, kept, oneKey, unclaimed }: Promises
): ReadonlyArray<DurableClaim> => [
  against(hundredKeys, 0.5),
  against(hundredKeysFew, 0.5),
  make("One key, a second", Comparison.of(oneKey, rate), "at least", 1_000),
  make(
    `Of ${count(flood.variant.size)}, delivered before the last one, which has a tag of its own`,
    Comparison.of(flood, ({ before }) => before),
    "at most",
    100
  ),
  against(kept, 0.9),
  against(unclaimed, 0.9)
]
