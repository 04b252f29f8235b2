/**
 * What a boundary with many intents holds on to.
 */
import * as Effect from "effect/Effect"
import * as Contender from "./Contender.ts"
import * as Heap from "./Heap.ts"
import { Ledger } from "./Ledger.ts"

export interface Memory {
  readonly contender: Contender.Contender
  readonly intents: number
  /** Bytes an intent, when all are registered and none has run. */
  readonly waiting: number
  /** Bytes an intent, while the last one runs. */
  readonly ending: number
  /** Bytes in all, when the boundary has returned. */
  readonly left: number
  /** How many stack frames the last intent has below it more than the first one. */
  readonly deeper: number
}

const stackDepth = Effect.sync(() => {
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = Number.POSITIVE_INFINITY
  const frames = new Error("never thrown").stack?.split("\n").length ?? 0
  Error.stackTraceLimit = limit
  return frames
})

export const measure = Effect.fnUntraced(function*(contender: Contender.Contender, intents: number) {
  const ledger = new Ledger(intents)
  const depths: Array<number> = []
  let waiting = 0
  let ending = 0

  const probe = (index: number) =>
    Effect.gen(function*() {
      yield* ledger.intent(index)
      depths.push(yield* stackDepth)
      if (index > 0) ending = yield* Heap.used
    })
  const core: Contender.Core = (register) =>
    Effect.gen(function*() {
      yield* register(probe(0))
      for (let index = 1; index < intents - 1; index++) yield* register(ledger.intent(index))
      yield* register(probe(intents - 1))
      waiting = yield* Heap.used
    })

  const before = yield* Heap.used
  yield* contender.run(core)
  const left = yield* Heap.used
  ledger.boundaryEnded()
  yield* ledger.verify(contender.name)
  return {
    contender,
    intents,
    waiting: (waiting - before) / intents,
    ending: (ending - before) / intents,
    left: left - before,
    deeper: (depths[1] ?? Number.NaN) - (depths[0] ?? Number.NaN)
  } satisfies Memory
}, (measurement, contender) => Contender.provide(contender)(measurement))
