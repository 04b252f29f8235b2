/**
 * How the store in memory divides what the limits of a tag permit among sessions.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import type { Mutable } from "effect/Types"
import type { Holder } from "./MemoryRows.ts"
import type { Permit, RateLimit, Session, Subscription } from "./OutboxStore.ts"
import { epsilon, nextTokenIn, type Share, slotsFor, tokensFor } from "./Permits.ts"

type Want = Parameters<Session["permit"]>[0][number]

/** What a session was told last, and what it wants. */
interface Held extends Omit<Mutable<Share>, "isAsking"> {
  readonly session: Holder
  askedAt: bigint
}
/** What of a tag is permitted to whom. */
interface Permits {
  readonly shares: Map<Holder, Held>
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
      session: holder,
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
      retryAfter: rateLimit === undefined || tokens >= want.tokens ?
        undefined
        : nextTokenIn(permits.tokens, rateOf(rateLimit))
    }
  }

  private takeSlots({ shares }: Permits, share: Held, limit: number, nanos: bigint): number {
    const slots = slotsFor(...sharesOf(shares, share, nanos), limit)
    if (slots > share.slots) share.slotsTurn = ++this.turn
    const isLess = slots < share.slots
    share.slots = slots
    if (isLess) this.tellOthers(shares)
    return slots
  }

  private takeTokens(permits: Permits, share: Held, nanos: bigint): number {
    const tokens = tokensFor(...sharesOf(permits.shares, share, nanos), permits.tokens)
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

/** The shares of all, and among them that of one. A session that did not come back for a lease does not ask any more. */
const sharesOf = (shares: Permits["shares"], own: Held, nanos: bigint): readonly [ReadonlyArray<Share>, Share] => {
  const all = Array.from(shares.values(), (held) => ({
    ...held,
    isAsking: nanos - held.askedAt < held.session.leaseNanos
  }))
  return [all, all.find(({ session }) => session === own.session)!]
}

/** The bucket is full at first. Its clock is one that nobody sets. */
const fill = (permits: Permits, rateLimit: RateLimit, nanos: bigint): void => {
  const elapsed = Number(nanos - permits.filledAt) / 1_000_000
  permits.tokens = Math.min(rateLimit.limit, permits.tokens + elapsed * rateOf(rateLimit))
  permits.filledAt = nanos
}

const rateOf = ({ limit, window }: RateLimit): number => limit / Duration.toMillis(window)
