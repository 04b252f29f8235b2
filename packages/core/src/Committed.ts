/**
 * The epilogue of a committed boundary: its intents, run in order.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { constVoid, identity } from "effect/Function"
import * as Tracer from "effect/Tracer"
import { Deferred, type Host, isLast, isTraced, lastByKey, Queue, type Registered } from "./Deferred.ts"
import * as Sql from "./internal/sql.ts"
import { timeoutDetached } from "./internal/timeout.ts"
import * as Metrics from "./Metrics.ts"
import type { Failure, Intent, Outcome } from "./Outcome.ts"

/**
 * How the intents of one epilogue run.
 *
 * @category models
 * @since 0.1.0
 */
export interface RunOptions {
  /** `"continue"` (the default) runs the intents after a failing one, `"stop"` skips them. */
  readonly mode?: "continue" | "stop" | undefined
  /** How many intents of one epilogue run at once; they begin in order. Defaults to 1. */
  readonly concurrency?: number | "unbounded" | undefined
  /** Names the boundary in spans. */
  readonly name?: string | undefined
}

type Around = <A, E, R>(intent: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/**
 * A committed boundary, as an engine gets it. Engines decide when and in which fiber it runs.
 *
 * @category models
 * @since 0.1.0
 */
export class Committed {
  private readonly options: RunOptions
  private readonly keepsValues: boolean
  private readonly hasFates: boolean
  private readonly hasSpans: boolean
  private readonly queue: Queue
  private list: Array<Registered>
  private readonly exits: Array<Exit.Exit<unknown, unknown> | undefined> = []
  private last: Map<string, Registered> | undefined
  private next = 0
  private state: "waiting" | "running" | "ended" = "waiting"
  private ran = 0
  private failed = 0
  private told = 0
  private span: Tracer.Span | undefined = undefined

  /** With `keepsValues`, outcomes have what the intents returned; without, they only say that they succeeded. */
  constructor(
    registered: ReadonlyArray<Registered>,
    traits: Pick<Queue, "hasKeys" | "hasFates" | "hasSpans">,
    host: Host,
    options: RunOptions,
    keepsValues: boolean
  ) {
    // The queue it comes from has let go of it.
    this.list = registered as Array<Registered>
    this.queue = new Queue("epilogue", host, undefined)
    this.options = options
    this.keepsValues = keepsValues
    this.hasFates = traits.hasFates
    this.hasSpans = traits.hasSpans
    this.last = traits.hasKeys ? lastByKey(registered) : undefined
  }

  get isEmpty(): boolean {
    return this.list.length === 0
  }

  get hasBegun(): boolean {
    return this.state !== "waiting"
  }

  /** Whether an intent has failed so far. */
  get hasFailures(): boolean {
    return this.failed > 0
  }

  /** What has become of each intent so far. Those that have not ended yet are `Postponed`. */
  get outcomes(): ReadonlyArray<Outcome> {
    const outcomes: Array<Outcome> = []
    this.list.forEach((registered, index) => {
      const exit = this.exits[index]
      const { intent } = registered
      const { appended } = registered
      if (appended !== undefined) {
        const { duplicate, id } = appended
        outcomes.push({ _tag: "Enqueued", intent, id, ...(duplicate && { duplicate }) })
      } else if (exit === running) outcomes.push({ _tag: "Postponed", intent })
      else if (exit !== undefined) outcomes.push({ _tag: "Ran", intent, exit })
      else if (!this.isReplaced(registered)) {
        outcomes.push({ _tag: this.state === "ended" ? "Skipped" : "Postponed", intent })
      }
    })
    return outcomes
  }

  get failures(): ReadonlyArray<Failure> {
    return this.outcomes.flatMap((outcome) =>
      outcome._tag === "Ran" && Exit.isFailure(outcome.exit)
        ? [{ intent: outcome.intent, cause: outcome.exit.cause }]
        : []
    )
  }

  get skipped(): ReadonlyArray<Intent> {
    return this.outcomes.flatMap((outcome) => outcome._tag === "Skipped" ? [outcome.intent] : [])
  }

  /** The failures that nobody has been told of yet. The next call leaves them out. */
  takeUntold(): ReadonlyArray<Failure> {
    const untold = this.failures.slice(this.told)
    this.told += untold.length
    return untold
  }

  /** What was registered, in order. */
  get registered(): ReadonlyArray<Registered> {
    return this.list
  }

  /** Runs the intents, in order, each once, however often it is called. It never fails, and is to run uninterruptibly. */
  get run(): Effect.Effect<void> {
    return this.runWith(identity)
  }

  /** Like `run`, with something around each intent. */
  runWith(around: Around): Effect.Effect<void> {
    return Effect.withFiber<void>((fiber) => {
      if (this.state !== "waiting") return Effect.void
      this.state = "running"
      if (!this.hasSpans && !isTraced(fiber, false)) return this.loop(fiber, around)
      const { name } = this.options
      return Effect.useSpan(
        name === undefined ? "epilogue" : `epilogue ${name}`,
        { attributes: { "epilogue.intents": this.list.length } },
        (span) => {
          this.span = span
          return this.loop(fiber, around)
        }
      )
    })
  }

  /** Lets no further intent begin. Those that have not begun are skipped. */
  stop(): void {
    this.state = "ended"
  }

  /**
   * Drops the intents whose SQL transaction rolled back. One whose transaction is still under way in another fiber runs
   * when that commits.
   */
  settle(): void {
    if (this.hasFates) {
      this.list = this.list.filter((registered) => !registered.isPending || this.postpone(registered))
      this.last &&= lastByKey(this.list)
    }
    this.observe()
  }

  private observe(): void {
    if (this.queue.host.observe === undefined) return
    this.list.forEach((registered, index) => {
      const isReplaced = this.exits[index] === undefined && this.isReplaced(registered)
      this.queue.observe(registered, isReplaced ? "replaced" : "committed")
    })
  }

  /** The transactions around the boundary did not commit after all. */
  discard(): void {
    this.stop()
    this.list.forEach((registered) =>
      this.queue.observe(registered, this.isReplaced(registered) ? "replaced" : "discarded")
    )
  }

  private postpone(registered: Registered): false {
    this.queue.observe(registered, "discarded")
    registered.fate!.late = Effect.suspend(() => this.queue.host.late(registered))
    return false
  }

  private loop(fiber: Fiber.Fiber<unknown, unknown>, around: Around): Effect.Effect<void> {
    const { concurrency = 1 } = this.options
    const { context } = fiber
    const all = concurrency === 1 ? this.sequential(fiber, around) : this.concurrent(around, concurrency)
    return Effect.flatMap(all, () => {
      fiber.setContext(context)
      // What transactions have committed until here counts; the others conflict with the end of the queue.
      const ended = this.queue.end()
      if (ended !== undefined) {
        return Effect.flatMap(ended, () => this.pull() ? this.loop(fiber, around) : this.end(context))
      }
      return this.end(context)
    })
  }

  private sequential(fiber: Fiber.Fiber<unknown, unknown>, around: Around): Effect.Effect<void> {
    let from: Context.Context<never> | undefined
    let context = fiber.context
    let intent: Registered | undefined
    const fail = (cause: Cause.Cause<unknown>): Effect.Effect<void> => {
      this.record(this.next - 1, Exit.failCause(cause))
      return Effect.void
    }
    return Effect.whileLoop<unknown, never, never>({
      while: () => (intent = this.take()) !== undefined,
      body: () => {
        // Most intents of a boundary share a context, so it is changed once for each run of equal ones.
        if (from !== intent!.context) {
          from = intent!.context
          context = this.contextOf(intent!)
        }
        if (fiber.context !== context) fiber.setContext(context)
        return Effect.catchCause(around(this.effectOf(intent!)), fail)
      },
      step: (value) => {
        const index = this.next - 1
        // What a million intents returned is kept only for those who want to see it.
        if (this.exits[index] === running) this.record(index, this.keepsValues ? Exit.succeed(value) : Exit.void)
      }
    })
  }

  private concurrent(around: Around, concurrency: number | "unbounded"): Effect.Effect<void> {
    return Effect.whileLoop({
      while: () => this.next < this.list.length || this.pull(),
      body: () => {
        const first = this.next
        this.next = this.list.length
        return Effect.exit(around(Effect.forEach(
          this.list.slice(first),
          (registered, index) =>
            Effect.suspend(() => {
              this.pull()
              if (this.state === "ended" || registered.appended !== undefined || this.isReplaced(registered)) {
                return Effect.void
              }
              this.exits[first + index] = running
              return Effect.setContext(this.effectOf(registered), this.contextOf(registered)).pipe(
                Effect.exit,
                Effect.map((exit) => this.record(first + index, exit))
              )
            }),
          { concurrency, discard: true }
        )))
      },
      step: constVoid
    })
  }

  /** The next intent to begin. When there is none left, those follow that the last ones registered. */
  private take(): Registered | undefined {
    while (this.state !== "ended" && (this.next < this.list.length || this.pull())) {
      const registered = this.list[this.next++]!
      if (registered.appended !== undefined) continue
      if (registered.key !== undefined) {
        this.pull()
        if (this.isReplaced(registered)) continue
      }
      this.exits[this.next - 1] = running
      return registered
    }
    return undefined
  }

  private pull(): boolean {
    const before = this.list.length
    const registered = this.queue.take()
    for (let i = 0; i < registered.length; i++) {
      const each = registered[i]!
      if (each.isPending && !this.postpone(each)) continue
      this.list.push(each)
      if (each.key !== undefined) (this.last ??= new Map()).set(each.key, each)
    }
    return this.list.length > before
  }

  private isReplaced(registered: Registered): boolean {
    return this.last !== undefined && !isLast(this.last, registered)
  }

  private record(index: number, exit: Exit.Exit<unknown, unknown>): void {
    this.ran++
    this.exits[index] = exit
    if (Exit.isSuccess(exit)) return
    this.failed++
    if (this.options.mode === "stop") this.stop()
  }

  private effectOf(registered: Registered): Effect.Effect<unknown, unknown> {
    const { timeout } = registered.options
    const effect = timeout === undefined
      ? registered.effect
      : timeoutDetached(registered.effect, timeout, registered.name)
    if (this.span === undefined) return effect
    const from = Context.getOrUndefined(registered.context, Tracer.ParentSpan)
    return Effect.withSpan(effect, `intent ${registered.name}`, {
      parent: this.span,
      links: from === undefined ? [] : [{ span: from, attributes: {} }],
      attributes: { "epilogue.intent": registered.name },
      captureStackTrace: false
    })
  }

  private contextOf({ context, fate }: Registered): Context.Context<never> {
    // Without a fate, it was registered outside of every transaction.
    return Context.add(fate === undefined ? context : Sql.omitFrom(context), Deferred, this.queue)
  }

  private end(context: Context.Context<never>): Effect.Effect<void> {
    this.pull()
    this.observe()
    this.count(context)
    return Effect.void
  }

  private count(context: Context.Context<never>): void {
    const succeeded = this.ran - this.failed
    if (succeeded > 0) Metrics.intentsSucceeded.updateUnsafe(succeeded, context)
    if (this.failed > 0) Metrics.intentsFailed.updateUnsafe(this.failed, context)
    // All but those that were replaced, and those are few: most often, every one ran.
    const skipped = this.ran === this.list.length ? 0 : this.skipped.length
    if (skipped > 0) Metrics.intentsSkipped.updateUnsafe(skipped, context)
  }
}

/** Stands for the exit of an intent that has begun and has not ended. */
const running = Exit.interrupt()
