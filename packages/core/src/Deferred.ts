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
import type * as Fiber from "effect/Fiber"
import * as MutableRef from "effect/MutableRef"
import * as Ref from "effect/Ref"
import type { SqlClient } from "effect/sql/SqlClient"
import * as TxRef from "effect/TxRef"
import * as Sql from "./internal/sql.ts"
import * as Stm from "./internal/stm.ts"
import type { CommitError, Intent } from "./Outcome.ts"

/**
 * An intent as it waits in the queue: the effect, and the context it was registered in.
 *
 * @category models
 * @since 0.1.0
 */
export class Registered {
  readonly effect: Effect.Effect<unknown, unknown>
  readonly context: Context.Context<never>
  readonly name: string
  readonly payload: unknown
  readonly key: string | undefined
  readonly timeout: Duration.Duration | undefined
  /** The attempt of an `Effect.tx` that has to commit for this intent to count. */
  attempt: Stm.Attempt | undefined = undefined
  /** How many SQL transactions still have to commit before this intent may run. */
  pending = 0
  /** What to do when `pending` reaches zero after the boundary was settled. */
  late: Effect.Effect<void> | undefined = undefined

  constructor(
    effect: Effect.Effect<unknown, unknown>,
    context: Context.Context<never>,
    name: string,
    payload: unknown,
    key: string | undefined,
    timeout: Duration.Duration | undefined
  ) {
    this.effect = effect
    this.context = context
    this.name = name
    this.payload = payload
    this.key = key
    this.timeout = timeout
  }

  get intent(): Intent {
    return { name: this.name, payload: this.payload }
  }
}

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
  readonly client: SqlClient | undefined
  /** Hears of each intent that is deferred, committed or discarded. */
  readonly observe: Observe | undefined
  /** Runs the core of a boundary in a transaction of the engine's own, or of a savepoint in a savepoint of it. */
  readonly transact: Transact | undefined
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
 * Wraps the core of a boundary, and succeeds only if what the core did is committed.
 *
 * **Details**
 *
 * It is called uninterruptibly. `restore` makes what it is given interruptible again, if the caller was: the core and
 * the wait for a connection have to be.
 *
 * @category models
 * @since 0.1.0
 */
export type Transact = <A, E, R>(
  core: Effect.Effect<A, E, R>,
  restore: <A2, E2, R2>(effect: Effect.Effect<A2, E2, R2>) => Effect.Effect<A2, E2, R2>
) => Effect.Effect<A, E | CommitError, R>

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
  readonly ref: Ref.Ref<Chunk.Chunk<Registered>> = Ref.makeUnsafe(Chunk.empty())
  tail: Array<Registered> = []
  readonly hooks: Array<Hook> = []
  isOpen = true
  /** The SQL transactions whose fate the boundary shares as a whole, so that its intents need not ask for it. */
  owns: ReadonlyArray<object> = noTransactions
  private hasAttempts = false
  private open: TxRef.TxRef<boolean> | undefined = undefined
  private attempt: Stm.Attempt | undefined = undefined
  /** The last context seen to hold no transaction. Most intents of a boundary share one context. */
  private plain: Context.Context<never> | undefined = undefined

  constructor(kind: Queue["kind"], host: Host, parent: Queue | undefined) {
    this.kind = kind
    this.host = host
    this.root = parent === undefined ? this : parent.root
  }

  /** Adds an intent. An effect only where a transaction has to be asked first. */
  register(registered: Registered, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> {
    if (!this.isOpen) return ended(`intent "${registered.name}"`)
    const context = registered.context
    if (context !== this.plain) {
      const transaction = Stm.inContext(context)
      const inSql = this.kind !== "test" && Sql.isInside(context)
      if (transaction !== undefined || inSql) {
        return this.registerInTransaction(registered, transaction, inSql, fiber)
      }
      this.plain = context
    }
    this.push(registered)
    return Effect.void
  }

  private registerInTransaction(
    registered: Registered,
    transaction: Effect.Transaction["Service"] | undefined,
    inSql: boolean,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<void> {
    const add = Effect.suspend(() => {
      if (!this.isOpen) return ended(`intent "${registered.name}"`)
      this.push(registered)
      return inSql ? this.awaitCommit(registered) : Effect.void
    })
    if (transaction === undefined) return Effect.uninterruptible(add)
    return Effect.uninterruptible(Effect.flatMap(Stm.isActive(fiber), (active) => {
      if (!active) return add
      const attempt = this.root.attemptOf(transaction)
      registered.attempt = attempt
      this.hasAttempts = true
      return Effect.andThen(add, Effect.suspend(() => Stm.join(attempt, this.root.open ??= TxRef.makeUnsafe(true))))
    }))
  }

  private attemptOf(transaction: Effect.Transaction["Service"]): Stm.Attempt {
    if (this.attempt === undefined || !Stm.isSame(this.attempt, transaction)) {
      this.attempt = Stm.attemptOf(transaction)
    }
    return this.attempt
  }

  /** Ties an intent to the SQL transactions it was registered in. */
  private awaitCommit(registered: Registered): Effect.Effect<void> {
    const others = Sql.openIn(registered.context).filter(({ level }) => !this.owns.includes(level))
    registered.pending = others.length
    const committed = Effect.suspend(() =>
      --registered.pending === 0 && registered.late !== undefined ? registered.late : Effect.void
    )
    return Effect.forEach(
      others,
      (open) =>
        Effect.map(
          Sql.afterCommit(open, this.host.client, `intent "${registered.name}"`, committed),
          (waiting) => {
            if (!waiting) registered.pending--
          }
        ),
      { discard: true }
    )
  }

  private push(registered: Registered): void {
    this.host.observe?.(registered, "deferred", this)
    this.tail.push(registered)
    if (this.tail.length === tailSize) this.fold()
  }

  private fold(): void {
    MutableRef.update(this.ref.ref, Chunk.appendAll(Chunk.fromArrayUnsafe(this.tail)))
    this.tail = []
  }

  /** Adds what runs on discard. */
  registerHook(hook: Omit<Hook, "attempt">, fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<void> {
    if (!this.isOpen) return ended("a rollback hook")
    const transaction = Stm.inContext(hook.context)
    return Effect.map(Stm.isActive(fiber), (active) => {
      this.hooks.push({ ...hook, attempt: active ? { transaction: transaction!, number: transaction!.attempt } : undefined })
    })
  }

  /** Takes over what a committed savepoint holds, after what is here already. */
  absorb(savepoint: Queue): Effect.Effect<void> {
    savepoint.isOpen = false
    const registered = savepoint.takeAll()
    const first = registered[0]
    if (!this.isOpen) {
      if (first !== undefined) return ended(`intent "${first.name}" of a savepoint`)
      if (savepoint.hooks.length > 0) return ended("a rollback hook of a savepoint")
    }
    this.hasAttempts ||= savepoint.hasAttempts
    for (const hook of savepoint.hooks) this.hooks.push(hook)
    if (registered.length < tailSize) {
      for (let i = 0; i < registered.length; i++) this.tail.push(registered[i]!)
      if (this.tail.length >= tailSize) this.fold()
    } else {
      this.fold()
      MutableRef.update(this.ref.ref, Chunk.appendAll(Chunk.fromArrayUnsafe(registered)))
    }
    return Effect.void
  }

  /** Ends the boundary: from here on, registering is a defect, also for transactions that are still under way. */
  end(): Effect.Effect<void> | undefined {
    this.isOpen = false
    return this.open === undefined ? undefined : Stm.end(this.open)
  }

  private takeAll(): ReadonlyArray<Registered> {
    const chunk = Ref.getUnsafe(this.ref)
    if (Chunk.isEmpty(chunk)) {
      const tail = this.tail
      this.tail = []
      return tail
    }
    this.fold()
    return Chunk.toReadonlyArray(MutableRef.getAndSet(this.ref.ref, Chunk.empty()))
  }

  /**
   * Takes the intents that count. Of a transaction that has not committed yet, they stay: whether they count is known
   * when the queue ends.
   */
  take(): ReadonlyArray<Registered> {
    const registered = this.takeAll()
    if (!this.hasAttempts) return registered
    const undecided = registered.filter((each) => !Stm.counts(each.attempt))
    if (this.isOpen) this.tail = undecided
    else this.observeAll(undecided, "discarded")
    return registered.filter((each) => Stm.counts(each.attempt))
  }

  /** Ends the boundary, and drops its intents. */
  discard(): Effect.Effect<void> | undefined {
    this.observeAll(this.takeAll(), "discarded")
    return this.end()
  }

  observeAll(registered: ReadonlyArray<Registered>, status: "committed" | "discarded" | "replaced"): void {
    const { observe } = this.host
    if (observe !== undefined) registered.forEach((each) => observe(each, status, this))
  }

  /** What the queue holds now, as the registering fiber sees it: with the intents of its own open transaction. */
  view(context: Context.Context<never> = Context.empty()): ReadonlyArray<Registered> {
    const transaction = Stm.inContext(context)
    const registered = [...Ref.getUnsafe(this.ref), ...this.tail].filter(({ attempt }) =>
      Stm.counts(attempt) || (transaction !== undefined && Stm.isSame(attempt!, transaction))
    )
    const last = lastByKey(registered)
    return registered.filter((each) => isLast(last, each))
  }

  /** The hooks to run on discard, the last registered first; those of a transaction's abandoned attempts are gone. */
  takeHooks(): ReadonlyArray<Hook> {
    return this.hooks.filter(({ attempt }) => attempt === undefined || attempt.transaction.attempt === attempt.number)
      .reverse()
  }
}

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
      `Epilogue: ${what} was registered into a boundary that has already ended. The fiber that registered it outlived `
        + `the boundary: await that fiber inside the boundary, or give it a boundary of its own with \`Epilogue.atomic\`.`
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
