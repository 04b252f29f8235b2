/**
 * A PostgreSQL 18 server from npm, for the demo, the tests and the benchmarks. It needs no Docker.
 *
 * **Details**
 *
 * - The server listens on a free port of 127.0.0.1, behind a password made for this run, and keeps its data in a
 *   temporary folder. Its settings are those of PostgreSQL, except for `max_connections` (200) and a sort order that
 *   is the same on every machine (`C.UTF-8`).
 * - The server stops and its folder goes when the scope closes, and also when the process ends in any other way: by a
 *   signal, even SIGKILL, or by a crash. Ctrl-C reaches the program alone, so that it still finds the server while it
 *   finishes.
 * - `DATABASE_URL` in the environment takes its place: no server starts, and databases are made on that one.
 * - PostgreSQL refuses to run as root. For root it runs as `nobody`, from a copy of its programs in the temporary
 *   folder, since `nobody` cannot enter a checkout below a home with mode 0700.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { execFile, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { mkdtemp, readFile, writeFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"

/**
 * The server does not start or does not answer. The message says why, and what to do.
 */
export class EmbeddedPostgresError extends Schema.TaggedError<EmbeddedPostgresError>()("EmbeddedPostgresError", {
  message: Schema.String,
  cause: Schema.Defect()
}) {}

/**
 * A PostgreSQL server on which the owner of `url` may create databases.
 */
export class EmbeddedPostgres extends Context.Service<EmbeddedPostgres, {
  /** The database `postgres`, or that of `DATABASE_URL`, as a superuser or as the user of `DATABASE_URL`. */
  readonly url: Redacted.Redacted
  /**
   * Creates a database and returns its URL. The database is dropped when the scope closes, with whoever is still
   * connected to it. It fails if `name` exists already. Without a name it gets one of its own.
   */
  readonly createDatabase: (name?: string) => Effect.Effect<Redacted.Redacted, SqlError, Scope.Scope>
}>()("@epilogue/embedded-postgres/EmbeddedPostgres") {}

/**
 * Uses the server at a URL, and starts none.
 */
export const layerUrl = (url: Redacted.Redacted): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> =>
  Layer.effect(
    EmbeddedPostgres,
    Effect.gen(function*() {
      // A connection for each statement: a scope that outlives this layer still finds the server to drop a database on.
      const query = <A>(statement: (sql: SqlClient) => Effect.Effect<A, SqlError>) =>
        PgClient.makeClient({ url }).pipe(Effect.flatMap(statement), Effect.provide(Reactivity.layer), Effect.scoped)
      yield* Effect.mapError(
        query((sql) => sql`SELECT 1`),
        failed("The PostgreSQL server does not answer. If DATABASE_URL is set, correct or unset it")
      )
      const createDatabase = Effect.fnUntraced(function*(name: string = `epilogue_${randomBytes(8).toString("hex")}`) {
        yield* Effect.acquireRelease(
          query((sql) => sql`CREATE DATABASE ${sql(name)}`),
          () => Effect.ignore(query((sql) => sql`DROP DATABASE IF EXISTS ${sql(name)} WITH (FORCE)`), { log: "Warn" })
        )
        const database = new URL(Redacted.value(url))
        database.pathname = `/${encodeURIComponent(name)}`
        return Redacted.make(database.href)
      })
      return EmbeddedPostgres.of({ url, createDatabase })
    })
  )

/**
 * Starts a server, or uses the one that `DATABASE_URL` names.
 */
export const layer: Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> = Layer.unwrap(Effect.gen(function*() {
  const given = yield* Effect.orDie(Config.option(Config.Redacted("DATABASE_URL")))
  return Option.isSome(given) ? layerUrl(given.value) : layerOwn()
}))

/**
 * Starts a server, whatever `DATABASE_URL` says. `settings` are those of its configuration file that differ.
 */
export const layerOwn = (
  settings: { readonly [name: string]: string } = {}
): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> => Layer.unwrap(Effect.map(start(settings), layerUrl))

/**
 * A client of a fresh database, which is dropped when the layer closes.
 */
export const layerDatabase: Layer.Layer<
  PgClient.PgClient | SqlClient,
  SqlError,
  EmbeddedPostgres
> = Layer.unwrap(Effect.gen(function*() {
  const { createDatabase } = yield* EmbeddedPostgres
  return PgClient.layer({ url: yield* createDatabase() })
}))

type Account = { readonly uid: number; readonly gid: number } | undefined

const failed = (message: string) => (cause: unknown) =>
  new EmbeddedPostgresError({ message: cause instanceof Error ? `${message}: ${cause.message}` : message, cause })

const attempt = <A>(evaluate: (signal: AbortSignal) => Promise<A>) =>
  Effect.tryPromise({
    try: evaluate,
    catch: failed(
      "PostgreSQL from npm does not start here. Set TMPDIR to a folder in which every user may run programs, " +
        "or DATABASE_URL to a server of your own"
    )
  })

const run = (
  program: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd?: string } & Partial<Account> = {}
) => attempt((signal) => promisify(execFile)(program, args, { ...options, signal }))

const findNative = Effect.suspend(() => {
  const name = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`
  return Effect.try({
    try: () => join(createRequire(import.meta.url).resolve(name), "../../native"),
    catch: failed(`${name} is missing. Install the optional dependencies, or set DATABASE_URL to a server of your own`)
  })
})

const findAccount = Effect.gen(function*() {
  if (process.getuid?.() !== 0) return undefined
  const [uid, gid] = yield* Effect.all([run("id", ["-u", "nobody"]), run("id", ["-g", "nobody"])])
  return { uid: Number(uid.stdout), gid: Number(gid.stdout) }
})

const findPort = attempt(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  return typeof address === "object" && address !== null ? address.port : 0
})

/** A temporary folder and its janitor, who stops the server and removes the folder when this process lets go of him. */
const makeFolder = (account: Account, programs: (folder: string) => string) =>
  Effect.acquireRelease(
    attempt(async () => {
      const folder = await mkdtemp(join(tmpdir(), "epilogue-postgres-"))
      const owner = account === undefined ? [] : [`${account.uid}`, `${account.gid}`]
      const janitor = spawn(
        process.execPath,
        [join(import.meta.dirname, "janitor.ts"), join(programs(folder), "pg_ctl"), folder, ...owner],
        { cwd: tmpdir(), detached: true, stdio: ["pipe", "ignore", "ignore"] }
      )
      return { folder, janitor, ended: once(janitor, "exit") }
    }),
    ({ ended, janitor }) =>
      Effect.promise(() => {
        janitor.stdin.end()
        return ended
      })
  )

const start = Effect.fnUntraced(function*(settings: { readonly [name: string]: string }) {
  const native = yield* findNative
  const account = yield* findAccount
  const programs = (folder: string) => join(account === undefined ? native : join(folder, "native"), "bin")
  const { folder } = yield* makeFolder(account, programs)
  const log = join(folder, "log")
  const passwordFile = join(folder, "password")
  const password = randomBytes(16).toString("hex")
  yield* attempt(() => writeFile(passwordFile, password, { mode: 0o600 }))
  if (account !== undefined) {
    yield* run("cp", ["-R", native, folder])
    yield* run("chown", ["-R", `${account.uid}:${account.gid}`, folder])
  }
  const runPostgres = (program: string, args: ReadonlyArray<string>) =>
    run(join(programs(folder), program), [`--pgdata=${join(folder, "data")}`, ...args], { cwd: folder, ...account })
  // dprint-ignore
  yield* runPostgres("initdb", [
    "--username=postgres", `--pwfile=${passwordFile}`, "--auth=scram-sha-256", "--no-sync",
    "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
    "--set=max_connections=200", "--set=listen_addresses=127.0.0.1", "--set=unix_socket_directories=",
    ...Object.entries(settings).map(([name, value]) => `--set=${name}=${value}`)
  ])
  const port = yield* findPort.pipe(
    Effect.tap((free) => runPostgres("pg_ctl", ["start", `--log=${log}`, `--options=-p ${free}`])),
    // Between its being found and its being used, another process may take the port.
    Effect.retry({ times: 2 }),
    Effect.catch((error) =>
      Effect.flatMap(
        attempt(() => readFile(log, "utf8")),
        (text) => Effect.fail(new EmbeddedPostgresError({ message: `${error.message}\n${text}`, cause: error }))
      )
    )
  )
  return Redacted.make(`postgres://postgres:${password}@127.0.0.1:${port}/postgres`)
})
