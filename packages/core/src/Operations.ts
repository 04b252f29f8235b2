/**
 * What an operator can ask of a store, and tell it. `OutboxAdmin` is the service; this is what a store provides to it.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { IntentStoreError } from "./IntentSink.ts"
import type { DeathReason, Depth } from "./OutboxStore.ts"

/**
 * Where an intent is in its life.
 *
 * - `waiting`: due, and not claimed; also those that wait for others of their key.
 * - `claimed`: leased to a session.
 * - `delayed`: not due yet, retries included.
 * - `dead`: a dead letter.
 * - `delivered`: kept for a time after its delivery, in a store that does so.
 *
 * @category models
 * @since 0.1.0
 */
export type State = "waiting" | "claimed" | "delayed" | "dead" | "delivered"

/**
 * Which intents are meant: those that are all of what is given. A key alone is one of every tag.
 *
 * @category options
 * @since 0.1.0
 */
export interface Filter {
  readonly ids?: ReadonlyArray<string> | undefined
  readonly states?: ReadonlyArray<State> | undefined
  readonly tag?: string | undefined
  readonly partitionKey?: string | undefined
  /** For at least so many milliseconds: enqueued, or dead or delivered, so long ago. */
  readonly olderThan?: number | undefined
}

/**
 * An intent, as lists show it. Times are milliseconds of Unix time, by the clock of the store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Entry {
  readonly id: string
  readonly state: State
  readonly tag: string
  readonly version: number
  readonly partitionKey: string | undefined
  readonly priority: number
  readonly failures: number
  readonly crashes: number
  readonly enqueuedAt: number
  /** When it is or was due, if that is not when it was enqueued. */
  readonly dueAt: number | undefined
  /** When it died or was delivered. */
  readonly endedAt: number | undefined
  /** Why it is a dead letter. */
  readonly reason: DeathReason | undefined
}

/**
 * Something that happened to an intent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Event {
  readonly at: number
  /** It is `crashed` when its worker died while it was on record as started, also where that is not counted. */
  readonly what: "failed" | "snoozed" | "undecodable" | "crashed" | "dead" | "retried"
  /** How it failed, or why it is dead. */
  readonly detail: string | undefined
}

/**
 * An intent with all that is known of it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Detail extends Entry {
  /** JSON, as it is stored: still as the store's codec has encoded it, if it has one. */
  readonly payload: string
  /** How it last failed. */
  readonly failure: string | undefined
  /** What happened to it, from the first; of many events the last 20. */
  readonly history: ReadonlyArray<Event>
}

/**
 * A part of a list. `next` leads to the part after it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Page {
  readonly entries: ReadonlyArray<Entry>
  readonly next: string | undefined
}

/**
 * A reason why an intent is not being delivered now.
 *
 * @category models
 * @since 0.1.0
 */
export type Block =
  /** It is not due yet: it was delayed, snoozed, or has failed. A delayed one joins its key when it is due. */
  | { readonly _tag: "NotDue"; readonly dueAt: number }
  /** A worker has claimed it. */
  | { readonly _tag: "Held"; readonly session: string; readonly leaseEndsAt: number }
  /** Others of its key come before it, this one first. */
  | { readonly _tag: "BehindIntent"; readonly id: string; readonly partitionKey: string }
  /** A dead letter keeps its key from going on: retry it, or purge it. */
  | { readonly _tag: "KeyBlocked"; readonly by: string; readonly partitionKey: string }
  /** An operator has paused its tag, or its key. */
  | { readonly _tag: "Paused"; readonly tag: string; readonly partitionKey: string | undefined }
  /** As many as may run are running, or as many as may start have started. */
  | { readonly _tag: "LimitReached"; readonly limit: "concurrency" | "rateLimit" }
  /** No worker that is alive knows its tag, or this version of it. */
  | { readonly _tag: "NoWorker"; readonly tag: string; readonly version: number }
  /** It was running when its worker died, so it waits to run alone. */
  | { readonly _tag: "Suspect" }
  /** No worker could read it, so it is put off. */
  | { readonly _tag: "Undecodable"; readonly since: number; readonly dueAt: number }
  /** It is a dead letter. */
  | { readonly _tag: "Dead"; readonly since: number; readonly reason: DeathReason; readonly failure: string }
  /** It has been delivered. */
  | { readonly _tag: "Delivered"; readonly at: number }

/**
 * A tag that is paused, or one key of it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pause {
  readonly tag: string
  readonly partitionKey: string | undefined
}

/**
 * A worker's session, as the store knows it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Live {
  readonly session: string
  readonly startedAt: number
  /** When its lease ends if it does not beat again. */
  readonly leaseEndsAt: number
  readonly claimed: number
  readonly subscriptions: ReadonlyArray<{ readonly tag: string; readonly version: number }>
}

/**
 * What a store can do for an operator. What changes intents answers how many it has changed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Operations {
  /** How much there is of each tag that has any. */
  readonly counts: Effect.Effect<ReadonlyArray<Depth>, IntentStoreError>
  /** In the order of their ids, which is about that of their registration. */
  readonly list: (
    filter: Filter,
    page: { readonly limit: number; readonly after?: string | undefined }
  ) => Effect.Effect<Page, IntentStoreError>
  readonly find: (id: string) => Effect.Effect<Detail | undefined, IntentStoreError>
  /**
   * Every reason why it is not being delivered now; none if the next claim may take it. `undefined` if it is not there. Of
   * one that is over, only that; of one that is held, nothing of workers and limits.
   */
  readonly blocks: (id: string) => Effect.Effect<ReadonlyArray<Block> | undefined, IntentStoreError>
  /**
   * Dead letters are due again, with no failures and no crashes, as if they had always been readable. One that blocks its
   * key goes first in it, at its old place; another one joins the end of its key.
   */
  readonly retry: (filter: Filter) => Effect.Effect<number, IntentStoreError>
  /** What waits or is delayed becomes a dead letter that is `rejected`; no failure is counted, and its key goes on. */
  readonly reject: (filter: Filter, reason: string) => Effect.Effect<number, IntentStoreError>
  /**
   * What waits, is delayed or is claimed is gone. A handler that runs is interrupted within a beat of its worker; until
   * that worker lets go of it, it holds its key and is still there as `claimed`. Its idempotency key stays remembered.
   */
  readonly cancel: (filter: Filter) => Effect.Effect<number, IntentStoreError>
  /** Dead letters and what is kept of deliveries are gone. A key that a dead letter has blocked goes on. */
  readonly purge: (filter: Filter) => Effect.Effect<number, IntentStoreError>
  /**
   * Everything about a key is gone: what is live, done, dead or remembered. What is claimed is gone as one that is
   * cancelled. Answers how many intents that is. Whether the key is paused does not change.
   */
  readonly erase: (key: {
    readonly partitionKey: string
    readonly tag?: string | undefined
  }) => Effect.Effect<number, IntentStoreError>
  /**
   * Nothing of it is delivered until it is resumed, suspects included. Handlers that run are interrupted within a beat, and
   * nothing is counted. A tag and its keys are paused and resumed apart from each other.
   */
  readonly pause: (pause: Pause) => Effect.Effect<void, IntentStoreError>
  readonly resume: (pause: Pause) => Effect.Effect<void, IntentStoreError>
  readonly paused: Effect.Effect<ReadonlyArray<Pause>, IntentStoreError>
  readonly sessions: Effect.Effect<ReadonlyArray<Live>, IntentStoreError>
}
