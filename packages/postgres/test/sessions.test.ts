// Sessions of several processes, and what they survive.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import type { Envelope } from "@epilogue/core/IntentSink"
import type { Session } from "@epilogue/core/OutboxStore"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Effect, Exit, Fiber, Latch, Queue, Scope } from "effect"
import { TestClock } from "effect/testing"
import { makeProxy } from "./Proxy.ts"
import { all, another, envelope, envelopes, layerStore, open, storeOver } from "./Store.ts"

const succeed = (session: Session, claimed: Effect.Success<ReturnType<Session["claim"]>>) =>
  session.settle(claimed.map((each) => ({ _tag: "Succeeded", claimed: each })))

/** Another process. */
const elsewhere = Effect.flatMap(another(), (client) => storeOver(client))

/** Until notifications are known to arrive. */
const untilListening = (session: Session) => Effect.repeat(session.beat, { until: ({ isListening }) => isListening })

/** What was there, or has come since, counts as a wake. Afterwards only what is new does. */
const forgetWakes = (session: Session) =>
  Effect.andThen(untilListening(session), Effect.andThen(session.wakes, session.claim(all)))

/** Ends every connection but the one that says so. */
const terminateOthers = PgClient.PgClient.use((sql) =>
  sql`SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()`
)

it.layer(layerStore)("sessions", (it) => {
  it.effect("a session hears at once of what another process has appended", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* OutboxStore, yield* elsewhere]
      const added = envelope()
      const session = yield* open(here, [added.tag])
      yield* forgetWakes(session)
      yield* there.append([added])
      const waiting = yield* Effect.forkChild(session.wakes)
      yield* there.wake([added])
      yield* Fiber.join(waiting)
      assert.strictEqual((yield* session.claim(all)).length, 1)
    }))

  it.effect("a session hears when something that another process has appended is due", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* OutboxStore, yield* elsewhere]
      const added = envelope({ delay: 50 })
      const session = yield* open(here, [added.tag])
      yield* forgetWakes(session)
      const notifications = yield* (yield* PgClient.PgClient).listen("epilogue:epilogue")
      yield* there.append([added])
      const waiting = yield* Effect.forkChild(session.wakes)
      yield* there.wake([added])
      yield* Queue.take(notifications)
      // The store has not been told of the time by anything but the notification.
      yield* Effect.repeat(TestClock.adjust("1 second"), {
        until: () => Effect.sync(() => waiting.pollUnsafe() !== undefined)
      })
      yield* Effect.repeat(session.claim(all), { until: (claimed) => claimed.length === 1 })
    }))

  it.effect("many appends at once are told in few notifications", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const [here, there] = [yield* OutboxStore, yield* elsewhere]
      const added = envelopes(200)
      const session = yield* open(here, [added[0]!.tag])
      yield* forgetWakes(session)
      const notifications = yield* sql.listen("epilogue:epilogue")
      yield* there.append(added)
      yield* Effect.forEach(added, (each) => there.wake([each]), { discard: true })
      yield* session.wakes
      yield* sql.notify("epilogue:epilogue", "the end")
      let count = 0
      while ((yield* Queue.take(notifications)).payload !== "the end") count++
      assert.isBelow(count, 10)
    }))

  it.effect("connections that are lost are opened again", () =>
    Effect.gen(function*() {
      const [here, there] = [yield* OutboxStore, yield* elsewhere]
      const { tag } = envelope()
      const session = yield* open(here, [tag])
      yield* forgetWakes(session)
      for (const round of [1, 2, 3]) {
        yield* there.append([envelope({ tag })])
        yield* terminateOthers
        const claimed = yield* Effect.retry(session.claim(all), { times: 3 })
        assert.strictEqual(claimed.length, 1, `round ${round}`)
        assert.deepStrictEqual(yield* Effect.retry(succeed(session, claimed), { times: 3 }), [])
        assert.isTrue((yield* Effect.retry(session.beat, { times: 3 })).isAlive)
        // It waits for a moment before it connects anew.
        yield* Effect.repeat(
          Effect.andThen(TestClock.adjust("1 second"), session.beat),
          { until: ({ isListening }) => isListening }
        )
        yield* session.wakes
        const added = envelope({ tag })
        yield* there.append([added])
        const waiting = yield* Effect.forkChild(session.wakes)
        yield* there.wake([added])
        yield* Fiber.join(waiting)
        assert.deepStrictEqual(yield* succeed(session, yield* session.claim(all)), [])
      }
    }))

  it.effect("what a claim has leased whose answer was lost is claimed by the next one", () =>
    Effect.gen(function*() {
      const { client, state } = yield* makeProxy
      const store = yield* storeOver(client)
      const added = envelopes(5)
      yield* store.append(added)
      const session = yield* open(store, [added[0]!.tag])
      // The connection is there, so that what is lost is the answer to the claim.
      const [first] = yield* session.claim({ ...all, rows: 1 })
      state.isLossy = true
      assert.isTrue(Exit.isFailure(yield* Effect.exit(session.claim(all))))
      state.isLossy = false
      const rest = yield* Effect.retry(session.claim(all), { times: 3 })
      assert.deepStrictEqual(rest.map(({ id }) => id), added.slice(1).map(({ id }) => id))
      assert.deepStrictEqual(yield* succeed(session, [first!, ...rest]), [])
    }))

  it.effect.each([undefined, "k"])(
    "what is cancelled of a claim whose answer was lost is gone: key %s",
    (partitionKey) =>
      Effect.gen(function*() {
        const { client, state } = yield* makeProxy
        const store = yield* storeOver(client)
        const added = envelopes(3, { partitionKey })
        const first = envelope({ tag: added[0]!.tag, partitionKey: partitionKey && "first" })
        yield* store.append([first])
        const session = yield* open(store, [first.tag])
        // No connection is being opened, which would wait for an answer until the clock moves.
        yield* untilListening(session)
        assert.strictEqual((yield* session.claim(all)).length, 1)
        yield* store.append(added)
        state.isLossy = true
        assert.isTrue(Exit.isFailure(yield* Effect.exit(session.claim(all))))
        state.isLossy = false
        const { cancel, find } = (yield* OutboxStore).operations
        assert.strictEqual((yield* find(added[0]!.id))?.state, "claimed")
        assert.strictEqual(yield* cancel({ ids: [added[0]!.id] }), 1)
        const rest = yield* Effect.retry(session.claim(all), { times: 3 })
        assert.deepStrictEqual(
          rest.map(({ id }) => id),
          (partitionKey === undefined ? added.slice(1) : [added[1]!]).map(({ id }) => id)
        )
        assert.isUndefined(yield* find(added[0]!.id))
      })
  )

  it.effect("what a session had whose last claim was lost is free when it closes", () =>
    Effect.gen(function*() {
      const { client, state } = yield* makeProxy
      const added = envelopes(5)
      const scope = yield* Scope.make()
      const store = yield* storeOver(client)
      yield* store.append(added)
      const session = yield* Scope.provide(open(store, [added[0]!.tag]), scope)
      yield* session.claim({ ...all, rows: 2 })
      // No connection is being opened, which would wait for an answer until the clock moves.
      yield* untilListening(session)
      state.isLossy = true
      yield* Effect.exit(session.claim(all))
      state.isLossy = false
      yield* Scope.close(scope, Exit.void)
      const other = yield* open(yield* OutboxStore, [added[0]!.tag])
      assert.strictEqual((yield* other.claim(all)).length, 5)
    }))

  it.effect("behind a pooler that keeps no settings everything works as well", () =>
    Effect.gen(function*() {
      const { client, state } = yield* makeProxy
      state.isPooler = true
      const store = yield* storeOver(client)
      const added = envelopes(3)
      const session = yield* open(store, [added[0]!.tag])
      yield* store.append(added)
      const claimed = yield* session.claim(all)
      assert.strictEqual(claimed.length, 3)
      assert.isTrue((yield* session.beat).isAlive)
      assert.deepStrictEqual(yield* succeed(session, claimed), [])
      assert.deepStrictEqual(yield* succeed(session, claimed), claimed.map(({ id }) => id))
    }))

  it.effect("a session knows that notifications do not arrive, and when they do again", () =>
    Effect.gen(function*() {
      const { client, state } = yield* makeProxy
      const store = yield* storeOver(client)
      const session = yield* open(store, [envelope().tag])
      const until = (isListening: boolean) =>
        Effect.repeat(Effect.andThen(TestClock.adjust("10 seconds"), session.beat), {
          until: (beat) => beat.isListening === isListening
        })
      yield* until(true)
      state.isDeaf = true
      yield* until(false)
      state.isDeaf = false
      yield* until(true)
    }))

  it.effect("a fiber that is interrupted frees what its session had claimed", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelopes(3)
      const claimed = Latch.makeUnsafe()
      yield* store.append(added)
      const worker = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const session = yield* open(store, [added[0]!.tag])
        yield* session.claim(all)
        yield* claimed.open
        return yield* Effect.never
      })))
      yield* claimed.await
      yield* Fiber.interrupt(worker)
      const other = yield* open(store, [added[0]!.tag])
      assert.strictEqual((yield* other.claim(all)).length, 3)
    }))

  it.effect("a store that closes before its sessions ends them", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const scope = yield* Scope.make()
      const store = yield* Scope.provide(storeOver(sql), scope)
      const added = envelopes(3)
      yield* store.append(added)
      const session = yield* open(store, [added[0]!.tag])
      yield* session.claim(all)
      const before = yield* sql`SELECT id FROM epilogue.worker`
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* sql`SELECT id FROM epilogue.worker`).length, before.length - 1)
      const other = yield* open(yield* OutboxStore, [added[0]!.tag])
      assert.strictEqual((yield* other.claim(all)).length, 3)
    }))

  it.effect("a lease runs out by the clock of whoever looks on, and only if the beat does not move", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelopes(3)
      const [dead, observer] = [
        yield* open(store, [added[0]!.tag], "10 seconds"),
        yield* open(yield* elsewhere, [added[0]!.tag], "10 seconds")
      ]
      yield* store.append(added)
      const held = yield* dead.claim(all)
      assert.isFalse((yield* observer.beat).hasExpired)
      yield* TestClock.adjust("9 seconds")
      yield* dead.beat
      yield* TestClock.adjust("9 seconds")
      // Its beat has moved since it was seen first.
      assert.isFalse((yield* observer.beat).hasExpired)
      yield* TestClock.adjust("10 seconds")
      assert.isTrue((yield* observer.beat).hasExpired)
      assert.strictEqual(yield* observer.recover, 3)
      assert.strictEqual(yield* observer.recover, 0)
      assert.isFalse((yield* dead.beat).isAlive)
      assert.deepStrictEqual(yield* succeed(dead, held), held.map(({ id }) => id))
      assert.strictEqual((yield* observer.claim(all)).length, 3)
    }))

  it.effect("what an open transaction of a dead session has settled is nobody's until that ends", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const added = envelopes(3)
      const [dead, observer] = [
        yield* open(store, [added[0]!.tag], "10 seconds"),
        yield* open(yield* elsewhere, [added[0]!.tag], "1 hour")
      ]
      yield* store.append(added)
      const [first] = yield* dead.claim(all)
      const [settled, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
      const transaction = yield* Effect.forkChild(Effect.exit(sql.withTransaction(Effect.gen(function*() {
        assert.isTrue(yield* dead.settleInTransaction(first!))
        yield* settled.open
        yield* end.await
        return yield* Effect.fail("rolled back")
      }))))
      yield* settled.await
      yield* observer.beat
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* observer.recover, 2)
      assert.isFalse((yield* dead.beat).isAlive)
      assert.strictEqual((yield* observer.claim(all)).length, 2)
      yield* end.open
      yield* Fiber.join(transaction)
      yield* observer.beat
      yield* TestClock.adjust("10 seconds")
      assert.isTrue((yield* observer.beat).hasExpired)
      assert.strictEqual(yield* observer.recover, 1)
      assert.deepStrictEqual((yield* observer.claim(all)).map(({ id }) => id), [first!.id])
    }))

  it.effect("what some tags do not use of a claim is lent to the others", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const groups = [100, 3, 60, 0, 7].map((count) => envelopes(count))
      const tags = groups.map((group, index) => group[0]?.tag ?? `None${index}`)
      for (const group of groups) yield* store.append(group)
      const session = yield* open(store, tags)
      const claimed = yield* session.claim({ ...all, rows: 160 })
      assert.strictEqual(claimed.length, 160)
      const count = (tag: string | undefined) => claimed.filter((each) => each.tag === tag).length
      assert.deepStrictEqual([count(tags[1]), count(tags[4])], [3, 7])
      assert.strictEqual((yield* session.claim(all)).length, 10)
    }))

  it.effect("what waits behind one that a transaction is settling keeps no other key waiting", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const behind = envelopes(60, { partitionKey: "busy" })
      const { tag } = behind[0]!
      const other = envelope({ tag, partitionKey: "idle" })
      const [here, there] = [yield* open(store, [tag]), yield* open(yield* elsewhere, [tag])]
      for (const each of behind) yield* store.append([each])
      yield* store.append([other])
      const [head] = yield* here.claim({ ...all, rows: 1 })
      const [settled, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
      const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
        yield* here.settleInTransaction(head!)
        yield* settled.open
        yield* end.await
      })))
      yield* settled.await
      assert.deepStrictEqual((yield* there.claim({ ...all, rows: 10 })).map(({ id }) => id), [other.id])
      yield* end.open
      yield* Fiber.join(transaction)
      assert.deepStrictEqual((yield* here.claim({ ...all, rows: 1 })).map(({ id }) => id), [behind[1]!.id])
    }))

  it.effect("what is added to a key is found, whatever is being settled of that key meanwhile", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const slow = envelope({ partitionKey: "slow" })
      const { tag } = slow
      const [head, next] = envelopes(2, { tag, partitionKey: "k" }) as [Envelope, Envelope]
      const [here, there] = [yield* open(store, [tag]), yield* open(yield* elsewhere, [tag])]
      yield* store.append([envelope({ tag, partitionKey: "other" })])
      assert.strictEqual((yield* there.claim(all)).length, 1)
      yield* store.append([slow])
      yield* store.append([head])
      const claimed = yield* here.claim(all)
      assert.deepStrictEqual(claimed.map(({ id }) => id), [slow.id, head.id])
      const [locked, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
      const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT FROM epilogue.keyed WHERE intent = ${slow.id}::uuid FOR UPDATE`
        yield* locked.open
        yield* end.await
      })))
      yield* locked.await
      const settling = yield* Effect.forkChild(succeed(here, claimed))
      yield* Effect.repeat(sql`SELECT FROM pg_locks WHERE NOT granted`, { until: (waiting) => waiting.length > 0 })
      // The statement that settles the head does not see it any more.
      yield* store.append([next])
      assert.deepStrictEqual(yield* there.claim(all), [])
      yield* end.open
      yield* Fiber.join(transaction)
      assert.deepStrictEqual(yield* Fiber.join(settling), [])
      assert.deepStrictEqual((yield* there.claim(all)).map(({ id }) => id), [next.id])
    }))

  it.effect("a flood of 200,000 of one tag keeps the single intent of another out of no claim", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const [many, one] = [envelope(), envelope()]
      const session = yield* open(store, [many.tag, one.tag])
      yield* sql`INSERT INTO epilogue.waiting (queue, id, enqueued_at, intent, payload)
        SELECT q.id, nextval('epilogue.position'), now(), gen_random_uuid(), '{}'
        FROM epilogue.queue AS q, generate_series(1, 200000) WHERE q.tag = ${many.tag} AND q.version = 1`
      yield* session.claim({ rows: 100, bytes: 1e9 })
      yield* store.append([one])
      const next = yield* session.claim({ rows: 100, bytes: 1e9 })
      assert.strictEqual(next.length, 100)
      assert.isTrue(next.some(({ id }) => id === one.id))
      yield* sql`DELETE FROM epilogue.waiting`
    }))

  it.effect("of more tags than rows each has its turn", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const groups = Array.from({ length: 30 }, () => envelopes(40))
      yield* store.append(groups.flat())
      const session = yield* open(store, groups.map((group) => group[0]!.tag))
      const seen = new Set<string>()
      for (let round = 0; round < 30; round++) {
        for (const { tag } of yield* session.claim({ ...all, rows: 5 })) seen.add(tag)
      }
      assert.strictEqual(seen.size, 30)
    }))

  it.effect("a claim of few bytes takes few, and what is left is there", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelopes(10, { payload: JSON.stringify("x".repeat(998)) })
      yield* store.append(added)
      const session = yield* open(store, [added[0]!.tag])
      assert.strictEqual((yield* session.claim({ rows: 100, bytes: 3_500 })).length, 3)
      assert.strictEqual((yield* session.claim({ rows: 100, bytes: 1 })).length, 1)
      assert.strictEqual((yield* session.claim(all)).length, 6)
    }))

  it.effect("what was committed later than what came after it is found without waiting", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const [early, ...late] = envelopes(20)
      const session = yield* open(store, [early!.tag])
      const [appended, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
      const transaction = yield* Effect.forkChild(sql.withTransaction(Effect.gen(function*() {
        yield* store.append([early!])
        yield* appended.open
        yield* end.await
      })))
      yield* appended.await
      yield* store.append(late)
      for (let round = 0; round < 19; round++) {
        assert.deepStrictEqual(yield* succeed(session, yield* session.claim({ ...all, rows: 1 })), [])
      }
      yield* end.open
      yield* Fiber.join(transaction)
      assert.deepStrictEqual((yield* session.claim(all)).map(({ id }) => id), [early!.id])
    }))

  it.effect("idempotency keys whose time is over are forgotten by workers", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const store = yield* OutboxStore
      const [old, kept] = [
        envelope({ idempotencyKey: "old", remember: 0 }),
        envelope({ idempotencyKey: "kept", remember: 3_600_000 })
      ]
      yield* store.append([old, kept])
      yield* open(store, [old.tag])
      const left = sql<
        { intent: string }
      >`SELECT intent FROM epilogue.remembered WHERE intent IN (${old.id}, ${kept.id})`
      const rows = yield* Effect.repeat(left, { until: (found) => found.length === 1 })
      assert.deepStrictEqual(rows, [{ intent: kept.id }])
    }))
})
