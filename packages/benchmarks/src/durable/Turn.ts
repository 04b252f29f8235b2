/**
 * A contender's turn: a measurement in a database of its own, which is made for it and dropped after it.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Heap from "../Heap.ts"
import { Database, type DurableContender, type DurableQueue } from "./DurableContender.ts"

/** As many as graphile-worker advises: two more than what runs at once, and at least ten. */
const connectionsFor = (concurrency: number) => Math.max(10, concurrency + 2)

export const layer = (url: Redacted.Redacted, concurrency: number) => {
  const connections = connectionsFor(concurrency)
  return Layer.merge(
    Layer.succeed(Database, { url, connections }),
    PgClient.layer({ url, maxConnections: connections })
  )
}

/** Measures what a contender does when `concurrency` fibers or handlers run at once. */
export const take = Effect.fnUntraced(
  function*<A, E, R>(
    contender: DurableContender,
    concurrency: number,
    measurement: (queue: DurableQueue) => Effect.Effect<A, E, R>
  ) {
    const { createDatabase } = yield* EmbeddedPostgres.EmbeddedPostgres
    const url = yield* createDatabase()
    return yield* contender.open.pipe(
      // Nobody pays for what another one has left behind.
      Effect.tap(PgClient.PgClient.use((sql) => sql`CHECKPOINT`)),
      Effect.tap(Heap.collectGarbage),
      Effect.flatMap(measurement),
      Effect.provide(layer(url, concurrency))
    )
  },
  Effect.scoped,
  (turn, contender) => Effect.annotateLogs(turn, "contender", contender.name)
)
