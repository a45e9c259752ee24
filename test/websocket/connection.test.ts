import type * as net from "node:net"
import { assert, describe, it } from "@effect/vitest"
import * as Channel from "effect/Channel"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import { WebSocket } from "../../src/index.js"
import { type Kind, runs, serve } from "../support.js"
import { type Decoded, Opcode } from "./frames.js"
import {
  close,
  echo,
  forms,
  frame,
  handshake,
  message,
  opening,
  readers,
  settled,
  shown,
  someMessages,
  switched,
  turns,
  until
} from "./support.js"

const kinds: ReadonlyArray<Kind> = ["tcp", "memory"]

const numRuns = runs(10)

const failure = <A, E>(exit: Exit.Exit<A, E>): E | undefined =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined

const texts = (frames: ReadonlyArray<Decoded>) => frames.map(({ opcode, payload }) => `${opcode} ${payload}`)

const places = FastCheck.array(FastCheck.double({ min: 0, max: 1, noNaN: true }), { maxLength: 5 })

describe.each(kinds)("reading over %s", (kind) => {
  it.scoped.each(readers)("by %s yields all messages, in order, split anywhere, with pings between them", ([_, read]) =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(someMessages, places, FastCheck.boolean(), (messages, at, pinged) =>
            Effect.gen(function* () {
              const { peer, receiveAll, ws } = yield* open()
              const reading = yield* Effect.fork(read(ws))
              const all = Buffer.concat([
                ...messages.flatMap((one) => (pinged ? [frame(Opcode.Ping, "?"), message(one)] : [message(one)])),
                close(1000, "done")
              ])
              yield* peer.sendSplit(
                all,
                at.map((place) => Math.floor(place * all.length))
              )
              assert.deepStrictEqual((yield* Fiber.join(reading)).map(shown), messages.map(shown))
              const answers = yield* receiveAll
              assert.deepStrictEqual(texts(answers), [
                ...(pinged ? messages.map(() => "10 ?") : []),
                texts([answers.at(-1)!])[0]
              ])
              assert.strictEqual(answers.at(-1)!.opcode, Opcode.Close)
              yield* peer.end
              yield* WebSocket.awaitClosed(ws)
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns }
        )
      )
    })
  )

  it.scoped.each(forms)("by a session of %s begins with the frames in the packet of the handshake", ([_, form]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(form(echo), { kind })
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(someMessages, places, (messages, at) =>
            Effect.gen(function* () {
              const peer = yield* connect
              const all = Buffer.concat([Buffer.from(handshake()), ...messages.map(message), close(1000)])
              yield* Effect.fork(
                peer.sendSplit(
                  all,
                  at.map((place) => Math.floor(place * all.length))
                )
              )
              const { receiveAll } = yield* switched(peer)
              const echoed = yield* receiveAll
              assert.deepStrictEqual(
                echoed
                  .slice(0, -1)
                  .map(({ opcode, payload }) => shown(opcode === Opcode.Text ? `${payload}` : payload)),
                messages.map(shown)
              )
              assert.strictEqual(echoed.at(-1)!.opcode, Opcode.Close)
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns }
        )
      )
    })
  )

  it.scoped("hands on what one read brings as one batch", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { send, ws } = yield* open()
      const batches: Array<number> = []
      const reading = yield* Effect.fork(
        WebSocket.runBatch(ws, (messages) => Effect.sync(() => batches.push(messages.length)))
      )
      yield* turns(2)
      yield* send(message("a"), frame(Opcode.Ping), message("b"), message("c"))
      yield* until(() => batches.length > 0)
      yield* send(message("d"), close(4000, "enough"))
      assert.deepStrictEqual(yield* Fiber.join(reading), { code: 4000, reason: "enough" })
      assert.deepStrictEqual(batches, [3, 1])
    })
  )

  it.scoped("takes one reader at a time: another fails with Busy, and takes nothing", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { send, ws } = yield* open()
      const held = yield* Deferred.make<void>()
      const seen: Array<WebSocket.Message> = []
      const reading = yield* Effect.fork(
        WebSocket.run(ws, (message) =>
          Effect.zipRight(
            Deferred.await(held),
            Effect.sync(() => seen.push(message))
          )
        )
      )
      const others = Effect.all([
        Effect.exit(WebSocket.run(ws, () => Effect.void)),
        Effect.exit(WebSocket.runBatch(ws, () => Effect.void)),
        Effect.exit(Stream.runDrain(WebSocket.stream(ws))),
        Effect.exit(Effect.mapError(WebSocket.pull(ws), Option.getOrUndefined))
      ])
      const busy = { _tag: "ConnectionError", reason: "Busy" }
      // While it waits for a message, and while it handles one
      yield* turns(2)
      for (const exit of yield* others) {
        assert.deepInclude(failure<unknown, any>(exit), busy)
      }
      yield* send(message("a"), message("b"))
      yield* turns(5)
      for (const exit of yield* others) {
        assert.deepInclude(failure<unknown, any>(exit), busy)
      }
      yield* Deferred.succeed(held, undefined)
      yield* send(close(1000))
      yield* Fiber.join(reading)
      assert.deepStrictEqual(seen, ["a", "b"])
    })
  )

  it.scoped("loses nothing to a reader that is interrupted while it waits, whenever that is", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      for (let wait = 0; wait < 8; wait++) {
        const { send, ws } = yield* open()
        for (const reader of [
          Effect.asVoid(Effect.ignore(WebSocket.pull(ws))),
          Effect.asVoid(Effect.ignore(Stream.runDrain(WebSocket.stream(ws)))),
          Effect.asVoid(Effect.ignore(WebSocket.run(ws, () => Effect.void)))
        ]) {
          const fiber = yield* Effect.fork(reader)
          yield* turns(wait % 4)
          yield* Fiber.interrupt(fiber)
        }
        const fiber = yield* Effect.fork(WebSocket.pull(ws))
        yield* turns(2)
        yield* Effect.fork(send(message("a"), message("b")))
        yield* turns(wait)
        const first = yield* Fiber.interrupt(fiber)
        const rest: Array<WebSocket.Message> = Exit.isSuccess(first) ? [...first.value] : []
        while (rest.length < 2) {
          rest.push(...(yield* Effect.mapError(WebSocket.pull(ws), Option.getOrThrow)))
        }
        assert.deepStrictEqual(rest, ["a", "b"])
      }
    })
  )

  it.scoped.each([
    [1000, true],
    [1001, true],
    [undefined, true],
    [1003, false],
    [1011, false],
    [4000, false]
  ] as const)("a stream ends by a Close of %s as an end should: %s", ([code, isEnd]) =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { send, ws } = yield* open()
      yield* send(message("last"), close(code, code === undefined ? "" : "why"))
      const seen: Array<WebSocket.Message> = []
      const exit = yield* Effect.exit(
        Stream.runForEach(WebSocket.stream(ws), (one) => Effect.sync(() => seen.push(one)))
      )
      assert.deepStrictEqual(seen, ["last"])
      if (isEnd) {
        assert.isTrue(Exit.isSuccess(exit))
      } else {
        assert.deepInclude(failure(exit), { _tag: "WebSocketClosed", code, reason: "why", by: "Peer" })
      }
    })
  )

  it.scoped("fails with the handler's own error, and goes on behind the message that it was about", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { send, ws } = yield* open()
      yield* send(...["fail", "die", "throw", "wait", "last"].map(message), close(1000))
      yield* turns(5)
      const seen: Array<WebSocket.Message> = []
      const run = WebSocket.run(ws, (message) => {
        seen.push(message)
        switch (message) {
          case "fail":
            return Effect.fail("failed")
          case "die":
            return Effect.die("died")
          case "throw":
            throw new Error("thrown")
          case "wait":
            return Effect.never
          default:
            return Effect.void
        }
      })
      assert.strictEqual(failure(yield* Effect.exit(run)), "failed")
      assert.isTrue(Exit.isFailure(yield* Effect.exit(run)))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(run)))
      const waiting = yield* Effect.fork(run)
      yield* turns(2)
      yield* Fiber.interrupt(waiting)
      assert.deepStrictEqual(yield* run, { code: 1000, reason: "" })
      assert.deepStrictEqual(seen, ["fail", "die", "throw", "wait", "last"])
    })
  )

  it.scoped("stops a peer whose messages nobody reads, and lets it go on", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const one = message(Buffer.alloc(8 * 1024, 1))
      const total = 3000
      let sent = 0
      const flood = yield* Effect.fork(
        Effect.forEach(Array.from({ length: total }), () => Effect.map(peer.send(one), () => sent++), { discard: true })
      )
      const stopped = yield* settled(() => sent)
      assert.isBelow(stopped, total)
      const read = (ws.upgraded.socket as net.Socket).bytesRead
      assert.isBelow(read, 256 * 1024)
      let got = 0
      const reading = yield* Effect.fork(
        WebSocket.runBatch(ws, (messages) =>
          Effect.sync(() => {
            for (const message of messages) {
              assert.strictEqual(message.length, 8 * 1024)
              got++
            }
          })
        )
      )
      yield* until(() => got === total)
      yield* Fiber.join(flood)
      yield* peer.send(close(1000))
      yield* Fiber.join(reading)
    })
  )

  it.scoped("stops a peer while a handler takes its time", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const go = yield* Deferred.make<void>()
      let got = 0
      yield* Effect.fork(
        WebSocket.runBatch(ws, (messages) =>
          Effect.zipRight(
            Deferred.await(go),
            Effect.sync(() => {
              got += messages.length
            })
          )
        )
      )
      const one = message(Buffer.alloc(8 * 1024, 1))
      let sent = 0
      yield* Effect.fork(
        Effect.repeatN(
          Effect.map(peer.send(one), () => sent++),
          2999
        )
      )
      yield* settled(() => sent)
      assert.isBelow(sent, 3000)
      assert.isBelow((ws.upgraded.socket as net.Socket).bytesRead, 256 * 1024)
      yield* Deferred.succeed(go, undefined)
      yield* until(() => got === 3000)
    })
  )

  it.scoped("stops a peer that sends the smallest messages there are, all at once or one by one", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const smallest = message(Buffer.alloc(0))
      for (const count of kind === "memory" ? [1, 2000] : [2000]) {
        const { peer, ws } = yield* open()
        const flood = Buffer.concat(Array.from({ length: count }, () => smallest))
        let sent = 0
        const flooding = yield* Effect.fork(Effect.forever(Effect.map(peer.send(flood), () => sent++)))
        yield* settled(() => sent)
        yield* Fiber.interrupt(flooding)
        const waiting = yield* Effect.mapError(WebSocket.pull(ws), Option.getOrThrow)
        assert.isBelow(waiting.length, count === 1 ? 200 : 20_000)
      }
    })
  )
})

describe.each(kinds)("sending over %s", (kind) => {
  const senders: ReadonlyArray<
    readonly [
      string,
      (ws: WebSocket.WebSocket, messages: ReadonlyArray<WebSocket.Message>) => Effect.Effect<unknown, any>
    ]
  > = [
    ["send", (ws, messages) => Effect.forEach(messages, (message) => WebSocket.send(ws, message))],
    ["sendAll", (ws, messages) => WebSocket.sendAll(ws, messages)],
    ["sendAll of a generator", (ws, messages) => WebSocket.sendAll(ws, new Set(messages).values())],
    ["sink", (ws, messages) => Stream.run(Stream.fromIterable(messages), WebSocket.sink(ws))],
    [
      "channel",
      (ws, messages) =>
        Channel.runDrain(
          Channel.pipeTo(
            Channel.write(Chunk.unsafeFromArray(messages as Array<WebSocket.Message>)),
            WebSocket.channel(ws)
          )
        )
    ]
  ]

  it.scoped.each(senders)(
    "by %s, the peer gets all messages, in order, each in one frame without a mask",
    ([_, write]) =>
      Effect.gen(function* () {
        const { open } = yield* opening(kind)
        yield* Effect.promise(() =>
          FastCheck.assert(
            FastCheck.asyncProperty(someMessages, (messages) =>
              Effect.gen(function* () {
                const { peer, receive, send, ws } = yield* open()
                const unique = [...new Set(messages)]
                const writing = yield* Effect.fork(write(ws, unique))
                for (const one of unique) {
                  const got = yield* receive
                  assert.deepInclude(got, { fin: true, masked: false, rsv: 0 })
                  assert.strictEqual(shown(got.opcode === Opcode.Text ? `${got.payload}` : got.payload), shown(one))
                }
                yield* send(close(1000))
                yield* Fiber.join(writing)
                yield* peer.end
              }).pipe(Effect.scoped, Effect.runPromise)
            ),
            { numRuns }
          )
        )
      })
  )

  it.scoped("what is sent in one turn leaves in one write", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const writes: Array<number> = []
      const socket = ws.upgraded.socket as net.Socket
      const write = socket.write
      socket.write = ((bytes: Uint8Array) => {
        writes.push(bytes.length)
        return write.call(socket, bytes)
      }) as never
      yield* WebSocket.send(ws, "a")
      yield* WebSocket.sendAll(ws, ["b", "c"])
      yield* peer.receiveExactly(9)
      assert.deepStrictEqual(writes, [9])
      yield* Effect.fork(echo(ws))
      yield* peer.send(Buffer.concat([message("d"), frame(Opcode.Ping), message("e"), message("f")]))
      yield* peer.receiveExactly(11)
      assert.deepStrictEqual(writes, [9, 11])
    })
  )

  it.scoped("waits for a peer that does not read, holds no more than 256 KiB, and goes on with it", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      for (const size of [100, 5000, 60_000]) {
        const { peer, receive, ws } = yield* open()
        const socket = ws.upgraded.socket as net.Socket
        const one = "x".repeat(size)
        const total = Math.ceil((24 * 1024 * 1024) / size)
        let sent = 0
        let most = 0
        const batch = Array.from({ length: 50 }, () => one)
        const fibers = yield* Effect.forEach([1, 2, 3], (way) =>
          Effect.fork(
            Effect.suspend(() => {
              most = Math.max(most, socket.writableLength)
              sent += way === 3 ? 50 : 1
              return way === 3 ? WebSocket.sendAll(ws, batch) : WebSocket.send(ws, one)
            }).pipe(Effect.repeat({ while: () => sent < total }))
          )
        )
        yield* settled(() => sent)
        assert.isBelow(sent, total)
        // What is below the socket is the system's
        assert.isBelow(socket.writableLength, 256 * 1024)
        assert.isBelow(most, 256 * 1024)
        let got = 0
        yield* Effect.fork(
          Effect.forever(
            Effect.map(peer.receive, (bytes) => {
              got += bytes.length
            })
          )
        )
        yield* Effect.forEach(fibers, Fiber.join)
        const head = size < 126 ? 2 : 4
        yield* until(() => got === sent * (size + head))
        assert.isDefined(receive)
      }
    })
  )

  it.scoped("fails after a Close of either side, and says whose it was", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const mine = yield* open()
      yield* Effect.fork(WebSocket.close(mine.ws, 4001, "bye"))
      yield* turns(1)
      const writes = (ws: WebSocket.WebSocket) => [
        WebSocket.send(ws, "a"),
        WebSocket.sendAll(ws, ["a"]),
        WebSocket.ping(ws),
        Stream.run(Stream.make("a"), WebSocket.sink(ws))
      ]
      for (const write of writes(mine.ws)) {
        assert.deepInclude(failure(yield* Effect.exit(write as Effect.Effect<unknown, any>)), {
          _tag: "WebSocketClosed",
          code: 4001,
          by: "Self"
        })
      }
      const theirs = yield* open()
      yield* theirs.send(close(4002, "see you"))
      yield* WebSocket.awaitClosed(theirs.ws)
      for (const write of writes(theirs.ws)) {
        assert.deepInclude(failure(yield* Effect.exit(write as Effect.Effect<unknown, any>)), {
          _tag: "WebSocketClosed",
          code: 4002,
          reason: "see you",
          by: "Peer"
        })
      }
    })
  )

  it.scoped("fails a send that waits for the peer, when the websocket is closed or lost", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const large = Buffer.alloc(32 * 1024 * 1024)
      for (const how of ["close", "reset", "violation"] as const) {
        const { peer, send, ws } = yield* open()
        const sending = yield* Effect.fork(
          Effect.exit(Effect.zipRight(WebSocket.send(ws, large), WebSocket.send(ws, "b")))
        )
        yield* until(() => ws.upgraded.socket.writableNeedDrain)
        yield* turns(2)
        yield* how === "close" ? send(close(1000)) : how === "reset" ? peer.reset : send(Buffer.from([0xff, 0xff]))
        const error = failure(yield* Fiber.join(sending))
        const tags = { close: "WebSocketClosed", reset: "ConnectionError", violation: "ProtocolViolation" }
        assert.strictEqual(error?._tag, tags[how])
        yield* peer.reset
      }
    })
  )
})

describe.each(kinds)("pings over %s", (kind) => {
  it.scoped("are answered with what they carry, in their order, between the messages", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(WebSocket.onUpgrade(echo), { kind })
      const peer = yield* connect
      yield* peer.send(handshake())
      const { receive, send } = yield* switched(peer)
      const full = Buffer.alloc(125, "p").toString()
      yield* send(frame(Opcode.Ping, "1"), frame(Opcode.Ping, ""), frame(Opcode.Ping, full))
      assert.deepStrictEqual(texts([yield* receive, yield* receive, yield* receive]), ["10 1", "10 ", `10 ${full}`])
      yield* send(
        frame(Opcode.Text, "a", { fin: false }),
        frame(Opcode.Ping, "within"),
        frame(Opcode.Continuation, "b")
      )
      assert.deepStrictEqual(texts([yield* receive, yield* receive]), ["10 within", "1 ab"])
    })
  )

  it.scoped("yield the round trip, by the Clock", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receive, send, ws } = yield* open()
      const pinging = yield* Effect.fork(WebSocket.ping(ws))
      const { opcode, payload } = yield* receive
      assert.strictEqual(opcode, Opcode.Ping)
      yield* TestClock.adjust("250 millis")
      yield* send(frame(Opcode.Pong, payload))
      assert.isTrue(Duration.equals(yield* Fiber.join(pinging), "250 millis"))
    })
  )

  it.scoped("wait for their own pong, or a later one: another is no answer (RFC 6455 §5.5.3)", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receive, send, ws } = yield* open()
      const pinging = yield* Effect.forEach([1, 2, 3], () => Effect.zipLeft(Effect.fork(WebSocket.ping(ws)), turns(1)))
      const [first, second] = [yield* receive, yield* receive, yield* receive] as const
      yield* send(
        frame(Opcode.Pong),
        frame(Opcode.Pong, "????"),
        frame(Opcode.Pong, "\xff\xff\xff\xff"),
        frame(Opcode.Pong, Buffer.concat([first.payload, first.payload])),
        frame(Opcode.Pong, Buffer.alloc(4, 255)),
        frame(Opcode.Ping, "done")
      )
      assert.strictEqual(`${(yield* receive).payload}`, "done")
      yield* turns(2)
      assert.deepStrictEqual(
        pinging.map((fiber) => fiber.unsafePoll() === null),
        [true, true, true]
      )
      yield* send(frame(Opcode.Pong, second.payload))
      yield* Fiber.join(pinging[0]!)
      yield* Fiber.join(pinging[1]!)
      yield* turns(2)
      assert.isNull(pinging[2]!.unsafePoll())
      // Late: its ping was answered by the one behind it
      yield* send(frame(Opcode.Pong, first.payload), frame(Opcode.Ping, "again"))
      assert.strictEqual(`${(yield* receive).payload}`, "again")
      assert.isNull(pinging[2]!.unsafePoll())
    })
  )

  it.scoped("of the heartbeat answer for those before them", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind, { heartbeat: "10 seconds" })
      const { receive, send, ws } = yield* open()
      const pinging = yield* Effect.fork(WebSocket.ping(ws))
      yield* receive
      yield* TestClock.adjust("10 seconds")
      const beat = yield* receive
      yield* send(frame(Opcode.Pong, beat.payload))
      assert.isTrue(Duration.equals(yield* Fiber.join(pinging), "10 seconds"))
    })
  )

  it.scoped("that are given up leave nothing to wait for", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receive, send, ws } = yield* open()
      const given = yield* Effect.fork(WebSocket.ping(ws))
      const first = yield* receive
      yield* Fiber.interrupt(given)
      const pinging = yield* Effect.fork(WebSocket.ping(ws))
      const second = yield* receive
      yield* send(frame(Opcode.Pong, first.payload), frame(Opcode.Ping, "?"))
      yield* receive
      assert.isNull(pinging.unsafePoll())
      yield* send(frame(Opcode.Pong, second.payload))
      yield* Fiber.join(pinging)
    })
  )

  it.scoped("fail when the websocket closes before their pong", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { receive, send, ws } = yield* open()
      const pinging = yield* Effect.fork(Effect.exit(WebSocket.ping(ws)))
      yield* receive
      yield* send(close(1001))
      assert.deepInclude(failure(yield* Fiber.join(pinging)), { _tag: "WebSocketClosed", code: 1001, by: "Peer" })
    })
  )

  it.scoped("of a peer that does not read make no pile of pongs: the last of them is answered", () =>
    Effect.gen(function* () {
      const { open } = yield* opening(kind)
      const { peer, ws } = yield* open()
      const socket = ws.upgraded.socket as net.Socket
      const reading = yield* Effect.fork(WebSocket.runBatch(ws, () => Effect.void))
      const pings = Buffer.concat(Array.from({ length: 500 }, () => frame(Opcode.Ping, Buffer.alloc(125, "p"))))
      let sent = 0
      let most = 0
      // The pongs to 24 MiB of pings are more than the system holds
      const flood = yield* Effect.fork(
        Effect.forEach(
          Array.from({ length: 384 }),
          () =>
            Effect.map(peer.send(pings), () => {
              sent++
              most = Math.max(most, socket.writableLength)
            }),
          { discard: true }
        )
      )
      yield* Fiber.join(flood)
      yield* turns(20)
      assert.strictEqual(sent, 384)
      assert.isTrue(socket.writableNeedDrain)
      assert.isBelow(Math.max(most, socket.writableLength), 256 * 1024)
      yield* peer.send(frame(Opcode.Ping, "the last"))
      yield* peer.receiveUntil("the last")
      assert.isNull(reading.unsafePoll())
    })
  )
})
