/**
 * How much is measured of what promises cost.
 */
export interface PromisesSettings {
  /** How often each variant has its turn. */
  readonly rounds: number
  /** How many intents wait for a worker. */
  readonly size: number
  /** How many wait where all of them have one key. */
  readonly sizeOfKey: number
  /** How many were delivered before and are kept. */
  readonly kept: number
  /** How many wait beside them that nobody delivers, a multiple of a thousand. */
  readonly unclaimed: number
}
