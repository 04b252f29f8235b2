import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    silent: "passed-only",
    projects: [
      {
        test: {
          name: "core",
          root: "packages/core",
          include: ["test/**/*.test.ts"],
          globalSetup: "@epilogue/embedded-postgres/globalSetup",
          testTimeout: 60_000,
          typecheck: { enabled: true, include: ["test-types/**/*.test-d.ts"], tsconfig: "tsconfig.test.json" }
        }
      },
      {
        test: {
          name: "docs",
          root: "docs",
          include: ["test/**/*.test.ts"],
          globalSetup: "@epilogue/embedded-postgres/globalSetup",
          testTimeout: 60_000
        }
      },
      {
        test: {
          name: "embedded-postgres",
          root: "packages/embedded-postgres",
          include: ["test/**/*.test.ts"],
          globalSetup: "@epilogue/embedded-postgres/globalSetup",
          testTimeout: 60_000
        }
      },
      {
        test: { name: "examples", root: "packages/examples", include: ["test/**/*.test.ts"], testTimeout: 60_000 }
      },
      {
        test: {
          name: "postgres",
          root: "packages/postgres",
          include: ["test/**/*.test.ts"],
          globalSetup: "@epilogue/embedded-postgres/globalSetup",
          // Processes start and are killed, and leases run out, however busy the machine is.
          testTimeout: 180_000
        }
      },
      {
        test: { name: "runtimes", root: "packages/runtimes", include: ["test/**/*.test.ts"], testTimeout: 60_000 }
      }
    ]
  }
})
