/**
 * Intents come and go with the transaction that they are in.
 */
import * as Effect from "effect/Effect"
import { equal } from "./check.ts"
import { answersOf, claimExactly, claimNothing, claimOne, endings, settle, succeed } from "./Fixture.ts"
import type { Test } from "./OutboxStoreConformance.ts"

export const transactions = (test: Test): void => {
  const rolledBack = Effect.fail("rolled back" as const)

  test("what is appended in a transaction is there once it commits, and not before", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelope = fixture.envelope()
      yield* fixture.client.withTransaction(Effect.gen(function*() {
        equal(answersOf(yield* fixture.store.append([envelope])), [{ id: envelope.id, duplicate: false }], "the answer")
        yield* claimNothing(session)
      }))
      yield* claimExactly(session, [envelope.id])
    }))

  test("nothing is left of a transaction that rolls back, and its idempotency keys are not remembered", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const idempotencyKey = "a key"
      const envelopes = [fixture.envelope({ idempotencyKey }), fixture.envelope({ delay: 1 })]
      yield* Effect.flip(
        fixture.client.withTransaction(Effect.andThen(fixture.store.append(envelopes), rolledBack))
      )
      yield* fixture.pass(1)
      yield* claimNothing(session)
      const again = fixture.envelope({ idempotencyKey })
      equal(yield* fixture.append(again), [{ id: again.id, duplicate: false }], "the answer to the next one")
      yield* claimExactly(session, [again.id])
    }))

  test("nothing is left of a savepoint that rolls back, and the rest of the transaction commits", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [outer, inner, later] = [fixture.envelope(), fixture.envelope(), fixture.envelope()]
      yield* fixture.client.withTransaction(Effect.gen(function*() {
        yield* fixture.store.append([outer])
        yield* Effect.flip(fixture.client.withTransaction(Effect.andThen(fixture.store.append([inner]), rolledBack)))
        yield* fixture.store.append([later])
      }))
      yield* claimExactly(session, [outer.id, later.id])
    }))

  test("a mark is there until the savepoint that it was left in rolls back", (fixture) =>
    Effect.gen(function*() {
      const { mark, marks } = fixture.store
      if (mark === undefined || marks === undefined) return yield* Effect.die("The store has no `mark` or no `marks`")
      const { client } = fixture
      yield* client.withTransaction(Effect.gen(function*() {
        equal(yield* marks, new Set(), "what is marked at first")
        yield* mark("outermost")
        yield* client.withTransaction(Effect.gen(function*() {
          yield* mark("released")
          yield* Effect.flip(client.withTransaction(Effect.gen(function*() {
            yield* mark("rolled back")
            equal(yield* marks, new Set(["outermost", "released", "rolled back"]), "what is marked inside")
            return yield* rolledBack
          })))
        }))
        equal(yield* marks, new Set(["outermost", "released"]), "what is marked in the end")
      }))
      yield* client.withTransaction(Effect.gen(function*() {
        equal(yield* marks, new Set(), "what is marked in the next transaction")
      }))
    }))

  test("what is settled in a transaction that commits is gone", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const next = fixture.envelope()
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(session)
      yield* fixture.client.withTransaction(Effect.gen(function*() {
        yield* fixture.store.append([next])
        equal(yield* session.settleInTransaction(claimed), true, "whether it still had its lease")
      }))
      equal(yield* session.settle([{ _tag: "Released", claimed }]), [claimed.id], "what was lost")
      yield* claimExactly(session, [next.id])
    }))

  for (const ending of endings) {
    test(`what is settled in a transaction that rolls back can still be settled: ${ending._tag}`, (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        yield* fixture.append(fixture.envelope())
        const claimed = yield* claimOne(session)
        yield* Effect.flip(
          fixture.client.withTransaction(Effect.andThen(session.settleInTransaction(claimed), rolledBack))
        )
        yield* claimNothing(session)
        yield* settle(session, ending, claimed)
      }))
  }

  test("a session can't settle in a transaction what another has claimed", (fixture) =>
    Effect.gen(function*() {
      const [one, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(one)
      const hadLease = yield* fixture.client.withTransaction(other.settleInTransaction(claimed))
      equal(hadLease, false, "whether it had the lease")
      yield* succeed(one, claimed)
    }))

  test("a session that was ended can't settle in a transaction", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      const claimed = yield* claimOne(dead)
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 1, "what was freed")
      const settling = fixture.client.withTransaction(dead.settleInTransaction(claimed))
      equal(yield* settling, false, "whether it had the lease, while nobody has it")
      const [again] = yield* claimExactly(observer, [claimed.id])
      equal(yield* settling, false, "whether it had the lease, while another has it")
      yield* succeed(observer, again!)
    }))
}
