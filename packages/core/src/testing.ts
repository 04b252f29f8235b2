/**
 * What a store of durable intents has to pass.
 *
 * @since 0.1.0
 */
export * as OutboxStoreConformance from "./testing/OutboxStoreConformance.ts"
