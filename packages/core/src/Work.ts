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
import * as Semaphore from "effect/Semaphore"
import { attemptBatch, attemptOne, bury, type Ended, type Handle, type Known, lose, type Reading } from "./Attempt.ts"
import { Backlog } from "./Backlog.ts"
import { GroupCommit } from "./GroupCommit.ts"
import { Batch, bytesOf, type Job, Run } from "./Job.ts"
import { Limits } from "./Limits.ts"
import { persistently } from "./Outage.ts"
import type { Beat, Claimed, Session, Settlement } from "./OutboxStore.ts"
import { Slot, underWayIn } from "./Slot.ts"
import { Suspects } from "./Suspects.ts"

/** What a session's work is given. */
export interface WorkOptions {
  readonly known: ReadonlyMap<string, Known>
  readonly concurrency: number
  readonly lease: Duration.Duration
  readonly drainTimeout: Duration.Duration | undefined
  readonly reading: Reading
  readonly claimBytes: number
  readonly handle: Handle
  /** Where metrics go. */
  readonly context: Context.Context<never>
}

/** The most deliveries that wait for a slot, and the most that are held at all, but for those that wait for their key. */
const maxRows = 1000
const maxHeld = 2000
/** Of what was claimed with others of its key and waits for these, there may be so many times as much as may else wait. */
const behindPart = 3
/** What is held is about what is delivered in this time, so that a slow worker does not sit on what others could do. */
const heldMillis = 250
/** Of its lease, a worker that can't confirm its beat uses no more than this part. */
const confirmedPart = 0.75
const pollListening = Duration.seconds(5)
const pollOtherwise = Duration.seconds(1)

export class Work {
  private readonly session: Session
  private readonly options: WorkOptions
  private readonly backlog: Backlog
  private readonly slots: ReadonlyArray<Slot>
  /** How many slots have a job. */
  private busy = 0
  /** Whether a slot has been free since the last beat. */
  private hasMoved = true
  /** How many deliveries are under way. */
  private underWay = 0
  /** About how many bytes of payload wait for others of their key that are under way. */
  private behindBytes = 0
  /** How long a delivery takes of late, in milliseconds. */
  private duration = Infinity
  private readonly leastRows: number
  private rows: number
  /** When the store last confirmed the lease. */
  private confirmedAt = 0
  private clock: Clock.Clock | undefined
  private readonly commit: GroupCommit
  private readonly limits: Limits
  private readonly suspects: Suspects
  /** Taken by a claim, and by what is to run alone. */
  private readonly claiming = Semaphore.makeUnsafe(1)
  private readonly mayFind = Latch.makeUnsafe(true)
  private readonly wantsMore = Latch.makeUnsafe(true)
  private readonly hasJobs = Latch.makeUnsafe(false)
  private readonly hasExpired = Latch.makeUnsafe(false)
  private readonly beatsSoon = Latch.makeUnsafe(false)
  private readonly isIdle = Latch.makeUnsafe(true)
  private readonly lost = Deferred.makeUnsafe<void>()

  constructor(session: Session, options: WorkOptions) {
    this.session = session
    this.options = options
    const sizes = Array.from(options.known.values(), ({ handler }) => handler._tag === "Batched" ? handler.maxSize : 1)
    this.leastRows = options.concurrency * 2 * Math.max(...sizes, 1)
    this.rows = this.leastRows
    this.slots = Array.from({ length: options.concurrency }, () => new Slot())
    this.commit = new GroupCommit(session, this.slots, {
      onFlush: () => this.balance(),
      onLost: ({ tag }) => options.known.get(tag)!.metrics.lost.updateUnsafe(1, options.context),
      onStale: (slot) => {
        // One that settles in its own transaction finds out by itself, and may just have done so.
        const { handler } = options.known.get(slot.job!.tag)!
        if (!(handler._tag === "Single" && handler.isTransactional)) slot.interrupt()
      }
    })
    this.limits = new Limits(session, options.known.values(), options.concurrency, this.now)
    this.backlog = new Backlog(options.known, this.limits)
    this.suspects = new Suspects(session, options.lease, {
      now: this.now,
      isFree: () => this.busy === 0 && this.backlog.size === 0,
      alone: (effect) => this.alone(effect),
      rest: this.rest,
      deliver: (suspect) => this.deliverAlone(suspect),
      beat: () => this.beatsSoon.openUnsafe()
    })
  }

  /** Milliseconds of a clock that nobody sets. */
  private readonly now = (): number => Number(this.clock!.monotonicTimeNanosUnsafe()) / 1e6

  /** Works until `closing`, and then drains; or until the session is lost. */
  until(closing: Effect.Effect<void>): Effect.Effect<"closed" | "lost"> {
    return Effect.gen({ self: this }, function*() {
      this.clock = yield* Clock.Clock
      this.confirmedAt = this.now()
      // Nobody waits for them but `stop`, which does not wait for ever.
      const fork = (loop: Effect.Effect<void>) => Effect.forkDetach(this.guard(loop))
      const runners = yield* Effect.forEach(this.slots, (slot) => fork(this.keepRunning(slot)))
      const claimers = [yield* fork(this.claimAll), yield* fork(this.listen), yield* fork(this.suspects.isolateAll)]
      if (!this.limits.isEmpty) claimers.push(yield* fork(this.keepLimits))
      const others = [
        yield* fork(this.commit.flushAll),
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
      this.handBackAll()
      const { drainTimeout } = this.options
      yield* drainTimeout === undefined ? this.isIdle.await : Effect.timeoutOption(this.isIdle.await, drainTimeout)
      yield* this.stop(runners)
      for (const slot of this.slots) this.leave(slot)
      yield* this.commit.isSettled.await
    })
  }

  // What waits -------------------------------------------------------------------------------------------------------

  /** Claims whenever there is something to find, and room for it. */
  private readonly claimAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      yield* this.wantsMore.await
      yield* this.mayFind.await
      yield* this.claiming.withPermit(this.claim)
    }
  })

  private readonly claim: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    this.adapt()
    // It may have turned out that this worker is slower than it was, or it had to wait for what runs alone.
    if (!this.wantsMore.isOpen() || !this.mayFind.isOpen()) return
    this.mayFind.closeUnsafe()
    const { claimBytes, known } = this.options
    const tags = this.limits.reserve((tag) => this.backlog.roomOf(tag))
    const limit = { rows: this.room, bytes: claimBytes - this.backlog.bytes, tags }
    const isLimited = tags?.size === known.size && Array.from(tags.values()).every((quota) => quota < 1)
    const claimed = isLimited ? [] : yield* persistently("claim", Effect.suspend(() => this.session.claim(limit)))
    this.limits.claimed(claimed)
    if (claimed.length === 0) return
    // There may be more. The claim that finds nothing says that there is not.
    this.mayFind.openUnsafe()
    const begun = this.backlog.take(claimed)
    this.balance()
    for (const [batch, maxWait] of begun) {
      const cut = Effect.sync(() => {
        this.backlog.cut(batch)
        this.balance()
      })
      yield* Effect.forkChild(Effect.andThen(Effect.sleep(maxWait), cut))
    }
  })

  /** How many deliveries more are welcome. */
  private get room(): number {
    return Math.min(this.rows, maxHeld - this.commit.size) - this.backlog.size - this.underWay
  }

  /** Holds as many as are delivered in a while, so that a slow worker leaves the rest to others. */
  private adapt(): void {
    const fitting = Math.ceil(this.options.concurrency * heldMillis / this.duration)
    this.rows = Math.max(this.leastRows, Math.min(fitting, this.rows * 2, maxRows))
    this.balance()
  }

  /** Lets runners run while there are jobs, and the claimer claim while few wait. */
  private balance(): void {
    if (this.backlog.hasJobs) this.hasJobs.openUnsafe()
    else this.hasJobs.closeUnsafe()
    const { claimBytes } = this.options
    const isLow = this.backlog.size <= this.rows / 4
    const hasBytes = this.backlog.bytes < claimBytes && this.behindBytes < claimBytes * behindPart
    if (isLow && this.room > 0 && hasBytes) this.wantsMore.openUnsafe()
    else this.wantsMore.closeUnsafe()
  }

  private release(claimed: ReadonlyArray<Claimed>): void {
    this.commit.settleAll(claimed.map(released))
  }

  /** Leaves to others what a worker that has become slow has claimed while it was fast. */
  private handBack(): void {
    this.adapt()
    if (this.backlog.size > this.rows * 2) this.release(this.backlog.removeBeyond(this.rows))
  }

  /** Leaves to others all that has not begun. */
  private handBackAll(): void {
    this.release(this.backlog.removeAll())
    for (const { job } of this.slots) if (job instanceof Run) job.end = Math.min(job.end, job.next + 1)
    this.balance()
  }

  /** Hears of what may be due. */
  private readonly listen: Effect.Effect<void> = Effect.suspend(() =>
    Effect.whileLoop({
      while: () => true,
      body: () => this.session.wakes,
      step: () => {
        this.limits.hear()
        this.mayFind.openUnsafe()
      }
    })
  )

  /** Sees to it that this worker has its share of the limits, and no more. */
  private readonly keepLimits: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      const rest = this.limits.restOf(this.room)
      yield* rest === undefined
        ? this.limits.isDue.await
        : Effect.timeoutOption(this.limits.isDue.await, Duration.millis(rest))
      this.limits.isDue.closeUnsafe()
      yield* this.limits.review(() => this.room)
      if (this.limits.canClaim) this.mayFind.openUnsafe()
    }
  })

  // What runs --------------------------------------------------------------------------------------------------------

  /** Lets a slot run jobs, also when what it ran was interrupted. */
  private keepRunning(slot: Slot): Effect.Effect<void> {
    const run = Effect.flatMap(Effect.forkChild(this.deliverAll(slot), { startImmediately: true }), (fiber) => {
      slot.fiber = fiber
      return Fiber.await(fiber)
    })
    return Effect.whileLoop<unknown, never, never>({
      while: () => true,
      body: () =>
        Effect.flatMap(run, (exit) => {
          if (!slot.isInterrupted) return exit
          this.leave(slot)
          return Effect.void
        }),
      step: constVoid
    })
  }

  private deliverAll(slot: Slot): Effect.Effect<void> {
    return Effect.whileLoop<unknown, never, never>({
      while: () => true,
      body: () => {
        const job = this.backlog.shift()
        return job === undefined ? this.hasJobs.await : this.deliver(slot, job)
      },
      step: constVoid
    })
  }

  private deliver(slot: Slot, job: Job): Effect.Effect<void> {
    slot.job = job
    this.busy++
    this.isIdle.closeUnsafe()
    if (job instanceof Run) return this.deliverRun(slot, job)
    if (job instanceof Batch) return this.deliverBatch(slot, job)
    return Effect.map(this.attempt(slot, job), (ended) => {
      this.end(slot)
      if (typeof ended !== "string") this.commit.settle(ended)
      this.vacate(slot)
    })
  }

  /** Delivers those of one key in their order. After one that holds up its key, the rest is released together with it. */
  private deliverRun(slot: Slot, run: Run): Effect.Effect<void> {
    this.behindBytes += bytesOf(run)
    return Effect.whileLoop({
      while: () => slot.job === run,
      body: () => {
        const claimed = run.deliveries[run.next]!
        this.behindBytes -= claimed.payload.length
        return this.attempt(slot, claimed)
      },
      step: (ended) => {
        this.end(slot)
        run.next++
        if (!this.goesOn(run.tag, ended)) run.end = run.next
        const rest = run.next >= run.end ? this.leaveBehind(run) : []
        if (typeof ended === "string") this.commit.settleAll(rest)
        else if (rest.length === 0) this.commit.settle(ended)
        else this.commit.settleAll([ended, ...rest])
        if (run.next >= run.deliveries.length) this.vacate(slot)
        else this.balance()
      }
    })
  }

  /** Whether the next one of its key may be delivered. */
  private goesOn(tag: string, ended: Ended): boolean {
    if (typeof ended === "string") return ended === "settled"
    if (ended._tag !== "Dead") return ended._tag === "Succeeded"
    const { handler } = this.options.known.get(tag)!
    // What settles in its own transaction could be settled before the dead letter, and would be out of order then.
    return ended.blocksKey !== true && !(handler._tag === "Single" && handler.isTransactional)
  }

  /** Ends a run with what is under way, and answers how to settle what has not begun. */
  private leaveBehind(run: Run): ReadonlyArray<Settlement> {
    const rest = run.deliveries.splice(run.next)
    for (const { payload } of rest) this.behindBytes -= payload.length
    this.limits.giveBack(run.tag, rest.length)
    return rest.map(released)
  }

  private deliverBatch(slot: Slot, batch: Batch): Effect.Effect<void> {
    const known = this.options.known.get(batch.tag)!
    const { deliveries } = batch
    const attempt = (isHeld: boolean): Effect.Effect<ReadonlyArray<Settlement>> =>
      isHeld && isBatched(known)
        ? attemptBatch(known, deliveries, this.options.reading, slot)
        : Effect.succeed(deliveries.map(released))
    this.begin(slot, batch, deliveries.length)
    return Effect.map(
      deliveries.every(isUnsuspected) ? attempt(true) : Effect.flatMap(this.commit.record(slot), attempt),
      (settlements) => {
        this.end(slot)
        this.commit.settleAll(settlements)
        this.vacate(slot)
      }
    )
  }

  private attempt(slot: Slot, claimed: Claimed): Effect.Effect<Ended> {
    const { handle, known: all, reading } = this.options
    const known = all.get(claimed.tag)!
    this.begin(slot, claimed, 1)
    // The backlog has put it into a batch.
    if (!isSingle(known)) return Effect.die(new Error(`Epilogue: a delivery of "${claimed.tag}" is in no batch.`))
    return isUnsuspected(claimed)
      ? attemptOne(known, claimed, reading, handle, slot)
      : Effect.flatMap(
        this.commit.record(slot),
        (isHeld) => isHeld ? attemptOne(known, claimed, reading, handle, slot) : lose(known.metrics)
      )
  }

  private begin(slot: Slot, current: Claimed | Batch, size: number): void {
    slot.begin(current, size, this.now())
    this.underWay += size
    this.balance()
    this.commit.look()
  }

  private end(slot: Slot): void {
    const { begunAt, size } = slot
    const duration = (this.now() - begunAt) / size
    this.duration = Number.isFinite(this.duration) ? this.duration + (duration - this.duration) / 16 : duration
    this.underWay -= size
    slot.end()
  }

  /** The job of a slot is over. */
  private vacate(slot: Slot): void {
    const { tag } = slot.job!
    slot.job = undefined
    this.busy--
    this.hasMoved = true
    this.limits.move()
    this.limits.drop(tag)
    this.balance()
    // Who waits for it goes on at once, so it comes last.
    if (this.busy === 0) this.isIdle.openUnsafe()
  }

  /** Releases what a slot has been interrupted in, and what would have come after it. */
  private leave(slot: Slot): void {
    const { job } = slot
    slot.isInterrupted = false
    if (job === undefined) return
    const settlements = underWayIn(slot).map(released)
    if (settlements.length > 0) this.end(slot)
    if (job instanceof Run) {
      job.next += settlements.length
      settlements.push(...this.leaveBehind(job))
    }
    this.commit.settleAll(settlements)
    this.vacate(slot)
  }

  // What runs alone --------------------------------------------------------------------------------------------------

  private alone<A>(effect: Effect.Effect<A>): Effect.Effect<A> {
    const begin = Effect.sync(() => this.handBackAll())
    const end = Effect.sync(() => {
      this.mayFind.openUnsafe()
      this.balance()
    })
    return this.claiming.withPermit(Effect.ensuring(Effect.andThen(begin, effect), end))
  }

  /** Waits until nothing runs, and all is settled. */
  private readonly rest: Effect.Effect<void> = Effect.suspend(() =>
    Effect.andThen(this.isIdle.await, this.commit.isSettled.await)
  )

  private deliverAlone(suspect: Claimed): Effect.Effect<boolean> {
    return Effect.gen({ self: this }, function*() {
      const { crashes, id, tag } = suspect
      const known = this.options.known.get(tag)!
      const { maxCrashes } = known.intent.policy
      const isAdmitted = crashes >= maxCrashes || (yield* this.limits.admit(tag, Duration.toMillis(this.options.lease)))
      if (crashes >= maxCrashes) {
        this.commit.settle(yield* bury(known, suspect))
      } else if (isAdmitted) {
        yield* Effect.logWarning(
          `Intent "${tag}" was running when a worker died, so it runs alone. Of it alone, ${crashes} have died`
        ).pipe(Effect.annotateLogs({ "epilogue.intent": tag, "epilogue.id": id }))
        this.isIdle.closeUnsafe()
        this.backlog.put(suspect)
        this.balance()
      } else {
        this.release([suspect])
      }
      yield* this.rest
      return isAdmitted
    })
  }

  // Beats ------------------------------------------------------------------------------------------------------------

  /** Keeps the lease, and hears on the way of what there is to do. */
  private readonly beatAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      this.beatsSoon.closeUnsafe()
      const sent = this.now()
      const beat = yield* persistently("beat", Effect.suspend(() => this.session.beat))
      if (!beat.isAlive) return yield* this.lose("A worker has lost its lease")
      this.confirmedAt = sent
      this.hear(beat)
      const poll = Duration.toMillis(beat.isListening ? pollListening : pollOtherwise)
      const jitter = yield* Random.nextBetween(0.8, 1)
      yield* Effect.timeoutOption(
        this.beatsSoon.await,
        Duration.millis(Math.min(poll, Duration.toMillis(this.options.lease) / 3) * jitter)
      )
    }
  })

  private hear({ hasExpired, hasSuspects, isWaiting, recalled }: Beat): void {
    this.handBack()
    if (recalled.length > 0) this.recall(new Set(recalled))
    const isStuck = this.busy === this.slots.length && !this.hasMoved
    this.hasMoved = false
    if (isStuck) this.release(this.backlog.removeLimited())
    this.limits.beat(isWaiting, isStuck)
    if (isWaiting) this.mayFind.openUnsafe()
    this.suspects.hear(hasSuspects)
    if (hasExpired) this.hasExpired.openUnsafe()
  }

  /** Interrupts and releases what an operator has cancelled or paused. What has ended by itself is settled as it ended. */
  private recall(ids: ReadonlySet<string>): void {
    this.release(this.backlog.removeRecalled(ids))
    for (const slot of this.slots) {
      const { job } = slot
      if (job instanceof Run) {
        const behind = job.deliveries.findIndex(({ id }, index) => index > job.next && ids.has(id))
        if (behind !== -1) job.end = Math.min(job.end, behind)
      }
      const underWay = underWayIn(slot)
      if (!underWay.some(({ id }) => ids.has(id)) || !slot.interrupt()) continue
      const { metrics } = this.options.known.get(job!.tag)!
      metrics.recalled.updateUnsafe(underWay.length, this.options.context)
    }
  }

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
      this.suspects.expect()
      yield* Effect.logWarning(`A worker died. ${freed} deliveries that it had claimed are free again`)
    }
  })
}

const released = (claimed: Claimed): Settlement => ({ _tag: "Released", claimed })

/** Of one with a strong suspicion, the start is on record since it was claimed. */
const isUnsuspected = ({ suspicion }: Claimed): boolean => suspicion !== "possible"

const isSingle = (known: Known): known is Known & { readonly handler: { readonly _tag: "Single" } } =>
  known.handler._tag === "Single"

const isBatched = (known: Known): known is Known & { readonly handler: { readonly _tag: "Batched" } } =>
  known.handler._tag === "Batched"
