/**
 * A worker: a program of its own, of which there may be any number. The demo starts it, and kills it.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { PgClient } from "@effect/sql-pg"
import { OutboxWorker } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import { Config, Effect, Layer, Stdio, Stream } from "effect"
import * as Handlers from "./Handlers.ts"
import { Charge, SendReceipt, SendThanks } from "./Intents.ts"
import * as WorkerLog from "./WorkerLog.ts"

const HandlersOfServers = Layer.unwrap(Effect.map(
  Config.all({ mail: Config.String("MAIL_URL"), payments: Config.String("PAYMENTS_URL") }),
  Handlers.layer
))

const Worker = OutboxWorker.layer({
  intents: [Charge, SendReceipt, SendThanks],
  // So few at once that something is left to do when the demo kills it.
  concurrency: 4,
  // When it dies, others wait this long before they take over. So short that the demo is.
  lease: "2 seconds"
}).pipe(
  Layer.provide(HandlersOfServers),
  Layer.provide(PgOutboxStore.layer()),
  Layer.provide(PgClient.layerConfig({ url: Config.Redacted("SHOP_DATABASE_URL") })),
  Layer.provide(WorkerLog.layer)
)

/** Until the demo closes its standard input, or ends in whatever way. */
const untilStopped = Effect.flatMap(Stdio.Stdio, ({ stdin }) => Stream.runDrain(stdin))

NodeRuntime.runMain(Effect.provide(untilStopped, [Worker, NodeServices.layer]))
