/**
 * Order by partition key, and by priority.
 */
import * as Effect from "effect/Effect"
import type { Envelope } from "../Envelope.ts"
import { equal } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  everything,
  freshTag,
  idsOf,
  settle,
  sorted,
  succeed
} from "./Fixture.ts"
import type { Test } from "./OutboxStoreConformance.ts"

const partitionKey = "k"

export const ordering = (test: Test): void => {
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
