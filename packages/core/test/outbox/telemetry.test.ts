import { assert, describe, it } from "@effect/vitest"
import { Epilogue, Intent, OutboxWorker } from "@epilogue/core"
import { Effect, Exit, Layer, Metric, Schedule, Schema, Tracer } from "effect"
import { CapturedLogs } from "../support.ts"
import { elapse, Greet, makeOutbox, settled } from "./support.ts"

/** Keeps the spans that are made. */
const makeTracer = () => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return {
    layer: Layer.succeed(Tracer.Tracer, tracer),
    /** The spans of one name, which have ended. */
    named: (name: string) => spans.filter((span) => span.name === name && span.status._tag === "Ended")
  }
}

const greeting = (handler: (name: string) => Effect.Effect<unknown, unknown>) =>
  OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide(Greet.toLayer(({ name }) => handler(name))))

describe("spans", () => {
  it.effect("a delivery is a consumer span that links to the span that deferred its intent", () =>
    Effect.gen(function*() {
      const { layer, named } = makeTracer()
      const { provide, start } = yield* makeOutbox()
      yield* Effect.provide(start(greeting(() => Effect.withSpan(Effect.void, "inside"))), layer)
      const id = yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" }))).pipe(
        Effect.withSpan("checkout"),
        Effect.provide(layer)
      )
      yield* settled
      const [checkout] = named("checkout")
      const [delivery, ...others] = named("process Greet")
      assert.strictEqual(others.length, 0)
      assert(checkout !== undefined && delivery !== undefined)
      assert.strictEqual(delivery.kind, "consumer")
      assert.deepStrictEqual(delivery.links.map(({ span }) => [span.traceId, span.spanId]), [
        [checkout.traceId, checkout.spanId]
      ])
      // It is a trace of its own: the one that deferred is long over.
      assert.notStrictEqual(delivery.traceId, checkout.traceId)
      assert.deepStrictEqual(Object.fromEntries(delivery.attributes), {
        "messaging.operation.name": "process",
        "messaging.destination.name": "Greet",
        "messaging.message.id": id,
        "epilogue.attempt": 1
      })
      const [inside] = named("inside")
      assert(inside !== undefined && inside.parent._tag === "Some")
      assert.strictEqual(inside.traceId, delivery.traceId)
      assert.strictEqual(inside.parent.value.spanId, delivery.spanId)
    }))

  it.effect("each attempt is a span, and one that failed says so", () =>
    Effect.gen(function*() {
      const { layer, named } = makeTracer()
      const { provide, start } = yield* makeOutbox()
      let failures = 0
      yield* Effect.provide(
        start(greeting(() => Effect.suspend(() => ++failures === 1 ? Effect.fail("no") : Effect.void))),
        [layer, new CapturedLogs().layer]
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" }))).pipe(
        Effect.withSpan("checkout"),
        Effect.provide(layer)
      )
      yield* elapse("1 second")
      const deliveries = named("process Greet")
      assert.deepStrictEqual(deliveries.map(({ attributes }) => attributes.get("epilogue.attempt")), [1, 2])
      assert.deepStrictEqual(
        deliveries.map(({ status }) => status._tag === "Ended" && Exit.isSuccess(status.exit)),
        [false, true]
      )
      assert.deepStrictEqual(deliveries.map(({ links }) => links.length), [1, 1])
    }))

  it.effect("an intent that was deferred outside of any span has no link", () =>
    Effect.gen(function*() {
      const { layer, named } = makeTracer()
      const { provide, start } = yield* makeOutbox()
      yield* Effect.provide(start(greeting(() => Effect.void)), layer)
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* settled
      assert.deepStrictEqual(named("process Greet").map(({ links }) => links), [[]])
    }))

  it.effect("a batch is one span that links to each of those that deferred", () =>
    Effect.gen(function*() {
      const { layer, named } = makeTracer()
      const { provide, start } = yield* makeOutbox()
      const Handler = Greet.toLayerBatched((deliveries) => Effect.succeed(deliveries.map(() => Exit.void)), {
        maxSize: 3,
        maxWait: "1 second"
      })
      yield* Effect.provide(start(OutboxWorker.layer({ intents: [Greet] }).pipe(Layer.provide(Handler))), layer)
      for (const name of ["a", "b"]) {
        yield* provide(Epilogue.atomic(Greet.defer({ name }))).pipe(
          Effect.withSpan(`checkout ${name}`),
          Effect.provide(layer)
        )
      }
      yield* provide(Epilogue.atomic(Greet.defer({ name: "c" })))
      yield* settled
      const [batch] = named("process Greet")
      assert(batch !== undefined)
      assert.deepStrictEqual(
        batch.links.map(({ span }) => span.spanId),
        ["a", "b"].map((name) => named(`checkout ${name}`)[0]?.spanId)
      )
      assert.strictEqual(batch.kind, "consumer")
      assert.strictEqual(batch.attributes.get("messaging.batch.message_count"), 3)
    }))

  it.effect("nobody makes spans where nobody looks", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      const parents: Array<unknown> = []
      yield* start(
        greeting(() => Effect.map(Effect.option(Effect.currentParentSpan), (parent) => parents.push(parent._tag)))
      )
      yield* provide(Epilogue.atomic(Greet.defer({ name: "Ada" })))
      yield* settled
      assert.deepStrictEqual(parents, ["None"])
    }))
})

describe("metrics", () => {
  const outcomes = ["succeeded", "failed", "snoozed", "dead", "undecodable", "lost"] as const

  const countsOf = Effect.fnUntraced(function*(tag: string) {
    const counts: Record<string, number> = {}
    for (const outcome of outcomes) {
      const { count } = yield* Metric.value(
        Metric.counter("epilogue.deliveries", {
          incremental: true,
          attributes: { "messaging.destination.name": tag, outcome }
        })
      )
      if (count > 0) counts[outcome] = count
    }
    return counts
  })

  const inFlight = (tag: string) =>
    Effect.map(
      Metric.value(
        Metric.gauge("epilogue.deliveries.in_flight", { attributes: { "messaging.destination.name": tag } })
      ),
      ({ value }) => value
    )

  /** How often a histogram of one tag was updated, and with what in all. */
  const sumOf = (id: string, tag: string) =>
    Effect.map(
      Metric.value(Metric.histogram(id, {
        attributes: { "messaging.destination.name": tag },
        boundaries: [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
      })),
      ({ count, sum }) => ({ count, sum })
    )

  /** With metrics of its own. */
  const isolated = <A, E, R>(test: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => Effect.provideService(test, Metric.MetricRegistry, new Map()))

  class Job
    extends Intent.make("Job", { payload: Schema.String, retry: Schedule.spaced("1 minute"), maxAttempts: 2 })
  {}
  class OldJob extends Intent.make("Job", { payload: Schema.Int }) {}

  it.effect("deliveries are counted by tag and by what became of them", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      const handle = (what: string, attempt: number): Effect.Effect<unknown, unknown> =>
        what === "fails"
          ? Effect.fail("no")
          : what === "fails once" && attempt === 1
          ? Effect.fail("no")
          : what === "is rejected"
          ? Intent.reject("no")
          : what === "snoozes"
          ? Intent.snooze("1 hour")
          : Effect.void
      yield* start(
        OutboxWorker.layer({ intents: [Job, Greet] }).pipe(
          Layer.provide([Job.toLayer((what, { attempt }) => handle(what, attempt)), Greet.toLayer(() => Effect.void)])
        )
      )
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        for (const what of ["succeeds", "fails", "fails once", "is rejected", "snoozes"]) yield* Job.defer(what)
        yield* OldJob.defer(1)
        yield* Greet.defer({ name: "Ada" })
      })))
      yield* elapse("90 seconds")
      assert.deepStrictEqual(yield* countsOf("Greet"), { succeeded: 1 })
      assert.deepStrictEqual(yield* countsOf("Job"), {
        succeeded: 2,
        snoozed: 1,
        dead: 2,
        undecodable: 1,
        // Those that made a dead letter have failed as well.
        failed: 4
      })
    }).pipe(isolated, Effect.provide(new CapturedLogs().layer)))

  it.effect("in_flight says what runs, and is back at 0 when nothing does, however it ended", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      const { close } = yield* start(
        OutboxWorker.layer({ intents: [Job, Greet], drainTimeout: "1 second" }).pipe(
          Layer.provide([
            Job.toLayer((what) =>
              Effect.andThen(Effect.sleep("5 seconds"), what === "fails" ? Effect.fail("no") : Effect.void)
            ),
            Greet.toLayerBatched(
              (deliveries) => Effect.as(Effect.sleep("5 seconds"), deliveries.map(() => Exit.void)),
              { maxSize: 3, maxWait: "1 second" }
            )
          ])
        )
      )
      yield* provide(Epilogue.atomic(Effect.gen(function*() {
        yield* Job.defer("succeeds")
        yield* Job.defer("fails")
        for (const name of ["a", "b", "c"]) yield* Greet.defer({ name })
      })))
      yield* settled
      assert.deepStrictEqual([yield* inFlight("Job"), yield* inFlight("Greet")], [2, 3])
      yield* elapse("5 seconds")
      assert.deepStrictEqual([yield* inFlight("Job"), yield* inFlight("Greet")], [0, 0])
      yield* provide(Epilogue.atomic(Job.defer("is interrupted")))
      yield* settled
      assert.strictEqual(yield* inFlight("Job"), 1)
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* elapse("1 second")
      assert.isDefined(closing.pollUnsafe())
      assert.strictEqual(yield* inFlight("Job"), 0)
    }).pipe(isolated, Effect.provide(new CapturedLogs().layer)))

  it.effect("durations are those of the handler, and those from the commit to the success", () =>
    Effect.gen(function*() {
      const { provide, start } = yield* makeOutbox()
      yield* start(
        OutboxWorker.layer({ intents: [Job] }).pipe(
          Layer.provide(
            Job.toLayer((_, { attempt }) =>
              Effect.andThen(Effect.sleep("2 seconds"), attempt === 1 ? Effect.fail("no") : Effect.void)
            )
          )
        )
      )
      yield* provide(Epilogue.atomic(Job.defer("a")))
      yield* elapse("2 minutes")
      assert.deepStrictEqual(yield* sumOf("messaging.process.duration", "Job"), { count: 2, sum: 4 })
      assert.deepStrictEqual(yield* sumOf("epilogue.delivery.duration", "Job"), { count: 1, sum: 64 })
    }).pipe(isolated, Effect.provide(new CapturedLogs().layer)))
})
