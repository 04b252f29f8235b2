/**
 * Intents come out of a store as they went in.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { Envelope } from "../Envelope.ts"
import type { Claimed } from "../OutboxStore.ts"
import { equal, isTrue } from "./check.ts"
import {
  claim,
  claimExactly,
  claimNothing,
  claimOne,
  everything,
  freshTag,
  idsOf,
  isBetween,
  none,
  settle,
  sorted,
  succeed
} from "./Fixture.ts"
import type { SuiteOptions, Test } from "./OutboxStoreConformance.ts"

const payloads = {
  "an empty string": `""`,
  "null": "null",
  "an empty object": "{}",
  "an empty list": "[]",
  "text of many scripts": JSON.stringify("naïve Ωμέγα 日本語 العربية 👩‍👩‍👧‍👦 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 e\u0301"),
  "control characters": JSON.stringify("\u0000 \u0001 \b \t \n \u2028 \u007f \ufffe \uffff"),
  "half a surrogate pair": JSON.stringify("\ud800 and \udc00"),
  "quotes and backslashes": JSON.stringify(`'"\`\\ \\x00 \\u0000 $1 %s ?;--`),
  "white space around it": " {\n\t\"a\" :  1 } ",
  "a name twice": `{"b":1,"a":2,"b":3}`,
  "numbers that no float holds": "[0.1e-400, 12345678901234567890, 1.0, -0]",
  "a deep nest": "[".repeat(500) + "]".repeat(500)
}

const million = 2 ** 20

export const deliveries = (test: Test, { capabilities }: SuiteOptions): void => {
  test("it says what it can do", ({ store }) =>
    Effect.sync(() => {
      equal(store.capabilities, capabilities, "what it can do")
      equal(store.client !== undefined, capabilities.transactional, "whether it has a client")
      isTrue(store.name.length > 0, "that it has a name")
    }))

  test("what is appended is claimed, and is gone once it has succeeded", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      const claimed = yield* claimOne(session)
      equal(claimed.id, envelope.id, "its id")
      yield* succeed(session, claimed)
      yield* claimNothing(session)
      yield* fixture.pass(1)
      yield* claimNothing(session)
    }))

  test("what waits is there for a session that opens later", (fixture) =>
    Effect.gen(function*() {
      const envelopes = fixture.envelopes(3)
      yield* fixture.append(...envelopes)
      yield* claimExactly(yield* fixture.open(), idsOf(envelopes))
    }))

  test("an append answers for each intent, in the order in which they were given", (fixture) =>
    Effect.gen(function*() {
      const envelopes = fixture.envelopes(50)
      // Their ids are in another order than they are.
      const given = envelopes.map((_, index) => envelopes[(index * 7) % 50]!)
      equal(yield* fixture.append(...given), given.map(({ id }) => ({ id, duplicate: false })), "the answer")
    }))

  test("an append of nothing adds nothing", (fixture) =>
    Effect.gen(function*() {
      equal(yield* fixture.append(), [], "the answer")
      yield* claimNothing(yield* fixture.open())
    }))

  test("what was appended first is claimed first", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelopes = fixture.envelopes(20)
      const given = envelopes.map((_, index) => envelopes[(index * 7) % 20]!)
      yield* fixture.append(...given.slice(0, 10))
      yield* fixture.append(...given.slice(10))
      for (const from of [0, 5, 10, 15]) {
        const claimed = yield* session.claim({ ...everything, rows: 5 })
        equal(sorted(idsOf(claimed)), sorted(idsOf(given.slice(from, from + 5))), `what is claimed from ${from}`)
      }
    }))

  test("every field comes back as it was appended", (fixture) =>
    Effect.gen(function*() {
      const tag = `${freshTag()} naïve 日本語 '"\\`
      const session = yield* fixture.open([{ tag, versions: [7] }])
      const envelope = fixture.envelope({
        tag,
        version: 7,
        payload: `{"b": [1, 2.50], "a": "é"}`,
        partitionKey: capabilities.ordered ? `key ü 日本語 '"\\ %` : undefined,
        idempotencyKey: `idempotency ü 日本語 '"\\ %`,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
      })
      const before = yield* Clock.currentTimeMillis
      yield* fixture.append(envelope)
      const after = yield* Clock.currentTimeMillis
      const { enqueuedAt, token: _, ...claimed } = yield* claimOne(session)
      const expected: Omit<Claimed, "enqueuedAt" | "token"> = {
        id: envelope.id,
        tag,
        version: 7,
        payload: envelope.payload,
        partitionKey: envelope.partitionKey,
        failures: 0,
        crashes: 0,
        suspicion: "none",
        traceparent: envelope.traceparent,
        undecodableFor: undefined
      }
      equal(claimed, expected, "what was claimed")
      // The clock of a database may be another one.
      isBetween(enqueuedAt, before - 1_000, after + 1_000, "when it was enqueued")
    }))

  for (const [what, payload] of Object.entries(payloads)) {
    test(`a payload of ${what} comes back as it was appended`, (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        yield* fixture.append(fixture.envelope({ payload }))
        equal((yield* claimOne(session)).payload, payload, "its payload")
      }))
  }

  test("a payload of 1 MiB comes back as it was appended", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const payload = `"${"é".repeat((million - 2) / 2)}"`
      yield* fixture.append(fixture.envelope({ payload }))
      isTrue((yield* claimOne(session)).payload === payload, "that it came back as it was appended")
    }))

  test("an idempotency key may have a thousand characters", (fixture) =>
    Effect.gen(function*() {
      const idempotencyKey = longKey()
      const [first] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      const [second] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(second, { id: first!.id, duplicate: true }, "the answer to the second")
      const [other] = yield* fixture.append(fixture.envelope({ idempotencyKey: `${idempotencyKey}!` }))
      equal(other!.duplicate, false, "whether another key is a duplicate")
    }))

  if (capabilities.ordered) {
    test("a partition key may have a thousand characters", (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        const partitionKey = longKey()
        yield* fixture.append(...fixture.envelopes(2, { partitionKey }))
        equal((yield* claimOne(session)).partitionKey, partitionKey, "its key")
      }))
  }

  test("thousands of intents of one append are each claimed once", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelopes = fixture.envelopes(3_000)
      yield* fixture.append(...envelopes)
      const claimed = yield* claimAll(session)
      equal(sorted(idsOf(claimed)), sorted(idsOf(envelopes)), "what was claimed")
      yield* succeed(session, ...claimed)
      yield* claimNothing(session)
    }))

  test("a claim has no more deliveries than it asks for, and no fewer than there are", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(10))
      const sizes: Array<number> = []
      for (const rows of [1, 2, 3, 10]) sizes.push((yield* session.claim({ ...everything, rows })).length)
      equal(sizes, [1, 2, 3, 4], "how many were claimed")
    }))

  test("a claim has about as many bytes as it asks for", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const payload = JSON.stringify("x".repeat(9_998))
      const envelopes = fixture.envelopes(20, { payload })
      yield* fixture.append(...envelopes)
      const claimed: Array<Claimed> = []
      while (claimed.length < 20) {
        const some = yield* session.claim({ rows: 100, bytes: 50_000 })
        isBetween(some.length, 1, 6, "the number of 10,000 bytes in a claim of 50,000")
        claimed.push(...some)
      }
      equal(sorted(idsOf(claimed)), sorted(idsOf(envelopes)), "what was claimed")
    }))

  test("a payload larger than a claim is claimed all the same", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const large = fixture.envelope({ payload: JSON.stringify("x".repeat(10_000)) })
      const small = fixture.envelope()
      yield* fixture.append(large, small)
      const limit = { rows: 10, bytes: 1_000 }
      const claimed = [...(yield* session.claim(limit)), ...(yield* session.claim(limit))]
      equal(sorted(idsOf(claimed)), sorted([large.id, small.id]), "what was claimed")
    }))

  test("a flood of one tag keeps no other waiting", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([fixture.tag, other].map((tag) => ({ tag, versions: [1] })))
      const few = fixture.envelopes(2, { tag: other })
      yield* fixture.append(...fixture.envelopes(300))
      yield* fixture.append(...few)
      const claimed = yield* session.claim({ ...everything, rows: 20 })
      equal(sorted(idsOf(claimed.filter(({ tag }) => tag === other))), sorted(idsOf(few)), "what it has of the other")
      equal(claimed.length, 20, "how many it has: what a tag does not use is lent")
    }))

  test("a session claims nothing of other tags and versions, and they wait for one that does", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open()
      const known = fixture.envelope()
      const newer = fixture.envelope({ version: 2 })
      const foreign = fixture.envelope({ tag: other })
      yield* fixture.append(newer, foreign, known)
      yield* succeed(session, ...(yield* claimExactly(session, [known.id])))
      yield* claimNothing(session)
      yield* claimExactly(yield* fixture.open([{ tag: fixture.tag, versions: [2] }]), [newer.id])
      yield* claimExactly(yield* fixture.open([{ tag: other, versions: [1, 2] }]), [foreign.id])
    }))

  test("a session claims all the versions and tags that it subscribes to", (fixture) =>
    Effect.gen(function*() {
      const other = freshTag()
      const session = yield* fixture.open([{ tag: fixture.tag, versions: [1, 2] }, { tag: other, versions: [3] }])
      const envelopes = [
        fixture.envelope({ version: 2 }),
        fixture.envelope({ version: 1 }),
        fixture.envelope({ tag: other, version: 3 })
      ]
      yield* fixture.append(...envelopes)
      yield* claimExactly(session, idsOf(envelopes))
    }))

  test("a session without subscriptions claims nothing", (fixture) =>
    Effect.gen(function*() {
      yield* fixture.append(fixture.envelope())
      const session = yield* fixture.open([])
      yield* claimNothing(session)
      equal((yield* session.beat).isWaiting, false, "whether something waits for it")
    }))

  test("what one session has claimed is claimed by no other, and not again", (fixture) =>
    Effect.gen(function*() {
      const [one, other] = [yield* fixture.open(), yield* fixture.open()]
      yield* fixture.append(fixture.envelope())
      yield* claimOne(one)
      yield* claimNothing(other)
      yield* claimNothing(one)
      yield* fixture.pass(2)
      yield* claimNothing(other)
      yield* claimNothing(one)
    }))

  test("sessions that claim at once never have the same delivery, and miss none", (fixture) =>
    Effect.gen(function*() {
      const sessions = yield* Effect.forEach([1, 2, 3, 4], () => fixture.open())
      const envelopes = fixture.envelopes(400)
      yield* fixture.append(...envelopes)
      const claimed = yield* Effect.forEach(
        sessions,
        Effect.fnUntraced(function*(session) {
          const mine: Array<Claimed> = []
          for (let i = 0; i < 20; i++) mine.push(...(yield* session.claim({ ...everything, rows: 7 })))
          return mine
        }),
        { concurrency: "unbounded" }
      )
      equal(sorted(idsOf(claimed.flat())), sorted(idsOf(envelopes)), "what they claimed together")
    }))

  test("appends side by side are all there", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelopes = Array.from({ length: 20 }, () => fixture.envelopes(5))
      yield* Effect.forEach(envelopes, (each) => fixture.append(...each), { concurrency: 5 })
      yield* claimExactly(session, idsOf(envelopes.flat()))
    }))

  idempotency(test)
  delays(test)
  depths(test)
}

const idempotency = (test: Test): void => {
  const idempotencyKey = "a key"

  test("a second intent with an idempotency key is not added, and is told as a duplicate of the first", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [first, second] = [fixture.envelope({ idempotencyKey }), fixture.envelope({ idempotencyKey })]
      equal(yield* fixture.append(first), [{ id: first.id, duplicate: false }], "the answer to the first")
      equal(yield* fixture.append(second), [{ id: first.id, duplicate: true }], "the answer to the second")
      yield* claimExactly(session, [first.id])
    }))

  test("of one append, only the first with an idempotency key is added", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [before, first, between, second, third, after] = Array.from({ length: 6 }, (_, index) =>
        fixture.envelope(index === 1 || index === 3 || index === 4 ? { idempotencyKey } : {})) as [
          Envelope,
          Envelope,
          Envelope,
          Envelope,
          Envelope,
          Envelope
        ]
      const appended = yield* fixture.append(before, first, between, second, third, after)
      equal(appended, [
        { id: before.id, duplicate: false },
        { id: first.id, duplicate: false },
        { id: between.id, duplicate: false },
        { id: first.id, duplicate: true },
        { id: first.id, duplicate: true },
        { id: after.id, duplicate: false }
      ], "the answer")
      yield* claimExactly(session, idsOf([before, first, between, after]))
    }))

  test("an idempotency key belongs to its tag", (fixture) =>
    Effect.gen(function*() {
      const other = fixture.envelope({ idempotencyKey, tag: freshTag() })
      yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(yield* fixture.append(other), [{ id: other.id, duplicate: false }], "the answer for another tag")
      const newer = fixture.envelope({ idempotencyKey, version: 2 })
      equal((yield* fixture.append(newer))[0]!.duplicate, true, "whether it is a duplicate in another version")
    }))

  for (const _tag of ["Succeeded", "Dead"] as const) {
    test(`an idempotency key is remembered after its delivery has ${_tag === "Dead" ? "died" : "succeeded"}`, (fixture) =>
      Effect.gen(function*() {
        const session = yield* fixture.open()
        const [first] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
        const claimed = yield* claimOne(session)
        yield* session.settle([
          _tag === "Dead" ? { _tag, claimed, reason: "rejected", failure: "" } : { _tag, claimed }
        ])
        const appended = yield* fixture.append(fixture.envelope({ idempotencyKey }))
        equal(appended, [{ id: first!.id, duplicate: true }], "the answer to the second")
        yield* claimNothing(session)
      }))
  }

  test("an idempotency key is forgotten once its time is over, and then the next one counts", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const [first, second, third] = [1, 2, 3].map((each) =>
        fixture.envelope({ idempotencyKey, remember: fixture.millis(each === 2 ? 1_000 : 2) })
      ) as [Envelope, Envelope, Envelope]
      yield* fixture.append(first)
      yield* fixture.pass(3)
      equal(yield* fixture.append(second), [{ id: second.id, duplicate: false }], "the answer after it was forgotten")
      equal(yield* fixture.append(third), [{ id: second.id, duplicate: true }], "the answer to a third")
      yield* claimExactly(session, [first.id, second.id])
    }))

  test("a duplicate does not prolong the time for which its idempotency key is remembered", (fixture) =>
    Effect.gen(function*() {
      yield* fixture.append(fixture.envelope({ idempotencyKey, remember: fixture.millis(4) }))
      const [second] = yield* fixture.append(fixture.envelope({ idempotencyKey, remember: fixture.millis(1_000) }))
      equal(second!.duplicate, true, "whether the second is a duplicate")
      yield* fixture.pass(5)
      const [third] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(third!.duplicate, false, "whether the third is a duplicate")
    }))

  test("an idempotency key is remembered from when its intent is due", (fixture) =>
    Effect.gen(function*() {
      const [remember, delay] = [fixture.millis(3), fixture.millis(3)]
      yield* fixture.append(fixture.envelope({ idempotencyKey, delay, remember }))
      yield* fixture.pass(4)
      const [second] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(second!.duplicate, true, "whether one is a duplicate after the delay")
      yield* fixture.pass(3)
      const [third] = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(third!.duplicate, false, "whether one is a duplicate after the delay and the time to remember")
    }))

  test("thousands of idempotency keys are remembered, each as long as it was to be", (fixture) =>
    Effect.gen(function*() {
      const append = (remember: number) =>
        fixture.append(
          ...Array.from({ length: 3_000 }, (_, index) =>
            fixture.envelope({ idempotencyKey: `${index}`, remember: index % 2 === 0 ? remember : fixture.millis(1) }))
        )
      const first = yield* append(fixture.millis(1_000))
      equal(first.filter(({ duplicate }) => duplicate).length, 0, "how many are duplicates at first")
      yield* fixture.pass(2)
      yield* append(fixture.millis(1_000))
      yield* fixture.pass(2)
      const third = yield* append(fixture.millis(1_000))
      equal(
        third.filter(({ duplicate }) => duplicate).length,
        1_500,
        "how many are duplicates after others were forgotten"
      )
      equal(third[0], { id: first[0]!.id, duplicate: true }, "the answer to one of them")
    }))

  test("an idempotency key may be remembered for ever", (fixture) =>
    Effect.gen(function*() {
      const [first] = yield* fixture.append(fixture.envelope({ idempotencyKey, remember: Infinity }))
      yield* fixture.pass(2)
      const appended = yield* fixture.append(fixture.envelope({ idempotencyKey }))
      equal(appended, [{ id: first!.id, duplicate: true }], "the answer to the second")
    }))

  test("of appends side by side with one idempotency key, one adds its intent", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const answers = yield* Effect.forEach(
        fixture.envelopes(10, { idempotencyKey }),
        (envelope) => fixture.append(envelope),
        { concurrency: 5 }
      )
      const added = answers.flat().filter(({ duplicate }) => !duplicate)
      equal(added.length, 1, "how many were added")
      equal(new Set(idsOf(answers.flat())), new Set(idsOf(added)), "the ids that they were told")
      yield* claimExactly(session, idsOf(added))
    }))
}

const delays = (test: Test): void => {
  test("a delayed intent is due after its delay, and not before", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const later = fixture.envelope({ delay: fixture.millis(16) })
      const soon = fixture.envelope({ delay: fixture.millis(6) })
      yield* fixture.append(later, soon)
      yield* claimNothing(session)
      yield* fixture.pass(7)
      yield* claimExactly(session, [soon.id])
      yield* fixture.pass(10)
      yield* claimExactly(session, [later.id])
    }))

  test("an intent with a time is due then, and not before", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const envelope = fixture.envelope({ runAt: Math.floor(yield* Clock.currentTimeMillis) + fixture.millis(4) })
      yield* fixture.append(envelope)
      yield* claimNothing(session)
      yield* fixture.pass(5)
      yield* claimExactly(session, [envelope.id])
    }))

  test("an intent whose time is over is due at once", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const now = Math.floor(yield* Clock.currentTimeMillis)
      const envelopes = [0, -1, now - 3_600_000].map((runAt) => fixture.envelope({ runAt }))
      yield* fixture.append(...envelopes)
      yield* claimExactly(session, idsOf(envelopes))
    }))

  test("times may have fractions of a millisecond", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(fixture.envelope({ delay: 0.25, idempotencyKey: "k", remember: 1_000.5 }))
      yield* fixture.pass(1)
      const claimed = yield* claimOne(session)
      equal(yield* session.settle([{ _tag: "Failed", claimed, delay: 0.125, failure: "" }]), [], "what was lost")
      yield* fixture.pass(1)
      yield* claimOne(session)
    }))

  test("what is delayed keeps nothing else waiting", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      yield* fixture.append(...fixture.envelopes(50, { delay: fixture.millis(1_000) }))
      const envelope = fixture.envelope()
      yield* fixture.append(envelope)
      const claimed = yield* session.claim({ ...everything, rows: 1 })
      equal(idsOf(claimed), [envelope.id], "what was claimed")
    }))
}

const depths = (test: Test): void => {
  test("depths tell what waits, is claimed, is delayed and is dead, by tag", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const other = freshTag()
      equal(yield* fixture.depth(), none(fixture.tag), "what there is at first")
      yield* fixture.append(
        ...fixture.envelopes(5),
        ...fixture.envelopes(2, { delay: fixture.millis(1_000) }),
        fixture.envelope({ tag: other })
      )
      const claimed = yield* session.claim({ ...everything, rows: 3 })
      yield* session.settle([
        { _tag: "Failed", claimed: claimed[0]!, delay: fixture.millis(1_000), failure: "it failed" },
        { _tag: "Dead", claimed: claimed[1]!, reason: "exhausted", failure: "it failed" }
      ])
      const { oldest: _, ...depth } = yield* fixture.depth()
      equal(depth, { tag: fixture.tag, waiting: 2, claimed: 1, delayed: 3, dead: 1 }, "what there is")
      equal((yield* fixture.depth(other)).waiting, 1, "what waits of the other tag")
    }))

  test("depths tell of a tag of which all is delayed, or claimed, or dead", (fixture) =>
    Effect.gen(function*() {
      yield* fixture.append(fixture.envelope({ delay: fixture.millis(2) }))
      equal(yield* fixture.depth(), { ...none(fixture.tag), delayed: 1 }, "what there is while it is delayed")
      yield* fixture.pass(3)
      const session = yield* fixture.open()
      const claimed = yield* claimOne(session)
      equal(yield* fixture.depth(), { ...none(fixture.tag), claimed: 1 }, "what there is while it is claimed")
      yield* settle(session, { _tag: "Dead", reason: "rejected", failure: "" }, claimed)
      equal(yield* fixture.depth(), { ...none(fixture.tag), dead: 1 }, "what there is while it is dead")
    }))

  test("depths tell how long the oldest of those waiting has been due", (fixture) =>
    Effect.gen(function*() {
      const session = yield* fixture.open()
      const before = yield* Clock.currentTimeMillis
      yield* fixture.append(fixture.envelope({ delay: fixture.millis(2) }))
      yield* fixture.pass(5)
      yield* fixture.append(fixture.envelope())
      const { oldest } = yield* fixture.depth()
      const after = yield* Clock.currentTimeMillis
      // 3 by the model, and what a real clock adds.
      isBetween(oldest, fixture.millis(2), after - before - fixture.millis(2) + 1, "how long the oldest is due")
      yield* succeed(session, ...(yield* claim(session)))
      equal((yield* fixture.depth()).oldest, 0, "how long the oldest is due when there is none")
    }))
}

const claimAll = Effect.fnUntraced(function*(session: Parameters<typeof claim>[0]) {
  const all: Array<Claimed> = []
  while (true) {
    const claimed = yield* claim(session)
    if (claimed.length === 0) return all
    all.push(...claimed)
  }
})

/** Of three bytes each, and nothing that compression could take away. */
const longKey = (): string => {
  let state = 1
  return Array.from({ length: 1_000 }, () => {
    state = (state * 48_271) % 0x7fff_ffff
    return String.fromCharCode(0x4e00 + state % 20_000)
  }).join("")
}
