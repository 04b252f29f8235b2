/**
 * Tables in Markdown, for the terminal and for the guide.
 */
import * as Array from "effect/Array"
import { getCurrentVersion } from "effect/Version"
import { availableParallelism } from "node:os"
import * as Claim from "./Claim.ts"
import * as Contender from "./Contender.ts"
import { count, spread, spreadOfCounts } from "./Figures.ts"
import type { Memory } from "./Memory.ts"
import * as Spread from "./Spread.ts"
import { table } from "./Table.ts"
import type { Settings, Times } from "./Timing.ts"

const perSize = (
  sizes: ReadonlyArray<number>,
  figure: (contender: Contender.Contender, size: number) => string
): string =>
  table(
    ["intents", ...Contender.all.map(({ name }) => `\`${name}\``)],
    sizes.map((size) => [count(size)].concat(Contender.all.map((contender) => figure(contender, size))))
  )

const held = (memory: ReadonlyArray<Memory>): string => {
  const groups = Array.groupBy(memory, ({ contender, intents }) => `\`${contender.name}\`, ${count(intents)} intents`)
  const median = (all: ReadonlyArray<Memory>, figure: (memory: Memory) => number) =>
    count(Spread.of(all.map(figure)).median)
  return table(
    ["", "bytes an intent, all waiting", "bytes an intent, while the last runs", "bytes left in all", "frames deeper"],
    Object.entries(groups).map(([group, all]) => [
      group,
      median(all, ({ waiting }) => waiting),
      median(all, ({ ending }) => ending),
      median(all, ({ left }) => left),
      median(all, ({ deeper }) => deeper)
    ])
  )
}

const claimed = (claims: ReadonlyArray<Claim.Claim>): string =>
  table(
    ["claim", "measured", "limit", "holds"],
    claims.map((claim) => [
      claim.text,
      spread(claim.measured, 2),
      String(claim.limit),
      Claim.holds(claim) ? "yes" : "no"
    ])
  )

export interface Results {
  readonly settings: Settings
  readonly times: Times
  readonly memory: ReadonlyArray<Memory>
  readonly claims: ReadonlyArray<Claim.Claim>
}

export const make = ({ claims, memory, settings: { rounds, sizes, turn }, times }: Results): string =>
  [
    `Node ${process.versions.node}, Effect ${getCurrentVersion()}, ${availableParallelism()} cores. ${rounds} rounds by turns after one to `
    + `warm up; a turn has as many boundaries as \`array\` does in ${turn} ms, at least one. Figures are medians (min..max). The SQL client is one that does nothing.`,
    "Nanoseconds a boundary:",
    perSize(sizes, (contender, size) => spreadOfCounts(Spread.of(times(contender, size)))),
    "Times `array`, round by round:",
    perSize(
      sizes,
      (contender, size) => spread(Spread.ofRatios(times(contender, size), times(Contender.array, size)), 2)
    ),
    "Nanoseconds an intent: cost(n) / n, and (cost(n) − cost(0)) / n:",
    perSize(sizes.filter((size) => size > 0), (contender, size) => {
      const { median } = Spread.of(times(contender, size))
      const { median: empty } = Spread.of(times(contender, 0))
      return `${count(median / size)}, ${count((median - empty) / size)}`
    }),
    "Memory:",
    held(memory),
    "What is claimed:",
    claimed(claims)
  ].join("\n\n")
