/**
 * From where on a claim looks at a queue.
 *
 * Before the rows that wait there may be many that are deleted and not cleaned up yet, and looking at these takes time. So
 * claims begin where rows were found last. Those before it are found when that was all, and from time to time.
 */

/** How far back a claim looks. */
export type Reach = "newest" | "recent" | "everything"

/** As often as this a claim looks at everything, in milliseconds, and as often as this if it has found nothing else. */
const sweepEvery = 5_000
const sweepAgain = 250

/** A position may be committed this much later, in milliseconds, than those that came after it, and is found nevertheless. */
export const lag = 1_000

export class Floors {
  private readonly newest = new Map<number, bigint>()
  private next = new Map<number, bigint>()
  private recent = new Map<number, bigint>()
  private turnedAt = -Infinity
  private sweptAt = -Infinity

  see(queue: number, lowest: bigint): void {
    this.newest.set(queue, lowest)
  }

  /** Lets the next claim look at everything: something has become free. */
  sweep(): void {
    this.sweptAt = -Infinity
  }

  isSweepDue(now: number): boolean {
    return now - this.sweptAt >= sweepEvery
  }

  canSweep(now: number): boolean {
    return now - this.sweptAt >= sweepAgain
  }

  from(queues: ReadonlyArray<number>, reach: Reach, now: number): ReadonlyArray<bigint> {
    if (now - this.turnedAt >= lag) {
      this.turnedAt = now
      this.recent = this.next
      this.next = new Map(this.newest)
    }
    if (reach === "everything") {
      this.sweptAt = now
      return queues.map(() => 0n)
    }
    const floors = reach === "newest" ? this.newest : this.recent
    return queues.map((queue) => floors.get(queue) ?? 0n)
  }
}
