/**
 * One of the places of a worker where a job runs: there are as many as its concurrency.
 *
 * @since 0.1.0
 */
import type * as Deferred from "effect/Deferred"
import type * as Fiber from "effect/Fiber"
import type { Progress } from "./Attempt.ts"
import { Batch, type Job } from "./Job.ts"
import type { Claimed } from "./OutboxStore.ts"

export class Slot implements Progress {
  /** What it has taken on, until that is over. */
  job: Job | undefined
  /** What is under way of its job, how many deliveries that is, and since when. */
  current: Claimed | Batch | undefined
  size = 0
  begunAt = 0
  /** Whether the handler of it has ended by itself. */
  isOver = false
  /** Whether it was interrupted, so that its deliveries are released. */
  isInterrupted = false
  /** What the last look at it has found under way, and what of it has its start on record. */
  seen: Claimed | Batch | undefined
  recorded: Claimed | Batch | undefined
  /** It waits until the start of what is under way is on record. Answers whether its lease still holds. */
  recording: Deferred.Deferred<boolean> | undefined
  /** What runs its jobs. It ends only if it is interrupted. */
  fiber: Fiber.Fiber<void> | undefined

  begin(current: Claimed | Batch, size: number, at: number): void {
    this.current = current
    this.size = size
    this.begunAt = at
    this.isOver = false
  }

  end(): void {
    this.current = undefined
    this.recording = undefined
  }

  /** Ends what is under way, unless it has ended by itself. Then it is left to settle. */
  interrupt(): boolean {
    if (this.isOver || this.isInterrupted || this.current === undefined) return false
    this.isInterrupted = true
    this.fiber?.interruptUnsafe()
    return true
  }
}

/** The deliveries that are under way. */
export const underWayIn = ({ current }: Slot): ReadonlyArray<Claimed> =>
  current === undefined ? [] : current instanceof Batch ? current.deliveries : [current]
