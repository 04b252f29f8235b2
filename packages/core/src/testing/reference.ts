/**
 * A small model of a store, to which real ones are compared. It knows what must be, what may be, and what must not.
 *
 * Where time is real, it is known only to lie between two looks at the clock, so every time is such a pair; and where
 * that leaves open what happens, the model goes on from what did happen. Under `TestClock`, nothing is left open.
 */
import type { Appended, Envelope } from "../Envelope.ts"
import type { Block, Entry } from "../Operations.ts"
import type { Beat, Claimed, DeathReason, Depth, Permit, Settlement, Subscription } from "../OutboxStore.ts"
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
  suspicion: Claimed["suspicion"]
  /** Its holder has put on record that it has started. */
  isStarted: boolean
  /** It was claimed as a suspect. */
  isAlone: boolean
  isUndecodable: boolean
  /** It was put off, so it holds its key. */
  holdsKey: boolean
  /** It is a dead letter that keeps the rest of its key from going on. */
  blocksKey: boolean
  reason: DeathReason | undefined
  /** An operator has cancelled it while it was held. */
  isCancelled: boolean
  wasRetried: boolean
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
  /** How many it may run at once. */
  slots: number
}

/** A delivery that somebody believes to hold. */
export interface Held {
  readonly claimed: Claimed
  readonly claim: number
}

/** What an operator means. */
export interface Meant {
  readonly tag: string | undefined
  readonly partitionKey: string | undefined
  readonly ids: ReadonlyArray<string> | undefined
}

/** What all sessions together may run, and start: tokens in so many milliseconds. */
export interface Limits {
  readonly concurrency: number
  readonly tokens: number
  readonly window: number
}

export class Reference {
  readonly intents = new Map<string, Intent>()
  private readonly workers = new Set<Worker>()
  private readonly remembered = new Map<string, {
    readonly id: string
    readonly until: Time
    readonly envelope: Envelope
  }>()
  /** Tags, and keys of them. */
  private readonly paused = new Set<string>()
  private done = 0
  private readonly limits: Limits
  /** The most tokens that there may be, and when that was so. */
  private tokens: number
  private tokensAt: number | undefined

  constructor(limits: Limits) {
    this.limits = limits
    this.tokens = limits.tokens
  }

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
        this.remembered.set(key, { id, until: { low: due.low + remember, high: due.high + remember }, envelope })
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
        suspicion: "none",
        isStarted: false,
        isAlone: false,
        isUndecodable: false,
        holdsKey: false,
        blocksKey: false,
        reason: undefined,
        isCancelled: false,
        wasRetried: false
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
      seen: new Map(),
      slots: 0
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
    for (
      const [isTold, isSuspect, what] of [
        [beat.isWaiting, false, "something waits"],
        [beat.hasSuspects, true, "there is a suspect"]
      ] as const
    ) {
      if (this.claimable(worker, isSuspect).some(({ isDue }) => isDue)) {
        equal(isTold, true, `whether ${what} for ${worker.name}`)
      } else if (this.allowed(worker, isSuspect).length === 0) {
        equal(isTold, false, `whether ${what} for ${worker.name}`)
      }
    }
    const recalled = this.heldBy(worker).filter((intent) => intent.isCancelled || this.isPaused(intent))
    equal(sorted(beat.recalled), sorted(this.idsOf(recalled)), `what is recalled from ${worker.name}`)
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
    equal(freed, expired.flatMap((other) => this.free(other, true)).length, "how many deliveries were freed")
  }

  close(worker: Worker, at: Moment): void {
    this.next(at)
    this.free(worker, false)
  }

  private free(worker: Worker, isCrash: boolean): ReadonlyArray<Intent> {
    const held = this.heldBy(worker)
    for (const intent of held) {
      intent.state = intent.isCancelled ? "gone" : "waiting"
      intent.holder = undefined
      if (!isCrash) continue
      if (intent.isAlone) intent.crashes++
      intent.suspicion = intent.isStarted ? "strong" : "possible"
    }
    worker.isEnded = true
    worker.beats = false
    this.workers.delete(worker)
    return held.filter(({ state }) => state === "waiting")
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
    const wanted = this.claimable(worker, false)
    const runs = new Map<string, ReadonlyArray<Intent>>()
    const held = claimed.map((each): Held => {
      const intent = this.known(each.id, who)
      const key = keyOf(intent.envelope)
      const run = (key === undefined ? undefined : runs.get(key)) ?? []
      if (key !== undefined) runs.set(key, [...run, intent])
      isTrue(
        this.isAllowed(worker, intent, false, run),
        `that ${who} may be claimed by it now: ${this.describe(intent)}`
      )
      isTrue(
        run.every((earlier) => earlier.place.low <= intent.place.high),
        `that ${who} is in the order of its key: ${this.describe(intent)}`
      )
      return this.take(worker, intent, each, false, who)
    })
    for (const run of runs.values()) {
      const { tag } = run[0]!.envelope
      const { perKey = 1 } = worker.subscriptions.find((subscription) => subscription.tag === tag)!
      isTrue(run.length <= perKey, `that ${who} has at most ${perKey} of a key`)
    }
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

  claimSuspect(worker: Worker, claimed: Claimed | undefined, at: Moment): ReadonlyArray<Held> {
    const who = `the suspect that ${worker.name} claimed`
    this.next(at, true)
    if (worker.isEnded) equal(claimed?.id, undefined, who)
    if (claimed === undefined) {
      const missed = worker.isEnded ? [] : this.claimable(worker, true)
      equal(missed.map((intent) => this.describe(intent)), [], `what ${worker.name} could have claimed as a suspect`)
      return []
    }
    const intent = this.known(claimed.id, who)
    isTrue(this.isAllowed(worker, intent, true), `that ${who} may be claimed by it now: ${this.describe(intent)}`)
    return [this.take(worker, intent, claimed, true, who)]
  }

  private known(id: string, who: string): Intent {
    const intent = this.intents.get(id)
    if (intent === undefined) throw new Error(`${who} is a phantom: ${id} was never committed`)
    return intent
  }

  private take(worker: Worker, intent: Intent, claimed: Claimed, isSuspect: boolean, who: string): Held {
    const { envelope } = intent
    equal(
      {
        tag: claimed.tag,
        version: claimed.version,
        payload: claimed.payload,
        partitionKey: claimed.partitionKey,
        traceparent: claimed.traceparent,
        failures: claimed.failures,
        crashes: claimed.crashes,
        suspicion: claimed.suspicion,
        isUndecodable: claimed.undecodableFor !== undefined
      },
      {
        tag: envelope.tag,
        version: envelope.version,
        payload: envelope.payload,
        partitionKey: envelope.partitionKey,
        traceparent: envelope.traceparent,
        failures: intent.failures,
        crashes: intent.crashes,
        suspicion: intent.suspicion,
        isUndecodable: intent.isUndecodable
      },
      `${who}: ${this.describe(intent)}`
    )
    intent.state = "held"
    intent.holder = worker
    intent.claims++
    intent.isStarted = isSuspect
    intent.isAlone = isSuspect
    return { claimed, claim: intent.claims }
  }

  /** By priority, and those that were never put off or held also by when they were appended. */
  private comesBefore(one: Intent, other: Intent): boolean {
    const [a, b] = [one.envelope, other.envelope]
    if (a.tag !== b.tag || a.version !== b.version) return false
    if (a.partitionKey !== undefined || b.partitionKey !== undefined) return false
    if (a.priority !== b.priority) return a.priority > b.priority
    return one.claims === 0 && isOnFirstWay(one) && isOnFirstWay(other) && one.place.high < other.place.low
  }

  /** What a session may claim: suspects, or all others. */
  private allowed(worker: Worker, isSuspect: boolean): ReadonlyArray<Intent> {
    return Array.from(this.intents.values()).filter((intent) => this.isAllowed(worker, intent, isSuspect))
  }

  /** Whether it may be claimed, behind those of its key that are claimed together with it. */
  private isAllowed(worker: Worker, intent: Intent, isSuspect: boolean, run: ReadonlyArray<Intent> = []): boolean {
    return intent.state === "waiting" && intent.mayBeDue && subscribes(worker, intent)
      && (intent.suspicion === "strong") === isSuspect && !this.isPaused(intent)
      && !this.sameKey(intent).some((other) =>
        !run.includes(other)
        && (other.state === "held" || other.state === "dead" || other.place.high < intent.place.low)
      )
  }

  /** What a session must find when it claims, once it is due. */
  private claimable(worker: Worker, isSuspect: boolean): ReadonlyArray<Intent> {
    return this.allowed(worker, isSuspect).filter((intent) =>
      this.sameKey(intent).every((other) => !other.mayBeDue || intent.place.high < other.place.low)
    )
  }

  /** The others of its key that are still to be delivered, or keep it from going on. */
  private sameKey({ envelope }: Intent): ReadonlyArray<Intent> {
    const key = keyOf(envelope)
    if (key === undefined) return []
    return Array.from(this.intents.values()).filter((other) =>
      keyOf(other.envelope) === key && other.envelope.id !== envelope.id
      && (other.state === "waiting" || other.state === "held" || (other.state === "dead" && other.blocksKey))
    )
  }

  private isPaused({ envelope }: Intent): boolean {
    const key = keyOf(envelope)
    return this.paused.has(envelope.tag) || (key !== undefined && this.paused.has(key))
  }

  // Settlements ------------------------------------------------------------------------------------------------------

  holds(worker: Worker, { claim, claimed }: Held): boolean {
    const intent = this.intents.get(claimed.id)!
    return intent.holder === worker && intent.claims === claim
  }

  start(worker: Worker, list: ReadonlyArray<Held>, lost: ReadonlyArray<string>, at: Moment): void {
    this.next(at)
    for (const held of list) if (this.holds(worker, held)) this.intents.get(held.claimed.id)!.isStarted = true
    equal(
      sorted(lost),
      sorted(list.filter((held) => !this.holds(worker, held)).map(({ claimed }) => claimed.id)),
      `what ${worker.name} could not start`
    )
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
      if (settlement._tag !== "Released") intent.suspicion = "none"
      if (intent.isCancelled) intent.state = "gone"
      else this.end(intent, settlement, at, index)
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
        if (settlement.reason === "exhausted" || settlement.reason === "rejected") intent.failures++
        intent.state = "dead"
        intent.reason = settlement.reason
        intent.blocksKey = settlement.blocksKey === true && intent.envelope.partitionKey !== undefined
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

  // Permits ----------------------------------------------------------------------------------------------------------

  /** Checks an answer to a session that runs no more than it was permitted. */
  permit(
    worker: Worker,
    want: { readonly running: number; readonly concurrency: number; readonly tokens: number },
    { concurrency, tokens }: Permit,
    at: Moment
  ): void {
    this.next(at)
    const who = `what ${worker.name} was permitted`
    if (worker.isEnded) return equal([concurrency, tokens], [0, 0], who)
    isTrue(concurrency >= want.running, `that ${who} is at least ${want.running}, which it runs`)
    isTrue(concurrency <= Math.max(want.concurrency, want.running), `that ${who} is no more than it wanted`)
    worker.slots = concurrency
    const all = Array.from(this.workers).reduce((sum, { slots }) => sum + slots, 0)
    isTrue(all <= this.limits.concurrency, `that with ${who} no more than ${this.limits.concurrency} are: ${all}`)
    const since = at.steady.high - (this.tokensAt ?? at.steady.high)
    this.tokens = Math.min(this.limits.tokens, this.tokens + since * this.limits.tokens / this.limits.window)
    this.tokensAt = at.steady.low
    isTrue(tokens <= want.tokens, `that ${who} has no more tokens than it wanted`)
    isTrue(tokens <= this.tokens + 1e-3, `that ${who} has no more tokens than there are: ${tokens} of ${this.tokens}`)
    this.tokens -= tokens
  }

  // Operators --------------------------------------------------------------------------------------------------------

  private meant({ ids, partitionKey, tag }: Meant, states: ReadonlyArray<Intent["state"]>): ReadonlyArray<Intent> {
    return Array.from(this.intents.values()).filter(({ envelope, isCancelled, state }) =>
      states.includes(state) && !isCancelled
      && (tag === undefined || envelope.tag === tag)
      && (partitionKey === undefined || envelope.partitionKey === partitionKey)
      && (ids === undefined || ids.includes(envelope.id))
    )
  }

  cancel(of: Meant, count: number, at: Moment): void {
    this.next(at)
    const meant = this.meant(of, ["waiting", "held"])
    equal(count, meant.length, "how many were cancelled")
    cancelled(meant)
  }

  reject(of: Meant, count: number, at: Moment): void {
    this.next(at)
    const meant = this.meant(of, ["waiting"])
    equal(count, meant.length, "how many were rejected")
    for (const intent of meant) Object.assign(intent, { state: "dead", reason: "rejected", blocksKey: false })
  }

  purge(of: Meant, count: number, at: Moment): void {
    this.next(at)
    const meant = this.meant(of, ["dead"])
    equal(count, meant.length, "how many were purged")
    for (const intent of meant) intent.state = "gone"
  }

  erase(of: Meant, count: number, at: Moment): void {
    this.next(at)
    const meant = this.meant(of, ["waiting", "held", "dead"])
    equal(count, meant.length, "how many were erased")
    cancelled(meant)
    for (const [key, { envelope }] of this.remembered) {
      if (envelope.partitionKey === of.partitionKey && (of.tag === undefined || envelope.tag === of.tag)) {
        this.remembered.delete(key)
      }
    }
  }

  retry(of: Meant, count: number, at: Moment): void {
    const index = this.next(at)
    const meant = this.meant(of, ["dead"])
    equal(count, meant.length, "how many were retried")
    for (const intent of meant) {
      const { blocksKey } = intent
      Object.assign(intent, {
        state: "waiting",
        due: at.wall,
        mayBeDue: true,
        isDue: true,
        place: blocksKey ? { low: -1, high: -1 } : { low: index, high: index },
        failures: 0,
        crashes: 0,
        suspicion: "none",
        isUndecodable: false,
        holdsKey: blocksKey,
        blocksKey: false,
        reason: undefined,
        wasRetried: true
      })
    }
  }

  pause(tag: string, partitionKey: string | undefined, isPaused: boolean, at: Moment): void {
    this.next(at)
    const key = partitionKey === undefined ? tag : `${tag} ${partitionKey}`
    if (isPaused) this.paused.add(key)
    else this.paused.delete(key)
  }

  /** Checks a list of all that there is of a tag. */
  list(tag: string, entries: ReadonlyArray<Entry>, at: Moment): void {
    this.next(at)
    const expected = Array.from(this.intents.values())
      .filter(({ envelope, state }) => envelope.tag === tag && state !== "gone")
      .toSorted((a, b) => a.envelope.id < b.envelope.id ? -1 : 1)
    equal(idsOf(entries), this.idsOf(expected), "what is there")
    for (const [index, intent] of expected.entries()) {
      const { crashes, failures, partitionKey, reason, state } = entries[index]!
      equal(
        { crashes, failures, partitionKey, reason },
        {
          crashes: intent.crashes,
          failures: intent.failures,
          partitionKey: intent.envelope.partitionKey,
          reason: intent.reason
        },
        `what is told of ${this.describe(intent)}`
      )
      isTrue(
        intent.state === "held"
          ? state === "claimed"
          : intent.state === "dead"
          ? state === "dead"
          : (state === "waiting" && intent.mayBeDue) || (state === "delayed" && !intent.isDue),
        `that the state of ${this.describe(intent)} is not ${state}`
      )
    }
  }

  /** Checks why something is not being delivered, as far as that is sure. */
  blocks(id: string, blocks: ReadonlyArray<Block> | undefined, at: Moment): void {
    this.next(at)
    const intent = this.intents.get(id)!
    const what = `what keeps ${this.describe(intent)}`
    if (intent.state === "gone") return equal(blocks, undefined, what)
    const told = new Set((blocks ?? []).map(({ _tag }) => _tag))
    if (intent.state === "dead") return equal(told, new Set(["Dead"]), what)
    const others = this.sameKey(intent)
    const reasons: ReadonlyArray<readonly [Block["_tag"], boolean]> = [
      ["Held", intent.state === "held"],
      ["Paused", this.isPaused(intent)],
      ["Suspect", intent.state === "waiting" && intent.suspicion === "strong"],
      ["KeyBlocked", intent.isDue && others.some(({ state }) => state === "dead")]
    ]
    for (const [reason, isSo] of reasons) {
      if (intent.isDue || reason !== "KeyBlocked") equal(told.has(reason), isSo, `whether ${what} is ${reason}`)
    }
    const isFirst = others.every((other) => (!other.mayBeDue && !other.holdsKey) || intent.place.high < other.place.low)
    if (intent.state === "waiting" && intent.isDue && isFirst) {
      for (const reason of ["NotDue", "Undecodable", "BehindIntent"] as const) {
        equal(told.has(reason), false, `whether ${what} is ${reason}`)
      }
    }
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

  private idsOf(intents: ReadonlyArray<Intent>): ReadonlyArray<string> {
    return intents.map(({ envelope: { id } }) => id)
  }

  private describe(intent: Intent): string {
    const { envelope: { partitionKey, priority, version }, failures, state, suspicion } = intent
    const index = Array.from(this.intents.values()).indexOf(intent)
    return `intent ${index} (${state}, version ${version}, failures ${failures}, suspicion ${suspicion}, ${
      partitionKey === undefined ? `priority ${priority}` : `key ${partitionKey}`
    })`
  }
}

const mayHaveExpired = (other: Worker, { steady }: Moment): boolean => steady.high - other.lastBeat.low >= other.lease

/** It waits to be claimed for the first time, or has just been. */
const isOnFirstWay = ({ claims, envelope, wasRetried }: Intent): boolean =>
  claims <= 1 && envelope.delay === undefined && !wasRetried

const subscribes = ({ subscriptions }: Worker, { envelope }: Intent): boolean =>
  subscriptions.some(({ tag, versions }) => tag === envelope.tag && versions.includes(envelope.version))

/** Of every tag, a key is another one. */
const keyOf = ({ partitionKey, tag }: Envelope): string | undefined =>
  partitionKey === undefined ? undefined : `${tag} ${partitionKey}`

const cancelled = (intents: ReadonlyArray<Intent>): void => {
  for (const intent of intents) {
    if (intent.state === "held") intent.isCancelled = true
    else intent.state = "gone"
  }
}
