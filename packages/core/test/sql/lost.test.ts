// What becomes of a boundary whose COMMIT gets no answer.
import { assert, it } from "@effect/vitest"
import { Epilogue, SqlEpilogue } from "@epilogue/core"
import { Cause, type Duration, Effect, Exit, Fiber, Latch, Option } from "effect"
import { SqlClient } from "effect/sql"
import { connect } from "node:net"
import { Duplex } from "node:stream"
import { CapturedLogs } from "../support.ts"
import {
  another,
  backendOf,
  commitErrorOf,
  connectionTo,
  failAtCommit,
  inMode,
  insertInto,
  layerThings,
  lossy,
  owning,
  rowsIn,
  slowCommit,
  Things
} from "./Postgres.ts"

/** The engine over a client, whose transactions are the application's as well. */
const over =
  (sql: SqlClient.SqlClient, commitTimeout: Duration.Input = "10 seconds") => <A, E, R>(test: Effect.Effect<A, E, R>) =>
    test.pipe(
      Effect.provide(SqlEpilogue.layerOptions({ commitTimeout })),
      Effect.provideService(SqlClient.SqlClient, sql)
    )

/** A row, and an intent, a hook and a callback that query. */
const place = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const { notify } = yield* Things
  const tell = (what: string) =>
    Effect.orDie(Effect.flatMap(rowsIn(sql), (rows) => notify(`${what}: ${rows.length} rows`)))
  yield* insertInto(sql, 1)
  yield* Epilogue.defer(tell("intent"))
  yield* Epilogue.deferRollback(tell("hook"))
  yield* sql.afterCommit(tell("callback"))
  return "value"
})

/** A socket to a port. */
const to = (url: URL) => connect(Number(url.port), url.hostname)

/** A connection that takes what it is given, and never answers. */
const silent = () => new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() })

it.layer(layerThings, { excludeTestServices: true })("a COMMIT without an answer", (it) => {
  for (const maxConnections of [1, 10]) {
    it.effect(`law 3: is a commit where the transaction has committed (pool of ${maxConnections})`, () =>
      Effect.gen(function*() {
        const { notified } = yield* Things
        const logs = new CapturedLogs()
        const sql = yield* another({ stream: yield* lossy("after COMMIT"), maxConnections })
        const value = yield* over(sql)(Epilogue.atomic(place)).pipe(Effect.provide(logs.layer))
        assert.strictEqual(value, "value")
        assert.deepStrictEqual(notified, ["callback: 1 rows", "intent: 1 rows"])
        assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
          ["Warn", "The connection was lost before COMMIT was answered; the transaction had committed"]
        ])
      }).pipe(inMode(owning)))

    it.effect(`law 10: is a discard where the COMMIT did not reach the server (pool of ${maxConnections})`, () =>
      Effect.gen(function*() {
        const { notified } = yield* Things
        const sql = yield* another({ stream: yield* lossy("before COMMIT"), maxConnections })
        const error = commitErrorOf(yield* Effect.exit(over(sql)(Epilogue.atomic(place))))
        assert.strictEqual(error.outcome, "discarded")
        assert.include(error.message, "It is safe to run the program again.")
        assert.deepStrictEqual(notified, ["hook: 0 rows"])
      }).pipe(inMode(owning)))
  }

  it.effect("law 10: is a discard where the COMMIT was refused", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const sql = yield* another({ stream: yield* lossy("after COMMIT") })
      const exit = yield* Effect.exit(over(sql)(Epilogue.atomic(Effect.andThen(place, failAtCommit(sql)))))
      assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
      assert.deepStrictEqual(notified, ["hook: 0 rows"])
    }).pipe(inMode(owning)))

  it.effect("law 10: ends the transaction that is still in progress, which is then discarded", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const gate = yield* slowCommit
      const sql = yield* another({ stream: yield* lossy("during COMMIT") })
      const plain = yield* SqlClient.SqlClient
      let pid = 0
      const exit = yield* Effect.exit(
        over(sql)(Epilogue.atomic(Effect.gen(function*() {
          pid = yield* backendOf(sql)
          yield* place
          yield* sql`INSERT INTO slow VALUES (1)`
        })))
      )
      assert.strictEqual(commitErrorOf(exit).outcome, "discarded")
      assert.deepStrictEqual(notified, ["hook: 0 rows"])
      assert.deepStrictEqual(yield* plain`SELECT FROM pg_stat_activity WHERE pid = ${pid}`, [])
      yield* gate.open
    }).pipe(Effect.scoped, inMode(owning)))

  it.effect("law 3: is a commit where the transaction commits while it is looked for", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const gate = yield* slowCommit
      const url = yield* connectionTo
      // Nobody looks before the COMMIT has been let through.
      const isLooking = yield* Latch.make()
      const hasCommitted = yield* Latch.make()
      const context = yield* Effect.context()
      const later = () => {
        const socket = to(url)
        const write = socket.write.bind(socket)
        socket.write = (data: Uint8Array) => {
          Effect.runForkWith(context)(
            Effect.andThen(isLooking.open, Effect.andThen(hasCommitted.await, Effect.sync(() => write(data))))
          )
          return true
        }
        return socket
      }
      const sql = yield* another({ stream: yield* lossy("during COMMIT", { later }), maxConnections: 1 })
      const fiber = yield* Effect.forkChild(
        over(sql)(Epilogue.atomic(Effect.gen(function*() {
          yield* place
          yield* sql`INSERT INTO slow VALUES (1)`
        })))
      )
      yield* isLooking.await
      yield* gate.reached
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
      yield* gate.open
      const plain = yield* SqlClient.SqlClient
      yield* Effect.repeat(rowsIn(plain), { until: (rows) => rows.length === 1 })
      yield* hasCommitted.open
      yield* Fiber.join(interruption)
      // Law 7: the interruption has waited for the epilogue.
      assert.deepStrictEqual(notified, ["callback: 1 rows", "intent: 1 rows"])
      const exit = yield* Fiber.await(fiber)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
    }).pipe(Effect.scoped, inMode(owning)))

  it.effect("or with one: a callback of the client's begins a transaction of its own", () =>
    Effect.gen(function*() {
      const { rows } = yield* Things
      for (const [num, stream] of [[1, undefined], [3, yield* lossy("after COMMIT")]] as const) {
        const sql = yield* another({ stream, maxConnections: 1 })
        const isNested: Array<boolean> = []
        const seeAndInsert = Effect.gen(function*() {
          isNested.push(Option.isSome(yield* Effect.serviceOption(sql.transactionService)))
          yield* sql.withTransaction(insertInto(sql, num + 1))
        })
        yield* over(sql)(Epilogue.atomic(Effect.gen(function*() {
          yield* insertInto(sql, num)
          yield* sql.afterCommit(Effect.orDie(seeAndInsert))
          yield* Epilogue.defer(Effect.void)
        })))
        assert.deepStrictEqual(isNested, [false])
      }
      assert.deepStrictEqual(yield* rows, [1, 2, 3, 4])
    }).pipe(inMode(owning)))

  it.effect("law 3: is a commit where the server is back within `commitTimeout`", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const url = yield* connectionTo
      let refused = 0
      const later = () => refused++ < 2 ? connect(1, "127.0.0.1") : to(url)
      const sql = yield* another({ stream: yield* lossy("after COMMIT", { later }) })
      yield* over(sql)(Epilogue.atomic(place))
      assert.isAbove(refused, 2)
      assert.deepStrictEqual(notified, ["callback: 1 rows", "intent: 1 rows"])
    }).pipe(inMode(owning)))

  it.effect("law 3: is a commit where another connection of the pool does not answer either", () =>
    Effect.gen(function*() {
      const { notified } = yield* Things
      const sql = yield* another({ stream: yield* lossy("after COMMIT", { isQuiet: true }) })
      yield* Effect.scoped(Effect.andThen(sql.reserve, sql.reserve))
      yield* over(sql, "1 second")(Epilogue.atomic(place))
      assert.deepStrictEqual(notified, ["callback: 1 rows", "intent: 1 rows"])
    }).pipe(inMode(owning)))

  for (
    const [what, later] of [
      ["the server is away", () => connect(1, "127.0.0.1")],
      ["the server does not answer", silent]
    ] as const
  ) {
    it.effect(`is unknown where ${what} for \`commitTimeout\``, () =>
      Effect.gen(function*() {
        const { notified, rows } = yield* Things
        const sql = yield* another({ stream: yield* lossy("after COMMIT", { later }) })
        const exit = yield* Effect.exit(
          over(sql, "200 millis")(Epilogue.atomic(Effect.andThen(
            insertInto(sql, 1),
            Epilogue.defer(Effect.void)
          )))
        )
        const error = commitErrorOf(exit)
        assert.strictEqual(error.outcome, "unknown")
        assert.include(error.message, "Look for its rows")
        assert.deepStrictEqual([yield* rows, notified], [[1], []])
      }).pipe(inMode(owning)))
  }

  it.effect("is unknown where `commitTimeout` is 0", () =>
    Effect.gen(function*() {
      const { notified, rows } = yield* Things
      const sql = yield* another({ stream: yield* lossy("after COMMIT") })
      const exit = yield* Effect.exit(
        over(sql, 0)(Epilogue.atomic(Effect.andThen(
          insertInto(sql, 1),
          Epilogue.defer(Effect.void)
        )))
      )
      assert.strictEqual(commitErrorOf(exit).outcome, "unknown")
      assert.deepStrictEqual([yield* rows, notified], [[1], []])
    }).pipe(inMode(owning)))

  it.effect("is unknown for a boundary in which nothing waits for the commit", () =>
    Effect.gen(function*() {
      for (const when of ["after COMMIT", "before COMMIT"] as const) {
        const sql = yield* another({ stream: yield* lossy(when) })
        const exit = yield* Effect.exit(over(sql)(Epilogue.atomic(Effect.ignore(insertInto(sql, 1)))))
        assert.strictEqual(commitErrorOf(exit).outcome, "unknown")
      }
    }).pipe(inMode(owning)))
})
