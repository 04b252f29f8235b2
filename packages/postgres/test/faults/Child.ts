/** The processes of `program.ts`, on the database of the test, and what has become of their deliveries. */
import { PgClient } from "@effect/sql-pg"
import { assert } from "@effect/vitest"
import { Effect, Latch, Redacted, Schedule } from "effect"
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { Booking, type Role } from "./Shared.ts"

/** Starts a process, which is killed when the scope closes. */
export const start = Effect.fnUntraced(function*(role: Role) {
  const { config } = yield* PgClient.PgClient
  const lines: Array<string> = []
  const said = Latch.makeUnsafe()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [join(import.meta.dirname, "program.ts"), JSON.stringify(role)], {
        env: { ...process.env, DATABASE_URL: Redacted.value(config.url!) },
        stdio: ["ignore", "pipe", "inherit"]
      })
    ),
    (self) => Effect.sync(() => self.kill("SIGKILL"))
  )
  createInterface(child.stdout).on("line", (line) => {
    lines.push(line)
    said.openUnsafe()
  })
  const exitCode = new Promise<number | null>((resolve) => {
    child.once("close", (code) => {
      lines.push("ended")
      said.openUnsafe()
      resolve(code)
    })
  })
  const count = (what: string) => lines.filter((line) => line.startsWith(what)).length
  return {
    id: role.id,
    lines,
    /** Waits until it has said so many lines that begin so, or has ended. */
    says: (what: string, times: number) =>
      Effect.suspend(() => {
        said.closeUnsafe()
        return count(what) >= times || count("ended") > 0 ? Effect.succeed(true) : Effect.as(said.await, false)
      }).pipe(Effect.repeat({ until: (isSaid) => isSaid }), Effect.asVoid),
    signal: (signal: NodeJS.Signals) => Effect.sync(() => void child.kill(signal)),
    end: (signal: "SIGKILL" | "SIGTERM") =>
      Effect.promise(() => {
        child.kill(signal)
        return exitCode
      }),
    /** Whether it has lost a session: what that had claimed is delivered again. */
    hasLost: () => count("log A worker has lost") + count("log A worker could not confirm") > 0
  }
})

const left = PgClient.PgClient.use((sql) =>
  sql`SELECT 'waiting' AS table, queue, lease <> 0 AS is_leased, count(*)::int FROM epilogue.waiting GROUP BY 2, 3
    UNION ALL SELECT 'keyed', queue, lease <> 0, count(*)::int FROM epilogue.keyed GROUP BY 2, 3
    UNION ALL SELECT 'delayed', queue, due < now(), count(*)::int FROM epilogue.delayed GROUP BY 2, 3`
)

/** Waits until nothing is left in the store but dead letters. */
export const areDelivered = Effect.repeat(left, {
  until: (rows) => rows.length === 0,
  schedule: Schedule.spaced("50 millis")
}).pipe(
  Effect.timeoutOrElse({
    duration: "5 minutes",
    orElse: () => Effect.map(left, (rows) => assert.fail(`Some are left: ${JSON.stringify(rows)}`))
  })
)

interface Event {
  readonly n: number
  readonly intent: string
  readonly worker: number
  readonly attempt: number
  readonly crashes: number
  readonly event: "begin" | "end" | "fail" | "interrupt"
}

/**
 * What is wrong with the deliveries, when nothing is left in the store. What a worker held that `isExcused` may be repeated.
 * Where connections were ended, transactions have failed that their handlers know nothing of.
 */
export const problems = Effect.fnUntraced(function*(options: {
  readonly isExcused: (worker: number) => boolean
  readonly wereConnectionsEnded?: boolean
}) {
  const sql = yield* PgClient.PgClient
  const rows = yield* sql<{ intent: string; tag: string; failures: number }>`SELECT * FROM business`
  const business = new Set(rows.map(({ intent }) => intent))
  const events = yield* sql<Event>`SELECT * FROM delivery ORDER BY n`
  const histories = new Map<string, Array<Event>>()
  for (const event of events) histories.set(event.intent, [...(histories.get(event.intent) ?? []), event])
  const found: Array<string> = []
  const tell = (what: string, intent: string) => {
    const history = (histories.get(intent) ?? []).map(({ attempt, crashes, event, worker }) =>
      `${event} (worker ${worker}, attempt ${attempt}, crashes ${crashes})`
    )
    found.push(`${what}: ${intent} ${history.join(", ")}`)
  }
  for (const { failures, intent, tag } of rows) {
    const history = histories.get(intent) ?? []
    if (!history.some(({ attempt, event }) => event === "end" && attempt > failures)) tell("lost", intent)
    const mayFail = options.wereConnectionsEnded === true && tag === Booking._tag
    const begins = history.filter(({ event }) => event === "begin")
    if (begins.length > 0 && begins[0]?.attempt !== 1 && !mayFail) tell("the first attempt is not the first", intent)
    for (const [index, begin] of begins.entries()) {
      const next = begins[index + 1]
      if (next === undefined) continue
      const hasFailed = history.some(({ attempt, event, worker }) =>
        event === "fail" && worker === begin.worker && attempt === begin.attempt
      )
      const isCounted = mayFail
        ? next.attempt > begin.attempt
        : next.attempt === begin.attempt + 1 && hasFailed
      const isRepeated = next.attempt === begin.attempt && options.isExcused(begin.worker)
      if (!isCounted && !isRepeated) tell("not excused", intent)
      // Only one that ran alone when its worker died has a crash more.
      if (next.crashes < begin.crashes || next.crashes > begin.crashes + (isRepeated ? 1 : 0)) {
        tell("a crash is made up", intent)
      }
    }
  }
  for (const intent of histories.keys()) if (!business.has(intent)) tell("phantom", intent)
  const twice = yield* sql<{ intent: string }>`SELECT intent FROM booked GROUP BY 1 HAVING count(*) > 1`
  for (const { intent } of twice) tell("booked twice", intent)
  const bookings = yield* sql<
    { intent: string }
  >`SELECT intent FROM booked WHERE intent NOT IN (SELECT intent FROM business)`
  for (const { intent } of bookings) tell("booked without business", intent)
  return { found, business: rows.length }
})
