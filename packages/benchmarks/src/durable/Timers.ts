/**
 * What handlers that only wait come to where nothing else is done.
 */
import * as Effect from "effect/Effect"
import type { Options } from "./Drain.ts"

/** How many go off in a second. */
export const measure = Effect.fnUntraced(function*({ concurrency, expected, takes }: Options) {
  const start = process.hrtime.bigint()
  let left = expected
  const fiber = Effect.whileLoop({
    while: () => left-- > 0,
    body: () => Effect.sleep(takes),
    step: () => undefined
  })
  yield* Effect.all(Array.from({ length: concurrency }, () => fiber), { concurrency: "unbounded", discard: true })
  return expected / (Number(process.hrtime.bigint() - start) / 1e9)
})
