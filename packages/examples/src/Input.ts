/**
 * Reads the file of orders: one JSON object on each line.
 */
import { Effect, FileSystem, type Result, Schema } from "effect"
import { join } from "node:path"
import { Order } from "./Order.ts"

/** A line that is no order. The others are taken all the same. */
export class InputError extends Schema.TaggedError<InputError>()("InputError", {
  line: Schema.Int,
  message: Schema.String
}) {}

export interface Line {
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

export const read = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const text = yield* fs.readFileString(join(import.meta.dirname, "../data/orders.jsonl"))
  return yield* Effect.forEach(text.trimEnd().split("\n"), (each, index) => decodeLine(each, index + 1))
})
