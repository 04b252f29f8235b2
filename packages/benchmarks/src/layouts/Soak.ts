/**
 * A layout in steady use, with autovacuum at work as often as it can: once a second.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Spread from "../Spread.ts"
import * as Drain from "./Drain.ts"
import type { Layout } from "./Layout.ts"

export interface Soak {
  /** Intents enqueued, claimed and settled a second. */
  readonly perSecond: number
  /** Bytes of write-ahead log for each, that of autovacuum with it. */
  readonly wal: number
  /** Milliseconds of the slowest claim. */
  readonly slowest: number
  /** Bytes on disk at the end, when the tables are empty. */
  readonly size: number
}

const portion = 5000

const Size = Schema.Tuple([Schema.Tuple([Schema.Finite])])

const once = Effect.fnUntraced(function*(url: Redacted.Redacted, layout: Layout, seconds: number) {
  const connection = yield* Drain.connect(url)
  yield* Drain.create(connection, layout)
  yield* connection.query("CHECKPOINT")
  const session = Drain.session(connection, 1)
  const end = performance.now() + 1000 * seconds
  let rows = 0
  let slowest = 0
  const { perSecond, wal } = yield* Drain.measure(
    connection,
    1,
    Effect.gen(function*() {
      while (performance.now() < end) {
        yield* Drain.enqueue(connection, layout, { rows: portion, payload: 120 })
        slowest = Math.max(
          slowest,
          yield* Drain.drain(session, layout, new Drain.Ledger(portion), { floor: true })
        )
        rows += portion
      }
    })
  )
  const [[size]] = yield* Schema.decodeUnknownEffect(Size)(
    yield* connection.queryValues("SELECT pg_total_relation_size('waiting')::float8")
  )
  const soak: Soak = { perSecond: rows * perSecond, wal: wal / rows, slowest, size }
  return soak
}, Effect.scoped)

const configure = Effect.fnUntraced(function*(url: Redacted.Redacted, statement: string) {
  const connection = yield* Drain.connect(url)
  yield* connection.query(statement, [], false)
  yield* connection.query("SELECT pg_reload_conf()")
}, Effect.scoped)

/** Layouts by turns, `seconds` each. */
export const measure = Effect.fnUntraced(
  function*(url: Redacted.Redacted, layouts: ReadonlyArray<Layout>, rounds: number, seconds: number) {
    yield* Effect.acquireRelease(
      configure(url, "ALTER SYSTEM SET autovacuum_naptime = '1s'"),
      () => Effect.ignore(configure(url, "ALTER SYSTEM RESET autovacuum_naptime"))
    )
    const soaks = new Map(layouts.map((layout) => [layout, new Array<Soak>()]))
    for (let round = 0; round < rounds; round++) {
      for (const [layout, own] of soaks) own.push(yield* once(url, layout, seconds))
    }
    return soaks
  },
  Effect.scoped
)

export const head = ["layout", "intents/s", "WAL", "slowest claim, ms", "MB at the end"]

export const rows = (soaks: ReadonlyMap<Layout, ReadonlyArray<Soak>>): ReadonlyArray<ReadonlyArray<string>> => {
  const [first = []] = soaks.values()
  return Array.from(soaks, ([{ name }, own]) => {
    const of = (figure: (soak: Soak) => number) => Spread.of(own.map(figure)).median
    const { median } = Spread.ofRatios(own.map(({ perSecond }) => perSecond), first.map(({ perSecond }) => perSecond))
    return [
      name,
      `${of(({ perSecond }) => perSecond).toFixed(0)} (${median.toFixed(2)})`,
      of(({ wal }) => wal).toFixed(0),
      of(({ slowest }) => slowest).toFixed(0),
      of(({ size }) => size / 1e6).toFixed(1)
    ]
  })
}
