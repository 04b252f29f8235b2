/**
 * Random programs as data: what they are, how they are generated, made smaller and printed.
 */
import { Arbitrary, Schema } from "effect"

/** What the core of a boundary, or an intent, does next. */
export type Step =
  | {
    readonly _tag: "Defer"
    readonly form: "effect" | "function" | "orRun" | "timeout"
    readonly key: Key
    readonly body: Body
  }
  /** So many intents that do nothing. With `keys`, they share three of them. */
  | { readonly _tag: "Many"; readonly count: number; readonly keys: boolean }
  | { readonly _tag: "Hook"; readonly ends: "ok" | "fails" | "dies" }
  | { readonly _tag: "See" }
  | { readonly _tag: "Fail" }
  | { readonly _tag: "Die" }
  | { readonly _tag: "Interrupt" }
  | { readonly _tag: "Within"; readonly frame: Frame; readonly body: Body }
  /** Fibers that take turns, a step each. All are awaited; then the first one that failed fails the parent. */
  | { readonly _tag: "Fork"; readonly branches: ReadonlyArray<Branch> }
  /** The loser does all its steps before the winner begins, and then waits for ever. */
  | { readonly _tag: "Race"; readonly frame: RaceFrame; readonly loser: Body; readonly winner: Body }
  /** A fiber that does all its steps, and is interrupted from outside. */
  | { readonly _tag: "Kill"; readonly frame: KillFrame; readonly body: Body }
  /** `Effect.retry` of a savepoint whose first attempts fail. */
  | { readonly _tag: "Retry"; readonly failures: 0 | 1 | 2; readonly times: 0 | 1 | 2; readonly body: Body }
  /** `Effect.tx`, whose first attempt commits, conflicts with another transaction, or calls `Effect.txRetry`. */
  | { readonly _tag: "Tx"; readonly first: "commits" | "conflicts" | "retries"; readonly body: Body }

export type Body = ReadonlyArray<Step>
type Key = "none" | "k" | "l"
export interface Branch {
  readonly frame: Frame
  readonly body: Body
}

export interface Options {
  readonly form: "atomic" | "report"
  readonly mode: "default" | "continue" | "stop"
  readonly concurrency: 1 | 2 | "unbounded"
}

type RaceFrame = { readonly _tag: "Bare" } | { readonly _tag: "Savepoint" }
type KillFrame =
  | RaceFrame
  | { readonly _tag: "Tx" }
  | { readonly _tag: "Boundary"; readonly isolated: boolean; readonly options: Options }
/** What is around some steps. `Where` provides a service that intents and hooks report. */
export type Frame = KillFrame | { readonly _tag: "Caught" } | { readonly _tag: "Where"; readonly where: string }

/** Boundaries that run one after the other. */
export type Program = ReadonlyArray<{ readonly options: Options; readonly body: Body }>

// Generation ---------------------------------------------------------------------------------------------------------

const tagged = <Tag extends string>(tag: Tag) => Schema.TaggedStruct(tag, {})

const optionFields = {
  form: Schema.Literals(["atomic", "report"]),
  mode: Schema.Literals(["default", "continue", "stop"]),
  concurrency: Schema.Literals([1, 1, 2, "unbounded"])
}
const Options: Schema.Codec<Options> = Schema.Struct(optionFields)
const Boundary = Schema.TaggedStruct("Boundary", { isolated: Schema.Boolean, options: Options })
const RaceFrame: Schema.Codec<RaceFrame> = Schema.Union([tagged("Bare"), tagged("Savepoint")])
const KillFrame: Schema.Codec<KillFrame> = Schema.Union([tagged("Bare"), tagged("Savepoint"), tagged("Tx"), Boundary])
const Frame: Schema.Codec<Frame> = Schema.Union([
  tagged("Bare"),
  tagged("Savepoint"),
  tagged("Tx"),
  tagged("Caught"),
  Schema.TaggedStruct("Where", { where: Schema.Literals(["p", "q"]) }),
  Boundary
])

const bodyOf = (step: Schema.Codec<Step>, minLength: number, maxLength: number): Schema.Codec<Body> =>
  Schema.Array(step).check(Schema.isMinLength(minLength), Schema.isMaxLength(maxLength))

/** Steps that hold steps that hold steps, to a depth. Members that are there more than once are drawn more often. */
const stepOf = (depth: number): Schema.Codec<Step> => {
  const end = Schema.Union([tagged("Fail"), tagged("Fail"), tagged("Die"), tagged("Interrupt")])
  const Leaf = Schema.TaggedStruct("Defer", {
    form: Schema.Literals(["effect", "function", "orRun", "timeout"]),
    key: Schema.Literals(["none", "none", "k", "l"]),
    body: Schema.Union([Schema.Tuple([]), Schema.Tuple([]), Schema.Tuple([end])])
  })
  const Hook = Schema.TaggedStruct("Hook", { ends: Schema.Literals(["ok", "ok", "fails", "dies"]) })
  const leaves = [Leaf, Leaf, Leaf, Leaf, Leaf, Leaf, Leaf, Hook, Hook, tagged("See"), end]
  if (depth === 0) return Schema.Union(leaves)

  const body = bodyOf(stepOf(depth - 1), 1, 4)
  const Within = Schema.TaggedStruct("Within", { frame: Frame, body })
  return Schema.Union([
    ...leaves,
    Schema.Struct({ ...Leaf.fields, body: bodyOf(stepOf(depth - 1), 1, 3) }),
    Within,
    Within,
    Schema.TaggedStruct("Within", { frame: tagged("Caught"), body }),
    Schema.TaggedStruct("Fork", {
      branches: Schema.Array(Schema.Struct({ frame: Frame, body })).check(Schema.isMaxLength(3))
    }),
    Schema.TaggedStruct("Race", { frame: RaceFrame, loser: body, winner: body }),
    Schema.TaggedStruct("Kill", { frame: KillFrame, body }),
    Schema.TaggedStruct("Retry", { failures: Schema.Literals([0, 1, 2]), times: Schema.Literals([0, 1, 2]), body }),
    Schema.TaggedStruct("Tx", { first: Schema.Literals(["commits", "conflicts", "retries"]), body })
  ])
}

const Program: Schema.Codec<Program> = Schema.Array(
  Schema.Struct({ options: Options, body: bodyOf(stepOf(3), 0, 6) })
).check(Schema.isMinLength(1), Schema.isMaxLength(2))

/** Programs with more intents than the tail of a queue holds. */
const bigStepOf = (depth: number): Schema.Codec<Step> => {
  const Many = Schema.TaggedStruct("Many", {
    count: Schema.Literals([1, 1023, 1024, 1025, 2500]),
    keys: Schema.Literals([false, false, false, true])
  })
  if (depth === 0) return Many
  const body = bodyOf(bigStepOf(depth - 1), 1, 2)
  return Schema.Union([
    Many,
    Schema.TaggedStruct("Defer", { form: Schema.Literal("effect"), key: Schema.Literals(["none", "k"]), body }),
    Schema.TaggedStruct("Within", { frame: Schema.Union([tagged("Savepoint"), tagged("Tx")]), body }),
    Schema.TaggedStruct("Tx", { first: Schema.Literals(["conflicts", "retries"]), body }),
    Schema.TaggedStruct("Retry", { failures: Schema.Literal(1), times: Schema.Literal(1), body })
  ])
}

const BigProgram: Schema.Codec<Program> = Schema.Tuple([
  Schema.Struct({
    // A fiber yields after some thousand operations, so only the order of one after the other is known.
    options: Schema.Struct({ ...optionFields, concurrency: Schema.Literal(1) }),
    body: bodyOf(bigStepOf(2), 1, 3)
  })
])

// Shrinking ----------------------------------------------------------------------------------------------------------

/** Every array with one element less, and every array with one element replaced by something smaller. */
const smallerArrays = <A>(
  array: ReadonlyArray<A>,
  smaller: (a: A) => ReadonlyArray<ReadonlyArray<A>>
): ReadonlyArray<ReadonlyArray<A>> => [
  ...array.map((_, index) => array.toSpliced(index, 1)),
  ...array.flatMap((each, index) => smaller(each).map((replacement) => array.toSpliced(index, 1, ...replacement)))
]

const defaults: Options = { form: "atomic", mode: "default", concurrency: 1 }

const smallerOptions = (options: Options): ReadonlyArray<Options> =>
  (["form", "mode", "concurrency"] as const).flatMap((field) =>
    options[field] === defaults[field] ? [] : [{ ...options, [field]: defaults[field] }]
  )

const smallerFrames = (frame: Frame): ReadonlyArray<Frame> =>
  frame._tag === "Boundary"
    ? smallerOptions(frame.options).map((options): Frame => ({ _tag: "Boundary", isolated: frame.isolated, options }))
    : []

const smallerBodies = (body: Body): ReadonlyArray<Body> => smallerArrays(body, smallerSteps)

/** What may stand in place of a step: fewer steps, the steps inside of it, or the step itself, made smaller. */
const smallerSteps = (step: Step): ReadonlyArray<ReadonlyArray<Step>> => {
  switch (step._tag) {
    case "Defer":
      return [
        ...(step.form === "effect" ? [] : [[{ ...step, form: "effect" as const }]]),
        ...(step.key === "none" ? [] : [[{ ...step, key: "none" as const }]]),
        ...smallerBodies(step.body).map((body) => [{ ...step, body }])
      ]
    case "Hook":
      return step.ends === "ok" ? [] : [[{ ...step, ends: "ok" }]]
    case "Many":
      return [
        ...(step.keys ? [[{ ...step, keys: false }]] : []),
        ...(step.count === 1 ? [] : [[{ ...step, count: 1 }]])
      ]
    case "See":
    case "Fail":
    case "Die":
    case "Interrupt":
      return []
    case "Within":
    case "Kill":
      return [
        step.body,
        ...smallerFrames(step.frame).map((frame) => [{ ...step, frame } as Step]),
        ...smallerBodies(step.body).map((body) => [{ ...step, body }])
      ]
    case "Fork":
      return [
        step.branches.flatMap(({ body }) => body),
        ...smallerArrays(step.branches, (branch) => [
          ...(branch.frame._tag === "Bare" ? [] : [[{ ...branch, frame: { _tag: "Bare" } as const }]]),
          ...smallerFrames(branch.frame).map((frame) => [{ ...branch, frame }]),
          ...smallerBodies(branch.body).map((body) => [{ ...branch, body }])
        ]).map((branches) => [{ ...step, branches }])
      ]
    case "Race":
      return [
        step.loser,
        step.winner,
        ...smallerBodies(step.loser).map((loser) => [{ ...step, loser }]),
        ...smallerBodies(step.winner).map((winner) => [{ ...step, winner }])
      ]
    case "Retry":
      return [
        step.body,
        ...(step.failures === 0 ? [] : [[{ ...step, failures: 0 as const }]]),
        ...(step.times === 0 ? [] : [[{ ...step, times: 0 as const }]]),
        ...smallerBodies(step.body).map((body) => [{ ...step, body }])
      ]
    case "Tx":
      return [
        step.body,
        ...(step.first === "commits" ? [] : [[{ ...step, first: "commits" as const }]]),
        ...smallerBodies(step.body).map((body) => [{ ...step, body }])
      ]
  }
}

const smallerPrograms = (self: Program): ReadonlyArray<Program> =>
  smallerArrays(self, (boundary) => [
    ...smallerOptions(boundary.options).map((options) => [{ ...boundary, options }]),
    ...smallerBodies(boundary.body).map((body) => [{ ...boundary, body }])
  ])

export const programs: Arbitrary.Arbitrary<Program> = Arbitrary.schema(Program, { shrink: smallerPrograms })
export const bigPrograms: Arbitrary.Arbitrary<Program> = Arbitrary.schema(BigProgram, { shrink: smallerPrograms })

// Printing -----------------------------------------------------------------------------------------------------------

const frameName = (frame: Frame): string => {
  switch (frame._tag) {
    case "Boundary":
      return `${frame.isolated ? "isolated " : ""}${optionsName(frame.options)}`
    case "Where":
      return `where ${frame.where}`
    case "Bare":
    case "Caught":
    case "Savepoint":
    case "Tx":
      return frame._tag.toLowerCase()
  }
}

const optionsName = ({ concurrency, form, mode }: Options): string =>
  `${form}${mode === "default" ? "" : ` mode ${mode}`}${concurrency === 1 ? "" : ` concurrency ${concurrency}`}`

const showBlock = (text: string, body: Body, path: string, indent: string): string =>
  `${indent}${text}${body.length === 0 ? "" : " {"}  // ${path}\n${
    body.length === 0 ? "" : `${showBody(body, path, `${indent}  `)}${indent}}\n`
  }`

const showBody = (body: Body, path: string, indent: string): string =>
  body.map((step, index) => showStep(step, `${path}.${index}`, indent)).join("")

const showStep = (step: Step, path: string, indent: string): string => {
  const inner = `${indent}  `
  const line = (text: string) => `${indent}${text}  // ${path}\n`
  const block = (text: string, body: Body) => showBlock(text, body, path, indent)
  switch (step._tag) {
    case "Defer":
      return block(
        `defer${step.form === "effect" ? "" : ` ${step.form}`}${step.key === "none" ? "" : ` key ${step.key}`}`,
        step.body
      )
    case "Many":
      return line(`${step.count} times defer${step.keys ? " key 0, 1 or 2" : ""}`)
    case "Hook":
      return line(`deferRollback${step.ends === "ok" ? "" : ` ${step.ends}`}`)
    case "See":
    case "Fail":
    case "Die":
    case "Interrupt":
      return line(step._tag.toLowerCase())
    case "Within":
      return block(frameName(step.frame), step.body)
    case "Fork":
      return line("fork") +
        step.branches.map(({ body, frame }, index) =>
          showBlock(`fiber ${frameName(frame)}`, body, `${path}.${index}`, inner)
        ).join("")
    case "Race":
      return line(`race ${frameName(step.frame)}`)
        + showBlock("loser", step.loser, `${path}.loser`, inner)
        + showBlock("winner", step.winner, `${path}.winner`, inner)
    case "Kill":
      return block(`interrupted ${frameName(step.frame)}`, step.body)
    case "Retry":
      return block(`retry ${step.times} times, fails ${step.failures} times, savepoint`, step.body)
    case "Tx":
      return block(`tx${step.first === "commits" ? "" : ` whose first attempt ${step.first}`}`, step.body)
  }
}

/** The program as text. After `//` is what the trace calls each step; an attempt adds `#` and its number. */
export const show = (self: Program): string =>
  self.map(({ body, options }, index) =>
    `${optionsName(options)} {  // ${index}\n${showBody(body, String(index), "  ")}}\n`
  ).join("")
