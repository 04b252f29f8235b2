/**
 * What a session says of its deliveries: what has become of them, and that they have started.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Claimed, Session, Settlement } from "@epilogue/core/OutboxStore"
import * as Effect from "effect/Effect"
import type { SqlClient } from "effect/sql/SqlClient"
import { type Connections, failed } from "./connections.ts"
import { readyHeads, readyLocked } from "./heads.ts"
import { endings, hasKey, isLater, keyedAt, type Lane, type Place, placeOf, waitingAt } from "./places.ts"
import type { Signals } from "./signals.ts"
import type { Statements } from "./statements.ts"
import type { Wakes } from "./wakes.ts"

/** What a settlement of rows with keys answers: positions, and then lanes that go on, or that may. */
type SettledRow = readonly [id: bigint | null, tag: number | null, lane: string | null, goesOn: boolean | null]

export const makeSettling = (options: {
  readonly session: bigint
  readonly settles: Connections
  readonly client: SqlClient
  readonly statements: Statements
  readonly signals: Signals
  readonly wakes: Wakes
  /** What was claimed, told and not settled. */
  readonly held: Map<bigint, Place>
  /** Hears of lanes that go on. */
  readonly goOn: (lanes: ReadonlyArray<Lane>) => void
}): Pick<Session, "settle" | "start" | "settleInTransaction"> => {
  const { client, goOn, held, session, settles: { run }, signals, statements, wakes } = options

  /** Something may have come to these lanes that the settlement has not seen. */
  const goOnIfMore = (lanes: ReadonlyArray<Lane>): Effect.Effect<void> =>
    readyHeads(run, statements, lanes).pipe(
      Effect.flatMap((heads) => {
        goOn(heads)
        return readyLocked(run, statements, heads)
      }),
      // It is settled all the same, and the next claim looks at them.
      Effect.catch(() => Effect.sync(() => goOn(lanes)))
    )

  /** Does the same to rows without and with keys, in the statements for these. Answers the positions that were found. */
  const both = <A extends { readonly claimed: Claimed }>(
    list: ReadonlyArray<A>,
    ofWaiting: (list: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, IntentStoreError>,
    ofKeyed: (list: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, IntentStoreError>
  ): Effect.Effect<ReadonlySet<bigint>, IntentStoreError> => {
    const hasNoKey: Array<A> = []
    const isKeyed: Array<A> = []
    for (const each of list) (hasKey(placeOf(each.claimed)) ? isKeyed : hasNoKey).push(each)
    return Effect.flatMap(
      Effect.all([
        hasNoKey.length === 0 ? Effect.succeed([]) : ofWaiting(hasNoKey),
        isKeyed.length === 0 ? Effect.succeed([]) : ofKeyed(isKeyed)
      ], { concurrency: 2 }),
      ([rows, keyedRows]) => {
        const found = new Set<bigint>()
        const lanes: Array<Lane> = []
        const others: Array<Lane> = []
        // Rows with these columns are what the statements answer.
        for (const [id] of rows) found.add(id as bigint)
        for (const row of keyedRows) {
          const [id, tag, lane, goesOn] = row as SettledRow
          if (id !== null) found.add(id)
          else if (tag !== null && lane !== null) (goesOn === true ? lanes : others).push({ tag, lane })
        }
        goOn(lanes)
        return Effect.as(goOnIfMore(others), found)
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
          ? run(what, statements.succeed, waitingAt(session, placesOf(list)))
          : run(what, statements.settle, [...waitingAt(session, placesOf(list)), ...endings(list)]),
      (list) =>
        isSuccess(list)
          ? run(what, statements.succeedKeyed, keyedAt(session, placesOf(list)))
          : run(what, statements.settleKeyed, [
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
          wakes.due()
          wakes.wake()
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
        (each) => run(what, statements.start, waitingAt(session, placesOf(each))),
        (each) => run(what, statements.startKeyed, keyedAt(session, placesOf(each)))
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

  return { settle, start, settleInTransaction }
}
