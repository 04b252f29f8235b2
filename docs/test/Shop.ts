// What the tests of durability share with the processes that they kill: a shop, its intents, and where they are stored.
import { PgClient } from "@effect/sql-pg"
import { Intent, Outbox } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import { Effect, Layer, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"

export class SendReceipt extends Intent.make("SendReceipt", {
  payload: { order: Schema.Int },
  retry: Schedule.spaced("10 millis"),
  maxAttempts: 3
}) {}

/** Inserts an order, as the core of a checkout does. */
export const insertOrder = Effect.fn("insertOrder")(function*(order: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO orders (id) VALUES (${order})`
})

/** The store, and the engine over it. */
export const layerOutbox = Outbox.layer.pipe(Layer.provideMerge(PgOutboxStore.layer()))

/** The tables, for whoever is first. */
export const layerTables = Layer.effectDiscard(Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  yield* sql`CREATE TABLE orders (id int NOT NULL)`
  yield* PgOutboxStore.migrate()
}))
