/**
 * How many buffers one claim touches, in a backlog and behind what an old snapshot keeps.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Drain from "./Drain.ts"
import type { Layout } from "./Layout.ts"
import * as Throughput from "./Throughput.ts"

/** Shared buffers that a claim of 500 rows touches. */
export interface Cost {
  /** All rows wait, and nothing was delivered yet. */
  readonly waiting: number
  /** All rows wait, and the statistics say that there are none. */
  readonly unanalyzed: number
  /** Half of the rows were delivered while a snapshot was held; the claim begins where the last one did. */
  readonly behindSnapshot: number
  /** The same, by a claim that begins at the beginning. */
  readonly withoutFloor: number
}

const Explained = Schema.Tuple([
  Schema.Tuple([
    Schema.Struct({ Plan: Schema.Struct({ "Shared Hit Blocks": Schema.Int, "Shared Read Blocks": Schema.Int }) })
  ])
])

/** The buffers of a claim that is then taken back. */
const explain = Effect.fnUntraced(function*(layout: Layout, session: Drain.Session) {
  const { connection } = session
  yield* connection.query("BEGIN")
  const answer = yield* connection.queryValues(
    `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${layout.claim}`,
    Drain.claimParameters(session)
  )
  yield* connection.query("ROLLBACK")
  const [[{ Plan: plan }]] = yield* Schema.decodeUnknownEffect(Explained)(answer[0])
  return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
})

/** Tables of which nobody keeps statistics, but those of when they were empty. */
const fill = Effect.fnUntraced(function*(connection: PgConnection.PgConnection, layout: Layout, rows: number) {
  yield* Drain.create(connection, layout)
  yield* connection.query("VACUUM ANALYZE", [], false)
  yield* Drain.enqueue(connection, layout, { rows, payload: 120 })
})

export const measure = Effect.fnUntraced(function*(url: Redacted.Redacted, layout: Layout, rows: number) {
  const connection = yield* Drain.connect(url)
  const session = Drain.session(connection, 1)
  yield* fill(connection, layout, rows)
  const unanalyzed = yield* explain(layout, session)
  yield* fill(connection, layout, rows)
  yield* connection.query("ANALYZE", [], false)
  const waiting = yield* explain(layout, session)
  yield* fill(connection, layout, rows)
  yield* connection.query("ANALYZE", [], false)
  yield* Throughput.holdSnapshot(url)
  yield* Drain.drain(session, layout, new Drain.Ledger(rows / 2), { floor: true })
  const behindSnapshot = yield* explain(layout, session)
  session.floors.fill(0n)
  const cost: Cost = { waiting, unanalyzed, behindSnapshot, withoutFloor: yield* explain(layout, session) }
  return cost
}, Effect.scoped)

export const head = ["layout", "waiting", "statistics of before", "behind a snapshot", "and without a floor"]

export const row = (
  { name }: Layout,
  { behindSnapshot, unanalyzed, waiting, withoutFloor }: Cost
) => [name, ...[waiting, unanalyzed, behindSnapshot, withoutFloor].map(String)]
