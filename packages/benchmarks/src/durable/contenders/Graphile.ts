/**
 * [graphile-worker](https://worker.graphile.org), as it comes and as its guide to performance tunes it.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Logger, makeWorkerUtils, run, type RunnerOptions } from "graphile-worker"
import { setTimeout } from "node:timers/promises"
import { Pool } from "pg"
import { Database, type DurableContender } from "../DurableContender.ts"
import type { Payload } from "../Payload.ts"
import * as Query from "../Query.ts"

declare global {
  namespace GraphileWorker {
    interface Tasks {
      readonly noop: Payload
    }
  }
}

/** One that writes nothing: by default there is a line for every job. */
const logger = new Logger(() => () => undefined)

/** Its own pool does not wait, when it closes, for acknowledgements that are under way. */
const makePool = ({ connections, url }: Database["Service"]): Pool => {
  const pool = new Pool({ connectionString: Redacted.value(url), max: connections })
  pool.on("error", () => undefined)
  pool.on("connect", (client) => client.on("error", () => undefined))
  return pool
}

const make = (name: string, preset: NonNullable<RunnerOptions["preset"]>): DurableContender => ({
  name,
  open: Effect.gen(function*() {
    const database = yield* Database
    const sql = yield* PgClient
    const pgPool = yield* Effect.acquireRelease(
      Effect.sync(() => makePool(database)),
      (pool) => Effect.promise(() => pool.end())
    )
    const options = { pgPool, logger, noHandleSignals: true }
    const utils = yield* Effect.acquireRelease(
      Effect.promise(() => makeWorkerUtils({ ...options })),
      ({ release }) => Effect.promise(async () => release())
    )
    const addJob = (payload: Payload) =>
      sql`SELECT id FROM graphile_worker.add_job('noop', ${JSON.stringify(payload)}::json)`
    return {
      transaction: (core, intents) =>
        sql.withTransaction(Effect.andThen(core, Effect.forEach(intents, addJob, { discard: true }))),
      bulk: (intents) =>
        Effect.promise(() => utils.addJobs(intents.map((payload) => ({ identifier: "noop", payload })))),
      work: ({ receive, takes }, concurrency) =>
        Effect.acquireRelease(
          Effect.promise(() =>
            run({
              ...options,
              preset,
              concurrency,
              parsedCronItems: [],
              taskList: {
                noop: takes === 0 ? ({ n }) => receive(n) : async ({ n }) => {
                  await setTimeout(takes)
                  receive(n)
                }
              }
            })
          ),
          (runner) => Effect.promise(() => runner.stop())
        ),
      waiting: Query.figure(sql`SELECT count(*)::int AS figure FROM graphile_worker.jobs`)
    }
  })
})

export const byDefault = make("graphile-worker", {})

export const tuned = make("graphile-worker, tuned", {
  worker: {
    localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0
  }
})
