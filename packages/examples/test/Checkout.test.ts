import { assert, it } from "@effect/vitest"
import { TestEpilogue } from "@epilogue/core"
import { Effect, Layer } from "effect"
import { checkout } from "../src/Checkout.ts"
import { Mail } from "../src/Mail.ts"
import { Order } from "../src/Order.ts"
import { Orders, OutOfStock, VoucherUsedUp } from "../src/Orders.ts"
import { Payments } from "../src/Payments.ts"
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

/** A shop without a database and without HTTP. `done` is what was done outside of it. */
const makeShop = (orders: Partial<Orders["Service"]> = {}) => {
  const done: Array<string> = []
  const say = (line: string) => Effect.sync(() => void done.push(line))
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
    Layer.mock(Payments, { charge: ({ amount }) => say(`charge ${amount}`) }),
    Layer.mock(Mail, { send: ({ to }) => say(`mail ${to}`) }),
    Layer.mock(Warehouse, { reserve: () => say("reserve"), release: () => say("release") })
  )
  return { done, layer }
}

const statuses = Effect.map(TestEpilogue.intents, (intents) => intents.map(({ name, status }) => `${name}: ${status}`))

it.effect("a checkout commits its intents in order, and runs none of them itself", () => {
  const { done, layer } = makeShop()
  return Effect.gen(function*() {
    const { value } = yield* checkout(order)
    assert.deepStrictEqual(value, { number: "A-1", total: 650 })
    assert.deepStrictEqual(yield* statuses, ["thanks: committed", "charge: committed", "receipt: committed"])
    assert.deepStrictEqual(done, ["reserve"])
    yield* TestEpilogue.run
    assert.deepStrictEqual(done, ["reserve", "mail gran@example.org", "charge 650", "mail ada@example.org"])
  }).pipe(Effect.provide(layer))
})

it.effect("a checkout that fails discards them, and releases the goods", () => {
  const { done, layer } = makeShop({ takeStock: () => new OutOfStock({ message: "none left" }) })
  return Effect.gen(function*() {
    const error = yield* Effect.flip(checkout(order))
    assert.strictEqual(error._tag, "OutOfStock")
    assert.deepStrictEqual(yield* statuses, ["thanks: discarded", "charge: discarded", "receipt: discarded"])
    yield* TestEpilogue.run
    assert.deepStrictEqual(done, ["reserve", "release"])
  }).pipe(Effect.provide(layer))
})

it.effect("a voucher that is used up costs the order its discount, and the giver hears nothing", () => {
  const { layer } = makeShop({ redeem: () => new VoucherUsedUp({ message: "used up" }) })
  return Effect.gen(function*() {
    const { value } = yield* checkout(order)
    assert.strictEqual(value.total, 900)
    assert.deepStrictEqual(yield* statuses, ["thanks: discarded", "charge: committed", "receipt: committed"])
  }).pipe(Effect.provide(layer))
})
