import { once } from "node:events"
import * as Http from "node:http"
import type * as net from "node:net"
import type { Duplex } from "node:stream"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Supervisor from "effect/Supervisor"
import { WebSocket } from "../../src/index.js"
import type { Deadlines } from "../../src/internal/deadlines.js"
import type { UpgradedImpl } from "../../src/internal/upgraded.js"
import { type Kind, type Running, serve, unhandled } from "../support.js"
import { Opcode } from "./frames.js"
import { clientOf, close, echo, forms, frame, handshake, left, message, type Session, turns, until } from "./support.js"

const kinds: ReadonlyArray<Kind> = ["tcp", "memory"]

/** Frames of every kind, and the Close. */
const script = Buffer.concat([
  message("one"),
  frame(Opcode.Ping, "p"),
  frame(Opcode.Text, "t", { fin: false }),
  frame(Opcode.Pong, ""),
  frame(Opcode.Continuation, "wo"),
  message(Buffer.alloc(130, 3)),
  close(1000, "bye")
])

const asked = Buffer.from(handshake())

interface Seen {
  readonly sockets: Array<Duplex>
  deadlines: Deadlines | undefined
}

/** A session that tells of its socket. */
const telling =
  (seen: Seen, session: Session): Session =>
  (ws) => {
    const { wire } = ws.upgraded as UpgradedImpl
    seen.sockets.push(ws.upgraded.socket)
    seen.deadlines = wire.deadlines
    return session(ws)
  }

/** How many deadlines are waited for: of timers and closes of connections. */
const waitedFor = (deadlines: Deadlines | undefined): number => {
  const { lanes } = deadlines as unknown as { readonly lanes: Map<number, { readonly entries: Set<unknown> }> }
  return [...lanes.values()].reduce((sum, { entries }) => sum + entries.size, 0)
}

/** What Node itself leaves on a socket that an 'upgrade' event took. */
const bare = Effect.promise(async () => {
  const server = Http.createServer()
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const request = Http.request({
    port: (server.address() as net.AddressInfo).port,
    host: "127.0.0.1",
    headers: { connection: "Upgrade", upgrade: "websocket" }
  })
  request.on("error", () => {})
  request.end()
  const [, socket] = (await once(server, "upgrade")) as [Http.IncomingMessage, net.Socket]
  socket.destroy()
  await once(socket, "close")
  server.close()
  return listeners(socket)
})

const listeners = (socket: Duplex): Record<string, number> =>
  Object.fromEntries(socket.eventNames().map((name) => [String(name), socket.listenerCount(name)]))

const timers = { heartbeat: "1 minute", idleTimeout: "1 minute" } as const

type Visit = (running: Running, at: number) => Effect.Effect<unknown, unknown, Scope.Scope>

/** Serves the session by each form, lets peers come and go, and looks at what is left of them. */
const nothingLeft = (kind: Kind, session: Session, counts: ReadonlyArray<number>, visit: Visit) =>
  Effect.gen(function* () {
    const died = yield* unhandled
    const expected = yield* bare
    const supervisor = yield* Supervisor.track
    yield* Effect.gen(function* () {
      const scope = yield* Scope.make()
      const seen: Seen = { sockets: [], deadlines: undefined }
      const served = yield* Scope.extend(
        Effect.forEach(forms, ([, form]) => serve(form(telling(seen, session), timers), { kind })),
        scope
      )
      const gone = (running: Running) => Effect.zipRight(left(running, 0), running.idle)
      for (const at of counts) {
        // By each form, or by one after the other where there are many
        const by = counts.length > 20 ? [served[at % served.length]!] : served
        yield* Effect.forEach(by, (running) => Effect.scoped(visit(running, at)), { concurrency: "unbounded" })
      }
      yield* Effect.forEach(served, gone)
      yield* turns(20)
      // One for each duration that a server was told, which sleeps until it is over
      assert.isAtMost((yield* supervisor.value).length, forms.length * 8, "fibers")
      assert.strictEqual(waitedFor(seen.deadlines), 0, "deadlines")
      // A reset may be heard before the session begins
      assert.isAtLeast(seen.sockets.length, counts.length / 2)
      for (const socket of seen.sockets) {
        assert.isTrue(socket.destroyed)
        const kept = listeners(socket)
        for (const [event, count] of Object.entries(kept)) {
          assert.isAtMost(count, event === "error" ? 1 : (expected[event] ?? 0), `listeners of ${event}`)
        }
      }
      yield* Scope.close(scope, Exit.void)
      yield* turns(20)
      assert.lengthOf(yield* supervisor.value, 0)
      assert.deepStrictEqual(died, [])
    }).pipe(Effect.supervised(supervisor))
  })

const times = (count: number) => Array.from({ length: count }, (_, i) => i)

describe.each(kinds)("nothing is left over %s", (kind) => {
  it.scopedLive("of peers that close", () =>
    nothingLeft(kind, echo, times(10), (running) =>
      Effect.gen(function* () {
        const { peer, receiveAll, send } = yield* clientOf(running.connect)
        yield* send(script)
        assert.lengthOf(yield* receiveAll, 5)
        yield* peer.end
      })
    )
  )

  it.scopedLive("of sessions that close", () =>
    nothingLeft(
      kind,
      (ws) => Effect.zipRight(WebSocket.send(ws, "a"), WebSocket.close(ws, 4000)),
      times(10),
      (running) =>
        Effect.gen(function* () {
          const { peer, receive, receiveClose, send } = yield* clientOf(running.connect)
          yield* receive
          yield* receiveClose
          yield* send(close(4000))
          yield* peer.closed
          yield* peer.end
        })
    )
  )

  it.scopedLive("of peers that break the protocol", () =>
    nothingLeft(kind, echo, times(10), (running) =>
      Effect.gen(function* () {
        const { peer, receiveAll, send } = yield* clientOf(running.connect, message("early"))
        yield* send(Buffer.from([0xff, 0x80]))
        yield* receiveAll
        yield* peer.end
      })
    )
  )

  it.scopedLive("of peers whose first packet closes, or breaks the protocol", () =>
    nothingLeft(kind, echo, times(10), (running, at) =>
      Effect.gen(function* () {
        const { peer, receiveAll } = yield* clientOf(
          running.connect,
          at % 2 === 0 ? close(1000) : Buffer.of(0xff, 0x80)
        )
        yield* receiveAll
        yield* peer.end
      })
    )
  )

  it.scopedLive("of sessions that were interrupted while they waited to read, to write, and for a pong", () =>
    nothingLeft(
      kind,
      (ws) =>
        Effect.raceAll([
          WebSocket.run(ws, () => Effect.void),
          WebSocket.ping(ws),
          Effect.forever(WebSocket.send(ws, Buffer.alloc(100_000))),
          WebSocket.awaitClosed(ws),
          turns(20)
        ]),
      times(10),
      (running) =>
        Effect.gen(function* () {
          const { peer } = yield* clientOf(running.connect)
          yield* turns(40)
          yield* peer.reset
        })
    )
  )

  const places = Array.from({ length: script.length + 1 }, (_, i) => i)

  it.scopedLive("of peers that end behind any byte of what they say", () =>
    nothingLeft(kind, echo, places, (running, at) =>
      Effect.gen(function* () {
        const peer = yield* running.connect
        yield* peer.send(Buffer.concat([asked, script.subarray(0, at)]))
        yield* peer.end
        yield* Effect.ignore(peer.receiveAll)
      })
    )
  )

  it.scopedLive("of peers that reset behind any byte of what they say, heard or not", () =>
    nothingLeft(kind, echo, places, (running, at) =>
      Effect.gen(function* () {
        const peer = yield* running.connect
        yield* peer.send(Buffer.concat([asked, script.subarray(0, at)]))
        if (at % 3 > 0) {
          yield* peer.receiveHead
          yield* turns(at % 3)
        }
        yield* peer.reset
      })
    )
  )

  it.scopedLive("of peers that are gone within a split handshake and exchange", () =>
    nothingLeft(kind, echo, times(12), (running, at) =>
      Effect.gen(function* () {
        const peer = yield* running.connect
        const all = Buffer.concat([asked, script])
        yield* Effect.fork(
          peer.sendSplit(
            all,
            Array.from({ length: 40 }, (_, i) => asked.length - 10 + i * 6)
          )
        )
        yield* turns(at * 4)
        yield* at % 2 === 0 ? peer.reset : peer.end
      })
    )
  )
})

describe("a websocket that is over", () => {
  it.scopedLive("holds nothing of what it had received or was to send", () =>
    Effect.gen(function* () {
      let held: WebSocket.WebSocket | undefined
      const running = yield* serve(
        WebSocket.onUpgrade(timers, (ws) => {
          held = ws
          return Effect.exit(WebSocket.run(ws, () => Effect.void))
        })
      )
      const { peer, send } = yield* clientOf(running.connect)
      yield* send(message("a"), frame(Opcode.Text, Buffer.alloc(300_000, "x"), { fin: false }))
      yield* until(() => (held?.upgraded.socket as net.Socket | undefined)?.bytesRead !== undefined)
      yield* turns(5)
      yield* peer.end
      yield* left(running, 0)
      const { decoder } = held as unknown as { readonly decoder: { readonly part: Uint8Array } }
      assert.isBelow(decoder.part.length, 1000)
    })
  )
})
