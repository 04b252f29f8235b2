/**
 * What a session claims, and where it looks for it.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Claimed, Session } from "@epilogue/core/OutboxStore"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { Hints, keyedSource, type Room, type Source, type Subscribed, waitingSource } from "./claims.ts"
import type { Connections, Run } from "./connections.ts"
import { lag, type Reach } from "./floors.ts"
import { type Head, readyHeads, readyLocked } from "./heads.ts"
import { type Lane, type Place, placeOf } from "./places.ts"
import type { Statements } from "./statements.ts"
import type { Wakes } from "./wakes.ts"

type PromotedRow = readonly [
  moved: number,
  due: number | null,
  at: number,
  left: number,
  tags: ReadonlyArray<number>,
  lanes: ReadonlyArray<string>
]

/** How many rows of a queue that are due are moved at once. */
const promoteAtOnce = 500

/** After so many milliseconds those are looked for again that had to wait for a transaction. */
const promoteAgain = 50

export interface Claiming extends Pick<Session, "claim" | "claimSuspect"> {
  /** Something may be waiting: new, perhaps with keys alone, or before what was seen already. */
  readonly hear: (what: "added" | "keyed" | "freed") => void
  /** Lanes go on: what comes next in them can be claimed. */
  readonly goOn: (lanes: ReadonlyArray<Lane>) => void
  /** From where on a look at all queues begins: rows without a key, and those with one. */
  readonly floors: () => readonly [ReadonlyArray<bigint>, ReadonlyArray<bigint>]
  /** A beat has seen that something waits, or that something has been due for a while. */
  readonly expect: (isWaiting: boolean, isPast: boolean) => void
  /** Frees what a claim has leased whose answer never came. Answers the heads of lanes in which something was cancelled. */
  readonly reclaim: (run: Run) => Effect.Effect<ReadonlyArray<Head>, IntentStoreError>
  /** Whether there may be rows that are leased without anybody's knowing. */
  readonly hasLost: () => boolean
}

export const makeClaiming = (options: {
  readonly session: bigint
  readonly subscribed: Subscribed
  readonly claims: Connections
  readonly control: Connections
  readonly statements: Statements
  readonly wakes: Wakes
  readonly now: () => number
  /** What was claimed, told and not settled. */
  readonly held: Map<bigint, Place>
  /** Learns of queues that have come to be. */
  readonly refresh: Effect.Effect<void, IntentStoreError>
  readonly release: (claimed: ReadonlyArray<Claimed>) => Effect.Effect<unknown, IntentStoreError>
}): Claiming => {
  const { claims, control, held, now, refresh, session, statements, subscribed, wakes } = options
  /** A claim has failed. */
  let hasLostClaim = false

  const hints = new Hints()
  const waiting = waitingSource(session, subscribed, claims, statements, now)
  const keyed = keyedSource(session, subscribed, claims, statements, now, hints, options.release)

  const sweep = (): void => {
    waiting.floors.sweep()
    keyed.floors.sweep()
  }
  const hear: Claiming["hear"] = (what) => {
    if (what !== "keyed") waiting.mayHave = true
    if (what !== "added") keyed.mayHave = true
    if (what === "keyed") keyed.isUsed = true
    if (what === "freed") sweep()
    wakes.wake()
  }
  // Told of all together, the next claim knows them all.
  const goOn: Claiming["goOn"] = (lanes) => {
    if (lanes.length === 0) return
    for (const { lane, tag } of lanes) hints.add(tag, lane)
    keyed.mayHave = true
    keyed.isUsed = true
    wakes.wake()
  }

  let turn = 0
  let promotedAt = 0

  /** Moves what is due to where it can be claimed. */
  const promote = (isSweep: boolean) =>
    Effect.suspend(() => {
      wakes.look()
      return claims.run("What is due could not be moved", statements.promote, [
        subscribed.ids,
        promoteAtOnce,
        isSweep ? 0 : promotedAt - lag
      ])
    }).pipe(
      Effect.onError(() => Effect.sync(() => wakes.due())),
      Effect.map((rows) => {
        // A row with these columns is what the statement answers.
        const [moved, due, at, left, revivedTags, lanes] = rows[0] as PromotedRow
        // There may be more than that, or some have to wait, which the next one finds from where this one began.
        if (moved >= promoteAtOnce) wakes.due()
        else if (left > 0) wakes.dueIn(promoteAgain)
        else promotedAt = at
        if (due !== null) wakes.dueIn(due)
        if (moved > 0) {
          waiting.mayHave = true
          keyed.mayHave = true
        }
        goOn(lanes.map((lane, index) => ({ tag: revivedTags[index]!, lane })))
        return moved
      })
    )

  /** Frees what a claim has leased whose answer never came. Answers the heads that are there where it was cancelled. */
  const reclaim: Claiming["reclaim"] = (run) =>
    Effect.suspend(() => {
      if (!hasLostClaim) return Effect.succeed([])
      const what = "What a lost claim has leased could not be freed"
      const ids = Array.from(held.keys())
      // What is cancelled meanwhile is found by the second of each two.
      return Effect.flatMap(
        Effect.forEach(
          [statements.reclaim, statements.discardLost, statements.reclaimKeyed, statements.discardLostKeyed],
          (statement) => run(what, statement, [session, ids])
        ),
        ([, , , discarded]) => {
          hasLostClaim = false
          sweep()
          // Rows with these columns are what the statement answers.
          const lanes = discarded!.map(([tag, lane]): Lane => ({ tag: tag as number, lane: lane as string }))
          goOn(lanes)
          return readyHeads(run, statements, lanes)
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
      if (!found.isAll) {
        if (claimed.length === 0) continue
        // Who gets these need not wait for what it takes to find more.
        source.mayHave = true
        wakes.wake()
        return claimed
      }
      source.wasShort = true
      if (claimed.length > 0) {
        // Who gets these need not wait for a look further back. That comes next.
        if (reach !== "everything") {
          source.mayHave = true
          wakes.wake()
        }
        return claimed
      }
      if (reach === "newest") reach = "recent"
      else if (reach === "recent" && source.floors.canSweep(now())) reach = "everything"
      else return claimed
    }
  })

  const claimAll = Effect.fnUntraced(function*(room: Room) {
    yield* refresh
    const isSweep = waiting.floors.isSweepDue(now())
    let hasPromoted = wakes.isDue
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
        Effect.flatMap(reclaim(control.run), (heads) => readyLocked(control.run, statements, heads)),
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
    rows < 1 || subscribed.subscriptions.size === 0
      ? Effect.succeed([])
      : claiming(claimAll({ rows, bytes, tags: allowed }))

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

  const floorsOf = ({ floors }: Source) =>
    floors.from(subscribed.ids, floors.isSweepDue(now()) ? "everything" : "recent", now())

  return {
    claim,
    claimSuspect,
    hear,
    goOn,
    floors: () => [floorsOf(waiting), floorsOf(keyed)],
    expect: (isWaiting, isPast) => {
      if (isWaiting) {
        // What the last claim has not found is further back.
        for (const source of [waiting, keyed]) {
          if (source.wasShort) source.floors.sweep()
          source.mayHave = true
        }
      }
      if (!isPast) return
      // What the last look has left behind is from before.
      wakes.due()
      promotedAt = 0
    },
    reclaim,
    hasLost: () => hasLostClaim
  }
}

/** What is left of the room when these were claimed. */
const without = ({ bytes, rows, tags }: Room, claimed: ReadonlyArray<Claimed>): Room => ({
  rows: rows - claimed.length,
  bytes: bytes - claimed.reduce((sum, { payload }) => sum + Buffer.byteLength(payload), 0),
  tags: tags && new Map(Array.from(tags, ([tag, left]) => [
    tag,
    left - claimed.filter((each) => each.tag === tag).length
  ]))
})
