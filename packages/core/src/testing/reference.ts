/**
 * A small model of a store, to which real ones are compared. It knows what must be, what may be, and what must not.
 *
 * Where time is real, it is known only to lie between two looks at the clock, so every time is such a pair; and where
 * that leaves open what happens, the model goes on from what did happen. Under `TestClock`, nothing is left open.
 */
import type { Appended, Envelope } from "../Envelope.ts"
import type { Beat, Claimed, Depth, Settlement, Subscription } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import { idsOf, sorted } from "./Fixture.ts"

/** Not before `low`, and not after `high`. */
export interface Time {
  readonly low: number
  readonly high: number
}

/** When something was done: by the store's clock on the wall, and by a clock that nobody sets. */
export interface Moment {
  readonly wall: Time
  readonly steady: Time
}

/** An intent, as the model has it. */
interface Intent {
  readonly envelope: Envelope
  due: Time
  /** Once it may be due, a clock that is set back does not change that. */
  mayBeDue: boolean
  isDue: boolean
  /** Its place in its key: between these, in the order of what was done. */
  place: Time
  state: "waiting" | "held" | "dead" | "gone"
  holder: Worker | undefined
  /** Tells one claim of it from the next. */
  claims: number
  failures: number
  crashes: number
  isUndecodable: boolean
  /** It was put off, so it holds its key. */
  holdsKey: boolean
}

/** A session, as the model has it. */
export interface Worker {
  readonly name: string
  readonly subscriptions: ReadonlyArray<Subscription>
  readonly lease: number
  isEnded: boolean
  beats: boolean
  lastBeat: Time
  /** For each other session, when this one first saw the beat that is now its last. */
  readonly seen: Map<Worker, { readonly beat: Time; readonly at: Time }>
}

/** A delivery that somebody believes to hold. */
export interface Held {
  readonly claimed: Claimed
  readonly claim: number
}

export class Reference {
  readonly intents = new Map<string, Intent>()
  private readonly workers = new Set<Worker>()
  private readonly remembered = new Map<string, { readonly id: string; readonly until: Time }>()
  private done = 0

  /** What is done next, which may find that something has become due. */
  private next({ wall }: Moment, isClaim = false): number {
    this.done++
    for (const intent of this.intents.values()) {
      if (!intent.mayBeDue && wall.high >= intent.due.low) {
        intent.mayBeDue = true
        if (!intent.holdsKey) intent.place = { low: this.done, high: Infinity }
      }
      // A store may look for what has become due only when it claims.
      if (isClaim && intent.mayBeDue && !intent.isDue && wall.low >= intent.due.high) {
        intent.isDue = true
        if (!intent.holdsKey) intent.place = { low: intent.place.low, high: this.done }
      }
    }
    return this.done
  }

  // Appends ----------------------------------------------------------------------------------------------------------

  /** Checks the answer to an append. Only what `isKept` is there afterwards. */
  append(
    envelopes: ReadonlyArray<Envelope>,
    appended: ReadonlyArray<Appended>,
    at: Moment,
    isKept: boolean
  ): void {
    const index = this.next(at)
    equal(appended.length, envelopes.length, "the number of answers")
    const before = new Map(this.remembered)
    envelopes.forEach((envelope, position) => {
      const { delay = 0, id, idempotencyKey, remember, tag } = envelope
      const answer = appended[position]!
      const due = { low: at.wall.low + delay, high: at.wall.high + delay }
      const key = idempotencyKey === undefined ? undefined : `${tag} ${idempotencyKey}`
      const first = key === undefined ? undefined : this.remembered.get(key)
      if (
        first !== undefined && at.wall.low < first.until.high && (answer.duplicate || at.wall.high < first.until.low)
      ) {
        return equal(answer, { id: first.id, duplicate: true }, `the answer to a duplicate at ${position}`)
      }
      equal(answer, { id, duplicate: false }, `the answer at ${position}`)
      if (key !== undefined) {
        this.remembered.set(key, { id, until: { low: due.low + remember, high: due.high + remember } })
      }
      if (!isKept) return
      const place = index + (position + 1) / 1_000
      this.intents.set(id, {
        envelope,
        due,
        mayBeDue: delay === 0,
        isDue: delay === 0,
        place: delay === 0 ? { low: place, high: place } : { low: Infinity, high: Infinity },
        state: "waiting",
        holder: undefined,
        claims: 0,
        failures: 0,
        crashes: 0,
        isUndecodable: false,
        holdsKey: false
      })
    })
    if (isKept) return
    this.remembered.clear()
    for (const [key, value] of before) this.remembered.set(key, value)
  }

  // Sessions ---------------------------------------------------------------------------------------------------------

  open(name: string, subscriptions: ReadonlyArray<Subscription>, lease: number, at: Moment): Worker {
    this.next(at)
    const worker: Worker = {
      name,
      subscriptions,
      lease,
      isEnded: false,
      beats: true,
      lastBeat: at.steady,
      seen: new Map()
    }
    this.workers.add(worker)
    return worker
  }

  beat(worker: Worker, beat: Beat, at: Moment): void {
    this.next(at)
    equal(beat.isAlive, !worker.isEnded, `whether ${worker.name} is alive`)
    if (worker.isEnded) return
    worker.lastBeat = at.steady
    const others = this.othersOf(worker)
    for (const other of others) {
      if (worker.seen.get(other)?.beat !== other.lastBeat) {
        worker.seen.set(other, { beat: other.lastBeat, at: at.steady })
      }
    }
    if (others.some((other) => this.mustHaveExpired(worker, other, at))) {
      equal(beat.hasExpired, true, `whether ${worker.name} sees that a lease has run out`)
    } else if (!others.some((other) => mayHaveExpired(other, at))) {
      equal(beat.hasExpired, false, `whether ${worker.name} sees that a lease has run out`)
    }
    if (this.claimable(worker).some(({ isDue }) => isDue)) {
      equal(beat.isWaiting, true, `whether something waits for ${worker.name}`)
    } else if (this.allowed(worker).length === 0) {
      equal(beat.isWaiting, false, `whether something waits for ${worker.name}`)
    }
  }

  /** Whether it is known which sessions a recovery would end. */
  canRecover(worker: Worker, at: Moment): boolean {
    return this.othersOf(worker).every((other) => this.mustHaveExpired(worker, other, at) || !mayHaveExpired(other, at))
  }

  recover(worker: Worker, freed: number, at: Moment): void {
    this.next(at)
    // A session that was ended may still clear up after others, or not.
    if (worker.isEnded && freed === 0) return
    const expired = this.othersOf(worker).filter((other) => this.mustHaveExpired(worker, other, at))
    equal(freed, expired.flatMap((other) => this.free(other)).length, "how many deliveries were freed")
  }

  close(worker: Worker, at: Moment): void {
    this.next(at)
    this.free(worker)
  }

  private free(worker: Worker): ReadonlyArray<Intent> {
    const held = this.heldBy(worker)
    for (const intent of held) {
      intent.state = "waiting"
      intent.holder = undefined
    }
    worker.isEnded = true
    worker.beats = false
    this.workers.delete(worker)
    return held
  }

  private heldBy(worker: Worker): ReadonlyArray<Intent> {
    return Array.from(this.intents.values()).filter(({ holder }) => holder === worker)
  }

  private othersOf(worker: Worker): ReadonlyArray<Worker> {
    return Array.from(this.workers).filter((other) => other !== worker)
  }

  private mustHaveExpired(observer: Worker, other: Worker, { steady }: Moment): boolean {
    const seen = observer.seen.get(other)
    return seen?.beat === other.lastBeat && steady.low - seen.at.high >= other.lease
  }

  // Claims -----------------------------------------------------------------------------------------------------------

  claim(worker: Worker, rows: number, claimed: ReadonlyArray<Claimed>, at: Moment): ReadonlyArray<Held> {
    const who = `what ${worker.name} claimed`
    this.next(at, true)
    equal(new Set(idsOf(claimed)).size, claimed.length, `the number of different deliveries in ${who}`)
    isTrue(claimed.length <= rows, `that ${who} has at most ${rows}`)
    if (worker.isEnded) {
      equal(idsOf(claimed), [], who)
      return []
    }
    const wanted = this.claimable(worker)
    const held = claimed.map((each): Held => {
      const intent = this.intents.get(each.id)
      if (intent === undefined) throw new Error(`${who} is a phantom: ${each.id} was never committed`)
      isTrue(this.allowed(worker).includes(intent), `that ${who} may be claimed by it now: ${this.describe(intent)}`)
      const { envelope } = intent
      equal(
        {
          tag: each.tag,
          version: each.version,
          payload: each.payload,
          partitionKey: each.partitionKey,
          traceparent: each.traceparent,
          failures: each.failures,
          crashes: each.crashes,
          isUndecodable: each.undecodableFor !== undefined
        },
        {
          tag: envelope.tag,
          version: envelope.version,
          payload: envelope.payload,
          partitionKey: envelope.partitionKey,
          traceparent: envelope.traceparent,
          failures: intent.failures,
          crashes: intent.crashes,
          isUndecodable: intent.isUndecodable
        },
        `${who}: ${this.describe(intent)}`
      )
      intent.state = "held"
      intent.holder = worker
      intent.claims++
      return { claimed: each, claim: intent.claims }
    })
    const left = wanted.filter(({ isDue, state }) => isDue && state === "waiting")
    if (claimed.length < rows) {
      equal(left.map((intent) => this.describe(intent)), [], `what was left, though ${who} had room for it`)
    }
    for (const { id } of claimed) {
      const taken = this.intents.get(id)!
      for (const other of left) {
        isTrue(!this.comesBefore(other, taken), `that ${this.describe(taken)} is claimed after ${this.describe(other)}`)
      }
    }
    return held
  }

  /** By priority, and those that were never put off or held also by when they were appended. */
  private comesBefore(one: Intent, other: Intent): boolean {
    const [a, b] = [one.envelope, other.envelope]
    if (a.tag !== b.tag || a.version !== b.version) return false
    if (a.partitionKey !== undefined || b.partitionKey !== undefined) return false
    if (a.priority !== b.priority) return a.priority > b.priority
    return one.claims === 0 && isOnFirstWay(one) && isOnFirstWay(other) && one.place.high < other.place.low
  }

  /** What a session may claim. */
  private allowed(worker: Worker): ReadonlyArray<Intent> {
    return Array.from(this.intents.values()).filter((intent) =>
      intent.state === "waiting" && intent.mayBeDue && subscribes(worker, intent)
      && !this.sameKey(intent).some((other) => other.state === "held" || other.place.high < intent.place.low)
    )
  }

  /** What a session must find when it claims, once it is due. */
  private claimable(worker: Worker): ReadonlyArray<Intent> {
    return this.allowed(worker).filter((intent) =>
      this.sameKey(intent).every((other) => !other.mayBeDue || intent.place.high < other.place.low)
    )
  }

  /** The others of its key that are still to be delivered. */
  private sameKey({ envelope }: Intent): ReadonlyArray<Intent> {
    if (envelope.partitionKey === undefined) return []
    return Array.from(this.intents.values()).filter((other) =>
      other.envelope.partitionKey === envelope.partitionKey && other.envelope.tag === envelope.tag
      && other.envelope.id !== envelope.id && (other.state === "waiting" || other.state === "held")
    )
  }

  // Settlements ------------------------------------------------------------------------------------------------------

  holds(worker: Worker, { claim, claimed }: Held): boolean {
    const intent = this.intents.get(claimed.id)!
    return intent.holder === worker && intent.claims === claim
  }

  settle(
    worker: Worker,
    settlements: ReadonlyArray<readonly [Held, Settlement]>,
    lost: ReadonlyArray<string>,
    at: Moment
  ): void {
    const index = this.next(at)
    const expected: Array<string> = []
    for (const [held, settlement] of settlements) {
      const intent = this.intents.get(held.claimed.id)!
      if (!this.holds(worker, held)) {
        expected.push(held.claimed.id)
        continue
      }
      intent.holder = undefined
      this.end(intent, settlement, at, index)
    }
    equal(sorted(lost), sorted(expected), `what ${worker.name} lost`)
  }

  private end(intent: Intent, settlement: Settlement, { wall }: Moment, index: number): void {
    const putOff = (delay: number) => {
      intent.state = "waiting"
      intent.due = { low: wall.low + delay, high: wall.high + delay }
      intent.mayBeDue = delay === 0
      intent.isDue = delay === 0
      // Nothing of its key goes before it, and it waits behind all others.
      intent.holdsKey = intent.envelope.partitionKey !== undefined
      intent.place = intent.holdsKey ? { low: -1, high: -1 } : { low: index, high: Infinity }
    }
    switch (settlement._tag) {
      case "Succeeded":
        intent.state = "gone"
        break
      case "Dead":
        intent.state = "dead"
        break
      case "Released":
        intent.state = "waiting"
        break
      case "Failed":
        intent.failures++
        putOff(settlement.delay)
        break
      case "Snoozed":
        putOff(settlement.delay)
        break
      case "Undecodable":
        intent.isUndecodable = true
        putOff(settlement.delay)
        break
    }
  }

  /** A settlement in a transaction. */
  settleInTransaction(worker: Worker, held: Held, hadLease: boolean, isKept: boolean, at: Moment): void {
    this.next(at)
    equal(hadLease, this.holds(worker, held), `whether ${worker.name} still had its lease`)
    if (!hadLease || !isKept) return
    const intent = this.intents.get(held.claimed.id)!
    intent.holder = undefined
    intent.state = "gone"
  }

  // Counts -----------------------------------------------------------------------------------------------------------

  count({ claimed, dead, delayed, tag, waiting }: Depth, at: Moment): void {
    this.next(at)
    const all = Array.from(this.intents.values()).filter(({ envelope }) => envelope.tag === tag)
    const free = all.filter(({ state }) => state === "waiting")
    equal(dead, all.filter(({ state }) => state === "dead").length, "how many are dead")
    equal(claimed, all.filter(({ state }) => state === "held").length, "how many are claimed")
    equal(waiting + delayed, free.length, "how many wait or are delayed")
    isTrue(waiting >= free.filter(({ isDue }) => isDue).length, "that all wait that are due")
    isTrue(delayed >= free.filter(({ mayBeDue }) => !mayBeDue).length, "that all are delayed that can't be due")
  }

  /** What is still to be delivered. */
  get left(): ReadonlyArray<string> {
    return Array.from(this.intents.values()).flatMap((intent) =>
      intent.state === "waiting" || intent.state === "held" ? [this.describe(intent)] : []
    )
  }

  private describe(intent: Intent): string {
    const { envelope: { partitionKey, priority, version }, failures, state } = intent
    const index = Array.from(this.intents.values()).indexOf(intent)
    return `intent ${index} (${state}, version ${version}, failures ${failures}, ${
      partitionKey === undefined ? `priority ${priority}` : `key ${partitionKey}`
    })`
  }
}

const mayHaveExpired = (other: Worker, { steady }: Moment): boolean => steady.high - other.lastBeat.low >= other.lease

/** It waits to be claimed for the first time, or has just been. */
const isOnFirstWay = ({ claims, envelope }: Intent): boolean => claims <= 1 && envelope.delay === undefined

const subscribes = ({ subscriptions }: Worker, { envelope }: Intent): boolean =>
  subscriptions.some(({ tag, versions }) => tag === envelope.tag && versions.includes(envelope.version))
