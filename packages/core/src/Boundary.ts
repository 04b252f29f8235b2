/**
 * The boundary: collects the intents of a core effect, and ends in a commit or a discard.
 *
 * @since 0.1.0
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { Committed, type RunOptions } from "./Committed.ts"
import { Deferred, Queue } from "./Deferred.ts"
import { type Engine, Epilogue } from "./Engine.ts"
import * as Sql from "./internal/sql.ts"
import * as Stm from "./internal/stm.ts"
import * as Metrics from "./Metrics.ts"
import { type CommitError, EpilogueError, type Failure, type Outcome } from "./Outcome.ts"

/**
 * Options of `atomicWith` and `reportWith`.
 *
 * @category models
 * @since 0.1.0
 */
export interface BoundaryOptions extends RunOptions {
  /**
   * Makes a boundary inside another one an outermost boundary of its own: its intents run when it commits, whatever
   * becomes of the other. Defaults to `false`.
   */
  readonly isolated?: boolean | undefined
}

/** Where a boundary leaves the outcomes of its intents, for a caller who wants a report and not an error. */
export interface Outcomes {
  outcomes: ReadonlyArray<Outcome>
}

/** Opens a boundary around `core`: an outermost one, or a savepoint where one is open. */
export const open = <A, E, R>(
  core: Effect.Effect<A, E, R>,
  options: BoundaryOptions,
  report: Outcomes | undefined
): Effect.Effect<A, E | EpilogueError<A> | CommitError, Exclude<R, Deferred> | Epilogue> =>
  Effect.withFiber((fiber) => {
    // The types have asked for it; everything else that is in the context passes through.
    const context = fiber.context as Context.Context<Epilogue>
    const outer = Context.getOrUndefined(context, Deferred)
    if (outer?.kind === "boundary" && outer.isOpen && options.isolated !== true) {
      return openInside(outer, core, report)
    }
    const engine = Context.get(context, Epilogue)
    const around = (inside: Context.Context<never>) => new Boundary(engine, options, report, inside).around(core)
    const outermost = engine.transact !== undefined && Sql.isInside(context)
      // In a transaction that this fiber outlived there is nothing to set a savepoint in.
      ? Effect.flatMap(
        Sql.omitEnded(context, engine.client),
        (inside) => Effect.setContext(around(inside), inside as Context.Context<Exclude<R, Deferred>>)
      )
      : around(context)
    return Stm.inContext(context) === undefined
      ? outermost
      : Effect.flatMap(Stm.isActive(fiber), (isActive) => isActive ? insideOut("A boundary was opened") : outermost)
  })

/** The defect of work that would be done once for every attempt of a transaction. */
export const insideOut = (what: string): Effect.Effect<never> =>
  Effect.die(
    new Error(
      `Epilogue: ${what} inside \`Effect.tx\`, whose body may run again. Turn them inside out: put the \`Effect.tx\` `
        + `inside the boundary.`
    )
  )

/** Opens a savepoint: a boundary inside `outer`. */
const openInside = <A, E, R>(
  outer: Queue,
  core: Effect.Effect<A, E, R>,
  report: Outcomes | undefined
): Effect.Effect<A, E | CommitError, Exclude<R, Deferred>> => {
  const queue = new Queue("boundary", outer.host, outer)
  // Only inside the engine's own transaction is there something to set a savepoint in.
  const transact = outer.owns.length > 0 ? outer.host.transact : undefined
  const body = Effect.updateContext(
    core,
    (context: Context.Context<Exclude<R, Deferred>>) => Context.add(context, Deferred, queue) as Context.Context<R>
  )
  const end = (exit: Exit.Exit<unknown, unknown>) => {
    if (Exit.isFailure(exit)) return discard(queue, exit.cause)
    if (report === undefined) return outer.absorb(queue)
    return Effect.withFiber<void>((fiber) => {
      report.outcomes = queue.view(fiber.context).map(({ intent }) => ({ _tag: "Postponed", intent }))
      return outer.absorb(queue)
    })
  }
  return transact === undefined
    ? Effect.onExitPrimitive(body, end)
    : Effect.uninterruptibleMask((restore) => Effect.onExitPrimitive(transact(body, restore), end))
}

/** Opens a savepoint whose types have no room for a `CommitError`: that it cannot be set or released is a defect. */
export const openSavepoint = <A, E, R>(
  outer: Queue,
  core: Effect.Effect<A, E, R>
): Effect.Effect<A, E, Exclude<R, Deferred>> => {
  let hasFailed = false
  const watched = Effect.onExitPrimitive(core, (exit) => {
    hasFailed = Exit.isFailure(exit)
    return undefined
  })
  return Effect.catchCause(openInside(outer, watched, undefined), (cause) =>
    // The core's own failure, and with it a `CommitError` of the core's own, passes.
    hasFailed || Cause.hasInterruptsOnly(cause)
      ? Effect.failCause(cause as Cause.Cause<E>)
      : Effect.die(Cause.squash(cause)))
}

/** Ends a boundary without a trace, but for its rollback hooks. */
const discard = (queue: Queue, cause: Cause.Cause<unknown>): Effect.Effect<void> | undefined => {
  const ended = queue.discard()
  const hooks = queue.takeHooks()
  if (hooks.length === 0) return ended
  const run = Effect.forEach(
    hooks,
    (hook) =>
      Effect.setContext(Effect.suspend(() => hook.run(cause)), Sql.omitFrom(hook.context)).pipe(
        Effect.ignoreCause({ log: "Error", message: "A rollback hook failed; the other hooks run all the same" })
      ),
    { discard: true }
  )
  return ended === undefined ? run : Effect.andThen(ended, run)
}

/** An outermost boundary. */
class Boundary {
  private readonly engine: Engine
  private readonly options: BoundaryOptions
  private readonly report: Outcomes | undefined
  private readonly context: Context.Context<never>
  private readonly queue: Queue
  /** Set once the core has succeeded. */
  private committed: Committed | undefined = undefined
  /** How many of the SQL transactions that were open then have not committed yet. */
  private waiting = 0
  private isPostponed = false

  constructor(engine: Engine, options: BoundaryOptions, report: Outcomes | undefined, context: Context.Context<never>) {
    this.engine = engine
    this.options = options
    this.report = report
    this.context = context
    this.queue = new Queue("boundary", engine, undefined)
  }

  around<A, E, R>(
    core: Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | EpilogueError<A> | CommitError, Exclude<R, Deferred>> {
    const { transact } = this.engine
    const body = this.collect(core)
    const end = (exit: Exit.Exit<unknown, unknown>) => this.end(exit)
    const bounded = transact === undefined
      ? Effect.onExitPrimitive(body, end)
      : Effect.uninterruptibleMask((restore) =>
        Effect.onExitPrimitive(transact(body, restore, () => this.isAwaited), end)
      )
    // The value that the error carries is the one that the core returned.
    return bounded as Effect.Effect<A, E | EpilogueError<A> | CommitError, Exclude<R, Deferred>>
  }

  /** Runs the core with its queue. */
  private collect<A, E, R>(core: Effect.Effect<A, E, R>): Effect.Effect<A, E | CommitError, Exclude<R, Deferred>> {
    const { ignoresTransactions, transact } = this.engine
    const body = Effect.updateContext(core, (context: Context.Context<Exclude<R, Deferred>>) => {
      const inside = ignoresTransactions ? Sql.detach(context) : context
      if (ignoresTransactions || transact !== undefined) {
        const outside = new Set(Sql.openIn(this.context).map(({ level }) => level))
        this.queue.owns = Sql.openIn(inside).flatMap(({ level }) => outside.has(level) ? [] : [level])
      }
      return Context.add(inside, Deferred, this.queue) as Context.Context<R>
    })
    // A transaction can be waited for only as long as it is open, so this end comes before the end of that.
    return transact !== undefined || (Sql.isInside(this.context) && !ignoresTransactions)
      ? Effect.onExitPrimitive(body, (exit) => Exit.isSuccess(exit) ? this.seal() : undefined)
      : body
  }

  /** The core has succeeded: what it registered is settled, but for the SQL transactions that are open. */
  private seal(): Effect.Effect<void, CommitError> {
    return Effect.withFiber((fiber) =>
      Effect.flatMap(this.queue.end() ?? Effect.void, () => {
        const committed = this.committed = this.commit()
        if (!this.isAwaited) return Effect.void
        const awaited = Effect.forEach(Sql.openIn(fiber.context), (each) => this.awaitCommit(each), { discard: true })
        const stored = this.engine.typed?.seal?.(committed.registered, Sql.openIn(this.context))
        return stored === undefined ? awaited : Effect.andThen(stored, awaited)
      })
    )
  }

  /** Whether anything that the core has left waits to learn whether it commits. */
  private get isAwaited(): boolean {
    return this.committed?.isEmpty !== true || this.queue.hasHooks
  }

  private awaitCommit(transaction: Sql.Open): Effect.Effect<void> {
    const committed = Effect.suspend(() => --this.waiting === 0 && this.isPostponed ? this.runLater() : Effect.void)
    return Effect.map(Sql.afterCommit(transaction, this.engine.client, "a boundary", committed), (isOpen) => {
      if (isOpen) this.waiting++
    })
  }

  private runLater(): Effect.Effect<void> {
    const committed = this.committed!
    committed.settle()
    return Effect.andThen(this.engine.commit(committed), this.engine.tell(committed))
  }

  private end(exit: Exit.Exit<unknown, unknown>): Effect.Effect<void, EpilogueError<unknown>> | undefined {
    if (Exit.isFailure(exit)) {
      Metrics.boundariesDiscarded.updateUnsafe(1, this.context)
      this.committed?.discard()
      return discard(this.queue, exit.cause)
    }
    // A transaction around it that rolls back later has no event, so it counts as committed.
    Metrics.boundariesCommitted.updateUnsafe(1, this.context)
    const ended = this.committed === undefined ? this.queue.end() : undefined
    return ended === undefined
      ? this.release(exit.value)
      : Effect.flatMap(ended, () => this.release(exit.value) ?? Effect.void)
  }

  /** Lets the epilogue run, now or when the transactions around the boundary have committed. */
  private release(value: unknown): Effect.Effect<void, EpilogueError<unknown>> | undefined {
    const committed = this.committed ??= this.commit()
    if (this.waiting > 0) {
      this.isPostponed = true
      // What was stored is in a transaction that may still roll back.
      if (this.report !== undefined) {
        this.report.outcomes = committed.outcomes.map(({ intent }) => ({ _tag: "Postponed", intent }))
      }
      return undefined
    }
    committed.settle()
    if (committed.isEmpty) return undefined
    return Effect.flatMap(this.engine.commit(committed), () => {
      if (this.report !== undefined) this.report.outcomes = committed.outcomes
      return committed.hasFailures ? this.answer(value, committed) : Effect.void
    })
  }

  /** Tells the caller of failures; and the log, where an interruption waits that will keep the caller from hearing. */
  private answer(value: unknown, committed: Committed): Effect.Effect<void, EpilogueError<unknown>> {
    const { failures, skipped } = committed
    const answer = this.report === undefined
      // It is asked only where there are some.
      ? Effect.fail(new EpilogueError({ value, failures: failures as NonEmptyReadonlyArray<Failure>, skipped }))
      : Effect.void
    return Effect.flatMap(
      Effect.exit(Effect.interruptible(Effect.void)),
      (reached) => Exit.isSuccess(reached) ? answer : Effect.andThen(this.engine.tell(committed), answer)
    )
  }

  private commit(): Committed {
    // Who observes may look at the outcomes later.
    const keepsValues = this.report !== undefined || this.engine.observe !== undefined
    return new Committed(this.queue.take(), this.queue, this.engine, this.options, keepsValues)
  }
}
