/**
 * A store of durable intents that workers can open.
 *
 * **Details**
 *
 * A worker opens a session. What it claims is leased to its session, which it keeps alive with a beat. Whoever sees
 * that the beat of another session has not moved for that session's lease ends it, and its deliveries are free again.
 * A session that was ended can neither claim nor settle: it is fenced.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { type Codec, IntentSink, type IntentStoreError } from "./IntentSink.ts"
import * as MemoryStore from "./MemoryStore.ts"
import type { Operations } from "./Operations.ts"

/**
 * A tag, and the versions of its payload that a worker can read.
 *
 * @category models
 * @since 0.1.0
 */
export interface Subscription {
  readonly tag: string
  readonly versions: ReadonlyArray<number>
  /**
   * How many deliveries of one partition key a claim may take at once, in their order and from the first one on; the
   * worker makes them one after the other. While a session has any of a key, no claim takes more of it. Defaults to 1.
   */
  readonly perKey?: number | undefined
  /** How many deliveries may run at once, over all sessions. Defaults to no limit. */
  readonly concurrency?: number | undefined
  /** How many deliveries may start, over all sessions. Defaults to no limit. */
  readonly rateLimit?: RateLimit | undefined
}

/**
 * A token bucket: it holds `limit` tokens, each delivery that starts takes one, and it is filled evenly, by `limit` in
 * each `window`.
 *
 * @category models
 * @since 0.1.0
 */
export interface RateLimit {
  readonly limit: number
  readonly window: Duration.Duration
}

/**
 * What a worker tells a store when it opens a session.
 *
 * @category options
 * @since 0.1.0
 */
export interface OpenOptions {
  /** What it delivers. Everything else stays in the store, at no cost to its claims. */
  readonly subscriptions: ReadonlyArray<Subscription>
  /** How long its beat may rest before others end the session. */
  readonly lease: Duration.Duration
}

/**
 * A delivery that is leased to a session.
 *
 * @category models
 * @since 0.1.0
 */
export interface Claimed {
  /** The intent's id: the same over all deliveries. */
  readonly id: string
  /** What the store needs to find it again. */
  readonly token: unknown
  readonly tag: string
  readonly version: number
  readonly payload: string
  readonly partitionKey: string | undefined
  /** How many deliveries have failed. */
  readonly failures: number
  /** How many workers died while they ran it, and nothing else. */
  readonly crashes: number
  /**
   * What is to be thought of it since a session that held it was ended:
   *
   * - `"none"`: nothing, or no session was.
   * - `"possible"`: it was not on record as started. Put its start on record before its handler runs.
   * - `"strong"`: it was. It is claimed with `claimSuspect`, and runs alone. Until then it holds its partition key.
   *
   * It is over once the delivery is settled as anything but `Released`.
   */
  readonly suspicion: "none" | "possible" | "strong"
  /** Milliseconds of Unix time, by the clock of the store. */
  readonly enqueuedAt: number
  /** The span that deferred it, as a W3C `traceparent`. */
  readonly traceparent: string | undefined
  /** How long ago a worker first put it off because it could not read its payload, in milliseconds. */
  readonly undecodableFor: number | undefined
}

/**
 * What has become of a delivery.
 *
 * - `Succeeded`: the store deletes it.
 * - `Failed`: it is due again after `delay` milliseconds, with one failure more.
 * - `Snoozed`: it is due again after `delay` milliseconds; nothing is counted.
 * - `Undecodable`: as `Snoozed`, and the store remembers since when it could not be read.
 * - `Dead`: it is kept as a dead letter until an operator decides; one that is exhausted or was rejected has one failure
 *   more. With `blocksKey`, nothing else of its partition key is delivered before that.
 * - `Released`: it is free at once, and suspected as it was; nothing is counted.
 *
 * What an operator has cancelled while it was held is gone, whatever it is settled as.
 *
 * @category models
 * @since 0.1.0
 */
export type Settlement =
  | { readonly _tag: "Succeeded"; readonly claimed: Claimed }
  | { readonly _tag: "Failed"; readonly claimed: Claimed; readonly delay: number; readonly failure: string }
  | { readonly _tag: "Snoozed"; readonly claimed: Claimed; readonly delay: number }
  | { readonly _tag: "Undecodable"; readonly claimed: Claimed; readonly delay: number; readonly failure: string }
  | {
    readonly _tag: "Dead"
    readonly claimed: Claimed
    readonly reason: DeathReason
    readonly failure: string
    readonly blocksKey?: boolean | undefined
  }
  | { readonly _tag: "Released"; readonly claimed: Claimed }

/**
 * Why an intent is a dead letter: its attempts are used up, its handler or an operator rejected it, no worker could read
 * it, or too many workers died of it.
 *
 * @category models
 * @since 0.1.0
 */
export type DeathReason = "exhausted" | "rejected" | "undecodable" | "crashed"

/**
 * What a session learns from a beat.
 *
 * @category models
 * @since 0.1.0
 */
export interface Beat {
  /** Whether the session still has its lease. If not, it has lost all that it had claimed, for ever. */
  readonly isAlive: boolean
  /** Whether there is something that it could claim now, suspects apart. */
  readonly isWaiting: boolean
  /** Whether sessions have let their lease run out, as this one sees it: time for `recover`. */
  readonly hasExpired: boolean
  /** Whether `wakes` tells of what other processes append. If not, poll more often. */
  readonly isListening: boolean
  /** Whether `claimSuspect` may find something for it. */
  readonly hasSuspects: boolean
  /** The ids of deliveries that it holds and an operator has cancelled, or whose tag or key is paused: interrupt them. */
  readonly recalled: ReadonlyArray<string>
}

/**
 * How many deliveries of a tag with a limit a session may run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Permit {
  readonly tag: string
  /** How many at once, until the next answer. */
  readonly concurrency: number
  /** How many more may start. They are the session's own, whether it uses them or not. */
  readonly tokens: number
  /** In how many milliseconds there may be more of either; `undefined` if nobody knows. */
  readonly retryAfter: number | undefined
}

/**
 * A worker's session with a store. It ends with its scope, which frees what it has not settled.
 *
 * @category models
 * @since 0.1.0
 */
export interface Session {
  /**
   * Leases up to `rows` deliveries that are due, of together about `bytes` of payload, and of a tag in `tags` no more than
   * it says there. It does not wait.
   */
  readonly claim: (limit: {
    readonly rows: number
    readonly bytes: number
    readonly tags?: ReadonlyMap<string, number> | undefined
  }) => Effect.Effect<ReadonlyArray<Claimed>, IntentStoreError>
  /**
   * Leases a delivery that was on record as started when its session was ended, if there is one. It is on record as
   * started again by that, so run nothing beside it.
   */
  readonly claimSuspect: Effect.Effect<Claimed | undefined, IntentStoreError>
  /**
   * Settles many at once. Answers with the ids of those whose lease was lost: of these, nothing was changed.
   *
   * Of several deliveries of one partition key that were claimed together, those after one that did not succeed are
   * settled together with it, as `Released`.
   */
  readonly settle: (
    settlements: ReadonlyArray<Settlement>
  ) => Effect.Effect<ReadonlyArray<string>, IntentStoreError>
  /** Settles one as a success in the transaction in force. Answers whether the session still had its lease. */
  readonly settleInTransaction: (claimed: Claimed) => Effect.Effect<boolean, IntentStoreError>
  /**
   * Puts on record that deliveries have started, until they are settled. Answers with the ids of those whose lease was
   * lost.
   */
  readonly start: (claimed: ReadonlyArray<Claimed>) => Effect.Effect<ReadonlyArray<string>, IntentStoreError>
  /**
   * Asks for permits for tags that have limits: how many run now or are about to, how many could run at once, and how many
   * more tokens are wanted. Answers for each, in that order. The limits are those of its own subscriptions.
   *
   * Over all sessions that have not ended, no more is permitted than the limits say, and never less to a session than it
   * says that it runs. Of what several want, each has its share as they ask again and again; where there is less than one
   * for each, they have it in turn. What a session wants counts until it asks again, or has not for one lease. To one that
   * was ended, nothing is permitted.
   */
  readonly permit: (
    wants: ReadonlyArray<{
      readonly tag: string
      readonly running: number
      readonly concurrency: number
      readonly tokens: number
    }>
  ) => Effect.Effect<ReadonlyArray<Permit>, IntentStoreError>
  /** Keeps the session alive. It does not wait for `claim` and `settle`, and has a connection of its own. */
  readonly beat: Effect.Effect<Beat, IntentStoreError>
  /**
   * Ends the sessions whose lease has run out, and frees what they had claimed. Answers how many deliveries that is. What
   * was on record as started is a suspect now; of one that was claimed as a suspect, a crash is counted. What an operator
   * has cancelled is gone, and not among them.
   */
  readonly recover: Effect.Effect<number, IntentStoreError>
  /**
   * Waits until something may be due for this session, also by what this session has put off, handed back or settled
   * itself. What came since the last call counts.
   */
  readonly wakes: Effect.Effect<void>
}

/**
 * How much of a tag a store holds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Depth {
  readonly tag: string
  /** Due, and not claimed. */
  readonly waiting: number
  /** Leased to a session. */
  readonly claimed: number
  /** Not due yet, retries included. */
  readonly delayed: number
  readonly dead: number
  /** How long the oldest of those waiting has been due, in milliseconds. 0 if there is none. */
  readonly oldest: number
}

/**
 * A sink that workers can open.
 *
 * @category services
 * @since 0.1.0
 */
export class OutboxStore extends Context.Service<OutboxStore, OutboxStore.Service>()("@epilogue/core/OutboxStore") {}

/**
 * @since 0.1.0
 */
export declare namespace OutboxStore {
  /**
   * What a store provides to workers.
   *
   * @category models
   * @since 0.1.0
   */
  export interface Service extends IntentSink.Service {
    /** Opens a session for a worker. */
    readonly open: (options: OpenOptions) => Effect.Effect<Session, IntentStoreError, Scope.Scope>
    /** What an operator can do. */
    readonly operations: Operations
    /** How much there is of each tag that has any. It may cost a scan of what waits, so it is not for every second. */
    readonly depths: Effect.Effect<ReadonlyArray<Depth>, IntentStoreError>
  }
}

/**
 * As `layerMemory`, and told for how long it keeps what was delivered, for operators to see.
 *
 * **Details**
 *
 * `keepDelivered` defaults to nothing: what was delivered is gone.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemoryWith = (
  options?: { readonly keepDelivered?: Duration.Input | undefined }
): Layer.Layer<OutboxStore | IntentSink> =>
  Layer.effectContext(
    Effect.map(MemoryStore.make(options), (store) => Context.add(Context.make(OutboxStore, store), IntentSink, store))
  )

/**
 * A store that this process holds in memory: for development, and for tests, also under `TestClock`.
 *
 * **Gotchas**
 *
 * What it holds is lost when the layer closes. It has no transactions.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<OutboxStore | IntentSink> = layerMemoryWith()

/**
 * A store that holds payloads as a codec encodes them: to encrypt them at rest, say.
 *
 * **Details**
 *
 * Boundaries encode, and workers and operators decode, so all of them need a layer with a codec that knows what the
 * others have encoded.
 *
 * **Gotchas**
 *
 * A session's `payload`, and what `operations` tell of it, is as it is stored.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerCodec = (codec: Codec): Layer.Layer<OutboxStore | IntentSink, never, OutboxStore> =>
  Layer.effectContext(OutboxStore.useSync((store) => {
    const encoded: OutboxStore.Service = { ...store, codec }
    return Context.add(Context.make(OutboxStore, encoded), IntentSink, encoded)
  }))

/**
 * Measures how much the store holds of each tag, again and again.
 *
 * **Details**
 *
 * It sets the gauges `epilogue.outbox.intents`, with the attributes `messaging.destination.name` (the tag) and `state`
 * (`"waiting"`, `"claimed"`, `"delayed"` or `"dead"`), and `epilogue.outbox.oldest`: for how many seconds the oldest of
 * those waiting has been due. `interval` defaults to 30 seconds.
 *
 * **Gotchas**
 *
 * One process of a deployment is enough. Each measurement counts what the store holds, which may take a scan of it.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMetrics = (
  options?: { readonly interval?: Duration.Input | undefined }
): Layer.Layer<never, never, OutboxStore> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const store = yield* OutboxStore
    // A tag of which there is nothing left is still told of, as none.
    const gauges = new Map<string, ReturnType<typeof gaugesOf>>()
    const measure = Effect.flatMap(store.depths, (depths) =>
      Effect.withFiber<void>(({ context }) => {
        for (const { tag } of depths) if (!gauges.has(tag)) gauges.set(tag, gaugesOf(tag))
        for (const [tag, { claimed, dead, delayed, oldest, waiting }] of gauges) {
          const depth = depths.find((each) => each.tag === tag)
          waiting.updateUnsafe(depth?.waiting ?? 0, context)
          claimed.updateUnsafe(depth?.claimed ?? 0, context)
          delayed.updateUnsafe(depth?.delayed ?? 0, context)
          dead.updateUnsafe(depth?.dead ?? 0, context)
          oldest.updateUnsafe((depth?.oldest ?? 0) / 1000, context)
        }
        return Effect.void
      }))
    yield* Effect.ignoreCause(measure, { log: "Warn", message: "What the store holds could not be measured" }).pipe(
      Effect.repeat(Schedule.spaced(options?.interval ?? "30 seconds")),
      Effect.forkScoped
    )
  }))

const gaugesOf = (tag: string) => {
  const attributes = { "messaging.destination.name": tag }
  const intents = (state: string) => Metric.gauge("epilogue.outbox.intents", { attributes: { ...attributes, state } })
  return {
    waiting: intents("waiting"),
    claimed: intents("claimed"),
    delayed: intents("delayed"),
    dead: intents("dead"),
    oldest: Metric.gauge("epilogue.outbox.oldest", { attributes })
  }
}
