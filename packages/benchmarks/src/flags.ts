/**
 * What every benchmark can be told.
 */
import * as Flag from "effect/cli/Flag"

const make = (name: string, description: string) =>
  Flag.Boolean(name).pipe(Flag.withDescription(description), Flag.withDefault(false))

export const flags = {
  quick: make("quick", "Three short rounds, for a first impression"),
  check: make("check", "Fail if a claim is not reached"),
  write: make("write", "Put the results into docs/benchmarks.md")
}
