/**
 * What was measured of durable intents, in Markdown.
 */
import * as Duration from "effect/Duration"
import { getCurrentVersion } from "effect/Version"
import { availableParallelism } from "node:os"
import { count, spread, spreadOfCounts } from "../Figures.ts"
import * as Spread from "../Spread.ts"
import { table } from "../Table.ts"
import type { Backlog } from "./Backlog.ts"
import * as contenders from "./contenders.ts"
import * as DurableClaim from "./DurableClaim.ts"
import type { DurableContender } from "./DurableContender.ts"
import type { Latencies, Latency } from "./Latency.ts"
import * as Payload from "./Payload.ts"
import type { Samples } from "./Rounds.ts"
import { busyLimit, type Results } from "./Scenarios.ts"
import type { Versions } from "./Versions.ts"

/** A figure of each contender. */
type Column = readonly [head: string, figure: (contender: DurableContender) => string]

const perContender = (among: ReadonlyArray<DurableContender>, columns: ReadonlyArray<Column>): string =>
  table(
    ["", ...columns.map(([head]) => head)],
    among.map((contender) => [contender.name, ...columns.map(([, figure]) => figure(contender))])
  )

const section = (title: string, among: ReadonlyArray<DurableContender>, columns: ReadonlyArray<Column>) =>
  columns.length === 0 ? [] : [title, perContender(among, columns)]

/** Times the reference, round by round. */
const times = <A>(samples: Samples<A>, figure: (sample: A) => number): Column[1] => (contender) =>
  spread(Spread.ofRatios(samples(contender).map(figure), samples(contenders.reference).map(figure)), 2)

const timesReference = `× ${contenders.reference.name}`

const transactions = (results: Results): ReadonlyArray<Column> =>
  results.transactions.flatMap(({ fibers, samples }): ReadonlyArray<Column> => [
    [
      `${fibers} at once`,
      (contender) => spread(Spread.of(samples(contender).map((sample) => sample.with / sample.without)), 2)
    ],
    ["a second", (contender) => spreadOfCounts(Spread.of(samples(contender).map((sample) => sample.with)))]
  ])

const bulk = (results: Results): ReadonlyArray<Column> =>
  results.bulk.flatMap((samples): ReadonlyArray<Column> => [
    ["a second", (contender) => spreadOfCounts(Spread.of(samples(contender)))],
    [timesReference, times(samples, (rate) => rate)]
  ])

/** With a mark, when the limit came before the last intent. */
const rate = (samples: ReadonlyArray<Backlog>): string => {
  const { median } = Spread.of(samples.map(({ part }) => part))
  const figure = spreadOfCounts(Spread.of(samples.map((sample) => sample.rate)))
  return median < 1 ? `${figure}, of ${(100 * median).toFixed(0)} %` : figure
}

const drain = (results: Results): ReadonlyArray<Column> =>
  results.drain.flatMap(({ concurrency, samples, size }): ReadonlyArray<Column> => [
    [`${count(size)}, ${concurrency} at once`, (contender) => rate(samples(contender))],
    [timesReference, times(samples, (sample) => sample.rate)]
  ])

const wal = (results: Results): ReadonlyArray<Column> =>
  results.drain.slice(0, 1).map(({ samples }): Column => [
    "bytes an intent",
    (contender) => spreadOfCounts(Spread.of(samples(contender).map((sample) => sample.wal)))
  ])

const busy = (results: Results): ReadonlyArray<Column> =>
  results.busy.map(({ samples }): Column => [
    `of ${count(busyLimit)} a second`,
    (contender) => spread(Spread.of(samples(contender).map((sample) => sample.rate / busyLimit)), 2)
  ])

const latency = (results: Results, from: (latencies: Latencies) => Latency): ReadonlyArray<Column> =>
  results.latency.flatMap(({ processes, samples }) =>
    (["p50", "p99"] as const).map((percentile): Column => [
      `${processes}, ${percentile}`,
      (contender) => spread(Spread.of(samples(contender).map((sample) => from(sample)[percentile])), 1)
    ])
  )

/** What is claimed, and whether it holds. */
export const claimed = (claims: ReadonlyArray<DurableClaim.DurableClaim>): string =>
  table(
    ["claim", "measured", "limit", "holds"],
    claims.map((claim) => [
      claim.text,
      spread(claim.measured, claim.limit >= 100 ? 0 : 2),
      `${claim.kind} ${claim.limit}`,
      DurableClaim.holds(claim) ? "yes" : "no"
    ])
  )

/** With what, and how often, it was measured. */
export const madeWith = (rounds: number, { postgres }: Versions, others = ""): string =>
  `PostgreSQL ${postgres} with its default settings, Node ${process.versions.node}, Effect ${getCurrentVersion()}, ${others}`
  + `${availableParallelism()} cores. ${rounds} rounds by turns after a short one to warm up, a `
  + `database of its own for each turn, ${Payload.size} bytes of payload. Figures are medians (min..max).`

export const make = (
  results: Results,
  claims: ReadonlyArray<DurableClaim.DurableClaim>,
  versions: Versions
): string => {
  const { settings } = results
  const limit = Duration.format(Duration.fromInputUnsafe(settings.limit))
  return [
    madeWith(settings.rounds, versions, `graphile-worker ${versions.graphile}, `),
    ...section(
      "A transaction with one row and 2 intents, against the same one without, and how many with intents are made a second:",
      contenders.all,
      transactions(results)
    ),
    ...section(`${count(settings.bulk)} intents in one transaction:`, contenders.all, bulk(results)),
    ...section(
      `Intents that wait, with handlers that do nothing, a second. A worker that is not done after ${limit} is stopped; then the `
        + "rate is that of the part it has run:",
      contenders.all,
      drain(results)
    ),
    ...section("Write-ahead log, from being registered to being acknowledged:", contenders.all, wal(results)),
    ...section("Handlers that wait 5 ms, 50 at once:", contenders.all, busy(results)),
    ...results.busy.map(({ timers }) =>
      `Such timers alone, without any queue, reach ${
        spread(Spread.of(timers.map((each) => each / busyLimit)), 2)
      } of it.`
    ),
    ...section(
      "Milliseconds from the return of the transaction to the handler:",
      contenders.queues,
      latency(results, ({ fromCommit }) => fromCommit)
    ),
    ...section(
      "The same from before the transaction:",
      contenders.queues,
      latency(results, ({ fromBegin }) => fromBegin)
    ),
    "What is claimed:",
    claimed(claims)
  ].join("\n\n")
}
