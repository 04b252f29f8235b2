/**
 * How the tables of a store come to be, as SQL that is safe to run again, by many at once.
 */
import { quote } from "./sql/names.ts"

/** A step from one version of the tables to the next. It only ever goes forward, and is never edited once released. */
interface Migration {
  readonly version: number
  /** The oldest version that a program may have been written for and still work on these tables, beside newer ones. */
  readonly oldest: number
  /** The statements, with `$schema` for the schema, quoted. */
  readonly text: string
}

// What a claim rewrites is the lease alone, and no index names it: with room left in each page that stays within the page
// (HOT). The payload comes last, where a rewrite of the lease leaves it out of the log. Rows come and go all the time, so
// vacuum may start with the first thousand dead ones, and never takes the lock it needs to give back pages.
//
// A lease is 0, or the session that has claimed the row, or that number below zero once it has started; -1 is a suspect that
// nobody has claimed. `suspicion` is 1 where a session that held the row was ended, 2 for a suspect, 3 for what is cancelled.
const first: Migration = {
  version: 1,
  oldest: 1,
  text: `
CREATE TABLE $schema.queue (
  id int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tag text NOT NULL,
  version int4 NOT NULL,
  priority int4 NOT NULL DEFAULT 0,
  UNIQUE (tag, version, priority)
);
COMMENT ON TABLE $schema.queue IS 'Where a tag has its rows, by version and priority. Version 0 is the tag as a whole.';
CREATE SEQUENCE $schema.position;
CREATE TABLE $schema.waiting (
  queue int4 NOT NULL,
  failures int4 NOT NULL DEFAULT 0,
  id int8 NOT NULL,
  lease int8 NOT NULL DEFAULT 0,
  enqueued_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  crashes int4 NOT NULL DEFAULT 0,
  suspicion int2 NOT NULL DEFAULT 0,
  due timestamptz,
  undecodable_since timestamptz,
  traceparent text,
  failure text,
  history jsonb,
  payload text NOT NULL,
  PRIMARY KEY (queue, id)
) WITH (
  fillfactor = 45,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 100000,
  vacuum_truncate = off
);
COMMENT ON TABLE $schema.waiting IS 'What is due, and has no partition key.';
CREATE INDEX waiting_suspicion ON $schema.waiting (suspicion, queue, id) WHERE suspicion >= 2;
CREATE TABLE $schema.keyed (
  tag int4 NOT NULL,
  queue int4 NOT NULL,
  lane uuid NOT NULL,
  id int8 NOT NULL,
  lease int8 NOT NULL DEFAULT 0,
  enqueued_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  failures int4 NOT NULL DEFAULT 0,
  crashes int4 NOT NULL DEFAULT 0,
  suspicion int2 NOT NULL DEFAULT 0,
  ready boolean NOT NULL DEFAULT true,
  due timestamptz,
  undecodable_since timestamptz,
  partition_key text NOT NULL,
  traceparent text,
  failure text,
  history jsonb,
  payload text NOT NULL,
  PRIMARY KEY (tag, lane, id)
) WITH (
  fillfactor = 45,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 100000,
  vacuum_truncate = off
);
COMMENT ON TABLE $schema.keyed IS 'What is due and has a partition key, in the order of its key; and what holds its key.';
CREATE INDEX keyed_ready ON $schema.keyed (queue, id) WHERE ready;
CREATE INDEX keyed_due ON $schema.keyed (queue, due) WHERE due IS NOT NULL;
CREATE INDEX keyed_suspicion ON $schema.keyed (suspicion, queue, id) WHERE suspicion >= 2;
CREATE TABLE $schema.delayed (
  queue int4 NOT NULL,
  failures int4 NOT NULL DEFAULT 0,
  due timestamptz NOT NULL,
  id int8 NOT NULL,
  enqueued_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  crashes int4 NOT NULL DEFAULT 0,
  tag int4,
  lane uuid,
  undecodable_since timestamptz,
  partition_key text,
  traceparent text,
  failure text,
  history jsonb,
  payload text NOT NULL,
  PRIMARY KEY (queue, due, id)
) WITH (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  vacuum_truncate = off
);
COMMENT ON TABLE $schema.delayed IS 'What is not due yet, and holds no key.';
CREATE TABLE $schema.dead (
  queue int4 NOT NULL,
  failures int4 NOT NULL,
  id int8 NOT NULL,
  enqueued_at timestamptz NOT NULL,
  died_at timestamptz NOT NULL,
  intent uuid PRIMARY KEY,
  crashes int4 NOT NULL,
  tag int4,
  lane uuid,
  reason text NOT NULL,
  partition_key text,
  traceparent text,
  failure text NOT NULL,
  history jsonb,
  payload text NOT NULL
);
CREATE INDEX dead_queue ON $schema.dead (queue, intent);
CREATE INDEX dead_lane ON $schema.dead (lane) WHERE lane IS NOT NULL;
CREATE TABLE $schema.delivered (
  queue int4 NOT NULL,
  failures int4 NOT NULL,
  ended_at timestamptz NOT NULL,
  enqueued_at timestamptz NOT NULL,
  intent uuid PRIMARY KEY,
  crashes int4 NOT NULL,
  lane uuid,
  partition_key text,
  traceparent text,
  failure text,
  history jsonb,
  payload text NOT NULL
);
CREATE INDEX delivered_ended_at ON $schema.delivered (ended_at);
CREATE INDEX delivered_lane ON $schema.delivered (lane) WHERE lane IS NOT NULL;
CREATE TABLE $schema.remembered (
  digest uuid PRIMARY KEY,
  intent uuid NOT NULL,
  lane uuid,
  until timestamptz NOT NULL
);
CREATE INDEX remembered_until ON $schema.remembered (until);
CREATE INDEX remembered_lane ON $schema.remembered (lane) WHERE lane IS NOT NULL;
CREATE TABLE $schema.worker (
  id int8 PRIMARY KEY,
  beat int8 NOT NULL DEFAULT 0,
  lease_ms float8 NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  beat_at timestamptz NOT NULL DEFAULT now(),
  queues int4[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE TABLE $schema.paused (
  tag int4 NOT NULL,
  lane uuid NOT NULL,
  partition_key text,
  PRIMARY KEY (tag, lane)
);
COMMENT ON TABLE $schema.paused IS 'The tags and keys that an operator has paused. A lane of zeros is the tag as a whole.';
CREATE TABLE $schema.blocked (
  tag int4 NOT NULL,
  lane uuid NOT NULL,
  intent uuid NOT NULL,
  PRIMARY KEY (tag, lane)
);
COMMENT ON TABLE $schema.blocked IS 'The keys that wait for what becomes of a dead letter.';
CREATE TABLE $schema.bucket (
  tag int4 PRIMARY KEY,
  most int4,
  size float8 NOT NULL,
  rate float8 NOT NULL,
  tokens float8 NOT NULL,
  filled_at timestamptz NOT NULL,
  turn float8 NOT NULL DEFAULT 0
);
CREATE TABLE $schema.permit (
  tag int4 NOT NULL,
  session int8 NOT NULL,
  running int4 NOT NULL,
  granted int4 NOT NULL,
  wanted int4 NOT NULL,
  wanted_tokens int4 NOT NULL,
  asked_at timestamptz NOT NULL,
  granted_turn float8 NOT NULL,
  tokens_turn float8 NOT NULL,
  PRIMARY KEY (tag, session)
);
COMMENT ON TABLE $schema.bucket IS 'The limits of a tag as they were last told, and what is left of its rate.';
COMMENT ON TABLE $schema.permit IS 'How many deliveries of a tag with a limit a session may run at once, and wants to.';`
}

const migrations: ReadonlyArray<Migration> = [first]

/** The version of the tables that this program is written for. */
export const version = Math.max(...migrations.map((migration) => migration.version))

/** What brings a schema to `version`, inside one transaction. Each is safe to run again. */
export const statements = (schema: string): ReadonlyArray<string> => {
  const name = quote(schema)
  const text = `'${schema.replaceAll("'", "''")}'`
  return [
    // Whoever comes second waits, and then finds everything in place.
    `SELECT pg_advisory_xact_lock(hashtextextended('epilogue migrate ' || ${text}, 0))`,
    // `CREATE SCHEMA IF NOT EXISTS` asks for the right to create one even where it is there.
    `DO $epilogue$ BEGIN
IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = ${text}) THEN
CREATE SCHEMA ${name};
END IF;
END $epilogue$`,
    `CREATE TABLE IF NOT EXISTS ${name}.migration (
  version int4 PRIMARY KEY,
  oldest int4 NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)`,
    ...migrations.map((migration) =>
      `DO $epilogue$ BEGIN
IF NOT EXISTS (SELECT FROM ${name}.migration WHERE version >= ${migration.version}) THEN
${migration.text.replaceAll("$schema", () => name).trim()}
INSERT INTO ${name}.migration (version, oldest) VALUES (${migration.version}, ${migration.oldest});
END IF;
END $epilogue$`
    )
  ]
}

/** The same as a script, for those who run their own. */
export const script = (schema: string): string =>
  [
    `-- Epilogue's tables, version ${version}, in the schema ${quote(schema)}. It is safe to run again.`,
    ...["BEGIN", ...statements(schema), "COMMIT"].map((statement) => `${statement};`)
  ].join("\n") + "\n"
