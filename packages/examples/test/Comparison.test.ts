import { assert, describe, it } from "@effect/vitest"
import { compare, type Evidence } from "../src/Comparison.ts"

const request = { method: "POST", path: "/", idempotencyKey: undefined, body: undefined, status: 202 }

const charge = (order: string, amount: number, status = 201) => ({
  ...request,
  idempotencyKey: order,
  body: { order, amount },
  status
})
const message = (order: string, to: string, status = 202) => ({ ...request, body: { order, to, subject: "" }, status })
const reserve = (order: string) => ({ ...request, method: "PUT", path: `/reservations/${order}` })
const release = (order: string) => ({ ...request, method: "DELETE", path: `/reservations/${order}` })

const agreeing: Evidence = {
  placed: [
    { number: "A-1", email: "ada@example.org", total: 500, giver: null },
    { number: "A-2", email: "bob@example.org", total: 900, giver: "gran@example.org" }
  ],
  payments: [charge("A-1", 500, 503), charge("A-1", 500, 200), charge("A-2", 900)],
  mail: [
    message("A-1", "ada@example.org", 422),
    message("A-2", "gran@example.org"),
    message("A-2", "bob@example.org")
  ],
  warehouse: [reserve("A-1"), reserve("A-2"), reserve("A-3"), release("A-3")],
  unsent: [{ order: "A-1", to: "ada@example.org" }]
}

const assertDifference = (change: Partial<Evidence>, difference: string) =>
  assert.deepStrictEqual(compare({ ...agreeing, ...change }), [difference])

it("rows and requests that agree have no difference", () => {
  assert.deepStrictEqual(compare(agreeing), [])
})

describe("the comparison notices", () => {
  it("an order that was not charged", () =>
    assertDifference({ payments: [charge("A-2", 900)] }, "A-1 is placed, but it was not charged"))

  it("an order whose charge was only ever refused", () =>
    assertDifference(
      { payments: [charge("A-1", 500, 503), charge("A-2", 900)] },
      "A-1 is placed, but it was not charged"
    ))

  it("an order that was charged twice", () =>
    assertDifference(
      { payments: [charge("A-1", 500), charge("A-1", 500), charge("A-2", 900)] },
      "A-1 was charged 2 times"
    ))

  it("an order that was charged another amount", () =>
    assertDifference(
      { payments: [charge("A-1", 501), charge("A-2", 900)] },
      "A-1 costs 500 cents, but was charged 501"
    ))

  it("a second charge under another key", () =>
    assertDifference(
      { payments: [...agreeing.payments, { ...charge("A-1", 500), idempotencyKey: "again" }] },
      "A charge came under the key again: {\"order\":\"A-1\",\"amount\":500}"
    ))

  it("a discarded order that was charged", () =>
    assertDifference(
      { payments: [...agreeing.payments, charge("A-3", 100)] },
      "A-3 was charged, but there is no such order"
    ))

  it("a customer who was mailed twice", () =>
    assertDifference(
      { mail: [...agreeing.mail, message("A-2", "bob@example.org")] },
      "bob@example.org was mailed 2 times about A-2"
    ))

  it("a message that failed with nobody told", () =>
    assertDifference({ unsent: [] }, "ada@example.org was not mailed about A-1, and nobody was told"))

  it("a message that was sent and reported as failed", () =>
    assertDifference(
      { unsent: [...agreeing.unsent, { order: "A-2", to: "bob@example.org" }] },
      "bob@example.org was mailed about A-2, but the checkout reported a failure"
    ))

  it("a message of a discarded order or savepoint", () =>
    assertDifference(
      { mail: [...agreeing.mail, message("A-1", "gran@example.org")] },
      "A message went out that no order accounts for: "
        + "{\"order\":\"A-1\",\"to\":\"gran@example.org\",\"subject\":\"\"}"
    ))

  it("a failure reported for a discarded order", () =>
    assertDifference(
      { unsent: [...agreeing.unsent, { order: "A-3", to: "eve@example.org" }] },
      "A message was reported as not sent that no order accounts for: A-3 eve@example.org"
    ))

  it("goods that stay reserved for a discarded order", () =>
    assertDifference(
      { warehouse: [...agreeing.warehouse, reserve("A-4")] },
      "Goods are reserved for A-4, but there is no such order"
    ))

  it("a placed order whose goods were released", () =>
    assertDifference(
      { warehouse: [...agreeing.warehouse, release("A-2")] },
      "A-2 is placed, but its goods are not reserved"
    ))
})
