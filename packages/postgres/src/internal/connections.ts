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
import { isSqlError, type SqlError } from "effect/sql/SqlError"

/** Rows by the position of their columns. */
type Rows = ReadonlyArray<ReadonlyArray<unknown>>

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

/** After a failover the server that was the primary only reads. The next connection may lead to the one that is now. */
const isReadOnly = ({ cause }: IntentStoreError): boolean =>
  isSqlError(cause) && hasProperty(cause.reason.cause, "code") && cause.reason.cause.code === "25006"

/** How a store connects: as the user's client does, but without what that does to names, values and statements. */
export const configOf = ({ config }: PgClient.PgClient): PgConnection.Config => ({
  ...config,
  types: PgTypes.makeRegistry(),
  multiplex: false,
  prepare: config.prepare,
  // The largest row there can be: one that cannot be read would fail every claim for ever.
  maxMessageSize: 2 ** 30
})

/** What a connection is told before its first statement. */
export interface Settings {
  readonly [name: string]: string
}

/** Statements run as the user's client may not have them run: one at a time, on the newest state. */
const common: Settings = { default_transaction_isolation: "read committed" }

export const make = (
  config: PgConnection.Config,
  maxConnections: number,
  settings: Settings = {}
): Effect.Effect<Connections, never, Scope.Scope> =>
  Effect.map(
    // A pool that holds no connection yet cannot fail.
    Effect.orDie(PgPool.make({ ...config, minConnections: 0, maxConnections })),
    (pool) => {
      const isOwn = new WeakMap<PgConnection.PgConnection, boolean>()
      const runOn = (connection: PgConnection.PgConnection): Run => (what, sql, params) =>
        Effect.mapError(connection.queryValues(sql, params), failed(what))

      /** Whether the server keeps what this connection is told. Behind a pooler the next statement may run anywhere. */
      const keepsSettings = (connection: PgConnection.PgConnection): Effect.Effect<boolean, IntentStoreError> => {
        const known = isOwn.get(connection)
        if (known !== undefined) return Effect.succeed(known)
        const told = Object.entries({ ...common, ...settings }).map(([name, value]) =>
          `set_config('${name}', '${value}', false)`
        )
        return Effect.map(
          runOn(connection)(
            "PostgreSQL does not let itself be set up",
            `SELECT CASE WHEN pg_backend_pid() = $1::int4 THEN concat(${told.join(", ")}) END IS NOT NULL`,
            [connection.processId]
          ),
          (rows) => {
            const isKept = rows[0]?.[0] === true
            isOwn.set(connection, isKept)
            return isKept
          }
        )
      }

      const transactionOn = <A>(
        connection: PgConnection.PgConnection,
        f: (run: Run) => Effect.Effect<A, IntentStoreError>
      ): Effect.Effect<A, IntentStoreError> => {
        const run = runOn(connection)
        return Effect.uninterruptibleMask((restore) =>
          restore(run("A transaction could not be started", "BEGIN ISOLATION LEVEL READ COMMITTED")).pipe(
            // Nobody knows whether it has started.
            Effect.onInterrupt(() => pool.invalidate(connection)),
            Effect.andThen(restore(f(run))),
            Effect.onExit((exit) =>
              Exit.isSuccess(exit)
                ? run("A transaction could not be committed", "COMMIT")
                // A connection whose `ROLLBACK` fails is of no use to anybody.
                : Effect.catchTag(run("", "ROLLBACK"), "IntentStoreError", () => pool.invalidate(connection))
            )
          )
        )
      }

      const use = <A>(f: (connection: PgConnection.PgConnection) => Effect.Effect<A, IntentStoreError>) =>
        Effect.catchTag(
          pool.use((connection) =>
            Effect.tapError(f(connection), (error) => isReadOnly(error) ? pool.invalidate(connection) : Effect.void)
          ),
          "SqlError",
          (cause) =>
            Effect.fail(
              failed("PostgreSQL cannot be reached. Check that it runs, and the settings of the PgClient")(cause)
            )
        )

      return {
        run: (what, sql, params) =>
          use((connection) =>
            Effect.flatMap(keepsSettings(connection), (isKept) =>
              isKept
                ? runOn(connection)(what, sql, params)
                : transactionOn(connection, (run) =>
                  Effect.andThen(
                    Effect.forEach(
                      Object.entries(settings),
                      ([name, value]) => run(what, `SET LOCAL ${name} = '${value}'`),
                      { discard: true }
                    ),
                    run(what, sql, params)
                  )))
          ),
        transaction: (f) => use((connection) => transactionOn(connection, f))
      }
    }
  )
