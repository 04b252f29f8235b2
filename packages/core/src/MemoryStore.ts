/**
 * The store of durable intents that is not durable: for development, for tests, and as the reference of what a store does.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as MutableList from "effect/MutableList"
import type * as Scope from "effect/Scope"
import type { Appended, Envelope } from "./Envelope.ts"
import { type Capabilities, IntentStoreError } from "./IntentSink.ts"
import type { Beat, Claimed, Depth, OpenOptions, OutboxStore, Session, Settlement } from "./OutboxStore.ts"

const name = "OutboxStore.layerMemory"

const capabilities: Capabilities = { durable: false, transactional: false, ordered: true, priorities: true }

/** An intent that is not delivered yet. */
interface Row {
  readonly envelope: Envelope
  readonly enqueuedAt: number
  /** Tells rows apart by when they were appended. */
  readonly sequence: number
  /** From when it is due, if it has a partition key. */
  lane: Lane | undefined
  dueAt: number
  failures: number
  crashes: number
  undecodableSince: number | undefined
  isDelayed: boolean
  /** Who has claimed it; a new one for each claim, so that whoever held it before cannot settle it. */
  lease: Lease | undefined
}

interface Lease {
  readonly row: Row
  readonly holder: Holder
}

/** The rows of one tag with one partition key, in their order. Only the first one can be claimed. */
type Lane = MutableList.MutableList<Row>

/** Rows of one tag and version that can be claimed, by priority. */
interface Level {
  readonly priority: number
  readonly rows: MutableList.MutableList<Row>
}

interface Tag {
  /** By version, highest priority first. Without empty levels. */
  readonly levels: Map<number, Array<Level>>
  readonly lanes: Map<string, Lane>
  readonly remembered: Map<string, Remembered>
  readonly dead: Array<DeadLetter>
}

interface Remembered {
  readonly id: string
  readonly until: number
}

interface DeadLetter {
  readonly row: Row
  readonly settlement: Settlement & { readonly _tag: "Dead" }
}

/** What the store knows of a session. */
interface Holder {
  readonly subscriptions: ReadonlyMap<string, ReadonlyArray<number>>
  readonly leaseNanos: bigint
  readonly rows: Set<Row>
  /** Opened when something came in, or when there is a new time to wait for. */
  readonly changed: Latch.Latch
  isWoken: boolean
  lastBeat: bigint
  /** Which tag its next claim begins with. */
  turn: number
}

/** The time of an operation. */
interface Now {
  readonly millis: number
  readonly nanos: bigint
}

/** Makes a store that lives as long as this process remembers it. */
export const make: Effect.Effect<OutboxStore.Service> = Effect.sync(() => {
  const tags = new Map<string, Tag>()
  const holders = new Set<Holder>()
  /** Everything that is not dead. */
  const rows = new Set<Row>()
  /** The delayed ones, the one that is due first in front. */
  const delayed: Array<Row> = []
  /** Those whose latch is opened when the operation is over. */
  const toSignal = new Set<Holder>()
  let sequence = 0
  let remembered = 0
  let sweepAt = 1_000

  const tagOf = (tag: string): Tag => {
    const found = tags.get(tag)
    if (found !== undefined) return found
    const made: Tag = { levels: new Map(), lanes: new Map(), remembered: new Map(), dead: [] }
    tags.set(tag, made)
    return made
  }

  /** Runs an operation, after what has become due by now. */
  const operation = <A>(run: (now: Now) => A): Effect.Effect<A> =>
    Clock.clockWith((clock) => {
      const now = { millis: clock.currentTimeMillisUnsafe(), nanos: clock.monotonicTimeNanosUnsafe() }
      promote(now)
      const result = run(now)
      const signalled = Array.from(toSignal)
      toSignal.clear()
      // A fiber that waits runs at once when its latch is opened, so it does not see an operation half done.
      for (const { changed } of signalled) changed.openUnsafe()
      return Effect.succeed(result)
    })

  // What can be claimed ----------------------------------------------------------------------------------------------

  const levelOf = ({ envelope: { priority, tag, version }, lane }: Row): Level => {
    const { levels } = tagOf(tag)
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

  /** Where the row is that goes first in a tag, among the versions that a session can read. */
  const firstOf = (tag: Tag | undefined, versions: ReadonlyArray<number>): Level | undefined => {
    let first: Level | undefined
    for (const version of versions) {
      const level = tag?.levels.get(version)?.[0]
      if (level !== undefined && (first === undefined || goesBefore(level, first))) first = level
    }
    return first
  }

  const takeFrom = (level: Level, { levels }: Tag): void => {
    const { version } = peek(level.rows)!.envelope
    MutableList.take(level.rows)
    if (level.rows.length > 0) return
    const list = levels.get(version)!
    list.splice(list.indexOf(level), 1)
    if (list.length === 0) levels.delete(version)
  }

  // Coming and going -------------------------------------------------------------------------------------------------

  /** It is due, so it can be claimed: now, or when those before it in its lane are gone. */
  const arrive = (row: Row): void => {
    if (row.envelope.partitionKey !== undefined && row.lane === undefined) {
      row.lane = laneOf(row.envelope.tag, row.envelope.partitionKey)
      MutableList.append(row.lane, row)
    }
    if (row.lane === undefined || peek(row.lane) === row) MutableList.append(levelOf(row).rows, row)
  }

  const laneOf = (tag: string, key: string): Lane => {
    const { lanes } = tagOf(tag)
    const lane = lanes.get(key) ?? MutableList.make()
    lanes.set(key, lane)
    return lane
  }

  /** It is due at a later time. If it has a lane, it stays where it is, and holds up those behind it. */
  const postpone = (row: Row, dueAt: number): void => {
    row.isDelayed = true
    row.dueAt = dueAt
    let low = 0
    let high = delayed.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (delayed[middle]!.dueAt <= dueAt) low = middle + 1
      else high = middle
    }
    delayed.splice(low, 0, row)
    // Whoever waits for the one that was first has less time to wait now.
    if (low === 0) { for (const holder of holders) toSignal.add(holder) }
  }

  const promote = ({ millis }: Now): void => {
    let count = 0
    while (count < delayed.length && delayed[count]!.dueAt <= millis) count++
    if (count === 0) return
    for (const row of delayed.splice(0, count)) {
      row.isDelayed = false
      arrive(row)
      wakeFor(row)
    }
  }

  const placeAt = (row: Row, dueAt: number, millis: number): void => {
    if (dueAt > millis) return postpone(row, dueAt)
    row.dueAt = millis
    arrive(row)
  }

  const putOff = (row: Row, delay: number, millis: number): void => {
    placeAt(row, millis + delay, millis)
    if (!row.isDelayed) wakeFor(row)
  }

  /** It is gone, so its lane goes on. */
  const leave = (row: Row): void => {
    rows.delete(row)
    if (row.lane === undefined) return
    MutableList.take(row.lane)
    const next = peek(row.lane)
    if (next === undefined) {
      tagOf(row.envelope.tag).lanes.delete(row.envelope.partitionKey!)
    } else {
      arrive(next)
      wakeFor(next)
    }
  }

  /** They can be claimed again, before those that came after them. */
  const free = (freed: ReadonlyArray<Row>): void => {
    for (const row of freed.toReversed()) {
      MutableList.prepend(levelOf(row).rows, row)
      wakeFor(row)
    }
  }

  const unlease = (row: Row): void => {
    row.lease?.holder.rows.delete(row)
    row.lease = undefined
  }

  /** Ends a session, and answers with what it had claimed. */
  const end = (holder: Holder): ReadonlyArray<Row> => {
    holders.delete(holder)
    const freed = Array.from(holder.rows)
    freed.forEach(unlease)
    free(freed)
    return freed
  }

  // Wakes ------------------------------------------------------------------------------------------------------------

  const wakeFor = ({ envelope: { tag, version } }: Pick<Row, "envelope">): void => {
    for (const holder of holders) {
      if (!holder.isWoken && holder.subscriptions.get(tag)?.includes(version) === true) {
        holder.isWoken = true
        toSignal.add(holder)
      }
    }
  }

  const wake = (envelopes: ReadonlyArray<Envelope>): Effect.Effect<void> =>
    operation(({ millis }) => {
      for (const envelope of envelopes) {
        if (dueAtOf(envelope, millis) <= millis) wakeFor({ envelope })
      }
    })

  const wakesOf = (holder: Holder): Effect.Effect<void> =>
    Effect.suspend(() => {
      let isOver = false
      return Effect.whileLoop({
        while: () => !isOver,
        body: () =>
          Effect.flatMap(
            operation(({ millis }) => {
              isOver = holder.isWoken
              holder.isWoken = false
              holder.changed.closeUnsafe()
              return delayed[0] === undefined ? undefined : delayed[0].dueAt - millis
            }),
            (rest) => {
              if (isOver) return Effect.void
              return rest === undefined
                ? holder.changed.await
                : Effect.timeoutOrElse(holder.changed.await, { duration: rest, orElse: () => Effect.void })
            }
          ),
        step: () => {}
      })
    })

  // The sink ---------------------------------------------------------------------------------------------------------

  const append = (envelopes: ReadonlyArray<Envelope>): Effect.Effect<ReadonlyArray<Appended>> =>
    operation(({ millis }) => {
      if (remembered > sweepAt) sweep(millis)
      return envelopes.map((envelope): Appended => {
        const { id, idempotencyKey, remember } = envelope
        const dueAt = dueAtOf(envelope, millis)
        const { remembered: known } = tagOf(envelope.tag)
        if (idempotencyKey !== undefined) {
          const first = known.get(idempotencyKey)
          if (first !== undefined && first.until > millis) return { id: first.id, duplicate: true }
          if (first === undefined) remembered++
          known.set(idempotencyKey, { id, until: dueAt + remember })
        }
        const row: Row = {
          envelope,
          enqueuedAt: millis,
          sequence: sequence++,
          lane: undefined,
          dueAt,
          failures: 0,
          crashes: 0,
          undecodableSince: undefined,
          isDelayed: false,
          lease: undefined
        }
        rows.add(row)
        placeAt(row, dueAt, millis)
        return { id, duplicate: false }
      })
    })

  /** Forgets the idempotency keys whose time is over, before there are twice as many as are needed. */
  const sweep = (millis: number): void => {
    for (const tag of tags.values()) {
      for (const [key, { until }] of tag.remembered) {
        if (until <= millis && tag.remembered.delete(key)) remembered--
      }
    }
    sweepAt = Math.max(1_000, remembered * 2)
  }

  // Sessions ---------------------------------------------------------------------------------------------------------

  const open = Effect.fnUntraced(function*(options: OpenOptions): Effect.fn.Return<Session, never, Scope.Scope> {
    const holder = yield* Effect.acquireRelease(
      operation(({ nanos }): Holder => {
        const made: Holder = {
          subscriptions: new Map(options.subscriptions.map(({ tag, versions }) => [tag, versions])),
          leaseNanos: BigInt(Math.round(Duration.toMillis(options.lease) * 1_000_000)),
          rows: new Set(),
          changed: Latch.makeUnsafe(),
          // What was there before counts.
          isWoken: options.subscriptions.some(({ tag, versions }) => firstOf(tags.get(tag), versions) !== undefined),
          lastBeat: nanos,
          turn: 0
        }
        holders.add(made)
        return made
      }),
      (made) => operation(() => void end(made))
    )
    const subscriptions = Array.from(holder.subscriptions)

    const claim: Session["claim"] = (limit) =>
      operation(({ millis }) => {
        const claimed: Array<Claimed> = []
        if (!holders.has(holder)) return claimed
        let bytes = 0
        const from = holder.turn++
        let turns = subscriptions.map((_, index) => subscriptions[(from + index) % subscriptions.length]!)
        // A delivery of each tag in turn, until there is none left, or no more room.
        while (turns.length > 0) {
          const left: typeof turns = []
          for (const turn of turns) {
            if (claimed.length >= limit.rows) return claimed
            const tag = tagOf(turn[0])
            const level = firstOf(tag, turn[1])
            if (level === undefined) continue
            const row = peek(level.rows)!
            bytes += row.envelope.payload.length
            // One that is larger than what there is room for comes alone.
            if (claimed.length > 0 && bytes > limit.bytes) return claimed
            takeFrom(level, tag)
            row.lease = { row, holder }
            holder.rows.add(row)
            claimed.push(toClaimed(row, row.lease, millis))
            left.push(turn)
          }
          turns = left
        }
        return claimed
      })

    const settle: Session["settle"] = (settlements) =>
      operation(({ millis }) => {
        const lost: Array<string> = []
        const freed: Array<Row> = []
        for (const settlement of settlements) {
          const { id, token } = settlement.claimed
          // Only this store makes tokens.
          const lease = token as Lease
          const { holder: by, row } = lease
          if (by !== holder || row.lease !== lease) {
            lost.push(id)
            continue
          }
          unlease(row)
          switch (settlement._tag) {
            case "Succeeded":
              leave(row)
              break
            case "Dead":
              row.failures++
              leave(row)
              tagOf(row.envelope.tag).dead.push({ row, settlement })
              break
            case "Released":
              freed.push(row)
              break
            case "Failed":
              row.failures++
              putOff(row, settlement.delay, millis)
              break
            case "Snoozed":
              putOff(row, settlement.delay, millis)
              break
            case "Undecodable":
              row.undecodableSince ??= millis
              putOff(row, settlement.delay, millis)
              break
          }
        }
        free(freed)
        return lost
      })

    return {
      claim,
      settle,
      settleInTransaction: ({ id }) =>
        Effect.fail(
          new IntentStoreError({
            message: `${name} has no transactions, so intent ${id} can't be settled in one. `
              + "Use a store that is transactional, or a handler that is not."
          })
        ),
      beat: operation(({ nanos }): Beat => {
        const isAlive = holders.has(holder)
        holder.lastBeat = nanos
        return {
          isAlive,
          isWaiting: isAlive && subscriptions.some(([tag, versions]) => firstOf(tags.get(tag), versions) !== undefined),
          hasExpired: expired(nanos, holder).length > 0,
          isListening: true
        }
      }),
      recover: operation(({ nanos }) =>
        expired(nanos, holder).reduce((count, other) => {
          const freed = end(other)
          for (const row of freed) row.crashes++
          return count + freed.length
        }, 0)
      ),
      wakes: wakesOf(holder)
    }
  })

  const expired = (nanos: bigint, observer: Holder): ReadonlyArray<Holder> =>
    Array.from(holders).filter((holder) => holder !== observer && nanos - holder.lastBeat >= holder.leaseNanos)

  const depths = operation(({ millis }): ReadonlyArray<Depth> => {
    const all = new Map(
      Array.from(
        tags,
        ([tag, { dead }]) => [tag, { tag, waiting: 0, claimed: 0, delayed: 0, dead: dead.length, oldest: 0 }]
      )
    )
    for (const { dueAt, envelope, isDelayed, lease } of rows) {
      const depth = all.get(envelope.tag)!
      if (isDelayed) depth.delayed++
      else if (lease !== undefined) depth.claimed++
      else {
        depth.waiting++
        depth.oldest = Math.max(depth.oldest, millis - dueAt)
      }
    }
    return Array.from(all.values()).filter(({ claimed, dead, delayed: later, waiting }) =>
      claimed + dead + later + waiting > 0
    )
  })

  return { name, capabilities, append, wake, open, depths }
})

const dueAtOf = ({ delay = 0, runAt }: Envelope, millis: number): number => Math.max(millis, runAt ?? millis + delay)

const peek = ({ head }: MutableList.MutableList<Row>): Row | undefined => head?.array[head.offset]

const goesBefore = (level: Level, other: Level): boolean =>
  level.priority > other.priority
  || (level.priority === other.priority && peek(level.rows)!.sequence < peek(other.rows)!.sequence)

const toClaimed = (
  { crashes, enqueuedAt, envelope, failures, undecodableSince }: Row,
  token: Lease,
  millis: number
): Claimed => ({
  id: envelope.id,
  token,
  tag: envelope.tag,
  version: envelope.version,
  payload: envelope.payload,
  partitionKey: envelope.partitionKey,
  failures,
  crashes,
  enqueuedAt,
  traceparent: envelope.traceparent,
  undecodableFor: undecodableSince === undefined ? undefined : Math.max(0, millis - undecodableSince)
})
