/**
 * An order, as the shop's web page sends it.
 */
import { Schema } from "effect"

export class Order extends Schema.Class<Order>("Order")({
  number: Schema.NonEmptyString,
  customer: Schema.NonEmptyString,
  email: Schema.NonEmptyString,
  sku: Schema.NonEmptyString,
  quantity: Schema.Int.check(Schema.isGreaterThan(0)),
  /** When it is to be delivered. */
  slot: Schema.NonEmptyString,
  /** The code of a gift voucher. */
  voucher: Schema.optionalKey(Schema.NonEmptyString),
  /** The customer changes his mind while the checkout runs. */
  cancels: Schema.optionalKey(Schema.Boolean)
}) {}

/** Amounts are in cents, so that none of them is ever rounded. */
export const euros = (cents: number): string => `${(cents / 100).toFixed(2)} EUR`
