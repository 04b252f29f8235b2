/**
 * A typed intent on its way: from `defer` to a handler, in this process or through a store.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"

/**
 * A typed intent as it is stored.
 *
 * @category models
 * @since 0.1.0
 */
export interface Envelope {
  /** A UUIDv7, made when the intent was deferred, and the same over all its deliveries. */
  readonly id: string
  readonly tag: string
  readonly version: number
  /** JSON, as the payload's schema encodes it. */
  readonly payload: string
  /** Deliveries of one tag with one key are made one at a time, in commit order. */
  readonly partitionKey: string | undefined
  /** Of one tag, a second envelope with this key is not added while the first is remembered. */
  readonly idempotencyKey: string | undefined
  /** How long the store remembers the `idempotencyKey`, in milliseconds from when the intent is due. */
  readonly remember: number
  /** Within its tag, a higher one goes first. */
  readonly priority: number
  /** Milliseconds from the commit until it is due. */
  readonly delay: number | undefined
  /** When it is due, in milliseconds of Unix time. At most one of `delay` and `runAt` is set. */
  readonly runAt: number | undefined
  /** The span that deferred it, as a W3C `traceparent`. */
  readonly traceparent: string | undefined
}

/**
 * What a store answers to an envelope that was appended: under which id it has the intent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Appended {
  /** The envelope's own id, or, of a duplicate, the id of the one that was there first. */
  readonly id: string
  /** Whether nothing was added, because its `idempotencyKey` is remembered. */
  readonly duplicate: boolean
}

/**
 * What an engine needs to know of the definition of a typed intent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Definition {
  readonly _tag: string
  /** The key of the service that handles it. */
  readonly key: string
  /** What holds wherever it is handled. */
  readonly policy: { readonly timeout: Duration.Duration | undefined }
  /** Reads a payload of a version that it knows. */
  readonly decode: (payload: string, version: number) => Exit.Exit<unknown, unknown>
}

/**
 * What an engine does with typed intents. Without it, it refuses them where they are deferred.
 *
 * @category models
 * @since 0.1.0
 */
export interface Typed {
  /** Why this intent is refused, or `undefined`. Called where it is deferred. */
  readonly refuse: (envelope: Envelope, definition: Definition) => string | undefined
  /** What reports show of its payload. Defaults to the payload as it was given. */
  readonly show?: ((envelope: Envelope, definition: Definition) => Exit.Exit<unknown, unknown>) | undefined
  /** Runs one in its epilogue. Needed without `append`. */
  readonly perform?: ((envelope: Envelope) => Effect.Effect<unknown, unknown>) | undefined
  /** Hands them to a store, which then has them: all or none. */
  readonly append?:
    | ((envelopes: ReadonlyArray<Envelope>) => Effect.Effect<ReadonlyArray<Appended>, unknown>)
    | undefined
  /** Whether `append` takes part in the transaction of the boundary, so that it has to come before its `COMMIT`. */
  readonly isTransactional?: boolean | undefined
  /** Leaves a mark in the innermost SQL savepoint, which is gone if that rolls back. Needed if `isTransactional`. */
  readonly mark?: ((mark: string) => Effect.Effect<void, unknown>) | undefined
  /** The marks that are left. */
  readonly marks?: Effect.Effect<ReadonlySet<string>, unknown> | undefined
}
