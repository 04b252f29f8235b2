/**
 * Starts a worker in a process of its own, and hears from it.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as ChildProcess from "effect/process/ChildProcess"
import type { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { join } from "node:path"
import { Database, type DurableContender } from "./DurableContender.ts"
import type { Start } from "./Latency.ts"

/** Where the process finds the URL of its database. */
export const urlVariable = "BENCHMARK_DATABASE_URL"

const Message = Schema.Union([
  Schema.TaggedStruct("Started", {}),
  Schema.TaggedStruct("Handled", { n: Schema.Int, time: Schema.Finite })
])

/** What the process writes, one on a line. */
export type Message = typeof Message.Type

const decode = Schema.decodeEffect(Schema.fromJsonString(Message))

export const start = (contender: DurableContender): Start<ChildProcessSpawner | Database> =>
  Effect.fnUntraced(function*(handled) {
    const { url } = yield* Database
    const started = yield* Latch.make()
    const child = yield* ChildProcess.make(
      process.execPath,
      ["--expose-gc", join(import.meta.dirname, "worker.ts"), contender.name],
      { env: { [urlVariable]: Redacted.value(url) }, extendEnv: true, stderr: "inherit" }
    )
    yield* child.stdout.pipe(
      Stream.decodeText,
      Stream.splitLines,
      Stream.mapEffect((line) => decode(line)),
      Stream.runForEach((message) => {
        if (message._tag === "Started") return started.open
        return Effect.sync(() => handled(message.n, message.time))
      }),
      Effect.orDie,
      Effect.forkScoped
    )
    yield* started.await
  })
