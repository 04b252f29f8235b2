/**
 * What is counted: boundaries and intents, by what became of them.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const boundaries = Metric.counter("epilogue.boundaries", { incremental: true })
const intents = Metric.counter("epilogue.intents", { incremental: true })

/** Outermost boundaries that ended, by the attribute `outcome`. */
export const boundariesCommitted = Metric.withAttributes(boundaries, { outcome: "committed" })
export const boundariesDiscarded = Metric.withAttributes(boundaries, { outcome: "discarded" })

/** Intents of committed boundaries, by the attribute `outcome`. */
export const intentsSucceeded = Metric.withAttributes(intents, { outcome: "succeeded" })
export const intentsFailed = Metric.withAttributes(intents, { outcome: "failed" })
export const intentsSkipped = Metric.withAttributes(intents, { outcome: "skipped" })
