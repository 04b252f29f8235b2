/**
 * Assertions, so that the suite needs no library of them.
 */
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
  if (isEqual(actual, expected)) return
  throw new AssertionError(
    `expected ${what} to be ${shortened(expected)}, and it was ${shortened(actual)}`,
    actual,
    expected
  )
}

export const isTrue = (condition: boolean, what: string): void => equal(condition, true, what)

// Effect's `Equal` remembers what it has compared, and tests go on with the lists that they have looked at.
const isEqual = (one: unknown, other: unknown): boolean => {
  if (Object.is(one, other)) return true
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false
  if (one instanceof Set && other instanceof Set) {
    return one.size === other.size && Array.from(one).every((each) => other.has(each))
  }
  // Whatever they are, what they hold is compared.
  const [fields, others] = [Object.entries(one), other as Readonly<Record<string, unknown>>]
  return Array.isArray(one) === Array.isArray(other)
    && fields.length === Object.keys(other).length
    && fields.every(([key, value]) => Object.hasOwn(other, key) && isEqual(value, others[key]))
}

const shortened = (value: unknown): string => {
  const text = Formatter.format(value)
  return text.length > 500 ? `${text.slice(0, 500)}…` : text
}
