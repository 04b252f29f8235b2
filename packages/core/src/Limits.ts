/**
 * What limits over all workers leave to one of them: it starts no more than the store has permitted to it.
 *
 * A job of a tag with limits is held from when it is claimed until it is over, and what is held may start at any moment.
 * So what is held counts as running when the store is asked, and what may be claimed is what may be started. Where a worker
 * is permitted as many as it has slots, its slots are the limit, and it may hold as many as it likes.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { constVoid } from "effect/Function"
import * as Latch from "effect/Latch"
import * as Semaphore from "effect/Semaphore"
import type { Known } from "./Attempt.ts"
import type { IntentStoreError } from "./IntentSink.ts"
import { persistently } from "./Outage.ts"
import type { Claimed, Permit, Session } from "./OutboxStore.ts"

type Want = Parameters<Session["permit"]>[0][number]

/** One tag with limits. */
interface Limit {
  readonly tag: string
  readonly hasConcurrency: boolean
  readonly hasRate: boolean
  readonly jobSize: number
  /** How many jobs may be held. */
  permitted: number
  /** How many more deliveries may be claimed. */
  tokens: number
  /** How many jobs are held, how many of these have a slot, and how many a claim that is under way may add. */
  held: number
  inSlots: number
  reserved: number
  /** How many deliveries that claim may take. */
  quota: number
  /** Whether the store may have more of it. */
  mayHaveMore: boolean
  /** Whether it is time to say what is needed, for others to have the rest. */
  isStale: boolean
  /** Whether the place of the next job that ends is offered to others before it is used again, and whether one is. */
  offers: boolean
  isOffered: boolean
  askedAt: number
  /** Before that there is no use in asking for more jobs, or for more tokens. */
  jobsAt: number
  tokensAt: number
}

/** How long a worker that was permitted less than it wanted does not ask again, whatever it hears, in milliseconds. */
const restAfterAsking = 200
/** A bucket that is filled faster than that has several tokens each time, in milliseconds. */
const leastRest = 10

export class Limits {
  private readonly limits = new Map<string, Limit>()
  private readonly session: Session
  /** How many jobs the worker runs at once. */
  private readonly concurrency: number
  private readonly now: () => number
  /** Permits that come in another order than they were given could be too many. */
  private readonly asking = Semaphore.makeUnsafe(1)
  /** Open when it may be time to ask. */
  readonly isDue: Latch.Latch = Latch.makeUnsafe(true)
  private readonly hasNews = Latch.makeUnsafe(false)
  /** Whether the worker has no slot for anything, and has not had one for a while. */
  private isStuck = false

  private readonly onExcess: (tag: string, rest: number) => void

  /** `onExcess` hears of a tag of which no more jobs may be held than those in slots and so many more. */
  constructor(
    session: Session,
    known: Iterable<Known>,
    concurrency: number,
    now: () => number,
    onExcess: (tag: string, rest: number) => void
  ) {
    this.onExcess = onExcess
    this.session = session
    this.concurrency = concurrency
    this.now = now
    for (const { handler, intent: { _tag: tag } } of known) {
      const { concurrency: most, rateLimit } = handler.limits
      if (most === undefined && rateLimit === undefined) continue
      this.limits.set(tag, {
        tag,
        hasConcurrency: most !== undefined,
        hasRate: rateLimit !== undefined,
        jobSize: handler._tag === "Batched" ? handler.maxSize : 1,
        permitted: most === undefined ? Infinity : 0,
        tokens: rateLimit === undefined ? Infinity : 0,
        held: 0,
        inSlots: 0,
        reserved: 0,
        quota: 0,
        mayHaveMore: true,
        isStale: false,
        offers: false,
        isOffered: false,
        askedAt: -Infinity,
        jobsAt: -Infinity,
        tokensAt: -Infinity
      })
    }
  }

  get isEmpty(): boolean {
    return this.limits.size === 0
  }

  // Claims -----------------------------------------------------------------------------------------------------------

  /** How many of each tag a claim may take, where `room` is what still fits into jobs that are held. */
  reserve(room: (tag: string) => number): ReadonlyMap<string, number> | undefined {
    if (this.isEmpty) return undefined
    const quotas = new Map<string, number>()
    for (const limit of this.limits.values()) {
      const jobs = this.isStuck ? 0 : this.binds(limit) ? Math.max(0, limit.permitted - limit.held) : Infinity
      limit.quota = Math.min(room(limit.tag) + jobs * limit.jobSize, limit.tokens)
      limit.reserved = Math.min(jobs, limit.quota)
      if (limit.quota === Infinity) continue
      limit.tokens -= limit.quota
      quotas.set(limit.tag, limit.quota)
    }
    return quotas
  }

  /** A claim has come back with these. */
  claimed(all: ReadonlyArray<Claimed>): void {
    if (this.isEmpty) return
    for (const limit of this.limits.values()) if (limit.quota < Infinity) limit.tokens += limit.quota
    for (const { tag } of all) {
      const limit = this.limits.get(tag)
      if (limit !== undefined) limit.tokens--
    }
    for (const limit of this.limits.values()) {
      if (all.length === 0 && limit.quota > 0) limit.mayHaveMore = false
      limit.quota = 0
      limit.reserved = 0
    }
    this.isDue.openUnsafe()
  }

  // Jobs -------------------------------------------------------------------------------------------------------------

  has(tag: string): boolean {
    return this.limits.has(tag)
  }

  /** There is a job more. */
  hold(tag: string): void {
    const limit = this.limits.get(tag)
    if (limit !== undefined) limit.held++
  }

  /** A claim may bring more than what is permitted by now. */
  trim(): void {
    for (const limit of this.limits.values()) this.restrict(limit, Infinity)
  }

  /** A job that is held has a slot now. */
  begin(tag: string): void {
    const limit = this.limits.get(tag)
    if (limit !== undefined) limit.inSlots++
  }

  /**
   * A job that had a slot is over. The store never permits less than what runs, so a worker that always has something to
   * do has to offer a place now and then for others to have their share.
   */
  end(tag: string): void {
    const limit = this.limits.get(tag)
    if (limit === undefined) return
    limit.inSlots--
    limit.held--
    if (!limit.mayHaveMore) return
    if (limit.offers) {
      limit.offers = false
      limit.isOffered = true
      this.restrict(limit, Math.min(this.runningOf(limit), this.concurrency - 1))
    }
    this.isDue.openUnsafe()
  }

  /** A job that had no slot is not held any more. When all of them are gone that are to go, `tell` says so. */
  drop(tag: string): void {
    const limit = this.limits.get(tag)
    if (limit !== undefined) limit.held--
  }

  /** There may be room for others. */
  tell(): void {
    if (!this.isEmpty) this.isDue.openUnsafe()
  }

  /** Deliveries that were claimed are released without having started. */
  giveBack(tag: string, deliveries: number): void {
    const limit = this.limits.get(tag)
    if (limit !== undefined) limit.tokens += deliveries
  }

  /**
   * Holds a job of one delivery that was not claimed with the others, as soon as it is permitted, if that is soon enough.
   * Until then it is this worker's turn to have what others leave.
   */
  readonly admit = (tag: string, patience: number): Effect.Effect<boolean> =>
    Effect.gen({ self: this }, function*() {
      const limit = this.limits.get(tag)
      if (limit === undefined) return true
      const until = this.now() + patience
      if (take(limit)) return true
      while (true) {
        this.hasNews.closeUnsafe()
        // It is taken before anybody else hears of it.
        const isHeld = yield* this.ask(() => [this.wantOf(limit, 1, limit.tokens < 1 ? 1 : 0)], () => take(limit))
        if (isHeld || this.now() >= until) return isHeld
        // Where nobody knows when there is a token, there may be one in time.
        if (limit.tokens < 1 && limit.tokensAt > until && limit.tokensAt < Infinity) return false
        yield* Effect.sleep(restAfterAsking)
        const rest = Math.min(until, limit.tokens < 1 ? limit.tokensAt : Infinity) - this.now()
        yield* Effect.timeoutOption(this.hasNews.await, Duration.millis(Math.max(0, rest)))
      }
    })

  // Permits ----------------------------------------------------------------------------------------------------------

  /** Something has come, of whatever tag, or others have left more of a limit. */
  hear(): void {
    for (const limit of this.limits.values()) {
      limit.mayHaveMore = true
      limit.jobsAt = Math.min(limit.jobsAt, limit.askedAt + restAfterAsking)
    }
    this.wake()
  }

  /** A slot is free. */
  move(): void {
    if (!this.isStuck) return
    this.isStuck = false
    this.wake()
  }

  /** Time to share with others, all the more if this worker has had no free slot since the last beat. */
  beat(isWaiting: boolean, isStuck: boolean): void {
    this.isStuck = isStuck
    for (const limit of this.limits.values()) {
      if (isWaiting) limit.mayHaveMore = true
      limit.isStale = true
      limit.offers = limit.hasConcurrency
    }
    this.wake()
  }

  private wake(): void {
    if (this.isEmpty) return
    this.isDue.openUnsafe()
    this.hasNews.openUnsafe()
  }

  /** In how many milliseconds there may be more permits, if anybody knows. */
  restOf(room: number): number | undefined {
    let at = Infinity
    for (const limit of this.limits.values()) {
      if (this.needsJobs(limit)) at = Math.min(at, limit.jobsAt)
      if (this.needsTokens(limit, room)) at = Math.min(at, limit.tokensAt)
    }
    return at === Infinity ? undefined : Math.max(0, Math.ceil(at - this.now()))
  }

  /** Asks for what is needed, if that is more or less than there is, where `room` is how many deliveries could start. */
  readonly review = (room: () => number): Effect.Effect<void> =>
    this.ask(() => Array.from(this.limits.values()).flatMap((limit) => this.wantsOf(limit, room())), constVoid)

  /** Whether something may be claimed that could not be before. */
  get canClaim(): boolean {
    return !this.isStuck &&
      Array.from(this.limits.values()).some((limit) =>
        limit.mayHaveMore && (limit.permitted > limit.held || !this.binds(limit)) && limit.tokens >= 1
      )
  }

  private needsJobs(limit: Limit): boolean {
    const { held, mayHaveMore, permitted, quota } = limit
    return !this.isStuck && mayHaveMore && quota === 0 && permitted <= held && permitted < this.concurrency
  }

  private needsTokens({ mayHaveMore, quota, tokens }: Limit, room: number): boolean {
    return !this.isStuck && mayHaveMore && quota === 0 && tokens < 1 && room > 0
  }

  private wantsOf(limit: Limit, room: number): ReadonlyArray<Want> {
    const { hasConcurrency, isOffered, isStale, jobsAt, mayHaveMore, permitted, tokensAt } = limit
    const now = this.now()
    limit.isStale = false
    // Where nobody knows when there is more, a beat is as good a time as any.
    const isTime = (at: number): boolean => now >= at || (isStale && at === Infinity)
    const wantsJobs = isOffered || (this.needsJobs(limit) && isTime(jobsAt))
    const wantsTokens = this.needsTokens(limit, room) && isTime(tokensAt)
    if (wantsJobs || wantsTokens) return [this.wantOf(limit, this.concurrency, wantsTokens ? room : 0)]
    const running = this.runningOf(limit)
    const hasMore = hasConcurrency && permitted > running
    return isStale && hasMore && (this.isStuck || !mayHaveMore) ? [this.wantOf(limit, running, 0)] : []
  }

  /** Whether the limit lets this worker run less than it has slots for. */
  private binds(limit: Limit): boolean {
    return limit.permitted < this.concurrency
  }

  /** Permits no more than so many. What is held beyond that can't start. */
  private restrict(limit: Limit, most: number): void {
    limit.permitted = Math.min(limit.permitted, most)
    if (this.binds(limit) && limit.held > limit.permitted) {
      this.onExcess(limit.tag, Math.max(0, limit.permitted - limit.inSlots))
    }
  }

  /** No more can run than there are slots, whatever is held. */
  private runningOf({ held, reserved }: Limit): number {
    return Math.min(held + reserved, this.concurrency)
  }

  private wantOf(limit: Limit, concurrency: number, tokens: number): Want {
    return { tag: limit.tag, running: this.runningOf(limit), concurrency, tokens: limit.hasRate ? tokens : 0 }
  }

  private ask<A>(wants: () => ReadonlyArray<Want>, then: () => A): Effect.Effect<A> {
    const once = Effect.suspend((): Effect.Effect<A, IntentStoreError> => {
      const asked = wants()
      if (asked.length === 0) return Effect.sync(then)
      for (const { running, tag } of asked) {
        const limit = this.limits.get(tag)!
        limit.askedAt = this.now()
        // From when the store hears of it, no more may run than it has heard of, until it has answered.
        this.restrict(limit, limit.hasConcurrency ? running : Infinity)
      }
      return Effect.map(this.session.permit(asked), (permits) => {
        this.answer(asked, permits)
        return then()
      })
    })
    return this.asking.withPermit(persistently("ask for permits", once))
  }

  private answer(asked: ReadonlyArray<Want>, permits: ReadonlyArray<Permit>): void {
    const wants = new Map(asked.map((want) => [want.tag, want]))
    for (const { concurrency, retryAfter, tag, tokens } of permits) {
      const limit = this.limits.get(tag)
      const want = wants.get(tag)
      if (limit === undefined || want === undefined) continue
      if (limit.hasConcurrency) {
        limit.permitted = Infinity
        this.restrict(limit, concurrency)
      }
      if (limit.hasRate) limit.tokens += tokens
      // Somebody else has taken what was offered, and may have to have more of what is left.
      if (limit.isOffered && concurrency > 0 && concurrency <= want.running) limit.offers = true
      limit.isOffered = false
      const later = this.now() + Math.max(leastRest, retryAfter ?? Infinity)
      limit.jobsAt = concurrency < want.concurrency ? later : -Infinity
      limit.tokensAt = tokens < want.tokens ? later : -Infinity
    }
  }
}

/** Holds a job of one delivery, if that is permitted. */
const take = (limit: Limit): boolean => {
  if (limit.permitted <= limit.held || limit.tokens < 1) return false
  limit.held++
  limit.tokens--
  return true
}
