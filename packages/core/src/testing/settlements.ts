/**
 * What becomes of a delivery, and who may say so.
 */
import * as Effect from "effect/Effect"
import { equal } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  endings,
  everything,
  idsOf,
  isBetween,
  settle,
  settlement,
  sorted,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

export const settlements = (test: Test, { capabilities }: SuiteOptions): void => {
  const counted = ["Failed"] as const
  const uncounted = ["Snoozed", "Undecodable"] as const

  for (const _tag of [...counted, ...uncounted]) {
    const isCounted = _tag === "Failed"
    test(`what is settled as ${_tag} is due again after its delay, and ${isCounted ? "counted" : "not counted"}`, (fixture) =>
      Effect.gen(function*() {
        const [session, other] = [yield* fixture.open(), yield* fixture.open()]
        const envelope = fixture.envelope()
        yield* fixture.append(envelope)
        for (const times of [1, 2, 3]) {
          yield* settle(session, { _tag, delay: fixture.millis(4), failure: "it failed" }, yield* claimOne(session))
          yield* claimNothing(session)
          yield* claimNothing(other)
          yield* fixture.pass(5)
          const [again] = yield* claimExactly(other, [envelope.id])
          equal(again!.failures, isCounted ? times : 0, "its failures")
          equal(again!.crashes, 0, "its crashes")
          equal(again!.payload, envelope.payload, "its payload")
          yield* settle(other, { _tag: "Released" }, again!)
        }
      }))
  }

  test("a delay of nothing means that it is due at once", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      for (const _tag of [...counted, ...uncounted]) {
        yield* settle(session, { _tag, delay: 0, failure: "it failed" }, yield* claimOne(session))
      }
      equal((yield* claimOne(session)).failures, 1, "its failures")
    }))

  test("what is released is free at once for every session, and not counted", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      yield* settle(session, { _tag: "Released" }, yield* claimOne(session))
      const claimed = yield* claimOne(other)
      equal([claimed.failures, claimed.crashes, claimed.undecodableFor], [0, 0, undefined], "what is counted")
    }))

  test("what is dead is kept, and never delivered", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(3))
      const claimed = yield* claim(session)
      yield* session.settle((["exhausted", "rejected", "undecodable"] as const).map((reason, index) => ({
        _tag: "Dead",
        claimed: claimed[index]!,
        reason,
        failure: "it failed"
      })))
      equal((yield* fixture.depth()).dead, 3, "how many are dead")
      yield* fixture.pass(10)
      yield* claimNothing(session)
      equal((yield* fixture.depth()).dead, 3, "how many are dead later")
    }))

  test("it remembers since when it could not be read, also through what is counted", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      const first = yield* claimOne(session)
      equal(first.undecodableFor, undefined, "for how long, at first")
      yield* settle(session, { _tag: "Undecodable", delay: fixture.millis(1), failure: "?" }, first)
      yield* fixture.pass(4)
      const second = yield* claimOne(session)
      isBetween(second.undecodableFor ?? -1, fixture.millis(3), fixture.millis(7), "for how long, later")
      yield* settle(session, { _tag: "Undecodable", delay: fixture.millis(1), failure: "?" }, second)
      yield* fixture.pass(4)
      const third = yield* claimOne(session)
      isBetween(third.undecodableFor ?? -1, fixture.millis(7), fixture.millis(14), "for how long, from the first time")
      yield* settle(session, { _tag: "Failed", delay: 0, failure: "it failed" }, third)
      const fourth = yield* claimOne(session)
      isBetween(fourth.undecodableFor ?? -1, fixture.millis(7), fixture.millis(14), "for how long, after a failure")
    }))

  test("failures are counted through snoozes, releases and other sessions", (fixture) =>
    Effect.gen(function*() {
      const [one, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const failed = { _tag: "Failed", delay: 0, failure: "it failed" } as const
      yield* settle(one, failed, yield* claimOne(one))
      yield* settle(other, { _tag: "Snoozed", delay: 0 }, yield* claimOne(other))
      yield* settle(one, { _tag: "Released" }, yield* claimOne(one))
      yield* settle(other, failed, yield* claimOne(other))
      equal((yield* claimOne(one)).failures, 2, "its failures")
    }))

  test("many are settled at once, each as it is said", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(60))
      const claimed = yield* claim(session)
      equal(
        yield* session.settle(claimed.map((each, index) => settlement(each, endings[index % endings.length]!))),
        [],
        "what was lost"
      )
      const free = claimed.filter((_, index) => !["Succeeded", "Dead"].includes(endings[index % endings.length]!._tag))
      const again = yield* claimExactly(session, idsOf(free))
      equal(again.filter(({ failures }) => failures === 1).length, 10, "how many have failed")
      equal((yield* fixture.depth()).dead, 10, "how many are dead")
    }))

  test("a settlement of nothing changes nothing", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      equal(yield* session.settle([]), [], "what was lost")
      yield* claimOne(session)
    }))

  test("any text will do as a failure", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const texts = ["", "\u0000", "\ud800", `'"\\ %s $1`, "日本語 👩‍👩‍👧‍👦", "x".repeat(100_000)]
      yield* fixture.append(...fixture.envelopes(texts.length * 3))
      const claimed = yield* claim(session)
      const lost = yield* session.settle(
        texts.flatMap((failure, index) =>
          ([{ _tag: "Failed", delay: 0 }, { _tag: "Undecodable", delay: 0 }, {
            _tag: "Dead",
            reason: "rejected"
          }] as const)
            .map((ending, each) => settlement(claimed[index * 3 + each]!, { ...ending, failure }))
        )
      )
      equal(lost, [], "what was lost")
      equal((yield* claim(session)).length, texts.length * 2, "how many are free again")
    }))

  for (const ending of endings) {
    test(`a session can't settle what another has claimed: ${ending._tag}`, (fixture) =>
      Effect.gen(function*() {
        const [one, other] = [yield* fixture.open(), yield* fixture.open()]
        yield* fixture.append(fixture.envelope())
        const claimed = yield* claimOne(one)
        equal(yield* other.settle([settlement(claimed, ending)]), [claimed.id], "what was lost")
        yield* claimNothing(other)
        equal((yield* fixture.depth()).dead, 0, "how many are dead")
        yield* settle(one, { _tag: "Released" }, claimed)
        equal((yield* claimOne(other)).failures, 0, "its failures")
      }))

    test(`what was settled as ${ending._tag} can't be settled again`, (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        yield* fixture.append(fixture.envelope())
        const claimed = yield* claimOne(session)
        yield* settle(session, ending, claimed)
        const before = yield* fixture.depth()
        for (const second of endings) {
          equal(yield* session.settle([settlement(claimed, second)]), [claimed.id], `what ${second._tag} lost`)
        }
        const { oldest: _, ...after } = yield* fixture.depth()
        equal({ ...after, oldest: before.oldest }, before, "what there is")
      }))
  }

  test("what was lost is told by its id, and the rest is settled all the same", (fixture) =>
    Effect.gen(function*() {
      const [one, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(...fixture.envelopes(10))
      const mine = yield* one.claim({ ...everything, rows: 5 })
      const theirs = yield* other.claim({ ...everything, rows: 5 })
      const mixed = [0, 1, 2, 3, 4].flatMap((index) => [mine[index]!, theirs[index]!])
      const lost = yield* one.settle(mixed.map((claimed) => ({ _tag: "Succeeded", claimed })))
      equal(sorted(lost), sorted(idsOf(theirs)), "what was lost")
      yield* succeed(other, ...theirs)
      yield* claimNothing(one)
    }))

  if (!capabilities.transactional) {
    test("settling in a transaction is refused, and changes nothing", (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        yield* fixture.append(fixture.envelope())
        const claimed = yield* claimOne(session)
        const error = yield* Effect.flip(session.settleInTransaction(claimed))
        equal(error._tag, "IntentStoreError", "the error")
        yield* succeed(session, claimed)
      }))
  }
}
