/*
 * The promises of docs/durability.md: each is the name of a test here, and there is none without one. Each test has a
 * database of its own. Where a process has to die, it is a real one, and it is killed.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, OutboxStore } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import { Clock, DateTime, Duration, Effect, Exit, Fiber, Latch, Layer, Queue, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { lexer, type Token, type Tokens } from "marked"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import * as Child from "./Child.ts"
import * as Fixture from "./Fixture.ts"
import { insertOrder, SendReceipt } from "./Shop.ts"

const {
  another,
  areGone,
  beats,
  checkout,
  connection,
  countOrders,
  depthOf,
  lock,
  lockIntents,
  messageOf,
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

describe("Boundaries", () => {
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

describe("Deliveries", () => {
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
    "A delivery that a crash ended counts as no attempt, and `delivery.crashes` counts it.",
    () =>
      Effect.gen(function*() {
        const child = yield* Child.start("worker")
        yield* checkout(1)
        yield* child.says("handling")
        yield* child.end("SIGKILL")
        const recorder = new Fixture.Recorder()
        yield* work({ intents: [SendReceipt], lease }, recorder.handler)
        yield* recorder.has(1)
        assert.deepStrictEqual(recorder.deliveries.map(({ attempt, crashes }) => [attempt, crashes]), [[1, 1]])
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
})

describe("Transactional handlers", () => {
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

describe("Leases", () => {
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
        assert.deepStrictEqual(recorder.deliveries.map((each) => [each.id, each.crashes]), [[id, 1]])
      })
  )
})

describe("What cannot be delivered", () => {
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

describe("Wakes", () => {
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

describe("Shutdown", () => {
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

describe("Outages and mistakes", () => {
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
    "What the store cannot do is refused by name, at `defer` and where a worker is built.",
    () =>
      Effect.gen(function*() {
        class Keyed extends Intent.make("Keyed", { payload: {}, partitionKey: () => "1" }) {}
        class Urgent extends Intent.make("Urgent", { payload: {}, priority: 1 }) {}
        for (const [intent, what] of [[Keyed, "partition key"], [Urgent, "priority"]] as const) {
          const pattern = new RegExp(`"${intent._tag}".*${what}.*PgOutboxStore`)
          assert.match(messageOf(yield* Effect.exit(Epilogue.atomic(intent.defer({})))), pattern)
          const handler: Layer.Layer<Intent.HandlerOf<typeof Keyed | typeof Urgent>> = Layer.merge(
            Keyed.toLayer(() => Effect.void),
            Urgent.toLayer(() => Effect.void)
          )
          assert.match(messageOf(yield* Effect.exit(work({ intents: [intent] }, handler))), pattern)
        }
      })
  )

  promise(
    "A store without tables, with a name that cannot be, or on a server that only reads fails its layer, and the error says what to do.",
    () =>
      Effect.gen(function*() {
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

describe("What is kept", () => {
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
    "A dead letter stays in the store, with its payload, its last failure, and why it is dead.",
    () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* work({ intents: [SendReceipt] }, SendReceipt.toLayer(() => Intent.reject("no such order")))
        const id = yield* checkout(1)
        yield* until(Effect.map(depthOf(SendReceipt), ({ dead }) => dead === 1))
        const [letter] = yield* sql<{ intent: string; payload: string; reason: string; failure: string }>`
        SELECT intent, payload, reason, failure FROM epilogue.dead`
        assert.deepStrictEqual([letter!.intent, letter!.payload, letter!.reason], [id, `{"order":1}`, "rejected"])
        assert.include(letter!.failure, "no such order")
      })
  )
})

// The guide -----------------------------------------------------------------------------------------------------------

interface Part {
  readonly name: string
  readonly promises: ReadonlyArray<string>
}

/** The promises of the guide, in parts, and whatever else stands among them. */
const readGuide = (): {
  readonly parts: ReadonlyArray<Part>
  readonly rest: ReadonlyArray<string>
  numbers: ReadonlyArray<number>
} => {
  const tokens = lexer(readFileSync(join(import.meta.dirname, "../durability.md"), "utf8"))
  const isHeading = (token: Token, depth: number): token is Tokens.Heading =>
    token.type === "heading" && (token as Tokens.Heading).depth === depth
  const from = tokens.findIndex((token) => isHeading(token, 2) && token.text === "Promises")
  const length = tokens.slice(from + 1).findIndex((token) => isHeading(token, 2))
  const parts: Array<{ readonly name: string; readonly promises: Array<string> }> = []
  const numbers: Array<number> = []
  const rest: Array<string> = []
  for (const token of tokens.slice(from + 1, from + 1 + length)) {
    if (isHeading(token, 3)) {
      parts.push({ name: token.text, promises: [] })
    } else if (token.type === "list" && token["ordered"] === true) {
      const { items, start } = token as Tokens.List
      items.forEach(({ text }, index) => {
        parts.at(-1)!.promises.push(text.replaceAll(/\s+/g, " "))
        numbers.push(Number(start) + index)
      })
    } else if (token.type !== "space") {
      rest.push(token.raw)
    }
  }
  return { parts, rest, numbers }
}

it("the promises of the guide are the names of these tests, numbered, with nothing else among them", ({ task }) => {
  const parts = task.file.tasks.flatMap((suite) =>
    suite.type === "suite" ? [{ name: suite.name, promises: suite.tasks.map(({ name }) => name) }] : []
  )
  const guide = readGuide()
  assert.deepStrictEqual(guide.parts, parts)
  assert.deepStrictEqual(guide.rest, [])
  assert.deepStrictEqual(guide.numbers, guide.parts.flatMap(({ promises }) => promises).map((_, index) => index + 1))
})
