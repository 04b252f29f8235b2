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
  /** Makes those that are missing, as far as is known. */
  readonly ensure: (keys: ReadonlyArray<Key>) => Effect.Effect<void, IntentStoreError>
  /** The same, whatever was known before: after a restore some may be gone. */
  readonly renew: (keys: ReadonlyArray<Key>) => Effect.Effect<void, IntentStoreError>
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
  const add = (keys: ReadonlyArray<Key>): Effect.Effect<void, IntentStoreError> =>
    Effect.map(
      connections.run("A queue could not be made", statements.queues, [
        keys.map(({ tag }) => tag),
        keys.map(({ version }) => version),
        keys.map(({ priority }) => priority)
      ]),
      remember
    )
  const ensure: Queues["ensure"] = (keys) =>
    Effect.suspend(() => {
      const missing = keys.filter((key) => find(key) === undefined)
      // One that another process has just made is there the second time.
      return missing.length === 0 ? Effect.void : Effect.andThen(add(missing), ensure(keys))
    })
  return {
    ensure,
    renew: (keys) => Effect.andThen(add(keys), ensure(keys)),
    idOf: (key) => find(key) ?? 0,
    find: (of) => Effect.map(connections.run("The queues could not be looked up", statements.queuesOf, [of]), remember)
  }
}
