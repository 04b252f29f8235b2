/**
 * Every statement of a store, for the tables of one schema.
 */
import { append } from "./sql/append.ts"
import { heads } from "./sql/heads.ts"
import { keyed } from "./sql/keyed.ts"
import { quote } from "./sql/names.ts"
import { sessions } from "./sql/sessions.ts"
import { waiting } from "./sql/waiting.ts"

/**
 * How the statements of sessions are planned: along the indexes, whatever the statistics say, and once. Of a table that was empty
 * or full a moment ago they say the wrong thing, and then a claim would read and sort all that waits; and the plan is the same for
 * all parameters, though the planner would rather look at them each time.
 */
export const planning = {
  enable_bitmapscan: "off",
  enable_seqscan: "off",
  jit: "off",
  plan_cache_mode: "force_generic_plan"
} as const

/**
 * For what nobody misses if the server crashes at that moment: beats and notifications. They need not wait for the disk. Claims
 * do: a lease that is forgotten while its worker is alive would be given to another one.
 */
export const passing = { ...planning, synchronous_commit: "off" } as const

/** The statements for one schema. */
export type Statements = ReturnType<typeof make>

export const make = (schema: string, keepsDelivered = false) => {
  const name = quote(schema)
  return {
    ...append(name),
    ...waiting(name, keepsDelivered),
    ...keyed(name, keepsDelivered),
    ...heads(name),
    ...sessions(name)
  }
}
