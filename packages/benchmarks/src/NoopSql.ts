/**
 * A `SqlClient` whose database does nothing at once: what is left is what the transaction costs in the process.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"

const noRows = Effect.succeed([])

const connection: Connection = {
  execute: () => noRows,
  executeRaw: () => noRows,
  executeStream: () => Stream.empty,
  executeValues: () => noRows,
  executeValuesUnprepared: () => noRows,
  executeUnprepared: () => noRows
}

export const layer: Layer.Layer<SqlClient.SqlClient> = Layer.effect(
  SqlClient.SqlClient,
  SqlClient.make({
    acquirer: Effect.succeed(connection),
    compiler: Statement.makeCompilerSqlite(),
    driver: "noop",
    spanAttributes: []
  })
).pipe(Layer.provide(Reactivity.layer))
