/**
 * What a worker tells its store of deliveries, together: that they have started, and how they are settled.
 *
 * Whatever has come together while the last flush was under way is the next one. So it costs the more for each the less
 * there is to do, and a busy worker is not held up. A delivery that has begun and ended since the last flush is not told
 * to have started.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { constVoid } from "effect/Function"
import * as Latch from "effect/Latch"
import type { Batch } from "./Job.ts"
import { persistently } from "./Outage.ts"
import type { Claimed, Session, Settlement } from "./OutboxStore.ts"
import { type Slot, underWayIn } from "./Slot.ts"

/** Who hears of what came of it. */
interface Observer {
  /** There is less to settle. */
  readonly onFlush: () => void
  /** The store did not settle it, because its lease was lost. */
  readonly onLost: (claimed: Claimed) => void
  /** What runs in a slot has lost its lease. */
  readonly onStale: (slot: Slot) => void
}

/** What is told to have started. */
interface Start {
  readonly slot: Slot
  readonly current: Claimed | Batch
}

export class GroupCommit {
  private readonly session: Session
  private readonly slots: ReadonlyArray<Slot>
  private readonly observer: Observer
  private settlements: Array<Settlement> = []
  /** How many are being settled. */
  private inFlight = 0
  private readonly isWanted = Latch.makeUnsafe(false)
  /** Open while nothing is left to settle. */
  readonly isSettled: Latch.Latch = Latch.makeUnsafe(true)

  constructor(session: Session, slots: ReadonlyArray<Slot>, observer: Observer) {
    this.session = session
    this.slots = slots
    this.observer = observer
  }

  /** How many are to be settled. */
  get size(): number {
    return this.settlements.length + this.inFlight
  }

  settle(settlement: Settlement): void {
    this.settlements.push(settlement)
    this.isSettled.closeUnsafe()
    this.isWanted.openUnsafe()
  }

  /** Settles them in one flush. */
  settleAll(settlements: ReadonlyArray<Settlement>): void {
    if (settlements.length === 0) return
    for (const each of settlements) this.settlements.push(each)
    this.isSettled.closeUnsafe()
    this.isWanted.openUnsafe()
  }

  /** Something has begun in a slot. */
  look(): void {
    this.isWanted.openUnsafe()
  }

  /** Waits until the start of what is under way in a slot is on record. Answers whether its lease still holds. */
  record(slot: Slot): Effect.Effect<boolean> {
    return Effect.suspend(() => {
      slot.recording = Deferred.makeUnsafe()
      this.look()
      return Deferred.await(slot.recording)
    })
  }

  readonly flushAll: Effect.Effect<void> = Effect.suspend(() => {
    let looksAgain = false
    /** What has been under way since the last look is not over in a moment, so it is worth telling. */
    const begun = (): ReadonlyArray<Start> => {
      looksAgain = false
      const starts: Array<Start> = []
      for (const slot of this.slots) {
        const { current } = slot
        // One that is on record before it waits for that is told again, for the answer.
        if (current === undefined || (current === slot.recorded && slot.recording === undefined)) continue
        if (current === slot.seen || slot.recording !== undefined) {
          starts.push({ slot, current })
        } else {
          slot.seen = current
          looksAgain = true
        }
      }
      return starts
    }
    const next = (): Effect.Effect<void> => {
      if (this.settlements.length === 0) this.isSettled.openUnsafe()
      const starts = begun()
      const { settlements } = this
      if (settlements.length === 0 && starts.length === 0) {
        if (looksAgain) return Effect.void
        this.isWanted.closeUnsafe()
        return this.isWanted.await
      }
      this.settlements = []
      this.inFlight = settlements.length
      return starts.length === 0
        ? this.flush(settlements)
        : settlements.length === 0
        ? this.start(starts)
        : Effect.all([this.flush(settlements), this.start(starts)], { concurrency: 2, discard: true })
    }
    return Effect.whileLoop<unknown, never, never>({
      while: () => true,
      // Handlers that take no time, and were in the middle of it, are over when it looks again.
      body: () => Effect.andThen(next(), Effect.yieldNow),
      step: constVoid
    })
  })

  private flush(settlements: ReadonlyArray<Settlement>): Effect.Effect<void> {
    return Effect.map(persistently("settle", Effect.suspend(() => this.session.settle(settlements))), (lost) => {
      this.inFlight = 0
      this.observer.onFlush()
      if (lost.length === 0) return
      const ids = new Set(lost)
      for (const { claimed } of settlements) if (ids.has(claimed.id)) this.observer.onLost(claimed)
    })
  }

  private start(starts: ReadonlyArray<Start>): Effect.Effect<void> {
    const claimed = starts.flatMap(({ slot }) => underWayIn(slot))
    for (const { current, slot } of starts) slot.recorded = current
    return Effect.map(
      persistently("record what it has started", Effect.suspend(() => this.session.start(claimed))),
      (lost) => {
        const ids = new Set(lost)
        for (const { current, slot } of starts) {
          // It has ended in the meantime, and what is there now is another one.
          if (slot.current !== current) continue
          const isHeld = !underWayIn(slot).some(({ id }) => ids.has(id))
          const { recording } = slot
          slot.recording = undefined
          if (recording !== undefined) Deferred.doneUnsafe(recording, Effect.succeed(isHeld))
          else if (!isHeld) this.observer.onStale(slot)
        }
      }
    )
  }
}
