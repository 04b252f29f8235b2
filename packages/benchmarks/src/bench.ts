/**
 * The command: `pnpm bench`.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import * as Command from "effect/cli/Command"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Claim from "./Claim.ts"
import { check } from "./ClaimsError.ts"
import * as Contender from "./Contender.ts"
import { durable } from "./durable/command.ts"
import { flags } from "./flags.ts"
import * as Guide from "./Guide.ts"
import * as Memory from "./Memory.ts"
import * as Report from "./Report.ts"
import * as Timing from "./Timing.ts"

const sizes = [0, 1, 10, 100, 10_000, 1_000_000]

const bench = Command.make(
  "bench",
  flags,
  Effect.fnUntraced(function*(options) {
    const settings = options.quick ? { sizes, rounds: 3, turn: 10 } : { sizes, rounds: 11, turn: 30 }
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
    if (options.write) yield* Guide.write("results", report)
    if (options.check) yield* check(claims.filter((claim) => !Claim.holds(claim)))
  })
).pipe(
  Command.withDescription("What a boundary costs in memory, side by side with its alternatives"),
  Command.withSubcommands([durable])
)

Command.run(bench, { version: "0.0.0" }).pipe(Effect.provide(NodeServices.layer), NodeRuntime.runMain)
