/**
 * Times contenders by turns, by the wall clock, so that whatever slows the machine down slows all of them down.
 */
import * as Effect from "effect/Effect"
import * as Contender from "./Contender.ts"
import * as Heap from "./Heap.ts"
import { Ledger } from "./Ledger.ts"

export interface Settings {
  /** How many intents a boundary has. */
  readonly sizes: ReadonlyArray<number>
  /** How often each contender has its turn at each size. One more turn goes before, and does not count. */
  readonly rounds: number
  /** How many milliseconds a turn of `array` takes at least. The others do as many boundaries in theirs. */
  readonly turn: number
}

/** The nanoseconds of a boundary, one number a round, for a contender at a size. */
export type Times = (contender: Contender.Contender, size: number) => ReadonlyArray<number>

/** Does `boundaries` of them one after the other, and answers with the nanoseconds of one. */
const turn = Effect.fnUntraced(function*(contender: Contender.Contender, intents: number, boundaries: number) {
  const ledger = new Ledger(intents)
  let left = boundaries
  yield* Heap.collectYoung
  const start = process.hrtime.bigint()
  yield* Effect.whileLoop({
    while: () => left-- > 0,
    body: () => contender.run(ledger.core),
    step: () => ledger.boundaryEnded()
  })
  const nanoseconds = Number(process.hrtime.bigint() - start)
  yield* ledger.verify(contender.name)
  // Nobody pays for what another one has left behind.
  if (intents >= 10_000) yield* Heap.collectGarbage
  return nanoseconds / boundaries
}, (measurement, contender) => Contender.provide(contender)(measurement))

/** How many boundaries of `array` take `milliseconds`. */
const boundariesIn = Effect.fnUntraced(function*(milliseconds: number, intents: number) {
  let boundaries = 1
  while (true) {
    const time = (yield* turn(Contender.array, intents, boundaries)) * boundaries / 1e6
    if (time >= milliseconds) return boundaries
    boundaries = Math.ceil(boundaries * Math.min(10, 1.2 * milliseconds / time))
  }
})

export const measure = Effect.fnUntraced(function*({ rounds, sizes, turn: milliseconds }: Settings) {
  const turns = sizes.flatMap((size) =>
    Contender.all.map((contender) => ({ contender, size, nanoseconds: new Array<number>() }))
  )
  const boundaries = new Map<number, number>()
  for (const size of sizes) boundaries.set(size, yield* boundariesIn(milliseconds, size))

  // Those that use SQL come last: what the engine has compiled for a context with a transaction in it is slower for all.
  for (const group of [Contender.inMemory, Contender.inSql]) {
    const own = turns.filter(({ contender }) => group.includes(contender))
    for (let round = 0; round <= rounds; round++) {
      // Back and forth, so that nobody has the same one before it every time.
      for (const { contender, nanoseconds, size } of round % 2 === 0 ? own : own.toReversed()) {
        const time = yield* turn(contender, size, boundaries.get(size) ?? 1)
        if (round > 0) nanoseconds.push(time)
      }
    }
  }

  const times: Times = (contender, size) =>
    turns.find((each) => each.contender === contender && each.size === size)?.nanoseconds ?? []
  return times
})
