/**
 * What the roles of a store may do, as SQL that is safe to run again.
 */
import { literal, quote } from "./names.ts"

/** The names of roles that are there. */
interface Roles {
  /** May store intents, and see nothing of those that are stored. */
  readonly enqueuer?: string | undefined
  /** May deliver intents, and store new ones. */
  readonly worker?: string | undefined
  /** May do what `OutboxAdmin` does. */
  readonly operator?: string | undefined
  /** May migrate: the schema and its tables are its own. */
  readonly migrator?: string | undefined
}

type Rights = { readonly [Table in string]: string }

// Whoever locks a row needs the right to update a column of it.
const lock = "SELECT, UPDATE (traceparent)"

const enqueuer: Rights = {
  migration: "SELECT",
  queue: "SELECT, INSERT",
  waiting: "INSERT",
  keyed: "INSERT",
  delayed: "INSERT",
  // What these say are digests of keys, and ids.
  remembered: "SELECT, INSERT, UPDATE"
}

const worker: Rights = {
  migration: "SELECT",
  queue: "SELECT, INSERT",
  waiting: "SELECT, INSERT, UPDATE, DELETE",
  keyed: "SELECT, INSERT, UPDATE, DELETE",
  delayed: "SELECT, INSERT, UPDATE, DELETE",
  dead: "SELECT, INSERT",
  delivered: `INSERT, DELETE, ${lock}`,
  remembered: "SELECT, INSERT, UPDATE, DELETE",
  worker: "SELECT, INSERT, UPDATE, DELETE",
  permit: "SELECT, INSERT, UPDATE, DELETE",
  bucket: "SELECT, INSERT, UPDATE",
  paused: "SELECT, UPDATE (partition_key)",
  blocked: "SELECT, INSERT, UPDATE (intent)"
}

const operator: Rights = {
  migration: "SELECT",
  queue: "SELECT, INSERT",
  waiting: "SELECT, INSERT, DELETE, UPDATE (suspicion)",
  keyed: "SELECT, INSERT, DELETE, UPDATE (suspicion, ready, payload, failure, history, traceparent)",
  delayed: `DELETE, ${lock}`,
  dead: `INSERT, DELETE, ${lock}`,
  delivered: `DELETE, ${lock}`,
  remembered: "SELECT, DELETE, UPDATE (until)",
  paused: "SELECT, INSERT, DELETE",
  blocked: "SELECT, DELETE",
  worker: "SELECT",
  permit: "SELECT",
  bucket: "SELECT"
}

/** One statement, so that it takes effect as a whole whoever runs it. */
export const script = (schema: string, roles: Roles): string => {
  const statements = grants(schema, roles).map((statement) => `  ${statement};`).join("\n")
  let tag = "$epilogue$"
  while (statements.includes(tag)) tag = tag.replace("$", "$_")
  return `-- What the roles of Epilogue's store in the schema ${quote(schema)} may do. It is safe to run again.
DO ${tag}
DECLARE
  found text;
BEGIN
${statements}
END ${tag};
`
}

const grants = (schema: string, roles: Roles): ReadonlyArray<string> => {
  const name = quote(schema)
  const grantTo = (role: string | undefined, rights: Rights): ReadonlyArray<string> =>
    role === undefined ? [] : [
      `GRANT USAGE ON SCHEMA ${name} TO ${quote(role)}`,
      `GRANT USAGE ON SEQUENCE ${name}.position TO ${quote(role)}`,
      ...Object.entries(rights).map(([table, right]) => `GRANT ${right} ON ${name}.${table} TO ${quote(role)}`)
    ]
  return [
    ...(roles.migrator === undefined ? [] : own(schema, roles.migrator)),
    ...grantTo(roles.enqueuer, enqueuer),
    ...grantTo(roles.worker, worker),
    ...grantTo(roles.operator, operator)
  ]
}

/** Only the owner of a table can alter it. */
const own = (schema: string, migrator: string): ReadonlyArray<string> => [
  `IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = ${literal(schema)}) THEN
    CREATE SCHEMA ${quote(schema)};
  END IF`,
  `ALTER SCHEMA ${quote(schema)} OWNER TO ${quote(migrator)}`,
  // The sequence of an identity column goes with its table.
  `FOR found IN
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ${literal(schema)} AND c.relkind IN ('r', 'S') AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_depend AS d
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i'
    )
  LOOP
    EXECUTE 'ALTER TABLE ' || found || ' OWNER TO ' || ${literal(quote(migrator))};
  END LOOP`
]
