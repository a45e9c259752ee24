import { once } from "node:events"
import * as net from "node:net"
import { Duplex } from "node:stream"
import { TLSSocket } from "node:tls"
import * as Socket from "@effect/platform/Socket"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Ref from "effect/Ref"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import { Connection, Upgraded, UpgradeError } from "../src/index.js"
import type * as Peer from "../src/testing/Peer.js"
import { bytesOf, decode, kinds, opening, outcome, textOf, turns, until } from "./appSupport.js"

const runs = Number(process.env.LAWS_RUNS ?? 40)

/** At most so much may be held for a connection, in either direction. */
const bound = 256 * 1024

/** All that comes until the FIN, by `pull`. */
const pullAll = (upgraded: Upgraded.Upgraded): Effect.Effect<Buffer, UpgradeError.ConnectionError> => {
  const all: Array<Buffer> = []
  const loop: Effect.Effect<Buffer, UpgradeError.ConnectionError> = Effect.matchEffect(Upgraded.pull(upgraded), {
    onFailure: Option.match({
      onNone: () => Effect.sync(() => Buffer.concat(all)),
      onSome: (error) => Effect.fail(error)
    }),
    onSuccess: (bytes) => {
      all.push(bytesOf(bytes))
      return loop
    }
  })
  return loop
}

const runAll = (upgraded: Upgraded.Upgraded) =>
  Effect.suspend(() => {
    const all: Array<Buffer> = []
    return Effect.map(
      Upgraded.run(upgraded, (bytes) => Effect.sync(() => all.push(bytesOf(bytes)))),
      () => Buffer.concat(all)
    )
  })

/** Its input does not end, and so it sends no FIN. */
const channelAll = (upgraded: Upgraded.Upgraded) =>
  Effect.map(
    Channel.runCollect(Channel.pipeTo(Channel.fromEffect(Effect.never), Upgraded.channel(upgraded))),
    ([pieces]) => bytesOf(Chunk.flatten(pieces))
  )

/** Each way of reading all that comes. */
const readers: ReadonlyArray<
  readonly [name: string, read: (upgraded: Upgraded.Upgraded) => Effect.Effect<Buffer, unknown>]
> = [
  ["pull", pullAll],
  ["run", runAll],
  ["stream", (upgraded) => Effect.map(Stream.runCollect(Upgraded.stream(upgraded)), bytesOf)],
  ["channel", channelAll],
  [
    "readExactly",
    (upgraded) => {
      const all: Array<Uint8Array> = []
      return Upgraded.readExactly(upgraded, 1).pipe(
        Effect.tap((byte) => all.push(byte)),
        Effect.forever,
        Effect.catchIf(
          (error) => error.reason === "Closed",
          () => Effect.sync(() => Buffer.concat(all))
        )
      )
    }
  ],
  [
    "toSocket",
    (upgraded) =>
      Effect.suspend(() => {
        const all: Array<Uint8Array> = []
        return Effect.map(
          Upgraded.toSocket(upgraded).run((bytes) => {
            all.push(bytes)
          }),
          () => Buffer.concat(all)
        )
      })
  ],
  [
    "toDuplex",
    (upgraded) =>
      Effect.flatMap(Upgraded.toDuplex(upgraded), (duplex) =>
        Effect.promise(() => duplex.toArray().then(Buffer.concat))
      )
  ],
  [
    "detach",
    (upgraded) =>
      Effect.flatMap(Upgraded.detach(upgraded), ({ leftover, socket }) =>
        Effect.promise(async () => {
          const all: Array<Uint8Array> = [...leftover]
          socket.on("data", (bytes: Buffer) => all.push(bytes))
          await once(socket, "end")
          return Buffer.concat(all)
        })
      )
  ]
]

/** Each way of writing pieces. */
const writers: ReadonlyArray<
  readonly [
    name: string,
    write: (upgraded: Upgraded.Upgraded, pieces: ReadonlyArray<Uint8Array>) => Effect.Effect<unknown, unknown>
  ]
> = [
  [
    "write",
    (upgraded, pieces) => Effect.forEach(pieces, (piece) => Upgraded.write(upgraded, piece), { discard: true })
  ],
  ["writeAll", (upgraded, pieces) => Upgraded.writeAll(upgraded, pieces)],
  ["sink", (upgraded, pieces) => Stream.run(Stream.rechunk(Stream.fromIterable(pieces), 1), Upgraded.sink(upgraded))],
  [
    "toSocket",
    (upgraded, pieces) =>
      Effect.scoped(
        Effect.flatMap(Upgraded.toSocket(upgraded).writer, (write) => Effect.forEach(pieces, write, { discard: true }))
      )
  ],
  [
    "toDuplex",
    (upgraded, pieces) =>
      Effect.flatMap(Upgraded.toDuplex(upgraded), (duplex) =>
        Effect.promise(async () => {
          for (const piece of pieces) {
            if (!duplex.write(piece)) {
              await once(duplex, "drain")
            }
          }
          await new Promise((resolve) => duplex.write("", resolve))
        })
      )
  ]
]

const reasonOf = (exit: Exit.Exit<unknown, unknown>): string => {
  assert.isTrue(Exit.isFailure(exit))
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  const found = Option.isOption(error) ? Option.getOrUndefined(error) : error
  return found instanceof UpgradeError.ConnectionError ? found.reason : String(found)
}

const pseudoRandom = (size: number): Buffer => {
  const bytes = Buffer.allocUnsafe(size)
  let state = 1
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1103515245) + 12345) | 0
    bytes[i] = state >>> 16
  }
  return bytes
}

describe.each(kinds)("over %s", (kind) => {
  const opened = (options?: Parameters<typeof opening>[0]) => opening({ kind, ...options })

  it.scoped.each(readers)("%s begins with the early bytes, goes on with what comes, and ends at the FIN", ([_, read]) =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open("early ")
      assert.strictEqual(textOf(upgraded.leftover), "early ")
      const reading = yield* Effect.fork(read(upgraded))
      yield* peer.send("later ")
      yield* turns(5)
      yield* peer.send("last")
      yield* peer.end
      assert.strictEqual(String(yield* Fiber.join(reading)), "early later last")
      // The peer's FIN ends the input, and writing goes on (law 8)
      yield* Upgraded.write(upgraded, "still written")
      yield* Upgraded.end(upgraded)
      assert.strictEqual(decode(yield* peer.receiveAll), "still written")
    })
  )

  it.scoped.each(writers)("%s writes in order, and the peer has all of it", ([_, write]) =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open()
      const all = pseudoRandom(300_000)
      const pieces = [0, 1, 1, 500, 70_000, 100_000, 300_000].map((at, i, ats) => all.subarray(ats[i - 1] ?? 0, at))
      const writing = yield* Effect.fork(write(upgraded, pieces))
      assert.isTrue(Buffer.from(yield* peer.receiveExactly(all.length)).equals(all))
      yield* Fiber.join(writing)
      // No FIN of its own: reading and writing go on
      yield* peer.send("x")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 1)), "x")
      yield* Upgraded.write(upgraded, "y")
      assert.strictEqual(decode(yield* peer.receiveExactly(1)), "y")
    })
  )

  it.scoped("a reader that stops stops its sender, and holds at most 256 KiB of it", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open()
      const socket = upgraded.socket as net.Socket
      const sent = pseudoRandom(24 * 1024 * 1024)
      const before = socket.bytesRead
      const sending = yield* Effect.fork(peer.send(sent))
      // What the system holds of it is not ours; when it holds all it can, nothing moves any more
      yield* stuck(() => socket.bytesRead)
      assert.isAtMost(socket.bytesRead - before, bound)
      assert.isNull(sending.unsafePoll())
      yield* Effect.fork(Effect.zipRight(Fiber.join(sending), peer.end))
      assert.isTrue((yield* pullAll(upgraded)).equals(sent))
    })
  )

  it.scoped("a handler of run that does not return holds at most 256 KiB behind its batch", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open()
      const socket = upgraded.socket as net.Socket
      const go = outcome<void, never>()
      const sent = pseudoRandom(24 * 1024 * 1024)
      let received = 0
      const before = socket.bytesRead
      const running = yield* Effect.fork(
        Upgraded.run(upgraded, (bytes) => {
          received += bytesOf(bytes).length
          return Deferred.await(go)
        })
      )
      const sending = yield* Effect.fork(peer.send(sent))
      yield* stuck(() => socket.bytesRead)
      assert.isAtMost(socket.bytesRead - before - received, bound)
      assert.isNull(sending.unsafePoll())
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(sending)
      yield* peer.end
      yield* Fiber.join(running)
      assert.strictEqual(received, sent.length)
    })
  )

  it.scoped.each(writers.filter(([name]) => name !== "writeAll"))(
    "%s waits for a peer that does not read, and holds at most 256 KiB",
    ([_, write]) =>
      Effect.gen(function* () {
        const { open } = yield* opened()
        const { peer, upgraded } = yield* open()
        const socket = upgraded.socket as net.Socket
        const pieces = Array<Uint8Array>(512).fill(pseudoRandom(64 * 1024))
        const writing = yield* Effect.fork(write(upgraded, pieces))
        let held = 0
        yield* stuck(() => {
          held = Math.max(held, socket.writableLength)
          return socket.bytesWritten - socket.writableLength
        })
        assert.isNull(writing.unsafePoll())
        assert.isAtMost(held, bound)
        let received = 0
        while (received < 512 * 64 * 1024) {
          received += (yield* peer.receive).length
        }
        yield* Fiber.join(writing)
      })
  )

  it.scoped("end sends a FIN behind all that was written, and reading goes on", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open()
      yield* Upgraded.write(upgraded, "bye")
      yield* Upgraded.end(upgraded)
      yield* Upgraded.end(upgraded)
      assert.strictEqual(decode(yield* peer.receiveAll), "bye")
      yield* peer.send("still read")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 10)), "still read")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.write(upgraded, "x"))), "Closed")
      yield* peer.end
      assert.isTrue(Option.isNone(yield* Effect.flip(Upgraded.pull(upgraded))))
    })
  )

  it.scoped("channel sends a FIN at the end of its input, and reads until the peer's", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open("early ")
      const through = yield* Effect.fork(
        Stream.make("a", "b").pipe(Stream.pipeThroughChannel(Upgraded.channel(upgraded)), Stream.runCollect)
      )
      assert.strictEqual(decode(yield* peer.receiveAll), "ab")
      yield* peer.send("later")
      yield* peer.end
      assert.strictEqual(textOf(yield* Fiber.join(through)), "early later")
    })
  )

  it.scoped("toSocket sends a FIN for a CloseEvent, and reading goes on", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open("early ")
      const socket = Upgraded.toSocket(upgraded)
      const all: Array<string> = []
      let opens = 0
      const running = yield* Effect.fork(
        socket.run((bytes) => Effect.sync(() => all.push(decode(bytes))), {
          onOpen: Effect.sync(() => {
            opens = opens + 1
          })
        })
      )
      yield* Effect.scoped(
        Effect.gen(function* () {
          const write = yield* socket.writer
          yield* write("text ")
          yield* write(Buffer.from("bytes"))
          yield* write(new Socket.CloseEvent())
        })
      )
      assert.strictEqual(decode(yield* peer.receiveAll), "text bytes")
      yield* peer.send("later")
      yield* peer.end
      yield* Fiber.join(running)
      assert.strictEqual(all.join(""), "early later")
      assert.strictEqual(opens, 1)
    })
  )

  it.scoped("toDuplex half-closes both ways", () =>
    Effect.gen(function* () {
      const { open } = yield* opened()
      const { peer, upgraded } = yield* open("early ")
      const duplex = yield* Upgraded.toDuplex(upgraded)
      assert.instanceOf(duplex, Duplex)
      duplex.end("bye")
      assert.strictEqual(decode(yield* peer.receiveAll), "bye")
      yield* peer.send("later")
      yield* peer.end
      const all = yield* Effect.promise(() => duplex.toArray())
      assert.strictEqual(String(Buffer.concat(all)), "early later")
    })
  )

  it.scoped(
    "downcast knows the class of the socket and the tag of the listener, and hands back what does not fit",
    () =>
      Effect.gen(function* () {
        const { open } = yield* opened()
        const { upgraded } = yield* open()
        const secure = kind === "TLS"
        const byTag = Upgraded.downcast(upgraded, Connection.Tls)
        const byClass = upgraded.pipe(Upgraded.downcast(TLSSocket))
        assert.strictEqual(Either.isRight(byTag), secure)
        assert.strictEqual(Either.isRight(byClass), secure)
        assert.strictEqual(Either.merge(byTag) as unknown, upgraded)
        assert.strictEqual(Either.merge(byClass) as unknown, upgraded)
        assert.isTrue(Either.isRight(Upgraded.downcast(upgraded, net.Socket)))
        // A TLS socket is a socket
        assert.isTrue(Either.isRight(Upgraded.downcast(upgraded, Connection.Net)))
        assert.isTrue(Either.isLeft(Upgraded.downcast(upgraded, Connection.Http2)))
      })
  )
})

/** Waits until a number has been the same for many turns of the event loop: whatever would move it has had its chance. */
const stuck = (measure: () => number): Effect.Effect<void> => {
  let last = -1
  let still = 0
  return until(() => {
    const now = measure()
    still = now === last ? still + 1 : 0
    last = now
    return still > 2000
  })
}

describe("leftover", () => {
  it.scoped("is a Chunk of what arrived, which looking at does not take", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { upgraded } = yield* open("early")
      assert.isTrue(Chunk.isChunk(upgraded.leftover))
      assert.strictEqual(textOf(upgraded.leftover), "early")
      assert.strictEqual(textOf(upgraded.leftover), "early")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 5)), "early")
      assert.strictEqual(textOf(upgraded.leftover), "early")
    })
  )

  it.scoped("is empty where nothing arrived early", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { upgraded } = yield* open()
      assert.strictEqual(Chunk.size(upgraded.leftover), 0)
    })
  )
})

describe("an Upgraded", () => {
  it.scoped("tells what it is, and nothing of its bytes", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { upgraded } = yield* open("secret")
      assert.isTrue(Upgraded.isUpgraded(upgraded))
      assert.isFalse(Upgraded.isUpgraded(upgraded.connection))
      assert.strictEqual(upgraded.protocol, "echo")
      const json = JSON.parse(JSON.stringify(upgraded))
      assert.strictEqual(json._id, "effect-upgrade/Upgraded")
      assert.strictEqual(json.protocol, "echo")
      assert.strictEqual(json.leftover, 6)
      assert.notInclude(String(upgraded), "secret")
    })
  )
})

describe("readExactly", () => {
  it.effect.prop(
    "cuts any bytes at any sizes, and leaves the rest for the next reader",
    [FastCheck.array(FastCheck.integer({ min: 0, max: 40 }), { maxLength: 12 })],
    ([sizes]) => {
      const total = sizes.reduce((sum, size) => sum + size, 0)
      const all = pseudoRandom(total + 7)
      return Effect.scoped(
        Effect.gen(function* () {
          const { open } = yield* opening()
          const { peer, upgraded } = yield* open(all.subarray(0, total >> 1))
          const sending = yield* Effect.fork(peer.sendSplit(all.subarray(total >> 1), [1, 2, 10]))
          const read: Array<Uint8Array> = []
          for (const size of sizes) {
            const piece = yield* Upgraded.readExactly(upgraded, size)
            assert.strictEqual(piece.length, size)
            read.push(piece)
          }
          yield* Fiber.join(sending)
          yield* peer.end
          const rest = yield* pullAll(upgraded)
          assert.isTrue(Buffer.concat([...read, rest]).equals(all))
        })
      ).pipe(Effect.orDie)
    },
    { fastCheck: { numRuns: runs } }
  )

  it.scoped("fails with Closed at a FIN that comes before, and puts back what had come", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("abc")
      yield* peer.end
      const error = yield* Effect.flip(Upgraded.readExactly(upgraded, 4))
      assert.strictEqual(error.reason, "Closed")
      assert.include(error.message, "3 of the 4 bytes")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 3)), "abc")
    })
  )
})

describe("an interrupted read", () => {
  // Steps of the reader and of the peer, in any order; the reader is interrupted while it waits, and when it need not wait
  const steps = FastCheck.array(
    FastCheck.oneof(
      FastCheck.record({
        read: FastCheck.constantFrom("pull", "readExactly", "run", "stream"),
        turns: FastCheck.nat(3)
      }),
      FastCheck.record({ send: FastCheck.integer({ min: 1, max: 50 }), turns: FastCheck.nat(3) })
    ),
    { maxLength: 25 }
  )

  it.effect.prop(
    "loses no byte, whatever reads and whenever it is interrupted",
    [steps],
    ([steps]) => {
      const total = steps.reduce((sum, step) => sum + ("send" in step ? step.send : 0), 0)
      const all = pseudoRandom(total)
      return Effect.scoped(
        Effect.gen(function* () {
          const { open } = yield* opening()
          const { peer, upgraded } = yield* open()
          const read: Array<Uint8Array> = []
          const taken = (bytes: Uint8Array) => {
            read.push(bytes)
          }
          let sent = 0
          for (const step of steps) {
            if ("send" in step) {
              yield* peer.send(all.subarray(sent, sent + step.send))
              sent += step.send
              yield* turns(step.turns)
            } else {
              const reading = yield* Effect.fork(
                step.read === "pull"
                  ? Effect.map(Effect.orDie(Upgraded.pull(upgraded)), (bytes) => taken(bytesOf(bytes)))
                  : step.read === "readExactly"
                    ? Effect.map(Upgraded.readExactly(upgraded, 20), taken)
                    : step.read === "run"
                      ? Upgraded.run(upgraded, (bytes) => Effect.sync(() => taken(bytesOf(bytes))))
                      : Stream.runForEachChunk(Upgraded.stream(upgraded), (bytes) =>
                          Effect.sync(() => taken(bytesOf(bytes)))
                        )
              )
              yield* turns(step.turns)
              yield* Fiber.interrupt(reading)
            }
          }
          yield* peer.end
          read.push(yield* pullAll(upgraded))
          assert.isTrue(Buffer.concat(read).equals(all))
        })
      ).pipe(Effect.orDie)
    },
    { fastCheck: { numRuns: runs } }
  )

  it.scoped("gives its place to the next reader", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      for (const [, read] of readers.slice(0, 6)) {
        const first = yield* Effect.fork(read(upgraded))
        yield* turns(3)
        yield* Fiber.interrupt(first)
      }
      yield* peer.send("x")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 1)), "x")
    })
  )
})

describe("a second reader", () => {
  it.scoped.each(["pull", "run", "stream", "channel", "readExactly", "toSocket"])(
    "is told Busy while the first waits, and the first goes on (%s)",
    (name) =>
      Effect.gen(function* () {
        const { open } = yield* opening()
        const { peer, upgraded } = yield* open()
        const read = readers.find(([reader]) => reader === name)![1]
        for (const [second, attempt] of [
          ["pull", Upgraded.pull(upgraded)],
          ["run", Upgraded.run(upgraded, () => Effect.void)],
          ["stream", Stream.runDrain(Upgraded.stream(upgraded))],
          ["readExactly", Upgraded.readExactly(upgraded, 1)],
          ["channel", channelAll(upgraded)]
        ] as const) {
          const first = yield* Effect.fork(read(upgraded))
          yield* turns(3)
          assert.strictEqual(reasonOf(yield* Effect.exit(attempt as Effect.Effect<unknown, unknown>)), "Busy", second)
          yield* Fiber.interrupt(first)
        }
        const first = yield* Effect.fork(read(upgraded))
        yield* turns(3)
        assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.pull(upgraded))), "Busy")
        yield* peer.send("mine")
        yield* peer.end
        assert.strictEqual(String(yield* Fiber.join(first)), "mine")
      })
  )

  it.scoped("is told Busy when the first was woken and has not gone on yet, and takes nothing from it", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      const first = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* turns(3)
      let second: Exit.Exit<unknown, unknown> | undefined
      // Behind the library's own listener, in the same turn
      upgraded.socket.once("data", () => {
        second = Effect.runSyncExit(Upgraded.pull(upgraded))
      })
      yield* peer.send("mine")
      assert.strictEqual(textOf(yield* Fiber.join(first)), "mine")
      assert.strictEqual(reasonOf(second!), "Busy")
    })
  )

  it.scoped("is told Busy too while the first handles a batch", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("first")
      const handling = outcome<void, never>()
      const go = outcome<void, never>()
      const running = yield* Effect.fork(
        Upgraded.run(upgraded, () => Effect.zipRight(Deferred.succeed(handling, undefined), Deferred.await(go)))
      )
      yield* Deferred.await(handling)
      yield* peer.send("second")
      const socket = upgraded.socket as net.Socket
      const read = socket.bytesRead
      yield* until(() => socket.bytesRead >= read)
      yield* turns(5)
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.readExactly(upgraded, 6))), "Busy")
      yield* Deferred.succeed(go, undefined)
      yield* peer.end
      yield* Fiber.join(running)
    })
  )
})

describe("detach", () => {
  it.scoped("hands over what was unread, and the library reads no more", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("abcdef")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 2)), "ab")
      const { leftover, socket } = yield* Upgraded.detach(upgraded)
      assert.strictEqual(socket, upgraded.socket)
      assert.strictEqual(textOf(leftover), "cdef")
      assert.strictEqual(socket.listenerCount("data"), 0)
      yield* peer.send("raw")
      yield* turns(10)
      const [bytes] = yield* Effect.promise(() => once(socket, "data"))
      assert.strictEqual(String(bytes), "raw")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.pull(upgraded))), "Closed")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.run(upgraded, () => Effect.void))), "Closed")
    })
  )

  it.scoped("loses nothing of what comes fast, when it is asked for in the midst of that", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      const sent = pseudoRandom(1024 * 1024)
      const detached = outcome<Chunk.Chunk<Uint8Array>, never>()
      const onData = (bytes: Uint8Array) => {
        // As much as Node reads at once: the library lets others have their turn after it
        if (bytes.length === 64 * 1024) {
          upgraded.socket.off("data", onData)
          const { leftover } = Effect.runSync(Upgraded.detach(upgraded))
          Deferred.unsafeDone(detached, Effect.succeed(leftover))
        }
      }
      upgraded.socket.on("data", onData)
      const received: Array<Uint8Array> = []
      const running = yield* Effect.fork(
        Upgraded.run(upgraded, (pieces) => Effect.sync(() => received.push(...pieces)))
      )
      yield* turns(3)
      yield* Effect.fork(Effect.zipRight(peer.send(sent), peer.end))
      received.push(...(yield* Deferred.await(detached)))
      assert.strictEqual(reasonOf(yield* Fiber.await(running)), "Closed")
      yield* turns(5)
      const ended = outcome<void, never>()
      upgraded.socket.on("data", (bytes) => received.push(bytes))
      upgraded.socket.on("end", () => Deferred.unsafeDone(ended, Effect.void))
      yield* Deferred.await(ended)
      assert.isTrue(Buffer.concat(received).equals(sent))
    })
  )

  it.scoped("hands over what was unread of a connection that is lost", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("early")
      yield* peer.reset
      yield* until(() => upgraded.socket.closed)
      yield* turns(3)
      assert.strictEqual(textOf((yield* Upgraded.detach(upgraded)).leftover), "early")
    })
  )

  it.scoped("fails a read that was waiting with Closed", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { upgraded } = yield* open()
      const reading = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* turns(3)
      yield* Upgraded.detach(upgraded)
      assert.strictEqual(reasonOf(yield* Fiber.await(reading)), "Closed")
    })
  )

  it.scoped("leaves the socket to its Scope: it is closed with that, and an error of it harms nobody", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const first = yield* open()
      const { socket } = yield* Upgraded.detach(first.upgraded)
      yield* first.peer.end
      yield* first.close(Exit.void)
      assert.isTrue(socket.destroyed)
      assert.strictEqual(yield* first.peer.closed, "end")
      const second = yield* open()
      const detached = yield* Upgraded.detach(second.upgraded)
      detached.socket.resume()
      yield* second.peer.reset
      yield* Connection.awaitClosed(second.upgraded.connection).pipe(
        Effect.raceFirst(until(() => detached.socket.destroyed))
      )
    })
  )

  it.scoped("pauses the socket as Node hands one out: nothing is lost before somebody listens", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      const { socket } = yield* Upgraded.detach(upgraded)
      assert.strictEqual(socket.readableFlowing, null)
      const target = new net.Socket()
      target.destroy()
      yield* peer.send("kept")
      yield* peer.end
      yield* turns(20)
      const all = yield* Effect.promise(() => socket.toArray())
      assert.strictEqual(String(Buffer.concat(all)), "kept")
    })
  )
})

describe("after the Scope has closed", () => {
  it.scoped("reading and writing fail with Closed, those that wait too", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { close, peer, upgraded } = yield* open()
      const reading = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* turns(3)
      yield* peer.end
      yield* Fiber.await(reading)
      yield* close(Exit.void)
      const { upgraded: other, ...rest } = yield* open("unread")
      const waiting = yield* Effect.fork(Effect.zipRight(Upgraded.pull(other), Upgraded.pull(other)))
      yield* turns(3)
      yield* rest.close(Exit.fail("no"))
      assert.strictEqual(reasonOf(yield* Fiber.await(waiting)), "Closed")
      for (const attempt of [
        Upgraded.pull(other),
        Upgraded.readExactly(other, 1),
        Upgraded.run(other, () => Effect.void),
        Stream.runDrain(Upgraded.stream(other)),
        Upgraded.write(other, "x"),
        Upgraded.writeAll(other, ["x", "y"]),
        Stream.run(Stream.make("x"), Upgraded.sink(other)),
        Upgraded.end(other)
      ] as ReadonlyArray<Effect.Effect<unknown, unknown>>) {
        assert.strictEqual(reasonOf(yield* Effect.exit(attempt)), "Closed")
      }
    })
  )

  it.scoped("a write that waited for the peer fails with Closed", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { close, upgraded } = yield* open()
      const writing = yield* Effect.fork(Effect.forever(Upgraded.write(upgraded, pseudoRandom(256 * 1024))))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* stuck(() => upgraded.socket.writableLength)
      yield* close(Exit.fail("no"))
      assert.strictEqual(reasonOf(yield* Fiber.await(writing)), "Closed")
    })
  )
})

describe.each(["TCP", "TLS"] as const)("a reset over %s", (kind) => {
  it.scoped.each(["pull", "run", "stream", "channel", "readExactly"])("fails a waiting %s with Reset", (name) =>
    Effect.gen(function* () {
      const { open } = yield* opening({ kind })
      const { peer, upgraded } = yield* open()
      const reading = yield* Effect.fork(readers.find(([reader]) => reader === name)![1](upgraded))
      yield* turns(3)
      yield* peer.reset
      assert.strictEqual(reasonOf(yield* Fiber.await(reading)), "Reset")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.pull(upgraded))), "Reset")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.write(upgraded, "x"))), "Reset")
    })
  )

  it.scoped("fails a write that waits for the peer with Reset", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ kind })
      const { peer, upgraded } = yield* open()
      const writing = yield* Effect.fork(Effect.forever(Upgraded.write(upgraded, pseudoRandom(256 * 1024))))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* stuck(() => upgraded.socket.writableLength)
      yield* peer.reset
      assert.strictEqual(reasonOf(yield* Fiber.await(writing)), "Reset")
    })
  )

  it.scoped("destroys what toDuplex made with the error, and fails toSocket", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ kind })
      const first = yield* open()
      const duplex = yield* Upgraded.toDuplex(first.upgraded)
      const failed = Effect.promise(() => once(duplex, "error"))
      duplex.resume()
      const failing = yield* Effect.fork(failed)
      yield* turns(3)
      yield* first.peer.reset
      const [error] = yield* Fiber.join(failing)
      assert.strictEqual((error as UpgradeError.ConnectionError).reason, "Reset")
      const second = yield* open()
      const running = yield* Effect.fork(Upgraded.toSocket(second.upgraded).run(() => {}))
      yield* turns(3)
      yield* second.peer.reset
      assert.isTrue(Socket.isSocketError(yield* Effect.flip(Fiber.join(running))))
    })
  )
})

describe("what arrived before a reset", () => {
  it.scoped("is still read, and then Reset", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      yield* peer.send("last words")
      const socket = upgraded.socket as net.Socket
      const before = socket.bytesRead
      yield* until(() => socket.bytesRead >= before + 10 || socket.destroyed)
      yield* peer.reset
      yield* until(() => socket.destroyed)
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 10)), "last words")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.pull(upgraded))), "Reset")
    })
  )
})

describe("writeTimeout", () => {
  it.scoped("fails a write with Timeout when the peer takes nothing for so long, and the connection with it", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ writeTimeout: "7 seconds" })
      const { upgraded } = yield* open()
      const writing = yield* Effect.fork(Effect.forever(Upgraded.write(upgraded, pseudoRandom(256 * 1024))))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* stuck(() => upgraded.socket.writableLength)
      yield* TestClock.adjust("6999 millis")
      assert.isNull(writing.unsafePoll())
      // What left since the write began to wait gives it the time again
      const expire = Effect.zipRight(TestClock.adjust("7 seconds"), turns(3))
      yield* Effect.repeat(expire, { until: () => writing.unsafePoll() !== null })
      assert.strictEqual(reasonOf(yield* Fiber.await(writing)), "Timeout")
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.pull(upgraded))), "Timeout")
      yield* until(() => upgraded.socket.destroyed)
    })
  )

  it.scoped("does not fail one whose peer takes something now and then", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ options: { writeTimeout: "5 seconds" } })
      const { peer, upgraded } = yield* open()
      const size = 32 * 1024 * 1024
      const writing = yield* Effect.fork(Upgraded.write(upgraded, pseudoRandom(size)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* stuck(() => (upgraded.socket as net.Socket).bytesWritten)
      let received = 0
      while (received < size) {
        received += (yield* peer.receiveExactly(Math.min(8 * 1024 * 1024, size - received))).length
        if (writing.unsafePoll() === null) {
          yield* TestClock.adjust("4 seconds")
        }
      }
      yield* Fiber.join(writing)
    })
  )
})

describe("writes that wait for the peer", () => {
  /** More than the way holds. */
  const size = 32 * 1024 * 1024

  const receiveMany = (peer: Peer.Peer) =>
    Effect.replicateEffect(peer.receiveExactly(256 * 1024), 128, { discard: true })

  it.scoped("are all done when it has taken what was before, but for one that was interrupted", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ writeTimeout: "7 seconds" })
      const { peer, upgraded } = yield* open()
      const first = yield* Effect.fork(Upgraded.write(upgraded, Buffer.alloc(size)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      const second = yield* Effect.fork(Upgraded.write(upgraded, "second"))
      const third = yield* Effect.fork(Upgraded.write(upgraded, "third"))
      yield* turns(3)
      yield* Fiber.interrupt(second)
      yield* receiveMany(peer)
      yield* Fiber.join(first)
      yield* Fiber.join(third)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "third")
    })
  )

  it.scoped("and were interrupted take no connection with them at writeTimeout", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ writeTimeout: "7 seconds" })
      const { peer, upgraded } = yield* open()
      const writing = yield* Effect.fork(Upgraded.write(upgraded, Buffer.alloc(size)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* stuck(() => upgraded.socket.writableLength)
      yield* turns(3)
      yield* Fiber.interrupt(writing)
      for (let i = 0; i < 3; i++) {
        yield* TestClock.adjust("7 seconds")
        yield* turns(3)
      }
      yield* receiveMany(peer)
      yield* Upgraded.write(upgraded, "on")
      assert.strictEqual(decode(yield* peer.receiveExactly(2)), "on")
    })
  )

  it.scoped("with a FIN behind them are followed by one, whoever else waits for it", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      yield* Effect.fork(Upgraded.write(upgraded, Buffer.alloc(size)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      const ends = yield* Effect.forEach([1, 2], () => Effect.fork(Upgraded.end(upgraded)))
      yield* turns(3)
      yield* receiveMany(peer)
      assert.lengthOf(yield* peer.receiveAll, 0)
      yield* Effect.forEach(ends, Fiber.join)
    })
  )
})

describe("what the system reports of the socket", () => {
  it.scoped.each([
    ["a time-out", Object.assign(new Error("read ETIMEDOUT"), { code: "ETIMEDOUT", syscall: "read" }), "Timeout"],
    ["a failed write", Object.assign(new Error("write EIO"), { code: "EIO", syscall: "write" }), "Write"],
    ["a failed read", Object.assign(new Error("read EIO"), { code: "EIO", syscall: "read" }), "Read"],
    ["an error without a code", new Error("no"), "Read"],
    ["what is no Error", "no" as unknown as Error, "Read"]
  ] as const)("is typed: %s", ([_, cause, reason]) =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { upgraded } = yield* open()
      const reading = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* turns(3)
      upgraded.socket.destroy(cause)
      const exit = yield* Fiber.await(reading)
      assert.strictEqual(reasonOf(exit), reason)
      const error = Exit.isFailure(exit) ? Option.getOrThrow(Cause.failureOption(exit.cause)) : Option.none()
      assert.strictEqual(Option.getOrThrow(error).cause, cause)
      assert.strictEqual(reasonOf(yield* Effect.exit(Upgraded.write(upgraded, "x"))), reason)
    })
  )
})

describe("idleTimeout", () => {
  it.scoped("fails a connection on which nothing moved for so long with Timeout", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ idleTimeout: "1 minute" })
      const { peer, upgraded } = yield* open()
      const reading = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* TestClock.adjust("59999 millis")
      yield* turns(5)
      assert.isNull(reading.unsafePoll())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(reasonOf(yield* Fiber.await(reading)), "Timeout")
      yield* peer.closed
    })
  )

  it.scoped("is counted anew after bytes in either direction", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ options: { idleTimeout: "1 minute" } })
      const { peer, upgraded } = yield* open()
      for (let i = 0; i < 3; i++) {
        yield* TestClock.adjust("59 seconds")
        yield* peer.send("x")
        yield* Upgraded.readExactly(upgraded, 1)
        yield* TestClock.adjust("59 seconds")
        yield* Upgraded.write(upgraded, "y")
        yield* peer.receiveExactly(1)
      }
      const reading = yield* Effect.fork(Upgraded.pull(upgraded))
      yield* Effect.repeat(Effect.zipRight(TestClock.adjust("1 minute"), turns(3)), {
        until: () => reading.unsafePoll() !== null
      })
      assert.strictEqual(reasonOf(yield* Fiber.await(reading)), "Timeout")
    })
  )

  it.scoped("of an hour is the default, and Duration.infinity switches it off", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const first = yield* open()
      const reading = yield* Effect.fork(Upgraded.pull(first.upgraded))
      yield* TestClock.adjust("3599 seconds")
      yield* turns(5)
      assert.isNull(reading.unsafePoll())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(reasonOf(yield* Fiber.await(reading)), "Timeout")
      const resting = yield* opening({ options: { idleTimeout: Number.POSITIVE_INFINITY } })
      const second = yield* resting.open()
      yield* TestClock.adjust("1000 hours")
      yield* second.peer.send("x")
      assert.strictEqual(decode(yield* Upgraded.readExactly(second.upgraded, 1)), "x")
    })
  )
})

describe("run", () => {
  it.scoped("fails with the handler's error, and leaves the rest to the next reader", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("one")
      assert.strictEqual(yield* Effect.flip(Upgraded.run(upgraded, () => Effect.fail("mine"))), "mine")
      yield* peer.send("two")
      assert.strictEqual(decode(yield* Upgraded.readExactly(upgraded, 3)), "two")
    })
  )

  it.scoped("gives the handler batches one after the other, never two at a time", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("a")
      const inside = yield* Ref.make(0)
      const most = yield* Ref.make(0)
      const running = yield* Effect.fork(
        Upgraded.run(upgraded, () =>
          Ref.updateAndGet(inside, (n) => n + 1).pipe(
            Effect.tap((n) => Ref.update(most, (m) => Math.max(m, n))),
            Effect.zipRight(turns(3)),
            Effect.zipRight(Ref.update(inside, (n) => n - 1))
          )
        )
      )
      for (let i = 0; i < 10; i++) {
        yield* peer.send("b")
        yield* turns(1)
      }
      yield* peer.end
      yield* Fiber.join(running)
      assert.strictEqual(yield* Ref.get(most), 1)
    })
  )
})

describe("stream", () => {
  it.scoped("that is run twice goes on where the first left off", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open("one")
      const stream = Upgraded.stream(upgraded)
      assert.strictEqual(textOf(yield* Stream.runCollect(Stream.take(stream, 1))), "one")
      yield* peer.send("two")
      yield* peer.end
      assert.strictEqual(textOf(yield* Stream.runCollect(stream)), "two")
    })
  )
})

describe("write", () => {
  it.scoped("takes strings as UTF-8, and nothing at all", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      yield* Upgraded.write(upgraded, "")
      yield* Upgraded.writeAll(upgraded, [])
      yield* Upgraded.write(upgraded, "é")
      yield* Upgraded.writeAll(upgraded, ["€", new Uint8Array([33]), ""])
      yield* Upgraded.end(upgraded)
      assert.strictEqual(decode(yield* peer.receiveAll), "é€!")
    })
  )
})
