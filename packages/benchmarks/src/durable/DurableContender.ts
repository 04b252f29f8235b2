/**
 * A queue of durable intents, as it is measured: used in the way that its own guide shows.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Payload } from "./Payload.ts"

/** The database of a turn, for those that bring a driver of their own. */
export class Database extends Context.Service<Database, {
  readonly url: Redacted.Redacted
  /** How many connections a pool may have. */
  readonly connections: number
}>()("benchmarks/durable/Database") {}

/** What a handler does. It has no form of its own, so that nobody pays for the form of another. */
export interface Handler {
  /** Milliseconds to wait, by a timer. With 0 it does nothing. */
  readonly takes: number
  /** To be called when the handler has waited. */
  readonly receive: (n: number) => void
}

export interface DurableContender {
  readonly name: string
  /** Migrates the database and opens the queue, which closes with the scope. */
  readonly open: Effect.Effect<DurableQueue, unknown, Database | PgClient | SqlClient | Scope.Scope>
}

export interface DurableQueue {
  /** Runs `core` in a transaction, and registers the intents in it, one by one. */
  readonly transaction: (
    core: Effect.Effect<void, unknown>,
    intents: ReadonlyArray<Payload>
  ) => Effect.Effect<void, unknown>
  /** Registers many intents in one transaction. */
  readonly bulk: (intents: ReadonlyArray<Payload>) => Effect.Effect<void, unknown>
  /** Starts a worker. When the scope closes it ends what it runs, and acknowledges it. */
  readonly work: (handler: Handler, concurrency: number) => Effect.Effect<void, unknown, Scope.Scope>
  /** How many intents the database has that were not acknowledged. */
  readonly waiting: Effect.Effect<number, unknown>
}
