// Order per key, over workers that fail and are killed.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, Outbox } from "@epilogue/core"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { PgOutboxStore } from "@epilogue/postgres"
import { Effect, Fiber, Layer } from "effect"
import { areDelivered, start } from "./Child.ts"
import { makeTables, random, Step } from "./Shared.ts"

const count = 40_000
const keys = 200
const seed = Number(process.env.FAULT_SEED ?? Date.now() % 100_000)

const Live = PgOutboxStore.layer().pipe(
  Layer.provideMerge(Layer.effectDiscard(PgOutboxStore.migrate())),
  Layer.provideMerge(EmbeddedPostgres.layerDatabase),
  // The database records when each transaction has committed.
  Layer.provide(EmbeddedPostgres.layerOwn({ track_commit_timestamp: "on" }))
)

/** Boundaries of a few steps each, committed side by side, with a row for each step. */
const commit = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  const next = random(seed)
  const boundary = (size: number) =>
    Epilogue.atomic(Effect.gen(function*() {
      const ids: Array<string> = []
      const series: Array<number> = []
      for (let n = 0; n < size; n++) {
        const one = Math.floor(next() * keys)
        series.push(one)
        ids.push(yield* Step.defer({ series: one }))
      }
      yield* sql`INSERT INTO step (intent, series, place)
        SELECT i.intent::uuid, i.series, i.n FROM unnest(${ids}::text[], ${series}::int[]) WITH ORDINALITY AS i(intent, series, n)`
    }))
  const sizes: Array<number> = []
  for (let left = count; left > 0; left -= sizes.at(-1)!) sizes.push(Math.min(left, 1 + Math.floor(next() * 40)))
  yield* Effect.forEach(sizes, boundary, { concurrency: 8, discard: true })
}).pipe(Effect.provide(Outbox.layer))

/** Of each series, in the order of the commits that the database has recorded: when each step began first, and ended first. */
const histories = PgClient.PgClient.use((sql) =>
  sql<{ series: number; began: number | null; ended: number | null }>`
    SELECT s.series, min(d.n) FILTER (WHERE d.event = 'begin') AS began, min(d.n) FILTER (WHERE d.event = 'end') AS ended
    FROM step AS s LEFT JOIN delivery AS d USING (intent)
    GROUP BY s.intent, s.series, s.place, pg_xact_commit_timestamp(s.xmin)
    ORDER BY s.series, pg_xact_commit_timestamp(s.xmin), s.place`
)

it.live(
  `eight workers, two of which are killed, deliver ${count} steps in the order of their commits (seed ${seed})`,
  () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      yield* makeTables
      yield* sql`CREATE TABLE step (intent uuid PRIMARY KEY, series int NOT NULL, place int NOT NULL)`
      const workers = yield* Effect.forEach([1, 2, 3, 4], (id) => start({ role: "stepper", id, pace: 0 }))
      yield* Effect.forEach(workers, (worker) => worker.says("ready", 1))
      const delivered = Effect.map(
        sql<{ count: number }>`SELECT count(*)::int FROM delivery WHERE event = 'end'`,
        ([row]) => row!.count
      )
      const committing = yield* Effect.forkChild(commit)
      for (const [index, share] of [0.2, 0.5].entries()) {
        yield* Effect.repeat(delivered, { until: (ends) => ends > count * share })
        yield* workers[index]!.end("SIGKILL")
      }
      yield* Fiber.join(committing)
      yield* areDelivered

      const inversions: Array<string> = []
      let [lost, last, before] = [0, -1, 0]
      for (const { began, ended, series } of yield* histories) {
        if (began === null || ended === null) {
          lost++
          continue
        }
        if (series === last && began < before) inversions.push(`series ${series}: ${began} before ${before}`)
        last = series
        before = ended
      }
      assert.strictEqual(lost, 0, "what was never delivered")
      assert.deepStrictEqual(inversions.slice(0, 10), [], `${inversions.length} inversions`)
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int FROM step`, [{ count }])
    }).pipe(Effect.scoped, Effect.provide(Live)),
  600_000
)
