/**
 * The engine over a store: typed intents are stored with the boundary's commit, and workers deliver them.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Committed } from "./Committed.ts"
import type { Fate, Registered, Typed } from "./Deferred.ts"
import { type EngineOptions, Epilogue, make } from "./Engine.ts"
import type { Appended, Envelope } from "./Envelope.ts"
import { type Codec, IntentSink, IntentStoreError } from "./IntentSink.ts"
import * as Metrics from "./Metrics.ts"
import { CommitError } from "./Outcome.ts"
import { type TransactionOptions, transactWith } from "./SqlTransaction.ts"
import { TransactionConnection } from "./TransactionConnection.ts"

export { mark as transactionMark } from "./CommitStatus.ts"

/**
 * Options of `layerOptions`.
 *
 * @category models
 * @since 0.1.0
 */
export interface OutboxOptions extends EngineOptions, TransactionOptions {}

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOptions = (options?: OutboxOptions): Layer.Layer<Epilogue, never, IntentSink> =>
  Layer.effect(Epilogue, Effect.map(IntentSink, (sink) => engineOver(sink, options)))

/**
 * Stores the typed intents of a boundary when it commits. Closures run in the fiber of the boundary, after the commit.
 *
 * **Details**
 *
 * Over a store that is transactional, as `PgOutboxStore` is, `atomic` is a SQL transaction of its client: what the core
 * writes and the intents it defers commit together, or not at all, whatever dies when. The intents of a boundary are
 * one statement, just before the `COMMIT`. Everything else is as with `SqlEpilogue.layer`. That they cannot be stored is
 * a `CommitError`, and nothing is committed.
 *
 * A store's codec encodes each payload before it is stored. That it can't is a `CommitError` as well.
 *
 * In reports, the outcome of a typed intent is `Enqueued`, with its id. Of a duplicate, the id is that of the first.
 *
 * **Gotchas**
 *
 * Over a store that is not transactional, as `OutboxStore.layerMemory` is, intents are stored after the commit.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue, never, IntentSink> = layerOptions()

/** The engine over a sink. */
export const engineOver = (sink: IntentSink.Service, options?: OutboxOptions): Epilogue["Service"] => {
  const { capabilities: { transactional }, client } = sink
  return make({
    onFailure: options?.onFailure,
    client,
    transact: transactional && client !== undefined ? transactWith(client, options) : undefined,
    typed: typedOver(sink),
    commit: (committed) => {
      const run = Effect.flatMap(
        wake(sink, committed, 0),
        (woken) => Effect.andThen(committed.run, Effect.asVoid(wake(sink, committed, woken)))
      )
      if (transactional) return run
      // What can't be appended as a whole is tried again one by one, so that the report tells of each.
      return Effect.andThen(Effect.ignore(append(sink, committed.registered.filter(isWaiting))), run)
    }
  })
}

const isWaiting = ({ appended, envelope }: Registered): boolean => envelope !== undefined && appended === undefined

/** Counts what was appended, and lets workers know of it, but for the first ones, which were before. Answers how many. */
const wake = (sink: IntentSink.Service, committed: Committed, from: number): Effect.Effect<number> =>
  Effect.withFiber(({ context }) => {
    const appended = committed.registered.filter((each) => each.appended !== undefined)
    const added = appended.slice(from).flatMap(({ appended: answer, envelope }) =>
      answer?.duplicate === false && envelope !== undefined ? [envelope] : []
    )
    const duplicates = appended.length - from - added.length
    if (duplicates > 0) Metrics.intentsDuplicate.updateUnsafe(duplicates, context)
    if (added.length === 0) return Effect.succeed(appended.length)
    Metrics.intentsEnqueued.updateUnsafe(added.length, context)
    return Effect.as(sink.wake(added), appended.length)
  })

/** Stores intents, in order, in one go. */
const append = (
  sink: IntentSink.Service,
  registered: ReadonlyArray<Registered>
): Effect.Effect<void, IntentStoreError> => {
  if (registered.length === 0) return Effect.void
  const envelopes = registered.map(({ envelope }) => envelope!)
  return Effect.map(
    sink.codec === undefined
      ? sink.append(envelopes)
      : Effect.flatMap(encodeWith(sink.codec, envelopes), (encoded) => sink.append(encoded)),
    (appended) => registered.forEach((each, index) => each.appended = appended[index])
  )
}

/** How many payloads a codec encodes at once, while a transaction waits for it. */
const encodings = 16

const encodeWith = (
  codec: Codec,
  envelopes: ReadonlyArray<Envelope>
): Effect.Effect<ReadonlyArray<Envelope>, IntentStoreError> =>
  Effect.forEach(
    envelopes,
    (envelope) =>
      Effect.suspend(() => codec.encode(envelope.payload, envelope)).pipe(
        Effect.map((payload) => ({ ...envelope, payload })),
        Effect.catchCause((cause) =>
          Cause.hasInterruptsOnly(cause)
            ? Effect.interrupt
            : Effect.fail(
              new IntentStoreError({
                message:
                  `The codec could not encode the payload of intent "${envelope.tag}" with the id ${envelope.id}.`,
                cause: Cause.squash(cause)
              })
            )
        )
      ),
    { concurrency: encodings }
  )

const typedOver = (sink: IntentSink.Service): Typed => {
  const perform: Typed["perform"] = (registered) => append(sink, [registered])
  const refuse = refuseWith(sink)
  return sink.capabilities.transactional
    ? { refuse, perform, mark: markWith(sink), seal: sealWith(sink) }
    : { refuse, perform }
}

/**
 * Whether a savepoint was released is known only after the `COMMIT`, and a typed intent is stored before it. So the
 * savepoint gets a mark in the database, which is gone if it rolls back.
 */
const markWith = ({ client, mark }: IntentSink.Service): NonNullable<Typed["mark"]> => {
  const marks = new WeakMap<object, string>()
  return ({ envelope }, fate, others) => {
    const savepoint = others.find(({ key }) => key.key === client?.transactionService.key)?.level
    if (savepoint === undefined || mark === undefined) return undefined
    const known = marks.get(savepoint)
    fate.mark = known ?? envelope!.id
    if (known !== undefined) return undefined
    marks.set(savepoint, fate.mark)
    return Effect.orDie(mark(fate.mark))
  }
}

/** Stores the typed intents of a boundary that count, just before its `COMMIT`. */
const sealWith = (sink: IntentSink.Service): NonNullable<Typed["seal"]> => (all, around) => {
  const registered = all.filter(isWaiting)
  if (registered.length === 0) return Effect.void
  if (around.some(({ key }) => key.key !== sink.client?.transactionService.key)) return acrossDatabases
  const appendAlive = (marks: ReadonlySet<string> | undefined) =>
    Effect.flatMap(
      append(sink, registered.filter(({ fate }) => isAlive(fate, marks))),
      () =>
        markTransaction(sink.client, registered.find(({ appended }) => appended?.transaction !== undefined)?.appended)
    )
  const marks = registered.some(({ fate }) => fate?.mark !== undefined) ? sink.marks : undefined
  return Effect.mapError(
    marks === undefined ? appendAlive(undefined) : Effect.flatMap(marks, appendAlive),
    (cause) =>
      new CommitError({
        cause,
        outcome: "discarded",
        message: "The typed intents of the boundary could not be stored, so its transaction was rolled back, and no "
          + `intent has run. It is safe to run the program again. The reason: ${cause.message}`
      })
  )
}

/** Lets the transaction know what names it, so that it need not ask. */
const markTransaction = (client: IntentSink.Service["client"], appended: Appended | undefined): Effect.Effect<void> =>
  client === undefined || appended === undefined
    ? Effect.void
    : Effect.withFiber((fiber) => {
      const connection = Context.getOrUndefined(fiber.context, client.transactionService)?.[0]
      if (connection instanceof TransactionConnection) connection.mark = appended.transaction
      return Effect.void
    })

const acrossDatabases = Effect.die(
  new Error(
    "Epilogue: a boundary has typed intents, and is inside a transaction of another database than that of its store, "
      + "whose COMMIT the store can't wait for. Open that transaction inside the boundary."
  )
)

/** Whether nothing that it was registered in has rolled back, as far as this can be known before the `COMMIT`. */
const isAlive = (fate: Fate | undefined, marks: ReadonlySet<string> | undefined): boolean =>
  fate === undefined
  || (fate.mark === undefined ? fate.pending === 0 : fate.pending === 1 && marks?.has(fate.mark) === true)

const refuseWith =
  ({ capabilities, name }: IntentSink.Service) => ({ partitionKey, priority }: Envelope): string | undefined =>
    partitionKey !== undefined && !capabilities.ordered
      ? `it has a partition key, and ${name} does not order deliveries. Drop the key, or use a store that does`
      : priority !== 0 && !capabilities.priorities
      ? `it has a priority, and ${name} knows none. Drop it, or use a store that does`
      : undefined
