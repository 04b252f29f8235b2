/**
 * The engine that lets `atomic` return at the commit, and runs the epilogue behind it.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import type { Committed } from "./Committed.ts"
import { type Engine, type EngineOptions, Epilogue, make, tellFailure } from "./Engine.ts"
import { type Handled, typedIn } from "./InProcess.ts"
import * as Metrics from "./Metrics.ts"

/**
 * Options of `layerBackground`.
 *
 * @category models
 * @since 0.1.0
 */
export interface BackgroundOptions<Intents extends ReadonlyArray<Handled> = []> extends EngineOptions {
  /** The typed intents that it handles, as `layerWith` does. Defaults to none. */
  readonly intents?: Intents | undefined
  /** How many epilogues run at once; the others wait. Defaults to `"unbounded"`. */
  readonly concurrency?: number | "unbounded" | undefined
  /**
   * How long closing the layer waits for epilogues that are not over. Then what runs is interrupted, and what has not
   * begun is skipped, logged as an error and told to `onFailure`. Defaults to no limit.
   */
  readonly drainTimeout?: Duration.Input | undefined
}

/**
 * `atomic` returns at the commit; the epilogue runs in a fiber that the scope of the layer owns and drains on close.
 *
 * **Details**
 *
 * In reports, the outcome of every intent is `Postponed`. Failures go to the log and `onFailure`. A commit that arrives
 * while the layer closes runs in the fiber of its boundary, as with `Epilogue.layer`. Epilogues of different
 * boundaries run side by side, also where one boundary came after the other.
 *
 * **Gotchas**
 *
 * Epilogues are lost if the process is killed. Provide the services that intents use *to* this layer
 * (`Layer.provideMerge`), so that they are still there while it drains.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerBackground = <const Intents extends ReadonlyArray<Handled> = []>(
  options: BackgroundOptions<Intents> = {}
): Layer.Layer<Epilogue, never, Intents[number]["~handler"]> =>
  Layer.effect(
    Epilogue,
    Effect.gen(function*() {
      const running = new Map<Committed, Fiber.Fiber<void>>()
      let isClosing = false
      const { concurrency = "unbounded" } = options
      const permits = concurrency === "unbounded" ? undefined : Semaphore.makeUnsafe(concurrency)

      const commit = (committed: Committed, tell: Engine["tell"]): Effect.Effect<void> =>
        Effect.suspend(() => {
          if (isClosing) return committed.run
          const epilogue = Effect.uninterruptibleMask((restore) =>
            Effect.andThen(committed.runWith(restore), tell(committed))
          )
          return Effect.map(Effect.forkDetach(permits?.withPermit(epilogue) ?? epilogue), (fiber) => {
            running.set(committed, fiber)
            fiber.addObserver(() => running.delete(committed))
          })
        })

      yield* Effect.addFinalizer(() =>
        Effect.suspend(() => {
          isClosing = true
          const drained = Fiber.awaitAll(running.values())
          return options.drainTimeout === undefined
            ? drained
            : Effect.timeoutOrElse(drained, { duration: options.drainTimeout, orElse: () => skip(running) })
        })
      )

      const skip = (epilogues: ReadonlyMap<Committed, Fiber.Fiber<void>>): Effect.Effect<void> =>
        Effect.withFiber(({ context }) => {
          const skipped = Array.from(epilogues).flatMap(([committed, fiber]) => {
            const { hasBegun } = committed
            committed.stop()
            fiber.interruptUnsafe()
            const intents = committed.skipped
            // An epilogue that has begun counts them itself, when it ends.
            if (!hasBegun) Metrics.intentsSkipped.updateUnsafe(intents.length, context)
            return intents
          })
          const cause = Cause.die(new Error("The drainTimeout ran out before the intent began"))
          return Effect.forEach(
            skipped,
            (intent) => tellFailure({ intent, cause }, options.onFailure, "was skipped"),
            { discard: true }
          )
        })

      const typed = options.intents === undefined ? undefined : yield* typedIn(options.intents)
      return make({ commit, onFailure: options.onFailure, typed })
    })
  )
