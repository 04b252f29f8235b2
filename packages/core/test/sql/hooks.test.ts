// What users of after-commit hooks elsewhere rely on: the facts are those of Django's `transaction.on_commit` and of
// after_commit_everywhere for Ruby, whose tests check the rows beside the callbacks too.
import { assert, describe, it } from "@effect/vitest"
import { Epilogue } from "@epilogue/core"
import { Effect, Exit } from "effect"
import { SqlClient } from "effect/sql"
import { inMode, layerThings, modes, owning, Things } from "./Postgres.ts"

it.layer(layerThings)("hooks", (it) => {
  it.effect("outside of a boundary and a transaction, deferOrRun runs at once", () =>
    Effect.gen(function*() {
      const { assertDone, insert, notify } = yield* Things
      yield* Epilogue.deferOrRun(Effect.andThen(insert(1), notify(1)))
      yield* assertDone([1])
    }).pipe(inMode(owning)))

  for (const mode of modes) {
    describe(`with ${mode.name}`, () => {
      const { atomic } = mode
      const failing = <A, E, R>(core: Effect.Effect<A, E, R>) =>
        atomic(Effect.andThen(core, Effect.fail("rolled back")))

      it.effect("law 1: intents run after the commit", () =>
        Effect.gen(function*() {
          const { act, assertDone, notified } = yield* Things
          const value = yield* atomic(Effect.gen(function*() {
            yield* act(1)
            assert.deepStrictEqual(notified, [])
            return "value"
          }))
          assert.strictEqual(value, "value")
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 1: a deferOrRun inside waits for the commit", () =>
        Effect.gen(function*() {
          const { assertDone, insert, notified, notify } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* insert(1)
            yield* Epilogue.deferOrRun(notify(1))
            assert.deepStrictEqual(notified, [])
          }))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 2: a rollback discards rows and intents, and the error is the core's own", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          assert.deepStrictEqual(yield* Effect.exit(failing(act(1))), Exit.fail("rolled back"))
          yield* assertDone([])
        }).pipe(inMode(mode)))

      it.effect("law 2: a core that dies discards rows and intents", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          const exit = yield* Effect.exit(atomic(Effect.andThen(act(1), Effect.die("died"))))
          assert.deepStrictEqual(exit, Exit.die("died"))
          yield* assertDone([])
        }).pipe(inMode(mode)))

      it.effect("law 4: nothing runs before the outermost commit", () =>
        Effect.gen(function*() {
          const { act, assertDone, notified } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* atomic(Effect.gen(function*() {
              yield* act(1)
              assert.deepStrictEqual(notified, [])
            }))
            assert.deepStrictEqual(notified, [])
          }))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 4: a savepoint that rolled back discards its own rows and intents and no others", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* atomic(act(1))
            yield* Effect.ignore(failing(act(2)))
            yield* atomic(act(3))
          }))
          yield* assertDone([1, 3])
        }).pipe(inMode(mode)))

      it.effect("law 4: an intent of the outer boundary survives a savepoint that rolled back", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* act(1)
            yield* Effect.ignore(failing(act(2)))
            yield* act(3)
          }))
          yield* assertDone([1, 3])
        }).pipe(inMode(mode)))

      it.effect("law 4: an outer rollback discards what a savepoint released", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* Effect.ignore(failing(atomic(act(1))))
          yield* assertDone([])
        }).pipe(inMode(mode)))

      it.effect("law 4: a savepoint inside a savepoint that rolled back is gone with it", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* Effect.ignore(failing(atomic(act(1))))
            yield* act(2)
          }))
          yield* assertDone([2])
        }).pipe(inMode(mode)))

      it.effect("law 4: a savepoint that rolled back does not affect the one around it", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(atomic(Effect.andThen(act(1), Effect.ignore(failing(Effect.void)))))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 1: intents run in order of registration, through savepoints", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* act(1)
            yield* atomic(act(2))
            yield* act(3)
            yield* atomic(atomic(act(4)))
          }))
          yield* assertDone([1, 2, 3, 4])
        }).pipe(inMode(mode)))

      it.effect("law 1: each of two boundaries runs its own intents once", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* atomic(act(1))
          yield* atomic(act(2))
          yield* assertDone([1, 2])
        }).pipe(inMode(mode)))

      it.effect("law 2: the intents of a boundary that rolled back do not come back with the next one", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          yield* Effect.ignore(failing(act(1)))
          yield* atomic(act(2))
          yield* assertDone([2])
        }).pipe(inMode(mode)))

      it.effect("law 3: an intent that fails keeps neither the next intent nor the next boundary from running", () =>
        Effect.gen(function*() {
          const { act, assertDone, failures } = yield* Things
          const exit = yield* Effect.exit(atomic(Effect.gen(function*() {
            yield* Epilogue.defer(Effect.fail("no"), { name: "failing" })
            yield* act(1)
            return "value"
          })))
          // A caller that is inside the transaction has its answer before the intents run.
          if (Exit.isSuccess(exit)) assert.deepStrictEqual([exit.value, failures], ["value", ["failing"]])
          else {
            const error = yield* Effect.flip(exit)
            if (!Epilogue.isEpilogueError(error)) return assert.fail(String(error))
            assert.deepStrictEqual([error.value, error.failures.map(({ intent }) => intent.name)], ["value", [
              "failing"
            ]])
            assert.deepStrictEqual(failures, [])
          }
          yield* atomic(act(2))
          yield* assertDone([1, 2])
        }).pipe(inMode(mode)))

      it.effect("law 8: an intent sees the committed rows, outside of the transaction", () =>
        Effect.gen(function*() {
          const { insert, notified, notify, rows } = yield* Things
          const sql = yield* SqlClient.SqlClient
          yield* atomic(Effect.gen(function*() {
            yield* insert(1)
            yield* Epilogue.defer(Effect.gen(function*() {
              const transaction = yield* Effect.serviceOption(sql.transactionService)
              yield* notify(`${transaction._tag}: ${(yield* rows).join()}`)
            }))
          }))
          assert.deepStrictEqual(notified, ["None: 1"])
        }).pipe(inMode(mode)))

      it.effect("law 8: what an intent writes persists", () =>
        Effect.gen(function*() {
          const { assertDone, insert, notify } = yield* Things
          yield* atomic(Epilogue.defer(Effect.andThen(insert(1), notify(1))))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 11: a transaction inside an intent commits by itself", () =>
        Effect.gen(function*() {
          const { assertDone, insert, notify } = yield* Things
          const sql = yield* SqlClient.SqlClient
          yield* atomic(Epilogue.defer(sql.withTransaction(Effect.andThen(insert(1), notify(1)))))
          yield* assertDone([1])
        }).pipe(inMode(mode)))

      it.effect("law 11: a transaction inside an intent that rolls back takes only its own", () =>
        Effect.gen(function*() {
          const { act, assertDone, insert } = yield* Things
          const sql = yield* SqlClient.SqlClient
          yield* atomic(Effect.gen(function*() {
            yield* act(1)
            yield* Epilogue.defer(
              Effect.ignore(sql.withTransaction(Effect.andThen(insert(2), Effect.fail("rolled back"))))
            )
            yield* act(3)
          }))
          yield* assertDone([1, 3])
        }).pipe(inMode(mode)))

      it.effect("law 11: an intent that registers more adds them to the end", () =>
        Effect.gen(function*() {
          const { act, notified, notify } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.defer(Effect.andThen(notify(1), act(3)))
            yield* act(2)
          }))
          assert.deepStrictEqual(notified, [1, 2, 3])
        }).pipe(inMode(mode)))

      it.effect("law 11: what an intent registers in a transaction of its own that rolls back is discarded", () =>
        Effect.gen(function*() {
          const { act, assertDone, notified } = yield* Things
          const sql = yield* SqlClient.SqlClient
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.defer(
              Effect.ignore(sql.withTransaction(Effect.andThen(act(1), Effect.fail("rolled back"))))
            )
            yield* Epilogue.defer(sql.withTransaction(Effect.gen(function*() {
              yield* act(2)
              assert.deepStrictEqual(notified, [])
            })))
          }))
          yield* assertDone([2])
        }).pipe(inMode(mode)))

      it.effect("law 11: atomic inside an intent is an outermost boundary", () =>
        Effect.gen(function*() {
          const { act, notified, notify, rows } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.defer(Effect.andThen(Effect.orDie(atomic(act(1))), notify("after")))
            yield* Epilogue.defer(Effect.ignore(failing(act(2))))
          }))
          assert.deepStrictEqual([yield* rows, notified], [[1], [1, "after"]])
        }).pipe(inMode(mode)))

      it.effect("law 13: rollback hooks run after a rollback, the last registered first, and not after a commit", () =>
        Effect.gen(function*() {
          const { insert, notified, notify, rows } = yield* Things
          const sql = yield* SqlClient.SqlClient
          const hook = (name: string) => Epilogue.deferRollback(notify(name))
          yield* atomic(Effect.andThen(insert(1), hook("committed")))
          assert.deepStrictEqual(notified, [])
          const core = Effect.gen(function*() {
            yield* insert(2)
            yield* hook("first")
            yield* Epilogue.deferRollback((cause) => notify(String(cause.reasons.length)))
            yield* Epilogue.deferRollback(Effect.gen(function*() {
              const transaction = yield* Effect.serviceOption(sql.transactionService)
              yield* notify(`${transaction._tag}: ${(yield* rows).join()}`)
            }))
            assert.deepStrictEqual(notified, [])
          })
          assert.deepStrictEqual(yield* Effect.exit(failing(core)), Exit.fail("rolled back"))
          assert.deepStrictEqual(notified, ["None: 1", "1", "first"])
        }).pipe(inMode(mode)))

      it.effect("law 13: the hooks of a savepoint that rolled back run, and those around it do not", () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          yield* atomic(Effect.gen(function*() {
            yield* Epilogue.deferRollback(notify("outer"))
            yield* Effect.ignore(failing(Epilogue.deferRollback(notify("inner"))))
            assert.deepStrictEqual(notified, ["inner"])
          }))
          assert.deepStrictEqual(notified, ["inner"])
        }).pipe(inMode(mode)))

      it.effect("law 13: the hooks of a savepoint that committed run when the boundary around it is discarded", () =>
        Effect.gen(function*() {
          const { notified, notify } = yield* Things
          yield* Effect.ignore(failing(Effect.gen(function*() {
            yield* Epilogue.deferRollback(notify("outer"))
            yield* atomic(Epilogue.deferRollback(notify("inner")))
            assert.deepStrictEqual(notified, [])
          })))
          assert.deepStrictEqual(notified, ["inner", "outer"])
        }).pipe(inMode(mode)))

      it.effect("law 12: a retried savepoint leaves the intents of the attempt that succeeded", () =>
        Effect.gen(function*() {
          const { act, assertDone } = yield* Things
          let attempt = 0
          const step = Effect.suspend(() => {
            const num = ++attempt
            return Effect.andThen(act(num), num < 3 ? Effect.fail("again") : Effect.void)
          })
          yield* atomic(Effect.retry(atomic(step), { times: 5 }))
          yield* assertDone([3])
        }).pipe(inMode(mode)))
    })
  }
})
