/**
 * What an operator sees, and changes. Nothing here is in a hurry, and nothing may get in the way of those who are: what is
 * changed is locked a few rows at a time, and without waiting for anybody. What somebody else has locked is left for later.
 */
import type { State } from "@epilogue/core/Operations"
import { heads } from "./heads.ts"
import {
  bucketOf,
  columns,
  everyLane,
  free,
  interval,
  lockClass,
  milliseconds,
  next,
  suspect,
  suspicions,
  withEvent
} from "./names.ts"

/** A statement, and its parameters. */
export interface Statement {
  readonly sql: string
  readonly params: ReadonlyArray<unknown>
}

/** Which rows are meant, in the terms of the tables. What is not given is not asked for. */
export interface Wanted {
  readonly states: ReadonlyArray<State>
  readonly ids: ReadonlyArray<string> | undefined
  /** The queues of its tag. */
  readonly queues: ReadonlyArray<number> | undefined
  /** The tags that it may have, and the lanes of its key. */
  readonly tags: ReadonlyArray<number> | undefined
  readonly lanes: ReadonlyArray<string> | undefined
  /** In milliseconds. */
  readonly olderThan: number | undefined
}

export type Table = "waiting" | "keyed" | "delayed" | "dead" | "delivered"

/** Where in a table the next step goes on: the key of the last row that the one before has seen, as text. */
export type Cursor = ReadonlyArray<string>

/**
 * What a step answers: how many rows it has seen, how many it has changed, the last one it has seen, the ids of those that
 * somebody has locked or moved meanwhile, and the tags and lanes that may go on.
 */
export type StepRow = readonly [
  seen: number,
  changed: number,
  last: Cursor | null,
  missed: ReadonlyArray<string>,
  tags: ReadonlyArray<number>,
  lanes: ReadonlyArray<string>
]

interface Layout {
  readonly states: ReadonlyArray<State>
  /** Which of its states a row is in. */
  readonly state: string
  readonly key: ReadonlyArray<readonly [column: string, type: string]>
  readonly hasLanes: boolean
  /** Since when its age counts. */
  readonly since: string
  /** What is told of a row, beside what all tables have. */
  readonly due: string
  readonly endedAt: string
  readonly reason: string
  readonly partitionKey: string
  /** What tells why it is not being delivered. */
  readonly lease: string
  readonly suspicion: string
  readonly lane: string
  readonly place: string
  readonly undecodableSince: string
}

const isClaimed = `lease NOT IN (${free}, ${suspect})`
const isDue = "(due IS NULL OR due <= statement_timestamp())"

const over = {
  key: [["intent", "uuid"]],
  hasLanes: true,
  due: "NULL::timestamptz",
  partitionKey: "partition_key",
  lease: `${free}::int8`,
  suspicion: "0::int2",
  lane: "NULL::uuid",
  place: "NULL::int8",
  undecodableSince: "NULL::timestamptz"
} as const

const layouts: { readonly [Name in Table]: Layout } = {
  delayed: {
    states: ["delayed", "waiting"],
    state: "CASE WHEN due > statement_timestamp() THEN 'delayed' ELSE 'waiting' END",
    key: [["queue", "int4"], ["due", "timestamptz"], ["id", "int8"]],
    hasLanes: true,
    since: "enqueued_at",
    due: "due",
    endedAt: "NULL::timestamptz",
    reason: "NULL::text",
    partitionKey: "partition_key",
    lease: `${free}::int8`,
    suspicion: "0::int2",
    lane: "lane",
    place: "NULL::int8",
    undecodableSince: "undecodable_since"
  },
  keyed: {
    states: ["waiting", "claimed", "delayed"],
    state: `CASE WHEN ${isClaimed} THEN 'claimed' WHEN ${isDue} THEN 'waiting' ELSE 'delayed' END`,
    key: [["tag", "int4"], ["lane", "uuid"], ["id", "int8"]],
    hasLanes: true,
    since: "enqueued_at",
    due: "due",
    endedAt: "NULL::timestamptz",
    reason: "NULL::text",
    partitionKey: "partition_key",
    lease: "lease",
    suspicion: "suspicion",
    lane: "lane",
    place: "id",
    undecodableSince: "undecodable_since"
  },
  waiting: {
    states: ["waiting", "claimed"],
    state: `CASE WHEN ${isClaimed} THEN 'claimed' ELSE 'waiting' END`,
    key: [["queue", "int4"], ["id", "int8"]],
    hasLanes: false,
    since: "enqueued_at",
    due: "due",
    endedAt: "NULL::timestamptz",
    reason: "NULL::text",
    partitionKey: "NULL::text",
    lease: "lease",
    suspicion: "suspicion",
    lane: "NULL::uuid",
    place: "NULL::int8",
    undecodableSince: "undecodable_since"
  },
  dead: { ...over, states: ["dead"], state: "'dead'", since: "died_at", endedAt: "died_at", reason: "reason" },
  delivered: {
    ...over,
    states: ["delivered"],
    state: "'delivered'",
    since: "ended_at",
    endedAt: "ended_at",
    reason: "NULL::text"
  }
}

/** In this order nothing that becomes due meanwhile is missed. */
const tables = Object.keys(layouts) as ReadonlyArray<Table> // the keys that it is written with

/** Milliseconds of Unix time, as far as a clock of JavaScript tells them. */
const epoch = (time: string): string => `floor(${milliseconds(time)})`

/** More than a few hundred years are too much for an interval. */
const clamp = (millis: number): number => Math.min(millis, 1e13)

/** Collects the parameters of a statement while its text is written. */
class Params {
  readonly values: Array<unknown> = []
  add(value: unknown, type: string): string {
    return `$${this.values.push(value)}::${type}`
  }
}

/** How many rows a step changes. */
export const atOnce = 1_000

export const operations = (name: string, keepDelivered: number | undefined) => {
  /** The conditions on the rows of a table; none if no row of it can be meant. */
  const conditionsOf = (table: Table, wanted: Wanted, params: Params): ReadonlyArray<string> | undefined => {
    const { hasLanes, since, state, states } = layouts[table]
    const meant = states.filter((each) => wanted.states.includes(each))
    if (meant.length === 0 || (wanted.lanes !== undefined && !hasLanes)) return undefined
    return [
      ...(meant.length < states.length ? [`${state} = ANY (${params.add(meant, "text[]")})`] : []),
      ...(wanted.ids === undefined ? [] : [`intent = ANY (${params.add(wanted.ids, "uuid[]")})`]),
      ...(wanted.queues === undefined ? [] : [`queue = ANY (${params.add(wanted.queues, "int4[]")})`]),
      // The primary key begins with it.
      ...(wanted.tags === undefined || table !== "keyed" ? [] : [`tag = ANY (${params.add(wanted.tags, "int4[]")})`]),
      ...(wanted.lanes === undefined ? [] : [`lane = ANY (${params.add(wanted.lanes, "uuid[]")})`]),
      ...(wanted.olderThan === undefined ? [] : [
        `${since} <= statement_timestamp() - ${interval(params.add(clamp(wanted.olderThan), "float8"))}`
      ]),
      // What is kept for too long and not yet cleaned up is gone already.
      ...(table === "delivered" && keepDelivered !== undefined
        ? [`ended_at > statement_timestamp() - ${interval(params.add(clamp(keepDelivered), "float8"))}`]
        : [])
    ]
  }

  const where = (conditions: ReadonlyArray<string>): string =>
    conditions.length === 0 ? "" : `WHERE ${conditions.join(" AND ")}`

  /** What a list tells of a row. */
  const entryOf = (table: Table): string => {
    const { due, endedAt, partitionKey, reason, state } = layouts[table]
    return `intent, ${state} AS state, queue, ${partitionKey} AS partition_key, failures, crashes, enqueued_at,
      ${due} AS due, ${endedAt} AS ended_at, ${reason} AS reason`
  }

  const entry = `e.intent::text, e.state, q.tag, q.version, q.priority, e.partition_key, e.failures, e.crashes,
  ${epoch("e.enqueued_at")}, ${epoch("e.due")}, ${epoch("e.ended_at")}, e.reason`

  const isAlive = (worker: string): string =>
    `${worker}.beat >= 0 AND ${worker}.beat_at + ${interval(`${worker}.lease_ms`)} > clock_timestamp()`

  /**
   * A step over one table: sees the next rows that are meant, locks those that nobody has locked, and changes these.
   * `changes` are subqueries over `locked`; the last one is `changed (intent, is_counted)`.
   */
  const step = (
    table: "waiting" | "keyed" | "delayed" | "dead" | "delivered",
    wanted: Wanted,
    after: Cursor | undefined,
    options: {
      readonly condition?: string
      readonly changes: (params: Params) => ReadonlyArray<string>
      readonly lanes?: string
    }
  ): Statement | undefined => {
    const params = new Params()
    const meant = conditionsOf(table, wanted, params)
    if (meant === undefined) return undefined
    const conditions = options.condition === undefined ? meant : [...meant, options.condition]
    const { key } = layouts[table]
    const keys = key.map(([column]) => column)
    const later = after === undefined
      ? []
      : [
        `(${keys.join(", ")}) > (${key.map(([, type], index) => params.add(after[index], `text::${type}`)).join(", ")})`
      ]
    const sql = `WITH candidates AS MATERIALIZED (
  SELECT ctid AS tid, intent AS one, ${keys.join(", ")} FROM ${name}.${table} ${where([...conditions, ...later])}
  ORDER BY ${keys.join(", ")} LIMIT ${atOnce}
), locked AS MATERIALIZED (
  SELECT ctid AS tid, * FROM ${name}.${table}
  ${where(["ctid = ANY (ARRAY (SELECT tid FROM candidates))", ...conditions])}
  FOR UPDATE SKIP LOCKED
), ${options.changes(params).join(", ")}
SELECT (SELECT count(*)::int4 FROM candidates), (SELECT count(*)::int4 FROM changed WHERE is_counted),
  (SELECT ARRAY[${keys.map((each) => `${each}::text`).join(", ")}] FROM candidates
    ORDER BY ${keys.map((each) => `${each} DESC`).join(", ")} LIMIT 1),
  ARRAY (SELECT one::text FROM candidates WHERE one NOT IN (SELECT intent FROM changed)),
  ${
      options.lanes === undefined
        ? "'{}'::int4[], '{}'::text[]"
        : `ARRAY (SELECT tag FROM ${options.lanes}), ARRAY (SELECT lane::text FROM ${options.lanes})`
    }`
    return { sql, params: params.values }
  }

  const remove = (table: Table, returning: string, which = "locked"): string =>
    `gone AS (
  DELETE FROM ${name}.${table} WHERE ctid = ANY (ARRAY (SELECT tid FROM ${which}))
  RETURNING ${returning}
)`

  /** All that are gone are changed. */
  const changed = "changed AS (SELECT intent, true AS is_counted FROM gone)"

  /** What is held is told to go: whoever holds it finds out with its next beat, and lets go of it. */
  const mark = (table: Table, also = ""): string =>
    `marked AS (
  UPDATE ${name}.${table} SET suspicion = ${suspicions.cancelled}${also}
  WHERE ctid = ANY (ARRAY (SELECT tid FROM locked WHERE ${isClaimed}))
  RETURNING intent
)`

  const freeOnes = `locked WHERE lease IN (${free}, ${suspect})`

  /** Dead letters are gone, and so is what they have kept from going on. */
  const exhume = [
    remove("dead", "intent, tag, lane"),
    `unblocked AS (
  DELETE FROM ${name}.blocked AS b USING gone AS g
  WHERE b.tag = g.tag AND b.lane = g.lane AND b.intent = g.intent
  RETURNING b.tag, b.lane
)`,
    changed
  ]

  return {
    tables,

    /** Every queue, or those of a tag: `[id, tag, version]`. */
    everyQueue: `SELECT id, tag, version FROM ${name}.queue WHERE $1::text IS NULL OR tag = $1::text`,

    /** A part of a list. It is `undefined` where nothing can be meant. */
    list: (wanted: Wanted, after: string | undefined, limit: number): Statement | undefined => {
      const params = new Params()
      const most = params.add(limit, "int8")
      const later = after === undefined ? [] : [`intent > ${params.add(after, "uuid")}`]
      const parts = tables.flatMap((table) => {
        const conditions = conditionsOf(table, wanted, params)
        return conditions === undefined ? [] : [
          `(SELECT ${entryOf(table)} FROM ${name}.${table} ${
            where([...conditions, ...later])
          } ORDER BY intent LIMIT ${most})`
        ]
      })
      return parts.length === 0 ? undefined : {
        sql: `SELECT ${entry} FROM (
  SELECT * FROM (
    ${parts.join("\n    UNION ALL ")}
  ) AS parts ORDER BY intent LIMIT ${most}
) AS e JOIN ${name}.queue AS q ON q.id = e.queue ORDER BY e.intent`,
        params: params.values
      }
    },

    /**
     * All that is known of `$1`: what a list tells, its payload, failure and history; and what may be why it is not being
     * delivered: `[session or null, when its lease ends, whether it is a suspect, since when nobody could read it, who is before
     * it in its lane, the dead letter that blocks that, whether its tag is paused, whether its lane is, whether a worker knows it,
     * whether as many run as may, whether as many have started as may]`.
     */
    find: (id: string): Statement => {
      const params = new Params()
      const intent = params.add(id, "uuid")
      const parts = tables.map((table) => {
        const { lane, lease, place, suspicion, undecodableSince } = layouts[table]
        return `(SELECT ${entryOf(table)}, payload, failure, history, ${lease} AS lease, ${suspicion} AS suspicion,
      ${lane} AS lane, ${place} AS place, ${undecodableSince} AS undecodable_since
    FROM ${name}.${table} ${where([`intent = ${intent}`, ...conditionsOf(table, everything, params) ?? []])} LIMIT 1)`
      })
      const inLane = "e.lane IS NOT NULL AND (e.place IS NOT NULL OR e.due <= statement_timestamp())"
      return {
        sql: `SELECT ${entry}, e.payload, e.failure, e.history::text, w.id::text,
  ${epoch(`w.beat_at + ${interval("w.lease_ms")}`)}, e.lease = ${suspect} AND e.suspicion = ${suspicions.strong},
  ${epoch("e.undecodable_since")}, (
    SELECT k.intent::text FROM ${name}.keyed AS k
    WHERE ${inLane} AND k.tag = t.id AND k.lane = e.lane AND (e.place IS NULL OR k.id < e.place)
    ORDER BY k.tag, k.lane, k.id LIMIT 1
  ), (
    SELECT b.intent::text FROM ${name}.blocked AS b WHERE ${inLane} AND b.tag = t.id AND b.lane = e.lane
  ), EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = t.id AND p.lane = '${everyLane}'),
  EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = t.id AND p.lane = e.lane),
  EXISTS (
    SELECT FROM ${name}.worker AS o WHERE ${isAlive("o")} AND o.queues && ARRAY (
      SELECT id FROM ${name}.queue AS v WHERE v.tag = q.tag AND v.version = q.version
    )
  ),
  l.running >= b.most,
  b.rate > 0 AND least(b.size, b.tokens + b.rate * greatest(0, ${
          milliseconds("clock_timestamp() - b.filled_at")
        })) < 1 - 1e-6
FROM (
  ${parts.join("\n  UNION ALL ")}
) AS e JOIN ${name}.queue AS q ON q.id = e.queue
LEFT JOIN ${name}.queue AS t ON t.tag = q.tag AND t.version = 0
LEFT JOIN ${name}.worker AS w ON w.id = abs(e.lease) AND e.lease NOT IN (${free}, ${suspect})
LEFT JOIN ${name}.bucket AS b ON b.tag = t.id
CROSS JOIN LATERAL (
  SELECT sum(p.running) AS running
  FROM ${name}.permit AS p JOIN ${name}.worker AS o ON o.id = p.session AND o.beat >= 0 WHERE p.tag = t.id
) AS l
LIMIT 1`,
        params: params.values
      }
    },

    /** Dead letters are due again. Those that join the end of a lane wait for nobody who adds to it: they are missed. */
    retry: (table: Table, wanted: Wanted, after: Cursor | undefined) => {
      const again = withEvent("'retried'", "NULL::text")
      const same = "enqueued_at, intent, traceparent, failure"
      return step(table, wanted, after, {
        changes: () => [
          `marked AS MATERIALIZED (
  SELECT tid, ${bucketOf("lane")} AS bucket, EXISTS (
    SELECT FROM ${name}.blocked AS b WHERE b.tag = l.tag AND b.lane = l.lane AND b.intent = l.intent
  ) AS is_first FROM locked AS l
)`,
          `buckets AS MATERIALIZED (
  SELECT bucket, pg_try_advisory_xact_lock(${lockClass(name)}, bucket) AS is_locked
  FROM (SELECT DISTINCT bucket FROM marked WHERE bucket IS NOT NULL AND NOT is_first) AS b
)`,
          remove(
            table,
            `queue, id, tag, lane, partition_key, history, payload, ${same}`,
            "marked WHERE bucket IS NULL OR is_first OR bucket IN (SELECT bucket FROM buckets WHERE is_locked)"
          ),
          `unblocked AS (
  DELETE FROM ${name}.blocked AS b USING gone AS g
  WHERE b.tag = g.tag AND b.lane = g.lane AND b.intent = g.intent
  RETURNING b.intent
)`,
          `free AS (
  INSERT INTO ${name}.waiting (queue, id, due, ${same}, history, payload)
  SELECT queue, ${next(name)}, statement_timestamp(), ${same}, ${again}, payload
  FROM gone WHERE lane IS NULL ORDER BY intent
)`,
          `first AS (
  INSERT INTO ${name}.keyed (tag, queue, lane, id, partition_key, ${same}, history, payload)
  SELECT tag, queue, lane, id, partition_key, ${same}, ${again}, payload
  FROM gone WHERE intent IN (SELECT intent FROM unblocked)
)`,
          `last AS (
  INSERT INTO ${name}.keyed (tag, queue, lane, id, partition_key, ${same}, history, payload)
  SELECT tag, queue, lane, ${next(name)}, partition_key, ${same}, ${again}, payload
  FROM gone WHERE lane IS NOT NULL AND intent NOT IN (SELECT intent FROM unblocked) ORDER BY id
)`,
          changed
        ]
      })
    },

    /** What nobody holds becomes a dead letter. */
    reject: (reason: string) => (table: Table, wanted: Wanted, after: Cursor | undefined) => {
      const key = table === "waiting" ? "NULL::int4, NULL::uuid, NULL::text" : "tag, lane, partition_key"
      return step(table, wanted, after, {
        changes: (params) => {
          const why = params.add(reason, "text")
          return [
            remove(table, `queue, id, ${columns}${table === "waiting" ? "" : ", tag, lane, partition_key"}`),
            `buried AS (
  INSERT INTO ${name}.dead (queue, id, failures, enqueued_at, died_at, intent, crashes, tag, lane, partition_key, reason,
    traceparent, failure, history, payload)
  SELECT queue, id, failures, enqueued_at, statement_timestamp(), intent, crashes, ${key}, 'rejected', traceparent, ${why},
    ${withEvent("'dead'", why)}, payload FROM gone
)`,
            changed
          ]
        },
        ...(table === "keyed" && { lanes: "gone" })
      })
    },

    /** What nobody holds is gone, and what is held is marked. */
    cancel: (table: Table, wanted: Wanted, after: Cursor | undefined) =>
      table === "delayed"
        ? step(table, wanted, after, { changes: () => [remove(table, "intent"), changed] })
        : step(table, wanted, after, {
          condition: `suspicion <> ${suspicions.cancelled}`,
          changes: () => [
            remove(table, table === "keyed" ? "intent, tag, lane" : "intent", freeOnes),
            mark(table),
            "changed AS (SELECT intent, true AS is_counted FROM gone UNION ALL SELECT intent, true FROM marked)"
          ],
          ...(table === "keyed" && { lanes: "gone" })
        }),

    purge: (table: Table, wanted: Wanted, after: Cursor | undefined) =>
      table === "dead"
        ? step(table, wanted, after, { changes: () => exhume, lanes: "unblocked" })
        : step(table, wanted, after, { changes: () => [remove(table, "intent"), changed] }),

    /** What nobody holds is gone. What is held is marked, and nothing is left of what it says. */
    erase: (table: Table, wanted: Wanted, after: Cursor | undefined) => {
      if (table === "dead") return step(table, wanted, after, { changes: () => exhume, lanes: "unblocked" })
      if (table !== "keyed") return step(table, wanted, after, { changes: () => [remove(table, "intent"), changed] })
      return step(table, wanted, after, {
        condition: `NOT (suspicion = ${suspicions.cancelled} AND payload = 'null')`,
        changes: () => [
          remove(table, "intent, tag, lane", freeOnes),
          mark(table, ", payload = 'null', failure = NULL, history = NULL, traceparent = NULL"),
          `changed AS (
  SELECT intent, true AS is_counted FROM gone
  UNION ALL SELECT intent, suspicion <> ${suspicions.cancelled} FROM locked WHERE intent IN (SELECT intent FROM marked)
)`
        ],
        lanes: "gone"
      })
    },

    /** Forgets what is remembered of the lanes `$1`. Answers how much of it is left, and how much of that nobody has locked. */
    forgetLanes: `WITH candidates AS MATERIALIZED (
  SELECT ctid AS tid FROM ${name}.remembered WHERE lane = ANY ($1::uuid[]) LIMIT ${atOnce}
), gone AS (
  DELETE FROM ${name}.remembered WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM ${name}.remembered WHERE ctid = ANY (ARRAY (SELECT tid FROM candidates)) FOR UPDATE SKIP LOCKED
  ))
  RETURNING 1
)
SELECT (SELECT count(*)::int4 FROM candidates), (SELECT count(*)::int4 FROM gone)`,

    ...heads(name),

    /** Pauses the lane `$2` of the tag `$1`, whose key is `$3`. */
    pause: `INSERT INTO ${name}.paused (tag, lane, partition_key) VALUES ($1::int4, $2::uuid, $3::text)
ON CONFLICT DO NOTHING`,

    resume: `DELETE FROM ${name}.paused WHERE tag = $1::int4 AND lane = $2::uuid`,

    /** `[tag, key]` of each. */
    paused: `SELECT q.tag, p.partition_key FROM ${name}.paused AS p JOIN ${name}.queue AS q ON q.id = p.tag
ORDER BY q.tag, p.partition_key NULLS FIRST`,

    /** `[id, when it was started, when its lease ends, how many it has claimed, tags, versions]` of each that has not ended. */
    sessions: `SELECT w.id::text, ${epoch("w.started_at")}, ${epoch(`w.beat_at + ${interval("w.lease_ms")}`)},
  coalesce(c.claimed, 0)::int4, coalesce(s.tags, '{}'), coalesce(s.versions, '{}')
FROM ${name}.worker AS w
LEFT JOIN (
  SELECT session, count(*) AS claimed FROM (
    SELECT abs(lease) AS session FROM ${name}.waiting WHERE ${isClaimed}
    UNION ALL SELECT abs(lease) FROM ${name}.keyed WHERE ${isClaimed}
  ) AS leases GROUP BY session
) AS c ON c.session = w.id
CROSS JOIN LATERAL (
  SELECT array_agg(tag ORDER BY tag, version) AS tags, array_agg(version ORDER BY tag, version) AS versions FROM (
    SELECT DISTINCT tag, version FROM ${name}.queue WHERE id = ANY (w.queues) AND version > 0
  ) AS q
) AS s
WHERE w.beat >= 0 ORDER BY w.started_at, w.id`
  }
}

const everything: Wanted = {
  states: ["waiting", "claimed", "delayed", "dead", "delivered"],
  ids: undefined,
  queues: undefined,
  tags: undefined,
  lanes: undefined,
  olderThan: undefined
}
