import { Epilogue } from "@epilogue/core"
import * as Subpath from "@epilogue/core/Epilogue"
import { Effect } from "effect"

const expect = (fact: string, actual: unknown, expected: unknown): Effect.Effect<void> =>
  JSON.stringify(actual) === JSON.stringify(expected)
    ? Effect.void
    : Effect.die(new Error(`${fact}: expected ${JSON.stringify(expected)}, got ${JSON.stringify(actual)}`))

const program = Effect.gen(function*() {
  const log: Array<string> = []
  const core = Effect.gen(function*() {
    yield* Epilogue.defer(Effect.sync(() => {
      log.push("intent")
    }))
    log.push("core")
  })

  yield* Epilogue.atomic(core)
  yield* expect("a committed core runs its intents", log, ["core", "intent"])

  log.length = 0
  yield* Effect.exit(Epilogue.atomic(Effect.andThen(core, Effect.fail("no commit"))))
  yield* expect("a failed core runs no intent", log, ["core"])

  yield* expect("the barrel and the file are one module", Epilogue.atomic === Subpath.atomic, true)
})

/** Resolves when the boundary keeps its word on the runtime that calls it, and rejects otherwise. */
export const smoke = (): Promise<void> => Effect.runPromise(Effect.provide(program, Epilogue.layer))
