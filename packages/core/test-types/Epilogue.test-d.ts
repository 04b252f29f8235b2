import { Context, Effect, type Layer, type Scope } from "effect"
import type { SqlClient } from "effect/sql/SqlClient"
import { describe, expectTypeOf, it } from "vitest"
import { Epilogue, SqlEpilogue, TestEpilogue } from "../src/index.ts"

class Db extends Context.Service<Db, string>()("Db") {}
class Mailer extends Context.Service<Mailer, string>()("Mailer") {}

declare const core: Effect.Effect<number, "core", Db | Epilogue.Deferred>
declare const intent: Effect.Effect<string, "intent", Mailer>

describe("atomic", () => {
  it("excludes Deferred, requires the engine, and has the core's value in its error", () => {
    expectTypeOf(Epilogue.atomic(core)).toEqualTypeOf<
      Effect.Effect<
        number,
        "core" | Epilogue.EpilogueError<number> | Epilogue.CommitError,
        Db | Epilogue.Epilogue
      >
    >()
    expectTypeOf(core.pipe(Epilogue.atomic)).toEqualTypeOf(Epilogue.atomic(core))
    expectTypeOf(Epilogue.atomicWith({ mode: "stop", concurrency: "unbounded", name: "a", isolated: true })(core))
      .toEqualTypeOf(Epilogue.atomic(core))
  })

  it("adds no requirement of its own besides the engine", () => {
    expectTypeOf(Epilogue.atomic(Effect.succeed(1))).toEqualTypeOf<
      Effect.Effect<number, Epilogue.EpilogueError<number> | Epilogue.CommitError, Epilogue.Epilogue>
    >()
  })

  it("infers in Effect.fn, for bodies with parameters and without", () => {
    const without = Effect.fn("without")(function*() {
      yield* Epilogue.defer(intent)
      return yield* core
    }, Epilogue.atomic)
    expectTypeOf(without).toEqualTypeOf<
      () => Effect.Effect<
        number,
        "core" | Epilogue.EpilogueError<number> | Epilogue.CommitError,
        Db | Mailer | Epilogue.Epilogue
      >
    >()
    const withTwo = Effect.fn("withTwo")(function*(id: string, count: number) {
      yield* Epilogue.defer(intent)
      return { id, count }
    }, Epilogue.atomic)
    expectTypeOf(withTwo).toEqualTypeOf<
      (id: string, count: number) => Effect.Effect<
        { id: string; count: number },
        Epilogue.EpilogueError<{ id: string; count: number }> | Epilogue.CommitError,
        Mailer | Epilogue.Epilogue
      >
    >()
    const untraced = Effect.fnUntraced(function*(id: string) {
      yield* Epilogue.defer(intent)
      return id
    }, Epilogue.atomicWith({ name: "untraced" }))
    expectTypeOf(untraced).returns.toEqualTypeOf<
      Effect.Effect<string, Epilogue.EpilogueError<string> | Epilogue.CommitError, Mailer | Epilogue.Epilogue>
    >()
    const reported = Effect.fn("reported")(function*(id: string) {
      yield* Epilogue.defer(intent)
      return id
    }, Epilogue.report)
    expectTypeOf(reported).toEqualTypeOf<
      (id: string) => Effect.Effect<Epilogue.Report<string>, Epilogue.CommitError, Mailer | Epilogue.Epilogue>
    >()
  })

  it("is not complete without an engine, nor a deferring effect without a boundary", () => {
    type Complete = Effect.Effect<void, unknown>
    expectTypeOf(Epilogue.atomic(Effect.void)).not.toExtend<Complete>()
    expectTypeOf(Effect.provide(Epilogue.defer(Effect.void), Epilogue.layer)).not.toExtend<Complete>()
    expectTypeOf(Effect.provide(Epilogue.atomic(Epilogue.defer(Effect.void)), Epilogue.layer)).toExtend<Complete>()
  })
})

describe("report", () => {
  it("leaves only the core's errors, and CommitError", () => {
    expectTypeOf(Epilogue.report(core)).toEqualTypeOf<
      Effect.Effect<Epilogue.Report<number>, "core" | Epilogue.CommitError, Db | Epilogue.Epilogue>
    >()
    expectTypeOf(Epilogue.reportWith({})(core)).toEqualTypeOf(Epilogue.report(core))
  })
})

describe("defer", () => {
  it("never fails, and requires what the intent requires", () => {
    expectTypeOf(Epilogue.defer(intent)).toEqualTypeOf<Effect.Effect<void, never, Mailer | Epilogue.Deferred>>()
    expectTypeOf(Epilogue.defer(intent, { name: "a", payload: 1, key: "k", timeout: "1 second" })).toEqualTypeOf<
      Effect.Effect<void, never, Mailer | Epilogue.Deferred>
    >()
    expectTypeOf(intent.pipe(Epilogue.deferWith({ name: "a" }))).toEqualTypeOf<
      Effect.Effect<void, never, Mailer | Epilogue.Deferred>
    >()
    expectTypeOf(Epilogue.defer(Db)).toEqualTypeOf<Effect.Effect<void, never, Db | Epilogue.Deferred>>()
    expectTypeOf(Epilogue.defer(Effect.scope)).toEqualTypeOf<
      Effect.Effect<void, never, Scope.Scope | Epilogue.Deferred>
    >()
  })

  it("checks the arguments of a deferred function", () => {
    const send = (_to: string, _copies: number): typeof intent => intent
    expectTypeOf(Epilogue.defer(send, "ada", 2)).toEqualTypeOf<
      Effect.Effect<void, never, Mailer | Epilogue.Deferred>
    >()
    // @ts-expect-error an argument is missing
    expectTypeOf(Epilogue.defer(send, "ada")).toBeObject()
    // @ts-expect-error an argument is of another type
    expectTypeOf(Epilogue.defer(send, 1, 2)).toBeObject()
    // @ts-expect-error there is no such option
    expectTypeOf(Epilogue.defer(intent, { nmae: "a" })).toBeObject()
  })

  it("deferOrRun may fail as the effect does, and needs no boundary", () => {
    expectTypeOf(Epilogue.deferOrRun(intent)).toEqualTypeOf<Effect.Effect<void, "intent", Mailer>>()
  })

  it("deferRollback takes an effect or a function of the cause", () => {
    expectTypeOf(Epilogue.deferRollback(intent)).toEqualTypeOf<
      Effect.Effect<void, never, Mailer | Epilogue.Deferred>
    >()
    expectTypeOf(Epilogue.deferRollback((_cause) => intent)).toEqualTypeOf<
      Effect.Effect<void, never, Mailer | Epilogue.Deferred>
    >()
  })
})

describe("savepoint", () => {
  it("keeps value, error and requirements", () => {
    expectTypeOf(Epilogue.savepoint(core)).toEqualTypeOf<Effect.Effect<number, "core", Db | Epilogue.Deferred>>()
    expectTypeOf(Epilogue.savepoint(Effect.void)).toEqualTypeOf<Effect.Effect<void, never, Epilogue.Deferred>>()
  })
})

describe("layers", () => {
  it("say what they provide and need", () => {
    expectTypeOf(Epilogue.layer).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue>>()
    expectTypeOf(Epilogue.layerBackground()).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue>>()
    expectTypeOf(SqlEpilogue.layer).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue, never, SqlClient>>()
    expectTypeOf(TestEpilogue.layer).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue | Epilogue.Deferred | TestEpilogue.TestEpilogue>
    >()
  })
})

describe("errors", () => {
  it("an EpilogueError is told from the core's own", () => {
    const program = Epilogue.atomic(core)
    expectTypeOf(
      Effect.catchTag(program, "EpilogueError", (error) => Effect.succeed(error.value))
    ).toEqualTypeOf<Effect.Effect<number, "core" | Epilogue.CommitError, Db | Epilogue.Epilogue>>()
    expectTypeOf<Epilogue.CommitError["outcome"]>().toEqualTypeOf<"discarded" | "unknown">()
    const error: unknown = null
    if (Epilogue.isEpilogueError(error)) expectTypeOf(error).toEqualTypeOf<Epilogue.EpilogueError<unknown>>()
  })
})
