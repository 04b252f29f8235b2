/**
 * Making the heads of lanes ready of which something was taken away.
 */
import { free } from "./names.ts"

export const heads = (name: string) => ({
  /**
   * Makes the heads of the lanes `$2` of the tags `$1` ready, but for those that somebody has locked. Answers the tags and lanes
   * of those that were not, and whether they are now. It has to be a statement after the one that took away what was before
   * these heads, so that it sees what a claim has made of them meanwhile.
   */
  ready: `WITH heads AS MATERIALIZED (
  SELECT g.tag, g.lane, h.id FROM (
    SELECT DISTINCT tag, lane FROM unnest($1::int4[], $2::uuid[]) AS g(tag, lane)
  ) AS g CROSS JOIN LATERAL (
    SELECT id, lease, ready, due FROM ${name}.keyed WHERE tag = g.tag AND lane = g.lane ORDER BY tag, lane, id LIMIT 1
  ) AS h WHERE h.lease = ${free} AND NOT h.ready AND h.due IS NULL
), locked AS MATERIALIZED (
  SELECT k.tag, k.lane, k.id FROM heads AS h CROSS JOIN LATERAL (
    SELECT tag, lane, id FROM ${name}.keyed WHERE tag = h.tag AND lane = h.lane AND id = h.id FOR NO KEY UPDATE SKIP LOCKED
  ) AS k
), readied AS (
  UPDATE ${name}.keyed AS k SET ready = true FROM locked AS l
  WHERE k.tag = l.tag AND k.lane = l.lane AND k.id = l.id AND k.lease = ${free} AND k.due IS NULL
)
SELECT tag, lane::text, (tag, lane) IN (SELECT tag, lane FROM locked) FROM heads`,

  /** The same for one, and it waits: whoever runs it holds nothing that others wait for. */
  readyOne: `UPDATE ${name}.keyed AS k SET ready = true FROM (
  SELECT tag, lane, id FROM ${name}.keyed WHERE tag = $1::int4 AND lane = $2::uuid ORDER BY tag, lane, id LIMIT 1
) AS h
WHERE k.tag = h.tag AND k.lane = h.lane AND k.id = h.id AND k.lease = ${free} AND k.due IS NULL AND NOT k.ready`
})
