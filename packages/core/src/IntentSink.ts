/**
 * Where durable intents go: all that a boundary needs of a store.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Appended, Envelope } from "./Envelope.ts"

export type { Appended, Envelope } from "./Envelope.ts"

/**
 * What a store can promise. What it can't is refused by name: when a layer is built, or where an intent is deferred.
 *
 * @category models
 * @since 0.1.0
 */
export interface Capabilities {
  /** What was stored survives the process. */
  readonly durable: boolean
  /** Intents are added in the SQL transaction of the boundary, and `transactional` handlers settle in theirs. */
  readonly transactional: boolean
  /** Deliveries of one partition key are made one at a time, in commit order. */
  readonly ordered: boolean
  /** Within a tag, higher priorities go first. */
  readonly priorities: boolean
}

/**
 * Turns payloads into what is stored, and back: to encrypt them at rest, say.
 *
 * **Gotchas**
 *
 * What it can't decode is put off like any payload that can't be read, in case a worker with another key can.
 *
 * @category models
 * @since 0.1.0
 */
export interface Codec {
  /** Fails the boundary if it fails. */
  readonly encode: (
    payload: string,
    intent: { readonly id: string; readonly tag: string }
  ) => Effect.Effect<string, unknown>
  readonly decode: (
    stored: string,
    intent: { readonly id: string; readonly tag: string }
  ) => Effect.Effect<string, unknown>
}

/**
 * A store could not do what it was asked for.
 *
 * @category errors
 * @since 0.1.0
 */
export class IntentStoreError extends Schema.TaggedError<IntentStoreError>()("IntentStoreError", {
  /** What happened, and what to do. */
  message: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {}

/**
 * A place for typed intents.
 *
 * **Details**
 *
 * With the capability `transactional`, `client` is there, and `append`, `mark` and `marks` run inside its transaction.
 *
 * @category services
 * @since 0.1.0
 */
export class IntentSink extends Context.Service<IntentSink, IntentSink.Service>()("@epilogue/core/IntentSink") {}

/**
 * @since 0.1.0
 */
export declare namespace IntentSink {
  /**
   * What a store provides to boundaries.
   *
   * @category models
   * @since 0.1.0
   */
  export interface Service {
    /** What errors call the store. */
    readonly name: string
    readonly capabilities: Capabilities
    /** What payloads are stored as. Boundaries encode, workers and operators decode; the store knows of neither. */
    readonly codec?: Codec | undefined
    /** The client whose transactions are those of the boundary. */
    readonly client?: SqlClient | undefined
    /** Adds intents, all or none, in order. Answers for each, in that order. */
    readonly append: (
      envelopes: ReadonlyArray<Envelope>
    ) => Effect.Effect<ReadonlyArray<Appended>, IntentStoreError>
    /** After the commit: lets workers know of what was appended. It does not wait for them, and does not fail. */
    readonly wake: (envelopes: ReadonlyArray<Envelope>) => Effect.Effect<void>
    /** Leaves a mark in the innermost savepoint that is open, so that it is gone if that rolls back. */
    readonly mark?: ((mark: string) => Effect.Effect<void, IntentStoreError>) | undefined
    /** The marks that are left in this transaction. */
    readonly marks?: Effect.Effect<ReadonlySet<string>, IntentStoreError> | undefined
  }
}
