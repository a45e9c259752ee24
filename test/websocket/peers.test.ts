/** Other implementations at the other end: `ws` as client and as server, undici's client, and the one built into Node. */
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import * as Http from "node:http"
import * as net from "node:net"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { WebSocket as Undici } from "undici"
import * as Ws from "ws"
import { WebSocket } from "../../src/index.js"
import * as Peer from "../../src/testing/Peer.js"
import { runs, serve } from "../support.js"
import { closePayload, decodeOne, encode, Opcode } from "./frames.js"
import { closeOf, echo, left, type Message, shown, someMessages, turns, until } from "./support.js"

const failure = <A, E>(exit: Exit.Exit<A, E>): any =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined

const numRuns = runs(15)

const compressions = [
  ["plain", false, false],
  ["deflated", { threshold: 0 }, { threshold: 0 }],
  [
    "deflated without contexts, in small windows",
    { threshold: 10, serverNoContextTakeover: true, clientNoContextTakeover: true, serverMaxWindowBits: 10 },
    { threshold: 0, clientMaxWindowBits: 9 }
  ]
] as const

const own = (data: Ws.RawData, isBinary: boolean): Message =>
  isBinary ? new Uint8Array(data as Buffer) : (data as Buffer).toString()

const wsClient = (
  url: string,
  options: Ws.ClientOptions = {},
  protocols: Array<string> = []
): Effect.Effect<Ws.WebSocket, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Ws.WebSocket(url, protocols, options)
      await once(client, "open")
      return client
    }),
    (client) => Effect.sync(() => client.terminate())
  )

const closed = (client: Ws.WebSocket): Effect.Effect<readonly [code: number, reason: string]> =>
  Effect.async((resume) => {
    client.once("close", (code, reason) => resume(Effect.succeed([code, reason.toString()])))
  })

/** Sends all, in fragments where there are any, and what comes back. */
const echoedTo = (client: Ws.WebSocket, messages: ReadonlyArray<Message>, fragmented: boolean) =>
  Effect.async<ReadonlyArray<Message>>((resume) => {
    const seen: Array<Message> = []
    const onMessage = (data: Ws.RawData, isBinary: boolean) => {
      seen.push(own(data, isBinary))
      check()
    }
    const check = () => {
      if (seen.length === messages.length) {
        client.off("message", onMessage)
        resume(Effect.succeed(seen))
      }
    }
    client.on("message", onMessage)
    check()
    for (const message of messages) {
      const binary = typeof message !== "string"
      if (fragmented) {
        const all = Buffer.from(message as string)
        const half = all.length >> 1
        client.send(all.subarray(0, half), { binary, fin: false })
        client.ping("between")
        client.send(all.subarray(half), { binary, fin: true })
      } else {
        client.send(message, { binary })
      }
    }
  })

const url = ({ port }: { readonly port: number }) => `ws://127.0.0.1:${port}/`

describe.each(compressions)("a client of ws, %s,", (_, compression, perMessageDeflate) => {
  it.scopedLive("gets back what it sends, whole or in fragments", () =>
    Effect.gen(function* () {
      const running = yield* serve(WebSocket.onUpgrade({ compression, heartbeat: "1 second" }, echo))
      const client = yield* wsClient(url(running), { perMessageDeflate })
      assert.strictEqual(client.extensions !== "", compression !== false)
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(someMessages, FastCheck.boolean(), (messages, fragmented) =>
            Effect.map(echoedTo(client, messages, fragmented), (echoed) =>
              assert.deepStrictEqual(echoed.map(shown), messages.map(shown))
            ).pipe(Effect.runPromise)
          ),
          { numRuns }
        )
      )
      client.close(3001, "enough")
      assert.deepStrictEqual(yield* closed(client), [3001, ""])
      yield* left(running, 0)
    })
  )
})

describe("a client of ws", () => {
  it.scopedLive("is told of the subprotocol, and sees code and reason of the session that closes", () =>
    Effect.gen(function* () {
      const running = yield* serve(
        WebSocket.onUpgrade({ subprotocols: ["b", "a"] }, (ws) => WebSocket.close(ws, 4000, `spoke ${ws.subprotocol}`))
      )
      const client = yield* wsClient(url(running), {}, ["a", "b"])
      assert.strictEqual(client.protocol, "b")
      assert.deepStrictEqual(yield* closed(client), [4000, "spoke b"])
      yield* left(running, 0)
    })
  )

  it.scopedLive("answers pings, and has its own answered", () =>
    Effect.gen(function* () {
      const pinged = yield* Deferred.make<number>()
      const running = yield* serve(
        WebSocket.onUpgrade((ws) =>
          Effect.zipRight(
            Effect.flatMap(Effect.fork(Effect.repeatN(WebSocket.ping(ws), 4)), (fiber) =>
              Effect.fork(Effect.flatMap(Fiber.join(fiber), () => Deferred.succeed(pinged, 1)))
            ),
            echo(ws)
          )
        )
      )
      const client = yield* wsClient(url(running))
      const pong = once(client, "pong")
      client.ping("mine")
      const [payload] = yield* Effect.promise(() => pong)
      assert.strictEqual(String(payload), "mine")
      yield* Deferred.await(pinged)
    })
  )

  it.scopedLive("that is terminated is a loss or a FIN, and no more", () =>
    Effect.gen(function* () {
      const ended = yield* Deferred.make<unknown>()
      const running = yield* serve(
        WebSocket.onUpgrade((ws) =>
          Effect.flatMap(Effect.exit(echo(ws)), (exit) => Deferred.succeed(ended, failure(exit)?._tag))
        )
      )
      const client = yield* wsClient(url(running))
      client.terminate()
      assert.include(["WebSocketClosed", "ConnectionError"], yield* Deferred.await(ended))
      yield* left(running, 0)
    })
  )

  it.scopedLive("is stopped by a session that does not read, and gets all when it does", () =>
    Effect.gen(function* () {
      const go = yield* Deferred.make<void>()
      let got = 0
      const running = yield* serve(
        WebSocket.onUpgrade((ws) =>
          Effect.zipRight(
            Deferred.await(go),
            WebSocket.run(ws, (message) =>
              Effect.sync(() => {
                got += message.length
              })
            )
          )
        )
      )
      const client = yield* wsClient(url(running))
      const total = 32 * 1024 * 1024
      for (let sent = 0; sent < total; sent += 64 * 1024) {
        client.send(Buffer.alloc(64 * 1024))
      }
      yield* turns(50)
      assert.isAbove(client.bufferedAmount, 1024 * 1024)
      yield* Deferred.succeed(go, undefined)
      yield* until(() => got === total)
    })
  )
})

interface Echo {
  readonly port: number
  readonly clients: Queue.Queue<Ws.WebSocket>
}

const wsServer = (options: Ws.ServerOptions = {}): Effect.Effect<Echo, never, Scope.Scope> =>
  Effect.gen(function* () {
    const clients = yield* Queue.unbounded<Ws.WebSocket>()
    const server = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const server = new Ws.WebSocketServer({ ...options, port: 0, host: "127.0.0.1" })
        await once(server, "listening")
        return server
      }),
      (server) =>
        Effect.async<void>((resume) => {
          server.clients.forEach((client) => client.terminate())
          server.close(() => resume(Effect.void))
        })
    )
    server.on("connection", (client) => {
      client.on("message", (data, isBinary) => client.send(data as Buffer, { binary: isBinary }))
      client.on("error", () => {})
      Queue.unsafeOffer(clients, client)
    })
    return { port: (server.address() as net.AddressInfo).port, clients }
  })

describe.each(compressions)("a client here, %s,", (_, compression, perMessageDeflate) => {
  it.scopedLive("gets back from ws what it sends", () =>
    Effect.gen(function* () {
      const server = yield* wsServer({ perMessageDeflate })
      const ws = yield* WebSocket.connect(url(server), { compression })
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(someMessages, (messages) =>
            Effect.gen(function* () {
              yield* WebSocket.sendAll(ws, messages)
              const seen: Array<Message> = []
              while (seen.length < messages.length) {
                seen.push(...(yield* WebSocket.pull(ws)))
              }
              assert.deepStrictEqual(seen.map(shown), messages.map(shown))
            }).pipe(Effect.runPromise)
          ),
          { numRuns }
        )
      )
      assert.deepStrictEqual(yield* WebSocket.close(ws, 3000, "done"), { code: 3000, reason: "done" })
    })
  )

  it.scopedLive("and a server here speak to each other", () =>
    Effect.gen(function* () {
      const running = yield* serve(WebSocket.onUpgrade({ compression }, echo))
      const ws = yield* WebSocket.connect(url(running), { compression })
      for (const size of [0, 1, 125, 126, 65_535, 65_536, 900_000]) {
        yield* WebSocket.send(ws, Buffer.alloc(size, "ab"))
        const seen = yield* WebSocket.pull(ws)
        assert.deepStrictEqual([...seen].map(shown), [shown(Buffer.alloc(size, "ab"))])
      }
      assert.isTrue(Number(yield* WebSocket.ping(ws)) !== 0)
      assert.deepStrictEqual(yield* WebSocket.close(ws), { code: 1000, reason: "" })
      yield* left(running, 0)
    })
  )
})

describe("a client here", () => {
  it.scopedLive("has a server of ws close, with its code and reason", () =>
    Effect.gen(function* () {
      const server = yield* wsServer({ handleProtocols: () => "b" })
      const ws = yield* WebSocket.connect(url(server), { subprotocols: ["a", "b"] })
      assert.strictEqual(ws.subprotocol, "b")
      const other = yield* Queue.take(server.clients)
      const running = yield* Effect.fork(WebSocket.run(ws, () => Effect.void))
      other.close(4001, "their reason")
      assert.deepStrictEqual(yield* Fiber.join(running), { code: 4001, reason: "their reason" })
      yield* until(() => ws.upgraded.socket.destroyed)
    })
  )

  it.scopedLive("closes with its Scope: 1000, 1001, 1011, and ws sees it so", () =>
    Effect.gen(function* () {
      const server = yield* wsServer()
      for (const [exit, code] of [
        [Exit.void, 1000],
        [Exit.interrupt((yield* Effect.fork(Effect.void)).id()), 1001],
        [Exit.fail("no"), 1011]
      ] as const) {
        const scope = yield* Scope.make()
        const ws = yield* Scope.extend(WebSocket.connect(url(server)), scope)
        const other = yield* Queue.take(server.clients)
        const seen = yield* Effect.fork(closed(other))
        yield* turns(1)
        yield* Scope.close(scope, exit)
        assert.deepStrictEqual(yield* Fiber.join(seen), [code, ""])
        assert.isTrue(ws.upgraded.socket.destroyed)
      }
    })
  )

  interface Raw {
    readonly peer: Peer.Peer
    /** The next frame, which a client must mask. */
    readonly receive: Effect.Effect<string, Peer.PeerError>
  }

  /** A server by hand, which has answered with 101 and these bytes. */
  const raw = (early: Uint8Array = Buffer.alloc(0)) =>
    Effect.gen(function* () {
      const sockets = yield* Queue.unbounded<net.Socket>()
      const server = net.createServer({ allowHalfOpen: true }, (socket) => Queue.unsafeOffer(sockets, socket))
      yield* Effect.acquireRelease(
        Effect.async<void>((resume) => {
          server.listen(0, "127.0.0.1", () => resume(Effect.void))
        }),
        () => Effect.sync(() => server.close())
      )
      const { port } = server.address() as net.AddressInfo
      const accept = Effect.gen(function* () {
        const peer = yield* Peer.fromDuplex(yield* Queue.take(sockets))
        const request = Buffer.from(yield* peer.receiveUntil("\r\n\r\n")).toString()
        const key = /sec-websocket-key: (.*)\r\n/i.exec(request)![1]!
        const answer = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64")
        yield* peer.send(
          Buffer.concat([
            Buffer.from(
              `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${answer}\r\n\r\n`
            ),
            early
          ])
        )
        let rest = Buffer.alloc(0)
        const receive: Effect.Effect<string, Peer.PeerError> = Effect.suspend(() => {
          const found = decodeOne(rest)
          if (found === undefined) {
            return Effect.flatMap(peer.receive, (bytes) => {
              rest = Buffer.concat([rest, bytes])
              return receive
            })
          }
          rest = rest.subarray(found.length)
          const { frame } = found
          assert.isTrue(frame.masked)
          return Effect.succeed(
            frame.opcode === Opcode.Close ? `close ${closeOf(frame).join(" ")}` : `${frame.opcode} ${frame.payload}`
          )
        })
        return { peer, receive } satisfies Raw
      })
      return { port, accept }
    })

  it.scoped("reads what lies in the packet of the 101, and masks what it sends", () =>
    Effect.gen(function* () {
      const server = yield* raw(
        Buffer.concat([
          encode({ opcode: Opcode.Text, payload: "early" }),
          encode({ opcode: Opcode.Ping, payload: "?" })
        ])
      )
      const accepting = yield* Effect.fork(server.accept)
      const ws = yield* WebSocket.connect(url(server))
      const { peer, receive } = yield* Fiber.join(accepting)
      assert.deepStrictEqual([...(yield* WebSocket.pull(ws))], ["early"])
      assert.strictEqual(yield* receive, "10 ?")
      yield* WebSocket.sendAll(ws, ["a", "b"])
      assert.strictEqual(yield* receive, "1 a")
      assert.strictEqual(yield* receive, "1 b")
      yield* peer.reset
    })
  )

  it.scoped("waits for the server to end the connection, no longer than closeTimeout (RFC 6455 §7.1.1)", () =>
    Effect.gen(function* () {
      const server = yield* raw()
      const accepting = yield* Effect.fork(server.accept)
      const scope = yield* Scope.make()
      const ws = yield* Scope.extend(WebSocket.connect(url(server)), scope)
      const { peer, receive } = yield* Fiber.join(accepting)
      const closing = yield* Effect.fork(WebSocket.close(ws, 1000))
      assert.strictEqual(yield* receive, "close 1000 ")
      yield* peer.send(encode({ opcode: Opcode.Close, payload: closePayload(1000) }))
      yield* Fiber.join(closing)
      const ended = yield* Effect.fork(peer.closed)
      const shutting = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* turns(5)
      assert.isNull(ended.unsafePoll())
      assert.isNull(shutting.unsafePoll())
      yield* peer.end
      yield* Fiber.join(shutting)
      assert.strictEqual(yield* Fiber.join(ended), "end")
    })
  )

  it.scoped("gives up a server that does not end", () =>
    Effect.gen(function* () {
      const server = yield* raw(encode({ opcode: Opcode.Close, payload: closePayload(1001) }))
      const accepting = yield* Effect.fork(server.accept)
      const scope = yield* Scope.make()
      const ws = yield* Scope.extend(WebSocket.connect(url(server)), scope)
      const { receive } = yield* Fiber.join(accepting)
      assert.strictEqual(yield* receive, "close 1001 ")
      assert.deepStrictEqual(yield* WebSocket.run(ws, () => Effect.void), { code: 1001, reason: "" })
      const shutting = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* turns(5)
      yield* TestClock.adjust("4 seconds")
      assert.isNull(shutting.unsafePoll())
      yield* TestClock.adjust("1 seconds")
      yield* Fiber.join(shutting)
      assert.isTrue(ws.upgraded.socket.destroyed)
    })
  )

  it.scoped("refuses a server that masks (§5.1), and ends the connection", () =>
    Effect.gen(function* () {
      const server = yield* raw(encode({ opcode: Opcode.Text, payload: "a", key: Buffer.alloc(4) }))
      const accepting = yield* Effect.fork(server.accept)
      const ws = yield* WebSocket.connect(url(server))
      const { peer, receive } = yield* Fiber.join(accepting)
      assert.deepInclude(failure(yield* Effect.exit(WebSocket.run(ws, () => Effect.void))), {
        _tag: "ProtocolViolation",
        code: 1002,
        clause: "RFC 6455 §5.1"
      })
      assert.match(yield* receive, /^close 1002 /)
      assert.strictEqual(yield* peer.closed, "end")
      yield* peer.end
    })
  )

  it.scopedLive("fails where the other end is no websocket", () =>
    Effect.gen(function* () {
      const server = Http.createServer((_, response) => response.end("plain"))
      yield* Effect.acquireRelease(
        Effect.async<void>((resume) => {
          server.listen(0, "127.0.0.1", () => resume(Effect.void))
        }),
        () => Effect.sync(() => server.close())
      )
      const exit = yield* Effect.exit(Effect.scoped(WebSocket.connect(url(server.address() as net.AddressInfo))))
      assert.strictEqual(failure(exit)?._tag, "UpgradeRejected")
    })
  )
})

/** What runs in the other program: it writes down what it saw, and that is compared with what it should see. */
const script = (url: string) => `
  const seen = []
  const one = (protocols, act) => new Promise((resolve) => {
    const socket = new WebSocket(${JSON.stringify(url)}, protocols)
    socket.binaryType = "arraybuffer"
    socket.onopen = () => { seen.push("open " + socket.protocol); act(socket) }
    socket.onmessage = ({ data }) => {
      seen.push(typeof data === "string" ? data.length > 50 ? "text of " + data.length : data : "binary of " + data.byteLength)
      if (data === "last") socket.close(3001, "mine")
    }
    socket.onerror = () => seen.push("error")
    socket.onclose = ({ code, reason, wasClean }) => { seen.push([code, reason, wasClean].join(" ")); resolve() }
  })
  const all = async () => {
    await one(["b", "a"], (socket) => {
      socket.send("hello ü")
      socket.send(new Uint8Array(70000))
      socket.send("x".repeat(200000))
      socket.send("")
      socket.send("last")
    })
    await one("a", (socket) => socket.send("close me"))
    await one([], (socket) => socket.send("refuse me"))
    return seen
  }
`

const expected = [
  "open a",
  "hello ü",
  "binary of 70000",
  "text of 200000",
  "",
  "last",
  "3001  true",
  "open a",
  "4002 as you wish true",
  "open "
]

const served = (compression: boolean) =>
  serve(
    WebSocket.onUpgrade({ subprotocols: ["a", "b"], compression, maxMessageSize: 200_000 }, (ws) =>
      WebSocket.run(ws, (message) =>
        message === "close me"
          ? WebSocket.close(ws, 4002, "as you wish")
          : message === "refuse me"
            ? Effect.sync(() => ws.upgraded.socket.destroy())
            : WebSocket.send(ws, message)
      )
    )
  )

const check = (seen: ReadonlyArray<string>) => {
  assert.deepStrictEqual(seen.slice(0, expected.length), expected)
  // A connection that goes without a Close
  assert.match(seen.at(-1)!, /^1006 /)
}

describe.each([false, true])("the client that browsers have, compressed: %s,", (compression) => {
  it.scopedLive("of undici speaks to a server here", () =>
    Effect.gen(function* () {
      const running = yield* served(compression)
      const all = new Function("WebSocket", `${script(url(running))}; return all()`)
      check(yield* Effect.promise(() => all(Undici) as Promise<ReadonlyArray<string>>))
      yield* left(running, 0)
    })
  )

  // Its own program: NODE22 names a node that has it where this one does not
  const node = process.env.NODE22 ?? ("WebSocket" in globalThis ? process.execPath : undefined)

  it.scopedLive("of Node speaks to a server here", (context) =>
    Effect.gen(function* () {
      if (node === undefined) {
        context.skip("this Node has no WebSocket: set NODE22 to one that has")
        return
      }
      const running = yield* served(compression)
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(node, ["-e", `${script(url(running))}; all().then((seen) => console.log(JSON.stringify(seen)))`], {
            stdio: ["ignore", "pipe", "inherit"]
          })
        ),
        (child) => Effect.sync(() => child.kill())
      )
      const output = yield* Effect.promise(async () => {
        let text = ""
        for await (const bytes of child.stdout) {
          text += bytes
        }
        return text
      })
      check(JSON.parse(output))
      yield* left(running, 0)
    })
  )
})
