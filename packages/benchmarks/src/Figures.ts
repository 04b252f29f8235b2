/**
 * Figures, as a table shows them.
 */
import type { Spread } from "./Spread.ts"

export const count = (value: number): string => value.toLocaleString("en-US", { maximumFractionDigits: 0 })

/** The median, and between what it lies. */
export const spread = ({ max, median, min }: Spread, digits: number): string =>
  `${median.toFixed(digits)} (${min.toFixed(digits)}..${max.toFixed(digits)})`

export const spreadOfCounts = ({ max, median, min }: Spread): string =>
  `${count(median)} (${count(min)}..${count(max)})`
