import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { ConfigProvider, Effect, Exit, Layer, Redacted, Schedule, Schema, Scope } from "effect"
import { SqlClient, SqlSchema } from "effect/sql"
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { connect } from "node:net"
import { dirname, join } from "node:path"

const Server = Schema.Struct({ version: Schema.String, folder: Schema.String, name: Schema.String })
const server = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  return yield* SqlSchema.findOne({
    Request: Schema.Void,
    Result: Server,
    execute: () => sql`SELECT version(), current_setting('data_directory') AS folder, current_database() AS name`
  })()
})

const exists = Effect.fnUntraced(function*(name: string) {
  const sql = yield* SqlClient.SqlClient
  return (yield* sql`SELECT FROM pg_database WHERE datname = ${name}`).length === 1
})

const listens = (url: string) =>
  Effect.callback<boolean>((resume) => {
    const { hostname, port } = new URL(url)
    const socket = connect(Number(port), hostname, () => resume(Effect.succeed(true)))
    socket.on("error", () => resume(Effect.succeed(false)))
    return Effect.sync(() => socket.destroy())
  })

const environment = (values: Record<string, string>) =>
  Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(values)))

const Report = Schema.fromJsonString(Schema.Struct({ folder: Schema.String, url: Schema.String }))

describe("a server of its own", () => {
  it.live("answers while its scope is open, and leaves neither process nor folder", () =>
    Effect.gen(function*() {
      const open = yield* Effect.gen(function*() {
        const { url } = yield* EmbeddedPostgres.EmbeddedPostgres
        const { folder, version } = yield* Effect.provide(server, EmbeddedPostgres.layerDatabase)
        assert.match(version, /^PostgreSQL 18\./)
        assert.isTrue(existsSync(folder))
        return { folder, url: Redacted.value(url) }
      }).pipe(Effect.provide(EmbeddedPostgres.layer.pipe(environment({}))))
      assert.isFalse(existsSync(dirname(open.folder)))
      assert.isFalse(yield* listens(open.url))
    }))

  it.live.each(["SIGINT", "SIGTERM", "SIGKILL"] as const)(
    "leaves nothing when %s ends the process",
    (signal) =>
      Effect.gen(function*() {
        const program = spawn(process.execPath, [join(import.meta.dirname, "program.ts")], {
          env: { ...process.env, DATABASE_URL: undefined },
          stdio: ["ignore", "pipe", "inherit"]
        })
        const line = yield* Effect.callback<string>((resume) => {
          program.stdout.setEncoding("utf8").once("data", (text: string) => resume(Effect.succeed(text)))
        })
        const { folder, url } = yield* Schema.decodeEffect(Report)(line)
        assert.isTrue(existsSync(folder))
        assert.isTrue(yield* listens(url))
        program.kill(signal)
        yield* Effect.repeat(Effect.sync(() => existsSync(dirname(folder))), {
          while: (there) => there,
          schedule: Schedule.spaced("50 millis")
        })
        assert.isFalse(yield* listens(url))
      })
  )
})

it.live("DATABASE_URL takes the place of the server, and the error names it", () =>
  Effect.gen(function*() {
    const given = EmbeddedPostgres.layer.pipe(environment({ DATABASE_URL: "postgres://nobody@127.0.0.1:1/none" }))
    const error = yield* Effect.flip(Effect.scoped(Layer.build(given)))
    assert.include(error.message, "DATABASE_URL")
  }))

it.effect("a database lives as long as its scope, whoever is connected", () =>
  Effect.gen(function*() {
    const { createDatabase, url } = yield* EmbeddedPostgres.EmbeddedPostgres
    const admin = PgClient.layer({ url })
    const scope = yield* Scope.make()
    const database = PgClient.layer({ url: yield* Scope.provide(createDatabase(), scope) })
    yield* Effect.gen(function*() {
      const { name } = yield* server
      assert.isTrue(yield* Effect.provide(exists(name), admin))
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(yield* Effect.provide(exists(name), admin))
    }).pipe(Effect.provide(database))
  }).pipe(Effect.provide(TestDatabase.layerServer)))

it.effect("a name that is taken is refused, and its database stays", () =>
  Effect.gen(function*() {
    const { createDatabase, url } = yield* EmbeddedPostgres.EmbeddedPostgres
    yield* createDatabase("taken name")
    yield* Effect.flip(Effect.scoped(createDatabase("taken name")))
    assert.isTrue(yield* Effect.provide(exists("taken name"), PgClient.layer({ url })))
  }).pipe(Effect.provide(TestDatabase.layerServer)))

it.effect("a test file has a database of its own", () =>
  Effect.gen(function*() {
    assert.match((yield* server).name, /^epilogue_[0-9a-f]{16}$/)
  }).pipe(Effect.provide(TestDatabase.layer)))
