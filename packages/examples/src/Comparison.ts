/**
 * Compares what the shop has in its database with what the servers outside were asked to do. It takes plain data, so that
 * a test can show it data that differs.
 */
import { Option, Schema } from "effect"
import type { Placed } from "./Orders.ts"
import type { Recorded } from "./Recorder.ts"

export interface Evidence {
  /** The rows of `orders`. */
  readonly placed: ReadonlyArray<Placed>
  /** What each server received, in order. */
  readonly payments: ReadonlyArray<Recorded>
  readonly mail: ReadonlyArray<Recorded>
  readonly warehouse: ReadonlyArray<Recorded>
  /** The messages that a checkout reported as not sent. */
  readonly unsent: ReadonlyArray<{ readonly order: string; readonly to: string }>
}

/** The rows and the requests differ. Each line of the message is a difference. */
export class ComparisonError extends Schema.TaggedError<ComparisonError>()("ComparisonError", {
  message: Schema.String
}) {}

const Charge = Schema.Struct({ order: Schema.String, amount: Schema.Int })
const Message = Schema.Struct({ order: Schema.String, to: Schema.String })

/** Every difference, in words. None means that the world outside agrees with the database. */
export const compare = (evidence: Evidence): ReadonlyArray<string> => [
  ...evidence.placed.flatMap((placed) => [
    ...compareCharge(placed, evidence),
    ...compareMail(placed.number, placed.email, evidence),
    ...(placed.giver === null ? [] : compareMail(placed.number, placed.giver, evidence)),
    ...(isReserved(placed.number, evidence) ? [] : [`${placed.number} is placed, but its goods are not reserved`])
  ]),
  ...findStrangers(evidence)
]

const compareCharge = ({ number, total }: Placed, { payments }: Evidence): ReadonlyArray<string> => {
  const requests = payments.filter(({ idempotencyKey }) => idempotencyKey === number)
  // The provider keeps to one charge for each key: an answer of 201 is a new one, one of 200 repeats the one that it has.
  const charges = requests.filter(({ status }) => status === 201).length
  const amounts = new Set(requests.map(({ body }) => Option.getOrUndefined(decodeCharge(body))?.amount))
  if (!requests.some(({ status }) => isAccepted(status))) return [`${number} is placed, but it was not charged`]
  if (charges > 1) return [`${number} was charged ${charges} times`]
  return amounts.size === 1 && amounts.has(total)
    ? []
    : [`${number} costs ${total} cents, but was charged ${Array.from(amounts).join(" and ")}`]
}

const compareMail = (order: string, to: string, { mail, unsent }: Evidence): ReadonlyArray<string> => {
  const requests = mail.filter(({ body }) => {
    const message = Option.getOrUndefined(decodeMessage(body))
    return message?.order === order && message.to === to
  })
  const sent = requests.filter(({ status }) => isAccepted(status)).length
  const isReported = unsent.some((each) => each.order === order && each.to === to)
  if (sent > 1) return [`${to} was mailed ${sent} times about ${order}`]
  if (sent === 1 && isReported) return [`${to} was mailed about ${order}, but the checkout reported a failure`]
  if (sent === 0 && !isReported) return [`${to} was not mailed about ${order}, and nobody was told`]
  return []
}

/** Requests for which there is no row: an order that was discarded, and went out all the same. */
const findStrangers = ({ mail, payments, placed, warehouse, unsent }: Evidence): ReadonlyArray<string> => {
  const numbers = new Set(placed.map(({ number }) => number))
  const expected = new Set(placed.flatMap(({ email, giver, number }) => [`${number} ${email}`, `${number} ${giver}`]))
  return [
    ...payments.flatMap(({ body, idempotencyKey }) => {
      const charge = Option.getOrUndefined(decodeCharge(body))
      if (charge === undefined || charge.order !== idempotencyKey) {
        return [`A charge came under the key ${idempotencyKey}: ${JSON.stringify(body)}`]
      }
      return numbers.has(charge.order) ? [] : [`${charge.order} was charged, but there is no such order`]
    }),
    ...mail.flatMap(({ body }) => {
      const message = Option.getOrUndefined(decodeMessage(body))
      return message !== undefined && expected.has(`${message.order} ${message.to}`)
        ? []
        : [`A message went out that no order accounts for: ${JSON.stringify(body)}`]
    }),
    ...unsent.flatMap(({ order, to }) =>
      expected.has(`${order} ${to}`)
        ? []
        : [`A message was reported as not sent that no order accounts for: ${order} ${to}`]
    ),
    ...Array.from(new Set(warehouse.map(numberOf))).flatMap((number) =>
      numbers.has(number) || !isReserved(number, { warehouse })
        ? []
        : [`Goods are reserved for ${number}, but there is no such order`]
    )
  ]
}

/** Whether the last that the warehouse heard of an order was a reservation. */
const isReserved = (number: string, { warehouse }: Pick<Evidence, "warehouse">): boolean =>
  warehouse.findLast((each) => numberOf(each) === number)?.method === "PUT"

const numberOf = ({ path }: Recorded): string => path.slice(path.lastIndexOf("/") + 1)
const isAccepted = (status: number | undefined): boolean => status !== undefined && status < 300
const decodeCharge = Schema.decodeUnknownOption(Charge)
const decodeMessage = Schema.decodeUnknownOption(Message)
