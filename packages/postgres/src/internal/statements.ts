/**
 * Every statement of a store, for the tables of one schema.
 *
 * Rows are looked for in two steps, `ctid = ANY (ARRAY (SELECT …))` or a lateral join over what is asked for, because a plain
 * join lets the planner read all that waits whenever its statistics are old. A row that is changed between the two steps has
 * another `ctid`, and drops out.
 */

/** A name as an identifier. */
export const quote = (name: string): string => `"${name.replaceAll("\"", "\"\"")}"`

/** What moves with an intent from table to table, apart from its queue and its position. */
const columns = "failures, enqueued_at, intent, crashes, undecodable_since, traceparent, failure, payload"

const milliseconds = (interval: string) => `(extract(epoch FROM ${interval}) * 1000)::float8`

/** An interval of so many milliseconds. */
const interval = (value: string) => `make_interval(secs => ${value} / 1000.0)`

/**
 * How the statements of sessions are planned: along the indexes, whatever the statistics say. Of a table that was empty or full
 * a moment ago they say the wrong thing, and then a claim would read and sort all that waits.
 */
export const planning = { enable_bitmapscan: "off", enable_seqscan: "off", jit: "off" } as const

/**
 * For what nobody misses if the server crashes at that moment: beats and notifications. They need not wait for the disk. Claims
 * do: a lease that is forgotten while its worker is alive would be given to another one.
 */
export const passing = { ...planning, synchronous_commit: "off" } as const

/** How a settlement is told to the database. */
export const kinds = { Succeeded: 0, Failed: 1, Snoozed: 2, Undecodable: 3, Dead: 4, Released: 5 } as const

/** The statements for one schema. */
export type Statements = ReturnType<typeof make>

export const make = (schema: string) => {
  const name = quote(schema)
  const next = `nextval('${name.replaceAll("'", "''")}.position')`

  /**
   * Where some rows are, whoever has leased them. With the lease among the conditions, or without the `OFFSET`, the planner
   * reads all that waits as long as its statistics say that nothing is leased.
   */
  const placesOf = (given: string) =>
    `SELECT w.tid FROM (SELECT queue, array_agg(id) AS ids FROM ${given} AS g GROUP BY queue) AS asked CROSS JOIN LATERAL (
    SELECT ctid AS tid FROM ${name}.waiting WHERE queue = asked.queue AND id = ANY (asked.ids) OFFSET 0
  ) AS w`

  /** The next rows of a queue after a position, locked. */
  const heads = (after: string, limit: string) =>
    `SELECT ctid AS tid, id, octet_length(payload) AS size FROM ${name}.waiting
    WHERE queue = q.queue AND id ${after} AND lease = 0
    ORDER BY queue, id LIMIT ${limit} FOR NO KEY UPDATE SKIP LOCKED`

  return {
    /** What a store needs to know of the server before it uses it. */
    server: `SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
  to_regclass('${name.replaceAll("'", "''")}.migration') IS NOT NULL`,

    /** `[version, oldest]` of the tables. */
    versionFound: `SELECT coalesce(max(version), 0)::int4, coalesce(max(oldest), 0)::int4 FROM ${name}.migration`,

    /** Adds the queues that are missing and answers `[id, tag, version]` of those that are there. */
    queues: `WITH given AS (SELECT * FROM unnest($1::text[], $2::int4[]) AS g(tag, version)), made AS (
  INSERT INTO ${name}.queue (tag, version)
  SELECT tag, version FROM given g
  WHERE NOT EXISTS (SELECT FROM ${name}.queue q WHERE q.tag = g.tag AND q.version = g.version)
  ORDER BY tag COLLATE "C", version
  ON CONFLICT DO NOTHING
  RETURNING id, tag, version
)
SELECT id, tag, version FROM made
UNION ALL SELECT id, tag, version FROM ${name}.queue JOIN given USING (tag, version)`,

    /** Adds intents that are due and have no key. All parameters are text, whatever types the user's client knows. */
    append: `INSERT INTO ${name}.waiting (queue, id, enqueued_at, intent, traceparent, payload)
SELECT queue, ${next}, statement_timestamp(), intent, traceparent, payload
FROM unnest($1::int4[], $2::uuid[], $3::text[], $4::text[])
  WITH ORDINALITY AS given(queue, intent, traceparent, payload, n)
ORDER BY n`,

    /**
     * Adds intents that may be delayed or have a key, and answers, of each with a key, `[its place, the id that the key
     * stands for]`. The keys are sorted, so that two of these never wait for each other.
     */
    appendKeyed: `WITH given AS MATERIALIZED (
  SELECT queue, intent, traceparent, payload, digest, n,
    ${interval("remember")} AS remember,
    CASE WHEN delay IS NOT NULL THEN statement_timestamp() + ${interval("delay")}
      WHEN run_at IS NOT NULL THEN to_timestamp(run_at / 1000.0) END AS due
  FROM unnest($1::int4[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::float8[], $7::float8[], $8::float8[])
    WITH ORDINALITY AS g(queue, intent, traceparent, payload, digest, remember, delay, run_at, n)
), known AS (
  INSERT INTO ${name}.remembered AS r (digest, intent, until)
  SELECT digest, intent, greatest(due, statement_timestamp()) + remember FROM given WHERE digest IS NOT NULL
  ORDER BY digest
  ON CONFLICT (digest) DO UPDATE SET
    intent = CASE WHEN r.until <= statement_timestamp() THEN excluded.intent ELSE r.intent END,
    until = CASE WHEN r.until <= statement_timestamp() THEN excluded.until ELSE r.until END
  RETURNING digest, intent
), fresh AS MATERIALIZED (
  SELECT * FROM given WHERE digest IS NULL OR intent IN (SELECT intent FROM known)
), due AS (
  INSERT INTO ${name}.waiting (queue, id, enqueued_at, intent, traceparent, payload)
  SELECT queue, ${next}, statement_timestamp(), intent, traceparent, payload
  FROM fresh WHERE due IS NULL OR due <= statement_timestamp() ORDER BY n
), later AS (
  INSERT INTO ${name}.delayed (due, queue, id, enqueued_at, intent, traceparent, payload)
  SELECT due, queue, ${next}, statement_timestamp(), intent, traceparent, payload
  FROM fresh WHERE due > statement_timestamp() ORDER BY n
)
SELECT n::text::bpchar, known.intent::text::bpchar FROM known JOIN given USING (digest)`,

    // Neither answers with a type that a client could read in a way of its own: the first with no row at all.
    mark: `SELECT WHERE set_config('epilogue.marks',
  coalesce(current_setting('epilogue.marks', true), '') || $1::text || ' ', true) IS NULL`,
    marks: `SELECT current_setting('epilogue.marks', true)::bpchar`,

    register: `INSERT INTO ${name}.worker (id, lease_ms) VALUES ($1, $2)`,

    /**
     * Moves up to `$2` rows of each queue of `$1` that have become due since `$3` to where they can be claimed, and answers
     * `[how many, when the next is due, when that was]`.
     */
    promote: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($1::int4[]) AS g(queue)
), due AS (
  DELETE FROM ${name}.delayed WHERE ctid = ANY (ARRAY (
    SELECT d.tid FROM given AS g CROSS JOIN LATERAL (
      SELECT ctid AS tid FROM ${name}.delayed
      WHERE queue = g.queue AND due >= to_timestamp($3::float8 / 1000) AND due <= statement_timestamp()
      ORDER BY queue, due, id LIMIT $2::int8 FOR UPDATE SKIP LOCKED
    ) AS d
  ))
  RETURNING due, id, queue, ${columns}
), moved AS (
  INSERT INTO ${name}.waiting (queue, id, due, ${columns})
  SELECT queue, ${next}, due, ${columns} FROM due ORDER BY due, id
  RETURNING 1
)
SELECT (SELECT count(*)::int4 FROM moved), (
  SELECT min(${milliseconds("d.due - clock_timestamp()")}) FROM given AS g CROSS JOIN LATERAL (
    SELECT due FROM ${name}.delayed
    WHERE queue = g.queue AND due > statement_timestamp()
    ORDER BY queue, due, id LIMIT 1
  ) AS d
), ${milliseconds("statement_timestamp()")}`,

    /**
     * Leases up to `$5` rows of together `$6` bytes to the session `$1`: from each queue of `$2`, at or after its position in
     * `$3`, its share of `$4`, and then what other queues have left over.
     */
    claim: `WITH session AS MATERIALIZED (
  SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE
), share AS MATERIALIZED (
  SELECT w.tid, w.id, w.size, q.queue, q.turn, row_number() OVER (PARTITION BY q.queue ORDER BY w.id) AS place
  FROM unnest($2::int4[], $3::int8[]) WITH ORDINALITY AS q(queue, floor, turn)
  CROSS JOIN LATERAL (
    ${heads(">= q.floor", "$4::int8")}
  ) AS w
  WHERE EXISTS (SELECT FROM session)
), lent AS MATERIALIZED (
  SELECT w.tid, w.id, w.size, q.queue, q.turn, $4::int8 + row_number() OVER (PARTITION BY q.queue ORDER BY w.id) AS place
  FROM (
    SELECT queue, turn, max(id) AS last,
      ceil(($5::float8 - (SELECT count(*) FROM share)) / count(*) OVER ())::int8 AS rest
    FROM share GROUP BY queue, turn HAVING count(*) = $4::int8
  ) AS q
  CROSS JOIN LATERAL (
    ${heads("> q.last", "greatest(q.rest, 0)")}
  ) AS w
), found AS (
  SELECT *, row_number() OVER running AS n, sum(size) OVER running AS bytes
  FROM (SELECT * FROM share UNION ALL SELECT * FROM lent) AS every
  WINDOW running AS (ORDER BY place, turn ROWS UNBOUNDED PRECEDING)
)
UPDATE ${name}.waiting SET lease = $1
WHERE ctid = ANY (ARRAY (SELECT tid FROM found WHERE n <= $5::int8 AND (n = 1 OR bytes <= $6::float8)))
RETURNING queue, id, intent::text, failures, crashes, ${milliseconds("enqueued_at")}, traceparent,
  ${milliseconds("clock_timestamp() - undecodable_since")}, octet_length(payload), payload,
  (SELECT count(*) FROM share) + (SELECT count(*) FROM lent)`,

    /** Frees what a claim whose answer was lost has leased: all of `$1` but those at `$2`. */
    reclaim: `UPDATE ${name}.waiting SET lease = 0 WHERE ctid = ANY (ARRAY (
  SELECT ctid FROM ${name}.waiting WHERE lease = $1 AND id <> ALL ($2::int8[]) FOR NO KEY UPDATE
)) AND lease = $1`,

    /** Deletes what has succeeded of session `$1`: queues `$2`, positions `$3`. Answers the positions. */
    succeed: `DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
  ${placesOf("(SELECT * FROM unnest($2::int4[], $3::int8[]) AS p(queue, id))")}
)) AND lease = $1
RETURNING id`,

    /** The same for one, with parameters that are text, whatever types the user's client knows. */
    succeedInTransaction: `DELETE FROM ${name}.waiting
WHERE queue = $1::text::int4 AND id = $2::text::int8 AND lease = $3::text::int8
RETURNING '1'::bpchar`,

    /** Settles whatever has become of them, by `kinds`. Answers the positions. */
    settle: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::int8[], $4::int4[], $5::int8[], $6::text[], $7::text[])
    AS g(queue, id, kind, delay, failure, reason)
), gone AS (
  DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
    ${placesOf(`(SELECT * FROM given WHERE kind <> ${kinds.Released})`)}
  )) AND lease = $1
  RETURNING queue, id, ${columns}
), ended AS MATERIALIZED (
  SELECT gone.*, given.kind, ${interval("given.delay")} AS delay, given.failure AS said, given.reason
  FROM gone JOIN given USING (queue, id)
), later AS (
  INSERT INTO ${name}.delayed (due, id, queue, ${columns})
  SELECT statement_timestamp() + delay, id, queue,
    failures + (kind = ${kinds.Failed})::int4, enqueued_at, intent, crashes,
    CASE WHEN kind = ${kinds.Undecodable} THEN coalesce(undecodable_since, statement_timestamp()) ELSE undecodable_since END,
    traceparent, coalesce(said, failure), payload
  FROM ended WHERE kind IN (${kinds.Failed}, ${kinds.Snoozed}, ${kinds.Undecodable})
), dead AS (
  INSERT INTO ${name}.dead (queue, id, failures, enqueued_at, died_at, intent, crashes, reason, traceparent, failure, payload)
  SELECT queue, id, failures + 1, enqueued_at, statement_timestamp(), intent, crashes, reason, traceparent, said, payload
  FROM ended WHERE kind = ${kinds.Dead}
), free AS (
  UPDATE ${name}.waiting SET lease = 0 WHERE ctid = ANY (ARRAY (
    ${placesOf(`(SELECT * FROM given WHERE kind = ${kinds.Released})`)}
  )) AND lease = $1
  RETURNING id
)
SELECT id FROM gone UNION ALL SELECT id FROM free`,

    /**
     * Shows that `$1` is alive, and answers `[whether it is, the ids, beats and leases of all, whether something waits in a
     * queue of `$2` at or after its position in `$3`, when the next of these is due, when the server was started]`.
     */
    beat: `WITH me AS (
  UPDATE ${name}.worker SET beat = beat + 1 WHERE id = $1 AND beat >= 0 RETURNING 1
), every AS (
  SELECT array_agg(id) AS ids, array_agg(beat) AS beats, array_agg(lease_ms) AS leases
  FROM ${name}.worker WHERE id <> $1
)
SELECT EXISTS (SELECT FROM me), coalesce(ids, '{}'), coalesce(beats, '{}'), coalesce(leases, '{}'),
  EXISTS (
    SELECT FROM unnest($2::int4[], $3::int8[]) AS q(queue, floor) CROSS JOIN LATERAL (
      SELECT FROM ${name}.waiting WHERE queue = q.queue AND id >= q.floor AND lease = 0 ORDER BY queue, id LIMIT 1
    ) AS w
  ),
  (
    SELECT min(${milliseconds("d.due - clock_timestamp()")}) FROM unnest($2::int4[]) AS q(queue) CROSS JOIN LATERAL (
      SELECT due FROM ${name}.delayed WHERE queue = q.queue ORDER BY queue, due, id LIMIT 1
    ) AS d
  ),
  pg_postmaster_start_time()::text
FROM every`,

    /** Ends those of the sessions `$1` whose beat is still that of `$2`, on the server that was started at `$3`. */
    end: `UPDATE ${name}.worker SET beat = -1 WHERE id = ANY (ARRAY (
  SELECT w.id FROM ${name}.worker AS w JOIN unnest($1::int8[], $2::int8[]) AS g(id, beat) ON w.id = g.id AND w.beat = g.beat
  WHERE pg_postmaster_start_time()::text = $3
  ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
))
RETURNING id`,

    /** Frees what the ended sessions `$1` had claimed. Answers `[session, how many it had, how many of these are free]`. */
    free: `WITH leased AS MATERIALIZED (
  SELECT ctid AS tid, lease FROM ${name}.waiting WHERE lease = ANY ($1::int8[])
), locked AS MATERIALIZED (
  SELECT ctid AS tid, lease FROM ${name}.waiting WHERE ctid = ANY (ARRAY (SELECT tid FROM leased)) AND lease = ANY ($1::int8[])
  FOR NO KEY UPDATE SKIP LOCKED
), freed AS (
  UPDATE ${name}.waiting SET lease = 0, crashes = crashes + 1 WHERE ctid = ANY (ARRAY (SELECT tid FROM locked))
  RETURNING queue
)
SELECT g.session, (SELECT count(*)::int4 FROM leased WHERE lease = g.session),
  (SELECT count(*)::int4 FROM locked WHERE lease = g.session), (SELECT count(*)::int4 FROM freed)
FROM unnest($1::int8[]) AS g(session)`,

    /** Forgets sessions. */
    unregister: `DELETE FROM ${name}.worker WHERE id = ANY ($1::int8[])`,

    /** Frees what is left of a session that closes. */
    leave: `UPDATE ${name}.waiting SET lease = 0 WHERE ctid = ANY (ARRAY (
  ${placesOf("(SELECT * FROM unnest($2::int4[], $3::int8[]) AS p(queue, id))")}
)) AND lease = $1`,

    /** Forgets up to `$1` idempotency keys whose time is over. */
    forget: `DELETE FROM ${name}.remembered WHERE ctid = ANY (ARRAY (
  SELECT ctid FROM ${name}.remembered WHERE until <= statement_timestamp()
  ORDER BY until LIMIT $1 FOR UPDATE SKIP LOCKED
))`,

    /** `[tag, waiting, claimed, delayed, dead, how long the oldest has been due]` */
    depths: `SELECT q.tag, coalesce(sum(w.free), 0)::float8 + coalesce(sum(l.due), 0)::float8,
  coalesce(sum(w.leased), 0)::float8, coalesce(sum(l.later), 0)::float8,
  coalesce(sum(d.dead), 0)::float8,
  coalesce(${milliseconds("clock_timestamp() - least(min(w.oldest), min(l.oldest))")}, 0)
FROM ${name}.queue AS q
LEFT JOIN (
  SELECT queue, count(*) FILTER (WHERE lease = 0) AS free, count(*) FILTER (WHERE lease <> 0) AS leased,
    min(coalesce(due, enqueued_at)) FILTER (WHERE lease = 0) AS oldest
  FROM ${name}.waiting GROUP BY queue
) AS w ON w.queue = q.id
LEFT JOIN (
  SELECT queue, count(*) FILTER (WHERE due <= statement_timestamp()) AS due,
    count(*) FILTER (WHERE due > statement_timestamp()) AS later,
    min(due) FILTER (WHERE due <= statement_timestamp()) AS oldest
  FROM ${name}.delayed GROUP BY queue
) AS l ON l.queue = q.id
LEFT JOIN (SELECT queue, count(*) AS dead FROM ${name}.dead GROUP BY queue) AS d ON d.queue = q.id
GROUP BY q.tag ORDER BY q.tag`,

    notify: "SELECT pg_notify($1, $2)"
  }
}
