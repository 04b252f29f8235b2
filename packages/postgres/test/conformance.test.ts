// What every store of durable intents has to pass.
import { PgClient } from "@effect/sql-pg"
import { describe, it } from "@effect/vitest"
import { OutboxStoreConformance } from "@epilogue/core/testing"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { PgOutboxStore } from "@epilogue/postgres"
import { Duration, Effect, Layer } from "effect"

let client: PgClient.PgClient

const layerMigrated = Layer.provideMerge(Layer.effectDiscard(PgOutboxStore.migrate()), TestDatabase.layer)

// Time is the server's, so it passes.
it.layer(layerMigrated, { excludeTestServices: true })((it) => {
  OutboxStoreConformance.suite({
    name: "PgOutboxStore",
    describe,
    it: (name, test) =>
      it.effect(name, () =>
        Effect.flatMap(PgClient.PgClient, (given) => {
          client = given
          return test()
        })),
    layer: Layer.suspend(() => PgOutboxStore.layer().pipe(Layer.provide(Layer.succeed(PgClient.PgClient, client)))),
    capabilities: { durable: true, transactional: true, ordered: false, priorities: false },
    elapse: Effect.sleep,
    moment: Duration.millis(100)
  })
})
