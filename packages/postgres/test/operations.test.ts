// What operators do while everybody else goes on.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import type { Envelope } from "@epilogue/core/IntentSink"
import { type Claimed, OutboxStore, type Session, type Settlement } from "@epilogue/core/OutboxStore"
import { PgOutboxStore } from "@epilogue/postgres"
import { Duration, Effect, Exit, Fiber, Latch, Random } from "effect"
import { all, another, envelope, envelopes, layerStore, open, storeOver } from "./Store.ts"

const idsOf = (list: ReadonlyArray<{ readonly id: string }>) => list.map(({ id }) => id)

const settle = (session: Session, claimed: ReadonlyArray<Claimed>, ending: (each: Claimed) => Settlement) =>
  session.settle(claimed.map(ending))

const buried = (blocksKey = false) => (claimed: Claimed): Settlement => ({
  _tag: "Dead",
  claimed,
  reason: "rejected",
  failure: "it was rejected",
  blocksKey
})

/** Appends, and answers with a session of their tag that has claimed as many as it may. */
const appendAndClaim = Effect.fnUntraced(function*(added: ReadonlyArray<Envelope>) {
  const store = yield* OutboxStore
  yield* store.append(added)
  const session = yield* open(store, [added[0]!.tag])
  return { session, claimed: yield* session.claim(all) }
})

/** Buries some, and answers with the session that did. */
const appendAndBury = Effect.fnUntraced(function*(added: ReadonlyArray<Envelope>, blocksKey: boolean = false) {
  const { claimed, session } = yield* appendAndClaim(added)
  yield* settle(session, claimed, buried(blocksKey))
  return session
})

/** Another connection's transaction, which goes on until it is told to end. */
const transaction = Effect.fnUntraced(function*<E, R>(
  inside: (sql: PgClient.PgClient) => Effect.Effect<unknown, E, R>
) {
  const sql = yield* another()
  const [began, end] = [Latch.makeUnsafe(), Latch.makeUnsafe()]
  const fiber = yield* Effect.forkScoped(
    sql.withTransaction(inside(sql).pipe(Effect.andThen(began.open), Effect.andThen(end.await)))
  )
  yield* began.await
  return { commit: Effect.andThen(end.open, Fiber.join(fiber)) }
})

/** Everything that the tables of the store say, as text. */
const everything = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  const tables = yield* sql<{ name: string }>`
    SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'epilogue' ORDER BY 1`
  const rows = yield* Effect.forEach(
    tables,
    ({ name }) => sql<{ text: string }>`SELECT t::text AS text FROM ${sql(`epilogue.${name}`)} AS t`
  )
  return rows.flat().map(({ text }) => text).join("\n")
})

it.layer(layerStore, { excludeTestServices: true })("operations", (it) => {
  it.effect("what is more than a step changes is changed as a whole, and counted", () =>
    Effect.gen(function*() {
      const { append, operations } = yield* OutboxStore
      const tag = "Many"
      const count = 2_500
      const kinds: ReadonlyArray<Partial<Envelope>> = [{}, { partitionKey: "k" }, { delay: 3_600_000 }]
      const appendAll = Effect.forEach(kinds, (kind) => append(envelopes(count, { tag, ...kind })))
      yield* appendAll
      assert.strictEqual(yield* operations.reject({ tag }, "?"), 3 * count)
      assert.strictEqual(yield* operations.retry({ tag }), 3 * count)
      assert.strictEqual(yield* operations.cancel({ tag }), 3 * count)
      yield* appendAll
      assert.strictEqual(yield* operations.reject({ tag }, "?"), 3 * count)
      assert.strictEqual(yield* operations.purge({ tag }), 3 * count)
      yield* appendAll
      assert.strictEqual(yield* operations.erase({ tag, partitionKey: "k" }), count)
      assert.strictEqual(yield* operations.cancel({ tag, states: ["delayed"] }), count)
      assert.strictEqual(yield* operations.cancel({ tag }), count)
      assert.deepStrictEqual((yield* operations.list({ tag }, { limit: 10 })).entries, [])
    }))

  it.effect("what somebody has locked for a moment is changed then, and for longer left alone", () =>
    Effect.gen(function*() {
      const { append, operations } = yield* OutboxStore
      const added = envelopes(3)
      const { tag } = added[0]!
      yield* append(added)
      const lock = (id: string) =>
        transaction((sql) => sql`SELECT FROM epilogue.waiting WHERE intent = ${id}::uuid FOR UPDATE`)
      const long = yield* lock(added[0]!.id)
      const short = yield* lock(added[1]!.id)
      const cancelling = yield* Effect.forkChild(operations.cancel({ tag }))
      yield* Effect.sleep("100 millis")
      yield* short.commit
      assert.strictEqual(yield* Fiber.join(cancelling), 2)
      yield* long.commit
      assert.deepStrictEqual(
        idsOf((yield* operations.list({ tag }, { limit: 10 })).entries),
        [added[0]!.id]
      )
    }))

  it.effect("a key is found in every tag, and by it nothing that has none", () =>
    Effect.gen(function*() {
      const { append, operations } = yield* OutboxStore
      const [one, other] = [envelope({ partitionKey: "a key of two" }), envelope({ partitionKey: "a key of two" })]
      yield* append([one, other, envelope({ tag: one.tag }), envelope({ tag: one.tag, partitionKey: "of one" })])
      const { entries } = yield* operations.list({ partitionKey: "a key of two" }, { limit: 10 })
      assert.deepStrictEqual(idsOf(entries), idsOf([one, other]).toSorted())
      assert.deepStrictEqual(entries.map(({ partitionKey }) => partitionKey), ["a key of two", "a key of two"])
    }))

  it.effect("an age that no interval holds is one that nothing has", () =>
    Effect.gen(function*() {
      const { append, operations } = yield* OutboxStore
      yield* append([envelope()])
      const { entries } = yield* operations.list({ olderThan: Number.MAX_VALUE }, { limit: 10 })
      assert.deepStrictEqual(entries, [])
    }))

  it.effect("a dead letter joins its key behind whoever adds to that, and does not wait for long transactions", () =>
    Effect.gen(function*() {
      const { operations } = yield* OutboxStore
      const [passed, added] = envelopes(2, { partitionKey: "k" }) as [Envelope, Envelope]
      const session = yield* appendAndBury([passed])
      const adding = yield* transaction((sql) => Effect.flatMap(storeOver(sql), ({ append }) => append([added])))
      assert.strictEqual(yield* operations.retry({ tag: passed.tag }), 0)
      const retrying = yield* Effect.forkChild(operations.retry({ tag: passed.tag }))
      yield* Effect.sleep("100 millis")
      yield* adding.commit
      assert.strictEqual(yield* Fiber.join(retrying), 1)
      const order: Array<string> = []
      while (order.length < 2) {
        const claimed = yield* session.claim(all)
        order.push(...idsOf(claimed))
        yield* settle(session, claimed, (each) => ({ _tag: "Succeeded", claimed: each }))
      }
      assert.deepStrictEqual(order, idsOf([added, passed]))
    }))

  it.effect("what dies again while it is retried is not retried again", () =>
    Effect.gen(function*() {
      const { operations } = yield* OutboxStore
      const added = envelopes(50)
      const session = yield* appendAndBury(added)
      const worker = yield* Effect.forkChild(
        Effect.forever(Effect.flatMap(session.claim(all), (claimed) => settle(session, claimed, buried())))
      )
      assert.strictEqual(yield* operations.retry({ tag: added[0]!.tag }), 50)
      yield* Effect.repeat(operations.list({ tag: added[0]!.tag, states: ["dead"] }, { limit: 100 }), {
        until: ({ entries }) => entries.length === 50
      })
      yield* Fiber.interrupt(worker)
    }))

  it.effect("nothing that is erased is left in any table, also of what a worker holds", () =>
    Effect.gen(function*() {
      const { append, operations } = yield* OutboxStore
      const secret = "ada@example.com"
      const of = (options: Partial<Envelope>) =>
        envelope({ tag: "Letter", partitionKey: secret, payload: JSON.stringify(secret), ...options })
      const session = yield* open(yield* OutboxStore, ["Letter"])
      const take = (ending: (each: Claimed) => Settlement) =>
        Effect.flatMap(session.claim(all), (claimed) => settle(session, claimed, ending))
      yield* append([of({ idempotencyKey: secret })])
      yield* take((claimed) => ({ ...buried()(claimed), failure: secret }))
      yield* append([of({}), of({ delay: 3_600_000 })])
      yield* take((claimed) => ({ _tag: "Failed", claimed, delay: 0, failure: secret }))
      const [held] = yield* session.claim(all)
      yield* append([of({}), of({ partitionKey: "another", payload: "\"another\"" })])
      // That it is cancelled already leaves its payload where it is.
      yield* operations.cancel({ ids: [held!.id] })
      assert.include(yield* everything, `"""${secret}"""`)
      assert.strictEqual(yield* operations.erase({ partitionKey: secret }), 3)
      const left = (yield* everything).replaceAll(/^.*,claimed,.*$/gm, "")
      assert.notInclude(left, JSON.stringify(secret))
      assert.notInclude(left, `"""${secret}"""`)
      assert.deepStrictEqual((yield* session.beat).recalled, [held!.id])
      yield* settle(session, [held!], (claimed) => ({ _tag: "Failed", claimed, delay: 0, failure: secret }))
      assert.notInclude(yield* everything, secret)
      assert.include(yield* everything, "another")
    }))

  it.effect("what was delivered is not told once its time is over, whether it was cleaned up or not", () =>
    Effect.gen(function*() {
      const client = yield* PgClient.PgClient
      const store = yield* storeOver(client, { keepDelivered: "1 hour" })
      const added = envelopes(2, { partitionKey: "kept" })
      yield* store.append(added)
      const session = yield* open(store, [added[0]!.tag])
      for (let count = 0; count < 2; count++) {
        yield* settle(session, yield* session.claim(all), (claimed) => ({ _tag: "Succeeded", claimed }))
      }
      const list = store.operations.list({ tag: added[0]!.tag }, { limit: 10 })
      assert.deepStrictEqual((yield* list).entries.map(({ state }) => state), ["delivered", "delivered"])
      yield* client`UPDATE epilogue.delivered SET ended_at = ended_at - interval '2 hours' WHERE intent = ${
        added[0]!.id
      }::uuid`
      assert.deepStrictEqual(idsOf((yield* list).entries), [added[1]!.id])
      assert.isUndefined(yield* store.operations.find(added[0]!.id))
    }))

  it.effect("a worker whose lease is over delivers nothing, as an operator sees it", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelope()
      yield* store.append([added])
      yield* open(store, [added.tag], "1 hour")
      assert.deepStrictEqual(yield* store.operations.blocks(added.id), [])
      yield* (yield* PgClient.PgClient)`UPDATE epilogue.worker SET beat_at = beat_at - interval '2 hours'
        WHERE queues && ARRAY (SELECT id FROM epilogue.queue WHERE tag = ${added.tag})`
      assert.deepStrictEqual(yield* store.operations.blocks(added.id), [
        { _tag: "NoWorker", tag: added.tag, version: 1 }
      ])
    }))

  it.effect("a worker delivers every priority of its tags, as an operator sees it", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelope({ priority: 7 })
      yield* open(store, [added.tag])
      yield* store.append([added])
      assert.deepStrictEqual(yield* store.operations.blocks(added.id), [])
    }))

  it.effect(
    "operators and workers never deadlock, no key stands still, and nothing is lost or delivered twice",
    () =>
      Effect.gen(function*() {
        const here = yield* OutboxStore
        const there = yield* storeOver(yield* another())
        const [tag, keys] = ["Busy", ["a", "b", "c", "d", "e"]]
        const delivered = new Set<string>()
        let appended = 0
        let removed = 0
        let isOver = false
        const whileBusy = <E, R>(effect: Effect.Effect<unknown, E, R>) =>
          Effect.whileLoop({ while: () => !isOver, body: () => effect, step: () => {} })

        const append = Effect.gen(function*() {
          yield* Effect.sleep("5 millis")
          if (appended - removed - delivered.size > 500) return
          const added = Array.from(
            { length: 40 },
            (_, index) => envelope({ tag, partitionKey: keys[index % 8], delay: index % 13 === 0 ? 20 : undefined })
          )
          yield* here.append(added)
          appended += added.length
          yield* here.wake(added)
        })

        const work = Effect.fnUntraced(function*(store: OutboxStore.Service) {
          const session = yield* store.open({
            subscriptions: [{ tag, versions: [1], perKey: 5 }],
            lease: Duration.seconds(30)
          })
          return Effect.gen(function*() {
            const claimed = yield* session.claim({ rows: 20, bytes: 1e6 })
            const luck = yield* Random.nextIntBetween(0, 10)
            const settlements = claimed.map((each, index): Settlement =>
              isOver || index < luck
                ? { _tag: "Succeeded", claimed: each }
                : each.partitionKey !== undefined && index > luck
                ? { _tag: "Released", claimed: each }
                : luck < 4
                ? buried(luck === 0)(each)
                : { _tag: "Failed", claimed: each, delay: 5, failure: "?" }
            )
            const lost = yield* session.settle(settlements)
            for (const { _tag, claimed: { id } } of settlements) {
              if (_tag !== "Succeeded" || lost.includes(id)) continue
              assert.isFalse(delivered.has(id), `${id} was delivered twice`)
              delivered.add(id)
            }
            yield* Effect.sleep("1 millis")
          })
        })

        const operate = ({ operations }: OutboxStore.Service) =>
          Effect.gen(function*() {
            const partitionKey = keys[yield* Random.nextIntBetween(0, keys.length, { halfOpen: true })]!
            const { entries } = yield* operations.list({ tag }, { limit: 200 })
            const ids = Array.from(yield* Random.shuffle(idsOf(entries))).slice(0, 30)
            yield* operations.pause({ tag, partitionKey })
            yield* operations.reject({ ids }, "?")
            yield* operations.retry({ tag })
            yield* operations.resume({ tag, partitionKey })
            const cancelled = yield* operations.cancel({ ids: ids.slice(0, 3) })
            yield* operations.reject({ ids: ids.slice(3, 6) }, "to be purged")
            const purged = yield* operations.purge({ ids: ids.slice(3, 6) })
            const erased = yield* operations.erase({ tag, partitionKey })
            removed += cancelled + purged + erased
          })

        const workers = yield* Effect.forEach([here, here, there], work)
        const busy = yield* Effect.forkChild(
          Effect.forEach([append, operate(here), operate(there), ...workers], whileBusy, { concurrency: "unbounded" })
        )
        yield* Effect.sleep("8 seconds")
        isOver = true
        yield* Fiber.join(busy)

        // What is left is delivered, whatever was in its way.
        yield* here.operations.retry({ tag })
        const left = Effect.map(here.operations.list({ tag }, { limit: 1_000 }), ({ entries }) => entries)
        const exit = yield* Effect.andThen(Effect.all(workers, { concurrency: "unbounded" }), left).pipe(
          Effect.repeat({ until: (entries) => entries.length === 0 }),
          Effect.timeout("20 seconds"),
          Effect.exit
        )
        const entries = yield* left
        const why = yield* Effect.forEach(entries.slice(0, 3), ({ id }) => here.operations.blocks(id))
        assert.isTrue(
          Exit.isSuccess(exit),
          `${entries.length} are left: ${JSON.stringify([entries.slice(0, 3), why])}, ${JSON.stringify(exit)}`
        )
        // What is cancelled while its handler succeeds is both.
        assert.isAtLeast(delivered.size + removed, appended)
        const blocked = yield* (yield* PgClient.PgClient)`SELECT FROM epilogue.blocked AS b
        JOIN epilogue.queue AS q ON q.id = b.tag WHERE q.tag = ${tag}`
        assert.strictEqual(blocked.length, 0)
      }),
    60_000
  )

  it.effect("stores in one database don't see each other's", () =>
    Effect.gen(function*() {
      const client = yield* PgClient.PgClient
      const here = yield* OutboxStore
      yield* PgOutboxStore.migrate({ schema: "other" })
      const there = yield* storeOver(client, { schema: "other" })
      const [mine, theirs] = envelopes(2, { partitionKey: "shared" }) as [Envelope, Envelope]
      yield* here.append([mine])
      yield* there.append([theirs])
      yield* there.operations.pause({ tag: mine.tag, partitionKey: undefined })
      assert.strictEqual(yield* there.operations.erase({ partitionKey: "shared" }), 1)
      assert.isDefined(yield* here.operations.find(mine.id))
      assert.notDeepInclude(yield* here.operations.paused, { tag: mine.tag, partitionKey: undefined })
    }))
})
