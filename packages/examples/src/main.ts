/**
 * The demo: a shop takes the orders of a file, with a real PostgreSQL, a payment provider, a mail server and a warehouse.
 * Begin to read at `Checkout.ts`.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { type Epilogue, SqlEpilogue } from "@epilogue/core"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { Console, Effect, Exit, Fiber, Latch, Layer, Result, Schema } from "effect"
import { FetchHttpClient } from "effect/http"
import { join } from "node:path"
import { checkout } from "./Checkout.ts"
import { compare, ComparisonError } from "./Comparison.ts"
import * as Input from "./Input.ts"
import { Journal } from "./Journal.ts"
import { Mail, Message } from "./Mail.ts"
import type { Order } from "./Order.ts"
import { Orders } from "./Orders.ts"
import { Payments } from "./Payments.ts"
import * as Printout from "./Printout.ts"
import { Servers } from "./Servers.ts"
import { Warehouse } from "./Warehouse.ts"

/** Lets a customer check out. One who cancels goes while the warehouse searches, and his fiber is interrupted. */
const serve = Effect.fn("serve")(function*(order: Order) {
  const { searching } = yield* Servers
  const fiber = yield* Effect.forkChild(checkout(order))
  if (order.cancels === true) {
    yield* Latch.await(searching)
    yield* Fiber.interrupt(fiber)
  }
  return yield* Fiber.await(fiber)
})

/** Takes one order, prints what came of it, and answers with the messages that were not sent. */
const take = Effect.fn("take")(function*(line: number, order: Order) {
  const journal = yield* Journal
  const { warehouse } = yield* Servers
  const before = (yield* warehouse.requests).length
  const exit = yield* serve(order)
  const requests = (yield* warehouse.requests).slice(before)
  const discarded = yield* journal.takeDiscarded
  const isReleased = requests.some(({ method }) => method === "DELETE")
  yield* Console.log(Printout.taken({ line, order, exit, discarded, isReleased }))
  return Exit.isSuccess(exit) ? exit.value.outcomes.flatMap(unsent) : []
})

const isMessage = Schema.is(Message)

const unsent = (outcome: Epilogue.Outcome): ReadonlyArray<Message> =>
  outcome._tag === "Ran" && Exit.isFailure(outcome.exit) && isMessage(outcome.intent.payload)
    ? [outcome.intent.payload]
    : []

const demo = Effect.gen(function*() {
  const lines = yield* Input.read(join(import.meta.dirname, "../data/orders.jsonl"))
  yield* Console.log(`A shop takes the ${lines.length} orders of packages/examples/data/orders.jsonl\n`)
  const notSent = yield* Effect.forEach(lines, ({ line, order }) =>
    Result.match(order, {
      onFailure: (error) => Effect.as(Console.log(Printout.malformed(error)), []),
      onSuccess: (valid) => take(line, valid)
    }))

  const servers = yield* Servers
  const evidence = {
    placed: yield* Effect.flatMap(Orders, (orders) => orders.all),
    payments: yield* servers.payments.requests,
    mail: yield* servers.mail.requests,
    warehouse: yield* servers.warehouse.requests,
    unsent: notSent.flat()
  }
  const { mail, payments, placed, warehouse } = evidence
  const keys = new Set(payments.map(({ idempotencyKey }) => idempotencyKey))
  yield* Console.log(
    `\nPostgreSQL has ${placed.length} orders. The payment provider got ${payments.length} requests under ${keys.size} `
      + `idempotency keys,\nsince one answer was lost; the mail server got ${mail.length}, the warehouse ${warehouse.length}.`
  )
  const differences = compare(evidence)
  if (differences.length > 0) return yield* new ComparisonError({ message: differences.join("\n") })
  yield* Console.log("They agree: each order was charged once and mailed at most once, and nothing else was.")
})

/** The services of the shop. */
const Clients = Layer.unwrap(
  Effect.map(
    Servers,
    ({ mail, payments, warehouse }) =>
      Layer.mergeAll(Payments.layer(payments.url), Mail.layer(mail.url), Warehouse.layer(warehouse.url))
  )
).pipe(Layer.provide(FetchHttpClient.layer))

/** The edge of the application: it says once that a boundary is a transaction of this database. */
const Live = Layer.mergeAll(Journal.layer, Orders.layer, Clients).pipe(
  Layer.provide(SqlEpilogue.layer),
  Layer.provide(EmbeddedPostgres.layerDatabase),
  Layer.provide(EmbeddedPostgres.layer),
  Layer.provideMerge(Layer.mergeAll(Servers.layer, NodeServices.layer))
)

NodeRuntime.runMain(Effect.provide(demo, Live))
