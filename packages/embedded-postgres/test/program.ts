// A program that starts a server, says where it is, and waits for its own end.
import { PgClient } from "@effect/sql-pg"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { Effect, Layer, Redacted } from "effect"

await Effect.runPromise(
  Effect.gen(function*() {
    const { url } = yield* EmbeddedPostgres.EmbeddedPostgres
    const sql = yield* PgClient.PgClient
    const [row] = yield* sql`SELECT current_setting('data_directory') AS folder`
    process.stdout.write(JSON.stringify({ ...row, url: Redacted.value(url) }))
    return yield* Effect.never
  }).pipe(Effect.provide(Layer.provideMerge(EmbeddedPostgres.layerDatabase, EmbeddedPostgres.layer)))
)
