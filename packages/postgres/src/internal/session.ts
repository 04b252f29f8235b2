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
import { Hints, keyedSource, type Room, type Source, Subscribed, waitingSource } from "./claims.ts"
import { type Connections, failed, type Run } from "./connections.ts"
import { lag, type Reach } from "./floors.ts"
import { permit as permitted } from "./permits.ts"
import { endings, hasKey, isLater, keyedAt, type Lane, type Place, placeOf, waitingAt } from "./places.ts"
import type { Queues } from "./queues.ts"
import { wholeOf } from "./queues.ts"
import type { Signals } from "./signals.ts"
import { everyLane } from "./sql/names.ts"
import type { Statements } from "./statements.ts"

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
  newestQueue: number
]

type PromotedRow = readonly [
  moved: number,
  due: number | null,
  at: number,
  left: number,
  tags: ReadonlyArray<number>,
  lanes: ReadonlyArray<string>
]

type FreedRow = readonly [session: bigint, leased: number, locked: number, freed: number]

/** What a settlement of rows with keys answers: positions, and then lanes that go on. */
type SettledRow = readonly [id: bigint | null, tag: number | null, lane: string | null]

/** How many rows of a queue that are due are moved at once. */
const promoteAtOnce = 500

/** After so many milliseconds those are looked for again that had to wait for a transaction. */
const promoteAgain = 50

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
  const { beats, claims, client, control, queues, sessions, settles, signals, statements } = options
  const subscribed = new Subscribed(options.subscriptions)
  const tags = Array.from(subscribed.subscriptions.keys())
  const versions = options.subscriptions.flatMap((each) => each.versions.map((version) => ({ tag: each.tag, version })))
  const session = newSession()
  const clock = yield* Clock.clockWith(Effect.succeed)
  // Milliseconds of a clock that nobody sets.
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

  /** What was claimed, told and not settled. */
  const held = new Map<bigint, Place>()
  /** A claim has failed, so there may be rows that are leased without anybody's knowing. */
  let hasLostClaim = false

  // The queues of what is subscribed: those of new priorities come to be at any time ----------------------------------------

  let newestQueue = 0
  let isStale = false
  const learn = Effect.suspend(() => {
    isStale = false
    return queues.renew(
      options.subscriptions.flatMap(({ tag, versions }) => [
        wholeOf(tag),
        ...versions.map((version) => ({ tag, version, priority: 0 }))
      ])
    )
  }).pipe(
    Effect.andThen(queues.find(tags)),
    Effect.map((found) => {
      subscribed.learn(found)
      newestQueue = Math.max(newestQueue, ...found.map(({ id }) => id))
    }),
    Effect.onError(() => Effect.sync(() => void (isStale = true)))
  )
  yield* learn
  const scope = yield* Effect.scope
  const hears = (queue: number): boolean => {
    if (queue <= newestQueue) return subscribed.has(queue)
    newestQueue = queue
    isStale = true
    return true
  }

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
  const hear = (what: "added" | "keyed" | "freed"): void => {
    if (what !== "keyed") waiting.mayHave = true
    if (what !== "added") keyed.mayHave = true
    if (what === "keyed") keyed.isUsed = true
    if (what === "freed") sweep()
    wake()
  }
  const sweep = (): void => {
    waiting.floors.sweep()
    keyed.floors.sweep()
  }
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
    const waits = rest === Infinity
      ? changed.await
      : Effect.ignore(Effect.timeout(changed.await, Math.min(rest, 86_400_000)))
    return Effect.andThen(waits, wakes)
  })

  // Claiming ---------------------------------------------------------------------------------------------------------

  const hints = new Hints()
  /** Lanes go on: what comes next in them can be claimed. Told of all together, the next claim knows them all. */
  const goOn = (lanes: ReadonlyArray<Lane>): void => {
    if (lanes.length === 0) return
    for (const { lane, tag } of lanes) hints.add(tag, lane)
    keyed.mayHave = true
    keyed.isUsed = true
    wake()
  }
  const waiting = waitingSource(session, subscribed, claims, statements, now)
  const keyed = keyedSource(
    session,
    subscribed,
    claims,
    statements,
    now,
    hints,
    (list) => settle(list.map((claimed) => ({ _tag: "Released", claimed })))
  )
  let turn = 0
  let promotedAt = 0

  /** Moves what is due to where it can be claimed. */
  const promote = (isSweep: boolean) =>
    Effect.suspend(() => {
      isDue = false
      dueAt = Infinity
      return claims.run("What is due could not be moved", statements.promote, [
        subscribed.ids,
        promoteAtOnce,
        isSweep ? 0 : promotedAt - lag
      ])
    }).pipe(
      Effect.onError(() => Effect.sync(() => void (isDue = true))),
      Effect.map((rows) => {
        // A row with these columns is what the statement answers.
        const [moved, due, at, left, revivedTags, lanes] = rows[0] as PromotedRow
        // There may be more than that, or some have to wait, which the next one finds from where this one began.
        if (moved >= promoteAtOnce) isDue = true
        else if (left > 0) wakeIn(promoteAgain)
        else promotedAt = at
        if (due !== null) wakeIn(due)
        if (moved > 0) {
          waiting.mayHave = true
          keyed.mayHave = true
        }
        goOn(lanes.map((lane, index) => ({ tag: revivedTags[index]!, lane })))
        return moved
      })
    )

  /** Frees what a claim has leased whose answer never came. */
  const reclaim = (run: Run) =>
    Effect.suspend(() => {
      if (!hasLostClaim) return Effect.void
      const what = "What a lost claim has leased could not be freed"
      const ids = Array.from(held.keys())
      return Effect.map(
        Effect.andThen(
          run(what, statements.reclaim, [session, ids]),
          run(what, statements.reclaimKeyed, [session, ids])
        ),
        () => {
          hasLostClaim = false
          sweep()
        }
      )
    })

  /** Claims from one source until it has no more within reach, or there is no more room. */
  const claimFrom = Effect.fnUntraced(function*(source: Source, room: Room, isSweep: boolean) {
    const claimed: Array<Claimed> = []
    if (!source.mayHave && !isSweep) return claimed
    let reach: Reach = isSweep ? "everything" : source.wasShort ? "recent" : "newest"
    source.mayHave = false
    source.wasShort = false
    let left = room
    while (true) {
      const found = yield* source.claim(left, reach)
      if (found.claimed.length > 0) source.isUsed = true
      claimed.push(...found.claimed)
      left = without(left, found.claimed)
      if (found.isCut || left.rows < 1 || (claimed.length > 0 && left.bytes <= 0)) {
        source.mayHave = true
        return claimed
      }
      if (!found.isAll) continue
      source.wasShort = true
      if (claimed.length > 0) {
        // Who gets these need not wait for a look further back. That comes next.
        if (reach !== "everything") {
          source.mayHave = true
          wake()
        }
        return claimed
      }
      if (reach === "newest") reach = "recent"
      else if (reach === "recent" && source.floors.canSweep(now())) reach = "everything"
      else return claimed
    }
  })

  const claimAll = Effect.fnUntraced(function*(room: Room) {
    if (isStale) yield* learn
    const isSweep = waiting.floors.isSweepDue(now())
    let hasPromoted = isDue || dueAt <= now()
    if (hasPromoted) yield* promote(isSweep)
    // Who claims looks, whether told or not; for keys only where there have been any.
    for (const source of [waiting, keyed]) if (source.isUsed) source.mayHave = true
    const [first, second] = turn++ % 2 === 0 ? [waiting, keyed] : [keyed, waiting]
    const claimed: Array<Claimed> = []
    let left = room
    /** Answers whether it has taken as many rows as it could. */
    const take = Effect.fnUntraced(function*(source: Source, rows: number) {
      if (rows < 1 || (claimed.length > 0 && left.bytes <= 0)) return false
      const taken = yield* claimFrom(source, { ...left, rows }, source.floors.isSweepDue(now()))
      claimed.push(...taken)
      left = without(left, taken)
      return taken.length === rows
    })
    while (true) {
      // Each has half, and what the other leaves.
      const isFull = yield* take(first, second.mayHave ? Math.ceil(left.rows / 2) : left.rows)
      yield* take(second, left.rows)
      if (isFull) yield* take(first, left.rows)
      if (claimed.length > 0 || hasPromoted) return claimed
      hasPromoted = true
      if ((yield* promote(isSweep)) === 0) return claimed
    }
  })

  // What a claim has leased, and not told yet, looks like what a lost one has leased.
  const oneAtATime = Semaphore.makeUnsafe(1)
  const claiming = (
    effect: Effect.Effect<ReadonlyArray<Claimed>, IntentStoreError>
  ): Effect.Effect<ReadonlyArray<Claimed>, IntentStoreError> =>
    oneAtATime.withPermit(
      // Not in the way that claims are planned: there is no index on leases.
      Effect.andThen(
        reclaim(control.run),
        Effect.onError(
          Effect.tap(effect, (claimed) =>
            Effect.sync(() => {
              for (const each of claimed) {
                const place = placeOf(each)
                held.set(place.id, place)
              }
            })),
          () =>
            Effect.sync(() => {
              hasLostClaim = true
              waiting.mayHave = true
              keyed.mayHave = true
            })
        )
      )
    )
  const claim: Session["claim"] = ({ bytes, rows, tags: allowed }) =>
    rows < 1 || tags.length === 0 ? Effect.succeed([]) : claiming(claimAll({ rows, bytes, tags: allowed }))

  const claimSuspect: Session["claimSuspect"] = Effect.map(
    claiming(Effect.gen(function*() {
      const known = subscribed.ids.map((id) => subscribed.queueOf(id))
      const params = [session, subscribed.ids, subscribed.tagsOf(known)]
      const what = "A suspect could not be claimed"
      // Rows with these columns are what the statements answer.
      const keyedRows = (yield* claims.run(what, statements.claimSuspectKeyed, params)) as ReadonlyArray<never>
      if (keyedRows.length > 0) return keyedRows.map((row) => subscribed.claimedKeyed(row))
      const rows = (yield* claims.run(what, statements.claimSuspect, params)) as ReadonlyArray<never>
      return rows.map((row) => subscribed.claimed(row))
    })),
    ([claimed]) => claimed
  )

  // Settling ---------------------------------------------------------------------------------------------------------

  /** Does the same to rows without and with keys, in the statements for these. Answers the positions that were found. */
  const both = <A extends { readonly claimed: Claimed }>(
    list: ReadonlyArray<A>,
    ofWaiting: (list: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, IntentStoreError>,
    ofKeyed: (list: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, IntentStoreError>
  ): Effect.Effect<ReadonlySet<bigint>, IntentStoreError> => {
    const hasNoKey: Array<A> = []
    const isKeyed: Array<A> = []
    for (const each of list) (hasKey(placeOf(each.claimed)) ? isKeyed : hasNoKey).push(each)
    return Effect.map(
      Effect.all([
        hasNoKey.length === 0 ? Effect.succeed([]) : ofWaiting(hasNoKey),
        isKeyed.length === 0 ? Effect.succeed([]) : ofKeyed(isKeyed)
      ], { concurrency: 2 }),
      ([rows, keyedRows]) => {
        const found = new Set<bigint>()
        const lanes: Array<Lane> = []
        // Rows with these columns are what the statements answer.
        for (const [id] of rows) found.add(id as bigint)
        for (const row of keyedRows) {
          const [id, tag, lane] = row as SettledRow
          if (id !== null) found.add(id)
          else if (tag !== null && lane !== null) lanes.push({ tag, lane })
        }
        goOn(lanes)
        return found
      }
    )
  }

  /** A row that somebody has changed at that moment is missed, so what was not found is looked for again. */
  const twice = <A extends { readonly claimed: Claimed }>(
    list: ReadonlyArray<A>,
    look: (list: ReadonlyArray<A>) => Effect.Effect<ReadonlySet<bigint>, IntentStoreError>
  ): Effect.Effect<ReadonlySet<bigint>, IntentStoreError> =>
    Effect.flatMap(look(list), (found) => {
      if (found.size === list.length) return Effect.succeed(found)
      const missed = list.filter(({ claimed }) => !found.has(placeOf(claimed).id))
      return missed.length === 0
        ? Effect.succeed(found)
        : Effect.map(look(missed), (more) => new Set([...found, ...more]))
    })

  const settleOnce = (settlements: ReadonlyArray<Settlement>) => {
    const what = "Intents could not be settled"
    const placesOf = (list: ReadonlyArray<Settlement>) => list.map(({ claimed }) => placeOf(claimed))
    const isSuccess = (list: ReadonlyArray<Settlement>) => list.every(({ _tag }) => _tag === "Succeeded")
    return both(
      settlements,
      (list) =>
        isSuccess(list)
          ? settles.run(what, statements.succeed, waitingAt(session, placesOf(list)))
          : settles.run(what, statements.settle, [...waitingAt(session, placesOf(list)), ...endings(list)]),
      (list) =>
        isSuccess(list)
          ? settles.run(what, statements.succeedKeyed, keyedAt(session, placesOf(list)))
          : settles.run(what, statements.settleKeyed, [
            ...keyedAt(session, placesOf(list)),
            ...endings(list),
            list.map((each) => each._tag === "Dead" && each.blocksKey === true)
          ])
    )
  }

  const settle: Session["settle"] = Effect.fnUntraced(function*(settlements) {
    if (settlements.length === 0) return []
    const settled = yield* twice(settlements, settleOnce)
    const lost: Array<string> = []
    const released = new Set<number>()
    for (const settlement of settlements) {
      const place = placeOf(settlement.claimed)
      held.delete(place.id)
      if (!settled.has(place.id)) {
        lost.push(settlement.claimed.id)
      } else if (settlement._tag === "Released") {
        released.add(place.queue)
      } else if (isLater(settlement)) {
        if (settlement.delay > 0) signals.tellHere({ _tag: "Due", queues: [place.queue], due: settlement.delay })
        else if (place.lane !== undefined) goOn([{ tag: place.tag, lane: place.lane }])
        else {
          isDue = true
          wake()
        }
      }
    }
    if (released.size > 0) signals.tell({ _tag: "Freed", queues: Array.from(released) })
    return lost
  })

  const start: Session["start"] = Effect.fnUntraced(function*(list) {
    if (list.length === 0) return []
    const what = "It could not be put on record that intents have started"
    const placesOf = (each: ReadonlyArray<{ readonly claimed: Claimed }>) => each.map(({ claimed }) => placeOf(claimed))
    const started = yield* twice(list.map((claimed) => ({ claimed })), (some) =>
      both(
        some,
        (each) => settles.run(what, statements.start, waitingAt(session, placesOf(each))),
        (each) => settles.run(what, statements.startKeyed, keyedAt(session, placesOf(each)))
      ))
    return list.flatMap((claimed) => started.has(placeOf(claimed).id) ? [] : [claimed.id])
  })

  const userClient = client.withoutTransforms()
  const settleInTransaction: Session["settleInTransaction"] = Effect.fnUntraced(function*(claimed) {
    const { id, lane, queue, tag } = placeOf(claimed)
    const rows = yield* Effect.mapError(
      (lane === undefined
        ? userClient.unsafe(statements.succeedInTransaction, [String(queue), String(id), String(session)])
        : userClient.unsafe(statements.succeedKeyedInTransaction, [String(tag), lane, String(id), String(session)]))
        .values,
      failed(`Intent ${claimed.id} could not be settled in the transaction of its handler`)
    )
    yield* client.afterCommit(Effect.sync(() => {
      held.delete(id)
      if (lane !== undefined) goOn([{ tag, lane }])
    }))
    return rows.length > 0
  })

  // Limits -----------------------------------------------------------------------------------------------------------

  const permit: Session["permit"] = (wants) =>
    wants.length === 0 ? Effect.succeed([]) : permitted(
      control,
      statements,
      session,
      wants.map((want) => ({
        want,
        whole: subscribed.wholeOf(want.tag),
        subscription: subscribed.subscriptions.get(want.tag)!
      }))
    )

  // Living and dying -------------------------------------------------------------------------------------------------

  const others = new Map<bigint, Sighting>()
  let server = ""

  const expired = (): ReadonlyArray<readonly [bigint, Sighting]> => {
    const at = clock.monotonicTimeNanosUnsafe()
    return Array.from(others).filter(([, { lease, since }]) => at - since >= lease)
  }

  const beat: Session["beat"] = Effect.tap(
    Effect.map(
      Effect.suspend(() => {
        const floorsOf = ({ floors }: Source) =>
          floors.from(subscribed.ids, floors.isSweepDue(now()) ? "everything" : "recent", now())
        return beats.run("The session could not be kept alive", statements.beat, [
          session,
          subscribed.ids,
          floorsOf(waiting),
          floorsOf(keyed),
          versions.map(({ tag }) => tag),
          versions.map(({ version }) => version)
        ])
      }),
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
          newest
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
        if (newest > newestQueue) {
          newestQueue = newest
          isStale = true
        }
        const isPast = due !== null && due <= 0
        if (isWaiting) {
          // What the last claim has not found is further back.
          for (const source of [waiting, keyed]) {
            if (source.wasShort) source.floors.sweep()
            source.mayHave = true
          }
        }
        if (isPast) {
          // What the last look has left behind is from before.
          isDue = true
          promotedAt = 0
        } else if (due !== null) wakeIn(due)
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
    () => isStale ? Effect.forkIn(Effect.ignore(Effect.andThen(learn, Effect.sync(wake))), scope) : Effect.void
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
      const what = "What ended sessions had claimed could not be freed"
      const both_ = [ids, ids.map((id) => -id)]
      const freed = (yield* run(what, statements.free, both_)) as ReadonlyArray<FreedRow>
      const freedKeyed = (yield* run(what, statements.freeKeyed, both_)) as ReadonlyArray<FreedRow>
      // What a transaction of theirs still holds is freed by whoever next finds that their beat does not move.
      const finished = ids.filter((id) =>
        [...freed, ...freedKeyed].every(([of, leased, locked]) => of !== id || leased === locked)
      )
      if (finished.length > 0) yield* run("Ended sessions could not be removed", statements.unregister, [finished])
      return (freed[0]?.[3] ?? 0) + (freedKeyed[0]?.[3] ?? 0)
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
      const places = Array.from(held.values())
      const what = "What the session had claimed could not be freed"
      const unkeyed = places.filter((place) => !hasKey(place))
      if (unkeyed.length > 0) yield* run(what, statements.leave, waitingAt(session, unkeyed))
      const withKeys = places.filter(hasKey)
      if (withKeys.length > 0) yield* run(what, statements.leaveKeyed, keyedAt(session, withKeys))
      return hasFreed
    })).pipe(
      // Closing waits for nobody for ever, though it can't be interrupted.
      Effect.interruptible,
      Effect.timeout("10 seconds"),
      Effect.map((hasFreed) => {
        if (hasFreed) signals.tell({ _tag: "Freed", queues: subscribed.ids })
      }),
      Effect.catch((cause) =>
        Effect.logWarning("A session could not be closed. Others end it when its lease is over", cause)
      )
    )
  )

  yield* Effect.acquireRelease(
    control.run("The session could not be opened", statements.register, [
      session,
      Duration.toMillis(options.lease),
      subscribed.ids
    ]),
    () => Effect.andThen(leave, Effect.sync(() => sessions.delete(leave)))
  )
  sessions.add(leave)
  yield* signals.subscribe({ hears, wake: hear, due: wakeIn })
  yield* Effect.forkScoped(Effect.repeat(
    Effect.ignore(
      Effect.andThen(
        control.run("Old idempotency keys could not be forgotten", statements.forget, [forgetAtOnce]),
        options.keepDelivered === undefined
          ? Effect.void
          : control.run("Old deliveries could not be forgotten", statements.clean, [
            options.keepDelivered,
            forgetAtOnce
          ])
      ),
      { log: "Debug" }
    ),
    Schedule.spaced(forgetEvery)
  ))
  return { claim, claimSuspect, settle, start, settleInTransaction, permit, beat, recover, wakes }
})

/** What is left of the room when these were claimed. */
const without = ({ bytes, rows, tags }: Room, claimed: ReadonlyArray<Claimed>): Room => ({
  rows: rows - claimed.length,
  bytes: bytes - claimed.reduce((sum, { payload }) => sum + Buffer.byteLength(payload), 0),
  tags: tags && new Map(Array.from(tags, ([tag, left]) => [
    tag,
    left - claimed.filter((each) => each.tag === tag).length
  ]))
})

/** Not one from a sequence: after a restore that would begin again, and a new session would have the leases of an old one. */
const newSession = (): bigint => BigInt.asUintN(62, crypto.getRandomValues(new BigInt64Array(1))[0]!) + 1n
