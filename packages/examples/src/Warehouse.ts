/**
 * The warehouse, over HTTP.
 */
import { Context, Effect, Layer, Schema } from "effect"
import { HttpClient, HttpClientRequest } from "effect/http"
import type { Order } from "./Order.ts"

export class WarehouseError extends Schema.TaggedError<WarehouseError>()("WarehouseError", {
  message: Schema.String,
  cause: Schema.Defect()
}) {}

export class Warehouse extends Context.Service<Warehouse, {
  /** Lays the goods aside. It answers when they have been found. */
  readonly reserve: (order: Order) => Effect.Effect<void, WarehouseError>
  /** Puts them back. Where nothing was laid aside, nothing happens. */
  readonly release: (order: Order) => Effect.Effect<void, WarehouseError>
}>()("examples/Warehouse") {
  static readonly layer = (url: string) =>
    Layer.effect(
      Warehouse,
      Effect.gen(function*() {
        const client = (yield* HttpClient.HttpClient).pipe(
          HttpClient.mapRequest(HttpClientRequest.prependUrl(url)),
          HttpClient.filterStatusOk
        )
        const reserve = Effect.fn("Warehouse.reserve")(
          function*({ number, quantity, sku }: Order) {
            yield* HttpClientRequest.put(`/reservations/${number}`).pipe(
              HttpClientRequest.bodyJsonUnsafe({ sku, quantity }),
              client.execute
            )
          },
          Effect.mapError((cause) => new WarehouseError({ message: "The warehouse did not reserve the goods", cause }))
        )
        const release = Effect.fn("Warehouse.release")(
          function*({ number }: Order) {
            yield* client.del(`/reservations/${number}`)
          },
          Effect.mapError((cause) => new WarehouseError({ message: "The warehouse did not release the goods", cause }))
        )
        return Warehouse.of({ reserve, release })
      })
    )
}
