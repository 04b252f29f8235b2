/**
 * Layouts by turns: how many intents a second, and how much write-ahead log for each.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Spread from "../Spread.ts"
import * as Drain from "./Drain.ts"
import type { Layout } from "./Layout.ts"

export interface Turn {
  readonly enqueued: Drain.Phase
  readonly drained: Drain.Phase
  /** Microseconds of the server's processor time to claim and settle an intent. */
  readonly processor: number
}

export interface Settings extends Drain.Work, Drain.Options {
  /** Whether a transaction elsewhere keeps a snapshot from before all of it. */
  readonly snapshot: boolean
  readonly rounds: number
}

export type Turns = ReadonlyMap<Layout, ReadonlyArray<Turn>>

/** A snapshot that is held until the scope closes. */
export const holdSnapshot = Effect.fnUntraced(function*(url: Redacted.Redacted) {
  const connection = yield* Drain.connect(url)
  yield* connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ")
  yield* connection.query("SELECT 1")
})

const turn = Effect.fnUntraced(function*(url: Redacted.Redacted, layout: Layout, settings: Settings) {
  const connection = yield* Drain.connect(url)
  yield* Drain.create(connection, layout)
  // So that no layout pays for the whole pages that another one has left to be logged.
  yield* connection.query("CHECKPOINT")
  if (settings.snapshot) yield* holdSnapshot(url)
  const enqueued = yield* Drain.measure(connection, settings.rows, Drain.enqueue(connection, layout, settings))
  yield* connection.query("ANALYZE", [], false)
  const ledger = new Drain.Ledger(settings.rows)
  const sessions = yield* Effect.forEach(
    Array.from({ length: settings.workers }, (_, index) => index + 1),
    (number) => Effect.map(Drain.connect(url), (own) => Drain.session(own, number))
  )
  const drained = yield* Drain.measure(
    connection,
    settings.rows,
    Effect.forEach(sessions, (session) => Drain.drain(session, layout, ledger, settings), {
      concurrency: "unbounded",
      discard: true
    })
  )
  const times = yield* Effect.forEach(sessions, (session) => Drain.processor(session.connection))
  const processor = 1000 * times.reduce((sum, time) => sum + time, 0) / settings.rows
  const result: Turn = { enqueued, drained, processor }
  return result
}, Effect.scoped)

export const measure = Effect.fnUntraced(function*(
  url: Redacted.Redacted,
  layouts: ReadonlyArray<Layout>,
  settings: Settings
) {
  const turns = new Map(layouts.map((layout) => [layout, new Array<Turn>()]))
  for (let round = 0; round < settings.rounds; round++) {
    // Each round begins with another one, since the first has a cold start.
    const first = Math.floor(round * layouts.length / settings.rounds)
    for (const layout of [...layouts.slice(first), ...layouts.slice(0, first)]) {
      turns.get(layout)?.push(yield* turn(url, layout, settings))
    }
  }
  return turns
})

const count = (value: number) => value.toLocaleString("en-US", { maximumFractionDigits: 0 })

/** Rows of a report: medians, and their ratio to those of the first layout, round by round. */
export const rows = (turns: Turns): ReadonlyArray<ReadonlyArray<string>> => {
  const [first = []] = turns.values()
  return Array.from(turns, ([{ name }, own]) => {
    const rates = (phase: "drained" | "enqueued") => {
      const perSecond = (all: ReadonlyArray<Turn>) => all.map((each) => each[phase].perSecond)
      const { median } = Spread.ofRatios(perSecond(own), perSecond(first))
      return `${count(Spread.of(perSecond(own)).median)} (${median.toFixed(2)})`
    }
    const wal = (phase: "drained" | "enqueued") => Spread.of(own.map((each) => each[phase].wal)).median
    const both = Spread.of(own.map(({ drained, enqueued }) => drained.wal + enqueued.wal)).median
    const processor = Spread.of(own.map((each) => each.processor)).median.toFixed(1)
    return [
      name,
      rates("enqueued"),
      rates("drained"),
      processor,
      count(wal("enqueued")),
      count(wal("drained")),
      count(both)
    ]
  })
}

export const head = ["layout", "enqueued/s", "drained/s", "server µs", "WAL: enqueue", "claim and settle", "in all"]
