/**
 * What was running when its worker died is a suspect, until it has run alone: then a worker that dies has died of it.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import { persistently } from "./Outage.ts"
import type { Claimed, Session } from "./OutboxStore.ts"

/** What it takes of a worker. */
interface Worker {
  readonly now: () => number
  readonly isFree: () => boolean
  /** Claims nothing meanwhile, and hands back what has not begun. */
  readonly alone: <A>(effect: Effect.Effect<A>) => Effect.Effect<A>
  /** Waits until nothing runs, and all is settled. */
  readonly rest: Effect.Effect<void>
  /** Delivers it, and waits until that is settled. Answers whether it was permitted to. */
  readonly deliver: (suspect: Claimed) => Effect.Effect<boolean>
  /** Beats soon. */
  readonly beat: () => void
}

/** Between two suspects, other work goes on for at least so many milliseconds. */
const leastBreak = 10

export class Suspects {
  private readonly session: Session
  private readonly worker: Worker
  private readonly lease: number
  private readonly areThere = Latch.makeUnsafe(false)
  private readonly areNone = Latch.makeUnsafe(true)
  /** How many beats in a row have told of suspects. */
  private heard = 0
  /** How long what runs has time to end, in milliseconds. */
  private patience: number

  constructor(session: Session, lease: Duration.Duration, worker: Worker) {
    this.session = session
    this.worker = worker
    this.lease = Duration.toMillis(lease)
    this.patience = this.lease
  }

  /** A beat has told whether there are any. A worker that is busy leaves them to others for one beat. */
  hear(hasSuspects: boolean): void {
    this.heard = hasSuspects ? this.heard + 1 : 0
    if (!hasSuspects) {
      this.areThere.closeUnsafe()
      this.areNone.openUnsafe()
      return
    }
    this.areNone.closeUnsafe()
    if (this.heard > 1 || this.worker.isFree()) this.areThere.openUnsafe()
  }

  /** This worker sees to them, if there are any. */
  expect(): void {
    this.heard = Math.max(1, this.heard)
    this.worker.beat()
  }

  /** Runs one after the other, each of them alone, and in between what else there is to do. */
  readonly isolateAll: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    while (true) {
      yield* this.areThere.await
      const begun = this.worker.now()
      const outcome = yield* this.worker.alone(this.isolateOne)
      this.areThere.closeUnsafe()
      this.heard = 0
      const taken = this.worker.now() - begun
      // A worker with handlers that take long gets to them as well, but does not stand still for most of its time.
      this.patience = outcome === "busy" ? this.patience * 2 : this.lease
      yield* Effect.sleep(Math.max(leastBreak, outcome === "busy" ? taken : Math.min(taken, this.lease)))
      if (outcome === "delivered") this.expect()
    }
  })

  /**
   * It is claimed only when nothing else runs, so that another worker, which may be sooner, can have it. What runs has
   * time to end; if it takes longer, this worker goes on with its work, and has more patience the next time.
   */
  private readonly isolateOne: Effect.Effect<"delivered" | "none" | "busy" | "refused"> = Effect.gen(
    { self: this },
    function*() {
      const rested = yield* Effect.raceAllFirst([
        Effect.as(this.worker.rest, "rested" as const),
        Effect.as(this.areNone.await, "none" as const),
        Effect.as(Effect.sleep(this.patience), "busy" as const)
      ])
      if (rested !== "rested") return rested
      const suspect = yield* persistently("claim a suspect", Effect.suspend(() => this.session.claimSuspect))
      if (suspect === undefined) return "none"
      return (yield* this.worker.deliver(suspect)) ? "delivered" : "refused"
    }
  )
}
