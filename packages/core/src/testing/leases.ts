/**
 * A session that stopped beating loses what it had claimed, and one that beats never does.
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
  settle,
  settlement,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

export const leases = (test: Test, { capabilities }: SuiteOptions): void => {
  test("a beat tells whether there is something to claim", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const isWaiting = Effect.map(session.beat, (beat) => beat.isWaiting)
      equal(yield* isWaiting, false, "whether nothing waits")
      yield* fixture.append(fixture.envelope({ version: 2 }), fixture.envelope({ delay: fixture.millis(3) }))
      equal(yield* isWaiting, false, "whether an unknown version or a delayed intent waits")
      yield* fixture.pass(4)
      equal(yield* isWaiting, true, "whether what has become due waits")
      const claimed = yield* claimOne(session)
      equal(yield* isWaiting, false, "whether what is claimed waits")
      yield* settle(session, { _tag: "Released" }, claimed)
      equal(yield* isWaiting, true, "whether what is released waits")
    }))

  test("a session that beats keeps its lease", (fixture) =>
    Effect.gen(function*() {
      const [session, observer] = [yield* fixture.openMortal(), yield* fixture.openMortal()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(session)
      for (const _ of [1, 2, 3]) {
        const [beat, observed] = yield* fixture.outlive(session, observer)
        equal(beat!.isAlive, true, "whether it is alive")
        equal(observed!.hasExpired, false, "whether others see it as expired")
        equal(yield* observer.recover, 0, "what was freed")
      }
      yield* claimNothing(observer)
      yield* succeed(session, claimed)
    }))

  test("what a session had claimed stays with it until another one ends it", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(dead)
      const [beat] = yield* fixture.outlive(observer)
      equal(beat!.hasExpired, true, "whether a lease has run out")
      yield* claimNothing(observer)
      equal(yield* observer.recover, 1, "what was freed")
      yield* claimExactly(observer, [claimed.id])
    }))

  test("a session that stopped beating is ended once, and what it had claimed is free", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(...fixture.envelopes(5))
      const held = yield* dead.claim({ ...everything, rows: 3 })
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 3, "what was freed")
      equal((yield* observer.beat).hasExpired, false, "whether a lease has run out after that")
      equal(yield* observer.recover, 0, "what was freed the second time")
      const claimed = yield* claim(observer)
      equal(claimed.length, 5, "how many are free")
      for (const each of claimed) {
        equal(each.suspicion, idsOf(held).includes(each.id) ? "possible" : "none", "what is to be thought of it")
        equal([each.failures, each.crashes], [0, 0], "what is counted")
      }
    }))

  test("only what the dead session held is freed", (fixture) =>
    Effect.gen(function*() {
      const [dead, living, observer] = [
        yield* fixture.openMortal(),
        yield* fixture.openMortal(),
        yield* fixture.openMortal()
      ]
      yield* fixture.append(...fixture.envelopes(9))
      const [settled, ...held] = yield* dead.claim({ ...everything, rows: 4 })
      const theirs = yield* living.claim({ ...everything, rows: 3 })
      const mine = yield* claim(observer)
      yield* succeed(dead, settled!)
      yield* fixture.outlive(living, observer)
      equal(yield* observer.recover, 3, "what was freed")
      yield* claimExactly(observer, idsOf(held))
      yield* succeed(living, ...theirs)
      yield* succeed(observer, ...mine)
    }))

  for (const ending of endings) {
    test(`a session that was ended can't settle: ${ending._tag}`, (fixture) =>
      Effect.gen(function*() {
        const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
        yield* fixture.append(...fixture.envelopes(2))
        const held = yield* claim(dead)
        yield* fixture.outlive(observer)
        equal(yield* observer.recover, 2, "what was freed")
        const [taken] = yield* observer.claim({ ...everything, rows: 1 })
        const lost = yield* dead.settle(held.map((each) => settlement(each, ending)))
        equal(new Set(lost), new Set(idsOf(held)), "what was lost")
        const [free] = yield* claim(observer)
        for (const each of [taken!, free!]) {
          equal([each.failures, each.crashes, each.undecodableFor], [0, 0, undefined], "what is counted")
        }
        yield* succeed(observer, taken!, free!)
        equal((yield* fixture.depth()).dead, 0, "how many are dead")
      }))
  }

  test("a session that was ended learns it from its beat, and claims nothing ever after", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 0, "what was freed")
      yield* fixture.append(fixture.envelope())
      yield* claimNothing(dead)
      equal((yield* dead.beat).isAlive, false, "whether it is alive")
      yield* claimNothing(dead)
      equal((yield* dead.beat).isAlive, false, "whether it is alive after that")
      yield* claimOne(observer)
    }))

  test("a session whose beat moves again before another one ends it has lost nothing", (fixture) =>
    Effect.gen(function*() {
      const [late, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(late)
      const [beat] = yield* fixture.outlive(observer)
      equal(beat!.hasExpired, true, "whether a lease has run out")
      equal((yield* late.beat).isAlive, true, "whether it is alive")
      equal(yield* observer.recover, 0, "what was freed")
      yield* succeed(late, claimed)
    }))

  test("a session does not end itself, however late it is", (fixture) =>
    Effect.gen(function*() {
      const late = yield* fixture.openMortal()
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(late)
      yield* fixture.outlive()
      equal(yield* late.recover, 0, "what was freed")
      equal((yield* late.beat).isAlive, true, "whether it is alive")
      yield* succeed(late, claimed)
    }))

  test("each session has a lease of its own length", (fixture) =>
    Effect.gen(function*() {
      const [short, long, observer] = [
        yield* fixture.openMortal(),
        yield* fixture.open(undefined, 1_000),
        yield* fixture.open()
      ]
      yield* fixture.append(...fixture.envelopes(2))
      const held = yield* long.claim({ ...everything, rows: 1 })
      const lost = yield* claimOne(short)
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 1, "what was freed")
      yield* claimExactly(observer, [lost.id])
      yield* succeed(long, ...held)
    }))

  test("of observers that recover at once, each delivery is freed by one", (fixture) =>
    Effect.gen(function*() {
      const dead = yield* fixture.openMortal()
      const observers = yield* Effect.forEach([1, 2, 3], () => fixture.open())
      yield* fixture.append(...fixture.envelopes(10))
      yield* claim(dead)
      yield* fixture.outlive(...observers)
      const freed = yield* Effect.forEach(observers, ({ recover }) => recover, { concurrency: "unbounded" })
      equal(freed.reduce((sum, each) => sum + each, 0), 10, "what was freed in all")
      equal((yield* claim(observers[0]!)).length, 10, "how many are free")
    }))

  test("several sessions that stopped beating are ended together", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(6))
      for (const rows of [1, 2, 3]) {
        const dead = yield* fixture.openMortal()
        yield* dead.claim({ ...everything, rows })
      }
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 6, "what was freed")
    }))

  test("what a session had not settled is free when its scope closes, and not counted", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      const { close, session } = yield* fixture.openClosable()
      yield* fixture.append(...fixture.envelopes(3))
      const [settled, ...held] = yield* claim(session)
      yield* succeed(session, settled!)
      yield* close
      const claimed = yield* claimExactly(observer, idsOf(held))
      for (const each of claimed) equal([each.failures, each.crashes], [0, 0], "what is counted")
      equal(yield* observer.recover, 0, "what there is to recover")
    }))

  test("a session whose scope is closed can neither claim nor settle", (fixture) =>
    Effect.gen(function*() {
      const observer = yield* fixture.open()
      const { close, session } = yield* fixture.openClosable()
      yield* fixture.append(fixture.envelope())
      const held = yield* claimOne(session)
      yield* close
      const claimed = yield* Effect.orElseSucceed(claim(session), () => [])
      equal(claimed, [], "what was claimed")
      const lost = yield* Effect.orElseSucceed(session.settle([{ _tag: "Succeeded", claimed: held }]), () => [held.id])
      equal(lost, [held.id], "what was lost")
      yield* claimExactly(observer, [held.id])
    }))

  if (capabilities.durable) {
    test("what was appended is there when the store is opened again", (fixture, reopened) =>
      Effect.gen(function*() {
        const later = fixture.envelope({ delay: fixture.millis(3) })
        const envelope = fixture.envelope()
        yield* fixture.append(envelope, later)
        yield* Effect.scoped(Effect.gen(function*() {
          const session = yield* fixture.open()
          yield* settle(session, { _tag: "Failed", delay: 0, failure: "it failed" }, yield* claimOne(session))
        }))
        yield* reopened(Effect.fnUntraced(function*(store) {
          const session = yield* store.open({
            subscriptions: [{ tag: fixture.tag, versions: [1] }],
            lease: fixture.moments(1_000)
          })
          const [claimed] = yield* claimExactly(session, [envelope.id])
          equal(claimed!.failures, 1, "its failures")
          yield* fixture.pass(4)
          yield* claimExactly(session, [later.id])
        }))
      }))
  }
}
