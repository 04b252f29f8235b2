import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { GroupCommit } from "../../src/GroupCommit.ts"
import type { Claimed, Session } from "../../src/OutboxStore.ts"
import { Slot } from "../../src/Slot.ts"
import { settled } from "./support.ts"

const claimed: Claimed = {
  id: "1",
  token: undefined,
  tag: "Greet",
  version: 1,
  payload: "",
  partitionKey: undefined,
  failures: 0,
  crashes: 0,
  suspicion: "possible",
  enqueuedAt: 0,
  traceparent: undefined,
  undecodableFor: undefined
}

describe("a delivery that waits until its start is on record", () => {
  for (const lost of [[], ["1"]]) {
    const isHeld = lost.length === 0
    it.effect(`hears that its lease ${isHeld ? "holds" : "is lost"}, also where it was told before it waited`, () =>
      Effect.gen(function*() {
        let starts = 0
        const session = {
          start: () => Effect.sync(() => starts++ === 0 ? [] : lost),
          settle: () => Effect.succeed([])
        } as Partial<Session> as Session
        const slot = new Slot()
        const commit = new GroupCommit(session, [slot], {
          onFlush: () => undefined,
          onLost: () => undefined,
          onStale: () => undefined
        })
        slot.begin(claimed, 1, 0)
        commit.look()
        yield* Effect.forkChild(commit.flushAll)
        yield* settled
        assert.strictEqual(starts, 1)
        const waiting = yield* Effect.forkChild(commit.record(slot), { startImmediately: true })
        yield* settled
        assert.isDefined(waiting.pollUnsafe())
        assert.strictEqual(yield* Fiber.join(waiting), isHeld)
        // It is told no more than it takes.
        commit.look()
        yield* settled
        assert.strictEqual(starts, 2)
      }))
  }
})
