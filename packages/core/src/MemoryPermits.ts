/**
 * How the store in memory divides what the limits of a tag permit among sessions.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import type { Holder } from "./MemoryRows.ts"
import type { Permit, RateLimit, Session, Subscription } from "./OutboxStore.ts"

type Want = Parameters<Session["permit"]>[0][number]

/** What a session was told last, and what it wants. */
interface Share {
  running: number
  /** How many it may run at once, and how many it would. */
  slots: number
  wantedSlots: number
  /** How many tokens it wanted and did not get. */
  wantedTokens: number
  /** When it asked, and in whose turn it was that it got more slots, or tokens. */
  askedAt: bigint
  slotsTurn: number
  tokensTurn: number
}

/** What of a tag is permitted to whom. */
interface Permits {
  readonly shares: Map<Holder, Share>
  /** How many tokens are there, since when. */
  tokens: number
  filledAt: bigint
}

export class MemoryPermits {
  private readonly permits = new Map<string, Permits>()
  private turn = 0
  private readonly onRoom: (holder: Holder) => void

  /** `onRoom` hears of sessions for which there may be more now than they were told. */
  constructor(onRoom: (holder: Holder) => void) {
    this.onRoom = onRoom
  }

  permit(holder: Holder, want: Want, nanos: bigint): Permit {
    const { concurrency, rateLimit } = holder.subscriptions.get(want.tag) ?? {}
    const permits = this.permitsOf(want.tag, nanos)
    const share = permits.shares.get(holder) ?? {
      running: 0,
      slots: 0,
      wantedSlots: 0,
      wantedTokens: 0,
      askedAt: nanos,
      slotsTurn: 0,
      tokensTurn: 0
    }
    permits.shares.set(holder, share)
    share.askedAt = nanos
    share.running = want.running
    share.wantedSlots = concurrency === undefined ? 0 : Math.max(want.concurrency, want.running)
    share.wantedTokens = rateLimit === undefined ? 0 : want.tokens
    if (rateLimit !== undefined) fill(permits, rateLimit, nanos)
    const tokens = rateLimit === undefined ? want.tokens : this.takeTokens(permits, share, nanos)
    return {
      tag: want.tag,
      concurrency: concurrency === undefined ? want.concurrency : this.takeSlots(permits, share, concurrency, nanos),
      tokens,
      retryAfter: rateLimit === undefined || tokens >= want.tokens ? undefined : nextTokenIn(permits, rateLimit)
    }
  }

  private takeSlots({ shares }: Permits, share: Share, limit: number, nanos: bigint): number {
    let others = 0
    for (const other of shares.values()) if (other !== share) others += other.slots
    // Where there are more sessions than slots, those that have none come first, and who has had its own for longest is
    // the last.
    const inTurn = Array.from(shares).toSorted(([, a], [, b]) =>
      a.slots > 0 && b.slots > 0
        ? b.slotsTurn - a.slotsTurn
        : Number(a.slots > 0) - Number(b.slots > 0) || a.slotsTurn - b.slotsTurn
    )
    const fair = divide(
      limit,
      inTurn.map(([each, of]) => [of, isAsking(each, of, nanos) ? of.wantedSlots : of.slots])
    ).get(share)!
    const slots = Math.max(share.running, Math.min(fair, limit - others))
    if (slots > share.slots) share.slotsTurn = ++this.turn
    const isLess = slots < share.slots
    share.slots = slots
    if (isLess) this.tellOthers(shares)
    return slots
  }

  private takeTokens(permits: Permits, share: Share, nanos: bigint): number {
    const { shares } = permits
    const inTurn = Array.from(shares).toSorted(([, a], [, b]) => a.tokensTurn - b.tokensTurn)
    const tokens = divide(
      Math.floor(permits.tokens + epsilon),
      inTurn.map(([each, of]) => [of, isAsking(each, of, nanos) ? of.wantedTokens : 0])
    ).get(share)!
    permits.tokens -= tokens
    share.wantedTokens -= tokens
    if (tokens > 0) share.tokensTurn = ++this.turn
    return tokens
  }

  /** What an ended session had is free. */
  forget(holder: Holder): void {
    for (const { shares } of this.permits.values()) {
      if (shares.delete(holder)) this.tellOthers(shares)
    }
  }

  private tellOthers(shares: Permits["shares"]): void {
    for (const [holder, { slots, wantedSlots }] of shares) if (slots < wantedSlots) this.onRoom(holder)
  }

  /** The limits of a tag that are reached. */
  reached({ concurrency, rateLimit, tag }: Subscription, nanos: bigint): ReadonlyArray<"concurrency" | "rateLimit"> {
    const permits = this.permits.get(tag)
    if (permits === undefined) return []
    const running = Array.from(permits.shares.values()).reduce((sum, share) => sum + share.running, 0)
    if (rateLimit !== undefined) fill(permits, rateLimit, nanos)
    return [
      ...(concurrency !== undefined && running >= concurrency ? ["concurrency" as const] : []),
      ...(rateLimit !== undefined && permits.tokens + epsilon < 1 ? ["rateLimit" as const] : [])
    ]
  }

  private permitsOf(tag: string, nanos: bigint): Permits {
    const found = this.permits.get(tag)
    if (found !== undefined) return found
    const made: Permits = { shares: new Map(), tokens: Infinity, filledAt: nanos }
    this.permits.set(tag, made)
    return made
  }
}

/** What sums of fractions miss by. */
const epsilon = 1e-6

/** Whether a session still waits for what it asked for: one that did not come back for a lease does not. */
const isAsking = ({ leaseNanos }: Holder, { askedAt }: Share, nanos: bigint): boolean => nanos - askedAt < leaseNanos

/** The bucket is full at first. Its clock is one that nobody sets. */
const fill = (permits: Permits, { limit, window }: RateLimit, nanos: bigint): void => {
  const elapsed = Number(nanos - permits.filledAt) / 1_000_000
  permits.tokens = Math.min(limit, permits.tokens + elapsed * limit / Duration.toMillis(window))
  permits.filledAt = nanos
}

const nextTokenIn = ({ tokens }: Permits, { limit, window }: RateLimit): number =>
  Math.ceil((Math.floor(tokens + epsilon) + 1 - tokens) * Duration.toMillis(window) / limit)

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
