import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import { WebSocket } from "../../src/index.js"
import { Deflater, Inflater } from "../../src/internal/websocket/deflate.js"
import { runs, serve } from "../support.js"
import { closePayload, type Decoded, Opcode } from "./frames.js"
import { clientOf, close, closeOf, echo, frame, message, opening, shown, turns, until } from "./support.js"

const offer = ["Sec-WebSocket-Extensions: permessage-deflate"]

const compression = { threshold: 0 }

const failure = <A, E>(exit: Exit.Exit<A, E>): any =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined

const deflated = (deflater: Deflater, data: Uint8Array): Effect.Effect<Uint8Array | undefined> =>
  Effect.async((resume) => deflater.deflate(data, (_, payload) => resume(Effect.succeed(payload))))

/** A frame of the message, deflated where that makes it smaller. */
const compressed = (deflater: Deflater, data: WebSocket.Message): Effect.Effect<Buffer> =>
  Effect.map(deflated(deflater, Buffer.from(data as string)), (payload) =>
    payload === undefined
      ? message(data)
      : frame(typeof data === "string" ? Opcode.Text : Opcode.Binary, payload, { rsv: 4 })
  )

const inflated = (inflater: Inflater, { opcode, payload, rsv }: Decoded): Effect.Effect<WebSocket.Message> =>
  Effect.map(
    rsv === 0
      ? Effect.succeed<Uint8Array>(payload)
      : Effect.async<Uint8Array>((resume) =>
          inflater.inflate(payload, 1e8, (error, data) =>
            resume(error === undefined ? Effect.succeed(data!) : Effect.die(new Error(error)))
          )
        ),
    (data) => (opcode === Opcode.Text ? Buffer.from(data).toString() : data)
  )

/** Like no other, and alike within: what is deflated in the pool and refers to what was sent before. */
const large = (seed: number): Buffer =>
  Buffer.from(Array.from({ length: 4000 }, (_, i) => `${(i * seed) % 997}, the same again; `).join(""))

const someMessage = FastCheck.oneof(
  FastCheck.string({ unit: "binary", maxLength: 20 }),
  FastCheck.tuple(FastCheck.string({ minLength: 1, maxLength: 8 }), FastCheck.nat(5000)).map(([unit, count]) =>
    unit.repeat(count)
  ),
  FastCheck.uint8Array({ maxLength: 300 }),
  FastCheck.nat(5).map(large)
)

describe("a compressed websocket", () => {
  it.scoped("carries any messages, both ways, in order, and pings between them", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(WebSocket.onUpgrade({ compression }, echo), { kind: "memory" })
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(
            FastCheck.array(someMessage, { maxLength: 6 }),
            FastCheck.array(FastCheck.double({ min: 0, max: 1, noNaN: true }), { maxLength: 4 }),
            (messages, at) =>
              Effect.gen(function* () {
                const { head, peer, receiveAll } = yield* clientOf(connect, undefined, offer)
                assert.include(head.headers["sec-websocket-extensions"], "permessage-deflate")
                const deflater = new Deflater(15, false)
                const frames = yield* Effect.forEach(messages, (one) => compressed(deflater, one))
                const all = Buffer.concat([...frames, frame(Opcode.Ping, "p"), close(1000)])
                yield* Effect.fork(
                  peer.sendSplit(
                    all,
                    at.map((place) => Math.floor(place * all.length))
                  )
                )
                const received = yield* receiveAll
                const inflater = new Inflater(15, false)
                const echoed = yield* Effect.forEach(
                  received.filter(({ opcode }) => opcode < Opcode.Close),
                  (one) => inflated(inflater, one)
                )
                assert.deepStrictEqual(echoed.map(shown), messages.map(shown))
                assert.deepStrictEqual(
                  received.filter(({ opcode }) => opcode >= Opcode.Close).map(({ opcode }) => opcode),
                  [Opcode.Pong, Opcode.Close]
                )
              }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: runs(25) }
        )
      )
    })
  )

  it.scoped("yields what was still being inflated when the peer closed and ended", () =>
    Effect.gen(function* () {
      for (const last of [close(1000), Buffer.alloc(0)]) {
        const { open } = yield* opening("tcp", { compression })
        const { peer, receiveAll, send, ws } = yield* open(undefined, offer)
        const seen: Array<WebSocket.Message> = []
        const running = yield* Effect.fork(
          Effect.exit(WebSocket.run(ws, (message) => Effect.sync(() => seen.push(message))))
        )
        const deflater = new Deflater(15, false)
        yield* send(
          yield* compressed(deflater, large(3)),
          yield* compressed(deflater, large(3).toString()),
          message("last"),
          last
        )
        yield* peer.end
        const exit = yield* Fiber.join(running)
        assert.deepStrictEqual(seen.map(shown), [large(3), large(3).toString(), "last"].map(shown))
        if (last.length > 0) {
          assert.deepStrictEqual(exit, Exit.succeed({ code: 1000, reason: "" }))
          assert.deepStrictEqual((yield* receiveAll).map(closeOf), [[1000, ""]])
        } else {
          assert.deepInclude(failure(exit), { _tag: "WebSocketClosed", code: 1006 })
        }
      }
    })
  )

  it.scoped("stops a bomb at the limit, and what cannot be inflated or is no text", () =>
    Effect.gen(function* () {
      const deflater = new Deflater(15, true)
      const bomb = yield* deflated(deflater, Buffer.alloc(64 * 1024 * 1024))
      const noText = yield* deflated(deflater, Buffer.alloc(100, 0xff))
      const attacks = [
        [frame(Opcode.Binary, bomb!, { rsv: 4 }), { _tag: "MessageTooBig", limit: 1024 * 1024 }, 1009],
        [
          frame(Opcode.Binary, Buffer.alloc(50, 0xff), { rsv: 4 }),
          { _tag: "ProtocolViolation", clause: "RFC 7692 §7.2.2" },
          1007
        ],
        [frame(Opcode.Text, noText!, { rsv: 4 }), { _tag: "ProtocolViolation", clause: "RFC 6455 §8.1" }, 1007]
      ] as const
      for (const [attack, error, code] of attacks) {
        const { open } = yield* opening("tcp", { compression: true })
        const { receive, receiveClose, send, ws } = yield* open(undefined, offer)
        const running = yield* Effect.fork(Effect.exit(echo(ws)))
        yield* turns(1)
        const before = process.memoryUsage().arrayBuffers
        yield* send(message("before"), attack, message("behind"))
        assert.deepInclude(failure(yield* Fiber.join(running)), error)
        assert.isBelow(process.memoryUsage().arrayBuffers - before, 16 * 1024 * 1024)
        assert.strictEqual(`${(yield* receive).payload}`, "before")
        assert.strictEqual((yield* receiveClose)[0], code)
      }
    })
  )

  it.scoped("fails a send whose message was being deflated when it ended, and every send behind it", () =>
    Effect.gen(function* () {
      for (const how of ["close", "reset", "violation"] as const) {
        const { open } = yield* opening("tcp", { compression })
        const { peer, send, ws } = yield* open(undefined, offer)
        const sending = yield* Effect.forEach([1, 2, 3], (seed) =>
          Effect.fork(Effect.exit(Effect.forever(WebSocket.send(ws, large(seed)))))
        )
        yield* turns(3)
        yield* how === "close" ? send(close(1000)) : how === "reset" ? peer.reset : send(Buffer.of(0xff, 0xff))
        const tags = { close: "WebSocketClosed", reset: "ConnectionError", violation: "ProtocolViolation" }
        for (const fiber of sending) {
          assert.strictEqual(failure(yield* Fiber.join(fiber))._tag, tags[how])
        }
        assert.strictEqual(failure(yield* Effect.exit(WebSocket.send(ws, large(4))))._tag, tags[how])
        assert.strictEqual(failure(yield* Effect.exit(WebSocket.sendAll(ws, ["a", "b"])))._tag, tags[how])
        yield* peer.reset
      }
    })
  )

  it.scoped("keeps the peer's context right, whenever who sends is interrupted", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("tcp", { compression })
      const { receive, ws } = yield* open(undefined, offer)
      const inflater = new Inflater(15, false)
      const seen: Array<string> = []
      const reading = yield* Effect.fork(
        Effect.forever(
          Effect.map(
            Effect.flatMap(receive, (one) => inflated(inflater, one)),
            (message) => seen.push(shown(message))
          )
        )
      )
      for (let i = 0; i < 20; i++) {
        const sending = yield* Effect.fork(WebSocket.sendAll(ws, [large(i + 1), `after ${i}`]))
        yield* turns(i % 5)
        yield* Fiber.interrupt(sending)
        yield* WebSocket.send(ws, large(i + 1).toString())
        yield* WebSocket.send(ws, `mark ${i}`)
        yield* until(() => seen.includes(`text mark ${i}`) || reading.unsafePoll() !== null)
        assert.isNull(reading.unsafePoll(), "what was sent cannot be inflated")
        assert.include(seen, shown(large(i + 1).toString()))
      }
    })
  )

  it.scoped("is none where the peer offers none, or the server wants none", () =>
    Effect.gen(function* () {
      for (const [options, fields] of [
        [{ compression }, []],
        [{}, offer]
      ] as const) {
        const { connect } = yield* serve(WebSocket.onUpgrade(options, echo))
        const { head, receive, receiveClose, send } = yield* clientOf(connect, undefined, fields)
        assert.notProperty(head.headers, "sec-websocket-extensions")
        yield* send(message("x".repeat(5000)))
        const echoed = yield* receive
        assert.deepInclude(echoed, { rsv: 0 })
        assert.lengthOf(echoed.payload, 5000)
        yield* send(frame(Opcode.Text, closePayload(1000), { rsv: 4 }))
        assert.strictEqual((yield* receiveClose)[0], 1002)
      }
    })
  )

  it.scoped("sends messages below the threshold as they are", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory", { compression: { threshold: 100 } })
      const { receive, ws } = yield* open(undefined, offer)
      yield* WebSocket.sendAll(ws, ["x".repeat(99), "x".repeat(100), Buffer.alloc(99), Buffer.alloc(100)])
      const frames = [yield* receive, yield* receive, yield* receive, yield* receive]
      assert.deepStrictEqual(
        frames.map(({ rsv }) => rsv),
        [0, 4, 0, 4]
      )
    })
  )
})
