/**
 * Delivers durable intents: claims them from a store, runs their handlers, and settles them.
 *
 * **Example** (The whole way, in memory)
 *
 * ```ts
 * import { Epilogue, Intent, Outbox, OutboxStore, OutboxWorker } from "@epilogue/core"
 * import { Deferred, Effect, Layer, Schema } from "effect"
 *
 * class SendReceipt extends Intent.make("SendReceipt", { payload: { email: Schema.String } }) {}
 *
 * const program = Effect.gen(function*() {
 *   const sent = yield* Deferred.make<string>()
 *   const Handlers = SendReceipt.toLayer(({ email }) => Deferred.succeed(sent, email))
 *   const Worker = OutboxWorker.layer({ intents: [SendReceipt] }).pipe(Layer.provide(Handlers))
 *
 *   return yield* Effect.andThen(
 *     Epilogue.atomic(SendReceipt.defer({ email: "ada@example.com" })),
 *     Deferred.await(sent)
 *   ).pipe(Effect.provide(Layer.merge(Outbox.layer, Worker).pipe(Layer.provide(OutboxStore.layerMemory))))
 * })
 *
 * await Effect.runPromise(program) // => "ada@example.com"
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Handle, Known } from "./Attempt.ts"
import { open, type Outcomes } from "./Boundary.ts"
import { type EngineOptions, Epilogue, make, tellFailure } from "./Engine.ts"
import type { HandlerService } from "./Handler.ts"
import type { Any, HandlerOf } from "./Intent.ts"
import { IntentStoreError } from "./IntentSink.ts"
import * as Metrics from "./Metrics.ts"
import { persistently } from "./Outage.ts"
import { engineOver } from "./Outbox.ts"
import { type Claimed, OutboxStore, type Session, type Subscription } from "./OutboxStore.ts"
import type { TransactionOptions } from "./SqlTransaction.ts"
import { Work } from "./Work.ts"

/**
 * What a worker can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<Intents extends ReadonlyArray<Any>> extends EngineOptions, TransactionOptions {
  /** The intents that it delivers. Those of other tags stay in the store, for other workers. */
  readonly intents: Intents
  /** How many deliveries run at once; a batch counts as one. Defaults to 10. */
  readonly concurrency?: number | undefined
  /**
   * How long the worker may be silent before others take over what it has claimed. It interrupts its handlers before
   * that. An event loop that is blocked for longer counts as a crash. Others count it from when they first look, so a
   * worker that starts after a crash takes over one lease after its own start. Defaults to 15 seconds.
   */
  readonly lease?: Duration.Input | undefined
  /**
   * How long closing the layer waits for deliveries under way. Then they are interrupted and handed back, which counts
   * as no attempt. Defaults to 30 seconds.
   */
  readonly drainTimeout?: Duration.Input | undefined
  /**
   * How long a payload that can't be read is put off, in case a newer worker can read it, before it is a dead letter.
   * Defaults to 1 hour.
   */
  readonly decodeGrace?: Duration.Input | undefined
  /** About how many bytes of payload one claim takes. Defaults to 4 MiB. */
  readonly claimBytes?: number | undefined
}

/**
 * Delivers the intents that it names, until its scope closes. There may be any number of workers to a store.
 *
 * **Details**
 *
 * It requires the handlers of its intents: one that is missing does not compile. Deliveries are at least once, and a
 * delivery is repeated only when its worker died, lost its lease or lost an answer of the store. It survives outages of
 * the store. When its scope closes, it claims no more, waits for what runs, and hands back the rest.
 *
 * That the store can't do what an intent or its handler asks for fails the layer.
 *
 * It logs, traces and measures with what is in scope where the layer is built: provide loggers to this layer.
 *
 * **Gotchas**
 *
 * What an interrupted handler has already done outside of the database can't be undone.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <const Intents extends ReadonlyArray<Any>>(
  options: Options<Intents>
): Layer.Layer<never, IntentStoreError, HandlerOf<Intents[number]> | OutboxStore> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const store = yield* OutboxStore
    const context = yield* Effect.context<HandlerOf<Intents[number]>>()
    const known = yield* knownIn(options.intents, store, context)
    const { claimBytes = 4 * 2 ** 20, concurrency = 10 } = options
    for (const [name, value] of Object.entries({ claimBytes, concurrency })) {
      if (!Number.isSafeInteger(value) || value < 1) {
        return yield* refuse(`the \`${name}\` of the worker is ${value}. It has to be a positive integer`)
      }
    }
    const lease = Duration.fromInputUnsafe(options.lease ?? "15 seconds")
    const leaseMillis = Duration.toMillis(lease)
    if (!Number.isFinite(leaseMillis) || leaseMillis < leastLease) {
      return yield* refuse(
        `the \`lease\` of the worker is ${
          Duration.format(lease)
        }. It has to be finite, and at least ${leastLease} milliseconds`
      )
    }
    const closing = Latch.makeUnsafe(false)
    const opened = Deferred.makeUnsafe<void, IntentStoreError>()
    const openSession = store.open({
      subscriptions: Array.from(known.values(), subscriptionOf),
      lease
    })

    const work = (session: Session) =>
      new Work(session, {
        known,
        concurrency,
        lease,
        drainTimeout: Duration.fromInputUnsafe(options.drainTimeout ?? "30 seconds"),
        reading: { codec: store.codec, grace: Duration.fromInputUnsafe(options.decodeGrace ?? "1 hour") },
        claimBytes,
        handle: handleWith(store, session, options),
        context
      }).until(closing.await)

    const inSession = (
      session: Effect.Effect<Session, never, Scope.Scope>
    ): Effect.Effect<"closed" | "lost"> =>
      Effect.catchCause(
        Effect.scoped(Effect.flatMap(
          Effect.raceFirst(session, Effect.as(closing.await, undefined)),
          (mine) => mine === undefined ? Effect.succeed("closed" as const) : work(mine)
        )),
        (cause) =>
          closing.isOpen()
            ? Effect.as(Effect.logError("A worker has come upon a defect while it closed", cause), "closed" as const)
            : Effect.as(
              Effect.logError("A worker has come upon a defect, so it begins anew", cause),
              "lost" as const
            )
      )
    // That the first session can't be opened fails the layer.
    const first = Effect.matchCauseEffect(
      Effect.onExitPrimitive(openSession, (exit) => {
        Deferred.doneUnsafe(opened, Exit.asVoid(exit))
        return undefined
      }),
      { onFailure: () => Effect.never, onSuccess: Effect.succeed }
    )
    const anew = Effect.andThen(
      Effect.raceFirst(Effect.sleep(pause), closing.await),
      inSession(persistently("open a session", openSession))
    )
    const worker = yield* Effect.forkDetach(Effect.interruptible(
      Effect.flatMap(
        inSession(first),
        (ended) =>
          ended === "closed" ? Effect.void : Effect.asVoid(Effect.repeat(anew, { until: (end) => end === "closed" }))
      )
    ))
    yield* Effect.addFinalizer(() => Effect.andThen(closing.open, Fiber.await(worker)))
    yield* Deferred.await(opened)
  }))

/** The shortest lease, in milliseconds. */
const leastLease = 100

/** How long a worker rests that has lost its session. */
const pause = Duration.millis(200)

/** How many deliveries of one partition key are claimed at once. */
const perKey = 100

const subscriptionOf = ({ handler, intent }: Known): Subscription => ({
  tag: intent._tag,
  versions: intent.versions,
  // A batch never has two of one key: they would not be one after the other.
  perKey: handler._tag === "Batched" ? 1 : perKey,
  ...handler.limits
})

const refuse = (what: string): Effect.Effect<never, IntentStoreError> =>
  Effect.fail(new IntentStoreError({ message: `Epilogue: ${what}.` }))

const knownIn = Effect.fnUntraced(function*(
  intents: ReadonlyArray<Any>,
  { capabilities, client, name }: OutboxStore.Service,
  context: Context.Context<never>
) {
  const known = new Map<string, Known>()
  for (const intent of intents) {
    const { _tag: tag, policy } = intent
    // The requirements have asked for it.
    const handler = context.mapUnsafe.get(intent.key) as HandlerService
    if (known.has(tag)) return yield* refuse(`the worker names two intents with the tag "${tag}". Give each its own`)
    if (policy.isOrdered && !capabilities.ordered) {
      return yield* refuse(
        `"${tag}" has a partition key, and ${name} does not order deliveries. Drop the key, or use a store that does`
      )
    }
    if (policy.isPrioritized && !capabilities.priorities) {
      return yield* refuse(`"${tag}" has a priority, and ${name} knows none. Drop it, or use a store that does`)
    }
    if (handler._tag === "Single" && handler.isTransactional) {
      if (!capabilities.transactional) {
        return yield* refuse(
          `the handler of "${tag}" is transactional, and ${name} is not. Use a store in a SQL database, or make the `
            + "handler idempotent"
        )
      }
      const own = Context.getOrUndefined(handler.context, sqlClient)
      if (own !== undefined && own.transactionService.key !== client?.transactionService.key) {
        return yield* refuse(
          `the handler of "${tag}" is transactional, and its SqlClient is not the one of ${name}, so what it writes `
            + "would not be in the transaction. Provide both with the same client"
        )
      }
    }
    known.set(tag, { intent, handler, metrics: Metrics.forTag(tag) })
  }
  return known
})

// The module of Effect's client is not needed for more than its key.
const sqlClient = Context.Service<SqlClient>("effect/sql/SqlClient")

const handleWith = (
  store: OutboxStore.Service,
  session: Session,
  options: EngineOptions & TransactionOptions
): Handle => {
  const base = engineOver(store, options)
  return (handler, claimed, handled) =>
    handler._tag === "Single" && handler.isTransactional
      ? inTransaction(session, base, claimed, handled, options)
      : Effect.exit(handled)
}

/** Stands for the end of a transaction whose delivery another worker has. */
const leaseLost = new Error("The lease of the delivery was lost, so its transaction was rolled back")

/** Runs a transactional handler: its writes, its intents, and the acknowledgement are one transaction. */
const inTransaction = (
  session: Session,
  base: Epilogue["Service"],
  claimed: Claimed,
  handled: Effect.Effect<unknown, unknown>,
  { onFailure }: EngineOptions
): ReturnType<Handle> =>
  Effect.suspend(() => {
    const settle = Effect.flatMap(
      Effect.orDie(session.settleInTransaction(claimed)),
      (isHeld) => isHeld ? Effect.void : Effect.die(leaseLost)
    )
    // The first transaction is that of the delivery; those inside are savepoints.
    let isDelivery = true
    const engine = make({
      ...base,
      // A worker with such a handler has a store with transactions.
      transact: (core, restore) => {
        const isOutermost = isDelivery
        isDelivery = false
        return base.transact!(isOutermost ? Effect.tap(core, settle) : core, restore)
      }
    })
    const report: Outcomes = { outcomes: [] }
    const boundary = open(Effect.provideService(handled, Epilogue, base), {}, report)
    return Effect.flatMap(
      Effect.exit(Effect.provideService(boundary, Epilogue, engine)),
      (exit): ReturnType<Handle> => {
        if (Exit.isFailure(exit)) {
          const isLost = exit.cause.reasons.some((reason) => reason._tag === "Die" && reason.defect === leaseLost)
          return Effect.succeed(isLost ? "lost" as const : exit)
        }
        // The delivery is settled, so failures of closures are nobody's to retry.
        const failures = report.outcomes.flatMap((outcome) =>
          outcome._tag === "Ran" && Exit.isFailure(outcome.exit)
            ? [{ intent: outcome.intent, cause: outcome.exit.cause }]
            : []
        )
        return Effect.as(
          Effect.forEach(failures, (failure) => tellFailure(failure, onFailure), { discard: true }),
          "settled" as const
        )
      }
    )
  })
