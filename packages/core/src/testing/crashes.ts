/**
 * A worker that dies while it runs something makes that, and only that, a suspect.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { IntentStoreError } from "../IntentSink.ts"
import type { Claimed, Session } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  endings,
  everything,
  type Fixture,
  idsOf,
  quietAndWaiting,
  settle,
  settlement,
  sorted,
  start,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

export const crashes = (test: Test, { capabilities }: SuiteOptions): void => {
  test("what was on record as started when its session was ended is a suspect, and its neighbours lose nothing", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(5))
      const [running, alsoRunning, settled, ...neighbours] = yield* crash(
        fixture,
        observer,
        (dead) =>
          Effect.gen(function*() {
            const held = yield* claim(dead)
            yield* start(dead, ...held.slice(0, 3))
            yield* succeed(dead, held[2]!)
            return held
          })
      )
      const claimed = yield* claimExactly(observer, idsOf(neighbours))
      for (const each of claimed) {
        equal([each.failures, each.crashes, each.suspicion], [0, 0, "possible"], "what is thought of a neighbour")
      }
      const suspects = [yield* claimSuspect(observer), yield* claimSuspect(observer)]
      equal(sorted(idsOf(suspects)), sorted(idsOf([running!, alsoRunning!])), "the suspects, one at a time")
      for (const each of suspects) {
        equal([each.failures, each.crashes, each.suspicion], [0, 0, "strong"], "what is thought of a suspect")
        equal(each.payload, running!.payload, "its payload")
      }
      yield* claimNoSuspect(observer)
      yield* succeed(observer, ...suspects, ...claimed)
      isTrue(!idsOf([...suspects, ...claimed]).includes(settled!.id), "that what was settled is gone")
      equal((yield* fixture.depth()).waiting, 0, "what is left")
    }))

  test("only a crash while it runs alone is counted, and it stays a suspect", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      yield* crash(fixture, observer, (dead) => Effect.tap(claimOne(dead), (claimed) => start(dead, claimed)))
      for (const times of [1, 2]) {
        yield* crash(fixture, observer, claimSuspect)
        yield* claimNothing(observer)
        const suspect = yield* claimSuspect(observer)
        equal([suspect.failures, suspect.crashes, suspect.suspicion], [0, times, "strong"], "what is thought of it")
        yield* settle(observer, { _tag: "Released" }, suspect)
      }
      yield* settle(
        observer,
        { _tag: "Failed", delay: 0, failure: "it failed" },
        yield* claimSuspect(observer)
      )
      const again = yield* claimOne(observer)
      equal([again.failures, again.crashes, again.suspicion], [1, 2, "none"], "what is thought of it after it failed")
    }))

  test("what never started is no suspect, however many workers die", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      for (const _ of [1, 2]) {
        yield* crash(fixture, observer, claimOne)
        yield* claimNoSuspect(observer)
      }
      const claimed = yield* claimOne(observer)
      equal([claimed.failures, claimed.crashes, claimed.suspicion], [0, 0, "possible"], "what is thought of it")
    }))

  test("a suspicion is over once the delivery is settled as anything but released", (fixture) =>
    Effect.gen(function*() {
      const [observer, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(...fixture.envelopes(endings.length * 2))
      yield* crash(fixture, observer, (dead) =>
        Effect.gen(function*() {
          const held = yield* claim(dead)
          yield* start(dead, ...held.slice(0, endings.length))
        }))
      const [possible, strong] = [yield* claim(observer), new Array<Claimed>()]
      for (const _ of endings) strong.push(yield* claimSuspect(observer))
      const settled = (list: ReadonlyArray<Claimed>) =>
        observer.settle(endings.map((ending, index) => settlement(list[index]!, ending)))
      equal([...(yield* settled(possible)), ...(yield* settled(strong))], [], "what was lost")
      const released = endings.findIndex(({ _tag }) => _tag === "Released")
      const again = yield* claim(other)
      for (const { id, suspicion } of again) {
        equal(suspicion, id === possible[released]!.id ? "possible" : "none", "what is thought of it")
      }
      // All but those that succeeded or are dead, and the suspect that was released.
      equal(again.length, 2 * (endings.length - 2) - 1, "how many can be claimed")
      const suspect = yield* claimSuspect(other)
      equal([suspect.id, suspect.suspicion], [strong[released]!.id, "strong"], "the suspect that was released")
      yield* claimNoSuspect(other)
    }))

  test("a session that closes leaves no suspects, and of those that it had no crash is counted", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(2))
      const suspect = yield* crash(fixture, observer, (dead) =>
        Effect.gen(function*() {
          const [held] = yield* dead.claim({ ...everything, rows: 1 })
          yield* start(dead, held!)
          return held!
        }))
      const { close, session } = yield* fixture.openClosable()
      const started = yield* claimOne(session)
      yield* start(session, started)
      equal((yield* claimSuspect(session)).id, suspect.id, "the suspect")
      yield* close
      const claimed = yield* claimOne(observer)
      equal([claimed.id, claimed.suspicion], [started.id, "none"], "what is thought of what it had started")
      const again = yield* claimSuspect(observer)
      equal([again.id, again.crashes, again.suspicion], [suspect.id, 0, "strong"], "what is thought of the suspect")
    }))

  test("a beat tells of suspects those who know them, and counts them as nothing else that waits", (fixture) =>
    Effect.gen(function*() {
      const [observer, other] = [yield* fixture.open(), yield* fixture.open([{ tag: fixture.tag, versions: [2] }])]
      const told = (session: Session) => Effect.map(session.beat, (beat) => [beat.hasSuspects, beat.isWaiting])
      equal(yield* told(observer), [false, false], "whether there is a suspect, or something else, at first")
      yield* fixture.append(fixture.envelope())
      yield* crash(fixture, observer, (dead) => Effect.tap(claimOne(dead), (claimed) => start(dead, claimed)))
      equal(yield* told(observer), [true, false], "whether there is a suspect, or something else")
      equal(yield* told(other), [false, false], "whether there is one for a session that can't read it")
      yield* claimNoSuspect(other)
      const suspect = yield* claimSuspect(observer)
      equal(yield* told(observer), [false, false], "whether there is a suspect while it is claimed")
      yield* settle(observer, { _tag: "Released" }, suspect)
      equal(yield* told(observer), [true, false], "whether there is a suspect once it is released")
      yield* succeed(observer, yield* claimSuspect(observer))
      equal(yield* told(observer), [false, false], "whether there is a suspect in the end")
    }))

  test("a session wakes for a suspect: when it becomes one, and when another session releases it", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer, session] = [yield* fixture.openMortal(), yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      yield* start(dead, yield* claimOne(dead))
      yield* fixture.outlive(observer)
      const waiting = yield* quietAndWaiting(fixture, session)
      equal(yield* observer.recover, 1, "what was freed")
      yield* Fiber.join(waiting)
      const suspect = yield* claimSuspect(observer)
      const waitingAgain = yield* quietAndWaiting(fixture, session)
      yield* settle(observer, { _tag: "Released" }, suspect)
      yield* Fiber.join(waitingAgain)
      yield* claimSuspect(session)
    }))

  test("who has lost a delivery can't put its start on record", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(...fixture.envelopes(2))
      const [settled, held] = (yield* claim(dead)) as [Claimed, Claimed]
      equal(yield* observer.start([held]), [held.id], "what another session has lost")
      yield* succeed(dead, settled)
      equal(yield* dead.start([settled, held]), [settled.id], "what was lost of what is settled and what is held")
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 1, "what was freed")
      equal(yield* dead.start([held]), [held.id], "what a session has lost that was ended")
      equal(yield* dead.claimSuspect, undefined, "the suspect that it can claim")
      const suspect = yield* claimSuspect(observer)
      equal(suspect.id, held.id, "the suspect")
      equal(yield* dead.settle([{ _tag: "Succeeded", claimed: held }]), [held.id], "what it can't settle any more")
      equal(yield* observer.start([]), [], "what is lost of nothing")
      yield* succeed(observer, suspect)
    }))

  if (!capabilities.ordered) return

  test("a suspect holds its key until it is settled, and those that were claimed behind it lose nothing", (fixture) =>
    Effect.gen(function*() {
      const subscriptions = [{ tag: fixture.tag, versions: [1], perKey: 3 }]
      const observer = yield* fixture.open(subscriptions)
      const envelopes = fixture.envelopes(4, { partitionKey: "k" })
      const unkeyed = fixture.envelope()
      yield* fixture.append(...envelopes, unkeyed)
      yield* crash(fixture, observer, (dead) =>
        Effect.gen(function*() {
          const held = yield* claim(dead)
          // Its worker has settled nothing yet, so it was with the second when it died.
          yield* start(dead, ...held.filter(({ id }) => idsOf(envelopes.slice(0, 2)).includes(id)))
        }), subscriptions)
      yield* claimExactly(observer, [unkeyed.id])
      const first = yield* claimSuspect(observer)
      equal(first.id, envelopes[0]!.id, "the first suspect")
      yield* claimNoSuspect(observer)
      yield* claimNothing(observer)
      yield* settle(observer, { _tag: "Failed", delay: 0, failure: "it failed" }, first)
      yield* claimNoSuspect(observer)
      // The run ends before the next suspect.
      yield* succeed(observer, ...(yield* claimExactly(observer, [first.id])))
      yield* claimNothing(observer)
      const second = yield* claimSuspect(observer)
      equal(second.id, envelopes[1]!.id, "the second suspect")
      yield* succeed(observer, second)
      const rest = yield* claimExactly(observer, idsOf(envelopes.slice(2)))
      equal(rest.map(({ suspicion }) => suspicion), ["possible", "none"], "what is thought of those behind them")
    }))
}

/** Lets a session die after it has done something. */
const crash = <A>(
  fixture: Fixture,
  observer: Session,
  before: (dead: Session) => Effect.Effect<A, IntentStoreError>,
  subscriptions?: Parameters<Fixture["openMortal"]>[0]
) =>
  Effect.gen(function*() {
    const dead = yield* fixture.openMortal(subscriptions)
    const result = yield* before(dead)
    yield* fixture.outlive(observer)
    isTrue((yield* observer.recover) > 0, "that something was freed")
    return result
  })

const claimSuspect = Effect.fnUntraced(function*(session: Session) {
  const suspect = yield* session.claimSuspect
  if (suspect === undefined) throw new Error("There is no suspect to be claimed")
  return suspect
})

const claimNoSuspect = (session: Session) =>
  Effect.map(session.claimSuspect, (suspect) => equal(suspect?.id, undefined, "the suspect to be claimed"))
