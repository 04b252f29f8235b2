/**
 * Lanes of which something was taken away: their heads are to be ready, so that a claim finds them.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import * as Effect from "effect/Effect"
import type { Run } from "./connections.ts"
import type { Lane } from "./places.ts"
import type { heads as statementsOf } from "./sql/heads.ts"

/** A head that was not ready, and whether it is now. Otherwise somebody has it locked. */
export interface Head extends Lane {
  readonly isReady: boolean
}

type Statements = ReturnType<typeof statementsOf>

type HeadRow = readonly [tag: number, lane: string, isReady: boolean]

const what = "Intents could not be made ready that were behind others"

/** Makes heads ready, but for those that somebody has locked. */
export const readyHeads = (
  run: Run,
  statements: Statements,
  lanes: ReadonlyArray<Lane>
): Effect.Effect<ReadonlyArray<Head>, IntentStoreError> =>
  lanes.length === 0
    ? Effect.succeed([])
    : Effect.map(
      run(what, statements.ready, [lanes.map(({ tag }) => tag), lanes.map(({ lane }) => lane)]),
      // Rows with these columns are what the statement answers.
      (rows) =>
        (rows as unknown as ReadonlyArray<HeadRow>).map(([tag, lane, isReady]): Head => ({ tag, lane, isReady }))
    )

/** Makes the rest ready. They are waited for one by one, while nothing may be held that somebody waits for. */
export const readyLocked = (
  run: Run,
  statements: Statements,
  heads: ReadonlyArray<Head>
): Effect.Effect<void, IntentStoreError> =>
  Effect.forEach(
    heads.filter(({ isReady }) => !isReady),
    ({ lane, tag }) => run(what, statements.readyOne, [tag, lane]),
    { discard: true }
  )
