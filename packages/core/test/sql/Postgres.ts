/**
 * What the tests against PostgreSQL share: a table to write to, a log of the intents that ran, and the ways in which an
 * application can put a boundary and a SQL transaction around each other.
 */
import { PgClient } from "@effect/sql-pg"
import { assert } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import { EmbeddedPostgres } from "@epilogue/embedded-postgres"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { Cause, Context, Effect, Exit, Latch, Layer, Option, Redacted, Schema } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, SqlSchema } from "effect/sql"
import { connect } from "node:net"
import type { Duplex } from "node:stream"

export { layerServer } from "@epilogue/embedded-postgres/TestDatabase"

/** A client of a fresh database. */
export const makeClient = Effect.gen(function*() {
  const { createDatabase } = yield* EmbeddedPostgres
  const sql = yield* PgClient.make({ url: yield* createDatabase() })
  yield* createTables(sql)
  return sql
}).pipe(Effect.provide(Reactivity.layer))

/** Another client of the same database. */
export const another = (options?: PgClient.PgPoolConfig) =>
  PgClient.PgClient.use(({ config }) => PgClient.make({ ...config, ...options })).pipe(Effect.provide(Reactivity.layer))

/** Where the server of this test's database listens. */
export const connectionTo = PgClient.PgClient.useSync(({ config }) =>
  new URL(Redacted.value(config.url ?? Redacted.make("")))
)

/** When a connection breaks: before the server gets the COMMIT, once it has it, or when it answers. */
type Loss = "before COMMIT" | "during COMMIT" | "after COMMIT"

/**
 * Connections to the server of a test's database. The first to send COMMIT breaks. Then new ones come from `later`, if
 * that is given, and with `isQuiet`, those that are open hear no more of the server.
 */
export const lossy = (when: Loss, options: { readonly later?: () => Duplex; readonly isQuiet?: true } = {}) =>
  Effect.map(connectionTo, ({ hostname, port }) => {
    const { isQuiet = false, later } = options
    let isOver = false
    return (): Duplex => {
      const isLater = isOver
      if (isLater && later !== undefined) return later()
      const socket = connect(Number(port), hostname)
      const write = socket.write.bind(socket)
      const emit = socket.emit.bind(socket)
      let isLost = false
      const lose = (code: string) => socket.destroy(Object.assign(new Error(code), { code }))
      socket.write = (data: string | Uint8Array) => {
        if (isOver || !Buffer.from(data).includes("COMMIT")) return write(data)
        isLost = isOver = true
        if (when === "after COMMIT") return write(data)
        if (when === "during COMMIT") return write(data, () => void lose("ECONNRESET"))
        lose("EPIPE")
        return false
      }
      socket.emit = (event: string | symbol, ...args: Array<unknown>) => {
        if (event !== "data" || !isOver || isLater) return emit(event, ...args)
        if (isLost) lose("ECONNRESET")
        return isLost || isQuiet || emit(event, ...args)
      }
      return socket
    }
  })

/** The tables of the tests. A row in `deferred` that has no parent is noticed only by `COMMIT`. */
const createTables = (sql: SqlClient.SqlClient) =>
  Effect.all([
    sql`CREATE TABLE things (num INT PRIMARY KEY)`,
    sql`CREATE TABLE deferred (thing INT REFERENCES things DEFERRABLE INITIALLY DEFERRED)`
  ], { discard: true })

const Thing = Schema.Struct({ num: Schema.Int })
const Backend = Schema.Struct({ pid: Schema.Int })

/** The rows that are visible here, in order. */
export const rowsIn = (sql: SqlClient.SqlClient) =>
  Effect.map(
    SqlSchema.findAll({
      Request: Schema.Void,
      Result: Thing,
      execute: () => sql`SELECT num FROM things ORDER BY num`
    })(),
    (rows) => rows.map(({ num }) => num)
  )

export const insertInto = (sql: SqlClient.SqlClient, num: number) =>
  Effect.asVoid(sql`INSERT INTO things VALUES (${num})`)

/** The server process behind the connection that a statement gets here. */
export const backendOf = (sql: SqlClient.SqlClient) =>
  Effect.map(
    SqlSchema.findOne({ Request: Schema.Void, Result: Backend, execute: () => sql`SELECT pg_backend_pid() AS pid` })(),
    ({ pid }) => pid
  )

/** A row that `COMMIT` refuses. */
export const failAtCommit = (sql: SqlClient.SqlClient) => sql`INSERT INTO deferred VALUES (-1)`

/** The level of the transaction in force. */
export const levelOf = (sql: SqlClient.SqlClient) =>
  Effect.map(Effect.serviceOption(sql.transactionService), Option.getOrThrow)

/** Ends a server process, and waits until it is gone. */
export const terminate = (sql: SqlClient.SqlClient, pid: number) => sql`SELECT pg_terminate_backend(${pid}, 10000)`

export const commitErrorOf = <A, E>(exit: Exit.Exit<A, E>) => {
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  return error instanceof Epilogue.CommitError ? error : assert.fail(`no CommitError: ${String(exit)}`)
}

/** Makes the COMMIT of whoever writes to the table `slow` wait until `open`. */
export const slowCommit = Effect.gen(function*() {
  const keeper = yield* another()
  yield* keeper`CREATE TABLE IF NOT EXISTS slow (num INT)`
  yield* keeper`CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'`
  yield* keeper`DROP TRIGGER IF EXISTS wait ON slow`
  yield* keeper`CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait()`
  const isOpen = yield* Latch.make()
  const isLocked = yield* Latch.make()
  yield* Effect.forkScoped(keeper.withTransaction(Effect.gen(function*() {
    yield* keeper`SELECT pg_advisory_xact_lock(1)`
    yield* isLocked.open
    yield* isOpen.await
  })))
  yield* isLocked.await
  return {
    open: isOpen.open,
    reached: Effect.repeat(
      keeper`SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      { until: (rows) => rows.length === 1 }
    )
  }
})

/** The database of a test file, the names of the intents that ran in the test, and the failures that nobody was told. */
export class Things extends Context.Service<Things, {
  readonly notified: Array<number | string>
  readonly failures: Array<string>
  readonly insert: (num: number) => Effect.Effect<void>
  readonly notify: (what: number | string) => Effect.Effect<void>
  /** Writes a row, and defers the news of it. */
  readonly act: (num: number) => Effect.Effect<void, never, Epilogue.Deferred>
  readonly rows: Effect.Effect<ReadonlyArray<number>>
  /** Exactly these rows are there, and exactly these intents ran, in this order. */
  readonly assertDone: (nums: ReadonlyArray<number>) => Effect.Effect<void>
}>()("test/Things") {
  static readonly layer = Layer.effect(
    Things,
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const notified: Array<number | string> = []
      const notify = (what: number | string) => Effect.sync(() => void notified.push(what))
      const insert = (num: number) => Effect.orDie(insertInto(sql, num))
      const rows = Effect.orDie(rowsIn(sql))
      return {
        notified,
        failures: [],
        insert,
        notify,
        act: (num) => Effect.andThen(insert(num), Epilogue.defer(notify, num)),
        rows,
        assertDone: (nums) =>
          Effect.map(rows, (found) => {
            assert.deepStrictEqual(found, nums.toSorted((a, b) => a - b))
            assert.deepStrictEqual(notified, Array.from(nums))
          })
      }
    })
  )
}

/** A fresh database with its client, and what a test of it needs. */
export const layerThings = Layer.provideMerge(
  Things.layer,
  PgClient.layerFrom(makeClient)
).pipe(Layer.provideMerge(TestDatabase.layerServer))

type Around = <A, E, R>(
  core: Effect.Effect<A, E, R>
) => Effect.Effect<A, unknown, Exclude<R, Epilogue.Deferred> | Epilogue.Epilogue | SqlClient.SqlClient>

/** A way of having a boundary and a transaction around one core. */
export interface Mode {
  readonly name: string
  readonly atomic: Around
  readonly layer: (options: {
    readonly onFailure: (failure: Epilogue.Failure) => Effect.Effect<void>
  }) => Layer.Layer<Epilogue.Epilogue, never, SqlClient.SqlClient>
}

const withTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  SqlClient.SqlClient.use((sql) => sql.withTransaction(effect))

/** A boundary that is a transaction. */
export const owning: Mode = { name: "SqlEpilogue", atomic: Epilogue.atomic, layer: SqlEpilogue.layerOptions }

/** A boundary that opens no transaction around its core. */
export const plain: Mode = { name: "Epilogue", atomic: Epilogue.atomic, layer: Epilogue.layerOptions }

export const modes: ReadonlyArray<Mode> = [
  owning,
  {
    name: "SqlEpilogue inside a transaction",
    atomic: (core) => withTransaction(Epilogue.atomic(core)),
    layer: SqlEpilogue.layerOptions
  },
  {
    name: "Epilogue inside a transaction",
    atomic: (core) => withTransaction(Epilogue.atomic(core)),
    layer: Epilogue.layerOptions
  },
  {
    name: "Epilogue around a transaction",
    atomic: (core) => Epilogue.atomic(withTransaction(core)),
    layer: Epilogue.layerOptions
  }
]

/** Runs a test with the engine of a mode. Failures that go to `onFailure` are in `Things.failures`, by their intent. */
export const inMode = (mode: Mode) => <A, E, R>(test: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const { failures, notified } = yield* Things
    const sql = yield* SqlClient.SqlClient
    notified.length = 0
    failures.length = 0
    yield* sql`TRUNCATE things CASCADE`
    return yield* Effect.provide(
      test,
      mode.layer({ onFailure: ({ intent }) => Effect.sync(() => void failures.push(intent.name)) })
    )
  })
