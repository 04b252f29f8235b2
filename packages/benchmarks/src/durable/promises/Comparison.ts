/**
 * A variant, by turns with one that does without what it asks for.
 */
import * as Effect from "effect/Effect"
import * as Spread from "../../Spread.ts"
import * as Rounds from "../Rounds.ts"
import * as Turn from "../Turn.ts"
import * as Cost from "./Cost.ts"
import type { Variant } from "./Variant.ts"

export interface Comparison {
  readonly variant: Variant
  readonly without: Variant
  readonly samples: Rounds.Samples<Cost.Cost, Variant>
}

const concurrency = 10

export const measure = Effect.fnUntraced(function*(variant: Variant, without: Variant, rounds: number) {
  const samples = yield* Rounds.measure(
    `With ${variant.name}`,
    [without, variant],
    rounds,
    (each) =>
      Turn.take(each, concurrency, (queue) => Cost.measure(each, queue, { concurrency, takes: 0, limit: "2 minutes" }))
  )
  return { variant, without, samples } satisfies Comparison
})

/** A figure of the variant, times that of the one without, round by round. */
export const times = (
  { samples, variant, without }: Comparison,
  figure: (cost: Cost.Cost) => number
): Spread.Spread => Spread.ofRatios(samples(variant).map(figure), samples(without).map(figure))

/** What a figure of the variant comes to. */
export const of = ({ samples, variant }: Comparison, figure: (cost: Cost.Cost) => number): Spread.Spread =>
  Spread.of(samples(variant).map(figure))
