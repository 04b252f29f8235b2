/**
 * What one slot of a worker takes on at a time: a delivery, those of one partition key, or a batch.
 *
 * @since 0.1.0
 */
import type { Claimed, Settlement } from "./OutboxStore.ts"

export type Job = Claimed | Run | Batch

/** Deliveries of one partition key that were claimed together. They are made one after the other. */
export class Run {
  readonly tag: string
  readonly deliveries: Array<Claimed> = []
  /** Which one is under way, or comes next. */
  next = 0
  /** Before which one it stops. Those from there on are released, together with what becomes of the one before them. */
  end = Infinity
  constructor(tag: string) {
    this.tag = tag
  }
}

/** Deliveries for a batched handler. */
export class Batch {
  readonly tag: string
  deliveries: Array<Claimed> = []
  constructor(tag: string) {
    this.tag = tag
  }
}

/** What a job has to deliver, without what has ended of it. */
export const deliveriesOf = (job: Job): ReadonlyArray<Claimed> =>
  job instanceof Batch ? job.deliveries : job instanceof Run ? job.deliveries.slice(job.next) : [job]

/** How many deliveries that is. */
export const sizeOf = (job: Job): number =>
  job instanceof Batch ? job.deliveries.length : job instanceof Run ? job.deliveries.length - job.next : 1

/** About how many bytes of payload that is. */
export const bytesOf = (job: Job): number => {
  if (!(job instanceof Batch || job instanceof Run)) return job.payload.length
  let bytes = 0
  for (const { payload } of deliveriesOf(job)) bytes += payload.length
  return bytes
}

/** They were not delivered, or not to the end, and are free again. */
export const released = (claimed: Claimed): Settlement => ({ _tag: "Released", claimed })

/** The jobs that deliveries make that were claimed together, but for those that go into batches. */
export class Runs {
  private readonly byKey = new Map<string, Run>()

  /** Answers with a job that begins with the delivery, or with nothing if it joins one. */
  add(claimed: Claimed): Job | undefined {
    const { partitionKey, tag } = claimed
    if (partitionKey === undefined) return claimed
    const key = `${tag.length} ${tag}${partitionKey}`
    const known = this.byKey.get(key)
    if (known !== undefined) {
      known.deliveries.push(claimed)
      return undefined
    }
    const run = new Run(tag)
    run.deliveries.push(claimed)
    this.byKey.set(key, run)
    return run
  }
}
