/**
 * What an operator sees of a store, and what becomes of what he tells it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Envelope } from "../Envelope.ts"
import type { Block, Entry, Filter } from "../Operations.ts"
import { OutboxStore, type Session } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  everything,
  Fixture,
  freshTag,
  idsOf,
  isBetween,
  none,
  quietAndWaiting,
  settle,
  settlement,
  sorted,
  start,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

const failed = { _tag: "Failed", failure: "it failed" } as const
const rejected = { _tag: "Dead", reason: "rejected", failure: "it was rejected" } as const

export const operators = (test: Test, options: SuiteOptions): void => {
  lists(test, options)
  blocks(test, options)
  deadLetters(test, options)
  cancellations(test, options)
  pauses(test, options)
}

const lists = (test: Test, { elapse, layerKeeping, moment }: SuiteOptions): void => {
  test("a list has the intents of each state, and tells what is known of them", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const { entries, next } = yield* list(fixture, {})
      equal(next, undefined, "where the list goes on")
      const stateOf = (id: string) => entries.find((entry) => entry.id === id)?.state
      equal(
        [given.waiting, given.claimed, given.delayed, given.retried, given.dead].map(({ id }) => stateOf(id)),
        ["waiting", "claimed", "delayed", "delayed", "dead"],
        "their states"
      )
      equal(entries.length, 5, "how many there are")
      const { endedAt, enqueuedAt, ...entry } = entries.find(({ id }) => id === given.dead.id)!
      const expected: Omit<Entry, "endedAt" | "enqueuedAt"> = {
        id: given.dead.id,
        state: "dead",
        tag: fixture.tag,
        version: 1,
        partitionKey: undefined,
        priority: 0,
        failures: 1,
        crashes: 0,
        dueAt: undefined,
        reason: "rejected"
      }
      equal(entry, expected, "what is told of a dead letter")
      isBetween(endedAt ?? 0, enqueuedAt, enqueuedAt + fixture.millis(100), "when it died")
      const delayed = entries.find(({ id }) => id === given.delayed.id)!
      isBetween(
        (delayed.dueAt ?? 0) - delayed.enqueuedAt,
        fixture.millis(999),
        fixture.millis(1_001),
        "how long it is delayed"
      )
      equal([delayed.endedAt, delayed.reason], [undefined, undefined], "how it ended")
      const counted = (yield* fixture.store.operations.counts).find(({ tag }) => tag === fixture.tag)!
      equal({ ...counted, oldest: 0 }, {
        ...none(fixture.tag),
        waiting: 1,
        claimed: 1,
        delayed: 2,
        dead: 1
      }, "how many there are of each state")
    }))

  test("a filter means those that are all of what it says", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const found = (filter: Filter) => Effect.map(list(fixture, filter), ({ entries }) => sorted(idsOf(entries)))
      const means = Effect.fnUntraced(function*(filter: Filter, ...envelopes: ReadonlyArray<Envelope>) {
        equal(yield* found(filter), sorted(idsOf(envelopes)), `what ${JSON.stringify(filter)} means`)
      })
      yield* means({ states: ["dead"] }, given.dead)
      yield* means({ states: ["delayed", "claimed"] }, given.delayed, given.retried, given.claimed)
      yield* means({ states: [] })
      yield* means({ ids: idsOf([given.dead, given.waiting]) }, given.dead, given.waiting)
      yield* means({ ids: idsOf([given.dead, given.waiting]), states: ["waiting"] }, given.waiting)
      yield* means({ ids: [] })
      yield* means({ ids: [fixture.envelope().id] })
      yield* means({ tag: freshTag() })
      yield* means({ partitionKey: "no such key" })
      yield* means({ olderThan: fixture.millis(500) })
      yield* means({ olderThan: 0, states: ["waiting"] }, given.waiting)
      yield* fixture.pass(2)
      const later = fixture.envelope()
      yield* fixture.append(later)
      yield* means({ olderThan: fixture.millis(1), states: ["waiting", "dead"] }, given.waiting, given.dead)
    }))

  test("a list goes on where its last part ended, in the order of ids, whatever comes and goes meanwhile", (fixture) =>
    Effect.gen(function*() {
      const { id: first } = fixture.envelope()
      const envelopes = fixture.envelopes(23)
      const given = envelopes.map((_, index) => envelopes[(index * 7) % 23]!)
      yield* fixture.append(...given)
      const seen: Array<string> = []
      let after: string | undefined
      const sizes: Array<number> = []
      do {
        const page = yield* fixture.store.operations.list({ tag: fixture.tag }, { limit: 10, after })
        sizes.push(page.entries.length)
        seen.push(...idsOf(page.entries))
        after = page.next
        // That the last one is gone does not matter to the next part, nor that another one comes before it.
        if (seen.length === 10) {
          yield* fixture.store.operations.cancel({ tag: fixture.tag, ids: seen.slice(-1) })
          yield* fixture.append({ ...fixture.envelope(), id: first })
        }
      } while (after !== undefined)
      equal(sizes, [10, 10, 3], "how many are in each part")
      equal<ReadonlyArray<string>>(seen, sorted(idsOf(envelopes)), "what was seen")
      const exact = yield* fixture.store.operations.list({ tag: fixture.tag }, { limit: 23 })
      equal([exact.entries.length, exact.next], [23, undefined], "a part that has all there is")
    }))

  test("an intent tells its payload, how it last failed, and what happened to it", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelope = fixture.envelope({ payload: `{"b": [1, 2.50], "a": "é"}` })
      const { operations } = fixture.store
      yield* fixture.append(envelope)
      const before = yield* operations.find(envelope.id)
      equal([before?.payload, before?.failure, before?.history], [envelope.payload, undefined, []], "what is told")
      const endings = [
        { _tag: "Failed", delay: 0, failure: "the first failure" },
        { _tag: "Released" },
        { _tag: "Snoozed", delay: 0 },
        { _tag: "Undecodable", delay: 0, failure: "it can't be read" },
        { _tag: "Dead", reason: "exhausted", failure: "the last failure" }
      ] as const
      for (const ending of endings) yield* settle(session, ending, yield* claimOne(session))
      yield* operations.retry({ ids: [envelope.id] })
      const detail = yield* operations.find(envelope.id)
      equal(detail?.failure, "the last failure", "how it last failed")
      equal(detail?.history.map(({ detail: how, what }) => [what, how]), [
        ["failed", "the first failure"],
        ["snoozed", undefined],
        ["undecodable", "it can't be read"],
        ["dead", "the last failure"],
        ["retried", undefined]
      ], "what happened to it")
      const times = detail!.history.map(({ at }) => at)
      equal(times, times.toSorted((a, b) => a - b), "when it happened")
      isBetween(times[0]!, detail!.enqueuedAt, detail!.enqueuedAt + fixture.millis(100), "when it first failed")
      const { history: _, payload: __, failure: ___, ...entry } = detail!
      equal((yield* list(fixture, {})).entries, [entry], "what a list tells of it")
      equal(yield* operations.find(fixture.envelope().id), undefined, "what is told of one that is not there")
    }))

  test("of many events the last twenty are kept", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope())
      let id = ""
      for (let times = 1; times <= 23; times++) {
        const claimed = yield* claimOne(session)
        id = claimed.id
        yield* settle(session, { _tag: "Failed", delay: 0, failure: `failure ${times}` }, claimed)
      }
      const detail = yield* fixture.store.operations.find(id)
      equal(
        detail?.history.map(({ detail: how }) => how),
        Array.from({ length: 20 }, (_, index) => `failure ${index + 4}`),
        "what happened to it"
      )
    }))

  test("sessions are told with what they can deliver, what they hold, and when their lease ends", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const { close, session } = yield* fixture.openClosable([
        { tag: fixture.tag, versions: [1, 2] },
        { tag: other, versions: [3] }
      ])
      yield* fixture.append(...fixture.envelopes(3))
      yield* session.claim({ ...everything, rows: 2 })
      const mine = Effect.map(
        fixture.store.operations.sessions,
        (sessions) => sessions.filter(({ subscriptions }) => subscriptions.some(({ tag }) => tag === fixture.tag))
      )
      const [live, ...rest] = yield* mine
      equal(rest, [], "other sessions")
      equal(live?.claimed, 2, "how many it holds")
      equal(
        sorted(live!.subscriptions.map(({ tag, version }) => `${tag}/${version}`)),
        sorted([`${fixture.tag}/1`, `${fixture.tag}/2`, `${other}/3`]),
        "what it can deliver"
      )
      isBetween(
        live!.leaseEndsAt - live!.startedAt,
        fixture.millis(9_000),
        fixture.millis(10_100),
        "how long its lease is"
      )
      yield* close
      equal(yield* mine, [], "the sessions once it is closed")
    }))

  if (layerKeeping === undefined) return

  test("what was delivered is kept for as long as the store was told, and can be purged", () =>
    OutboxStore.use(Effect.fnUntraced(function*(store) {
      const fixture = new Fixture(store, elapse, moment)
      const session = yield* fixture.open()
      const [first, second, third] = fixture.envelopes(3) as [Envelope, Envelope, Envelope]
      yield* fixture.append(first, second)
      yield* succeed(session, ...(yield* claim(session)))
      equal(yield* fixture.depth(), none(fixture.tag), "what is left to be delivered")
      const { entries } = yield* list(fixture, { states: ["delivered"] })
      equal(idsOf(entries), sorted(idsOf([first, second])), "what was delivered")
      const [entry] = entries
      isBetween(entry!.endedAt ?? 0, entry!.enqueuedAt, entry!.enqueuedAt + fixture.millis(100), "when it was")
      const [reason] = (yield* store.operations.blocks(first.id)) ?? []
      equal(reason, { _tag: "Delivered", at: entry!.endedAt ?? 0 }, "why it is not being delivered")
      equal((yield* store.operations.find(first.id))?.payload, first.payload, "its payload")
      equal(yield* store.operations.retry({ tag: fixture.tag }), 0, "how many are retried")
      equal(yield* store.operations.purge({ ids: [first.id] }), 1, "how many are purged")
      equal(yield* store.operations.find(first.id), undefined, "what is told of one that is purged")
      yield* fixture.pass(3)
      yield* fixture.append(third)
      yield* succeed(session, yield* claimOne(session))
      yield* fixture.pass(3)
      const left = yield* list(fixture, {})
      equal(idsOf(left.entries), [third.id], "what is left after a time")
    })).pipe(Effect.scoped, Effect.provide(layerKeeping(Duration.times(moment, 5)), { local: true })))
}

const blocks = (test: Test, { capabilities }: SuiteOptions): void => {
  test("what the next claim may take is not blocked, and of what is not there nothing is told", (fixture) =>
    Effect.gen(function*() {
      yield* fixture.open()
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      equal(yield* blocksOf(fixture, envelope), [], "why it is not being delivered")
      equal(yield* fixture.store.operations.blocks(fixture.envelope().id), undefined, "what is told of one not there")
    }))

  test("an intent tells that no worker knows it", (fixture) =>
    Effect.gen(function*() {
      const [known, newer] = [fixture.envelope(), fixture.envelope({ version: 2 })]
      yield* fixture.append(known, newer)
      const noWorker = (version: number): Block => ({ _tag: "NoWorker", tag: fixture.tag, version })
      equal(yield* blocksOf(fixture, known), [noWorker(1)], "why it is not being delivered without a session")
      yield* fixture.open()
      equal(yield* blocksOf(fixture, known), [], "why it is not being delivered with a session")
      equal(yield* blocksOf(fixture, newer), [noWorker(2)], "why a newer one is not being delivered")
    }))

  test("an intent tells that it is not due, held, put off as unreadable, or dead, and since when", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const detailOf = (envelope: Envelope) => Effect.map(fixture.store.operations.find(envelope.id), (found) => found!)
      for (const each of [given.delayed, given.retried]) {
        const { dueAt = 0 } = yield* detailOf(each)
        equal(yield* blocksOf(fixture, each), [{ _tag: "NotDue", dueAt }], "why it is not being delivered")
      }
      const [held, ...others] = yield* blocksOf(fixture, given.claimed)
      const live = (yield* fixture.store.operations.sessions).find(({ subscriptions }) =>
        subscriptions.some(({ tag }) => tag === fixture.tag)
      )!
      equal(others, [], "why else it is not being delivered")
      isTrue(held?._tag === "Held" && held.session === live.session, "that it tells who holds it")
      const [dead] = yield* blocksOf(fixture, given.dead)
      const { endedAt = 0 } = yield* detailOf(given.dead)
      equal(dead, { _tag: "Dead", since: endedAt, reason: "rejected", failure: "it was rejected" }, "why it is dead")
      yield* settle(
        session,
        { _tag: "Undecodable", delay: fixture.millis(1_000), failure: "?" },
        yield* claimOne(session)
      )
      const { dueAt = 0, history } = yield* detailOf(given.waiting)
      equal(
        yield* blocksOf(fixture, given.waiting),
        [{ _tag: "Undecodable", since: history[0]!.at, dueAt }],
        "why it is not being delivered"
      )
    }))

  test("an intent tells that it is a suspect", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      yield* start(dead, yield* claimOne(dead))
      yield* fixture.outlive(observer)
      yield* observer.recover
      equal(yield* blocksOf(fixture, envelope), [{ _tag: "Suspect" }], "why it is not being delivered")
      const { history } = (yield* fixture.store.operations.find(envelope.id))!
      equal(history.map(({ what }) => what), ["crashed"], "what happened to it")
      yield* observer.claimSuspect
      equal((yield* blocksOf(fixture, envelope)).map(({ _tag }) => _tag), ["Held"], "why it is not while it is claimed")
    }))

  test("an intent tells of each limit that is reached", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open([
        { tag: fixture.tag, versions: [1], concurrency: 2, rateLimit: { limit: 3, window: fixture.moments(10_000) } }
      ])
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      const reached = Effect.map(
        blocksOf(fixture, envelope),
        (all) => all.map((block) => block._tag === "LimitReached" ? block.limit : block._tag)
      )
      const ask = (running: number, tokens: number) =>
        session.permit([{ tag: fixture.tag, running, concurrency: 2, tokens }])
      equal(yield* reached, [], "the limits that are reached at first")
      yield* ask(1, 2)
      equal(yield* reached, [], "the limits that are reached while one runs")
      yield* ask(2, 0)
      equal(yield* reached, ["concurrency"], "the limits that are reached while two run")
      yield* ask(2, 1)
      equal(yield* reached, ["concurrency", "rateLimit"], "the limits that are reached when three have started")
      yield* ask(0, 0)
      equal(yield* reached, ["rateLimit"], "the limits that are reached when nothing runs")
    }))

  if (!capabilities.ordered) return

  test("an intent tells which of its key comes before it, and which dead letter blocks its key", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const partitionKey = "k"
      const [first, second, third] = fixture.envelopes(3, { partitionKey }) as [Envelope, Envelope, Envelope]
      yield* fixture.append(first, second, third)
      equal(yield* blocksOf(fixture, first), [], "why the first is not being delivered")
      for (const each of [second, third]) {
        equal(
          yield* blocksOf(fixture, each),
          [{ _tag: "BehindIntent", id: first.id, partitionKey }],
          "why one behind it is not being delivered"
        )
      }
      yield* settle(session, { ...rejected, blocksKey: true }, yield* claimOne(session))
      const blocked: Block = { _tag: "KeyBlocked", by: first.id, partitionKey }
      equal(yield* blocksOf(fixture, second), [blocked], "why the second is not being delivered")
      equal(
        yield* blocksOf(fixture, third),
        [{ _tag: "BehindIntent", id: second.id, partitionKey }, blocked],
        "why the third is not being delivered"
      )
    }))

  test("an intent tells every reason for which it is not being delivered", (fixture) =>
    Effect.gen(function*() {
      const partitionKey = "k"
      const [first, second] = fixture.envelopes(2, { partitionKey }) as [Envelope, Envelope]
      yield* fixture.append(first, second)
      const { tag } = fixture
      yield* fixture.store.operations.pause({ tag, partitionKey: undefined })
      yield* fixture.store.operations.pause({ tag, partitionKey })
      const told = (yield* blocksOf(fixture, second)).map(({ _tag }) => _tag)
      equal(told, ["BehindIntent", "NoWorker", "Paused", "Paused"], "why it is not being delivered")
      yield* fixture.store.operations.resume({ tag, partitionKey: undefined })
      yield* fixture.store.operations.resume({ tag, partitionKey })
    }))
}

const deadLetters = (test: Test, { capabilities }: SuiteOptions): void => {
  test("each reason for which an intent is dead is told, and only an attempt is counted", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const reasons = ["exhausted", "rejected", "undecodable", "crashed"] as const
      yield* fixture.append(...fixture.envelopes(reasons.length))
      const claimed = yield* claim(session)
      yield* session.settle(reasons.map((reason, index) => ({
        _tag: "Dead",
        claimed: claimed[index]!,
        reason,
        failure: `it is ${reason}`
      })))
      for (const [index, reason] of reasons.entries()) {
        const detail = yield* fixture.store.operations.find(claimed[index]!.id)
        equal(detail?.reason, reason, "why it is dead")
        equal(detail?.failure, `it is ${reason}`, "how it failed")
        equal(detail?.failures, reason === "exhausted" || reason === "rejected" ? 1 : 0, "its failures")
      }
    }))

  test("a dead letter that is retried is due at once, and nothing is counted of what was before", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(3))
      for (const ending of [{ ...failed, delay: 0 }, { _tag: "Undecodable", delay: 0, failure: "?" }] as const) {
        yield* settle(session, ending, ...(yield* claim(session)))
      }
      const claimed = yield* claim(session)
      yield* settle(session, rejected, ...claimed)
      const waiting = yield* Effect.forkScoped(session.wakes)
      const { retry } = fixture.store.operations
      equal(yield* retry({ ids: [claimed[0]!.id], states: ["waiting"] }), 0, "how many are retried that wait")
      equal(yield* retry({ ids: [claimed[0]!.id] }), 1, "how many are retried")
      yield* Fiber.join(waiting)
      const again = yield* claimOne(session)
      equal(again.id, claimed[0]!.id, "what is claimed")
      equal(
        [again.failures, again.crashes, again.suspicion, again.undecodableFor],
        [0, 0, "none", undefined],
        "what is counted"
      )
      equal(yield* retry({ ids: [again.id] }), 0, "how many are retried that are claimed")
      yield* succeed(session, again)
      equal(yield* retry({ tag: fixture.tag }), 2, "how many others are retried")
      yield* claimExactly(session, idsOf(claimed.slice(1)))
    }))

  test("what waits or is delayed can be rejected, and what is claimed can't", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const { reject, retry } = fixture.store.operations
      equal(yield* reject({ tag: fixture.tag }, "there is no such order"), 3, "how many are rejected")
      yield* claimNothing(session)
      equal(yield* fixture.depth(), { ...none(fixture.tag), claimed: 1, dead: 4 }, "what there is")
      const detail = yield* fixture.store.operations.find(given.retried.id)
      equal(
        [detail?.state, detail?.reason, detail?.failure, detail?.failures],
        ["dead", "rejected", "there is no such order", 1],
        "what is told of one"
      )
      equal(yield* retry({ ids: [given.delayed.id] }), 1, "how many are retried")
      yield* claimExactly(session, [given.delayed.id])
    }))

  test("dead letters that are purged are gone, and nothing else is", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const { find, purge, retry } = fixture.store.operations
      equal(yield* purge({ tag: fixture.tag, olderThan: fixture.millis(1_000) }), 0, "how many old ones are purged")
      equal(yield* purge({ tag: fixture.tag }), 1, "how many are purged")
      equal(yield* purge({ tag: fixture.tag }), 0, "how many are purged after that")
      equal(yield* retry({ tag: fixture.tag }), 0, "how many are retried")
      equal(yield* find(given.dead.id), undefined, "what is told of it")
      yield* claimExactly(session, [given.waiting.id])
      equal((yield* fixture.depth()).delayed, 2, "how many are delayed")
    }))

  if (!capabilities.ordered) return
  const partitionKey = "k"

  test("a dead letter that blocks its key goes first in it when it is retried", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open([{ tag: fixture.tag, versions: [1], perKey: 3 }])
      const [first, second, third, other] = [...fixture.envelopes(3, { partitionKey }), fixture.envelope()] as [
        Envelope,
        Envelope,
        Envelope,
        Envelope
      ]
      yield* fixture.append(first, second)
      const [head, behind] = yield* claim(session)
      yield* session.settle([
        { ...rejected, claimed: head!, blocksKey: true },
        { _tag: "Released", claimed: behind! }
      ])
      yield* fixture.append(third, other)
      yield* succeed(session, ...(yield* claimExactly(session, [other.id])))
      equal((yield* session.beat).isWaiting, false, "whether something waits")
      const waiting = yield* Effect.forkScoped(session.wakes)
      yield* fixture.pass(1)
      equal(yield* fixture.store.operations.retry({ tag: fixture.tag }), 1, "how many are retried")
      yield* Fiber.join(waiting)
      equal(idsOf(yield* claim(session)), idsOf([first, second, third]), "the order of the key")
    }))

  for (const operation of ["purge", "erase"] as const) {
    test(`a key goes on when the dead letter that blocks it is gone: ${operation}`, (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        const [first, second] = [fixture.envelope({ partitionKey }), fixture.envelope({ partitionKey })]
        yield* fixture.append(first, ...(operation === "purge" ? [second] : []))
        yield* settle(session, { ...rejected, blocksKey: true }, ...(yield* claimExactly(session, [first.id])))
        yield* claimNothing(session)
        const { erase, purge } = fixture.store.operations
        const { tag } = fixture
        equal(yield* operation === "purge" ? purge({ tag }) : erase({ tag, partitionKey }), 1, "how many are gone")
        if (operation === "erase") yield* fixture.append(second)
        yield* claimExactly(session, [second.id])
      }))
  }

  test("a dead letter that was passed joins the end of its key when it is retried, and so does one that was rejected", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [first, second, third, fourth] = fixture.envelopes(4, { partitionKey }) as [
        Envelope,
        Envelope,
        Envelope,
        Envelope
      ]
      yield* fixture.append(first, second, third, fourth)
      yield* settle(session, rejected, ...(yield* claimExactly(session, [first.id])))
      const { reject, retry } = fixture.store.operations
      equal(yield* reject({ ids: [second.id] }, "?"), 1, "how many are rejected")
      equal(yield* retry({ tag: fixture.tag, ids: [second.id] }), 1, "how many are retried")
      equal(yield* retry({ tag: fixture.tag }), 1, "how many others are retried")
      for (const { id } of [third, fourth, second, first]) {
        yield* succeed(session, ...(yield* claimExactly(session, [id])))
      }
    }))
}

const cancellations = (test: Test, { capabilities }: SuiteOptions): void => {
  test("what waits or is delayed is gone when it is cancelled, and dead letters are not", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const given = yield* oneOfEach(fixture, session)
      const { cancel, find } = fixture.store.operations
      equal(yield* cancel({ tag: fixture.tag, states: ["waiting", "delayed", "dead"] }), 3, "how many are cancelled")
      yield* claimNothing(session)
      equal(yield* fixture.depth(), { ...none(fixture.tag), claimed: 1, dead: 1 }, "what there is")
      equal(yield* find(given.retried.id), undefined, "what is told of one")
      equal(yield* cancel({ ids: [given.dead.id, fixture.envelope().id] }), 0, "how many are cancelled that can't be")
    }))

  test("what is claimed is recalled from its session when it is cancelled, and gone whatever it is settled as", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* fixture.open(), yield* fixture.open()]
      const endings = [
        { _tag: "Succeeded" },
        { ...failed, delay: 0 },
        { _tag: "Snoozed", delay: 0 },
        { _tag: "Undecodable", delay: 0, failure: "?" },
        rejected,
        { _tag: "Released" }
      ] as const
      yield* fixture.append(...fixture.envelopes(endings.length + 1))
      const [kept, ...claimed] = yield* claim(session)
      equal((yield* session.beat).recalled, [], "what is recalled at first")
      const { cancel } = fixture.store.operations
      equal(yield* cancel({ ids: idsOf(claimed) }), endings.length, "how many are cancelled")
      equal(yield* cancel({ ids: idsOf(claimed) }), 0, "how many are cancelled the second time")
      equal(sorted((yield* session.beat).recalled), sorted(idsOf(claimed)), "what is recalled")
      equal((yield* other.beat).recalled, [], "what is recalled from another session")
      equal((yield* fixture.depth()).claimed, endings.length + 1, "how many are claimed meanwhile")
      const lost = yield* session.settle(endings.map((ending, index) => settlement(claimed[index]!, ending)))
      equal(lost, [], "what was lost")
      equal((yield* session.beat).recalled, [], "what is recalled in the end")
      yield* claimNothing(other)
      equal(yield* fixture.depth(), { ...none(fixture.tag), claimed: 1 }, "what there is")
      yield* succeed(session, kept!)
    }))

  test("what is cancelled while it is claimed is gone when its session closes, or is ended", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      const { close, session } = yield* fixture.openClosable()
      yield* fixture.append(...fixture.envelopes(4))
      const held = yield* dead.claim({ ...everything, rows: 2 })
      yield* start(dead, held[0]!)
      const theirs = yield* session.claim({ ...everything, rows: 2 })
      const ids = [held[0]!.id, theirs[0]!.id]
      equal(yield* fixture.store.operations.cancel({ ids }), 2, "how many are cancelled")
      yield* close
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 1, "what was freed")
      equal(yield* observer.claimSuspect, undefined, "the suspect")
      yield* claimExactly(observer, [held[1]!.id, theirs[1]!.id])
    }))

  test("a suspect can be cancelled, and retried after it was rejected", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      yield* fixture.append(...fixture.envelopes(2))
      const held = yield* claim(dead)
      yield* start(dead, ...held)
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 2, "what was freed")
      const { cancel, reject, retry } = fixture.store.operations
      equal(yield* cancel({ ids: [held[0]!.id] }), 1, "how many are cancelled")
      equal(yield* reject({ ids: [held[1]!.id] }, "?"), 1, "how many are rejected")
      equal((yield* observer.beat).hasSuspects, false, "whether there are suspects")
      equal(yield* observer.claimSuspect, undefined, "the suspect")
      equal(yield* retry({ ids: [held[1]!.id] }), 1, "how many are retried")
      const again = yield* claimOne(observer)
      equal([again.id, again.crashes, again.suspicion], [held[1]!.id, 0, "none"], "what is claimed")
    }))

  test("an idempotency key stays remembered when its intent is cancelled", (fixture) =>
    Effect.gen(function*() {
      const [first] = yield* fixture.append(fixture.envelope({ idempotencyKey: "i" }))
      yield* fixture.store.operations.cancel({ ids: [first!.id] })
      const appended = yield* fixture.append(fixture.envelope({ idempotencyKey: "i" }))
      equal(appended, [{ id: first!.id, duplicate: true }], "the answer to the second")
    }))

  if (!capabilities.ordered) return

  test("a key goes on when its first intent is cancelled, but not before the session that holds it lets go of it", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* fixture.open(), yield* fixture.open()]
      const [first, second, third, fourth] = fixture.envelopes(4, { partitionKey: "k" }) as [
        Envelope,
        Envelope,
        Envelope,
        Envelope
      ]
      yield* fixture.append(first, second, third, fourth)
      const { cancel } = fixture.store.operations
      yield* cancel({ ids: idsOf([first, third]) })
      const [claimed] = yield* claimExactly(session, [second.id])
      yield* cancel({ ids: [second.id] })
      yield* claimNothing(other)
      yield* settle(session, { ...failed, delay: fixture.millis(1_000) }, claimed!)
      yield* claimExactly(other, [fourth.id])
    }))

  test("a key goes on when the session ends that holds what was cancelled of it", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      const { close, session } = yield* fixture.openClosable()
      const [first, behindFirst] = fixture.envelopes(2, { partitionKey: "1" }) as [Envelope, Envelope]
      const [second, behindSecond] = fixture.envelopes(2, { partitionKey: "2" }) as [Envelope, Envelope]
      yield* fixture.append(first)
      yield* claimExactly(dead, [first.id])
      yield* fixture.append(second)
      yield* claimExactly(session, [second.id])
      yield* fixture.append(behindFirst, behindSecond)
      yield* claimNothing(observer)
      equal(yield* fixture.store.operations.cancel({ ids: idsOf([first, second]) }), 2, "how many are cancelled")
      yield* close
      yield* claimExactly(observer, [behindSecond.id])
      yield* fixture.outlive(observer)
      yield* observer.recover
      yield* claimExactly(observer, [behindFirst.id])
    }))

  test("everything about a key is gone when it is erased, and nothing of others", (fixture) =>
    Effect.gen(function*() {
      const [session, other] = [yield* fixture.open(), yield* fixture.open()]
      const [partitionKey, otherTag] = [`erased ${fixture.tag}`, freshTag()]
      const [dead, claimed, waiting, delayed] = [0, 1, 2, 3].map((index) =>
        fixture.envelope({
          partitionKey,
          idempotencyKey: `i${index}`,
          delay: index === 3 ? fixture.millis(1_000) : undefined
        })
      ) as [Envelope, Envelope, Envelope, Envelope]
      const others = [
        fixture.envelope({ partitionKey: "other", idempotencyKey: "other" }),
        fixture.envelope(),
        fixture.envelope({ partitionKey, tag: otherTag })
      ]
      yield* fixture.append(dead, claimed, waiting, delayed)
      yield* settle(session, rejected, ...(yield* claimExactly(session, [dead.id])))
      const [held] = yield* claimExactly(session, [claimed.id])
      yield* fixture.append(...others)
      const { erase, find } = fixture.store.operations
      equal(yield* erase({ partitionKey, tag: fixture.tag }), 4, "how many are erased")
      equal((yield* session.beat).recalled, [claimed.id], "what is recalled")
      for (const { id } of [dead, waiting, delayed]) equal(yield* find(id), undefined, "what is told of one")
      yield* claimExactly(other, idsOf(others.slice(0, 2)))
      yield* settle(session, { ...failed, delay: 0 }, held!)
      equal(yield* find(claimed.id), undefined, "what is told of the one that was claimed")
      const again = [0, 1, 2, 3].map((index) => fixture.envelope({ idempotencyKey: `i${index}` }))
      equal(
        (yield* fixture.append(...again, fixture.envelope({ idempotencyKey: "other" }))).map((each) => each.duplicate),
        [false, false, false, false, true],
        "which are duplicates after that"
      )
      equal((yield* fixture.depth(otherTag)).waiting, 1, "how many wait of the key in another tag")
      equal(yield* erase({ partitionKey }), 1, "how many are erased in every tag")
      equal(yield* fixture.depth(otherTag), none(otherTag), "what is left in another tag")
    }))
}

const pauses = (test: Test, { capabilities }: SuiteOptions): void => {
  test("nothing of a tag is delivered while it is paused, and its sessions wake when it is resumed", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([fixture.tag, other].map((tag) => ({ tag, versions: [1] })))
      const { paused, pause, resume } = fixture.store.operations
      const mine = Effect.map(paused, (all) => all.filter(({ tag }) => tag === fixture.tag))
      const pausing = { tag: fixture.tag, partitionKey: undefined }
      const [first, second] = [fixture.envelope(), fixture.envelope()]
      yield* fixture.append(first)
      yield* pause(pausing)
      yield* pause(pausing)
      equal(yield* mine, [pausing], "what is paused")
      yield* fixture.append(second, fixture.envelope({ tag: other }))
      equal((yield* claimOne(session)).tag, other, "the tag of what is claimed")
      equal((yield* session.beat).isWaiting, false, "whether something waits")
      equal(yield* blocksOf(fixture, first), [{ _tag: "Paused", ...pausing }], "why it is not being delivered")
      equal((yield* fixture.depth()).waiting, 2, "how many wait")
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* resume(pausing)
      yield* Fiber.join(waiting)
      equal(yield* mine, [], "what is paused in the end")
      yield* claimExactly(session, idsOf([first, second]))
      yield* resume(pausing)
    }))

  test("what is claimed is recalled when its tag is paused, and uncounted when it is released", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const pausing = { tag: fixture.tag, partitionKey: undefined }
      yield* fixture.append(...fixture.envelopes(2))
      const claimed = yield* claim(session)
      yield* fixture.store.operations.pause(pausing)
      equal(sorted((yield* session.beat).recalled), sorted(idsOf(claimed)), "what is recalled")
      yield* succeed(session, claimed[0]!)
      yield* settle(session, { _tag: "Released" }, claimed[1]!)
      equal((yield* session.beat).recalled, [], "what is recalled after that")
      yield* claimNothing(session)
      yield* fixture.store.operations.resume(pausing)
      const again = yield* claimOne(session)
      equal([again.id, again.failures, again.crashes], [claimed[1]!.id, 0, 0], "what is claimed, and counted")
    }))

  test("a suspect is not claimed while its tag is paused", (fixture) =>
    Effect.gen(function*() {
      const [dead, observer] = [yield* fixture.openMortal(), yield* fixture.open()]
      const pausing = { tag: fixture.tag, partitionKey: undefined }
      yield* fixture.append(fixture.envelope())
      yield* start(dead, yield* claimOne(dead))
      yield* fixture.store.operations.pause(pausing)
      yield* fixture.outlive(observer)
      equal(yield* observer.recover, 1, "what was freed")
      equal(yield* observer.claimSuspect, undefined, "the suspect")
      equal((yield* observer.beat).hasSuspects, false, "whether there is one")
      const waiting = yield* quietAndWaiting(fixture, observer)
      yield* fixture.store.operations.resume(pausing)
      yield* Fiber.join(waiting)
      isTrue((yield* observer.claimSuspect) !== undefined, "that there is a suspect again")
    }))

  if (!capabilities.ordered) return

  test("nothing of a key is delivered while it is paused, and then it goes on where it was", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open([{ tag: fixture.tag, versions: [1], perKey: 2 }])
      const { pause, resume } = fixture.store.operations
      const [pausing, wholeTag] = [{ tag: fixture.tag, partitionKey: "k" }, {
        tag: fixture.tag,
        partitionKey: undefined
      }]
      const envelopes = fixture.envelopes(3, { partitionKey: "k" })
      const [other, unkeyed] = [fixture.envelope({ partitionKey: "other" }), fixture.envelope()]
      yield* fixture.append(...envelopes.slice(0, 2))
      yield* pause(pausing)
      yield* fixture.append(...envelopes.slice(2), other, unkeyed)
      yield* claimExactly(session, idsOf([other, unkeyed]))
      equal(
        yield* blocksOf(fixture, envelopes[0]!),
        [{ _tag: "Paused", ...pausing }],
        "why the first is not being delivered"
      )
      // A tag and its keys are apart from each other.
      yield* pause(wholeTag)
      yield* resume(wholeTag)
      yield* claimNothing(session)
      const waiting = yield* quietAndWaiting(fixture, session)
      yield* resume(pausing)
      yield* Fiber.join(waiting)
      const claimed = yield* claim(session)
      equal(idsOf(claimed), idsOf(envelopes.slice(0, 2)), "what is claimed")
      yield* pause(pausing)
      equal(sorted((yield* session.beat).recalled), sorted(idsOf(claimed)), "what is recalled")
      yield* settle(session, { _tag: "Released" }, ...claimed)
      yield* claimNothing(session)
      yield* resume(pausing)
      equal(idsOf(yield* claim(session)), idsOf(envelopes.slice(0, 2)), "what is claimed again")
    }))
}

/** One intent of each state, and one that has failed. Its session can claim only the one that waits. */
const oneOfEach = Effect.fnUntraced(function*(fixture: Fixture, session: Session) {
  const [dead, claimed, retried, waiting] = fixture.envelopes(4) as [Envelope, Envelope, Envelope, Envelope]
  const delayed = fixture.envelope({ delay: fixture.millis(1_000) })
  yield* fixture.append(dead)
  yield* settle(session, rejected, yield* claimOne(session))
  yield* fixture.append(retried)
  yield* settle(session, { ...failed, delay: fixture.millis(1_000) }, yield* claimOne(session))
  yield* fixture.append(claimed)
  yield* claimOne(session)
  yield* fixture.append(waiting, delayed)
  return { dead, claimed, retried, waiting, delayed }
})

/** All of the test's tag. */
const list = (fixture: Fixture, filter: Filter) =>
  fixture.store.operations.list({ tag: fixture.tag, ...filter }, { limit: 1_000 })

/** In the order of what they are. */
const blocksOf = (fixture: Fixture, { id }: Envelope) =>
  Effect.map(fixture.store.operations.blocks(id), (all): ReadonlyArray<Block> => {
    if (all === undefined) throw new Error("The intent is not there")
    return all.toSorted((one, other) => one._tag < other._tag ? -1 : 1)
  })
