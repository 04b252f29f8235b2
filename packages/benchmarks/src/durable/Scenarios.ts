/**
 * Everything that is measured of durable intents.
 */
import * as Effect from "effect/Effect"
import * as Backlog from "./Backlog.ts"
import * as Bulk from "./Bulk.ts"
import * as contenders from "./contenders.ts"
import * as Latency from "./Latency.ts"
import * as Promises from "./promises/Promises.ts"
import * as Remote from "./Remote.ts"
import * as Rounds from "./Rounds.ts"
import type { Settings } from "./Settings.ts"
import * as Timers from "./Timers.ts"
import * as Transactions from "./Transactions.ts"
import * as Turn from "./Turn.ts"

export const names = ["transactions", "bulk", "drain", "busy", "latency", "promises"] as const

export type Name = typeof names[number]

const transactions = (settings: Settings) =>
  Effect.forEach(settings.fibers, (fibers) =>
    Effect.map(
      Rounds.measure(`Transactions, ${fibers} at once`, contenders.all, settings.rounds, (contender) =>
        Turn.take(
          contender,
          fibers,
          (queue) =>
            Transactions.measure(queue, fibers, fibers === 1 ? settings.transactions : 4 * settings.transactions)
        )),
      (samples) => ({ fibers, samples })
    ))

const bulk = (settings: Settings) =>
  Effect.map(
    Rounds.measure(`${settings.bulk} in one transaction`, contenders.all, settings.rounds, (contender) =>
      Turn.take(contender, 1, (queue) =>
        Bulk.measure(queue, settings.bulk))),
    (samples) => [samples]
  )

const drain = ({ backlogs, concurrencies, limit, rounds }: Settings) =>
  Effect.forEach(
    backlogs.flatMap((size) => concurrencies.map((concurrency) => ({ size, concurrency }))),
    ({ concurrency, size }) =>
      Effect.map(
        Rounds.measure(`${size} wait, ${concurrency} at once`, contenders.all, rounds, (contender) =>
          Turn.take(
            contender,
            concurrency,
            (queue) => Backlog.measure(queue, { expected: size, concurrency, takes: 0, limit })
          )),
        (samples) => ({ size, concurrency, samples })
      )
  )

/** Handlers that run side by side, and the milliseconds that each takes. */
const busyHandlers = { concurrency: 50, takes: 5 }

/** Intents a second that arithmetic allows these. */
export const busyLimit = busyHandlers.concurrency * 1_000 / busyHandlers.takes

const busy = Effect.fnUntraced(function*({ busy: expected, limit, rounds }: Settings) {
  const options = { ...busyHandlers, expected, limit }
  const samples = yield* Rounds.measure(
    "Busy handlers",
    contenders.all,
    rounds,
    (contender) => Turn.take(contender, options.concurrency, (queue) => Backlog.measure(queue, options))
  )
  return [{ samples, timers: yield* Effect.replicateEffect(Timers.measure(options), rounds) }]
})

const latency = (settings: Settings) =>
  Effect.forEach(["one process", "two processes"] as const, (processes) =>
    Effect.map(
      Rounds.measure(`Latency, ${processes}`, contenders.queues, settings.rounds, (contender) =>
        Turn.take(contender, Latency.concurrency, (queue) =>
          Latency.measure(
            queue,
            settings.latencies,
            processes === "one process" ? Latency.inProcess(queue) : Remote.start(contender)
          ))),
      (samples) => ({ processes, samples })
    ))

/** Measures the scenarios that are asked for. */
export const measure = Effect.fnUntraced(function*(settings: Settings, asked: ReadonlyArray<Name>) {
  const among = <A, E, R>(
    name: Name,
    scenario: (settings: Settings) => Effect.Effect<ReadonlyArray<A>, E, R>
  ): Effect.Effect<ReadonlyArray<A>, E, R> => asked.includes(name) ? scenario(settings) : Effect.succeed([])
  return {
    settings,
    transactions: yield* among("transactions", transactions),
    bulk: yield* among("bulk", bulk),
    drain: yield* among("drain", drain),
    busy: yield* among("busy", busy),
    latency: yield* among("latency", latency),
    promises: yield* among("promises", () => Effect.map(Promises.measure(settings.promises), (measured) => [measured]))
  }
})

/** What was measured. A scenario that was not asked for has nothing. */
export type Results = Effect.Success<ReturnType<typeof measure>>
