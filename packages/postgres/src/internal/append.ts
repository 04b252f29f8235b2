/**
 * How envelopes become the parameters of a statement.
 */
import type { Appended, Envelope } from "@epilogue/core/IntentSink"
import { digestOf } from "./sql/names.ts"

/** About how many bytes of payload one statement carries. */
const maxBytes = 8 * 2 ** 20

/** An envelope, the queue it goes to, that of its tag as a whole, and where it was among those that were given. */
export interface Placed {
  readonly envelope: Envelope
  readonly queue: number
  readonly tag: number
  readonly index: number
}

/**
 * A statement for some envelopes.
 */
export interface Batch {
  readonly placed: ReadonlyArray<Placed>
  /** Whether any of them is delayed or has a key. */
  readonly isKeyed: boolean
  readonly params: ReadonlyArray<string>
}

/** Sets those aside whose idempotency key is that of an earlier one: each with the place of the first. */
export const duplicatesIn = (envelopes: ReadonlyArray<Envelope>): ReadonlyMap<number, number> => {
  const firsts = new Map<string, number>()
  const duplicates = new Map<number, number>()
  for (const [index, { idempotencyKey, tag }] of envelopes.entries()) {
    if (idempotencyKey === undefined) continue
    const key = JSON.stringify([tag, idempotencyKey])
    const first = firsts.get(key)
    if (first === undefined) firsts.set(key, index)
    else duplicates.set(index, first)
  }
  return duplicates
}

/** Cuts what is placed into statements. */
export const batchesOf = (placed: ReadonlyArray<Placed>): ReadonlyArray<Batch> => {
  const batches: Array<Batch> = []
  let batch: Array<Placed> = []
  let bytes = 0
  for (const each of placed) {
    const size = Buffer.byteLength(each.envelope.payload)
    if (batch.length > 0 && bytes + size > maxBytes) {
      batches.push(batchOf(batch))
      batch = []
      bytes = 0
    }
    batch.push(each)
    bytes += size
  }
  if (batch.length > 0) batches.push(batchOf(batch))
  return batches
}

const batchOf = (placed: ReadonlyArray<Placed>): Batch => {
  const isKeyed = placed.some(({ envelope: { delay, idempotencyKey, partitionKey, runAt } }) =>
    delay !== undefined || runAt !== undefined || idempotencyKey !== undefined || partitionKey !== undefined
  )
  const column = (value: (envelope: Envelope) => string | number | undefined) =>
    arrayOf(placed.map(({ envelope }) => value(envelope)))
  const params = [
    arrayOf(placed.map(({ queue }) => queue)),
    column(({ id }) => id),
    column(({ traceparent }) => traceparent),
    column(({ payload }) => payload)
  ]
  return {
    placed,
    isKeyed,
    params: isKeyed
      ? [
        ...params,
        column(({ idempotencyKey, tag }) => idempotencyKey === undefined ? undefined : digestOf(tag, idempotencyKey)),
        column(({ remember }) => clamp(remember)),
        column(({ delay }) => delay === undefined ? undefined : clamp(delay)),
        column(({ runAt }) => runAt === undefined ? undefined : clamp(runAt)),
        arrayOf(placed.map(({ envelope, tag }) => envelope.partitionKey === undefined ? undefined : tag)),
        column(({ partitionKey, tag }) => partitionKey === undefined ? undefined : digestOf(tag, partitionKey)),
        column(({ partitionKey }) => partitionKey)
      ]
      : params
  }
}

/** A few hundred years are enough for anybody, and more than that is too much for an interval. */
const clamp = (milliseconds: number): number => Math.min(Math.max(milliseconds, -1e13), 1e13)

/**
 * An array as PostgreSQL writes it. As text it is read the same way whatever the user's client does to values of its type.
 */
export const arrayOf = (values: ReadonlyArray<string | number | undefined>): string =>
  `{${values.map((value) => typeof value === "string" ? quote(value) : value ?? "NULL").join(",")}}`

const quote = (value: string): string => `"${value.replaceAll(/["\\]/g, "\\$&")}"`

/**
 * What to answer: for each of a batch the id that its key stands for, if it has one, for duplicates that of the first; and once,
 * what names the transaction.
 */
export const answer = (
  envelopes: ReadonlyArray<Envelope>,
  known: ReadonlyMap<number, string>,
  duplicates: ReadonlyMap<number, number>,
  transaction: string | undefined
): ReadonlyArray<Appended> =>
  envelopes.map(({ id }, index) => {
    const told = index === 0 ? { transaction } : {}
    const first = duplicates.get(index)
    if (first !== undefined) return { id: known.get(first) ?? envelopes[first]?.id ?? id, duplicate: true, ...told }
    const found = known.get(index) ?? id.toLowerCase()
    const duplicate = found !== id.toLowerCase()
    return { id: duplicate ? found : id, duplicate, ...told }
  })
