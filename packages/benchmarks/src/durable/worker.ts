/**
 * A worker in a process of its own: `node worker.ts <contender>`, with the URL of the database in the environment. It says
 * when it has started, and then of each intent when it ran.
 */
import { NodeRuntime } from "@effect/platform-node"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as contenders from "./contenders.ts"
import * as Latency from "./Latency.ts"
import { type Message, urlVariable } from "./Remote.ts"
import * as Turn from "./Turn.ts"

const say = (message: Message): void => {
  process.stdout.write(`${JSON.stringify(message)}\n`)
}

const work = Effect.gen(function*() {
  const contender = contenders.queues.find(({ name }) => name === process.argv[2])
  if (contender === undefined) return yield* Effect.die(new Error(`There is no contender "${process.argv[2]}"`))
  const queue = yield* contender.open
  yield* Latency.inProcess(queue)((n, time) => say({ _tag: "Handled", n, time }))
  say({ _tag: "Started" })
  return yield* Effect.never
})

Config.Redacted(urlVariable).pipe(
  Effect.flatMap((url) => Effect.provide(work, Turn.layer(url, Latency.concurrency))),
  Effect.scoped,
  NodeRuntime.runMain
)
