/**
 * Makes each boundary a SQL transaction.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import { type EngineOptions, Epilogue, make } from "./Engine.ts"
import { transactWith } from "./SqlTransaction.ts"

/**
 * Like `layer`, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerOptions = (options?: EngineOptions): Layer.Layer<Epilogue, never, SqlClient.SqlClient> =>
  Layer.effect(
    Epilogue,
    Effect.map(SqlClient.SqlClient, (client) => make({ ...options, client, transact: transactWith(client) }))
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
 * may have committed all the same. If the core fails, the caller gets the core's own cause, also where the `ROLLBACK`
 * fails after it, as it does on a broken connection.
 *
 * Set an isolation level with `SqlClient.BeginTransaction` around the boundary.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue, never, SqlClient.SqlClient> = layerOptions()
