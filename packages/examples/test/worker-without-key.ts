/**
 * The worker of the demo, whose requests lose their idempotency key on the way.
 */
const { fetch } = globalThis

globalThis.fetch = (input, init) => {
  const headers = new Headers(init?.headers)
  headers.delete("Idempotency-Key")
  return fetch(input, { ...init, headers })
}

await import("../src/worker.ts")
