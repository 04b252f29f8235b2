import { EmbeddedPostgres } from "@epilogue/embedded-postgres"
import { layerServer } from "@epilogue/embedded-postgres/TestDatabase"
import { parse } from "comment-parser"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Redacted from "effect/Redacted"
import { lexer, walkTokens } from "marked"
import { execFile, spawnSync } from "node:child_process"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { promisify } from "node:util"
import { afterAll, assert, test } from "vitest"

/*
 * Every `ts` block of the guides, the READMEs and the doc comments is a program: it type checks, and it runs to its end
 * in a process of its own. One that reads DATABASE_URL gets a fresh database of a real PostgreSQL. A block marked `ts no-run` needs something a
 * test has not, and is type checked only.
 */

const root = join(import.meta.dirname, "../..")
const folder = join(import.meta.dirname, "../.examples")

const markdownOf = (path: string): string => {
  const text = readFileSync(join(root, path), "utf8")
  return path.endsWith(".md") ? text : parse(text, { spacing: "preserve" })
    .map((comment) => [comment.description].concat(comment.tags.map((tag) => tag.description)).join("\n\n"))
    .join("\n\n")
}

interface Example {
  readonly code: string
  readonly file: string
  readonly runs: boolean
}

const examplesOf = (path: string): ReadonlyArray<Example> => {
  const examples: Array<Example> = []
  void walkTokens(lexer(markdownOf(path)), (token) => {
    if (token.type !== "code") return
    const [language, ...marks] = String(token["lang"]).split(" ")
    if (language !== "ts") return
    const file = join(folder, `${path.replaceAll(/\W+/g, "-")}-${examples.length + 1}.ts`)
    examples.push({ code: String(token["text"]), file, runs: !marks.includes("no-run") })
  })
  return examples
}

const sources = globSync(["README.md", "docs/*.md", "packages/*/README.md", "packages/*/src/**/*.ts"], { cwd: root })
  .toSorted()
  .map((path) => ({ path, examples: examplesOf(path) }))
  .filter(({ examples }) => examples.length > 0)

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
for (const { examples } of sources) {
  for (const { code, file } of examples) writeFileSync(file, `${code}\nexport {}\n`)
}

const server = ManagedRuntime.make(layerServer)
afterAll(() => server.dispose())

const run = (file: string, env: NodeJS.ProcessEnv = process.env) =>
  promisify(execFile)(process.execPath, [file], { env })

const runWithDatabase = (file: string) =>
  Effect.gen(function*() {
    const { createDatabase } = yield* EmbeddedPostgres
    const url = Redacted.value(yield* createDatabase())
    yield* Effect.promise(() => run(file, { ...process.env, DATABASE_URL: url }))
  }).pipe(Effect.scoped)

test("every example type checks", { skip: sources.length === 0, timeout: 60_000 }, () => {
  const tsc = join(import.meta.dirname, "../node_modules/.bin/tsc")
  const { stdout } = spawnSync(tsc, ["--project", join(folder, "../tsconfig.examples.json")], { encoding: "utf8" })
  assert.strictEqual(stdout, "")
})

for (const { examples, path } of sources) {
  examples.forEach(({ code, file, runs }, index) => {
    test.concurrent(
      `example ${index + 1} of ${path} runs`,
      { skip: !runs, timeout: 60_000 },
      () => code.includes("DATABASE_URL") ? server.runPromise(runWithDatabase(file)) : run(file)
    )
  })
}
