/**
 * How the tables of a store come to be, as SQL that is safe to run again, by many at once.
 */
import { quote } from "./statements.ts"

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
const first: Migration = {
  version: 1,
  oldest: 1,
  text: `
CREATE TABLE $schema.queue (
  id int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tag text NOT NULL,
  version int4 NOT NULL,
  UNIQUE (tag, version)
);
CREATE SEQUENCE $schema.position;
CREATE TABLE $schema.waiting (
  queue int4 NOT NULL,
  failures int4 NOT NULL DEFAULT 0,
  id int8 NOT NULL,
  lease int8 NOT NULL DEFAULT 0,
  enqueued_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  crashes int4 NOT NULL DEFAULT 0,
  due timestamptz,
  undecodable_since timestamptz,
  traceparent text,
  failure text,
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
CREATE TABLE $schema.delayed (
  queue int4 NOT NULL,
  failures int4 NOT NULL DEFAULT 0,
  due timestamptz NOT NULL,
  id int8 NOT NULL,
  enqueued_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  crashes int4 NOT NULL DEFAULT 0,
  undecodable_since timestamptz,
  traceparent text,
  failure text,
  payload text NOT NULL,
  PRIMARY KEY (queue, due, id)
) WITH (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  vacuum_truncate = off
);
CREATE TABLE $schema.dead (
  queue int4 NOT NULL,
  failures int4 NOT NULL,
  id int8 NOT NULL,
  enqueued_at timestamptz NOT NULL,
  died_at timestamptz NOT NULL,
  intent uuid NOT NULL,
  crashes int4 NOT NULL,
  reason text NOT NULL,
  traceparent text,
  failure text NOT NULL,
  payload text NOT NULL,
  PRIMARY KEY (queue, id)
);
CREATE TABLE $schema.remembered (
  digest uuid PRIMARY KEY,
  intent uuid NOT NULL,
  until timestamptz NOT NULL
);
CREATE INDEX remembered_until ON $schema.remembered (until);
CREATE TABLE $schema.worker (
  id int8 PRIMARY KEY,
  beat int8 NOT NULL DEFAULT 0,
  lease_ms float8 NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);`
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
