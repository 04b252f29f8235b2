/**
 * What was measured of what promises cost, in Markdown.
 */
import { count, spread, spreadOfCounts } from "../../Figures.ts"
import * as Spread from "../../Spread.ts"
import { table } from "../../Table.ts"
import type { DurableClaim } from "../DurableClaim.ts"
import { claimed, madeWith } from "../DurableReport.ts"
import type { Versions } from "../Versions.ts"
import * as Comparison from "./Comparison.ts"
import type { Cost } from "./Cost.ts"
import type { Promises } from "./Promises.ts"
import type { PromisesSettings } from "./PromisesSettings.ts"

const row = (name: string, size: number, of: (figure: (cost: Cost) => number) => Spread.Spread) => [
  name,
  count(size),
  spreadOfCounts(of(({ rate }) => rate)),
  count(of(({ wal }) => wal).median),
  count(of(({ before }) => before).median)
]

const costs = (promises: Promises): string => {
  const comparisons = Object.values(promises)
  const { without: plain } = promises.hundredKeys
  const plains = comparisons.flatMap(({ samples, without }) => without === plain ? samples(plain) : [])
  return table(
    ["", "wait", "a second", "bytes of log", "before the last one", "times", "a second", "registered a second"],
    [
      row(plain.name, plain.size, (figure) => Spread.of(plains.map(figure))).concat("", "", ""),
      ...comparisons.map((comparison) =>
        row(comparison.variant.name, comparison.variant.size, (figure) => Comparison.of(comparison, figure)).concat(
          comparison.without.name,
          spread(Comparison.times(comparison, ({ rate }) => rate), 2),
          spread(Comparison.times(comparison, ({ registered }) => registered), 2)
        )
      )
    ]
  )
}

export const make = (
  promises: Promises,
  { rounds }: PromisesSettings,
  claims: ReadonlyArray<DurableClaim>,
  versions: Versions
): string =>
  [
    madeWith(rounds, versions),
    "How many wait; how many of them are delivered a second, with handlers that do nothing, 10 at once; how much write-ahead log one "
    + "takes, from being registered to being acknowledged; how many were delivered before the one that was registered last; and how "
    + "fast they were delivered, and registered, times the same without. They were registered a thousand in a transaction, unless it "
    + "says otherwise:",
    costs(promises),
    "What is claimed:",
    claimed(claims)
  ].join("\n\n")
