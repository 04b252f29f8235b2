/**
 * Enqueues intents in a layout and drains them again, by the wall clock and by what went into the write-ahead log.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type { SqlError } from "effect/sql/SqlError"
import { randomBytes, randomUUID } from "node:crypto"
import { existsSync, readFileSync } from "node:fs"
import type { Layout } from "./Layout.ts"

export interface Work {
  readonly rows: number
  /** Bytes of a payload. */
  readonly payload: number
  readonly workers: number
}

export interface Options {
  /** Whether a claim starts at the lowest id of the one before, as long as that one was full. */
  readonly floor: boolean
}

/** What one session has in hand. */
export interface Session {
  readonly connection: PgConnection.PgConnection
  readonly number: bigint
  readonly floors: Array<bigint>
}

export interface Phase {
  readonly perSecond: number
  /** Bytes of write-ahead log for each intent. */
  readonly wal: number
}

const queues = [1, 2, 3, 4]
const batch = 500
const quotas = queues.map(() => batch / queues.length)
const chunk = 1000

/** A connection that finds the tables of the layout under their plain names. */
export const connect = (url: Redacted.Redacted) =>
  PgConnection.make({ url, startupParameters: { search_path: "layout" } })

/** Tables with nothing in them. */
export const create = Effect.fnUntraced(function*(connection: PgConnection.PgConnection, layout: Layout) {
  for (const statement of ["DROP SCHEMA IF EXISTS layout CASCADE", "CREATE SCHEMA layout", ...layout.tables]) {
    yield* connection.query(statement, [], false)
  }
})

export const session = (connection: PgConnection.PgConnection, number: number): Session => ({
  connection,
  number: BigInt(number),
  floors: queues.map(() => 0n)
})

export const claimParameters = ({ floors, number }: Session) => [queues, floors, quotas, number]

const position = (connection: PgConnection.PgConnection) =>
  Effect.map(
    connection.queryValues("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"),
    ([row]) => Number(row?.[0])
  )

/** Milliseconds of processor time that the server has spent on a connection, or nothing where one cannot look. */
export const processor = ({ processId }: PgConnection.PgConnection) =>
  Effect.sync(() => {
    const path = `/proc/${processId}/stat`
    if (!existsSync(path)) return Number.NaN
    // In the unit that Linux shows to programs, a hundredth of a second.
    const fields = readFileSync(path, "utf8").split(" ")
    return 10 * (Number(fields[13]) + Number(fields[14]))
  })

/** How fast something goes for `rows` intents, and what it writes. */
export const measure = Effect.fnUntraced(function*<E, R>(
  connection: PgConnection.PgConnection,
  rows: number,
  work: Effect.Effect<void, E, R>
) {
  const before = yield* position(connection)
  const start = process.hrtime.bigint()
  yield* work
  const seconds = Number(process.hrtime.bigint() - start) / 1e9
  const phase: Phase = { perSecond: rows / seconds, wal: ((yield* position(connection)) - before) / rows }
  return phase
})

/** Adds intents to all queues by turns. */
export const enqueue = Effect.fnUntraced(function*(
  connection: PgConnection.PgConnection,
  layout: Layout,
  { payload, rows }: Omit<Work, "workers">
) {
  const parameters = [
    Array.from({ length: chunk }, (_, index) => queues[index % queues.length]),
    Array.from({ length: chunk }, () => randomUUID()),
    Array.from({ length: chunk }, () => randomBytes(payload).toString("base64url").slice(0, payload))
  ]
  for (let row = 0; row < rows; row += chunk) yield* connection.query(layout.enqueue, parameters)
})

/** The intents that are drained, and which of them have been. */
export class Ledger {
  readonly rows: number
  private readonly done = new Set<bigint>()

  constructor(rows: number) {
    this.rows = rows
  }

  get complete(): boolean {
    return this.done.size >= this.rows
  }

  settle(ids: ReadonlyArray<bigint>, found: number): Effect.Effect<void> {
    const before = this.done.size
    for (const id of ids) this.done.add(id)
    return found === ids.length && this.done.size === before + ids.length
      ? Effect.void
      : Effect.die(new Error(`Of ${ids.length} intents that were claimed, not all were settled exactly once`))
  }
}

const isDeadlock = ({ reason }: SqlError) => reason._tag === "DeadlockError"

/** Sets the floor of each queue to the lowest of its ids. */
const raise = (
  floors: Array<bigint>,
  rows: ReadonlyArray<ReadonlyArray<unknown>>,
  ids: ReadonlyArray<bigint>
): void => {
  const lowest = new Map<unknown, bigint>()
  ids.forEach((id, index) => {
    const queue = rows[index]?.[0]
    if (id < (lowest.get(queue) ?? id + 1n)) lowest.set(queue, id)
  })
  queues.forEach((queue, index) => {
    floors[index] = lowest.get(queue) ?? floors[index] ?? 0n
  })
}

/** Claims and settles until the ledger is complete. Answers with the milliseconds of the slowest claim. */
export const drain = Effect.fnUntraced(function*(
  { connection, floors, number }: Session,
  layout: Layout,
  ledger: Ledger,
  options: Options
) {
  const query = (statement: string, parameters: ReadonlyArray<unknown>) =>
    Effect.retry(connection.queryValues(statement, parameters), { while: isDeadlock })
  let slowest = 0
  while (!ledger.complete) {
    const start = process.hrtime.bigint()
    const rows = yield* query(layout.claim, claimParameters({ connection, floors, number }))
    slowest = Math.max(slowest, Number(process.hrtime.bigint() - start) / 1e6)
    const ids = rows.map(([, id]) => BigInt(String(id)))
    if (ids.length < batch || !options.floor) floors.fill(0n)
    else raise(floors, rows, ids)
    // Others may be about to give up what they have locked.
    if (ids.length === 0) yield* Effect.sleep(1)
    else {
      const found = yield* query(layout.settle, [rows.map(([queue]) => queue), ids, number])
      yield* ledger.settle(ids, found.length)
    }
  }
  return slowest
})
