import { assert, describe, it } from "@effect/vitest"
import { compare, type Evidence } from "../src/Comparison.ts"

const charge = (order: string, amount: number) => ({ order, amount })
const message = (order: string, to: string) => ({ order, to })
const reserve = (order: string) => ({ method: "PUT", path: `/reservations/${order}` })
const release = (order: string) => ({ method: "DELETE", path: `/reservations/${order}` })

const agreeing: Evidence = {
  placed: [
    { number: "A-1", email: "ada@example.org", total: 500, giver: null },
    { number: "A-2", email: "bob@example.org", total: 900, giver: "gran@example.org" }
  ],
  payments: [charge("A-1", 500), charge("A-2", 900)],
  mail: [message("A-2", "gran@example.org"), message("A-2", "bob@example.org")],
  warehouse: [reserve("A-1"), reserve("A-2"), reserve("A-3"), release("A-3")],
  unsent: [message("A-1", "ada@example.org")]
}

const assertDifference = (change: Partial<Evidence>, difference: string) =>
  assert.deepStrictEqual(compare({ ...agreeing, ...change }), [difference])

it("rows and a world outside that agree have no difference", () => {
  assert.deepStrictEqual(compare(agreeing), [])
})

describe("the comparison notices", () => {
  it("an order that was not charged", () =>
    assertDifference({ payments: [charge("A-2", 900)] }, "A-1 is placed, but it was not charged"))

  it("an order that was charged twice", () =>
    assertDifference(
      { payments: [...agreeing.payments, charge("A-1", 500)] },
      "A-1 was charged 2 times"
    ))

  it("an order that was charged another amount", () =>
    assertDifference(
      { payments: [charge("A-1", 501), charge("A-2", 900)] },
      "A-1 costs 500 cents, but was charged 501"
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

  it("a message that was sent and is known as failed", () =>
    assertDifference(
      { unsent: [...agreeing.unsent, message("A-2", "bob@example.org")] },
      "bob@example.org was mailed about A-2, but the shop knows of a failure"
    ))

  it("a message of a discarded order or savepoint", () =>
    assertDifference(
      { mail: [...agreeing.mail, message("A-1", "gran@example.org")] },
      "gran@example.org was mailed about A-1, which accounts for no such mail"
    ))

  it("a failure known of a discarded order", () =>
    assertDifference(
      { unsent: [...agreeing.unsent, message("A-3", "eve@example.org")] },
      "A message to eve@example.org is known as not sent, but A-3 accounts for no such mail"
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
