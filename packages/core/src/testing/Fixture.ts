/**
 * What a test of a store is given: the store, a tag of its own, and short words for what tests do all the time.
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import type { Appended, Envelope } from "../Envelope.ts"
import type { IntentStoreError } from "../IntentSink.ts"
import type { Beat, Claimed, Depth, OutboxStore, Session, Settlement, Subscription } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"

/** Larger than what any test appends. */
export const everything = { rows: 1_000, bytes: 2 ** 25 }

/** The settlements of one kind, without what was claimed. */
export type Ending = Settlement extends infer Each ? Each extends Settlement ? Omit<Each, "claimed"> : never : never

export const endings: ReadonlyArray<Ending & { readonly delay?: number; readonly failure?: string }> = [
  { _tag: "Succeeded" },
  { _tag: "Failed", delay: 0, failure: "it failed" },
  { _tag: "Snoozed", delay: 0 },
  { _tag: "Undecodable", delay: 0, failure: "it can't be read" },
  { _tag: "Dead", reason: "rejected", failure: "it was rejected" },
  { _tag: "Released" }
]

export class Fixture {
  readonly store: OutboxStore.Service
  readonly tag: string
  readonly elapse: (duration: Duration.Duration) => Effect.Effect<void>
  private readonly moment: Duration.Duration

  constructor(
    store: OutboxStore.Service,
    elapse: (duration: Duration.Duration) => Effect.Effect<void>,
    moment: Duration.Duration
  ) {
    this.store = store
    this.tag = freshTag()
    this.elapse = elapse
    this.moment = moment
  }

  /** So many moments, which is how the suite tells time. */
  moments(count: number): Duration.Duration {
    return Duration.times(this.moment, count)
  }

  millis(moments: number): number {
    return Duration.toMillis(this.moments(moments))
  }

  /** Lets so many moments pass. */
  pass(moments: number): Effect.Effect<void> {
    return this.elapse(this.moments(moments))
  }

  envelope(chosen: Partial<Envelope> = {}): Envelope {
    return {
      id: SecureRandom.uuidV7Unsafe(),
      tag: this.tag,
      version: 1,
      payload: `{"of":"a test"}`,
      partitionKey: undefined,
      idempotencyKey: undefined,
      remember: this.millis(1_000),
      priority: 0,
      delay: undefined,
      runAt: undefined,
      traceparent: undefined,
      ...chosen
    }
  }

  envelopes(count: number, chosen: Partial<Envelope> = {}): ReadonlyArray<Envelope> {
    return Array.from({ length: count }, () => this.envelope(chosen))
  }

  /** Appends as a boundary does: in a transaction if the store has them, and then lets workers know. */
  append(...envelopes: ReadonlyArray<Envelope>): Effect.Effect<ReadonlyArray<Appended>, unknown> {
    const append = Effect.map(this.store.append(envelopes), answersOf)
    const { client } = this.store
    return Effect.tap(client === undefined ? append : client.withTransaction(append), this.store.wake(envelopes))
  }

  /** Of a store that is transactional. */
  get client(): SqlClient {
    const { client } = this.store
    if (client === undefined) throw new Error("The store is transactional, and has no `client`")
    return client
  }

  /** Opens a session, by default for the test's tag, with a lease that no test outlives. */
  open(
    subscriptions: ReadonlyArray<Subscription> = [{ tag: this.tag, versions: [1] }],
    leaseMoments = 10_000
  ): Effect.Effect<Session, IntentStoreError, Scope.Scope> {
    return this.store.open({ subscriptions, lease: this.moments(leaseMoments) })
  }

  /** Opens a session that the test closes. */
  openClosable(
    subscriptions?: ReadonlyArray<Subscription>
  ): Effect.Effect<{ readonly session: Session; readonly close: Effect.Effect<void> }, IntentStoreError> {
    return Effect.gen({ self: this }, function*() {
      const scope = yield* Scope.make()
      const session = yield* Scope.provide(this.open(subscriptions), scope)
      return { session, close: Scope.close(scope, Exit.void) }
    })
  }

  /** Opens a session whose lease is `leaseMoments`, which `outlive` outlives. */
  openMortal(subscriptions?: ReadonlyArray<Subscription>): Effect.Effect<Session, IntentStoreError, Scope.Scope> {
    return this.open(subscriptions, leaseMoments)
  }

  /** Lets more than a mortal session's lease pass, while those given beat. Answers with their last beats. */
  outlive(...living: ReadonlyArray<Session>): Effect.Effect<ReadonlyArray<Beat>, IntentStoreError> {
    return Effect.gen({ self: this }, function*() {
      const beats = Effect.forEach(living, ({ beat }) => beat)
      yield* beats
      // Those that beat never rest for a whole lease, and those that don't rest for more than one between two looks.
      for (let i = 0; i < 3; i++) {
        yield* this.pass(leaseMoments / 2)
        yield* beats
      }
      return yield* beats
    })
  }

  /** The one depth of the test's tag. */
  depth(tag = this.tag): Effect.Effect<Depth, IntentStoreError> {
    return Effect.map(
      this.store.depths,
      (depths) => depths.find((depth) => depth.tag === tag) ?? none(tag)
    )
  }
}

const leaseMoments = 4

/** What was answered to an append, but for what names the transaction. */
export const answersOf = (appended: ReadonlyArray<Appended>): ReadonlyArray<Appended> =>
  appended.map(({ duplicate, id }) => ({ id, duplicate }))

/** The depth of a tag of which there is nothing. */
export const none = (tag: string): Depth => ({ tag, waiting: 0, claimed: 0, delayed: 0, dead: 0, oldest: 0 })

export const freshTag = (): string => `Conformance/${SecureRandom.uuidV7Unsafe()}`

export const claim = (session: Session): Effect.Effect<ReadonlyArray<Claimed>, IntentStoreError> =>
  session.claim(everything)

/** Claims, and answers with the only one there is. */
export const claimOne = Effect.fnUntraced(function*(session: Session) {
  const claimed = yield* claim(session)
  equal(claimed.length, 1, "how many were claimed")
  return claimed[0]!
})

export const idsOf = (list: ReadonlyArray<{ readonly id: string }>): ReadonlyArray<string> => list.map(({ id }) => id)

export const sorted = (ids: ReadonlyArray<string>): ReadonlyArray<string> => ids.toSorted()

/** Settles all of these in the same way, and checks that none is lost. */
export const settle = Effect.fnUntraced(function*(
  session: Session,
  ending: Ending,
  ...claimed: ReadonlyArray<Claimed>
) {
  equal(yield* session.settle(claimed.map((each) => settlement(each, ending))), [], "what was lost")
})

/** Puts on record that these have started, and checks that none is lost. */
export const start = Effect.fnUntraced(function*(session: Session, ...claimed: ReadonlyArray<Claimed>) {
  equal(yield* session.start(claimed), [], "what was lost")
})

export const succeed = (session: Session, ...claimed: ReadonlyArray<Claimed>): Effect.Effect<void, IntentStoreError> =>
  settle(session, { _tag: "Succeeded" }, ...claimed)

export const settlement = (claimed: Claimed, ending: Ending): Settlement => ({ ...ending, claimed })

/** Claims all that this session can have, checks that it is these, in any order, and answers with it. */
export const claimExactly = Effect.fnUntraced(function*(session: Session, ids: ReadonlyArray<string>) {
  const claimed = yield* claim(session)
  equal(sorted(idsOf(claimed)), sorted(ids), "what was claimed")
  return claimed
})

export const claimNothing = (session: Session): Effect.Effect<void, IntentStoreError> =>
  Effect.asVoid(claimExactly(session, []))

export const isBetween = (value: number, low: number, high: number, what: string): void =>
  isTrue(value >= low && value <= high, `that ${what}, which is ${value}, is between ${low} and ${high}`)

/** Lets wakes that are on their way arrive, until a moment passes without one. */
export const quiet = (fixture: Fixture, session: Session): Effect.Effect<void, never, Scope.Scope> =>
  Effect.flatMap(quietAndWaiting(fixture, session), Fiber.interrupt)

/** As `quiet`, and answers with a fiber that waits for the next one. */
export const quietAndWaiting = Effect.fnUntraced(function*(fixture: Fixture, session: Session) {
  for (let wakesHeard = 0; wakesHeard < 20; wakesHeard++) {
    const waiting = yield* Effect.forkScoped(session.wakes)
    yield* fixture.pass(1)
    if (waiting.pollUnsafe() === undefined) return waiting
  }
  isTrue(false, "that it is quiet when nothing comes")
  return yield* Effect.never
})
