import { parse } from "comment-parser"
import { lexer, walkTokens } from "marked"
import { spawnSync } from "node:child_process"
import { globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, test } from "vitest"

/*
 * Every `ts` block of the guides, the READMEs and the doc comments is a program: it type checks, and it runs to its end.
 * A block marked `ts no-run` needs something a test has not, and is type checked only.
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

test.skipIf(sources.length === 0)("every example type checks", () => {
  const tsc = join(import.meta.dirname, "../node_modules/.bin/tsc")
  const { stdout } = spawnSync(tsc, ["--project", join(folder, "../tsconfig.examples.json")], { encoding: "utf8" })
  assert.strictEqual(stdout, "")
})

for (const { examples, path } of sources) {
  examples.forEach(({ file, runs }, index) => {
    test(`example ${index + 1} of ${path} runs`, { skip: !runs }, () => import(file))
  })
}
