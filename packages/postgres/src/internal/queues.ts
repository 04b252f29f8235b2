/**
 * The queues of a store, as far as this process knows them: where each version and priority of a tag has its rows. What has a
 * partition key is in the queue of its version without a priority, and in its lane.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import * as Effect from "effect/Effect"
import type { Connections } from "./connections.ts"
import type { Statements } from "./statements.ts"

/** What tells queues apart. */
export interface Key {
  readonly tag: string
  /** 0 is the tag as a whole. */
  readonly version: number
  readonly priority: number
}

export interface Queue extends Key {
  readonly id: number
}

export interface Queues {
  /** Makes those that are missing. */
  readonly ensure: (keys: ReadonlyArray<Key>) => Effect.Effect<void, IntentStoreError>
  /** The id of one that is there. */
  readonly idOf: (key: Key) => number
  /** Looks for all queues of some tags, whoever has made them. */
  readonly find: (tags: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<Queue>, IntentStoreError>
}

/** Stands for a tag as a whole. */
export const wholeOf = (tag: string): Key => ({ tag, version: 0, priority: 0 })

export const make = (connections: Connections, statements: Statements): Queues => {
  const tags = new Map<string, Map<number, Map<number, number>>>()
  const find = ({ priority, tag, version }: Key): number | undefined => tags.get(tag)?.get(version)?.get(priority)
  const remember = (rows: ReadonlyArray<ReadonlyArray<unknown>>): ReadonlyArray<Queue> =>
    // Rows with these columns are what the statements answer.
    (rows as ReadonlyArray<readonly [number, string, number, number]>).map(([id, tag, version, priority]) => {
      const versions = tags.get(tag) ?? new Map<number, Map<number, number>>()
      tags.set(tag, versions)
      const priorities = versions.get(version) ?? new Map<number, number>()
      versions.set(version, priorities)
      priorities.set(priority, id)
      return { id, tag, version, priority }
    })
  const ensure: Queues["ensure"] = (keys) =>
    Effect.suspend(() => {
      const missing = keys.filter((key) => find(key) === undefined)
      if (missing.length === 0) return Effect.void
      return connections.run("A queue could not be made", statements.queues, [
        missing.map(({ tag }) => tag),
        missing.map(({ version }) => version),
        missing.map(({ priority }) => priority)
      ]).pipe(
        Effect.tap((rows) => Effect.sync(() => remember(rows))),
        // One that another process has just made is there the second time.
        Effect.andThen(ensure(keys))
      )
    })
  return {
    ensure,
    idOf: (key) => find(key) ?? 0,
    find: (of) => Effect.map(connections.run("The queues could not be looked up", statements.queuesOf, [of]), remember)
  }
}
