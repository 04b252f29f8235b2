/**
 * Makes intents, and knows whether each of them ran exactly once in each boundary.
 */
import * as Effect from "effect/Effect"
import type { Core } from "./Contender.ts"

export class Ledger {
  readonly intents: number
  /** For each intent, in how many boundaries it has run. */
  private readonly runs: Uint32Array
  private boundaries = 0
  private mistakes = 0

  constructor(intents: number) {
    this.intents = intents
    this.runs = new Uint32Array(intents)
  }

  /** An effect that notices, as it runs, whether it ran in each boundary before this one, and not yet in this one. */
  intent(index: number): Effect.Effect<void> {
    return Effect.sync(() => {
      if (this.runs[index] !== this.boundaries) this.mistakes++
      this.runs[index] = this.boundaries + 1
    })
  }

  /** A core that registers every intent. */
  readonly core: Core = (register) => {
    const { intents } = this
    const intent = (index: number) => this.intent(index)
    return Effect.gen(function*() {
      for (let index = 0; index < intents; index++) yield* register(intent(index))
    })
  }

  /** To be called when a boundary has returned: its intents have run, or never will. */
  boundaryEnded(): void {
    this.boundaries++
  }

  /** Dies unless every intent ran exactly once in every boundary. */
  verify(who: string): Effect.Effect<void> {
    return Effect.suspend(() => {
      const missing = this.runs.reduce((count, runs) => runs === this.boundaries ? count : count + 1, 0)
      return this.mistakes + missing === 0
        ? Effect.void
        : Effect.die(new Error(`${who}: of ${this.intents} intents, not all ran exactly once in each boundary`))
    })
  }
}
