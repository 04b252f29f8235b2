// A primary that becomes a replica, while another server becomes the primary.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Epilogue, Intent, Outbox, OutboxWorker } from "@epilogue/core"
import * as EmbeddedPostgres from "@epilogue/embedded-postgres"
import { PgOutboxStore } from "@epilogue/postgres"
import { Effect, Layer, Queue, Redacted, Schema } from "effect"
import { makeProxy } from "../Proxy.ts"

class Note extends Intent.make("Note", { payload: { text: Schema.String } }) {}

const clientOf = (url: URL) =>
  Effect.map(
    Layer.build(Layer.fresh(PgClient.layer({ url: Redacted.make(url.href) }))),
    (context) => Layer.succeedContext(context)
  )

/** A server of its own, with a store. A replica has the password of its primary. */
const server = Effect.fnUntraced(function*(password?: string) {
  const postgres = yield* Layer.build(EmbeddedPostgres.layerOwn())
  const url = new URL(Redacted.value((yield* Effect.provide(EmbeddedPostgres.EmbeddedPostgres, postgres)).url))
  if (password !== undefined) {
    yield* PgClient.PgClient.use((sql) => sql.unsafe(`ALTER USER postgres PASSWORD '${password}'`)).pipe(
      Effect.provide(yield* clientOf(url))
    )
    url.password = password
  }
  const client = yield* clientOf(url)
  yield* Effect.provide(PgOutboxStore.migrate(), client)
  return { client, url }
})

it.live("a worker goes on with the new primary when the old one only reads", () =>
  Effect.gen(function*() {
    const old = yield* server()
    const promoted = yield* server(old.url.password)
    const { client, state } = yield* Effect.provide(makeProxy, old.client)
    const heard = yield* Queue.unbounded<string>()
    const Store = PgOutboxStore.layer().pipe(Layer.provide(Layer.succeed(PgClient.PgClient, client)))
    yield* Layer.build(
      OutboxWorker.layer({ intents: [Note], lease: "2 seconds" }).pipe(
        Layer.provide([Note.toLayer(({ text }) => Queue.offer(heard, text)), Store])
      )
    )
    const send = (text: string, to: typeof old) =>
      Epilogue.atomic(Note.defer({ text })).pipe(
        Effect.provide(Outbox.layer.pipe(Layer.provide(Layer.fresh(PgOutboxStore.layer())), Layer.provide(to.client)))
      )
    yield* send("before", old)
    assert.strictEqual(yield* Queue.take(heard), "before")

    state.port = Number(promoted.url.port)
    yield* PgClient.PgClient.use((sql) =>
      Effect.andThen(
        sql`ALTER SYSTEM SET default_transaction_read_only = on`,
        sql`SELECT pg_reload_conf()`
      )
    ).pipe(Effect.provide(old.client))
    yield* send("after", promoted)
    assert.strictEqual(yield* Effect.timeout(Queue.take(heard), "1 minute"), "after")
  }).pipe(Effect.scoped))
