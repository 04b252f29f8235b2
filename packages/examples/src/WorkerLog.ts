/**
 * The log of a worker: one line for each message, so that it does not drown what the demo prints.
 */
import { Cause, Logger } from "effect"

export const layer = Logger.layer([
  Logger.make(({ cause, logLevel, message }) => {
    const error = cause.reasons.length === 0 ? "" : ` (${String(Cause.squash(cause))})`
    console.log(`${logLevel}: ${String(message)}${error}`)
  })
])
