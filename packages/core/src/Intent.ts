/**
 * Typed intents: a tag, and a payload that its schema checks.
 *
 * A typed intent is data, so it can be stored in the transaction that asks for it, and delivered by another process.
 * What it does is its handler's business.
 *
 * **Example** (Declaring an intent, deferring it, and handling it in the same process)
 *
 * ```ts
 * import { Epilogue, Intent } from "@epilogue/core"
 * import { Effect, Layer, Schema } from "effect"
 * import * as assert from "node:assert"
 *
 * class SendReceipt extends Intent.make("SendReceipt", {
 *   payload: { email: Schema.String, orderId: Schema.Int }
 * }) {}
 *
 * const sent: Array<string> = []
 * const Handlers = SendReceipt.toLayer(({ email, orderId }) => Effect.sync(() => sent.push(`${email}: ${orderId}`)))
 *
 * const checkout = SendReceipt.defer({ email: "ada@example.com", orderId: 7 }).pipe(Epilogue.atomic)
 *
 * await checkout.pipe(
 *   Effect.provide(Epilogue.layerWith(SendReceipt).pipe(Layer.provide(Handlers))),
 *   Effect.runPromise
 * )
 * assert.deepStrictEqual(sent, ["ada@example.com: 7"])
 * ```
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Data from "effect/Data"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Deferred, isTraced, type Queue, Registered } from "./Deferred.ts"
import type { Definition, Envelope } from "./Envelope.ts"
import type { BatchResult, Delivery, Handler, HandlerService, Limits } from "./Handler.ts"

export type { BatchResult, Delivery, Handler } from "./Handler.ts"

const TypeId = "~@epilogue/core/Intent"

/**
 * The id of an intent: a UUIDv7.
 *
 * @category models
 * @since 0.1.0
 */
export type Id = string & Brand.Brand<"@epilogue/core/Intent/Id">

/**
 * A schema that needs no services, neither to encode nor to decode.
 *
 * @category models
 * @since 0.1.0
 */
export interface PayloadSchema extends Schema.Constraint {
  readonly DecodingServices: never
  readonly EncodingServices: never
}

/**
 * What `Intent.make` can be told about an intent.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<in P> {
  /**
   * The version of the payload, a positive integer. A payload of a version that a worker does not know waits for one
   * that does. Defaults to 1.
   */
  readonly version?: number | undefined
  /** How to read the payloads of earlier versions, by version. Their decoded type is that of `payload`. */
  readonly previous?: { readonly [version: number]: PayloadSchema } | undefined
  /** Deliveries with one key are made one at a time, in commit order. Defaults to none: in any order, side by side. */
  readonly partitionKey?: ((payload: P) => string) | undefined
  /** Of this tag, a second intent with one key is not added while the first is remembered. Defaults to none. */
  readonly idempotencyKey?: ((payload: P) => string) | undefined
  /** How long an `idempotencyKey` is remembered from when its intent is due. Defaults to 24 hours. */
  readonly remember?: Duration.Input | undefined
  /**
   * When a delivery that failed is tried again. Its state is the number of failures, which the store keeps, so it goes
   * on where it was, in whatever process; its input is that number. An intent whose schedule is done is a dead letter.
   * Defaults to one second, doubled each time, up to 5 minutes.
   */
  readonly retry?: Schedule.Schedule<unknown, number> | undefined
  /** After how many failed deliveries it is a dead letter. Defaults to 10. */
  readonly maxAttempts?: number | undefined
  /**
   * After how many workers have died while they ran it, and nothing else, it is a dead letter. It is not run again then.
   * Defaults to 3.
   */
  readonly maxCrashes?: number | undefined
  /**
   * What a dead letter, whatever it died of, does to the rest of its partition key: `"continue"` lets it go on without
   * the dead one, and `"block"` keeps it until an operator has decided. Defaults to `"continue"`.
   */
  readonly onExhausted?: OnExhausted | undefined
  /** After this long, a delivery is interrupted, and has failed with a `Cause.TimeoutError`. Defaults to no limit. */
  readonly timeout?: Duration.Input | undefined
  /** Within the tag, a higher one goes first. Defaults to 0. Not for intents with a `partitionKey`. */
  readonly priority?: number | undefined
  /** The largest payload, in bytes of UTF-8 as it is encoded. A larger one is a defect. Defaults to 1 MiB. */
  readonly maxPayloadBytes?: number | undefined
}

/**
 * What a dead letter does to the rest of its partition key.
 *
 * @category options
 * @since 0.1.0
 */
export type OnExhausted = "continue" | "block"

/**
 * What one intent can be told when it is deferred. A key or priority given here replaces that of its definition.
 *
 * @category options
 * @since 0.1.0
 */
export interface DeferOptions {
  /** How long after the commit it is due. Defaults to at once. */
  readonly delay?: Duration.Input | undefined
  /** When it is due. Not together with `delay`. */
  readonly runAt?: DateTime.DateTime.Input | undefined
  readonly idempotencyKey?: string | undefined
  readonly partitionKey?: string | undefined
  readonly priority?: number | undefined
}

/**
 * Limits that hold over all workers of a store.
 *
 * **Details**
 *
 * Workers whose lease holds never exceed them. Those that have something to do share them. What a worker has permission
 * for and does not use is there for the others within a beat.
 *
 * **Gotchas**
 *
 * An engine that handles intents in process refuses a handler that has any.
 *
 * @category options
 * @since 0.1.0
 */
export interface LimitOptions {
  /** How many deliveries run at once. A batch counts as one. Defaults to no limit. */
  readonly concurrency?: number | undefined
  /**
   * How many deliveries start, of a batch each one, and each time that one is retried: `limit` in a `window`. It is a
   * token bucket, filled evenly, so after a rest up to `limit` start at once. Defaults to no limit.
   */
  readonly rateLimit?: { readonly limit: number; readonly window: Duration.Input } | undefined
}

/**
 * What a batched handler can be told.
 *
 * @category options
 * @since 0.1.0
 */
export interface BatchOptions extends LimitOptions {
  /** The most deliveries of one call. */
  readonly maxSize: number
  /** How long a delivery waits for others to join it. */
  readonly maxWait: Duration.Input
}

/**
 * The definition of a typed intent. Extend it: `class SendReceipt extends Intent.make("SendReceipt", { … }) {}`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Intent<in out Tag extends string, in out S extends PayloadSchema> extends Definition {
  // oxlint-disable-next-line typescript/no-empty-object-type -- nothing is ever made of it, and a class can extend it
  new(_: never): {}
  readonly [TypeId]: typeof TypeId
  readonly _tag: Tag
  readonly key: `@epilogue/core/Handler/${Tag}`
  /** The service that handles it, for requirements. */
  readonly "~handler": Handler<Tag>
  readonly payloadSchema: S
  /** Every version of its payload that can be read here. */
  readonly versions: ReadonlyArray<number>
  readonly policy: Policy

  /**
   * Registers the intent in the open boundary, and answers with its id: it is handled after the commit, or never.
   *
   * **Gotchas**
   *
   * That the engine has no handler for it, or can't do what it asks for, is a defect here; and so is a payload that its
   * schema refuses, or that is too large.
   */
  readonly defer: (payload: S["Type"], options?: DeferOptions) => Effect.Effect<Id, never, Deferred>

  /**
   * Handles the intent, one delivery at a time.
   *
   * **Details**
   *
   * A handler that fails or dies is called again after a while, as `retry` and `maxAttempts` say. Deliveries are at
   * least once: a worker that dies repeats what it had not settled, so give `delivery.id` to other systems as an
   * idempotency key.
   *
   * With `transactional`, what the handler writes through the store's `SqlClient`, the intents it defers, and the
   * acknowledgement are one transaction: exactly once for that database. `concurrency` and `rateLimit` hold over all
   * workers of a store.
   */
  readonly toLayer: {
    <E, R>(
      handler: (payload: S["Type"], delivery: Delivery<S["Type"]>) => Effect.Effect<unknown, E, R>,
      options?: LimitOptions & { readonly transactional?: false | undefined }
    ): Layer.Layer<Handler<Tag>, never, R>
    <E, R>(
      handler: (payload: S["Type"], delivery: Delivery<S["Type"]>) => Effect.Effect<unknown, E, R>,
      options: LimitOptions & { readonly transactional: boolean }
    ): Layer.Layer<Handler<Tag>, never, Exclude<R, Deferred>>
  }

  /**
   * Handles the intent in batches: up to `maxSize` deliveries, or as many as came within `maxWait`.
   *
   * **Details**
   *
   * It answers with a result for each delivery, in their order. If it fails as a whole, each of them has failed.
   */
  readonly toLayerBatched: <E, R>(
    handler: (deliveries: ReadonlyArray<Delivery<S["Type"]>>) => Effect.Effect<ReadonlyArray<BatchResult>, E, R>,
    options: BatchOptions
  ) => Layer.Layer<Handler<Tag>, never, R>
}

/**
 * Any definition of a typed intent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Any extends Definition {
  readonly [TypeId]: typeof TypeId
  readonly "~handler": unknown
  readonly payloadSchema: PayloadSchema
  readonly versions: ReadonlyArray<number>
  readonly policy: Policy
}

/**
 * How deliveries of an intent are retried.
 *
 * @category models
 * @since 0.1.0
 */
export interface Policy {
  readonly retry: Schedule.Schedule<unknown, number>
  readonly maxAttempts: number
  readonly maxCrashes: number
  readonly onExhausted: OnExhausted
  readonly timeout: Duration.Duration | undefined
  /** Whether its definition has a `partitionKey`. */
  readonly isOrdered: boolean
  /** Whether its definition has a `priority`. */
  readonly isPrioritized: boolean
}

/**
 * The service that handles an intent, for requirements.
 *
 * @category utility types
 * @since 0.1.0
 */
export type HandlerOf<I extends { readonly "~handler": unknown }> = I["~handler"]

/**
 * The payload of an intent.
 *
 * @category utility types
 * @since 0.1.0
 */
export type PayloadOf<I extends { readonly payloadSchema: PayloadSchema }> = I["payloadSchema"]["Type"]

/**
 * A handler's answer that this delivery can never succeed.
 *
 * @category errors
 * @since 0.1.0
 */
export class Rejected extends Data.TaggedError("Rejected")<{ readonly reason: string }> {
  override get message(): string {
    return `The handler rejected the intent: ${this.reason}`
  }
}

/**
 * A handler's answer that it wants the delivery again later.
 *
 * @category errors
 * @since 0.1.0
 */
export class Snoozed extends Data.TaggedError("Snoozed")<{ readonly duration: Duration.Duration }> {
  override get message(): string {
    return `The handler wants the intent again in ${Duration.format(this.duration)}. That takes a store: use `
      + "`Outbox.layer`, in memory over `OutboxStore.layerMemory`, with an `OutboxWorker`."
  }
}

/**
 * Ends a delivery for good: the intent is a dead letter now, whatever attempts are left.
 *
 * @category combinators
 * @since 0.1.0
 */
export const reject = (reason: string): Effect.Effect<never, Rejected> => Effect.fail(new Rejected({ reason }))

/**
 * Ends a delivery for now: it is made again after `duration`, and this one does not count as an attempt.
 *
 * @category combinators
 * @since 0.1.0
 */
export const snooze = (duration: Duration.Input): Effect.Effect<never, Snoozed> =>
  Effect.suspend(() => Effect.fail(new Snoozed({ duration: Duration.fromInputUnsafe(duration) })))

const defaultRetry: Schedule.Schedule<unknown> = Schedule.min([
  Schedule.exponential("1 second"),
  Schedule.spaced("5 minutes")
])

type SchemaOf<P extends { readonly [x: PropertyKey]: PayloadSchema } | PayloadSchema> = P extends PayloadSchema ? P
  : P extends { readonly [x: PropertyKey]: PayloadSchema } ? Schema.Struct<P> & PayloadSchema
  : never

/**
 * Defines a typed intent.
 *
 * **Details**
 *
 * `payload` is a schema, or the fields of a struct. It has to encode and decode without services and synchronously.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <
  const Tag extends string,
  const P extends { readonly [x: PropertyKey]: PayloadSchema } | PayloadSchema
>(
  tag: Tag,
  options: { readonly payload: P } & Options<SchemaOf<P>["Type"]>
): Intent<Tag, SchemaOf<P>> => {
  type S = SchemaOf<P>
  type Payload = S["Type"]
  const {
    maxAttempts = 10,
    maxCrashes = 3,
    maxPayloadBytes = 2 ** 20,
    onExhausted = "continue",
    previous = {},
    priority = 0,
    version = 1
  } = options
  check(tag, "version", version)
  check(tag, "maxAttempts", maxAttempts)
  check(tag, "maxCrashes", maxCrashes)
  check(tag, "maxPayloadBytes", maxPayloadBytes)
  if (!["continue", "block"].includes(onExhausted)) {
    throw new Error(
      `Epilogue: the \`onExhausted\` of intent "${tag}" is ${onExhausted}. It has to be "continue" or "block".`
    )
  }
  const versions = [version, ...Object.keys(previous).map(Number)]
  versions.forEach((each) => check(tag, "version", each))
  if (new Set(versions).size < versions.length) {
    throw new Error(
      `Epilogue: intent "${tag}" can't be made: \`previous\` has its version ${version}, which is the current.`
    )
  }
  checkPriority(priority, (why) => `intent "${tag}" can't be made: ${why}`)
  if (priority !== 0 && options.partitionKey !== undefined) {
    throw new Error(`Epilogue: intent "${tag}" can't be made: ${bothOf}.`)
  }

  const payloadSchema = (Schema.isSchema(options.payload)
    ? options.payload
    // What is no schema is the fields of one.
    : Schema.Struct(options.payload as Schema.Struct.Fields)) as unknown as S
  const codec = Schema.toCodecJson(payloadSchema)
  const encode = Schema.encodeUnknownExit(codec)
  const decoders = new Map(
    [[version, Schema.decodeUnknownExit(codec)] as const].concat(
      Object.entries(previous).map(([each, schema]) => [
        Number(each),
        Schema.decodeUnknownExit(Schema.toCodecJson(schema))
      ])
    )
  )
  const remember = Math.max(0, Duration.toMillis(Duration.fromInputUnsafe(options.remember ?? "24 hours")))

  const enclose = (payload: Payload, chosen: DeferOptions, fiber: Fiber.Fiber<unknown, unknown>): Envelope => {
    const exit = encode(payload)
    if (Exit.isFailure(exit)) throw problem("its payload is not what its schema asks for", exit)
    const json: unknown = JSON.stringify(exit.value)
    if (typeof json !== "string") throw new Error("its schema encodes the payload to what is no JSON")
    if (isLarger(json, maxPayloadBytes)) {
      throw new Error(
        `its payload takes ${
          byteLength(json)
        } bytes, and at most ${maxPayloadBytes} are allowed. Store the data elsewhere and `
          + "defer a reference to it, or raise `maxPayloadBytes`"
      )
    }
    const partitionKey = keyOf("partitionKey", chosen.partitionKey ?? options.partitionKey?.(payload))
    const envelope: Envelope = {
      id: SecureRandom.uuidV7Unsafe(),
      tag,
      version,
      payload: json,
      partitionKey,
      idempotencyKey: keyOf("idempotencyKey", chosen.idempotencyKey ?? options.idempotencyKey?.(payload)),
      remember,
      priority: chosen.priority ?? priority,
      delay: chosen.delay === undefined
        ? undefined
        : Math.max(0, Duration.toMillis(Duration.fromInputUnsafe(chosen.delay))),
      runAt: chosen.runAt === undefined ? undefined : DateTime.makeUnsafe(chosen.runAt).epochMilliseconds,
      traceparent: isTraced(fiber, true) ? traceparentOf(fiber) : undefined
    }
    if (envelope.delay !== undefined && envelope.runAt !== undefined) {
      throw new Error("it has both a `delay` and a `runAt`. Give one of them")
    }
    if (envelope.delay === Infinity) throw new Error("its `delay` never ends")
    checkPriority(envelope.priority, (why) => why)
    if (envelope.priority !== 0 && partitionKey !== undefined) throw new Error(bothOf)
    return envelope
  }

  const toLayer = (service: (context: Context.Context<never>) => HandlerService) =>
    Layer.effectContext(
      Effect.contextWith((context: Context.Context<never>) =>
        // A key that is made of the tag stands for the type that is made of it.
        Effect.succeed(Context.makeUnsafe<Handler<Tag>>(new Map([[key, service(context)]])))
      )
    )
  const key = `@epilogue/core/Handler/${tag}` as const

  // oxlint-disable-next-line typescript/no-extraneous-class -- what it makes has to be a class, so that it can be extended
  class Definition {
    static readonly [TypeId] = TypeId
    static readonly _tag = tag
    static readonly key = key
    static readonly payloadSchema = payloadSchema
    static readonly versions = versions
    static readonly policy: Policy = {
      retry: options.retry ?? defaultRetry,
      maxAttempts,
      maxCrashes,
      onExhausted,
      timeout: options.timeout === undefined ? undefined : Duration.fromInputUnsafe(options.timeout),
      isOrdered: options.partitionKey !== undefined,
      isPrioritized: priority !== 0
    }

    static readonly decode = (json: string, of: number): Exit.Exit<unknown, unknown> => {
      const decoder = decoders.get(of)
      if (decoder === undefined) return Exit.fail(`no schema for version ${of} of "${tag}" is known here`)
      try {
        return decoder(JSON.parse(json))
      } catch (error) {
        return Exit.fail(error)
      }
    }

    static readonly defer = (payload: Payload, chosen: DeferOptions = {}): Effect.Effect<Id, never, Deferred> =>
      Effect.withFiber((fiber) => {
        const queue = Context.get(fiber.context as Context.Context<Deferred>, Deferred)
        let envelope: Envelope
        try {
          envelope = enclose(payload, chosen, fiber)
        } catch (cause) {
          const reason = cause instanceof Error ? cause.message : String(cause)
          return Effect.die(new Error(`Epilogue: intent "${tag}" can't be deferred: ${reason}.`, { cause }))
        }
        // It is a UUIDv7 from here on.
        return Effect.as(register(queue, envelope, Definition, payload, fiber), envelope.id as Id)
      })

    static readonly toLayer = (
      handle: (payload: never, delivery: never) => Effect.Effect<unknown, unknown>,
      { transactional = false, ...rest }: LimitOptions & { readonly transactional?: boolean | undefined } = {}
    ) => {
      const limits = limitsOf(tag, rest)
      return toLayer((context) => ({
        _tag: "Single",
        context,
        limits,
        needsStore: transactional ? "transactional" : storedLimitOf(limits),
        isTransactional: transactional,
        // The payload was decoded by the schema that types it.
        handle: handle as (payload: unknown, delivery: Delivery) => Effect.Effect<unknown, unknown>
      }))
    }

    static readonly toLayerBatched = (
      handle: (deliveries: never) => Effect.Effect<ReadonlyArray<BatchResult>, unknown>,
      { maxSize, ...rest }: BatchOptions
    ) => {
      check(tag, "maxSize", maxSize)
      const maxWait = Duration.fromInputUnsafe(rest.maxWait)
      const limits = limitsOf(tag, rest)
      return toLayer((context) => ({
        _tag: "Batched",
        context,
        limits,
        needsStore: storedLimitOf(limits),
        maxSize,
        maxWait,
        handle: handle as (deliveries: ReadonlyArray<Delivery>) => Effect.Effect<ReadonlyArray<BatchResult>, unknown>
      }))
    }
  }
  // Its static side is the intent; nothing is ever made of it.
  return Definition as unknown as Intent<Tag, S>
}

/** Registers it, unless the engine refuses it. */
const register = (
  queue: Queue,
  envelope: Envelope,
  definition: Definition,
  payload: unknown,
  fiber: Fiber.Fiber<unknown, unknown>
): Effect.Effect<void> => {
  const { typed } = queue.host
  if (typed === undefined) return refuse(envelope, noHandler)
  const refused = typed.refuse(envelope, definition)
  if (refused !== undefined) return refuse(envelope, refused)
  const shown = typed.show?.(envelope, definition)
  if (shown !== undefined && Exit.isFailure(shown)) {
    return refuse(envelope, "what its schema encodes, it does not decode", shown)
  }
  const registered: Registered = new Registered(
    Effect.suspend(() => typed.perform(registered)),
    fiber.context,
    { name: envelope.tag, payload: shown === undefined ? payload : shown.value },
    envelope
  )
  return queue.register(registered, fiber)
}

const noHandler =
  "this engine has no handler for it. Provide `Epilogue.layerWith` with the intent to handle it in this "
  + "process, or `Outbox.layer` to store it"

const refuse = ({ tag }: Envelope, why: string, cause?: unknown): Effect.Effect<never> =>
  Effect.die(new Error(`Epilogue: intent "${tag}" can't be deferred here: ${why}.`, { cause }))

const check = (tag: string, name: string, value: number): void => {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new Error(`Epilogue: the \`${name}\` of intent "${tag}" is ${value}. It has to be a positive integer.`)
  }
}

/** A limit over all workers, which only a store can keep. */
const storedLimitOf = (limits: Limits): keyof Limits | undefined =>
  limits.concurrency === undefined ? limits.rateLimit && "rateLimit" : "concurrency"

const limitsOf = (tag: string, { concurrency, rateLimit }: LimitOptions): Limits => {
  if (concurrency !== undefined) check(tag, "concurrency", concurrency)
  if (rateLimit === undefined) return { concurrency, rateLimit }
  check(tag, "rateLimit.limit", rateLimit.limit)
  const window = Duration.fromInputUnsafe(rateLimit.window)
  const millis = Duration.toMillis(window)
  if (!(millis > 0 && Number.isFinite(millis))) {
    throw new Error(
      `Epilogue: the \`rateLimit.window\` of intent "${tag}" is ${
        Duration.format(window)
      }. It has to be finite, and longer than nothing.`
    )
  }
  return { concurrency, rateLimit: { limit: rateLimit.limit, window } }
}

const bothOf = "it has both a `partitionKey`, which orders it by its commit, and a `priority`. Drop one of them"

const problem = (what: string, exit: Exit.Failure<unknown, unknown>): Error => {
  const error = exit.cause.reasons.map((reason) => reason._tag === "Fail" ? reason.error : reason)[0]
  return new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
}

const byteLength = (text: string): number => new TextEncoder().encode(text).length

/** Whether it is larger in UTF-8, which is counted only where the number of UTF-16 units leaves it open. */
const isLarger = (text: string, limit: number): boolean =>
  text.length > limit || (text.length * 3 > limit && byteLength(text) > limit)

/** Stores keep priorities in 32 bits. */
const checkPriority = (priority: number, say: (why: string) => string): void => {
  if (!Number.isInteger(priority) || Math.abs(priority) >= 2 ** 31) {
    throw new Error(say(`its \`priority\` is ${priority}, and has to be an integer of 32 bits`))
  }
}

const keyOf = (name: string, key: unknown): string | undefined => {
  if (key === undefined || typeof key === "string") return key
  throw new Error(`its \`${name}\` is of type ${typeof key}, and has to be a string`)
}

const traceparentOf = ({ cache: { span } }: Fiber.Fiber<unknown, unknown>): string | undefined =>
  span && `00-${span.traceId.padStart(32, "0")}-${span.spanId}-${span.sampled ? "01" : "00"}`
