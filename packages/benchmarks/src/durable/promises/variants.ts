/**
 * What is measured of the promises that durable intents make.
 */
import * as Array from "effect/Array"
import { count } from "../../Figures.ts"
import * as Kept from "./Kept.ts"
import type { PromisesSettings } from "./PromisesSettings.ts"
import * as Unclaimed from "./Unclaimed.ts"
import * as Variant from "./Variant.ts"

export interface Variants {
  readonly plain: Variant.Variant
  readonly hundredKeys: Variant.Variant
  /** Registered a few in a transaction, as from requests. */
  readonly few: Variant.Variant
  readonly hundredKeysFew: Variant.Variant
  readonly manyKeys: Variant.Variant
  readonly oneKey: Variant.Variant
  readonly priorities: Variant.Variant
  readonly tags: Variant.Variant
  readonly flood: Variant.Variant
  readonly concurrency: Variant.Variant
  readonly rate: Variant.Variant
  readonly keeping: Variant.Variant
  readonly kept: Variant.Variant
  readonly unclaimed: Variant.Variant
}

const keepDelivered = "7 days"

export const make = ({ kept, size, sizeOfKey, unclaimed }: PromisesSettings): Variants => {
  const many = Array.makeBy(20, (index) => Variant.noop(`Noop${index}`))
  const [flooding, single] = [Variant.noop("Flooding"), Variant.noop("Single")]
  return {
    plain: Variant.make("plain", { size }),
    hundredKeys: Variant.make("100 keys", { size, keyOf: (n) => n % 100 }),
    few: Variant.make("plain, 10 in a transaction", { size, atOnce: 10 }),
    hundredKeysFew: Variant.make("100 keys, 10 in a transaction", { size, atOnce: 10, keyOf: (n) => n % 100 }),
    manyKeys: Variant.make("10,000 keys", { size, keyOf: (n) => n % 10_000 }),
    oneKey: Variant.make("one key", { size: sizeOfKey, keyOf: () => 0 }),
    priorities: Variant.make("5 priorities", { size, priority: () => Math.floor(5 * Math.random()) }),
    tags: Variant.make("20 tags", { size, intents: many, intentOf: (n) => many[n % many.length] ?? many[0] }),
    flood: Variant.make("a flood of one tag, and a single one of another", {
      size,
      intents: [flooding, single],
      intentOf: (n) => n === size - 1 ? single : flooding
    }),
    concurrency: Variant.make("`concurrency`, 1,000", { size, limits: { concurrency: 1_000 } }),
    rate: Variant.make("`rateLimit`, a million a second", {
      size,
      limits: { rateLimit: { limit: 1_000_000, window: "1 second" } }
    }),
    keeping: Variant.make("`keepDelivered`", { size, keepDelivered }),
    kept: Variant.make(`\`keepDelivered\`, ${count(kept)} kept before`, {
      size,
      keepDelivered,
      before: Kept.fill(kept)
    }),
    unclaimed: Variant.make(`${count(unclaimed)} of another tag beside them`, {
      size,
      before: Unclaimed.fill(unclaimed)
    })
  }
}
