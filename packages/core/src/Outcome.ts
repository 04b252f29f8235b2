/**
 * What became of the intents of a boundary, and the errors that say so.
 *
 * @since 0.1.0
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import type * as Exit from "effect/Exit"
import { hasProperty } from "effect/Predicate"

const EpilogueErrorTypeId = "~@epilogue/core/EpilogueError"

/**
 * A deferred side-effect, as reports, errors and logs speak of it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Intent {
  /** `options.name`, else the name of the deferred function, else `"anonymous"`. */
  readonly name: string
  /** `options.payload`, else the arguments of the deferred function, else `undefined`. */
  readonly payload: unknown
}

/**
 * An intent that failed after the commit, and why.
 *
 * @category models
 * @since 0.1.0
 */
export interface Failure {
  readonly intent: Intent
  readonly cause: Cause.Cause<unknown>
}

/**
 * What became of one intent of a committed boundary.
 *
 * - `Ran`: it ran; `exit` says how it ended.
 * - `Skipped`: it never runs, because an earlier one failed in mode `"stop"` or a drain timed out.
 * - `Enqueued`: a store holds it under `id`. If it is a `duplicate`, nothing was added: `id` is that of the first one with
 *   its idempotency key.
 * - `Postponed`: it runs later: after an outer transaction commits, or in the background.
 *
 * @category models
 * @since 0.1.0
 */
export type Outcome =
  | { readonly _tag: "Ran"; readonly intent: Intent; readonly exit: Exit.Exit<unknown, unknown> }
  | { readonly _tag: "Skipped"; readonly intent: Intent }
  | { readonly _tag: "Enqueued"; readonly intent: Intent; readonly id: string; readonly duplicate?: true | undefined }
  | { readonly _tag: "Postponed"; readonly intent: Intent }

/**
 * The value of a committed core and the outcome of each intent, in the order of their registration.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report<out A> {
  readonly value: A
  readonly outcomes: ReadonlyArray<Outcome>
}

/**
 * The core committed, and then at least one intent failed.
 *
 * **Details**
 *
 * `value` is what the core returned: it is committed, whatever the intents did. `failures` has every intent that
 * failed, in order of registration; `skipped` those that never ran, which is possible in mode `"stop"` only.
 *
 * **Gotchas**
 *
 * Running the same program again would commit its core twice. Retry with
 * `Effect.retry(program, { while: (error) => !Epilogue.isEpilogueError(error) })`.
 *
 * @category errors
 * @since 0.1.0
 */
// oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- it is the type of `value`
export class EpilogueError<out A> extends Data.TaggedError("EpilogueError")<{
  readonly value: unknown
  readonly failures: NonEmptyReadonlyArray<Failure>
  readonly skipped: ReadonlyArray<Intent>
}> {
  readonly [EpilogueErrorTypeId] = EpilogueErrorTypeId
  declare readonly value: A

  override get message(): string {
    const failed = this.failures.map(({ cause, intent }) => `"${intent.name}" (${describe(cause)})`).join(", ")
    const skipped = this.skipped.map(({ name }) => `"${name}"`).join(", ")
    return `The core committed, but intents failed: ${failed}${
      skipped && `; skipped because of that: ${skipped}`
    }. Its `
      + `result is in \`value\`: do not run it again, repair what the intents were to do.`
  }
}

/**
 * Whether `u` is an `EpilogueError`: the error of a program whose core has committed.
 *
 * @category guards
 * @since 0.1.0
 */
export const isEpilogueError = (u: unknown): u is EpilogueError<unknown> => hasProperty(u, EpilogueErrorTypeId)

/**
 * An engine's own transaction did not begin or did not commit, though the core itself succeeded. No intent has run.
 *
 * **Details**
 *
 * `outcome` is `"discarded"` where the database answered that nothing was committed: running the program again is
 * safe. It is `"unknown"` where no such answer came, as when the connection broke while `COMMIT` was under way, and it
 * could not be found out: the rows may be there, so look before you run it again.
 *
 * @category errors
 * @since 0.1.0
 */
export class CommitError extends Data.TaggedError("CommitError")<{
  readonly cause: unknown
  readonly outcome: "discarded" | "unknown"
  readonly message?: string
}> {}

const describe = (cause: Cause.Cause<unknown>): string => {
  if (Cause.hasInterruptsOnly(cause)) return "interrupted"
  const error = Cause.squash(cause)
  return error instanceof Error ? error.message || error.name : String(error)
}
