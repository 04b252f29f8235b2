/**
 * What the demo prints.
 */
import { Epilogue } from "@epilogue/core"
import { Cause, Exit, Predicate, Result } from "effect"
import { isSqlError } from "effect/sql/SqlError"
import { stripVTControlCharacters, styleText } from "node:util"
import type { Evidence } from "./Comparison.ts"
import type { InputError } from "./Input.ts"
import { euros } from "./Order.ts"
import type { Recorded } from "./Recorder.ts"
import type { Taken } from "./Shop.ts"

type Style = Parameters<typeof styleText>[0]

// Only for a terminal, and only if the user has not asked for none (NO_COLOR).
const styled = (style: Style, text: string) => styleText(style, text, { stream: process.stdout })

const pad = (text: string, width: number) =>
  text + " ".repeat(Math.max(0, width - stripVTControlCharacters(text).length))

const heading = (line: number, number: string, verdict: string, text: string) =>
  `${styled("dim", `line ${String(line).padStart(2)}`)}  ${pad(number, 8)}${pad(verdict, 11)} ${text}`

const detail = (verdict: string, name: string, text: string) =>
  `${" ".repeat(17)}${pad(verdict, 11)} ${pad(name, 11)} ${text}`

const malformed = ({ line, message }: InputError): string =>
  heading(line, "?", styled("yellow", "unreadable"), `data/orders.jsonl:${line}: ${message.replaceAll(/\s+/g, " ")}`)

/** What came of one line of the file. */
export const ofLine = (result: Result.Result<Taken, InputError>): string =>
  Result.match(result, { onFailure: malformed, onSuccess: taken })

const taken = ({ discarded, exit, isReleased, line, order }: Taken): string =>
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

const row = (label: string, text: string) => `${pad(label, 10)} ${text}`

const count = (number: number, what: string) => `${number} ${what}${number === 1 ? "" : "s"}`

/** What the second half of the demo has stored. */
export const stored = (results: ReadonlyArray<Result.Result<Taken, InputError>>): string => {
  const exits = results.flatMap((result) => Result.isSuccess(result) ? [result.success.exit] : [])
  const committed = exits.flatMap((exit) => Exit.isSuccess(exit) ? [exit.value] : [])
  const intents = committed.flatMap(({ outcomes }) => outcomes.filter(({ _tag }) => _tag === "Enqueued"))
  return [
    row(
      "orders",
      `${results.length} lines: ${committed.length} committed, ${exits.length - committed.length} discarded, `
        + `${results.length - exits.length} unreadable`
    ),
    row("stored", `${count(intents.length, "intent")}, each in the transaction of its order`)
  ].join("\n")
}

export const killed = (payments: number): string =>
  row("worker 1", `killed (SIGKILL) after ${count(payments, "charge")}, before it could know of the last one`)

/** A line that a worker has logged. */
export const log = (text: string): string => styled("dim", row("", text))

export const started: string = row("worker 2", "started")

/** How long after the kill a charge was repeated that had been under way. */
export const tookOver = (
  { at, requests }: { readonly at: number; readonly requests: ReadonlyArray<Recorded> },
  all: ReadonlyArray<Recorded>
): string => {
  const known = new Set(requests.map(({ key }) => key))
  const later = all.slice(requests.length)
  const repeated = later.find(({ key }) => known.has(key))
  if (repeated === undefined) return row("worker 2", "has repeated no charge")
  const seconds = ((repeated.time - at) / 1000).toFixed(1)
  return row("worker 2", `took over ${seconds} s after the kill, when it had started and the lease of 2 s had run out`)
}

export const delivered = (
  { payments, placed, unsent, mail }: Evidence,
  charges: ReadonlyArray<Recorded>,
  messages: ReadonlyArray<Recorded>
): string =>
  [
    row("payments", `${requested(charges)}: ${payments.length} charges for ${placed.length} orders`),
    row("mail", `${requested(messages)}: ${mail.length} sent, ${count(unsent.length, "dead letter")}`)
  ].join("\n")

const requested = (requests: ReadonlyArray<Recorded>) => {
  const keys = new Set(requests.map(({ key }) => key)).size
  return `${requests.length} requests under ${keys} idempotency keys, ${requests.length - keys} of them repeated`
}

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
