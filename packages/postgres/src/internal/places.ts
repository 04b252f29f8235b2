/**
 * Where the deliveries of a session are.
 */
import type { Claimed, Settlement } from "@epilogue/core/OutboxStore"
import { kinds } from "./sql/names.ts"

/** Where a delivery is: in a queue, and if it has a key, in a lane. */
export class Place {
  readonly intent: string
  readonly queue: number
  /** That of the tag as a whole. */
  readonly tag: number
  readonly id: bigint
  readonly lane: string | undefined
  constructor(intent: string, queue: number, tag: number, id: bigint, lane: string | undefined) {
    this.intent = intent
    this.queue = queue
    this.tag = tag
    this.id = id
    this.lane = lane
  }
}

export const placeOf = ({ id, token }: Claimed): Place => {
  if (token instanceof Place) return token
  throw new Error(`Epilogue: the delivery of intent ${id} was not claimed from a PgOutboxStore`)
}

/** A lane of a tag, as statements are given it. */
export interface Lane {
  readonly tag: number
  readonly lane: string
}

export const hasKey = (place: Place): place is Place & Lane => place.lane !== undefined

/** The parameters that say where rows without a key are. */
export const waitingAt = (session: bigint, places: ReadonlyArray<Place>): ReadonlyArray<unknown> => [
  session,
  places.map(({ queue }) => queue),
  places.map(({ id }) => id)
]

/** The same of rows with a key. */
export const keyedAt = (session: bigint, places: ReadonlyArray<Place>): ReadonlyArray<unknown> => [
  session,
  places.map(({ tag }) => tag),
  places.map(({ lane }) => lane),
  places.map(({ id }) => id)
]

/** The parameters that say what has become of deliveries. */
export const endings = (settlements: ReadonlyArray<Settlement>): ReadonlyArray<unknown> => [
  settlements.map(({ _tag }) => kinds[_tag]),
  settlements.map(delayOf),
  orNulls(settlements.map(failureOf)),
  orNulls(settlements.map((settlement) => settlement._tag === "Dead" ? settlement.reason : undefined))
]

export const isLater = (settlement: Settlement): settlement is Extract<Settlement, { readonly delay: number }> =>
  "delay" in settlement

const delayOf = (settlement: Settlement): bigint =>
  isLater(settlement) ? BigInt(Math.ceil(Math.min(Math.max(settlement.delay, 0), 1e13))) : 0n

const failureOf = (settlement: Settlement): string | undefined =>
  "failure" in settlement ? settlement.failure : undefined

/** PostgreSQL cannot store U+0000 in a text. */
const orNulls = (values: ReadonlyArray<string | undefined>) =>
  values.every((value) => value === undefined)
    ? `{${values.map(() => "NULL").join(",")}}`
    : values.map((value) => value?.replaceAll("\0", "\uFFFD") ?? null)
