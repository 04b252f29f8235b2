/**
 * Which attempt of a software transaction (`Effect.tx`) registers, and whether it committed.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as TxRef from "effect/TxRef"

/** One attempt of one transaction. `committed` is in that attempt's journal alone, so it conflicts with nobody. */
export interface Attempt {
  readonly transaction: Effect.Transaction["Service"]
  readonly number: number
  readonly committed: TxRef.TxRef<boolean>
}

export const inContext = (context: Context.Context<never>): Effect.Transaction["Service"] | undefined =>
  Context.getOrUndefined(context, Effect.Transaction)

/**
 * Whether the transaction in the fiber's context is still under way. A fiber that outlived one still has it in its
 * context. `Effect.tx` joins a transaction that is under way and starts another one otherwise, which tells them apart.
 */
export const isActive = (fiber: Fiber.Fiber<unknown, unknown>): Effect.Effect<boolean> => {
  const transaction = inContext(fiber.context)
  return transaction === undefined
    ? Effect.succeed(false)
    : Effect.tx(Effect.withFiber((inner) => Effect.succeed(inContext(inner.context) === transaction)))
}

export const attemptOf = (transaction: Effect.Transaction["Service"]): Attempt => ({
  transaction,
  number: transaction.attempt,
  committed: TxRef.makeUnsafe(false)
})

export const isSame = (attempt: Attempt, transaction: Effect.Transaction["Service"]): boolean =>
  attempt.transaction === transaction && attempt.number === transaction.attempt

/**
 * Joins an attempt to a boundary. Reading `open` makes a transaction that outlives the boundary conflict with its end;
 * transactions that only read it do not conflict with one another.
 */
export const join = (attempt: Attempt, open: TxRef.TxRef<boolean>): Effect.Effect<void> =>
  Effect.tx(Effect.andThen(TxRef.get(open), TxRef.set(attempt.committed, true)))

export const end = (open: TxRef.TxRef<boolean>): Effect.Effect<void> => TxRef.set(open, false)
