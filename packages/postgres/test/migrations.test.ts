// How the tables of a store come to be, and what a store says that finds others.
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { IntentStoreError } from "@epilogue/core/IntentSink"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { PgOutboxStore } from "@epilogue/postgres"
import { Effect, Exit, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { all, another, answersOf, envelope, open, storeOver } from "./Store.ts"

let schemas = 0
const freshSchema = () => `schema${schemas++}`

/** The statements of a script. Those with a `$epilogue$` quote have semicolons inside. */
const statementsIn = (script: string) =>
  (script.match(/(?:\$epilogue\$[^]*?\$epilogue\$|[^;$])+/g) ?? []).map((each) => each.trim()).filter((each) =>
    each !== ""
  )

const runScript = Effect.fnUntraced(function*(script: string) {
  const sql = yield* another({ maxConnections: 1 })
  for (const statement of statementsIn(script)) yield* sql.unsafe(statement)
}, Effect.scoped)

const refusal = (schema: string, client?: PgClient.PgClient) =>
  Effect.flatMap(
    client === undefined ? PgClient.PgClient : Effect.succeed(client),
    (sql) => Effect.map(Effect.flip(Effect.scoped(storeOver(sql, { schema }))), ({ message }) => message)
  )

const roundTrip = Effect.fnUntraced(function*(schema: string) {
  const store = yield* storeOver(yield* PgClient.PgClient, { schema })
  const added = envelope()
  yield* store.append([added])
  const session = yield* open(store, [added.tag])
  const claimed = yield* session.claim(all)
  assert.deepStrictEqual(claimed.map(({ id }) => id), [added.id])
}, Effect.scoped)

it.layer(TestDatabase.layer)("migrations", (it) => {
  it.effect("twenty processes may migrate at once", () =>
    Effect.gen(function*() {
      const schema = freshSchema()
      const clients = yield* Effect.all(Array.from({ length: 20 }, () => another()))
      const exits = yield* Effect.forEach(
        clients,
        (client) => Effect.exit(Effect.provideService(PgOutboxStore.migrate({ schema }), PgClient.PgClient, client)),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(exits.filter(Exit.isFailure), [])
      yield* roundTrip(schema)
    }))

  it.effect("a second migration changes nothing", () =>
    Effect.gen(function*() {
      const schema = freshSchema()
      yield* PgOutboxStore.migrate({ schema })
      const store = yield* storeOver(yield* PgClient.PgClient, { schema })
      const added = envelope()
      yield* store.append([added])
      yield* PgOutboxStore.migrate({ schema })
      yield* runScript(PgOutboxStore.migrationSql({ schema }))
      const session = yield* open(store, [added.tag])
      assert.strictEqual((yield* session.claim(all)).length, 1)
    }))

  it.effect("the script is the migration, and may be run again", () =>
    Effect.gen(function*() {
      const schema = freshSchema()
      yield* runScript(PgOutboxStore.migrationSql({ schema }))
      yield* runScript(PgOutboxStore.migrationSql({ schema }))
      yield* roundTrip(schema)
    }))

  it.effect("a migration grants nothing to everybody", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const schema = freshSchema()
      yield* PgOutboxStore.migrate({ schema })
      const granted = yield* sql`SELECT FROM pg_namespace WHERE nspname = ${schema} AND nspacl IS NOT NULL
        UNION ALL SELECT FROM pg_class
        WHERE relnamespace = ${schema}::regnamespace AND relacl IS NOT NULL`
      assert.deepStrictEqual(granted, [])
    }))

  it.effect("stores in two schemas know nothing of each other", () =>
    Effect.gen(function*() {
      const client = yield* PgClient.PgClient
      const [one, other] = [freshSchema(), freshSchema()]
      yield* PgOutboxStore.migrate({ schema: one })
      yield* PgOutboxStore.migrate({ schema: other })
      const [here, there] = [yield* storeOver(client, { schema: one }), yield* storeOver(client, { schema: other })]
      const added = envelope({ idempotencyKey: "a key" })
      yield* here.append([added])
      const session = yield* open(there, [added.tag])
      assert.deepStrictEqual(yield* session.claim(all), [])
      assert.deepStrictEqual(answersOf(yield* there.append([added])), [{ id: added.id, duplicate: false }])
      assert.strictEqual((yield* session.claim(all)).length, 1)
    }))

  it.effect("a schema may have any name", () =>
    Effect.gen(function*() {
      for (const schema of [`My "odd" schema's; --`, "ünïcode", "x".repeat(63)]) {
        yield* PgOutboxStore.migrate({ schema })
        yield* roundTrip(schema)
      }
    }))

  describe("refusals", () => {
    it.effect("a name that PostgreSQL can't have is refused", () =>
      Effect.gen(function*() {
        for (const schema of ["", "x".repeat(64), "a\0b", "pg_mine", "PG_mine"]) {
          assert.include((yield* Effect.flip(PgOutboxStore.migrate({ schema }))).message, "Choose")
          assert.include(yield* refusal(schema), "Choose")
          assert.throws(() => PgOutboxStore.migrationSql({ schema }), "Choose")
        }
      }))

    it.effect("a schema that isn't migrated is refused, with what to do", () =>
      Effect.gen(function*() {
        const schema = freshSchema()
        assert.strictEqual(
          yield* refusal(schema),
          `The schema "${schema}" has no tables of a store: found version 0, needed 1. Run PgOutboxStore.migrate, or the `
            + "script of PgOutboxStore.migrationSql, before the store is used."
        )
      }))

    it.effect("tables that are too old are refused, with what to do", () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const schema = freshSchema()
        yield* PgOutboxStore.migrate({ schema })
        yield* sql`DELETE FROM ${sql(schema)}.migration`
        const message = yield* refusal(schema)
        assert.include(message, "too old: found version 0, needed 1")
        assert.include(message, "PgOutboxStore.migrate")
      }))

    it.effect("tables that are too new are refused, and those that still know this version are not", () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const schema = freshSchema()
        yield* PgOutboxStore.migrate({ schema })
        yield* sql`INSERT INTO ${sql(schema)}.migration (version, oldest) VALUES (98, 1)`
        yield* roundTrip(schema)
        yield* PgOutboxStore.migrate({ schema })
        yield* sql`INSERT INTO ${sql(schema)}.migration (version, oldest) VALUES (99, 98)`
        assert.include(yield* refusal(schema), "too new: found version 99, which needs a program that knows version 98")
      }))

    it.effect("a server that can only be read is refused, with what to do", () =>
      Effect.gen(function*() {
        const schema = freshSchema()
        yield* PgOutboxStore.migrate({ schema })
        const reader = yield* another({ startupParameters: { default_transaction_read_only: "on" } })
        assert.include(yield* refusal(schema, reader), "default_transaction_read_only")
      }))

    it.effect("a user who may not see the tables gets told", () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const schema = freshSchema()
        yield* PgOutboxStore.migrate({ schema })
        yield* sql`CREATE ROLE stranger LOGIN PASSWORD 'stranger'`
        const stranger = yield* another({ username: "stranger", password: Redacted.make("stranger") })
        assert.include(yield* refusal(schema, stranger), `permission denied for schema ${schema}`)
        yield* sql`DROP ROLE stranger`
      }))

    it.effect("a server that does not answer is told as such", () =>
      Effect.gen(function*() {
        const { config } = yield* PgClient.PgClient
        const error = yield* Effect.flip(
          Effect.scoped(
            storeOver({ ...(yield* PgClient.PgClient), config: { ...config, port: 1 } } as PgClient.PgClient)
          )
        )
        assert.instanceOf(error, IntentStoreError)
        assert.include(error.message, "PostgreSQL cannot be reached")
      }))
  })
})
