// A process for the tests to kill. It says what it does, a line each.
import { PgClient, PgConnection } from "@effect/sql-pg"
import { Epilogue, type Intent, Outbox, OutboxWorker } from "@epilogue/core"
import { PgOutboxStore } from "@epilogue/postgres"
import { Cause, Effect, Fiber, Layer, Logger, Redacted, References, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Booking, Errand, random, Role, Step } from "./Shared.ts"

const { id: me, pace, role } = Schema.decodeUnknownSync(Schema.fromJsonString(Role))(process.argv[2])
const url = Redacted.make(Schema.decodeUnknownSync(Schema.String)(process.env.DATABASE_URL))
const next = random(me)

const say = (what: string) => Effect.sync(() => void process.stdout.write(`${what}\n`))
const logger = Logger.make(({ cause, message }) => {
  process.stdout.write(`log ${String(message)} ${Cause.pretty(cause)}`.replaceAll("\n", " ") + "\n")
})

// The application -----------------------------------------------------------------------------------------------------

/** A business row for each intent, which is there if and only if the intent is. */
const order = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const failures = Math.max(0, Math.floor(next() * 5) - 2)
  const intent = next() < 0.3 ? Booking : Errand
  const id = yield* intent.defer({ failures }, next() < 0.2 ? { delay: Math.floor(next() * 300) } : {})
  yield* sql`INSERT INTO business (intent, tag, failures) VALUES (${id}, ${intent._tag}, ${failures})`
})

const twice = Effect.andThen(order, order)
const failing = Effect.andThen(order, Effect.fail("on purpose"))

const boundaries: ReadonlyArray<Effect.Effect<unknown, unknown, SqlClient.SqlClient | Epilogue.Epilogue>> = [
  Epilogue.atomic(twice),
  Epilogue.atomic(twice),
  Epilogue.atomic(Effect.andThen(twice, failing)),
  Epilogue.atomic(Effect.all([order, Effect.ignore(Epilogue.savepoint(failing)), order])),
  Epilogue.atomic(Effect.all([order, Effect.ignore(Epilogue.atomic(Effect.andThen(twice, failing))), order])),
  SqlClient.SqlClient.use((sql) =>
    Epilogue.atomic(Effect.all([
      sql.withTransaction(order),
      Effect.ignore(sql.withTransaction(failing)),
      Effect.ignore(sql.withTransaction(Effect.andThen(sql.withTransaction(order), Effect.fail("on purpose"))))
    ]))
  ),
  SqlClient.SqlClient.use((sql) =>
    sql.withTransaction(Effect.all([
      Epilogue.atomic(twice),
      Effect.ignore(Epilogue.atomic(failing)),
      Effect.sleep(next() * 20),
      Epilogue.atomic(order)
    ]))
  ),
  SqlClient.SqlClient.use((sql) =>
    sql.withTransaction(Effect.andThen(Epilogue.atomic(twice), Effect.fail("on purpose")))
  )
]

const application = Effect.suspend(() => {
  const boundary = boundaries[Math.floor(next() * boundaries.length)]!
  return say("boundary").pipe(Effect.andThen(Effect.exit(boundary)), Effect.andThen(Effect.sleep(next() * pace)))
}).pipe(Effect.forever, Effect.forkChild, Effect.replicateEffect(3), Effect.flatMap(Fiber.awaitAll))

// The worker ----------------------------------------------------------------------------------------------------------

const worker = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const observer = yield* PgConnection.make({ url, applicationName: "observer" })
  const note = (event: string, { attempt, crashes, id }: Intent.Delivery) =>
    observer.queryValues(
      "INSERT INTO delivery (intent, worker, attempt, crashes, event) VALUES ($1::text::uuid, $2, $3, $4, $5)",
      [id, me, attempt, crashes, event]
    ).pipe(Effect.andThen(say(event)))
  const deliver = ({ failures }: { readonly failures: number }, delivery: Intent.Delivery) =>
    note("begin", delivery).pipe(
      Effect.andThen(Effect.sleep(next() * pace)),
      Effect.andThen(Effect.suspend(() =>
        delivery.attempt > failures
          ? note("end", delivery)
          : Effect.andThen(note("fail", delivery), Effect.fail("on purpose"))
      )),
      Effect.onInterrupt(() => Effect.ignore(note("interrupt", delivery)))
    )
  const Handlers = Layer.merge(
    Errand.toLayer(deliver),
    Booking.toLayer((payload, delivery) =>
      Effect.gen(function*() {
        const errand = yield* Errand.defer({ failures: 0 })
        yield* sql`INSERT INTO business (intent, tag, failures) VALUES (${errand}, 'Errand', 0)`
        yield* sql`INSERT INTO booked (intent, errand) VALUES (${delivery.id}, ${errand})`
        yield* deliver(payload, delivery)
      }), { transactional: true })
  )
  const Worker = OutboxWorker.layer({
    intents: [Errand, Booking],
    concurrency: 5,
    lease: "1 second",
    drainTimeout: "5 seconds"
  })
  yield* Layer.build(Worker.pipe(Layer.provide(Handlers)))
  yield* say("ready")
  return yield* Effect.never
}).pipe(Effect.scoped)

// Workers that deliver steps ------------------------------------------------------------------------------------------

/** Two workers, one of which fails now and then. What they do is written down by many at once. */
const stepper = Effect.gen(function*() {
  // Only workers are killed, not the server, so what is written down need not wait for the disk.
  const observer = yield* PgConnection.make({
    url,
    applicationName: "observer",
    multiplex: true,
    startupParameters: { synchronous_commit: "off" }
  })
  const note = (event: string, { attempt, crashes, id }: Intent.Delivery) =>
    observer.queryValues(
      "INSERT INTO delivery (intent, worker, attempt, crashes, event) VALUES ($1::text::uuid, $2, $3, $4, $5)",
      [id, me, attempt, crashes, event]
    )
  const Handler = Step.toLayer((_, delivery) =>
    Effect.gen(function*() {
      yield* note("begin", delivery)
      if (next() < 0.1) {
        yield* note("fail", delivery)
        return yield* Effect.fail("on purpose")
      }
      yield* note("end", delivery)
    })
  )
  const Worker = OutboxWorker.layer({ intents: [Step], concurrency: 20, lease: "2 seconds" })
  yield* Layer.build(Layer.merge(Worker, Layer.fresh(Worker)).pipe(Layer.provide(Handler)))
  yield* say("ready")
  return yield* Effect.never
}).pipe(Effect.scoped)

const Live = Outbox.layer.pipe(
  Layer.provideMerge(PgOutboxStore.layer()),
  Layer.provideMerge(PgClient.layer({ url, applicationName: role })),
  Layer.provideMerge(Logger.layer([logger])),
  Layer.provideMerge(Layer.succeed(References.MinimumLogLevel, "Warn"))
)

const running = Effect.runFork(
  Effect.suspend((): Effect.Effect<unknown, unknown, Layer.Success<typeof Live>> =>
    ({ application, worker, stepper })[role]
  ).pipe(Effect.provide(Live))
)
running.addObserver((exit) => {
  if (exit._tag === "Failure" && !Cause.hasInterruptsOnly(exit.cause)) {
    process.stdout.write(`failed ${Cause.pretty(exit.cause).replaceAll("\n", " ")}\n`)
    process.exitCode = 1
  }
})
process.once("SIGTERM", () => running.interruptUnsafe())
