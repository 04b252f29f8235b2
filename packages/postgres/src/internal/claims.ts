/**
 * What a session claims: rows without a key, from queue to queue, and rows with one, by their lanes.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Claimed, Subscription } from "@epilogue/core/OutboxStore"
import * as Effect from "effect/Effect"
import type { Connections } from "./connections.ts"
import { Floors, type Reach } from "./floors.ts"
import { type Lane, Place } from "./places.ts"
import { type Queue, wholeOf } from "./queues.ts"
import type { Statements } from "./statements.ts"

/** How much may be claimed. */
export interface Room {
  readonly rows: number
  readonly bytes: number
  readonly tags: ReadonlyMap<string, number> | undefined
}

/** What a statement has claimed: `isCut` if it had to leave some for want of room, `isAll` if there is nothing left. */
interface Found {
  readonly claimed: ReadonlyArray<Claimed>
  readonly isCut: boolean
  readonly isAll: boolean
}

/** A kind of rows that can be claimed. */
export interface Source {
  readonly floors: Floors
  /** Whether there has been anything. */
  isUsed: boolean
  /** Whether there may be something, as far as was told. */
  mayHave: boolean
  /** Whether the last look was at all there was. */
  wasShort: boolean
  /** Claims what is within reach. */
  readonly claim: (room: Room, reach: Reach) => Effect.Effect<Found, IntentStoreError>
}

/** What a claim answers of each row, in this order. */
type ClaimedRow = readonly [
  queue: number,
  id: bigint,
  intent: string,
  failures: number,
  crashes: number,
  suspicion: 0 | 1 | 2 | 3,
  enqueuedAt: number,
  traceparent: string | null,
  undecodableFor: number | null,
  size: number,
  payload: string
]

/** What a claim answers of a row with a key. */
type KeyedRow = readonly [...ClaimedRow, tag: number, lane: string, partitionKey: string]

/** What a claim of rows with keys answers first: of each queue how many were ready and the first of them; what was to be leased. */
type LookedRow = readonly [
  queues: ReadonlyArray<number> | null,
  readies: ReadonlyArray<number> | null,
  firsts: ReadonlyArray<bigint> | null,
  lasts: ReadonlyArray<bigint> | null,
  chosen: ReadonlyArray<bigint> | null,
  found: number
]

/** The tags that a session delivers, and where they have their rows. */
export class Subscribed {
  readonly subscriptions: ReadonlyMap<string, Subscription>
  readonly versions: ReadonlyArray<{ readonly tag: string; readonly version: number }>
  private byId = new Map<number, Queue>()
  private wholes = new Map<string, number>()
  /** Of each tag, its queues by priority, the highest first. */
  levels = new Map<string, ReadonlyArray<ReadonlyArray<Queue>>>()
  /** Queues of versions without a priority, which is where rows with keys are. */
  plain: ReadonlyArray<Queue> = []
  ids: ReadonlyArray<number> = []

  constructor(subscriptions: ReadonlyArray<Subscription>) {
    this.subscriptions = new Map(subscriptions.map((each) => [each.tag, each]))
    this.versions = subscriptions.flatMap(({ tag, versions }) => versions.map((version) => ({ tag, version })))
  }

  learn(queues: ReadonlyArray<Queue>): void {
    this.byId = new Map()
    this.wholes = new Map()
    const known: Array<Queue> = []
    for (const queue of queues) {
      const { id, tag, version } = queue
      if (version === wholeOf(tag).version) this.wholes.set(tag, id)
      else if (this.subscriptions.get(tag)?.versions.includes(version) === true) known.push(queue)
    }
    this.levels = new Map()
    for (const tag of this.subscriptions.keys()) {
      const own = known.filter((queue) => queue.tag === tag)
      const priorities = Array.from(new Set(own.map(({ priority }) => priority))).toSorted((a, b) => b - a)
      this.levels.set(tag, priorities.map((priority) => own.filter((queue) => queue.priority === priority)))
    }
    for (const queue of known) this.byId.set(queue.id, queue)
    this.plain = known.filter(({ priority }) => priority === 0)
    this.ids = known.map(({ id }) => id)
  }

  has(queue: number): boolean {
    return this.byId.has(queue)
  }

  queueOf(id: number): Queue {
    return this.byId.get(id)!
  }

  /** The queue that stands for a tag as a whole. */
  wholeOf(tag: string): number {
    return this.wholes.get(tag)!
  }

  tagsOf(queues: ReadonlyArray<Queue>): ReadonlyArray<number> {
    return queues.map(({ tag }) => this.wholeOf(tag))
  }

  claimed(row: ClaimedRow, lane?: string, partitionKey?: string): Claimed {
    const [queue, id, intent, failures, crashes, suspicion, enqueuedAt, traceparent, undecodableFor, , payload] = row
    const { tag, version } = this.queueOf(queue)
    return {
      id: intent,
      token: new Place(intent, queue, this.wholeOf(tag), id, lane),
      tag,
      version,
      payload,
      partitionKey,
      failures,
      crashes,
      suspicion: suspicion === 0 ? "none" : suspicion === 1 ? "possible" : "strong",
      enqueuedAt,
      traceparent: traceparent ?? undefined,
      undecodableFor: undecodableFor ?? undefined
    }
  }

  claimedKeyed(row: KeyedRow): Claimed {
    return this.claimed(row as unknown as ClaimedRow, row[12], row[13])
  }
}

const what = "Intents could not be claimed"

/** Rows without a key: of each tag a share, of a tag its higher priorities first. */
export const waitingSource = (
  session: bigint,
  subscribed: Subscribed,
  { run }: Connections,
  statements: Statements,
  now: () => number
): Source => {
  const floors = new Floors()
  let turn = 0

  const claim: Source["claim"] = Effect.fnUntraced(function*(room, reach) {
    const claimed: Array<Claimed> = []
    let bytes = 0
    const allowance = new Map(room.tags)
    /** Where each tag stands among its priorities. */
    let open = Array.from(subscribed.levels, ([tag, levels]) => ({ tag, levels, level: 0 }))
    while (claimed.length < room.rows && (claimed.length === 0 || bytes < room.bytes)) {
      open = open.filter(({ level, levels, tag }) => level < levels.length && allowance.get(tag) !== 0)
      if (open.length === 0) return { claimed, isCut: false, isAll: true }
      // It begins with another queue each time, for when there are more queues than rows to claim.
      turn++
      const queues = rotated(
        open.flatMap(({ level, levels, tag }) =>
          // What a tag is allowed is not divided: its versions take turns.
          allowance.has(tag) ? rotated(levels[level]!, turn).slice(0, 1) : levels[level]!
        ),
        turn
      )
      const rows = room.rows - claimed.length
      const most = queues.map(({ tag }) => Math.min(rows, allowance.get(tag) ?? rows))
      const share = Math.ceil(rows / queues.length)
      const shares = most.map((each) => Math.min(each, share))
      const ids = queues.map(({ id }) => id)
      const answer = yield* run(what, statements.claim, [
        session,
        ids,
        floors.from(ids, reach, now()),
        shares.map(BigInt),
        most.map(BigInt),
        rows,
        room.bytes - bytes,
        subscribed.tagsOf(queues)
      ])
      // Rows with these columns are what the statement answers.
      const answered = (answer as ReadonlyArray<readonly [...ClaimedRow, found: bigint]>).toSorted((a, b) =>
        a[1] < b[1] ? -1 : 1
      )
      const counts = new Map<number, number>()
      for (const row of answered) {
        const [queue, id] = row
        const count = counts.get(queue) ?? 0
        if (count === 0) floors.see(queue, id)
        counts.set(queue, count + 1)
        bytes += row[9]
        // What comes after it is not for the eyes of this function.
        claimed.push(subscribed.claimed(row as unknown as ClaimedRow))
      }
      if (Number(answered[0]?.[11] ?? 0n) > answered.length) return { claimed, isCut: true, isAll: false }
      if (answered.length >= rows) return { claimed, isCut: false, isAll: false }
      for (const [tag, left] of allowance) {
        allowance.set(tag, left - answered.filter(([queue]) => subscribed.queueOf(queue).tag === tag).length)
      }
      // Of several queues that used up their share, one may have had more to give when another could not take all of its part.
      const full = queues.filter(({ id }, index) => (counts.get(id) ?? 0) >= shares[index]!)
      const unsure = new Set(full.length <= 1 ? [] : full.map(({ tag }) => tag))
      for (const each of open) {
        const asked = queues.filter(({ tag }) => tag === each.tag)
        const isWhole = asked.length === each.levels[each.level]!.length
        if (unsure.has(each.tag) || (!isWhole && asked.some(({ id }) => (counts.get(id) ?? 0) > 0))) continue
        each.level++
      }
    }
    return { claimed, isCut: false, isAll: false }
  })

  return { floors, isUsed: true, mayHave: true, wasShort: true, claim }
}

/** Lanes that a claim has to look at: what was before the next of them is gone. */
export class Hints {
  private readonly lanes = new Map<string, Lane>()

  /** Whether there are any of these tags. */
  has(tags: ReadonlyArray<number>): boolean {
    return Array.from(this.lanes.values()).some(({ tag }) => tags.includes(tag))
  }

  add(tag: number, lane: string): void {
    this.lanes.set(`${tag} ${lane}`, { tag, lane })
  }

  take(count: number, tags: ReadonlySet<number>): ReadonlyArray<Lane> {
    const taken: Array<Lane> = []
    for (const [key, hint] of this.lanes) {
      if (taken.length >= count) break
      if (!tags.has(hint.tag)) continue
      this.lanes.delete(key)
      taken.push(hint)
    }
    return taken
  }
}

/** Rows with a key: of each lane its head, and those right after it. */
export const keyedSource = (
  session: bigint,
  subscribed: Subscribed,
  { run }: Connections,
  statements: Statements,
  now: () => number,
  hints: Hints,
  release: (claimed: ReadonlyArray<Claimed>) => Effect.Effect<unknown, IntentStoreError>
): Source => {
  const floors = new Floors()
  let turn = 0

  /** One statement, for some queues. */
  const claimFrom = Effect.fnUntraced(function*(
    queues: ReadonlyArray<Queue>,
    rows: number,
    bytes: number,
    reach: Reach
  ): Effect.fn.Return<Found & { readonly bytes: number }, IntentStoreError> {
    const ids = queues.map(({ id }) => id)
    const tags = subscribed.tagsOf(queues)
    const look = Math.max(rows, 20)
    const start = floors.from(ids, reach, now())
    /** In each queue, what was looked at before. */
    const beyond = new Map<number, bigint>()
    while (true) {
      const lanes = hints.take(rows, new Set(tags))
      const answer = yield* Effect.onError(
        run(what, statements.claimKeyed, [
          session,
          ids,
          ids.map((id, index) => beyond.get(id) ?? start[index]!),
          queues.map(({ tag }) => subscribed.subscriptions.get(tag)!.perKey ?? 1),
          tags,
          rows,
          bytes,
          lanes.map(({ tag }) => tag),
          lanes.map(({ lane }) => lane),
          BigInt(look)
        ]),
        () => Effect.sync(() => lanes.forEach(({ lane, tag }) => hints.add(tag, lane)))
      )
      // Rows with these columns are what the statement answers.
      const [looked, ...rest] = answer as unknown as readonly [LookedRow, ...ReadonlyArray<ReadonlyArray<unknown>>]
      const [askedOf, readies, firsts, lasts, chosen, found] = looked
      askedOf?.forEach((queue, index) => floors.see(queue, firsts![index]!))
      const keyed = rest.map((row) => row.slice(6) as unknown as KeyedRow).toSorted((a, b) => a[1] < b[1] ? -1 : 1)
      const claimed = yield* inOrder(keyed, chosen?.length ?? 0)
      const full = (askedOf ?? []).flatMap((queue, index) =>
        readies![index]! < look ? [] : [[queue, lasts![index]! + 1n] as const]
      )
      if (claimed.length === 0 && full.length > 0) {
        // None of these can be claimed now, and some of them may have to wait for long.
        for (const [queue, next] of full) beyond.set(queue, next)
        continue
      }
      // The lanes of hints that there was no room for are ready, so they are found by a look at all that is.
      if (claimed.length >= rows && lanes.length > 0) floors.sweep()
      return {
        claimed,
        bytes: keyed.reduce((sum, row) => sum + row[9], 0),
        isCut: found > (chosen?.length ?? 0),
        isAll: claimed.length < rows && !hints.has(tags) && full.length === 0
      }
    }
  })

  /**
   * A row that somebody has changed at that moment is not among those that were claimed, and then what comes after it in its
   * lane must not be delivered: of every lane, all but the head are handed back.
   */
  const inOrder = Effect.fnUntraced(function*(rows: ReadonlyArray<KeyedRow>, chosen: number) {
    const claimed = rows.map((row) => subscribed.claimedKeyed(row))
    if (chosen === rows.length) return claimed
    const heads = new Set<string>()
    const [kept, others]: [Array<Claimed>, Array<Claimed>] = [[], []]
    for (const each of claimed) {
      const lane = `${each.tag} ${each.partitionKey}`
      ;(heads.has(lane) ? others : kept).push(each)
      heads.add(lane)
    }
    yield* release(others)
    return kept
  })

  const claim: Source["claim"] = Effect.fnUntraced(function*(room, reach) {
    const claimed: Array<Claimed> = []
    let bytes = 0
    let isAll = true
    turn++
    const limited = (tag: string) => room.tags?.has(tag) === true
    const groups = rotated(
      [
        subscribed.plain.filter(({ tag }) => !limited(tag)),
        ...Array.from(
          room.tags ?? [],
          ([tag, allowed]) => allowed < 1 ? [] : subscribed.plain.filter((queue) => queue.tag === tag)
        )
      ].filter((queues) => queues.length > 0),
      turn
    )
    for (const queues of groups) {
      const rows = room.rows - claimed.length
      if (rows < 1 || (claimed.length > 0 && bytes >= room.bytes)) return { claimed, isCut: false, isAll: false }
      const allowed = room.tags?.get(queues[0]!.tag) ?? rows
      const found = yield* claimFrom(queues, Math.min(rows, allowed), room.bytes - bytes, reach)
      claimed.push(...found.claimed)
      bytes += found.bytes
      if (found.isCut) return { claimed, isCut: true, isAll: false }
      if (!found.isAll && found.claimed.length < allowed) isAll = false
    }
    return { claimed, isCut: false, isAll }
  })

  return { floors, isUsed: false, mayHave: true, wasShort: true, claim }
}

const rotated = <A>(list: ReadonlyArray<A>, by: number): ReadonlyArray<A> => {
  const from = list.length === 0 ? 0 : by % list.length
  return [...list.slice(from), ...list.slice(0, from)]
}
