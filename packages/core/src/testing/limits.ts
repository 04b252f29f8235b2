/**
 * What a tag's limits permit is divided among the sessions, and never exceeded.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { RateLimit, Session } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import { everything, type Fixture, freshTag, idsOf, isBetween, sorted } from "./Fixture.ts"
import type { Test } from "./OutboxStoreConformance.ts"

export const limits = (test: Test): void => {
  test("a claim has of a tag no more than it asks for, and of the others what there is", (fixture) =>
    Effect.gen(function*() {
      const others = [freshTag(), freshTag()]
      const session = yield* fixture.open([fixture.tag, ...others].map((tag) => ({ tag, versions: [1] })))
      yield* fixture.append(
        ...fixture.envelopes(5),
        ...others.flatMap((tag) => fixture.envelopes(5, { tag }))
      )
      const limit = { ...everything, rows: 9, tags: new Map([[fixture.tag, 2], [others[0]!, 0]]) }
      const countsOf = (claimed: ReadonlyArray<{ readonly tag: string }>) =>
        [fixture.tag, ...others].map((tag) => claimed.filter((each) => each.tag === tag).length)
      equal(countsOf(yield* session.claim(limit)), [2, 0, 5], "how many of each tag")
      equal(countsOf(yield* session.claim(everything)), [3, 5, 0], "how many of each tag are left")
    }))

  test("what has no limit is permitted as it is wanted, and each want is answered in its place", (fixture) =>
    Effect.gen(function*() {
      const [other, third] = [freshTag(), freshTag()]
      const session = yield* fixture.open([
        { tag: fixture.tag, versions: [1] },
        { tag: other, versions: [1], concurrency: 2 },
        { tag: third, versions: [1], rateLimit: { limit: 3, window: fixture.moments(1_000) } }
      ])
      const permits = yield* session.permit(
        [third, fixture.tag, other].map((tag) => ({ tag, running: 0, concurrency: 7, tokens: 9 }))
      )
      equal(
        permits.map(({ concurrency, tag, tokens }) => [tag, concurrency, tokens]),
        [[third, 7, 3], [fixture.tag, 7, 9], [other, 2, 9]],
        "the permits"
      )
    }))

  test("sessions are never permitted to run more at once than the limit, nor less than they run", (fixture) =>
    Effect.gen(function*() {
      const limit = 7
      const sessions = yield* Effect.forEach([1, 2, 3], () => openLimited(fixture, { concurrency: limit }))
      const granted = [0, 0, 0]
      let state = 1
      const random = (below: number) => (state = state * 48_271 % 0x7fff_ffff) % below
      for (let round = 0; round < 60; round++) {
        const index = random(3)
        const running = random(granted[index]! + 1)
        granted[index] = yield* slots(fixture, sessions[index]!, running, random(10))
        isTrue(granted[index] >= running, "that what runs is permitted")
        isTrue(granted.reduce((sum, each) => sum + each, 0) <= limit, `that ${granted.join()} are within ${limit}`)
      }
    }))

  test("who wants more than its share leaves room for others as its deliveries end", (fixture) =>
    Effect.gen(function*() {
      const concurrency = 10
      const [greedy, modest, late] = [
        yield* openLimited(fixture, { concurrency }),
        yield* openLimited(fixture, { concurrency }),
        yield* openLimited(fixture, { concurrency })
      ]
      equal(yield* slots(fixture, greedy, 0, 100), 10, "what one has that is alone")
      equal(yield* slots(fixture, modest, 0, 2), 0, "what is left")
      equal(yield* slots(fixture, late, 0, 100), 0, "what is left")
      equal(yield* slots(fixture, greedy, 10, 100), 10, "what it has while all of it runs")
      equal(yield* slots(fixture, greedy, 9, 100), 9, "what it has while nine run")
      equal(yield* slots(fixture, greedy, 0, 100), 4, "its share when nothing runs")
      equal(yield* slots(fixture, modest, 0, 2), 2, "what one has that wants little")
      equal(yield* slots(fixture, late, 0, 100), 4, "what one has that wants much")
      equal(yield* slots(fixture, modest, 0, 0), 0, "what one has that wants nothing")
      equal(yield* slots(fixture, greedy, 4, 100), 5, "what is lent")
    }))

  test("of more sessions than slots, each has one in its turn", (fixture) =>
    Effect.gen(function*() {
      const sessions = yield* Effect.forEach([1, 2, 3], () => openLimited(fixture, { concurrency: 1 }))
      const had = sessions.map(() => 0)
      for (let round = 0; round < 12; round++) {
        for (const [index, session] of sessions.entries()) {
          const granted = yield* slots(fixture, session, 0, 5)
          had[index]! += granted
          // It runs it, and asks for more meanwhile.
          equal(yield* slots(fixture, session, granted, 5), granted, "what is permitted while it runs")
        }
      }
      isTrue(Math.min(...had) > 0, `that each had one: ${had.join()}`)
    }))

  test("what a session had is free when it closes, and when another one ends it", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* openLimited(fixture, { concurrency: 3 })
      const subscriptions = [{ tag: fixture.tag, versions: [1], concurrency: 3 }]
      const closable = yield* fixture.openClosable(subscriptions)
      const dead = yield* fixture.openMortal(subscriptions)
      equal(yield* slots(fixture, closable.session, 0, 2), 2, "what the one has that will close")
      equal(yield* slots(fixture, dead, 0, 1), 1, "what the one has that will die")
      equal(yield* slots(fixture, observer, 0, 3), 0, "what is left")
      yield* closable.close
      equal(yield* slots(fixture, observer, 0, 3), 2, "what is left when one is closed")
      yield* fixture.outlive(observer)
      equal(yield* slots(fixture, observer, 2, 3), 2, "what is left while nobody has ended the other")
      equal(yield* observer.recover, 0, "what was freed")
      equal(yield* slots(fixture, observer, 2, 3), 3, "what is left when it is ended")
      equal(yield* slots(fixture, observer, 0, 0), 0, "what one has that wants nothing")
      equal(yield* slots(fixture, dead, 0, 1), 0, "what the ended one has, of all there is")
    }))

  test("a limit is one of its tag", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([fixture.tag, other].map((tag) => ({ tag, versions: [1], concurrency: 2 })))
      equal(yield* slots(fixture, session, 0, 5), 2, "what there is of the one")
      const [permit] = yield* session.permit([{ tag: other, running: 0, concurrency: 5, tokens: 0 }])
      equal(permit!.concurrency, 2, "what there is of the other")
    }))

  test("no more may start at once than the rate's limit, in all sessions together", (fixture) =>
    Effect.gen(function*() {
      const rateLimit = { limit: 10, window: fixture.moments(10_000) }
      const sessions = yield* Effect.forEach([1, 2, 3], () => openLimited(fixture, { rateLimit }))
      const granted: Array<number> = []
      for (let round = 0; round < 4; round++) {
        for (const session of sessions) granted.push((yield* tokens(fixture, session, 4)).tokens)
      }
      equal(granted.reduce((sum, each) => sum + each, 0), 10, "how many may start")
      const { retryAfter } = yield* tokens(fixture, sessions[0]!, 1)
      isBetween(retryAfter ?? -1, 1, fixture.millis(1_000), "in how many milliseconds there may be more")
    }))

  test("tokens come evenly, and never more than the limit are kept", (fixture) =>
    Effect.gen(function*() {
      const rateLimit = { limit: 8, window: fixture.moments(8) }
      const session = yield* openLimited(fixture, { rateLimit })
      const elapsed = yield* stopwatch(fixture)
      equal((yield* tokens(fixture, session, 8)).tokens, 8, "how many there are at first")
      yield* fixture.pass(3)
      const { tokens: later } = yield* tokens(fixture, session, 8)
      isBetween(later, 3, Math.floor(yield* elapsed), "how many there are after three moments")
      yield* fixture.pass(20)
      equal((yield* tokens(fixture, session, 100)).tokens, 8, "how many there are after many moments")
    }))

  test("who waited for as long as it was told gets a token, and those who want some have them in turn", (fixture) =>
    Effect.gen(function*() {
      const rateLimit = { limit: 1, window: fixture.moments(2) }
      const sessions = yield* Effect.forEach([1, 2], () => openLimited(fixture, { rateLimit }))
      const had = [0, 0]
      const elapsed = yield* stopwatch(fixture)
      for (let round = 1; round <= 4; round++) {
        let wait = 0
        for (const [index, session] of sessions.entries()) {
          const permit = yield* tokens(fixture, session, 1)
          had[index]! += permit.tokens
          wait = Math.max(wait, permit.retryAfter ?? 0)
        }
        if (round < 4) yield* fixture.elapse(Duration.millis(wait))
      }
      isTrue(Math.min(...had) >= 1, `that each had one: ${had.join()}`)
      isBetween(had[0]! + had[1]!, 4, 1 + Math.floor((yield* elapsed) / 2), "how many they had in all")
    }))

  test("the claims of sessions that keep to their permits are within the limit, and miss nothing", (fixture) =>
    Effect.gen(function*() {
      const sessions = yield* Effect.forEach([1, 2, 3], () => openLimited(fixture, { concurrency: 4 }))
      const envelopes = fixture.envelopes(40)
      yield* fixture.append(...envelopes)
      const delivered: Array<string> = []
      let [running, most] = [0, 0]
      yield* Effect.forEach(
        sessions,
        Effect.fnUntraced(function*(session) {
          while (delivered.length < envelopes.length) {
            const granted = yield* slots(fixture, session, 0, 3)
            const claimed = yield* session.claim({ ...everything, tags: new Map([[fixture.tag, granted]]) })
            running += claimed.length
            most = Math.max(most, running)
            yield* Effect.yieldNow
            running -= claimed.length
            delivered.push(...idsOf(claimed))
            yield* session.settle(claimed.map((each) => ({ _tag: "Succeeded", claimed: each })))
            yield* Effect.yieldNow
          }
        }),
        { concurrency: "unbounded" }
      )
      isBetween(most, 1, 4, "how many ran at once")
      equal(sorted(delivered), sorted(idsOf(envelopes)), "what was delivered")
    }))
}

const openLimited = (
  fixture: Fixture,
  limit: { readonly concurrency?: number; readonly rateLimit?: RateLimit }
) => fixture.open([{ tag: fixture.tag, versions: [1], ...limit }])

/** How many moments have passed. Two clocks that are not the same may part a little. */
const stopwatch = (fixture: Fixture) => {
  const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1_000_000 / fixture.millis(1))
  return Effect.map(now, (from) => Effect.map(now, (until) => until - from + 0.05))
}

const slots = (fixture: Fixture, session: Session, running: number, concurrency: number) =>
  Effect.map(
    session.permit([{ tag: fixture.tag, running, concurrency, tokens: 0 }]),
    ([permit]) => permit!.concurrency
  )

const tokens = (fixture: Fixture, session: Session, wanted: number) =>
  Effect.map(
    session.permit([{ tag: fixture.tag, running: 0, concurrency: 0, tokens: wanted }]),
    ([permit]) => permit!
  )
