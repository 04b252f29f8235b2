/**
 * A worker's session with the store.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Beat, Claimed, OpenOptions, Session, Settlement } from "@epilogue/core/OutboxStore"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { SqlClient } from "effect/sql/SqlClient"
import { type Connections, failed, type Run } from "./connections.ts"
import type { Signals } from "./signals.ts"
import { kinds, type Statements } from "./statements.ts"

/** A tag and version that this store has rows of. */
export interface Queue {
  readonly id: number
  readonly tag: string
  readonly version: number
}

/** Where a delivery is. */
class Place {
  readonly queue: number
  readonly id: bigint
  constructor(queue: number, id: bigint) {
    this.queue = queue
    this.id = id
  }
}

/** What a claim answers, in this order. */
type ClaimedRow = readonly [
  queue: number,
  id: bigint,
  intent: string,
  failures: number,
  crashes: number,
  enqueuedAt: number,
  traceparent: string | null,
  undecodableFor: number | null,
  size: number,
  payload: string,
  found: bigint
]

type BeatRow = readonly [
  isAlive: boolean,
  ids: ReadonlyArray<bigint>,
  beats: ReadonlyArray<bigint>,
  leases: ReadonlyArray<number>,
  isWaiting: boolean,
  due: number | null,
  startedAt: string
]

type PromotedRow = readonly [moved: number, due: number | null, at: number]

type FreedRow = readonly [session: bigint, leased: number, locked: number, freed: number]

/** From where on a claim looks at a queue. */
type Reach = "newest" | "recent" | "everything"

/** As often as this a claim looks at everything, in milliseconds, and as often as this if it has found nothing else. */
const sweepEvery = 5_000
const sweepAgain = 250

/** A position may be committed this much later, in milliseconds, than those that came after it, and is found nevertheless. */
const lag = 1_000

/**
 * Before the rows that wait there may be many that are deleted and not cleaned up yet, and looking at these takes time. So
 * claims begin where rows were found last. Those before it are found when that was all, and from time to time.
 */
class Floors {
  readonly newest = new Map<number, bigint>()
  readonly next = new Map<number, bigint>()
  readonly recent = new Map<number, bigint>()
  turnedAt = -Infinity
  sweptAt = -Infinity
  readonly queues: ReadonlyArray<number>
  constructor(queues: ReadonlyArray<number>) {
    this.queues = queues
  }

  see(queue: number, lowest: bigint): void {
    this.newest.set(queue, lowest)
  }

  /** Lets the next claim look at everything: something has become free. */
  sweep(): void {
    this.sweptAt = -Infinity
  }

  isSweepDue(now: number, interval: number): boolean {
    return now - this.sweptAt >= interval
  }

  from(queues: ReadonlyArray<number>, reach: Reach, now: number): ReadonlyArray<bigint> {
    if (now - this.turnedAt >= lag) {
      this.turnedAt = now
      for (const queue of this.queues) {
        this.recent.set(queue, this.next.get(queue) ?? 0n)
        this.next.set(queue, this.newest.get(queue) ?? 0n)
      }
    }
    if (reach === "everything") {
      this.sweptAt = now
      return queues.map(() => 0n)
    }
    const floors = reach === "newest" ? this.newest : this.recent
    return queues.map((queue) => floors.get(queue) ?? 0n)
  }
}

/** How many rows of a queue that are due are moved at once. */
const promoteAtOnce = 500

/** How many idempotency keys are forgotten at once, and how often. */
const forgetAtOnce = 1_000
const forgetEvery = "1 minute"

/** What a session has last seen of another. */
interface Sighting {
  readonly beat: bigint
  /** By this process's monotonic clock, in nanoseconds. */
  readonly since: bigint
  readonly lease: bigint
}

export const open = Effect.fnUntraced(function*(
  options: OpenOptions & {
    readonly queues: ReadonlyArray<Queue>
    readonly client: SqlClient
    readonly signals: Signals
    readonly statements: Statements
    readonly claims: Connections
    readonly settles: Connections
    /** For beats, which wait for nothing else. */
    readonly beats: Connections
    /** For everything else. */
    readonly control: Connections
    /** How to leave those that are open. A store that closes before its sessions does it for them. */
    readonly sessions: Set<Effect.Effect<void>>
  }
): Effect.fn.Return<Session, IntentStoreError, Scope.Scope> {
  const { beats, claims, client, control, queues, sessions, settles, signals, statements } = options
  const byId = new Map(queues.map((queue) => [queue.id, queue]))
  const queueIds = queues.map(({ id }) => id)
  const session = newSession()

  /** What was claimed, told and not settled: the queue of each. */
  const held = new Map<bigint, number>()
  /** A claim has failed, so there may be rows that are leased without anybody's knowing. */
  let hasLostClaim = false

  // Waking -----------------------------------------------------------------------------------------------------------

  const changed = Latch.makeUnsafe()
  // What was there before counts.
  let isWoken = true
  let dueAt = Infinity
  let isDue = true

  const wake = (isFreed: boolean): void => {
    if (isFreed) floors.sweep()
    isWoken = true
    changed.openUnsafe()
  }
  const clock = yield* Clock.clockWith(Effect.succeed)
  // Milliseconds of a clock that nobody sets.
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const wakeIn = (milliseconds: number): void => {
    const at = now() + Math.max(0, Math.ceil(milliseconds)) + 1
    if (at < dueAt) {
      dueAt = at
      changed.openUnsafe()
    }
  }

  const wakes: Session["wakes"] = Effect.suspend(() => {
    if (dueAt <= now()) {
      dueAt = Infinity
      isDue = true
      isWoken = true
    }
    if (isWoken) {
      isWoken = false
      return Effect.void
    }
    changed.closeUnsafe()
    const rest = dueAt - now()
    // No timer is set for longer than it can be.
    const waiting = rest === Infinity
      ? changed.await
      : Effect.ignore(Effect.timeout(changed.await, Math.min(rest, 86_400_000)))
    return Effect.andThen(waiting, wakes)
  })

  // Claiming ---------------------------------------------------------------------------------------------------------

  const floors = new Floors(queueIds)
  let wasShort = true
  let turn = 0
  let promotedAt = 0

  /** Moves what is due to where it can be claimed. */
  const promote = (sweep: boolean) =>
    Effect.suspend(() => {
      isDue = false
      dueAt = Infinity
      const from = sweep ? 0 : promotedAt - lag
      return claims.run("What is due could not be moved", statements.promote, [queueIds, promoteAtOnce, from])
    }).pipe(
      Effect.onError(() =>
        Effect.sync(() => {
          isDue = true
        })
      ),
      Effect.map((rows) => {
        // A row with these columns is what the statement answers.
        const [moved, due, at] = rows[0] as PromotedRow
        // One of them may have had more than that, which the next one finds from where this one began.
        if (moved >= promoteAtOnce) isDue = true
        else promotedAt = at
        if (due !== null) wakeIn(due)
        return moved
      })
    )

  /** Frees what a claim has leased whose answer never came. */
  const reclaim = (run: Run) =>
    Effect.suspend(() =>
      hasLostClaim
        ? Effect.map(
          run("What a lost claim has leased could not be freed", statements.reclaim, [
            session,
            Array.from(held.keys())
          ]),
          () => {
            hasLostClaim = false
            floors.sweep()
          }
        )
        : Effect.void
    )

  /** One statement. Answers also whether there is nothing left from these floors on. */
  const claimRows = Effect.fnUntraced(function*(rows: number, bytes: number, reach: Reach) {
    // It begins with another queue each time, for when there are more queues than rows to claim.
    const from = turn++ % queueIds.length
    const order = [...queueIds.slice(from), ...queueIds.slice(0, from)]
    const share = Math.ceil(rows / order.length)
    const answer = yield* claims.run("Intents could not be claimed", statements.claim, [
      session,
      order,
      floors.from(order, reach, now()),
      BigInt(share),
      rows,
      bytes
    ])
    // Rows with these columns are what the statement answers.
    const claimed = (answer as ReadonlyArray<ClaimedRow>).toSorted((a, b) => (a[1] < b[1] ? -1 : 1))
    const counts = new Map<number, number>()
    for (const [queue, id] of claimed) {
      const count = counts.get(queue) ?? 0
      if (count === 0) floors.see(queue, id)
      counts.set(queue, count + 1)
    }
    const found = claimed[0]?.[10] ?? 0n
    // Of several queues that used up their share, one may have had more to give when another could not take all of its part.
    const full = Array.from(counts.values()).filter((count) => count >= share).length
    return {
      claimed,
      isCut: found > BigInt(claimed.length),
      isAll: claimed.length < rows && full <= 1
    }
  })

  const claimAll = Effect.fnUntraced(function*(limit: { readonly rows: number; readonly bytes: number }) {
    const isSweep = floors.isSweepDue(now(), sweepEvery)
    let hasPromoted = isDue || dueAt <= now()
    if (hasPromoted) yield* promote(isSweep)
    let reach: Reach = isSweep ? "everything" : wasShort ? "recent" : "newest"
    const claimed: Array<ClaimedRow> = []
    let bytes = 0
    wasShort = false
    while (claimed.length < limit.rows && (claimed.length === 0 || bytes < limit.bytes)) {
      const { claimed: rows, isAll, isCut } = yield* claimRows(limit.rows - claimed.length, limit.bytes - bytes, reach)
      for (const row of rows) {
        claimed.push(row)
        bytes += row[8]
      }
      if (isCut) break
      if (!isAll) continue
      wasShort = true
      if (claimed.length > 0) {
        // Who gets these need not wait for a look further back. That comes next.
        if (reach !== "everything") wake(false)
        break
      } else if (reach === "newest") {
        reach = "recent"
      } else if (reach === "recent" && floors.isSweepDue(now(), sweepAgain)) {
        reach = "everything"
      } else if (hasPromoted || (yield* promote(reach === "everything")) === 0) {
        break
      } else {
        hasPromoted = true
      }
    }
    for (const [queue, id] of claimed) held.set(id, queue)
    return claimed.map(toClaimed)
  })

  // What a claim has leased, and not told yet, looks like what a lost one has leased.
  const oneAtATime = Semaphore.makeUnsafe(1)
  const claim: Session["claim"] = (limit) =>
    limit.rows < 1 || queues.length === 0 ? Effect.succeed([]) : oneAtATime.withPermit(
      // Not in the way that claims are planned: there is no index on leases.
      Effect.andThen(
        reclaim(control.run),
        Effect.onError(claimAll(limit), () =>
          Effect.sync(() => {
            hasLostClaim = true
          }))
      )
    )

  const toClaimed = (row: ClaimedRow): Claimed => {
    const [queue, id, intent, failures, crashes, enqueuedAt, traceparent, undecodableFor, , payload] = row
    const { tag, version } = byId.get(queue)!
    return {
      id: intent,
      token: new Place(queue, id),
      tag,
      version,
      payload,
      partitionKey: undefined,
      failures,
      crashes,
      enqueuedAt,
      traceparent: traceparent ?? undefined,
      undecodableFor: undecodableFor ?? undefined
    }
  }

  // Settling ---------------------------------------------------------------------------------------------------------

  const settle: Session["settle"] = Effect.fnUntraced(function*(settlements) {
    if (settlements.length === 0) return []
    const places = settlements.map(({ claimed }) => placeOf(claimed))
    const where = [session, places.map(({ queue }) => queue), places.map(({ id }) => id)]
    const rows = settlements.every(({ _tag }) => _tag === "Succeeded")
      ? yield* settles.run("Intents could not be settled", statements.succeed, where)
      : yield* settles.run("Intents could not be settled", statements.settle, [
        ...where,
        settlements.map(({ _tag }) => kinds[_tag]),
        settlements.map(delayOf),
        orNulls(settlements.map(failureOf)),
        orNulls(settlements.map((settlement) => settlement._tag === "Dead" ? settlement.reason : undefined))
      ])
    const settled = new Set(rows.map(([id]) => id))
    const lost: Array<string> = []
    const released = new Set<number>()
    for (const [index, settlement] of settlements.entries()) {
      const place = places[index]!
      held.delete(place.id)
      if (!settled.has(place.id)) {
        lost.push(settlement.claimed.id)
      } else if (settlement._tag === "Released") {
        released.add(place.queue)
      } else if (isLater(settlement)) {
        if (settlement.delay > 0) {
          wakeIn(settlement.delay)
        } else {
          isDue = true
          wake(false)
        }
      }
    }
    if (released.size > 0) {
      floors.sweep()
      signals.tell({ _tag: "Freed", queues: Array.from(released) })
    }
    return lost
  })

  const userClient = client.withoutTransforms()
  const settleInTransaction: Session["settleInTransaction"] = Effect.fnUntraced(function*(claimed) {
    const { id, queue } = placeOf(claimed)
    const rows = yield* Effect.mapError(
      userClient.unsafe(statements.succeedInTransaction, [String(queue), String(id), String(session)]).values,
      failed(`Intent ${claimed.id} could not be settled in the transaction of its handler`)
    )
    yield* client.afterCommit(Effect.sync(() => void held.delete(id)))
    return rows.length > 0
  })

  // Living and dying -------------------------------------------------------------------------------------------------

  const others = new Map<bigint, Sighting>()
  let server = ""

  const expired = (): ReadonlyArray<readonly [bigint, Sighting]> => {
    const at = clock.monotonicTimeNanosUnsafe()
    return Array.from(others).filter(([, { lease, since }]) => at - since >= lease)
  }

  const beat: Session["beat"] = Effect.map(
    Effect.suspend(() => {
      const reach = floors.isSweepDue(now(), sweepEvery) ? "everything" : "recent"
      return beats.run("The session could not be kept alive", statements.beat, [
        session,
        queueIds,
        floors.from(queueIds, reach, now())
      ])
    }),
    (rows): Beat => {
      // A row with these columns is what the statement answers.
      const [isAlive, ids, counts, leases, isWaiting, due, startedAt] = rows[0] as BeatRow
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
      const isPast = due !== null && due <= 0
      // What the last claim has not found is further back.
      if (isWaiting && wasShort) floors.sweep()
      if (isPast) {
        // What the last look has left behind is from before.
        isDue = true
        promotedAt = 0
      } else if (due !== null) wakeIn(due)
      return {
        isAlive,
        isWaiting: isAlive && (isWaiting || isPast),
        hasExpired: expired().length > 0,
        isListening: signals.isListening()
      }
    }
  )

  const recover: Session["recover"] = Effect.suspend(() => {
    const candidates = expired()
    return candidates.length === 0 ? Effect.succeed(0) : control.transaction(Effect.fnUntraced(function*(run) {
      const ended = yield* run("Sessions whose lease ran out could not be ended", statements.end, [
        candidates.map(([id]) => id),
        candidates.map(([, sighting]) => sighting.beat),
        server
      ])
      if (ended.length === 0) return 0
      // Rows with these columns are what the statements answer.
      const ids = ended.map(([id]) => id as bigint)
      const freed = (yield* run("What ended sessions had claimed could not be freed", statements.free, [
        ids
      ])) as ReadonlyArray<FreedRow>
      // What a transaction of theirs still holds is freed by whoever next finds that their beat does not move.
      const finished = freed.flatMap(([id, leased, locked]) => leased === locked ? [id] : [])
      if (finished.length > 0) yield* run("Ended sessions could not be removed", statements.unregister, [finished])
      return freed[0]?.[3] ?? 0
    })).pipe(Effect.tap((count) => {
      if (count === 0) return Effect.void
      // What they had may be in queues that this session does not know.
      return Effect.sync(() => signals.tell({ _tag: "Freed", queues: undefined }))
    }))
  })

  /** Ends the session, so that nothing can be claimed any more, and frees what it has. Whoever comes second waits for it. */
  const leave = yield* Effect.cached(
    control.transaction(Effect.fnUntraced(function*(run) {
      const hasFreed = held.size > 0 || hasLostClaim
      // A transaction that a handler has left open may hold one of them. Then others end the session when its lease is over.
      yield* run("A limit could not be set", "SET LOCAL lock_timeout = '3s'")
      yield* run("The session could not be ended", statements.unregister, [[session]])
      yield* reclaim(run)
      if (held.size === 0) return hasFreed
      yield* run("What the session had claimed could not be freed", statements.leave, [
        session,
        Array.from(held.values()),
        Array.from(held.keys())
      ])
      return hasFreed
    })).pipe(
      // Closing waits for nobody for ever, though it can't be interrupted.
      Effect.interruptible,
      Effect.timeout("10 seconds"),
      Effect.map((hasFreed) => {
        if (hasFreed) signals.tell({ _tag: "Freed", queues: queueIds })
      }),
      Effect.catch((cause) =>
        Effect.logWarning("A session could not be closed. Others end it when its lease is over", cause)
      )
    )
  )

  yield* Effect.acquireRelease(
    control.run("The session could not be opened", statements.register, [session, Duration.toMillis(options.lease)]),
    () => Effect.andThen(leave, Effect.sync(() => sessions.delete(leave)))
  )
  sessions.add(leave)
  yield* signals.subscribe({ queues: new Set(queueIds), wake, due: wakeIn })
  yield* control.run("Old idempotency keys could not be forgotten", statements.forget, [forgetAtOnce]).pipe(
    Effect.ignore({ log: "Debug" }),
    Effect.repeat(Schedule.spaced(forgetEvery)),
    Effect.forkScoped
  )
  return { claim, settle, settleInTransaction, beat, recover, wakes }
})

const placeOf = ({ id, token }: Claimed): Place => {
  if (token instanceof Place) return token
  throw new Error(`Epilogue: the delivery of intent ${id} was not claimed from a PgOutboxStore`)
}

/** Not one from a sequence: after a restore that would begin again, and a new session would have the leases of an old one. */
const newSession = (): bigint => BigInt.asUintN(62, crypto.getRandomValues(new BigInt64Array(1))[0]!) + 1n

const isLater = (settlement: Settlement): settlement is Extract<Settlement, { readonly delay: number }> =>
  "delay" in settlement

const delayOf = (settlement: Settlement): bigint =>
  isLater(settlement) ? BigInt(Math.ceil(Math.min(Math.max(settlement.delay, 0), 1e13))) : 0n

const failureOf = (settlement: Settlement): string | undefined =>
  "failure" in settlement ? settlement.failure : undefined

/** PostgreSQL cannot store U+0000 in a text. */
const orNulls = (values: ReadonlyArray<string | undefined>) =>
  values.every((value) => value === undefined)
    ? `{${values.map(() => "NULL").join(",")}}`
    : values.map((value) => value?.replaceAll("\0", "\uFFFD") ?? null)
