/**
 * What a worker has claimed and not begun.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Latch from "effect/Latch"
import type { Known } from "./Attempt.ts"
import { Batch, bytesOf, deliveriesOf, type Job, Run, Runs, sizeOf } from "./Job.ts"
import type { Limits } from "./Limits.ts"
import type { Claimed } from "./OutboxStore.ts"

export class Backlog {
  private jobs: Array<Job> = []
  private next = 0
  /** Batches that are not full, and wait for more. */
  private readonly batches = new Map<string, Batch>()
  private readonly known: ReadonlyMap<string, Known>
  private readonly limits: Limits
  /** How many deliveries there are, and about how many bytes of payload. */
  size = 0
  bytes = 0
  /** Open while there are jobs. */
  readonly hasJobs: Latch.Latch = Latch.makeUnsafe(false)

  constructor(known: ReadonlyMap<string, Known>, limits: Limits) {
    this.known = known
    this.limits = limits
  }

  /** How many deliveries of a tag still fit into its batch. */
  roomOf(tag: string): number {
    const batch = this.batches.get(tag)
    const { handler } = this.known.get(tag)!
    return batch === undefined || handler._tag === "Single" ? 0 : handler.maxSize - batch.deliveries.length
  }

  /** Makes jobs of what was claimed. Answers with the batches that were begun, and how long they may wait. */
  take(claimed: ReadonlyArray<Claimed>): ReadonlyArray<readonly [Batch, Duration.Duration]> {
    const begun: Array<readonly [Batch, Duration.Duration]> = []
    const runs = new Runs()
    if (this.next > 0) this.jobs = this.jobs.slice(this.next)
    this.next = 0
    for (const each of claimed) {
      const { payload, tag } = each
      this.size++
      this.bytes += payload.length
      const { handler } = this.known.get(tag)!
      if (handler._tag === "Single") {
        const job = runs.add(each)
        if (job === undefined) continue
        this.limits.hold(tag)
        this.jobs.push(job)
        continue
      }
      let batch = this.batches.get(tag)
      if (batch === undefined) {
        batch = new Batch(tag)
        this.limits.hold(tag)
        this.batches.set(tag, batch)
        begun.push([batch, handler.maxWait])
      }
      if (batch.deliveries.push(each) >= handler.maxSize) this.close(batch)
    }
    this.limits.trim()
    this.tell()
    return begun
  }

  /** Makes a job of what a batch has so far. */
  cut(batch: Batch): void {
    if (this.batches.get(batch.tag) === batch) this.close(batch)
    this.tell()
  }

  private close(batch: Batch): void {
    this.batches.delete(batch.tag)
    this.jobs.push(batch)
  }

  /** Who waits for jobs goes on at once, so it comes last. */
  private tell(): void {
    if (this.next < this.jobs.length) this.hasJobs.openUnsafe()
    else this.hasJobs.closeUnsafe()
  }

  /** Puts in one delivery that is a job of its own, which is held already. */
  put(claimed: Claimed): void {
    this.size++
    this.bytes += claimed.payload.length
    if (this.known.get(claimed.tag)!.handler._tag === "Single") {
      this.jobs.push(claimed)
    } else {
      const batch = new Batch(claimed.tag)
      batch.deliveries.push(claimed)
      this.jobs.push(batch)
    }
    this.tell()
  }

  /** Takes out what comes next. It stays held until it is over. */
  shift(): Job | undefined {
    const job = this.jobs[this.next]
    if (job === undefined) return undefined
    this.next++
    if (this.next === this.jobs.length) this.hasJobs.closeUnsafe()
    this.size -= sizeOf(job)
    this.bytes -= bytesOf(job)
    this.limits.begin(job.tag)
    return job
  }

  // What is taken out to be released -----------------------------------------------------------------------------------

  /** Takes out everything. */
  removeAll(): ReadonlyArray<Claimed> {
    const open = Array.from(this.batches.values())
    this.batches.clear()
    return this.remove([...this.cutOut(() => false), ...open])
  }

  /** Takes out all but the first jobs, which have so many deliveries. */
  removeBeyond(rows: number): ReadonlyArray<Claimed> {
    let kept = 0
    return this.keep((job) => {
      const fits = kept < rows
      kept += sizeOf(job)
      return fits
    })
  }

  /** Takes out what has limits over all workers, but for batches that are not full. */
  removeLimited(): ReadonlyArray<Claimed> {
    return this.keep(({ tag }) => !this.limits.has(tag))
  }

  /** Takes out the jobs of a tag but the first ones. */
  removeOf(tag: string, kept: number): ReadonlyArray<Claimed> {
    let left = kept
    return this.keep((job) => job.tag !== tag || left-- > 0)
  }

  /** Takes out what is recalled. Of those of one key also what comes after it, for the order that they are in. */
  removeRecalled(ids: ReadonlySet<string>): ReadonlyArray<Claimed> {
    const removed: Array<Claimed> = []
    const trim = (job: Job): boolean => {
      if (job instanceof Run) {
        const at = job.deliveries.findIndex(({ id }) => ids.has(id))
        if (at > 0) job.end = Math.min(job.end, at)
        return at !== 0
      }
      if (!(job instanceof Batch)) return !ids.has(job.id)
      const rest = job.deliveries.filter(({ id }) => !ids.has(id))
      if (rest.length === 0) return false
      for (const each of job.deliveries) if (ids.has(each.id)) removed.push(this.forget(each))
      job.deliveries = rest
      return true
    }
    const jobs = [...this.cutOut(trim)]
    for (const batch of Array.from(this.batches.values())) {
      if (trim(batch)) continue
      this.batches.delete(batch.tag)
      jobs.push(batch)
    }
    removed.push(...this.remove(jobs))
    return removed
  }

  private keep(isKept: (job: Job) => boolean): ReadonlyArray<Claimed> {
    return this.remove(this.cutOut(isKept))
  }

  private cutOut(isKept: (job: Job) => boolean): ReadonlyArray<Job> {
    const kept: Array<Job> = []
    const removed: Array<Job> = []
    for (const job of this.jobs.slice(this.next)) (isKept(job) ? kept : removed).push(job)
    this.jobs = kept
    this.next = 0
    return removed
  }

  /** Who waits for jobs or for a limit goes on at once, and may put in others, so it comes last. */
  private remove(jobs: ReadonlyArray<Job>): ReadonlyArray<Claimed> {
    const removed: Array<Claimed> = []
    for (const job of jobs) {
      for (const each of deliveriesOf(job)) removed.push(this.forget(each))
      this.limits.drop(job.tag)
    }
    this.tell()
    if (removed.length > 0) this.limits.tell()
    return removed
  }

  private forget(claimed: Claimed): Claimed {
    this.size--
    this.bytes -= claimed.payload.length
    this.limits.giveBack(claimed.tag, 1)
    return claimed
  }
}
