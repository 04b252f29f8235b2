/**
 * What every intent carries: 120 bytes of JSON that do not compress, with a number to know it by.
 */
import * as Array from "effect/Array"
import * as Schema from "effect/Schema"
import { randomBytes } from "node:crypto"

export const fields = { n: Schema.Int, pad: Schema.String }

export const Payload = Schema.Struct(fields)

export type Payload = typeof Payload.Type

/** Bytes, as JSON. */
export const size = 120

const envelope = JSON.stringify({ n: "", pad: "" }).length - 2

const make = (n: number): Payload => {
  const pad = size - envelope - String(n).length
  return { n, pad: randomBytes(Math.ceil(pad / 2)).toString("hex").slice(0, pad) }
}

/** Payloads with the numbers from `first` on. */
export const many = (count: number, first = 0): ReadonlyArray<Payload> =>
  Array.makeBy(count, (index) => make(first + index))
