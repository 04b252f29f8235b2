/**
 * A way to use Epilogue: what its intents and their handlers ask for, how the store was told to keep them, and what is in the
 * database besides.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import { Epilogue, Intent, Outbox, OutboxWorker } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import * as Array from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type { DurableContender } from "../DurableContender.ts"
import * as Payload from "../Payload.ts"
import * as Query from "../Query.ts"

export type Noop = Intent.Intent<string, Schema.Struct<typeof Payload.fields>>

export interface Variant extends DurableContender {
  /** How many intents wait. */
  readonly size: number
  /** Of those with the same one, the numbers have to come in their order. */
  readonly keyOf: ((n: number) => number) | undefined
}

export interface Options {
  readonly size: number
  /** What a worker delivers. Defaults to one, which asks for nothing. */
  readonly intents?: Array.NonEmptyReadonlyArray<Noop> | undefined
  /** Which of them it is that carries a number. Defaults to the first. */
  readonly intentOf?: ((n: number) => Noop) | undefined
  readonly keyOf?: ((n: number) => number) | undefined
  readonly priority?: (() => number) | undefined
  readonly limits?: Intent.LimitOptions | undefined
  /** How many are registered in one transaction. Defaults to as many as come at once. */
  readonly atOnce?: number | undefined
  readonly keepDelivered?: PgOutboxStore.Options["keepDelivered"]
  /** What is in the database before. */
  readonly before?: Effect.Effect<void, unknown, Epilogue.Epilogue | PgClient> | undefined
}

export const noop = (tag: string): Noop => Intent.make(tag, { payload: Payload.fields })

const plain: Array.NonEmptyReadonlyArray<Noop> = [noop("Noop")]

/** Registers intents in one transaction. */
export const deferAll = (
  payloads: ReadonlyArray<Payload.Payload>,
  defer: (payload: Payload.Payload) => ReturnType<Noop["defer"]>
) => Epilogue.atomic(Effect.forEach(payloads, defer, { discard: true }))

export const make = (
  name: string,
  { atOnce, before, intents = plain, intentOf = () => intents[0], keepDelivered, keyOf, limits, priority, size }:
    Options
): Variant => ({
  name,
  size,
  keyOf,
  open: Effect.gen(function*() {
    const sql = yield* PgClient
    yield* PgOutboxStore.migrate()
    const services = yield* Layer.build(Layer.provideMerge(Outbox.layer, PgOutboxStore.layer({ keepDelivered })))
    if (before !== undefined) yield* Effect.provideContext(before, services)
    const defer = (payload: Payload.Payload) =>
      intentOf(payload.n).defer(payload, {
        partitionKey: keyOf === undefined ? undefined : String(keyOf(payload.n)),
        priority: priority?.()
      })
    return {
      transaction: (core, payloads) =>
        Epilogue.atomic(Effect.andThen(core, Effect.forEach(payloads, defer, { discard: true }))).pipe(
          Effect.provideContext(services)
        ),
      bulk: (payloads) =>
        Effect.forEach(
          atOnce === undefined ? [payloads] : Array.chunksOf(payloads, atOnce),
          (chunk) => deferAll(chunk, defer),
          { discard: true }
        ).pipe(Effect.provideContext(services)),
      work: ({ receive, takes }, concurrency) => {
        const received = (n: number) => Effect.sync(() => receive(n))
        const handlers = Array.map(intents, (intent) =>
          intent.toLayer(
            takes === 0 ? ({ n }) => received(n) : ({ n }) => Effect.andThen(Effect.sleep(takes), received(n)),
            limits
          ))
        return OutboxWorker.layer({ intents, concurrency }).pipe(
          Layer.provide(Layer.mergeAll(...handlers)),
          Layer.build,
          Effect.provideContext(services)
        )
      },
      waiting: Query.figure(sql`
        SELECT count(*)::int AS figure
        FROM (
          SELECT queue FROM epilogue.waiting UNION ALL SELECT queue FROM epilogue.keyed
          UNION ALL SELECT queue FROM epilogue.delayed UNION ALL SELECT queue FROM epilogue.dead
        ) AS intent
        JOIN epilogue.queue ON queue.id = intent.queue
        WHERE tag = ANY (${intents.map(({ _tag }) => _tag)}::text[])
      `)
    }
  })
})
