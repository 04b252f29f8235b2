/**
 * What the statements of a store have in common.
 *
 * Rows are looked for in two steps, `ctid = ANY (ARRAY (SELECT …))` or a lateral join over what is asked for, because a plain
 * join lets the planner read all that waits whenever its statistics are old. A row that is changed between the two steps has
 * another `ctid`, and drops out: whoever misses it looks again.
 */
import { createHash } from "node:crypto"

/** A name as an identifier. */
export const quote = (name: string): string => `"${name.replaceAll("\"", "\"\"")}"`

/** A text as a literal. */
export const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`

/** What moves with an intent from table to table, apart from where it is. */
export const columns =
  "failures, enqueued_at, intent, crashes, undecodable_since, traceparent, failure, history, payload"

export const milliseconds = (interval: string): string => `(extract(epoch FROM ${interval}) * 1000)::float8`

/** An interval of so many milliseconds. */
export const interval = (value: string): string => `make_interval(secs => ${value} / 1000.0)`

/** The lane of a tag as a whole. */
export const everyLane = "00000000-0000-0000-0000-000000000000"

/** How a settlement is told to the database. */
export const kinds = { Succeeded: 0, Failed: 1, Snoozed: 2, Undecodable: 3, Dead: 4, Released: 5 } as const

/** What a lease and a suspicion say, as the tables have them. */
export const free = 0
export const suspect = -1
export const suspicions = { none: 0, possible: 1, strong: 2, cancelled: 3 } as const

/** Whether a row is leased to the session `$1`, started or not. */
export const isHeld = "lease IN ($1::int8, -($1::int8))"

/** The next position. */
export const next = (name: string): string => `nextval(${literal(`${name}.position`)})`

/**
 * Stands for the order in which transactions commit: whoever adds to a lane holds the lock of its bucket until it commits, and
 * draws its positions only then. There are 4,096 buckets.
 */
export const bucketOf = (lane: string): string => `('x' || left(${lane}::text, 3))::bit(12)::int4`

/** Two stores in one database don't wait for each other. */
export const lockClass = (name: string): number =>
  createHash("sha256").update(`epilogue ${name}`).digest().readInt32BE(0)

/** What happened to an intent, at the end of what had happened before: of it the last 20 events. */
export const withEvent = (what: string, detail: string, history = "history"): string =>
  `(SELECT jsonb_agg(event ORDER BY n) FROM (
    SELECT event, n FROM jsonb_array_elements(coalesce(${history}, '[]') || jsonb_build_object(
      'at', floor(extract(epoch FROM statement_timestamp()) * 1000), 'what', ${what}, 'detail', left(${detail}, 500)
    )) WITH ORDINALITY AS events(event, n) ORDER BY n DESC LIMIT 20
  ) AS latest)`

/** The lane of a key: it stands for the key, which may be longer than what an index holds. Of SHA-256 as much as a UUID holds. */
export const digestOf = (tag: string, key: string): string => {
  const hex = createHash("sha256").update(JSON.stringify([tag, key])).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
}
