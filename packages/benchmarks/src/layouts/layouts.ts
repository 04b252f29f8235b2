/**
 * The command: `node packages/benchmarks/src/layouts/layouts.ts`.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import * as Postgres from "@epilogue/embedded-postgres"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { table } from "../Table.ts"
import * as ClaimCost from "./ClaimCost.ts"
import * as Layout from "./Layout.ts"
import * as Soak from "./Soak.ts"
import * as Throughput from "./Throughput.ts"

const half = "fillfactor = 45"
const often = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000"

/** What could keep the intents. Ratios are to the first. */
const candidates = [
  Layout.inRow(half),
  Layout.inRow("fillfactor = 60"),
  Layout.inRow("fillfactor = 80"),
  Layout.inRow("fillfactor = 100"),
  Layout.besideOneAtATime,
  Layout.move,
  Layout.state,
  Layout.batch,
  Layout.none
]

/** The first, in other ways; and the one that deadlocks, which nobody wants to wait for at 200,000. */
const variants = [
  Layout.inRow(half),
  Layout.inRowPacked(half),
  Layout.inRowOneAtATime(half),
  Layout.inRowListed(half),
  Layout.inRowPerQueue(half),
  Layout.inRowFree(half),
  Layout.inRowJoined(half),
  Layout.beside
]

const snapshotted = [
  Layout.inRow(half),
  Layout.inRow("fillfactor = 100"),
  Layout.besideOneAtATime,
  Layout.move,
  Layout.state
]

const vacuumed = [
  Layout.inRow(half),
  Layout.inRow(`${half}, ${often}`, "vacuumed often"),
  Layout.inRow(`${half}, ${often}, vacuum_truncate = off`, "vacuumed often, never truncated"),
  Layout.inRow(`fillfactor = 80, ${often}, vacuum_truncate = off`, "the same, fillfactor = 80"),
  Layout.move
]

const print = (title: string, head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>) =>
  Console.log(`\n${title}:\n\n${table(head, rows)}`)

const layouts = Command.make(
  "layouts",
  {
    quick: Flag.Boolean("quick").pipe(
      Flag.withDescription("Only 20,000 rows, for a first impression"),
      Flag.withDefault(false)
    )
  },
  Effect.fnUntraced(function*({ quick }) {
    const { createDatabase } = yield* Postgres.EmbeddedPostgres
    const url = yield* createDatabase()

    const throughput = Effect.fnUntraced(function*(
      title: string,
      contenders: ReadonlyArray<Layout.Layout>,
      { floor = true, payload = 120, rows = 20_000, snapshot = false, workers = 1 }: Partial<Throughput.Settings>
    ) {
      const turns = yield* Throughput.measure(url, contenders, { floor, payload, rows, snapshot, workers, rounds: 3 })
      yield* print(
        `${title}, ${rows} rows of ${payload} bytes, ${workers} at work`,
        Throughput.head,
        Throughput.rows(turns)
      )
    })

    const many = quick ? 20_000 : 200_000
    yield* throughput("Variants", variants, {})
    yield* throughput("Variants", variants, { workers: 2 })
    for (const rows of new Set([20_000, many])) {
      for (const payload of [120, 1000]) {
        for (const workers of [1, 2]) yield* throughput("Candidates", candidates, { rows, payload, workers })
      }
    }
    for (const floor of [true, false]) {
      yield* throughput(`An old snapshot, ${floor ? "with" : "without"} a floor`, snapshotted, {
        floor,
        rows: quick ? 20_000 : 50_000,
        snapshot: true
      })
    }

    const costs = yield* Effect.forEach(
      [...candidates, Layout.beside],
      (layout) => Effect.map(ClaimCost.measure(url, layout, many), (cost) => ClaimCost.row(layout, cost))
    )
    yield* print(`Buffers of a claim, ${many} rows`, ClaimCost.head, costs)
    yield* print("Steady use", Soak.head, Soak.rows(yield* Soak.measure(url, vacuumed, 3, quick ? 3 : 7)))
  }, Effect.scoped)
).pipe(Command.withDescription("Ways of keeping intents in PostgreSQL, side by side"))

Command.run(layouts, { version: "0.0.0" }).pipe(
  Effect.provide([NodeServices.layer, Postgres.layer]),
  NodeRuntime.runMain
)
