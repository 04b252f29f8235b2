/**
 * What `boundary.md` promises of a program, written with nothing but arrays and recursion.
 */
import type { Body, Branch, Frame, Options, Program, Step } from "./program.ts"

// What is compared ---------------------------------------------------------------------------------------------------

export interface Intent {
  readonly name: string
  readonly payload: unknown
}

/** One reason is enough: nothing here fails for two. */
export type Cause =
  | { readonly _tag: "Fail"; readonly error: string }
  | {
    readonly _tag: "EpilogueError"
    readonly value: string
    readonly failures: ReadonlyArray<{ readonly intent: Intent; readonly cause: Cause }>
    readonly skipped: ReadonlyArray<Intent>
  }
  | { readonly _tag: "Die"; readonly defect: string }
  | { readonly _tag: "Interrupt" }

export type Exit = { readonly _tag: "Success"; readonly value: string } | {
  readonly _tag: "Failure"
  readonly cause: Cause
}

export type Outcome =
  | { readonly _tag: "Ran"; readonly intent: Intent; readonly exit: Exit }
  | { readonly _tag: "Skipped" | "Postponed"; readonly intent: Intent }

export interface Event {
  /** The outermost boundary it belongs to. */
  readonly boundary: string
  readonly text: string
}

type Status = "committed" | "discarded"

export interface Result {
  /** What happened until the last boundary had ended. */
  readonly trace: ReadonlyArray<Event>
  readonly failedHooks: number
  /** Intents in order of registration, with what became of them. Those that were replaced are not among them. */
  readonly statuses: ReadonlyArray<Intent & { readonly status: Status }>
  /** What happened in epilogues that run later. */
  readonly later: { readonly trace: ReadonlyArray<Event>; readonly outcomes: ReadonlyArray<Outcome> }
  /** Whether an intent that ran later opened an outermost boundary that committed. */
  readonly commitsLate: boolean
  /** The failures that no caller was told of. */
  readonly untold: ReadonlyArray<{ readonly intent: Intent; readonly cause: Cause }>
}

export const showCause = (cause: Cause): string => {
  switch (cause._tag) {
    case "Fail":
      return `fail(${cause.error})`
    case "Die":
      return `die(${cause.defect})`
    case "Interrupt":
      return "interrupt"
    case "EpilogueError": {
      const failures = cause.failures.map((failure) => `${showIntent(failure.intent)} ${showCause(failure.cause)}`)
      return `EpilogueError(${cause.value}; failures: ${failures.join(", ")}; skipped: ${
        cause.skipped.map(showIntent).join(", ")
      })`
    }
  }
}

const showExit = (exit: Exit): string => exit._tag === "Success" ? exit.value : showCause(exit.cause)

export const showIntent = ({ name, payload }: Intent): string => `${name}(${JSON.stringify(payload)})`

export const showOutcome = (outcome: Outcome): string =>
  `${showIntent(outcome.intent)} ${
    outcome._tag === "Ran" ? `ran ${showExit(outcome.exit)}` : outcome._tag.toLowerCase()
  }`

/** The texts of the trace, for both the model and the real thing. */
export const text = {
  deferred: (name: string) => `${name} defers`,
  hooked: (name: string) => `${name} defers a rollback hook`,
  sees: (name: string, intents: ReadonlyArray<Intent>) => `${name} sees [${intents.map(showIntent).join(", ")}]`,
  begins: (name: string, where: string) => `${name} begins in ${where}`,
  ends: (name: string, exit: Exit) => `${name} ends: ${showExit(exit)}`,
  undoes: (name: string, where: string, cause: Cause) => `${name} undoes in ${where} because of ${showCause(cause)}`,
  reports: (name: string, outcomes: ReadonlyArray<Outcome>) =>
    `${name} reports ${name} [${outcomes.map(showOutcome).join(", ")}]`,
  returns: (name: string, where: string, exit: Exit) => `${name} returns to ${where}: ${showExit(exit)}`
}

// The model ----------------------------------------------------------------------------------------------------------

/** When epilogues run: before their boundary returns, or after all boundaries have. */
export type Engine = "now" | "later"

interface Attempt {
  committed: boolean
  abandoned: boolean
}

interface Registered {
  readonly intent: Intent
  readonly key: string
  readonly body: Body
  readonly path: string
  readonly env: Env
  readonly attempt: Attempt | undefined
  /** Whether it is one of so many that its end is not written down. */
  readonly isQuiet: boolean
  status: Status | "replaced" | undefined
}

interface Hook {
  readonly path: string
  readonly where: string
  readonly ends: "ok" | "fails" | "dies"
  readonly attempt: Attempt | undefined
}

interface Queue {
  readonly isEpilogue: boolean
  readonly intents: Array<Registered>
  hooks: Array<Hook>
}

interface Env {
  readonly queue: Queue
  /** The outermost boundary in the text around here. */
  readonly boundary: string
  readonly where: string
  readonly attempt: Attempt | undefined
  /** Whether intents of this boundary run side by side, and then whether this is one: if so, it does not wait. */
  readonly isConcurrent: boolean
  readonly isSync: boolean
}

const fail = (error: string): Cause => ({ _tag: "Fail", error })
const interrupted: Cause = { _tag: "Interrupt" }
export const insideOut: Cause = { _tag: "Die", defect: "turn them inside out" }
const exitOf = (value: string, cause: Cause | undefined): Exit =>
  cause === undefined ? { _tag: "Success", value } : { _tag: "Failure", cause }

const counts = ({ attempt }: Registered) => attempt === undefined || attempt.committed
const isReplaced = (list: ReadonlyArray<Registered>, index: number) =>
  list[index]!.key !== "none" && list.findLastIndex(({ key }) => key === list[index]!.key) > index

export const interpret = (program: Program, engine: Engine): Result => {
  const trace: Array<Event> = []
  const registered: Array<Registered> = []
  const later: Array<() => ReadonlyArray<Outcome>> = []
  const untold: Array<Result["untold"][number]> = []
  let failedHooks = 0
  let isLate = false
  let commitsLate = false
  const add = (env: { readonly boundary: string }, line: string) => trace.push({ boundary: env.boundary, text: line })

  const register = (each: Registered) => {
    each.env.queue.intents.push(each)
    registered.push(each)
  }

  /** Steps until one fails. */
  const run = (body: Body, path: string, env: Env): Cause | undefined => {
    for (const [index, step] of body.entries()) {
      const cause = runStep(step, `${path}.${index}`, env)
      if (cause !== undefined) return cause
    }
    return undefined
  }

  const runStep = (step: Step, path: string, env: Env): Cause | undefined => {
    switch (step._tag) {
      case "Defer": {
        const isFunction = step.form === "function"
        const each: Registered = {
          intent: { name: path, payload: isFunction ? [path, 1] : { of: path } },
          key: isFunction ? "none" : step.key,
          body: step.body,
          path,
          env,
          attempt: env.attempt,
          isQuiet: false,
          status: undefined
        }
        add(env, text.deferred(path))
        register(each)
        return undefined
      }
      case "Many":
        for (let index = 0; index < step.count; index++) {
          const name = `${path}*${index}`
          const key = step.keys ? String(index % 3) : "none"
          register({
            intent: { name, payload: undefined },
            key,
            body: [],
            path: name,
            env,
            attempt: env.attempt,
            isQuiet: true,
            status: undefined
          })
        }
        return undefined
      case "Hook":
        add(env, text.hooked(path))
        env.queue.hooks.push({ path, where: env.where, ends: step.ends, attempt: env.attempt })
        return undefined
      case "See":
        // When an epilogue takes over what its intents register is its own business.
        if (!env.queue.isEpilogue) add(env, text.sees(path, view(env.queue, env.attempt)))
        return undefined
      case "Fail":
        return fail(path)
      case "Die":
        return { _tag: "Die", defect: path }
      case "Interrupt":
        return interrupted
      case "Within":
        return within(step.frame, path, env, (inner) => run(step.body, path, inner))
      case "Fork":
        return env.isSync ? inTurn(step.branches, path, env) : fork(step.branches, path, env)
      case "Race":
        return race(step, path, env)
      case "Kill": {
        if (env.isSync) return undefined
        const cause = within(step.frame, path, env, (inner) => run(step.body, path, inner) ?? interrupted)
        add(env, text.returns(path, env.where, exitOf(path, cause)))
        return undefined
      }
      case "Retry":
        for (let n = 1;; n++) {
          const at = `${path}#${n}`
          const cause = within(
            { _tag: "Savepoint" },
            at,
            env,
            (inner) => run(step.body, at, inner) ?? (n <= step.failures && !env.isSync ? fail(at) : undefined)
          )
          const isFailure = cause?._tag === "Fail" || cause?._tag === "EpilogueError"
          if (!isFailure || n > step.times || env.isSync) return cause
        }
      case "Tx":
        return tx(step, path, env)
    }
  }

  const tx = (step: Step & { _tag: "Tx" }, path: string, env: Env): Cause | undefined => {
    // A transaction inside another one is a part of it.
    if (env.attempt !== undefined) return run(step.body, `${path}#1`, env)
    for (let n = 1;; n++) {
      const attempt: Attempt = { committed: false, abandoned: false }
      const cause = run(step.body, `${path}#${n}`, { ...env, attempt })
      const runsAgain = n === 1 && (step.first === "conflicts" || (step.first === "retries" && cause === undefined))
      if (!runsAgain) {
        attempt.committed = cause === undefined
        return cause
      }
      attempt.abandoned = true
    }
  }

  /** One after the other, all of them; then the first failure counts. */
  const inTurn = (branches: ReadonlyArray<Branch>, path: string, env: Env): Cause | undefined =>
    branches.map(({ body, frame }, index) => {
      const at = `${path}.${index}`
      return within(frame, at, env, (inner) => run(body, at, inner))
    }).find((cause) => cause !== undefined)

  /** In rounds: in each, every fiber that is not over takes one step, or ends. */
  const fork = (branches: ReadonlyArray<Branch>, path: string, env: Env): Cause | undefined => {
    const causes: Array<Cause | undefined> = []
    const turns = branches.map(({ body, frame }, index) => {
      const at = `${path}.${index}`
      let next = 0
      let opened: Opened | undefined
      return () => {
        opened ??= open(frame, at, env)
        if (opened.cause === undefined && next < body.length) {
          const cause = runStep(body[next]!, `${at}.${next}`, opened.env)
          next++
          if (cause === undefined) return true
          opened.cause = cause
        }
        causes[index] = opened.end(opened.cause)
        return false
      }
    })
    for (let live = turns; live.length > 0;) live = live.filter((turn) => turn())
    return causes.find((cause) => cause !== undefined)
  }

  const race = (step: Step & { _tag: "Race" }, path: string, env: Env): Cause | undefined => {
    const win = () => within(step.frame, `${path}.winner`, env, (inner) => run(step.winner, `${path}.winner`, inner))
    if (env.isSync) return win()
    const at = `${path}.loser`
    const loser = open(step.frame, at, env)
    const failed = run(step.loser, at, loser.env)
    if (failed !== undefined) loser.end(failed)
    const cause = win()
    if (failed === undefined) loser.end(interrupted)
    return cause
  }

  interface Opened {
    readonly env: Env
    cause: Cause | undefined
    readonly end: (cause: Cause | undefined) => Cause | undefined
  }

  const within = (frame: Frame, path: string, env: Env, body: (env: Env) => Cause | undefined): Cause | undefined => {
    const opened = open(frame, path, env)
    return opened.end(opened.cause ?? body(opened.env))
  }

  const open = (frame: Frame, path: string, env: Env): Opened => {
    switch (frame._tag) {
      case "Bare":
        return { env, cause: undefined, end: (cause) => cause }
      case "Where":
        return { env: { ...env, where: frame.where }, cause: undefined, end: (cause) => cause }
      case "Caught":
        return {
          env,
          cause: undefined,
          end: (cause) => {
            add(env, text.returns(path, env.where, exitOf(path, cause)))
            return undefined
          }
        }
      case "Tx": {
        if (env.attempt !== undefined) return { env, cause: undefined, end: (cause) => cause }
        const attempt: Attempt = { committed: false, abandoned: false }
        return {
          env: { ...env, attempt },
          cause: undefined,
          end: (cause) => {
            attempt.committed = cause === undefined
            return cause
          }
        }
      }
      case "Savepoint":
        return savepoint(path, env, undefined)
      case "Boundary":
        if (!frame.isolated && !env.queue.isEpilogue) return savepoint(path, env, frame.options)
        if (env.attempt !== undefined) return { env, cause: insideOut, end: () => insideOut }
        return outermost(path, env, frame.options)
    }
  }

  const savepoint = (path: string, env: Env, options: Options | undefined): Opened => {
    const queue: Queue = { isEpilogue: false, intents: [], hooks: [] }
    return {
      env: { ...env, queue },
      cause: undefined,
      end: (cause) => {
        if (cause !== undefined) {
          discard(queue, env, cause)
          return cause
        }
        const postponed = view(queue, env.attempt)
        env.queue.intents.push(...queue.intents)
        env.queue.hooks.push(...queue.hooks)
        if (options !== undefined) {
          answer(path, env, options, postponed.map((intent) => ({ _tag: "Postponed", intent })))
        }
        return undefined
      }
    }
  }

  const outermost = (path: string, env: Env, options: Options): Opened => {
    const queue: Queue = { isEpilogue: false, intents: [], hooks: [] }
    return {
      env: { ...env, queue, boundary: path, isConcurrent: options.concurrency !== 1 },
      cause: undefined,
      end: (cause) => {
        if (cause !== undefined) {
          discard(queue, { ...env, boundary: path }, cause)
          return cause
        }
        const list = settle(queue.intents)
        list.forEach((each) => each.status = "committed")
        if (engine === "later") {
          commitsLate ||= isLate
          later.push(() => {
            const outcomes = epilogue(list, options)
            untold.push(...failuresOf(outcomes))
            return outcomes
          })
          answer(path, env, options, list.map(({ intent }) => ({ _tag: "Postponed", intent })))
          return undefined
        }
        const outcomes = epilogue(list, options)
        const failures = failuresOf(outcomes)
        if (options.form === "atomic" && failures.length > 0) {
          const skipped = outcomes.flatMap(({ _tag, intent }) => _tag === "Skipped" ? [intent] : [])
          return { _tag: "EpilogueError", value: path, failures, skipped }
        }
        answer(path, env, options, outcomes)
        return undefined
      }
    }
  }

  const answer = (path: string, env: Env, options: Options, outcomes: ReadonlyArray<Outcome>) => {
    add(
      env,
      options.form === "report"
        ? text.reports(path, outcomes)
        : text.returns(path, env.where, exitOf(path, undefined))
    )
  }

  /** The intents of a boundary that committed: one for each key, and none of an attempt that did not commit. */
  const settle = (intents: ReadonlyArray<Registered>): ReadonlyArray<Registered> => {
    const list = intents.filter(counts)
    for (const each of intents) if (!counts(each)) each.status = "discarded"
    return list.filter((each, index) => {
      if (isReplaced(list, index)) each.status = "replaced"
      return each.status !== "replaced"
    })
  }

  const discard = (queue: Queue, env: Env, cause: Cause) => {
    queue.intents.forEach((each, index) => each.status = isReplaced(queue.intents, index) ? "replaced" : "discarded")
    for (const hook of queue.hooks.toReversed()) {
      if (hook.attempt?.abandoned === true) continue
      add(env, text.undoes(hook.path, hook.where, cause))
      if (hook.ends !== "ok") failedHooks++
    }
  }

  const view = (queue: Queue, attempt: Attempt | undefined): ReadonlyArray<Intent> => {
    const list = queue.intents.filter((each) => counts(each) || each.attempt === attempt)
    return list.filter((_, index) => !isReplaced(list, index)).map(({ intent }) => intent)
  }

  const epilogue = (committed: ReadonlyArray<Registered>, options: Options): ReadonlyArray<Outcome> => {
    const list = [...committed]
    const exits = new Map<Registered, Exit>()
    let stopped = false
    for (let i = 0; i < list.length && !stopped; i++) {
      // Only what has not begun can be replaced.
      if (isReplaced(list, i)) continue
      const each = list[i]!
      const queue: Queue = { isEpilogue: true, intents: [], hooks: [] }
      const env: Env = { ...each.env, queue, attempt: undefined, isSync: each.env.isSync || each.env.isConcurrent }
      add(env, text.begins(each.path, env.where))
      const cause = run(each.body, each.path, env)
      const exit = exitOf(each.path, cause)
      if (!each.isQuiet) add(env, text.ends(each.path, exit))
      exits.set(each, exit)
      list.push(...queue.intents.filter(counts))
      stopped = cause !== undefined && options.mode === "stop"
    }
    return list.flatMap((each, index): ReadonlyArray<Outcome> => {
      const exit = exits.get(each)
      if (exit !== undefined) return [{ _tag: "Ran", intent: each.intent, exit }]
      return isReplaced(list, index) ? [] : [{ _tag: "Skipped", intent: each.intent }]
    })
  }

  const failuresOf = (outcomes: ReadonlyArray<Outcome>) =>
    outcomes.flatMap((outcome) =>
      outcome._tag === "Ran" && outcome.exit._tag === "Failure"
        ? [{ intent: outcome.intent, cause: outcome.exit.cause }]
        : []
    )

  const outside: Env = {
    queue: { isEpilogue: true, intents: [], hooks: [] },
    boundary: "",
    where: "main",
    attempt: undefined,
    isConcurrent: false,
    isSync: false
  }
  program.forEach(({ body, options }, index) => {
    const path = String(index)
    const frame = { _tag: "Boundary", isolated: false, options } as const
    const cause = within(frame, path, outside, (env) => run(body, path, env))
    add(outside, text.returns(path, outside.where, exitOf(path, cause)))
  })
  isLate = true
  const statuses = registered.flatMap(({ intent, status }) =>
    status === "committed" || status === "discarded" ? [{ ...intent, status }] : []
  )
  const ended = { events: trace.length, failedHooks }
  const outcomes: Array<Outcome> = []
  for (let next = later.shift(); next !== undefined; next = later.shift()) outcomes.push(...next())

  return {
    trace: trace.slice(0, ended.events),
    later: { trace: trace.slice(ended.events), outcomes },
    statuses,
    commitsLate,
    untold,
    failedHooks: ended.failedHooks
  }
}
