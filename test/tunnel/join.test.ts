import type { Duplex } from "node:stream"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as TestClock from "effect/TestClock"
import { pair } from "../../src/internal/memory.js"
import * as Protocol from "../../src/Protocol.js"
import * as Tunnel from "../../src/Tunnel.js"
import * as Peer from "../../src/testing/Peer.js"
import * as Upgrade from "../../src/Upgrade.js"
import type * as Upgraded from "../../src/Upgraded.js"
import { turns, until } from "../appSupport.js"
import { asking, type Kind, kinds, type Options, runs, serve, unhandled } from "../support.js"
import { backend, text } from "./support.js"

const raw = Protocol.raw("tunnel")

/** A server whose sessions are tunnels to a backend, with what each of them ended with. */
const tunnelling = (kind: Kind, options?: Options & Tunnel.JoinOptions) =>
  Effect.gen(function* () {
    const behind = yield* backend
    const ended = yield* Queue.unbounded<Exit.Exit<Tunnel.Joined>>()
    const joined: Array<readonly [here: Duplex, there: Duplex]> = []
    const running = yield* serve(
      Upgrade.onUpgrade(raw, (upgraded) =>
        Effect.suspend(() => {
          const socket = behind.dial()
          joined.push([upgraded.socket, socket])
          return Tunnel.join(upgraded, socket, options)
        }).pipe(
          // What follows a tunnel runs, however it ended
          Effect.tap(() => turns(3)),
          Effect.onExit((exit) => Queue.offer(ended, exit))
        )
      ),
      { ...options, kind }
    )
    const open = (early = "") =>
      Effect.gen(function* () {
        const client = yield* running.connect
        yield* client.send(asking("/", { token: "tunnel", content: early }))
        const target = yield* behind.accept
        assert.strictEqual((yield* client.receiveHead).status, 101)
        return { client, target }
      })
    const gone: Effect.Effect<void> = Effect.flatMap(behind.open, (count) =>
      count === 0
        ? Effect.void
        : Effect.zipRight(
            Effect.yieldNow(),
            Effect.zipRight(
              until(() => true),
              gone
            )
          )
    )
    return { ...running, open, ended: Queue.take(ended), gone, joined }
  })

const joinedOf = (exit: Exit.Exit<Tunnel.Joined>): Tunnel.Joined => {
  assert.isTrue(Exit.isSuccess(exit), String(exit))
  return (exit as Exit.Success<Tunnel.Joined, never>).value
}

/** Two bare connections in memory, and the ends that are to be joined. */
const bare = Effect.gen(function* () {
  const [a, left] = pair()
  const [b, right] = pair()
  return { a, b, left: yield* Peer.fromDuplex(left), right: yield* Peer.fromDuplex(right) }
})

const pieces = FastCheck.array(FastCheck.uint8Array({ minLength: 1, maxLength: 3000 }), { maxLength: 8 })

const send = (peer: Peer.Peer, all: ReadonlyArray<Uint8Array>) =>
  Effect.zipRight(
    Effect.forEach(all, (piece) => peer.sendSplit(piece, []), { discard: true }),
    peer.end
  )

/** How much comes until the FIN. */
const count = (peer: Peer.Peer, before = 0): Effect.Effect<number> =>
  Effect.matchEffect(peer.receive, {
    onFailure: () => Effect.succeed(before),
    onSuccess: (bytes) => count(peer, before + bytes.length)
  })

describe.each(kinds)("a tunnel over %s", (kind) => {
  it.scopedLive.prop(
    "passes on every byte of both sides once and in order, what was left over first, and counts them",
    [FastCheck.string({ maxLength: 100 }).map((s) => s.replace(/[^ -~]/g, "x")), pieces, pieces],
    ([early, there, back]) =>
      Effect.gen(function* () {
        const { ended, gone, idle, open } = yield* tunnelling(kind)
        const { client, target } = yield* open(early)
        const [atTarget, atClient] = yield* Effect.all(
          [target.receiveAll, client.receiveAll, send(client, there), send(target, back)],
          { concurrency: "unbounded" }
        )
        const sent = Buffer.concat([Buffer.from(early), ...there])
        assert.isTrue(sent.equals(atTarget))
        assert.isTrue(Buffer.concat(back).equals(atClient))
        assert.deepStrictEqual(joinedOf(yield* ended), {
          sent: sent.length,
          received: atClient.length,
          reason: "Ended"
        })
        yield* gone
        yield* idle
      }),
    { fastCheck: { numRuns: runs(5) } }
  )

  it.scopedLive("passes on each side's FIN by itself, and the other goes on", () =>
    Effect.gen(function* () {
      const { ended, open } = yield* tunnelling(kind)
      const first = yield* open("question")
      yield* first.client.end
      assert.strictEqual(text(yield* first.target.receiveAll), "question")
      yield* first.target.send("answer, ")
      assert.strictEqual(text(yield* first.client.receiveExactly(8)), "answer, ")
      yield* first.target.send("and more")
      yield* first.target.end
      assert.strictEqual(text(yield* first.client.receiveAll), "and more")
      assert.strictEqual(joinedOf(yield* ended).reason, "Ended")

      const second = yield* open()
      yield* second.target.send("banner")
      yield* second.target.end
      assert.strictEqual(text(yield* second.client.receiveAll), "banner")
      yield* second.client.send("still here")
      yield* second.client.end
      assert.strictEqual(text(yield* second.target.receiveAll), "still here")
      assert.deepStrictEqual(joinedOf(yield* ended), { sent: 10, received: 6, reason: "Ended" })
    })
  )

  it.scopedLive("passes a reset of one side on to the other, and says so", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const { ended, gone, idle, open } = yield* tunnelling(kind)
      const first = yield* open("x")
      yield* first.target.receiveExactly(1)
      yield* first.client.reset
      if (kind === "unix") {
        // There a reset looks like a FIN, until somebody writes.
        assert.strictEqual(yield* first.target.closed, "end")
        yield* first.target.send("lost")
      } else {
        assert.strictEqual(yield* first.target.closed, "reset")
      }
      assert.strictEqual(joinedOf(yield* ended).reason, "Reset")

      const second = yield* open("x")
      yield* second.target.receiveExactly(1)
      yield* second.target.reset
      const seenByClient = yield* second.client.closed
      if (kind === "tcp" || kind === "memory") {
        assert.strictEqual(seenByClient, "reset")
      }
      assert.strictEqual(joinedOf(yield* ended).reason, "Reset")
      yield* first.target.end
      yield* gone
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive("stops the one that writes while the other does not read", () =>
    Effect.gen(function* () {
      const { gone, idle, joined, open } = yield* tunnelling(kind)
      const { client, target } = yield* open()
      const size = 32 * 1024 * 1024
      const block = Buffer.alloc(256 * 1024, "x")
      const [here, there] = joined[0]!
      for (const [from, out] of [
        [client, there],
        [target, here]
      ] as const) {
        for (let written = 0; written < size; written += block.length) {
          from.socket.write(block)
        }
        // The kernel takes some megabytes, and then the tunnel what it is ready to hold
        yield* until(() => out.writableNeedDrain)
        yield* turns(200)
        assert.isBelow(out.writableLength, 256 * 1024)
        assert.isAbove(from.socket.writableLength, 0)
      }
      const [atTarget, atClient] = yield* Effect.all([count(target), count(client), client.end, target.end], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual([atTarget, atClient], [size, size])
      yield* gone
      yield* idle
    })
  )

  it.scopedLive("that is interrupted leaves its connections to their Scope, and destroys what has none", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect, idle } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) =>
          Effect.raceFirst(Tunnel.join(upgraded, behind.dial()), Deferred.await(enough))
        ),
        { kind }
      )
      const enough = yield* Deferred.make<void>()
      const client = yield* connect
      yield* client.send(asking("/", { token: "tunnel", content: "early" }))
      const target = yield* behind.accept
      yield* target.receiveExactly(5)
      yield* client.receiveHead
      yield* Deferred.succeed(enough, undefined)
      yield* target.closed
      assert.strictEqual(yield* client.closed, "end")
      yield* client.end
      yield* idle
    })
  )
})

describe("a tunnel between two sessions of one server", () => {
  it.scopedLive("joins them, and each has what the other sent before", () =>
    Effect.gen(function* () {
      const waiting = yield* Queue.unbounded<Upgraded.Upgraded>()
      const ended = yield* Deferred.make<Tunnel.Joined>()
      const { connect, idle } = yield* serve(
        Effect.gen(function* () {
          const upgraded = yield* Upgrade.upgrade(raw)
          const { headers } = yield* HttpServerRequest.HttpServerRequest
          if (headers["x-first"] !== undefined) {
            yield* Queue.offer(waiting, upgraded)
            yield* Deferred.await(ended)
          } else {
            const joined = yield* Tunnel.join(yield* Queue.take(waiting), upgraded)
            yield* Deferred.succeed(ended, joined)
          }
          return Upgrade.done
        })
      )
      const first = yield* connect
      yield* first.send(asking("/", { token: "tunnel", content: "from the first", fields: ["X-First: 1"] }))
      yield* first.receiveHead
      const second = yield* connect
      yield* second.send(asking("/", { token: "tunnel", content: "from the second" }))
      yield* second.receiveHead
      assert.strictEqual(text(yield* first.receiveExactly(15)), "from the second")
      yield* Effect.all([first.end, second.end])
      assert.strictEqual(text(yield* second.receiveAll), "from the first")
      assert.deepStrictEqual(yield* Deferred.await(ended), { sent: 14, received: 15, reason: "Ended" })
      yield* idle
    })
  )
})

describe("a tunnel between bare sockets", () => {
  it.scopedLive("begins with what was left over of each, also where nothing follows", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(
        Tunnel.join(
          { socket: a, leftover: Chunk.of(Buffer.from("left ")) },
          { socket: b, leftover: Chunk.make(Buffer.from("ri"), Buffer.from("ght ")) }
        )
      )
      assert.strictEqual(text(yield* left.receiveExactly(6)), "right ")
      assert.strictEqual(text(yield* right.receiveExactly(5)), "left ")
      yield* left.end
      yield* right.end
      assert.deepStrictEqual(yield* Fiber.join(tunnel), { sent: 5, received: 6, reason: "Ended" })
      assert.isTrue(a.destroyed && b.destroyed)
    })
  )

  it.scopedLive("holds what one side sent with its FIN before the tunnel began", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      yield* left.send("all of it")
      yield* left.end
      const tunnel = yield* Effect.fork(Tunnel.join(a, b))
      assert.strictEqual(text(yield* right.receiveAll), "all of it")
      yield* right.end
      assert.strictEqual((yield* Fiber.join(tunnel)).reason, "Ended")
    })
  )

  it.scopedLive("delivers what a side had sent and ended with before it was lost", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const size = 180_000
      const tunnel = yield* Effect.fork(Tunnel.join(a, b))
      yield* left.sendSplit(Buffer.alloc(size, "x"), [30_000, 60_000, 90_000, 120_000, 150_000])
      yield* left.end
      // The other reads ahead, but not all of it: some still waits in the tunnel when the FIN has come.
      yield* until(() => a.readableEnded)
      yield* turns(10)
      assert.isFalse(b.writableFinished)
      yield* left.reset
      yield* right.send("into the void")
      yield* until(() => a.destroyed)
      assert.strictEqual((yield* right.receiveExactly(size)).length, size)
      const joined = yield* Fiber.join(tunnel)
      assert.deepStrictEqual([joined.sent, joined.reason], [size, "Reset"])
      assert.isTrue(a.destroyed && b.destroyed)
    })
  )

  it.scopedLive("is over at once where one is gone before it began", () =>
    Effect.gen(function* () {
      const { a, b, right } = yield* bare
      a.destroy()
      assert.deepStrictEqual(yield* Tunnel.join(a, b), { sent: 0, received: 0, reason: "Reset" })
      assert.strictEqual(yield* right.closed, "reset")
      assert.isTrue(b.destroyed)
    })
  )

  it.scopedLive("destroys both when it is interrupted", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(Tunnel.join(a, b))
      yield* left.send("x")
      yield* right.receiveExactly(1)
      yield* Fiber.interrupt(tunnel)
      assert.isTrue(a.destroyed && b.destroyed)
      yield* Effect.all([left.closed, right.closed])
    })
  )

  it.scopedLive("leaves no listener of its own on a socket", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const listeners = (socket: Duplex) =>
        ["data", "end", "finish", "drain", "close"].map((event) => socket.listenerCount(event))
      const before = [listeners(a), listeners(b)]
      const tunnel = yield* Effect.fork(Tunnel.join(a, b))
      yield* Effect.all([left.end, right.end])
      yield* Fiber.join(tunnel)
      assert.deepStrictEqual([listeners(a), listeners(b)], before)
    })
  )

  it.scopedLive("is made of a value in a pipe too", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(Effect.flatMap(Effect.succeed(a), Tunnel.join(b, { idleTimeout: "1 minute" })))
      yield* left.send("piped")
      assert.strictEqual(text(yield* right.receiveExactly(5)), "piped")
      yield* Effect.all([left.end, right.end])
      assert.strictEqual((yield* Fiber.join(tunnel)).reason, "Ended")
    })
  )
})

describe("the timeouts of a tunnel", () => {
  /** Bytes that arrived at the other side: the tunnel has seen them move. */
  const moves = (from: Peer.Peer, to: Peer.Peer) => Effect.zipRight(from.send("x"), to.receiveExactly(1))

  it.scoped("end it when nothing moved for idleTimeout, either way", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(Tunnel.join(a, b, { idleTimeout: "10 minutes" }))
      for (const [from, to] of [
        [left, right],
        [right, left]
      ] as const) {
        yield* moves(from, to)
        yield* TestClock.adjust("9 minutes")
      }
      assert.isNull(tunnel.unsafePoll())
      yield* TestClock.adjust("20 minutes")
      assert.deepStrictEqual(yield* Fiber.join(tunnel), { sent: 1, received: 1, reason: "IdleTimeout" })
      assert.isTrue(a.destroyed && b.destroyed)
    })
  )

  it.scoped("are others once one direction has ended", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(
        Tunnel.join(a, b, { idleTimeout: Duration.infinity, halfClosedTimeout: "1 minute" })
      )
      yield* TestClock.adjust("1 day")
      yield* left.end
      yield* right.receiveAll
      yield* TestClock.adjust("59 seconds")
      yield* moves(right, left)
      assert.isNull(tunnel.unsafePoll())
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(yield* Fiber.join(tunnel), { sent: 0, received: 1, reason: "HalfClosedTimeout" })
      assert.isTrue(a.destroyed && b.destroyed)
    })
  )

  it.scoped("are an hour, for both, unless something else is said", () =>
    Effect.gen(function* () {
      for (const half of [false, true]) {
        const { a, b, left, right } = yield* bare
        const tunnel = yield* Effect.fork(Tunnel.join(a, b))
        if (half) {
          yield* left.end
          yield* right.receiveAll
        }
        yield* TestClock.adjust("59 minutes")
        assert.isNull(tunnel.unsafePoll())
        yield* TestClock.adjust("2 hours")
        assert.strictEqual((yield* Fiber.join(tunnel)).reason, half ? "HalfClosedTimeout" : "IdleTimeout")
      }
    })
  )

  it.scoped("can be switched off", () =>
    Effect.gen(function* () {
      const { a, b, left, right } = yield* bare
      const tunnel = yield* Effect.fork(Tunnel.join(a, b, { idleTimeout: Duration.infinity }))
      yield* moves(left, right)
      yield* TestClock.adjust("365 days")
      yield* Effect.all([left.end, right.end])
      assert.strictEqual((yield* Fiber.join(tunnel)).reason, "Ended")
    })
  )
})
