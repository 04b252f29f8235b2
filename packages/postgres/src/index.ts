/**
 * @since 0.1.0
 */
export * as PgOutboxStore from "./PgOutboxStore.ts"
