/**
 * Databases for tests, on the server that `globalSetup` started for the run.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { inject } from "vitest"
import * as EmbeddedPostgres from "./EmbeddedPostgres.ts"

declare module "vitest" {
  interface ProvidedContext {
    readonly postgresUrl?: string
  }
}

/**
 * The server of this run, for tests that need more than one database, or the URL of one.
 */
export const layerServer: Layer.Layer<EmbeddedPostgres.EmbeddedPostgres, EmbeddedPostgres.EmbeddedPostgresError> = Layer
  .unwrap(Effect.suspend(() => {
    const url = inject("postgresUrl")
    return url === undefined
      ? Effect.fail(
        new EmbeddedPostgres.EmbeddedPostgresError({
          message:
            "No server was started for the tests. Name `@epilogue/embedded-postgres/globalSetup` as `globalSetup` " +
            "of this project in vitest.workspace.ts",
          cause: undefined
        })
      )
      : Effect.succeed(EmbeddedPostgres.layerUrl(Redacted.make(url)))
  }))

/**
 * A client of a fresh database. Use it once per test file, so that files run side by side.
 */
export const layer: Layer.Layer<PgClient | SqlClient, SqlError | EmbeddedPostgres.EmbeddedPostgresError> =
  EmbeddedPostgres.layerDatabase.pipe(Layer.provide(layerServer))
