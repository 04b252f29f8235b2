/**
 * What is done about each intent, in whatever process.
 */
import { Intent } from "@epilogue/core"
import { Effect, Layer } from "effect"
import { FetchHttpClient } from "effect/http"
import { Charge, SendReceipt, SendThanks } from "./Intents.ts"
import { Mail, type Message } from "./Mail.ts"
import { Payments } from "./Payments.ts"

// A delivery is repeated when nobody knows whether it was made. Its id stays the same, so the servers know it again.

const ChargeHandler = Charge.toLayer(
  Effect.fn("Charge")(function*(charge, { id }) {
    const payments = yield* Payments
    yield* payments.charge(charge, id)
  })
)

const SendReceiptHandler = SendReceipt.toLayer(({ order, to }, { id }) =>
  send({ order, to, subject: `Your order ${order}` }, id)
)

const SendThanksHandler = SendThanks.toLayer(({ customer, order, to }, { id }) =>
  send({ order, to, subject: `${customer} has used your gift` }, id)
)

const send = Effect.fn("send")(
  function*(message: Message, key: string) {
    const mail = yield* Mail
    yield* mail.send(message, key)
  },
  // Trying again helps against a server that is down. Against an address that is wrong, nothing does.
  Effect.catchTag("UnknownMailbox", ({ message }) => Intent.reject(message))
)

/** The handlers, for servers at these addresses. */
export const layer = (urls: { readonly payments: string; readonly mail: string }) =>
  Layer.mergeAll(ChargeHandler, SendReceiptHandler, SendThanksHandler).pipe(
    Layer.provide([Payments.layer(urls.payments), Mail.layer(urls.mail)]),
    Layer.provide(FetchHttpClient.layer)
  )
