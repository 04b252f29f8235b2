/**
 * How a session lives and dies, and sees to those of others that have died.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Beat, Session } from "@epilogue/core/OutboxStore"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Claiming } from "./claiming.ts"
import type { Subscribed } from "./claims.ts"
import type { Connections } from "./connections.ts"
import { readyHeads, readyLocked } from "./heads.ts"
import type { Learning } from "./learning.ts"
import { hasKey, keyedAt, type Lane, type Place, waitingAt } from "./places.ts"
import type { Signals } from "./signals.ts"
import { everyLane } from "./sql/names.ts"
import type { Statements } from "./statements.ts"
import type { Wakes } from "./wakes.ts"

type BeatRow = readonly [
  isAlive: boolean,
  ids: ReadonlyArray<bigint>,
  beats: ReadonlyArray<bigint>,
  leases: ReadonlyArray<number>,
  isWaiting: boolean,
  due: number | null,
  startedAt: string,
  hasSuspects: boolean,
  cancelled: ReadonlyArray<string>,
  pausedTags: ReadonlyArray<number>,
  pausedLanes: ReadonlyArray<string>,
  queueSum: number
]

type FreedRow = readonly [
  session: bigint,
  leased: number,
  locked: number,
  freed: number,
  tags: ReadonlyArray<number> | null,
  lanes: ReadonlyArray<string> | null
]

/** What a session has last seen of another. */
interface Sighting {
  readonly beat: bigint
  /** By this process's monotonic clock, in nanoseconds. */
  readonly since: bigint
  readonly lease: bigint
}

export const makeLife = Effect.fnUntraced(function*(options: {
  readonly session: bigint
  readonly subscribed: Subscribed
  readonly learning: Learning
  readonly claiming: Claiming
  /** For beats, which wait for nothing else. */
  readonly beats: Connections
  readonly control: Connections
  readonly statements: Statements
  readonly signals: Signals
  readonly wakes: Wakes
  readonly clock: Clock.Clock
  /** What was claimed, told and not settled. */
  readonly held: ReadonlyMap<bigint, Place>
}): Effect.fn.Return<
  Pick<Session, "beat" | "recover"> & { readonly leave: Effect.Effect<void> },
  IntentStoreError,
  Scope.Scope
> {
  const { beats, claiming, clock, control, held, learning, session, signals, statements, subscribed, wakes } = options
  const scope = yield* Effect.scope

  const others = new Map<bigint, Sighting>()
  let server = ""

  const expired = (): ReadonlyArray<readonly [bigint, Sighting]> => {
    const at = clock.monotonicTimeNanosUnsafe()
    return Array.from(others).filter(([, { lease, since }]) => at - since >= lease)
  }

  const beat: Session["beat"] = Effect.tap(
    Effect.map(
      Effect.suspend(() =>
        beats.run("The session could not be kept alive", statements.beat, [
          session,
          subscribed.ids,
          ...claiming.floors(),
          subscribed.tagsOf(subscribed.ids.map((id) => subscribed.queueOf(id))),
          subscribed.versions.map(({ tag }) => tag),
          subscribed.versions.map(({ version }) => version),
          learning.sum()
        ])
      ),
      (rows): Beat => {
        // A row with these columns is what the statement answers.
        const [
          isAlive,
          ids,
          counts,
          leases,
          isWaiting,
          due,
          startedAt,
          hasSuspects,
          cancelled,
          pausedTags,
          pausedLanes,
          queueSum
        ] = rows[0] as BeatRow
        if (startedAt !== server) {
          // While the server was away nobody could show that he is alive.
          others.clear()
          server = startedAt
        }
        const at = clock.monotonicTimeNanosUnsafe()
        const seen = new Set(ids)
        for (const id of others.keys()) if (!seen.has(id)) others.delete(id)
        for (const [index, id] of ids.entries()) {
          const count = counts[index]!
          if (others.get(id)?.beat !== count) {
            others.set(id, { beat: count, since: at, lease: BigInt(Math.ceil(leases[index]! * 1e6)) })
          }
        }
        learning.see(queueSum)
        const isPast = due !== null && due <= 0
        claiming.expect(isWaiting, isPast)
        if (due !== null && !isPast) wakes.dueIn(due)
        const paused = new Set(pausedTags.map((tag, index) => `${tag} ${pausedLanes[index]}`))
        const isPaused = ({ lane, tag }: Place) =>
          paused.has(`${tag} ${everyLane}`) || (lane !== undefined && paused.has(`${tag} ${lane}`))
        return {
          isAlive,
          isWaiting: isAlive && (isWaiting || isPast),
          hasExpired: expired().length > 0,
          isListening: signals.isListening(),
          hasSuspects: isAlive && hasSuspects,
          recalled: paused.size === 0
            ? cancelled
            : [...cancelled, ...Array.from(held.values()).filter(isPaused).map(({ intent }) => intent)]
        }
      }
    ),
    // What is new of its tags it hears of later.
    () =>
      learning.isStale()
        ? Effect.forkIn(Effect.ignore(Effect.andThen(learning.refresh, Effect.sync(() => wakes.wake()))), scope)
        : Effect.void
  )

  const recover: Session["recover"] = Effect.suspend(() => {
    const candidates = expired()
    if (candidates.length === 0) return Effect.succeed(0)
    return control.transaction(Effect.fnUntraced(function*(run) {
      const ended = yield* run("Sessions whose lease ran out could not be ended", statements.end, [
        candidates.map(([id]) => id),
        candidates.map(([, sighting]) => sighting.beat),
        server
      ])
      if (ended.length === 0) return { count: 0, heads: [] }
      // Rows with these columns are what the statements answer.
      const ids = ended.map(([id]) => id as bigint)
      const what = "What ended sessions had claimed could not be freed"
      const both_ = [ids, ids.map((id) => -id)]
      const freed = (yield* run(what, statements.free, both_)) as ReadonlyArray<FreedRow>
      const freedKeyed = (yield* run(what, statements.freeKeyed, both_)) as ReadonlyArray<FreedRow>
      // What a transaction of theirs still holds is freed by whoever next finds that their beat does not move.
      const finished = ids.filter((id) =>
        [...freed, ...freedKeyed].every(([of, leased, locked]) => of !== id || leased === locked)
      )
      if (finished.length > 0) yield* run("Ended sessions could not be removed", statements.unregister, [finished])
      // What was cancelled is gone, and what was behind it is not any more.
      const [, , , , tags, lanes] = freedKeyed[0]!
      const cancelled = tags!.map((tag, index): Lane => ({ tag, lane: lanes![index]! }))
      const heads = yield* readyHeads(run, statements, cancelled)
      return { count: (freed[0]?.[3] ?? 0) + (freedKeyed[0]?.[3] ?? 0), heads }
    })).pipe(
      Effect.tap(({ heads }) => readyLocked(control.run, statements, heads)),
      Effect.map(({ count, heads }) => {
        // What they had may be in queues that this session does not know.
        if (count > 0 || heads.length > 0) signals.tell({ _tag: "Freed", queues: undefined })
        return count
      })
    )
  })

  /** Ends the session, so that nothing can be claimed any more, and frees what it has. Whoever comes second waits for it. */
  const leave = yield* Effect.cached(
    control.transaction(Effect.fnUntraced(function*(run) {
      const hasFreed = held.size > 0 || claiming.hasLost()
      // A transaction that a handler has left open may hold one of them. Then others end the session when its lease is over.
      yield* run("A limit could not be set", "SET LOCAL lock_timeout = '3s'")
      yield* run("The session could not be ended", statements.unregister, [[session]])
      const reclaimed = yield* claiming.reclaim(run)
      const places = Array.from(held.values())
      const what = "What the session had claimed could not be freed"
      const unkeyed = places.filter((place) => !hasKey(place))
      if (unkeyed.length > 0) {
        yield* run(what, statements.leave, waitingAt(session, unkeyed))
        yield* run(what, statements.discard, waitingAt(session, unkeyed))
      }
      const withKeys = places.filter(hasKey)
      if (withKeys.length > 0) {
        yield* run(what, statements.leaveKeyed, keyedAt(session, withKeys))
        yield* run(what, statements.discardKeyed, keyedAt(session, withKeys))
      }
      const heads = yield* readyHeads(run, statements, withKeys)
      return { hasFreed, heads: [...reclaimed, ...heads] }
    })).pipe(
      Effect.tap(({ heads }) => readyLocked(control.run, statements, heads)),
      // Closing waits for nobody for ever, though it can't be interrupted.
      Effect.interruptible,
      Effect.timeout("10 seconds"),
      Effect.map(({ hasFreed }) => {
        if (hasFreed) signals.tell({ _tag: "Freed", queues: subscribed.ids })
      }),
      Effect.catch((cause) =>
        Effect.logWarning("A session could not be closed. Others end it when its lease is over", cause)
      )
    )
  )

  return { beat, recover, leave }
})
