// What every store of durable intents has to pass.
import { afterAll, describe, it } from "@effect/vitest"
import { OutboxStoreConformance } from "@epilogue/core/testing"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { PgOutboxStore } from "@epilogue/postgres"
import { Duration, Effect, Layer, ManagedRuntime } from "effect"

const runtime = ManagedRuntime.make(
  Layer.effectDiscard(PgOutboxStore.migrate()).pipe(Layer.provideMerge(TestDatabase.layer))
)
afterAll(() => runtime.dispose())

const layerStore = (options?: PgOutboxStore.Options) =>
  PgOutboxStore.layer(options).pipe(Layer.provide(Layer.effectContext(runtime.contextEffect)))

OutboxStoreConformance.suite({
  name: "PgOutboxStore",
  describe,
  // Time is the server's, so it passes.
  it: it.live,
  layer: layerStore(),
  layerKeeping: (keepDelivered) => layerStore({ keepDelivered }),
  capabilities: { durable: true, transactional: true, ordered: true, priorities: true },
  elapse: Effect.sleep,
  moment: Duration.millis(100),
  histories: { runs: 5, size: 15 }
})
