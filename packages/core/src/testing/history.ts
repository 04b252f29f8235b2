/**
 * Random histories of a store as data: what they are, how they are generated and printed.
 */
import * as Arbitrary from "effect/Arbitrary"
import * as Schema from "effect/Schema"
import type { Capabilities } from "../IntentSink.ts"

/** What is appended. Times are in moments. */
export type Item = typeof Item.Type

const Item = Schema.Struct({
  tag: Schema.Literals([0, 0, 1]),
  version: Schema.Literals([1, 1, 1, 2]),
  partitionKey: Schema.Literals(["none", "none", "a", "b"]),
  idempotencyKey: Schema.Literals(["none", "none", "none", "x", "y"]),
  remember: Schema.Literals([1, 5, 1_000]),
  priority: Schema.Literals([0, 0, 0, 1, -1]),
  delay: Schema.Literals([0, 0, 0, 2, 5])
})

/** Which worker does it. */
const worker = Schema.Literals([0, 1, 2])

const ending = Schema.Literals([
  "Succeeded",
  "Succeeded",
  "Succeeded",
  "Failed",
  "Snoozed",
  "Undecodable",
  "Dead",
  "Blocked",
  "Blocked",
  "Released"
])

/** What an operator means. */
const of = Schema.Struct({
  tag: Schema.Literals([0, 0, 1]),
  which: Schema.Literals(["all", "key a", "key b", "the last three"])
})

/** One thing that happens. What can't happen where it stands is passed over. */
export type Step = typeof Step.Type

const Append = Schema.TaggedStruct("Append", {
  items: Schema.Array(Item).check(Schema.isMinLength(1), Schema.isMaxLength(4)),
  fate: Schema.Literals(["commits", "commits", "commits", "rolls back", "half of it rolls back"])
})
const Claim = Schema.TaggedStruct("Claim", { worker, rows: Schema.Literals([1, 2, 3, 100]) })
const Settle = Schema.TaggedStruct("Settle", {
  worker,
  /** How many of those that it believes to hold, from the first or the last. */
  count: Schema.Literals([1, 1, 2, 100]),
  isFromLast: Schema.Boolean,
  ending,
  delay: Schema.Literals([0, 2, 5])
})
/**
 * It stops beating for longer than its lease, and another worker ends its session. Then it goes on with a new session, or
 * does not know that yet.
 */
const Crash = Schema.TaggedStruct("Crash", {
  worker,
  observer: worker,
  /** What it does before. */
  first: Schema.Literals(["nothing", "starts all", "starts all", "claims a suspect", "claims a suspect"]),
  restarts: Schema.Boolean
})
const ClaimSuspect = Schema.TaggedStruct("ClaimSuspect", { worker })
/** The session believes to run some of those that it was permitted. */
const Permit = Schema.TaggedStruct("Permit", {
  worker,
  running: Schema.Literals([0, 1, 5]),
  concurrency: Schema.Literals([0, 1, 2, 5]),
  tokens: Schema.Literals([0, 1, 3, 5])
})
const Step = Schema.Union([
  ...Array<typeof Append>(7).fill(Append),
  ...Array<typeof Claim>(10).fill(Claim),
  ...Array<typeof Settle>(8).fill(Settle),
  /** A worker settles what another one believes to hold, or what it has settled before. */
  Schema.TaggedStruct("SettleWrongly", { worker, of: worker, ending }),
  Schema.TaggedStruct("SettleInTransaction", { worker, fate: Schema.Literals(["commits", "rolls back"]) }),
  /** A worker puts on record that something has started, which it may have lost, or another one has. */
  Schema.TaggedStruct("Start", { worker, of: worker, count: Schema.Literals([1, 2, 100]) }),
  ...Array<typeof ClaimSuspect>(4).fill(ClaimSuspect),
  ...Array<typeof Crash>(6).fill(Crash),
  ...Array<typeof Permit>(4).fill(Permit),
  /** Operators. */
  Schema.TaggedStruct("Pause", { tag: Schema.Literals([0, 1]), partitionKey: Schema.Literals(["none", "a", "b"]) }),
  Schema.TaggedStruct("Resume", { tag: Schema.Literals([0, 1]), partitionKey: Schema.Literals(["none", "a", "b"]) }),
  Schema.TaggedStruct("Resume", { tag: Schema.Literals([0, 1]), partitionKey: Schema.Literals(["none"]) }),
  Schema.TaggedStruct("Cancel", { of }),
  Schema.TaggedStruct("Reject", { of }),
  Schema.TaggedStruct("Retry", { of }),
  Schema.TaggedStruct("Retry", { of }),
  Schema.TaggedStruct("Purge", { of }),
  Schema.TaggedStruct("Erase", { partitionKey: Schema.Literals(["a", "b"]), everyTag: Schema.Boolean }),
  /** It beats no longer. */
  Schema.TaggedStruct("Stop", { worker }),
  Schema.TaggedStruct("GoOn", { worker }),
  /** It goes on with a new session. What became of the one before, nobody says to the store. */
  Schema.TaggedStruct("Restart", { worker }),
  Schema.TaggedStruct("Close", { worker }),
  Schema.TaggedStruct("Recover", { worker }),
  Schema.TaggedStruct("Recover", { worker }),
  Schema.TaggedStruct("Pass", { moments: Schema.Literals([1, 3, 6, 16]) }),
  Schema.TaggedStruct("Pass", { moments: Schema.Literals([16]) }),
  /** The clock on the wall is set. */
  Schema.TaggedStruct("SetClock", { moments: Schema.Literals([-100, -3, 3, 100]) }),
  Schema.TaggedStruct("Count", {})
])

export type History = typeof History.Type

const History = Schema.Array(Step).check(Schema.isMinLength(1), Schema.isMaxLength(70))

/** Histories of a store that promises this. */
export const histories = ({ ordered, priorities, transactional }: Capabilities): Arbitrary.Arbitrary<History> =>
  Arbitrary.map(Arbitrary.schema(History), (history) =>
    history.flatMap((step): History => {
      if (step._tag === "SettleInTransaction" && !transactional) return []
      if (step._tag === "Settle" || step._tag === "SettleWrongly") {
        return [{ ...step, ending: step.ending === "Blocked" && !ordered ? "Dead" : step.ending }]
      }
      if (step._tag !== "Append") return [step]
      const items = step.items.map((item): Item => {
        const partitionKey = ordered ? item.partitionKey : "none"
        return { ...item, partitionKey, priority: priorities && partitionKey === "none" ? item.priority : 0 }
      })
      return [{ ...step, items, fate: transactional ? step.fate : "commits" }]
    }))

export const show = (history: History): string =>
  history.map((step, index) => `  ${index}. ${showStep(step)}`).join("\n")

const showStep = (step: Step): string => {
  const { _tag, ...fields } = step
  const shown = (value: unknown): string =>
    typeof value === "object" && value !== null
      ? `{ ${
        Object.entries(value)
          .filter(([, each]) => each !== "none" && each !== 0)
          .map(([key, each]) => `${key}: ${shown(each)}`)
          .join(", ")
      } }`
      : String(value)
  return `${_tag}${
    Object.entries(fields)
      .map(([key, value]) => ` ${key}: ${Array.isArray(value) ? `[${value.map(shown).join(", ")}]` : shown(value)}`)
      .join(",")
  }`
}
