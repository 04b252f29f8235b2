/**
 * The SQL transaction that an engine opens around the core of a boundary.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import { isSqlError } from "effect/sql/SqlError"
import { isAnswer } from "./CommitStatus.ts"
import type { Transact } from "./Deferred.ts"
import { CommitError } from "./Outcome.ts"
import { type Server, TransactionConnection } from "./TransactionConnection.ts"

/**
 * Options of the engines whose boundaries are SQL transactions.
 *
 * @category models
 * @since 0.1.0
 */
export interface TransactionOptions {
  /**
   * How long to look for what became of a `COMMIT` whose answer was lost, on PostgreSQL 15 or later. After it, or with
   * `0`, the outcome is `"unknown"`. Defaults to 10 seconds.
   *
   * To be able to, a boundary with intents or rollback hooks asks for the id of its transaction before the `COMMIT`,
   * where its intents were not stored in one: that is one more statement. With `0` it does not.
   */
  readonly commitTimeout?: Duration.Input | undefined
}

/** Makes the core of a boundary a transaction of `client`, or a savepoint inside one. */
export const transactWith = (client: SqlClient.SqlClient, options?: TransactionOptions): Transact => {
  const timeout = Duration.fromInputUnsafe(options?.commitTimeout ?? "10 seconds")
  const canLook = client.onDialectOrElse({ pg: () => true, orElse: () => false }) && !Duration.isZero(timeout)
  const server: Server = { isKnowable: undefined }
  return <A, E, R>(core: Effect.Effect<A, E, R>, restore: Restore, isAwaited?: () => boolean) =>
    Effect.withFiber<A, E | CommitError, R>((fiber) => {
      let ended: Exit.Exit<A, E> | undefined
      let isCommitted = false
      // A savepoint waits for no connection, so nothing has to be able to interrupt it on its way in or out.
      const isNested = Context.getOrUndefined(fiber.context, client.transactionService) !== undefined
      const connection = canLook && !isNested
        ? new TransactionConnection(client, server, timeout, restore, fiber.context, isAwaited)
        : undefined
      const body = Effect.onExitPrimitive(core, (exit) => {
        ended = exit
        if (Exit.isFailure(exit)) return undefined
        if (connection !== undefined) connection.isEnding = true
        return client.afterCommit(Effect.sync(() => void (isCommitted = true)))
      })
      const transaction = connection !== undefined
        ? connection.around(client.withTransaction(restore(body)))
        : isNested
        ? client.withTransaction(restore(body))
        : restore(client.withTransaction(body))
      return Effect.catchCause(transaction, (cause): Effect.Effect<A, E | CommitError> => {
        if (ended !== undefined && (Exit.isFailure(ended) || isCommitted)) {
          return Effect.andThen(warn(cause, ended), ended)
        }
        // Interrupted while it waited for a connection, or at the very end of the core: `COMMIT` was not sent.
        if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
        const error = Cause.squash(cause)
        const outcome = ended === undefined || connection?.isAborted === true || isProofOfAbort(error)
          ? "discarded"
          : "unknown"
        return Effect.fail(new CommitError({ cause: error, outcome, message: `${advice[outcome]} ${reasonOf(error)}` }))
      })
    })
}

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

const advice: { readonly [Outcome in CommitError["outcome"]]: string } = {
  discarded: "The transaction did not commit, and no intent has run. It is safe to run the program again.",
  unknown: "It is not known whether the transaction committed. No intent has run. Look for its rows before you run the "
    + "program again."
}

/** What the database said, which the driver keeps below its own words. */
const reasonOf = (error: unknown): string => {
  const cause = isSqlError(error) ? error.reason.cause : error
  return `The reason: ${cause instanceof Error ? cause.message : String(error)}`
}

/** What went wrong after the core had failed, or after `COMMIT`, changes nothing; but it is not kept quiet. */
const warn = (cause: Cause.Cause<unknown>, ended: Exit.Exit<unknown, unknown>): Effect.Effect<void> => {
  const known = Exit.isFailure(ended) ? ended.cause.reasons : []
  const rest = cause.reasons.filter((reason) => !Cause.isInterruptReason(reason) && !known.includes(reason))
  return rest.length === 0
    ? Effect.void
    : Effect.logWarning(
      Exit.isFailure(ended)
        ? "ROLLBACK failed after the core of a boundary had failed; the database discards the transaction by itself"
        : "The connection could not be released after COMMIT",
      Cause.fromReasons(rest)
    )
}

/** Only an error or a `ROLLBACK` that the server answered to `COMMIT` proves that nothing is committed. */
const isProofOfAbort = (error: unknown): boolean =>
  // The driver has no SQLSTATE for a `COMMIT` that the server answered with `ROLLBACK`, but its own operation.
  isAnswer(error)
  || (isSqlError(error) && error.reason._tag !== "ConnectionError" && error.reason.operation === "commit")
