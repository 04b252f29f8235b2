/**
 * @since 0.1.0
 */
export * as Epilogue from "./Epilogue.ts"
export * as SqlEpilogue from "./SqlEpilogue.ts"
export * as TestEpilogue from "./TestEpilogue.ts"
