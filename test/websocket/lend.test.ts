/** Sockets that read into buffers of the library: on this Node, and with messages of any size between them. */
import type { Duplex } from "node:stream"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import { type Kind, kinds, runs } from "../support.js"
import { Opcode } from "./frames.js"
import { close, echo, message, opening } from "./support.js"

/** What the socket reads to, where it is not Node's own. */
const lentTo = (socket: Duplex): unknown => {
  const field = Object.getOwnPropertySymbols(socket).find(({ description }) => description === "kBuffer")
  return field === undefined ? undefined : (socket as unknown as Record<symbol, unknown>)[field]
}

describe.each(kinds)("over %s", (kind: Kind) => {
  it.scoped("a websocket's socket reads into a buffer that is lent to it, where it has a handle", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { ws } = yield* open()
      assert.strictEqual(lentTo(ws.upgraded.socket) instanceof Uint8Array, kind !== "memory")
    })
  )

  it.scoped("many small messages in a large read are each their own", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, receiveAll, ws } = yield* open()
      yield* Effect.fork(echo(ws))
      const sent = Array.from({ length: 4_000 }, (_, i) => (i % 3 === 0 ? `text ${i}` : Buffer.alloc(i % 97, i)))
      yield* Effect.fork(peer.send(Buffer.concat([...sent.map((one) => message(one)), close(1000)])))
      const echoed = (yield* receiveAll).filter(({ opcode }) => opcode < 8)
      assert.deepStrictEqual(
        echoed.map(({ payload }) => Buffer.from(payload).toString("latin1")),
        sent.map((one) => Buffer.from(one).toString("latin1"))
      )
      yield* peer.end
    })
  )

  it.scoped("messages of all sizes come back as they are, however the reads fall", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(
            FastCheck.array(
              FastCheck.tuple(
                FastCheck.oneof(
                  FastCheck.integer({ min: 0, max: 300 }),
                  FastCheck.integer({ min: 16_000, max: 16_800 }),
                  FastCheck.integer({ min: 65_000, max: 66_000 }),
                  FastCheck.integer({ min: 0, max: 900_000 })
                ),
                FastCheck.integer({ min: 0, max: 255 }),
                FastCheck.boolean()
              ),
              { minLength: 1, maxLength: 6 }
            ),
            FastCheck.array(FastCheck.double({ min: 0, max: 1, noNaN: true }), { maxLength: 4 }),
            (sizes, places) =>
              Effect.gen(function* () {
                const { peer, receiveAll, ws } = yield* open()
                yield* Effect.fork(echo(ws))
                const sent = sizes.map(([size, seed, isText]) => {
                  const payload = Buffer.alloc(size)
                  for (let i = 0; i < size; i++) {
                    payload[i] = isText ? 32 + ((i * 7 + seed) % 90) : (i * 31 + (i >> 8) + seed) & 0xff
                  }
                  return isText ? payload.toString("latin1") : payload
                })
                const all = Buffer.concat([...sent.map((one) => message(one)), close(1000)])
                yield* Effect.fork(
                  peer.sendSplit(
                    all,
                    places.map((place) => Math.floor(place * all.length))
                  )
                )
                const answers = yield* receiveAll
                const echoed = answers.filter(({ opcode }) => opcode < 8)
                assert.strictEqual(echoed.length, sent.length)
                echoed.forEach(({ opcode, payload }, i) => {
                  assert.strictEqual(opcode, typeof sent[i] === "string" ? Opcode.Text : Opcode.Binary)
                  assert.isTrue(Buffer.from(sent[i]!).equals(payload), `message ${i} of ${payload.length} bytes`)
                })
                yield* peer.end
              }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: Math.min(runs(15), 150) }
        )
      )
    })
  )
})
