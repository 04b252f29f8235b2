/**
 * Makes each boundary a SQL transaction.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import { type EngineOptions, Epilogue, make } from "./Engine.ts"
import { type Handled, typedIn } from "./InProcess.ts"
import { type TransactionOptions, transactWith } from "./SqlTransaction.ts"

/**
 * Options of `layerOptions`.
 *
 * @category models
 * @since 0.1.0
 */
export interface SqlOptions<Intents extends ReadonlyArray<Handled> = []> extends EngineOptions, TransactionOptions {
  /** The typed intents that it handles, as `layerWith` does. Defaults to none. */
  readonly intents?: Intents | undefined
}

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOptions = <const Intents extends ReadonlyArray<Handled> = []>(
  options: SqlOptions<Intents> = {}
): Layer.Layer<Epilogue, never, SqlClient.SqlClient | Intents[number]["~handler"]> =>
  Layer.effect(
    Epilogue,
    Effect.gen(function*() {
      const client = yield* SqlClient.SqlClient
      const typed = options.intents === undefined ? undefined : yield* typedIn(options.intents)
      return make({ onFailure: options.onFailure, client, transact: transactWith(client, options), typed })
    })
  )

/**
 * `atomic` is a SQL transaction: its core runs between `BEGIN` and `COMMIT`, its epilogue after the `COMMIT`.
 *
 * **Details**
 *
 * The epilogue runs in the fiber of the boundary, with the connection released. A savepoint of the boundary is a
 * `SAVEPOINT` of the transaction. Inside a transaction of the same client, `atomic` is a savepoint of that, and its
 * epilogue runs after the outermost `COMMIT`.
 *
 * If `BEGIN` or `COMMIT` fails, no intent runs and `atomic` fails with a `CommitError`, which says whether the database
 * may have committed all the same. Where the connection breaks before the `COMMIT` is answered, PostgreSQL is asked on
 * another one what became of the transaction of a boundary with intents or hooks: if it has committed, the boundary goes
 * on as if nothing had happened. `commitTimeout` limits how long that takes. If the core fails, the caller gets the core's own cause, also where the `ROLLBACK`
 * fails after it, as it does on a broken connection.
 *
 * Set an isolation level with `SqlClient.BeginTransaction` around the boundary.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue, never, SqlClient.SqlClient> = layerOptions()

/**
 * `layer`, and handles these typed intents in the epilogue, as `Epilogue.layerWith` does.
 *
 * **Gotchas**
 *
 * What was committed and not yet handled is lost if the process ends. `Outbox.layer` stores it with the commit.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = <Intents extends ReadonlyArray<Handled>>(
  ...intents: Intents
): Layer.Layer<Epilogue, never, SqlClient.SqlClient | Intents[number]["~handler"]> => layerOptions({ intents })
