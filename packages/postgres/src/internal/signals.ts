/**
 * How workers learn that something may be due: at once in this process, and through `LISTEN` and `NOTIFY` in others.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as RcRef from "effect/RcRef"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { createHash, randomUUID } from "node:crypto"
import type { Connections } from "./connections.ts"

/** Who wants to know what happens to some queues. */
export interface Subscriber {
  readonly hears: (queue: number) => boolean
  /** Something may be waiting: new, perhaps with keys alone, or before what was seen already. */
  readonly wake: (what: "added" | "keyed" | "freed") => void
  /** Something is due after so many milliseconds. */
  readonly due: (milliseconds: number) => void
}

/** What has happened to which queues: something new waits there, is free again, or is due in so many milliseconds. */
export type News =
  | { readonly _tag: "Added"; readonly queues: ReadonlyArray<number> }
  | { readonly _tag: "Keyed"; readonly queues: ReadonlyArray<number> }
  | { readonly _tag: "Freed"; readonly queues: ReadonlyArray<number> | undefined }
  | { readonly _tag: "Due"; readonly queues: ReadonlyArray<number>; readonly due: number }

export interface Signals {
  /** Tells the subscribers of this process, and lets a notification be sent to others. Does not wait for that. */
  readonly tell: (news: News) => void
  /** Tells the subscribers of this process alone. */
  readonly tellHere: (news: News) => void
  /** Subscribes until the scope closes. As long as anybody does, the process listens to what others notify. */
  readonly subscribe: (subscriber: Subscriber) => Effect.Effect<void, never, Scope.Scope>
  /** Whether notifications are known to arrive. */
  readonly isListening: () => boolean
}

/** The channel of a schema. A name that is too long for a channel is told apart by its hash. */
export const channelOf = (schema: string): string => {
  const channel = `epilogue:${schema}`
  return Buffer.byteLength(channel) <= 63
    ? channel
    : `epilogue#${createHash("sha256").update(schema).digest("hex").slice(0, 32)}`
}

/** How a lost connection is tried again. */
const backoff = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(Schedule.jittered)

/** Some poolers accept `LISTEN` and never deliver, so what should arrive is sent and awaited, again and again. */
const testEvery = "1 minute"
const testTimeout = "1 second"

/** What is told in this time after a notification goes into the next one: many commits a second need few of them. */
const notifyEvery = "2 millis"

/** How long closing waits for the last notification. */
const closeTimeout = "1 second"

/** The largest payload of a notification is 8,000 bytes. */
const maxPayload = 7_900

const Message = Schema.fromJsonString(Schema.Struct({
  /** The store that sent it, which has told its own subscribers already. */
  origin: Schema.String,
  /** The queues in which something waits. */
  added: Schema.Array(Schema.Int),
  /** Those in which something with a key waits. */
  keyed: Schema.optionalKey(Schema.Array(Schema.Int)),
  /** Those in which something is free again, `null` for all of them. */
  freed: Schema.NullOr(Schema.Array(Schema.Int)),
  /** Queues, and in how many milliseconds something is due there. */
  due: Schema.Array(Schema.Tuple([Schema.Int, Schema.Finite])),
  /** What a test of the connection waits for. */
  nonce: Schema.optional(Schema.String)
}))
type Message = typeof Message.Type
const decodeMessage = Schema.decodeOption(Message)
const encodeMessage = (message: Message): string => JSON.stringify(message)

export const make = Effect.fnUntraced(function*(options: {
  readonly config: PgConnection.Config
  readonly connections: Connections
  readonly channel: string
  readonly notify: string
}): Effect.fn.Return<Signals, never, Scope.Scope> {
  const { channel, config, connections } = options
  const origin = randomUUID()
  const subscribers = new Set<Subscriber>()
  const notify = (payload: string) =>
    connections.run("A notification could not be sent", options.notify, [channel, payload])

  // Here -------------------------------------------------------------------------------------------------------------

  const wakeHere = (what: "added" | "keyed" | "freed", queues?: ReadonlyArray<number>): void => {
    for (const subscriber of subscribers) {
      if (queues === undefined || queues.some(subscriber.hears)) subscriber.wake(what)
    }
  }
  const dueHere = (queue: number, milliseconds: number): void => {
    for (const subscriber of subscribers) {
      if (subscriber.hears(queue)) subscriber.due(milliseconds)
    }
  }

  // To others: what is told while a notification is under way goes into the next one ------------------------------------

  const added = new Set<number>()
  const keyed = new Set<number>()
  const due = new Map<number, number>()
  let freed: Set<number> | undefined = new Set()
  let nonce: string | undefined
  const hasUntold = Latch.makeUnsafe()
  /** Opened for what does not wait for others to go with it. */
  const isUrgent = Latch.makeUnsafe()

  const add = (news: News): void => {
    switch (news._tag) {
      case "Added":
        for (const queue of news.queues) added.add(queue)
        break
      case "Keyed":
        for (const queue of news.queues) keyed.add(queue)
        break
      case "Freed":
        if (news.queues === undefined) freed = undefined
        else for (const queue of news.queues) freed?.add(queue)
        break
      case "Due":
        for (const queue of news.queues) due.set(queue, Math.min(news.due, due.get(queue) ?? Infinity))
    }
  }

  const take = (): Message => {
    const message: Message = {
      origin,
      added: Array.from(added),
      keyed: Array.from(keyed),
      freed: freed === undefined ? null : Array.from(freed),
      due: Array.from(due),
      ...(nonce !== undefined && { nonce })
    }
    nonce = undefined
    added.clear()
    keyed.clear()
    due.clear()
    freed = new Set()
    return message
  }

  const flush = Effect.suspend(() => {
    hasUntold.closeUnsafe()
    isUrgent.closeUnsafe()
    if (added.size + keyed.size + due.size + (freed?.size ?? 1) === 0 && nonce === undefined) return Effect.void
    const message = take()
    const payload = encodeMessage(message)
    return notify(
      payload.length > maxPayload ? encodeMessage({ ...message, added: [], keyed: [], freed: null, due: [] }) : payload
    )
      .pipe(
        // Whoever is not told finds out at the next poll.
        Effect.ignore({ log: "Debug" })
      )
  })
  // A process that adds intents and ends at once still tells of them, once what is under way has been sent: a statement that
  // is interrupted takes its connection with it.
  const telling = yield* Effect.forkDetach(
    Effect.forever(
      Effect.uninterruptibleMask((restore) =>
        restore(hasUntold.await).pipe(
          Effect.andThen(flush),
          Effect.andThen(restore(Effect.timeoutOption(isUrgent.await, notifyEvery)))
        )
      )
    )
  )
  yield* Effect.addFinalizer(() =>
    Fiber.interrupt(telling).pipe(Effect.andThen(flush), Effect.interruptible, Effect.timeoutOption(closeTimeout))
  )

  // From others ------------------------------------------------------------------------------------------------------

  const nonces = new Map<string, Deferred.Deferred<void>>()
  let isListening = false

  const hear = (payload: string): void => {
    const message = Option.getOrUndefined(decodeMessage(payload))
    if (message === undefined) return wakeHere("freed")
    const awaited = message.nonce === undefined ? undefined : nonces.get(message.nonce)
    if (awaited !== undefined) Deferred.doneUnsafe(awaited, Effect.void)
    if (message.origin !== origin) {
      wakeHere("added", message.added)
      wakeHere("keyed", message.keyed ?? [])
      wakeHere("freed", message.freed ?? undefined)
      for (const [queue, milliseconds] of message.due) dueHere(queue, milliseconds)
    }
  }

  /**
   * Sends itself something the long way round, and notes whether it arrives. It goes with what is told next: interrupted while
   * it is sent, it would take the connection with it.
   */
  const test = Effect.gen(function*() {
    const sent = randomUUID()
    const arrived = yield* Deferred.make<void>()
    nonces.set(sent, arrived)
    nonce = sent
    hasUntold.openUnsafe()
    isUrgent.openUnsafe()
    const exit = yield* Deferred.await(arrived).pipe(Effect.timeout(testTimeout), Effect.exit)
    nonces.delete(sent)
    isListening = Exit.isSuccess(exit)
  })

  /** Listens until the connection is lost. */
  const listen = Effect.scoped(Effect.gen(function*() {
    const connection = yield* PgConnection.make(config)
    const notifications = yield* connection.listen(channel)
    // What was notified before is lost.
    wakeHere("freed")
    yield* Effect.forkScoped(Effect.repeat(test, Schedule.spaced(testEvery)))
    yield* Effect.ignore(Effect.forever(Effect.map(Queue.take(notifications), ({ payload }) => hear(payload))))
  })).pipe(
    Effect.onExit(() =>
      Effect.sync(() => {
        isListening = false
      })
    ),
    Effect.tapError((cause) => Effect.logDebug("A store can't listen to notifications, and polls more often", cause))
  )

  const listener = yield* RcRef.make({
    acquire: Effect.forkScoped(Effect.repeat(Effect.retry(listen, backoff), Schedule.spaced("100 millis")))
  })

  const tellHere: Signals["tellHere"] = (news) => {
    if (news._tag === "Due") {
      for (const queue of news.queues) dueHere(queue, news.due)
    } else {
      wakeHere(news._tag === "Freed" ? "freed" : news._tag === "Keyed" ? "keyed" : "added", news.queues)
    }
  }

  return {
    tellHere,
    tell: (news) => {
      add(news)
      hasUntold.openUnsafe()
      tellHere(news)
    },
    subscribe: Effect.fnUntraced(function*(subscriber) {
      yield* Effect.acquireRelease(
        Effect.sync(() => subscribers.add(subscriber)),
        () => Effect.sync(() => subscribers.delete(subscriber))
      )
      yield* RcRef.get(listener)
    }),
    isListening: () => isListening
  }
})
