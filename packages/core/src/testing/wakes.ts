/**
 * A session hears of what it may claim, at once and without asking.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { equal } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  everything,
  idsOf,
  quiet,
  quietAndWaiting,
  settle,
  sorted,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

export const wakes = (test: Test, { capabilities }: SuiteOptions): void => {
  test("an append wakes a session that waits", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const waiting = yield* quietAndWaiting(fixture, session)
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      yield* Fiber.join(waiting)
      yield* claimExactly(session, [envelope.id])
    }))

  test("an append wakes every session that could claim it", (fixture) =>
    Effect.gen(function*() {
      const sessions = [yield* fixture.open(), yield* fixture.open(), yield* fixture.open()]
      const waiting = yield* Effect.forEach(sessions, (session) => quietAndWaiting(fixture, session))
      yield* fixture.append(fixture.envelope())
      yield* Effect.forEach(waiting, Fiber.join)
    }))

  test("what came before a session waits counts", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* quiet(fixture, session)
      yield* fixture.append(fixture.envelope())
      yield* fixture.pass(1)
      yield* session.wakes
      yield* claimOne(session)
    }))

  test("many wakes are one, and then it is quiet", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* quiet(fixture, session)
      const envelopes = fixture.envelopes(5)
      yield* Effect.forEach(envelopes, (envelope) => fixture.append(envelope))
      yield* session.wakes
      yield* succeed(session, ...(yield* claimExactly(session, idsOf(envelopes))))
      yield* quiet(fixture, session)
    }))

  test("a session that stopped waiting loses no wake", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* Fiber.interrupt(waiting)
      yield* fixture.append(fixture.envelope())
      yield* session.wakes
      yield* claimOne(session)
    }))

  test("no wake is lost between a claim and the next wait", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelopes = fixture.envelopes(100)
      const appending = yield* Effect.forkScoped(
        Effect.forEach(envelopes, (envelope) => Effect.andThen(fixture.append(envelope), Effect.yieldNow))
      )
      const ids: Array<string> = []
      while (ids.length < envelopes.length) {
        yield* session.wakes
        ids.push(...idsOf(yield* claim(session)))
      }
      equal(sorted(ids), sorted(idsOf(envelopes)), "what was claimed")
      yield* Fiber.join(appending)
    }))

  test("a session wakes when a delayed intent is due", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelope = fixture.envelope({ delay: fixture.millis(6) })
      yield* fixture.append(envelope)
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* fixture.pass(7)
      yield* Fiber.join(waiting)
      yield* claimExactly(session, [envelope.id])
    }))

  test("a session that waits for one delayed intent wakes for another that is due earlier", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope({ delay: fixture.millis(1_000) }))
      const waiting = yield* quietAndWaiting(fixture, session)
      const envelope = fixture.envelope({ delay: fixture.millis(3) })
      yield* fixture.append(envelope)
      yield* fixture.pass(4)
      yield* Fiber.join(waiting)
      yield* claimExactly(session, [envelope.id])
    }))

  test("a session wakes when one that failed is due again", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(session)
      yield* quiet(fixture, session)
      yield* settle(session, { _tag: "Failed", delay: fixture.millis(3), failure: "it failed" }, claimed)
      const waiting = yield* Effect.forkScoped(session.wakes)
      yield* fixture.pass(4)
      yield* Fiber.join(waiting)
      yield* claimExactly(session, [claimed.id])
    }))

  test("a session wakes when one that failed is due again at once", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(session)
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* settle(session, { _tag: "Failed", delay: 0, failure: "it failed" }, claimed)
      yield* Fiber.join(waiting)
      yield* claimExactly(session, [claimed.id])
    }))

  test("a session wakes for what another one releases", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(other)
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* settle(other, { _tag: "Released" }, claimed)
      yield* Fiber.join(waiting)
      yield* claimOne(session)
    }))

  test("a session wakes for what another one had when its scope closed", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const other = yield* fixture.openClosable()
      yield* fixture.append(fixture.envelope())
      yield* claimOne(other.session)
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* other.close
      yield* Fiber.join(waiting)
      yield* claimOne(session)
    }))

  test("a session wakes for what another one recovers", (fixture) =>
    Effect.gen(function*() {
      const [dead, session, observer] = [yield* fixture.openMortal(), yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      yield* claimOne(dead)
      yield* fixture.outlive(observer)
      const waiting = yield* quietAndWaiting(fixture, session)
      equal(yield* observer.recover, 1, "what was freed")
      yield* Fiber.join(waiting)
      yield* claimOne(session)
    }))

  if (capabilities.ordered) {
    for (const _tag of ["Succeeded", "Dead"] as const) {
      test(`a session wakes for the next of a key when the one before it is settled as ${_tag}`, (fixture) =>
        Effect.gen(function*() {
          const session = yield* fixture.open()
          const [first, second] = fixture.envelopes(2, { partitionKey: "k" })
          yield* fixture.append(first!, second!)
          const [claimed] = yield* claimExactly(session, [first!.id])
          const waiting = yield* quietAndWaiting(fixture, session)
          yield* settle(session, { _tag, reason: "rejected", failure: "" }, claimed!)
          yield* Fiber.join(waiting)
          yield* claimExactly(session, [second!.id])
        }))
    }
  }

  test("waiting costs no claims: what can't be claimed wakes nobody again and again", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope({ version: 2 }), fixture.envelope({ delay: fixture.millis(1_000) }))
      const claimed = yield* session.claim(everything)
      equal(claimed, [], "what was claimed")
      yield* quiet(fixture, session)
      yield* claimNothing(session)
    }))
}
