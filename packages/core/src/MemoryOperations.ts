/**
 * What an operator can ask of the store in memory, and tell it.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { MemoryPermits } from "./MemoryPermits.ts"
import type { MemoryRemembered } from "./MemoryRemembered.ts"
import {
  type DeadLetter,
  type Delivered,
  firstIn,
  hasExpired,
  type Holder,
  leaseEndsAt,
  type MemoryRows,
  type Now,
  type Operate,
  type Row,
  stateOf
} from "./MemoryRows.ts"
import type { Block, Detail, Entry, Filter, Operations, Page, Pause, State } from "./Operations.ts"
import type { Depth } from "./OutboxStore.ts"

/** An intent, whatever has become of it. */
interface Found {
  readonly row: Row
  readonly state: State
  readonly letter: DeadLetter | undefined
  /** When it died or was delivered. */
  readonly endedAt: number | undefined
}

/** What the store consists of. */
interface Parts {
  readonly rows: MemoryRows
  readonly permits: MemoryPermits
  readonly remembered: MemoryRemembered
  readonly holders: ReadonlySet<Holder>
}

export const makeOperations = (
  operation: Operate,
  { holders, permits, remembered, rows }: Parts,
  counts: Effect.Effect<ReadonlyArray<Depth>>
): Operations => {
  const all = (millis: number): ReadonlyArray<Found> => [
    ...Array.from(rows.live.values(), foundLive),
    ...Array.from(rows.dead.values(), foundDead),
    ...rows.deliveredBy(millis).map(foundDelivered)
  ]

  const find = (id: string, millis: number): Found | undefined => {
    const live = rows.live.get(id)
    if (live !== undefined) return foundLive(live)
    const dead = rows.dead.get(id)
    if (dead !== undefined) return foundDead(dead)
    const delivered = rows.deliveredBy(millis).find(({ row }) => row.envelope.id === id)
    return delivered === undefined ? undefined : foundDelivered(delivered)
  }

  /** Those that are meant, in the order in which they came. */
  const matching = (filter: Filter, states: ReadonlyArray<State>, millis: number): ReadonlyArray<Found> =>
    all(millis)
      .filter((found) => states.includes(found.state) && matches(found, filter, millis))
      .toSorted((a, b) => a.row.sequence - b.row.sequence)

  const change = (
    states: ReadonlyArray<State>,
    filter: Filter,
    run: (found: ReadonlyArray<Found>, millis: number) => void
  ): Effect.Effect<number> =>
    operation(({ millis }) => {
      const found = matching(filter, states, millis).filter(({ row }) => !row.isCancelled)
      run(found, millis)
      return found.length
    })

  /** Takes away what nobody holds, and what is held when its session lets go of it. */
  const cancel = (found: ReadonlyArray<Found>): void => {
    for (const { row } of found) if (row.lease !== undefined) row.isCancelled = true
    rows.withdraw(found.flatMap(({ row }) => row.lease === undefined ? [row] : []))
  }

  const purge = (found: ReadonlyArray<Found>): void => {
    rows.exhume(lettersOf(found))
    rows.forget(new Set(found.map(({ row }) => row)))
  }

  const blocksOf = ({ letter, row, endedAt, state }: Found, now: Now): ReadonlyArray<Block> => {
    const { envelope: { partitionKey, tag, version }, lane, lease } = row
    if (letter !== undefined) {
      return [{ _tag: "Dead", since: letter.at, reason: letter.reason, failure: row.failure ?? "" }]
    }
    if (endedAt !== undefined) return [{ _tag: "Delivered", at: endedAt }]
    const blocks: Array<Block> = []
    if (lease !== undefined) {
      blocks.push({ _tag: "Held", session: lease.holder.id, leaseEndsAt: leaseEndsAt(lease.holder, now) })
    }
    if (state === "delayed") {
      const { dueAt, undecodableSince } = row
      blocks.push(
        undecodableSince !== undefined && row.history.at(-1)?.what === "undecodable"
          ? { _tag: "Undecodable", since: undecodableSince, dueAt }
          : { _tag: "NotDue", dueAt }
      )
    }
    if (partitionKey !== undefined && lane !== undefined) {
      for (const { row: { envelope } } of lane.blockers) {
        blocks.push({ _tag: "KeyBlocked", by: envelope.id, partitionKey })
      }
      const first = firstIn(lane)
      if (first !== undefined && first !== row) {
        blocks.push({ _tag: "BehindIntent", id: first.envelope.id, partitionKey })
      }
    }
    if (lease === undefined && row.suspicion === "strong") blocks.push({ _tag: "Suspect" })
    const { isPaused, pausedKeys } = rows.tagOf(tag)
    if (isPaused) blocks.push({ _tag: "Paused", tag, partitionKey: undefined })
    if (partitionKey !== undefined && pausedKeys.has(partitionKey)) blocks.push({ _tag: "Paused", tag, partitionKey })
    if (lease !== undefined) return blocks
    const subscription = Array.from(holders)
      .filter((holder) => !hasExpired(holder, now.nanos))
      .flatMap((holder) => holder.subscriptions.get(tag) ?? [])
      .find(({ versions }) => versions.includes(version))
    if (subscription === undefined) return [...blocks, { _tag: "NoWorker", tag, version }]
    const limits = permits.reached(subscription, now.nanos)
    return [...blocks, ...limits.map((limit): Block => ({ _tag: "LimitReached", limit }))]
  }

  return {
    counts,
    list: (filter, { after, limit }) =>
      operation(({ millis }): Page => {
        const found = matching(filter, states, millis)
          .map(toEntry)
          .filter(({ id }) => after === undefined || id > after)
          .toSorted((a, b) => a.id < b.id ? -1 : 1)
        const entries = found.slice(0, limit)
        return { entries, next: entries.length < found.length ? entries.at(-1)?.id : undefined }
      }),
    find: (id) =>
      operation(({ millis }): Detail | undefined => {
        const found = find(id, millis)
        if (found === undefined) return undefined
        const { envelope: { payload }, failure, history } = found.row
        return { ...toEntry(found), payload, failure, history: history.slice() }
      }),
    blocks: (id) =>
      operation((now) => {
        const found = find(id, now.millis)
        return found === undefined ? undefined : blocksOf(found, now)
      }),
    retry: (filter) => change(["dead"], filter, (found, millis) => rows.revive(lettersOf(found), millis)),
    reject: (filter, reason) =>
      change(["waiting", "delayed"], filter, (found, millis) => {
        rows.withdraw(found.map(({ row }) => row))
        for (const { row } of found) rows.bury(row, "rejected", reason, millis, false)
      }),
    cancel: (filter) => change(["waiting", "delayed", "claimed"], filter, cancel),
    purge: (filter) => change(["dead", "delivered"], filter, purge),
    erase: ({ partitionKey, tag }) =>
      change(states, { partitionKey, tag }, (found) => {
        cancel(found.filter(({ endedAt }) => endedAt === undefined))
        purge(found.filter(({ endedAt }) => endedAt !== undefined))
        remembered.erase(partitionKey, tag)
      }),
    pause: ({ partitionKey, tag }) => operation(() => rows.pause(tag, partitionKey)),
    resume: ({ partitionKey, tag }) => operation(() => rows.resume(tag, partitionKey)),
    paused: operation((): ReadonlyArray<Pause> =>
      Array.from(rows.tags.values()).flatMap(({ isPaused, name: tag, pausedKeys }) =>
        [...(isPaused ? [undefined] : []), ...pausedKeys].map((partitionKey) => ({ tag, partitionKey }))
      )
    ),
    sessions: operation((now) =>
      Array.from(holders, (holder) => ({
        session: holder.id,
        startedAt: holder.startedAt,
        leaseEndsAt: leaseEndsAt(holder, now),
        claimed: holder.rows.size,
        subscriptions: Array.from(holder.subscriptions.values()).flatMap(({ tag, versions }) =>
          versions.map((version) => ({ tag, version }))
        )
      }))
    )
  }
}

const states: ReadonlyArray<State> = ["waiting", "claimed", "delayed", "dead", "delivered"]

const foundLive = (row: Row): Found => ({ row, state: stateOf(row), letter: undefined, endedAt: undefined })

const foundDead = (letter: DeadLetter): Found => ({ row: letter.row, state: "dead", letter, endedAt: letter.at })

const foundDelivered = ({ at, row }: Delivered): Found => ({ row, state: "delivered", letter: undefined, endedAt: at })

const lettersOf = (found: ReadonlyArray<Found>): ReadonlyArray<DeadLetter> =>
  found.flatMap(({ letter }) => letter ?? [])

const matches = ({ endedAt, row, state }: Found, filter: Filter, millis: number): boolean => {
  const { envelope: { id, partitionKey, tag }, enqueuedAt } = row
  return (filter.ids?.includes(id) ?? true)
    && (filter.states?.includes(state) ?? true)
    && (filter.tag === undefined || filter.tag === tag)
    && (filter.partitionKey === undefined || filter.partitionKey === partitionKey)
    && (filter.olderThan === undefined || millis - (endedAt ?? enqueuedAt) >= filter.olderThan)
}

const toEntry = ({ endedAt, letter, row, state }: Found): Entry => {
  const { crashes, dueAt, enqueuedAt, envelope: { id, partitionKey, priority, tag, version }, failures } = row
  return {
    id,
    state,
    tag,
    version,
    partitionKey,
    priority,
    failures,
    crashes,
    enqueuedAt,
    dueAt: dueAt === enqueuedAt ? undefined : dueAt,
    endedAt,
    reason: letter?.reason
  }
}
