/** A process of `program.ts`, on the database of the test. */
import { PgClient } from "@effect/sql-pg"
import { Effect, Queue, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"

export type Role = "boundary" | "worker" | "transactional" | "blocked"

/**
 * Starts a process, which is killed when the scope closes. A boundary is given its order, a worker how many deliveries it
 * runs at once.
 */
export const start = Effect.fnUntraced(function*(role: Role, given = 0) {
  const { config } = yield* PgClient.PgClient
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [join(import.meta.dirname, "program.ts"), role, String(given)], {
        env: { ...process.env, DATABASE_URL: Redacted.value(config.url!) },
        stdio: ["pipe", "pipe", "inherit"]
      })
    ),
    (self) => Effect.sync(() => self.kill("SIGKILL"))
  )
  const lines = yield* Queue.unbounded<string>()
  createInterface(child.stdout).on("line", (line) => Queue.offerUnsafe(lines, line))
  const exitCode = new Promise<number | null>((resolve) => child.once("close", resolve))
  return {
    /** Waits until it says a line that begins so, and answers with the rest of it. That it ends before is a defect. */
    says: (what: string) =>
      Queue.take(lines).pipe(
        Effect.repeat({ until: (line) => line.startsWith(what) }),
        Effect.map((line) => line.slice(what.length).trim()),
        Effect.raceFirst(
          Effect.flatMap(Effect.promise(() => exitCode), (code) =>
            Effect.die(new Error(`The process has ended with ${code}, and has not said "${what}"`)))
        )
      ),
    tell: Effect.sync(() => void child.stdin.write("\n")),
    end: (signal: "SIGKILL" | "SIGTERM") =>
      Effect.promise(() => {
        child.kill(signal)
        return exitCode
      })
  }
})

/** How many connections of such processes there are, of which so many wait for a lock. */
export const connections = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ all: number; blocked: number }>`
    SELECT count(*)::int AS all, (count(*) FILTER (WHERE wait_event_type = 'Lock'))::int AS blocked
    FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'process'`
  return row!
})
