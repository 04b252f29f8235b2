/**
 * Waits until the process that started it closes this process's standard input, or ends in whatever way. Then it stops
 * the server and removes its folder. No signal from a terminal reaches it, since it leads a session of its own.
 */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { rm } from "node:fs/promises"
import { join } from "node:path"
import { finished } from "node:stream/promises"
import { setTimeout } from "node:timers/promises"

const [pgCtl = "", folder = "", uid, gid] = process.argv.slice(2)
const account = uid === undefined ? {} : { uid: Number(uid), gid: Number(gid) }

const clean = async (attempts: number): Promise<void> => {
  spawnSync(pgCtl, ["stop", "--mode=immediate", `--pgdata=${join(folder, "data")}`], { cwd: folder, ...account })
  await rm(folder, { recursive: true, force: true }).catch(() => undefined)
  if (attempts === 0 || !existsSync(folder)) return
  // The process was killed while it copied or initialised, and what it left running still writes here.
  await setTimeout(100)
  return clean(attempts - 1)
}

await finished(process.stdin.resume())
await clean(100)
