/**
 * The tables of the shop. Nothing in this file knows of boundaries: it uses the `SqlClient`, and inside a boundary of
 * `SqlEpilogue.layer` that is the boundary's transaction.
 */
import { Context, Effect, Layer, Schema } from "effect"
import { SqlClient, type SqlError, SqlSchema } from "effect/sql"
import type { Order } from "./Order.ts"

export class UnknownProduct extends Schema.TaggedError<UnknownProduct>()("UnknownProduct", {
  message: Schema.String
}) {}

export class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", {
  message: Schema.String
}) {}

export class DuplicateOrder extends Schema.TaggedError<DuplicateOrder>()("DuplicateOrder", {
  message: Schema.String
}) {}

export class VoucherUsedUp extends Schema.TaggedError<VoucherUsedUp>()("VoucherUsedUp", {
  message: Schema.String
}) {}

/** A row of `orders`: an order that was placed. */
export const Placed = Schema.Struct({
  number: Schema.String,
  email: Schema.String,
  total: Schema.Int,
  /** Who gave the voucher that it was paid with, if there was one. */
  giver: Schema.NullOr(Schema.String)
})
export type Placed = typeof Placed.Type

const Voucher = Schema.Struct({ code: Schema.String, amount: Schema.Int, giver: Schema.String })
const Product = Schema.Struct({ price: Schema.Int })

export class Orders extends Context.Service<Orders, {
  /** What the goods cost, in cents. */
  readonly quote: (order: Order) => Effect.Effect<number, UnknownProduct>
  readonly voucher: (code: string) => Effect.Effect<typeof Voucher.Type, VoucherUsedUp>
  readonly redeem: (code: string) => Effect.Effect<void, VoucherUsedUp>
  readonly place: (order: Order, total: number, voucher: string | null) => Effect.Effect<void, DuplicateOrder>
  readonly takeStock: (order: Order) => Effect.Effect<void, OutOfStock>
  readonly all: Effect.Effect<ReadonlyArray<Placed>>
}>()("examples/Orders") {
  static readonly layer = Layer.effect(
    Orders,
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* createTables(sql)

      const findProduct = SqlSchema.findOne({
        Request: Schema.String,
        Result: Product,
        execute: (sku) => sql`SELECT price FROM products WHERE sku = ${sku}`
      })
      const findVoucher = SqlSchema.findOne({
        Request: Schema.String,
        Result: Voucher,
        execute: (code) => sql`SELECT code, amount, giver FROM vouchers WHERE code = ${code}`
      })
      const findPlaced = SqlSchema.findAll({
        Request: Schema.Void,
        Result: Placed,
        execute: () =>
          sql`
          SELECT number, email, total, giver FROM orders LEFT JOIN vouchers ON voucher = code ORDER BY number
        `
      })

      const quote = Effect.fn("Orders.quote")(
        function*(order: Order) {
          const { price } = yield* findProduct(order.sku)
          return price * order.quantity
        },
        Effect.catchTags({
          NoSuchElementError: () => new UnknownProduct({ message: "There is no such product" }),
          SchemaError: Effect.die,
          SqlError: Effect.die
        })
      )

      const voucher = Effect.fn("Orders.voucher")(
        (code: string) => findVoucher(code),
        Effect.catchTags({
          NoSuchElementError: () => new VoucherUsedUp({ message: "There is no such voucher" }),
          SchemaError: Effect.die,
          SqlError: Effect.die
        })
      )

      const redeem = Effect.fn("Orders.redeem")(
        (code: string) => Effect.asVoid(sql`UPDATE vouchers SET uses_left = uses_left - 1 WHERE code = ${code}`),
        Effect.catchReason("SqlError", "ConstraintError", (reason) => new VoucherUsedUp({ message: describe(reason) })),
        Effect.catchTag("SqlError", Effect.die)
      )

      const place = Effect.fn("Orders.place")(
        ({ email, number, slot }: Order, total: number, code: string | null) =>
          Effect.asVoid(sql`INSERT INTO orders ${sql.insert({ number, email, total, slot, voucher: code })}`),
        Effect.catchReason(
          "SqlError",
          "UniqueViolation",
          (reason) => new DuplicateOrder({ message: describe(reason) })
        ),
        Effect.catchTag("SqlError", Effect.die)
      )

      const takeStock = Effect.fn("Orders.takeStock")(
        ({ quantity, sku }: Order) =>
          Effect.asVoid(sql`UPDATE products SET stock = stock - ${quantity} WHERE sku = ${sku}`),
        Effect.catchReason("SqlError", "ConstraintError", (reason) => new OutOfStock({ message: describe(reason) })),
        Effect.catchTag("SqlError", Effect.die)
      )

      return Orders.of({ quote, voucher, redeem, place, takeStock, all: Effect.orDie(findPlaced()) })
    })
  )
}

/** What PostgreSQL itself says of a violated constraint. */
const describe = ({ cause, message }: SqlError.ConstraintError | SqlError.UniqueViolation): string =>
  cause instanceof Error ? cause.message : message

const createTables = Effect.fn("Orders.createTables")(function*(sql: SqlClient.SqlClient) {
  yield* sql`
    CREATE TABLE products (
      sku text PRIMARY KEY,
      price integer NOT NULL,
      stock integer NOT NULL CONSTRAINT stock_not_negative CHECK (stock >= 0)
    )
  `
  yield* sql`
    CREATE TABLE vouchers (
      code text PRIMARY KEY,
      amount integer NOT NULL,
      giver text NOT NULL,
      uses_left integer NOT NULL CONSTRAINT uses_not_negative CHECK (uses_left >= 0)
    )
  `
  yield* sql`CREATE TABLE slots (slot text PRIMARY KEY)`
  // Deferred: PostgreSQL looks at the slot when the transaction commits, and not before.
  yield* sql`
    CREATE TABLE orders (
      number text PRIMARY KEY,
      email text NOT NULL,
      total integer NOT NULL,
      voucher text REFERENCES vouchers,
      slot text NOT NULL CONSTRAINT slot_exists REFERENCES slots DEFERRABLE INITIALLY DEFERRED
    )
  `
  yield* sql`INSERT INTO products ${
    sql.insert([
      { sku: "COFFEE-1KG", price: 1890, stock: 50 },
      { sku: "MUG-BLUE", price: 950, stock: 24 },
      { sku: "GRINDER", price: 8900, stock: 5 },
      { sku: "TEAPOT-ANTIQUE", price: 14500, stock: 1 }
    ])
  }`
  yield* sql`INSERT INTO vouchers ${
    sql.insert({ code: "GRANDMA-25", amount: 2500, giver: "grandma@example.pt", uses_left: 1 })
  }`
  yield* sql`INSERT INTO slots ${sql.insert([{ slot: "tue-am" }, { slot: "wed-pm" }])}`
})
