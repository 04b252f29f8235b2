/**
 * Reads the file of orders: one JSON object on each line.
 */
import { Effect, FileSystem, type Result, Schema } from "effect"
import { Order } from "./Order.ts"

/** A line that is no order. The others are taken all the same. */
export class InputError extends Schema.TaggedError<InputError>()("InputError", {
  line: Schema.Int,
  message: Schema.String
}) {}

interface Line {
  readonly line: number
  readonly order: Result.Result<Order, InputError>
}

const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(Order))

const decodeLine = Effect.fn("Input.decodeLine")(function*(text: string, line: number) {
  const order = yield* decode(text).pipe(
    Effect.mapError((error) => new InputError({ line, message: error.message })),
    Effect.result
  )
  return { line, order } satisfies Line
})

export const read = Effect.fn("Input.read")(function*(path: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* fs.readFileString(path)
  return yield* Effect.forEach(text.trimEnd().split("\n"), (each, index) => decodeLine(each, index + 1))
})
