/**
 * The answer to `--check`, when something is promised that was not measured.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"

export class ClaimsError extends Data.TaggedError("ClaimsError")<{ readonly missed: ReadonlyArray<string> }> {
  override get message(): string {
    return `Not reached: ${this.missed.join("; ")}`
  }
}

/** Fails if there are claims that were not reached. */
export const check = (missed: ReadonlyArray<{ readonly text: string }>): Effect.Effect<void, ClaimsError> =>
  missed.length === 0 ? Effect.void : Effect.fail(new ClaimsError({ missed: missed.map(({ text }) => text) }))
