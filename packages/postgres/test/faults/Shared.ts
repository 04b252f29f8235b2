// What the tests of faults share with the processes that they kill.
import { PgClient } from "@effect/sql-pg"
import { Intent } from "@epilogue/core"
import { Effect, Schedule, Schema } from "effect"

/** Fails as often as it is told to, and then succeeds. */
export class Errand extends Intent.make("Errand", {
  payload: { failures: Schema.Int },
  retry: Schedule.spaced("30 millis")
}) {}

/** Is handled in a transaction, in which it defers an errand. */
export class Booking extends Intent.make("Booking", {
  payload: { failures: Schema.Int },
  retry: Schedule.spaced("30 millis"),
  maxAttempts: 1_000
}) {}

/** One of a series: of its key, it comes after those that were committed before. */
export class Step extends Intent.make("Step", {
  payload: { series: Schema.Int },
  partitionKey: ({ series }) => `series ${series}`,
  retry: Schedule.spaced("20 millis"),
  maxAttempts: 100
}) {}

/** What a process is told when it starts. */
export const Role = Schema.Struct({
  role: Schema.Literals(["application", "worker", "stepper"]),
  /** Tells processes apart, and is the seed of what it does at random. */
  id: Schema.Int,
  /** How long a delivery takes at most, in milliseconds. */
  pace: Schema.Int
})
export type Role = typeof Role.Type

/** Numbers from 0 to 1 that are the same for each seed. */
export const random = (seed: number) => {
  let state = seed * 2_654_435_761 | 0
  return () => {
    state = state + 0x6D2B79F5 | 0
    let value = Math.imul(state ^ state >>> 15, 1 | state)
    value = value + Math.imul(value ^ value >>> 7, 61 | value) ^ value
    return ((value ^ value >>> 14) >>> 0) / 2 ** 32
  }
}

/** The tables of the application, and that of the observer. */
export const makeTables = PgClient.PgClient.use((sql) =>
  Effect.all([
    sql`CREATE TABLE business (intent uuid PRIMARY KEY, tag text NOT NULL, failures int NOT NULL)`,
    sql`CREATE TABLE booked (intent uuid NOT NULL, errand uuid NOT NULL)`,
    sql`CREATE TABLE delivery (n serial PRIMARY KEY, intent uuid NOT NULL, worker int NOT NULL, attempt int NOT NULL,
      crashes int NOT NULL, event text NOT NULL)`
  ])
)
