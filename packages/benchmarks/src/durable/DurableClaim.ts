/**
 * What is promised of durable intents.
 */
import { count } from "../Figures.ts"
import * as Spread from "../Spread.ts"
import * as contenders from "./contenders.ts"
import { epilogue } from "./contenders/Epilogue.ts"
import * as Graphile from "./contenders/Graphile.ts"
import { persistedQueue } from "./contenders/PersistedQueue.ts"
import type { DurableContender } from "./DurableContender.ts"
import type { Latencies } from "./Latency.ts"
import type { Samples } from "./Rounds.ts"
import { busyLimit, type Results } from "./Scenarios.ts"

export interface DurableClaim {
  readonly text: string
  readonly measured: Spread.Spread
  readonly kind: "at least" | "at most"
  readonly limit: number
}

export const holds = ({ kind, limit, measured }: DurableClaim): boolean =>
  kind === "at least" ? measured.median >= limit : measured.median <= limit

export const make = (
  text: string,
  measured: Spread.Spread,
  kind: DurableClaim["kind"],
  limit: number
): DurableClaim => ({ text, measured, kind, limit })

/** Epilogue's figure, times that of another, round by round. */
const against = <A>(samples: Samples<A>, figure: (sample: A) => number, other: DurableContender): Spread.Spread =>
  Spread.ofRatios(samples(epilogue).map(figure), samples(other).map(figure))

const ofTransactions = ({ transactions }: Results) =>
  transactions.map(({ fibers, samples }) =>
    make(
      `A transaction with 2 intents, times one without, ${fibers} at once`,
      Spread.of(samples(epilogue).map((sample) => sample.with / sample.without)),
      "at least",
      0.75
    )
  )

const ofBulk = ({ bulk }: Results) =>
  bulk.map((samples) =>
    make("Many in one transaction, times `addJobs`", against(samples, (rate) => rate, Graphile.tuned), "at least", 1.3)
  )

const ofDrain = ({ drain }: Results) =>
  drain.flatMap(({ concurrency, samples, size }) =>
    ([[contenders.reference, 1.8], [persistedQueue, 20]] as const).map(([other, limit]) =>
      make(
        `${count(size)} that wait, ${concurrency} at once, times ${other.name}`,
        against(samples, ({ rate }) => rate, other),
        "at least",
        limit
      )
    )
  )

const ofWal = ({ drain }: Results) =>
  drain.slice(0, 1).map(({ samples }) =>
    make("Bytes of write-ahead log an intent", Spread.of(samples(epilogue).map(({ wal }) => wal)), "at most", 500)
  )

const ofBusy = ({ busy }: Results) =>
  busy.map(({ samples }) =>
    make(
      "Handlers that take 5 ms, times what arithmetic allows",
      Spread.of(samples(epilogue).map(({ rate }) => rate / busyLimit)),
      "at least",
      0.85
    )
  )

/** Of two contenders, what the one has that is faster. */
const faster = (a: ReadonlyArray<number>, b: ReadonlyArray<number>): ReadonlyArray<number> =>
  Spread.of(a).median < Spread.of(b).median ? a : b

const ofLatency = ({ latency: [one, two] }: Results) => {
  if (one === undefined || two === undefined) return []
  const claim = (processes: string, of: Samples<Latencies>, percentile: "p50" | "p99", limit: number) => {
    const figures = (samples: ReadonlyArray<Latencies>) => samples.map(({ fromCommit }) => fromCommit[percentile])
    const graphile = faster(figures(two.samples(Graphile.byDefault)), figures(two.samples(Graphile.tuned)))
    return make(
      `Commit to handler, ${processes}, ${percentile}, times the faster graphile-worker in two`,
      Spread.ofRatios(figures(of(epilogue)), graphile),
      "at most",
      limit
    )
  }
  return [
    claim("two processes", two.samples, "p50", 1),
    claim("two processes", two.samples, "p99", 1),
    claim("one process", one.samples, "p50", 0.5)
  ]
}

export const of = (results: Results): ReadonlyArray<DurableClaim> =>
  [ofTransactions, ofBulk, ofDrain, ofWal, ofBusy, ofLatency].flatMap((claims) => claims(results))
