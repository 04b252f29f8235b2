/**
 * How much is measured.
 */
import type * as Duration from "effect/Duration"
import type { PromisesSettings } from "./promises/PromisesSettings.ts"

export interface Settings {
  /** How often each contender has its turn in each scenario. */
  readonly rounds: number
  /** How many fibers make transactions side by side. */
  readonly fibers: ReadonlyArray<number>
  /** How many transactions one fiber makes, of each kind. More fibers make four times as many in all. */
  readonly transactions: number
  /** How many intents one transaction has. */
  readonly bulk: number
  /** How many intents wait for a worker. */
  readonly backlogs: ReadonlyArray<number>
  /** How many handlers run side by side. */
  readonly concurrencies: ReadonlyArray<number>
  /** How many intents wait for handlers that are busy. */
  readonly busy: number
  /** When a worker is stopped that is not done. */
  readonly limit: Duration.Input
  /** How many intents are sent one by one. */
  readonly latencies: number
  readonly promises: PromisesSettings
}

export const full: Settings = {
  rounds: 3,
  fibers: [1, 16],
  transactions: 600,
  bulk: 20_000,
  backlogs: [20_000, 200_000],
  concurrencies: [10, 50],
  busy: 20_000,
  limit: "20 seconds",
  latencies: 300,
  promises: { rounds: 7, size: 20_000, sizeOfKey: 5_000, kept: 1_000_000, unclaimed: 200_000 }
}

export const quick: Settings = {
  ...full,
  transactions: 80,
  bulk: 2_000,
  backlogs: [4_000],
  busy: 2_000,
  limit: "1 second",
  latencies: 25,
  promises: { rounds: 3, size: 4_000, sizeOfKey: 1_000, kept: 10_000, unclaimed: 10_000 }
}

/** Goes before, and does not count: by then the code has been compiled. */
export const rehearsal: Settings = {
  rounds: 1,
  fibers: [16],
  transactions: 40,
  bulk: 1_000,
  backlogs: [1_000],
  concurrencies: [10],
  busy: 500,
  limit: "500 millis",
  latencies: 1,
  promises: { rounds: 1, size: 1_000, sizeOfKey: 200, kept: 1_000, unclaimed: 1_000 }
}
