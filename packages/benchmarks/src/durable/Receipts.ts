/**
 * Knows how often each intent was delivered.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"

export class Receipts {
  readonly expected: number
  received = 0
  private repeated = 0
  private readonly seen: Uint8Array
  private readonly all = Latch.makeUnsafe()
  private endedAt = process.hrtime.bigint()

  constructor(expected: number) {
    this.expected = expected
    this.seen = new Uint8Array(expected)
  }

  readonly receive = (n: number): void => {
    if (this.seen[n] !== 0) {
      this.repeated++
      return
    }
    this.seen[n] = 1
    if (++this.received < this.expected) return
    this.endedAt = process.hrtime.bigint()
    // Not before the handler that called this has returned: one that is stopped while it runs is not acknowledged.
    setImmediate(() => this.all.openUnsafe())
  }

  /** Waits until every intent was delivered once, and answers with the time at which the last one was. */
  readonly complete: Effect.Effect<bigint> = Effect.andThen(this.all.await, Effect.sync(() => this.endedAt))

  /**
   * Dies unless every intent was delivered once, or none twice and the others still wait. A queue may take a moment to
   * acknowledge the last ones.
   */
  verify(waiting: Effect.Effect<number, unknown>): Effect.Effect<void, unknown> {
    return waiting.pipe(
      Effect.flatMap((left) => this.agree(left) ? Effect.void : Effect.fail(this.disagreement(left))),
      Effect.retry({ times: 20, schedule: Schedule.spaced("50 millis") })
    )
  }

  private agree(left: number): boolean {
    const missing = this.expected - this.received
    // What was cut short may have ended without being acknowledged.
    return this.repeated === 0 && (missing === 0 ? left === 0 : left >= missing)
  }

  private disagreement(left: number): Error {
    return new Error(`Of ${this.expected} intents, ${this.received} ran, ${this.repeated} again, and ${left} are left`)
  }
}
