/**
 * The store of durable intents that is not durable: for development, for tests, and as the reference of what a store does.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import type { Appended, Envelope } from "./Envelope.ts"
import { type Capabilities, IntentStoreError } from "./IntentSink.ts"
import { makeOperations } from "./MemoryOperations.ts"
import { MemoryPermits } from "./MemoryPermits.ts"
import { MemoryRemembered } from "./MemoryRemembered.ts"
import {
  hasExpired,
  type Holder,
  type Lane,
  type Lease,
  MemoryRows,
  type Operate,
  record,
  type Row,
  rowIn,
  stateOf
} from "./MemoryRows.ts"
import type { Beat, Claimed, Depth, OpenOptions, OutboxStore, Permit, Session, Subscription } from "./OutboxStore.ts"

const name = "OutboxStore.layerMemory"

const capabilities: Capabilities = { durable: false, transactional: false, ordered: true, priorities: true }

/** What is claimed of a tag. */
interface Turn {
  readonly subscription: Subscription
  /** How many more may be claimed. */
  left: number
  /** Lanes of which more may be claimed, and how many. */
  readonly runs: Array<{ readonly lane: Lane; readonly left: number }>
}

/** Makes a store that lives as long as this process remembers it. */
export const make = (
  options?: { readonly keepDelivered?: Duration.Input | undefined }
): Effect.Effect<OutboxStore.Service> =>
  Effect.sync(() => {
    const holders = new Set<Holder>()
    /** Those whose latch is opened when the operation is over. */
    const toSignal = new Set<Holder>()
    let opened = 0

    const wakeFor = ({ envelope: { tag, version } }: Pick<Row, "envelope">): void => {
      if (rows.tags.get(tag)?.isPaused === true) return
      for (const holder of holders) {
        if (holder.subscriptions.get(tag)?.versions.includes(version) === true) wakeHolder(holder)
      }
    }
    const wakeHolder = (holder: Holder): void => {
      if (holder.isWoken) return
      holder.isWoken = true
      toSignal.add(holder)
    }

    // Whoever waits for the delayed one that was first has less time to wait now.
    const signalAll = () => holders.forEach((holder) => toSignal.add(holder))
    const keptMillis = Duration.toMillis(Duration.fromInputUnsafe(options?.keepDelivered ?? 0))
    const rows = new MemoryRows(keptMillis, wakeFor, signalAll)
    const permits = new MemoryPermits(wakeHolder)
    const remembered = new MemoryRemembered()

    const operation: Operate = (run) =>
      Clock.clockWith((clock) => {
        const now = { millis: clock.currentTimeMillisUnsafe(), nanos: clock.monotonicTimeNanosUnsafe() }
        rows.promote(now.millis)
        const result = run(now)
        const signalled = Array.from(toSignal)
        toSignal.clear()
        // A fiber that waits runs at once when its latch is opened, so it does not see an operation half done.
        for (const { changed } of signalled) changed.openUnsafe()
        return Effect.succeed(result)
      })

    // The sink -------------------------------------------------------------------------------------------------------

    const append = (envelopes: ReadonlyArray<Envelope>): Effect.Effect<ReadonlyArray<Appended>> =>
      operation(({ millis }) =>
        envelopes.map((envelope): Appended => {
          const dueAt = dueAtOf(envelope, millis)
          const id = remembered.firstWith(envelope, dueAt, millis)
          if (id !== envelope.id) return { id, duplicate: true }
          rows.add(envelope, dueAt, millis)
          return { id, duplicate: false }
        })
      )

    const wake = (envelopes: ReadonlyArray<Envelope>): Effect.Effect<void> =>
      operation(({ millis }) => {
        for (const envelope of envelopes) if (dueAtOf(envelope, millis) <= millis) wakeFor({ envelope })
      })

    // Sessions -------------------------------------------------------------------------------------------------------

    const open = Effect.fnUntraced(function*(
      { lease: leaseTime, subscriptions }: OpenOptions
    ): Effect.fn.Return<Session, never, Scope.Scope> {
      const holder = yield* Effect.acquireRelease(
        operation(({ millis, nanos }): Holder => {
          const made: Holder = {
            id: String(++opened),
            subscriptions: new Map(subscriptions.map((each) => [each.tag, each])),
            leaseNanos: BigInt(Math.round(Duration.toMillis(leaseTime) * 1_000_000)),
            startedAt: millis,
            rows: new Set(),
            changed: Latch.makeUnsafe(),
            isWoken: false,
            lastBeat: nanos,
            turn: 0
          }
          // What was there before counts.
          made.isWoken = isWaiting(made) || rows.suspectFor(made) !== undefined
          holders.add(made)
          return made
        }),
        (made) => operation(({ millis }) => void end(made, false, millis))
      )

      const claim: Session["claim"] = (limit) =>
        operation(({ millis }) => {
          const claimed: Array<Claimed> = []
          if (!holders.has(holder)) return claimed
          let bytes = 0
          const from = holder.turn++
          let turns = subscriptions.map((_, index): Turn => {
            const subscription = subscriptions[(from + index) % subscriptions.length]!
            return { subscription, left: limit.tags?.get(subscription.tag) ?? Infinity, runs: [] }
          })
          // A delivery of each tag in turn, until there is none left, or no more room.
          while (turns.length > 0) {
            const left: typeof turns = []
            for (const turn of turns) {
              if (claimed.length >= limit.rows) return claimed
              const row = turn.left < 1 ? undefined : nextOf(turn)
              if (row === undefined) continue
              bytes += row.envelope.payload.length
              // One that is larger than what there is room for comes alone.
              if (claimed.length > 0 && bytes > limit.bytes) return claimed
              takeFor(turn, row)
              claimed.push(toClaimed(row, rows.lease(row, holder, false), millis))
              left.push(turn)
            }
            turns = left
          }
          return claimed
        })

      /** The first ones of many keys are better than many of one, but none goes before a higher priority. */
      const nextOf = ({ runs, subscription }: Turn): Row | undefined => {
        const level = rows.firstOf(subscription)
        if (level !== undefined && level.priority >= 0) return rowIn(level)
        for (; runs.length > 0; runs.shift()) {
          const row = rows.nextIn(runs[0]!.lane, subscription)
          if (row !== undefined) return row
        }
        return level === undefined ? undefined : rowIn(level)
      }

      const takeFor = (turn: Turn, { lane }: Row): void => {
        turn.left--
        if (lane === undefined) return
        const left = turn.runs[0]?.lane === lane ? turn.runs.shift()!.left : turn.subscription.perKey ?? 1
        if (left > 1) turn.runs.push({ lane, left: left - 1 })
      }

      const claimSuspect: Session["claimSuspect"] = operation(({ millis }) => {
        const row = holders.has(holder) ? rows.suspectFor(holder) : undefined
        return row === undefined ? undefined : toClaimed(row, rows.lease(row, holder, true), millis)
      })

      /** Only this store makes tokens. */
      const leaseOf = ({ token }: Claimed): Lease | undefined => {
        const lease = token as Lease
        return lease.holder === holder && lease.row.lease === lease ? lease : undefined
      }

      const settle: Session["settle"] = (settlements) =>
        operation(({ millis }) => {
          const lost: Array<string> = []
          const freed: Array<Row> = []
          const others: Array<Row> = []
          for (const settlement of settlements) {
            const row = leaseOf(settlement.claimed)?.row
            if (row === undefined) {
              lost.push(settlement.claimed.id)
              continue
            }
            rows.unlease(row)
            if (settlement._tag !== "Released" || row.isCancelled) {
              row.suspicion = "none"
              others.push(row)
            }
            if (row.isCancelled) {
              rows.leave(row)
              continue
            }
            switch (settlement._tag) {
              case "Released":
                freed.push(row)
                break
              case "Succeeded":
                rows.deliver(row, millis)
                break
              case "Dead": {
                const { blocksKey = false, failure, reason } = settlement
                if (reason === "exhausted" || reason === "rejected") row.failures++
                rows.leave(row)
                rows.bury(row, reason, failure, millis, blocksKey)
                break
              }
              case "Failed":
                row.failures++
                row.failure = settlement.failure
                record(row, millis, "failed", settlement.failure)
                rows.putOff(row, settlement.delay, millis)
                break
              case "Snoozed":
                record(row, millis, "snoozed", undefined)
                rows.putOff(row, settlement.delay, millis)
                break
              case "Undecodable":
                row.undecodableSince ??= millis
                row.failure = settlement.failure
                record(row, millis, "undecodable", settlement.failure)
                rows.putOff(row, settlement.delay, millis)
                break
            }
          }
          rows.release(freed, others)
          return lost
        })

      return {
        claim,
        claimSuspect,
        settle,
        settleInTransaction: ({ id }) =>
          Effect.fail(
            new IntentStoreError({
              message: `${name} has no transactions, so intent ${id} can't be settled in one. `
                + "Use a store that is transactional, or a handler that is not."
            })
          ),
        start: (claimed) =>
          operation(() =>
            claimed.flatMap((each) => {
              const lease = leaseOf(each)
              if (lease === undefined) return [each.id]
              lease.isStarted = true
              return []
            })
          ),
        permit: (wants) =>
          operation(({ nanos }) =>
            wants.map((want): Permit =>
              holders.has(holder)
                ? permits.permit(holder, want, nanos)
                : { tag: want.tag, concurrency: 0, tokens: 0, retryAfter: undefined }
            )
          ),
        beat: operation(({ nanos }): Beat => {
          const isAlive = holders.has(holder)
          holder.lastBeat = nanos
          return {
            isAlive,
            isWaiting: isAlive && isWaiting(holder),
            hasExpired: expired(nanos, holder).length > 0,
            isListening: true,
            hasSuspects: isAlive && rows.suspectFor(holder) !== undefined,
            recalled: Array.from(holder.rows).filter((row) => row.isCancelled || rows.isPaused(row)).map(idOf)
          }
        }),
        recover: operation(({ millis, nanos }) =>
          expired(nanos, holder).reduce((count, other) => count + end(other, true, millis), 0)
        ),
        wakes: wakesOf(holder)
      }
    })

    const isWaiting = ({ subscriptions }: Holder): boolean =>
      Array.from(subscriptions.values()).some((subscription) => rows.firstOf(subscription) !== undefined)

    const expired = (nanos: bigint, observer: Holder): ReadonlyArray<Holder> =>
      Array.from(holders).filter((holder) => holder !== observer && hasExpired(holder, nanos))

    /** Ends a session, frees what it had claimed, and answers how many deliveries that is. */
    const end = (holder: Holder, isCrash: boolean, millis: number): number => {
      holders.delete(holder)
      permits.forget(holder)
      const held = Array.from(holder.rows)
      for (const row of held) {
        const { isAlone, isStarted } = row.lease!
        rows.unlease(row)
        if (row.isCancelled) rows.leave(row)
        else if (isCrash && isStarted) {
          row.suspicion = "strong"
          if (isAlone) row.crashes++
          record(
            row,
            millis,
            "crashed",
            isAlone ? "Its worker died while it ran alone" : "Its worker died while it ran"
          )
        } else if (isCrash) row.suspicion = "possible"
      }
      const freed = held.filter(({ isCancelled }) => !isCancelled)
      rows.release(freed, held.filter(({ isCancelled }) => isCancelled))
      return freed.length
    }

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
                return rows.nextDueAt === undefined ? undefined : rows.nextDueAt - millis
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

    // Operators ------------------------------------------------------------------------------------------------------

    const depths = operation(({ millis }): ReadonlyArray<Depth> => {
      const all = new Map<string, { -readonly [Key in keyof Depth]: Depth[Key] }>()
      const depthOf = ({ envelope: { tag } }: Row) => {
        const depth = all.get(tag) ?? { tag, waiting: 0, claimed: 0, delayed: 0, dead: 0, oldest: 0 }
        all.set(tag, depth)
        return depth
      }
      for (const row of rows.live.values()) {
        const [depth, state] = [depthOf(row), stateOf(row)]
        if (state === "delayed" || state === "claimed") depth[state]++
        else {
          depth.waiting++
          depth.oldest = Math.max(depth.oldest, millis - row.dueAt)
        }
      }
      for (const { row } of rows.dead.values()) depthOf(row).dead++
      return Array.from(all.values())
    })

    const operations = makeOperations(operation, { rows, permits, remembered, holders }, depths)

    return { name, capabilities, append, wake, open, operations, depths }
  })

const dueAtOf = ({ delay = 0, runAt }: Envelope, millis: number): number => Math.max(millis, runAt ?? millis + delay)

const idOf = ({ envelope: { id } }: Row): string => id

const toClaimed = (
  { crashes, enqueuedAt, envelope, failures, suspicion, undecodableSince }: Row,
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
  suspicion,
  enqueuedAt,
  traceparent: envelope.traceparent,
  undecodableFor: undecodableSince === undefined ? undefined : Math.max(0, millis - undecodableSince)
})
