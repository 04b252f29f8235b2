import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"

/**
 * Like `Effect.timeout`, but waits no longer than `duration` even for an effect that does not let itself be
 * interrupted: that one is left to end by itself.
 */
export const timeoutDetached = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  duration: Duration.Input
): Effect.Effect<A, E | Cause.TimeoutError, R> =>
  Effect.flatMap(Effect.forkDetach(effect, { startImmediately: true }), (fiber) =>
    Effect.onInterrupt(
      Effect.timeoutOrElse(Fiber.join(fiber), {
        duration,
        orElse: () => {
          fiber.interruptUnsafe()
          return Effect.fail(
            new Cause.TimeoutError(
              `The intent did not end within ${Duration.format(Duration.fromInputUnsafe(duration))}`
            )
          )
        }
      }),
      () => Effect.sync(() => fiber.interruptUnsafe())
    ))
