// What each role may do, and what it may not.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, Intent, type IntentSink, Outbox, OutboxAdmin, OutboxWorker } from "@epilogue/core"
import type { Claimed, Settlement } from "@epilogue/core/OutboxStore"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { PgOutboxStore } from "@epilogue/postgres"
import { Context, Deferred, Duration, Effect, Layer, Redacted, Schedule, Schema, Stream } from "effect"
import { randomBytes } from "node:crypto"
import { all, another, answersOf, envelope, envelopes, open, storeOver } from "./Store.ts"

/** Roles belong to the server, and other tests are there as well. A name may need quotes. */
const run = randomBytes(4).toString("hex")
const names = {
  enqueuer: `Enqueuer "${run}"`,
  worker: `worker_${run}`,
  operator: `operator_${run}`,
  migrator: `migrator_${run}`
}

/** A client that connects as somebody. */
const clientOf = (username: string) => another({ username, password: Redacted.make("secret") })

/** A store that connects as somebody. */
const storeOf = (username: string) => Effect.flatMap(clientOf(username), (client) => storeOver(client))

/** The owner of the server makes the roles, and the migrator the tables. */
const layerRoles = Layer.effectDiscard(Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  for (const name of Object.values(names)) {
    yield* sql.unsafe(`CREATE ROLE "${name.replaceAll("\"", "\"\"")}" LOGIN PASSWORD 'secret'`)
  }
  const { migrator, ...others } = names
  yield* sql.unsafe(PgOutboxStore.grantSql({ migrator }))
  const client = yield* clientOf(migrator)
  yield* PgOutboxStore.migrate().pipe(Effect.provideService(PgClient.PgClient, client))
  yield* client.unsafe(PgOutboxStore.grantSql(others))
})).pipe(Layer.provideMerge(TestDatabase.layer))

/** What the database says to a statement. */
const denied = (name: string, statement: string) =>
  Effect.gen(function*() {
    const client = yield* clientOf(name)
    const { cause } = (yield* Effect.flip(client.unsafe(statement))).reason
    assert.match(String(cause), /permission denied|must be owner/, statement)
  })

const refused = (effect: Effect.Effect<unknown, IntentSink.IntentStoreError>) =>
  Effect.map(Effect.flip(effect), ({ message }) => assert.include(message, "permission denied"))

const tables = ["waiting", "keyed", "delayed", "dead", "delivered"]

class Greet extends Intent.make("Greet", { payload: { name: Schema.String }, partitionKey: ({ name }) => name }) {}

it.layer(layerRoles, { excludeTestServices: true })("roles", (it) => {
  it.effect("a migration grants nothing to everybody", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      // 0 is everybody. Without a list the owner alone has rights.
      const granted = yield* sql`
        SELECT relname AS name FROM pg_class, aclexplode(relacl) AS a
        WHERE relnamespace = 'epilogue'::regnamespace AND a.grantee = 0
        UNION ALL SELECT nspname FROM pg_namespace, aclexplode(nspacl) AS a WHERE nspname = 'epilogue' AND a.grantee = 0
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'epilogue'::regnamespace`
      assert.deepStrictEqual(granted, [])
    }))

  it.effect("an enqueuer stores intents of every kind, and can do nothing else with them", () =>
    Effect.gen(function*() {
      const client = yield* clientOf(names.enqueuer)
      const { append, client: own, open: openSession, operations, wake } = yield* storeOver(client)
      const idempotencyKey = "once"
      const kinds = [{}, { partitionKey: "k" }, { delay: 3_600_000 }, { delay: 3_600_000, partitionKey: "k" }, {
        priority: 3
      }]
      const added = kinds.map((kind) => envelope(kind))
      const first = envelope({ idempotencyKey })
      yield* own!.withTransaction(append([...added, first]))
      const again = yield* append([envelope({ tag: first.tag, idempotencyKey })])
      assert.deepStrictEqual(answersOf(again), [{ id: first.id, duplicate: true }])
      yield* wake(added)
      for (const table of tables) {
        yield* denied(names.enqueuer, `SELECT payload FROM epilogue.${table}`)
        yield* denied(names.enqueuer, `DELETE FROM epilogue.${table}`)
        yield* denied(names.enqueuer, `UPDATE epilogue.${table} SET payload = '1'`)
      }
      yield* denied(names.enqueuer, "ALTER TABLE epilogue.waiting ADD COLUMN more text")
      yield* refused(Effect.scoped(openSession({
        subscriptions: [{ tag: first.tag, versions: [1] }],
        lease: Duration.seconds(10)
      })))
      yield* refused(operations.list({}, { limit: 1 }))
      yield* refused(operations.cancel({}))
      yield* refused(operations.pause({ tag: "x", partitionKey: undefined }))
      const { operations: theirs } = yield* storeOf(names.operator)
      const { entries } = yield* theirs.list({ ids: added.map(({ id }) => id) }, { limit: 10 })
      assert.strictEqual(entries.length, added.length)
    }))

  it.effect("what the boundary of an enqueuer stores, a worker delivers, and an operator decides about", () =>
    Effect.gen(function*() {
      const over = Effect.fnUntraced(function*(name: string) {
        return PgOutboxStore.layer({ keepDelivered: "1 hour" }).pipe(
          Layer.provide(Layer.succeed(PgClient.PgClient, yield* clientOf(name))),
          Layer.fresh
        )
      })
      const admin = Context.get(
        yield* Layer.build(OutboxAdmin.layer.pipe(Layer.provide(yield* over(names.operator)))),
        OutboxAdmin.OutboxAdmin
      )
      const enqueue = (name: string, options?: Intent.DeferOptions) =>
        Effect.flatMap(over(names.enqueuer), (store) =>
          Epilogue.atomic(Greet.defer({ name }, options)).pipe(
            Effect.provide(Outbox.layer.pipe(Layer.provide(store)), { local: true })
          ))
      const [rejected, succeeded] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const Handlers = Greet.toLayer(({ name }) =>
        name === "bob"
          ? Effect.andThen(Deferred.succeed(rejected, undefined), Intent.reject("no"))
          : Deferred.succeed(succeeded, undefined)
      )
      yield* Layer.build(
        OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide([Handlers, yield* over(names.worker)]))
      )
      yield* enqueue("ada")
      yield* enqueue("bob")
      yield* enqueue("later", { delay: "1 hour" })
      yield* Deferred.await(rejected)
      yield* Deferred.await(succeeded)
      const entries = yield* Effect.repeat(Stream.runCollect(admin.stream({ tag: "Greet" })), {
        until: (each) => each.every(({ state }) => state !== "waiting" && state !== "claimed"),
        schedule: Schedule.spaced("20 millis")
      })
      assert.sameMembers(entries.map(({ partitionKey, state }) => `${partitionKey} is ${state}`), [
        "ada is delivered",
        "bob is dead",
        "later is delayed"
      ])
      assert.strictEqual(yield* admin.erase({ partitionKey: "ada" }), 1)
      assert.strictEqual(yield* admin.purge({ tag: "Greet" }), 1)
      assert.strictEqual(yield* admin.cancel({ tag: "Greet" }), 1)
    }))

  it.effect("a worker does all that a session does, and nothing of what operators and migrations do", () =>
    Effect.gen(function*() {
      const client = yield* clientOf(names.worker)
      const store = yield* storeOver(client, { keepDelivered: "1 hour" })
      const { tag } = envelope()
      const added = [{}, { partitionKey: "k" }].flatMap((kind) => envelopes(6, { tag, ...kind }))
      yield* store.append(added)
      const session = yield* store.open({
        subscriptions: [{
          tag,
          versions: [1],
          perKey: 10,
          concurrency: 5,
          rateLimit: { limit: 5, window: Duration.hours(1) }
        }],
        lease: Duration.seconds(30)
      })
      yield* session.permit([{ tag, running: 0, concurrency: 5, tokens: 5 }])
      yield* session.beat
      const claimed = yield* session.claim(all)
      assert.strictEqual(claimed.length, added.length)
      assert.deepStrictEqual(yield* session.start(claimed), [])
      const endings: ReadonlyArray<(claimed: Claimed) => Settlement> = [
        (each) => ({ _tag: "Succeeded", claimed: each }),
        (each) => ({ _tag: "Failed", claimed: each, delay: 1, failure: "?" }),
        (each) => ({ _tag: "Snoozed", claimed: each, delay: 1 }),
        (each) => ({ _tag: "Undecodable", claimed: each, delay: 1, failure: "?" }),
        (each) => ({ _tag: "Dead", claimed: each, reason: "exhausted", failure: "?" }),
        (each) => ({ _tag: "Released", claimed: each })
      ]
      const settled = claimed.filter(({ partitionKey }) => partitionKey === undefined)
      assert.deepStrictEqual(yield* session.settle(settled.map((each, index) => endings[index]!(each))), [])
      const [head, ...others] = claimed.filter(({ partitionKey }) => partitionKey !== undefined)
      assert.isTrue(yield* client.withTransaction(session.settleInTransaction(head!)))
      yield* session.settle(others.map((each, index): Settlement =>
        index === 0
          ? { _tag: "Dead", claimed: each, reason: "crashed", failure: "?", blocksKey: true }
          : { _tag: "Released", claimed: each }
      ))
      yield* session.beat
      yield* session.claim(all)
      yield* session.recover
      yield* store.depths
      const { operations } = store
      yield* refused(operations.retry({}))
      yield* refused(operations.purge({}))
      yield* refused(operations.pause({ tag, partitionKey: undefined }))
      yield* denied(names.worker, "DELETE FROM epilogue.dead")
      yield* denied(names.worker, "DROP TABLE epilogue.waiting")
      yield* denied(names.worker, "CREATE TABLE epilogue.more ()")
    }))

  it.effect("an operator does all that operators do, and can neither deliver nor change what is stored", () =>
    Effect.gen(function*() {
      const worker = yield* storeOf(names.worker)
      const store = yield* storeOf(names.operator)
      const { tag } = envelope()
      const { operations } = store
      const session = yield* open(worker, [tag])
      yield* worker.append([
        ...envelopes(4, { tag }),
        ...envelopes(4, { tag, partitionKey: "k" }),
        envelope({ tag, delay: 1e7 })
      ])
      const [held, other] = yield* session.claim({ ...all, rows: 2 })
      yield* session.settle([{ _tag: "Dead", claimed: other!, reason: "rejected", failure: "?" }])
      yield* operations.counts
      yield* operations.sessions
      assert.strictEqual((yield* operations.list({ tag }, { limit: 100 })).entries.length, 9)
      assert.isDefined(yield* operations.find(held!.id))
      assert.deepStrictEqual((yield* operations.blocks(held!.id))?.map(({ _tag }) => _tag), ["Held"])
      for (const partitionKey of [undefined, "k"]) {
        yield* operations.pause({ tag, partitionKey })
        yield* operations.resume({ tag, partitionKey })
      }
      assert.deepStrictEqual(yield* operations.paused, [])
      assert.strictEqual(yield* operations.retry({ tag }), 1)
      assert.strictEqual(yield* operations.reject({ tag }, "?"), 8)
      assert.strictEqual(yield* operations.retry({ tag }), 8)
      assert.strictEqual(yield* operations.reject({ tag, partitionKey: "k" }, "?"), 4)
      assert.strictEqual(yield* operations.erase({ tag, partitionKey: "k" }), 4)
      assert.strictEqual(yield* operations.cancel({ tag }), 5)
      yield* operations.purge({ tag })
      yield* refused(Effect.scoped(open(store, [tag])))
      yield* denied(names.operator, "UPDATE epilogue.waiting SET payload = '1'")
      yield* denied(names.operator, "UPDATE epilogue.waiting SET lease = 1")
      yield* denied(names.operator, "DELETE FROM epilogue.worker")
      yield* denied(names.operator, "TRUNCATE epilogue.dead")
    }))

  it.effect("a migrator takes over a schema that somebody else has made, and rights can be granted again", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const schema = "made by \"another\""
      yield* PgOutboxStore.migrate({ schema })
      const script = PgOutboxStore.grantSql({ schema, ...names })
      yield* sql.unsafe(script)
      yield* sql.unsafe(script)
      const client = yield* clientOf(names.migrator)
      yield* PgOutboxStore.migrate({ schema }).pipe(Effect.provideService(PgClient.PgClient, client))
      yield* client.unsafe(`ALTER TABLE "made by ""another""".waiting ADD COLUMN more text`)
      yield* client.unsafe(`ALTER SEQUENCE "made by ""another""".position CACHE 1`)
    }))

  it("names that can't be are refused, and so is to name nobody", () => {
    assert.throws(() => PgOutboxStore.grantSql({}), "Name an `enqueuer`")
    assert.throws(() => PgOutboxStore.grantSql({ worker: "" }), "no name for a role")
    assert.throws(() => PgOutboxStore.grantSql({ worker: "ü".repeat(32) }), "no name for a role")
    assert.throws(() => PgOutboxStore.grantSql({ schema: "pg_own", worker: "w" }), "belongs to PostgreSQL")
  })
})
