// Whatever the user's client does to names, values, statements and isolation, the store does what it does.
import { type PgClient, PgTypes } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { all, another, answersOf, envelope, layerStore, open, storeOver } from "./Store.ts"

/** Reads and writes no value that PostgreSQL knows. */
const makeHostileRegistry = () => {
  const registry = PgTypes.makeRegistry()
  const refuse = (): never => {
    throw new Error("A value went through the registry of the user's client")
  }
  const { bool, int2, int4, int8, float8, json, jsonb, name, numeric, text, timestamptz, uuid, varchar } = PgTypes.OID
  for (const oid of [bool, int2, int4, int8, float8, json, jsonb, name, numeric, text, timestamptz, uuid, varchar]) {
    registry.register(oid, { encode: refuse, decode: refuse })
  }
  return registry
}

const clients: ReadonlyArray<readonly [string, PgClient.PgPoolConfig]> = [
  ["that transforms names", {
    transformQueryNames: (name) => name.toUpperCase(),
    transformResultNames: (name) => `${name}?`,
    transformJson: true
  }],
  ["whose registry reads values in ways of its own", { types: makeHostileRegistry() }],
  ["whose transactions are serializable", { startupParameters: { default_transaction_isolation: "serializable" } }],
  ["that prepares no statements", { prepare: false }],
  ["that shares connections", { multiplex: true, maxConnections: 2 }],
  ["with one connection", { maxConnections: 1 }]
]

it.layer(layerStore)("clients", (it) => {
  for (const [what, config] of clients) {
    it.effect(`a client ${what} will do`, () =>
      Effect.gen(function*() {
        const client = yield* another(config)
        const store = yield* storeOver(client)
        const first = envelope()
        const keyed = envelope({ tag: first.tag, idempotencyKey: "a key" })
        const second = envelope({ tag: first.tag, idempotencyKey: "a key" })
        const later = envelope({ tag: first.tag, delay: 3_600_000 })
        const rolledBack = Effect.fail("rolled back" as const)
        yield* client.withTransaction(Effect.gen(function*() {
          yield* store.append([first])
          assert.deepStrictEqual(answersOf(yield* store.append([keyed, later])), [
            { id: keyed.id, duplicate: false },
            { id: later.id, duplicate: false }
          ])
          assert.deepStrictEqual(answersOf(yield* store.append([second])), [{ id: keyed.id, duplicate: true }])
          yield* store.mark!("here")
          yield* Effect.flip(client.withTransaction(Effect.andThen(store.mark!("there"), rolledBack)))
          assert.deepStrictEqual(yield* store.marks!, new Set(["here"]))
        }))
        const session = yield* open(store, [first.tag])
        const claimed = yield* session.claim(all)
        assert.deepStrictEqual(claimed.map(({ id }) => id), [first.id, keyed.id])
        assert.isTrue(yield* client.withTransaction(session.settleInTransaction(claimed[0]!)))
        assert.isFalse(yield* client.withTransaction(session.settleInTransaction(claimed[0]!)))
        assert.isTrue((yield* session.beat).isAlive)
        assert.deepStrictEqual(yield* session.settle([{ _tag: "Succeeded", claimed: claimed[1]! }]), [])
      }))
  }
})
