/**
 * The sessions of workers: how they live and die, and what they may run.
 */
import { everyLane, free, literal, milliseconds, suspect, suspicions, withEvent } from "./names.ts"

export const sessions = (name: string) => {
  /** What becomes of a row whose session, one of `$1`, has died. The second time the lease is below zero: it had started. */
  const freed = (table: string, more: string) =>
    `UPDATE ${name}.${table} SET
    crashes = crashes + (suspicion = ${suspicions.strong})::int4,
    history = CASE WHEN lease < ${free} OR suspicion = ${suspicions.strong} THEN ${
      withEvent("'crashed'", "'its worker died while it ran'")
    } ELSE history END,
    lease = CASE WHEN lease < ${free} OR suspicion = ${suspicions.strong} THEN ${suspect} ELSE ${free} END,
    suspicion = CASE WHEN lease < ${free} OR suspicion = ${suspicions.strong} THEN ${suspicions.strong}
      ELSE ${suspicions.possible} END${more}
  WHERE ctid = ANY (ARRAY (SELECT tid FROM locked WHERE suspicion <> ${suspicions.cancelled}))
  RETURNING queue`

  const free_ = (table: string, more = "", lanes = "NULL::int4[], NULL::text[]") =>
    `WITH leased AS MATERIALIZED (
  SELECT ctid AS tid, abs(lease) AS session FROM ${name}.${table}
  WHERE lease = ANY ($1::int8[]) OR lease = ANY ($2::int8[])
), locked AS MATERIALIZED (
  SELECT ctid AS tid, abs(lease) AS session, suspicion FROM ${name}.${table}
  WHERE ctid = ANY (ARRAY (SELECT tid FROM leased)) AND (lease = ANY ($1::int8[]) OR lease = ANY ($2::int8[]))
  FOR UPDATE SKIP LOCKED
), cancelled AS (
  DELETE FROM ${name}.${table} WHERE ctid = ANY (ARRAY (SELECT tid FROM locked WHERE suspicion = ${suspicions.cancelled}))
  RETURNING *
), freed AS (
  ${freed(table, more)}
)
SELECT g.session, (SELECT count(*)::int4 FROM leased WHERE session = g.session),
  (SELECT count(*)::int4 FROM locked WHERE session = g.session),
  (SELECT count(*) FROM freed)::int4, ${lanes}
FROM unnest($1::int8[]) AS g(session)`

  return {
    /** What a store needs to know of the server before it uses it. */
    server: `SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
  to_regclass(${literal(`${name}.migration`)}) IS NOT NULL`,

    /** `[version, oldest]` of the tables. */
    versionFound: `SELECT coalesce(max(version), 0)::int4, coalesce(max(oldest), 0)::int4 FROM ${name}.migration`,

    /** Opens session `$1`, with the lease `$2`, for the queues `$3`. */
    register: `INSERT INTO ${name}.worker (id, lease_ms, queues) VALUES ($1, $2, $3::int4[])`,

    /** Tells of the queues that session `$1` has come to know. */
    reregister: `UPDATE ${name}.worker SET queues = $2::int4[] WHERE id = $1`,

    /**
     * Shows that `$1` is alive, and answers `[whether it is, the ids, beats and leases of all, whether something waits in a
     * queue of `$2` at or after its position in `$3`, or with a key in `$4`, or in another queue that is of the version `$7` of
     * the tag `$6`; when the next of these is due, when the server was started, whether there are suspects, what it holds that
     * is cancelled, the tags and lanes that are paused, the sum of the ids of all queues]`. `$5` are the tags of the
     * queues `$2`. Where the sum is still `$8` there are no other queues: none ever goes.
     */
    beat: `WITH me AS (
  UPDATE ${name}.worker SET beat = beat + 1, beat_at = clock_timestamp() WHERE id = $1 AND beat >= 0 RETURNING 1
), every AS (
  SELECT array_agg(id) AS ids, array_agg(beat) AS beats, array_agg(lease_ms) AS leases
  FROM ${name}.worker WHERE id <> $1
), every_id AS MATERIALIZED (
  SELECT coalesce(sum(id), 0)::float8 AS sum FROM ${name}.queue
), every_queue AS (
  SELECT * FROM unnest($2::int4[], $3::int8[], $4::int8[], $5::int4[]) AS q(queue, floor, keyed_floor, tag)
  UNION ALL
  SELECT q.id, 0, 0, whole.id FROM ${name}.queue AS q
  JOIN unnest($6::text[], $7::int4[]) AS s(tag, version) ON q.tag = s.tag AND q.version = s.version
  JOIN ${name}.queue AS whole ON whole.tag = q.tag AND whole.version = 0
  CROSS JOIN every_id WHERE every_id.sum <> $8::float8 AND q.id <> ALL ($2::int4[])
), asked AS MATERIALIZED (
  SELECT queue, floor, keyed_floor FROM every_queue AS q
  WHERE NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = q.tag AND p.lane = '${everyLane}')
), paused AS (
  SELECT array_agg(tag) AS tags, array_agg(lane::text) AS lanes FROM ${name}.paused
)
SELECT EXISTS (SELECT FROM me), coalesce(ids, '{}'), coalesce(beats, '{}'), coalesce(leases, '{}'),
  EXISTS (
    SELECT FROM asked AS q CROSS JOIN LATERAL (
      (SELECT FROM ${name}.waiting WHERE queue = q.queue AND id >= q.floor AND lease = ${free} ORDER BY queue, id LIMIT 1)
      UNION ALL
      (SELECT FROM ${name}.keyed WHERE queue = q.queue AND id >= q.keyed_floor AND ready AND lease = ${free}
        ORDER BY queue, id LIMIT 1)
    ) AS w
  ),
  (
    SELECT min(${milliseconds("d.due - clock_timestamp()")}) FROM asked AS q CROSS JOIN LATERAL (
      (SELECT due FROM ${name}.delayed WHERE queue = q.queue ORDER BY queue, due, id LIMIT 1)
      UNION ALL
      (SELECT due FROM ${name}.keyed WHERE queue = q.queue AND due IS NOT NULL ORDER BY queue, due LIMIT 1)
    ) AS d
  ),
  pg_postmaster_start_time()::text,
  EXISTS (
    SELECT FROM asked AS q CROSS JOIN LATERAL (
      (SELECT FROM ${name}.waiting WHERE suspicion = ${suspicions.strong} AND queue = q.queue AND lease = ${suspect}
        ORDER BY suspicion, queue, id LIMIT 1)
      UNION ALL
      (SELECT FROM ${name}.keyed AS k WHERE suspicion = ${suspicions.strong} AND queue = q.queue AND lease = ${suspect}
        AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = k.tag AND p.lane = k.lane)
        ORDER BY suspicion, queue, id LIMIT 1)
    ) AS s
  ),
  ARRAY (
    SELECT intent::text FROM ${name}.waiting
    WHERE suspicion = ${suspicions.cancelled} AND queue = ANY ($2::int4[]) AND abs(lease) = $1
    UNION ALL SELECT intent::text FROM ${name}.keyed
    WHERE suspicion = ${suspicions.cancelled} AND queue = ANY ($2::int4[]) AND abs(lease) = $1
  ),
  coalesce(tags, '{}'), coalesce(lanes, '{}'), sum
FROM every, paused, every_id`,

    /** Ends those of the sessions `$1` whose beat is still that of `$2`, on the server that was started at `$3`. */
    end: `UPDATE ${name}.worker SET beat = -1 WHERE id = ANY (ARRAY (
  SELECT w.id FROM ${name}.worker AS w JOIN unnest($1::int8[], $2::int8[]) AS g(id, beat) ON w.id = g.id AND w.beat = g.beat
  WHERE pg_postmaster_start_time()::text = $3
  ORDER BY w.id FOR UPDATE OF w SKIP LOCKED
))
RETURNING id`,

    /**
     * Frees what the ended sessions `$1`, which `$2` has below zero, had claimed. What had started is a suspect now. Answers
     * `[session, how many it had, how many of these are free, how many are free in all, the tags and lanes of what was
     * cancelled, and is deleted]`.
     */
    free: free_("waiting"),
    freeKeyed: free_(
      "keyed",
      `, ready = NOT (lease < ${free} OR suspicion = ${suspicions.strong})`,
      `ARRAY (SELECT tag FROM cancelled ORDER BY id), ARRAY (SELECT lane::text FROM cancelled ORDER BY id)`
    ),

    /** Forgets sessions, and gives back what they were permitted. */
    unregister: `WITH permitted AS (DELETE FROM ${name}.permit WHERE session = ANY ($1::int8[]))
DELETE FROM ${name}.worker WHERE id = ANY ($1::int8[])`,

    /**
     * Locks what is permitted of the tags `$1`. Their buckets hold `$2` tokens at most, which come back at so many a
     * millisecond, `$4`; so many deliveries may run at once, `$3`.
     */
    lockPermits: `INSERT INTO ${name}.bucket AS b (tag, size, most, rate, tokens, filled_at)
SELECT tag, size, most, rate, size, clock_timestamp() FROM unnest($1::int4[], $2::float8[], $3::int4[], $4::float8[])
  AS g(tag, size, most, rate) ORDER BY tag
ON CONFLICT (tag) DO UPDATE SET size = excluded.size, most = excluded.most, rate = excluded.rate, filled_at = clock_timestamp(),
  tokens = least(
    excluded.size, b.tokens + excluded.rate * greatest(0, extract(epoch FROM clock_timestamp() - b.filled_at) * 1000)
  )`,

    /** `[tag, tokens, turn]` of the tags `$1`. */
    buckets: `SELECT tag, tokens, turn FROM ${name}.bucket WHERE tag = ANY ($1::int4[])`,

    /** What sessions that are alive are permitted of the tags `$1`, and whether they still ask. */
    permits: `SELECT p.tag, p.session, p.running, p.granted, p.wanted, p.wanted_tokens,
  p.session = $2 OR ${milliseconds("clock_timestamp() - p.asked_at")} < w.lease_ms, p.granted_turn, p.tokens_turn
FROM ${name}.permit AS p JOIN ${name}.worker AS w ON w.id = p.session AND w.beat >= 0
WHERE p.tag = ANY ($1::int4[]) ORDER BY p.tag, p.session`,

    /** Whether session `$1` is alive. */
    isAlive: `SELECT EXISTS (SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE)`,

    /** Writes down what session `$1` has been permitted, and what is left. */
    grant: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::int4[], $4::int4[], $5::int4[], $6::int4[], $7::float8[], $8::float8[],
    $9::float8[], $10::float8[]) AS g(tag, running, granted, wanted, wanted_tokens, granted_turn, tokens_turn, tokens, turn)
), left_over AS (
  UPDATE ${name}.bucket AS b SET tokens = g.tokens, turn = g.turn FROM given AS g WHERE b.tag = g.tag
)
INSERT INTO ${name}.permit
  (tag, session, running, granted, wanted, wanted_tokens, asked_at, granted_turn, tokens_turn)
SELECT tag, $1, running, granted, wanted, wanted_tokens, clock_timestamp(), granted_turn, tokens_turn FROM given
ON CONFLICT (tag, session) DO UPDATE SET running = excluded.running, granted = excluded.granted, wanted = excluded.wanted,
  wanted_tokens = excluded.wanted_tokens, asked_at = excluded.asked_at, granted_turn = excluded.granted_turn,
  tokens_turn = excluded.tokens_turn`,

    /** Forgets up to `$2` deliveries that are kept and ended longer than `$1` milliseconds ago. */
    clean: `DELETE FROM ${name}.delivered WHERE ctid = ANY (ARRAY (
  SELECT ctid FROM ${name}.delivered WHERE ended_at <= statement_timestamp() - make_interval(secs => $1::float8 / 1000)
  ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
))`,

    /** `[tag, waiting, claimed, delayed, dead, how long the oldest has been due]` */
    depths: `SELECT q.tag, coalesce(sum(w.free), 0)::float8 + coalesce(sum(l.due), 0)::float8,
  coalesce(sum(w.leased), 0)::float8, coalesce(sum(w.later), 0)::float8 + coalesce(sum(l.later), 0)::float8,
  coalesce(sum(d.dead), 0)::float8,
  coalesce(${milliseconds("clock_timestamp() - least(min(w.oldest), min(l.oldest))")}, 0)
FROM ${name}.queue AS q
LEFT JOIN (
  SELECT queue, sum(free) AS free, sum(leased) AS leased, sum(later) AS later, min(oldest) AS oldest FROM (
    SELECT queue, count(*) FILTER (WHERE lease IN (${free}, ${suspect})) AS free,
      count(*) FILTER (WHERE lease NOT IN (${free}, ${suspect})) AS leased, 0 AS later,
      min(coalesce(due, enqueued_at)) FILTER (WHERE lease IN (${free}, ${suspect})) AS oldest
    FROM ${name}.waiting GROUP BY queue
    UNION ALL SELECT queue, count(*) FILTER (WHERE lease IN (${free}, ${suspect}) AND is_due),
      count(*) FILTER (WHERE lease NOT IN (${free}, ${suspect})), count(*) FILTER (WHERE NOT is_due),
      min(coalesce(due, enqueued_at)) FILTER (WHERE lease IN (${free}, ${suspect}) AND is_due)
    FROM (SELECT *, due IS NULL OR due <= statement_timestamp() AS is_due FROM ${name}.keyed) AS k GROUP BY queue
  ) AS both_ GROUP BY queue
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
