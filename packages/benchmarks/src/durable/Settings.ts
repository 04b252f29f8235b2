/**
 * How much is measured.
 */
import type * as Duration from "effect/Duration"

export interface Settings {
  /** How often each contender has its turn in each scenario. */
  readonly rounds: number
  /** How many transactions one fiber makes, of each kind. More fibers make four times as many in all. */
  readonly transactions: number
  /** How many intents one transaction has. */
  readonly bulk: number
  /** How many intents wait for a worker. */
  readonly backlogs: ReadonlyArray<number>
  /** How many intents wait for handlers that are busy. */
  readonly busy: number
  /** When a worker is stopped that is not done. */
  readonly limit: Duration.Input
  /** How many intents are sent one by one. */
  readonly latencies: number
}

export const full: Settings = {
  rounds: 3,
  transactions: 600,
  bulk: 20_000,
  backlogs: [20_000, 200_000],
  busy: 20_000,
  limit: "20 seconds",
  latencies: 300
}

export const quick: Settings = {
  rounds: 3,
  transactions: 100,
  bulk: 2_000,
  backlogs: [5_000],
  busy: 3_000,
  limit: "2 seconds",
  latencies: 40
}

/** Goes before, and does not count: by then the code has been compiled. */
export const rehearsal: Settings = {
  rounds: 1,
  transactions: 40,
  bulk: 1_000,
  backlogs: [2_000],
  busy: 1_000,
  limit: "1 second",
  latencies: 1
}
