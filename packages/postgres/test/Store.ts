/**
 * What the tests of the store share: a store in a database of the test file's own, envelopes, and sessions.
 */
import { PgClient } from "@effect/sql-pg"
import type { Appended, Envelope } from "@epilogue/core/IntentSink"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import * as TestDatabase from "@epilogue/embedded-postgres/TestDatabase"
import { PgOutboxStore } from "@epilogue/postgres"
import { Context, Duration, Effect, Layer } from "effect"
import { Reactivity } from "effect/reactivity"
import { randomUUID } from "node:crypto"

/** A store in a fresh database. */
export const layerStore = PgOutboxStore.layer().pipe(
  Layer.provideMerge(Layer.effectDiscard(PgOutboxStore.migrate())),
  Layer.provideMerge(TestDatabase.layer)
)

/** Another client of the same database. */
export const another = (options?: PgClient.PgPoolConfig) =>
  PgClient.PgClient.use(({ config }) => PgClient.make({ ...config, ...options })).pipe(Effect.provide(Reactivity.layer))

/** A store over a client, as a process of its own has it. */
export const storeOver = Effect.fnUntraced(function*(client: PgClient.PgClient, options?: PgOutboxStore.Options) {
  const context = yield* Layer.build(
    Layer.fresh(PgOutboxStore.layer(options)).pipe(Layer.provide(Layer.succeed(PgClient.PgClient, client)))
  )
  return Context.get(context, OutboxStore)
})

let made = 0

/** An envelope with a tag of its own unless one is given. */
export const envelope = (options?: Partial<Envelope>): Envelope => ({
  id: randomUUID(),
  tag: `Tag${made++}`,
  version: 1,
  payload: JSON.stringify({ number: made, text: "a \"quote\", a \\ and {a brace}, ü and 🙂" }),
  partitionKey: undefined,
  idempotencyKey: undefined,
  remember: 3_600_000,
  priority: 0,
  delay: undefined,
  runAt: undefined,
  traceparent: undefined,
  ...options
})

/** What was answered to an append, but for what names the transaction. */
export const answersOf = (appended: ReadonlyArray<Appended>) => appended.map(({ duplicate, id }) => ({ id, duplicate }))

/** Several of one tag. */
export const envelopes = (count: number, options?: Partial<Envelope>): ReadonlyArray<Envelope> => {
  const { tag } = envelope(options)
  return Array.from({ length: count }, () => envelope({ ...options, tag }))
}

/** A session for tags. */
export const open = (store: OutboxStore.Service, tags: ReadonlyArray<string>, lease: Duration.Input = "30 seconds") =>
  store.open({
    subscriptions: tags.map((tag) => ({ tag, versions: [1] })),
    lease: Duration.fromInputUnsafe(lease)
  })

/** More than any test claims. */
export const all = { rows: 1_000, bytes: 1e9 }
