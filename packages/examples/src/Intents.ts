/**
 * What an order asks of the world outside: data, so that it can be stored, and done by another process.
 */
import { Intent } from "@epilogue/core"
import { Schema } from "effect"

export class Charge extends Intent.make("Charge", {
  // In cents.
  payload: { order: Schema.String, amount: Schema.Int }
}) {}

export class SendReceipt extends Intent.make("SendReceipt", {
  payload: { order: Schema.String, to: Schema.String }
}) {}

/** To whoever gave the voucher. */
export class SendThanks extends Intent.make("SendThanks", {
  payload: { order: Schema.String, to: Schema.String, customer: Schema.String }
}) {}
