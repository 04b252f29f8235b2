/**
 * What intents cost the transaction that registers them: one row and two intents, against the row alone.
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Drain from "./Drain.ts"
import type { DurableQueue } from "./DurableContender.ts"
import * as Payload from "./Payload.ts"

const intents = 2

/** Turn and turn about, so that a slow moment hits both. */
const blocks = 4

interface Transactions {
  /** Transactions a second. */
  readonly without: number
  readonly with: number
}

const perSecond = Effect.fnUntraced(
  function*(fibers: number, transactions: ReadonlyArray<Effect.Effect<void, unknown>>) {
    const start = process.hrtime.bigint()
    yield* Effect.forEach(transactions, (transaction) => transaction, { concurrency: fibers, discard: true })
    return transactions.length / (Number(process.hrtime.bigint() - start) / 1e9)
  }
)

const mean = (rates: ReadonlyArray<number>) => rates.length / rates.reduce((sum, rate) => sum + 1 / rate, 0)

/** `count` transactions of each kind. */
export const measure = Effect.fnUntraced(function*(queue: DurableQueue, fibers: number, count: number) {
  const sql = yield* PgClient
  yield* sql`CREATE TABLE orders (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, total int4)`
  const row = Effect.asVoid(sql`INSERT INTO orders (customer, total) VALUES (${"customer@example.org"}, ${1999})`)
  const block = Math.ceil(count / blocks)
  const plain = Array.from({ length: block }, () => sql.withTransaction(row))
  // The pool opens its connections before the clock starts.
  yield* perSecond(fibers, plain.slice(0, 2 * fibers))

  const withouts: Array<number> = []
  const withs: Array<number> = []
  for (let index = 0; index < blocks; index++) {
    const payloads = Payload.many(block * intents, index * block * intents)
    const registering = plain.map((_, each) =>
      queue.transaction(row, payloads.slice(each * intents, (each + 1) * intents))
    )
    withouts.push(yield* perSecond(fibers, plain))
    withs.push(yield* perSecond(fibers, registering))
  }
  yield* Drain.verify(queue, blocks * block * intents)
  return { without: mean(withouts), with: mean(withs) } satisfies Transactions
})
