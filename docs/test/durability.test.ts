/*
 * The promises of docs/durability.md: each sentence is the name of a test here, and there is none without one. Each test
 * has a database of its own. Where a process has to die, it is a real one, and it is killed.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, type IntentSink, Outbox, OutboxStore, type OutboxWorker } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import {
  Cause,
  Clock,
  Context,
  DateTime,
  Duration,
  Effect,
  Exit,
  Fiber,
  Latch,
  Layer,
  Option,
  Queue,
  Redacted,
  Schedule,
  Schema,
  type Scope
} from "effect"
import { SqlClient } from "effect/sql"
import { lexer, type Token, type Tokens } from "marked"
import { randomUUID } from "node:crypto"
import { readFileSync } from "node:fs"
import { connect } from "node:net"
import { join } from "node:path"
import type { Duplex } from "node:stream"
import * as Child from "./Child.ts"
import * as Fixture from "./Fixture.ts"
import { insertOrder, SendReceipt } from "./Shop.ts"

const {
  admin,
  another,
  areGone,
  areOnRecord,
  beats,
  checkout,
  connection,
  countOrders,
  depthOf,
  lock,
  lockIntents,
  lossy,
  messageOf,
  ownServers,
  stored,
  tables,
  until,
  work,
  workUntil
} = Fixture

/** A test that has the name of a promise. */
const promise = (sentence: string, body: () => Effect.Effect<unknown, unknown, Fixture.Services>): void =>
  it.live(sentence, () => Effect.suspend(body).pipe(Effect.scoped, Effect.provide(Fixture.layer)))

/** An intent that nobody handles, unless a test does. */
class Survey extends Intent.make("Survey", { payload: { order: Schema.Int } }) {}

/** The same, of a later version. */
class LaterReceipt extends Intent.make("SendReceipt", {
  version: 2,
  payload: { order: Schema.Int, email: Schema.String }
}) {}

/** That of a worker which watches another one die, and so looks often. */
const lease = "2 seconds"

const failWith = {
  fails: Effect.fail("the core failed"),
  dies: Effect.die("the core died"),
  "is interrupted": Effect.interrupt
}

describe("1. Atomic enqueue", () => {
  promise(
    "What the core writes and the intents that it defers are committed by one transaction.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* Effect.gen(function*() {
          yield* insertOrder(1)
          yield* SendReceipt.defer({ order: 1 })
          yield* Survey.defer({ order: 1 }, { delay: "1 hour", idempotencyKey: "1" })
        }).pipe(Epilogue.atomic)
        const [order] = yield* sql<{ xmin: string }>`SELECT xmin::text FROM orders`
        assert.deepStrictEqual(yield* stored(1), [order!.xmin, order!.xmin])
      })
  )

  promise(
    "If the core fails, dies or is interrupted, neither its rows nor its intents are stored.",
    () =>
      Effect.gen(function*() {
        for (const end of Object.values(failWith)) {
          const exit = yield* insertOrder(1).pipe(
            Effect.andThen(SendReceipt.defer({ order: 1 })),
            Effect.andThen(end),
            Epilogue.atomic,
            Effect.exit
          )
          assert.isTrue(Exit.isFailure(exit))
          assert.strictEqual(yield* countOrders(1), 0)
          assert.deepStrictEqual(yield* stored(1), [])
        }
      })
  )

  promise(
    "If the process is killed, at whatever moment, both its rows and its intents are stored, or neither.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const isBlocked = Effect.map(Child.connections, ({ blocked }) => blocked > 0)
        const left = Effect.fnUntraced(function*(order: number) {
          yield* until(Effect.map(Child.connections, ({ all }) => all === 0))
          return [yield* countOrders(order), (yield* stored(order)).length]
        })

        const inTheCore = yield* Child.start("boundary", 1)
        yield* inTheCore.says("deferred")
        yield* inTheCore.end("SIGKILL")
        assert.deepStrictEqual(yield* left(1), [0, 0])

        const whileAdding = yield* Child.start("boundary", 2)
        yield* whileAdding.says("deferred")
        const intents = yield* lockIntents
        yield* whileAdding.tell
        yield* until(isBlocked)
        yield* whileAdding.end("SIGKILL")
        yield* intents.release
        assert.deepStrictEqual(yield* left(2), [0, 0])

        // A constraint that is checked at the COMMIT waits for the test.
        yield* sql`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'`
        yield* sql`CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait()`
        const commit = yield* lock("SELECT pg_advisory_xact_lock(1)")
        const whileCommitting = yield* Child.start("boundary", 3)
        yield* whileCommitting.says("deferred")
        yield* whileCommitting.tell
        yield* until(isBlocked)
        yield* whileCommitting.end("SIGKILL")
        yield* commit.release
        const [orders, receipts] = yield* left(3)
        assert.strictEqual(orders, receipts)

        const after = yield* Child.start("boundary", 4)
        yield* after.tell
        yield* after.says("committed")
        yield* after.end("SIGKILL")
        assert.deepStrictEqual(yield* left(4), [1, 1])
      })
  )

  promise(
    "The intents of a savepoint that rolled back are not stored, and all others are.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const step = (order: number) => Effect.andThen(insertOrder(order), SendReceipt.defer({ order }))
        yield* Effect.gen(function*() {
          yield* step(1)
          yield* Effect.ignore(Epilogue.savepoint(Effect.andThen(step(2), Effect.fail("no"))))
          yield* Effect.ignore(sql.withTransaction(Effect.andThen(step(3), Effect.fail("no"))))
          yield* Epilogue.savepoint(step(4))
          yield* sql.withTransaction(step(5))
        }).pipe(Epilogue.atomic)
        for (const order of [1, 2, 3, 4, 5]) {
          assert.strictEqual((yield* stored(order)).length, yield* countOrders(order))
        }
        assert.deepStrictEqual(
          (yield* sql<{ id: number }>`SELECT id FROM orders ORDER BY id`).map(({ id }) => id),
          [1, 4, 5]
        )
      })
  )

  promise(
    "The intents of a boundary are added by one statement, or by several of up to 8 MiB of payload each.",
    () =>
      Effect.gen(function*() {
        class Large extends Intent.make("Large", { payload: { text: Schema.String }, maxPayloadBytes: 2 ** 22 }) {}
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE statements (name text)`
        yield* sql`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN INSERT INTO statements VALUES (TG_TABLE_NAME); RETURN NULL; END'`
        for (const table of yield* tables) {
          yield* sql`CREATE TRIGGER note AFTER INSERT ON ${sql(table)} FOR EACH STATEMENT EXECUTE FUNCTION note()`
        }
        const took = (core: Effect.Effect<unknown, never, Epilogue.Deferred>) =>
          Effect.gen(function*() {
            yield* sql`DELETE FROM statements`
            yield* Epilogue.atomic(core)
            return (yield* sql`SELECT FROM statements`).length
          })
        assert.strictEqual(
          yield* took(Effect.forEach(Array.from({ length: 100 }), (_, order) => SendReceipt.defer({ order }))),
          1
        )
        const large = Large.defer({ text: "x".repeat(3 * 2 ** 20) })
        assert.strictEqual(yield* took(Effect.andThen(large, large)), 1)
        assert.strictEqual(yield* took(Effect.replicateEffect(large, 5)), 3)
      })
  )

  promise(
    "If the intents cannot be stored, `atomic` fails with a `CommitError`, and nothing is committed.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        for (const table of yield* tables) yield* sql`DROP TABLE ${sql(table)}`
        const error = yield* Effect.flip(checkout(1))
        assert.strictEqual(error._tag, "CommitError")
        assert.strictEqual(error._tag === "CommitError" && error.outcome, "discarded")
        assert.strictEqual(yield* countOrders(1), 0)
      })
  )

  promise(
    "When `atomic` returns, its intents are committed, and `report` answers with the id of each.",
    () =>
      Effect.gen(function*() {
        const { outcomes, value } = yield* Epilogue.report(Effect.all([
          SendReceipt.defer({ order: 1 }),
          SendReceipt.defer({ order: 1 }, { delay: "1 hour" })
        ]))
        // Another connection sees what is committed, and nothing else.
        const rows = yield* Effect.provide(stored(1), yield* another())
        assert.strictEqual(rows.length, 2)
        assert.deepStrictEqual(outcomes.map((outcome) => outcome._tag === "Enqueued" && outcome.id), value)
      })
  )

  promise(
    "Of two intents with one idempotency key the second is not added as long as the key is remembered, and `report` answers with the id of the first.",
    () =>
      Effect.gen(function*() {
        class Reminder extends Intent.make("Reminder", {
          payload: { order: Schema.Int },
          idempotencyKey: ({ order }) => String(order),
          remember: "1 milli"
        }) {}
        const remind = Epilogue.report(SendReceipt.defer({ order: 1 }, { idempotencyKey: "1" }))
        // Side by side, and one after the other.
        const reports = [
          ...yield* Effect.all(Array.from({ length: 8 }, () => remind), { concurrency: "unbounded" }),
          yield* remind
        ]
        const outcomes = reports.map((report) => report.outcomes[0]!)
        const [first, ...others] = outcomes.filter((outcome) => outcome._tag === "Enqueued" && !outcome.duplicate)
        assert.isDefined(first)
        assert.deepStrictEqual(others, [])
        assert.deepStrictEqual(
          outcomes.map((outcome) => outcome._tag === "Enqueued" && outcome.id),
          outcomes.map(() => first?._tag === "Enqueued" && first.id)
        )
        assert.strictEqual((yield* stored(1)).length, 1)

        yield* Epilogue.atomic(Reminder.defer({ order: 2 }))
        yield* until(Effect.map(
          Epilogue.report(Reminder.defer({ order: 2 })),
          ({ outcomes: [outcome] }) => outcome?._tag === "Enqueued" && outcome.duplicate !== true
        ))
        assert.strictEqual((yield* stored(2)).length, 2)
      })
  )
})

describe("2. At least once", () => {
  promise("An intent of a boundary that was discarded is never delivered.", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const recorder = new Fixture.Recorder()
      yield* work({ intents: [SendReceipt] }, recorder.handler)
      for (const end of Object.values(failWith)) {
        yield* Effect.exit(Epilogue.atomic(Effect.andThen(SendReceipt.defer({ order: 1 }), end)))
      }
      yield* Effect.exit(sql.withTransaction(Effect.andThen(checkout(2), Effect.fail("rolled back later"))))
      yield* checkout(3)
      yield* recorder.has(1)
      yield* areGone(SendReceipt)
      assert.deepStrictEqual(recorder.orders, [3])
    }))

  promise(
    "An intent that is committed is delivered, also if the process that committed it is gone.",
    () =>
      Effect.gen(function*() {
        const child = yield* Child.start("boundary", 1)
        const id = yield* child.says("deferred")
        yield* child.tell
        yield* child.says("committed")
        yield* child.end("SIGKILL")
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt] }, recorder.handler)
        yield* recorder.has(1)
        assert.deepStrictEqual(recorder.ids, [id])
      })
  )

  promise(
    "While no worker dies and no lease is lost, each intent is delivered once, by however many workers.",
    () =>
      Effect.gen(function*() {
        const recorder = new Fixture.Recorder()
        const workers = [yield* workUntil({ intents: [SendReceipt] }, recorder.handler)]
        const elsewhere = yield* another()
        for (let i = 0; i < 2; i++) {
          workers.push(yield* Effect.provide(workUntil({ intents: [SendReceipt] }, recorder.handler), elsewhere))
        }
        const ids = yield* Effect.forEach(
          Array.from({ length: 10 }),
          () => Epilogue.atomic(Effect.forEach(Array.from({ length: 50 }), (_, order) => SendReceipt.defer({ order })))
        )
        yield* areGone(SendReceipt)
        for (const { close } of workers) yield* close
        assert.deepStrictEqual(recorder.ids.toSorted(), ids.flat().toSorted())
      })
  )

  promise(
    "What a worker was delivering when it was killed, another one delivers again, with the same id.",
    () =>
      Effect.gen(function*() {
        const child = yield* Child.start("worker")
        const id = yield* checkout(1)
        assert.strictEqual(yield* child.says("handling"), id)
        yield* child.end("SIGKILL")
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt], lease }, recorder.handler)
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(recorder.ids, [id])
      })
  )

  promise(
    "What a worker had delivered, and could not acknowledge before it was killed, is delivered again too.",
    () =>
      Effect.gen(function*() {
        const { query } = yield* connection
        const child = yield* Child.start("worker")
        const id = yield* checkout(1)
        yield* child.says("handling")
        const intents = yield* lockIntents
        yield* child.tell
        yield* child.says("handled")
        yield* until(Effect.map(Child.connections, ({ blocked }) => blocked > 0))
        yield* child.end("SIGKILL")
        // The server does not notice that while it waits for a lock.
        yield* query(
          "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'process'"
        )
        yield* until(Effect.map(Child.connections, ({ all }) => all === 0))
        yield* intents.release
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt], lease }, recorder.handler)
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(recorder.ids, [id])
      })
  )

  promise(
    "An intent that failed is delivered again, until its schedule or its attempts are at an end.",
    () =>
      Effect.gen(function*() {
        class Once extends Intent.make("Once", { payload: { order: Schema.Int }, retry: Schedule.recurs(1) }) {}
        const attempts: Array<string> = []
        const fail = (_: unknown, { attempt, payload: { order } }: Intent.Delivery<{ readonly order: number }>) =>
          Effect.andThen(Effect.sync(() => attempts.push(`${order}: ${attempt}`)), Effect.fail("no"))
        yield* work({ intents: [SendReceipt, Once] }, Layer.merge(SendReceipt.toLayer(fail), Once.toLayer(fail)))
        yield* Epilogue.atomic(Effect.andThen(SendReceipt.defer({ order: 3 }), Once.defer({ order: 1 })))
        yield* until(Effect.map(depthOf(SendReceipt), ({ dead }) => dead === 1))
        yield* until(Effect.map(depthOf(Once), ({ dead }) => dead === 1))
        assert.deepStrictEqual(attempts.toSorted(), ["1: 1", "1: 2", "3: 1", "3: 2", "3: 3"])
      })
  )

  promise(
    "How often an intent has failed is stored, so that a worker goes on where another one stopped.",
    () =>
      Effect.gen(function*() {
        class Stubborn extends Intent.make("Stubborn", { payload: {}, retry: Schedule.spaced(0), maxAttempts: 1e6 }) {}
        const attempts: Array<number> = []
        const workUntilItFailed = Effect.fnUntraced(function*(times: number) {
          const before = attempts.length
          const handler = Stubborn.toLayer((_, { attempt }) =>
            Effect.andThen(Effect.sync(() => attempts.push(attempt)), Effect.fail("no"))
          )
          const { close } = yield* workUntil({ intents: [Stubborn] }, handler)
          yield* until(Effect.sync(() => attempts.length >= before + times))
          yield* close
        })
        yield* Epilogue.atomic(Stubborn.defer({}))
        yield* workUntilItFailed(2)
        yield* workUntilItFailed(2)
        assert.deepStrictEqual(attempts, attempts.map((_, index) => index + 1))
      })
  )

  promise(
    "An intent with a `delay` or a `runAt` is not delivered before that, by the clock of the database.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const now = Effect.map(
          sql<{ now: number }>`SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS now`,
          ([row]) => row!.now
        )
        const lateness = new Map<number, number>()
        const runAt = Math.ceil(yield* now) + 300
        const handler = SendReceipt.toLayer(({ order }, { enqueuedAt }) =>
          Effect.map(now, (at) => lateness.set(order, at - (order === 1 ? enqueuedAt.epochMilliseconds + 300 : runAt)))
        )
        yield* work({ intents: [SendReceipt] }, handler)
        yield* Epilogue.atomic(Effect.andThen(
          SendReceipt.defer({ order: 1 }, { delay: "300 millis" }),
          SendReceipt.defer({ order: 2 }, { runAt: DateTime.makeUnsafe(runAt) })
        ))
        yield* until(Effect.sync(() => lateness.size === 2))
        for (const late of lateness.values()) assert.isAtLeast(late, 0)
      })
  )

  const orderAndSurvey = (order: number) => Effect.andThen(insertOrder(order), Survey.defer({ order }))

  promise(
    "What a transactional handler writes, the intents that it defers, and the acknowledgement are committed by one transaction.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        // What is deleted in a transaction notes which one it was.
        yield* sql`CREATE TABLE acknowledged (xid text)`
        yield* sql`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
          AS 'BEGIN INSERT INTO acknowledged VALUES (pg_current_xact_id()::text); RETURN OLD; END'`
        for (const table of yield* tables) {
          yield* sql`CREATE TRIGGER note BEFORE DELETE ON ${sql(table)} FOR EACH ROW EXECUTE FUNCTION note()`
        }
        yield* work(
          { intents: [SendReceipt] },
          SendReceipt.toLayer(({ order }) => orderAndSurvey(order), { transactional: true })
        )
        yield* Epilogue.atomic(SendReceipt.defer({ order: 1 }))
        yield* until(Effect.map(countOrders(1), (count) => count > 0))
        const [row] = yield* sql<{ xmin: string }>`SELECT xmin::text FROM orders WHERE id = 1`
        assert.deepStrictEqual(yield* stored(1), [row!.xmin])
        assert.deepStrictEqual(yield* sql`SELECT xid FROM acknowledged`, [{ xid: row!.xmin }])
      })
  )

  promise(
    "If it fails, or its worker is killed, nothing of them is left, so that they happen once.",
    () =>
      Effect.gen(function*() {
        const child = yield* Child.start("transactional")
        yield* Epilogue.atomic(SendReceipt.defer({ order: 1 }))
        yield* child.says("handling")
        yield* child.end("SIGKILL")
        let hasFailed = false
        const handler = SendReceipt.toLayer(({ order }) =>
          Effect.gen(function*() {
            yield* orderAndSurvey(order)
            if (hasFailed) return
            hasFailed = true
            return yield* Effect.fail("once")
          }), { transactional: true })
        yield* work({ intents: [SendReceipt], lease }, handler)
        yield* areGone(SendReceipt)
        assert.isTrue(hasFailed)
        assert.strictEqual(yield* countOrders(1), 1)
        assert.strictEqual((yield* depthOf(Survey)).waiting, 1)
      })
  )
})

describe("3. Fenced leases", () => {
  promise(
    "A worker that is alive keeps what it has claimed, however long its handlers take.",
    () =>
      Effect.gen(function*() {
        const answer = yield* Latch.make()
        const ids: Array<string> = []
        const handler = SendReceipt.toLayer((_, { id }) =>
          Effect.andThen(Effect.sync(() => ids.push(id)), answer.await)
        )
        for (let i = 0; i < 2; i++) yield* work({ intents: [SendReceipt], lease: "1 second" }, handler)
        const id = yield* checkout(1)
        yield* until(Effect.sync(() => ids.length > 0))
        // At most four beats to a lease.
        yield* beats(9)
        yield* answer.open
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(ids, [id])
      })
  )

  promise("A clock that is set forward or back ends no lease.", () =>
    Effect.gen(function*() {
      const real = yield* Clock.Clock
      let hours = 0
      const millis = () => real.currentTimeMillisUnsafe() + hours * 3_600_000
      const clock: Clock.Clock = {
        currentTimeMillisUnsafe: millis,
        currentTimeMillis: Effect.sync(millis),
        currentTimeNanosUnsafe: () => BigInt(millis()) * 1_000_000n,
        currentTimeNanos: Effect.sync(() => BigInt(millis()) * 1_000_000n),
        monotonicTimeNanosUnsafe: () => real.monotonicTimeNanosUnsafe(),
        monotonicTimeNanos: real.monotonicTimeNanos,
        sleep: (duration) => real.sleep(duration)
      }
      const answer = yield* Latch.make()
      const ids: Array<string> = []
      const handler = SendReceipt.toLayer((_, { id }) => Effect.andThen(Effect.sync(() => ids.push(id)), answer.await))
      for (let i = 0; i < 2; i++) {
        yield* work({ intents: [SendReceipt], lease: "2 seconds" }, handler).pipe(
          Effect.provideService(Clock.Clock, clock)
        )
      }
      const id = yield* checkout(1)
      yield* until(Effect.sync(() => ids.length > 0))
      for (const step of [1, -2, 0]) {
        hours = step
        yield* beats(2)
      }
      yield* answer.open
      yield* areGone(SendReceipt)
      assert.deepStrictEqual(ids, [id])
    }))

  promise(
    "A worker that cannot confirm its lease interrupts its handlers before others deliver what it had claimed.",
    () =>
      Effect.gen(function*() {
        const events: Array<string> = []
        const note = (event: string) => Effect.sync(() => void events.push(event))
        const gate = yield* Fixture.proxy()
        const elsewhere = yield* another({ url: gate.url })
        const first = SendReceipt.toLayer(() =>
          Effect.andThen(note("begun"), Effect.onInterrupt(Effect.never, () => note("interrupted")))
        )
        yield* Effect.provide(work({ intents: [SendReceipt], lease: "4 seconds" }, first), elsewhere)
        yield* checkout(1)
        yield* until(Effect.sync(() => events.length === 1))
        yield* gate.freeze
        yield* work({ intents: [SendReceipt], lease: "4 seconds" }, SendReceipt.toLayer(() => note("delivered again")))
        yield* until(Effect.sync(() => events.includes("delivered again")))
        assert.deepStrictEqual(events, ["begun", "interrupted", "delivered again"])
        yield* gate.cut
      })
  )

  promise("A worker that has lost its lease can neither claim nor settle.", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const store = yield* OutboxStore.OutboxStore
      const all = { rows: 100, bytes: 1e6 }
      const open = store.open({
        subscriptions: [{ tag: SendReceipt._tag, versions: [1] }],
        lease: Duration.millis(200)
      })
      yield* checkout(1)
      const lost = yield* open
      const [claimed] = yield* lost.claim(all)
      const living = yield* open
      yield* until(Effect.map(living.beat, ({ hasExpired }) => hasExpired))
      assert.strictEqual(yield* living.recover, 1)
      yield* checkout(2)
      assert.deepStrictEqual(yield* lost.claim(all), [])
      assert.deepStrictEqual(yield* lost.settle([{ _tag: "Succeeded", claimed: claimed! }]), [claimed!.id])
      assert.isFalse(yield* sql.withTransaction(lost.settleInTransaction(claimed!)))
      const again = yield* living.claim(all)
      assert.strictEqual(again.length, 2)
      assert.deepStrictEqual(yield* lost.settle([{ _tag: "Succeeded", claimed: claimed! }]), [claimed!.id])
      assert.deepStrictEqual(yield* living.settle(again.map((each) => ({ _tag: "Succeeded", claimed: each }))), [])
    }))

  promise(
    "A worker whose event loop is blocked for longer than its lease has lost it, as if it had crashed.",
    () =>
      Effect.gen(function*() {
        const child = yield* Child.start("blocked")
        const id = yield* checkout(1)
        yield* child.says("handling")
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt], lease }, recorder.handler)
        yield* recorder.has(1)
        assert.deepStrictEqual(recorder.ids, [id])
        const { workers } = yield* admin
        assert.strictEqual((yield* workers).length, 1)
      })
  )
})

describe("4. Crashes", () => {
  /** A process that delivers one at a time. When it is killed, it is delivering the first, and has claimed the others. */
  const startHolding = Effect.fnUntraced(function*(...orders: ReadonlyArray<number>) {
    const child = yield* Child.start("worker", 1)
    const ids = yield* Epilogue.atomic(Effect.forEach(orders, (order) => SendReceipt.defer({ order })))
    yield* child.says("handling")
    yield* until(Effect.map(depthOf(SendReceipt), ({ claimed }) => claimed === orders.length))
    yield* areOnRecord(1)
    return { kill: child.end("SIGKILL"), ids }
  })

  promise(
    "What is on record as started when its worker dies is a suspect: it runs alone the next time.",
    () =>
      Effect.gen(function*() {
        const holding = yield* startHolding(1)
        yield* holding.kill
        const running = new Set<number>()
        const beside: Array<ReadonlyArray<number>> = []
        // The others fill the worker when it comes to the suspect, and while it runs that.
        const handler = SendReceipt.toLayer(({ order }) =>
          Effect.acquireUseRelease(
            Effect.sync(() => {
              running.add(order)
              if (running.has(1)) beside.push(Array.from(running))
            }),
            () => Effect.sleep(order === 1 ? "300 millis" : "20 millis"),
            () => Effect.sync(() => running.delete(order))
          )
        )
        yield* work({ intents: [SendReceipt], lease }, handler)
        yield* Epilogue.atomic(SendReceipt.defer({ order: 2 })).pipe(
          Effect.repeat({ until: () => beside.length > 0, schedule: Schedule.spaced("5 millis") })
        )
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(beside, [[1]])
      })
  )

  promise(
    "Nothing is counted of that crash, neither of what had started nor of what else its worker had claimed.",
    () =>
      Effect.gen(function*() {
        const holding = yield* startHolding(1, 2)
        yield* holding.kill
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt], lease }, recorder.handler)
        yield* areGone(SendReceipt)
        assert.sameMembers([...recorder.ids], holding.ids)
        assert.deepStrictEqual(recorder.deliveries.map(({ attempt, crashes }) => [attempt, crashes]), [[1, 0], [1, 0]])
      })
  )

  promise(
    "A crash while it runs alone is counted, and after `maxCrashes` of them it is a dead letter.",
    () =>
      Effect.gen(function*() {
        class Fragile extends Intent.make("SendReceipt", { payload: { order: Schema.Int }, maxCrashes: 1 }) {}
        const holding = yield* startHolding(1)
        const next = yield* Child.start("worker", 1)
        yield* holding.kill
        yield* next.says("handling")
        const { get } = yield* admin
        const found = Effect.map(get(holding.ids[0]!), Option.getOrThrow)
        assert.strictEqual((yield* found).crashes, 0)
        const orders: Array<number> = []
        yield* work(
          { intents: [Fragile], lease },
          Fragile.toLayer(({ order }) => Effect.sync(() => orders.push(order)))
        )
        yield* next.end("SIGKILL")
        yield* until(Effect.map(depthOf(Fragile), ({ dead }) => dead === 1))
        const { crashes, failures, reason } = yield* found
        assert.deepStrictEqual([crashes, failures, reason], [1, 0, "crashed"])
        assert.deepStrictEqual(orders, [])
      })
  )
})

describe("5. What cannot be delivered", () => {
  promise(
    "An intent whose tag or version no worker knows waits for one that does, and holds up no other.",
    () =>
      Effect.gen(function*() {
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt] }, recorder.handler)
        yield* Epilogue.atomic(Effect.gen(function*() {
          yield* Survey.defer({ order: 1 })
          yield* LaterReceipt.defer({ order: 2, email: "ada@example.com" })
          yield* SendReceipt.defer({ order: 3 })
        }))
        yield* recorder.has(1)
        yield* until(Effect.map(depthOf(SendReceipt), ({ claimed }) => claimed === 0))
        assert.deepStrictEqual(recorder.orders, [3])
        assert.deepStrictEqual([(yield* depthOf(Survey)).waiting, (yield* depthOf(LaterReceipt)).waiting], [1, 1])

        const orders: Array<number> = []
        const note = ({ order }: { readonly order: number }) => Effect.sync(() => orders.push(order))
        yield* work(
          { intents: [Survey, LaterReceipt] },
          Layer.merge(Survey.toLayer(note), LaterReceipt.toLayer(note))
        )
        yield* areGone(Survey)
        yield* areGone(LaterReceipt)
        assert.sameMembers(orders, [1, 2])
      })
  )

  // The same tag and version, and another payload: what a mistake looks like.
  class Mistaken extends Intent.make("Survey", { payload: { orderId: Schema.Int } }) {}
  const never = Mistaken.toLayer(() => Effect.die("it could be read"))

  promise(
    "A payload that a worker cannot read is put off, and no attempt is counted, in case another one can.",
    () =>
      Effect.gen(function*() {
        const mistaken = yield* workUntil({ intents: [Mistaken], decodeGrace: "5 seconds" }, never)
        yield* Epilogue.atomic(Survey.defer({ order: 1 }))
        yield* until(Effect.map(depthOf(Survey), ({ delayed }) => delayed === 1))
        yield* mistaken.close
        const attempts: Array<number> = []
        yield* work(
          { intents: [Survey] },
          Survey.toLayer((_, { attempt }) => Effect.sync(() => attempts.push(attempt)))
        )
        yield* areGone(Survey)
        assert.deepStrictEqual(attempts, [1])
      })
  )

  promise("If no worker could read it for `decodeGrace`, it is a dead letter.", () =>
    Effect.gen(function*() {
      yield* work({ intents: [Mistaken], decodeGrace: "500 millis" }, never)
      yield* Epilogue.atomic(Survey.defer({ order: 1 }))
      yield* areGone(Survey)
      assert.strictEqual((yield* depthOf(Survey)).dead, 1)
    }))

  promise("A dead letter holds up no other intent.", () =>
    Effect.gen(function*() {
      const orders: Array<number> = []
      const handler = SendReceipt.toLayer(({ order }) =>
        order === 1 ? Intent.reject("no such order") : Effect.sync(() => orders.push(order))
      )
      yield* work({ intents: [SendReceipt], concurrency: 1 }, handler)
      yield* Epilogue.atomic(Effect.forEach([1, 2, 3], (order) => SendReceipt.defer({ order })))
      yield* areGone(SendReceipt)
      assert.deepStrictEqual(orders, [2, 3])
    }))

  promise("A claim takes no more payload than it may, or one intent that is larger.", () =>
    Effect.gen(function*() {
      class Large extends Intent.make("Large", { payload: { text: Schema.String }, maxPayloadBytes: 2 ** 22 }) {}
      const store = yield* OutboxStore.OutboxStore
      yield* Epilogue.atomic(
        Effect.forEach([3, 1, 1, 1], (size) => Large.defer({ text: "x".repeat(size * 2 ** 20 - 11) }))
      )
      const session = yield* store.open({
        subscriptions: [{ tag: Large._tag, versions: [1] }],
        lease: Duration.minutes(1)
      })
      const claim = Effect.map(session.claim({ rows: 100, bytes: 2 * 2 ** 20 }), (claimed) =>
        claimed.map(({ payload }) => payload.length / 2 ** 20))
      assert.deepStrictEqual([yield* claim, yield* claim, yield* claim], [[3], [1, 1], [1]])
    }))
})

describe("6. Order", () => {
  class Step extends Intent.make("Step", {
    payload: { order: Schema.Int },
    partitionKey: () => "key",
    retry: Schedule.spaced("50 millis")
  }) {}

  /** Notes the orders of what a handler is given, when it begins and when it ends. */
  const noting = <E>(handler: (order: number) => Effect.Effect<unknown, E>) => {
    const orders: Array<number> = []
    let running = 0
    let most = 0
    return {
      orders,
      most: () => most,
      layer: Step.toLayer(({ order }) =>
        Effect.acquireUseRelease(
          Effect.sync(() => {
            most = Math.max(most, ++running)
            orders.push(order)
          }),
          () => handler(order),
          () => Effect.sync(() => running--)
        )
      )
    }
  }

  promise(
    "Deliveries of one key are made one at a time over all workers, in the order in which their transactions committed.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const elsewhere = yield* another()
        const [hasDeferred, mayCommit] = [yield* Latch.make(), yield* Latch.make()]
        // It begins and defers first, and commits last.
        const last = Effect.andThen(Step.defer({ order: 10 }), Effect.andThen(hasDeferred.open, mayCommit.await))
        const committing = yield* Effect.forkChild(Epilogue.atomic(last))
        yield* hasDeferred.await
        for (let order = 1; order < 10; order++) {
          const step = Epilogue.atomic(Step.defer({ order }))
          yield* order % 2 === 0 ? Effect.provide(step, elsewhere) : step
        }
        yield* mayCommit.open
        yield* Fiber.join(committing)
        const steps = noting(() => Effect.sleep("5 millis"))
        for (const context of [elsewhere, yield* another()]) {
          for (let i = 0; i < 2; i++) yield* Effect.provide(work({ intents: [Step] }, steps.layer), context)
        }
        yield* areGone(Step)
        // It has stored its intent and has not committed, so the next one waits, though there are workers that wait for it.
        const isStored = yield* Latch.make()
        const before = yield* Effect.forkChild(sql.withTransaction(
          Effect.andThen(
            Epilogue.atomic(Step.defer({ order: 11 })),
            Effect.andThen(isStored.open, Effect.sleep("300 millis"))
          )
        ))
        yield* isStored.await
        yield* Effect.provide(Epilogue.atomic(Step.defer({ order: 12 })), elsewhere)
        yield* Fiber.join(before)
        yield* areGone(Step)
        assert.deepStrictEqual(steps.orders, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        assert.strictEqual(steps.most(), 1)
      })
  )

  promise(
    "One that has failed, snoozed or could not be read holds its key until it is made again.",
    () =>
      Effect.gen(function*() {
        const unreadable = new Set<string>()
        const Readable = Schema.String.check(Schema.makeFilter((key) => !unreadable.delete(key)))
        class Again extends Intent.make("Again", {
          payload: { key: Readable, order: Schema.Int },
          partitionKey: ({ key }) => key,
          retry: Schedule.spaced("50 millis")
        }) {}
        const keys = ["fails", "snoozes", "can't be read"]
        yield* Epilogue.atomic(
          Effect.forEach([1, 2], (order) => Effect.forEach(keys, (key) => Again.defer({ key, order })))
        )
        unreadable.add("can't be read")
        const done: Array<string> = []
        const held = new Set(keys)
        const handler = Again.toLayer(({ key, order }): Effect.Effect<void, string | Intent.Snoozed> => {
          const isFirst = held.delete(key)
          return isFirst && key === "fails"
            ? Effect.fail("once")
            : isFirst && key === "snoozes"
            ? Intent.snooze("50 millis")
            : Effect.sync(() => void done.push(`${key} ${order}`))
        })
        yield* work({ intents: [Again], decodeGrace: "2 seconds" }, handler)
        yield* areGone(Again)
        for (const key of keys) {
          assert.deepStrictEqual(done.filter((each) => each.startsWith(key)), [`${key} 1`, `${key} 2`])
        }
        assert.strictEqual(unreadable.size, 0)
      })
  )

  promise("A delayed one joins the end of its key when it is due.", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* Epilogue.atomic(Step.defer({ order: 3 }, { delay: "100 millis" }))
      yield* Epilogue.atomic(Effect.forEach([1, 2], (order) => Step.defer({ order })))
      const steps = noting((order) => order === 1 ? sql`SELECT pg_sleep(0.2)` : Effect.void)
      yield* work({ intents: [Step] }, steps.layer)
      yield* areGone(Step)
      assert.deepStrictEqual(steps.orders, [1, 2, 3])
    }))

  promise(
    "A dead letter lets its key go on, or with `onExhausted: \"block\"` holds it until an operator decides.",
    () =>
      Effect.gen(function*() {
        class Strict extends Intent.make("Step", {
          payload: { order: Schema.Int },
          partitionKey: () => "strict",
          onExhausted: "block"
        }) {}
        const { retry, why } = yield* admin
        let isMended = false
        const steps = noting((order) => order % 10 === 1 && !isMended ? Intent.reject("no") : Effect.void)
        yield* Epilogue.atomic(Effect.forEach([1, 2], (order) => Step.defer({ order })))
        const passing = yield* workUntil({ intents: [Step] }, steps.layer)
        yield* areGone(Step)
        yield* passing.close
        assert.deepStrictEqual(steps.orders, [1, 2])

        const [dead, behind] = yield* Epilogue.atomic(Effect.forEach([11, 12], (order) => Strict.defer({ order })))
        yield* work({ intents: [Strict] }, steps.layer)
        yield* until(Effect.map(why(behind!), (blocks) => Option.getOrThrow(blocks)[0]?._tag === "KeyBlocked"))
        assert.deepStrictEqual(steps.orders, [1, 2, 11])
        isMended = true
        assert.strictEqual(yield* retry({ ids: [dead!] }), 1)
        yield* areGone(Strict)
        assert.deepStrictEqual(steps.orders, [1, 2, 11, 11, 12])
      })
  )

  promise("A priority for an intent with a key is refused.", () =>
    Effect.gen(function*() {
      assert.throws(
        () => Intent.make("Both", { payload: {}, partitionKey: () => "key", priority: 1 }),
        /"Both" can't be made: it has both a `partitionKey`.* and a `priority`/
      )
      const exit = yield* Effect.exit(Epilogue.atomic(Step.defer({ order: 1 }, { priority: 1 })))
      assert.match(messageOf(exit), /"Step" can't be deferred: it has both a `partitionKey`.* and a `priority`/)
    }))
})

describe("7. Wakes", () => {
  /** A worker that does not look into the store by itself, because it waits for an answer to its beat. */
  const workWithoutPolls = Effect.fnUntraced(function*(recorder: Fixture.Recorder) {
    const store = yield* OutboxStore.OutboxStore
    yield* work({ intents: [SendReceipt], lease: "1 hour" }, recorder.handler)
    const session = yield* store.open({ subscriptions: [], lease: Duration.hours(1) })
    yield* until(Effect.map(session.beat, ({ isListening }) => isListening))
    yield* lock("SELECT FROM epilogue.worker FOR NO KEY UPDATE")
  })

  promise("A commit wakes the workers of its own process.", () =>
    Effect.gen(function*() {
      const recorder = new Fixture.Recorder()
      yield* workWithoutPolls(recorder)
      yield* checkout(1)
      yield* recorder.has(1)
      yield* checkout(2)
      yield* recorder.has(2)
    }))

  promise("It wakes those of other processes by a notification.", () =>
    Effect.gen(function*() {
      const recorder = new Fixture.Recorder()
      yield* workWithoutPolls(recorder)
      for (const order of [1, 2]) {
        const child = yield* Child.start("boundary", order)
        yield* child.tell
        yield* recorder.has(order)
      }
    }))

  promise("No notification is sent in the transaction of the boundary.", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const listener = yield* connection
      const notifications = yield* listener.listen("epilogue:epilogue")
      const [row] = yield* checkout(1).pipe(
        Effect.andThen(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`),
        Epilogue.atomic
      )
      const { processId } = yield* Queue.take(notifications)
      assert.notStrictEqual(processId, row!.pid)
    }))

  promise(
    "An intent that no worker was told of is found within 5 seconds, or 1 second where notifications are known not to arrive.",
    () =>
      Effect.gen(function*() {
        const gate = yield* Fixture.proxy()
        const clock = yield* Clock.Clock
        const found = Effect.fnUntraced(function*(listens: boolean) {
          const sql = yield* SqlClient.SqlClient
          const store = yield* OutboxStore.OutboxStore
          const recorder = new Fixture.Recorder()
          yield* work({ intents: [SendReceipt], lease: "1 minute" }, recorder.handler)
          const session = yield* store.open({ subscriptions: [], lease: Duration.minutes(1) })
          yield* until(Effect.map(session.beat, ({ isListening }) => isListening === listens))
          const start = clock.monotonicTimeNanosUnsafe()
          yield* sql.withTransaction(store.append([Fixture.envelope(SendReceipt, { order: 1 })]))
          yield* recorder.has(1)
          return Number(clock.monotonicTimeNanosUnsafe() - start) / 1e9
        }, Effect.scoped)
        // Half a second is for the work itself.
        assert.isBelow(yield* found(true), 5.5)
        assert.isBelow(yield* Effect.provide(found(false), yield* another({ url: gate.url })), 1.5)
      })
  )
})

describe("8. Flat cost", () => {
  promise(
    "What a delivery reads of the tables does not grow with what waits, is delayed, is dead or is kept.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const names = yield* sql<{ name: string }>`SELECT 'epilogue.' || relname AS name FROM pg_stat_user_tables
          WHERE schemaname = 'epilogue'`
        for (const { name } of names) yield* sql.unsafe(`ALTER TABLE ${name} SET (autovacuum_enabled = off)`)
        const blocks = Effect.map(
          sql<{ sum: number }>`SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::float8 AS sum
            FROM pg_statio_user_tables WHERE schemaname = 'epilogue'`,
          ([row]) => row!.sum
        )
        /** With a store whose connections have ended afterwards, which is when they tell what they have read. */
        const withStore = <A, E>(use: (store: OutboxStore.OutboxStore.Service) => Effect.Effect<A, E, Scope.Scope>) =>
          Effect.gen(function*() {
            const elsewhere = yield* another({ applicationName: "counted" })
            const keeping = Layer.build(Layer.fresh(PgOutboxStore.layer({ keepDelivered: "1 hour" })))
            yield* use(Context.get(yield* Effect.provide(keeping, elsewhere), OutboxStore.OutboxStore))
          }).pipe(
            Effect.scoped,
            Effect.andThen(until(Effect.map(
              sql`SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'counted'`,
              (rows) => rows.length === 0
            )))
          )
        /** Half of them have keys, of which there are a hundred. */
        const add = (count: number, delay?: number) =>
          withStore(({ append }) =>
            append(Array.from(
              { length: count },
              (_, order) =>
                Fixture.envelope(SendReceipt, { order }, {
                  partitionKey: order % 2 === 0 ? undefined : `${order % 200}`,
                  delay
                })
            ))
          )
        const deliver = (count: number, atOnce: number, isDead = false) =>
          withStore(({ open }) =>
            Effect.gen(function*() {
              const session = yield* open({
                subscriptions: [{ tag: SendReceipt._tag, versions: [1], perKey: 100 }],
                lease: Duration.minutes(1)
              })
              for (let left = count; left > 0;) {
                const claimed = yield* session.claim({ rows: Math.min(left, atOnce), bytes: 1e9 })
                assert.isAbove(claimed.length, 0)
                left -= claimed.length
                yield* session.settle(claimed.map((each) =>
                  isDead
                    ? { _tag: "Dead", claimed: each, reason: "rejected", failure: "" }
                    : { _tag: "Succeeded", claimed: each }
                ))
              }
            })
          )
        /** What it takes to deliver twenty. */
        const read = Effect.gen(function*() {
          yield* withStore(({ client }) => client!.unsafe("VACUUM"))
          const before = yield* blocks
          yield* deliver(20, 20)
          return (yield* blocks) - before
        })
        yield* add(100)
        const few = yield* read
        yield* add(5_000)
        yield* deliver(2_000, 500, true)
        yield* deliver(2_000, 500)
        yield* add(2_000, 3_600_000)
        yield* add(20_000)
        assert.isBelow(yield* read, few * 2)
      })
  )
})

describe("9. A `COMMIT` without an answer", () => {
  /** The engine over a store whose first connection to send `COMMIT` breaks. */
  const losing = Effect.fnUntraced(function*(
    when: Fixture.Loss,
    options: Outbox.OutboxOptions & { readonly later?: () => Duplex } = {}
  ) {
    const { stream } = yield* lossy(when, options.later)
    const elsewhere = yield* another({ stream })
    return <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      effect.pipe(Effect.provide(Layer.fresh(Outbox.layerOptions(options))), Effect.provide(elsewhere))
  })
  const outcomeOf = <A, E>(effect: Effect.Effect<A, E | Epilogue.CommitError>) =>
    Effect.map(Effect.flip(effect), (error) => {
      assert.instanceOf(error, Epilogue.CommitError)
      return error.outcome
    })

  promise(
    "If the connection breaks before the `COMMIT` of a boundary with intents is answered, PostgreSQL is asked on another one, and `atomic` goes on if it has committed.",
    () =>
      Effect.gen(function*() {
        const over = yield* losing("after COMMIT")
        const ran: Array<string> = []
        const closure = Epilogue.defer(Effect.sync(() => ran.push("closure")))
        const core = Effect.andThen(insertOrder(1), Effect.tap(SendReceipt.defer({ order: 1 }), closure))
        const { outcomes, value } = yield* over(Epilogue.report(core))
        assert.deepStrictEqual(outcomes.map(({ _tag }) => _tag), ["Enqueued", "Ran"])
        assert.deepStrictEqual(ran, ["closure"])
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt] }, recorder.handler)
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(recorder.ids, [value])
      })
  )

  promise(
    "If it has not committed, `atomic` fails with a `CommitError` whose outcome is `\"discarded\"`.",
    () =>
      Effect.gen(function*() {
        const over = yield* losing("before COMMIT")
        assert.strictEqual(yield* outcomeOf(over(checkout(1))), "discarded")
        assert.deepStrictEqual([yield* countOrders(1), yield* stored(1)], [0, []])
      })
  )

  promise(
    "After a failover or a crash of the server, or with no answer within `commitTimeout`, the outcome is `\"unknown\"`.",
    () =>
      Effect.gen(function*() {
        const away = yield* losing("after COMMIT", {
          later: () => connect(1, "127.0.0.1"),
          commitTimeout: "200 millis"
        })
        assert.strictEqual(yield* outcomeOf(away(checkout(1))), "unknown")
        assert.strictEqual((yield* stored(1)).length, 1)

        const { crash, first, second } = yield* ownServers
        for (const goesElsewhere of [true, false]) {
          yield* Effect.gen(function*() {
            const [isLooking, mayLook] = [yield* Latch.make(), yield* Latch.make()]
            const context = yield* Effect.context()
            let { port } = first
            const later = () => {
              const socket = connect(port, "127.0.0.1")
              const write = socket.write.bind(socket)
              socket.write = (data: Uint8Array) => {
                Effect.runForkWith(context)(
                  Effect.andThen(isLooking.open, Effect.andThen(mayLook.await, Effect.sync(() => write(data))))
                )
                return true
              }
              return socket
            }
            const over = yield* losing("after COMMIT", { later, commitTimeout: "20 seconds" })
            const outcome = yield* Effect.forkChild(outcomeOf(over(checkout(2))))
            // The answer was lost. Whoever looks for it finds another server, or one that has been down.
            if (goesElsewhere) port = second.port
            yield* isLooking.await
            if (!goesElsewhere) yield* crash
            yield* mayLook.open
            assert.strictEqual(yield* Fiber.join(outcome), "unknown")
          }).pipe(Effect.provide(first.context))
        }
      })
  )

  promise(
    "A transactional handler whose `COMMIT` got no answer is not delivered to again if it has committed.",
    () =>
      Effect.gen(function*() {
        const { isOver, stream } = yield* lossy("after COMMIT")
        const elsewhere = yield* another({ stream })
        yield* Epilogue.atomic(Effect.forEach([1, 2], (order) => SendReceipt.defer({ order })))
        const orders: Array<number> = []
        const handler = SendReceipt.toLayer(
          ({ order }) => Effect.andThen(Effect.sync(() => orders.push(order)), insertOrder(order)),
          { transactional: true }
        )
        yield* Effect.provide(work({ intents: [SendReceipt], concurrency: 1 }, handler), elsewhere)
        yield* areGone(SendReceipt)
        assert.isTrue(isOver())
        assert.sameMembers(orders, [1, 2])
        assert.deepStrictEqual([yield* countOrders(1), yield* countOrders(2)], [1, 1])
      })
  )
})

describe("10. Fairness and limits", () => {
  promise("Each tag has its share of every claim, and what it leaves is lent to others.", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore.OutboxStore
      yield* Epilogue.atomic(Effect.forEach(Array.from({ length: 3_000 }), (_, order) => SendReceipt.defer({ order })))
      yield* Epilogue.atomic(Survey.defer({ order: 1 }))
      const session = yield* store.open({
        subscriptions: [SendReceipt, Survey].map(({ _tag }) => ({ tag: _tag, versions: [1] })),
        lease: Duration.minutes(1)
      })
      const claim = Effect.map(
        session.claim({ rows: 20, bytes: 1e6 }),
        (claimed) => [SendReceipt, Survey].map(({ _tag }) => claimed.filter(({ tag }) => tag === _tag).length)
      )
      assert.deepStrictEqual(yield* claim, [19, 1])
      assert.deepStrictEqual(yield* claim, [20, 0])
    }))

  promise("Of a tag, a higher priority goes first.", () =>
    Effect.gen(function*() {
      const orders: Array<number> = []
      for (const order of [1, 2, 3, 4]) {
        yield* Epilogue.atomic(Survey.defer({ order }, { priority: order < 3 ? -1 : order }))
      }
      yield* work(
        { intents: [Survey], concurrency: 1 },
        Survey.toLayer(({ order }) => Effect.sync(() => orders.push(order)))
      )
      yield* areGone(Survey)
      assert.deepStrictEqual(orders, [4, 3, 1, 2])
    }))

  promise("A limit of concurrency or rate holds over all workers whose lease holds.", () =>
    Effect.gen(function*() {
      let [running, most, started] = [0, 0, 0]
      const handlers = Layer.merge(
        SendReceipt.toLayer(() =>
          Effect.acquireUseRelease(
            Effect.sync(() => most = Math.max(most, ++running)),
            () => Effect.sleep("20 millis"),
            () => Effect.sync(() => running--)
          ), { concurrency: 2 }),
        Survey.toLayer(() => Effect.sync(() => started++), { rateLimit: { limit: 5, window: "1 hour" } })
      )
      for (const context of [yield* another(), yield* another()]) {
        yield* Effect.provide(work({ intents: [SendReceipt, Survey] }, handlers), context)
      }
      yield* Epilogue.atomic(Effect.forEach(Array.from({ length: 20 }), (_, order) =>
        Effect.andThen(SendReceipt.defer({ order }), Survey.defer({ order }))))
      yield* areGone(SendReceipt)
      assert.strictEqual(most, 2)
      const { list, why } = yield* admin
      yield* until(Effect.map(depthOf(Survey), ({ claimed, waiting }) =>
        claimed === 0 && waiting === 15))
      const { entries } = yield* list({ tag: Survey._tag }, { limit: 1 })
      assert.deepStrictEqual(Option.getOrThrow(yield* why(entries[0]!.id)), [{
        _tag: "LimitReached",
        limit: "rateLimit"
      }])
      assert.strictEqual(started, 5)
    }))
})

describe("11. Shutdown", () => {
  promise(
    "A worker whose layer closes claims no more, and lets the deliveries under way end.",
    () =>
      Effect.gen(function*() {
        const answer = yield* Latch.make()
        const orders: Array<number> = []
        const handler = SendReceipt.toLayer(({ order }) =>
          Effect.andThen(Effect.sync(() => orders.push(order)), answer.await)
        )
        const worker = yield* workUntil({ intents: [SendReceipt], concurrency: 1 }, handler)
        yield* Epilogue.atomic(Effect.forEach([1, 2], (order) => SendReceipt.defer({ order })))
        yield* until(Effect.map(depthOf(SendReceipt), ({ claimed }) => claimed === 2))
        const closing = yield* Effect.forkChild(worker.close)
        // It hands back what it has not begun.
        yield* until(Effect.map(depthOf(SendReceipt), ({ waiting }) => waiting === 1))
        yield* checkout(3)
        yield* answer.open
        yield* Fiber.join(closing)
        assert.deepStrictEqual(orders, [1])
        assert.deepStrictEqual(yield* depthOf(SendReceipt), { waiting: 2, claimed: 0, delayed: 0, dead: 0 })
      })
  )

  promise(
    "A delivery that has not ended within `drainTimeout` is interrupted and handed back, and no attempt is counted.",
    () =>
      Effect.gen(function*() {
        const begun = yield* Latch.make()
        const interrupted = yield* Latch.make()
        const handler = SendReceipt.toLayer(() =>
          Effect.andThen(begun.open, Effect.onInterrupt(Effect.never, () => interrupted.open))
        )
        const worker = yield* workUntil({ intents: [SendReceipt], drainTimeout: "100 millis" }, handler)
        yield* checkout(1)
        yield* begun.await
        yield* worker.close
        yield* interrupted.await
        assert.strictEqual((yield* depthOf(SendReceipt)).waiting, 1)
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt] }, recorder.handler)
        yield* recorder.has(1)
        assert.deepStrictEqual(recorder.deliveries.map(({ attempt, crashes }) => [attempt, crashes]), [[1, 0]])
      })
  )

  promise("Under `NodeRuntime.runMain` a worker closes so at SIGTERM.", () =>
    Effect.gen(function*() {
      const child = yield* Child.start("worker")
      yield* checkout(1)
      yield* child.says("handling")
      const ended = yield* Effect.forkChild(child.end("SIGTERM"))
      yield* child.tell
      yield* child.says("handled")
      assert.strictEqual(yield* Fiber.join(ended), 130)
      assert.deepStrictEqual(yield* depthOf(SendReceipt), { waiting: 0, claimed: 0, delayed: 0, dead: 0 })
    }))
})

describe("12. Cancel and pause", () => {
  /** A handler that says when it begins and when it is interrupted, and does not end by itself. */
  const hanging = () => {
    const events: Array<string> = []
    const handler = ({ order }: { readonly order: number }, { attempt, crashes }: Intent.Delivery) =>
      Effect.andThen(
        Effect.sync(() => events.push(`${order} begins, attempt ${attempt}, crashes ${crashes}`)),
        Effect.onInterrupt(Effect.never, () => Effect.sync(() => events.push(`${order} is interrupted`)))
      )
    return { events, handler, count: (count: number) => until(Effect.sync(() => events.length >= count)) }
  }

  promise(
    "What an operator cancels or pauses is interrupted within a beat of its worker, and counts as nothing.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const { cancel, pause, resume } = yield* admin
        const beat = Effect.map(sql<{ beat: number }>`SELECT beat::int FROM epilogue.worker`, ([row]) => row!.beat)
        const { count, events, handler } = hanging()
        const handlers = Layer.merge(SendReceipt.toLayer(handler), Survey.toLayer(handler))
        yield* Effect.provide(work({ intents: [SendReceipt, Survey], lease }, handlers), yield* another())
        const ids = yield* Epilogue.atomic(Effect.all([SendReceipt.defer({ order: 1 }), Survey.defer({ order: 2 })]))
        yield* count(2)
        const before = yield* beat
        assert.strictEqual(yield* cancel({ ids: [ids[0]] }), 1)
        yield* pause({ tag: Survey._tag })
        yield* count(4)
        // One may have been under way.
        assert.isAtMost((yield* beat) - before, 2)
        yield* areGone(SendReceipt)
        yield* until(Effect.map(depthOf(Survey), ({ waiting }) => waiting === 1))
        yield* resume({ tag: Survey._tag })
        yield* count(5)
        assert.sameMembers(events, [
          "1 begins, attempt 1, crashes 0",
          "2 begins, attempt 1, crashes 0",
          "1 is interrupted",
          "2 is interrupted",
          "2 begins, attempt 1, crashes 0"
        ])
        assert.strictEqual((yield* depthOf(SendReceipt)).dead, 0)
        yield* pause({ tag: Survey._tag })
        yield* count(6)
      })
  )

  promise("What it had done before stays done.", () =>
    Effect.gen(function*() {
      const { cancel } = yield* admin
      const { count, handler } = hanging()
      yield* work(
        { intents: [SendReceipt], lease },
        SendReceipt.toLayer((payload, delivery) =>
          Effect.andThen(insertOrder(payload.order), handler(payload, delivery))
        )
      )
      const id = yield* Epilogue.atomic(SendReceipt.defer({ order: 1 }))
      yield* count(1)
      assert.strictEqual(yield* cancel({ ids: [id] }), 1)
      yield* count(2)
      yield* areGone(SendReceipt)
      assert.strictEqual(yield* countOrders(1), 1)
    }))
})

describe("13. Outages and mistakes", () => {
  promise("A worker goes on after all of its connections were lost.", () =>
    Effect.gen(function*() {
      const elsewhere = yield* another({ applicationName: "lost" })
      const { query } = yield* connection
      const recorder = new Fixture.Recorder()
      yield* Effect.provide(work({ intents: [SendReceipt] }, recorder.handler), elsewhere)
      for (const order of [1, 2, 3]) {
        yield* checkout(order)
        yield* recorder.has(order)
        yield* query(
          "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lost'"
        )
      }
      yield* checkout(4)
      yield* recorder.has(4)
      assert.deepStrictEqual(recorder.orders, [1, 2, 3, 4])
    }))

  promise("It goes on with the new primary after a failover.", () =>
    Effect.gen(function*() {
      const { first, second } = yield* ownServers
      const recorder = new Fixture.Recorder()
      const gate = yield* Effect.provide(Fixture.proxy(), first.context)
      const elsewhere = yield* Effect.provide(another({ url: gate.url }), first.context)
      yield* Effect.provide(work({ intents: [SendReceipt], lease }, recorder.handler), elsewhere)
      const delivered = (order: number) => until(Effect.sync(() => recorder.orders.includes(order)))
      yield* Effect.provide(checkout(11), first.context)
      yield* delivered(11)
      // The old one only reads from now on, and connections to it stay open.
      gate.leadTo(second.port)
      yield* Effect.provide(
        SqlClient.SqlClient.use((sql) =>
          Effect.andThen(
            sql`ALTER SYSTEM SET default_transaction_read_only = on`,
            sql`SELECT pg_reload_conf()`
          )
        ),
        first.context
      )
      yield* Effect.provide(checkout(12), second.context)
      yield* delivered(12)
    }))

  promise(
    "A payload that its schema refuses, or that is too large, is a defect at `defer`, which names the intent.",
    () =>
      Effect.gen(function*() {
        class Short extends Intent.make("Short", { payload: { text: Schema.String }, maxPayloadBytes: 20 }) {}
        const refused = yield* Effect.exit(Epilogue.atomic(SendReceipt.defer({ order: 1.5 })))
        assert.match(messageOf(refused), /"SendReceipt" can't be deferred: its payload is not what its schema asks for/)
        const large = yield* Effect.exit(Epilogue.atomic(Short.defer({ text: "0123456789" })))
        assert.match(
          messageOf(large),
          /"Short" can't be deferred: its payload takes 21 bytes, and at most 20 are allowed/
        )
      })
  )

  promise(
    "What cannot be is refused by name where a worker is built: an option, or a transactional handler of another database.",
    () =>
      Effect.gen(function*() {
        const note = SendReceipt.toLayer(() => Effect.void)
        const refusal = (options: Partial<OutboxWorker.Options<[]>>, handler = note) =>
          Effect.map(Effect.exit(work({ intents: [SendReceipt], ...options }, handler)), messageOf)
        assert.match(yield* refusal({ concurrency: 0 }), /`concurrency` of the worker is 0.*positive integer/)
        assert.match(yield* refusal({ lease: "1 milli" }), /`lease` of the worker is 1ms.*at least 100/)
        const foreign = SendReceipt.toLayer(({ order }) => insertOrder(order), { transactional: true }).pipe(
          Layer.provide(Layer.succeedContext(yield* another()))
        )
        assert.match(yield* refusal({}, foreign), /"SendReceipt" is transactional.*Provide both with the same client/)
      })
  )

  promise(
    "A store without tables, with those of another version, with a name that cannot be, or on a server that only reads fails its layer, and the error says what to do.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const { config } = yield* PgClient.PgClient
        const build = (options?: PgOutboxStore.Options, changed?: Partial<PgClient.PgPoolConfig>) =>
          Layer.build(
            Layer.fresh(PgOutboxStore.layer(options)).pipe(
              Layer.provide(Layer.fresh(PgClient.layer({ ...config, ...changed })))
            )
          ).pipe(Effect.exit, Effect.map(messageOf))
        assert.match(yield* build({ schema: "other" }), /Run PgOutboxStore\.migrate/)
        assert.match(yield* build({ schema: "pg_other" }), /Choose a name/)
        const readOnly = { startupParameters: { default_transaction_read_only: "on" } }
        assert.match(yield* build({}, readOnly), /Set default_transaction_read_only to off/)
        // A replica, as far as a store can see.
        yield* sql`CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'`
        const replica = { startupParameters: { search_path: "public, pg_catalog" } }
        assert.match(yield* build({}, replica), /Connect the PgClient to the primary/)
        yield* sql`UPDATE epilogue.migration SET version = version + 1000, oldest = version + 1000`
        assert.match(yield* build(), /Use a newer version of @epilogue\/postgres/)
        yield* sql`UPDATE epilogue.migration SET version = 0, oldest = 0`
        assert.match(yield* build(), /too old.*Run PgOutboxStore\.migrate/)
      })
  )

  promise("`migrate` can run again, and in many processes at once.", () =>
    Effect.gen(function*() {
      const migrate = Effect.scoped(
        Effect.flatMap(another(), (elsewhere) => Effect.provide(PgOutboxStore.migrate({ schema: "other" }), elsewhere))
      )
      yield* Effect.all(Array.from({ length: 8 }, () => migrate), { concurrency: "unbounded" })
      yield* migrate
      const client = yield* PgClient.PgClient
      yield* Layer.build(PgOutboxStore.layer({ schema: "other" })).pipe(
        Effect.provideService(PgClient.PgClient, client)
      )
    }))
})

describe("14. Retention", () => {
  /** Another store over the same tables. */
  const keeping = (keepDelivered: Duration.Input) => Layer.build(Layer.fresh(PgOutboxStore.layer({ keepDelivered })))

  promise("An intent that was delivered is deleted at once.", () =>
    Effect.gen(function*() {
      const recorder = new Fixture.Recorder()
      yield* work({ intents: [SendReceipt] }, recorder.handler)
      yield* checkout(1)
      yield* recorder.has(1)
      yield* areGone(SendReceipt)
      assert.deepStrictEqual(yield* stored(1), [])
    }))

  promise(
    "With `keepDelivered` it is kept for that time, apart from what waits, and then workers delete it.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const { get } = yield* admin
        const recorder = new Fixture.Recorder()
        const forAnHour = yield* keeping("1 hour")
        const worker = yield* Effect.provide(workUntil({ intents: [SendReceipt] }, recorder.handler), forAnHour)
        const id = yield* checkout(1)
        yield* areGone(SendReceipt)
        yield* worker.close
        assert.strictEqual(Option.getOrThrow(yield* get(id)).state, "delivered")
        assert.deepStrictEqual(yield* sql`SELECT FROM epilogue.waiting`, [])
        yield* Effect.provide(work({ intents: [SendReceipt] }, recorder.handler), forAnHour)
        yield* checkout(2)
        yield* recorder.has(2)
        assert.isTrue(Option.isSome(yield* get(id)))
        yield* Effect.provide(work({ intents: [SendReceipt] }, recorder.handler), yield* keeping("1 milli"))
        yield* until(Effect.map(get(id), Option.isNone))
      })
  )

  promise(
    "A dead letter stays until an operator decides, with its payload, its last failure, and why it is dead.",
    () =>
      Effect.gen(function*() {
        const { get, purge, retry } = yield* admin
        let isMended = false
        const handler = SendReceipt.toLayer(() => isMended ? Effect.void : Intent.reject("no such order"))
        yield* work({ intents: [SendReceipt] }, handler)
        const ids = yield* Effect.forEach([1, 2], checkout)
        yield* until(Effect.map(depthOf(SendReceipt), ({ dead }) => dead === 2))
        const letter = Option.getOrThrow(yield* get(ids[0]!))
        assert.deepStrictEqual([letter.state, letter.reason], ["dead", "rejected"])
        assert.deepStrictEqual(yield* Effect.fromResult(letter.payload), `{"order":1}`)
        assert.include(letter.failure, "no such order")
        isMended = true
        assert.strictEqual(yield* retry({ ids: [ids[0]!] }), 1)
        assert.strictEqual(yield* purge({ ids: [ids[1]!] }), 1)
        yield* areGone(SendReceipt)
        assert.strictEqual((yield* depthOf(SendReceipt)).dead, 0)
      })
  )

  promise(
    "Everything about a partition key can be erased: what waits, is delayed, dead or kept, and what is remembered of it.",
    () =>
      Effect.gen(function*() {
        class Greet extends Intent.make("Greet", {
          payload: { name: Schema.String, what: Schema.String },
          partitionKey: ({ name }) => name,
          idempotencyKey: ({ name, what }) => `${name} ${what}`
        }) {}
        const { erase, list } = yield* admin
        const greet = (name: string, what: string, options?: Intent.DeferOptions) =>
          Epilogue.report(Greet.defer({ name, what }, options))
        const handler = Greet.toLayer(({ name, what }) =>
          what === "dead" ? Intent.reject(`${name} is gone`) : Effect.void
        )
        const worker = yield* Effect.provide(workUntil({ intents: [Greet] }, handler), yield* keeping("1 hour"))
        for (const name of ["nora", "otto"]) {
          yield* Effect.forEach(["kept", "dead"], (what) => greet(name, what))
          yield* greet(name, "delayed", { delay: "1 hour" })
        }
        yield* until(Effect.map(depthOf(Greet), ({ claimed, waiting }) => claimed + waiting === 0))
        yield* worker.close
        for (const name of ["nora", "otto"]) yield* greet(name, "waiting")
        assert.strictEqual(yield* erase({ partitionKey: "nora" }), 4)
        const { entries } = yield* list()
        assert.deepStrictEqual(entries.map(({ partitionKey }) => partitionKey), ["otto", "otto", "otto", "otto"])
        assert.deepStrictEqual(yield* Fixture.rowsWith("nora"), [])
        assert.strictEqual((yield* Fixture.rowsWith("otto")).length, 4)
        const again = [...(yield* greet("nora", "kept")).outcomes, ...(yield* greet("otto", "kept")).outcomes]
        assert.deepStrictEqual(again.map((outcome) => outcome._tag === "Enqueued" && outcome.duplicate === true), [
          false,
          true
        ])
      })
  )
})

describe("15. Least privilege", () => {
  /** Roles for one test, in each of which it can connect. Roles belong to the server, and other tests are there as well. */
  const roles = Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const names = { enqueuer: "", worker: "", operator: "", migrator: "" }
    for (const role of ["enqueuer", "worker", "operator", "migrator"] as const) {
      names[role] = `${role}_${randomUUID()}`
      yield* sql.unsafe(`CREATE ROLE "${names[role]}" LOGIN PASSWORD 'secret'`)
    }
    yield* sql.unsafe(PgOutboxStore.grantSql(names))
    return (role: keyof typeof names) => another({ username: names[role], password: Redacted.make("secret") })
  })
  const denied = (effect: Effect.Effect<unknown, unknown>) =>
    Effect.map(
      Effect.flip(effect),
      (error) => assert.match(Cause.pretty(Cause.fail(error)), /permission denied|must be owner/)
    )
  const runAs = (context: Context.Context<SqlClient.SqlClient>, statement: string) =>
    SqlClient.SqlClient.use((sql) => sql.unsafe(statement)).pipe(Effect.provide(context))

  promise("A migration grants nothing to anybody.", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      assert.deepStrictEqual(
        yield* sql`SELECT relname FROM pg_class WHERE relnamespace = 'epilogue'::regnamespace AND relacl IS NOT NULL
          UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'epilogue' AND nspacl IS NOT NULL`,
        []
      )
    }))

  promise(
    "Who may only enqueue can store intents, and can neither read, change nor delete any.",
    () =>
      Effect.gen(function*() {
        const as = yield* roles
        const enqueuer = yield* as("enqueuer")
        yield* Effect.provide(Epilogue.atomic(SendReceipt.defer({ order: 1 })), enqueuer)
        assert.strictEqual((yield* depthOf(SendReceipt)).waiting, 1)
        for (const table of yield* tables) {
          yield* denied(runAs(enqueuer, `SELECT payload FROM ${table}`))
          yield* denied(runAs(enqueuer, `UPDATE ${table} SET payload = '1'`))
          yield* denied(runAs(enqueuer, `DELETE FROM ${table}`))
        }
        const { cancel } = yield* Effect.provide(admin, enqueuer)
        yield* denied(cancel({ all: true }))
      })
  )

  promise(
    "Who delivers, who operates and who migrates may do that, and not what the others do.",
    () =>
      Effect.gen(function*() {
        const as = yield* roles
        const [worker, operator, migrator] = [yield* as("worker"), yield* as("operator"), yield* as("migrator")]
        yield* Effect.provide(PgOutboxStore.migrate(), migrator)
        const recorder = new Fixture.Recorder()
        yield* Effect.provide(work({ intents: [SendReceipt] }, recorder.handler), worker)
        yield* Epilogue.atomic(Effect.all([SendReceipt.defer({ order: 1 }), Survey.defer({ order: 2 })]))
        yield* areGone(SendReceipt)
        assert.deepStrictEqual(recorder.orders, [1])

        const theirs = yield* Effect.provide(admin, worker)
        yield* denied(theirs.pause({ tag: Survey._tag }))
        yield* denied(runAs(worker, "DROP TABLE epilogue.waiting"))
        const open = OutboxStore.OutboxStore.use((store) =>
          store.open({ subscriptions: [], lease: Duration.minutes(1) })
        )
        yield* denied(Effect.scoped(Effect.provide(open, operator)))
        yield* denied(runAs(operator, "UPDATE epilogue.waiting SET payload = '1'"))
        yield* denied(runAs(operator, "DROP TABLE epilogue.waiting"))
        const { cancel } = yield* Effect.provide(admin, operator)
        assert.strictEqual(yield* cancel({ tag: Survey._tag }), 1)
      })
  )

  promise("With a codec, what it makes of a payload is all that is stored of it.", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore.OutboxStore
      const encoding: IntentSink.Codec = {
        encode: (payload) => Effect.sync(() => Buffer.from(payload).toString("base64")),
        decode: (payload) => Effect.sync(() => Buffer.from(payload, "base64").toString())
      }
      const Encoded = Outbox.layer.pipe(
        Layer.provideMerge(OutboxStore.layerCodec(encoding)),
        Layer.provide(Layer.succeed(OutboxStore.OutboxStore, store))
      )
      const context = yield* Layer.build(Layer.fresh(Encoded))
      class Whisper extends Intent.make("Whisper", { payload: { secret: Schema.String } }) {}
      const secrets: Array<string> = []
      const id = yield* Effect.provide(Epilogue.atomic(Whisper.defer({ secret: "swordfish" })), context)
      assert.deepStrictEqual(yield* Fixture.rowsWith("swordfish"), [])
      assert.strictEqual((yield* Fixture.rowsWith(Buffer.from(`{"secret":"swordfish"}`).toString("base64"))).length, 1)
      const { get } = yield* Effect.provide(admin, context)
      const { payload } = Option.getOrThrow(yield* get(id))
      assert.strictEqual(yield* Effect.fromResult(payload), `{"secret":"swordfish"}`)
      const handler = Whisper.toLayer(({ secret }) => Effect.sync(() => secrets.push(secret)))
      yield* Effect.provide(work({ intents: [Whisper] }, handler), context)
      yield* areGone(Whisper)
      assert.deepStrictEqual(secrets, ["swordfish"])
    }))
})

// The guide -----------------------------------------------------------------------------------------------------------

interface Part {
  readonly name: string
  readonly promises: ReadonlyArray<string>
}

/** The promises of the guide, in parts, and whatever else stands among them. */
const readGuide = (): { readonly parts: ReadonlyArray<Part>; readonly rest: ReadonlyArray<string> } => {
  const tokens = lexer(readFileSync(join(import.meta.dirname, "../durability.md"), "utf8"))
  const isHeading = (token: Token, depth: number): token is Tokens.Heading =>
    token.type === "heading" && (token as Tokens.Heading).depth === depth
  const from = tokens.findIndex((token) => isHeading(token, 2) && token.text === "Promises")
  const length = tokens.slice(from + 1).findIndex((token) => isHeading(token, 2))
  const parts: Array<{ readonly name: string; readonly promises: Array<string> }> = []
  const rest: Array<string> = []
  for (const token of tokens.slice(from + 1, from + 1 + length)) {
    if (isHeading(token, 3)) {
      parts.push({ name: token.text, promises: [] })
    } else if (token.type === "list" && token["start"] === 1) {
      for (const { text } of (token as Tokens.List).items) parts.at(-1)!.promises.push(text.replaceAll(/\s+/g, " "))
    } else if (token.type !== "space") {
      rest.push(token.raw)
    }
  }
  return { parts, rest }
}

it("the promises of the guide are the names of these tests, numbered, with nothing else among them", ({ task }) => {
  const parts = task.file.tasks.flatMap((suite) =>
    suite.type === "suite" ? [{ name: suite.name, promises: suite.tasks.map(({ name }) => name) }] : []
  )
  const guide = readGuide()
  assert.deepStrictEqual(guide.parts, parts)
  assert.deepStrictEqual(guide.rest, [])
  assert.deepStrictEqual(guide.parts.map(({ name }) => parseInt(name, 10)), Array.from({ length: 15 }, (_, n) => n + 1))
})
