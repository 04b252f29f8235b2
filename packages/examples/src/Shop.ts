/**
 * Takes the orders of the file, and gathers the evidence of what came of them.
 */
import type { Epilogue } from "@epilogue/core"
import { Effect, type Exit, Fiber, Latch, Layer } from "effect"
import { FetchHttpClient } from "effect/http"
import { checkout } from "./Checkout.ts"
import { compare, ComparisonError, type Evidence } from "./Comparison.ts"
import type { Line } from "./Input.ts"
import { Journal } from "./Journal.ts"
import type { Order } from "./Order.ts"
import { Orders } from "./Orders.ts"
import { Servers } from "./Servers.ts"
import { Warehouse } from "./Warehouse.ts"

/** One order, and all that came of it. */
export interface Taken {
  readonly line: number
  readonly order: Order
  readonly exit: Exit.Exit<Epilogue.Report<{ readonly total: number }>, unknown>
  readonly discarded: ReadonlyArray<Epilogue.Intent>
  /** Whether the rollback hook has reached the warehouse. */
  readonly isReleased: boolean
}

/** Takes the order of one line. Answers with all that came of it, or with why the line is no order. */
export const take = Effect.fn("take")(function*({ line, order: read }: Line) {
  const order = yield* Effect.fromResult(read)
  const journal = yield* Journal
  const { warehouse } = yield* Servers
  const before = (yield* warehouse.requests).length
  const exit = yield* serve(order)
  const requests = (yield* warehouse.requests).slice(before)
  const discarded = yield* journal.takeDiscarded
  const isReleased = requests.some(({ method }) => method === "DELETE")
  return { line, order, exit, discarded, isReleased } satisfies Taken
}, Effect.result)

/** Lets a customer check out. One who cancels goes while the warehouse searches, and his fiber is interrupted. */
const serve = Effect.fn("serve")(function*(order: Order) {
  const { warehouse } = yield* Servers
  const fiber = yield* Effect.forkChild(checkout(order))
  if (order.cancels === true) {
    yield* Latch.await(warehouse.searching)
    yield* Fiber.interrupt(fiber)
  }
  return yield* Fiber.await(fiber)
})

/** What the shop and the world outside have to show. `unsent` are the messages that the shop knows of as not sent. */
export const gather = Effect.fn("gather")(function*(unsent: Evidence["unsent"]) {
  const { all } = yield* Orders
  const { mail, payments, warehouse } = yield* Servers
  return {
    placed: yield* all,
    payments: yield* payments.taken,
    mail: yield* mail.delivered,
    warehouse: yield* warehouse.requests,
    unsent
  } satisfies Evidence
})

/** Fails with every difference there is. */
export const check = (evidence: Evidence): Effect.Effect<void, ComparisonError> => {
  const differences = compare(evidence)
  return differences.length === 0 ? Effect.void : Effect.fail(new ComparisonError({ message: differences.join("\n") }))
}

/** The services of the shop, on a fresh database. Its engine is yet to be provided. */
export const layer = Layer.mergeAll(
  Journal.layer,
  Orders.layer,
  Layer.unwrap(Effect.map(Servers, ({ warehouse }) => Warehouse.layer(warehouse.url)))
).pipe(Layer.provide(FetchHttpClient.layer))
