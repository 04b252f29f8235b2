/**
 * The ways to run effects after a core, as they are measured side by side.
 */
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as NoopSql from "./NoopSql.ts"

type Intent = Effect.Effect<void>

/** A core that registers its intents in the way it is told to. */
export type Core = <R>(register: (intent: Intent) => Effect.Effect<void, never, R>) => Effect.Effect<void, never, R>

type Services = Epilogue.Epilogue | SqlClient.SqlClient

export interface Contender {
  readonly name: string
  /** Every contender gets the same services, so that none has the smaller context. */
  readonly services: Layer.Layer<Services>
  readonly run: (core: Core) => Effect.Effect<void, unknown, Services>
}

/** Runs a measurement in a context that has the services of its contender, and nothing of the benchmark's own. */
export const provide =
  (contender: Contender) => <A>(measurement: Effect.Effect<A, unknown, Services>): Effect.Effect<A> =>
    Layer.build(contender.services).pipe(
      Effect.flatMap((services) => Effect.updateContext(measurement, (_outside: Context.Context<never>) => services)),
      Effect.scoped,
      Effect.orDie
    )

const withEpilogue = Layer.merge(Epilogue.layer, NoopSql.layer)

/** No boundary: each effect runs where the core comes to it, and nobody catches its failure. */
const inline: Contender = {
  name: "inline",
  services: withEpilogue,
  run: (core) => core(identity)
}

/** The least that keeps the promise: an array, run after a successful core, each intent caught. */
export const array: Contender = {
  name: "array",
  services: withEpilogue,
  run: (core) =>
    Effect.suspend(() => {
      const queue: Array<Intent> = []
      const push = (intent: Intent) =>
        Effect.sync(() => {
          queue.push(intent)
        })
      return Effect.onExit(
        core(push),
        (exit) => Exit.isSuccess(exit) ? Effect.forEach(queue, Effect.exit, { discard: true }) : Effect.void
      )
    })
}

const afterCommit: Contender = {
  name: "sql.afterCommit",
  services: withEpilogue,
  run: (core) => SqlClient.SqlClient.use((sql) => sql.withTransaction(core(sql.afterCommit)))
}

const atomic: Contender["run"] = (core) => Epilogue.atomic(core((intent) => Epilogue.defer(intent)))

export const epilogue: Contender = {
  name: "Epilogue",
  services: withEpilogue,
  run: atomic
}

const sqlEpilogue: Contender = {
  name: "SqlEpilogue",
  services: Layer.provideMerge(SqlEpilogue.layer, NoopSql.layer),
  run: atomic
}

export const inMemory: ReadonlyArray<Contender> = [inline, array, epilogue]
export const inSql: ReadonlyArray<Contender> = [afterCommit, sqlEpilogue]
export const all: ReadonlyArray<Contender> = [...inMemory, ...inSql]
