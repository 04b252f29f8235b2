/**
 * Effect's own `PersistedQueue`, in the same database, with the settings it comes with.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Scope from "effect/Scope"
import type { DurableContender } from "../DurableContender.ts"
import { Payload } from "../Payload.ts"
import * as Query from "../Query.ts"

const Factory = PersistedQueue.layer.pipe(Layer.provide(PersistedQueue.layerStoreSql()))

export const persistedQueue: DurableContender = {
  name: "PersistedQueue",
  open: Effect.gen(function*() {
    const sql = yield* PgClient
    // Closing the store while it polls ends in an interruption, which is not one of the turn.
    const scope = yield* Effect.acquireRelease(Scope.make(), (open) => Effect.exit(Scope.close(open, Exit.void)))
    const factory = Context.get(yield* Layer.buildWithScope(Factory, scope), PersistedQueue.PersistedQueueFactory)
    const queue = yield* factory.make({ name: "noop", schema: Payload })
    const offerAll = (intents: ReadonlyArray<Payload>) =>
      Effect.forEach(intents, (payload) => queue.offer(payload), { discard: true })
    return {
      transaction: (core, intents) => sql.withTransaction(Effect.andThen(core, offerAll(intents))),
      bulk: (intents) => sql.withTransaction(offerAll(intents)),
      work: ({ receive, takes }, concurrency) => {
        const received = (n: number) => Effect.sync(() => receive(n))
        const take = queue.take(
          takes === 0 ? ({ n }) => received(n) : ({ n }) => Effect.andThen(Effect.sleep(takes), received(n))
        )
        return Effect.forkScoped(
          Effect.all(Array.from({ length: concurrency }, () => Effect.forever(take)), {
            concurrency: "unbounded",
            discard: true
          })
        )
      },
      waiting: Query.figure(sql`SELECT count(*)::int AS figure FROM effect_queue WHERE state <> 'completed'`)
    }
  })
}
