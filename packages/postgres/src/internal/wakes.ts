/**
 * How a session learns that something may be due.
 */
import type { Session } from "@epilogue/core/OutboxStore"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"

/** No timer is set for longer than that, in milliseconds. */
const longest = 86_400_000

export class Wakes {
  private readonly changed = Latch.makeUnsafe()
  private readonly now: () => number
  // What was there before counts.
  private isWoken = true
  private dueAt = Infinity
  /** Whether something has become due that is not where it can be claimed. */
  private isPast = true

  constructor(now: () => number) {
    this.now = now
  }

  get isDue(): boolean {
    return this.isPast || this.dueAt <= this.now()
  }

  /** Something may be there. */
  wake(): void {
    this.isWoken = true
    this.changed.openUnsafe()
  }

  /** Something is due. */
  due(): void {
    this.isPast = true
  }

  /** Something is due in so many milliseconds. */
  dueIn(milliseconds: number): void {
    const at = this.now() + Math.max(0, Math.ceil(milliseconds)) + 1
    if (at < this.dueAt) {
      this.dueAt = at
      this.changed.openUnsafe()
    }
  }

  /** What is due is looked for now. */
  look(): void {
    this.isPast = false
    this.dueAt = Infinity
  }

  readonly await: Session["wakes"] = Effect.suspend(() => {
    if (this.dueAt <= this.now()) {
      this.dueAt = Infinity
      this.isPast = true
      this.isWoken = true
    }
    if (this.isWoken) {
      this.isWoken = false
      return Effect.void
    }
    this.changed.closeUnsafe()
    const rest = this.dueAt - this.now()
    const waits = rest === Infinity
      ? this.changed.await
      : Effect.ignore(Effect.timeout(this.changed.await, Math.min(rest, longest)))
    return Effect.andThen(waits, this.await)
  })
}
