/**
 * The page of the guide that shows the results.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"

const page = new URL("../../../docs/benchmarks.md", import.meta.url)

/** Puts a report between the marks of its name, in place of the last one. */
export const write = Effect.fnUntraced(function*(name: string, report: string) {
  const fileSystem = yield* FileSystem.FileSystem
  const text = yield* fileSystem.readFileString(page.pathname)
  const begin = `<!-- ${name}: begin -->`
  const end = `<!-- ${name}: end -->`
  const [before, rest = ""] = text.split(begin)
  const [, after = ""] = rest.split(end)
  yield* fileSystem.writeFileString(page.pathname, `${before}${begin}\n\n${report}\n\n${end}${after}`)
})
