/** What the tests of durability are given: a store in a database of their own, and short words for what they do often. */
import { PgClient, PgConnection } from "@effect/sql-pg"
import { assert } from "@effect/vitest"
import { Epilogue, type Intent, type IntentSink, OutboxAdmin, OutboxStore, OutboxWorker } from "@epilogue/core"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { Cause, Context, Effect, Exit, Layer, ManagedRuntime, Option, Redacted, Schedule, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { randomUUID } from "node:crypto"
import { connect, createServer, type Socket } from "node:net"
import type { Duplex } from "node:stream"
import { afterAll } from "vitest"
import { insertOrder, layerOutbox, layerTables, SendReceipt } from "./Shop.ts"

/** A store in a fresh database. */
export const layer = layerOutbox.pipe(Layer.provideMerge(layerTables), Layer.provideMerge(TestDatabase.layer))

export type Services =
  | PgClient.PgClient
  | SqlClient.SqlClient
  | OutboxStore.OutboxStore
  | IntentSink.IntentSink
  | Epilogue.Epilogue
  | Scope.Scope

/** Waits for what nothing tells of. */
export const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  Effect.asVoid(Effect.repeat(condition, { until: (isTrue) => isTrue, schedule: Schedule.spaced("10 millis") }))

export const messageOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return assert.fail("It has succeeded")
  const error = Cause.squash(exit.cause)
  return error instanceof Error ? error.message : String(error)
}

// What is stored ------------------------------------------------------------------------------------------------------

/** The tables of the store that hold intents. */
export const tables = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ name: string }>`
    SELECT 'epilogue.' || table_name AS name FROM information_schema.columns
    WHERE table_schema = 'epilogue' AND column_name = 'payload' ORDER BY 1`
  return rows.map(({ name }) => name)
})

/** The rows of intents with this order: the transactions that they came with. */
export const stored = Effect.fnUntraced(function*(order: number) {
  const sql = yield* SqlClient.SqlClient
  const found = yield* Effect.forEach(
    yield* tables,
    (table) =>
      sql<{ xmin: string }>`
        SELECT xmin::text FROM ${sql(table)} WHERE payload::jsonb @> ${JSON.stringify({ order })}::text::jsonb`
  )
  return found.flat().map(({ xmin }) => xmin)
})

export const countOrders = Effect.fnUntraced(function*(order: number) {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql`SELECT FROM orders WHERE id = ${order}`
  return rows.length
})

/** How much there is of an intent, at one moment. */
export const depthOf = ({ _tag }: { readonly _tag: string }) =>
  OutboxStore.OutboxStore.use((store) =>
    Effect.map(store.depths, (depths) => {
      const { claimed, dead, delayed, waiting } = depths.find(({ tag }) => tag === _tag)
        ?? { waiting: 0, claimed: 0, delayed: 0, dead: 0 }
      return { waiting, claimed, delayed, dead }
    })
  )

/** Waits until the store has none of these to deliver any more. */
export const areGone = (intent: { readonly _tag: string }) =>
  until(Effect.map(depthOf(intent), ({ claimed, delayed, waiting }) => claimed + delayed + waiting === 0))

/** Waits until so many are on record as started. */
export const areOnRecord = (count: number) =>
  SqlClient.SqlClient.use((sql) =>
    until(Effect.map(sql`SELECT FROM epilogue.waiting WHERE lease < 0`, (rows) => rows.length === count))
  )

/** The rows of all tables of the store that say this, in whatever column. */
export const rowsWith = Effect.fnUntraced(function*(text: string) {
  const sql = yield* SqlClient.SqlClient
  const all = yield* sql<{ name: string }>`
    SELECT 'epilogue.' || relname AS name FROM pg_class WHERE relnamespace = 'epilogue'::regnamespace AND relkind = 'r'`
  const found = yield* Effect.forEach(
    all,
    ({ name }) =>
      sql.unsafe<{ row: string }>(`SELECT each::text AS row FROM ${name} AS each WHERE each::text LIKE '%${text}%'`)
  )
  return found.flat().map(({ row }) => row)
})

/** What an operator does. */
export const admin = Effect.map(
  Layer.build(Layer.fresh(OutboxAdmin.layer)),
  (context) => Context.get(context, OutboxAdmin.OutboxAdmin)
)

// Deferring and delivering --------------------------------------------------------------------------------------------

/** Commits an order with its receipt, and answers with the receipt's id. */
export const checkout = Effect.fn("checkout")(function*(order: number) {
  yield* insertOrder(order)
  return yield* SendReceipt.defer({ order })
}, Epilogue.atomic)

type Handlers<Intents extends ReadonlyArray<Intent.Any>, E, R> = Layer.Layer<Intent.HandlerOf<Intents[number]>, E, R>

/** Starts a worker, until the scope closes. */
export const work = <const Intents extends ReadonlyArray<Intent.Any>, E, R>(
  options: OutboxWorker.Options<Intents>,
  handlers: Handlers<Intents, E, R>
) => Layer.build(OutboxWorker.layer(options).pipe(Layer.provide(handlers)))

/** Starts a worker that the test closes. */
export const workUntil = Effect.fnUntraced(function*<const Intents extends ReadonlyArray<Intent.Any>, E, R>(
  options: OutboxWorker.Options<Intents>,
  handlers: Handlers<Intents, E, R>
) {
  const scope = yield* Effect.acquireRelease(Scope.make(), (self) => Scope.close(self, Exit.void))
  yield* Scope.provide(work(options, handlers), scope)
  return { close: Scope.close(scope, Exit.void) }
})

/** Notes deliveries of receipts. */
export class Recorder {
  readonly deliveries: Array<Intent.Delivery<{ readonly order: number }>> = []

  get ids(): ReadonlyArray<string> {
    return this.deliveries.map(({ id }) => id)
  }

  get orders(): ReadonlyArray<number> {
    return this.deliveries.map(({ payload }) => payload.order)
  }

  readonly handler = SendReceipt.toLayer((_, delivery) => Effect.sync(() => void this.deliveries.push(delivery)))

  /** Waits for so many. */
  has(count: number): Effect.Effect<void> {
    return until(Effect.sync(() => this.deliveries.length >= count))
  }
}

// Around the store ----------------------------------------------------------------------------------------------------

/** Another store, with a client of its own, as another process has it. */
export const another = Effect.fnUntraced(function*(config?: Partial<PgClient.PgPoolConfig>) {
  const client = yield* PgClient.PgClient
  return yield* Layer.build(
    Layer.fresh(layerOutbox).pipe(Layer.provideMerge(Layer.fresh(PgClient.layer({ ...client.config, ...config }))))
  )
})

/** A connection that no store has. */
export const connection = Effect.flatMap(PgClient.PgClient, ({ config }) => PgConnection.make(config))

/** Runs statements in a transaction that holds what they lock, until it is released. */
export const lock = Effect.fnUntraced(function*(...statements: ReadonlyArray<string>) {
  const { query } = yield* connection
  yield* Effect.forEach(["BEGIN", ...statements], (statement) => query(statement))
  return { release: query("ROLLBACK") }
})

/** What is stored can be read, and no intent can be added, claimed or settled, until it is released. */
export const lockIntents = Effect.flatMap(
  tables,
  (all) => lock(...all.map((table) => `LOCK TABLE ${table} IN EXCLUSIVE MODE`))
)

/** Each worker session shows that it is alive this many times. */
export const beats = (count: number) =>
  SqlClient.SqlClient.use((sql) =>
    Effect.flatMap(
      sql<{ beat: number }>`SELECT coalesce(min(beat), 0)::int AS beat FROM epilogue.worker`,
      ([before]) =>
        until(
          Effect.map(
            sql`SELECT FROM epilogue.worker WHERE beat < ${before!.beat + count}`,
            (behind) => behind.length === 0
          )
        )
    )
  )

/** An intent as it is appended, without a boundary. */
export const envelope = (
  intent: { readonly _tag: string },
  payload: unknown,
  options?: Partial<IntentSink.Envelope>
): IntentSink.Envelope => ({
  id: randomUUID(),
  tag: intent._tag,
  version: 1,
  payload: JSON.stringify(payload),
  partitionKey: undefined,
  idempotencyKey: undefined,
  remember: 0,
  priority: 0,
  delay: undefined,
  runAt: undefined,
  traceparent: undefined,
  ...options
})

/** Leads to the server of the test. It can stop to answer, and it can keep notifications to itself, as some poolers do. */
export const proxy = Effect.fnUntraced(function*() {
  const { config } = yield* PgClient.PgClient
  const target = new URL(Redacted.value(config.url!))
  const sockets = new Set<Socket>()
  let isFrozen = false
  let targetPort = Number(target.port)
  const server = createServer((client) => {
    const upstream = connect(targetPort, target.hostname)
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on("error", () => socket.destroy())
    }
    client.on("data", (data) => isFrozen || upstream.write(data))
    let rest: Buffer = Buffer.alloc(0)
    upstream.on("data", (data) => {
      rest = Buffer.concat([rest, data])
      while (rest.length >= 5 && rest.length > rest.readInt32BE(1)) {
        const message = rest.subarray(0, rest.readInt32BE(1) + 1)
        rest = rest.subarray(message.length)
        // A NotificationResponse.
        if (!isFrozen && message[0] !== 0x41) client.write(message)
      }
    })
    client.on("close", () => upstream.destroy())
    upstream.on("close", () => client.destroy())
  })
  const cut = Effect.sync(() => {
    for (const socket of sockets) socket.destroy()
  })
  const port = yield* Effect.acquireRelease(
    Effect.callback<number>((resume) => {
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0))
      })
    }),
    () => Effect.andThen(cut, Effect.sync(() => server.close()))
  )
  const url = new URL(target)
  url.host = `127.0.0.1:${port}`
  return {
    url: Redacted.make(url.href),
    /** What connects from now on finds another server. */
    leadTo: (other: number) => void (targetPort = other),
    freeze: Effect.sync(() => void (isFrozen = true)),
    /** Ends what is connected. What connects now finds everything as it was. */
    cut: Effect.andThen(cut, Effect.sync(() => void (isFrozen = false)))
  }
})

/** When a connection breaks: before the server gets the `COMMIT`, or when it answers. */
export type Loss = "before COMMIT" | "after COMMIT"

/**
 * Connections to the server of the test. The first to send `COMMIT` after it has sent an order breaks. Then new ones come
 * from `later`.
 */
export const lossy = (when: Loss, later?: () => Duplex) =>
  PgClient.PgClient.useSync(({ config }) => {
    const { hostname, port } = new URL(Redacted.value(config.url!))
    let isOver = false
    const stream = (): Duplex => {
      if (isOver && later !== undefined) return later()
      const socket = connect(Number(port), hostname)
      const write = socket.write.bind(socket)
      const emit = socket.emit.bind(socket)
      let [hasOrder, isLost] = [false, false]
      socket.write = (data: string | Uint8Array) => {
        const text = Buffer.from(data)
        hasOrder ||= text.includes("INSERT INTO orders")
        if (isOver || !hasOrder || !text.includes("COMMIT")) return write(data)
        isLost = isOver = true
        if (when === "after COMMIT") return write(data)
        socket.destroy()
        return false
      }
      socket.emit = (event: string | symbol, ...args: Array<unknown>) => {
        if (!isLost || event !== "data") return emit(event, ...args)
        socket.destroy()
        return true
      }
      return socket
    }
    return { stream, isOver: () => isOver }
  })

// Servers of their own ------------------------------------------------------------------------------------------------

/** A server that only this file uses, with a store. Another one with the same password stands for its successor. */
const makeServer = Effect.fnUntraced(function*(password?: string) {
  const server = yield* Layer.build(Layer.fresh(EmbeddedPostgres.layerOwn()))
  const url = new URL(Redacted.value(Context.get(server, EmbeddedPostgres.EmbeddedPostgres).url))
  const clientOf = (own: URL) => PgClient.layer({ url: Redacted.make(own.href) })
  if (password !== undefined) {
    yield* SqlClient.SqlClient.use((sql) => sql.unsafe(`ALTER USER postgres PASSWORD '${password}'`)).pipe(
      Effect.provide(clientOf(url))
    )
    url.password = password
  }
  const context = yield* Layer.build(
    Layer.fresh(layerOutbox.pipe(Layer.provideMerge(layerTables), Layer.provideMerge(clientOf(url))))
  )
  return { context, port: Number(url.port), password: url.password }
})

/** Two servers. The second stands for one that is promoted. */
class OwnServers extends Context.Service<OwnServers>()("test/OwnServers", {
  make: Effect.gen(function*() {
    const first = yield* makeServer()
    const second = yield* makeServer(first.password)
    const walWriter = SqlClient.SqlClient.use((sql) =>
      sql<{ pid: number }>`SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'`
    ).pipe(Effect.map(([row]) => row?.pid), Effect.option, Effect.map(Option.getOrUndefined))
    /** A process of the first server dies, and it recovers. */
    const crash = Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const pid = yield* walWriter
      yield* Effect.ignore(sql.unsafe(`COPY (SELECT) TO PROGRAM 'kill -9 ${pid}'`))
      yield* until(Effect.map(walWriter, (found) => found !== undefined && found !== pid))
    }).pipe(Effect.provide(first.context))
    return { first, second, crash }
  })
}) {
  static readonly layer = Layer.effect(OwnServers, OwnServers.make)
}

const servers = ManagedRuntime.make(OwnServers.layer)
afterAll(() => servers.dispose())

/** They start with the first test that needs them. */
export const ownServers = Effect.map(servers.contextEffect, (context) => Context.get(context, OwnServers))
