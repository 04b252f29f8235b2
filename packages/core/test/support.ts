import { assert } from "@effect/vitest"
import type { LogLevel } from "effect"
import { Cause, Effect, Exit, Logger, References } from "effect"

/** Records what happened, in order. */
export const makeLog = () => {
  const lines: Array<string> = []
  return { lines, add: (line: string) => Effect.sync(() => void lines.push(line)) }
}

/** Keeps what is logged from the console, and for the test. */
export class CapturedLogs {
  readonly entries: Array<
    { readonly level: LogLevel.LogLevel; readonly message: unknown; readonly annotations: Record<string, unknown> }
  > = []

  readonly layer = Logger.layer([
    Logger.make(({ fiber, logLevel, message }) => {
      this.entries.push({
        level: logLevel,
        message: Array.isArray(message) ? message[0] : message,
        annotations: { ...fiber.getRef(References.CurrentLogAnnotations) }
      })
    })
  ])
}

/** The defect that an effect died of. */
export const defectOf = (exit: Exit.Exit<unknown, unknown>): string => {
  assert(Exit.isFailure(exit))
  const reason = exit.cause.reasons.find(Cause.isDieReason)
  assert(reason !== undefined, `expected a defect: ${Cause.pretty(exit.cause)}`)
  return String(reason.defect)
}
