/**
 * A typed intent on its way: from `defer` to a handler, in this process or through a store.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
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
  /**
   * What `Outbox.transactionMark` told in the statement that added it: it saves the boundary a statement. One answer of
   * all that are given together is enough.
   */
  readonly transaction?: string | undefined
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
