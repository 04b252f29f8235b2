/**
 * Random histories, lived by the store and by the model.
 */
import * as Arbitrary from "effect/Arbitrary"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Appended, Envelope } from "../Envelope.ts"
import type { Entry } from "../Operations.ts"
import type { Session, Settlement, Subscription } from "../OutboxStore.ts"
import { equal } from "./check.ts"
import { answersOf, claim, type Ending, everything, Fixture, freshTag, settlement } from "./Fixture.ts"
import { histories, type History, type Item, show, type Step } from "./history.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"
import { type Held, type Limits, type Meant, type Moment, Reference, type Worker } from "./reference.ts"

export const randomHistories = (test: Test, options: SuiteOptions): void => {
  test("whatever happens, nothing is lost or made up, and all is counted right", (_, opened) =>
    Effect.gen(function*() {
      let shown = ""
      const result = yield* Arbitrary.checkEffect(
        histories(options.capabilities),
        (history) =>
          // Each history has a store, a clock and tags of its own.
          opened((store) => live(history, options, (elapse) => new Fixture(store, elapse, options.moment))).pipe(
            Effect.as(true),
            Effect.catchCause((cause) => {
              if (Cause.hasInterruptsOnly(cause)) return Effect.interrupt
              shown = `${Cause.pretty(cause)}\n${show(history)}`
              return Effect.fail(shown)
            })
          ),
        { runs: 500, size: 200, ...options.histories }
      )
      const { _tag } = result
      if (_tag === "Passed") return
      const what = result._tag === "Falsified" && result.failure._tag === "PropertyError" ? result.failure.error : shown
      const replay = result._tag === "Falsified" ? `\nReplay: ${result.replay}` : ""
      throw new Error(`A history on which the store and its model part (${_tag}): ${what}${replay}`)
    }))
}

/** A worker that lives through a history: its session, and what it believes to hold. */
interface Actor {
  readonly model: Worker
  readonly session: Session
  readonly close: Effect.Effect<void>
  held: Array<Held>
  settled: Array<Held>
}

/** How many moments the lease of each worker's sessions is. */
const leases = [9, 9, 13]

const live = Effect.fnUntraced(function*(
  history: History,
  options: SuiteOptions,
  makeFixture: (elapse: SuiteOptions["elapse"]) => Fixture
) {
  const clock = yield* Clock.Clock
  let offset = 0
  const steppedClock: Clock.Clock = {
    sleep: (duration) => clock.sleep(duration),
    currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + offset,
    currentTimeMillis: Effect.sync(() => clock.currentTimeMillisUnsafe() + offset),
    currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(offset) * 1_000_000n,
    currentTimeNanos: Effect.sync(() => clock.currentTimeNanosUnsafe() + BigInt(offset) * 1_000_000n),
    monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: clock.monotonicTimeNanos
  }
  // A store with a clock of its own takes no notice of ours.
  const storeClock = options.capabilities.durable ? clock : steppedClock
  const look = () => ({
    wall: storeClock.currentTimeMillisUnsafe(),
    steady: Number(clock.monotonicTimeNanosUnsafe()) / 1_000_000
  })

  const elapse: SuiteOptions["elapse"] = (duration) =>
    Effect.provideService(options.elapse(duration), Clock.Clock, clock)
  const fixture = makeFixture(elapse)
  const { store } = fixture
  const { operations } = store
  const tags = [fixture.tag, freshTag()] as const
  const limits: Limits = { concurrency: 3, tokens: 4, window: fixture.millis(8) }
  const reference = new Reference(limits)
  const actors: Array<Actor> = []
  const everyone: Array<Actor> = []

  /** Does something, and tells when. */
  const timed = <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    then: (result: A, at: Moment) => void
  ): Effect.Effect<void, E, R> =>
    Effect.suspend(() => {
      const before = look()
      return Effect.map(effect, (result) => {
        const after = look()
        then(result, {
          wall: { low: before.wall, high: after.wall },
          steady: { low: before.steady, high: after.steady }
        })
      })
    })

  const open = Effect.fnUntraced(function*(index: number, subscriptions: ReadonlyArray<Subscription>) {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const lease = leases[index]!
    const opening = Scope.provide(fixture.open(subscriptions, lease), scope)
    const name = `worker ${index} (session ${everyone.length})`
    yield* timed(opening, (session, at) => {
      const model = reference.open(name, subscriptions, fixture.millis(lease), at)
      const actor = { model, session, close: Scope.close(scope, Exit.void), held: [], settled: [] }
      actors[index] = actor
      everyone.push(actor)
    })
  })

  const subscriptionsOf = (index: number): ReadonlyArray<Subscription> =>
    tags.map((tag, ofTag) => ({
      tag,
      versions: index === 0 ? [1] : [1, 2],
      perKey: index === 0 ? undefined : index + 1,
      ...(ofTag === 0
        ? { concurrency: limits.concurrency, rateLimit: { limit: limits.tokens, window: fixture.moments(8) } }
        : {})
    }))

  const beat = ({ model, session }: Actor) => timed(session.beat, (result, at) => reference.beat(model, result, at))

  const claimAs = (actor: Actor, rows: number) =>
    timed(actor.session.claim({ ...everything, rows }), (claimed, at) => {
      actor.held.push(...reference.claim(actor.model, rows, claimed, at))
    })

  const claimSuspectAs = (actor: Actor) =>
    timed(actor.session.claimSuspect, (claimed, at) => {
      actor.held.push(...reference.claimSuspect(actor.model, claimed, at))
    })

  const startAs = (actor: Actor, list: ReadonlyArray<Held>) =>
    timed(
      actor.session.start(list.map(({ claimed }) => claimed)),
      (lost, at) => reference.start(actor.model, list, lost, at)
    )

  const settleAs = (actor: Actor, list: ReadonlyArray<Held>, endingFor: (index: number) => Ending) => {
    const settlements = list.map((held, index) => [held, settlement(held.claimed, endingFor(index))] as const)
    return timed(
      actor.session.settle(settlements.map(([, each]) => each)),
      (lost, at) => reference.settle(actor.model, settlements, lost, at)
    )
  }

  /** Settles some of what a worker believes to hold as a worker does: of a key from the first one on, and all if it fails. */
  const settleSome = (actor: Actor, some: ReadonlyArray<Held>, ending: Ending) => {
    const list: Array<Held> = []
    const endings: Array<Ending> = []
    const left = new Map<string, number>()
    for (const { claimed } of some) left.set(keyOf(claimed), (left.get(keyOf(claimed)) ?? 0) + 1)
    for (const held of actor.held) {
      const key = keyOf(held.claimed)
      const more = left.get(key)
      if (more === undefined) continue
      if (more === 0 && (ending._tag === "Succeeded" || held.claimed.partitionKey === undefined)) continue
      list.push(held)
      endings.push(more === 0 ? { _tag: "Released" } : ending)
      left.set(key, ending._tag === "Succeeded" ? more - 1 : 0)
    }
    actor.held = actor.held.filter((held) => !list.includes(held))
    actor.settled.push(...list)
    return settleAs(actor, list, (index) => endings[index]!)
  }

  const endingOf = (_tag: (Step & { readonly _tag: "Settle" })["ending"], delay: number): Ending => {
    switch (_tag) {
      case "Failed":
      case "Undecodable":
        return { _tag, delay, failure: "it failed" }
      case "Snoozed":
        return { _tag, delay }
      case "Dead":
        return { _tag, reason: "crashed", failure: "it failed" }
      case "Blocked":
        return { _tag: "Dead", reason: "exhausted", failure: "it failed", blocksKey: true }
      case "Succeeded":
      case "Released":
        return { _tag }
    }
  }

  // Whoever else is in the store has other keys.
  const partitionKeyOf = (key: "none" | "a" | "b") => key === "none" ? undefined : `${key} of ${fixture.tag}`

  /** What an operator means, and how the model is told of it. */
  const meantBy = ({ tag, which }: (Step & { readonly _tag: "Cancel" })["of"]): Meant => ({
    tag: tags[tag],
    partitionKey: which === "key a" ? partitionKeyOf("a") : which === "key b" ? partitionKeyOf("b") : undefined,
    ids: which === "the last three" ? Array.from(reference.intents.keys()).slice(-3) : undefined
  })

  const envelopeOf = ({ delay, idempotencyKey, partitionKey, priority, remember, tag, version }: Item): Envelope =>
    fixture.envelope({
      tag: tags[tag],
      version,
      priority,
      partitionKey: partitionKeyOf(partitionKey),
      idempotencyKey: idempotencyKey === "none" ? undefined : idempotencyKey,
      remember: fixture.millis(remember),
      delay: delay === 0 ? undefined : fixture.millis(delay)
    })

  const append = Effect.fnUntraced(function*({ fate, items }: Step & { readonly _tag: "Append" }) {
    const envelopes = items.map(envelopeOf)
    if (fate === "commits") {
      return yield* timed(
        fixture.append(...envelopes),
        (appended, at) => reference.append(envelopes, appended, at, true)
      )
    }
    const half = fate === "rolls back" ? 0 : Math.ceil(envelopes.length / 2)
    const rolledBack: Array<Appended> = []
    const rollBack = Effect.ignore(fixture.client.withTransaction(
      Effect.andThen(
        Effect.map(store.append(envelopes.slice(half)), (appended) => void rolledBack.push(...answersOf(appended))),
        Effect.fail("rolled back")
      )
    ))
    const appending = half === 0
      ? Effect.as(rollBack, [])
      : fixture.client.withTransaction(
        Effect.tap(Effect.map(store.append(envelopes.slice(0, half)), answersOf), rollBack)
      )
    yield* timed(appending, (appended, at) => {
      reference.append(envelopes.slice(0, half), appended, at, true)
      reference.append(envelopes.slice(half), rolledBack, at, false)
    })
    yield* store.wake(envelopes.slice(0, half))
  })

  const pass = Effect.fnUntraced(function*(moments: number) {
    for (let left = moments; left > 0; left -= 2) {
      yield* fixture.pass(Math.min(left, 2))
      yield* Effect.forEach(actors.filter(({ model }) => model.beats), beat)
    }
  })

  const recover = Effect.fnUntraced(function*(actor: Actor) {
    yield* beat(actor)
    const { steady, wall } = look()
    // A little of the time that recovering takes has to be foreseen.
    const soon = { wall: { low: wall, high: wall }, steady: { low: steady, high: steady + fixture.millis(0.5) } }
    if (!reference.canRecover(actor.model, soon)) return
    yield* timed(actor.session.recover, (freed, at) => reference.recover(actor.model, freed, at))
  })

  const step = Effect.fnUntraced(function*(each: Step) {
    switch (each._tag) {
      case "Append":
        return yield* append(each)
      case "Claim":
        return yield* claimAs(actors[each.worker]!, each.rows)
      case "ClaimSuspect":
        return yield* claimSuspectAs(actors[each.worker]!)
      case "Start":
        return yield* startAs(actors[each.worker]!, actors[each.of]!.held.slice(0, each.count))
      case "Settle": {
        const actor = actors[each.worker]!
        const { count, isFromLast } = each
        const some = isFromLast ? actor.held.slice(-count) : actor.held.slice(0, count)
        return yield* settleSome(actor, some, endingOf(each.ending, fixture.millis(each.delay)))
      }
      case "SettleWrongly": {
        const list = actors[each.of]![each.worker === each.of ? "settled" : "held"]
        return yield* settleAs(actors[each.worker]!, list, () => endingOf(each.ending, 0))
      }
      case "SettleInTransaction": {
        const { model, session, held: [held] } = actors[each.worker]!
        if (held === undefined) return
        const isKept = each.fate === "commits"
        let hadLease = false
        const settling = fixture.client.withTransaction(
          Effect.flatMap(session.settleInTransaction(held.claimed), (answer) => {
            hadLease = answer
            return isKept ? Effect.void : Effect.fail("rolled back")
          })
        )
        return yield* timed(
          isKept ? settling : Effect.ignore(settling),
          (_, at) => reference.settleInTransaction(model, held, hadLease, isKept, at)
        )
      }
      case "Stop":
        actors[each.worker]!.model.beats = false
        return
      case "GoOn": {
        const actor = actors[each.worker]!
        actor.model.beats = !actor.model.isEnded
        return yield* beat(actor)
      }
      case "Restart":
        actors[each.worker]!.model.beats = false
        return yield* open(each.worker, subscriptionsOf(each.worker))
      case "Close": {
        const actor = actors[each.worker]!
        yield* timed(actor.close, (_, at) => reference.close(actor.model, at))
        return yield* open(each.worker, subscriptionsOf(each.worker))
      }
      case "Crash": {
        const actor = actors[each.worker]!
        if (each.first === "starts all") yield* startAs(actor, actor.held)
        if (each.first === "claims a suspect") yield* claimSuspectAs(actor)
        actor.model.beats = false
        yield* pass(16)
        yield* recover(actors[each.observer]!)
        if (each.restarts) yield* open(each.worker, subscriptionsOf(each.worker))
        return
      }
      case "Recover":
        return yield* recover(actors[each.worker]!)
      case "Pass":
        return yield* pass(each.moments)
      case "SetClock":
        offset += fixture.millis(each.moments)
        return
      case "Permit": {
        const { model, session } = actors[each.worker]!
        const want = { ...each, tag: tags[0], running: Math.min(each.running, model.slots) }
        return yield* timed(session.permit([want]), ([permit], at) => reference.permit(model, want, permit!, at))
      }
      case "Pause":
      case "Resume": {
        const isPaused = each._tag === "Pause"
        const pause = { tag: tags[each.tag], partitionKey: partitionKeyOf(each.partitionKey) }
        return yield* timed(
          isPaused ? operations.pause(pause) : operations.resume(pause),
          (_, at) => reference.pause(pause.tag, pause.partitionKey, isPaused, at)
        )
      }
      case "Cancel": {
        const of = meantBy(each.of)
        return yield* timed(operations.cancel(of), (count, at) => reference.cancel(of, count, at))
      }
      case "Reject": {
        const of = meantBy(each.of)
        return yield* timed(operations.reject(of, "no longer"), (count, at) => reference.reject(of, count, at))
      }
      case "Retry": {
        const of = meantBy(each.of)
        return yield* timed(operations.retry(of), (count, at) => reference.retry(of, count, at))
      }
      case "Purge": {
        const of = meantBy(each.of)
        return yield* timed(operations.purge(of), (count, at) => reference.purge(of, count, at))
      }
      case "Erase": {
        const key = { tag: each.everyTag ? undefined : tags[0], partitionKey: partitionKeyOf(each.partitionKey)! }
        return yield* timed(
          operations.erase(key),
          (count, at) => reference.erase({ ...key, ids: undefined }, count, at)
        )
      }
      case "Count":
        return yield* Effect.forEach(tags, count, { discard: true })
    }
  })

  const count = Effect.fnUntraced(function*(tag: string) {
    yield* timed(fixture.depth(tag), (depth, at) => reference.count(depth, at))
    const entries: Array<Entry> = []
    const all = Effect.gen(function*() {
      let after: string | undefined
      do {
        const page = yield* operations.list({ tag }, { limit: 4, after })
        entries.push(...page.entries)
        after = page.next
      } while (after !== undefined)
    })
    yield* timed(all, (_, at) => reference.list(tag, entries, at))
    for (const id of Array.from(reference.intents.keys()).slice(-10)) {
      yield* timed(operations.blocks(id), (blocks, at) => reference.blocks(id, blocks, at))
    }
  })

  /** In the end, all that is left is delivered. */
  const drain = Effect.gen(function*() {
    for (const actor of everyone) yield* timed(actor.close, (_, at) => reference.close(actor.model, at))
    for (const tag of tags) {
      for (const key of ["none", "a", "b"] as const) {
        yield* step({ _tag: "Resume", tag: tag === tags[0] ? 0 : 1, partitionKey: key })
      }
    }
    for (const tag of [0, 1] as const) yield* step({ _tag: "Retry", of: { tag, which: "all" } })
    offset += fixture.millis(1_000)
    yield* fixture.pass(9)
    yield* open(2, subscriptionsOf(2))
    const last = actors[2]!
    // Nobody else wants any, and the window has passed.
    const want = { tag: tags[0], running: 0, concurrency: 9, tokens: 9 }
    yield* timed(last.session.permit([want]), ([permit], at) => {
      reference.permit(last.model, want, permit!, at)
      equal([permit!.concurrency, permit!.tokens], [limits.concurrency, limits.tokens], "what one has that is alone")
    })
    for (let before = -1; before !== reference.left.length;) {
      before = reference.left.length
      yield* claimAs(last, everything.rows)
      for (let suspects = -1; suspects !== last.held.length;) {
        suspects = last.held.length
        yield* claimSuspectAs(last)
      }
      yield* settleAs(last, last.held, () => ({ _tag: "Succeeded" }))
      last.held = []
    }
    equal(reference.left, [], "what was never delivered")
    equal(yield* claim(last.session), [], "what was delivered beyond that")
    yield* step({ _tag: "Count" })
  })

  yield* Effect.gen(function*() {
    yield* Effect.forEach([0, 1, 2], (index) => open(index, subscriptionsOf(index)))
    yield* Effect.forEach(
      history,
      (each, index) =>
        Effect.catchCause(step(each), (cause) => Effect.die(new Error(`at step ${index}: ${Cause.pretty(cause)}`)))
    )
    yield* Effect.catchCause(drain, (cause) => Effect.die(new Error(`at the end: ${Cause.pretty(cause)}`)))
  }).pipe(Effect.provideService(Clock.Clock, steppedClock))
})

/** Of one key, or without one each by itself. */
const keyOf = ({ id, partitionKey, tag }: Settlement["claimed"]): string =>
  partitionKey === undefined ? id : `${tag} ${partitionKey}`
