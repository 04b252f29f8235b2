/**
 * Runs a program with the library, and writes down what happens.
 */
import { Cause, Context, Effect, Exit, Fiber, Latch, TxRef } from "effect"
import { Epilogue } from "../../src/index.ts"
import type { Body, Branch, Frame, Options, Program, Step } from "./program.ts"
import * as Reference from "./reference.ts"

const { text } = Reference

/** A service that intents and hooks find where they were registered. */
export class Where extends Context.Service<Where, string>()("test/Where") {}

type Steps = Effect.Effect<string, unknown, Epilogue.Deferred | Epilogue.Epilogue | Where>

interface Env {
  readonly boundary: string
  readonly isEpilogue: boolean
  readonly isTx: boolean
  readonly isConcurrent: boolean
  readonly isSync: boolean
}

export const toCause = (cause: Cause.Cause<unknown>): Reference.Cause => {
  const reason = cause.reasons.find((each) => !Cause.isInterruptReason(each))
  if (reason === undefined) return { _tag: "Interrupt" }
  if (Cause.isDieReason(reason)) {
    const defect = String(reason.defect)
    return defect.includes("Turn them inside out") ? Reference.insideOut : { _tag: "Die", defect }
  }
  if (!Cause.isFailReason(reason)) return { _tag: "Interrupt" }
  const { error } = reason
  return Epilogue.isEpilogueError(error)
    ? {
      _tag: "EpilogueError",
      value: String(error.value),
      failures: error.failures.map((failure) => ({ intent: failure.intent, cause: toCause(failure.cause) })),
      skipped: error.skipped
    }
    : { _tag: "Fail", error: String(error) }
}

const exitOf = (exit: Exit.Exit<unknown, unknown>): Reference.Exit =>
  Exit.isSuccess(exit)
    ? { _tag: "Success", value: String(exit.value) }
    : { _tag: "Failure", cause: toCause(exit.cause) }

export const outcomeOf = (outcome: Epilogue.Outcome): Reference.Outcome =>
  outcome._tag === "Ran"
    ? { _tag: "Ran", intent: outcome.intent, exit: exitOf(outcome.exit) }
    : { _tag: outcome._tag === "Skipped" ? "Skipped" : "Postponed", intent: outcome.intent }

export const interpret = Effect.fnUntraced(function*(
  program: Program,
  trace: Array<Reference.Event>
) {
  const add = (env: { readonly boundary: string }, line: string) =>
    Effect.sync(() => void trace.push({ boundary: env.boundary, text: line }))

  const run = (body: Body, path: string, env: Env): Steps =>
    Effect.as(Effect.forEach(body, (step, index) => runStep(step, `${path}.${index}`, env), { discard: true }), path)

  const runStep = (step: Step, path: string, env: Env): Effect.Effect<unknown, unknown, Effect.Services<Steps>> =>
    // Whoever else runs in this engine gets a turn.
    Effect.andThen(env.isSync ? Effect.void : Effect.yieldNow, act(step, path, env))

  const act = (step: Step, path: string, env: Env): Effect.Effect<unknown, unknown, Effect.Services<Steps>> => {
    switch (step._tag) {
      case "Defer":
        return Effect.andThen(add(env, text.deferred(path)), defer(step, path, env))
      case "Many":
        return many(step, path, env)
      case "Hook":
        return Effect.andThen(add(env, text.hooked(path)), Epilogue.deferRollback(hook(step, path, env)))
      case "See":
        return env.isEpilogue
          ? Effect.void
          : Effect.flatMap(Epilogue.intents, (intents) => add(env, text.sees(path, intents)))
      case "Fail":
        return Effect.fail(path)
      case "Die":
        return Effect.die(path)
      case "Interrupt":
        return Effect.interrupt
      case "Within":
        return within(step.frame, path, env, (inner) => run(step.body, path, inner))
      case "Fork":
        return env.isSync ? inTurn(step.branches, path, env) : fork(step.branches, path, env)
      case "Race":
        return race(step, path, env)
      case "Kill":
        return env.isSync ? Effect.void : kill(step, path, env)
      case "Retry":
        return retry(step, path, env)
      case "Tx":
        return tx(step, path, env)
    }
  }

  const defer = (step: Step & { _tag: "Defer" }, path: string, env: Env) => {
    const inner: Env = { ...env, isEpilogue: true, isTx: false, isSync: env.isSync || env.isConcurrent }
    const intent = Effect.flatMap(
      Where,
      (where) => Effect.andThen(add(env, text.begins(path, where)), run(step.body, path, inner))
    ).pipe(
      Effect.onExit((exit) => add(env, text.ends(path, exitOf(exit))))
    )
    if (step.form === "function") {
      const named = { [path]: (_path: string, _one: number) => intent }[path]!
      return Epilogue.defer(named, path, 1)
    }
    const options = {
      name: path,
      payload: { of: path },
      key: step.key === "none" ? undefined : step.key,
      timeout: step.form === "timeout" && !inner.isSync ? "1 hour" : undefined
    } as const
    return step.form === "orRun" ? Epilogue.deferOrRun(intent, options) : Epilogue.defer(intent, options)
  }

  const many = (step: Step & { _tag: "Many" }, path: string, env: Env) =>
    Effect.forEach(Array.from({ length: step.count }, (_, index) => index), (index) => {
      const name = `${path}*${index}`
      const intent = Effect.flatMap(Where, (where) => add(env, text.begins(name, where)))
      return Epilogue.defer(Effect.as(intent, name), { name, key: step.keys ? String(index % 3) : undefined })
    }, { discard: true })

  const hook = (step: Step & { _tag: "Hook" }, path: string, env: Env) => (cause: Cause.Cause<unknown>) =>
    Effect.gen(function*() {
      yield* add(env, text.undoes(path, yield* Where, toCause(cause)))
      if (step.ends === "fails") return yield* Effect.fail(path)
      if (step.ends === "dies") return yield* Effect.die(path)
    })

  const inTurn = Effect.fnUntraced(function*(branches: ReadonlyArray<Branch>, path: string, env: Env) {
    const exits = yield* Effect.forEach(branches, ({ body, frame }, index) => {
      const at = `${path}.${index}`
      return Effect.exit(within(frame, at, env, (inner) => run(body, at, inner)))
    })
    yield* Effect.all(exits)
  })

  const fork = Effect.fnUntraced(function*(branches: ReadonlyArray<Branch>, path: string, env: Env) {
    let live = branches.map(() => Latch.makeUnsafe(false))
    const pass = (from: Latch.Latch) => {
      from.closeUnsafe()
      live[(live.indexOf(from) + 1) % live.length]?.openUnsafe()
    }
    const leave = (from: Latch.Latch) => {
      const next = live[(live.indexOf(from) + 1) % live.length]
      live = live.filter((each) => each !== from)
      if (next !== from) next?.openUnsafe()
    }
    const fibers = yield* Effect.forEach(branches, ({ body, frame }, index) => {
      const at = `${path}.${index}`
      const turn = live[index]!
      return Effect.forkChild(
        Effect.andThen(
          turn.await,
          within(frame, at, env, (inner) =>
            Effect.as(
              Effect.forEach(
                body,
                (step, next) =>
                  runStep(step, `${at}.${next}`, inner).pipe(
                    Effect.andThen(Effect.sync(() => pass(turn))),
                    Effect.andThen(turn.await)
                  ),
                { discard: true }
              ),
              at
            ))
        ).pipe(Effect.onExit(() => Effect.sync(() => leave(turn))))
      )
    })
    live[0]?.openUnsafe()
    const exits = yield* Effect.forEach(fibers, (fiber) => Fiber.await(fiber))
    yield* Effect.all(exits)
  })

  const race = (step: Step & { _tag: "Race" }, path: string, env: Env) => {
    const win = within(step.frame, `${path}.winner`, env, (inner) => run(step.winner, `${path}.winner`, inner))
    if (env.isSync) return win
    return Effect.suspend(() => {
      const lost = Latch.makeUnsafe(false)
      const loser = within(
        step.frame,
        `${path}.loser`,
        env,
        (inner) => Effect.andThen(run(step.loser, `${path}.loser`, inner), Effect.andThen(lost.open, Effect.never))
      )
      return Effect.flatten(Effect.race(
        Effect.map(Effect.onExit(loser, () => lost.open), Exit.succeed),
        // A race waits for a success, so a winner that fails succeeds with that.
        Effect.andThen(lost.await, Effect.exit(win))
      ))
    })
  }

  const kill = Effect.fnUntraced(function*(step: Step & { _tag: "Kill" }, path: string, env: Env) {
    const done = Latch.makeUnsafe(false)
    const body = within(
      step.frame,
      path,
      env,
      (inner) => Effect.andThen(run(step.body, path, inner), Effect.andThen(done.open, Effect.never))
    )
    const fiber = yield* Effect.forkChild(Effect.onExit(body, () => done.open))
    yield* done.await
    yield* Fiber.interrupt(fiber)
    yield* add(env, text.returns(path, yield* Where, exitOf(yield* Fiber.await(fiber))))
  })

  const retry = (step: Step & { _tag: "Retry" }, path: string, env: Env) =>
    Effect.suspend(() => {
      let n = 0
      const attempt = Epilogue.savepoint(Effect.suspend(() => {
        const at = `${path}#${++n}`
        const isFailing = n <= step.failures && !env.isSync
        return Effect.andThen(
          run(step.body, at, { ...env, isEpilogue: false }),
          isFailing ? Effect.fail(at) : Effect.void
        )
      }))
      return env.isSync ? attempt : Effect.retry(attempt, { times: step.times })
    })

  const tx = (step: Step & { _tag: "Tx" }, path: string, env: Env) =>
    Effect.suspend(() => {
      if (env.isTx) return Effect.tx(run(step.body, `${path}#1`, env))
      const ref = TxRef.makeUnsafe(0)
      // Without the transaction in its context it is another one, and it commits at once.
      const commit: Effect.Effect<void> = TxRef.set(ref, 1)
      const conflict = Effect.updateContext(
        commit,
        (context: Context.Context<never>): Context.Context<never> => Context.omit(Effect.Transaction)(context)
      )
      let n = 0
      return Effect.tx(Effect.gen(function*() {
        const isFirst = ++n === 1
        yield* TxRef.get(ref)
        if (isFirst && step.first === "conflicts") {
          yield* conflict
        }
        yield* run(step.body, `${path}#${n}`, { ...env, isTx: true })
        if (isFirst && step.first === "retries") {
          yield* conflict
          return yield* Effect.txRetry
        }
      }))
    })

  const within = (frame: Frame, path: string, env: Env, body: (env: Env) => Steps): Steps => {
    switch (frame._tag) {
      case "Bare":
        return body(env)
      case "Where":
        return Effect.provideService(body(env), Where, frame.where)
      case "Caught":
        return Effect.exit(body(env)).pipe(
          Effect.flatMap((exit) => Effect.flatMap(Where, (where) => add(env, text.returns(path, where, exitOf(exit))))),
          Effect.as(path)
        )
      case "Tx":
        return Effect.tx(body({ ...env, isTx: true }))
      case "Savepoint":
        return Epilogue.savepoint(body({ ...env, isEpilogue: false }))
      case "Boundary": {
        const inner: Env = frame.isolated || env.isEpilogue
          ? { ...env, isEpilogue: false, boundary: path, isConcurrent: frame.options.concurrency !== 1 }
          : env
        return boundary(body(inner), path, env, frame.options, frame.isolated)
      }
    }
  }

  const boundary = (
    core: Steps,
    path: string,
    env: { readonly boundary: string },
    options: Options,
    isolated: boolean | undefined
  ) => {
    const { concurrency, form, mode } = options
    const given = { mode: mode === "default" ? undefined : mode, concurrency, isolated }
    return form === "report"
      ? Effect.flatMap(
        Epilogue.reportWith(given)(core),
        ({ outcomes, value }) => Effect.as(add(env, text.reports(value, outcomes.map(outcomeOf))), path)
      )
      : Effect.flatMap(
        Epilogue.atomicWith(given)(core),
        (value) =>
          Effect.flatMap(
            Where,
            (where) => Effect.as(add(env, text.returns(path, where, { _tag: "Success", value })), path)
          )
      )
  }

  for (const [index, { body, options }] of program.entries()) {
    const path = String(index)
    const env: Env = {
      boundary: path,
      isEpilogue: false,
      isTx: false,
      isConcurrent: options.concurrency !== 1,
      isSync: false
    }
    const outside = { boundary: "" }
    const exit = yield* Effect.exit(boundary(run(body, path, env), path, outside, options, undefined))
    yield* add(outside, text.returns(path, yield* Where, exitOf(exit)))
  }
})
