/**
 * A store of durable intents in PostgreSQL.
 *
 * **Example** (The whole way)
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Epilogue, Intent, Outbox, OutboxWorker } from "@epilogue/core"
 * import { PgOutboxStore } from "@epilogue/postgres"
 * import { Config, Deferred, Effect, Layer, Schema } from "effect"
 *
 * class SendReceipt extends Intent.make("SendReceipt", { payload: { email: Schema.String } }) {}
 *
 * const Pg = PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") })
 * const Store = PgOutboxStore.layer().pipe(Layer.provide(Layer.effectDiscard(PgOutboxStore.migrate())))
 *
 * const program = Effect.gen(function*() {
 *   const sent = yield* Deferred.make<string>()
 *   const Handlers = SendReceipt.toLayer(({ email }) => Deferred.succeed(sent, email))
 *   const Worker = OutboxWorker.layer({ intents: [SendReceipt] }).pipe(Layer.provide(Handlers))
 *
 *   return yield* Effect.andThen(
 *     Epilogue.atomic(SendReceipt.defer({ email: "ada@example.com" })),
 *     Deferred.await(sent)
 *   ).pipe(Effect.provide(Layer.merge(Outbox.layer, Worker).pipe(Layer.provide(Store), Layer.provide(Pg))))
 * })
 *
 * await Effect.runPromise(program) // => "ada@example.com"
 * ```
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { type Capabilities, IntentSink, IntentStoreError } from "@epilogue/core/IntentSink"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { answer, batchesOf, duplicatesIn } from "./internal/append.ts"
import { configOf, type Connections, failed, make as makeConnections } from "./internal/connections.ts"
import * as Migrations from "./internal/migrations.ts"
import * as Operations from "./internal/operations.ts"
import * as Queues from "./internal/queues.ts"
import * as Session from "./internal/session.ts"
import * as Signals from "./internal/signals.ts"
import * as Grants from "./internal/sql/grants.ts"
import { quote } from "./internal/sql/names.ts"
import * as Statements from "./internal/statements.ts"

/**
 * Where a store keeps its tables.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The schema of its tables: several stores may share a database. Defaults to `"epilogue"`. */
  readonly schema?: string | undefined
  /** How long what was delivered is kept, for operators to look at. Defaults to not at all: it is deleted at once. */
  readonly keepDelivered?: Duration.Input | undefined
}

const capabilities: Capabilities = { durable: true, transactional: true, ordered: true, priorities: true }

/** How many connections there are at most for what is rare, for claims, and for settlements. */
const controlConnections = 2
const claimConnections = 2
const settleConnections = 2

/**
 * Provides a store of durable intents in the database of a `PgClient`, for boundaries and for workers.
 *
 * **Details**
 *
 * Intents are added through that client, in the transaction of their boundary. For everything else the store has
 * connections of its own, to the same server as the same user, which it opens when it needs them: up to three where
 * intents are only added, and nine where workers run. No name or type that the client transforms matters to it, nor the
 * client's isolation level.
 *
 * The tables have to be there: see `migrate`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options?: Options
): Layer.Layer<OutboxStore | IntentSink, IntentStoreError, PgClient.PgClient> =>
  Layer.effectContext(
    Effect.map(make(options), (store) => Context.add(Context.make(OutboxStore, store), IntentSink, store))
  )

/**
 * Brings the tables of a store to the version that this program needs.
 *
 * **Details**
 *
 * It only ever goes forward, in one transaction, and does nothing where nothing is missing. Any number of processes may
 * run it at once. Programs of the version before keep working beside it.
 *
 * @category migrations
 * @since 0.1.0
 */
export const migrate = (options?: Options): Effect.Effect<void, IntentStoreError, PgClient.PgClient> =>
  Effect.scoped(Effect.gen(function*() {
    const schema = yield* schemaOf(options)
    const connections = yield* makeConnections(configOf(yield* PgClient.PgClient), 1)
    yield* connections.transaction((run) =>
      Effect.forEach(
        Migrations.statements(schema),
        (statement) => run(`The schema ${quote(schema)} could not be migrated`, statement),
        { discard: true }
      )
    )
  }))

/**
 * What `migrate` does, as a script for those who run their own. It is safe to run again.
 *
 * @category migrations
 * @since 0.1.0
 */
export const migrationSql = (options?: Options): string => {
  const schema = options?.schema ?? defaultSchema
  const problem = problemOf(schema)
  if (problem !== undefined) throw new Error(`Epilogue: ${problem}`)
  return Migrations.script(schema)
}

/**
 * The names of database roles that are there. One that is not named is not granted anything.
 *
 * @category options
 * @since 0.1.0
 */
export interface GrantOptions extends Pick<Options, "schema"> {
  /** May store intents, and neither read, claim nor delete any: for programs that only defer. */
  readonly enqueuer?: string | undefined
  /** May deliver intents, and store new ones. */
  readonly worker?: string | undefined
  /** May do what `OutboxAdmin` does. */
  readonly operator?: string | undefined
  /** May migrate: it owns the schema and its tables. */
  readonly migrator?: string | undefined
}

/**
 * What lets roles use a store, and each no more of it than it needs: one statement, which is safe to run again.
 *
 * **When to use**
 *
 * Where programs don't connect as the owner of the tables. A migration grants nothing to anybody.
 *
 * **Gotchas**
 *
 * The schema is made for a `migrator`. For the others the tables have to be there: run it again after each migration.
 *
 * @category migrations
 * @since 0.1.0
 */
export const grantSql = ({ schema = defaultSchema, ...roles }: GrantOptions): string => {
  const names = [roles.enqueuer, roles.worker, roles.operator, roles.migrator].filter((name) => name !== undefined)
  const bad = names.find((name) => name.length === 0 || name.includes("\0") || Buffer.byteLength(name) > 63)
  const problem = problemOf(schema)
    ?? (names.length === 0
      ? "Nothing can be granted to nobody. Name an `enqueuer`, a `worker`, an `operator` or a `migrator`."
      : bad === undefined
      ? undefined
      : `${JSON.stringify(bad)} is no name for a role. Give one of 1 to 63 bytes.`)
  if (problem !== undefined) throw new Error(`Epilogue: ${problem}`)
  return Grants.script(schema, roles)
}

const defaultSchema = "epilogue"

const problemOf = (schema: string): string | undefined =>
  schema.length === 0 || schema.includes("\0") || Buffer.byteLength(schema) > 63
    ? `${JSON.stringify(schema)} is no name for a schema. Choose one of 1 to 63 bytes.`
    : /^pg_/i.test(schema)
    ? `The schema ${JSON.stringify(schema)} belongs to PostgreSQL. Choose a name that does not begin with "pg_".`
    : undefined

const schemaOf = (options: Options | undefined): Effect.Effect<string, IntentStoreError> => {
  const schema = options?.schema ?? defaultSchema
  const problem = problemOf(schema)
  return problem === undefined ? Effect.succeed(schema) : Effect.fail(new IntentStoreError({ message: problem }))
}

const make = Effect.fnUntraced(function*(
  options: Options | undefined
): Effect.fn.Return<OutboxStore.Service, IntentStoreError, PgClient.PgClient | Scope.Scope> {
  const schema = yield* schemaOf(options)
  const keepDelivered = options?.keepDelivered === undefined
    ? undefined
    : Duration.toMillis(Duration.fromInputUnsafe(options.keepDelivered))
  const statements = Statements.make(schema, keepDelivered !== undefined)
  const client = yield* PgClient.PgClient
  const config = configOf(client)
  const control = yield* makeConnections(config, controlConnections, { jit: "off" })
  const settles = yield* makeConnections(config, settleConnections, Statements.planning)
  const claims = yield* makeConnections(config, claimConnections, Statements.planning)
  const beats = yield* makeConnections(config, 1, Statements.passing)
  const notifications = yield* makeConnections(config, 1, Statements.passing)
  yield* check(control, schema, statements)
  const signals = yield* Signals.make({
    config,
    connections: notifications,
    channel: Signals.channelOf(schema),
    notify: statements.notify
  })
  const queues = Queues.make(control, statements)
  const sessions = new Set<Effect.Effect<void>>()
  yield* Effect.addFinalizer(() => Effect.forEach(sessions, (leave) => leave, { discard: true }))
  const userClient = client.withoutTransforms()
  const query = (what: string, sql: string, params: ReadonlyArray<string>) =>
    Effect.mapError(userClient.unsafe(sql, params).values, failed(what))
  const depths = Effect.map(
    control.run("What there is could not be counted", statements.depths),
    // Rows with these columns are what the statement answers.
    (rows) =>
      (rows as ReadonlyArray<readonly [string, number, number, number, number, number]>).flatMap(
        ([tag, waiting, claimed, delayed, dead, oldest]) =>
          waiting + claimed + delayed + dead === 0 ? [] : [{ tag, waiting, claimed, delayed, dead, oldest }]
      )
  )

  return {
    name: "PgOutboxStore",
    capabilities,
    client,
    append: Effect.fnUntraced(function*(envelopes) {
      yield* queues.ensure(
        envelopes.flatMap((envelope) =>
          envelope.partitionKey === undefined ? [envelope] : [envelope, Queues.wholeOf(envelope.tag)]
        )
      )
      const duplicates = duplicatesIn(envelopes)
      const known = new Map<number, string>()
      let transaction: string | undefined
      const placed = envelopes.flatMap((envelope, index) =>
        duplicates.has(index) ? [] : [{
          envelope,
          index,
          queue: queues.idOf(envelope),
          tag: envelope.partitionKey === undefined ? 0 : queues.idOf(Queues.wholeOf(envelope.tag))
        }]
      )
      for (const batch of batchesOf(placed)) {
        const rows = yield* query(
          "Intents could not be added",
          batch.isKeyed ? statements.appendKeyed : statements.append,
          batch.params
        )
        for (const [place, told] of rows) {
          if (place === null) transaction = String(told)
          else known.set(batch.placed[Number(place) - 1]!.index, String(told))
        }
      }
      return answer(envelopes, known, duplicates, transaction)
    }),
    wake: (envelopes) =>
      Effect.clockWith((clock) =>
        Effect.sync(() => {
          const now = clock.currentTimeMillisUnsafe()
          const waiting = new Set<number>()
          const keyed = new Set<number>()
          for (const envelope of envelopes) {
            const due = envelope.runAt === undefined ? envelope.delay ?? 0 : envelope.runAt - now
            const queue = queues.idOf(envelope)
            if (due <= 0) (envelope.partitionKey === undefined ? waiting : keyed).add(queue)
            else signals.tell({ _tag: "Due", queues: [queue], due })
          }
          if (waiting.size > 0) signals.tell({ _tag: "Added", queues: Array.from(waiting) })
          if (keyed.size > 0) signals.tell({ _tag: "Keyed", queues: Array.from(keyed) })
        })
      ),
    mark: (mark) =>
      Effect.asVoid(query("A savepoint could not be marked", statements.mark, [encodeURIComponent(mark)])),
    marks: Effect.map(
      query("The marks of savepoints could not be read", statements.marks, []),
      // One text is what the statement answers.
      (rows) =>
        new Set(((rows[0]?.[0] ?? "") as string).split(" ").filter((mark) => mark !== "").map(decodeURIComponent))
    ),
    open: (opening) =>
      Session.open({
        ...opening,
        queues,
        client,
        signals,
        statements,
        claims,
        settles,
        beats,
        control,
        keepDelivered,
        sessions
      }),
    operations: Operations.make({ schema, connections: control, signals, queues, depths, keepDelivered }),
    depths
  }
})

/** Fails with the reason why the server will not do. */
const check = Effect.fnUntraced(
  function*({ run }: Connections, schema: string, statements: Statements.Statements) {
    const name = quote(schema)
    const fail = (message: string) => Effect.fail(new IntentStoreError({ message }))
    // A row with these columns is what the statement answers.
    const [isReplica, isReadOnly, isMigrated] = (yield* run(
      `The store in the schema ${name} could not be opened`,
      statements.server
    ))[0] as [boolean, boolean, boolean]
    if (isReplica) {
      return yield* fail("PostgreSQL is a replica, where nothing can be stored. Connect the PgClient to the primary.")
    }
    if (isReadOnly) {
      return yield* fail(
        "PostgreSQL lets this user read only. Set default_transaction_read_only to off for the PgClient, its user or the "
          + "database, or connect to another server."
      )
    }
    if (!isMigrated) {
      return yield* fail(
        `The schema ${name} has no tables of a store: found version 0, needed ${Migrations.version}. `
          + "Run PgOutboxStore.migrate, or the script of PgOutboxStore.migrationSql, before the store is used."
      )
    }
    const [found, oldest] = (yield* run(
      `The version of the schema ${name} could not be read`,
      statements.versionFound
    ))[0] as [number, number]
    if (found < Migrations.version) {
      return yield* fail(
        `The tables of the schema ${name} are too old: found version ${found}, needed ${Migrations.version}. `
          + "Run PgOutboxStore.migrate, or the script of PgOutboxStore.migrationSql."
      )
    }
    if (oldest > Migrations.version) {
      return yield* fail(
        `The tables of the schema ${name} are too new: found version ${found}, which needs a program that knows `
          + `version ${oldest}; this one knows ${Migrations.version}. Use a newer version of @epilogue/postgres.`
      )
    }
  }
)
