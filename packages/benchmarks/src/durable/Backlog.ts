/**
 * Intents that wait, and a worker that starts.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Drain from "./Drain.ts"
import type { DurableQueue } from "./DurableContender.ts"
import * as Payload from "./Payload.ts"
import * as Query from "./Query.ts"

export interface Backlog extends Drain.Drained {
  /** How many were registered a second, in transactions with a thousand each. */
  readonly registered: number
  /** Bytes of write-ahead log for an intent, from its being registered to its being acknowledged. */
  readonly wal: number
}

const rehearsal = 100

export const measure = Effect.fnUntraced(function*(queue: DurableQueue, options: Drain.Options) {
  const sql = yield* PgClient
  const position = Query.figure(sql`SELECT (pg_current_wal_insert_lsn() - '0/0')::float8 AS figure`)
  // What is touched for the first time after a checkpoint is logged as a whole page, which is no matter of intents.
  yield* queue.bulk(Payload.many(rehearsal))
  yield* Drain.verify(queue, rehearsal)
  const before = yield* position
  const start = process.hrtime.bigint()
  yield* Drain.fill(queue, options.expected)
  const registered = options.expected / (Number(process.hrtime.bigint() - start) / 1e9)
  const filled = yield* position
  // Autovacuum would do so within a minute. Whether it comes before the worker or in its midst must not be left to chance.
  yield* sql`ANALYZE`
  const analyzed = yield* position
  const drained = yield* Drain.drain(queue, options)
  const after = yield* position
  const wal = (filled - before) / options.expected + (after - analyzed) / (options.expected * drained.part)
  return { ...drained, registered, wal } satisfies Backlog
})
