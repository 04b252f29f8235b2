/**
 * What is counted: boundaries and intents, by what became of them.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const counter = (id: string, outcome: string) => Metric.counter(id, { incremental: true, attributes: { outcome } })

/** Outermost boundaries that ended, by the attribute `outcome`. */
export const boundariesCommitted = counter("epilogue.boundaries", "committed")
export const boundariesDiscarded = counter("epilogue.boundaries", "discarded")

/** Intents of committed boundaries, by the attribute `outcome`. */
export const intentsSucceeded = counter("epilogue.intents", "succeeded")
export const intentsFailed = counter("epilogue.intents", "failed")
export const intentsSkipped = counter("epilogue.intents", "skipped")
export const intentsEnqueued = counter("epilogue.intents", "enqueued")
export const intentsDuplicate = counter("epilogue.intents", "duplicate")

// Numbers alone, so that a program without workers is spared them.
const seconds = [
  0.005,
  0.01,
  0.025,
  0.05,
  0.075,
  0.1,
  0.25,
  0.5,
  0.75,
  1,
  2.5,
  5,
  7.5,
  10
]

const ofTag = (tag: string) => {
  const attributes = { "messaging.destination.name": tag }
  const boundaries = Metric.boundariesFromIterable(seconds)
  const deliveries = (outcome: string) =>
    Metric.counter("epilogue.deliveries", { incremental: true, attributes: { ...attributes, outcome } })
  return {
    /** Deliveries that ended, by the attribute `outcome`. */
    succeeded: deliveries("succeeded"),
    failed: deliveries("failed"),
    snoozed: deliveries("snoozed"),
    dead: deliveries("dead"),
    undecodable: deliveries("undecodable"),
    /** Besides `dead`. */
    crashed: deliveries("crashed"),
    recalled: deliveries("recalled"),
    lost: deliveries("lost"),
    /** Deliveries under way. */
    inFlight: Metric.gauge("epilogue.deliveries.in_flight", { attributes }),
    /** Seconds from the commit of an intent until its delivery succeeded. */
    delivery: Metric.histogram("epilogue.delivery.duration", { attributes, boundaries }),
    /** Seconds that its handler took, whatever came of it. */
    handler: Metric.histogram("messaging.process.duration", { attributes, boundaries })
  }
}

/** What is measured of the intents of one tag. */
export type OfTag = ReturnType<typeof ofTag>
export const forTag: (tag: string) => OfTag = ofTag
