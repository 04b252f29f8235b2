/**
 * What the demo prints.
 */
import { Epilogue } from "@epilogue/core"
import { Cause, Exit, Predicate } from "effect"
import { isSqlError } from "effect/sql/SqlError"
import { stripVTControlCharacters, styleText } from "node:util"
import type { InputError } from "./Input.ts"
import { euros, type Order } from "./Order.ts"

/** One order, and all that came of it. */
export interface Taken {
  readonly line: number
  readonly order: Order
  readonly exit: Exit.Exit<Epilogue.Report<{ readonly total: number }>, unknown>
  readonly discarded: ReadonlyArray<Epilogue.Intent>
  /** Whether the rollback hook has reached the warehouse. */
  readonly isReleased: boolean
}

type Style = Parameters<typeof styleText>[0]

// Only for a terminal, and only if the user has not asked for none (NO_COLOR).
const styled = (style: Style, text: string) => styleText(style, text, { stream: process.stdout })

const pad = (text: string, width: number) =>
  text + " ".repeat(Math.max(0, width - stripVTControlCharacters(text).length))

const heading = (line: number, number: string, verdict: string, text: string) =>
  `${styled("dim", `line ${String(line).padStart(2)}`)}  ${pad(number, 8)}${pad(verdict, 11)} ${text}`

const detail = (verdict: string, name: string, text: string) =>
  `${" ".repeat(17)}${pad(verdict, 11)} ${pad(name, 8)} ${text}`

export const malformed = ({ line, message }: InputError): string =>
  heading(line, "?", styled("yellow", "unreadable"), `data/orders.jsonl:${line}: ${message.replaceAll(/\s+/g, " ")}`)

export const taken = ({ discarded, exit, isReleased, line, order }: Taken): string =>
  [
    Exit.isSuccess(exit)
      ? heading(line, order.number, styled("green", "COMMITTED"), `${order.customer}, ${euros(exit.value.value.total)}`)
      : heading(line, order.number, styled("red", "DISCARDED"), `${order.customer}: ${why(exit.cause)}`),
    ...(Exit.isSuccess(exit) ? exit.value.outcomes.map(describeOutcome) : []),
    ...discarded.map((intent) =>
      detail(
        styled("dim", "never ran"),
        intent.name,
        styled("dim", `${describePayload(intent)}${Exit.isSuccess(exit) ? " (its savepoint was rolled back)" : ""}`)
      )
    ),
    ...(isReleased ? [detail(styled("cyan", "taken back"), "reserved", "the warehouse has released the goods")] : [])
  ].join("\n")

const describeOutcome = (outcome: Epilogue.Outcome): string => {
  const { intent } = outcome
  if (outcome._tag !== "Ran") return detail(outcome._tag, intent.name, describePayload(intent))
  return Exit.isSuccess(outcome.exit)
    ? detail(styled("green", "ran"), intent.name, describePayload(intent))
    : detail(styled("red", "FAILED"), intent.name, `${describePayload(intent)}: ${why(outcome.exit.cause)}`)
}

const describePayload = ({ payload }: Epilogue.Intent): string => {
  if (Predicate.hasProperty(payload, "amount")) return euros(Number(payload.amount))
  if (Predicate.hasProperty(payload, "to")) return `to ${String(payload.to)}`
  return ""
}

const why = (cause: Cause.Cause<unknown>): string => {
  if (Cause.hasInterruptsOnly(cause)) return "interrupted, the customer has cancelled"
  const error = Cause.squash(cause)
  if (error instanceof Epilogue.CommitError) return `COMMIT failed (${error.outcome}): ${innermost(error)}`
  return Predicate.hasProperty(error, "_tag") ? `${String(error._tag)}: ${innermost(error)}` : String(error)
}

/** PostgreSQL's own words are at the bottom of the `SqlError` that the client wraps around them. */
const innermost = (error: unknown): string => {
  if (error instanceof Epilogue.CommitError) return innermost(error.cause)
  if (isSqlError(error)) return innermost(error.reason.cause)
  return error instanceof Error ? error.message : String(error)
}
