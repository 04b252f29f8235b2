/**
 * Those that are measured side by side.
 */
import { bareSql } from "./contenders/BareSql.ts"
import { epilogue } from "./contenders/Epilogue.ts"
import * as Graphile from "./contenders/Graphile.ts"
import { persistedQueue } from "./contenders/PersistedQueue.ts"
import type { DurableContender } from "./DurableContender.ts"

/** The one that the others are compared with. */
export const reference: DurableContender = Graphile.tuned

export const queues: ReadonlyArray<DurableContender> = [epilogue, Graphile.byDefault, Graphile.tuned, persistedQueue]

export const all: ReadonlyArray<DurableContender> = [bareSql, ...queues]
