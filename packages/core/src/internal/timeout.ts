/**
 * The timeout of an intent.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"

/**
 * Like `Effect.timeout`, but waits no longer than `duration` even for an effect that does not let itself be
 * interrupted: that one is left to end by itself, and is logged if it fails after all.
 */
export const timeoutDetached = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  duration: Duration.Input,
  who: string
): Effect.Effect<A, E | Cause.TimeoutError, R> =>
  Effect.flatMap(Effect.forkDetach(effect, { startImmediately: true }), (fiber) => {
    const orElse = () => {
      fiber.interruptUnsafe()
      return Effect.andThen(
        Effect.forkDetach(logFailure(fiber, who)),
        Effect.fail(
          new Cause.TimeoutError(`The intent did not end within ${Duration.format(Duration.fromInputUnsafe(duration))}`)
        )
      )
    }
    return Effect.onInterrupt(
      Effect.timeoutOrElse(Fiber.join(fiber), { duration, orElse }),
      () => Effect.sync(() => fiber.interruptUnsafe())
    )
  })

const logFailure = (fiber: Fiber.Fiber<unknown, unknown>, who: string): Effect.Effect<void> =>
  Effect.flatMap(
    Fiber.await(fiber),
    (exit) =>
      Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)
        ? Effect.void
        : Effect.logError(`Intent "${who}" failed after its timeout`, exit.cause)
  )
