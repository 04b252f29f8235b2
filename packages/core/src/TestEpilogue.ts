/**
 * An engine for unit tests: it collects intents and runs none.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Committed } from "./Committed.ts"
import { Deferred, Queue, type Registered } from "./Deferred.ts"
import { Epilogue, make } from "./Engine.ts"
import { show } from "./InProcess.ts"
import type { PayloadSchema } from "./Intent.ts"
import type { Intent, Outcome } from "./Outcome.ts"

/**
 * An intent that was registered in a test.
 *
 * - `deferred`: its boundary is open, or there is none around it.
 * - `committed`: its boundary committed; in production, it runs.
 * - `discarded`: its boundary, savepoint or SQL transaction did not commit; in production, it never runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Collected extends Intent {
  readonly status: "deferred" | "committed" | "discarded"
}

/**
 * What was collected, and what a test can do with it.
 *
 * @category services
 * @since 0.1.0
 */
export class TestEpilogue extends Context.Service<TestEpilogue, {
  readonly intents: Effect.Effect<ReadonlyArray<Collected>>
  readonly payloads: (tag: string) => Effect.Effect<ReadonlyArray<unknown>>
  readonly run: Effect.Effect<ReadonlyArray<Outcome>>
  readonly reset: Effect.Effect<void>
}>()("@epilogue/core/TestEpilogue") {}

/**
 * Collects the intents of the program under test, and runs none of them.
 *
 * **Details**
 *
 * It provides `Deferred` too, so that code which defers can be tested without an `atomic` around it. `atomic` is an
 * outermost boundary all the same. Rollback hooks run as they do in production.
 *
 * A boundary inside a SQL transaction that the test wraps around it, to roll everything back at its end, counts as
 * committed when it ends. Savepoints inside it are told apart: the intents of one that rolls back are discarded.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Epilogue | Deferred | TestEpilogue> = Layer.effectContext(Effect.sync(() => {
  const collected = new Map<Registered, { readonly queue: Queue; readonly status: Collected["status"] }>()
  let committed: Array<Committed> = []

  const engine = make({
    commit: (epilogue) => Effect.sync(() => void committed.push(epilogue)),
    observe: (registered, status, queue) => {
      if (status === "replaced") collected.delete(registered)
      else collected.set(registered, { queue: collected.get(registered)?.queue ?? queue, status })
    },
    ignoresTransactions: true,
    typed: {
      refuse: () => undefined,
      show,
      perform: (registered) =>
        Effect.sync(() => registered.appended = { id: registered.envelope!.id, duplicate: false })
    }
  })
  const outside = new Queue("test", engine, undefined)

  // While a boundary is open, nothing has been replaced in it yet.
  const isReplaced = (registered: Registered, { queue, status }: { queue: Queue; status: Collected["status"] }) =>
    status === "deferred" && registered.key !== undefined && !queue.view(registered.context).includes(registered)

  const service: TestEpilogue["Service"] = {
    intents: Effect.sync(() =>
      Array.from(collected)
        .filter((entry) => !isReplaced(...entry))
        .map(([{ intent: { name, payload } }, { status }]) => ({ name, payload, status }))
    ),
    payloads: (tag) =>
      Effect.sync(() =>
        Array.from(collected).flatMap(([{ envelope, intent }, { status }]) =>
          envelope?.tag === tag && status === "committed" ? [intent.payload] : []
        )
      ),
    run: Effect.suspend(() => {
      const epilogues = committed
      committed = []
      return Effect.map(
        Effect.forEach(epilogues, (epilogue) => Effect.as(Effect.uninterruptible(epilogue.run), epilogue)),
        (done) => done.flatMap(({ outcomes }) => outcomes)
      )
    }),
    reset: Effect.sync(() => {
      outside.take()
      collected.clear()
      committed = []
    })
  }

  return Context.make(Epilogue, engine).pipe(
    Context.add(Deferred, outside),
    Context.add(TestEpilogue, service)
  )
}))

/**
 * Every intent registered so far, in order of registration. Of those with one `key`, the last.
 *
 * @category accessors
 * @since 0.1.0
 */
export const intents: Effect.Effect<ReadonlyArray<Collected>, never, TestEpilogue> = TestEpilogue.use((self) =>
  self.intents
)

/**
 * The payloads of one typed intent that have committed, in order of registration. They have been encoded and decoded
 * once, so that a test finds what would not survive a store.
 *
 * @category accessors
 * @since 0.1.0
 */
export const payloads = <S extends PayloadSchema>(
  intent: { readonly _tag: string; readonly payloadSchema: S }
): Effect.Effect<ReadonlyArray<S["Type"]>, never, TestEpilogue> =>
  // Its own schema has decoded them.
  TestEpilogue.use((self) => self.payloads(intent._tag)) as Effect.Effect<ReadonlyArray<S["Type"]>, never, TestEpilogue>

/**
 * Runs the closures that have committed and have not run yet, as `Epilogue.layer` would have, and answers with the
 * outcomes of all that has committed. Those of an `atomic` inside an intent are collected again. Typed intents are not
 * handled: their outcome is `Enqueued`.
 *
 * @category accessors
 * @since 0.1.0
 */
export const run: Effect.Effect<ReadonlyArray<Outcome>, never, TestEpilogue> = TestEpilogue.use((self) => self.run)

/**
 * Forgets every intent registered so far.
 *
 * @category accessors
 * @since 0.1.0
 */
export const reset: Effect.Effect<void, never, TestEpilogue> = TestEpilogue.use((self) => self.reset)
