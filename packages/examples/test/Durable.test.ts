import { NodeServices } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { Effect, Layer } from "effect"
import { join } from "node:path"
import { ComparisonError } from "../src/Comparison.ts"
import * as Durable from "../src/Durable.ts"
import { WorkerError } from "../src/WorkerProcess.ts"

const Live = Durable.layer.pipe(Layer.provideMerge(Layer.merge(EmbeddedPostgres.layer, NodeServices.layer)))

it.live("the demo fails if its worker charges without the key", () =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(Durable.durable(join(import.meta.dirname, "worker-without-key.ts")))
    assert.instanceOf(error, ComparisonError)
    assert.match(error.message, /^A-\d+ was charged [2-9] times$/m)
  }).pipe(Effect.provide(Live)))

it.live("the demo fails if its worker does not start", () =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(Durable.durable(join(import.meta.dirname, "no-such-worker.ts")))
    assert.instanceOf(error, WorkerError)
  }).pipe(Effect.provide(Live)))
