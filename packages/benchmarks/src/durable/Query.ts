/**
 * Statements that answer with one figure.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

const decode = Schema.decodeUnknownEffect(Schema.NonEmptyArray(Schema.Struct({ figure: Schema.Finite })))

export const figure = <E, R>(
  statement: Effect.Effect<unknown, E, R>
): Effect.Effect<number, E | Schema.SchemaError, R> =>
  Effect.flatMap(statement, decode).pipe(Effect.map(([row]) => row.figure))
