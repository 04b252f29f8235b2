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
