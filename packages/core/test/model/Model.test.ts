/**
 * Random programs, run by the library and by the model of what `boundary.md` promises.
 */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Effect, Exit, Layer, Logger, Schema } from "effect"
import { Epilogue, TestEpilogue } from "../../src/index.ts"
import { interpret, outcomeOf, toCause, Where } from "./interpreter.ts"
import { bigPrograms, type Program, programs, show } from "./program.ts"
import * as Reference from "./reference.ts"

const options = (runs: number) => ({ arbitrary: { runs, size: 30 }, timeout: 120_000 })

/** Fails with the program as text, and with both lists from where they part. */
const agree = (actual: ReadonlyArray<string>, expected: ReadonlyArray<string>, program: Program, what: string) => {
  const parts = expected.findIndex((line, index) => line !== actual[index])
  const from = parts === -1 ? expected.length : parts
  if (from === actual.length && from === expected.length) return
  const listed = (lines: ReadonlyArray<string>) =>
    lines.slice(Math.max(0, from - 5), from + 20).map((line) => `\n    ${line}`).join("")
  assert.fail(
    `${what}, from where it parts from the model:\n${show(program)}  the model says${listed(expected)}\n  and it was${
      listed(actual)
    }\n`
  )
}

const textsOf = (trace: ReadonlyArray<Reference.Event>) => trace.map(({ text }) => text)

/** Epilogues of different boundaries run side by side in the background, so each is looked at by itself. */
const byBoundary = (trace: ReadonlyArray<Reference.Event>) =>
  trace.toSorted((a, b) => a.boundary < b.boundary ? -1 : a.boundary > b.boundary ? 1 : 0).map(({ boundary, text }) =>
    `${boundary}: ${text}`
  )

const untoldOf = (failures: Reference.Result["untold"]) =>
  failures.map(({ cause, intent }) => `${Reference.showIntent(intent)} ${Reference.showCause(cause)}`).toSorted()

/** Without what an intent returned: that is kept for reports alone. */
const outcomesOf = (outcomes: ReadonlyArray<Reference.Outcome>) =>
  outcomes.map((outcome) =>
    outcome._tag === "Ran" && outcome.exit._tag === "Success"
      ? `${Reference.showIntent(outcome.intent)} ran`
      : Reference.showOutcome(outcome)
  )

/** Runs a program, and tells what happened and how many rollback hooks were logged to have failed. */
const run = Effect.fnUntraced(function*(program: Program, trace: Array<Reference.Event> = []) {
  let failedHooks = 0
  yield* interpret(program, trace).pipe(
    Effect.provideService(Where, "main"),
    Effect.provide(Logger.layer([
      Logger.make(({ message }) => {
        if (String(message).includes("rollback hook failed")) failedHooks++
      })
    ]))
  )
  return { trace, failedHooks }
})

describe("random programs", () => {
  const behaves = ([program]: readonly [Program]) =>
    Effect.gen(function*() {
      const model = Reference.interpret(program, "now")
      const told: Array<string> = []
      const { failedHooks, trace } = yield* run(program).pipe(
        Effect.provide(
          Epilogue.layerOptions({ onFailure: ({ intent }) => Effect.sync(() => void told.push(intent.name)) })
        )
      )
      agree(textsOf(trace), textsOf(model.trace), program, "What happened")
      agree([`${failedHooks}`], [`${model.failedHooks}`], program, "How many rollback hooks failed")
      agree(told, [], program, "What was told to onFailure though the caller was there")
    })

  it.effect.prop(
    "laws 1, 2, 4: what runs, in which order, and what the caller learns is what the model says",
    [programs],
    behaves,
    options(2000)
  )

  it.effect.prop("laws 1, 2, 4: they hold for thousands of intents", [bigPrograms], behaves, options(50))

  it.effect.prop(
    "laws 1, 2, 4: a test engine runs nothing, and tells what is committed from what is discarded",
    [programs],
    ([program]) =>
      Effect.gen(function*() {
        const model = Reference.interpret(program, "later")
        const { failedHooks, trace } = yield* run(program)
        agree(textsOf(trace), textsOf(model.trace), program, "What happened")
        agree([`${failedHooks}`], [`${model.failedHooks}`], program, "How many rollback hooks failed")
        const statuses = yield* TestEpilogue.intents
        const showStatus = (each: Reference.Intent & { readonly status: string }) =>
          `${Reference.showIntent(each)} ${each.status}`
        agree(statuses.map(showStatus), model.statuses.map(showStatus), program, "What was collected")

        trace.length = 0
        const outcomes: Array<Epilogue.Outcome> = []
        for (let ran = yield* TestEpilogue.run; ran.length > 0; ran = yield* TestEpilogue.run) outcomes.push(...ran)
        agree(textsOf(trace), textsOf(model.later.trace), program, "What happened when it ran the intents")
        agree(
          outcomesOf(outcomes.map(outcomeOf)),
          outcomesOf(model.later.outcomes),
          program,
          "What it answered when it ran the intents"
        )
      }).pipe(Effect.provide(TestEpilogue.layer)),
    options(1000)
  )

  it.effect.prop(
    "laws 1, 2, 4: in the background, the same intents run, each boundary's in order",
    [programs],
    ([program]) =>
      Effect.gen(function*() {
        const model = Reference.interpret(program, "later")
        const expected = [...model.trace, ...model.later.trace]
        const trace: Array<Reference.Event> = []
        const untold: Array<Reference.Result["untold"][number]> = []
        const background = Epilogue.layerBackground({
          onFailure: ({ cause, intent }) => Effect.sync(() => void untold.push({ intent, cause: toCause(cause) }))
        })
        yield* Effect.gen(function*() {
          yield* run(program, trace)
          // A boundary that commits while the layer closes runs its epilogue before it returns.
          if (!model.commitsLate) return
          for (let i = 0; i < 5000 && trace.length < expected.length; i++) yield* Effect.yieldNow
        }).pipe(Effect.provide(Layer.provideMerge(background, Logger.layer([]))))
        agree(byBoundary(trace), byBoundary(expected), program, "What happened in the end")
        agree(untoldOf(untold), untoldOf(model.untold), program, "What onFailure was told")
      }),
    options(1000)
  )

  it.effect.prop(
    "law 5: boundaries side by side never see each other's intents",
    [Arbitrary.array(programs, { minLength: 2, maxLength: 8 })],
    ([beside]) =>
      Effect.gen(function*() {
        // Every step yields, so they do run side by side.
        const ran = yield* Effect.forEach(beside, (program) => run(program), { concurrency: "unbounded" })
        beside.forEach((program, index) => {
          const { trace } = Reference.interpret(program, "now")
          agree(textsOf(ran[index]!.trace), textsOf(trace), program, "What happened beside other programs")
        })
      }).pipe(Effect.provide(Epilogue.layer)),
    options(1000)
  )
})

describe("counterexamples", () => {
  it.effect("law 4: a report inside Effect.tx, inside a boundary, has the intents of its own attempt", () =>
    Effect.gen(function*() {
      const { outcomes } = yield* Epilogue.atomic(
        Effect.tx(Epilogue.report(Epilogue.defer(Effect.void, { name: "a" })))
      )
      assert.deepStrictEqual(outcomes, [{ _tag: "Postponed", intent: { name: "a", payload: undefined } }])
    }).pipe(Effect.provide(Epilogue.layer)))

  for (const [ended, end] of [["committed", Effect.void], ["was discarded", Effect.fail("no")]] as const) {
    it.effect(`of intents with one key, a test engine has the last of a boundary that ${ended}`, () =>
      Effect.gen(function*() {
        yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
          yield* Epilogue.defer(Effect.void, { name: "a", key: "k" })
          yield* Epilogue.defer(Effect.void, { name: "b", key: "k" })
          yield* end
        })))
        assert.deepStrictEqual((yield* TestEpilogue.intents).map(({ name }) => name), ["b"])
      }).pipe(Effect.provide(TestEpilogue.layer)))
  }

  it.effect("of intents with one key, a test engine has the last after it ran one that replaced another", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Epilogue.defer(Effect.void, { name: "c", key: "k" }), { name: "a" })
        yield* Epilogue.defer(Effect.void, { name: "b", key: "k" })
      }))
      const outcomes = yield* TestEpilogue.run
      assert.deepStrictEqual(outcomes.map(({ intent }) => intent.name), ["a", "c"])
      assert.deepStrictEqual((yield* TestEpilogue.intents).map(({ name }) => name), ["a", "c"])
    }).pipe(Effect.provide(TestEpilogue.layer)))
})

describe("random concurrency", () => {
  const Concurrent = Schema.Struct({
    concurrency: Schema.Literals([1, 2, 3, 4, "unbounded"]),
    mode: Schema.Literals(["continue", "continue", "stop"]),
    intents: Schema.Array(Schema.Struct({
      yields: Schema.Literals([1, 2, 3, 4]),
      fails: Schema.Literals([false, false, false, true]),
      cascades: Schema.Boolean
    })).check(Schema.isMaxLength(12))
  })

  it.effect.prop(
    "law 1: as many intents run at once as asked for, they begin in order, and each runs once",
    [Concurrent],
    ([{ concurrency, intents, mode }]) =>
      Effect.gen(function*() {
        const begun: Array<string> = []
        const ended: Array<string> = []
        const cascaded: Array<string> = []
        let most = 0
        let failed = false
        let begunAfterFailure = 0
        const intent = (name: string, yields: number, fails: boolean, cascades: boolean): Effect.Effect<
          void,
          string,
          Epilogue.Deferred
        > =>
          Effect.gen(function*() {
            if (failed) begunAfterFailure++
            begun.push(name)
            most = Math.max(most, begun.length - ended.length)
            if (cascades) {
              cascaded.push(`${name}+`)
              yield* Epilogue.defer(intent(`${name}+`, 1, false, false), { name: `${name}+` })
            }
            for (let i = 0; i < yields; i++) yield* Effect.yieldNow
            ended.push(name)
            if (!fails) return
            failed = true
            return yield* Effect.fail(name)
          })
        const { outcomes } = yield* Epilogue.reportWith({ concurrency, mode })(
          Effect.forEach(intents, ({ cascades, fails, yields }, index) =>
            Epilogue.defer(intent(String(index), yields, fails, cascades), { name: String(index) }))
        )
        const all = [...Array.from(intents.keys(), String), ...cascaded]
        assert.deepStrictEqual(
          outcomes.map((outcome) =>
            outcome.intent.name
          ),
          all
        )
        assert.deepStrictEqual(begun, all.slice(0, begun.length))
        assert.deepStrictEqual(ended.toSorted(), begun.toSorted())
        assert.deepStrictEqual(
          outcomes.map((outcome) => outcome._tag === "Ran" ? Exit.isSuccess(outcome.exit) : outcome._tag),
          all.map((name, index) => index < begun.length ? intents[Number(name)]?.fails !== true : "Skipped")
        )
        const limit = concurrency === "unbounded" ? Infinity : concurrency
        assert.isAtMost(most, limit)
        // Each yields at least once, so the first ones are all there before one ends.
        assert.isAtLeast(most, Math.min(limit, intents.length))
        if (mode === "stop") assert.strictEqual(begunAfterFailure, 0)
        else assert.strictEqual(begun.length, all.length)
      }).pipe(Effect.provide(Epilogue.layer)),
    options(1000)
  )
})
