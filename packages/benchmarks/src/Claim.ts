/**
 * What is promised of the figures.
 */
import * as Contender from "./Contender.ts"
import type { Memory } from "./Memory.ts"
import * as Spread from "./Spread.ts"
import type { Times } from "./Timing.ts"

export interface Claim {
  readonly text: string
  readonly measured: Spread.Spread
  readonly limit: number
}

export const holds = ({ limit, measured }: Claim): boolean => measured.median <= limit

const few = 10
const hundred = 100
const million = 1_000_000

/** The intents of the boundaries whose memory is compared. */
export const memorySizes = [100_000, million]

export const ofTimes = (times: Times): ReadonlyArray<Claim> => {
  const { array, epilogue } = Contender
  const gross = (size: number) => times(epilogue, size).map((time) => time / size)
  const net = (size: number) => {
    const empty = times(epilogue, 0)
    return times(epilogue, size).map((time, round) => (time - (empty[round] ?? Number.NaN)) / size)
  }
  return [
    {
      text: `A boundary with ${few} intents, against \`${array.name}\``,
      measured: Spread.ofRatios(times(epilogue, few), times(array, few)),
      limit: 1.5
    },
    {
      text: "An intent at 1,000,000, against one at 100: cost(n) / n",
      measured: Spread.ofRatios(gross(million), gross(hundred)),
      limit: 1.5
    },
    {
      text: "The same without what an empty boundary costs: (cost(n) − cost(0)) / n",
      measured: Spread.ofRatios(net(million), net(hundred)),
      limit: 1.5
    }
  ]
}

export const ofMemory = (memory: ReadonlyArray<Memory>): ReadonlyArray<Claim> => {
  const of = (intents: number, figure: (memory: Memory) => number) =>
    memory.filter((each) => each.contender === Contender.epilogue && each.intents === intents).map(figure)
  const [less = 0, more = 0] = memorySizes
  return [
    {
      text: "Memory of a waiting intent at 1,000,000, against one at 100,000",
      measured: Spread.ofRatios(of(more, ({ waiting }) => waiting), of(less, ({ waiting }) => waiting)),
      limit: 1.1
    },
    {
      text: "Stack frames that the last of 1,000,000 intents has more than the first",
      measured: Spread.of(of(more, ({ deeper }) => deeper)),
      limit: 0
    }
  ]
}
