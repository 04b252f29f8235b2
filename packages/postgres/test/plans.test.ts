// What a claim and a settlement touch depends on the batch, not on what was delivered, waits or is delayed.
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import * as Statements from "../src/internal/statements.ts"
import { another, layerStore } from "./Store.ts"

const statements = Statements.make("epilogue")

interface Node {
  readonly "Node Type": string
  readonly "Relation Name"?: string | undefined
  readonly "Actual Rows": number
  readonly "Actual Loops": number
  readonly "Rows Removed by Filter"?: number | undefined
  readonly "Shared Hit Blocks": number
  readonly "Shared Read Blocks": number
  readonly Plans?: ReadonlyArray<Node> | undefined
}
const Node = Schema.Struct({
  "Node Type": Schema.String,
  "Relation Name": Schema.optional(Schema.String),
  "Actual Rows": Schema.Finite,
  "Actual Loops": Schema.Finite,
  "Rows Removed by Filter": Schema.optional(Schema.Finite),
  "Shared Hit Blocks": Schema.Finite,
  "Shared Read Blocks": Schema.Finite,
  Plans: Schema.optional(Schema.Array(Schema.suspend((): Schema.Codec<Node> => Node)))
})
const Explained = Schema.Tuple([Schema.Tuple([Schema.Tuple([Schema.Struct({ Plan: Node })])])])

/** A plan as a text to read. */
const show = (node: Node, depth = 0): string =>
  `${"  ".repeat(depth)}${node["Node Type"]} ${node["Relation Name"] ?? ""} rows=${node["Actual Rows"]}x${
    node["Actual Loops"]
  } `
  + `removed=${node["Rows Removed by Filter"] ?? 0} buffers=${node["Shared Hit Blocks"] + node["Shared Read Blocks"]}\n`
  + (node.Plans ?? []).map((child) => show(child, depth + 1)).join("")

const nodesOf = (node: Node): ReadonlyArray<Node> => [node, ...(node.Plans ?? []).flatMap(nodesOf)]

/** What a statement does with these arguments, by each kind of plan. Nothing stays of it. */
const explain = Effect.fnUntraced(function*(
  statement: string,
  args: ReadonlyArray<string>,
  mode: "force_custom_plan" | "force_generic_plan"
) {
  const sql = yield* another()
  return yield* Effect.flip(sql.withTransaction(Effect.gen(function*() {
    const settings = { ...Statements.planning, plan_cache_mode: mode }
    for (const [name, value] of Object.entries(settings)) yield* sql.unsafe(`SET LOCAL ${name} = ${value}`)
    yield* sql.unsafe(`PREPARE explained AS ${statement}`)
    const rows = yield* sql.unsafe(
      `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained (${args.join(", ")})`
    ).values
    yield* sql.unsafe("DEALLOCATE explained")
    const [[[{ Plan }]]] = yield* Schema.decodeUnknownEffect(Explained)(rows)
    // Rolls back.
    return yield* Effect.fail(Plan)
  })))
})

const batch = 100

/** Asserts that a plan is fine: no table is read as a whole, and all it touches is in proportion to the batch. */
const assertFlat = (plan: unknown, what: string, buffers = 20) => {
  const root = plan as Node
  const nodes = nodesOf(root)
  const scans = nodes.filter((node) =>
    node["Node Type"] === "Seq Scan" && ["waiting", "keyed", "delayed"].includes(node["Relation Name"] ?? "")
  )
  assert.deepStrictEqual(scans, [], `${what} reads the whole table:\n${show(root)}`)
  const touched = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
  assert.isBelow(touched, batch * buffers, `${what} touches too many buffers:\n${show(root)}`)
  for (const node of nodes) {
    const rows = (node["Actual Rows"] + (node["Rows Removed by Filter"] ?? 0)) * node["Actual Loops"]
    assert.isBelow(rows, batch * 4, `${what}: a ${node["Node Type"]} handles too many rows:\n${show(root)}`)
  }
}

it.layer(layerStore, { timeout: "3 minutes" })("plans", (it) => {
  const fill = Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    yield* sql`INSERT INTO epilogue.queue (tag, version) SELECT 'Tag' || n, 1 FROM generate_series(1, 20) AS n`
    yield* sql`INSERT INTO epilogue.queue (tag, version) SELECT 'Tag' || n, 0 FROM generate_series(1, 20) AS n`
    yield* sql`INSERT INTO epilogue.worker (id, lease_ms) VALUES (1, 30000)`
    const rows = (count: number) =>
      sql`INSERT INTO epilogue.waiting (queue, id, enqueued_at, intent, payload)
      SELECT 1 + n % 20, nextval('epilogue.position'), now(), gen_random_uuid(), repeat('x', 120)
      FROM generate_series(1, ${count}::int) AS n`
    yield* rows(1_000_000)
    yield* sql`DELETE FROM epilogue.waiting`
    yield* rows(200_000)
    yield* sql`INSERT INTO epilogue.delayed (queue, due, id, enqueued_at, intent, payload)
      SELECT 1 + n % 20, now() + n * interval '1 minute', nextval('epilogue.position'), now(), gen_random_uuid(), repeat('x', 120)
      FROM generate_series(1, 100000) AS n`
    return sql
  })
  const list = (values: ReadonlyArray<number | string>) => `'{${values.join(",")}}'`
  const tags = Array.from({ length: 20 }, (_, index) => index + 1)
  const queues = list(tags)
  const each = (value: string, count = batch) => list(Array.from({ length: count }, () => value))

  it.effect(
    "claims, settlements and promotions touch what they take, with and without statistics",
    () =>
      Effect.gen(function*() {
        const sql = yield* fill
        const { floor } = (yield* sql<{ floor: string }>`SELECT min(id)::text AS floor FROM epilogue.waiting`)[0]!
        const floors = each(floor, 20)
        const check = Effect.gen(function*() {
          for (const mode of ["force_custom_plan", "force_generic_plan"] as const) {
            const explained = (what: string, statement: string, args: ReadonlyArray<string>) =>
              Effect.map(explain(statement, args, mode), (plan) => assertFlat(plan, `${what} by ${mode}`))
            yield* explained("a claim", statements.claim, [
              "1",
              queues,
              floors,
              each(`${batch / 20}`, 20),
              each(`${batch}`, 20),
              `${batch}`,
              "1e9",
              queues
            ])
            yield* explained("a claim of one queue", statements.claim, [
              "1",
              "'{1}'",
              `'{${floor}}'`,
              `'{${batch}}'`,
              `'{${batch}}'`,
              `${batch}`,
              "1e9",
              "'{1}'"
            ])
            yield* explained("a promotion", statements.promote, [queues, "500", "0"])
            yield* explained("a beat", statements.beat, [
              "1",
              queues,
              floors,
              floors,
              queues,
              list(tags.map((tag) => `Tag${tag}`)),
              each("1", 20),
              "40"
            ])
            yield* explained("a look for suspects", statements.claimSuspect, ["1", queues, queues])
            const places = yield* sql<{ queues: string; ids: string }>`WITH few AS (
              UPDATE epilogue.waiting SET lease = 1 WHERE (queue, id) IN (
                SELECT queue, id FROM epilogue.waiting ORDER BY id LIMIT ${batch}
              ) RETURNING queue, id
            ) SELECT array_agg(queue)::text AS queues, array_agg(id)::text AS ids FROM few`
            const where = [`'${places[0]!.queues}'`, `'${places[0]!.ids}'`]
            yield* explained("a record of starts", statements.start, ["1", ...where])
            yield* explained("a settlement of successes", statements.succeed, ["1", ...where])
            yield* explained("a settlement of failures", statements.settle, [
              "1",
              ...where,
              each("1"),
              each("1000"),
              each("failed"),
              each("NULL")
            ])
            yield* sql`UPDATE epilogue.waiting SET lease = 0 WHERE lease = 1`
          }
        })
        yield* check
        yield* sql`VACUUM ANALYZE epilogue.waiting, epilogue.delayed`
        yield* check
      }),
    180_000
  )

  for (const keys of [100, 100_000]) {
    it.effect(
      `claims and settlements of ${keys} keys touch what they take, with and without statistics`,
      () =>
        Effect.gen(function*() {
          const sql = yield* PgClient.PgClient
          yield* sql`TRUNCATE epilogue.keyed`
          // Of each key the first one is ready, and then the row that a claim has not made unready yet.
          yield* sql`INSERT INTO epilogue.keyed (tag, queue, lane, id, ready, enqueued_at, intent, partition_key, payload)
            SELECT 1, 1, md5((n % ${keys}::int)::text)::uuid, nextval('epilogue.position'), n < ${keys}::int OR n % 50 = 0, now(),
              gen_random_uuid(), n % ${keys}::int, repeat('x', 120)
            FROM generate_series(0, 199999) AS n`
          const check = Effect.gen(function*() {
            for (const mode of ["force_custom_plan", "force_generic_plan"] as const) {
              const explained = (what: string, statement: string, args: ReadonlyArray<string>) =>
                // Of each lane, what comes next is looked for as well.
                Effect.map(explain(statement, args, mode), (plan) => assertFlat(plan, `${what} by ${mode}`, 40))
              yield* explained("a claim", statements.claimKeyed, [
                "1",
                "'{1}'",
                "'{0}'",
                "'{10}'",
                "'{1}'",
                `${batch}`,
                "1e9",
                "'{}'",
                "'{}'",
                `${batch}`
              ])
              const lanes = yield* sql<{ tags: string; lanes: string; ids: string }>`WITH few AS (
                UPDATE epilogue.keyed SET lease = 1 WHERE id IN (
                  SELECT id FROM (
                    SELECT id, row_number() OVER (PARTITION BY lane ORDER BY id) AS place FROM epilogue.keyed
                    WHERE partition_key::int < 20
                  ) AS first WHERE place <= ${batch / 20}
                ) RETURNING tag, lane, id
              ) SELECT array_agg(tag)::text AS tags, array_agg(lane)::text AS lanes, array_agg(id)::text AS ids FROM few`
              const where = [`'${lanes[0]!.tags}'`, `'${lanes[0]!.lanes}'`, `'${lanes[0]!.ids}'`]
              yield* explained("a claim of lanes that go on", statements.claimKeyed, [
                "1",
                "'{1}'",
                "'{0}'",
                "'{10}'",
                "'{1}'",
                `${batch}`,
                "1e9",
                where[0]!,
                where[1]!,
                `${batch}`
              ])
              yield* explained("a record of starts", statements.startKeyed, ["1", ...where])
              yield* explained("a settlement of successes", statements.succeedKeyed, ["1", ...where])
              yield* explained("a settlement of failures", statements.settleKeyed, [
                "1",
                ...where,
                each("1"),
                each("1000"),
                each("failed"),
                each("NULL"),
                each("false")
              ])
              yield* explained("a look for suspects", statements.claimSuspectKeyed, ["1", "'{1}'", "'{1}'"])
              yield* sql`UPDATE epilogue.keyed SET lease = 0 WHERE lease = 1`
            }
          })
          yield* check
          yield* sql`VACUUM ANALYZE epilogue.keyed`
          yield* check
        }),
      180_000
    )
  }
})
