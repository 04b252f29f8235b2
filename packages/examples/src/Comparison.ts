/**
 * Compares what the shop has in its database with what the servers outside have done. It takes plain data, so that a test
 * can show it data that differs.
 */
import { Schema } from "effect"
import type { Message } from "./Mail.ts"
import type { Placed } from "./Orders.ts"
import type { Payment } from "./Payments.ts"
import type { Recorded } from "./Recorder.ts"

export interface Evidence {
  /** The rows of `orders`. */
  readonly placed: ReadonlyArray<Placed>
  /** What the payment provider has taken. */
  readonly payments: ReadonlyArray<Payment>
  /** What the mail server has delivered. */
  readonly mail: ReadonlyArray<Addressed>
  /** The messages that the shop knows of as not sent. */
  readonly unsent: ReadonlyArray<Addressed>
  /** What the warehouse was asked, in order. */
  readonly warehouse: ReadonlyArray<Pick<Recorded, "method" | "path">>
}

type Addressed = Pick<Message, "order" | "to">

/** The rows and the world outside differ. Each line of the message is a difference. */
export class ComparisonError extends Schema.TaggedError<ComparisonError>()("ComparisonError", {
  message: Schema.String
}) {}

/** Every difference, in words. None means that the world outside agrees with the database. */
export const compare = (evidence: Evidence): ReadonlyArray<string> => [
  ...findMissing(evidence),
  ...evidence.placed.flatMap((placed) => findRepeated(placed, evidence)),
  ...findStrangers(evidence)
]

/** What is yet to be done for the orders that are placed. */
const findMissing = ({ mail, payments, placed, unsent, warehouse }: Evidence): ReadonlyArray<string> =>
  placed.flatMap((each) => [
    ...payments.some(({ order }) => order === each.number) ? [] : [`${each.number} is placed, but it was not charged`],
    ...recipientsOf(each)
      .filter((expected) => !mail.concat(unsent).some(isSame(expected)))
      .map(({ order, to }) => `${to} was not mailed about ${order}, and nobody was told`),
    ...isReserved(each.number, warehouse) ? [] : [`${each.number} is placed, but its goods are not reserved`]
  ])

const findRepeated = (placed: Placed, { mail, payments, unsent }: Evidence): ReadonlyArray<string> => {
  const { number, total } = placed
  const amounts = payments.filter(({ order }) => order === number).map(({ amount }) => amount)
  return [
    ...amounts.length > 1 ? [`${number} was charged ${amounts.length} times`] : [],
    ...amounts.filter((amount) => amount !== total)
      .map((amount) => `${number} costs ${total} cents, but was charged ${amount}`),
    ...recipientsOf(placed).flatMap(({ order, to }) => {
      const sent = mail.filter(isSame({ order, to })).length
      const isKnown = unsent.some(isSame({ order, to }))
      if (sent > 1) return [`${to} was mailed ${sent} times about ${order}`]
      return sent === 1 && isKnown ? [`${to} was mailed about ${order}, but the shop knows of a failure`] : []
    })
  ]
}

/** What there is no row for: an order that was discarded, and went out all the same. */
const findStrangers = ({ mail, payments, placed, unsent, warehouse }: Evidence): ReadonlyArray<string> => {
  const numbers = new Set(placed.map(({ number }) => number))
  const expected = placed.flatMap(recipientsOf)
  const isStrange = (message: Addressed) => !expected.some(isSame(message))
  return [
    ...payments.filter(({ order }) => !numbers.has(order))
      .map(({ order }) => `${order} was charged, but there is no such order`),
    ...mail.filter(isStrange).map(({ order, to }) =>
      `${to} was mailed about ${order}, which accounts for no such mail`
    ),
    ...unsent.filter(isStrange)
      .map(({ order, to }) => `A message to ${to} is known as not sent, but ${order} accounts for no such mail`),
    ...Array.from(new Set(warehouse.map(numberOf)))
      .filter((number) => !numbers.has(number) && isReserved(number, warehouse))
      .map((number) => `Goods are reserved for ${number}, but there is no such order`)
  ]
}

/** Who is to hear of an order. */
const recipientsOf = ({ email, giver, number }: Placed): ReadonlyArray<Addressed> =>
  (giver === null ? [email] : [email, giver]).map((to) => ({ order: number, to }))

const isSame = (one: Addressed) => (other: Addressed): boolean => one.order === other.order && one.to === other.to

/** Whether the last that the warehouse heard of an order was a reservation. */
const isReserved = (number: string, warehouse: Evidence["warehouse"]): boolean =>
  warehouse.findLast((each) => numberOf(each) === number)?.method === "PUT"

const numberOf = ({ path }: Pick<Recorded, "path">): string => path.slice(path.lastIndexOf("/") + 1)
