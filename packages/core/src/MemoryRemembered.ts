/**
 * The idempotency keys that the store in memory remembers.
 *
 * @since 0.1.0
 */
import type { Envelope } from "./Envelope.ts"

interface Remembered {
  readonly id: string
  readonly partitionKey: string | undefined
  readonly until: number
}

export class MemoryRemembered {
  private readonly tags = new Map<string, Map<string, Remembered>>()
  private size = 0
  private sweepAt = sweepFrom

  /** The intent that was there first with an idempotency key. Without one, `envelope` is it from now on. */
  firstWith({ id, idempotencyKey, partitionKey, remember, tag }: Envelope, dueAt: number, millis: number): string {
    if (idempotencyKey === undefined) return id
    if (this.size > this.sweepAt) this.sweep(millis)
    const keys = this.tags.get(tag) ?? new Map<string, Remembered>()
    this.tags.set(tag, keys)
    const first = keys.get(idempotencyKey)
    if (first !== undefined && first.until > millis) return first.id
    if (first === undefined) this.size++
    keys.set(idempotencyKey, { id, partitionKey, until: dueAt + remember })
    return id
  }

  /** Forgets those whose time is over, before there are twice as many as are needed. */
  private sweep(millis: number): void {
    for (const keys of this.tags.values()) this.forget(keys, ({ until }) => until <= millis)
    this.sweepAt = Math.max(sweepFrom, this.size * 2)
  }

  /** Forgets those of a partition key, of one tag or of all. */
  erase(partitionKey: string, tag: string | undefined): void {
    for (const [name, keys] of this.tags) {
      if (tag === undefined || tag === name) this.forget(keys, (remembered) => remembered.partitionKey === partitionKey)
    }
  }

  private forget(keys: Map<string, Remembered>, isOver: (remembered: Remembered) => boolean): void {
    for (const [key, remembered] of keys) {
      if (isOver(remembered) && keys.delete(key)) this.size--
    }
  }
}

const sweepFrom = 1_000
