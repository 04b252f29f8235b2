/**
 * The command: `pnpm bench`.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Claim from "./Claim.ts"
import * as Contender from "./Contender.ts"
import * as Memory from "./Memory.ts"
import * as Report from "./Report.ts"
import * as Timing from "./Timing.ts"

const sizes = [0, 1, 10, 100, 10_000, 1_000_000]

class ClaimsError extends Data.TaggedError("ClaimsError")<{ readonly claims: ReadonlyArray<Claim.Claim> }> {
  override get message(): string {
    return `Not reached: ${this.claims.map(({ text }) => text).join("; ")}`
  }
}

const flag = (name: string, description: string) =>
  Flag.Boolean(name).pipe(Flag.withDescription(description), Flag.withDefault(false))

const bench = Command.make(
  "bench",
  {
    quick: flag("quick", "Three short rounds, for a first impression"),
    check: flag("check", "Fail if a claim is not reached"),
    write: flag("write", "Put the results into docs/benchmarks.md")
  },
  Effect.fnUntraced(function*({ check, quick, write }) {
    const settings = quick ? { sizes, rounds: 3, turn: 10 } : { sizes, rounds: 11, turn: 30 }
    const times = yield* Timing.measure(settings)
    const memory: Array<Memory.Memory> = []
    for (let round = 0; round < 3; round++) {
      for (const intents of Claim.memorySizes) {
        for (const contender of [Contender.array, Contender.epilogue]) {
          memory.push(yield* Memory.measure(contender, intents))
        }
      }
    }
    const claims = [...Claim.ofTimes(times), ...Claim.ofMemory(memory)]
    const report = Report.make({ settings, times, memory, claims })
    yield* Console.log(report)
    if (write) yield* Report.write(report)
    const missed = claims.filter((claim) => !Claim.holds(claim))
    if (check && missed.length > 0) return yield* new ClaimsError({ claims: missed })
  })
).pipe(
  Command.withDescription("What a boundary costs in memory, side by side with its alternatives")
)

Command.run(bench, { version: "0.0.0" }).pipe(Effect.provide(NodeServices.layer), NodeRuntime.runMain)
