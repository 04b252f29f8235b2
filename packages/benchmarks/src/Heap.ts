/**
 * The heap of this process, to be asked only when nothing is left to collect.
 */
import * as Effect from "effect/Effect"

const collect = (type: "minor" | "major"): Effect.Effect<void> =>
  Effect.sync(() => {
    if (globalThis.gc === undefined) {
      throw new Error("The benchmark collects garbage between measurements: run node with --expose-gc")
    }
    globalThis.gc({ type, execution: "sync" })
  })

export const collectGarbage: Effect.Effect<void> = collect("major")

/** Empties the nursery. What V8 has learned about the code stays, part of which a whole collection throws away. */
export const collectYoung: Effect.Effect<void> = collect("minor")

/** Bytes that are in use. */
export const used: Effect.Effect<number> = Effect.map(collectGarbage, () => process.memoryUsage().heapUsed)
