/**
 * The command: `pnpm bench durable`.
 */
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { check } from "../ClaimsError.ts"
import { flags } from "../flags.ts"
import * as Guide from "../Guide.ts"
import * as DurableClaim from "./DurableClaim.ts"
import * as DurableReport from "./DurableReport.ts"
import * as PromisesClaim from "./promises/PromisesClaim.ts"
import * as PromisesReport from "./promises/PromisesReport.ts"
import * as Scenarios from "./Scenarios.ts"
import * as Settings from "./Settings.ts"
import * as Versions from "./Versions.ts"

export const durable = Command.make(
  "durable",
  {
    ...flags,
    only: Flag.Literals("only", Scenarios.names).pipe(
      Flag.withDescription("Only this scenario, and leave the page as it is"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function*(options) {
    const asked = Option.match(options.only, { onNone: () => Scenarios.names, onSome: (name) => [name] })
    yield* Scenarios.measure(Settings.rehearsal, asked)
    const results = yield* Scenarios.measure(options.quick ? Settings.quick : Settings.full, asked)
    const versions = yield* Versions.read
    const claims = DurableClaim.of(results)
    const reports = asked.some((name) => name !== "promises")
      ? [{ name: "durable", report: DurableReport.make(results, claims, versions), claims }]
      : []
    for (const measured of results.promises) {
      const own = PromisesClaim.of(measured)
      reports.push({
        name: "promises",
        report: PromisesReport.make(measured, results.settings.promises, own, versions),
        claims: own
      })
    }
    for (const { name, report } of reports) {
      yield* Console.log(report)
      if (options.write && Option.isNone(options.only)) yield* Guide.write(name, report)
    }
    if (options.check) {
      yield* check(reports.flatMap((each) => each.claims.filter((claim) => !DurableClaim.holds(claim))))
    }
  }, Effect.provide(EmbeddedPostgres.layer))
).pipe(
  Command.withDescription("What durable intents cost in PostgreSQL, side by side with other queues")
)
