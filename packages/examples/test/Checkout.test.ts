import { assert, it } from "@effect/vitest"
import { TestEpilogue } from "@epilogue/core"
import { Effect, Layer } from "effect"
import { checkout } from "../src/Checkout.ts"
import { Charge, SendReceipt, SendThanks } from "../src/Intents.ts"
import { Order } from "../src/Order.ts"
import { Orders, OutOfStock, VoucherUsedUp } from "../src/Orders.ts"
import { Warehouse } from "../src/Warehouse.ts"

const order = new Order({
  number: "A-1",
  customer: "Ada",
  email: "ada@example.org",
  sku: "MUG",
  quantity: 1,
  slot: "tue-am",
  voucher: "GIFT"
})

/** A shop without a database and without HTTP. `asked` is what the warehouse was asked. */
const makeShop = (orders: Partial<Orders["Service"]> = {}) => {
  const asked: Array<string> = []
  const ask = (what: string) => Effect.sync(() => void asked.push(what))
  const layer = Layer.mergeAll(
    TestEpilogue.layer,
    Layer.mock(Orders, {
      quote: () => Effect.succeed(900),
      voucher: (code) => Effect.succeed({ code, amount: 250, giver: "gran@example.org" }),
      redeem: () => Effect.void,
      place: () => Effect.void,
      takeStock: () => Effect.void,
      ...orders
    }),
    Layer.mock(Warehouse, { reserve: () => ask("reserve"), release: () => ask("release") })
  )
  return { asked, layer }
}

const statuses = Effect.map(TestEpilogue.intents, (intents) => intents.map(({ name, status }) => `${name}: ${status}`))

it.effect("a checkout commits its intents in order", () => {
  const { asked, layer } = makeShop()
  return Effect.gen(function*() {
    const { value } = yield* checkout(order)
    assert.deepStrictEqual(value, { number: "A-1", total: 650 })
    assert.deepStrictEqual(yield* statuses, ["SendThanks: committed", "Charge: committed", "SendReceipt: committed"])
    assert.deepStrictEqual(yield* TestEpilogue.payloads(Charge), [{ order: "A-1", amount: 650 }])
    assert.deepStrictEqual(yield* TestEpilogue.payloads(SendReceipt), [{ order: "A-1", to: "ada@example.org" }])
    assert.deepStrictEqual(yield* TestEpilogue.payloads(SendThanks), [
      { order: "A-1", to: "gran@example.org", customer: "Ada" }
    ])
    assert.deepStrictEqual(asked, ["reserve"])
  }).pipe(Effect.provide(layer))
})

it.effect("a checkout that fails discards them, and releases the goods", () => {
  const { asked, layer } = makeShop({ takeStock: () => new OutOfStock({ message: "none left" }) })
  return Effect.gen(function*() {
    const error = yield* Effect.flip(checkout(order))
    assert.strictEqual(error._tag, "OutOfStock")
    assert.deepStrictEqual(yield* statuses, ["SendThanks: discarded", "Charge: discarded", "SendReceipt: discarded"])
    assert.deepStrictEqual(asked, ["reserve", "release"])
  }).pipe(Effect.provide(layer))
})

it.effect("a voucher that is used up costs the order its discount, and the giver hears nothing", () => {
  const { layer } = makeShop({ redeem: () => new VoucherUsedUp({ message: "used up" }) })
  return Effect.gen(function*() {
    yield* checkout(order)
    assert.deepStrictEqual(yield* TestEpilogue.payloads(Charge), [{ order: "A-1", amount: 900 }])
    assert.deepStrictEqual(yield* TestEpilogue.payloads(SendThanks), [])
  }).pipe(Effect.provide(layer))
})
