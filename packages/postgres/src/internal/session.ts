/**
 * A worker's session with the store.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Beat, Claimed, OpenOptions, Session, Settlement } from "@epilogue/core/OutboxStore"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
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
  readonly session: bigint
  readonly queue: number
  readonly id: bigint
  constructor(session: bigint, queue: number, id: bigint) {
    this.session = session
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

type PromotedRow = readonly [moved: number, due: number | null]

type FreedRow = readonly [session: bigint, leased: number, locked: number, freed: number]

/**
 * Claims begin where rows were found last, since before that there may be many that are deleted and not cleaned up yet. As
 * often as this they begin at the start, where rows may have become free since.
 */
const sweepEvery = 5_000

/** How many rows that are due are moved at once. */
const promoteAtOnce = 1_000

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
    /** For claims and settlements. */
    readonly work: Connections
    /** For beats, which wait for nothing else. */
    readonly beats: Connections
    /** For everything else. */
    readonly control: Connections
  }
): Effect.fn.Return<Session, IntentStoreError, Scope.Scope> {
  const { beats, client, control, queues, signals, statements, work } = options
  const byId = new Map(queues.map((queue) => [queue.id, queue]))
  const queueIds = queues.map(({ id }) => id)
  const session = newSession()

  /** What is claimed and not settled: the queue of each. */
  const held = new Map<bigint, number>()
  /** A claim has failed, so there may be rows that are leased without our knowing. */
  let hasLostClaim = false

  // Waking -----------------------------------------------------------------------------------------------------------

  const changed = Latch.makeUnsafe()
  // What was there before counts.
  let isWoken = true
  let dueAt = Infinity
  let isDue = true

  const wake = (): void => {
    isWoken = true
    changed.openUnsafe()
  }
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => clock.currentTimeMillisUnsafe()
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

  const floors = new Map<number, bigint>()
  let sweptAt = -Infinity
  let wasShort = true
  let turn = 0

  const promote = Effect.suspend(() => {
    isDue = false
    dueAt = Infinity
    return work.run("What is due could not be moved", statements.promote, [promoteAtOnce])
  }).pipe(
    Effect.onError(() =>
      Effect.sync(() => {
        isDue = true
      })
    ),
    Effect.map((rows) => {
      // A row with these columns is what the statement answers.
      const [moved, due] = rows[0] as PromotedRow
      if (moved === promoteAtOnce) isDue = true
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
          }
        )
        : Effect.void
    )

  /** Each session begins its claims with another queue, for when there are more queues than rows to claim. */
  const inTurn = (): ReadonlyArray<number> => {
    const from = turn++ % Math.max(queueIds.length, 1)
    return [...queueIds.slice(from), ...queueIds.slice(0, from)]
  }

  const claimRows = Effect.fnUntraced(
    function*(limit: { readonly rows: number; readonly bytes: number }, sweep: boolean) {
      const order = inTurn()
      const share = Math.max(1, Math.ceil(limit.rows / order.length))
      const rows = yield* work.run("Intents could not be claimed", statements.claim, [
        session,
        order,
        sweep ? order.map(() => 0n) : order.map((queue) => floors.get(queue) ?? 0n),
        BigInt(share),
        limit.rows,
        limit.bytes
      ]).pipe(
        Effect.onExit((exit) =>
          Effect.sync(() => {
            if (Exit.isFailure(exit)) hasLostClaim = true
          })
        )
      )
      // Rows with these columns are what the statement answers.
      const claimed = (rows as ReadonlyArray<ClaimedRow>).toSorted((a, b) => (a[1] < b[1] ? -1 : 1))
      const lowest = new Map<number, bigint>()
      for (const [queue, id] of claimed) {
        held.set(id, queue)
        if (!lowest.has(queue)) lowest.set(queue, id)
      }
      for (const [queue, id] of lowest) floors.set(queue, id)
      return claimed
    }
  )

  const claim: Session["claim"] = Effect.fnUntraced(function*(limit) {
    if (limit.rows < 1 || queues.length === 0) return []
    yield* reclaim(work.run)
    if (isDue || dueAt <= now()) yield* promote
    let isSweep = wasShort || now() - sweptAt >= sweepEvery
    let hasPromoted = false
    const claimed: Array<ClaimedRow> = []
    let bytes = 0
    while (claimed.length < limit.rows && (claimed.length === 0 || bytes < limit.bytes)) {
      if (isSweep) sweptAt = now()
      const rows = yield* claimRows({ rows: limit.rows - claimed.length, bytes: limit.bytes - bytes }, isSweep)
      for (const row of rows) bytes += row[8]
      claimed.push(...rows)
      // More was found than fits: the next would be too large.
      if (rows.length > 0 && rows.length < Number(rows[0]![10])) break
      if (rows.length > 0 && isSweep && queueIds.length === 1) break
      if (rows.length > 0) continue
      if (!isSweep) {
        isSweep = true
      } else if (claimed.length === 0 && !hasPromoted) {
        hasPromoted = true
        if ((yield* promote) === 0) break
      } else {
        break
      }
    }
    wasShort = claimed.length < limit.rows && bytes < limit.bytes
    return claimed.map(toClaimed)
  })

  const toClaimed = (row: ClaimedRow): Claimed => {
    const [queue, id, intent, failures, crashes, enqueuedAt, traceparent, undecodableFor, , payload] = row
    const { tag, version } = byId.get(queue)!
    return {
      id: intent,
      token: new Place(session, queue, id),
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
      ? yield* work.run("Intents could not be settled", statements.succeed, where)
      : yield* work.run("Intents could not be settled", statements.settle, [
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
        wakeIn(settlement.delay)
      }
    }
    if (released.size > 0) {
      for (const queue of released) floors.delete(queue)
      signals.tell({ queues: Array.from(released), due: undefined })
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

  const placeOf = ({ token }: Claimed): Place => {
    if (token instanceof Place && token.session === session) return token
    throw new Error("Epilogue: a delivery is settled in a session that has not claimed it")
  }

  // Living and dying -------------------------------------------------------------------------------------------------

  const others = new Map<bigint, Sighting>()
  let server = ""

  const expired = (): ReadonlyArray<readonly [bigint, Sighting]> => {
    const at = clock.monotonicTimeNanosUnsafe()
    return Array.from(others).filter(([, { lease, since }]) => at - since >= lease)
  }

  const beat: Session["beat"] = Effect.map(
    Effect.suspend(() => beats.run("The session could not be kept alive", statements.beat, [session, queueIds])),
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
      if (isPast) isDue = true
      else if (due !== null) wakeIn(due)
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
      floors.clear()
      return Effect.sync(() => signals.tell({ queues: queueIds, due: undefined }))
    }))
  })

  /** Ends the session, so that nothing can be claimed any more, and frees what it has. */
  const leave = control.transaction(Effect.fnUntraced(function*(run) {
    // A transaction that a handler has left open may hold one of them. Then others end the session when its lease is over.
    yield* run("", "SET LOCAL lock_timeout = '1s'")
    yield* run("The session could not be ended", statements.unregister, [[session]])
    yield* reclaim(run)
    if (held.size === 0) return
    yield* run("What the session had claimed could not be freed", statements.leave, [
      session,
      Array.from(held.values()),
      Array.from(held.keys())
    ])
    yield* Effect.sync(() => signals.tell({ queues: Array.from(new Set(held.values())), due: undefined }))
  })).pipe(
    Effect.timeout("5 seconds"),
    Effect.catch((cause) =>
      Effect.logWarning("A session could not be closed. Others end it when its lease is over", cause)
    )
  )

  yield* Effect.acquireRelease(
    control.run("The session could not be opened", statements.register, [session, Duration.toMillis(options.lease)]),
    () => leave
  )
  yield* signals.subscribe({ queues: new Set(queueIds), wake, due: wakeIn })
  yield* control.run("Old idempotency keys could not be forgotten", statements.forget, [forgetAtOnce]).pipe(
    Effect.ignore({ log: "Debug" }),
    Effect.repeat(Schedule.spaced(forgetEvery)),
    Effect.forkScoped
  )
  return { claim, settle, settleInTransaction, beat, recover, wakes }
})

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
