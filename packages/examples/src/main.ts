/**
 * The demo: a shop takes the orders of a file, with a real PostgreSQL, a payment provider, a mail server and a warehouse;
 * and then the same once more, with durable intents. Begin to read at `Checkout.ts`.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { Effect, Layer } from "effect"
import { join } from "node:path"
import * as Durable from "./Durable.ts"
import * as InProcess from "./InProcess.ts"

const demo = Effect.gen(function*() {
  yield* Effect.provide(InProcess.inProcess, InProcess.layer)
  yield* Effect.provide(Durable.durable(join(import.meta.dirname, "worker.ts")), Durable.layer)
})

NodeRuntime.runMain(Effect.provide(demo, Layer.merge(EmbeddedPostgres.layer, NodeServices.layer)))
