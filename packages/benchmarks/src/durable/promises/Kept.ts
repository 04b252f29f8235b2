/**
 * What was delivered long before, and is kept.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Payload from "../Payload.ts"

/** As it would have been left by a steady flow over an hour. Deliveries themselves would take half a minute. */
export const fill = Effect.fnUntraced(function*(count: number) {
  const sql = yield* PgClient
  yield* sql`
    WITH queue AS (INSERT INTO epilogue.queue (tag, version) VALUES ('Noop', 1) RETURNING id)
    INSERT INTO epilogue.delivered (queue, failures, ended_at, enqueued_at, intent, crashes, payload)
    SELECT queue.id, 0, now() - ago, now() - ago, uuidv7(-ago), 0, repeat(md5(n::text), ${Math.ceil(Payload.size / 32)})
    FROM queue, generate_series(${count}::int, 1, -1) AS n, make_interval(secs => 3600.0 * n / ${count}) AS ago
  `
  // Autovacuum would do so within a minute. Whether it comes before the worker or in its midst must not be left to chance.
  yield* sql`VACUUM (ANALYZE) epilogue.delivered`
})
