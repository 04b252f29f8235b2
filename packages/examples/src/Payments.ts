/**
 * The payment provider, over HTTP.
 */
import { Context, Effect, flow, Layer, Schedule, Schema } from "effect"
import { HttpClient, HttpClientRequest } from "effect/http"

export class PaymentError extends Schema.TaggedError<PaymentError>()("PaymentError", {
  message: Schema.String,
  cause: Schema.Defect()
}) {}

/** What the provider is asked to take, in cents. */
export const Payment = Schema.Struct({ order: Schema.String, amount: Schema.Int })
export type Payment = typeof Payment.Type

export class Payments extends Context.Service<Payments, {
  /** Takes the money once, however often it is asked with the same key. */
  readonly charge: (payment: Payment, key: string) => Effect.Effect<void, PaymentError>
}>()("examples/Payments") {
  static readonly layer = (url: string) =>
    Layer.effect(
      Payments,
      Effect.gen(function*() {
        const client = (yield* HttpClient.HttpClient).pipe(
          HttpClient.mapRequest(flow(HttpClientRequest.prependUrl(url), HttpClientRequest.acceptJson)),
          HttpClient.filterStatusOk,
          // The order is committed, so nothing can be taken back any more: retrying is the business of the intent.
          HttpClient.retryTransient({ schedule: Schedule.exponential("20 millis"), times: 3 })
        )
        const charge = Effect.fn("Payments.charge")(
          function*(payment: Payment, key: string) {
            yield* HttpClientRequest.post("/charges").pipe(
              // When an answer gets lost, nobody knows whether the money was taken. With the same key, the provider takes
              // it once however often it is asked.
              HttpClientRequest.setHeader("Idempotency-Key", key),
              HttpClientRequest.bodyJsonUnsafe(payment),
              client.execute
            )
          },
          Effect.mapError((cause) => new PaymentError({ message: "The payment provider did not charge", cause }))
        )
        return Payments.of({ charge })
      })
    )
}
