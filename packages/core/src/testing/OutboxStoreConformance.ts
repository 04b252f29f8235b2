/**
 * The tests that every `OutboxStore` has to pass.
 *
 * **Example** (Testing a store)
 *
 * ```ts no-run
 * import { describe, it } from "@effect/vitest"
 * import { OutboxStore } from "@epilogue/core"
 * import { OutboxStoreConformance } from "@epilogue/core/testing"
 * import { Duration } from "effect"
 * import { TestClock } from "effect/testing"
 *
 * OutboxStoreConformance.suite({
 *   name: "my store",
 *   describe,
 *   it: it.effect,
 *   layer: OutboxStore.layerMemory,
 *   capabilities: { durable: false, transactional: false, ordered: true, priorities: true },
 *   elapse: TestClock.adjust,
 *   moment: Duration.seconds(1)
 * })
 * ```
 *
 * @since 0.1.0
 */
import type * as Arbitrary from "effect/Arbitrary"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Capabilities } from "../IntentSink.ts"
import { OutboxStore } from "../OutboxStore.ts"
import { crashes } from "./crashes.ts"
import { deliveries } from "./deliveries.ts"
import { Fixture } from "./Fixture.ts"
import { leases } from "./leases.ts"
import { limits } from "./limits.ts"
import { operators } from "./operators.ts"
import { ordering, priorities } from "./ordering.ts"
import { randomHistories } from "./randomHistories.ts"
import { settlements } from "./settlements.ts"
import { transactions } from "./transactions.ts"
import { wakes } from "./wakes.ts"
import { workers } from "./workers.ts"

/**
 * What the suite needs to know of a store, and of the test runner.
 *
 * @category options
 * @since 0.1.0
 */
export interface SuiteOptions {
  /** What the tests call the store. */
  readonly name: string
  /** `describe` of the test runner. */
  readonly describe: (name: string, tests: () => void) => unknown
  /** `it.effect` of `@effect/vitest`, or `it.live` for a store whose time is not `TestClock`'s. */
  readonly it: (name: string, test: () => Effect.Effect<void, unknown, Scope.Scope>) => void
  /** The store. It is built for each test, and what others left in it does not matter. */
  readonly layer: Layer.Layer<OutboxStore, unknown>
  /** The same store, which keeps what was delivered for so long. Without it, that it does so is not tested. */
  readonly layerKeeping?: ((keepDelivered: Duration.Duration) => Layer.Layer<OutboxStore, unknown>) | undefined
  /** What the store promises, which says which tests there are. */
  readonly capabilities: Capabilities
  /** Lets so much time pass, for the store and for the test: `TestClock.adjust`, or `Effect.sleep`. */
  readonly elapse: (duration: Duration.Duration) => Effect.Effect<void>
  /**
   * The unit of the suite's delays and leases. Where time is real, a store must be able to do a few things in it, however
   * busy the machine is: tests of what is not due yet would fail otherwise.
   */
  readonly moment: Duration.Duration
  /**
   * How many random histories are tried: 500 unless set. One on which the store and its model part is printed, with a
   * token; given here as `replay`, the same one is lived again.
   */
  readonly histories?: Arbitrary.CheckOptions | undefined
}

/** Registers a test. `reopened` runs something with the store built anew. */
export type Test = (
  name: string,
  body: (
    fixture: Fixture,
    reopened: <A, E>(
      use: (store: OutboxStore.Service) => Effect.Effect<A, E, Scope.Scope>
    ) => Effect.Effect<A, unknown>
  ) => Effect.Effect<void, unknown, Scope.Scope>
) => void

/**
 * Registers the tests of a store.
 *
 * @category testing
 * @since 0.1.0
 */
export const suite = (options: SuiteOptions): void => {
  const { capabilities, describe, elapse, it, layer, moment, name } = options

  const opened = <A, E>(use: (store: OutboxStore.Service) => Effect.Effect<A, E, Scope.Scope>) =>
    Effect.flatMap(OutboxStore, use).pipe(Effect.scoped, Effect.provide(layer, { local: true }))
  const test: Test = (fact, body) => it(fact, () => opened((store) => body(new Fixture(store, elapse, moment), opened)))

  const parts: ReadonlyArray<readonly [string, boolean, (test: Test, options: SuiteOptions) => void]> = [
    ["deliveries", true, deliveries],
    ["settlements", true, settlements],
    ["leases", true, leases],
    ["wakes", true, wakes],
    ["crashes", true, crashes],
    ["limits", true, limits],
    ["operators", true, operators],
    ["order by key", capabilities.ordered, ordering],
    ["priorities", capabilities.priorities, priorities],
    ["transactions", capabilities.transactional, transactions],
    ["workers", true, workers],
    ["random histories", true, randomHistories]
  ]
  describe(name, () => {
    for (const [part, isPromised, register] of parts) {
      if (isPromised) describe(part, () => register(test, options))
    }
  })
}
