/**
 * What the database itself takes: bare statements by one client, and nothing of what makes a queue. A batch is deleted in a
 * transaction that stays open while its handlers run.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { DurableContender } from "../DurableContender.ts"
import { Payload } from "../Payload.ts"
import * as Query from "../Query.ts"

const batch = 1_000

const decode = Schema.decodeUnknownEffect(
  Schema.Array(Schema.Struct({ payload: Schema.fromJsonString(Payload) }))
)

export const bareSql: DurableContender = {
  name: "bare SQL",
  open: Effect.gen(function*() {
    const sql = yield* PgClient
    yield* sql`CREATE TABLE intents (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL)`
    const insert = (intents: ReadonlyArray<Payload>) =>
      sql`INSERT INTO intents (payload) SELECT unnest(${intents.map((payload) => JSON.stringify(payload))}::text[])`
    const take = sql`
      DELETE FROM intents
      WHERE id = ANY (ARRAY (SELECT id FROM intents ORDER BY id LIMIT ${batch} FOR UPDATE SKIP LOCKED))
      RETURNING payload
    `
    return {
      transaction: (core, intents) => sql.withTransaction(Effect.andThen(core, insert(intents))),
      bulk: insert,
      work: ({ receive, takes }, concurrency) =>
        take.pipe(
          Effect.flatMap(decode),
          Effect.flatMap((rows) =>
            Effect.forEach(rows, ({ payload }) =>
              Effect.andThen(
                takes === 0 ? Effect.void : Effect.sleep(takes),
                Effect.sync(() => receive(payload.n))
              ), { concurrency, discard: true })
          ),
          sql.withTransaction,
          Effect.uninterruptible,
          Effect.forever,
          Effect.forkScoped
        ),
      waiting: Query.figure(sql`SELECT count(*)::int AS figure FROM intents`)
    }
  })
}
