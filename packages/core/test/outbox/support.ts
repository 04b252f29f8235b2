import { assert } from "@effect/vitest"
import { Intent, type IntentSink, Outbox, OutboxStore } from "@epilogue/core"
import { Clock, Context, type Duration, Effect, Exit, Layer, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"

export class Greet extends Intent.make("Greet", { payload: { name: Schema.String } }) {}

/** Lets every fiber go on until it waits for something. */
export const settled: Effect.Effect<void> = Effect.forEach(Array.from({ length: 100 }), () => Effect.yieldNow, {
  discard: true
})

/** Lets time pass, and fibers settle before and after. */
export const elapse = (duration: Duration.Input): Effect.Effect<void> =>
  settled.pipe(Effect.andThen(TestClock.adjust(duration)), Effect.andThen(settled))

type Opening = ReturnType<OutboxStore.OutboxStore.Service["open"]>

/**
 * The memory store, with something about its sessions changed, and about how they are opened. They are numbered as they
 * are opened, from 0.
 */
export const storeWith = (
  change: (session: OutboxStore.Session, index: number) => Partial<OutboxStore.Session>,
  around: (open: Opening, index: number) => Opening = (open) => open
): typeof OutboxStore.layerMemory =>
  Layer.effect(
    OutboxStore.OutboxStore,
    Effect.map(OutboxStore.OutboxStore, (store) => {
      let sessions = 0
      return {
        ...store,
        open: (options: OutboxStore.OpenOptions) =>
          Effect.suspend(() =>
            around(
              Effect.map(store.open(options), (session) => ({ ...session, ...change(session, sessions++) })),
              sessions
            )
          )
      }
    })
  ).pipe(Layer.provideMerge(OutboxStore.layerMemory))

type Worker = Layer.Layer<never, IntentSink.IntentStoreError, OutboxStore.OutboxStore>

/** A store with an engine over it, and any number of workers. */
export const makeOutbox = Effect.fnUntraced(function*(
  store: typeof OutboxStore.layerMemory = OutboxStore.layerMemory
) {
  const context = yield* Layer.build(Outbox.layer.pipe(Layer.provideMerge(store)))
  const { depths } = Context.get(context, OutboxStore.OutboxStore)
  return {
    provide: Effect.provideContext(context),
    store: Context.get(context, OutboxStore.OutboxStore),
    /** Starts a worker. Answers with what closes it. */
    start: Effect.fnUntraced(function*(worker: Worker) {
      const scope = yield* Scope.make()
      yield* Layer.buildWithScope(Layer.fresh(worker), scope).pipe(Effect.provideContext(context))
      yield* settled
      return { close: Scope.close(scope, Exit.void) }
    }),
    /** What there is of one tag. */
    depth: (tag = "Greet") =>
      Effect.map(
        depths,
        (all) => all.find((depth) => depth.tag === tag) ?? { tag, waiting: 0, delayed: 0, dead: 0, oldest: 0 }
      ),
    /** Asserts that nothing is left of one tag. */
    isEmpty: Effect.map(depths, (all) => assert.deepStrictEqual(all, []))
  }
})

/** Now, in milliseconds since the test began. */
export const now: Effect.Effect<number> = Clock.currentTimeMillis
