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
import * as Latch from "effect/Latch"
import * as Random from "effect/Random"
import * as Semaphore from "effect/Semaphore"
import { bury, type Handle, type Known, type Reading } from "./Attempt.ts"
import { Backlog } from "./Backlog.ts"
import { GroupCommit } from "./GroupCommit.ts"
import { released } from "./Job.ts"
import { Limits } from "./Limits.ts"
import { persistently } from "./Outage.ts"
import type { Beat, Claimed, Session } from "./OutboxStore.ts"
import { Runners } from "./Runners.ts"
import { Slot } from "./Slot.ts"
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
  private readonly runners: Runners
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
  private readonly hasExpired = Latch.makeUnsafe(false)
  private readonly beatsSoon = Latch.makeUnsafe(false)
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
    this.limits = new Limits(
      session,
      options.known.values(),
      options.concurrency,
      this.now,
      (tag, rest) => this.release(this.backlog.removeOf(tag, rest))
    )
    this.backlog = new Backlog(options.known, this.limits)
    this.runners = new Runners({
      ...options,
      slots: this.slots,
      backlog: this.backlog,
      limits: this.limits,
      commit: this.commit,
      now: this.now,
      onChange: () => this.balance()
    })
    this.suspects = new Suspects(session, options.lease, {
      now: this.now,
      isFree: () => this.runners.isIdle.isOpen() && this.backlog.size === 0,
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
      const runners = yield* Effect.forEach(this.slots, (slot) => fork(this.runners.keepRunning(slot)))
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
        yield* Effect.raceFirst(Effect.andThen(this.stop(claimers), this.drain(runners)), isLost)
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
      const isIdle = this.runners.isIdle.await
      yield* drainTimeout === undefined ? isIdle : Effect.timeoutOption(isIdle, drainTimeout)
      yield* this.stop(runners)
      this.runners.leaveAll()
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
    return Math.min(this.rows, maxHeld - this.commit.size) - this.backlog.size - this.runners.underWay
  }

  /** Holds as many as are delivered in a while, so that a slow worker leaves the rest to others. */
  private adapt(): void {
    const fitting = Math.ceil(this.options.concurrency * heldMillis / this.runners.duration)
    this.rows = Math.max(this.leastRows, Math.min(fitting, this.rows * 2, maxRows))
    this.balance()
  }

  /** Lets the claimer claim while few wait. */
  private balance(): void {
    const { claimBytes } = this.options
    const isLow = this.backlog.size <= this.rows / 4
    const hasBytes = this.backlog.bytes < claimBytes && this.runners.behindBytes < claimBytes * behindPart
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
    this.runners.cutShort()
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
    Effect.andThen(this.runners.isIdle.await, this.commit.isSettled.await)
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
        this.runners.isIdle.closeUnsafe()
        this.backlog.put(suspect)
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
      // Of several tries, that of the one that is answered.
      let sent = 0
      const beat = yield* persistently(
        "beat",
        Effect.suspend(() => {
          sent = this.now()
          return this.session.beat
        })
      )
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
    const isStuck = this.runners.isStuck()
    if (isStuck) this.release(this.backlog.removeLimited())
    this.limits.beat(isWaiting, isStuck)
    if (isWaiting) this.mayFind.openUnsafe()
    this.suspects.hear(hasSuspects)
    if (hasExpired) this.hasExpired.openUnsafe()
  }

  /** Lets go of what an operator has cancelled or paused. */
  private recall(ids: ReadonlySet<string>): void {
    const { context, known } = this.options
    this.release(this.backlog.removeRecalled(ids))
    this.runners.recall(ids, (tag, count) => known.get(tag)!.metrics.recalled.updateUnsafe(count, context))
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
