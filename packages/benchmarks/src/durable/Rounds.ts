/**
 * Lets contenders take turns, so that whatever slows the machine down slows all of them down.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type { DurableContender } from "./DurableContender.ts"

/** What was measured of a contender, one value a round. */
export type Samples<A, C extends DurableContender = DurableContender> = (contender: C) => ReadonlyArray<A>

/** Measures each contender once a round. What goes on is told on standard error. */
export const measure = Effect.fnUntraced(function*<A, E, R, C extends DurableContender = DurableContender>(
  what: string,
  contenders: ReadonlyArray<C>,
  rounds: number,
  turn: (contender: C) => Effect.Effect<A, E, R>
) {
  const taken = new Map(contenders.map((contender) => [contender, new Array<A>()]))
  for (let round = 1; round <= rounds; round++) {
    // Back and forth, so that nobody has the same one before it every time.
    for (const [contender, values] of round % 2 === 1 ? taken : Array.from(taken).toReversed()) {
      yield* Console.error(`${what}, round ${round} of ${rounds}: ${contender.name}`)
      values.push(yield* turn(contender))
    }
  }
  const samples: Samples<A, C> = (contender) => taken.get(contender) ?? []
  return samples
})
