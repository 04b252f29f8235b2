/**
 * Claiming and settling intents that have a partition key.
 *
 * Of a lane, which stands for a tag and a key, only the first row can be claimed, its head, and those right after it together
 * with it. So that a claim need not look at every lane, rows that may be heads are `ready`, and an index has these alone:
 *
 * - A row is ready when it is added, unless another one of its statement goes before it in its lane.
 * - A claim that finds a ready row which is no head, or whose lane is stopped, makes it not ready. It holds a lock meanwhile on
 *   what stops it, the head or the pause, so that this can't go away unnoticed.
 * - Whoever takes a head away, or a pause, makes the next head ready. What is the next one is certain in a later statement only.
 */
import { columns, everyLane, free, interval, isHeld, kinds, suspect, suspicions, withEvent } from "./names.ts"
import { bury, claimedColumns, eventOf, keep } from "./waiting.ts"

export const keyed = (name: string, keepsDelivered: boolean) => {
  const isDue = (row: string) => `(${row}.due IS NULL OR ${row}.due <= statement_timestamp())`

  /** Where the rows of `given` are: one by one, by their key. */
  const placesOf = (given: string, more = "") =>
    `SELECT k.tid${more} FROM ${given} AS g CROSS JOIN LATERAL (
    SELECT ctid AS tid, suspicion FROM ${name}.keyed WHERE tag = g.tag AND lane = g.lane AND id = g.id OFFSET 0
  ) AS k`
  const given = "(SELECT * FROM unnest($2::int4[], $3::uuid[], $4::int8[]) AS p(tag, lane, id))"

  /** Makes the next ones ready after what is `gone`, but for those that somebody has leased, and lanes of `unless`. */
  const next = (unless = "") =>
    `following AS MATERIALIZED (
  SELECT g.tag, g.lane, n.id FROM (
    SELECT tag, lane, max(id) AS last FROM gone${unless} GROUP BY tag, lane
  ) AS g LEFT JOIN LATERAL (
    SELECT id, lease, due FROM ${name}.keyed WHERE tag = g.tag AND lane = g.lane AND id > g.last ORDER BY tag, lane, id LIMIT 1
  ) AS n ON true
  WHERE n.id IS NULL OR (n.lease = ${free} AND n.due IS NULL)
), next AS (
  UPDATE ${name}.keyed AS k SET ready = true FROM following AS f
  WHERE k.tag = f.tag AND k.lane = f.lane AND k.id = f.id AND k.lease = ${free} AND k.due IS NULL
  RETURNING k.tag, k.lane
)`

  /**
   * Lanes that go on; and lanes of which the statement has seen no next one, though there may be one by now: somebody may have
   * added it meanwhile, and a claim may have found it behind what is gone.
   */
  const lanesOf = `SELECT NULL, tag, lane::text, true FROM next
UNION ALL SELECT NULL, tag, lane::text, false FROM following WHERE (tag, lane) NOT IN (SELECT tag, lane FROM next)`

  const kept = keep(name, "lane, partition_key")
  const gone = `tag, lane, id, queue, partition_key, suspicion, ${columns}`

  const freed = `ready = suspicion <> ${suspicions.strong},
  lease = CASE suspicion WHEN ${suspicions.strong} THEN ${suspect} ELSE ${free} END`

  const succeed = `DELETE FROM ${name}.keyed WHERE ctid = ANY (ARRAY (
    ${placesOf(given)}
  )) AND ${isHeld}
  RETURNING ${gone}`

  return {
    /**
     * Leases up to `$6` rows of together `$7` bytes to the session `$1`. It looks at the next `$10` that are ready in each queue
     * of `$2`, at or after its position in `$3`, and at the lanes `$9` of the tags `$8`; of a lane it takes as many as `$4` says
     * of its queue. `$5` are the tags of the queues. Answers first `[queues, how many were ready in each, the first and the
     * last of each, the positions that were to be leased, how many were found]`, and after six columns more what was leased.
     */
    claimKeyed: `WITH session AS MATERIALIZED (
  SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE
), asked AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::int8[], $4::int4[], $5::int4[]) AS q(queue, floor, most, tag)
  WHERE EXISTS (SELECT FROM session)
    AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = q.tag AND p.lane = '${everyLane}')
), candidates AS MATERIALIZED (
  SELECT k.* FROM asked AS q CROSS JOIN LATERAL (
    SELECT ctid AS tid, queue, tag, lane, id FROM ${name}.keyed
    WHERE queue = q.queue AND id >= q.floor AND ready AND lease = ${free}
    ORDER BY queue, id LIMIT $10::int8
  ) AS k
), lanes AS MATERIALIZED (
  SELECT tag, lane FROM candidates
  UNION SELECT tag, lane FROM unnest($8::int4[], $9::uuid[]) AS h(tag, lane) WHERE EXISTS (SELECT FROM session)
), heads AS MATERIALIZED (
  SELECT l.tag, l.lane, h.tid, h.queue, h.id, h.lease, h.due,
    EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = l.tag AND p.lane = l.lane) AS is_paused,
    EXISTS (SELECT FROM ${name}.blocked AS b WHERE b.tag = l.tag AND b.lane = l.lane) AS is_blocked
  FROM lanes AS l CROSS JOIN LATERAL (
    SELECT ctid AS tid, queue, id, lease, due FROM ${name}.keyed
    WHERE tag = l.tag AND lane = l.lane ORDER BY tag, lane, id LIMIT 1
  ) AS h
), locked AS MATERIALIZED (
  SELECT ctid AS tid, queue, tag, lane, id FROM ${name}.keyed AS k WHERE ctid = ANY (ARRAY (
    SELECT h.tid FROM heads AS h JOIN asked AS q USING (queue)
    WHERE h.lease = ${free} AND ${isDue("h")} AND NOT h.is_paused AND NOT h.is_blocked
    ORDER BY h.id LIMIT $6::int8
  )) AND lease = ${free} AND ${isDue("k")}
  FOR NO KEY UPDATE SKIP LOCKED
), runs AS MATERIALIZED (
  SELECT r.tid, r.id, r.size, r.n
  FROM locked AS l JOIN asked AS q USING (queue) CROSS JOIN LATERAL (
    SELECT tid, id, size, n FROM (
      SELECT k.tid, k.id, k.size, row_number() OVER running AS n, bool_and(k.is_free AND k.queue = ANY ($2::int4[])) OVER running
        AS is_free
      FROM (
        SELECT ctid AS tid, id, queue, octet_length(payload) AS size,
          lease = ${free} AND suspicion < ${suspicions.strong} AND ${isDue("f")} AS is_free
        FROM ${name}.keyed AS f WHERE tag = l.tag AND lane = l.lane AND id >= l.id
        ORDER BY tag, lane, id LIMIT least(q.most, greatest(1, ceil($6::float8 / (SELECT count(*) FROM locked))))::int8
      ) AS k
      WINDOW running AS (ORDER BY k.id ROWS UNBOUNDED PRECEDING)
    ) AS c WHERE c.is_free
  ) AS r
), found AS MATERIALIZED (
  SELECT *, row_number() OVER running AS place, sum(size) OVER running AS bytes
  FROM runs WINDOW running AS (ORDER BY n, id ROWS UNBOUNDED PRECEDING)
), before AS MATERIALIZED (
  SELECT tag, lane, id FROM ${name}.keyed WHERE ctid = ANY (ARRAY (
    SELECT h.tid FROM heads AS h WHERE EXISTS (
      SELECT FROM candidates AS c WHERE c.tag = h.tag AND c.lane = h.lane AND c.id > h.id
    )
  ))
  FOR NO KEY UPDATE SKIP LOCKED
), pauses AS MATERIALIZED (
  SELECT tag, lane FROM ${name}.paused WHERE (tag, lane) IN (SELECT tag, lane FROM heads WHERE is_paused)
  FOR KEY SHARE SKIP LOCKED
), blocks AS MATERIALIZED (
  SELECT tag, lane FROM ${name}.blocked WHERE (tag, lane) IN (SELECT tag, lane FROM heads WHERE is_blocked)
  FOR KEY SHARE SKIP LOCKED
), behind AS MATERIALIZED (
  SELECT c.tid FROM candidates AS c WHERE c.tid NOT IN (SELECT tid FROM runs) AND (
    EXISTS (SELECT FROM before AS b WHERE b.tag = c.tag AND b.lane = c.lane AND b.id < c.id)
    OR EXISTS (SELECT FROM pauses AS p WHERE p.tag = c.tag AND p.lane = c.lane)
    OR EXISTS (SELECT FROM blocks AS b WHERE b.tag = c.tag AND b.lane = c.lane)
  )
), demoted AS (
  UPDATE ${name}.keyed SET ready = false WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM ${name}.keyed WHERE ctid = ANY (ARRAY (SELECT tid FROM behind)) AND lease = ${free}
    FOR NO KEY UPDATE SKIP LOCKED
  ))
), chosen AS MATERIALIZED (
  SELECT tid, id FROM found WHERE place <= $6::int8 AND (place = 1 OR bytes <= $7::float8)
), claimed AS (
  UPDATE ${name}.keyed SET lease = $1 WHERE ctid = ANY (ARRAY (SELECT tid FROM chosen))
    AND lease = ${free} AND (SELECT count(*) FROM behind) >= 0
  RETURNING ${claimedColumns}, tag, lane::text, partition_key
), looked AS (
  SELECT array_agg(queue) AS queues, array_agg(ready) AS readies, array_agg(first) AS firsts, array_agg(last) AS lasts FROM (
    SELECT queue, count(*)::int4 AS ready, min(id) AS first, max(id) AS last FROM candidates GROUP BY queue
  ) AS l
)
SELECT queues, readies, firsts, lasts, (SELECT array_agg(id) FROM chosen), (SELECT count(*)::int4 FROM found), NULL::int4, NULL::int8,
  NULL::text, NULL::int4, NULL::int4, NULL::int2, NULL::float8, NULL::text, NULL::float8, NULL::int4, NULL::text, NULL::int4,
  NULL::text, NULL::text FROM looked
UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, claimed.* FROM claimed`,

    /** Leases one suspect of the queues `$2`, whose tags are `$3`, to the session `$1`: the head of its lane. */
    claimSuspectKeyed: `WITH session AS MATERIALIZED (
  SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE
)
UPDATE ${name}.keyed SET lease = $1 WHERE ctid = ANY (ARRAY (
  SELECT w.tid FROM unnest($2::int4[], $3::int4[]) AS q(queue, tag) CROSS JOIN LATERAL (
    SELECT ctid AS tid FROM ${name}.keyed AS k
    WHERE suspicion = ${suspicions.strong} AND queue = q.queue AND lease = ${suspect} AND NOT EXISTS (
      SELECT FROM ${name}.keyed AS b WHERE b.tag = k.tag AND b.lane = k.lane AND b.id < k.id
    ) AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = k.tag AND p.lane = k.lane)
      AND NOT EXISTS (SELECT FROM ${name}.blocked AS p WHERE p.tag = k.tag AND p.lane = k.lane)
    ORDER BY suspicion, queue, id LIMIT 1 FOR NO KEY UPDATE OF k SKIP LOCKED
  ) AS w
  WHERE EXISTS (SELECT FROM session)
    AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = q.tag AND p.lane = '${everyLane}')
  LIMIT 1
)) AND lease = ${suspect}
RETURNING ${claimedColumns}, tag, lane::text, partition_key`,

    /** Frees what a claim whose answer was lost has leased: all of `$1` but those at `$2`. What is cancelled it leaves. */
    reclaimKeyed: `UPDATE ${name}.keyed SET ${freed}
WHERE lease = $1 AND id <> ALL ($2::int8[]) AND suspicion <> ${suspicions.cancelled}`,

    /** Deletes what is cancelled of the same. Answers their lanes. */
    discardLostKeyed: `DELETE FROM ${name}.keyed
WHERE lease = $1 AND id <> ALL ($2::int8[]) AND suspicion = ${suspicions.cancelled}
RETURNING tag, lane::text`,

    /**
     * Puts on record that what session `$1` holds has started: tags `$2`, lanes `$3`, positions `$4`. Answers the positions. It
     * waits for no row.
     */
    startKeyed: `WITH held AS MATERIALIZED (
  SELECT ctid AS tid, id FROM ${name}.keyed WHERE ctid = ANY (ARRAY (
    ${placesOf(given)}
  )) AND ${isHeld}
), started AS (
  UPDATE ${name}.keyed SET lease = -($1::int8) WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM ${name}.keyed WHERE ctid = ANY (ARRAY (SELECT tid FROM held)) AND ${isHeld} FOR NO KEY UPDATE SKIP LOCKED
  ))
)
SELECT id FROM held`,

    /** Deletes what has succeeded of session `$1`: tags `$2`, lanes `$3`, positions `$4`. Answers positions, and `lanesOf`. */
    succeedKeyed: `WITH gone AS (
  ${succeed}
), ${next()}${keepsDelivered ? `, kept AS (${kept} FROM gone)` : ""}
SELECT id, NULL::int4, NULL::text, NULL::bool FROM gone UNION ALL ${lanesOf}`,

    /** The same for one, with parameters that are text, whatever types the user's client knows. */
    succeedKeyedInTransaction: `WITH gone AS (
  DELETE FROM ${name}.keyed WHERE tag = $1::text::int4 AND lane = $2::text::uuid AND id = $3::text::int8
    AND lease IN ($4::text::int8, -($4::text::int8))
  RETURNING ${gone}
), ${next()}${keepsDelivered ? `, kept AS (${kept} FROM gone)` : ""}
SELECT '1'::bpchar FROM gone`,

    /**
     * Settles whatever has become of them, by `kinds`: `$5`, delays `$6`, failures `$7`, reasons `$8`, whether they block their
     * lane `$9`. Answers positions, and `lanesOf`.
     */
    settleKeyed: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::uuid[], $4::int8[], $5::int4[], $6::int8[], $7::text[], $8::text[], $9::bool[])
    AS g(tag, lane, id, kind, delay, failure, reason, blocks)
), places AS MATERIALIZED (
  SELECT *, row_number() OVER (PARTITION BY tag, lane, stays AND kind = ${kinds.Released} ORDER BY id) = 1 AS is_first FROM (
    ${
      placesOf(
        "given",
        `, g.*, g.kind NOT IN (${kinds.Succeeded}, ${kinds.Dead}) AND k.suspicion <> ${suspicions.cancelled} AS stays`
      )
    }
  ) AS p
), gone AS (
  DELETE FROM ${name}.keyed WHERE ctid = ANY (ARRAY (
    SELECT tid FROM places WHERE NOT stays
  )) AND ${isHeld}
  RETURNING ${gone}
), ended AS MATERIALIZED (
  SELECT gone.*, given.kind, given.failure AS said, given.reason, given.blocks
  FROM gone JOIN given USING (tag, lane, id) WHERE suspicion <> ${suspicions.cancelled}
), stays AS (
  UPDATE ${name}.keyed AS k SET
    lease = CASE WHEN p.kind = ${kinds.Released} AND k.suspicion = ${suspicions.strong} THEN ${suspect} ELSE ${free} END,
    ready = CASE WHEN p.kind = ${kinds.Released} THEN (k.ready OR p.is_first) AND k.suspicion <> ${suspicions.strong}
      ELSE p.delay <= 0 END,
    due = CASE WHEN p.kind <> ${kinds.Released} AND p.delay > 0 THEN statement_timestamp() + ${interval("p.delay")} END,
    failures = k.failures + (p.kind = ${kinds.Failed})::int4,
    suspicion = CASE WHEN p.kind = ${kinds.Released} THEN k.suspicion ELSE ${suspicions.none} END,
    undecodable_since = CASE WHEN p.kind = ${kinds.Undecodable} THEN coalesce(k.undecodable_since, statement_timestamp())
      ELSE k.undecodable_since END,
    failure = coalesce(p.failure, k.failure),
    history = CASE WHEN p.kind = ${kinds.Released} THEN k.history
      ELSE ${withEvent(eventOf.replaceAll("kind", "p.kind"), "p.failure", "k.history")} END
  FROM places AS p
  WHERE k.ctid = p.tid AND k.ctid = ANY (ARRAY (
    SELECT tid FROM places WHERE stays
  )) AND k.lease IN ($1::int8, -($1::int8))
  RETURNING k.tag, k.lane, k.id
), dead AS (
  ${bury(name, "tag, lane, partition_key")} FROM ended WHERE kind = ${kinds.Dead}
), stopped AS (
  INSERT INTO ${name}.blocked (tag, lane, intent)
  SELECT tag, lane, intent FROM ended WHERE kind = ${kinds.Dead} AND blocks ON CONFLICT DO NOTHING
), ${keepsDelivered ? `kept AS (${kept} FROM ended WHERE kind = ${kinds.Succeeded}), ` : ""}${
      next(
        ` WHERE NOT EXISTS (SELECT FROM places AS o WHERE o.tag = gone.tag AND o.lane = gone.lane AND (o.blocks OR o.stays))`
      )
    }
SELECT id, NULL::int4, NULL::text, NULL::bool FROM gone UNION ALL SELECT id, NULL, NULL, NULL FROM stays
UNION ALL ${lanesOf}`,

    /** Frees what is left of a session that closes: tags `$2`, lanes `$3`, positions `$4`. What is cancelled it leaves. */
    leaveKeyed: `UPDATE ${name}.keyed SET ${freed}
WHERE ctid = ANY (ARRAY (
  ${placesOf(given)}
)) AND ${isHeld} AND suspicion <> ${suspicions.cancelled}`,

    /** Deletes what is cancelled of the same. */
    discardKeyed: `DELETE FROM ${name}.keyed WHERE ctid = ANY (ARRAY (
  ${placesOf(given)}
)) AND ${isHeld} AND suspicion = ${suspicions.cancelled}`
  }
}
