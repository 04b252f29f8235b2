/**
 * What an operator can ask of the store, and tell it.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Block, Detail, Entry, Event, Filter, Live, Operations, Pause, State } from "@epilogue/core/Operations"
import type { Depth } from "@epilogue/core/OutboxStore"
import * as Effect from "effect/Effect"
import type { Connections, Run } from "./connections.ts"
import { readyHeads, readyLocked } from "./heads.ts"
import type { Lane } from "./places.ts"
import { type Queues, wholeOf } from "./queues.ts"
import type { Signals } from "./signals.ts"
import { digestOf, everyLane, quote } from "./sql/names.ts"
import {
  atOnce,
  type Cursor,
  operations,
  type Statement,
  type StepRow,
  type Table,
  type Wanted
} from "./sql/operations.ts"

type EntryRow = readonly [
  id: string,
  state: State,
  tag: string,
  version: number,
  priority: number,
  partitionKey: string | null,
  failures: number,
  crashes: number,
  enqueuedAt: number,
  dueAt: number | null,
  endedAt: number | null,
  reason: Entry["reason"] | null
]

type FoundRow = readonly [
  ...entry: EntryRow,
  payload: string,
  failure: string | null,
  history: string | null,
  session: string | null,
  leaseEndsAt: number | null,
  isSuspect: boolean,
  undecodableSince: number | null,
  before: string | null,
  blockedBy: string | null,
  isTagPaused: boolean,
  isKeyPaused: boolean,
  isKnown: boolean,
  isConcurrencyReached: boolean | null,
  isRateLimitReached: boolean | null
]

type QueueRow = readonly [id: number, tag: string, version: number]

type SessionRow = readonly [
  session: string,
  startedAt: number,
  leaseEndsAt: number,
  claimed: number,
  tags: ReadonlyArray<string>,
  versions: ReadonlyArray<number>
]

/** A step over one table, as `sql/operations.ts` writes it. */
type Step = (table: Table, wanted: Wanted, after: Cursor | undefined) => Statement | undefined

/** How often a table is looked at again where rows were locked, or have moved from one table to another, and how soon. */
const mostPasses = 10
const passAgain = "50 millis"

export const make = (options: {
  readonly schema: string
  readonly connections: Connections
  readonly signals: Signals
  readonly queues: Queues
  readonly depths: Effect.Effect<ReadonlyArray<Depth>, IntentStoreError>
  /** How long what was delivered is kept, in milliseconds. */
  readonly keepDelivered: number | undefined
}): Operations => {
  const { connections, depths, queues, signals } = options
  const statements = operations(quote(options.schema), options.keepDelivered)
  const tell = Effect.sync(() => signals.tell({ _tag: "Freed", queues: undefined }))

  /** What a filter means in the terms of the tables. */
  const resolve = Effect.fnUntraced(function*(
    { ids, olderThan, partitionKey, states = allStates, tag }: Filter,
    among: ReadonlyArray<State>
  ): Effect.fn.Return<Wanted, IntentStoreError> {
    const meant = states.filter((state) => among.includes(state))
    const isAny = tag === undefined && partitionKey === undefined
    const found: ReadonlyArray<QueueRow> = isAny ? [] : yield* queuesOf(tag)
    return {
      states: meant,
      ids,
      queues: tag === undefined ? undefined : found.map(([id]) => id),
      tags: isAny ? undefined : found.flatMap(([id, , version]) => version === 0 ? [id] : []),
      lanes: partitionKey === undefined ? undefined : lanesOf(found, partitionKey),
      olderThan
    }
  })

  const queuesOf = (tag: string | undefined): Effect.Effect<ReadonlyArray<QueueRow>, IntentStoreError> =>
    Effect.map(
      connections.run("The queues could not be looked up", statements.everyQueue, [tag ?? null]),
      // Rows with these columns are what the statement answers.
      (rows) => rows as unknown as ReadonlyArray<QueueRow>
    )

  // Changes, a step at a time --------------------------------------------------------------------------------------------

  /** Changes the next rows of a table, and lets the lanes go on in which something was taken away. */
  const take = Effect.fnUntraced(function*(
    what: string,
    table: Table,
    { params, sql }: Statement
  ): Effect.fn.Return<StepRow, IntentStoreError> {
    // One row with these columns is what every step answers.
    const run = (by: Run) => Effect.map(by(what, sql, params), (rows) => rows[0] as unknown as StepRow)
    if (table !== "keyed" && table !== "dead") return yield* run(connections.run)
    const { heads, row } = yield* connections.transaction(Effect.fnUntraced(function*(by) {
      const changed = yield* run(by)
      const [, , , , tags, lanes] = changed
      return {
        row: changed,
        heads: yield* readyHeads(by, statements, tags.map((tag, index): Lane => ({ tag, lane: lanes[index]! })))
      }
    }))
    yield* readyLocked(connections.run, statements, heads)
    return row
  })

  /** Goes over some tables until nothing is left of what is wanted. Answers how many rows it has changed. */
  const change = Effect.fnUntraced(function*(
    what: string,
    wanted: Wanted,
    step: Step,
    /** Once a row was changed, it may come back: only what was missed is looked for again. */
    isOnce = false
  ): Effect.fn.Return<number, IntentStoreError> {
    let count = 0
    let left = wanted
    for (let pass = 0; pass < mostPasses; pass++) {
      let seen = 0
      const missed: Array<string> = []
      for (const table of statements.tables) {
        let after: Cursor | undefined
        while (true) {
          const statement = step(table, left, after)
          if (statement === undefined) break
          const [looked, changed, last, others] = yield* take(what, table, statement)
          seen += looked
          count += changed
          missed.push(...others)
          if (looked < atOnce || last === null) break
          after = last
        }
      }
      if (seen === 0 || (isOnce && missed.length === 0)) break
      if (isOnce) left = { ...wanted, ids: missed }
      if (missed.length > 0) yield* Effect.sleep(passAgain)
    }
    if (count > 0) yield* tell
    return count
  })

  const changeAll = (
    what: string,
    among: ReadonlyArray<State>,
    step: Step,
    isOnce = false
  ) =>
  (filter: Filter): Effect.Effect<number, IntentStoreError> =>
    Effect.flatMap(resolve(filter, among), (wanted) => change(what, wanted, step, isOnce))

  const forget = Effect.fnUntraced(function*(lanes: ReadonlyArray<string>): Effect.fn.Return<void, IntentStoreError> {
    for (let pass = 0; pass < mostPasses;) {
      const [row] = yield* connections.run(notErased, statements.forgetLanes, [lanes])
      // A row with these columns is what the statement answers.
      const [seen, gone] = row as readonly [number, number]
      if (seen === 0) return
      if (gone > 0) continue
      pass++
      yield* Effect.sleep(passAgain)
    }
  })

  // What is told ---------------------------------------------------------------------------------------------------------

  const find = (id: string): Effect.Effect<FoundRow | undefined, IntentStoreError> => {
    const { params, sql } = statements.find(id)
    return Effect.map(
      connections.run("The intent could not be looked up", sql, params),
      // Rows with these columns are what the statement answers.
      (rows) => rows[0] as FoundRow | undefined
    )
  }

  const laneOf = ({ partitionKey, tag }: Pause): string =>
    partitionKey === undefined ? everyLane : digestOf(tag, partitionKey)

  return {
    counts: depths,
    list: Effect.fnUntraced(function*(filter, { after, limit }) {
      const statement = statements.list(yield* resolve(filter, allStates), after, limit + 1)
      if (statement === undefined) return { entries: [], next: undefined }
      const rows = yield* connections.run("What there is could not be listed", statement.sql, statement.params)
      // Rows with these columns are what the statement answers.
      const entries = (rows as unknown as ReadonlyArray<EntryRow>).slice(0, limit).map(toEntry)
      return { entries, next: rows.length > limit ? entries.at(-1)?.id : undefined }
    }),
    find: (id) => Effect.map(find(id), (row) => row === undefined ? undefined : toDetail(row)),
    blocks: (id) => Effect.map(find(id), (row) => row === undefined ? undefined : toBlocks(row)),
    retry: changeAll("Dead letters could not be retried", ["dead"], statements.retry, true),
    reject: (filter, reason) =>
      changeAll("Intents could not be rejected", ["waiting", "delayed"], statements.reject(reason))(filter),
    cancel: changeAll("Intents could not be cancelled", ["waiting", "delayed", "claimed"], statements.cancel),
    purge: changeAll("Intents could not be purged", ["dead", "delivered"], statements.purge),
    erase: Effect.fnUntraced(function*({ partitionKey, tag }) {
      const wanted = yield* resolve({ partitionKey, tag }, allStates)
      const count = yield* change(notErased, wanted, statements.erase)
      yield* forget(wanted.lanes ?? [])
      return count
    }),
    pause: Effect.fnUntraced(function*(pause) {
      const whole = wholeOf(pause.tag)
      yield* queues.ensure([whole])
      yield* connections.run("The pause could not be stored", statements.pause, [
        queues.idOf(whole),
        laneOf(pause),
        pause.partitionKey ?? null
      ])
    }),
    resume: Effect.fnUntraced(function*(pause) {
      const what = "The pause could not be ended"
      const whole = wholeOf(pause.tag)
      yield* queues.ensure([whole])
      const tag = queues.idOf(whole)
      const lane = laneOf(pause)
      const heads = yield* connections.transaction(Effect.fnUntraced(function*(run) {
        yield* run(what, statements.resume, [tag, lane])
        return yield* readyHeads(run, statements, [{ tag, lane }])
      }))
      yield* readyLocked(connections.run, statements, heads)
      yield* tell
    }),
    paused: Effect.map(
      connections.run("What is paused could not be looked up", statements.paused),
      // Rows with these columns are what the statement answers.
      (rows) =>
        (rows as unknown as ReadonlyArray<readonly [string, string | null]>).map(([tag, partitionKey]): Pause => ({
          tag,
          partitionKey: partitionKey ?? undefined
        }))
    ),
    sessions: Effect.map(
      connections.run("The sessions could not be looked up", statements.sessions),
      // Rows with these columns are what the statement answers.
      (rows) =>
        (rows as unknown as ReadonlyArray<SessionRow>).map(
          ([session, startedAt, leaseEndsAt, claimed, tags, versions]): Live => ({
            session,
            startedAt,
            leaseEndsAt,
            claimed,
            subscriptions: tags.map((tag, index) => ({ tag, version: versions[index]! }))
          })
        )
    )
  }
}

const allStates: ReadonlyArray<State> = ["waiting", "claimed", "delayed", "dead", "delivered"]

const notErased = "What there is of the key could not be erased"

/** A key has a lane of its own in each tag. */
const lanesOf = (queues: ReadonlyArray<QueueRow>, key: string): ReadonlyArray<string> =>
  Array.from(new Set(queues.map(([, tag]) => tag)), (tag) => digestOf(tag, key))

const toEntry = (
  [
    id,
    state,
    tag,
    version,
    priority,
    partitionKey,
    failures,
    crashes,
    enqueuedAt,
    dueAt,
    endedAt,
    reason
  ]: EntryRow
): Entry => ({
  id,
  state,
  tag,
  version,
  partitionKey: partitionKey ?? undefined,
  priority,
  failures,
  crashes,
  enqueuedAt,
  dueAt: dueAt === null || dueAt === enqueuedAt ? undefined : dueAt,
  endedAt: endedAt ?? undefined,
  reason: reason ?? undefined
})

const entryOf = (row: FoundRow): Entry => {
  const [id, state, tag, version, priority, key, failures, crashes, enqueuedAt, dueAt, endedAt, reason] = row
  return toEntry([id, state, tag, version, priority, key, failures, crashes, enqueuedAt, dueAt, endedAt, reason])
}

const historyOf = (text: string | null): ReadonlyArray<Event> =>
  text === null
    ? []
    // It is what `withEvent` has written.
    : (JSON.parse(text) as ReadonlyArray<Omit<Event, "detail"> & { readonly detail: string | null }>).map((
      { at, detail, what }
    ): Event => ({ at, what, detail: detail ?? undefined }))

const toDetail = (row: FoundRow): Detail => {
  const [, , , , , , , , , , , , payload, failure, history] = row
  return { ...entryOf(row), payload, failure: failure ?? undefined, history: historyOf(history) }
}

const toBlocks = (row: FoundRow): ReadonlyArray<Block> => {
  const { dueAt, endedAt, enqueuedAt, partitionKey, reason, state, tag, version } = entryOf(row)
  const [, , , , , , , , , , , , , failure, history, session, leaseEndsAt, isSuspect, undecodableSince, ...more] = row
  const [before, blockedBy, isTagPaused, isKeyPaused, isKnown, isConcurrencyReached, isRateLimitReached] = more
  if (reason !== undefined) return [{ _tag: "Dead", since: endedAt ?? enqueuedAt, reason, failure: failure ?? "" }]
  if (endedAt !== undefined) return [{ _tag: "Delivered", at: endedAt }]
  const blocks: Array<Block> = []
  if (session !== null && leaseEndsAt !== null) blocks.push({ _tag: "Held", session, leaseEndsAt })
  if (state === "delayed") {
    const due = dueAt ?? enqueuedAt
    blocks.push(
      undecodableSince !== null && historyOf(history).at(-1)?.what === "undecodable"
        ? { _tag: "Undecodable", since: undecodableSince, dueAt: due }
        : { _tag: "NotDue", dueAt: due }
    )
  }
  if (partitionKey !== undefined) {
    if (blockedBy !== null) blocks.push({ _tag: "KeyBlocked", by: blockedBy, partitionKey })
    if (before !== null) blocks.push({ _tag: "BehindIntent", id: before, partitionKey })
  }
  if (isSuspect) blocks.push({ _tag: "Suspect" })
  if (isTagPaused) blocks.push({ _tag: "Paused", tag, partitionKey: undefined })
  if (isKeyPaused) blocks.push({ _tag: "Paused", tag, partitionKey })
  if (state === "claimed") return blocks
  if (!isKnown) return [...blocks, { _tag: "NoWorker", tag, version }]
  if (isConcurrencyReached === true) blocks.push({ _tag: "LimitReached", limit: "concurrency" })
  if (isRateLimitReached === true) blocks.push({ _tag: "LimitReached", limit: "rateLimit" })
  return blocks
}
