/**
 * Starts, watches and ends a worker, which is another process.
 */
import { PgClient } from "@effect/sql-pg"
import { Console, Effect, Fiber, Schema, Stream } from "effect"
import { ChildProcess } from "effect/process"
import * as Printout from "./Printout.ts"
import { Servers } from "./Servers.ts"

/** A worker ended that was not to, or failed. Its log says why. */
export class WorkerError extends Schema.TaggedError<WorkerError>()("WorkerError", {
  message: Schema.String
}) {}

/** Starts a program as a worker of the database and the servers that are in scope. */
export const start = Effect.fn("WorkerProcess.start")(function*(program: string) {
  const { mail, payments } = yield* Servers
  const { config } = yield* PgClient.PgClient
  const child = yield* ChildProcess.make(process.execPath, [program], {
    env: { SHOP_DATABASE_URL: config.url, MAIL_URL: mail.url, PAYMENTS_URL: payments.url },
    extendEnv: true
  })
  const log = yield* child.all.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) => Console.log(Printout.log(line))),
    Effect.forkScoped
  )
  const ended = Effect.tap(child.exitCode, Fiber.join(log))
  const fail = (message: string) => new WorkerError({ message })
  return {
    /** Waits for what the worker is to bring about. */
    during: <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      effect.pipe(
        Effect.raceFirst(Effect.flatMap(ended, (code) => fail(`The worker ended by itself, with exit code ${code}`))),
        Effect.timeoutOrElse({
          duration: "30 seconds",
          orElse: () => fail("After 30 seconds, there is still work left")
        })
      ),
    /** Ends it as a power cut does: it can finish nothing, hand back nothing, and say nothing. */
    kill: child.kill({ killSignal: "SIGKILL" }),
    /** Lets it end: it claims no more, and finishes what it has begun. */
    stop: Effect.gen(function*() {
      yield* Stream.run(Stream.empty, child.stdin)
      const code = yield* ended
      if (code !== 0) return yield* fail(`The worker failed, with exit code ${code}`)
    })
  }
})
