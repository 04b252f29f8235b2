/**
 * In which order intents were delivered.
 */
import * as Effect from "effect/Effect"
import type { DurableQueue } from "../DurableContender.ts"
import type { Variant } from "./Variant.ts"

export class Sequence {
  /** How many went before the one that was appended last. */
  before = Number.NaN
  private count = 0
  private disordered = 0
  private readonly latest = new Map<number, number>()
  private readonly variant: Variant

  constructor(variant: Variant) {
    this.variant = variant
  }

  readonly see = (n: number): void => {
    const { keyOf, size } = this.variant
    if (n === size - 1) this.before = this.count
    this.count++
    if (keyOf === undefined) return
    const key = keyOf(n)
    if (n <= (this.latest.get(key) ?? -1)) this.disordered++
    this.latest.set(key, n)
  }

  /** Dies if an intent came after a later one of its key. */
  get verify(): Effect.Effect<void> {
    return Effect.suspend(() =>
      this.disordered === 0
        ? Effect.void
        : Effect.die(
          new Error(`${this.disordered} intents of "${this.variant.name}" came out of the order of their key`)
        )
    )
  }
}

/** The same queue, which tells a sequence of what each of its workers delivers. */
export const watched = (queue: DurableQueue, begin: () => Sequence): DurableQueue => ({
  ...queue,
  work: (handler, concurrency) =>
    Effect.suspend(() => {
      const sequence = begin()
      const receive = (n: number) => {
        sequence.see(n)
        handler.receive(n)
      }
      return queue.work({ ...handler, receive }, concurrency)
    })
})
