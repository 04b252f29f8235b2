/**
 * The connections of a store's own, and how their failures are told.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as PgPool from "@effect/sql-pg/PgPool"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { IntentStoreError } from "@epilogue/core/IntentSink"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"

/** Rows by the position of their columns. */
export type Rows = ReadonlyArray<ReadonlyArray<unknown>>

/** Runs a statement. `what` says what could not be done if it fails. */
export type Run = (what: string, sql: string, params?: ReadonlyArray<unknown>) => Effect.Effect<Rows, IntentStoreError>

/** A few connections that are opened when they are needed, and again when they were lost. */
export interface Connections {
  readonly run: Run
  /** Runs several statements in one transaction. */
  readonly transaction: <A>(
    f: (run: Run) => Effect.Effect<A, IntentStoreError>
  ) => Effect.Effect<A, IntentStoreError>
}

/** Tells what could not be done, and keeps what the database said. */
export const failed = (what: string) => (cause: SqlError): IntentStoreError =>
  new IntentStoreError({ message: `${what}: ${reasonOf(cause)}`, cause })

/** What the database said, which the driver keeps below its own words. */
const reasonOf = ({ message, reason: { cause } }: SqlError): string =>
  hasProperty(cause, "message") && typeof cause.message === "string" ? cause.message : message

/** How a store connects: as the user's client does, but without what that does to names, values and statements. */
export const configOf = ({ config }: PgClient.PgClient): PgConnection.Config => ({
  ...config,
  types: PgTypes.makeRegistry(),
  multiplex: false,
  prepare: config.prepare,
  // The largest row there can be: one that cannot be read would fail every claim for ever.
  maxMessageSize: 2 ** 30
})

export const make = (
  config: PgConnection.Config,
  maxConnections: number
): Effect.Effect<Connections, never, Scope.Scope> =>
  Effect.map(
    // A pool that holds no connection yet cannot fail.
    Effect.orDie(PgPool.make({ ...config, minConnections: 0, maxConnections })),
    (pool) => {
      const runOn = (connection: PgConnection.PgConnection): Run => (what, sql, params) =>
        Effect.mapError(connection.queryValues(sql, params), failed(what))
      return {
        run: (what, sql, params) =>
          Effect.mapError(pool.use((connection) => connection.queryValues(sql, params)), failed(what)),
        transaction: (f) =>
          Effect.catchTag(
            pool.use((connection) => {
              const run = runOn(connection)
              return Effect.uninterruptibleMask((restore) =>
                run("A transaction could not be started", "BEGIN ISOLATION LEVEL READ COMMITTED").pipe(
                  Effect.andThen(restore(f(run))),
                  Effect.onExit((exit) =>
                    Exit.isSuccess(exit)
                      ? run("A transaction could not be committed", "COMMIT")
                      // Whose `ROLLBACK` fails is of no use to anybody.
                      : Effect.catchTag(run("", "ROLLBACK"), "IntentStoreError", () => pool.invalidate(connection))
                  )
                )
              )
            }),
            "SqlError",
            (cause) => Effect.fail(failed("PostgreSQL cannot be reached")(cause))
          )
      }
    }
  )
