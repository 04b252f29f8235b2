/**
 * Epilogue, over PostgreSQL, with the settings it comes with.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { Epilogue, Intent, Outbox, OutboxWorker } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { DurableContender } from "../DurableContender.ts"
import * as Payload from "../Payload.ts"
import * as Query from "../Query.ts"

class Noop extends Intent.make("Noop", { payload: Payload.fields }) {}

export const epilogue: DurableContender = {
  name: "Epilogue",
  open: Effect.gen(function*() {
    const sql = yield* PgClient
    yield* PgOutboxStore.migrate()
    const services = yield* Layer.build(Layer.provideMerge(Outbox.layer, PgOutboxStore.layer()))
    const deferAll = (intents: ReadonlyArray<Payload.Payload>) =>
      Effect.forEach(intents, (payload) => Noop.defer(payload), { discard: true })
    return {
      transaction: (core, intents) =>
        Epilogue.atomic(Effect.andThen(core, deferAll(intents))).pipe(Effect.provideContext(services)),
      bulk: (intents) => Epilogue.atomic(deferAll(intents)).pipe(Effect.provideContext(services)),
      work: ({ receive, takes }, concurrency) => {
        const received = (n: number) => Effect.sync(() => receive(n))
        const handlers = Noop.toLayer(
          takes === 0 ? ({ n }) => received(n) : ({ n }) => Effect.andThen(Effect.sleep(takes), received(n))
        )
        return OutboxWorker.layer({ intents: [Noop], concurrency }).pipe(
          Layer.provide(handlers),
          Layer.build,
          Effect.provideContext(services)
        )
      },
      waiting: Query.figure(sql`
        SELECT (SELECT count(*) FROM epilogue.waiting)::int + (SELECT count(*) FROM epilogue.delayed)::int
          + (SELECT count(*) FROM epilogue.dead)::int AS figure
      `)
    }
  })
}
