/**
 * What an operator does: sees what a store holds and why something is not delivered, and decides about it.
 *
 * **Example** (A dead letter is found, understood, and delivered again)
 *
 * ```ts
 * import { Epilogue, Intent, Outbox, OutboxAdmin, OutboxStore, OutboxWorker } from "@epilogue/core"
 * import { Effect, Layer, Option, Queue, Schema } from "effect"
 * import * as assert from "node:assert"
 *
 * class SendReceipt extends Intent.make("SendReceipt", { payload: { email: Schema.String } }) {}
 *
 * const sent = Effect.runSync(Queue.unbounded<string>())
 * let isUp = false
 * const Handlers = SendReceipt.toLayer(({ email }) =>
 *   isUp ? Queue.offer(sent, email) : Intent.reject("the mail server is down")
 * )
 *
 * const program = Effect.gen(function*() {
 *   const admin = yield* OutboxAdmin.OutboxAdmin
 *   const id = yield* Epilogue.atomic(SendReceipt.defer({ email: "ada@example.com" }))
 *
 *   const { entries } = yield* Effect.repeat(admin.list({ states: ["dead"] }), {
 *     until: (page) => page.entries.length > 0
 *   })
 *   assert.deepStrictEqual(entries.map((entry) => [entry.tag, entry.reason]), [["SendReceipt", "rejected"]])
 *
 *   const [block] = Option.getOrThrow(yield* admin.why(id))
 *   assert.match(OutboxAdmin.describe(block!), /^It is a dead letter since .*: .*the mail server is down/)
 *
 *   isUp = true
 *   assert.strictEqual(yield* admin.retry({ ids: [id] }), 1)
 *   assert.strictEqual(yield* Queue.take(sent), "ada@example.com")
 * })
 *
 * const Live = OutboxWorker.layer({ intents: [SendReceipt] }).pipe(
 *   Layer.provide(Handlers),
 *   Layer.provideMerge(Layer.merge(Outbox.layer, OutboxAdmin.layer)),
 *   Layer.provide(OutboxStore.layerMemory)
 * )
 *
 * await Effect.runPromise(Effect.provide(program, Live))
 * ```
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { format } from "effect/Formatter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Stream from "effect/Stream"
import { type Codec, IntentStoreError } from "./IntentSink.ts"
import type * as Operations from "./Operations.ts"
import { OutboxStore } from "./OutboxStore.ts"

// What is told ----------------------------------------------------------------------------------------------------------

/** By the clock of the store. As JSON it is milliseconds of Unix time. */
const Moment = Schema.Finite.pipe(Schema.decodeTo(
  Schema.DateTimeUtc,
  SchemaTransformation.transform({
    decode: (millis) => DateTime.makeUnsafe(Math.floor(millis)),
    encode: DateTime.toEpochMillis
  })
))

const states = ["waiting", "claimed", "delayed", "dead", "delivered"] as const

/**
 * Where an intent is in its life.
 *
 * - `waiting`: due, and not claimed; also those that wait for others of their key.
 * - `claimed`: leased to a worker.
 * - `delayed`: not due yet, retries included.
 * - `dead`: a dead letter.
 * - `delivered`: kept for a time after its delivery, in a store that does so.
 *
 * @category models
 * @since 0.1.0
 */
export const State = Schema.Literals(states)

/**
 * Where an intent is in its life.
 *
 * @category models
 * @since 0.1.0
 */
export type State = typeof State.Type

const DeathReason = Schema.Literals(["exhausted", "rejected", "undecodable", "crashed"])

/**
 * How much there is of a tag.
 *
 * @category models
 * @since 0.1.0
 */
export const Count = Schema.Struct({
  tag: Schema.String,
  waiting: Schema.Int,
  claimed: Schema.Int,
  delayed: Schema.Int,
  dead: Schema.Int,
  /** How long the oldest of those waiting has been due. Zero if none waits. */
  lag: Schema.DurationFromMillis
})

/**
 * How much there is of a tag.
 *
 * @category models
 * @since 0.1.0
 */
export type Count = typeof Count.Type

/**
 * An intent, as lists show it.
 *
 * @category models
 * @since 0.1.0
 */
export const Entry = Schema.Struct({
  id: Schema.String,
  state: State,
  tag: Schema.String,
  version: Schema.Int,
  partitionKey: Schema.optional(Schema.String),
  priority: Schema.Int,
  /** How many deliveries have failed. */
  failures: Schema.Int,
  /** How many workers died while they ran it, and nothing else. */
  crashes: Schema.Int,
  enqueuedAt: Moment,
  /** When it is or was due, if that is not when it was enqueued. */
  dueAt: Schema.optional(Moment),
  /** When it died or was delivered. */
  endedAt: Schema.optional(Moment),
  /** Why it is a dead letter. */
  reason: Schema.optional(DeathReason)
})

/**
 * An intent, as lists show it.
 *
 * @category models
 * @since 0.1.0
 */
export type Entry = typeof Entry.Type

/**
 * Something that happened to an intent.
 *
 * @category models
 * @since 0.1.0
 */
export const Event = Schema.Struct({
  at: Moment,
  /** It is `crashed` when its worker died while it was on record as started, also where that is not counted. */
  what: Schema.Literals(["failed", "snoozed", "undecodable", "crashed", "dead", "retried"]),
  /** How it failed, or why it is dead. */
  detail: Schema.optional(Schema.String)
})

/**
 * Something that happened to an intent.
 *
 * @category models
 * @since 0.1.0
 */
export type Event = typeof Event.Type

/**
 * An intent with all that is known of it.
 *
 * @category models
 * @since 0.1.0
 */
export const Detail = Schema.Struct({
  ...Entry.fields,
  /** JSON, as its schema has encoded it; or why the store's codec can't decode it. */
  payload: Schema.Result(Schema.String, IntentStoreError),
  /** How it last failed. */
  failure: Schema.optional(Schema.String),
  /** What happened to it, from the first; of many events the last 20. */
  history: Schema.Array(Event)
})

/**
 * An intent with all that is known of it.
 *
 * @category models
 * @since 0.1.0
 */
export type Detail = typeof Detail.Type

/**
 * A part of a list. `next` leads to the part after it.
 *
 * @category models
 * @since 0.1.0
 */
export const Page = Schema.Struct({
  entries: Schema.Array(Entry),
  next: Schema.optional(Schema.String)
})

/**
 * A part of a list. `next` leads to the part after it.
 *
 * @category models
 * @since 0.1.0
 */
export type Page = typeof Page.Type

/**
 * A reason why an intent is not being delivered now. `describe` puts it into words.
 *
 * - `NotDue`: it was delayed, snoozed, or has failed.
 * - `Held`: a worker has claimed it.
 * - `BehindIntent`: others of its key come before it, `id` first.
 * - `KeyBlocked`: the dead letter `by` keeps its key from going on.
 * - `Paused`: an operator has paused its tag, or its key.
 * - `LimitReached`: as many as may run are running, or as many as may start have started.
 * - `NoWorker`: no worker that is alive knows its tag, or this version of it.
 * - `Suspect`: it was running when its worker died, so it waits to run alone.
 * - `Undecodable`: no worker could read it, so it is put off.
 * - `Dead`: it is a dead letter.
 * - `Delivered`: it has been delivered.
 *
 * @category models
 * @since 0.1.0
 */
export const Block = Schema.TaggedUnion({
  NotDue: { dueAt: Moment },
  Held: { session: Schema.String, leaseEndsAt: Moment },
  BehindIntent: { id: Schema.String, partitionKey: Schema.String },
  KeyBlocked: { by: Schema.String, partitionKey: Schema.String },
  Paused: { tag: Schema.String, partitionKey: Schema.optional(Schema.String) },
  LimitReached: { limit: Schema.Literals(["concurrency", "rateLimit"]) },
  NoWorker: { tag: Schema.String, version: Schema.Int },
  Suspect: {},
  Undecodable: { since: Moment, dueAt: Moment },
  Dead: { since: Moment, reason: DeathReason, failure: Schema.String },
  Delivered: { at: Moment }
})

/**
 * A reason why an intent is not being delivered now.
 *
 * @category models
 * @since 0.1.0
 */
export type Block = typeof Block.Type

/**
 * A tag that is paused, or one key of it.
 *
 * @category models
 * @since 0.1.0
 */
export const Pause = Schema.Struct({
  tag: Schema.String,
  partitionKey: Schema.optional(Schema.String)
})

/**
 * A tag that is paused, or one key of it.
 *
 * @category models
 * @since 0.1.0
 */
export type Pause = typeof Pause.Type

/**
 * The session of a worker.
 *
 * @category models
 * @since 0.1.0
 */
export const Worker = Schema.Struct({
  session: Schema.String,
  startedAt: Moment,
  /** When others end it if it does not show before that it is alive. */
  leaseEndsAt: Moment,
  /** How many intents it has claimed. */
  claimed: Schema.Int,
  /** What it delivers. */
  subscriptions: Schema.Array(Schema.Struct({ tag: Schema.String, version: Schema.Int }))
})

/**
 * The session of a worker.
 *
 * @category models
 * @since 0.1.0
 */
export type Worker = typeof Worker.Type

// What is asked for ---------------------------------------------------------------------------------------------------

/**
 * Which intents are meant: those that are all of what is given.
 *
 * @category options
 * @since 0.1.0
 */
export interface Filter {
  readonly ids?: ReadonlyArray<string> | undefined
  /** Defaults to each state that the operation is about. */
  readonly states?: ReadonlyArray<State> | undefined
  readonly tag?: string | undefined
  /** Without a `tag`, the key of every tag. */
  readonly partitionKey?: string | undefined
  /** For at least so long: enqueued, or dead or delivered, so long ago. */
  readonly olderThan?: Duration.Input | undefined
}

/**
 * The same, where it may be all there is.
 *
 * @category options
 * @since 0.1.0
 */
export interface Selection extends Filter {
  /** What `reject`, `cancel` and `purge` have to be told without `ids`, `tag` or `partitionKey`. Defaults to `false`. */
  readonly all?: boolean | undefined
}

/**
 * What an operator does with a store.
 *
 * @category services
 * @since 0.1.0
 */
export class OutboxAdmin extends Context.Service<OutboxAdmin, OutboxAdmin.Service>()("@epilogue/core/OutboxAdmin") {}

/**
 * @since 0.1.0
 */
export declare namespace OutboxAdmin {
  /**
   * What an operator does with a store.
   *
   * **Details**
   *
   * What changes intents answers how many it has changed. On a large store it works in small steps: if it fails halfway, what
   * it has done stays done, and it can be run again.
   *
   * @category models
   * @since 0.1.0
   */
  export interface Service {
    /** How much there is of each tag that has any. It may cost a scan of what waits. */
    readonly counts: Effect.Effect<ReadonlyArray<Count>, IntentStoreError>
    /**
     * A part of what there is, in the order of ids, which is about that of registration. `limit` is 1 to 1,000, and
     * defaults to 100. `after` is the `next` of the part before.
     */
    readonly list: (
      filter?: Filter,
      page?: { readonly limit?: number | undefined; readonly after?: string | undefined }
    ) => Effect.Effect<Page, IntentStoreError>
    /** All of a list, a part at a time. What comes and goes meanwhile may be missed. */
    readonly stream: (filter?: Filter) => Stream.Stream<Entry, IntentStoreError>
    /** All that is known of an intent; none if it is not there. */
    readonly get: (id: string) => Effect.Effect<Option.Option<Detail>, IntentStoreError>
    /**
     * Why is it blocked? Every reason why it is not being delivered now, and no reason if the next claim may take it. None
     * if it is not there. Of one that is over it tells only that; of one that is held, nothing of workers and limits.
     */
    readonly why: (id: string) => Effect.Effect<Option.Option<ReadonlyArray<Block>>, IntentStoreError>
    /**
     * Dead letters are due again, with no failures and no crashes. One that blocks its key goes first in it; another one
     * joins the end of its key.
     */
    readonly retry: (selection: Selection) => Effect.Effect<number, IntentStoreError>
    /** What waits or is delayed becomes a dead letter, for this reason. Its key goes on. */
    readonly reject: (selection: Selection, reason: string) => Effect.Effect<number, IntentStoreError>
    /**
     * What waits, is delayed or is claimed is gone. A handler that runs is interrupted within a beat of its worker; what it
     * has done stays done. An idempotency key stays remembered.
     */
    readonly cancel: (selection: Selection) => Effect.Effect<number, IntentStoreError>
    /** Dead letters, and what is kept of deliveries, are gone. A key that a dead letter has blocked goes on. */
    readonly purge: (selection: Selection) => Effect.Effect<number, IntentStoreError>
    /**
     * Everything about a key is gone, of one tag or of every tag: what is live, done, dead or remembered. What is claimed is
     * gone as one that is cancelled.
     */
    readonly erase: (key: {
      readonly partitionKey: string
      readonly tag?: string | undefined
    }) => Effect.Effect<number, IntentStoreError>
    /**
     * Nothing of a tag, or of one key of it, is delivered until it is resumed. Handlers that run are interrupted within a beat
     * of their worker, and nothing is counted. A tag and its keys are paused and resumed apart from each other.
     */
    readonly pause: (pause: Pause) => Effect.Effect<void, IntentStoreError>
    readonly resume: (pause: Pause) => Effect.Effect<void, IntentStoreError>
    /** What is paused. */
    readonly paused: Effect.Effect<ReadonlyArray<Pause>, IntentStoreError>
    /** The workers of all processes. */
    readonly workers: Effect.Effect<ReadonlyArray<Worker>, IntentStoreError>
  }
}

/**
 * Provides what an operator does with a store.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<OutboxAdmin, never, OutboxStore> = Layer.effect(
  OutboxAdmin,
  OutboxStore.useSync(({ codec, operations }) => make(operations, codec))
)

/**
 * Puts a reason why an intent is not being delivered into one sentence, with what can be done about it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const describe: (block: Block) => string = Block.match({
  NotDue: ({ dueAt }) => `It is not due before ${iso(dueAt)}.`,
  Held: ({ leaseEndsAt, session }) =>
    `A worker has claimed it, in session ${session}, whose lease ends at ${iso(leaseEndsAt)} unless it is kept alive.`,
  BehindIntent: ({ id, partitionKey }) => `Intent ${id} comes before it in its partition key ${quote(partitionKey)}.`,
  KeyBlocked: ({ by, partitionKey }) =>
    `The dead letter ${by} keeps its partition key ${quote(partitionKey)} from going on: retry it, or purge it.`,
  Paused: ({ partitionKey, tag }) =>
    partitionKey === undefined
      ? `Its tag ${quote(tag)} is paused: resume it.`
      : `Its partition key ${quote(partitionKey)} is paused, of the tag ${quote(tag)}: resume it.`,
  LimitReached: ({ limit }) =>
    limit === "concurrency"
      ? "As many of its tag are running as may run at once."
      : "As many of its tag have started as may start in this time.",
  NoWorker: ({ tag, version }) => `No worker that is alive delivers version ${version} of ${quote(tag)}: start one.`,
  Suspect: () => "It was running when its worker died, so it waits until a worker has time to run it alone.",
  Undecodable: ({ dueAt, since }) =>
    `No worker could read it since ${iso(since)}, so it is put off until ${iso(dueAt)}: start a worker that can.`,
  Dead: ({ failure, reason, since }) =>
    `It is a dead letter since ${iso(since)}, because ${deaths[reason]}: ${failure}`,
  Delivered: ({ at }) => `It was delivered at ${iso(at)}.`
})

const deaths: { readonly [Reason in typeof DeathReason.Type]: string } = {
  exhausted: "its attempts are used up",
  rejected: "it was rejected",
  undecodable: "no worker could read it",
  crashed: "too many workers died of it"
}

const iso = DateTime.formatIso

const quote = (text: string): string => JSON.stringify(text)

const most = 1_000

const make = (operations: Operations.Operations, codec: Codec | undefined): OutboxAdmin.Service => {
  const list: OutboxAdmin.Service["list"] = Effect.fnUntraced(function*(filter = {}, { after, limit = 100 } = {}) {
    if (!Number.isInteger(limit) || limit < 1 || limit > most) {
      return yield* refuse(`A list can't have a \`limit\` of ${limit}. Choose one of 1 to ${most}.`)
    }
    const wanted = yield* checkFilter(filter)
    const from = after === undefined ? undefined : yield* checkId(after)
    return decodePage(yield* operations.list(wanted, { limit, after: from }))
  })

  const change =
    (what: string | undefined, run: (filter: Operations.Filter) => Effect.Effect<number, IntentStoreError>) =>
    ({ all, ...filter }: Selection): Effect.Effect<number, IntentStoreError> => {
      const { ids, partitionKey, tag } = filter
      return what !== undefined && all !== true && ids === undefined && partitionKey === undefined && tag === undefined
        ? refuse(
          `Nothing was ${what}, because the selection has no \`ids\`, \`tag\` or \`partitionKey\`. `
            + "Give it one, or `all: true` if every intent is meant."
        )
        : Effect.flatMap(checkFilter(filter), run)
    }

  const reject = (reason: string) => change("rejected", (filter) => operations.reject(filter, reason))

  return {
    counts: Effect.map(
      operations.counts,
      (depths) => depths.map(({ oldest, ...depth }) => decodeCount({ ...depth, lag: oldest }))
    ),
    list,
    stream: (filter) =>
      Stream.paginate<string | undefined, Entry, IntentStoreError>(
        undefined,
        (after) =>
          Effect.map(
            list(filter, { limit: most, after }),
            ({ entries, next }) => [entries, Option.fromUndefinedOr(next)]
          )
      ),
    get: Effect.fnUntraced(function*(id) {
      const found = yield* Effect.flatMap(checkId(id), operations.find)
      if (found === undefined) return Option.none()
      return Option.some({
        ...decodeEntry(found),
        payload: yield* decodePayload(codec, found),
        failure: found.failure,
        history: decodeHistory(found.history)
      })
    }),
    why: (id) =>
      Effect.map(
        Effect.flatMap(checkId(id), operations.blocks),
        (blocks) => Option.map(Option.fromUndefinedOr(blocks), (all) => decodeBlocks(all))
      ),
    retry: change(undefined, operations.retry),
    reject: (selection, reason) =>
      reason.trim() === ""
        ? refuse(
          "Nothing was rejected, because there is no reason. Give one that says why to whoever finds the dead letter."
        )
        : reject(reason)(selection),
    cancel: change("cancelled", operations.cancel),
    purge: change("purged", operations.purge),
    erase: ({ partitionKey, tag }) =>
      // A program without types must not erase everything for want of a key.
      typeof partitionKey === "string"
        ? operations.erase({ partitionKey, tag })
        : refuse("Nothing was erased, because there is no `partitionKey`. Give the one that is meant."),
    pause: ({ partitionKey, tag }) => operations.pause({ partitionKey, tag }),
    resume: ({ partitionKey, tag }) => operations.resume({ partitionKey, tag }),
    paused: operations.paused,
    workers: Effect.map(operations.sessions, (sessions) => decodeWorkers(sessions))
  }
}

const decodeCount = Schema.decodeSync(Count)
const decodeEntry = Schema.decodeSync(Entry)
const decodeHistory = Schema.decodeSync(Detail.fields.history)
const decodePage = Schema.decodeSync(Page)
const decodeBlocks = Schema.decodeSync(Schema.Array(Block))
const decodeWorkers = Schema.decodeSync(Schema.Array(Worker))

const decodePayload = (
  codec: Codec | undefined,
  { id, payload, tag }: Operations.Detail
): Effect.Effect<Result.Result<string, IntentStoreError>> =>
  Effect.result(
    codec === undefined
      ? Effect.succeed(payload)
      // A codec of the user's may throw.
      : Effect.catchCause(Effect.suspend(() => codec.decode(payload, { id, tag })), (cause) =>
        Effect.fail(
          new IntentStoreError({
            message: `The store's codec can't decode the payload of intent ${id}: ${messageOf(Cause.squash(cause))}. `
              + "Give this program a codec that knows the key it was encoded with.",
            cause: Cause.squash(cause)
          })
        ))
  )

const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

// Bad input -------------------------------------------------------------------------------------------------------------

const refuse = (message: string): Effect.Effect<never, IntentStoreError> =>
  Effect.fail(new IntentStoreError({ message }))

const checkFilter = Effect.fnUntraced(function*(
  { ids, olderThan, partitionKey, states: wanted, tag }: Filter
): Effect.fn.Return<Operations.Filter, IntentStoreError> {
  for (const state of wanted ?? []) {
    if (!states.includes(state)) {
      return yield* refuse(`There is no state ${quote(state)}. The states are ${states.map(quote).join(", ")}.`)
    }
  }
  return {
    ids: ids === undefined ? undefined : yield* Effect.forEach(ids, checkId),
    states: wanted,
    tag,
    partitionKey,
    olderThan: olderThan === undefined ? undefined : yield* checkDuration(olderThan)
  }
})

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

const checkId = (id: string): Effect.Effect<string, IntentStoreError> => {
  const lower = id.toLowerCase()
  return uuid.test(lower)
    ? Effect.succeed(lower)
    : refuse(`${quote(id)} is no id of an intent. Give the UUID that \`defer\` has answered, or that a list tells.`)
}

const checkDuration = (input: Duration.Input): Effect.Effect<number, IntentStoreError> =>
  Option.match(
    Option.filter(
      Duration.fromInput(input),
      (duration) => Duration.isFinite(duration) && !Duration.isNegative(duration)
    ),
    {
      onNone: () =>
        refuse(`${format(input)} can't be \`olderThan\`. Give a duration that is not negative, as "7 days".`),
      onSome: (duration) => Effect.succeed(Duration.toMillis(duration))
    }
  )
