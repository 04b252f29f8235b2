/**
 * The mail server, over HTTP.
 */
import { Context, Effect, Layer, Schema } from "effect"
import { HttpClient, HttpClientRequest } from "effect/http"

export class MailError extends Schema.TaggedError<MailError>()("MailError", {
  message: Schema.String
}) {}

/** The server knows nobody of this name, and never will. */
export class UnknownMailbox extends Schema.TaggedError<UnknownMailbox>()("UnknownMailbox", {
  message: Schema.String
}) {}

export const Message = Schema.Struct({ order: Schema.String, to: Schema.String, subject: Schema.String })
export type Message = typeof Message.Type

export class Mail extends Context.Service<Mail, {
  /** Sends a message once, however often it is asked with the same key. */
  readonly send: (message: Message, key: string) => Effect.Effect<void, MailError | UnknownMailbox>
}>()("examples/Mail") {
  static readonly layer = (url: string) =>
    Layer.effect(
      Mail,
      Effect.gen(function*() {
        const client = (yield* HttpClient.HttpClient).pipe(HttpClient.mapRequest(HttpClientRequest.prependUrl(url)))
        const send = Effect.fn("Mail.send")(
          function*(message: Message, key: string) {
            const response = yield* HttpClientRequest.post("/messages").pipe(
              HttpClientRequest.setHeader("Idempotency-Key", key),
              HttpClientRequest.bodyJsonUnsafe(message),
              client.execute
            )
            if (response.status === 422) return yield* new UnknownMailbox({ message: yield* response.text })
            if (response.status >= 300) return yield* new MailError({ message: yield* response.text })
          },
          Effect.catchTag("HttpClientError", ({ message }) => new MailError({ message }))
        )
        return Mail.of({ send })
      })
    )
}
