/**
 * What the limits of tags permit a session.
 */
import type { IntentStoreError } from "@epilogue/core/IntentSink"
import type { Permit, Session, Subscription } from "@epilogue/core/OutboxStore"
import { nextTokenIn, type Share, slotsFor, tokensFor } from "@epilogue/core/Permits"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { arrayOf } from "./append.ts"
import type { Connections } from "./connections.ts"
import type { Statements } from "./statements.ts"

type Want = Parameters<Session["permit"]>[0][number]

/** A tag that is asked for: the queue that stands for it, and its limits. */
export interface Asked {
  readonly want: Want
  readonly whole: number
  readonly subscription: Subscription
}

/** What is left of a rate, and in whose turn it was. */
type BucketRow = readonly [tag: number, tokens: number, turn: number]

type ShareRow = readonly [
  tag: number,
  session: bigint,
  running: number,
  slots: number,
  wantedSlots: number,
  wantedTokens: number,
  isAsking: boolean,
  slotsTurn: number,
  tokensTurn: number
]

/** What one asks for and gets. */
interface Decision {
  readonly whole: number
  readonly permit: Permit
  readonly share: Share
  /** What is left of the tokens, and whose turn it is next. */
  readonly tokens: number
  readonly turn: number
}

const what = "It could not be found out how much may run"

/** Divides what is permitted anew, while nobody else does. */
export const permit = (
  connections: Connections,
  statements: Statements,
  session: bigint,
  asked: ReadonlyArray<Asked>
): Effect.Effect<ReadonlyArray<Permit>, IntentStoreError> =>
  connections.transaction(Effect.fnUntraced(function*(run) {
    const wholes = asked.map(({ whole }) => whole)
    yield* run(what, statements.lockPermits, [
      wholes,
      arrayOf(asked.map(({ subscription }) => subscription.rateLimit?.limit ?? 0)),
      arrayOf(asked.map(({ subscription }) => subscription.concurrency)),
      arrayOf(asked.map(rateOf))
    ])
    // Rows with these columns are what the statements answer.
    const buckets = (yield* run(what, statements.buckets, [wholes])) as unknown as ReadonlyArray<BucketRow>
    const rows = (yield* run(what, statements.permits, [wholes, session])) as unknown as ReadonlyArray<ShareRow>
    const [isAlive] = (yield* run(what, statements.isAlive, [session]))[0] as [boolean]
    if (!isAlive) return asked.map(({ want: { tag } }) => ({ tag, concurrency: 0, tokens: 0, retryAfter: undefined }))
    const decisions = asked.map((each): Decision => decide(each, session, buckets, rows))
    yield* run(what, statements.grant, [
      session,
      decisions.map(({ whole }) => whole),
      decisions.map(({ share }) => share.running),
      decisions.map(({ share }) => share.slots),
      decisions.map(({ share }) => share.wantedSlots),
      decisions.map(({ share }) => share.wantedTokens),
      arrayOf(decisions.map(({ share }) => share.slotsTurn)),
      arrayOf(decisions.map(({ share }) => share.tokensTurn)),
      arrayOf(decisions.map(({ tokens }) => tokens)),
      arrayOf(decisions.map(({ turn }) => turn))
    ])
    return decisions.map((each) => each.permit)
  }))

const rateOf = ({ subscription: { rateLimit } }: Asked): number =>
  rateLimit === undefined ? 0 : rateLimit.limit / Duration.toMillis(rateLimit.window)

const decide = (
  asked: Asked,
  session: bigint,
  buckets: ReadonlyArray<BucketRow>,
  rows: ReadonlyArray<ShareRow>
): Decision => {
  const { subscription: { concurrency, rateLimit }, want, whole } = asked
  const [, available, turn] = buckets.find(([tag]) => tag === whole)!
  const shares = rows.filter(([tag]) => tag === whole).map((row): Share & { readonly session: bigint } => ({
    session: row[1],
    running: row[2],
    slots: row[3],
    wantedSlots: row[4],
    wantedTokens: row[5],
    isAsking: row[6],
    slotsTurn: row[7],
    tokensTurn: row[8]
  }))
  const known = shares.find((share) => share.session === session)
  const own: Share & { readonly session: bigint } = {
    session,
    running: want.running,
    slots: known?.slots ?? 0,
    wantedSlots: concurrency === undefined ? 0 : Math.max(want.concurrency, want.running),
    wantedTokens: rateLimit === undefined ? 0 : want.tokens,
    isAsking: true,
    slotsTurn: known?.slotsTurn ?? 0,
    tokensTurn: known?.tokensTurn ?? 0
  }
  // In an order that is the same whoever asks.
  const all = [...shares.filter((share) => share !== known), own].toSorted((a, b) => a.session < b.session ? -1 : 1)
  const slots = concurrency === undefined ? 0 : slotsFor(all, own, concurrency)
  const tokens = rateLimit === undefined ? 0 : tokensFor(all, own, available)
  return {
    whole,
    share: {
      ...own,
      slots,
      wantedTokens: own.wantedTokens - tokens,
      slotsTurn: slots > own.slots ? turn + 1 : own.slotsTurn,
      tokensTurn: tokens > 0 ? turn + 1 : own.tokensTurn
    },
    tokens: available - tokens,
    turn: turn + 1,
    permit: {
      tag: want.tag,
      concurrency: concurrency === undefined ? want.concurrency : slots,
      tokens: rateLimit === undefined ? want.tokens : tokens,
      retryAfter: rateLimit === undefined || tokens >= want.tokens
        ? undefined
        : nextTokenIn(available - tokens, rateOf(asked))
    }
  }
}
