/**
 * A worker's session with the store.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { OpenOptions, Session } from "@epilogue/core/OutboxStore"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import { makeClaiming } from "./claiming.ts"
import { Subscribed } from "./claims.ts"
import type { Connections } from "./connections.ts"
import { makeLearning } from "./learning.ts"
import { makeLife } from "./life.ts"
import { permit } from "./permits.ts"
import type { Place } from "./places.ts"
import type { Queues } from "./queues.ts"
import { makeSettling } from "./settling.ts"
import type { Signals } from "./signals.ts"
import type { Statements } from "./statements.ts"
import { Wakes } from "./wakes.ts"

/** How many idempotency keys, and how many deliveries that were kept, are forgotten at once, and how often. */
const forgetAtOnce = 1_000
const forgetEvery = "1 minute"

export const open = Effect.fnUntraced(function*(
  options: OpenOptions & {
    readonly queues: Queues
    readonly client: SqlClient
    readonly signals: Signals
    readonly statements: Statements
    readonly claims: Connections
    readonly settles: Connections
    /** For beats, which wait for nothing else. */
    readonly beats: Connections
    /** For everything else. */
    readonly control: Connections
    /** How long what was delivered is kept, in milliseconds. */
    readonly keepDelivered: number | undefined
    /** How to leave those that are open. A store that closes before its sessions does it for them. */
    readonly sessions: Set<Effect.Effect<void>>
  }
): Effect.fn.Return<Session, IntentStoreError, Scope.Scope> {
  const { control, keepDelivered, sessions, signals, statements } = options
  const clock = yield* Clock.clockWith(Effect.succeed)
  // Milliseconds of a clock that nobody sets.
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const subscribed = new Subscribed(options.subscriptions)
  const learning = makeLearning(options.queues, subscribed)
  yield* learning.refresh

  const shared = {
    ...options,
    session: newSession(),
    subscribed,
    learning,
    refresh: learning.refresh,
    wakes: new Wakes(now),
    clock,
    now,
    held: new Map<bigint, Place>()
  }
  const claiming = makeClaiming({
    ...shared,
    release: (list) => settling.settle(list.map((claimed) => ({ _tag: "Released", claimed })))
  })
  const settling = makeSettling({ ...shared, goOn: claiming.goOn })
  const { beat, leave, recover } = yield* makeLife({ ...shared, claiming })

  yield* Effect.acquireRelease(
    control.run("The session could not be opened", statements.register, [
      shared.session,
      Duration.toMillis(options.lease),
      subscribed.ids
    ]),
    () => Effect.andThen(leave, Effect.sync(() => sessions.delete(leave)))
  )
  sessions.add(leave)
  yield* signals.subscribe({
    hears: learning.hears,
    wake: claiming.hear,
    due: (milliseconds) => shared.wakes.dueIn(milliseconds)
  })
  const forget = control.run("Old idempotency keys could not be forgotten", statements.forget, [forgetAtOnce])
  const clean = keepDelivered === undefined
    ? Effect.void
    : control.run("Old deliveries could not be forgotten", statements.clean, [keepDelivered, forgetAtOnce])
  yield* Effect.forkScoped(
    Effect.repeat(Effect.ignore(Effect.andThen(forget, clean), { log: "Debug" }), Schedule.spaced(forgetEvery))
  )

  return {
    claim: claiming.claim,
    claimSuspect: claiming.claimSuspect,
    ...settling,
    permit: (wants) =>
      wants.length === 0 ? Effect.succeed([]) : permit(
        control,
        statements,
        shared.session,
        wants.map((want) => ({
          want,
          whole: subscribed.wholeOf(want.tag),
          subscription: subscribed.subscriptions.get(want.tag)!
        }))
      ),
    beat,
    recover,
    wakes: shared.wakes.await
  }
})

/** Not one from a sequence: after a restore that would begin again, and a new session would have the leases of an old one. */
const newSession = (): bigint => BigInt.asUintN(62, crypto.getRandomValues(new BigInt64Array(1))[0]!) + 1n
