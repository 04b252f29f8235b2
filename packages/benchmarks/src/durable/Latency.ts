/**
 * How long it takes from a transaction to a handler, when nothing else is to be done.
 */
import * as Array from "effect/Array"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DurableQueue, Handler } from "./DurableContender.ts"
import * as Payload from "./Payload.ts"
import { Receipts } from "./Receipts.ts"

/** Milliseconds. */
export interface Latency {
  readonly p50: number
  readonly p99: number
}

export interface Latencies {
  /** From the return of the transaction, which the handler may precede. */
  readonly fromCommit: Latency
  /** From before the transaction. */
  readonly fromBegin: Latency
}

/** Nanoseconds of a clock that the processes of a machine have in common. */
const now = (): number => Number(process.hrtime.bigint())

const rank = (sorted: ReadonlyArray<number>, part: number) =>
  sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * part))] ?? Number.NaN

const between = (from: ReadonlyArray<number>, to: ReadonlyArray<number>): Latency => {
  const sorted = from.map((time, n) => ((to[n] ?? Number.NaN) - time) / 1e6).toSorted((a, b) => a - b)
  return { p50: rank(sorted, 0.5), p99: rank(sorted, 0.99) }
}

/** Starts a worker, here or elsewhere, that tells when it has run which intent. */
export type Start<R> = (
  handled: (n: number, time: number) => void
) => Effect.Effect<void, unknown, Scope.Scope | R>

/** Handlers that a worker may run at once. */
export const concurrency = 10

/** One in this process. */
export const inProcess = (queue: DurableQueue): Start<never> => (handled) => {
  const handler: Handler = { takes: 0, receive: (n) => handled(n, now()) }
  return queue.work(handler, concurrency)
}

const rehearsals = 20

export const measure = Effect.fnUntraced(function*<R>(queue: DurableQueue, samples: number, start: Start<R>) {
  const total = rehearsals + samples
  const receipts = new Receipts(total)
  const begun: Array<number> = []
  const committed: Array<number> = []
  const ended = Array.makeBy(total, () => Number.NaN)
  yield* Effect.scoped(Effect.gen(function*() {
    yield* start((n, time) => {
      ended[n] = time
      receipts.receive(n)
    })
    for (const payload of Payload.many(total)) {
      // Uneven, so as not to keep step with anybody's timer.
      yield* Effect.sleep(5 + 20 * Math.random())
      begun.push(now())
      yield* queue.transaction(Effect.void, [payload])
      committed.push(now())
    }
    yield* Effect.timeout(receipts.complete, "1 minute")
  }))
  yield* receipts.verify(queue.waiting)
  const counted = (times: ReadonlyArray<number>) => times.slice(rehearsals)
  return {
    fromCommit: between(counted(committed), counted(ended)),
    fromBegin: between(counted(begun), counted(ended))
  } satisfies Latencies
})
