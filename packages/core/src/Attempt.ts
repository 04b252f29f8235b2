/**
 * One attempt to deliver: from what was claimed to how it is settled.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as HttpTraceContext from "effect/http/HttpTraceContext"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import * as Tracer from "effect/Tracer"
import { isTraced } from "./Deferred.ts"
import { Delivery, handleBatch, type HandlerService } from "./Handler.ts"
import { type Any, Rejected, Snoozed } from "./Intent.ts"
import type { Codec } from "./IntentSink.ts"
import type { OfTag } from "./Metrics.ts"
import type { Claimed, DeathReason, Settlement } from "./OutboxStore.ts"

/** A typed intent that a worker delivers. */
export interface Known {
  readonly intent: Any
  readonly handler: HandlerService
  readonly metrics: OfTag
}

/** What came of a handler. One that is transactional has settled its delivery itself, or has lost it. */
type Handled = Exit.Exit<unknown, unknown> | "settled" | "lost"

/** What came of a delivery: how to settle it, unless it is settled, or lost. */
export type Ended = Settlement | "settled" | "lost"

/** How payloads are read. */
export interface Reading {
  readonly codec: Codec | undefined
  /** How long one that can't be read is put off. */
  readonly grace: Duration.Duration
}

/** Who wants to know that a handler has ended by itself. From then on, nothing is to interrupt its delivery. */
export interface Progress {
  isOver: boolean
}

/** Runs what a handler does with a delivery, in the handler's context. */
export type Handle = (
  handler: HandlerService,
  claimed: Claimed,
  handled: Effect.Effect<unknown, unknown>
) => Effect.Effect<Handled>

/** How often an unreadable payload is looked at in its grace, and how seldom at most, in milliseconds. */
const looksPerGrace = 20
const seldom = 5 * 60_000

/** Attempts one delivery. */
export const attemptOne = (
  known: Known & { readonly handler: { readonly _tag: "Single" } },
  claimed: Claimed,
  reading: Reading,
  handle: Handle,
  progress: Progress
): Effect.Effect<Ended> =>
  reading.codec === undefined
    ? attemptRead(known, claimed, known.intent.decode(claimed.payload, claimed.version), reading, handle, progress)
    : Effect.flatMap(
      read(known, claimed, reading.codec),
      (payload) => attemptRead(known, claimed, payload, reading, handle, progress)
    )

const attemptRead = (
  { handler, intent, metrics }: Known & { readonly handler: { readonly _tag: "Single" } },
  claimed: Claimed,
  payload: Exit.Exit<unknown, unknown>,
  reading: Reading,
  handle: Handle,
  progress: Progress
): Effect.Effect<Ended> => {
  if (Exit.isFailure(payload)) return unreadable(claimed, payload.cause, intent, reading, metrics)
  const delivery = deliveryOf(claimed, payload.value)
  return Effect.withFiber((fiber) => {
    const limited = limit(Effect.suspend(() => handler.handle(payload.value, delivery)), intent)
    const traced = isTraced(fiber, false) ? trace(limited, [claimed], delivery.attempt) : limited
    return measured(
      Effect.setContext(handle(handler, claimed, traced), contextOf(fiber, handler)),
      metrics,
      1,
      progress,
      (handled): Effect.Effect<Ended> => {
        if (handled === "lost") return lose(metrics)
        return handled === "settled"
          ? Effect.as(settle(claimed, Exit.void, intent, metrics), handled)
          : settle(claimed, handled, intent, metrics)
      }
    )
  })
}

/** Attempts a batch of one intent. Answers with how to settle each. */
export const attemptBatch = (
  known: Known & { readonly handler: { readonly _tag: "Batched" } },
  batch: ReadonlyArray<Claimed>,
  reading: Reading,
  progress: Progress
): Effect.Effect<ReadonlyArray<Settlement>> => {
  const { codec } = reading
  return Effect.flatMap(
    codec === undefined
      ? Effect.sync(() => batch.map(({ payload, version }) => known.intent.decode(payload, version)))
      : Effect.forEach(batch, (claimed) => read(known, claimed, codec), { concurrency: decodings }),
    (payloads) => attemptBatchRead(known, batch, payloads, reading, progress)
  )
}

const attemptBatchRead = (
  { handler, intent, metrics }: Known & { readonly handler: { readonly _tag: "Batched" } },
  batch: ReadonlyArray<Claimed>,
  payloads: ReadonlyArray<Exit.Exit<unknown, unknown>>,
  reading: Reading,
  progress: Progress
): Effect.Effect<ReadonlyArray<Settlement>> =>
  Effect.withFiber((fiber) => {
    const readable: Array<Claimed> = []
    const deliveries: Array<Delivery> = []
    const rest: Array<Effect.Effect<Settlement>> = []
    for (const [index, claimed] of batch.entries()) {
      const payload = payloads[index]!
      if (Exit.isFailure(payload)) {
        rest.push(unreadable(claimed, payload.cause, intent, reading, metrics))
      } else {
        readable.push(claimed)
        deliveries.push(deliveryOf(claimed, payload.value))
      }
    }
    if (readable.length === 0) return Effect.all(rest)
    const handled = Effect.setContext(limit(handleBatch(handler, deliveries), intent), contextOf(fiber, handler))
    const traced = isTraced(fiber, false) ? trace(handled, readable) : handled
    return measured(Effect.exit(traced), metrics, readable.length, progress, (exit) =>
      Effect.all([
        ...readable.map((claimed, index) =>
          settle(claimed, Exit.isFailure(exit) ? exit : exit.value[index]!, intent, metrics)
        ),
        ...rest
      ]))
  })

/** How many payloads of a batch a codec decodes at once. */
const decodings = 16

/** Reads a payload that the store's codec has encoded. That it can't is the same as that the schema can't. */
const read = (
  { intent }: Known,
  claimed: Claimed,
  codec: Codec
): Effect.Effect<Exit.Exit<unknown, unknown>> =>
  Effect.map(
    Effect.exit(Effect.suspend(() => codec.decode(claimed.payload, claimed))),
    (stored) => Exit.isFailure(stored) ? stored : intent.decode(stored.value, claimed.version)
  )

/** Nothing is to be settled of a delivery whose lease was lost. */
export const lose = (metrics: OfTag): Effect.Effect<"lost"> =>
  Effect.withFiber(({ context }) => {
    metrics.lost.updateUnsafe(1, context)
    return Effect.succeed("lost")
  })

/** Ends a delivery, without making it, that too many workers have died of. */
export const bury = ({ intent, metrics }: Known, claimed: Claimed): Effect.Effect<Settlement> =>
  Effect.withFiber(({ context }) => {
    metrics.crashed.updateUnsafe(1, context)
    return die(
      claimed,
      "crashed",
      `${claimed.crashes} ${claimed.crashes === 1 ? "worker" : "workers"} died while running it, and nothing else`,
      Cause.empty,
      intent,
      metrics
    )
  })

const deliveryOf = ({ crashes, enqueuedAt, failures, id }: Claimed, payload: unknown): Delivery =>
  new Delivery(payload, id, failures + 1, crashes, enqueuedAt)

const limit = <A, E>(
  effect: Effect.Effect<A, E>,
  { policy: { timeout } }: Any
): Effect.Effect<A, E | Cause.TimeoutError> =>
  timeout === undefined ? effect : Effect.timeoutOrElse(effect, {
    duration: timeout,
    orElse: () => Effect.fail(new Cause.TimeoutError(`The handler did not end within ${Duration.format(timeout)}`))
  })

/** A handler runs with the services that its layer was built with, and the span of its delivery. */
const contextOf = (fiber: Fiber.Fiber<unknown, unknown>, { context }: HandlerService): Context.Context<never> => {
  const span = fiber.cache.span
  return span === undefined ? context : Context.add(context, Tracer.ParentSpan, span)
}

/** The span of a delivery links to those that deferred its intents, which are long over in another process. */
const trace = <A, E>(
  handled: Effect.Effect<A, E>,
  batch: ReadonlyArray<Claimed>,
  attempt?: number
): Effect.Effect<A, E> => {
  const { tag } = batch[0]!
  return Effect.withSpan(handled, `process ${tag}`, {
    kind: "consumer",
    links: batch.flatMap(({ traceparent }) =>
      traceparent === undefined
        ? []
        : Option.toArray(HttpTraceContext.w3c({ traceparent } as never)).map((span) => ({ span, attributes: {} }))
    ),
    attributes: {
      "messaging.operation.name": "process",
      "messaging.destination.name": tag,
      ...(attempt === undefined
        ? { "messaging.batch.message_count": batch.length }
        : { "messaging.message.id": batch[0]!.id, "epilogue.attempt": attempt })
    },
    captureStackTrace: false
  })
}

const measured = <A, B>(
  handled: Effect.Effect<A>,
  metrics: OfTag,
  deliveries: number,
  progress: Progress,
  then: (exit: A) => Effect.Effect<B>
): Effect.Effect<B> =>
  Effect.withFiber((fiber) => {
    const clock = fiber.getRef(Clock.Clock)
    const start = clock.monotonicTimeNanosUnsafe()
    metrics.inFlight.modifyUnsafe(deliveries, fiber.context)
    return Effect.flatMap(
      Effect.onExitPrimitive(handled, (exit) => {
        progress.isOver = Exit.isSuccess(exit)
        metrics.inFlight.modifyUnsafe(-deliveries, fiber.context)
        metrics.handler.updateUnsafe(Number(clock.monotonicTimeNanosUnsafe() - start) / 1e9, fiber.context)
        return undefined
      }),
      then
    )
  })

const settle = (
  claimed: Claimed,
  exit: Exit.Exit<unknown, unknown>,
  intent: Any,
  metrics: OfTag
): Effect.Effect<Settlement> =>
  Effect.catchCause(judge(claimed, exit, intent, metrics), (cause) => {
    const failure = "The handler failed, and then its failure could not be dealt with"
    const settlement: Settlement = claimed.failures + 1 >= intent.policy.maxAttempts
      ? dead(claimed, "exhausted", failure, intent)
      : { _tag: "Failed", claimed, delay: defaultDelay, failure }
    return Effect.as(log("Error", claimed, failure, cause), settlement)
  })

/** Logs what became of a delivery. A failure may throw when it is looked at, or a logger may: then without it, or not at all. */
const log = (
  level: "Warn" | "Error",
  { id, tag }: Claimed,
  message: string,
  cause: Cause.Cause<unknown>
): Effect.Effect<void> =>
  Effect.catchCause(Effect.logWithLevel(level)(message, cause), () => Effect.logWithLevel(level)(message, unspeakable))
    .pipe(Effect.annotateLogs({ "epilogue.intent": tag, "epilogue.id": id }), Effect.ignoreCause)

const unspeakable = "The failure can't be put into words: it throws when it is looked at"

/** What a handler failed with, as far as it can be looked at. */
const errorIn = (cause: Cause.Cause<unknown>): Rejected | Snoozed | undefined => {
  try {
    const error = Cause.squash(cause)
    return error instanceof Rejected || error instanceof Snoozed ? error : undefined
  } catch {
    return undefined
  }
}

/** How long to wait where a schedule can't tell, in milliseconds. */
const defaultDelay = 60_000

const judge = (
  claimed: Claimed,
  exit: Exit.Exit<unknown, unknown>,
  intent: Any,
  metrics: OfTag
): Effect.Effect<Settlement> =>
  Effect.withFiber((fiber) => {
    if (Exit.isSuccess(exit)) {
      metrics.succeeded.updateUnsafe(1, fiber.context)
      const now = fiber.getRef(Clock.Clock).currentTimeMillisUnsafe()
      metrics.delivery.updateUnsafe(Math.max(0, now - claimed.enqueuedAt) / 1000, fiber.context)
      return Effect.succeed<Settlement>({ _tag: "Succeeded", claimed })
    }
    const error = errorIn(exit.cause)
    if (error instanceof Snoozed) {
      metrics.snoozed.updateUnsafe(1, fiber.context)
      return Effect.succeed<Settlement>({ _tag: "Snoozed", claimed, delay: bounded(Duration.toMillis(error.duration)) })
    }
    metrics.failed.updateUnsafe(1, fiber.context)
    if (error instanceof Rejected) return dieOf(claimed, "rejected", exit.cause, intent, metrics)
    const { maxAttempts, retry } = intent.policy
    const attempt = claimed.failures + 1
    if (attempt >= maxAttempts) return dieOf(claimed, "exhausted", exit.cause, intent, metrics)
    return Effect.flatMap(delayAfter(retry, attempt), (asked) => {
      if (asked === undefined) return dieOf(claimed, "exhausted", exit.cause, intent, metrics)
      const delay = bounded(asked)
      return Effect.as(
        log(
          "Warn",
          claimed,
          `Intent "${claimed.tag}" failed at attempt ${attempt} of ${maxAttempts}; it is tried again in ${
            Duration.format(Duration.millis(Math.ceil(delay)))
          }`,
          exit.cause
        ),
        { _tag: "Failed", claimed, delay, failure: describe(exit.cause) }
      )
    })
  })

/** No delay is longer than this: ten years, in milliseconds. A store has no number for one that never ends. */
const longest = Duration.toMillis(Duration.days(3653))

const bounded = (delay: number): number => Math.min(Math.max(0, delay), longest)

const dieOf = (
  claimed: Claimed,
  reason: DeathReason,
  cause: Cause.Cause<unknown>,
  intent: Any,
  metrics: OfTag
): Effect.Effect<Settlement> => die(claimed, reason, describe(cause), cause, intent, metrics)

const die = (
  claimed: Claimed,
  reason: DeathReason,
  failure: string,
  cause: Cause.Cause<unknown>,
  intent: Any,
  metrics: OfTag
): Effect.Effect<Settlement> =>
  Effect.withFiber((fiber) => {
    metrics.dead.updateUnsafe(1, fiber.context)
    return Effect.as(
      log("Error", claimed, `Intent "${claimed.tag}" is a dead letter: ${deaths[reason]}`, cause),
      dead(claimed, reason, failure, intent)
    )
  })

const dead = (claimed: Claimed, reason: DeathReason, failure: string, { policy }: Any): Settlement => ({
  _tag: "Dead",
  claimed,
  reason,
  failure,
  blocksKey: claimed.partitionKey !== undefined && policy.onExhausted === "block"
})

const deaths: { readonly [Reason in DeathReason]: string } = {
  exhausted: "no attempts are left",
  rejected: "its handler rejected it",
  undecodable: "no worker could read its payload",
  crashed: "too many workers died of it"
}

/** In a rolling deploy, a payload that is not readable here may be so for a newer worker. */
const unreadable = (
  claimed: Claimed,
  cause: Cause.Cause<unknown>,
  intent: Any,
  { grace }: Reading,
  metrics: OfTag
): Effect.Effect<Settlement> => {
  const left = Duration.toMillis(grace) - (claimed.undecodableFor ?? 0)
  if (left <= 0) return dieOf(claimed, "undecodable", cause, intent, metrics)
  return Effect.withFiber((fiber) => {
    metrics.undecodable.updateUnsafe(1, fiber.context)
    return Effect.as(
      log(
        "Warn",
        claimed,
        `The payload of intent "${claimed.tag}" could not be read, so it is put off. In ${
          Duration.format(Duration.millis(Math.ceil(left)))
        } it is a dead letter`,
        cause
      ),
      {
        _tag: "Undecodable",
        claimed,
        delay: Math.ceil(Math.min(left, seldom, Duration.toMillis(grace) / looksPerGrace)),
        failure: describe(cause)
      }
    )
  })
}

/** How much of a failure is kept with an intent. */
const failureSize = 8192

const describe = (cause: Cause.Cause<unknown>): string => {
  try {
    return Cause.pretty(cause).slice(0, failureSize)
  } catch {
    return unspeakable
  }
}

/**
 * How long to wait after a number of failures, in milliseconds, or `undefined` if the schedule is done. Its state is
 * that number, so the schedule is stepped up to it, through a time that is the sum of its delays.
 */
const delayAfter = (
  retry: Schedule.Schedule<unknown, number>,
  failures: number
): Effect.Effect<number | undefined> =>
  Effect.flatMap(Schedule.toStep(retry), (step) => {
    let now = 0
    let delay = 0
    let count = 0
    return Effect.map(
      Pull.catchDone(
        Effect.as(
          Effect.whileLoop({
            while: () => count < failures,
            body: () => step(now, ++count),
            step: ([, duration]) => {
              delay = Duration.toMillis(duration)
              now += delay
            }
          }),
          true
        ),
        () => Effect.succeed(false)
      ),
      (goesOn) => goesOn ? delay : undefined
    )
  })
