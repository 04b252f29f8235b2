// Processes that are killed, whatever they are doing.
import { assert, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { layerStore } from "../Store.ts"
import { areDelivered, problems, start } from "./Child.ts"
import { makeTables, random } from "./Shared.ts"

const seed = Number(process.env.FAULT_SEED ?? Date.now() % 100_000)

it.live(`an application and workers that are killed lose nothing and repeat only what they held (seed ${seed})`, () =>
  Effect.gen(function*() {
    yield* makeTables
    const next = random(seed)
    let ids = seed * 100
    const killed = new Set<number>()

    const application = yield* Effect.forkChild(Effect.gen(function*() {
      for (let round = 0; round < 5; round++) {
        const child = yield* start({ role: "application", id: ids++, pace: 10 })
        yield* child.says("boundary", 1 + Math.floor(next() * 80))
        yield* Effect.sleep(next() * 5)
        yield* child.end("SIGKILL")
      }
    }))
    const work = Effect.gen(function*() {
      while (application.pollUnsafe() === undefined) {
        const child = yield* start({ role: "worker", id: ids++, pace: 10 })
        yield* Effect.raceFirst(child.says("begin", 1 + Math.floor(next() * 50)), Fiber.await(application))
        yield* Effect.sleep(next() * 5)
        killed.add(child.id)
        yield* child.end("SIGKILL")
      }
    })
    yield* Effect.all([work, work, Fiber.join(application)], { concurrency: "unbounded" })

    const last = yield* start({ role: "worker", id: ids++, pace: 10 })
    yield* areDelivered
    assert.strictEqual(yield* last.end("SIGTERM"), 0)
    const { business, found } = yield* problems({ isExcused: (worker) => killed.has(worker) })
    assert.deepStrictEqual(found, [], `seed ${seed}`)
    assert.isAbove(business, 50)
  }).pipe(Effect.scoped, Effect.provide(layerStore)))
