/**
 * The connection of a transaction that an engine opens: one of its client, which settles what became of its `COMMIT`.
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import type * as Stream from "effect/Stream"
import * as CommitStatus from "./CommitStatus.ts"

type Send<A> = (connection: Connection) => Effect.Effect<A, SqlError>
type Transform = Parameters<Connection["execute"]>[2]

/** Whether the server of a client can tell what became of a transaction, once that is known. */
export interface Server {
  isKnowable: boolean | undefined
}

/**
 * Stands for a connection of the pool, so that it sees the `COMMIT`.
 *
 * **Details**
 *
 * The client finds it as that of a transaction at depth -1, inside of which the outermost one is next. It is taken from
 * the pool at the first statement, `BEGIN`, and given back after the `COMMIT`, before it is looked for what became of
 * that, and before anything runs that waits for the commit.
 */
export class TransactionConnection implements Connection {
  /** Whether the core has succeeded, so that the next `COMMIT` is that of the transaction. */
  isEnding = false
  /** Whether it is certain that nothing has committed. */
  isAborted = false
  /** What names the transaction, where a statement of it has told. */
  mark: string | undefined = undefined
  private connection: Connection | undefined = undefined
  private readonly scope = Scope.makeUnsafe()
  private readonly client: SqlClient
  private readonly server: Server
  private readonly timeout: Duration.Duration
  private readonly restore: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  private readonly outside: Context.Context<never>
  private readonly isAwaited: (() => boolean) | undefined

  constructor(
    client: SqlClient,
    server: Server,
    timeout: Duration.Duration,
    restore: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>,
    outside: Context.Context<never>,
    isAwaited: (() => boolean) | undefined
  ) {
    this.client = client
    this.server = server
    this.timeout = timeout
    this.restore = restore
    this.outside = outside
    this.isAwaited = isAwaited
  }

  /** Makes what `withTransaction` of the client returns use this connection. */
  around<A, E, R>(transaction: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.onExitPrimitive(
      Effect.provideService(transaction, this.client.transactionService, [this, -1]),
      (exit) => this.release(exit)
    )
  }

  execute(sql: string, params: ReadonlyArray<unknown>, transform: Transform): ReturnType<Connection["execute"]> {
    return this.run(sql, (connection) => connection.execute(sql, params, transform))
  }

  executeRaw(sql: string, params: ReadonlyArray<unknown>): ReturnType<Connection["executeRaw"]> {
    return this.run(sql, (connection) => connection.executeRaw(sql, params))
  }

  executeStream(sql: string, params: ReadonlyArray<unknown>, transform: Transform): Stream.Stream<unknown, SqlError> {
    // The first statement is `BEGIN`.
    return this.connection!.executeStream(sql, params, transform)
  }

  executeValues(sql: string, params: ReadonlyArray<unknown>): ReturnType<Connection["executeValues"]> {
    return this.run(sql, (connection) => connection.executeValues(sql, params))
  }

  executeValuesUnprepared(sql: string, params: ReadonlyArray<unknown>): ReturnType<Connection["executeValues"]> {
    return this.run(sql, (connection) => connection.executeValuesUnprepared(sql, params))
  }

  executeUnprepared(
    sql: string,
    params: ReadonlyArray<unknown>,
    transform: Transform
  ): ReturnType<Connection["execute"]> {
    return this.run(sql, (connection) => connection.executeUnprepared(sql, params, transform))
  }

  private run<A>(sql: string, send: Send<A>): Effect.Effect<A, SqlError> {
    if (this.connection === undefined) return Effect.flatMap(this.acquire, send)
    return this.isEnding && sql === "COMMIT" ? this.commit(this.connection, send) : send(this.connection)
  }

  private get acquire(): Effect.Effect<Connection, SqlError> {
    return Effect.flatMap(this.restore(Scope.provide(this.client.reserve, this.scope)), (connection) => {
      this.connection = connection
      return this.server.isKnowable !== undefined
        ? Effect.succeed(connection)
        : Effect.map(CommitStatus.isKnowable(connection), (answer) => {
          if (answer !== undefined) this.server.isKnowable = answer
          return connection
        })
    })
  }

  private commit<A>(connection: Connection, send: Send<A>): Effect.Effect<A, SqlError> {
    this.isEnding = false
    const isAsked = this.mark === undefined && this.server.isKnowable === true && this.isAwaited?.() !== false
    const sent = isAsked ? Effect.flatMap(this.ask(connection), () => send(connection)) : send(connection)
    return Effect.catchCause(
      Effect.onExitPrimitive(sent, (exit) => this.release(exit)),
      (cause) => this.settle(cause)
    )
  }

  private ask(connection: Connection): Effect.Effect<void> {
    return Effect.match(CommitStatus.markOf(connection), {
      onSuccess: (mark) => {
        this.mark = mark
      },
      // `COMMIT` tells the client.
      onFailure: (error) => {
        this.isAborted = CommitStatus.isAbort(error)
      }
    })
  }

  /** Callbacks that run after the commit see no transaction, and find the connection released. */
  private release(exit: Exit.Exit<unknown, unknown>): Effect.Effect<void> {
    return Effect.withFiber((fiber) => {
      fiber.setContext(this.outside)
      return Effect.ignoreCause(Scope.close(this.scope, exit), {
        log: "Warn",
        message: "The connection of a transaction could not be released"
      })
    })
  }

  private settle(cause: Cause.Cause<SqlError>): Effect.Effect<never, SqlError> {
    const failed = Effect.failCause(cause)
    if (this.mark === undefined || this.isAborted || CommitStatus.isAnswer(Cause.squash(cause))) return failed
    return Effect.flatMap(CommitStatus.find(this.client, this.mark, this.timeout), (status) => {
      this.isAborted = status === "aborted"
      if (status !== "committed") return failed
      return Effect.as(
        Effect.logWarning("The connection was lost before COMMIT was answered; the transaction had committed", cause),
        // What `send` answers is for the client, which looks at no more than the command.
        committed as never
      )
    })
  }
}

/** What a driver looks for in the answer to `COMMIT`. */
const committed = { command: "COMMIT" }
