/**
 * What the store in memory holds: intents, in the order in which they can be claimed.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Latch from "effect/Latch"
import * as MutableList from "effect/MutableList"
import type { Envelope } from "./Envelope.ts"
import type { Event, State } from "./Operations.ts"
import type { Claimed, DeathReason, Subscription } from "./OutboxStore.ts"

/** The time of an operation. */
export interface Now {
  readonly millis: number
  readonly nanos: bigint
}

/** Runs an operation on the store, after what has become due by now. */
export type Operate = <A>(run: (now: Now) => A) => Effect.Effect<A>

/** An intent. */
export interface Row {
  readonly envelope: Envelope
  readonly enqueuedAt: number
  /** Tells rows apart by when they came. */
  readonly sequence: number
  /** From when it is due, if it has a partition key. */
  lane: Lane | undefined
  dueAt: number
  failures: number
  crashes: number
  suspicion: Claimed["suspicion"]
  undecodableSince: number | undefined
  /** How it last failed. */
  failure: string | undefined
  readonly history: Array<Event>
  isDelayed: boolean
  /** An operator has cancelled it while it was held. */
  isCancelled: boolean
  /** Who has claimed it; a new one for each claim, so that whoever held it before cannot settle it. */
  lease: Lease | undefined
}

export interface Lease {
  readonly row: Row
  readonly holder: Holder
  /** It was claimed as a suspect. */
  readonly isAlone: boolean
  isStarted: boolean
}

/** What the store knows of a session. */
export interface Holder {
  readonly id: string
  readonly subscriptions: ReadonlyMap<string, Subscription>
  readonly leaseNanos: bigint
  readonly startedAt: number
  readonly rows: Set<Row>
  /** Opened when something came in, or when there is a new time to wait for. */
  readonly changed: Latch.Latch
  isWoken: boolean
  lastBeat: bigint
  /** Which tag its next claim begins with. */
  turn: number
}

/** The rows of one tag with one partition key, in their order. Those that are held are the first ones. */
export interface Lane {
  readonly tag: Tag
  readonly key: string
  readonly rows: MutableList.MutableList<Row>
  /** The first one, if it can be claimed. */
  offered: Row | undefined
  held: number
  /** Dead letters that keep the others from going on. */
  readonly blockers: Set<DeadLetter>
}

/** Rows of one tag and version that can be claimed, by priority. */
interface Level {
  readonly priority: number
  readonly rows: MutableList.MutableList<Row>
}

export interface Tag {
  readonly name: string
  /** By version, highest priority first. Without empty levels. */
  readonly levels: Map<number, Array<Level>>
  readonly lanes: Map<string, Lane>
  readonly pausedKeys: Set<string>
  isPaused: boolean
}

export interface DeadLetter {
  readonly row: Row
  readonly at: number
  readonly reason: DeathReason
}

export interface Delivered {
  readonly row: Row
  readonly at: number
}

/** The most events of an intent that are kept. */
const mostEvents = 20

export class MemoryRows {
  readonly tags = new Map<string, Tag>()
  /** Everything that is neither dead nor delivered. */
  readonly live = new Map<string, Row>()
  readonly dead = new Map<string, DeadLetter>()
  /** Those on record as started when their session was ended, while nobody has them. */
  readonly suspects = new Set<Row>()
  /** The delayed ones, the one that is due first in front. */
  private delayed: Array<Row> = []
  private delivered: Array<Delivered> = []
  private sequence = 0
  private pruneAt = pruneFrom

  private readonly keptMillis: number
  private readonly onReady: (row: Row) => void
  private readonly onEarlier: () => void

  /** `onReady` hears of what can be claimed, and `onEarlier` that there is less time to wait for the next one. */
  constructor(keptMillis: number, onReady: (row: Row) => void, onEarlier: () => void) {
    this.keptMillis = keptMillis
    this.onReady = onReady
    this.onEarlier = onEarlier
  }

  tagOf(name: string): Tag {
    const found = this.tags.get(name)
    if (found !== undefined) return found
    const made: Tag = {
      name,
      levels: new Map(),
      lanes: new Map(),
      pausedKeys: new Set(),
      isPaused: false
    }
    this.tags.set(name, made)
    return made
  }

  // What can be claimed ----------------------------------------------------------------------------------------------

  /** Where the row is that goes first in a tag, among the versions that a session can read. */
  firstOf({ tag: name, versions }: Subscription): Level | undefined {
    const tag = this.tags.get(name)
    if (tag === undefined || tag.isPaused) return undefined
    let first: Level | undefined
    for (const version of versions) {
      const level = tag.levels.get(version)?.[0]
      if (level !== undefined && (first === undefined || goesBefore(level, first))) first = level
    }
    return first
  }

  /** The suspect that a session may claim. */
  suspectFor({ subscriptions }: Holder): Row | undefined {
    for (const row of this.suspects) {
      const { envelope: { tag: name, version }, lane } = row
      const isKnown = subscriptions.get(name)?.versions.includes(version) === true
      if (isKnown && !this.isPaused(row) && (lane === undefined || (firstIn(lane) === row && isFree(lane)))) return row
    }
    return undefined
  }

  isPaused({ envelope: { partitionKey, tag: name } }: Row): boolean {
    const tag = this.tagOf(name)
    return tag.isPaused || (partitionKey !== undefined && tag.pausedKeys.has(partitionKey))
  }

  /** Leases a row that can be claimed, or that follows those of its lane which the same session has. */
  lease(row: Row, holder: Holder, isAlone: boolean): Lease {
    const { lane } = row
    if (isAlone) this.suspects.delete(row)
    else if (lane === undefined || lane.offered === row) this.take(row)
    if (lane !== undefined) {
      lane.offered = undefined
      lane.held++
    }
    row.lease = { row, holder, isAlone, isStarted: isAlone }
    holder.rows.add(row)
    return row.lease
  }

  /** The row that may be claimed together with those of its lane that have just been. */
  nextIn({ held, rows }: Lane, { versions }: Subscription): Row | undefined {
    const next = MutableList.toArrayN(rows, held + 1)[held]
    return next === undefined || next.isDelayed || next.suspicion === "strong"
        || !versions.includes(next.envelope.version)
      ? undefined
      : next
  }

  private levelOf({ envelope: { priority, tag, version }, lane }: Row): Level {
    const { levels } = this.tagOf(tag)
    const list = levels.get(version) ?? []
    levels.set(version, list)
    const wanted = lane === undefined ? priority : 0
    const index = list.findIndex((level) => level.priority <= wanted)
    const found = list[index]
    if (found?.priority === wanted) return found
    const made: Level = { priority: wanted, rows: MutableList.make() }
    list.splice(index === -1 ? list.length : index, 0, made)
    return made
  }

  private take(row: Row): void {
    const level = this.levelOf(row)
    if (peek(level.rows) === row) MutableList.take(level.rows)
    else MutableList.remove(level.rows, row)
    if (level.rows.length === 0) dropEmpty(this.tagOf(row.envelope.tag))
  }

  private offer(row: Row, isFirst: boolean, isQuiet: boolean): void {
    const { rows } = this.levelOf(row)
    if (isFirst) MutableList.prepend(rows, row)
    else MutableList.append(rows, row)
    if (!isQuiet) this.onReady(row)
  }

  // Coming and going -------------------------------------------------------------------------------------------------

  /** Adds an intent. It tells nobody, which is for the boundary to do. */
  add(envelope: Envelope, dueAt: number, millis: number): void {
    const row: Row = {
      envelope,
      enqueuedAt: millis,
      sequence: this.sequence++,
      lane: undefined,
      dueAt,
      failures: 0,
      crashes: 0,
      suspicion: "none",
      undecodableSince: undefined,
      failure: undefined,
      history: [],
      isDelayed: false,
      isCancelled: false,
      lease: undefined
    }
    this.live.set(envelope.id, row)
    if (dueAt > millis) this.postpone(row, dueAt)
    else this.arrive(row, true)
  }

  /** It is due, so it can be claimed: now, or when its lane lets it. */
  private arrive(row: Row, isQuiet = false): void {
    const { envelope: { partitionKey, tag } } = row
    if (partitionKey !== undefined && row.lane === undefined) {
      row.lane = this.laneOf(this.tagOf(tag), partitionKey)
      MutableList.append(row.lane.rows, row)
    }
    if (row.lane === undefined) this.offer(row, false, isQuiet)
    else this.goOn(row.lane, false, isQuiet)
  }

  private laneOf(tag: Tag, key: string): Lane {
    const found = tag.lanes.get(key)
    if (found !== undefined) return found
    const made: Lane = { tag, key, rows: MutableList.make(), offered: undefined, held: 0, blockers: new Set() }
    tag.lanes.set(key, made)
    return made
  }

  /** Offers the first one of a lane, if nothing keeps it. */
  private goOn(lane: Lane, isFirst: boolean, isQuiet = false): void {
    const first = firstIn(lane)
    if (first === undefined && lane.blockers.size === 0) lane.tag.lanes.delete(lane.key)
    if (first === undefined || !isFree(lane) || lane.offered !== undefined || first.isDelayed) return
    if (lane.tag.pausedKeys.has(lane.key)) return
    // Who comes for suspects finds it by itself.
    if (first.suspicion === "strong") return isQuiet ? undefined : this.onReady(first)
    lane.offered = first
    this.offer(first, isFirst, isQuiet)
  }

  /** It is due at a later time. If it has a lane, it stays where it is, and holds up those behind it. */
  private postpone(row: Row, dueAt: number): void {
    row.isDelayed = true
    row.dueAt = dueAt
    let low = 0
    let high = this.delayed.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.delayed[middle]!.dueAt <= dueAt) low = middle + 1
      else high = middle
    }
    this.delayed.splice(low, 0, row)
    if (low === 0) this.onEarlier()
  }

  /** When the next delayed one is due. */
  get nextDueAt(): number | undefined {
    return this.delayed[0]?.dueAt
  }

  /** Lets come what has become due. */
  promote(millis: number): void {
    let count = 0
    while (count < this.delayed.length && this.delayed[count]!.dueAt <= millis) count++
    if (count === 0) return
    for (const row of this.delayed.splice(0, count)) {
      row.isDelayed = false
      this.arrive(row)
    }
  }

  /** It is due again after a delay. Its lane goes on with `release`. */
  putOff(row: Row, delay: number, millis: number): void {
    if (delay > 0) return this.postpone(row, millis + delay)
    row.dueAt = millis
    if (row.lane === undefined) this.offer(row, false, false)
  }

  /** It is held no longer. What becomes of it is said next, and in the end its lane goes on. */
  unlease(row: Row): void {
    row.lease?.holder.rows.delete(row)
    row.lease = undefined
    if (row.lane !== undefined) row.lane.held--
  }

  /** It is gone. Its lane goes on with `release`. */
  leave(row: Row): void {
    this.live.delete(row.envelope.id)
    if (row.lane === undefined) return
    const { rows } = row.lane
    if (peek(rows) === row) MutableList.take(rows)
    else MutableList.remove(rows, row)
  }

  /** After some were held: those that are `freed` go before what came after them, and the lanes of the others go on. */
  release(freed: ReadonlyArray<Row>, others: Iterable<Row>): void {
    for (const row of freed.toReversed()) {
      if (row.suspicion === "strong") this.suspects.add(row)
      if (row.lane !== undefined) this.goOn(row.lane, true)
      else if (row.suspicion === "strong") this.onReady(row)
      else this.offer(row, true, false)
    }
    for (const { lane } of others) {
      if (lane !== undefined) this.goOn(lane, false)
    }
  }

  /** Takes away what nobody holds. */
  withdraw(rows: ReadonlyArray<Row>): void {
    const gone = new Set(rows)
    const lanes = new Set<Lane>()
    const tags = new Set<Tag>()
    for (const row of gone) {
      const { envelope: { id, tag }, lane } = row
      this.live.delete(id)
      this.suspects.delete(row)
      tags.add(this.tagOf(tag))
      if (lane !== undefined) lanes.add(lane)
    }
    const isLeft = (row: Row) => !gone.has(row)
    this.delayed = this.delayed.filter(isLeft)
    for (const tag of tags) {
      for (const level of Array.from(tag.levels.values()).flat()) MutableList.filter(level.rows, isLeft)
      dropEmpty(tag)
    }
    for (const lane of lanes) {
      MutableList.filter(lane.rows, isLeft)
      if (lane.offered !== undefined && gone.has(lane.offered)) lane.offered = undefined
      this.goOn(lane, false)
    }
  }

  // What is over -----------------------------------------------------------------------------------------------------

  /** It was delivered. */
  deliver(row: Row, millis: number): void {
    this.leave(row)
    if (this.keptMillis <= 0) return
    this.delivered.push({ row, at: millis })
    if (this.delivered.length > this.pruneAt) this.deliveredBy(millis)
  }

  /** What is kept of deliveries. */
  deliveredBy(millis: number): ReadonlyArray<Delivered> {
    this.delivered = this.delivered.filter(({ at }) => at + this.keptMillis > millis)
    this.pruneAt = Math.max(pruneFrom, this.delivered.length * 2)
    return this.delivered
  }

  forget(rows: ReadonlySet<Row>): void {
    this.delivered = this.delivered.filter(({ row }) => !rows.has(row))
  }

  /** It is a dead letter, and has left. */
  bury(row: Row, reason: DeathReason, failure: string, millis: number, blocksKey: boolean): void {
    const letter: DeadLetter = { row, at: millis, reason }
    row.suspicion = "none"
    row.isDelayed = false
    row.failure = failure
    record(row, millis, "dead", failure)
    this.dead.set(row.envelope.id, letter)
    if (blocksKey) row.lane?.blockers.add(letter)
  }

  /** Dead letters are gone, and the lanes that they have blocked go on. */
  exhume(letters: ReadonlyArray<DeadLetter>): void {
    for (const letter of letters) {
      this.dead.delete(letter.row.envelope.id)
      if (letter.row.lane?.blockers.delete(letter) === true) this.goOn(letter.row.lane, false)
    }
  }

  /** Dead letters are due again: first in the lanes that they have blocked, or else like new ones. */
  revive(letters: ReadonlyArray<DeadLetter>, millis: number): void {
    for (const letter of letters) {
      const { row } = letter
      this.dead.delete(row.envelope.id)
      const isFirst = row.lane?.blockers.delete(letter) === true
      const revived: Row = {
        ...row,
        sequence: isFirst ? row.sequence : this.sequence++,
        lane: isFirst ? row.lane : undefined,
        dueAt: millis,
        failures: 0,
        crashes: 0,
        undecodableSince: undefined
      }
      record(revived, millis, "retried", undefined)
      this.live.set(row.envelope.id, revived)
      if (revived.lane !== undefined) MutableList.prepend(revived.lane.rows, revived)
      this.arrive(revived)
    }
  }

  // Pauses -----------------------------------------------------------------------------------------------------------

  pause(name: string, partitionKey: string | undefined): void {
    const tag = this.tagOf(name)
    if (partitionKey === undefined) {
      tag.isPaused = true
      return
    }
    tag.pausedKeys.add(partitionKey)
    const lane = tag.lanes.get(partitionKey)
    if (lane?.offered === undefined) return
    this.take(lane.offered)
    lane.offered = undefined
  }

  resume(name: string, partitionKey: string | undefined): void {
    const tag = this.tagOf(name)
    if (partitionKey === undefined) {
      tag.isPaused = false
      for (const levels of tag.levels.values()) this.onReady(peek(levels[0]!.rows)!)
      for (const row of this.suspects) if (row.envelope.tag === name) this.onReady(row)
    } else if (tag.pausedKeys.delete(partitionKey)) {
      const lane = tag.lanes.get(partitionKey)
      if (lane !== undefined) this.goOn(lane, false)
    }
  }
}

const pruneFrom = 1_000

const peek = ({ head }: MutableList.MutableList<Row>): Row | undefined => head?.array[head.offset]

export const rowIn = ({ rows }: Level): Row => peek(rows)!

export const firstIn = ({ rows }: Lane): Row | undefined => peek(rows)

const isFree = ({ blockers, held }: Lane): boolean => held === 0 && blockers.size === 0

const goesBefore = (level: Level, other: Level): boolean =>
  level.priority > other.priority
  || (level.priority === other.priority && rowIn(level).sequence < rowIn(other).sequence)

const dropEmpty = ({ levels }: Tag): void => {
  for (const [version, list] of levels) {
    const left = list.filter(({ rows }) => rows.length > 0)
    if (left.length === 0) levels.delete(version)
    else if (left.length < list.length) levels.set(version, left)
  }
}

export const stateOf = ({ isDelayed, lease }: Row): State =>
  lease !== undefined ? "claimed" : isDelayed ? "delayed" : "waiting"

/** Puts on record what has happened to an intent. */
export const record = (
  { history }: Row,
  at: number,
  what: Event["what"],
  detail: string | undefined
): void => {
  history.push({ at, what, detail })
  if (history.length > mostEvents) history.shift()
}

export const hasExpired = ({ lastBeat, leaseNanos }: Holder, nanos: bigint): boolean => nanos - lastBeat >= leaseNanos

/** When the lease of a session ends if it does not beat again. */
export const leaseEndsAt = ({ lastBeat, leaseNanos }: Holder, { millis, nanos }: Now): number =>
  millis + Number(lastBeat + leaseNanos - nanos) / 1_000_000
