/**
 * What runs a typed intent, in this process or in a worker.
 *
 * @since 0.1.0
 */
import type * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"

/**
 * One delivery of a typed intent.
 *
 * @category models
 * @since 0.1.0
 */
export class Delivery<out Payload = unknown> {
  readonly payload: Payload
  /**
   * A UUIDv7, made when the intent was deferred, and the same over all its deliveries: hand it to other systems as an
   * idempotency key.
   */
  readonly id: string
  /** How many times it has been tried, this time included, not counting those that a crash or a snooze ended. */
  readonly attempt: number
  /** How many workers died of it. */
  readonly crashes: number
  private readonly enqueuedMillis: number

  constructor(payload: Payload, id: string, attempt: number, crashes: number, enqueuedMillis: number) {
    this.payload = payload
    this.id = id
    this.attempt = attempt
    this.crashes = crashes
    this.enqueuedMillis = enqueuedMillis
  }

  /** When it was committed, by the clock of the store. */
  get enqueuedAt(): DateTime.Utc {
    return DateTime.makeUnsafe(this.enqueuedMillis)
  }
}

/**
 * What has become of one delivery of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export type BatchResult = Result.Result<unknown, unknown> | Exit.Exit<unknown, unknown>

/**
 * The service that handles the typed intents of one tag.
 *
 * @category models
 * @since 0.1.0
 */
export interface Handler<Tag extends string> {
  readonly _: unique symbol
  readonly tag: Tag
}

/**
 * What holds over all workers of a store.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limits {
  readonly concurrency: number | undefined
  readonly rateLimit: { readonly limit: number; readonly window: Duration.Duration } | undefined
}

/**
 * What is behind a `Handler`: the function, its limits, and the services it was built with.
 *
 * @category models
 * @since 0.1.0
 */
export type HandlerService =
  & {
    readonly context: Context.Context<never>
    readonly limits: Limits
    /** The option that only a store can do what it says, if it has one. */
    readonly needsStore: "transactional" | keyof Limits | undefined
  }
  & (
    | {
      readonly _tag: "Single"
      readonly isTransactional: boolean
      readonly handle: (payload: unknown, delivery: Delivery) => Effect.Effect<unknown, unknown>
    }
    | {
      readonly _tag: "Batched"
      readonly maxSize: number
      readonly maxWait: Duration.Duration
      readonly handle: (
        deliveries: ReadonlyArray<Delivery>
      ) => Effect.Effect<ReadonlyArray<BatchResult>, unknown>
    }
  )

/** Runs one delivery, and fails as its handler does. */
export const handleOne = (handler: HandlerService, delivery: Delivery): Effect.Effect<unknown, unknown> =>
  handler._tag === "Single"
    ? Effect.suspend(() => handler.handle(delivery.payload, delivery))
    : Effect.flatMap(handleBatch(handler, [delivery]), ([exit]) => exit!)

/** Runs a batch. What fails as a whole has failed for each. */
export const handleBatch = (
  handler: HandlerService & { readonly _tag: "Batched" },
  deliveries: ReadonlyArray<Delivery>
): Effect.Effect<ReadonlyArray<Exit.Exit<unknown, unknown>>> =>
  Effect.map(Effect.exit(Effect.suspend(() => handler.handle(deliveries))), (exit) => {
    if (Exit.isFailure(exit)) return deliveries.map(() => exit)
    if (exit.value.length === deliveries.length) {
      return exit.value.map((result) =>
        Exit.isExit(result)
          ? result
          : Result.match(result, {
            onFailure: (error): Exit.Exit<unknown, unknown> => Exit.fail(error),
            onSuccess: Exit.succeed
          })
      )
    }
    const error = new Error(
      `Epilogue: a batched handler answered with ${exit.value.length} results for ${deliveries.length} deliveries. `
        + `Answer with one for each, in their order.`
    )
    return deliveries.map(() => Exit.die(error))
  })
