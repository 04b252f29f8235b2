/**
 * Ways of keeping intents that wait and intents that run in tables, each with the statements that enqueue, claim and settle.
 *
 * **Details**
 *
 * - `enqueue` takes the queues, the intents' own ids and the payloads.
 * - `claim` takes for each queue its number, the lowest id to look at and how many rows it may give; and the session. It
 *   answers with `columns`.
 * - `settle` takes the queues and ids that are done, and the session, which must hold them. It answers with the ids that were
 *   there.
 */

export interface Layout {
  readonly name: string
  readonly tables: ReadonlyArray<string>
  readonly enqueue: string
  readonly claim: string
  readonly settle: string
}

/** What a claim hands out, in this order. */
const columns = ["queue", "id", "attempt", "intent", "enqueued_at", "trace", "failure", "payload"]

const listed = (table?: string) =>
  columns.map((column) => table === undefined ? column : `${table}.${column}`).join(", ")

const enqueue = `INSERT INTO waiting (queue, intent, payload)
  SELECT * FROM unnest($1::int4[], $2::text[]::uuid[], $3::text[])`

const lock = "FOR UPDATE SKIP LOCKED"

/** The rows at the head of each queue. */
const heads = (what: string, free: string, locked = lock) =>
  `SELECT head.* FROM unnest($1::int4[], $2::int8[], $3::int4[]) asked (queue, floor, quota), LATERAL (
    SELECT ${what} FROM waiting w WHERE w.queue = asked.queue AND w.id >= asked.floor AND ${free}
    ORDER BY w.id LIMIT asked.quota ${locked}) head`

/**
 * The rows of `table` that are named one by one. Without the limit, the planner is free to join the other way round: while
 * it believes that nothing is leased, it reads the whole table.
 */
const named = (table: string, keys: string) =>
  `SELECT found.ctid FROM ${keys}, LATERAL (
    SELECT t.ctid FROM ${table} t WHERE t.queue = key.queue AND t.id = key.id LIMIT 1) found`

const keys = "unnest($1::int4[], $2::int8[]) key (queue, id)"

/** Claims of all sessions one after the other, each with a look at what the one before has left. */
const oneAtATime = (claim: string) =>
  `CREATE FUNCTION claim(int4[], int8[], int4[], int8) RETURNS TABLE (
    queue int4, id int8, attempt int4, intent uuid, enqueued_at timestamptz, trace text, failure text, payload text
  ) LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
      PERFORM pg_advisory_xact_lock(1);
      RETURN QUERY ${claim};
    END $$`

const claimByFunction = "SELECT * FROM claim($1::int4[], $2::int8[], $3::int4[], $4::int8)"

const key = "queue int4 NOT NULL, id int8 GENERATED ALWAYS AS IDENTITY"
const rest = `attempt int4 NOT NULL DEFAULT 0, intent uuid NOT NULL, enqueued_at timestamptz NOT NULL DEFAULT now(),
  trace text, failure text, payload text NOT NULL`

const withLease = (storage: string) =>
  `CREATE TABLE waiting (${key}, lease int8 NOT NULL DEFAULT 0, ${rest}, PRIMARY KEY (queue, id)) WITH (${storage})`

const update = (locked?: string, condition = "true") =>
  `UPDATE waiting SET lease = $4 WHERE ctid = ANY (ARRAY (${heads("w.ctid", "w.lease = 0", locked)})) AND ${condition}
    RETURNING ${listed()}`

/** A lease in the row, set in place. */
export const inRow = (storage: string, name = `lease in the row, ${storage}`): Layout => ({
  name,
  tables: [withLease(storage)],
  enqueue,
  claim: update(),
  settle: `DELETE FROM waiting WHERE ctid = ANY (ARRAY (${named("waiting", keys)})) AND lease = $3
    RETURNING id`
})

/** A lease in the row, its columns in the order that leaves no padding. */
export const inRowPacked = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, no padding`),
  tables: [
    `CREATE TABLE waiting (queue int4 NOT NULL, attempt int4 NOT NULL DEFAULT 0, id int8 GENERATED ALWAYS AS IDENTITY,
      lease int8 NOT NULL DEFAULT 0, enqueued_at timestamptz NOT NULL DEFAULT now(), intent uuid NOT NULL,
      trace text, failure text, payload text NOT NULL, PRIMARY KEY (queue, id)) WITH (${storage})`
  ]
})

/** A lease in the row, whose rows need no lock because one session claims at a time. */
export const inRowOneAtATime = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, one claim at a time`),
  tables: [withLease(storage), oneAtATime(update("", "waiting.lease = 0"))],
  claim: claimByFunction
})

/** A lease in the row, settled by a lateral join that the planner may turn round. */
export const inRowFree = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, settled without LIMIT`),
  settle: `DELETE FROM waiting WHERE ctid = ANY (ARRAY (SELECT found.ctid FROM ${keys}, LATERAL (
    SELECT t.ctid FROM waiting t WHERE t.queue = key.queue AND t.id = key.id AND t.lease = $3) found)) RETURNING id`
})

/** A lease in the row, settled by one look into the index for each queue. */
export const inRowPerQueue = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, settled by queue`),
  settle: `DELETE FROM waiting WHERE ctid = ANY (ARRAY (
      SELECT found.ctid FROM (SELECT queue, array_agg(id) AS ids FROM ${keys} GROUP BY queue) asked, LATERAL (
        SELECT t.ctid FROM waiting t WHERE t.queue = asked.queue AND t.id = ANY (asked.ids) OFFSET 0) found
    )) AND lease = $3 RETURNING id`
})

/** A lease in the row, settled by a list of queues and one of ids, which is enough since an id is in one queue only. */
export const inRowListed = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, settled by lists`),
  settle: "DELETE FROM waiting WHERE queue = ANY ($1::int4[]) AND id = ANY ($2::int8[]) AND lease = $3 RETURNING id"
})

/** A lease in the row, settled by the statement that comes to mind first. */
export const inRowJoined = (storage: string): Layout => ({
  ...inRow(storage, `lease in the row, ${storage}, settled by a join`),
  settle:
    `DELETE FROM waiting w USING ${keys} WHERE w.queue = key.queue AND w.id = key.id AND w.lease = $3 RETURNING w.id`
})

const claimed = "CREATE TABLE claimed (queue int4, id int8, session int8 NOT NULL, PRIMARY KEY (queue, id))"
const untouched = `CREATE TABLE waiting (${key}, ${rest}, PRIMARY KEY (queue, id))`

const insertClaims = (locked?: string) =>
  `WITH head AS MATERIALIZED (${
    heads(listed("w"), "NOT EXISTS (SELECT FROM claimed c WHERE c.queue = w.queue AND c.id = w.id)", locked)
  }), taken AS (
    INSERT INTO claimed AS c SELECT head.queue, head.id, $4 FROM head ON CONFLICT DO NOTHING RETURNING c.queue, c.id
  ) SELECT ${listed("head")} FROM head JOIN taken ON taken.queue = head.queue AND taken.id = head.id`

/** A lease in a narrow table of its own. The lock keeps sessions apart; the primary key is what makes a claim unique. */
export const beside: Layout = {
  name: "lease beside the row",
  tables: [untouched, claimed],
  enqueue,
  claim: insertClaims(),
  settle: `WITH key AS (
      DELETE FROM claimed WHERE ctid = ANY (ARRAY (${named("claimed", keys)})) AND session = $3
      RETURNING queue, id
    ) DELETE FROM waiting WHERE ctid = ANY (ARRAY (${named("waiting", "key")})) RETURNING id`
}

/** A lease in a narrow table of its own, where the waiting row is not even locked. */
export const besideOneAtATime: Layout = {
  ...beside,
  name: "lease beside the row, one claim at a time",
  tables: [untouched, claimed, oneAtATime(insertClaims(""))],
  claim: claimByFunction
}

/** A claim moves the row to a table of those that run. */
export const move: Layout = {
  name: "move",
  tables: [
    untouched,
    `CREATE TABLE running (session int8, queue int4 NOT NULL, id int8, ${rest}, PRIMARY KEY (session, id))`
  ],
  enqueue,
  claim: `WITH moved AS (
      DELETE FROM waiting WHERE ctid = ANY (ARRAY (${heads("w.ctid", "true")})) RETURNING ${listed()}
    ) INSERT INTO running (session, ${listed()}) SELECT $4, ${listed()} FROM moved RETURNING ${listed()}`,
  settle: "DELETE FROM running WHERE session = $3 AND id = ANY ($2::int8[]) RETURNING id"
}

/** What most queues do: a state with an index of those that wait. */
export const state: Layout = {
  name: "state column",
  tables: [
    `CREATE TABLE waiting (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue int4 NOT NULL, state int2 NOT NULL DEFAULT 0,
      session int8, ${rest})`,
    "CREATE INDEX ON waiting (queue, id) WHERE state = 0"
  ],
  enqueue,
  claim: `UPDATE waiting SET state = 1, session = $4 WHERE id = ANY (ARRAY (${heads("w.id", "w.state = 0")}))
    RETURNING ${listed()}`,
  settle: "DELETE FROM waiting WHERE id = ANY ($2::int8[]) AND state = 1 AND session = $3 RETURNING id"
}

/** A claim moves its rows into one. It is settled as a whole, which is the best that it can do. */
export const batch: Layout = {
  name: "batch row",
  tables: [
    untouched,
    `CREATE TABLE batch (session int8, first int8, ids int8[] NOT NULL, rows jsonb NOT NULL, PRIMARY KEY (session, first))`
  ],
  enqueue,
  claim: `WITH moved AS MATERIALIZED (
      DELETE FROM waiting WHERE ctid = ANY (ARRAY (${heads("w.ctid", "true")})) RETURNING ${listed()}
    ), kept AS (
      INSERT INTO batch SELECT $4, min(id), array_agg(id), jsonb_agg(moved) FROM moved HAVING count(*) > 0
    ) SELECT ${listed()} FROM moved`,
  settle: `WITH gone AS (DELETE FROM batch WHERE session = $3 AND first = ANY ($2::int8[]) RETURNING ids)
    SELECT unnest(ids) FROM gone`
}

/** No lease at all: what is claimed is gone. Nothing that survives a crash is cheaper. */
export const none: Layout = {
  name: "no lease (not an outbox)",
  tables: [untouched],
  enqueue,
  claim: `DELETE FROM waiting WHERE ctid = ANY (ARRAY (${
    heads("w.ctid", "true")
  })) AND $4::int8 > 0 RETURNING ${listed()}`,
  settle: "SELECT unnest($2::int8[])"
}
