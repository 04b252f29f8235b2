/**
 * The queue of intents of an open boundary: what registers, and what of it counts in the end.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as MutableRef from "effect/MutableRef"
import * as Ref from "effect/Ref"
import type { SqlClient } from "effect/sql/SqlClient"
import * as TxRef from "effect/TxRef"
import type { Appended, Definition, Envelope } from "./Envelope.ts"
import * as Sql from "./internal/sql.ts"
import * as Stm from "./internal/stm.ts"
import type { CommitError, Intent } from "./Outcome.ts"

/**
 * What an intent can be told when it is deferred.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeferOptions {
  /** What reports, errors, logs and spans call the intent. Defaults to the function's name, or `"anonymous"`. */
  readonly name?: string | undefined
  /** What reports show of its data. Defaults to the arguments of the deferred function, or `undefined`. */
  readonly payload?: unknown
  /** Keeps one intent for each key in a boundary: the last one registered counts, and takes the later place. */
  readonly key?: string | undefined
  /** After this long, the intent is interrupted and has failed with a `Cause.TimeoutError`. Defaults to no limit. */
  readonly timeout?: Duration.Input | undefined
}

/**
 * An intent as it waits in the queue: the effect, and the context it was registered in.
 *
 * @category models
 * @since 0.1.0
 */
export class Registered {
  readonly effect: Effect.Effect<unknown, unknown>
  readonly context: Context.Context<never>
  readonly options: DeferOptions
  /** What a store gets of it, if it is a typed one. */
  readonly envelope: Envelope | undefined
  /** What the store answered. */
  appended: Appended | undefined = undefined
  /** The transactions that it depends on; most intents depend on none. */
  fate: Fate | undefined = undefined

  constructor(
    effect: Effect.Effect<unknown, unknown>,
    context: Context.Context<never>,
    options: DeferOptions,
    envelope?: Envelope
  ) {
    this.effect = effect
    this.context = context
    this.options = options
    this.envelope = envelope
  }

  get name(): string {
    return this.options.name ?? "anonymous"
  }

  get key(): string | undefined {
    return this.options.key
  }

  get intent(): Intent {
    return { name: this.name, payload: this.options.payload }
  }

  /** Whether the attempt of the `Effect.tx` that registered it has committed, if one did. */
  get counts(): boolean {
    return this.fate?.attempt === undefined || this.fate.attempt.committed.value
  }

  /** Whether a SQL transaction that it was registered in has not committed, or not yet. */
  get isPending(): boolean {
    return this.fate !== undefined && this.fate.pending > 0
  }
}

/** The transactions that an intent depends on. */
export interface Fate {
  /** The attempt of an `Effect.tx` that has to commit for the intent to count. */
  readonly attempt: Stm.Attempt | undefined
  /** How many SQL transactions still have to commit before it may run. */
  pending: number
  /** The mark of the savepoint that it was registered in, which is gone if that rolls back. */
  mark: string | undefined
  /** What to do when the last of them commits after the boundary was settled. */
  late: Effect.Effect<void> | undefined
}

/** The fate of an intent that is registered in what its boundary owns. */
const sharedFate: Fate = { attempt: undefined, pending: 0, mark: undefined, late: undefined }

/** What runs when a boundary is discarded. */
export interface Hook {
  readonly run: (cause: Cause.Cause<unknown>) => Effect.Effect<unknown, unknown>
  readonly context: Context.Context<never>
  readonly attempt: { readonly transaction: Effect.Transaction["Service"]; readonly number: number } | undefined
}

/**
 * What a queue needs to know of the engine whose boundary it belongs to.
 *
 * @category models
 * @since 0.1.0
 */
export interface Host {
  /** The client whose transactions the engine opens, to be found where the application hides it. */
  readonly client?: SqlClient | undefined
  /** Hears of each intent that is deferred, committed or discarded. */
  readonly observe?: Observe | undefined
  /** Runs the core of a boundary in a transaction of the engine's own, or of a savepoint in a savepoint of it. */
  readonly transact?: Transact | undefined
  /** What it does with typed intents. Without it, they are refused where they are deferred. */
  readonly typed?: Typed | undefined
  /** Runs an intent whose SQL transaction committed after its boundary had been settled. */
  readonly late: (registered: Registered) => Effect.Effect<void>
}

/**
 * Told that an intent was registered into `queue`, committed, was discarded, or was replaced by a later one with its
 * `key`.
 *
 * @category models
 * @since 0.1.0
 */
export type Observe = (
  registered: Registered,
  status: "deferred" | "committed" | "discarded" | "replaced",
  queue: Queue
) => void

/**
 * Wraps the core of a boundary, and succeeds if, and only if, what the core did is committed.
 *
 * **Details**
 *
 * It is called uninterruptibly. `restore` makes what it is given interruptible again, if the caller was: the core and
 * the wait for a connection have to be. Once the core has succeeded, `isAwaited` says whether an intent or a hook waits
 * to learn of the commit. Without it, something does.
 *
 * @category models
 * @since 0.1.0
 */
export type Transact = <A, E, R>(
  core: Effect.Effect<A, E, R>,
  restore: <A2, E2, R2>(effect: Effect.Effect<A2, E2, R2>) => Effect.Effect<A2, E2, R2>,
  isAwaited?: () => boolean
) => Effect.Effect<A, E | CommitError, R>

/**
 * What an engine does with typed intents. Without it, they are refused where they are deferred.
 *
 * @category models
 * @since 0.1.0
 */
export interface Typed {
  /** Why this intent is refused, or `undefined`. Called where it is deferred. */
  readonly refuse: (envelope: Envelope, definition: Definition) => string | undefined
  /** What reports show of its payload. Defaults to the payload as it was given. */
  readonly show?: ((envelope: Envelope, definition: Definition) => Exit.Exit<unknown, unknown>) | undefined
  /** What it does in its epilogue, if it was not stored before. */
  readonly perform: (registered: Registered) => Effect.Effect<unknown, unknown>
  /** Hears of one that is registered in SQL transactions that the boundary does not own. */
  readonly mark?:
    | ((registered: Registered, fate: Fate, others: ReadonlyArray<Sql.Open>) => Effect.Effect<void> | undefined)
    | undefined
  /**
   * Stores those that count in the transaction of the boundary, just before its end. `around` has the transactions that
   * the boundary is in.
   */
  readonly seal?:
    | ((
      registered: ReadonlyArray<Registered>,
      around: ReadonlyArray<Sql.Open>
    ) => Effect.Effect<void, CommitError>)
    | undefined
}

const noTransactions: ReadonlyArray<object> = []

/** How many intents are collected in an array before they are folded into the `Chunk`. */
const tailSize = 1024

/**
 * The queue behind `Deferred`.
 *
 * - `boundary`: the core of `atomic` or `savepoint` is running.
 * - `epilogue`: an epilogue is running; what its intents register joins its end.
 * - `test`: the queue of `TestEpilogue`, for code that runs without a boundary.
 */
export class Queue {
  readonly kind: "boundary" | "epilogue" | "test"
  readonly host: Host
  /** The queue that a transaction's registrations are undone with: the outermost one. */
  readonly root: Queue
  /** Made when the first thousand are folded into it: most boundaries have fewer intents. */
  private ref: Ref.Ref<Chunk.Chunk<Registered>> | undefined = undefined
  tail: Array<Registered> = []
  private hooks: Array<Hook> | undefined = undefined
  isOpen = true
  /** The SQL transactions whose fate the boundary shares as a whole, so that its intents need not ask for it. */
  owns: ReadonlyArray<object>
  // Known as they register, so that nobody has to go through a million intents to find none.
  hasKeys = false
  hasFates = false
  hasSpans = false
  private open: TxRef.TxRef<boolean> | undefined = undefined
  private attempt: Stm.Attempt | undefined = undefined
  // Most intents of a boundary share one context.
  /** The last context seen to hold no transaction. */
  private plain: Context.Context<never> | undefined = undefined
  /** The last context seen to hold no transaction but what the boundary owns. */
  private owned: Context.Context<never> | undefined = undefined

  constructor(kind: Queue["kind"], host: Host, parent: Queue | undefined) {
    this.kind = kind
    this.host = host
    this.root = parent === undefined ? this : parent.root
    // A savepoint's own level is not among them: a transaction between it and the boundary may still roll back.
    this.owns = parent === undefined ? noTransactions : parent.owns
  }

  /** Adds an intent. */
  register(registered: Registered, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> {
    if (!this.isOpen) return ended(`intent "${registered.name}"`)
    const { context } = registered
    if (context === this.owned) {
      registered.fate = sharedFate
    } else if (context !== this.plain) {
      const inSql = this.kind !== "test" && Sql.isInside(context)
      this.hasSpans ||= isTraced(fiber, inSql)
      if (inSql || Stm.inContext(context) !== undefined) return this.registerInTransaction(registered, inSql, fiber)
      this.plain = context
    }
    this.push(registered)
    return Effect.void
  }

  private registerInTransaction(
    registered: Registered,
    inSql: boolean,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<void> {
    return Effect.uninterruptible(Effect.flatMap(Stm.isActive(fiber), (isActive) => {
      // It may have ended meanwhile.
      if (!this.isOpen) return ended(`intent "${registered.name}"`)
      const attempt = isActive ? this.root.attemptOf(Stm.inContext(registered.context)!) : undefined
      const fate: Fate = { attempt, pending: 0, mark: undefined, late: undefined }
      registered.fate = fate
      this.hasFates = true
      this.push(registered)
      const awaited = inSql ? this.awaitCommit(registered, fate) : Effect.void
      if (Stm.inContext(registered.context) === undefined && fate.pending === 0) this.owned = registered.context
      if (attempt === undefined) return awaited
      return Effect.andThen(awaited, Stm.join(attempt, this.root.open ??= TxRef.makeUnsafe(true)))
    }))
  }

  private attemptOf(transaction: Effect.Transaction["Service"]): Stm.Attempt {
    if (this.attempt === undefined || !Stm.isSame(this.attempt, transaction)) {
      this.attempt = Stm.attemptOf(transaction)
    }
    return this.attempt
  }

  /** Ties an intent to the SQL transactions it was registered in. */
  private awaitCommit(registered: Registered, fate: Fate): Effect.Effect<void> {
    const others = Sql.openIn(registered.context).filter(({ level }) => !this.owns.includes(level))
    fate.pending = others.length
    const committed = Effect.suspend(() => --fate.pending === 0 && fate.late !== undefined ? fate.late : Effect.void)
    const awaited = Effect.forEach(
      others,
      (open) =>
        Effect.map(
          Sql.afterCommit(open, this.host.client, `intent "${registered.name}"`, committed),
          (isWaiting) => {
            if (!isWaiting) fate.pending--
          }
        ),
      { discard: true }
    )
    const marked = registered.envelope && this.host.typed?.mark?.(registered, fate, others)
    return marked === undefined ? awaited : Effect.andThen(marked, awaited)
  }

  private push(registered: Registered): void {
    this.observe(registered, "deferred")
    this.hasKeys ||= registered.key !== undefined
    this.tail.push(registered)
    if (this.tail.length === tailSize) this.fold()
  }

  private fold(registered: ReadonlyArray<Registered> = []): void {
    this.ref ??= Ref.makeUnsafe(Chunk.empty())
    const folded = Chunk.appendAll(Ref.getUnsafe(this.ref), Chunk.fromArrayUnsafe(this.tail))
    MutableRef.set(this.ref.ref, Chunk.appendAll(folded, Chunk.fromArrayUnsafe(registered)))
    this.tail = []
  }

  /** Adds what runs on discard. */
  registerHook(hook: Omit<Hook, "attempt">, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> {
    return Effect.flatMap(Stm.isActive(fiber), (isActive) => {
      if (!this.isOpen) return ended("a rollback hook")
      const transaction = isActive ? Stm.inContext(hook.context) : undefined
      const attempt = transaction && { transaction, number: transaction.attempt }
      this.hooks ??= []
      this.hooks.push({ ...hook, attempt })
      return Effect.void
    })
  }

  get hasHooks(): boolean {
    return this.hooks !== undefined
  }

  /** Takes over what a committed savepoint holds, after what is here already. */
  absorb(savepoint: Queue): Effect.Effect<void> {
    savepoint.isOpen = false
    const registered = savepoint.takeAll()
    const first = registered[0]
    if (!this.isOpen && (first !== undefined || savepoint.hasHooks)) {
      return ended(first === undefined ? "a rollback hook" : `intent "${first.name}"`)
    }
    this.hasKeys ||= savepoint.hasKeys
    this.hasFates ||= savepoint.hasFates
    this.hasSpans ||= savepoint.hasSpans
    for (const hook of savepoint.hooks ?? []) (this.hooks ??= []).push(hook)
    if (registered.length < tailSize) {
      for (let i = 0; i < registered.length; i++) this.tail.push(registered[i]!)
      if (this.tail.length >= tailSize) this.fold()
    } else {
      this.fold(registered)
    }
    return Effect.void
  }

  /** Ends the boundary: from here on, registering is a defect, also for transactions that are still under way. */
  end(): Effect.Effect<void> | undefined {
    this.isOpen = false
    return this.open === undefined ? undefined : Stm.end(this.open)
  }

  private takeAll(): ReadonlyArray<Registered> {
    if (this.ref !== undefined) this.fold()
    const registered = this.ref === undefined ? this.tail : Chunk.toReadonlyArray(Ref.getUnsafe(this.ref))
    this.ref = undefined
    this.tail = []
    return registered
  }

  /**
   * Takes the intents that count. Of a transaction that has not committed yet, they stay: whether they count is known
   * when the queue ends.
   */
  take(): ReadonlyArray<Registered> {
    const registered = this.takeAll()
    if (!this.hasFates) return registered
    const undecided = registered.filter((each) => !each.counts)
    if (this.isOpen) this.tail = undecided
    else undecided.forEach((each) => this.observe(each, "discarded"))
    return registered.filter((each) => each.counts)
  }

  /** Ends the boundary, and drops its intents. */
  discard(): Effect.Effect<void> | undefined {
    const registered = this.takeAll()
    if (this.host.observe !== undefined) {
      const last = lastByKey(registered)
      registered.forEach((each) => this.observe(each, isLast(last, each) ? "discarded" : "replaced"))
    }
    return this.end()
  }

  observe(registered: Registered, status: Parameters<Observe>[1]): void {
    this.host.observe?.(registered, status, this)
  }

  /** What the queue holds now, as the registering fiber sees it: with the intents of its own open transaction. */
  view(context: Context.Context<never>): ReadonlyArray<Registered> {
    const transaction = Stm.inContext(context)
    const registered = [...(this.ref === undefined ? [] : Ref.getUnsafe(this.ref)), ...this.tail].filter((
      { counts, fate }
    ) => counts || (transaction !== undefined && fate?.attempt !== undefined && Stm.isSame(fate.attempt, transaction)))
    const last = lastByKey(registered)
    return registered.filter((each) => isLast(last, each))
  }

  /** The hooks to run on discard, the last registered first; those of a transaction's abandoned attempts are gone. */
  takeHooks(): ReadonlyArray<Hook> {
    return (this.hooks ?? []).filter(({ attempt }) =>
      attempt === undefined || attempt.transaction.attempt === attempt.number
    )
      .toReversed()
  }
}

/**
 * Whether anybody wants to see spans here: there is a tracer, or a span that the application has made. The client makes
 * one for each SQL transaction, also where nobody looks.
 */
export const isTraced = ({ cache: { span, tracer } }: Fiber.Fiber<unknown, unknown>, inSql: boolean): boolean =>
  tracer !== undefined
  || (span !== undefined
    && !(inSql && span._tag === "Span" && span.name === "sql.transaction" && span.parent._tag === "None"))

/** For each key, the last intent registered under it. It is the one that counts. */
export const lastByKey = (registered: Iterable<Registered>): Map<string, Registered> => {
  const last = new Map<string, Registered>()
  for (const each of registered) if (each.key !== undefined) last.set(each.key, each)
  return last
}

export const isLast = (last: ReadonlyMap<string, Registered>, registered: Registered): boolean =>
  registered.key === undefined || last.get(registered.key) === registered

const ended = (what: string): Effect.Effect<never> =>
  Effect.die(
    new Error(
      `Epilogue: ${what} was registered into a boundary that has already ended, by a fiber that outlived it. Await the `
        + `fiber inside the boundary, or give it an \`Epilogue.atomic\` of its own.`
    )
  )

/**
 * The open boundary: a queue of intents. `Epilogue.atomic` provides it; nobody else does.
 *
 * **When to use**
 *
 * It is in the requirements of every effect that defers. If the compiler says that `Deferred` is not assignable to
 * `never`, an `Epilogue.atomic` is missing around the effect: the boundary after which its intents are to run.
 *
 * @category services
 * @since 0.1.0
 */
export class Deferred extends Context.Service<Deferred, Queue>()("@epilogue/core/Deferred") {}
