/**
 * What became of a transaction whose `COMMIT` got no answer, on PostgreSQL.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { hasProperty } from "effect/Predicate"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import { isSqlError, type SqlError } from "effect/sql/SqlError"

/**
 * The server that gives out ids, as long as no id comes twice. Another one that is promoted begins a timeline, and one
 * that recovers from a crash, in which ids that were not yet on disk are lost, resets its statistics.
 */
const server =
  "pg_catalog.concat(pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8), '/', "
  + "extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()))"

/**
 * SQL for what names the transaction that it is selected in: its id, and the server that gave it. It is empty on a
 * standby, where no transaction has an id.
 *
 * @category constructors
 * @since 0.1.0
 */
// The type of its result is one that no client reads in a way of its own.
export const mark = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN '' "
  + `ELSE pg_catalog.concat(pg_catalog.pg_current_xact_id(), ' ', ${server}) END::pg_catalog.bpchar`

const ask = `SELECT ${mark}`

// Others that speak the protocol keep transactions in other ways. Before version 15, statistics are read from a file.
const recognize = `SELECT CASE WHEN pg_catalog.version() ~ '^PostgreSQL [0-9a-z.]+ '
  AND pg_catalog.current_setting('server_version_num')::int4 >= 150000 THEN ${mark} END`

const look = `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'recovering' WHEN ${server} <> $2 THEN 'elsewhere'
  ELSE pg_catalog.pg_xact_status($1::xid8) END::pg_catalog.bpchar`

// One that waits for a standby's confirmation would be seen before it has that.
const terminate = `SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
  WHERE backend_xid = $1::xid8::xid AND wait_event IS DISTINCT FROM 'SyncRep'`

/** The first value of the first row. */
const value = (connection: Connection, sql: string, params: ReadonlyArray<string>): Effect.Effect<unknown, SqlError> =>
  Effect.map(connection.executeValuesUnprepared(sql, params), ([row]) => row?.[0])

/**
 * Whether the server can tell what became of a transaction, or `undefined` where it does not answer. To be asked with
 * no transaction open: what a server does not know aborts it.
 */
export const isKnowable = (connection: Connection): Effect.Effect<boolean | undefined> =>
  Effect.match(value(connection, recognize, []), {
    onSuccess: (found) => typeof found === "string",
    onFailure: (error) => isAnswer(error) ? false : undefined
  })

/** Asks what names the transaction that is open on a connection, or `undefined` where nothing does. */
export const markOf = (connection: Connection): Effect.Effect<string | undefined, SqlError> =>
  Effect.map(connection.executeValues(ask, []), ([row]) => typeof row?.[0] === "string" ? row[0] : undefined)

/** Whether an error is what the server answered, and not that it shuts down (SQLSTATE classes 08 and 57P). */
export const isAnswer = (error: unknown): boolean => {
  if (!isSqlError(error) || error.reason._tag === "ConnectionError") return false
  return /^(?!08|57P)./.test(stateOf(error))
}

/**
 * Whether an error of a statement that came before `COMMIT` was sent proves that its transaction can't commit: the server
 * has answered with it, also that it shuts down, or the connection is gone. What fails in the client proves nothing.
 */
export const isAbort = (error: SqlError): boolean => error.reason._tag === "ConnectionError" || stateOf(error) !== ""

/** The SQLSTATE of an error, or `""` where it has none. */
const stateOf = ({ reason: { cause } }: SqlError): string =>
  hasProperty(cause, "code") && typeof cause.code === "string" && /^[0-9FHPX][0-9A-Z]{4}$/.test(cause.code)
    ? cause.code
    : ""

/**
 * Finds out, on other connections, whether a transaction has committed, and ends it if it is still in progress. Answers
 * `undefined` where that cannot be known within `limit`.
 */
export const find = (
  client: SqlClient,
  marked: string,
  limit: Duration.Duration
): Effect.Effect<"committed" | "aborted" | undefined> => {
  const space = marked.indexOf(" ")
  if (space < 0) return Effect.undefined
  const id = marked.slice(0, space)
  const onConnection = (sql: string, params: ReadonlyArray<string>): Effect.Effect<unknown> =>
    // A connection that is as broken as the first must not take all the time that there is.
    within(
      Effect.match(Effect.scoped(Effect.flatMap(client.reserve, (connection) => value(connection, sql, params))), {
        onSuccess: (found) => found,
        onFailure: () => undefined
      }),
      Duration.divideUnsafe(limit, 4)
    )
  const found = Effect.gen(function*() {
    for (let attempt = 0;; attempt++) {
      const status = yield* onConnection(look, [id, marked.slice(space + 1)])
      if (status === "committed" || status === "aborted") return status
      // `null` is said of an id that is too old for the server to remember.
      if (status === "elsewhere" || status === null) return undefined
      // Most are over by the second look: then nothing is to be ended.
      if (status === "in progress" && attempt > 0) yield* onConnection(terminate, [id])
      yield* Effect.sleep(Math.min(20 * 2 ** attempt, 500))
    }
  })
  return Effect.timeoutOrElse(found, { duration: limit, orElse: () => Effect.undefined })
}

/** Waits no longer than `duration`, also for an effect that is slow to be interrupted. */
const within = <A>(effect: Effect.Effect<A>, duration: Duration.Duration): Effect.Effect<A | undefined> =>
  Effect.flatMap(Effect.forkDetach(effect, { startImmediately: true }), (fiber) => {
    const interrupt = Effect.sync(() => fiber.interruptUnsafe())
    return Effect.onInterrupt(
      Effect.timeoutOrElse(Fiber.join(fiber), { duration, orElse: () => Effect.as(interrupt, undefined) }),
      () => interrupt
    )
  })
