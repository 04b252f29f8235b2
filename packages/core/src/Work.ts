/**
 * What a worker does in one session with its store: claim, deliver, settle, and keep its lease.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { constVoid } from "effect/Function"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { attemptBatch, attemptOne, type Handle, type Known } from "./Attempt.ts"
import type { IntentStoreError } from "./IntentSink.ts"
import type { Claimed, Session, Settlement } from "./OutboxStore.ts"

/** What a session's work is given. */
export interface WorkOptions {
  readonly known: ReadonlyMap<string, Known>
  readonly concurrency: number
  readonly lease: Duration.Duration
  readonly drainTimeout: Duration.Duration | undefined
  readonly decodeGrace: Duration.Duration
  readonly claimBytes: number
  readonly handle: Handle
  /** Where metrics go. */
  readonly context: Context.Context<never>
}

/** What one fiber takes on at a time. */
type Job = Claimed | ReadonlyArray<Claimed>

/** The most deliveries of one claim. */
const maxRows = 1000
/** A claim takes about what is delivered in this time, so that a slow worker does not sit on what others could do. */
const claimMillis = 250
/** Of its lease, a worker that can't confirm its beat uses no more than this part. */
const confirmedPart = 0.75
const pollListening = Duration.seconds(5)
const pollOtherwise = Duration.seconds(1)

const reconnecting = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered
)

export class Work {
  private readonly session: Session
  private readonly options: WorkOptions
  private jobs: Array<Job> = []
  private next = 0
  private readonly batches = new Map<string, Array<Claimed>>()
  private readonly running = new Set<Job>()
  private settlements: Array<Settlement> = []
  /** How many deliveries the next claim asks for. */
  private rows: number
  private readonly mayFind = Latch.makeUnsafe(true)
  private readonly wantsMore = Latch.makeUnsafe(true)
  private readonly hasJobs = Latch.makeUnsafe(false)
  private readonly hasSettlements = Latch.makeUnsafe(false)
  private readonly isIdle = Latch.makeUnsafe(true)
  private readonly isSettled = Latch.makeUnsafe(true)
  private readonly lost = Deferred.makeUnsafe<void>()

  constructor(session: Session, options: WorkOptions) {
    this.session = session
    this.options = options
    this.rows = options.concurrency * 2
  }

  /** Works until `closing`, and then drains; or until the session is lost. */
  until(closing: Effect.Effect<void>): Effect.Effect<"closed" | "lost"> {
    return Effect.gen({ self: this }, function*() {
      const runners = yield* Effect.forEach(
        Array.from({ length: this.options.concurrency }),
        () => Effect.forkChild(this.deliverAll)
      )
      const claimers = [yield* Effect.forkChild(this.claimAll), yield* Effect.forkChild(this.listen)]
      const others = [yield* Effect.forkChild(this.settleAll), yield* Effect.forkChild(this.keepLease)]
      const isLost = Deferred.await(this.lost)
      const ended = yield* Effect.raceFirst(Effect.as(isLost, "lost" as const), Effect.as(closing, "closed" as const))
      yield* Fiber.interruptAll(claimers)
      if (ended === "closed") yield* Effect.raceFirst(this.drain(runners), isLost)
      // A handler that does not let itself be interrupted is left behind: it can't settle any more.
      yield* Effect.timeoutOption(Fiber.interruptAll([...runners, ...others]), this.options.lease)
      return ended
    })
  }

  /** Lets what runs end, hands back the rest, and settles all of it. */
  private drain(runners: ReadonlyArray<Fiber.Fiber<void>>): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      this.settle([...this.jobs.slice(this.next).flat(), ...Array.from(this.batches.values()).flat()].map(release))
      this.jobs = []
      this.next = 0
      this.batches.clear()
      const { drainTimeout } = this.options
      yield* drainTimeout === undefined ? this.isIdle.await : Effect.timeoutOption(this.isIdle.await, drainTimeout)
      yield* Effect.timeoutOption(Fiber.interruptAll(runners), this.options.lease)
      this.settle(Array.from(this.running).flat().map(release))
      yield* this.isSettled.await
    })
  }

  /** Claims whenever there is something to find, and room for it. */
  private readonly claimAll: Effect.Effect<never> = Effect.gen({ self: this }, function*() {
    const clock = yield* Clock.Clock
    let since = clock.monotonicTimeNanosUnsafe()
    while (true) {
      yield* this.wantsMore.await
      yield* this.mayFind.await
      this.mayFind.closeUnsafe()
      const claimed = yield* persistently(
        "claim",
        Effect.suspend(() => this.session.claim({ rows: this.rows, bytes: this.options.claimBytes }))
      )
      if (claimed.length === 0) continue
      const bytes = claimed.reduce((sum, { payload }) => sum + payload.length, 0)
      if (claimed.length >= this.rows || bytes * 2 > this.options.claimBytes) this.mayFind.openUnsafe()
      const now = clock.monotonicTimeNanosUnsafe()
      const millis = Math.max(1, Number(now - since) / 1e6)
      since = now
      const { concurrency } = this.options
      const fitting = Math.ceil(claimed.length * claimMillis / millis)
      this.rows = Math.max(concurrency * 2, Math.min(fitting, this.rows * 2, maxRows))
      for (const { maxWait, tag } of this.take(claimed)) {
        yield* Effect.forkChild(Effect.andThen(Effect.sleep(maxWait), Effect.sync(() => this.cut(tag))))
      }
    }
  })

  /** Makes jobs of what was claimed. Answers with the batches that were begun. */
  private take(claimed: ReadonlyArray<Claimed>): ReadonlyArray<{ readonly tag: string; maxWait: Duration.Duration }> {
    const begun: Array<{ readonly tag: string; maxWait: Duration.Duration }> = []
    if (this.next > 0) this.jobs = this.jobs.slice(this.next)
    this.next = 0
    for (const each of claimed) {
      const { tag } = each
      const { handler } = this.options.known.get(tag)!
      if (handler._tag === "Single") {
        this.jobs.push(each)
        continue
      }
      const batch = this.batches.get(tag) ?? []
      if (batch.push(each) === 1) {
        this.batches.set(tag, batch)
        begun.push({ tag, maxWait: handler.maxWait })
      }
      if (batch.length >= handler.maxSize) this.cut(tag)
    }
    this.balance()
    return begun
  }

  /** Makes a job of what has come so far for a batched handler. */
  private cut(tag: string): void {
    const batch = this.batches.get(tag)
    if (batch === undefined) return
    this.batches.delete(tag)
    this.jobs.push(batch)
    this.balance()
  }

  /** Lets runners run while there are jobs, and the claimer claim while there are few. */
  private balance(): void {
    const waiting = this.jobs.length - this.next
    if (waiting > 0) this.hasJobs.openUnsafe()
    else this.hasJobs.closeUnsafe()
    if (waiting <= this.rows / 2 && this.settlements.length < maxRows) this.wantsMore.openUnsafe()
    else this.wantsMore.closeUnsafe()
  }

  /** Hears of what may be due. */
  private readonly listen: Effect.Effect<void> = Effect.suspend(() =>
    Effect.whileLoop({
      while: () => true,
      body: () => this.session.wakes,
      step: () => this.mayFind.openUnsafe()
    })
  )

  /** One of the fibers that deliver. */
  private readonly deliverAll: Effect.Effect<void> = Effect.suspend(() =>
    Effect.whileLoop<unknown, never, never>({
      while: () => true,
      body: () => {
        const job = this.jobs[this.next]
        if (job === undefined) return this.hasJobs.await
        this.next++
        this.balance()
        return this.deliver(job)
      },
      step: constVoid
    })
  )

  private deliver(job: Job): Effect.Effect<void> {
    const { decodeGrace, handle, known } = this.options
    const [first] = isBatch(job) ? job : [job]
    const { handler, ...rest } = known.get(first!.tag)!
    const attempt = handler._tag === "Single"
      ? Effect.map(
        attemptOne({ ...rest, handler }, first!, decodeGrace, handle),
        (settlement) => settlement === undefined ? [] : [settlement]
      )
      : attemptBatch({ ...rest, handler }, isBatch(job) ? job : [job], decodeGrace)
    this.running.add(job)
    this.isIdle.closeUnsafe()
    return Effect.map(attempt, (settlements) => {
      this.running.delete(job)
      if (this.running.size === 0) this.isIdle.openUnsafe()
      this.settle(settlements)
    })
  }

  private settle(settlements: ReadonlyArray<Settlement>): void {
    if (settlements.length === 0) return
    for (const each of settlements) this.settlements.push(each)
    this.isSettled.closeUnsafe()
    this.hasSettlements.openUnsafe()
  }

  /** Settles what has come together while the last ones were settled. */
  private readonly settleAll: Effect.Effect<void> = Effect.suspend(() =>
    Effect.whileLoop<unknown, never, never>({
      while: () => true,
      body: () => {
        const settlements = this.settlements
        if (settlements.length === 0) {
          this.hasSettlements.closeUnsafe()
          this.isSettled.openUnsafe()
          return this.hasSettlements.await
        }
        this.settlements = []
        this.balance()
        return Effect.map(
          persistently("settle", this.session.settle(settlements)),
          (lost) => this.countLost(settlements, lost)
        )
      },
      step: constVoid
    })
  )

  private countLost(settlements: ReadonlyArray<Settlement>, lost: ReadonlyArray<string>): void {
    if (lost.length === 0) return
    const ids = new Set(lost)
    for (const { claimed: { id, tag } } of settlements) {
      if (ids.has(id)) this.options.known.get(tag)!.metrics.lost.updateUnsafe(1, this.options.context)
    }
  }

  /** Beats, and ends the work before the lease could have ended. */
  private readonly keepLease: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    const clock = yield* Clock.Clock
    const lease = Duration.toMillis(this.options.lease)
    const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
    let confirmed = now()
    while (true) {
      const sent = now()
      const left = confirmed + lease * confirmedPart - sent
      const beat = left <= 0
        ? undefined
        : yield* persistently("beat", this.session.beat).pipe(
          Effect.timeoutOption(left),
          Effect.map(Option.getOrUndefined)
        )
      if (beat?.isAlive !== true) {
        yield* Effect.logWarning(
          beat === undefined
            ? "A worker could not confirm its lease in time, so it interrupts what it delivers and begins anew"
            : "A worker has lost its lease, so it interrupts what it delivers and begins anew"
        )
        yield* Deferred.succeed(this.lost, undefined)
        return
      }
      confirmed = sent
      if (beat.isWaiting) this.mayFind.openUnsafe()
      if (beat.hasExpired) {
        const freed = yield* persistently("recover", this.session.recover).pipe(
          Effect.timeoutOption(lease / 4),
          Effect.map(Option.getOrElse(() => 0))
        )
        if (freed > 0) {
          this.mayFind.openUnsafe()
          yield* Effect.logWarning(`A worker died. ${freed} deliveries that it had claimed are free again`)
        }
      }
      const poll = Duration.toMillis(beat.isListening ? pollListening : pollOtherwise)
      const jitter = yield* Random.nextBetween(0.8, 1)
      yield* Effect.sleep(Math.min(poll, lease / 3) * jitter)
    }
  })
}

const isBatch = (job: Job): job is ReadonlyArray<Claimed> => Array.isArray(job)

const release = (claimed: Claimed): Settlement => ({ _tag: "Released", claimed })

/** Survives an outage of the store. */
export const persistently = <A, R>(
  what: string,
  effect: Effect.Effect<A, IntentStoreError, R>
): Effect.Effect<A, never, R> =>
  effect.pipe(
    Effect.tapError((error) => Effect.logWarning(`A worker could not ${what}; it tries again`, error)),
    Effect.retry(reconnecting),
    Effect.orDie
  )
