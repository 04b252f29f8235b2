/**
 * The first half of the demo: each order is a SQL transaction, and its intents are handled in this process, after the
 * `COMMIT`.
 */
import { SqlEpilogue } from "@epilogue/core"
import { layerDatabase } from "@epilogue/embedded-postgres"
import { Console, Effect, Exit, Layer, Result, Schema } from "effect"
import * as Handlers from "./Handlers.ts"
import * as Input from "./Input.ts"
import { Charge, SendReceipt, SendThanks } from "./Intents.ts"
import * as Printout from "./Printout.ts"
import { Servers } from "./Servers.ts"
import * as Shop from "./Shop.ts"

export const inProcess = Effect.gen(function*() {
  const lines = yield* Input.read
  yield* Console.log(`A shop takes the ${lines.length} orders of packages/examples/data/orders.jsonl\n`)
  const results = yield* Effect.forEach(
    lines,
    (line) => Effect.tap(Shop.take(line), (result) => Console.log(Printout.ofLine(result)))
  )

  const evidence = yield* Shop.gather(results.flatMap(unsentIn))
  const { mail, payments, warehouse } = yield* Servers
  const charges = yield* payments.requests
  const keys = new Set(charges.map(({ key }) => key)).size
  const messages = yield* mail.requests
  const reservations = yield* warehouse.requests
  yield* Console.log(
    `\nPostgreSQL has ${evidence.placed.length} orders. The payment provider got ${charges.length} requests under ${keys} `
      + `idempotency keys,\nsince one answer was lost; the mail server got ${messages.length}, the warehouse `
      + `${reservations.length}.`
  )
  yield* Shop.check(evidence)
  yield* Console.log("They agree: each order was charged once and mailed at most once, and nothing else was.")
})

/** The messages that a checkout has reported as failed. */
const unsentIn = (result: Result.Result<Shop.Taken, unknown>) =>
  Result.isFailure(result) || Exit.isFailure(result.success.exit)
    ? []
    : result.success.exit.value.outcomes.flatMap((outcome) =>
      outcome._tag === "Ran" && Exit.isFailure(outcome.exit) && isMessage(outcome.intent.payload)
        ? [outcome.intent.payload]
        : []
    )
const isMessage = Schema.is(SendReceipt.payloadSchema)

/** The handlers, in this process. */
const Handled = Layer.unwrap(
  Effect.map(Servers, ({ mail, payments }) => Handlers.layer({ mail: mail.url, payments: payments.url }))
)

/** The edge of the application: it says once that a boundary is a transaction, and that its intents are handled here. */
const Engine = SqlEpilogue.layerWith(Charge, SendReceipt, SendThanks).pipe(Layer.provide(Handled))

export const layer = Shop.layer.pipe(
  Layer.provide(Engine),
  Layer.provide(layerDatabase),
  Layer.provideMerge(Servers.layer())
)
