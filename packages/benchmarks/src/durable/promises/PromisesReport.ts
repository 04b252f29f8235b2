/**
 * What was measured of what promises cost, in Markdown.
 */
import { count, spread, spreadOfCounts } from "../../Figures.ts"
import * as Spread from "../../Spread.ts"
import { table } from "../../Table.ts"
import type { DurableClaim } from "../DurableClaim.ts"
import { claimed, madeWith } from "../DurableReport.ts"
import type { Results } from "../Scenarios.ts"
import type { Versions } from "../Versions.ts"
import type { Cost } from "./Cost.ts"
import * as variants from "./variants.ts"

type Measured = Results["promises"][number]

const costs = ({ samples, variants: own }: Measured): string => {
  const figures = (variant: variants.Variants["plain"], figure: (cost: Cost) => number) => samples(variant).map(figure)
  return table(
    ["", "wait", "a second", "× plain", "registered, × plain", "bytes of log", "before the last one"],
    variants.all(own).map((variant) => {
      const of = (figure: (cost: Cost) => number) => Spread.of(figures(variant, figure))
      const timesPlain = (figure: (cost: Cost) => number) =>
        spread(Spread.ofRatios(figures(variant, figure), figures(own.plain, figure)), 2)
      return [
        variant.name,
        count(variant.size),
        spreadOfCounts(of(({ rate }) => rate)),
        timesPlain(({ rate }) => rate),
        timesPlain(({ registered }) => registered),
        count(of(({ wal }) => wal).median),
        count(of(({ before }) => before).median)
      ]
    })
  )
}

export const make = (
  measured: Measured,
  { promises: { rounds } }: Results["settings"],
  claims: ReadonlyArray<DurableClaim>,
  versions: Versions
): string =>
  [
    madeWith(rounds, versions),
    "Intents that wait, with handlers that do nothing, 10 at once; how fast they were registered, a thousand in a transaction; the "
    + "bytes of write-ahead log of both for an intent; and how many were delivered before the one that was registered last:",
    costs(measured),
    "What is claimed:",
    claimed(claims)
  ].join("\n\n")
