/**
 * Strict execution boundaries for deferred side-effects.
 *
 * An effect registers an intent with `defer` the moment it knows of it. The intents of a boundary (`atomic`) run, in
 * order, once its core effect has succeeded; if that fails, dies or is interrupted, none of them does.
 *
 * **Example** (A charge that happens only if the order was saved)
 *
 * ```ts
 * import { Epilogue } from "@epilogue/core"
 * import { Effect } from "effect"
 * import * as assert from "node:assert"
 *
 * const log: Array<string> = []
 * const charge = Effect.sync(() => log.push("charged"))
 *
 * const checkout = Effect.fn("checkout")(function*(inStock: boolean) {
 *   yield* Epilogue.defer(charge, { name: "charge" })
 *   log.push("saving the order")
 *   if (!inStock) return yield* Effect.fail("out of stock")
 * }, Epilogue.atomic)
 *
 * const program = Effect.andThen(Effect.ignore(checkout(false)), checkout(true))
 *
 * await Effect.runPromise(Effect.provide(program, Epilogue.layer))
 * assert.deepStrictEqual(log, ["saving the order", "saving the order", "charged"])
 * ```
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type BoundaryOptions, insideOut, open, openSavepoint, type Outcomes } from "./Boundary.ts"
import { type DeferOptions, Deferred, Registered } from "./Deferred.ts"
import type { Epilogue } from "./Engine.ts"
import * as Stm from "./internal/stm.ts"
import type { CommitError, EpilogueError, Intent, Report } from "./Outcome.ts"

export * from "./Background.ts"
export type { BoundaryOptions } from "./Boundary.ts"
export type { Committed, RunOptions } from "./Committed.ts"
export { type DeferOptions, Deferred, type Observe, type Registered, type Transact } from "./Deferred.ts"
export { type Engine, type EngineOptions, Epilogue, layer, layerOptions, make } from "./Engine.ts"
export { type Handled, layerWith, layerWithOptions } from "./InProcess.ts"
export {
  CommitError,
  EpilogueError,
  type Failure,
  type Intent,
  isEpilogueError,
  type Outcome,
  type Report
} from "./Outcome.ts"

type AnyFunction<Args extends ReadonlyArray<unknown>, A, E, R> = (...args: Args) => Effect.Effect<A, E, R>

/**
 * Registers an intent in the open boundary: it runs after the commit, or never.
 *
 * **Details**
 *
 * `defer(effect, options?)` takes an effect; `defer(f, ...args)` takes a function that makes one, called when the
 * intent runs. The intent runs with the services that are in scope here, outside of every SQL transaction.
 *
 * **Gotchas**
 *
 * Registering into a boundary that has ended, because this fiber outlived it, is a defect that names the intent.
 *
 * @category combinators
 * @since 0.1.0
 */
export const defer: {
  <A, E, R>(effect: Effect.Effect<A, E, R>, options?: DeferOptions): Effect.Effect<void, never, R | Deferred>
  <Args extends ReadonlyArray<unknown>, A, E, R>(
    f: (...args: Args) => Effect.Effect<A, E, R>,
    ...args: Args
  ): Effect.Effect<void, never, R | Deferred>
} = <A, E, R>(
  self: Effect.Effect<A, E, R> | AnyFunction<ReadonlyArray<unknown>, A, E, R>,
  ...rest: ReadonlyArray<unknown>
): Effect.Effect<void, never, R | Deferred> =>
  // A service key is both a function and an effect. It is an effect here.
  Effect.isEffect(self)
    ? register(self, (rest[0] ?? anonymous) as DeferOptions)
    : register(Effect.suspend(() => self(...rest)), { name: self.name || undefined, payload: rest })

/**
 * `defer` for pipes: `sendReceipt(email).pipe(Epilogue.deferWith({ name: "sendReceipt" }))`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const deferWith =
  (options: DeferOptions) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<void, never, R | Deferred> =>
    register(effect, options)

const anonymous: DeferOptions = {}

const register = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  options: DeferOptions
): Effect.Effect<void, never, R | Deferred> =>
  Effect.withFiber((fiber) => {
    const queue = Context.get(fiber.context as Context.Context<Deferred>, Deferred)
    // The context that it needs is kept beside it.
    const registered = new Registered(effect as Effect.Effect<A, E>, fiber.context, options)
    return options.timeout !== undefined && Duration.fromInput(options.timeout)._tag === "None"
      ? Effect.die(
        new Error(
          `Epilogue: the timeout of intent "${registered.name}" is no duration. Give it as `
            + `in \`timeout: "5 seconds"\`.`
        )
      )
      : queue.register(registered, fiber)
  })

/**
 * Registers what runs if the boundary is discarded: the last one registered first, with the cause if it asks for it.
 *
 * **When to use**
 *
 * Use it to take back what the core did outside of the database, such as a file it wrote.
 *
 * **Details**
 *
 * A hook of a savepoint that commits passes to the boundary around it. A hook that fails is logged; it does not keep
 * the others from running, and cannot change the cause that the caller gets. Under `SqlEpilogue.layer`, hooks run
 * after the `ROLLBACK`, with the connection released. They run outside of every SQL transaction.
 *
 * **Gotchas**
 *
 * Of a SQL transaction around the boundary that rolls back after the boundary has committed, hooks learn nothing:
 * Effect has no event for it. The hooks of a savepoint run while the transaction around it still has its connection, so
 * one that queries takes another. A hook that is registered directly in an intent never runs.
 *
 * @category combinators
 * @since 0.1.0
 */
export const deferRollback = <A, E, R>(
  self: Effect.Effect<A, E, R> | ((cause: Cause.Cause<unknown>) => Effect.Effect<A, E, R>)
): Effect.Effect<void, never, R | Deferred> =>
  Effect.withFiber((fiber) => {
    const queue = Context.get(fiber.context as Context.Context<Deferred>, Deferred)
    // The context that it needs is kept beside it.
    const run = (Effect.isEffect(self) ? () => self : self) as (cause: Cause.Cause<unknown>) => Effect.Effect<A, E>
    return queue.registerHook({ run, context: fiber.context }, fiber)
  })

/**
 * Defers inside a boundary; outside of one, runs at once.
 *
 * **When to use**
 *
 * Use it in libraries that do not know where they are called.
 *
 * **Gotchas**
 *
 * In a fiber that outlived its boundary it is a defect, as `defer` is.
 *
 * @category combinators
 * @since 0.1.0
 */
export const deferOrRun = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  options?: DeferOptions
): Effect.Effect<void, E, R> =>
  Effect.withFiber((fiber) => {
    if (Context.getOrUndefined(fiber.context, Deferred) !== undefined) {
      // It is in the context, so that it is not asked for.
      return deferWith(options ?? {})(effect) as Effect.Effect<void, never, R>
    }
    return Stm.inContext(fiber.context) === undefined
      ? Effect.asVoid(effect)
      : Effect.flatMap(
        Stm.isActive(fiber),
        (active) =>
          active ? insideOut(`Intent "${options?.name ?? "anonymous"}" would run at once`) : Effect.asVoid(effect)
      )
  })

/**
 * Opens a boundary around `core`: the intents that it registers run in order once it has succeeded, and vanish if it
 * fails, dies or is interrupted.
 *
 * **Details**
 *
 * If intents fail after the commit, the result is an `EpilogueError` that has the core's value and every failure. The
 * epilogue is not interrupted: an interruption that arrives after the commit takes effect when it is over.
 *
 * Inside another boundary, `atomic` is a savepoint: what it registered passes to that boundary if it succeeds.
 *
 * It takes one argument on purpose: `Effect.fn(body, Epilogue.atomic)` makes each call of a function a boundary.
 *
 * @category boundaries
 * @since 0.1.0
 */
export const atomic = <A, E, R>(
  core: Effect.Effect<A, E, R>
): Effect.Effect<A, E | EpilogueError<A> | CommitError, Exclude<R, Deferred> | Epilogue> => open(core, {}, undefined)

/**
 * `atomic` with options.
 *
 * @category boundaries
 * @since 0.1.0
 */
export const atomicWith = (options: BoundaryOptions): typeof atomic => (core) => open(core, options, undefined)

/**
 * Like `atomic`, but answers with a report: failures of intents are in it, and not in the error channel.
 *
 * @category boundaries
 * @since 0.1.0
 */
export const report = <A, E, R>(
  core: Effect.Effect<A, E, R>
): Effect.Effect<Report<A>, E | CommitError, Exclude<R, Deferred> | Epilogue> => reportOf(core, {})

/**
 * `report` with options.
 *
 * @category boundaries
 * @since 0.1.0
 */
export const reportWith = (options: BoundaryOptions): typeof report => (core) => reportOf(core, options)

const reportOf = <A, E, R>(core: Effect.Effect<A, E, R>, options: BoundaryOptions) =>
  Effect.suspend(() => {
    const result: Outcomes = { outcomes: [] }
    return Effect.map(
      // With somewhere to leave the outcomes, a boundary does not fail with them.
      open(core, options, result) as Effect.Effect<A, E | CommitError, Exclude<R, Deferred> | Epilogue>,
      (value): Report<A> => ({ value, outcomes: result.outcomes })
    )
  })

/**
 * A boundary inside the open one: if `self` does not succeed, its intents and hooks are gone, and nothing else is.
 *
 * **When to use**
 *
 * Use it around each attempt of a retry, each side of a race, and whatever may fail and be caught, so that only the
 * intents of what succeeded are left.
 *
 * **Details**
 *
 * Under `SqlEpilogue.layer` it is a savepoint of the SQL transaction too. That this cannot be set or released is a
 * defect.
 *
 * @category boundaries
 * @since 0.1.0
 */
export const savepoint = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Deferred> =>
  Effect.withFiber((fiber) => {
    const queue = Context.get(fiber.context as Context.Context<Deferred>, Deferred)
    return openSavepoint(queue, self) as Effect.Effect<A, E, R>
  })

/**
 * Whether intents can be deferred here.
 *
 * @category accessors
 * @since 0.1.0
 */
export const isOpen: Effect.Effect<boolean> = Effect.withFiber((fiber) =>
  Effect.succeed(Context.getOrUndefined(fiber.context, Deferred)?.isOpen === true)
)

/**
 * The intents that the open boundary holds now, in order. Those of the boundaries around it are not among them.
 *
 * @category accessors
 * @since 0.1.0
 */
export const intents: Effect.Effect<ReadonlyArray<Intent>, never, Deferred> = Effect.withFiber((fiber) =>
  Effect.succeed(
    Context.get(fiber.context as Context.Context<Deferred>, Deferred).view(fiber.context).map(({ intent }) => intent)
  )
)
