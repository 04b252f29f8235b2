import { defineConfig } from "vitest/config"

// Core's tests, as Stryker runs them once for each mutant: in one worker, and without the two kinds that take longest,
// the random programs of the model and the largest numbers of law 14.
export default defineConfig({
  test: {
    root: "packages/core",
    include: ["test/*.test.ts", "test/sql/*.test.ts"],
    testNamePattern: /^(?!.*law 14: a )/,
    globalSetup: "@epilogue/embedded-postgres/globalSetup",
    fileParallelism: false,
    isolate: false,
    bail: 1
  }
})
