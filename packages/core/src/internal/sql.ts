/**
 * The SQL transactions that are open in a context, and how to wait for their outermost `COMMIT`.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { hasProperty } from "effect/Predicate"
import type { Reactivity } from "effect/reactivity/Reactivity"
import type * as SqlClient from "effect/sql/SqlClient"

type Level = SqlClient.TransactionConnection.Service
type Key = SqlClient.SqlClient["transactionService"]

/** A transaction or savepoint: the service it is kept under, and its connection and depth. */
export interface Open {
  readonly key: Key
  readonly level: Level
}

// Effect has no public name for these, and importing `effect/sql` would put all of it into every bundle. A canary test
// notices when one of them moves.
const currentTransaction = Context.Reference<Key | undefined>("effect/sql/CurrentTransactionService", {
  defaultValue: () => undefined
})
const clientKey = Context.Service<SqlClient.SqlClient>("effect/sql/SqlClient")
const clientModule = "effect/sql/SqlClient"

/**
 * Where the innermost transaction is kept, if there is one: one that the client has started, or one that somebody has
 * provided by hand for a client in the context. Two look-ups, for the way that most registrations take.
 */
const innermost = (context: Context.Context<never>): Key | undefined => {
  const current = Context.getOrUndefined(context, currentTransaction)
  if (current !== undefined) return current
  const key = Context.getOrUndefined(context, clientKey)?.transactionService
  return key !== undefined && Context.getOrUndefined(context, key) !== undefined ? key : undefined
}

/** Whether a transaction is, or was, open in this context. */
export const isInside = (context: Context.Context<never>): boolean => innermost(context) !== undefined

const keysIn = (context: Context.Context<never>): Array<string> => {
  const key = innermost(context)?.key
  return key === undefined
    ? []
    : Array.from(context.mapUnsafe).flatMap(([each, service]) => each === key || isLevel(service) ? [each] : [])
}

/** Most drivers keep their transactions under a key with a common prefix, some under one of their own. */
const isLevel = (service: unknown): boolean =>
  Array.isArray(service) && service.length === 2 && typeof service[1] === "number"
  && hasProperty(service[0], "executeUnprepared")

/** Every transaction in this context: one for each client that has one open. */
export const openIn = (context: Context.Context<never>): ReadonlyArray<Open> =>
  keysIn(context).flatMap((name) => {
    const key: Key = Context.Service(name)
    const level = Context.getOrUndefined(context, key)
    return level === undefined ? [] : [{ key, level }]
  })

const omit = (context: Context.Context<never>, keys: ReadonlyArray<string>): Context.Context<never> => {
  const services = new Map(context.mapUnsafe)
  for (const key of keys) services.delete(key)
  services.delete(currentTransaction.key)
  return Context.makeUnsafe(services)
}

/** The same context with every SQL transaction gone from it. */
export const omitFrom = (context: Context.Context<never>): Context.Context<never> => {
  const keys = keysIn(context)
  return keys.length === 0 ? context : omit(context, keys)
}

/**
 * The same context, in which savepoints no longer belong to a transaction that is already open: what waits for one runs
 * when the savepoint is released. `SqlClient.afterCommit` knows a level by its identity, so a copy has no parent.
 */
export const detach = (context: Context.Context<never>): Context.Context<never> =>
  openIn(context).reduce(
    (services, { key, level }) => Context.add(services, key, [level[0], level[1]]),
    context
  )

/**
 * Runs `callback` once the outermost transaction around `open` commits, and never if it does not. Answers `false` where
 * that transaction has already ended, so that there is nothing to wait for, and dies where it can't be waited for.
 */
export const afterCommit = Effect.fnUntraced(function*(
  open: Open,
  client: SqlClient.SqlClient | undefined,
  who: string,
  callback: Effect.Effect<void>
) {
  let ran = false
  let registered = false
  const register = yield* afterCommitOf(open.key, client, who)
  const exit = yield* Effect.exit(Effect.setContext(
    register(Effect.suspend(() => {
      ran = true
      return registered ? callback : Effect.void
    })),
    Context.make(open.key, open.level)
  ))
  registered = true
  if (Exit.isSuccess(exit) && !ran) return true
  // Depth 0 is the outermost transaction: it has ended as a whole. Of a savepoint that has ended nobody knows whether
  // the transaction around it is still open.
  if (Exit.isFailure(exit) && open.level[1] === 0) return false
  return yield* unknowable(
    who,
    ran
      ? "it was not started by `SqlClient.withTransaction`. Start it that way, or open the boundary around it"
      : "a fiber outlived its savepoint. Await the fiber inside the savepoint"
  )
})

const unknowable = (who: string, why: string, cause?: unknown): Effect.Effect<never> =>
  Effect.die(
    new Error(`Epilogue: ${who} is in a SQL transaction whose fate cannot be known: ${why}.`, {
      cause
    })
  )

/** The same context without the transactions that a fiber outlived. Those that are open stay. */
export const omitEnded = (
  context: Context.Context<never>,
  client: SqlClient.SqlClient | undefined
): Effect.Effect<Context.Context<never>> =>
  Effect.map(
    Effect.filter(openIn(context), (open) =>
      Effect.map(afterCommit(open, client, "a boundary", Effect.void), (isOpen) => !isOpen)),
    (ended) =>
      ended.length === 0 ? context : omit(context, ended.map(({ key }) => key.key))
  )

const afterCommitOf = (
  key: Key,
  client: SqlClient.SqlClient | undefined,
  who: string
): Effect.Effect<SqlClient.SqlClient["afterCommit"]> =>
  Effect.withFiber((fiber) => {
    const known = [client, Context.getOrUndefined(fiber.context, clientKey)]
      .find((candidate) => candidate?.transactionService.key === key.key)
    return known === undefined
      ? clientOver(key, who)
      : Effect.succeed(known.afterCommit)
  })

/**
 * The application keeps its client inside its repositories. All that `afterCommit` needs of a client is the service its
 * transactions are kept under, and that is known. A transaction is open, so the module is loaded already; its name is a
 * variable so that no bundler pulls it into programs that use no SQL.
 */
const clientOver = (key: Key, who: string): Effect.Effect<SqlClient.SqlClient["afterCommit"]> =>
  Effect.tryPromise((): Promise<typeof SqlClient> => import(/* @vite-ignore */ /* webpackIgnore: true */ clientModule))
    .pipe(
      Effect.catch((cause) =>
        unknowable(who, "its client is not in the context. Provide `SqlClient`, or use `SqlEpilogue.layer`", cause)
      ),
      Effect.flatMap((module) =>
        module.make({
          transactionService: key,
          driver: "epilogue",
          spanAttributes: [],
          acquirer: Effect.never,
          // It never runs a statement.
          compiler: undefined as never
        })
      ),
      Effect.provideContext(Context.makeUnsafe<Reactivity>(new Map([["effect/reactivity/Reactivity", {}]]))),
      Effect.map((client) => client.afterCommit)
    )
