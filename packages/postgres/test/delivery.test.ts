// From append over claim to settlement.
import { assert, it } from "@effect/vitest"
import { OutboxStore } from "@epilogue/core/OutboxStore"
import { Effect } from "effect"
import { all, answersOf, envelopes, layerStore, open } from "./Store.ts"

it.layer(layerStore)("delivery", (it) => {
  it.effect("what is appended is claimed in order, as it was, and gone once it has succeeded", () =>
    Effect.gen(function*() {
      const store = yield* OutboxStore
      const added = envelopes(3, { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" })
      assert.deepStrictEqual(answersOf(yield* store.append(added)), added.map(({ id }) => ({ id, duplicate: false })))
      const session = yield* open(store, [added[0]!.tag])
      const claimed = yield* session.claim(all)
      assert.deepStrictEqual(claimed.map(({ id }) => id), added.map(({ id }) => id))
      assert.deepStrictEqual(claimed.map(({ payload }) => payload), added.map(({ payload }) => payload))
      assert.strictEqual(claimed[0]?.traceparent, added[0]?.traceparent)
      assert.deepStrictEqual(yield* session.claim(all), [])
      assert.deepStrictEqual(yield* session.settle(claimed.map((each) => ({ _tag: "Succeeded", claimed: each }))), [])
      assert.deepStrictEqual(
        yield* session.settle(claimed.map((each) => ({ _tag: "Succeeded", claimed: each }))),
        added.map(({ id }) => id)
      )
    }))
})
