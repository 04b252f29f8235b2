/**
 * What repeated measurements come to.
 */
export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

export const of = (values: ReadonlyArray<number>): Spread => {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (index: number) => sorted[index] ?? Number.NaN
  const middle = (sorted.length - 1) / 2
  return {
    median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2,
    min: at(0),
    max: at(sorted.length - 1)
  }
}

/** The spread of `a / b`, where those stand beside one another that were measured one after the other. */
export const ofRatios = (a: ReadonlyArray<number>, b: ReadonlyArray<number>): Spread =>
  of(a.map((value, round) => value / (b[round] ?? Number.NaN)))
