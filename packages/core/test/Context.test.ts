import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, Fiber, Latch, Layer, Metric, Option, References, Tracer } from "effect"
import { Epilogue } from "../src/index.ts"
import { makeLog } from "./support.ts"

class Tenant extends Context.Service<Tenant, string>()("Tenant") {}
class Extra extends Context.Service<Extra, string>()("Extra") {}

describe("context", () => {
  it.effect("law 8: an intent runs with the services and references in scope where it was registered", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const see = Effect.flatMap(
        Effect.all([Tenant, References.MinimumLogLevel]),
        ([tenant, level]) => log.add(`${tenant} ${level}`)
      )
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(see)
        yield* Epilogue.defer(see)
        yield* Effect.provideService(Epilogue.defer(see), Tenant, "inner")
        yield* Effect.provideService(Epilogue.defer(see), References.MinimumLogLevel, "Error")
        yield* Epilogue.defer(see)
      }))
      assert.deepStrictEqual(log.lines, ["outer Info", "outer Info", "inner Info", "outer Error", "outer Info"])
    }).pipe(Effect.provideService(Tenant, "outer"), Effect.provide(Epilogue.layer)))

  it.effect("law 8: the context replaces that of the place where it runs, it is not merged into it", () =>
    Effect.gen(function*() {
      const seen: Array<Option.Option<string>> = []
      const see = Effect.map(Effect.serviceOption(Extra), (extra) => void seen.push(extra))
      const held: Array<Epilogue.Committed> = []
      yield* Epilogue.atomic(Epilogue.defer(see)).pipe(
        Effect.provide(Layer.succeed(
          Epilogue.Epilogue,
          Epilogue.make({ commit: (committed) => Effect.sync(() => void held.push(committed)) })
        ))
      )
      yield* Effect.provideService(held[0]!.run, Extra, "of the place")
      assert.deepStrictEqual(seen, [Option.none()])
    }))

  it.effect("law 8: the context of the place is back after the epilogue, and between intents nothing leaks", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.gen(function*() {
        yield* Epilogue.atomic(Effect.gen(function*() {
          yield* Effect.provideService(Epilogue.defer(Effect.flatMap(Tenant, log.add)), Tenant, "inner")
        }))
        yield* Effect.flatMap(Tenant, log.add)
        assert.isFalse(yield* Epilogue.isOpen)
      })
      assert.deepStrictEqual(log.lines, ["inner", "outer"])
    }).pipe(Effect.provideService(Tenant, "outer"), Effect.provide(Epilogue.layer)))

  it.effect("law 8: also where intents run concurrently", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Epilogue.atomicWith({ concurrency: "unbounded" })(
        Effect.forEach(["a", "b"], (tenant) =>
          Effect.provideService(
            Epilogue.defer(Effect.andThen(Effect.yieldNow, Effect.flatMap(Tenant, log.add))),
            Tenant,
            tenant
          ))
      )
      assert.deepStrictEqual(log.lines, ["a", "b"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 8: a hook too runs with the services in scope where it was registered", () =>
    Effect.gen(function*() {
      const log = makeLog()
      yield* Effect.exit(Epilogue.atomic(Effect.gen(function*() {
        yield* Effect.provideService(Epilogue.deferRollback(Effect.flatMap(Tenant, log.add)), Tenant, "inner")
        return yield* Effect.fail("no")
      })))
      assert.deepStrictEqual(log.lines, ["inner"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 8: an intent's queue is that of its own epilogue", () =>
    Effect.gen(function*() {
      yield* Epilogue.atomic(Effect.gen(function*() {
        const queue = yield* Epilogue.Deferred
        yield* Epilogue.defer(Effect.gen(function*() {
          assert.notStrictEqual(yield* Epilogue.Deferred, queue)
          yield* Epilogue.defer(Effect.void, { name: "cascade" })
          assert.deepStrictEqual((yield* Epilogue.intents).map(({ name }) => name), ["cascade"])
        }))
      }))
    }).pipe(Effect.provide(Epilogue.layer)))
})

describe("spans", () => {
  const collect = () => {
    const spans: Array<Tracer.NativeSpan> = []
    const tracer = Tracer.make({
      span(options) {
        const span = new Tracer.NativeSpan(options)
        spans.push(span)
        return span
      }
    })
    return { spans, tracer }
  }

  it.effect("law 8: an intent's span is a child of the epilogue's, and links to the span that registered it", () =>
    Effect.gen(function*() {
      const { spans, tracer } = collect()
      yield* Effect.gen(function*() {
        yield* Epilogue.atomicWith({ name: "checkout" })(
          Effect.withSpan(Epilogue.defer(Effect.withSpan(Effect.void, "http"), { name: "charge" }), "save")
        )
      }).pipe(Effect.withSpan("request"), Effect.provideService(Tracer.Tracer, tracer))
      const named = (name: string) => spans.find((span) => span.name === name)!
      assert.deepStrictEqual(spans.map(({ name }) => name), [
        "request",
        "save",
        "epilogue checkout",
        "intent charge",
        "http"
      ])
      assert.strictEqual(parentOf(named("save")), named("request"))
      assert.strictEqual(parentOf(named("epilogue checkout")), named("request"))
      assert.strictEqual(parentOf(named("intent charge")), named("epilogue checkout"))
      assert.strictEqual(parentOf(named("http")), named("intent charge"))
      assert.deepStrictEqual(named("intent charge").links.map(({ span }) => span), [named("save")])
      assert.deepStrictEqual([...named("epilogue checkout").attributes], [["epilogue.intents", 1]])
      assert.deepStrictEqual([...named("intent charge").attributes], [["epilogue.intent", "charge"]])
      assert.isTrue(spans.every(({ status }) => status._tag === "Ended"))
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("law 8: it is so too where only the intent has a span, where only a tracer is there, and concurrently", () =>
    Effect.gen(function*() {
      const current = (into: Array<Tracer.Span>) => Effect.map(Effect.currentSpan, (span) => void into.push(span))
      const seen: Array<Tracer.Span> = []
      yield* Epilogue.atomic(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.orDie(current(seen)), { name: "plain" })
        yield* Effect.withSpan(Epilogue.defer(Effect.orDie(current(seen)), { name: "traced" }), "save")
      }))
      assert.deepStrictEqual(seen.map(({ name }) => name), ["intent plain", "intent traced"])
      assert.deepStrictEqual(seen.map((span) => span.links.length), [0, 1])

      const { spans, tracer } = collect()
      yield* Epilogue.atomicWith({ concurrency: 2 })(Epilogue.defer(Effect.void)).pipe(
        Effect.provideService(Tracer.Tracer, tracer)
      )
      assert.deepStrictEqual(spans.map(({ name }) => name), ["epilogue", "intent anonymous"])
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("a failing intent ends its span with its failure", () =>
    Effect.gen(function*() {
      const { spans, tracer } = collect()
      yield* Epilogue.report(Epilogue.defer(Effect.fail("no"))).pipe(Effect.provideService(Tracer.Tracer, tracer))
      const { status } = spans[1]!
      assert(status._tag === "Ended")
      assert(Exit.isFailure(status.exit))
      assert.strictEqual(Cause.squash(status.exit.cause), "no")
    }).pipe(Effect.provide(Epilogue.layer)))

  it.effect("with no tracer and no span, there are no spans", () =>
    Epilogue.atomic(Epilogue.defer(Effect.gen(function*() {
      assert.isTrue(Option.isNone(yield* Effect.option(Effect.currentSpan)))
    }))).pipe(Effect.provide(Epilogue.layer)))
})

describe("metrics", () => {
  it.effect("boundaries and intents are counted by outcome", () =>
    Effect.gen(function*() {
      yield* Effect.exit(Epilogue.atomic(Effect.fail("no")))
      yield* Epilogue.report(Effect.void)
      yield* Epilogue.reportWith({ mode: "stop" })(Effect.gen(function*() {
        yield* Epilogue.defer(Effect.void)
        yield* Epilogue.defer(Effect.void)
        yield* Epilogue.defer(Effect.fail("no"))
        yield* Epilogue.defer(Effect.void)
      }))
      const snapshot = yield* Metric.snapshot
      const counts = Object.fromEntries(
        snapshot.filter(({ id }) => id.startsWith("epilogue.")).map((metric) => [
          `${metric.id} ${metric.attributes?.["outcome"]}`,
          metric.type === "Counter" ? Number(metric.state.count) : undefined
        ])
      )
      assert.deepStrictEqual(counts, {
        "epilogue.boundaries discarded": 1,
        "epilogue.boundaries committed": 2,
        "epilogue.intents succeeded": 2,
        "epilogue.intents failed": 1,
        "epilogue.intents skipped": 1
      })
    }).pipe(Effect.provide(Epilogue.layer), Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("metrics of what did not happen", () => {
  it.effect("an outcome that never came has no series", () =>
    Effect.gen(function*() {
      const ids = Effect.map(Metric.snapshot, (all) =>
        all.filter(({ id }) =>
          id.startsWith("epilogue.")
        ).map(({ attributes, id }) => `${id} ${attributes?.["outcome"]}`))
      yield* Epilogue.atomic(Epilogue.defer(Effect.void))
      assert.sameMembers(yield* ids, ["epilogue.boundaries committed", "epilogue.intents succeeded"])
    }).pipe(Effect.provide(Epilogue.layer), Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("nor has success, where everything failed", () =>
    Effect.gen(function*() {
      yield* Epilogue.report(Epilogue.defer(Effect.fail("no")))
      const snapshot = yield* Metric.snapshot
      assert.isUndefined(snapshot.find(({ attributes }) => attributes?.["outcome"] === "succeeded"))
    }).pipe(Effect.provide(Epilogue.layer), Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("nesting", () => {
  it.effect("law 8: an intent that is run by another boundary's epilogue still sees its own context", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const gate = yield* Latch.make()
      const fiber = yield* Effect.forkChild(
        Epilogue.atomic(Epilogue.defer(Effect.andThen(gate.await, Effect.flatMap(Tenant, log.add)))).pipe(
          Effect.provideService(Tenant, "a")
        ),
        { startImmediately: true }
      )
      yield* gate.open
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(log.lines, ["a"])
    }).pipe(Effect.provide(Epilogue.layer)))
})

const parentOf = (span: Tracer.Span): Tracer.AnySpan | undefined => Option.getOrUndefined(span.parent)
