/**
 * The checkout of a shop: the one file here that is about the library.
 */
import { Epilogue } from "@epilogue/core"
import { Effect } from "effect"
import { Charge, SendReceipt, SendThanks } from "./Intents.ts"
import type { Order } from "./Order.ts"
import { Orders } from "./Orders.ts"
import { Warehouse } from "./Warehouse.ts"

/**
 * Takes an order.
 *
 * `Epilogue.report` makes each call a boundary, as `Epilogue.atomic` does, and answers with what became of each intent. In
 * both halves of the demo a boundary is a SQL transaction: what is deferred happens after its `COMMIT`, and if anything
 * goes wrong before, the rows and what was deferred are gone together. Who does it, where, and whether it survives a crash,
 * is not known here: the layer at the edge says so.
 */
export const checkout = Effect.fn("checkout")(function*(order: Order) {
  const orders = yield* Orders
  const warehouse = yield* Warehouse

  const price = yield* orders.quote(order)
  const voucher = order.voucher === undefined ? undefined : yield* redeem(order, order.voucher).pipe(
    // A voucher that is used up is no reason to lose the order. All that the savepoint did is gone, and nothing else is.
    Effect.catchTag("VoucherUsedUp", () => Effect.undefined)
  )
  const total = Math.max(0, price - (voucher?.amount ?? 0))

  // Here the amount is known, so here it is said what happens if the order comes to be. Whether it does is not known yet,
  // and need not be: no line below has to remember to charge nobody.
  yield* Charge.defer({ order: order.number, amount: total })
  yield* SendReceipt.defer({ order: order.number, to: order.email })

  yield* orders.place(order, total, voucher?.code ?? null)

  // The warehouse decides whether there can be an order, so it has to be asked inside the boundary. No ROLLBACK reaches
  // it: the hook does. It comes first, for an interruption may hit the request when it is already under way.
  yield* Epilogue.deferRollback(warehouse.release(order))
  yield* warehouse.reserve(order)

  yield* orders.takeStock(order)
  return { number: order.number, total }
}, Epilogue.report)

/** A boundary inside the boundary. If it fails, its own intents and rows are discarded. */
const redeem = Effect.fn("redeem")(function*(order: Order, code: string) {
  const orders = yield* Orders
  const voucher = yield* orders.voucher(code)
  yield* SendThanks.defer({ order: order.number, to: voucher.giver, customer: order.customer })
  yield* orders.redeem(code)
  return voucher
}, Epilogue.savepoint)
