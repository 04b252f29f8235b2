// A process for the tests to kill. It says what it does, a line each, and goes on when it is sent a line.
import { NodeRuntime } from "@effect/platform-node"
import { PgClient } from "@effect/sql-pg"
import { Epilogue, OutboxWorker } from "@epilogue/core"
import { Config, Effect, Layer } from "effect"
import { insertOrder, layerOutbox, SendReceipt } from "./Shop.ts"

// The order of a boundary, or the concurrency of a worker.
const [, , role, given] = process.argv

const say = (what: string) => Effect.sync(() => void process.stdout.write(`${what}\n`))
const isTold = Effect.callback<void>((resume) => {
  process.stdin.once("data", () => resume(Effect.void))
})

const boundary = Effect.gen(function*() {
  yield* insertOrder(Number(given))
  yield* say(`deferred ${yield* SendReceipt.defer({ order: Number(given) })}`)
  yield* isTold
}).pipe(Epilogue.atomic, Effect.andThen(say("committed")), Effect.andThen(Effect.never))

const handler = SendReceipt.toLayer((payload, { id }) =>
  Effect.gen(function*() {
    if (role === "transactional") yield* insertOrder(payload.order)
    yield* say(`handling ${id}`)
    // The event loop stands still, for ever.
    if (role === "blocked") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
    yield* isTold
    yield* say("handled")
  }), { transactional: role === "transactional" })

const worker = Layer.launch(
  OutboxWorker.layer({ intents: [SendReceipt], lease: "2 seconds", concurrency: Number(given) || 10 }).pipe(
    Layer.provide(handler)
  )
)

const Database = PgClient.layerConfig({
  url: Config.Redacted("DATABASE_URL"),
  applicationName: Config.succeed("process")
})
const Live = layerOutbox.pipe(Layer.provideMerge(Database))

NodeRuntime.runMain(
  Effect.suspend((): Effect.Effect<never, unknown, Layer.Success<typeof Live>> =>
    role === "boundary" ? boundary : worker
  )
    .pipe(Effect.provide(Live))
)
