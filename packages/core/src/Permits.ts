/**
 * How what the limits of a tag permit is divided among the sessions that want some of it. For those who write a store.
 *
 * @since 0.1.0
 */

/**
 * What a session was permitted last, and what it wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface Share {
  readonly session: unknown
  /** How many of its deliveries run. */
  readonly running: number
  /** How many it may run at once, and how many it could. */
  readonly slots: number
  readonly wantedSlots: number
  /** How many tokens it wanted and did not get. */
  readonly wantedTokens: number
  /** Whether it still waits for what it asked for: one that did not come back for a lease does not. */
  readonly isAsking: boolean
  /** In whose turn it was that it got more slots, or tokens. */
  readonly slotsTurn: number
  readonly tokensTurn: number
}

/**
 * How many deliveries a session may run at once, where all together may run `limit`.
 *
 * **Details**
 *
 * `shares` are those of all sessions, its own included, in an order that is the same whoever asks.
 *
 * Never more than is left of the limit, and never less than it runs. Each has what it wants, but nobody two more than another
 * who wants more. Where there are more sessions than slots, those that have none come first, and who has had its own for
 * longest is the last.
 *
 * @category combinators
 * @since 0.1.0
 */
export const slotsFor = (shares: ReadonlyArray<Share>, own: Share, limit: number): number => {
  const others = shares.reduce((sum, share) => share === own ? sum : sum + share.slots, 0)
  const inTurn = shares.toSorted((a, b) =>
    a.slots > 0 && b.slots > 0
      ? b.slotsTurn - a.slotsTurn
      : Number(a.slots > 0) - Number(b.slots > 0) || a.slotsTurn - b.slotsTurn
  )
  const fair = divide(limit, inTurn.map((share) => [share, share.isAsking ? share.wantedSlots : share.slots]))
  return Math.max(own.running, Math.min(fair.get(own)!, limit - others))
}

/**
 * How many of the tokens that are there a session gets. Those who want some have them in turn.
 *
 * @category combinators
 * @since 0.1.0
 */
export const tokensFor = (shares: ReadonlyArray<Share>, own: Share, available: number): number => {
  const inTurn = shares.toSorted((a, b) => a.tokensTurn - b.tokensTurn)
  const wants = inTurn.map((share) => [share, share.isAsking ? share.wantedTokens : 0] as const)
  return divide(Math.floor(available + epsilon), wants).get(own)!
}

/**
 * After how many milliseconds there is one more token than `available`, where they come at so many a millisecond.
 *
 * @category combinators
 * @since 0.1.0
 */
export const nextTokenIn = (available: number, rate: number): number =>
  Math.ceil((Math.floor(available + epsilon) + 1 - available) / rate)

/**
 * What sums of fractions miss by.
 *
 * @category constants
 * @since 0.1.0
 */
export const epsilon = 1e-6

/** Gives each what it wants, but nobody two more than another who wants more; what is left over, to the first ones. */
const divide = (
  total: number,
  wants: ReadonlyArray<readonly [share: Share, wanted: number]>
): ReadonlyMap<Share, number> => {
  const given = new Map(wants.map(([share]) => [share, 0]))
  let left = Math.max(0, total)
  for (let unmet = wants; left > 0;) {
    unmet = unmet.filter(([share, wanted]) => given.get(share)! < wanted)
    if (unmet.length === 0) break
    const each = Math.max(1, Math.floor(left / unmet.length))
    for (const [share, wanted] of unmet) {
      const more = Math.min(each, wanted - given.get(share)!, left)
      given.set(share, given.get(share)! + more)
      left -= more
    }
  }
  return given
}
