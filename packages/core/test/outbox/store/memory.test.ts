import { describe, it } from "@effect/vitest"
import { Duration } from "effect"
import { TestClock } from "effect/testing"
import * as OutboxStore from "../../../src/OutboxStore.ts"
import { OutboxStoreConformance } from "../../../src/testing.ts"

OutboxStoreConformance.suite({
  name: "the memory store",
  describe,
  it: it.effect,
  layer: OutboxStore.layerMemory,
  capabilities: { durable: false, transactional: false, ordered: true, priorities: true },
  elapse: TestClock.adjust,
  moment: Duration.seconds(1)
})
