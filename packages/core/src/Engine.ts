/**
 * The engine: where and when the epilogue of a committed boundary runs.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Committed } from "./Committed.ts"
import type { Host } from "./Deferred.ts"
import type { Failure } from "./Outcome.ts"

/**
 * What every engine layer can be told.
 *
 * @category models
 * @since 0.1.0
 */
export interface EngineOptions {
  /**
   * Called for an intent that failed where no caller is left to tell: because the caller was interrupted, or because
   * the epilogue runs later. The failure is logged as an error first. Defaults to the log alone.
   */
  readonly onFailure?: ((failure: Failure) => Effect.Effect<void>) | undefined
}

/**
 * What an engine does with boundaries.
 *
 * @category models
 * @since 0.1.0
 */
export interface Engine extends Host, EngineOptions {
  /** Runs the epilogue of a committed boundary, or sees to it that it runs. `atomic` returns after it. */
  readonly commit: (committed: Committed) => Effect.Effect<void>
  /** Whether a SQL transaction around a boundary is none of its business, as in a test that rolls everything back. */
  readonly ignoresTransactions?: boolean | undefined
  /** Tells the log and `onFailure` of every failure that no caller was told of. */
  readonly tell: (committed: Committed) => Effect.Effect<void>
}

/**
 * The engine. Provided once, at the edge of the application.
 *
 * @category services
 * @since 0.1.0
 */
export class Epilogue extends Context.Service<Epilogue, Engine>()("@epilogue/core/Epilogue") {}

/**
 * Makes an engine, for those who write one. What is left out is as in `Epilogue.layer`. To change one thing about an
 * engine, spread it: `make({ ...engine, observe })`.
 *
 * **Details**
 *
 * - `commit` gets each committed boundary and runs it, now or later. The default runs it at once. An engine that runs
 *   it later calls `tell` afterwards.
 * - `transact` runs the core of each outermost boundary, and of savepoints inside it, in a transaction.
 * - `client` is the `SqlClient` that `transact` uses.
 * - `typed` says what becomes of typed intents. Without it, they are refused.
 * - `observe` hears of each intent: `"deferred"` when it registers, then `"committed"` or `"discarded"`.
 * - `ignoresTransactions` makes a boundary inside a SQL transaction commit at its own end.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: EngineOptions & {
    readonly commit?: ((committed: Committed, tell: Engine["tell"]) => Effect.Effect<void>) | undefined
    readonly transact?: Host["transact"]
    readonly client?: Host["client"]
    readonly observe?: Host["observe"]
    readonly typed?: Host["typed"]
    readonly ignoresTransactions?: boolean | undefined
  } = {}
): Epilogue["Service"] => {
  const { commit = ({ run }: Committed) => run, onFailure } = options
  const engine: Engine = {
    ...options,
    commit: (committed) => commit(committed, engine.tell),
    late: (registered) => {
      const committed = new Committed([registered], late, engine, {}, engine.observe !== undefined)
      committed.settle()
      return Effect.andThen(engine.commit(committed), engine.tell(committed))
    },
    tell: (committed) =>
      Effect.suspend(() => {
        const tellOne = (failure: Failure) => tellFailure(failure, onFailure)
        return Effect.forEach(committed.takeUntold(), tellOne, { discard: true })
      })
  }
  return engine
}

const late = { hasKeys: false, hasFates: true, hasSpans: true }

/** Tells the log and `onFailure` of one intent. */
export const tellFailure = (
  { cause, intent }: Failure,
  onFailure: EngineOptions["onFailure"],
  what = "failed after the commit"
): Effect.Effect<void> =>
  Effect.logError(`Intent "${intent.name}" ${what}`, cause).pipe(
    Effect.andThen(onFailure === undefined ? Effect.void : Effect.suspend(() => onFailure({ cause, intent }))),
    Effect.ignoreCause({ log: "Error", message: `onFailure failed for intent "${intent.name}"` }),
    Effect.annotateLogs({ "epilogue.intent": intent.name })
  )

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOptions = (options?: EngineOptions): Layer.Layer<Epilogue> => Layer.succeed(Epilogue, make(options))

/**
 * Runs the epilogue in the fiber of the boundary, after the commit and before `atomic` returns.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue> = layerOptions()
