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
type Job = Claimed | Batch

/** Deliveries for a batched handler. */
class Batch {
  readonly tag: string
  readonly deliveries: Array<Claimed> = []
  constructor(tag: string) {
    this.tag = tag
  }
}

/** The most deliveries that are held at once, but for those that are under way. */
const maxRows = 1000
/** What is held is about what is delivered in this time, so that a slow worker does not sit on what others could do. */
const heldMillis = 250
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
  private readonly batches = new Map<string, Batch>()
  private readonly running = new Set<Job>()
  private settlements: Array<Settlement> = []
  /** How many deliveries are claimed and wait, and how many of them are under way. */
  private waiting = 0
  private underWay = 0
  /** About how many bytes of payload wait. */
  private waitingBytes = 0
  /** How long a delivery takes of late, in milliseconds. */
  private duration = Infinity
  private readonly leastRows: number
  private rows: number
  /** When the store last confirmed the lease. */
  private confirmedAt = 0
  private now: () => number = () => 0
  private readonly mayFind = Latch.makeUnsafe(true)
  private readonly wantsMore = Latch.makeUnsafe(true)
  private readonly hasJobs = Latch.makeUnsafe(false)
  private readonly hasSettlements = Latch.makeUnsafe(false)
  private readonly hasExpired = Latch.makeUnsafe(false)
  private readonly isIdle = Latch.makeUnsafe(true)
  private readonly isSettled = Latch.makeUnsafe(true)
  private readonly lost = Deferred.makeUnsafe<void>()

  constructor(session: Session, options: WorkOptions) {
    this.session = session
    this.options = options
    const sizes = Array.from(options.known.values(), ({ handler }) => handler._tag === "Batched" ? handler.maxSize : 1)
    this.leastRows = options.concurrency * 2 * Math.max(...sizes, 1)
    this.rows = this.leastRows
  }

  /** Works until `closing`, and then drains; or until the session is lost. */
  until(closing: Effect.Effect<void>): Effect.Effect<"closed" | "lost"> {
    return Effect.gen({ self: this }, function*() {
      const clock = yield* Clock.Clock
      this.now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
      this.confirmedAt = this.now()
      // Nobody waits for them but `stop`, which does not wait for ever.
      const fork = (loop: Effect.Effect<void>) => Effect.forkDetach(this.guard(loop))
      const runners = yield* Effect.forEach(
        Array.from({ length: this.options.concurrency }),
        () => fork(this.deliverAll)
      )
      const claimers = [yield* fork(this.claimAll), yield* fork(this.listen)]
      const others = [
        yield* fork(this.settleAll),
        yield* fork(this.beatAll),
        yield* fork(this.watchLease),
        yield* fork(this.recoverAll)
      ]
      const isLost = Deferred.await(this.lost)
      const ended = yield* Effect.raceFirst(Effect.as(isLost, "lost" as const), Effect.as(closing, "closed" as const))
      if (ended === "closed") {
        yield* this.stop(claimers)
        yield* Effect.raceFirst(this.drain(runners), isLost)
      }
      yield* this.stop([...runners, ...claimers, ...others])
      return ended
    })
  }

  /** A loop that ends by itself takes the session with it. */
  private guard(loop: Effect.Effect<void>): Effect.Effect<void> {
    return Effect.catchCause(loop, (cause) =>
      Effect.andThen(
        Effect.logError("A worker has come upon a defect, so it interrupts what it delivers and begins anew", cause),
        Deferred.succeed(this.lost, undefined)
      ))
  }

  /** What does not let itself be interrupted is left behind: when the session has ended, it can't settle any more. */
  private stop(fibers: ReadonlyArray<Fiber.Fiber<void>>): Effect.Effect<void> {
    for (const fiber of fibers) fiber.interruptUnsafe()
    return Effect.asVoid(Effect.timeoutOption(Fiber.awaitAll(fibers), this.options.lease))
  }

  /** Lets what runs end, hands back the rest, and settles all of it. */
  private drain(runners: ReadonlyArray<Fiber.Fiber<void>>): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      const waiting = [...this.jobs.slice(this.next), ...this.batches.values()]
      this.jobs = []
      this.next = 0
      this.batches.clear()
      this.settle(waiting.flatMap(deliveriesOf).map(release))
      const { drainTimeout } = this.options
      yield* drainTimeout === undefined ? this.isIdle.await : Effect.timeoutOption(this.isIdle.await, drainTimeout)
      yield* this.stop(runners)
      this.settle(Array.from(this.running).flatMap(deliveriesOf).map(release))
      yield* this.isSettled.await
    })
  }

  /** Claims whenever there is something to find, and room for it. */
  private readonly claimAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      yield* this.wantsMore.await
      yield* this.mayFind.await
      this.adapt()
      // It may have turned out that this worker is slower than it was.
      if (!this.wantsMore.isOpen()) continue
      this.mayFind.closeUnsafe()
      const rows = this.rows - this.waiting - this.underWay
      const bytes = this.options.claimBytes - this.waitingBytes
      const claimed = yield* persistently("claim", Effect.suspend(() => this.session.claim({ rows, bytes })))
      if (claimed.length === 0) continue
      // There may be more. The claim that finds nothing says that there is not.
      this.mayFind.openUnsafe()
      for (const [batch, maxWait] of this.take(claimed)) {
        yield* Effect.forkChild(Effect.andThen(Effect.sleep(maxWait), Effect.sync(() => this.cut(batch))))
      }
    }
  })

  /** Holds as many as are delivered in a while, so that a slow worker leaves the rest to others. */
  private adapt(): void {
    const fitting = Math.ceil(this.options.concurrency * heldMillis / this.duration)
    this.rows = Math.max(this.leastRows, Math.min(fitting, this.rows * 2, maxRows))
    this.balance()
  }

  /** Leaves to others what a worker that has become slow has claimed while it was fast. */
  private handBack(): void {
    this.adapt()
    if (this.waiting <= this.rows * 2) return
    const kept = this.jobs.slice(this.next, this.next + this.rows)
    const rest = this.jobs.slice(this.next + this.rows).flatMap(deliveriesOf)
    this.jobs = kept
    this.next = 0
    this.waiting -= rest.length
    this.waitingBytes -= sizeOf(rest)
    this.settle(rest.map(release))
  }

  /** Makes jobs of what was claimed. Answers with the batches that were begun, and how long they may wait. */
  private take(claimed: ReadonlyArray<Claimed>): ReadonlyArray<readonly [Batch, Duration.Duration]> {
    const begun: Array<readonly [Batch, Duration.Duration]> = []
    this.waiting += claimed.length
    this.waitingBytes += sizeOf(claimed)
    if (this.next > 0) this.jobs = this.jobs.slice(this.next)
    this.next = 0
    for (const each of claimed) {
      const { tag } = each
      const { handler } = this.options.known.get(tag)!
      if (handler._tag === "Single") {
        this.jobs.push(each)
        continue
      }
      let batch = this.batches.get(tag)
      if (batch === undefined) {
        batch = new Batch(tag)
        this.batches.set(tag, batch)
        begun.push([batch, handler.maxWait])
      }
      if (batch.deliveries.push(each) >= handler.maxSize) this.cut(batch)
    }
    this.balance()
    return begun
  }

  /** Makes a job of what a batch has so far. */
  private cut(batch: Batch): void {
    if (this.batches.get(batch.tag) !== batch) return
    this.batches.delete(batch.tag)
    this.jobs.push(batch)
    this.balance()
  }

  /** Lets runners run while there are jobs, and the claimer claim while few wait. */
  private balance(): void {
    if (this.next < this.jobs.length) this.hasJobs.openUnsafe()
    else this.hasJobs.closeUnsafe()
    const isLow = this.waiting <= this.rows / 4
    const hasRoom = this.waiting + this.underWay < this.rows && this.settlements.length < maxRows
    if (isLow && hasRoom && this.waitingBytes < this.options.claimBytes) this.wantsMore.openUnsafe()
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
        return this.deliver(job)
      },
      step: constVoid
    })
  )

  private deliver(job: Job): Effect.Effect<void> {
    const { decodeGrace, handle, known } = this.options
    const size = job instanceof Batch ? job.deliveries.length : 1
    this.running.add(job)
    this.waiting -= size
    this.waitingBytes -= sizeOf(deliveriesOf(job))
    this.underWay += size
    this.isIdle.closeUnsafe()
    this.balance()
    const { handler, ...rest } = known.get(job.tag)!
    const begun = this.now()
    const attempt = job instanceof Batch
      ? attemptBatch({ ...rest, handler: handler as typeof handler & { _tag: "Batched" } }, job.deliveries, decodeGrace)
      : attemptOne({ ...rest, handler: handler as typeof handler & { _tag: "Single" } }, job, decodeGrace, handle)
    return Effect.map(attempt, (settlements) => {
      this.running.delete(job)
      this.underWay -= size
      const duration = (this.now() - begun) / size
      this.duration = Number.isFinite(this.duration) ? this.duration + (duration - this.duration) / 16 : duration
      this.settle(settlements)
      this.balance()
      // Who waits for it goes on at once, so it comes last.
      if (this.running.size === 0) this.isIdle.openUnsafe()
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
          persistently("settle", Effect.suspend(() => this.session.settle(settlements))),
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

  /** Keeps the lease, and hears on the way of what waits, and of workers that have died. */
  private readonly beatAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      const sent = this.now()
      const beat = yield* persistently("beat", Effect.suspend(() => this.session.beat))
      if (!beat.isAlive) return yield* this.lose("A worker has lost its lease")
      this.confirmedAt = sent
      this.handBack()
      if (beat.isWaiting) this.mayFind.openUnsafe()
      if (beat.hasExpired) this.hasExpired.openUnsafe()
      const poll = Duration.toMillis(beat.isListening ? pollListening : pollOtherwise)
      const jitter = yield* Random.nextBetween(0.8, 1)
      yield* Effect.sleep(Math.min(poll, Duration.toMillis(this.options.lease) / 3) * jitter)
    }
  })

  /** Ends the work before the lease could have ended. It goes by the clock alone, and waits for nobody. */
  private readonly watchLease: Effect.Effect<void> = Effect.suspend(() =>
    Effect.gen({ self: this }, function*() {
      const confirmed = Duration.toMillis(this.options.lease) * confirmedPart
      for (let left = confirmed; left > 0; left = this.confirmedAt + confirmed - this.now()) {
        yield* Effect.sleep(Math.ceil(left))
      }
      yield* this.lose("A worker could not confirm its lease in time")
    })
  )

  private lose(why: string): Effect.Effect<void> {
    return Effect.andThen(
      Effect.logWarning(`${why}, so it interrupts what it delivers and begins anew`),
      Deferred.succeed(this.lost, undefined)
    )
  }

  /** Frees what workers that have died had claimed. */
  private readonly recoverAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      yield* this.hasExpired.await
      this.hasExpired.closeUnsafe()
      const freed = yield* persistently("recover", Effect.suspend(() => this.session.recover))
      if (freed === 0) continue
      this.mayFind.openUnsafe()
      yield* Effect.logWarning(`A worker died. ${freed} deliveries that it had claimed are free again`)
    }
  })
}

const deliveriesOf = (job: Job): ReadonlyArray<Claimed> => job instanceof Batch ? job.deliveries : [job]

const sizeOf = (deliveries: ReadonlyArray<Claimed>): number => {
  let size = 0
  for (const { payload } of deliveries) size += payload.length
  return size
}

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
