import { Schema } from "effect"
import { build } from "esbuild"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { chromium } from "playwright-core"
import { afterAll, assert, beforeAll, test } from "vitest"

const execute = promisify(execFile)
const here = (path: string) => join(import.meta.dirname, "..", path)
const nodeModules = here("node_modules")

const Manifest = Schema.fromJsonString(Schema.Struct({ version: Schema.String }))
const version = async (folder: string): Promise<string> =>
  Schema.decodeSync(Manifest)(await readFile(join(folder, "package.json"), "utf8")).version

// A folder as a user has it: the tarball of core and `effect` beside it, no workspace around them.
let home = ""

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "epilogue-runtimes-"))
  const core = await version(here("../core"))
  const tarball = here(`../../dist/epilogue-core-${core}.tgz`)
  assert.isTrue(existsSync(tarball), `${tarball} is missing: run \`pnpm check:packages\` first, it packs the packages`)
  const dependencies = { "@epilogue/core": `file:${tarball}`, effect: await version(join(nodeModules, "effect")) }
  await writeFile(join(home, "package.json"), JSON.stringify({ private: true, type: "module", dependencies }))
  await copyFile(here("smoke.ts"), join(home, "smoke.ts"))
  await execute("pnpm", ["install", "--prefer-offline"], { cwd: home })
}, 120_000)

afterAll(() => rm(home, { recursive: true, force: true }))

const program = (entry: string): string => `import { smoke } from "./smoke.ts"\n${entry}\n`

const run = async (command: string, ...args: ReadonlyArray<string>): Promise<void> => {
  await writeFile(join(home, "main.ts"), program("await smoke()"))
  await execute(command, [...args, "main.ts"], { cwd: home })
}

/** One file that holds core, `effect` and the smoke program, for runtimes that read no folder. */
const bundle = (entry: string, outfile: string) =>
  build({
    stdin: { contents: program(entry), resolveDir: home },
    bundle: true,
    format: "esm",
    outfile: join(home, outfile)
  })

test.for(["node22", "node", "node26"])("the packed core runs on %s", (name) => {
  const root = name === "node" ? here("../../node_modules") : nodeModules
  return run(join(root, name, "bin/node"))
})

test("the packed core runs on Bun", () => run(join(nodeModules, ".bin/bun")))

test("the packed core runs on Deno", () => run(join(nodeModules, ".bin/deno"), "run", "--allow-read=."))

test("the packed core runs on workerd", async () => {
  await bundle("export default { test: smoke }", "worker.js")
  await writeFile(
    join(home, "workerd.capnp"),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (services = [(name = "smoke", worker = (
  compatibilityDate = "2025-10-01",
  modules = [(name = "worker", esModule = embed "worker.js")]
))]);`
  )
  await execute(join(nodeModules, ".bin/workerd"), ["test", "workerd.capnp"], { cwd: home })
})

/** The path of a Chromium: `CHROMIUM_PATH`, or Debian's, which is installed when it is missing and this may be done. */
const chromiumPath = async (): Promise<string> => {
  const path = process.env["CHROMIUM_PATH"] ?? "/usr/bin/chromium"
  if (existsSync(path)) return path
  assert.isTrue(
    process.getuid?.() === 0 && existsSync("/usr/bin/apt-get") && process.env["CHROMIUM_PATH"] === undefined,
    `There is no Chromium at ${path}: install one, or set CHROMIUM_PATH to the one you have`
  )
  await execute("apt-get", ["update"])
  await execute("apt-get", ["install", "--yes", "--no-install-recommends", "chromium"], {
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" }
  })
  return path
}

test("the packed core runs in Chromium", { timeout: 300_000 }, async () => {
  await bundle("globalThis.smoke = smoke", "page.js")
  const script = await readFile(join(home, "page.js"), "utf8")
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js"
    response
      .setHeader("content-type", isScript ? "text/javascript" : "text/html")
      .end(isScript ? script : `<script type="module" src="/page.js"></script>`)
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const browser = await chromium.launch({
    executablePath: await chromiumPath(),
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync"
    ]
  })
  const page = await browser.newPage()
  const address = server.address()
  await page.goto(`http://127.0.0.1:${typeof address === "object" ? address?.port : ""}/`)
  await page.evaluate("smoke()")
  await browser.close()
  server.close()
})

test("the barrel brings no module that was not asked for", async () => {
  const sizeOf = async (statement: string): Promise<number> => {
    const { outputFiles: [output] } = await build({
      stdin: { contents: `${statement}\nglobalThis.used = Epilogue`, resolveDir: home },
      bundle: true,
      external: ["effect"],
      format: "esm",
      minify: true,
      write: false
    })
    assert.isDefined(output)
    return output.contents.byteLength
  }
  assert.strictEqual(
    await sizeOf(`import { Epilogue } from "@epilogue/core"`),
    await sizeOf(`import * as Epilogue from "@epilogue/core/Epilogue"`)
  )
})
