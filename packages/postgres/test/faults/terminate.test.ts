// Connections that the server ends, a worker that stands still, and one that closes under load.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, Outbox } from "@epilogue/core"
import { Effect } from "effect"
import { layerStore } from "../Store.ts"
import { areDelivered, problems, start } from "./Child.ts"
import { Errand, makeTables, random } from "./Shared.ts"

const seed = Number(process.env.FAULT_SEED ?? Date.now() % 100_000)

/** Errands that are committed with their business rows. */
const errands = Effect.fnUntraced(function*(count: number) {
  const sql = yield* PgClient.PgClient
  yield* Epilogue.atomic(Effect.gen(function*() {
    const ids: Array<string> = []
    for (let n = 0; n < count; n++) ids.push(yield* Errand.defer({ failures: 0 }))
    yield* sql`INSERT INTO business SELECT intent::uuid, 'Errand', 0 FROM unnest(${ids}::text[]) AS i(intent)`
  })).pipe(Effect.provide(Outbox.layer))
})

it.live(`connections that are ended at random lose nothing (seed ${seed})`, () =>
  Effect.gen(function*() {
    yield* makeTables
    const sql = yield* PgClient.PgClient
    const next = random(seed)
    const application = yield* start({ role: "application", id: seed * 100, pace: 10 })
    const workers = [
      yield* start({ role: "worker", id: seed * 100 + 1, pace: 10 }),
      yield* start({ role: "worker", id: seed * 100 + 2, pace: 10 })
    ]
    yield* Effect.all([application.says("boundary", 10), ...workers.map((worker) => worker.says("begin", 5))])
    for (let round = 0; round < 60; round++) {
      const backends = yield* sql<{ pid: number }>`SELECT pid FROM pg_stat_activity WHERE datname = current_database()
        AND application_name IN ('application', 'worker') ORDER BY pid`
      const victim = backends[Math.floor(next() * backends.length)]
      if (victim !== undefined) yield* sql`SELECT pg_terminate_backend(${victim.pid})`
      yield* Effect.sleep(next() * 100)
    }
    yield* application.end("SIGKILL")
    yield* areDelivered
    const lost = new Set(workers.filter((worker) => worker.hasLost()).map(({ id }) => id))
    for (const worker of workers) assert.strictEqual(yield* worker.end("SIGTERM"), 0)
    const { business, found } = yield* problems({
      isExcused: (worker) => lost.has(worker),
      wereConnectionsEnded: true
    })
    assert.isAbove(business, 50)
    assert.deepStrictEqual(found, [], `seed ${seed}`)
  }).pipe(Effect.scoped, Effect.provide(layerStore)))

it.live("a worker that stood still beyond its lease interrupts its handlers and settles nothing", () =>
  Effect.gen(function*() {
    yield* makeTables
    const sql = yield* PgClient.PgClient
    yield* errands(5)
    const first = yield* start({ role: "worker", id: 1, pace: 1_000_000 })
    yield* first.says("begin", 5)
    yield* first.signal("SIGSTOP")
    const second = yield* start({ role: "worker", id: 2, pace: 0 })
    yield* second.says("end", 5)
    yield* first.signal("SIGCONT")
    yield* first.says("interrupt", 5)
    const { found } = yield* problems({ isExcused: (worker) => worker === 1 })
    assert.deepStrictEqual(found, [])
    const ends = yield* sql`SELECT DISTINCT worker FROM delivery WHERE event = 'end'`
    assert.deepStrictEqual(ends, [{ worker: 2 }])
    yield* first.end("SIGTERM")
    yield* second.end("SIGTERM")
  }).pipe(Effect.scoped, Effect.provide(layerStore)))

it.live("workers that close and start under load deliver each once", () =>
  Effect.gen(function*() {
    yield* makeTables
    const sql = yield* PgClient.PgClient
    yield* errands(1_500)
    const next = random(seed)
    let id = seed * 100
    for (let round = 0; round < 8; round++) {
      const worker = yield* start({ role: "worker", id: id++, pace: 3 })
      yield* worker.says("begin", 1 + Math.floor(next() * 100))
      assert.strictEqual(yield* worker.end("SIGTERM"), 0)
      assert.isFalse(worker.hasLost())
      const leased = yield* sql`SELECT FROM epilogue.waiting WHERE lease <> 0`
      assert.strictEqual(leased.length, 0, "everything is handed back")
    }
    const last = yield* start({ role: "worker", id: id++, pace: 1 })
    yield* areDelivered
    yield* last.end("SIGTERM")
    const counts = yield* sql<
      { event: string; count: number }
    >`SELECT event, count(*)::int FROM delivery GROUP BY 1 ORDER BY 1`
    assert.deepStrictEqual(counts, [{ event: "begin", count: 1_500 }, { event: "end", count: 1_500 }])
    const sessions = yield* sql`SELECT FROM epilogue.worker`
    assert.strictEqual(sessions.length, 0)
  }).pipe(Effect.scoped, Effect.provide(layerStore)))

it.live("three workers share what there is, and deliver each once", () =>
  Effect.gen(function*() {
    yield* makeTables
    const sql = yield* PgClient.PgClient
    yield* errands(5_000)
    const workers = yield* Effect.forEach([1, 2, 3], (id) => start({ role: "worker", id, pace: 0 }))
    yield* areDelivered
    yield* Effect.forEach(workers, (worker) => worker.end("SIGTERM"), { concurrency: "unbounded" })
    assert.deepStrictEqual(workers.filter((worker) => worker.hasLost()).length, 0)
    const counts = yield* sql<
      { event: string; count: number }
    >`SELECT event, count(*)::int FROM delivery GROUP BY 1 ORDER BY 1`
    assert.deepStrictEqual(counts, [{ event: "begin", count: 5_000 }, { event: "end", count: 5_000 }])
  }).pipe(Effect.scoped, Effect.provide(layerStore)))
