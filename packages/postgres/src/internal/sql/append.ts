/**
 * Adding intents, and what becomes due of them.
 *
 * The parameters of what runs on the user's client are text, whatever types that client knows.
 */
import { transactionMark } from "@epilogue/core/Outbox"
import { bucketOf, columns, interval, lockClass, milliseconds, next } from "./names.ts"

export const append = (name: string) => ({
  /** Adds the queues that are missing and answers `[id, tag, version, priority]` of those that are there. */
  queues:
    `WITH given AS (SELECT * FROM unnest($1::text[], $2::int4[], $3::int4[]) AS g(tag, version, priority)), made AS (
  INSERT INTO ${name}.queue (tag, version, priority)
  SELECT DISTINCT tag COLLATE "C", version, priority FROM given g
  WHERE NOT EXISTS (
    SELECT FROM ${name}.queue q WHERE q.tag = g.tag AND q.version = g.version AND q.priority = g.priority
  )
  ORDER BY tag COLLATE "C", version, priority
  ON CONFLICT DO NOTHING
  RETURNING id, tag, version, priority
)
SELECT id, tag, version, priority FROM made
UNION ALL SELECT id, tag, version, priority FROM ${name}.queue JOIN given USING (tag, version, priority)`,

  /** Every queue of the tags `$1`: `[id, tag, version, priority]`. */
  queuesOf: `SELECT id, tag, version, priority FROM ${name}.queue WHERE tag = ANY ($1::text[])`,

  /** Adds intents that are due and have no key. Answers `[nothing, what names the transaction]`. */
  append: `WITH added AS (
  INSERT INTO ${name}.waiting (queue, id, enqueued_at, intent, traceparent, payload)
  SELECT queue, ${next(name)}, statement_timestamp(), intent, traceparent, payload
  FROM unnest($1::int4[], $2::uuid[], $3::text[], $4::text[])
    WITH ORDINALITY AS given(queue, intent, traceparent, payload, n)
  ORDER BY n
)
SELECT NULL::bpchar, ${transactionMark}`,

  /**
   * Adds intents that may be delayed or have keys. Answers the same, and then of each with an idempotency key `[its place, the
   * id that the key stands for]`. The keys are sorted, so that two of these never wait for each other.
   */
  appendKeyed: `WITH given AS MATERIALIZED (
  SELECT queue, intent, traceparent, payload, digest, tag, lane, partition_key, n,
    ${interval("remember")} AS remember,
    CASE WHEN delay IS NOT NULL THEN statement_timestamp() + ${interval("delay")}
      WHEN run_at IS NOT NULL THEN to_timestamp(run_at / 1000.0) END AS due
  FROM unnest($1::int4[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::float8[], $7::float8[], $8::float8[], $9::int4[],
    $10::uuid[], $11::text[])
    WITH ORDINALITY AS g(queue, intent, traceparent, payload, digest, remember, delay, run_at, tag, lane, partition_key, n)
), known AS (
  INSERT INTO ${name}.remembered AS r (digest, intent, lane, until)
  SELECT digest, intent, lane, greatest(due, statement_timestamp()) + remember FROM given WHERE digest IS NOT NULL
  ORDER BY digest
  ON CONFLICT (digest) DO UPDATE SET
    intent = CASE WHEN r.until <= statement_timestamp() THEN excluded.intent ELSE r.intent END,
    lane = CASE WHEN r.until <= statement_timestamp() THEN excluded.lane ELSE r.lane END,
    until = CASE WHEN r.until <= statement_timestamp() THEN excluded.until ELSE r.until END
  RETURNING digest, intent
), fresh AS MATERIALIZED (
  SELECT *, due > statement_timestamp() AND due IS NOT NULL AS is_later
  FROM given WHERE digest IS NULL OR intent IN (SELECT intent FROM known)
), locked AS MATERIALIZED (
  SELECT count(pg_advisory_xact_lock(${lockClass(name)}, bucket)) AS count FROM (
    SELECT DISTINCT ${bucketOf("lane")} AS bucket FROM fresh WHERE lane IS NOT NULL AND NOT is_later ORDER BY bucket
  ) AS buckets
), due AS (
  INSERT INTO ${name}.waiting (queue, id, enqueued_at, intent, traceparent, payload)
  SELECT queue, ${next(name)}, statement_timestamp(), intent, traceparent, payload
  FROM fresh WHERE lane IS NULL AND NOT is_later ORDER BY n
), keyed AS (
  INSERT INTO ${name}.keyed (tag, queue, lane, id, ready, enqueued_at, intent, partition_key, traceparent, payload)
  SELECT tag, queue, lane, ${next(name)}, is_first, statement_timestamp(), intent, partition_key, traceparent, payload
  FROM (SELECT *, row_number() OVER (PARTITION BY tag, lane ORDER BY n) = 1 AS is_first FROM fresh
    WHERE lane IS NOT NULL AND NOT is_later) AS ordered
  WHERE (SELECT count FROM locked) >= 0 ORDER BY n
), later AS (
  INSERT INTO ${name}.delayed (due, queue, id, enqueued_at, intent, tag, lane, partition_key, traceparent, payload)
  SELECT due, queue, ${next(name)}, statement_timestamp(), intent, tag, lane, partition_key, traceparent, payload
  FROM fresh WHERE is_later ORDER BY n
)
SELECT NULL::bpchar, ${transactionMark}
UNION ALL SELECT n::text::bpchar, known.intent::text::bpchar FROM known JOIN given USING (digest)`,

  // Neither answers with a type that a client could read in a way of its own: the first with no row at all.
  mark: `SELECT WHERE set_config('epilogue.marks',
  coalesce(current_setting('epilogue.marks', true), '') || $1::text || ' ', true) IS NULL`,
  marks: `SELECT current_setting('epilogue.marks', true)::bpchar`,

  /**
   * Moves up to `$2` rows of each queue of `$1` that have become due since `$3` to where they can be claimed, and answers
   * `[how many, when the next is due, when that was, how many have to wait for a transaction that adds to their lane, the tags
   * and the lanes of those that held their key]`.
   */
  promote: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($1::int4[]) AS g(queue)
), picked AS MATERIALIZED (
  SELECT d.tid, ${bucketOf("d.lane")} AS bucket FROM given AS g CROSS JOIN LATERAL (
    SELECT ctid AS tid, lane FROM ${name}.delayed
    WHERE queue = g.queue AND due >= to_timestamp($3::float8 / 1000) AND due <= statement_timestamp()
    ORDER BY queue, due, id LIMIT $2::int8 FOR UPDATE SKIP LOCKED
  ) AS d
), buckets AS MATERIALIZED (
  SELECT bucket, pg_try_advisory_xact_lock(${lockClass(name)}, bucket) AS is_locked
  FROM (SELECT DISTINCT bucket FROM picked WHERE bucket IS NOT NULL) AS b
), due AS (
  DELETE FROM ${name}.delayed WHERE ctid = ANY (ARRAY (
    SELECT tid FROM picked WHERE bucket IS NULL OR bucket IN (SELECT bucket FROM buckets WHERE is_locked)
  ))
  RETURNING due, id, queue, tag, lane, partition_key, ${columns}
), moved AS (
  INSERT INTO ${name}.waiting (queue, id, due, ${columns})
  SELECT queue, ${next(name)}, due, ${columns} FROM due WHERE lane IS NULL ORDER BY due, id
  RETURNING 1
), joined AS (
  INSERT INTO ${name}.keyed (tag, queue, lane, id, partition_key, ${columns})
  SELECT tag, queue, lane, ${next(name)}, partition_key, ${columns} FROM due WHERE lane IS NOT NULL ORDER BY due, id
  RETURNING 1
), revived AS (
  UPDATE ${name}.keyed SET ready = true, due = NULL WHERE ctid = ANY (ARRAY (
    SELECT k.tid FROM given AS g CROSS JOIN LATERAL (
      SELECT ctid AS tid FROM ${name}.keyed
      WHERE queue = g.queue AND due <= statement_timestamp()
      ORDER BY queue, due LIMIT $2::int8 FOR NO KEY UPDATE SKIP LOCKED
    ) AS k
  )) AND due <= statement_timestamp()
  RETURNING tag, lane
)
SELECT ((SELECT count(*) FROM moved) + (SELECT count(*) FROM joined) + (SELECT count(*) FROM revived))::int4, (
  SELECT min(${milliseconds("d.due - clock_timestamp()")}) FROM given AS g CROSS JOIN LATERAL (
    (SELECT due FROM ${name}.delayed WHERE queue = g.queue AND due > statement_timestamp() ORDER BY queue, due, id LIMIT 1)
    UNION ALL
    (SELECT due FROM ${name}.keyed WHERE queue = g.queue AND due > statement_timestamp() ORDER BY queue, due LIMIT 1)
  ) AS d
), ${milliseconds("statement_timestamp()")}, (
  SELECT count(*)::int4 FROM picked WHERE bucket IN (SELECT bucket FROM buckets WHERE NOT is_locked)
), (SELECT coalesce(array_agg(tag), '{}') FROM revived), (SELECT coalesce(array_agg(lane::text), '{}') FROM revived)`,

  /** Forgets up to `$1` idempotency keys whose time is over. */
  forget: `DELETE FROM ${name}.remembered WHERE ctid = ANY (ARRAY (
  SELECT ctid FROM ${name}.remembered WHERE until <= statement_timestamp()
  ORDER BY until LIMIT $1 FOR UPDATE SKIP LOCKED
))`
})
