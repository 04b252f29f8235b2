// What becomes of a boundary whose COMMIT gets no answer, where the server that answers afterwards is another one, or has
// lost its memory. Each test has a server of its own.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { ConfigProvider, Effect, Fiber, Latch, Layer, Option, Redacted, Schedule, Schema } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, SqlSchema } from "effect/sql"
import { once } from "node:events"
import { type AddressInfo, connect, createServer } from "node:net"
import { another, commitErrorOf, connectionTo, insertInto, lossy, makeClient, rowsIn, Things } from "./Postgres.ts"

/** Runs a shell command as the server does, and waits for its end. */
const shell = (sql: SqlClient.SqlClient, command: string) =>
  sql.unsafe(`COPY (SELECT) TO PROGRAM '${command.replaceAll("'", "''")}'`)

const textOf = (sql: SqlClient.SqlClient, expression: string) =>
  Effect.map(
    SqlSchema.findOne({
      Request: Schema.Void,
      Result: Schema.Struct({ text: Schema.String }),
      execute: () => sql.unsafe(`SELECT (${expression})::text AS text`)
    })(),
    ({ text }) => text
  )

/** A boundary that loses the answer to its COMMIT. Whoever looks for it waits, and then finds the server at `port`. */
const lose = Effect.gen(function*() {
  const { notify } = yield* Things
  const isLooking = yield* Latch.make()
  const mayLook = yield* Latch.make()
  const url = yield* connectionTo
  const context = yield* Effect.context()
  let port = Number(url.port)
  const later = () => {
    const socket = connect(port, url.hostname)
    const write = socket.write.bind(socket)
    socket.write = (data: Uint8Array) => {
      Effect.runForkWith(context)(
        Effect.andThen(isLooking.open, Effect.andThen(mayLook.await, Effect.sync(() => write(data))))
      )
      return true
    }
    return socket
  }
  const sql = yield* another({ stream: yield* lossy("after COMMIT", { later }), maxConnections: 1 })
  const fiber = yield* Effect.forkChild(
    Effect.exit(Epilogue.atomic(Effect.andThen(insertInto(sql, 1), Epilogue.defer(notify("intent"))))).pipe(
      Effect.provide(SqlEpilogue.layerOptions({ commitTimeout: "30 seconds" })),
      Effect.provideService(SqlClient.SqlClient, sql)
    )
  )
  yield* isLooking.await
  return { fiber, mayLook, goTo: (other: number) => void (port = other) }
})

const assertUnknown = Effect.fnUntraced(function*({ fiber, mayLook }: Effect.Success<typeof lose>) {
  yield* mayLook.open
  const error = commitErrorOf(yield* Fiber.join(fiber))
  assert.strictEqual(error.outcome, "unknown")
  assert.deepStrictEqual((yield* Things).notified, [])
})

const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  // A server that listens on a port has an address with one.
  const { port } = server.address() as AddressInfo
  server.close()
  return port
})

/** A standby that is as old as it is made: what its primary commits later does not reach it. */
const makeStandby = Effect.gen(function*() {
  const { config } = yield* PgClient.PgClient
  const primary = yield* PgClient.makeClient(config)
  const data = yield* textOf(primary, "current_setting('data_directory')")
  const control = `${yield* textOf(primary, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")}/pg_ctl`
  const folder = `${data}-standby`
  const url = yield* connectionTo
  url.port = String(yield* freePort)
  const open = PgClient.makeClient({ ...config, url: Redacted.make(url.href) })
  const stopped = (pgdata: string) => `--mode=immediate --pgdata=${pgdata}`
  yield* primary`SELECT pg_backup_start('standby', fast => true)`
  yield* shell(primary, `cp -R ${data} ${folder} && rm ${folder}/postmaster.*`)
  const label = yield* textOf(primary, "SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)")
  yield* shell(primary, `printf '%s' '${label}' > ${folder}/backup_label && touch ${folder}/standby.signal`)
  yield* shell(primary, `cp ${data}/pg_wal/0* ${folder}/pg_wal`)
  yield* Effect.acquireRelease(
    shell(primary, `${control} start --wait --pgdata=${folder} --log=${folder}.log --options='-p ${url.port}'`),
    () => Effect.ignore(Effect.scoped(Effect.flatMap(open, (sql) => shell(sql, `${control} stop ${stopped(folder)}`))))
  )
  const standby = yield* open
  return {
    standby,
    port: Number(url.port),
    takeOver: Effect.andThen(
      shell(standby, `${control} promote --wait --pgdata=${folder}`),
      shell(standby, `${control} stop ${stopped(data)}`)
    )
  }
})

const layerOwn = Layer.provideMerge(
  Things.layer,
  PgClient.layerFrom(makeClient)
).pipe(
  Layer.provideMerge(EmbeddedPostgres.layer.pipe(Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({})))))
)

it.live("a COMMIT without an answer is unknown where the server has recovered from a crash", () =>
  Effect.gen(function*() {
    const plain = yield* SqlClient.SqlClient
    const lost = yield* lose
    const walWriter = textOf(plain, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    const pid = yield* walWriter
    yield* Effect.ignore(shell(plain, `kill -9 ${pid}`))
    yield* Effect.repeat(Effect.option(walWriter), {
      until: (found) => Option.isSome(found) && found.value !== pid,
      schedule: Schedule.spaced("50 millis")
    })
    yield* assertUnknown(lost)
    assert.deepStrictEqual(yield* rowsIn(plain), [1])
  }).pipe(Effect.scoped, Effect.provide([layerOwn, Reactivity.layer])))

it.live("a COMMIT without an answer is unknown after a failover, though its id has committed there", () =>
  Effect.gen(function*() {
    const plain = yield* SqlClient.SqlClient
    const { port, standby, takeOver } = yield* makeStandby
    const lost = yield* lose
    const id = yield* textOf(plain, "SELECT xmin FROM things WHERE num = 1")
    yield* takeOver
    // Ids are given out again from where the standby had heard of them.
    yield* Effect.forEach(Array.from({ length: 50 }, (_, n) => 100 + n), (num) => insertInto(standby, num))
    assert.strictEqual(yield* textOf(standby, `pg_xact_status('${id}')`), "committed")
    assert.notInclude(yield* rowsIn(standby), 1)
    lost.goTo(port)
    yield* assertUnknown(lost)
  }).pipe(Effect.scoped, Effect.provide([layerOwn, Reactivity.layer])))
