/**
 * Vitest's global setup: starts one PostgreSQL server per run, however many projects name this file, and tells its URL
 * to `TestDatabase`.
 */
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import type { TestProject } from "vitest/node"
import * as EmbeddedPostgres from "./EmbeddedPostgres.ts"

const globalSetup = async (project: TestProject): Promise<(() => Promise<void>) | undefined> => {
  const root = project.vitest.getRootProject()
  if (root.getProvidedContext().postgresUrl !== undefined) return undefined
  const runtime = ManagedRuntime.make(EmbeddedPostgres.layer)
  const { url } = await runtime.runPromise(EmbeddedPostgres.EmbeddedPostgres)
  root.provide("postgresUrl", Redacted.value(url))
  return () => runtime.dispose()
}

export default globalSetup
