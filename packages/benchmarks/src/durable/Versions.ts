/**
 * What the measurements were made with.
 */
import { PgClient } from "@effect/sql-pg"
import { EmbeddedPostgres } from "@epilogue/embedded-postgres"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"

export interface Versions {
  readonly postgres: string
  readonly graphile: string
}

const Package = Schema.fromJsonString(
  Schema.Struct({ devDependencies: Schema.Struct({ "graphile-worker": Schema.String }) })
)

const Server = Schema.NonEmptyArray(Schema.Struct({ version: Schema.String }))

export const read = Effect.gen(function*() {
  const { url } = yield* EmbeddedPostgres
  const fileSystem = yield* FileSystem.FileSystem
  const text = yield* fileSystem.readFileString(new URL("../../package.json", import.meta.url).pathname)
  const { devDependencies } = yield* Schema.decodeEffect(Package)(text)
  const rows = yield* PgClient.PgClient.use((sql) => sql`SELECT current_setting('server_version') AS version`).pipe(
    Effect.provide(PgClient.layer({ url }))
  )
  const [{ version }] = yield* Schema.decodeUnknownEffect(Server)(rows)
  return { postgres: version, graphile: devDependencies["graphile-worker"] } satisfies Versions
})
