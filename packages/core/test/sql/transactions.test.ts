// Transactions that the application opens inside a boundary, and those that it opens nowhere near one.
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import { Context, Deferred, Effect, Exit, Fiber, Latch } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient } from "effect/sql"
import { defectOf } from "../support.ts"
import { inMode, layerThings, modes, owning, plain, Things } from "./Postgres.ts"

const rolledBack = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  SqlClient.SqlClient.use((sql) =>
    Effect.ignore(sql.withTransaction(Effect.andThen(effect, Effect.fail("rolled back"))))
  )
const released = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  SqlClient.SqlClient.use((sql) => sql.withTransaction(effect))

it.layer(layerThings)("transactions", (it) => {
  for (const mode of [...modes, plain]) {
    describe(`with ${mode.name}`, () => {
      const { atomic } = mode

      it.effect("law 10: a transaction rolled back inside a boundary takes its intents, though it was caught", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* act(1)
            yield* rolledBack(act(2))
            yield* released(act(3))
            yield* act(4)
          }))
          yield* assertDone([1, 3, 4])
        }).pipe(inMode(mode)))

      it.effect("law 10: a savepoint rolled back with the transaction around it takes its intents, though it was released", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* rolledBack(Effect.andThen(act(1), released(act(2))))
            yield* released(Effect.andThen(rolledBack(act(3)), act(4)))
          }))
          yield* assertDone([4])
        }).pipe(inMode(mode)))

      it.effect("law 10: a boundary inside a transaction that rolled back inside a boundary is discarded with it", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* rolledBack(Epilogue.atomic(act(1)))
            yield* released(Epilogue.atomic(act(2)))
          }))
          yield* assertDone([2])
        }).pipe(inMode(mode)))

      it.effect("law 10: a savepoint of the boundary inside a transaction that rolled back is discarded with it", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* rolledBack(Epilogue.savepoint(act(1)))
            yield* released(Epilogue.savepoint(act(2)))
            yield* rolledBack(Epilogue.savepoint(Epilogue.savepoint(act(3))))
            yield* rolledBack(Epilogue.savepoint(released(act(4))))
            yield* Epilogue.savepoint(rolledBack(Epilogue.savepoint(act(5))))
          }))
          yield* assertDone([2])
        }).pipe(inMode(mode)))

      it.effect("law 4: a savepoint that is discarded takes the intents of a transaction that committed inside it", () =>
        Effect.gen(function*() {
          const { act, notified, notify } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.defer(notify(1))
            yield* Effect.ignore(Epilogue.savepoint(Effect.andThen(released(act(2)), Effect.fail("discarded"))))
          }))
          assert.deepStrictEqual(notified, [1])
        }).pipe(inMode(mode)))

      it.effect("law 10: an isolated boundary inside a transaction runs no sooner than that commits", () =>
        Effect.gen(function*() {
          const { act, assertDone, notified } = yield* Things
          yield* atomic(released(Effect.gen(function*() {
            yield* Epilogue.atomicWith({ isolated: true })(act(1))
            assert.deepStrictEqual(notified, [])
            yield* rolledBack(Epilogue.atomicWith({ isolated: true })(act(2)))
          })))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 5: side by side, the savepoint that rolls back does not touch the other", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(
            Effect.all([rolledBack(act(1)), released(act(2)), rolledBack(act(3))], { concurrency: "unbounded" })
          )
          yield* assertDone([2])
        }).pipe(inMode(mode)))
    })
  }

  describe("fibers", () => {
    it.effect("law 10: a forked transaction that commits inside the boundary hands in its intents", () =>
      Effect.gen(function*() {
        const { act, assertDone, notified } = yield* Things
        yield* Epilogue.atomic(Effect.gen(function*() {
          yield* Fiber.join(yield* Effect.forkChild(released(act(1))))
          assert.deepStrictEqual(notified, [])
          yield* Fiber.join(yield* Effect.forkChild(rolledBack(act(2))))
        }))
        yield* assertDone([1])
      }).pipe(inMode(plain)))

    it.effect("law 10: the intent of a forked transaction that outlives the boundary runs when that commits", () =>
      Effect.gen(function*() {
        const { act, assertDone, failures, notified } = yield* Things
        const registered = yield* Latch.make()
        const mayCommit = yield* Latch.make()
        const fiber = yield* Epilogue.atomic(Effect.gen(function*() {
          const forked = yield* Effect.forkDetach(released(Effect.gen(function*() {
            yield* act(1)
            yield* Epilogue.defer(Effect.fail("no"), { name: "failing" })
            yield* registered.open
            yield* mayCommit.await
          })))
          yield* registered.await
          return forked
        }))
        assert.deepStrictEqual(notified, [])
        yield* mayCommit.open
        yield* Fiber.join(fiber)
        yield* assertDone([1])
        assert.deepStrictEqual(failures, ["failing"])
      }).pipe(inMode(plain)))

    it.effect("law 10: the intent of a forked transaction that outlives the boundary and rolls back never runs", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const registered = yield* Latch.make()
        const mayEnd = yield* Latch.make()
        const fiber = yield* Epilogue.atomic(Effect.gen(function*() {
          const forked = yield* Effect.forkDetach(
            rolledBack(Effect.andThen(act(1), Effect.andThen(registered.open, mayEnd.await)))
          )
          yield* registered.await
          return forked
        }))
        yield* mayEnd.open
        yield* Fiber.join(fiber)
        yield* assertDone([])
      }).pipe(inMode(plain)))

    it.effect("law 2: the intent of a forked transaction that commits after its boundary was discarded never runs", () =>
      Effect.gen(function*() {
        const { act, notified, rows } = yield* Things
        const registered = yield* Latch.make()
        const mayCommit = yield* Latch.make()
        const forked = yield* Deferred.make<Fiber.Fiber<void, unknown>>()
        yield* Effect.ignore(Epilogue.atomic(Effect.gen(function*() {
          const fiber = yield* Effect.forkDetach(
            released(Effect.andThen(act(1), Effect.andThen(registered.open, mayCommit.await)))
          )
          yield* Deferred.succeed(forked, fiber)
          yield* registered.await
          return yield* Effect.fail("discarded")
        })))
        yield* mayCommit.open
        yield* Fiber.join(yield* Deferred.await(forked))
        assert.deepStrictEqual([yield* rows, notified], [[1], []])
      }).pipe(inMode(plain)))

    it.effect("law 6: a fiber that outlived SqlEpilogue's transaction can open a boundary with one of its own", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const isOver = yield* Latch.make()
        const fiber = yield* Epilogue.atomic(Effect.gen(function*() {
          yield* act(1)
          return yield* Effect.forkDetach(Effect.andThen(isOver.await, Epilogue.atomic(act(2))))
        }))
        yield* isOver.open
        yield* Fiber.join(fiber)
        yield* assertDone([1, 2])
      }).pipe(Effect.provide(SqlEpilogue.layer), inMode(plain)))

    it.effect("law 10: a fiber that outlived SqlEpilogue's savepoint cannot open a boundary, which is a defect", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const isOver = yield* Latch.make()
        const fiber = yield* released(Epilogue.atomic(Effect.gen(function*() {
          yield* act(1)
          return yield* Effect.forkDetach(Effect.andThen(isOver.await, Epilogue.atomic(act(2))))
        })))
        yield* isOver.open
        assert.include(defectOf(yield* Fiber.await(fiber)), "savepoint")
        yield* assertDone([1])
      }).pipe(Effect.provide(SqlEpilogue.layer), inMode(plain)))

    for (const mode of modes) {
      it.effect(`law 6: a fiber that outlived ${mode.name} cannot register into it`, () =>
        Effect.gen(function*() {
          const { act, assertDone, notify } = yield* Things
          const isOver = yield* Latch.make()
          const fiber = yield* mode.atomic(Effect.gen(function*() {
            yield* act(1)
            return yield* Effect.forkDetach(
              Effect.andThen(isOver.await, Epilogue.defer(notify(2), { name: "too late" }))
            )
          }))
          yield* isOver.open
          assert.include(defectOf(yield* Fiber.await(fiber)), `"too late"`)
          yield* assertDone([1])
        }).pipe(inMode(mode)))
    }

    it.effect("law 10: for a fiber that outlived a transaction there is nothing left to wait for", () =>
      Effect.gen(function*() {
        const { notified, notify } = yield* Things
        const isOver = yield* Latch.make()
        const fiber = yield* released(
          Effect.forkDetach(Effect.andThen(isOver.await, Epilogue.atomic(Epilogue.defer(notify(1)))))
        )
        yield* isOver.open
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(notified, [1])
      }).pipe(inMode(plain)))

    it.effect("law 10: a fiber that outlived a savepoint cannot know its fate, which is a defect", () =>
      Effect.gen(function*() {
        const { notified, notify } = yield* Things
        const isOver = yield* Latch.make()
        const fiber = yield* released(Effect.flatMap(
          released(Effect.forkDetach(Effect.andThen(isOver.await, Epilogue.atomic(Epilogue.defer(notify(1)))))),
          (forked) => Effect.andThen(isOver.open, Effect.as(Fiber.await(forked), forked))
        ))
        assert.include(defectOf(yield* Fiber.await(fiber)), "savepoint")
        assert.deepStrictEqual(notified, [])
      }).pipe(inMode(plain)))
  })

  describe("a driver that keeps its transactions under a name of its own, as libSQL's does", () => {
    const OwnTransaction = Context.Service<
      SqlClient.TransactionConnection,
      SqlClient.TransactionConnection.Service
    >("test/OwnTransaction")
    const makeOwn = Effect.flatMap(SqlClient.SqlClient, ({ reserve }) =>
      SqlClient.make({
        acquirer: reserve,
        compiler: PgClient.makeCompiler(),
        driver: "test",
        spanAttributes: [],
        transactionService: OwnTransaction
      })).pipe(Effect.provide(Reactivity.layer))

    for (const mode of [owning, plain]) {
      it.effect(`law 10: a rollback of it around another transaction discards, with ${mode.name}`, () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          const own = yield* makeOwn
          const inBoth = released(Epilogue.defer(notify("intent")))
          yield* mode.atomic(Effect.ignore(own.withTransaction(Effect.andThen(inBoth, Effect.fail("rolled back")))))
          assert.deepStrictEqual(notified, [])
          yield* mode.atomic(own.withTransaction(inBoth))
          assert.deepStrictEqual(notified, ["intent"])
        }).pipe(inMode(mode)))

      it.effect(`law 8: an intent does not see it around another transaction, with ${mode.name}`, () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          const own = yield* makeOwn
          const look = Effect.flatMap(Effect.serviceOption(OwnTransaction), ({ _tag }) => notify(_tag))
          yield* mode.atomic(own.withTransaction(released(Epilogue.defer(look))))
          assert.deepStrictEqual(notified, ["None"])
        }).pipe(inMode(mode)))
    }
  })

  it.effect("law 10: in the background, too, an epilogue waits for the transaction around its boundary", () =>
    Effect.gen(function*() {
      const { act, assertDone, notified } = yield* Things
      yield* Effect.gen(function*() {
        yield* rolledBack(Epilogue.atomic(act(1)))
        yield* released(
          Effect.andThen(Epilogue.atomic(act(2)), Effect.sync(() => assert.deepStrictEqual(notified, [])))
        )
      }).pipe(Effect.provide(Epilogue.layerBackground()))
      yield* assertDone([2])
    }).pipe(inMode(plain)))

  describe("transactions that cannot be waited for", () => {
    const byHand = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      Effect.scoped(Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const connection = yield* sql.reserve
        yield* connection.executeUnprepared("BEGIN", [], undefined)
        return yield* Effect.provideService(effect, sql.transactionService, [connection, 0]).pipe(
          Effect.ensuring(Effect.ignore(connection.executeUnprepared("ROLLBACK", [], undefined)))
        )
      }))

    it.effect("law 10: an intent in a transaction begun by hand is a defect", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const exit = yield* Effect.exit(Epilogue.atomic(byHand(act(1))))
        assert.include(defectOf(exit), "not started by `SqlClient.withTransaction`")
        yield* assertDone([])
      }).pipe(inMode(plain)))

    it.effect("law 10: a boundary in a transaction begun by hand is a defect", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const exit = yield* Effect.exit(byHand(Epilogue.atomic(act(1))))
        assert.include(defectOf(exit), "not started by `SqlClient.withTransaction`")
        yield* assertDone([])
      }).pipe(inMode(plain)))

    it.effect("law 10: a transaction begun by hand inside another one is a defect", () =>
      Effect.gen(function*() {
        const { act, assertDone } = yield* Things
        const exit = yield* Effect.exit(Epilogue.atomic(released(byHand(act(1)))))
        assert.include(defectOf(exit), "not started by `SqlClient.withTransaction`")
        yield* assertDone([])
      }).pipe(inMode(plain)))
  })

  it.effect("a savepoint that cannot be set, since the transaction is aborted, is a defect", () =>
    Effect.gen(function*() {
      const { act, assertDone, notify } = yield* Things
      const sql = yield* SqlClient.SqlClient
      const exits: Array<Exit.Exit<void>> = []
      yield* Effect.ignore(Epilogue.atomic(Effect.gen(function*() {
        yield* act(1)
        yield* Effect.ignore(sql`SELECT no_such_column`)
        exits.push(yield* Effect.exit(Epilogue.savepoint(notify(2))))
      })))
      assert.include(defectOf(exits[0] ?? Exit.void), "CommitError")
      yield* assertDone([])
    }).pipe(Effect.provide(SqlEpilogue.layer), inMode(plain)))
})
