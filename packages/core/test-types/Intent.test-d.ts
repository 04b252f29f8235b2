import { Context, type DateTime, Effect, type Exit, Layer, type Result, Schedule, Schema, SchemaGetter } from "effect"
import type { SqlClient } from "effect/sql"
import { describe, expectTypeOf, it } from "vitest"
import {
  Epilogue,
  Intent,
  type IntentSink,
  Outbox,
  OutboxStore,
  OutboxWorker,
  SqlEpilogue,
  TestEpilogue
} from "../src/index.ts"

class Mailer extends Context.Service<Mailer, string>()("Mailer") {}

class SendReceipt extends Intent.make("SendReceipt", {
  payload: { email: Schema.String, orderId: Schema.Int, at: Schema.Date }
}) {}
const Amount = Schema.BigInt.pipe(Schema.brand("Amount"))
class Charge extends Intent.make("Charge", { payload: Amount }) {}
class Order extends Schema.Class<Order>("Order")({ id: Schema.Int }) {
  readonly isOrder = true
}
class Ship extends Intent.make("Ship", { payload: Order }) {}

interface Receipt {
  readonly email: string
  readonly orderId: number
  readonly at: Date
}
type Receipts = Intent.Handler<"SendReceipt">
type Shipments = Intent.Handler<"Ship">

declare const receipt: Receipt
declare const send: Effect.Effect<boolean, "mail", Mailer>
declare const results: Effect.Effect<ReadonlyArray<Exit.Exit<void> | Result.Result<void, "no">>, "mail", Mailer>

describe("make", () => {
  it("tells the tag, the payload of fields and of schemas, and the handler that it takes", () => {
    expectTypeOf(SendReceipt._tag).toEqualTypeOf<"SendReceipt">()
    expectTypeOf<Intent.PayloadOf<typeof SendReceipt>>().toEqualTypeOf<Receipt>()
    expectTypeOf<Intent.PayloadOf<typeof Ship>>().toEqualTypeOf<Order>()
    expectTypeOf<Intent.PayloadOf<typeof Charge>>().toEqualTypeOf<typeof Amount.Type>()
    expectTypeOf<Intent.HandlerOf<typeof SendReceipt>>().toEqualTypeOf<Receipts>()
    expectTypeOf<Receipts>().not.toExtend<Shipments>()
  })

  it("its functions get the payload", () => {
    Intent.make("Keyed", {
      payload: { order: Schema.Int },
      partitionKey: (payload) => {
        expectTypeOf(payload).toEqualTypeOf<{ readonly order: number }>()
        return String(payload.order)
      },
      idempotencyKey: ({ order }) => String(order),
      retry: Schedule.exponential("1 second"),
      version: 2,
      previous: { 1: Schema.Struct({ order: Schema.Int }) }
    })
    // @ts-expect-error there is no such field
    Intent.make("Keyed", { payload: { order: Schema.Int }, partitionKey: ({ customer }) => String(customer) })
    // @ts-expect-error a key is a string
    Intent.make("Keyed", { payload: { order: Schema.Int }, partitionKey: ({ order }) => order })
    // @ts-expect-error there is no such option
    Intent.make("Keyed", { payload: { order: Schema.Int }, attempts: 3 })
    Intent.make("Keyed", { payload: {}, maxCrashes: 1, onExhausted: "block" })
    // @ts-expect-error there is no such way
    Intent.make("Keyed", { payload: {}, onExhausted: "stop" })
    // @ts-expect-error a schedule that fails can't say when
    Intent.make("Keyed", { payload: {}, retry: Schedule.forever.pipe(Schedule.tap(() => Effect.fail("no"))) })
  })

  it("takes no schema that needs services", () => {
    const getter = SchemaGetter.transformEffect((text: string) => Effect.as(Mailer, text))
    const Needy = Schema.String.pipe(Schema.decodeTo(Schema.String, { decode: getter, encode: getter }))
    // @ts-expect-error it needs a service
    Intent.make("Needy", { payload: { text: Needy } })
    // @ts-expect-error it needs a service
    Intent.make("Needy", { payload: Needy })
    // @ts-expect-error it needs a service
    Intent.make("Needy", { payload: {}, previous: { 2: Needy } })
    const passing = SchemaGetter.passthrough<string>()
    const NeedyOut = Schema.String.pipe(Schema.decodeTo(Schema.String, { decode: passing, encode: getter }))
    // @ts-expect-error it needs a service to be encoded
    Intent.make("Needy", { payload: NeedyOut })
    const NeedyIn = Schema.String.pipe(Schema.decodeTo(Schema.String, { decode: getter, encode: passing }))
    // @ts-expect-error it needs a service to be decoded
    Intent.make("Needy", { payload: NeedyIn })
  })

  it("nobody makes an instance of an intent", () => {
    // @ts-expect-error it takes what there is not
    expectTypeOf(new SendReceipt()).toBeObject()
  })
})

describe("defer", () => {
  it("never fails, answers with the id, and requires a boundary alone", () => {
    expectTypeOf(SendReceipt.defer(receipt)).toEqualTypeOf<Effect.Effect<Intent.Id, never, Epilogue.Deferred>>()
    expectTypeOf(Epilogue.atomic(SendReceipt.defer(receipt))).toEqualTypeOf<
      Effect.Effect<Intent.Id, Epilogue.EpilogueError<Intent.Id> | Epilogue.CommitError, Epilogue.Epilogue>
    >()
    expectTypeOf<Intent.Id>().toExtend<string>()
    expectTypeOf<string>().not.toExtend<Intent.Id>()
  })

  it("checks the payload", () => {
    // @ts-expect-error a field is missing
    expectTypeOf(SendReceipt.defer({ email: "ada@example.com", orderId: 7 })).toBeObject()
    // @ts-expect-error a field is of another type
    expectTypeOf(SendReceipt.defer({ ...receipt, orderId: "7" })).toBeObject()
    // @ts-expect-error there is no such field
    expectTypeOf(SendReceipt.defer({ email: "ada@example.com", orderId: 7, at: new Date(), copies: 2 })).toBeObject()
    // @ts-expect-error a date is deferred as a date
    expectTypeOf(SendReceipt.defer({ ...receipt, at: "2026-01-01" })).toBeObject()
    // @ts-expect-error it has not the brand
    expectTypeOf(Charge.defer(5n)).toBeObject()
    expectTypeOf(Charge.defer(Amount.make(5n))).toBeObject()
    // @ts-expect-error it is no instance of the class
    expectTypeOf(Ship.defer({ id: 7 })).toBeObject()
    expectTypeOf(Ship.defer(new Order({ id: 7 }))).toBeObject()
    // @ts-expect-error a payload is missing
    expectTypeOf(SendReceipt.defer()).toBeObject()
  })

  it("checks the options", () => {
    expectTypeOf(SendReceipt.defer).parameter(1).toEqualTypeOf<Intent.DeferOptions | undefined>()
    expectTypeOf(SendReceipt.defer(receipt, { delay: "1 minute", idempotencyKey: "a", partitionKey: "b", priority: 1 }))
      .toBeObject()
    expectTypeOf(SendReceipt.defer(receipt, { runAt: new Date() })).toBeObject()
    // @ts-expect-error there is no such option
    expectTypeOf(SendReceipt.defer(receipt, { dealy: "1 minute" })).toBeObject()
    // @ts-expect-error it is no duration
    expectTypeOf(SendReceipt.defer(receipt, { delay: "soon" })).toBeObject()
  })
})

describe("toLayer", () => {
  it("provides the handler, and requires what the handler requires", () => {
    expectTypeOf(SendReceipt.toLayer(() => send)).toEqualTypeOf<Layer.Layer<Receipts, never, Mailer>>()
    expectTypeOf(SendReceipt.toLayer(() => Effect.void)).toEqualTypeOf<Layer.Layer<Receipts>>()
    expectTypeOf(SendReceipt.toLayer(() => send, {})).toEqualTypeOf<Layer.Layer<Receipts, never, Mailer>>()
    expectTypeOf(SendReceipt.toLayer(() => send, { transactional: false })).toEqualTypeOf<
      Layer.Layer<Receipts, never, Mailer>
    >()
  })

  it("takes limits over all workers, for handlers of each kind", () => {
    const limits = { concurrency: 2, rateLimit: { limit: 100, window: "1 minute" } } as const
    expectTypeOf(limits).toExtend<Intent.LimitOptions>()
    expectTypeOf(SendReceipt.toLayer(() => send, limits)).toEqualTypeOf<Layer.Layer<Receipts, never, Mailer>>()
    expectTypeOf(SendReceipt.toLayer(() => send, { ...limits, transactional: true })).toEqualTypeOf<
      Layer.Layer<Receipts, never, Mailer>
    >()
    expectTypeOf(SendReceipt.toLayerBatched(() => results, { ...limits, maxSize: 10, maxWait: "1 second" }))
      .toEqualTypeOf<Layer.Layer<Receipts, never, Mailer>>()
    // @ts-expect-error a rate is one of a time
    SendReceipt.toLayer(() => send, { rateLimit: { limit: 100 } })
    // @ts-expect-error it is no duration
    SendReceipt.toLayer(() => send, { rateLimit: { limit: 100, window: "a while" } })
    // @ts-expect-error there is no such option
    SendReceipt.toLayer(() => send, { concurency: 2 })
  })

  it("gives the handler a payload and a delivery", () => {
    SendReceipt.toLayer((payload, delivery) => {
      expectTypeOf(payload).toEqualTypeOf<Receipt>()
      expectTypeOf(delivery).toEqualTypeOf<Intent.Delivery<Receipt>>()
      expectTypeOf(delivery.id).toEqualTypeOf<string>()
      expectTypeOf(delivery.attempt).toEqualTypeOf<number>()
      expectTypeOf(delivery.crashes).toEqualTypeOf<number>()
      expectTypeOf(delivery.enqueuedAt).toEqualTypeOf<DateTime.Utc>()
      return Effect.void
    })
    SendReceipt.toLayer(Effect.fnUntraced(function*({ email }) {
      expectTypeOf(email).toEqualTypeOf<string>()
      yield* send
    }))
    // @ts-expect-error the payload is of another type
    SendReceipt.toLayer((payload: { readonly email: number }) => Effect.succeed(payload))
    // @ts-expect-error it answers with no effect
    SendReceipt.toLayer(() => undefined)
  })

  it("a handler that is not transactional leaves Deferred to whoever provides the layer, and one that is has it", () => {
    const cascade = Effect.andThen(Ship.defer(new Order({ id: 7 })), send)
    expectTypeOf(SendReceipt.toLayer(() => cascade)).toEqualTypeOf<
      Layer.Layer<Receipts, never, Mailer | Epilogue.Deferred>
    >()
    expectTypeOf(SendReceipt.toLayer(() => cascade, { transactional: true })).toEqualTypeOf<
      Layer.Layer<Receipts, never, Mailer>
    >()
  })

  it("toLayerBatched gives deliveries, and takes a result for each", () => {
    const options: Intent.BatchOptions = { maxSize: 10, maxWait: "1 second" }
    expectTypeOf(SendReceipt.toLayerBatched(() => results, options)).toEqualTypeOf<
      Layer.Layer<Receipts, never, Mailer>
    >()
    SendReceipt.toLayerBatched((deliveries) => {
      expectTypeOf(deliveries).toEqualTypeOf<ReadonlyArray<Intent.Delivery<Receipt>>>()
      return results
    }, options)
    // @ts-expect-error it answers with no results
    SendReceipt.toLayerBatched(() => Effect.void, options)
    // @ts-expect-error what it answers with are no results
    SendReceipt.toLayerBatched((deliveries) => Effect.succeed(deliveries.map(() => true)), options)
    // @ts-expect-error it does not say how large a batch may be
    SendReceipt.toLayerBatched(() => results, { maxWait: "1 second" })
  })

  it("reject and snooze are failures of the handler", () => {
    expectTypeOf(Intent.reject("no")).toEqualTypeOf<Effect.Effect<never, Intent.Rejected>>()
    expectTypeOf(Intent.snooze("1 minute")).toEqualTypeOf<Effect.Effect<never, Intent.Snoozed>>()
  })
})

describe("engines", () => {
  const Handler = SendReceipt.toLayer(() => Effect.void)

  it("in process, they require exactly the handlers of the intents that they name", () => {
    expectTypeOf(Epilogue.layerWith()).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue>>()
    expectTypeOf(Epilogue.layerWith(SendReceipt)).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue, never, Receipts>>()
    expectTypeOf(Epilogue.layerWith(SendReceipt, Ship)).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue, never, Receipts | Shipments>
    >()
    expectTypeOf(Epilogue.layerWith(SendReceipt, Ship).pipe(Layer.provide(Handler))).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue, never, Shipments>
    >()
    expectTypeOf(Epilogue.layerBackground({ intents: [SendReceipt, Ship] })).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue, never, Receipts | Shipments>
    >()
    expectTypeOf(Epilogue.layerBackground({ concurrency: 2 })).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue>>()
    expectTypeOf(SqlEpilogue.layerWith(SendReceipt)).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue, never, Receipts | SqlClient.SqlClient>
    >()
  })

  it("a program without a handler does not compile", () => {
    const program = Epilogue.atomic(SendReceipt.defer(receipt))
    type Complete = Effect.Effect<unknown, unknown>
    expectTypeOf(Effect.provide(program, Epilogue.layerWith(SendReceipt))).not.toExtend<Complete>()
    expectTypeOf(
      Effect.provide(program, Epilogue.layerWith(SendReceipt).pipe(Layer.provide(Handler)))
    ).toExtend<Complete>()
    expectTypeOf(
      Effect.provide(program, Epilogue.layerWith(SendReceipt).pipe(Layer.provide(Ship.toLayer(() => Effect.void))))
    ).not.toExtend<Complete>()
  })

  it("take nothing that is no intent", () => {
    // @ts-expect-error it is no intent
    Epilogue.layerWith(Mailer)
    // @ts-expect-error it is no intent
    OutboxWorker.layer({ intents: [Mailer] })
    // @ts-expect-error it names no intents
    OutboxWorker.layer({ concurrency: 1 })
  })
})

describe("the outbox", () => {
  it("requires a sink, and never fails", () => {
    expectTypeOf(Outbox.layer).toEqualTypeOf<Layer.Layer<Epilogue.Epilogue, never, IntentSink.IntentSink>>()
    expectTypeOf(OutboxStore.layerMemory).toEqualTypeOf<
      Layer.Layer<OutboxStore.OutboxStore | IntentSink.IntentSink>
    >()
  })

  it("a worker provides nothing, fails with the store's error, and requires exactly its handlers and a store", () => {
    expectTypeOf(OutboxWorker.layer({ intents: [SendReceipt] })).toEqualTypeOf<
      Layer.Layer<never, IntentSink.IntentStoreError, Receipts | OutboxStore.OutboxStore>
    >()
    expectTypeOf(OutboxWorker.layer({ intents: [SendReceipt, Ship], concurrency: 5 })).toEqualTypeOf<
      Layer.Layer<never, IntentSink.IntentStoreError, Receipts | Shipments | OutboxStore.OutboxStore>
    >()
    expectTypeOf(OutboxWorker.layer({ intents: [] })).toEqualTypeOf<
      Layer.Layer<never, IntentSink.IntentStoreError, OutboxStore.OutboxStore>
    >()
    const Handler = SendReceipt.toLayer(() => Effect.void)
    expectTypeOf(OutboxWorker.layer({ intents: [SendReceipt, Ship] }).pipe(Layer.provide(Handler))).toEqualTypeOf<
      Layer.Layer<never, IntentSink.IntentStoreError, Shipments | OutboxStore.OutboxStore>
    >()
  })

  it("intents may be kept in a list, and are known one by one", () => {
    const intents = [SendReceipt, Ship] as const
    expectTypeOf(OutboxWorker.layer({ intents })).toEqualTypeOf<
      Layer.Layer<never, IntentSink.IntentStoreError, Receipts | Shipments | OutboxStore.OutboxStore>
    >()
    expectTypeOf(Epilogue.layerWith(...intents)).toEqualTypeOf<
      Layer.Layer<Epilogue.Epilogue, never, Receipts | Shipments>
    >()
  })
})

describe("TestEpilogue", () => {
  it("payloads have the type of the intent", () => {
    expectTypeOf(TestEpilogue.payloads(SendReceipt)).toEqualTypeOf<
      Effect.Effect<ReadonlyArray<Receipt>, never, TestEpilogue.TestEpilogue>
    >()
    expectTypeOf(TestEpilogue.payloads(Ship)).toEqualTypeOf<
      Effect.Effect<ReadonlyArray<Order>, never, TestEpilogue.TestEpilogue>
    >()
    // @ts-expect-error it is no intent
    expectTypeOf(TestEpilogue.payloads(Mailer)).toBeObject()
  })
})

describe("any", () => {
  it("leaks from nowhere", () => {
    expectTypeOf(SendReceipt.defer).parameter(0).not.toBeAny()
    expectTypeOf(SendReceipt.decode).returns.toEqualTypeOf<Exit.Exit<unknown, unknown>>()
    expectTypeOf<Intent.PayloadOf<typeof SendReceipt>["at"]>().not.toBeAny()
    expectTypeOf<Intent.Delivery["payload"]>().toEqualTypeOf<unknown>()
    expectTypeOf<Layer.Services<ReturnType<typeof OutboxWorker.layer<[typeof Ship]>>>>().not.toBeAny()
    expectTypeOf<Layer.Error<ReturnType<typeof OutboxWorker.layer<[typeof Ship]>>>>().not.toBeAny()
    class Anything extends Intent.make("Anything", { payload: { any: Schema.Unknown } }) {}
    expectTypeOf<Intent.PayloadOf<typeof Anything>["any"]>().toEqualTypeOf<unknown>()
  })
})
