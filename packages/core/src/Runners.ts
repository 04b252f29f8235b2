/**
 * What a worker runs: the jobs of its slots, from when they begin until what has become of them is to be settled.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { constVoid } from "effect/Function"
import * as Latch from "effect/Latch"
import { attemptBatch, attemptOne, type Ended, type Handle, type Known, lose, type Reading } from "./Attempt.ts"
import type { Backlog } from "./Backlog.ts"
import type { GroupCommit } from "./GroupCommit.ts"
import { Batch, bytesOf, type Job, released, Run } from "./Job.ts"
import type { Limits } from "./Limits.ts"
import type { Claimed, Settlement } from "./OutboxStore.ts"
import { type Slot, underWayIn } from "./Slot.ts"

/** What it takes to run jobs. */
interface RunnersOptions {
  readonly known: ReadonlyMap<string, Known>
  readonly reading: Reading
  readonly handle: Handle
  readonly slots: ReadonlyArray<Slot>
  readonly backlog: Backlog
  readonly limits: Limits
  readonly commit: GroupCommit
  readonly now: () => number
  /** There is more or less to do than before. */
  readonly onChange: () => void
}

export class Runners {
  private readonly options: RunnersOptions
  private readonly backlog: Backlog
  private readonly limits: Limits
  private readonly commit: GroupCommit
  private readonly slots: ReadonlyArray<Slot>
  private readonly now: () => number
  private readonly onChange: () => void
  /** How many slots have a job. */
  private busy = 0
  /** Whether a slot has been free since the last beat. */
  private hasMoved = true
  /** How many deliveries are under way. */
  underWay = 0
  /** About how many bytes of payload wait for others of their key that are under way. */
  behindBytes = 0
  /** How long a delivery takes of late, in milliseconds. */
  duration = Infinity
  /** Open while nothing runs. */
  readonly isIdle: Latch.Latch = Latch.makeUnsafe(true)

  constructor(options: RunnersOptions) {
    this.options = options
    this.backlog = options.backlog
    this.limits = options.limits
    this.commit = options.commit
    this.slots = options.slots
    this.now = options.now
    this.onChange = options.onChange
  }

  /** Lets a slot run jobs, also when what it ran was interrupted. */
  keepRunning(slot: Slot): Effect.Effect<void> {
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
        return job === undefined ? this.backlog.hasJobs.await : this.deliver(slot, job)
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
        else this.onChange()
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
    this.onChange()
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
    this.limits.end(tag)
    this.onChange()
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

  /** Releases what the slots have. Their runners have been interrupted. */
  leaveAll(): void {
    for (const slot of this.slots) this.leave(slot)
  }

  /** Lets what is under way end, and nothing begin after it. */
  cutShort(): void {
    for (const { job } of this.slots) if (job instanceof Run) job.end = Math.min(job.end, job.next + 1)
  }

  /** Interrupts what is recalled, so that it is released. What has ended by itself is settled as it ended. */
  recall(ids: ReadonlySet<string>, onInterrupt: (tag: string, deliveries: number) => void): void {
    for (const slot of this.slots) {
      const { job } = slot
      if (job instanceof Run) {
        const behind = job.deliveries.findIndex(({ id }, index) => index > job.next && ids.has(id))
        if (behind !== -1) job.end = Math.min(job.end, behind)
      }
      const underWay = underWayIn(slot)
      if (underWay.some(({ id }) => ids.has(id)) && slot.interrupt()) onInterrupt(job!.tag, underWay.length)
    }
  }

  /** At a beat: whether no slot has been free since the last one. */
  isStuck(): boolean {
    const { hasMoved } = this
    this.hasMoved = false
    return this.busy === this.slots.length && !hasMoved
  }
}

/** Of one with a strong suspicion, the start is on record since it was claimed. */
const isUnsuspected = ({ suspicion }: Claimed): boolean => suspicion !== "possible"

const isSingle = (known: Known): known is Known & { readonly handler: { readonly _tag: "Single" } } =>
  known.handler._tag === "Single"

const isBatched = (known: Known): known is Known & { readonly handler: { readonly _tag: "Batched" } } =>
  known.handler._tag === "Batched"
