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

/**
 * A process that works with a store, and can be killed: then nothing that it does arrives any more, and nothing frees what
 * it has claimed.
 */
export class Process {
  private isDead = false
  /** What its handlers run, which is over with it. */
  readonly kill: Effect.Effect<never> = Effect.suspend(() => {
    this.isDead = true
    return Effect.never
  })

  readonly layer: Layer.Layer<OutboxStore.OutboxStore, never, OutboxStore.OutboxStore> = Layer.effect(
    OutboxStore.OutboxStore,
    Effect.map(OutboxStore.OutboxStore, (store) => ({
      ...store,
      open: Effect.fnUntraced(function*(this: Process, options: OutboxStore.OpenOptions) {
        if (this.isDead) return yield* Effect.never
        const scope = yield* Scope.make()
        yield* Effect.addFinalizer((exit) => this.isDead ? Effect.void : Scope.close(scope, exit))
        const session = yield* Scope.provide(store.open(options), scope)
        const alive = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
          Effect.suspend(() => this.isDead ? Effect.never : effect)
        return {
          claim: (limit) => alive(session.claim(limit)),
          claimSuspect: alive(session.claimSuspect),
          settle: (settlements) => alive(session.settle(settlements)),
          settleInTransaction: (claimed) => alive(session.settleInTransaction(claimed)),
          start: (claimed) => alive(session.start(claimed)),
          permit: (wants) => alive(session.permit(wants)),
          beat: alive(session.beat),
          recover: alive(session.recover),
          wakes: alive(session.wakes)
        } satisfies OutboxStore.Session
      }).bind(this)
    }))
  )
}

/** Keeps what a store is told, one entry for each call. */
export const recorded = () => {
  const settles: Array<ReadonlyArray<OutboxStore.Settlement>> = []
  const starts: Array<ReadonlyArray<OutboxStore.Claimed>> = []
  const store = storeWith((session) => ({
    settle: (settlements) => {
      settles.push(settlements)
      return session.settle(settlements)
    },
    start: (claimed) => {
      starts.push(claimed)
      return session.start(claimed)
    }
  }))
  return { settles, starts, store }
}
