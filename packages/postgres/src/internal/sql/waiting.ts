/**
 * Claiming and settling intents that have no partition key.
 */
import {
  columns,
  everyLane,
  free,
  interval,
  isHeld,
  kinds,
  milliseconds,
  suspect,
  suspicions,
  withEvent
} from "./names.ts"

/** What a claim answers of each, in this order, before what is particular to the kind of claim. */
export const claimedColumns = `queue, id, intent::text, failures, crashes, suspicion, ${
  milliseconds("enqueued_at")
}, traceparent,
  ${milliseconds("clock_timestamp() - undecodable_since")}, octet_length(payload), payload`

/** What is kept of deliveries, if anything is. */
export const keep = (name: string, gone: string): string =>
  `INSERT INTO ${name}.delivered
    (queue, failures, ended_at, enqueued_at, intent, crashes, lane, partition_key, traceparent, failure, history, payload)
  SELECT queue, failures, statement_timestamp(), enqueued_at, intent, crashes, ${gone}, traceparent, failure, history, payload`

/** The columns of a settlement that is no success. */
const settlement = "kind, delay, failure, reason"

export const waiting = (name: string, keepsDelivered: boolean) => {
  /**
   * Where some rows are, whoever has leased them. With the lease among the conditions, or without the `OFFSET`, the planner
   * reads all that waits as long as its statistics say that nothing is leased.
   */
  const placesOf = (given: string) =>
    `SELECT w.tid FROM (SELECT queue, array_agg(id) AS ids FROM ${given} AS g GROUP BY queue) AS asked CROSS JOIN LATERAL (
    SELECT ctid AS tid FROM ${name}.waiting WHERE queue = asked.queue AND id = ANY (asked.ids) OFFSET 0
  ) AS w`
  const places = placesOf("(SELECT * FROM unnest($2::int4[], $3::int8[]) AS p(queue, id))")

  /** The next rows of a queue after a position, locked. */
  const heads = (after: string, limit: string) =>
    `SELECT ctid AS tid, id, octet_length(payload) AS size FROM ${name}.waiting
    WHERE queue = q.queue AND id ${after} AND lease = ${free}
    ORDER BY queue, id LIMIT ${limit} FOR NO KEY UPDATE SKIP LOCKED`

  const succeed = `DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
  ${places}
)) AND ${isHeld}`

  const succeedOne = `DELETE FROM ${name}.waiting
WHERE queue = $1::text::int4 AND id = $2::text::int8 AND lease IN ($3::text::int8, -($3::text::int8))`

  const kept = keep(name, "NULL, NULL")

  return {
    /**
     * Leases up to `$6` rows of together `$7` bytes to the session `$1`: from each queue of `$2`, at or after its position in
     * `$3`, its share in `$4`, and then what other queues have left over, but of none more than in `$5`. Nothing of a tag of
     * `$8` that is paused.
     */
    claim: `WITH session AS MATERIALIZED (
  SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE
), asked AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::int8[], $4::int8[], $5::int8[], $8::int4[])
    WITH ORDINALITY AS q(queue, floor, share, most, tag, turn)
  WHERE EXISTS (SELECT FROM session)
    AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = q.tag AND p.lane = '${everyLane}')
), share AS MATERIALIZED (
  SELECT w.tid, w.id, w.size, q.queue, q.turn, q.share, q.most,
    row_number() OVER (PARTITION BY q.queue ORDER BY w.id) AS place
  FROM asked AS q CROSS JOIN LATERAL (
    ${heads(">= q.floor", "q.share")}
  ) AS w
), lent AS MATERIALIZED (
  SELECT w.tid, w.id, w.size, q.queue, q.turn, q.share + row_number() OVER (PARTITION BY q.queue ORDER BY w.id) AS place
  FROM (
    SELECT queue, turn, share, max(id) AS last, least(most - share,
      ceil(($6::float8 - (SELECT count(*) FROM share)) / count(*) OVER ())::int8) AS rest
    FROM share GROUP BY queue, turn, share, most HAVING count(*) = share AND most > share
  ) AS q
  CROSS JOIN LATERAL (
    ${heads("> q.last", "greatest(q.rest, 0)")}
  ) AS w
), found AS (
  SELECT *, row_number() OVER running AS n, sum(size) OVER running AS bytes
  FROM (SELECT tid, id, size, turn, place FROM share UNION ALL SELECT tid, id, size, turn, place FROM lent) AS every
  WINDOW running AS (ORDER BY place, turn ROWS UNBOUNDED PRECEDING)
)
UPDATE ${name}.waiting SET lease = $1
WHERE ctid = ANY (ARRAY (SELECT tid FROM found WHERE n <= $6::int8 AND (n = 1 OR bytes <= $7::float8)))
RETURNING ${claimedColumns}, (SELECT count(*) FROM share) + (SELECT count(*) FROM lent)`,

    /** Leases one suspect of the queues `$2`, whose tags are `$3`, to the session `$1`. */
    claimSuspect: `WITH session AS MATERIALIZED (
  SELECT FROM ${name}.worker WHERE id = $1 AND beat >= 0 FOR KEY SHARE
)
UPDATE ${name}.waiting SET lease = $1 WHERE ctid = ANY (ARRAY (
  SELECT w.tid FROM unnest($2::int4[], $3::int4[]) AS q(queue, tag) CROSS JOIN LATERAL (
    SELECT ctid AS tid FROM ${name}.waiting
    WHERE suspicion = ${suspicions.strong} AND queue = q.queue AND lease = ${suspect}
    ORDER BY suspicion, queue, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS w
  WHERE EXISTS (SELECT FROM session)
    AND NOT EXISTS (SELECT FROM ${name}.paused AS p WHERE p.tag = q.tag AND p.lane = '${everyLane}')
  LIMIT 1
)) AND lease = ${suspect}
RETURNING ${claimedColumns}`,

    /** Frees what a claim whose answer was lost has leased: all of `$1` but those at `$2`. What is cancelled it leaves. */
    reclaim:
      `UPDATE ${name}.waiting SET lease = CASE suspicion WHEN ${suspicions.strong} THEN ${suspect} ELSE ${free} END
WHERE lease = $1 AND id <> ALL ($2::int8[]) AND suspicion <> ${suspicions.cancelled}`,

    /** Deletes what is cancelled of the same. */
    discardLost: `DELETE FROM ${name}.waiting
WHERE lease = $1 AND id <> ALL ($2::int8[]) AND suspicion = ${suspicions.cancelled}`,

    /**
     * Puts on record that what session `$1` holds has started: queues `$2`, positions `$3`. Answers the positions. It waits for
     * no row: one that a handler's transaction is settling is over anyway.
     */
    start: `WITH held AS MATERIALIZED (
  SELECT ctid AS tid, id FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
    ${places}
  )) AND ${isHeld}
), started AS (
  UPDATE ${name}.waiting SET lease = -($1::int8) WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM ${name}.waiting WHERE ctid = ANY (ARRAY (SELECT tid FROM held)) AND ${isHeld} FOR NO KEY UPDATE SKIP LOCKED
  ))
)
SELECT id FROM held`,

    /** Deletes what has succeeded of session `$1`: queues `$2`, positions `$3`. Answers the positions. */
    succeed: keepsDelivered
      ? `WITH gone AS (${succeed} RETURNING id, queue, ${columns}), kept AS (${kept} FROM gone) SELECT id FROM gone`
      : `${succeed} RETURNING id`,

    /** The same for one, with parameters that are text, whatever types the user's client knows. */
    succeedInTransaction: keepsDelivered
      ? `WITH gone AS (${succeedOne} RETURNING queue, ${columns}), kept AS (${kept} FROM gone) SELECT '1'::bpchar FROM gone`
      : `${succeedOne} RETURNING '1'::bpchar`,

    /** Settles whatever has become of them, by `kinds`. Answers the positions. */
    settle: `WITH given AS MATERIALIZED (
  SELECT * FROM unnest($2::int4[], $3::int8[], $4::int4[], $5::int8[], $6::text[], $7::text[])
    AS g(queue, id, ${settlement})
), gone AS (
  DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
    ${placesOf(`(SELECT * FROM given WHERE kind <> ${kinds.Released})`)}
  )) AND ${isHeld}
  RETURNING queue, id, suspicion, ${columns}
), ended AS MATERIALIZED (
  SELECT gone.*, given.kind, ${interval("given.delay")} AS delay, given.failure AS said, given.reason
  FROM gone JOIN given USING (queue, id) WHERE suspicion <> ${suspicions.cancelled}
), later AS (
  INSERT INTO ${name}.delayed (due, id, queue, ${columns})
  SELECT statement_timestamp() + delay, id, queue,
    failures + (kind = ${kinds.Failed})::int4, enqueued_at, intent, crashes,
    CASE WHEN kind = ${kinds.Undecodable} THEN coalesce(undecodable_since, statement_timestamp()) ELSE undecodable_since END,
    traceparent, coalesce(said, failure), ${withEvent(eventOf, "said")}, payload
  FROM ended WHERE kind IN (${kinds.Failed}, ${kinds.Snoozed}, ${kinds.Undecodable})
), dead AS (
  ${bury(name, "NULL, NULL, NULL")} FROM ended WHERE kind = ${kinds.Dead}
), ${keepsDelivered ? `kept AS (${kept} FROM ended WHERE kind = ${kinds.Succeeded}), ` : ""}cancelled AS (
  DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
    ${placesOf(`(SELECT * FROM given WHERE kind = ${kinds.Released})`)}
  )) AND ${isHeld} AND suspicion = ${suspicions.cancelled}
  RETURNING id
), freed AS (
  UPDATE ${name}.waiting SET lease = CASE suspicion WHEN ${suspicions.strong} THEN ${suspect} ELSE ${free} END
  WHERE ctid = ANY (ARRAY (
    ${placesOf(`(SELECT * FROM given WHERE kind = ${kinds.Released})`)}
  )) AND ${isHeld} AND suspicion <> ${suspicions.cancelled}
  RETURNING id
)
SELECT id FROM gone UNION ALL SELECT id FROM cancelled UNION ALL SELECT id FROM freed`,

    /** Deletes what is cancelled of what is left of a session that closes. */
    discard: `DELETE FROM ${name}.waiting WHERE ctid = ANY (ARRAY (
  ${places}
)) AND ${isHeld} AND suspicion = ${suspicions.cancelled}`,

    /** Frees the rest of it. */
    leave: `UPDATE ${name}.waiting SET lease = CASE suspicion WHEN ${suspicions.strong} THEN ${suspect} ELSE ${free} END
WHERE ctid = ANY (ARRAY (
  ${places}
)) AND ${isHeld} AND suspicion <> ${suspicions.cancelled}`
  }
}

/** What a settlement is called in the history of its intent. */
export const eventOf =
  `CASE kind WHEN ${kinds.Failed} THEN 'failed' WHEN ${kinds.Snoozed} THEN 'snoozed' WHEN ${kinds.Undecodable} THEN 'undecodable'
  WHEN ${kinds.Dead} THEN 'dead' END`

/** Makes a dead letter. `key` is the tag, the lane and the partition key. */
export const bury = (name: string, key: string): string =>
  `INSERT INTO ${name}.dead
    (queue, id, failures, enqueued_at, died_at, intent, crashes, tag, lane, partition_key, reason, traceparent, failure, history,
    payload)
  SELECT queue, id, failures + (reason IN ('exhausted', 'rejected'))::int4, enqueued_at, statement_timestamp(), intent, crashes,
    ${key}, reason, traceparent, said, ${withEvent("'dead'", "said")}, payload`
