/**
 * Order by partition key, and by priority.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Envelope } from "../Envelope.ts"
import type { Session } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  everything,
  type Fixture,
  freshTag,
  idsOf,
  settle,
  sorted,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

const partitionKey = "k"

export const ordering = (test: Test, { capabilities }: SuiteOptions): void => {
  test("deliveries of one key are made one at a time over all sessions, in the order of their appends", (fixture) =>
    Effect.gen(function*() {
      const sessions = [yield* fixture.open(), yield* fixture.open()]
      const envelopes = fixture.envelopes(6, { partitionKey })
      const given = envelopes.map((_, index) => envelopes[(index * 5) % 6]!)
      yield* fixture.append(...given.slice(0, 4))
      yield* fixture.append(...given.slice(4))
      for (const [index, { id }] of given.entries()) {
        const [session, other] = [sessions[index % 2]!, sessions[(index + 1) % 2]!]
        const [claimed] = yield* claimExactly(session, [id])
        yield* claimNothing(other)
        yield* claimNothing(session)
        yield* succeed(session, claimed!)
      }
      yield* claimNothing(sessions[0]!)
    }))

  test("different keys, and intents without one, do not wait for each other", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const keyed = ["a", "b", "c", ""].map((key) => fixture.envelopes(2, { partitionKey: key }))
      const unkeyed = fixture.envelopes(2)
      yield* fixture.append(...keyed.flat(), ...unkeyed)
      yield* claimExactly(session, idsOf([...keyed.map(([first]) => first!), ...unkeyed]))
    }))

  test("a partition key belongs to its tag", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([fixture.tag, other].map((tag) => ({ tag, versions: [1] })))
      const envelopes = [fixture.envelope({ partitionKey }), fixture.envelope({ partitionKey, tag: other })]
      yield* fixture.append(...envelopes)
      yield* claimExactly(session, idsOf(envelopes))
    }))

  for (const _tag of ["Failed", "Snoozed", "Undecodable"] as const) {
    test(`what is settled as ${_tag} holds its key until it is made again`, (fixture) =>
      Effect.gen(function*() {
        const [session, other] = [yield* fixture.open(), yield* fixture.open()]
        const [first, second] = fixture.envelopes(2, { partitionKey }) as [Envelope, Envelope]
        yield* fixture.append(first, second)
        yield* settle(session, { _tag, delay: fixture.millis(4), failure: "it failed" }, yield* claimOne(session))
        yield* claimNothing(session)
        yield* claimNothing(other)
        yield* fixture.append(fixture.envelope({ partitionKey }))
        yield* claimNothing(other)
        yield* fixture.pass(5)
        const [again] = yield* claimExactly(other, [first.id])
        yield* claimNothing(session)
        yield* succeed(other, again!)
        yield* claimExactly(session, [second.id])
      }))
  }

  test("what is released, or freed with its session, comes first in its key again", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      const first = fixture.envelope({ partitionKey })
      yield* fixture.append(first, ...fixture.envelopes(2, { partitionKey }))
      yield* settle(observer, { _tag: "Released" }, ...(yield* claimExactly(observer, [first.id])))
      const { close, session } = yield* fixture.openClosable()
      yield* claimExactly(session, [first.id])
      yield* claimNothing(observer)
      yield* close
      const dead = yield* fixture.openMortal()
      yield* claimExactly(dead, [first.id])
      yield* fixture.outlive(observer)
      yield* claimNothing(observer)
      equal(yield* observer.recover, 1, "what was freed")
      yield* claimExactly(observer, [first.id])
    }))

  test("a dead letter lets its key go on", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [first, second] = fixture.envelopes(2, { partitionKey }) as [Envelope, Envelope]
      yield* fixture.append(first, second)
      yield* settle(session, { _tag: "Dead", reason: "rejected", failure: "" }, yield* claimOne(session))
      yield* claimExactly(session, [second.id])
    }))

  test("a delayed intent joins the end of its key when it is due", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const delayed = fixture.envelope({ partitionKey, delay: fixture.millis(4) })
      const [first, second, third] = fixture.envelopes(3, { partitionKey }) as [Envelope, Envelope, Envelope]
      yield* fixture.append(delayed, first, second)
      const [claimed] = yield* claimExactly(session, [first.id])
      yield* fixture.pass(5)
      yield* claimNothing(session)
      yield* succeed(session, claimed!)
      yield* fixture.append(third)
      for (const { id } of [second, delayed, third]) yield* succeed(session, ...(yield* claimExactly(session, [id])))
    }))

  test("a key goes on where it was after it was empty", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const delayed = fixture.envelope({ partitionKey, delay: fixture.millis(4) })
      yield* fixture.append(fixture.envelope({ partitionKey }), delayed)
      yield* succeed(session, yield* claimOne(session))
      const [first, second] = fixture.envelopes(2, { partitionKey }) as [Envelope, Envelope]
      yield* fixture.append(first, second)
      yield* fixture.pass(5)
      for (const { id } of [first, second, delayed]) yield* succeed(session, ...(yield* claimExactly(session, [id])))
    }))

  test("an intent of a version that a session can't read holds its key for it", (fixture) =>
    Effect.gen(function*() {
      const [old, recent] = [yield* fixture.open(), yield* fixture.open([{ tag: fixture.tag, versions: [1, 2] }])]
      const [first, newer, last] = [1, 2, 1].map((version) => fixture.envelope({ partitionKey, version })) as [
        Envelope,
        Envelope,
        Envelope
      ]
      yield* fixture.append(first, newer, last)
      yield* succeed(old, ...(yield* claimExactly(old, [first.id])))
      yield* claimNothing(old)
      yield* succeed(recent, ...(yield* claimExactly(recent, [newer.id])))
      yield* claimExactly(old, [last.id])
    }))

  test("intents of one append stay together and in order in their key, whatever is appended beside them", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const appends = Array.from({ length: 10 }, () => fixture.envelopes(3, { partitionKey }))
      yield* Effect.forEach(appends, (each) => fixture.append(...each), { concurrency: 5 })
      const ids: Array<string> = []
      for (let next = yield* claim(session); next.length > 0; next = yield* claim(session)) {
        ids.push(...idsOf(next))
        yield* succeed(session, ...next)
      }
      const batches = Array.from({ length: 10 }, (_, index) => ids.slice(index * 3, index * 3 + 3).join())
      equal(sorted(batches), sorted(appends.map((each) => idsOf(each).join())), "what came one after the other")
    }))

  runs(test)
  if (capabilities.transactional) commits(test)
}

/** Several of one key that are claimed together. */
const runs = (test: Test): void => {
  const openRunning = (fixture: Fixture, perKey: number) => fixture.open([{ tag: fixture.tag, versions: [1], perKey }])

  test("a claim takes a run of a key, in order and no longer than it was told, and no other session any of it", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* openRunning(fixture, 3), yield* openRunning(fixture, 3)]
      const envelopes = fixture.envelopes(5, { partitionKey })
      yield* fixture.append(...envelopes)
      const run = yield* claim(session)
      equal(idsOf(run), idsOf(envelopes.slice(0, 3)), "the run")
      yield* claimNothing(other)
      yield* claimNothing(session)
      yield* succeed(session, run[0]!)
      yield* claimNothing(other)
      yield* succeed(session, run[1]!)
      yield* claimNothing(session)
      yield* succeed(session, run[2]!)
      equal(idsOf(yield* claim(other)), idsOf(envelopes.slice(3)), "the next run")
    }))

  test("a session that was told nothing takes one of each key", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const keyed = ["a", "b"].map((key) => fixture.envelopes(3, { partitionKey: key }))
      yield* fixture.append(...keyed.flat())
      yield* claimExactly(session, keyed.map(([first]) => first!.id))
    }))

  test("runs have room for all keys and tags, and together no more than the claim", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open(
        [fixture.tag, other].map((tag) => ({ tag, versions: [1], perKey: 10 }))
      )
      const keyed = ["a", "b", "c"].map((key) => fixture.envelopes(10, { partitionKey: key }))
      const few = fixture.envelope({ tag: other, partitionKey })
      yield* fixture.append(...keyed.flat(), few)
      const claimed = yield* session.claim({ ...everything, rows: 7 })
      equal(claimed.length, 7, "how many were claimed")
      equal(idsOf(claimed).includes(few.id), true, "whether the other tag has its share")
      for (const envelopes of keyed) {
        const ids = idsOf(claimed).filter((id) => idsOf(envelopes).includes(id))
        equal<ReadonlyArray<string>>(ids, idsOf(envelopes.slice(0, ids.length)), "what was claimed of a key")
      }
      yield* succeed(session, ...claimed)
      const left = keyed.flat().filter(({ id }) => !idsOf(claimed).includes(id))
      yield* claimExactly(session, idsOf(left))
    }))

  for (const _tag of ["Failed", "Snoozed", "Undecodable"] as const) {
    test(`what is behind one of a run that is settled as ${_tag} waits for it, also for the next run`, (fixture) =>
      Effect.gen(function*() {
        const [session, other] = [yield* openRunning(fixture, 3), yield* openRunning(fixture, 10)]
        const envelopes = fixture.envelopes(4, { partitionKey })
        yield* fixture.append(...envelopes)
        const [first, second, third] = yield* claim(session)
        yield* succeed(session, first!)
        const lost = yield* session.settle([
          { _tag, claimed: second!, delay: fixture.millis(4), failure: "it failed" },
          { _tag: "Released", claimed: third! }
        ])
        equal(lost, [], "what was lost")
        yield* claimNothing(other)
        yield* fixture.pass(5)
        const again = yield* claim(other)
        equal(idsOf(again), idsOf(envelopes.slice(1)), "the next run")
        equal(again.map(({ failures }) => failures), [_tag === "Failed" ? 1 : 0, 0, 0], "their failures")
      }))
  }

  test("a run of which nothing was done is free again, in its order, when it is released and when its session ends", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* openRunning(fixture, 3)
      const subscriptions = [{ tag: fixture.tag, versions: [1], perKey: 3 }]
      const envelopes = fixture.envelopes(3, { partitionKey })
      const ids = idsOf(envelopes)
      yield* fixture.append(...envelopes)
      const released = yield* claim(observer)
      // They may be told in any order.
      yield* settle(observer, { _tag: "Released" }, ...released.toReversed())
      const { close, session } = yield* fixture.openClosable(subscriptions)
      equal(idsOf(yield* claim(session)), ids, "the run after it was released")
      yield* close
      const dead = yield* fixture.openMortal(subscriptions)
      equal(idsOf(yield* claim(dead)), ids, "the run after its session was closed")
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 3, "what was freed")
      equal(idsOf(yield* claim(observer)), ids, "the run after its session was ended")
    }))

  test("a run ends before a version that its session can't read", (fixture) =>
    Effect.gen(function*() {
      const [old, recent] = [
        yield* openRunning(fixture, 5),
        yield* fixture.open([{ tag: fixture.tag, versions: [1, 2], perKey: 5 }])
      ]
      const envelopes = [1, 1, 2, 1].map((version) => fixture.envelope({ partitionKey, version }))
      yield* fixture.append(...envelopes)
      const run = yield* claim(old)
      equal(idsOf(run), idsOf(envelopes.slice(0, 2)), "the run")
      yield* succeed(old, ...run)
      yield* claimNothing(old)
      equal(idsOf(yield* claim(recent)), idsOf(envelopes.slice(2)), "the run of one that can read it")
    }))

  test("a dead letter that blocks its key keeps everything behind it, and what comes later, and nothing of other keys", (fixture) =>
    Effect.gen(function*() {
      const session = yield* openRunning(fixture, 2)
      const [first, second, third] = fixture.envelopes(3, { partitionKey }) as [Envelope, Envelope, Envelope]
      yield* fixture.append(first, second)
      const [claimed, behind] = yield* claim(session)
      yield* session.settle([
        { _tag: "Released", claimed: behind! },
        { _tag: "Dead", claimed: claimed!, reason: "exhausted", failure: "it failed", blocksKey: true }
      ])
      yield* claimNothing(session)
      const delayed = fixture.envelope({ partitionKey, delay: fixture.millis(2) })
      const others = [fixture.envelope({ partitionKey: "other" }), fixture.envelope()]
      yield* fixture.append(third, delayed, ...others)
      yield* fixture.pass(3)
      yield* claimExactly(session, idsOf(others))
      equal((yield* session.beat).isWaiting, false, "whether something waits")
      const { waiting, dead } = yield* fixture.depth()
      equal([waiting, dead], [3, 1], "how many wait and how many are dead")
    }))

  test("a dead letter without a key blocks nothing", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [first, second] = [fixture.envelope(), fixture.envelope()]
      yield* fixture.append(first, second)
      const claimed = yield* session.claim({ ...everything, rows: 1 })
      yield* settle(session, { _tag: "Dead", reason: "rejected", failure: "", blocksKey: true }, ...claimed)
      yield* claimExactly(session, [second.id])
    }))
}

/** Of transactions side by side, that which commits first goes first, whatever came first in them. */
const commits = (test: Test): void => {
  const drain = Effect.fnUntraced(function*(session: Session) {
    const ids: Array<string> = []
    for (let next = yield* claim(session); next.length > 0; next = yield* claim(session)) {
      ids.push(...idsOf(next))
      yield* succeed(session, ...next)
    }
    return ids
  })

  test("a transaction that began first and appends last goes last in a key", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const { client, store } = fixture
      // Its id is the older one, too.
      const [early, late] = [fixture.envelope({ partitionKey }), fixture.envelope({ partitionKey })]
      const [hasBegun, mayAppend] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const first = yield* Effect.forkScoped(client.withTransaction(Effect.gen(function*() {
        yield* store.append([fixture.envelope({ delay: fixture.millis(10_000) })])
        yield* Deferred.succeed(hasBegun, undefined)
        yield* Deferred.await(mayAppend)
        yield* store.append([early])
      })))
      yield* Deferred.await(hasBegun)
      yield* client.withTransaction(store.append([late]))
      yield* Deferred.succeed(mayAppend, undefined)
      yield* Fiber.join(first)
      equal<ReadonlyArray<string>>(yield* drain(session), idsOf([late, early]), "the order of the key")
    }))

  test("a transaction that appends first and commits last goes last in a key, or keeps the others waiting", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const { client, store } = fixture
      const [first, second] = [fixture.envelope({ partitionKey }), fixture.envelope({ partitionKey })]
      const [hasAppended, mayCommit] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const slow = yield* Effect.forkScoped(client.withTransaction(Effect.gen(function*() {
        yield* store.append([first])
        yield* Deferred.succeed(hasAppended, undefined)
        yield* Deferred.await(mayCommit)
      })))
      yield* Deferred.await(hasAppended)
      const fast = yield* Effect.forkScoped(client.withTransaction(store.append([second])))
      yield* fixture.pass(3)
      const isOvertaken = fast.pollUnsafe() !== undefined
      yield* Deferred.succeed(mayCommit, undefined)
      yield* Fiber.join(slow)
      yield* Fiber.join(fast)
      equal<ReadonlyArray<string>>(
        yield* drain(session),
        idsOf(isOvertaken ? [second, first] : [first, second]),
        "the order of the key"
      )
    }))

  test("transactions side by side are in one order in all of their keys", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const { client, store } = fixture
      const keys = ["a", "b", "c"]
      const finished: Array<number> = []
      const before: Array<ReadonlyArray<number>> = []
      const owner = new Map<string, { readonly transaction: number; readonly key: string }>()
      yield* Effect.forEach(
        Array.from({ length: 24 }, (_, transaction) => transaction),
        Effect.fnUntraced(function*(transaction) {
          // Each begins with another key, and has two of each.
          const envelopes = [...keys, ...keys].map((_, index) =>
            fixture.envelope({ partitionKey: keys[(index + transaction) % 3]! })
          )
          for (const { id, partitionKey: key } of envelopes) owner.set(id, { transaction, key: key! })
          before[transaction] = finished.slice()
          yield* client.withTransaction(Effect.gen(function*() {
            yield* store.append(envelopes)
            for (let i = 0; i < transaction % 4; i++) yield* client`SELECT 1`
          }))
          finished.push(transaction)
        }),
        { concurrency: 6, discard: true }
      )
      const orders = new Map(keys.map((key) => [key, new Array<number>()]))
      for (const id of yield* drain(session)) {
        const { key, transaction } = owner.get(id)!
        orders.get(key)!.push(transaction)
      }
      const order = orders.get("a")!
      for (const key of keys) equal(orders.get(key), order, `the transactions in the order of key ${key}`)
      equal(
        order.filter((each, index) => each !== order[index - 1]).length,
        24,
        "how often it went from one to another"
      )
      for (const [transaction, earlier] of before.entries()) {
        for (const each of earlier) {
          isTrue(order.indexOf(each) < order.indexOf(transaction), `that ${transaction} goes after ${each}`)
        }
      }
    }))
}

export const priorities = (test: Test): void => {
  test("of a tag, a higher priority goes first, and of one priority, what was appended first", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [low, usual, high, highest, usualLater] = [-5, 0, 1, 100, 0].map((priority) =>
        fixture.envelope({ priority })
      ) as [Envelope, Envelope, Envelope, Envelope, Envelope]
      yield* fixture.append(low, usual, high, highest, usualLater)
      for (const { id } of [highest, high, usual, usualLater, low]) {
        equal(idsOf(yield* session.claim({ ...everything, rows: 1 })), [id], "what is claimed next")
      }
    }))

  test("a priority counts when a delayed intent is due, and when one that failed is made again", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const failed = fixture.envelope({ priority: 2 })
      yield* fixture.append(failed)
      yield* settle(
        session,
        { _tag: "Failed", delay: fixture.millis(3), failure: "it failed" },
        yield* claimOne(session)
      )
      const delayed = fixture.envelope({ priority: 1, delay: fixture.millis(3) })
      const usual = fixture.envelope()
      yield* fixture.append(usual, delayed)
      yield* fixture.pass(4)
      for (const { id } of [failed, delayed, usual]) {
        equal(idsOf(yield* session.claim({ ...everything, rows: 1 })), [id], "what is claimed next")
      }
    }))

  test("a priority does not reach over to another tag", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([fixture.tag, other].map((tag) => ({ tag, versions: [1] })))
      const usual = fixture.envelope({ tag: other })
      yield* fixture.append(...fixture.envelopes(100, { priority: 10 }), usual)
      const claimed = yield* session.claim({ ...everything, rows: 10 })
      equal(idsOf(claimed).includes(usual.id), true, "whether the other tag has its share")
    }))
}
