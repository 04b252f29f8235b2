/**
 * @since 0.1.0
 */
export * as Epilogue from "./Epilogue.ts"
export * as Intent from "./Intent.ts"
export * as IntentSink from "./IntentSink.ts"
export type * as Operations from "./Operations.ts"
export * as Outbox from "./Outbox.ts"
export * as OutboxAdmin from "./OutboxAdmin.ts"
export * as OutboxStore from "./OutboxStore.ts"
export * as OutboxWorker from "./OutboxWorker.ts"
export * as SqlEpilogue from "./SqlEpilogue.ts"
export * as TestEpilogue from "./TestEpilogue.ts"
