/**
 * Assertions, so that the suite needs no library of them.
 */
import * as Equal from "effect/Equal"
import * as Formatter from "effect/Formatter"

/** Test runners show the difference between the two values of such an error. */
class AssertionError extends Error {
  override readonly name = "AssertionError"
  readonly showDiff = true
  readonly actual: unknown
  readonly expected: unknown

  constructor(message: string, actual: unknown, expected: unknown) {
    super(message)
    this.actual = actual
    this.expected = expected
  }
}

/** By structure. `what` tells what the values are. */
export const equal = <A>(actual: A, expected: NoInfer<A>, what: string): void => {
  if (Equal.equals(actual, expected)) return
  throw new AssertionError(
    `expected ${what} to be ${shortened(expected)}, and it was ${shortened(actual)}`,
    actual,
    expected
  )
}

export const isTrue = (condition: boolean, what: string): void => equal(condition, true, what)

const shortened = (value: unknown): string => {
  const text = Formatter.format(value)
  return text.length > 500 ? `${text.slice(0, 500)}…` : text
}
