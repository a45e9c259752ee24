import { assert, describe, it } from "@effect/vitest"
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import { WebSocket } from "../../src/index.js"
import { type Kind, serve } from "../support.js"
import { closePayload, Opcode } from "./frames.js"
import {
  clientOf,
  close,
  closeOf,
  echo,
  forms,
  frame,
  left,
  message,
  opening,
  type Session,
  turns,
  until
} from "./support.js"

const kinds: ReadonlyArray<Kind> = ["tcp", "memory"]

const failure = <A, E>(exit: Exit.Exit<A, E>): any =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined

const outcome = <A, E = never>() => Effect.runSync(Deferred.make<A, E>())

const codes = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]

describe.each(kinds)("a peer that closes, over %s,", (kind) => {
  it.scoped("gets its code back, and then the server's FIN, before its own (RFC 6455 §5.5.1, §7.1.1)", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      for (const code of [...codes, undefined]) {
        const { peer, receiveAll, send, ws } = yield* open()
        const running = yield* Effect.fork(WebSocket.run(ws, () => Effect.void))
        yield* turns(1)
        const reason = code === undefined ? "" : "why ü"
        yield* send(close(code, reason))
        const frames = yield* receiveAll
        assert.deepStrictEqual(
          frames.map((frame) => [frame.opcode, ...closeOf(frame)]),
          [[Opcode.Close, code ?? 1005, ""]]
        )
        const event = { code: code ?? 1005, reason }
        assert.deepStrictEqual(yield* Fiber.join(running), event)
        assert.deepStrictEqual(yield* WebSocket.awaitClosed(ws), event)
        assert.deepStrictEqual(yield* WebSocket.close(ws, 4000), event)
        yield* peer.end
        yield* until(() => ws.upgraded.socket.destroyed)
      }
    })
  )

  it.scoped("gets the answers to what it sent before, also where they take a while", () =>
    Effect.gen(function* () {
      for (const [, form] of forms) {
        for (const session of [
          echo,
          (ws) => WebSocket.run(ws, (message) => WebSocket.send(ws, message)),
          (ws) => WebSocket.run(ws, (message) => Effect.zipRight(turns(3), WebSocket.send(ws, message))),
          (ws) => Stream.run(WebSocket.stream(ws), WebSocket.sink(ws)),
          (ws) => Effect.zipRight(turns(5), echo(ws))
        ] satisfies ReadonlyArray<Session>) {
          const { connect } = yield* serve(form(session), { kind })
          const { receiveAll, send } = yield* clientOf(connect)
          yield* send(message("a"), message("b"), close(1000))
          const frames = yield* receiveAll
          assert.deepStrictEqual(
            frames.map(({ payload }) => `${payload}`),
            ["a", "b", `${closePayload(1000)}`]
          )
        }
      }
    })
  )

  it.scoped("gets its answer after closeTimeout where a handler does not end, or nobody reads on", () =>
    Effect.gen(function* () {
      for (const session of [
        (ws) => WebSocket.run(ws, () => Effect.never),
        (ws) => Effect.zipRight(WebSocket.pull(ws), Effect.never),
        () => Effect.never
      ] as ReadonlyArray<Session>) {
        const { connect } = yield* serve(WebSocket.onUpgrade({ closeTimeout: "1 second" }, session), { kind })
        const { peer, receive, receiveClose, send } = yield* clientOf(connect)
        yield* send(message("a"), frame(Opcode.Ping, "p"), message("b"), close(1000))
        assert.strictEqual((yield* receive).opcode, Opcode.Pong)
        const closing = yield* Effect.fork(receiveClose)
        yield* turns(10)
        assert.isNull(closing.unsafePoll())
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(yield* Fiber.join(closing), [1000, ""])
        yield* peer.reset
      }
    })
  )

  it.scoped("is answered once, whatever it sends behind its Close", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(WebSocket.onUpgrade(echo), { kind })
      const { receiveAll, send } = yield* clientOf(connect)
      yield* send(message("a"), close(1000), close(4000), message("b"), frame(Opcode.Ping), Buffer.from([0xff]))
      yield* send(message("c"))
      assert.deepStrictEqual(
        (yield* receiveAll).map(({ opcode, payload }) => `${opcode} ${payload.toString("hex")}`),
        ["1 61", "8 03e8"]
      )
    })
  )

  it.scoped("and resets while its messages are handled has closed all the same", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, send, ws } = yield* open()
      const go = yield* Deferred.make<void>()
      const running = yield* Effect.fork(WebSocket.run(ws, () => Deferred.await(go)))
      yield* turns(1)
      yield* send(message("a"), close(1001, "leaving"))
      yield* turns(5)
      yield* peer.reset
      yield* until(() => ws.upgraded.socket.destroyed)
      yield* Deferred.succeed(go, undefined)
      assert.deepStrictEqual(yield* Fiber.join(running), { code: 1001, reason: "leaving" })
    })
  )

  it.scoped("and ends at once gets the answers still", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        WebSocket.onUpgrade((ws) =>
          WebSocket.run(ws, (message) => Effect.zipRight(turns(5), WebSocket.send(ws, message)))
        ),
        { kind }
      )
      const { peer, receiveAll, send } = yield* clientOf(connect)
      yield* send(message("a"), message("b"), close(1000))
      yield* peer.end
      assert.deepStrictEqual(
        (yield* receiveAll).map(({ payload }) => `${payload}`),
        ["a", "b", `${closePayload(1000)}`]
      )
    })
  )
})

describe.each(kinds)("close, over %s,", (kind) => {
  it.scoped("says code and reason, waits for the peer's Close, and yields it; the FIN comes after", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      for (const code of [...codes, undefined]) {
        const { peer, receiveClose, send, ws } = yield* open()
        const reason = code === undefined ? "" : "x".repeat(123)
        const closing = yield* Effect.fork(code === undefined ? WebSocket.close(ws) : WebSocket.close(ws, code, reason))
        assert.deepStrictEqual(yield* receiveClose, [code ?? 1000, reason])
        const ended = yield* Effect.fork(peer.closed)
        yield* turns(5)
        assert.isNull(closing.unsafePoll())
        assert.isNull(ended.unsafePoll())
        yield* send(close(4321, "mine"))
        assert.deepStrictEqual(yield* Fiber.join(closing), { code: 4321, reason: "mine" })
        assert.strictEqual(yield* Fiber.join(ended), "end")
      }
    })
  )

  it.scoped("lets what still comes be read, and a stream of it end", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receiveClose, send, ws } = yield* open()
      const reading = yield* Effect.fork(Stream.runCollect(WebSocket.stream(ws)))
      const closing = yield* Effect.fork(WebSocket.close(ws, 4000))
      yield* receiveClose
      yield* send(message("a"), frame(Opcode.Ping, "not answered"), message("b"))
      yield* send(close(4000))
      assert.deepStrictEqual([...(yield* Fiber.join(reading))], ["a", "b"])
      yield* Fiber.join(closing)
    })
  )

  it.scoped("at both ends at once is one Close each way", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receiveAll, send, ws } = yield* open()
      const running = yield* Effect.fork(WebSocket.run(ws, () => Effect.void))
      yield* turns(1)
      const closing = yield* Effect.fork(WebSocket.close(ws, 4000, "ours"))
      yield* send(close(4001, "theirs"))
      assert.deepStrictEqual(yield* Fiber.join(closing), { code: 4001, reason: "theirs" })
      assert.deepStrictEqual(yield* Fiber.join(running), { code: 4001, reason: "theirs" })
      const frames = yield* receiveAll
      assert.lengthOf(frames, 1)
      assert.include([4000, 4001], closeOf(frames[0]!)[0])
    })
  )

  it.scoped("again, by another fiber, and interrupted in between, is the same Close", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receiveAll, send, ws } = yield* open()
      const first = yield* Effect.fork(WebSocket.close(ws, 4000))
      const second = yield* Effect.fork(WebSocket.close(ws, 4001))
      yield* turns(1)
      yield* Fiber.interrupt(first)
      const third = yield* Effect.fork(ws.pipe(WebSocket.close(4002)))
      yield* turns(1)
      yield* send(close(4000))
      assert.deepStrictEqual(yield* Fiber.join(second), { code: 4000, reason: "" })
      assert.deepStrictEqual(yield* Fiber.join(third), { code: 4000, reason: "" })
      assert.deepStrictEqual((yield* receiveAll).map(closeOf), [[4000, ""]])
    })
  )

  it.scoped("is behind all that was sent before, however much it is", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, send, ws } = yield* open()
      const large = Buffer.alloc(24 * 1024 * 1024, "x")
      const sending = yield* Effect.fork(Effect.exit(WebSocket.send(ws, large)))
      yield* until(() => ws.upgraded.socket.writableNeedDrain)
      const closing = yield* Effect.fork(WebSocket.close(ws, 1000))
      yield* turns(2)
      assert.isNull(closing.unsafePoll())
      const pieces: Array<Uint8Array> = []
      for (let size = 0; size < 10 + large.length + 4; ) {
        const piece = yield* peer.receive
        pieces.push(piece)
        size += piece.length
      }
      assert.strictEqual(Buffer.concat(pieces).subarray(-4).toString("hex"), "880203e8")
      yield* send(close(1000))
      yield* Fiber.join(closing)
      yield* Fiber.join(sending)
    })
  )

  it.scoped.each([0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535, Number.NaN, -1])(
    "with the code %d is a defect, and sends nothing",
    (code) =>
      Effect.gen(function* () {
        const { open } = yield* opening(kind)
        const { receive, send, ws } = yield* open()
        const exit = yield* Effect.exit(WebSocket.close(ws, code))
        assert.strictEqual(Exit.isFailure(exit) && exit.cause._tag, "Die")
        yield* Effect.fork(echo(ws))
        yield* send(message("still open"))
        assert.strictEqual(`${(yield* receive).payload}`, "still open")
      })
  )

  it.scoped.each(["x".repeat(124), "é".repeat(62), "😀".repeat(31)])(
    "with a reason of over 123 bytes is a defect, and sends nothing: %s",
    (reason) =>
      Effect.gen(function* () {
        const { open } = yield* opening(kind)
        const { receiveClose, ws } = yield* open()
        const exit = yield* Effect.exit(WebSocket.close(ws, 1000, reason))
        assert.strictEqual(Exit.isFailure(exit) && exit.cause._tag, "Die")
        yield* Effect.fork(WebSocket.close(ws, 1000, "é".repeat(61)))
        assert.deepStrictEqual(yield* receiveClose, [1000, "é".repeat(61)])
      })
  )

  it.scoped("fails with WebSocketTimeout where the peer does not answer within closeTimeout, 5 s", () =>
    Effect.gen(function* () {
      for (const [closeTimeout, millis] of [
        [undefined, 5000],
        ["300 millis", 300]
      ] as const) {
        const { open } = yield* opening(kind, { closeTimeout })
        const { peer, ws } = yield* open()
        const reading = yield* Effect.fork(Effect.exit(WebSocket.run(ws, () => Effect.void)))
        const closing = yield* Effect.fork(Effect.exit(WebSocket.close(ws)))
        yield* peer.receiveExactly(4)
        yield* TestClock.adjust(millis - 1)
        yield* turns(3)
        assert.isNull(closing.unsafePoll())
        assert.isFalse(ws.upgraded.socket.destroyed)
        yield* TestClock.adjust(1)
        const late = { _tag: "WebSocketTimeout", stage: "Close", millis }
        assert.deepInclude(failure(yield* Fiber.join(closing)), late)
        assert.deepInclude(failure(yield* Fiber.join(reading)), late)
        assert.isTrue(ws.upgraded.socket.destroyed)
        yield* peer.closed
      }
    })
  )

  it.scoped("destroys the connection of a peer that answers and does not end", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, send, ws } = yield* open()
      const closing = yield* Effect.fork(WebSocket.close(ws))
      yield* peer.receiveExactly(4)
      yield* TestClock.adjust("3 seconds")
      yield* send(close(1000))
      yield* Fiber.join(closing)
      assert.strictEqual(yield* peer.closed, "end")
      yield* TestClock.adjust("1999 millis")
      yield* turns(3)
      assert.isFalse(ws.upgraded.socket.destroyed)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(ws.upgraded.socket.destroyed)
    })
  )

  it.scoped("gets through to a peer that floods, though nobody reads", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, receiveClose, send, ws } = yield* open()
      const flood = yield* Effect.fork(Effect.forever(peer.send(message(Buffer.alloc(8192)))))
      yield* until(() => ws.upgraded.socket.isPaused())
      const closing = yield* Effect.fork(WebSocket.close(ws, 1008))
      assert.deepStrictEqual(yield* receiveClose, [1008, ""])
      yield* Fiber.interrupt(flood)
      yield* send(close(1008))
      assert.deepStrictEqual(yield* Fiber.join(closing), { code: 1008, reason: "" })
      // What was dropped is at the end: nothing is missing between
      assert.strictEqual((yield* Effect.flip(WebSocket.pull(ws)))._tag, "None")
    })
  )
})

describe.each(kinds)("the Scope of a websocket, over %s,", (kind) => {
  const exits: ReadonlyArray<readonly [string, (id: Fiber.RuntimeFiber<any>) => Exit.Exit<unknown, unknown>, number]> =
    [
      ["success", () => Exit.void, 1000],
      ["an interruption", (fiber) => Exit.interrupt(fiber.id()), 1001],
      ["a failure", () => Exit.fail("no"), 1011],
      ["a defect", () => Exit.die(new Error("no")), 1011]
    ]

  it.scoped.each(exits)("after %s closes it with its code, when the peer has answered", ([_, exit, code]) =>
    Effect.gen(function* () {
      const { open, switched } = yield* opening(kind)
      const { peer, receiveClose, send, shut, ws } = yield* open()
      yield* Effect.fork(WebSocket.send(ws, "last"))
      const fiber = yield* Effect.fork(Effect.void)
      const closing = yield* Effect.fork(shut(exit(fiber)))
      assert.strictEqual(`${(yield* peer.receiveExactly(6)).subarray(2)}`, "last")
      assert.deepStrictEqual(yield* receiveClose, [code, ""])
      yield* turns(3)
      assert.isNull(closing.unsafePoll())
      yield* send(message("late"), close(code))
      assert.strictEqual(yield* peer.closed, "end")
      yield* peer.end
      yield* Fiber.join(closing)
      assert.isTrue(ws.upgraded.socket.destroyed)
      assert.strictEqual(yield* switched, 0)
    })
  )

  it.scoped("waits for a peer that does not answer no longer than closeTimeout", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receiveClose, shut, ws } = yield* open()
      const closing = yield* Effect.fork(shut(Exit.void))
      yield* receiveClose
      yield* TestClock.adjust("4999 millis")
      yield* turns(3)
      assert.isNull(closing.unsafePoll())
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      assert.isTrue(ws.upgraded.socket.destroyed)
    })
  )

  const sessions: ReadonlyArray<readonly [string, Session, number]> = [
    ["returns", (ws) => WebSocket.pull(ws), 1000],
    ["fails", (ws) => Effect.zipRight(WebSocket.pull(ws), Effect.fail("no")), 1011],
    ["dies", (ws) => Effect.zipRight(WebSocket.pull(ws), Effect.die("no")), 1011],
    ["interrupts itself", (ws) => Effect.zipRight(WebSocket.pull(ws), Effect.interrupt), 1001],
    ["closes by itself", (ws) => Effect.zipRight(WebSocket.pull(ws), WebSocket.close(ws, 4000)), 4000]
  ]

  it.scoped.each(forms.flatMap(([name, form]) => sessions.map((session) => [name, ...session, form] as const)))(
    "of a session of %s that %s closes so",
    ([_, __, session, code, form]) =>
      Effect.gen(function* () {
        const running = yield* serve(form(session), { kind })
        const { peer, receiveClose, send } = yield* clientOf(running.connect)
        yield* send(message("go"))
        assert.deepStrictEqual(yield* receiveClose, [code, ""])
        yield* send(close(code))
        assert.strictEqual(yield* peer.closed, "end")
        yield* peer.end
        yield* left(running, 0)
      })
  )
})

describe.each(kinds)("a server that shuts down, over %s,", (kind) => {
  it.scoped.each(forms.filter(([name]) => name !== "respond"))(
    "sends 1001 to each session of %s, and waits for the answers",
    ([_, form]) =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const running = yield* Scope.extend(serve(form(echo), { kind }), scope)
        const clients = yield* Effect.forEach([1, 2, 3], () => clientOf(running.connect))
        yield* left(running, 3)
        const down = yield* Effect.fork(Scope.close(scope, Exit.void))
        for (const { receiveClose } of clients) {
          assert.deepStrictEqual(yield* receiveClose, [1001, ""])
        }
        yield* turns(5)
        assert.isNull(down.unsafePoll())
        for (const { peer, send } of clients) {
          yield* send(close(1001))
          assert.strictEqual(yield* peer.closed, "end")
          yield* peer.end
        }
        yield* Fiber.join(down)
      })
  )

  it.scoped("waits for those that do not answer no longer than closeTimeout", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const running = yield* Scope.extend(serve(WebSocket.onUpgrade(echo), { kind }), scope)
      const { receiveClose } = yield* clientOf(running.connect)
      const down = yield* Effect.fork(Scope.close(scope, Exit.void))
      assert.deepStrictEqual(yield* receiveClose, [1001, ""])
      yield* turns(3)
      assert.isNull(down.unsafePoll())
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.join(down)
    })
  )

  it.scoped("lets sessions go on for drainTimeout", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const running = yield* Scope.extend(serve(WebSocket.onUpgrade(echo), { kind, drainTimeout: "10 seconds" }), scope)
      const { peer, receive, receiveClose, send } = yield* clientOf(running.connect)
      const down = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("9 seconds")
      yield* send(message("still here"))
      assert.strictEqual(`${(yield* receive).payload}`, "still here")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* receiveClose, [1001, ""])
      yield* send(close(1001))
      yield* peer.end
      yield* Fiber.join(down)
    })
  )
})

describe.each(kinds)("a connection that ends without a Close, over %s,", (kind) => {
  const waiting = (ws: WebSocket.WebSocket) =>
    Effect.all(
      [WebSocket.run(ws, () => Effect.void), WebSocket.ping(ws), WebSocket.awaitClosed(ws)].map((effect) =>
        Effect.fork(Effect.exit(effect as Effect.Effect<unknown, any>))
      )
    )

  it.scoped("by a FIN is closed with 1006, after what came before", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      for (const rest of [Buffer.alloc(0), message("cut").subarray(0, 3), frame(Opcode.Text, "a", { fin: false })]) {
        const { peer, send, ws } = yield* open()
        yield* send(message("a"), message("b"), rest)
        yield* peer.end
        const seen: Array<WebSocket.Message> = []
        const exit = yield* Effect.exit(WebSocket.run(ws, (message) => Effect.sync(() => seen.push(message))))
        assert.deepStrictEqual(seen, ["a", "b"])
        const gone = { _tag: "WebSocketClosed", code: 1006, reason: "", by: "Peer" }
        assert.deepInclude(failure(exit), gone)
        for (const effect of [WebSocket.send(ws, "c"), WebSocket.close(ws), WebSocket.awaitClosed(ws)]) {
          assert.deepInclude(failure(yield* Effect.exit(effect as Effect.Effect<unknown, any>)), gone)
        }
        assert.strictEqual(yield* peer.closed, "end")
      }
    })
  )

  it.scoped("by a FIN fails all that wait", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const fibers = yield* waiting(ws)
      yield* turns(2)
      yield* peer.end
      for (const fiber of fibers) {
        assert.deepInclude(failure(yield* Fiber.join(fiber)), { _tag: "WebSocketClosed", code: 1006 })
      }
    })
  )

  it.scoped("by a reset fails all that wait, and all that comes", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const fibers = yield* waiting(ws)
      yield* turns(2)
      yield* peer.reset
      const reset = { _tag: "ConnectionError", reason: "Reset" }
      for (const fiber of fibers) {
        assert.deepInclude(failure(yield* Fiber.join(fiber)), reset)
      }
      for (const effect of [WebSocket.send(ws, "c"), WebSocket.close(ws), WebSocket.ping(ws)]) {
        assert.deepInclude(failure(yield* Effect.exit(effect as Effect.Effect<unknown, any>)), reset)
      }
    })
  )
})

describe.each(kinds)("a peer that breaks the protocol, over %s,", (kind) => {
  const violations: ReadonlyArray<
    readonly [string, Uint8Array, { readonly _tag: string; readonly code?: number; readonly clause?: string }, number]
  > = [
    [
      "a reserved bit",
      frame(Opcode.Text, "a", { rsv: 2 }),
      { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §5.2" },
      1002
    ],
    [
      "no mask",
      frame(Opcode.Text, "a", { key: undefined }),
      { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §5.1" },
      1002
    ],
    [
      "text that is no UTF-8",
      frame(Opcode.Text, Buffer.from([0xff])),
      { _tag: "ProtocolViolation", code: 1007, clause: "RFC 6455 §8.1" },
      1007
    ],
    ["a Close of 1005", close(1005), { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §7.4" }, 1002],
    ["a Close of 1006", close(1006), { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §7.4" }, 1002],
    ["a Close of 1015", close(1015), { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §7.4" }, 1002],
    ["a Close of 1004", close(1004), { _tag: "ProtocolViolation", code: 1002, clause: "RFC 6455 §7.4" }, 1002],
    [
      "too many fragments",
      Buffer.concat([
        frame(Opcode.Text, "", { fin: false }),
        frame(0, "", { fin: false }),
        frame(0, "", { fin: false }),
        frame(0, "", { fin: false })
      ]),
      { _tag: "ProtocolViolation", code: 1008, clause: "RFC 6455 §10.4" },
      1008
    ],
    [
      "too many frames",
      Buffer.concat(Array.from({ length: 30 }, () => frame(Opcode.Pong))),
      { _tag: "ProtocolViolation", code: 1008, clause: "RFC 6455 §10.4" },
      1008
    ],
    ["a message that is too big", frame(Opcode.Binary, Buffer.alloc(1001)), { _tag: "MessageTooBig" }, 1009],
    [
      "a message that is announced too big",
      frame(Opcode.Binary, "", { length: 2n ** 40n }),
      { _tag: "MessageTooBig" },
      1009
    ]
  ]
  const limits = { maxMessageSize: 1000, maxFragments: 3, maxFrames: 20 }

  it.scoped.each(violations)(
    "by %s, is told so behind the answers, then ended; the reader knows after the last message",
    ([_, bytes, error, code]) =>
      Effect.gen(function* () {
        const { open } = yield* opening(kind, limits)
        const { peer, receiveAll, send, ws } = yield* open()
        const exit = yield* Effect.fork(Effect.exit(echo(ws)))
        yield* turns(2)
        yield* send(message("a"), message("b"), bytes, message("never"))
        assert.deepInclude(failure(yield* Fiber.join(exit)), error)
        const frames = yield* receiveAll
        assert.deepStrictEqual(
          frames.slice(0, -1).map(({ payload }) => `${payload}`),
          ["a", "b"]
        )
        assert.strictEqual(closeOf(frames.at(-1)!)[0], code)
        assert.isAbove(closeOf(frames.at(-1)!)[1].length, 10)
        for (const effect of [
          WebSocket.send(ws, "c"),
          WebSocket.close(ws),
          WebSocket.awaitClosed(ws),
          WebSocket.ping(ws)
        ]) {
          assert.deepInclude(failure(yield* Effect.exit(effect as Effect.Effect<unknown, any>)), error)
        }
        yield* peer.end
        yield* until(() => ws.upgraded.socket.destroyed)
      })
  )

  it.scoped("and does not end, is destroyed after closeTimeout", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, send, ws } = yield* open()
      yield* send(Buffer.from([0xff, 0xff]))
      assert.strictEqual(yield* peer.closed, "end")
      yield* TestClock.adjust("4999 millis")
      yield* turns(3)
      assert.isFalse(ws.upgraded.socket.destroyed)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(ws.upgraded.socket.destroyed)
    })
  )
})

describe.each(kinds)("a session, over %s,", (kind) => {
  const ends: ReadonlyArray<readonly [string, (client: import("./support.js").Client) => Effect.Effect<unknown>]> = [
    ["closes", ({ peer, send }) => Effect.all([send(close(1000)), Effect.ignore(peer.receiveAll), peer.end])],
    ["ends without a Close", ({ peer }) => peer.end],
    [
      "breaks the protocol",
      ({ peer, send }) => Effect.all([send(Buffer.from([0xff, 0xff])), Effect.ignore(peer.receiveAll), peer.end])
    ],
    ["resets", ({ peer }) => peer.reset],
    [
      "closes and resets",
      ({ peer, send }) => Effect.all([send(close(1000)), Effect.ignore(peer.receiveAll), peer.reset])
    ]
  ]

  it.scoped.each(ends)("that neither reads nor writes is interrupted when its peer %s", ([_, end]) =>
    Effect.gen(function* () {
      const interrupted = outcome<void>()
      const began = outcome<void>()
      const running = yield* serve(
        WebSocket.onUpgrade(() =>
          Effect.onInterrupt(Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), () =>
            Deferred.succeed(interrupted, undefined)
          )
        ),
        { kind }
      )
      const client = yield* clientOf(running.connect)
      yield* Deferred.await(began)
      yield* end(client)
      yield* turns(10)
      // The reset is a loss, which is known at once
      yield* TestClock.adjust("5 seconds")
      yield* Deferred.await(interrupted)
      yield* left(running, 0)
    })
  )

  it.scoped.each(ends)("that was told may take its time: its peer %s", ([_, end]) =>
    Effect.gen(function* () {
      const done = outcome<string>()
      const began = outcome<void>()
      const running = yield* serve(
        WebSocket.onUpgrade((ws) =>
          Deferred.succeed(began, undefined).pipe(
            Effect.zipRight(WebSocket.run(ws, () => Effect.void)),
            Effect.exit,
            Effect.zipLeft(turns(40)),
            Effect.zipLeft(Effect.sleep("1 minute")),
            Effect.flatMap((exit) => Deferred.succeed(done, exit._tag)),
            Effect.onInterrupt(() => Deferred.succeed(done, "interrupted"))
          )
        ),
        { kind }
      )
      const client = yield* clientOf(running.connect)
      yield* Deferred.await(began)
      yield* turns(3)
      yield* end(client)
      yield* turns(60)
      yield* TestClock.adjust("30 seconds")
      yield* turns(5)
      assert.isFalse(yield* Deferred.isDone(done))
      yield* TestClock.adjust("30 seconds")
      assert.include(["Success", "Failure"], yield* Deferred.await(done))
      yield* left(running, 0)
    })
  )

  it.scoped("that waits for its Close to be answered is told, and not interrupted", () =>
    Effect.gen(function* () {
      const done = outcome<unknown>()
      const running = yield* serve(
        WebSocket.onUpgrade((ws) =>
          Effect.exit(WebSocket.close(ws)).pipe(
            Effect.zipLeft(turns(40)),
            Effect.flatMap((exit) => Deferred.succeed(done, failure(exit))),
            Effect.onInterrupt(() => Deferred.succeed(done, "interrupted"))
          )
        ),
        { kind }
      )
      const { receiveClose } = yield* clientOf(running.connect)
      yield* receiveClose
      yield* TestClock.adjust("5 seconds")
      assert.deepInclude(yield* Deferred.await(done), { _tag: "WebSocketTimeout", stage: "Close" })
      yield* left(running, 0)
    })
  )

  it.scoped("gives onFailure why it ended, typed", () =>
    Effect.gen(function* () {
      const seen = outcome<Cause.Cause<unknown>>()
      const running = yield* serve(WebSocket.onUpgrade({ onFailure: (cause) => Deferred.succeed(seen, cause) }, echo), {
        kind
      })
      const { peer, send } = yield* clientOf(running.connect)
      yield* send(Buffer.from([0xff, 0xff]))
      yield* peer.end
      assert.deepInclude(failure(Exit.failCause(yield* Deferred.await(seen))), {
        _tag: "ProtocolViolation",
        code: 1002
      })
      yield* left(running, 0)
    })
  )
})

describe.each(kinds)("silence, over %s,", (kind) => {
  it.scoped("is met with a ping after heartbeat, and the end after another without a byte", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind, { heartbeat: "10 seconds" })
      const { peer, receive, ws } = yield* open()
      const reading = yield* Effect.fork(Effect.exit(WebSocket.run(ws, () => Effect.void)))
      const receiving = yield* Effect.fork(receive)
      yield* TestClock.adjust("9999 millis")
      yield* turns(3)
      assert.isNull(receiving.unsafePoll())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* Fiber.join(receiving)).opcode, Opcode.Ping)
      yield* TestClock.adjust("9999 millis")
      yield* turns(3)
      assert.isNull(reading.unsafePoll())
      yield* TestClock.adjust("1 millis")
      assert.deepInclude(failure(yield* Fiber.join(reading)), {
        _tag: "WebSocketTimeout",
        stage: "Heartbeat",
        millis: 10_000
      })
      yield* peer.closed
    })
  )

  it.scoped("is broken by a pong, and by anything else: a peer that lives is kept", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind, { heartbeat: "10 seconds" })
      const { receive, send, ws } = yield* open()
      const reading = yield* Effect.fork(WebSocket.run(ws, () => Effect.void))
      for (const answer of ["pong", "message", "half a frame", "the rest of it", "ping", "pong"]) {
        yield* TestClock.adjust("10 seconds")
        const { opcode, payload } = yield* receive
        assert.strictEqual(opcode, Opcode.Ping)
        const half = frame(Opcode.Text, "abcdef")
        yield* TestClock.adjust("9 seconds")
        yield* send(
          answer === "pong"
            ? frame(Opcode.Pong, payload)
            : answer === "message"
              ? message("a")
              : answer === "half a frame"
                ? half.subarray(0, 8)
                : answer === "the rest of it"
                  ? half.subarray(8)
                  : frame(Opcode.Ping, "are you?")
        )
        if (answer === "ping") {
          assert.strictEqual((yield* receive).opcode, Opcode.Pong)
        }
        yield* turns(5)
        // Until the next beat it is known to be alive
        yield* TestClock.adjust("1 seconds")
        yield* turns(2)
        assert.isNull(reading.unsafePoll())
      }
      yield* send(close(1000))
      yield* Fiber.join(reading)
    })
  )

  it.scoped("is no fault of a peer that is stopped because nobody reads", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind, { heartbeat: "10 seconds" })
      const { peer, ws } = yield* open()
      yield* Effect.fork(peer.send(Buffer.concat(Array.from({ length: 300 }, () => message(Buffer.alloc(8192))))))
      yield* until(() => ws.upgraded.socket.isPaused())
      for (let i = 0; i < 5; i++) {
        yield* TestClock.adjust("10 seconds")
      }
      assert.isFalse(ws.upgraded.socket.destroyed)
      let got = 0
      const reading = yield* Effect.fork(WebSocket.run(ws, () => Effect.sync(() => got++)))
      yield* until(() => got === 300)
      assert.isNull(reading.unsafePoll())
    })
  )

  it.scoped("of messages for idleTimeout closes with 1001, however many pings there are", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind, { idleTimeout: "10 seconds" })
      const { peer, receive, receiveClose, send, ws } = yield* open()
      const reading = yield* Effect.fork(Effect.exit(WebSocket.run(ws, () => Effect.void)))
      // A message that came in the meantime counts, and one that went
      yield* TestClock.adjust("5 seconds")
      yield* send(message("a"))
      yield* turns(5)
      yield* TestClock.adjust("5 seconds")
      yield* turns(2)
      yield* WebSocket.send(ws, "b")
      yield* receive
      yield* TestClock.adjust("10 seconds")
      yield* turns(2)
      assert.isNull(reading.unsafePoll())
      yield* send(frame(Opcode.Ping), frame(Opcode.Pong))
      yield* receive
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual((yield* receiveClose)[0], 1001)
      assert.deepInclude(failure(yield* Fiber.join(reading)), {
        _tag: "WebSocketTimeout",
        stage: "Idle",
        millis: 10_000
      })
      assert.strictEqual(yield* peer.closed, "end")
    })
  )
})
