import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { spawn } from "node:child_process"
import { join } from "node:path"

const runDemo = Effect.callback<{ readonly code: number | null; readonly output: string }>((resume) => {
  const child = spawn(process.execPath, [join(import.meta.dirname, "../src/main.ts")], {
    env: { ...process.env, DATABASE_URL: undefined, FORCE_COLOR: undefined },
    stdio: ["ignore", "pipe", "inherit"]
  })
  let output = ""
  child.stdout.setEncoding("utf8").on("data", (text: string) => output += text)
  child.on("close", (code) => resume(Effect.succeed({ code, output })))
  return Effect.sync(() => child.kill())
})

it.live("the demo ends well, and says what came of each order", () =>
  Effect.gen(function*() {
    const { code, output } = yield* runDemo
    assert.strictEqual(code, 0)
    const verdicts = Array.from(output.matchAll(/^line +(\d+) {2}(\S+) +(COMMITTED|DISCARDED|unreadable)/gm), (match) =>
      match.slice(1).join(" "))
    assert.deepStrictEqual(verdicts, [
      "1 A-1001 COMMITTED",
      "2 A-1002 COMMITTED",
      "3 A-1003 COMMITTED",
      "4 A-1004 DISCARDED",
      "5 A-1005 COMMITTED",
      "6 A-1003 DISCARDED",
      "7 ? unreadable",
      "8 A-1008 DISCARDED",
      "9 A-1009 DISCARDED",
      "10 A-1010 COMMITTED",
      "11 A-1011 COMMITTED",
      "12 A-1012 COMMITTED"
    ])
    assert.match(output, /orders\.jsonl:7: Expected number at \["quantity"\]/)
    assert.match(output, /COMMIT failed \(discarded\): .*"slot_exists"/)
    assert.match(output, /interrupted, the customer has cancelled/)
    assert.match(output, /FAILED +SendReceipt +to moved\.away@example\.org: .*550/)
    assert.match(output, /never ran +SendThanks .*savepoint was rolled back/)
    assert.match(output, /They agree: each order was charged once/)

    assert.match(output, /^orders +12 lines: 7 committed, 4 discarded, 1 unreadable$/m)
    assert.match(output, /^worker 1 +killed \(SIGKILL\) after [4-7] charges/m)
    assert.match(output, /^worker 2 +took over \d+\.\d s after the kill/m)
    const [, requests, repeated] =
      /^payments +(\d+) requests under 7 idempotency keys, (\d+) of them repeated: 7 charges for 7 orders$/m.exec(
        output
      ) ?? []
    assert.strictEqual(Number(requests), 7 + Number(repeated))
    assert.isAtLeast(Number(repeated), 1)
    assert.match(output, /^mail .* 7 sent, 1 dead letter$/m)
    assert.match(output, /They agree: each committed order was charged exactly once, and no discarded order at all/)
    // Piped, so no colours.
    assert.notInclude(output, "\u001B[")
  }))
