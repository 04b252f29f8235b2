import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, IntentSink, Outbox, SqlEpilogue } from "@epilogue/core"
import { Cause, Context, Data, Effect, Exit, Fiber, Latch, Layer, Option, Stream } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient } from "effect/sql"
import type { Connection } from "effect/sql/SqlConnection"
import { ConnectionError, SerializationError, SqlError, type SqlErrorReason, UnknownError } from "effect/sql/SqlError"
import { type Compiler, makeCompilerSqlite } from "effect/sql/Statement"
import { TestClock } from "effect/testing"
import { CapturedLogs, defectOf, makeLog } from "../support.ts"

type Answer = (sql: string, params: ReadonlyArray<unknown>) => Effect.Effect<ReadonlyArray<never>, SqlError>

/** What a server cannot be made to answer on demand: each of these is an answer to one statement, given by hand. */
const clientThatFails = (statement: string, failure: Effect.Effect<never, SqlError>) =>
  clientThatAnswers((sql) => sql === statement ? failure : none, makeCompilerSqlite())

const none = Effect.succeed([])

const clientThatAnswers = (answer: Answer, compiler: Compiler) => {
  const connection: Connection = {
    execute: answer,
    executeRaw: answer,
    executeStream: () => Stream.empty,
    executeValues: answer,
    executeValuesUnprepared: answer,
    executeUnprepared: answer
  }
  return Effect.provide(
    SqlClient.make({
      acquirer: Effect.succeed(connection),
      compiler,
      driver: "test",
      spanAttributes: []
    }),
    Reactivity.layer
  )
}

const failing = (reason: SqlErrorReason) => Effect.fail(new SqlError({ reason }))

class ServerError extends Data.Error<{ readonly message: string; readonly code?: unknown }> {}

const engineOf = (client: SqlClient.SqlClient) =>
  Layer.provide(SqlEpilogue.layer, Layer.succeed(SqlClient.SqlClient, client))

describe("the answer to COMMIT", () => {
  const serverError = (code: unknown) => new ServerError({ message: "the server says no", code })
  const unknownError = (code: unknown, operation = "execute") =>
    new UnknownError({ cause: serverError(code), message: "driver", operation })
  const cases: ReadonlyArray<readonly [string, SqlErrorReason, "discarded" | "unknown"]> = [
    ["a constraint", unknownError("23505"), "discarded"],
    ["a class that begins with a letter", unknownError("XX000"), "discarded"],
    ["a connection limit", unknownError("53300"), "discarded"],
    [
      "a serialization failure",
      new SerializationError({ cause: serverError("40001"), operation: "execute" }),
      "discarded"
    ],
    ["a rollback in place of the commit", unknownError(undefined, "commit"), "discarded"],
    ["a server that shuts down", unknownError("57P01"), "unknown"],
    ["a connection exception", unknownError("08006"), "unknown"],
    ["a code with 08 further on", unknownError("42083"), "discarded"],
    ["a code that is longer", unknownError("ECONNRESET"), "unknown"],
    ["a code that ends like one", unknownError("!!23505"), "unknown"],
    ["a code that begins like one", unknownError("23505!!"), "unknown"],
    ["a broken pipe", unknownError("EPIPE"), "unknown"],
    ["a code that is no text", unknownError(23505), "unknown"],
    ["no code", unknownError(undefined), "unknown"],
    [
      "a lost connection, whatever its code",
      new ConnectionError({ cause: serverError("23505"), operation: "commit" }),
      "unknown"
    ]
  ]
  for (const [name, reason, outcome] of cases) {
    it.effect(`${name} means that the outcome is ${outcome}`, () =>
      Effect.gen(function*() {
        const log = makeLog()
        const client = yield* clientThatFails("COMMIT", failing(reason))
        const error = yield* Effect.flip(
          Effect.provide(Epilogue.atomic(Epilogue.defer(log.add("ran"))), engineOf(client))
        )
        assert(error instanceof Epilogue.CommitError)
        assert.strictEqual(error._tag, "CommitError")
        assert.strictEqual(error.outcome, outcome)
        assert.instanceOf(error.cause, SqlError)
        assert.strictEqual(
          error.message,
          (outcome === "discarded"
            ? "The transaction did not commit, and no intent has run. It is safe to run the program again."
            : "It is not known whether the transaction committed. No intent has run. Look for its rows before you run the "
              + "program again.")
            + " The reason: the server says no"
        )
        assert.deepStrictEqual(log.lines, [])
      }))
  }

  it.effect("a defect is no proof of an abort", () =>
    Effect.gen(function*() {
      const client = yield* clientThatFails("COMMIT", Effect.die("broken driver"))
      const error = yield* Effect.flip(Effect.provide(Epilogue.atomic(Effect.void), engineOf(client)))
      assert(error instanceof Epilogue.CommitError)
      assert.strictEqual(error.outcome, "unknown")
      assert.include(error.message, "The reason: broken driver")
    }))
})

describe("a server that speaks PostgreSQL", () => {
  /** The statements that a server got, short, and what it answers: `mark` is what names a transaction. */
  const serverThat = Effect.fnUntraced(function*(options: {
    readonly recognize?: Effect.Effect<string, SqlError>
    readonly ask?: Effect.Effect<string, SqlError>
    readonly commit?: Effect.Effect<never, SqlError>
  }) {
    const got: Array<string> = []
    const row = (answer: Effect.Effect<string, SqlError> = Effect.succeed("7 server")) =>
      // What a driver answers has no type.
      Effect.map(answer, (text) => [[text]] as unknown as ReadonlyArray<never>)
    const params: Array<ReadonlyArray<unknown>> = []
    const answer: Answer = (sql, given) =>
      Effect.suspend(() => {
        const what = sql.includes("version()")
          ? "recognize"
          : sql.includes("pg_xact_status")
          ? "look"
          : sql.includes("pg_current_xact_id")
          ? "ask"
          : sql
        got.push(what)
        params.push(given)
        if (what === "COMMIT") return options.commit ?? none
        return what === "recognize" ? row(options.recognize) : what === "ask" ? row(options.ask) : none
      })
    return { got, params, client: yield* clientThatAnswers(answer, PgClient.makeCompiler()) }
  })
  const boundary = Epilogue.atomic(Epilogue.defer(Effect.void))
  const refused = failing(
    new UnknownError({ cause: new ServerError({ message: "no", code: "42883" }), operation: "execute" })
  )
  const gone = failing(new ConnectionError({ cause: new Error("gone"), operation: "query" }))

  it.effect("is asked once whether it is PostgreSQL, and then for the id of each transaction that is waited for", () =>
    Effect.gen(function*() {
      const { client, got } = yield* serverThat({})
      yield* Effect.gen(function*() {
        yield* boundary
        yield* boundary
        yield* Epilogue.atomic(Effect.void)
        yield* Epilogue.atomic(Epilogue.deferRollback(Effect.void))
        yield* Effect.exit(Epilogue.atomic(Effect.andThen(boundary, Effect.fail("no"))))
      }).pipe(Effect.provide(engineOf(client)))
      const expected = [
        ["recognize", "BEGIN", "ask", "COMMIT"],
        ["BEGIN", "ask", "COMMIT"],
        ["BEGIN", "COMMIT"],
        ["BEGIN", "ask", "COMMIT"],
        ["BEGIN", "SAVEPOINT effect_sql_1", "ROLLBACK"]
      ]
      assert.deepStrictEqual(got, expected.flat())
    }))

  it.effect("is asked nothing where `commitTimeout` is 0", () =>
    Effect.gen(function*() {
      const { client, got } = yield* serverThat({})
      yield* boundary.pipe(
        Effect.provide(SqlEpilogue.layerOptions({ commitTimeout: 0 })),
        Effect.provideService(SqlClient.SqlClient, client)
      )
      assert.deepStrictEqual(got, ["BEGIN", "COMMIT"])
    }))

  it.effect("and is none, is asked nothing in a transaction, which would abort it", () =>
    Effect.gen(function*() {
      for (const recognize of [refused, none as unknown as Effect.Effect<string>]) {
        const { client, got } = yield* serverThat({ recognize })
        yield* Effect.provide(Effect.andThen(boundary, boundary), engineOf(client))
        assert.deepStrictEqual(got.slice(1), ["BEGIN", "COMMIT", "BEGIN", "COMMIT"])
      }
    }))

  it.effect("is asked again what it is, where it did not answer", () =>
    Effect.gen(function*() {
      let isGone = true
      const { client, got } = yield* serverThat({
        recognize: Effect.suspend(() => {
          if (!isGone) return Effect.succeed("7 server")
          isGone = false
          return gone
        })
      })
      yield* Effect.provide(Effect.andThen(boundary, boundary), engineOf(client))
      assert.deepStrictEqual(got, ["recognize", "BEGIN", "COMMIT", "recognize", "BEGIN", "ask", "COMMIT"])
    }))

  it.effect("and fails before COMMIT is sent, has discarded the transaction", () =>
    Effect.gen(function*() {
      const { client, got } = yield* serverThat({ ask: gone, commit: gone })
      const error = yield* Effect.flip(Effect.provide(boundary, engineOf(client)))
      assert.strictEqual(error._tag === "CommitError" && error.outcome, "discarded")
      assert.deepStrictEqual(got, ["recognize", "BEGIN", "ask", "COMMIT"])
    }))

  it.effect("and where only its client fails before COMMIT is sent, may have committed", () =>
    Effect.gen(function*() {
      const inClient = failing(new UnknownError({ cause: new Error("the client can't parse"), operation: "execute" }))
      const shutDown = failing(
        new UnknownError({ cause: new ServerError({ message: "no", code: "57P01" }), operation: "execute" })
      )
      const cases = [[inClient, "unknown"], [refused, "discarded"], [shutDown, "discarded"]] as const
      for (const [ask, outcome] of cases) {
        const { client, got } = yield* serverThat({ ask, commit: gone })
        const error = yield* Effect.flip(Effect.provide(boundary, engineOf(client)))
        assert.strictEqual(error._tag === "CommitError" && error.outcome, outcome)
        assert.deepStrictEqual(got, ["recognize", "BEGIN", "ask", "COMMIT"])
      }
    }))

  it.effect("and gives a transaction no id, as a standby does, is not asked what became of it", () =>
    Effect.gen(function*() {
      const { client, got } = yield* serverThat({ ask: Effect.succeed(""), commit: gone })
      const error = yield* Effect.flip(Effect.provide(boundary, engineOf(client)))
      assert.strictEqual(error._tag === "CommitError" && error.outcome, "unknown")
      assert.deepStrictEqual(got, ["recognize", "BEGIN", "ask", "COMMIT"])
    }))

  it.effect("is not asked for the id that it has told with the intents that it stored", () =>
    Effect.gen(function*() {
      class Stored extends Intent.make("Stored", { payload: {} }) {}
      const { client, got, params } = yield* serverThat({ commit: gone })
      const sink: IntentSink.IntentSink.Service = {
        name: "test",
        capabilities: { durable: true, transactional: true, ordered: false, priorities: false },
        client,
        append: (envelopes) =>
          Effect.as(
            Effect.orDie(client`INSERT`),
            envelopes.map(({ id }, index) => ({
              id,
              duplicate: false,
              transaction: index === 1 ? "8 server" : undefined
            }))
          ),
        wake: () => Effect.void
      }
      const exit = yield* Epilogue.atomic(Effect.andThen(Stored.defer({}), Stored.defer({}))).pipe(
        Effect.provide(Outbox.layerOptions({ commitTimeout: "10 millis" })),
        Effect.provideService(IntentSink.IntentSink, sink),
        Effect.exit,
        TestClock.withLive
      )
      assert.isTrue(Exit.isFailure(exit))
      assert.deepStrictEqual(got.slice(0, 5), ["recognize", "BEGIN", "INSERT", "COMMIT", "look"])
      assert.deepStrictEqual(params.at(-1), ["8", "server"])
    }))

  it.effect("gets a COMMIT of the core's own as it is", () =>
    Effect.gen(function*() {
      const { client, got } = yield* serverThat({})
      yield* Effect.provide(Epilogue.atomic(Effect.andThen(client`COMMIT`, boundary)), engineOf(client))
      assert.deepStrictEqual(got, ["recognize", "BEGIN", "COMMIT", "SAVEPOINT effect_sql_1", "ask", "COMMIT"])
    }))
})

describe("Effect's SqlClient", () => {
  it.effect("opens an outermost transaction on a connection at depth -1", () =>
    Effect.gen(function*() {
      const got: Array<string> = []
      const client = yield* clientThatAnswers((sql) => {
        got.push(sql)
        return none
      }, PgClient.makeCompiler())
      const connection = yield* Effect.scoped(client.reserve)
      const levels: Array<number> = []
      const level = Effect.map(client.transactionService, ([, depth]) => void levels.push(depth))
      yield* client.withTransaction(Effect.all([
        level,
        client.afterCommit(Effect.sync(() => void got.push("callback"))),
        Effect.ignore(client.withTransaction(Effect.andThen(level, Effect.fail("no"))))
      ])).pipe(Effect.provideService(client.transactionService, [connection, -1]))
      assert.deepStrictEqual(levels, [0, 1])
      assert.deepStrictEqual(got, [
        "BEGIN",
        "SAVEPOINT effect_sql_1",
        "ROLLBACK TO SAVEPOINT effect_sql_1",
        "COMMIT",
        "callback"
      ])
    }))
})

describe("the answer to ROLLBACK", () => {
  it.effect("law 2: a ROLLBACK that fails is a warning, and the caller gets the core's own cause", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const client = yield* clientThatFails(
        "ROLLBACK",
        failing(new UnknownError({ cause: "gone", operation: "execute" }))
      )
      const exit = yield* Effect.exit(Epilogue.atomic(Effect.fail("core"))).pipe(
        Effect.provide([engineOf(client), logs.layer])
      )
      assert(Exit.isFailure(exit))
      assert.deepStrictEqual(exit.cause, Cause.fail("core"))
      assert.deepStrictEqual(logs.entries.map(({ level, message }) => [level, message]), [
        [
          "Warn",
          "ROLLBACK failed after the core of a boundary had failed; the database discards the transaction by itself"
        ]
      ])
    }))

  it.effect("law 2: a core that fails, and a ROLLBACK that does not, are no news", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const client = yield* clientThatFails("none", Effect.die("never"))
      yield* Effect.exit(Epilogue.atomic(Effect.fail("core"))).pipe(Effect.provide([engineOf(client), logs.layer]))
      yield* Effect.exit(Epilogue.atomic(Effect.interrupt)).pipe(Effect.provide([engineOf(client), logs.layer]))
      assert.deepStrictEqual(logs.entries, [])
    }))

  it.effect("a connection that cannot be released after COMMIT is a warning", () =>
    Effect.gen(function*() {
      const logs = new CapturedLogs()
      const log = makeLog()
      const client = yield* clientThatFails("none", Effect.die("never"))
      const leaking = yield* Effect.provide(
        SqlClient.make({
          acquirer: Effect.tap(client.reserve, Effect.addFinalizer(() => Effect.die("stuck"))),
          compiler: makeCompilerSqlite(),
          driver: "test",
          spanAttributes: []
        }),
        Reactivity.layer
      )
      const value = yield* Epilogue.atomic(Effect.as(Epilogue.defer(log.add("ran")), 1)).pipe(
        Effect.provide([engineOf(leaking), logs.layer])
      )
      assert.deepStrictEqual([value, log.lines], [1, ["ran"]])
      assert.deepStrictEqual(logs.entries.map(({ message }) => message), [
        "The connection could not be released after COMMIT"
      ])
    }))
})

describe("who observes", () => {
  it.effect("hears that a COMMIT that failed discarded the intents", () =>
    Effect.gen(function*() {
      const client = yield* clientThatFails("COMMIT", failing(new UnknownError({ cause: "no", operation: "commit" })))
      const statuses: Array<string> = []
      const engine = yield* Effect.provide(Epilogue.Epilogue, engineOf(client))
      const listening = Epilogue.make({
        ...engine,
        observe: (registered, status) => void statuses.push(`${registered.name} ${status}`)
      })
      yield* Effect.exit(Effect.provideService(
        Epilogue.atomic(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.void, { name: "a", key: "k" })
          yield* Epilogue.defer(Effect.void, { name: "b", key: "k" })
        })),
        Epilogue.Epilogue,
        listening
      ))
      assert.deepStrictEqual(statuses, ["a deferred", "b deferred", "a replaced", "b discarded"])
    }))
})

class Pair extends Context.Service<Pair, readonly [{ readonly name: string }, number]>()("Pair") {}
class Triple extends Context.Service<Triple, readonly [Connection, number, string]>()("Triple") {}
class Named extends Context.Service<Named, readonly [Connection, string]>()("Named") {}

describe("context", () => {
  it.effect("law 8: services that look like a transaction, but are none, stay", () =>
    Effect.gen(function*() {
      const client = yield* clientThatFails("none", Effect.die("never"))
      const connection = yield* Effect.scoped(client.reserve)
      const seen: Array<unknown> = []
      yield* client.withTransaction(Epilogue.atomic(Epilogue.defer(
        Effect.map(Effect.all([Pair, Triple, Named]), (all) => void seen.push(all))
      ))).pipe(
        Effect.provideService(Pair, [{ name: "a" }, 1]),
        Effect.provideService(Triple, [connection, 1, "b"]),
        Effect.provideService(Named, [connection, "c"]),
        Effect.provide(Epilogue.layer)
      )
      assert.deepStrictEqual(seen, [[[{ name: "a" }, 1], [connection, 1, "b"], [connection, "c"]]])
    }))

  it.effect("with no tracer, the client's own span makes no spans of intents; with one of the application's, they are", () =>
    Effect.gen(function*() {
      const client = yield* clientThatFails("none", Effect.die("never"))
      const names: Array<string | undefined> = []
      const see = Effect.map(
        Effect.option(Effect.currentSpan),
        (span) => void names.push(Option.getOrUndefined(Option.map(span, ({ name }) => name)))
      )
      const program = Epilogue.atomic(Epilogue.defer(see, { name: "a" }))
      yield* Effect.provide(program, engineOf(client))
      yield* Effect.provide(Effect.withSpan(program, "request"), engineOf(client))
      yield* Effect.provide(
        Epilogue.atomic(Effect.withSpan(Epilogue.defer(see, { name: "b" }), "sql.transaction", { root: true })),
        Epilogue.layer
      )
      yield* Effect.provide(
        Epilogue.atomic(Effect.withSpan(Epilogue.defer(see, { name: "c" }), "save")),
        engineOf(client)
      )
      assert.deepStrictEqual(names, ["sql.transaction", "intent a", "intent b", "intent c"])
    }))

  it.effect("law 10: of two transactions, the one that a fiber did not outlive is still waited for", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const one = yield* clientThatFails("none", Effect.die("never"))
      const other = yield* clientThatFails("none", Effect.die("never"))
      const gate = yield* Latch.make()
      const program = Epilogue.atomic(Epilogue.defer(log.add("ran")))
      yield* other.withTransaction(Effect.gen(function*() {
        const fiber = yield* one.withTransaction(Effect.forkDetach(Effect.andThen(gate.await, program)))
        yield* gate.open
        yield* Fiber.join(fiber)
        yield* log.add("before COMMIT")
      })).pipe(Effect.provide(engineOf(one)))
      assert.deepStrictEqual(log.lines, ["before COMMIT", "ran"])
    }))

  it.effect("the defects of a transaction by hand name the intent, or the boundary", () =>
    Effect.gen(function*() {
      const client = yield* clientThatFails("none", Effect.die("never"))
      const connection = yield* Effect.scoped(client.reserve)
      const byHand = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        effect.pipe(
          Effect.provideService(client.transactionService, [connection, 0]),
          Effect.provideService(SqlClient.SqlClient, client)
        )
      const registered = yield* Effect.exit(Epilogue.atomic(byHand(Epilogue.defer(Effect.void, { name: "receipt" }))))
      assert.include(
        defectOf(registered),
        `Epilogue: intent "receipt" is in a SQL transaction whose fate cannot be known`
      )
      const opened = yield* Effect.exit(byHand(Epilogue.atomic(Epilogue.deferRollback(Effect.void))))
      assert.include(defectOf(opened), "Epilogue: a boundary is in a SQL transaction whose fate cannot be known")
    }).pipe(Effect.provide(Epilogue.layer)))
})
