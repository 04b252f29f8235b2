/**
 * The second half of the demo: the same checkout, with another layer at the edge. The intents of an order are stored in
 * its transaction, and delivered by a worker in another process. It is killed, and another one takes over.
 */
import { Outbox, OutboxStore } from "@epilogue/core"
import { layerDatabase } from "@epilogue/embedded-postgres"
import { PgOutboxStore } from "@epilogue/postgres"
import { Clock, Console, Effect, Latch, Layer, Number, Schedule } from "effect"
import { ComparisonError } from "./Comparison.ts"
import * as Input from "./Input.ts"
import * as Printout from "./Printout.ts"
import { Servers } from "./Servers.ts"
import * as Shop from "./Shop.ts"
import * as WorkerProcess from "./WorkerProcess.ts"

/** Of the payments that there are to make, the one at which the provider stalls, and the worker is killed. */
const stallsAt = 4

export const durable = Effect.fn("durable")(function*(worker: string) {
  const { mail, payments } = yield* Servers
  yield* Console.log("\nThe same orders and the same checkout, with durable intents and a worker in another process\n")
  const results = yield* Effect.forEach(yield* Input.read, Shop.take)
  yield* Console.log(Printout.stored(results))

  const first = yield* WorkerProcess.start(worker)
  // Now the provider has taken the money for a charge, and the worker does not know.
  yield* first.during(Latch.await(payments.stalled))
  yield* first.kill
  const killed = {
    at: yield* Clock.currentTimeMillis,
    requests: yield* payments.requests,
    taken: yield* payments.taken
  }
  yield* Console.log(Printout.killed(killed.taken.length))

  yield* Latch.open(payments.recovered)
  const second = yield* WorkerProcess.start(worker)
  yield* Console.log(Printout.started)
  yield* second.during(untilAllIsDelivered)
  yield* second.stop

  // Of a message that the server refused there is a dead letter in the store.
  const evidence = yield* Shop.gather(yield* mail.refused)
  const requests = yield* payments.requests
  yield* Console.log(Printout.tookOver(killed, requests))
  yield* Console.log(Printout.delivered(evidence, requests, yield* mail.requests))
  yield* Shop.check(evidence)
  const { dead } = yield* held
  if (dead !== evidence.unsent.length) {
    return yield* new ComparisonError({
      message: `${evidence.unsent.length} messages were refused, but there are ${dead} dead letters`
    })
  }
  yield* Console.log("They agree: each committed order was charged exactly once, and no discarded order at all.")
}, Effect.scoped)

/** How many intents the store holds: those that are yet to be delivered, and dead letters. */
const held = Effect.gen(function*() {
  const { depths } = yield* OutboxStore.OutboxStore
  const tags = yield* depths
  return {
    open: Number.sumAll(tags.map(({ claimed, delayed, waiting }) => waiting + claimed + delayed)),
    dead: Number.sumAll(tags.map(({ dead }) => dead))
  }
})

/** Also what a worker has claimed has to be delivered: it may be dead. */
const untilAllIsDelivered = Effect.repeat(held, {
  until: ({ open }) => open === 0,
  schedule: Schedule.spaced("50 millis")
})

const Store = PgOutboxStore.layer().pipe(Layer.provide(Layer.effectDiscard(PgOutboxStore.migrate())))

/** The edge of the application: it says once that a boundary is a transaction, and that its intents are stored with it. */
const Engine = Outbox.layer.pipe(Layer.provide(Store))

export const layer = Shop.layer.pipe(
  Layer.provide(Engine),
  Layer.provideMerge(Store),
  Layer.provideMerge(layerDatabase),
  Layer.provideMerge(Servers.layer({ stallsAt }))
)
