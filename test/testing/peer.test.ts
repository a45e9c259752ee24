import { mkdtempSync, rmSync } from "node:fs"
import * as net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Duplex } from "node:stream"
import * as tls from "node:tls"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { type MemorySocket, pair } from "../../src/internal/memory.js"
import * as Peer from "../../src/testing/Peer.js"
import { cert, key } from "./certificate.js"

type Other = net.Socket | MemorySocket

/** A peer, and what is at the other end of its connection. */
type Connected = Effect.Effect<readonly [peer: Peer.Peer, other: Other], Peer.PeerError, Scope.Scope>

const accept = (
  make: (listener: (socket: net.Socket) => void) => net.Server,
  listen: net.ListenOptions,
  target: (server: net.Server) => Peer.Target
): Connected =>
  Effect.gen(function* () {
    const accepted = yield* Deferred.make<net.Socket>()
    const server = make((socket) => {
      socket.on("error", () => {})
      Deferred.unsafeDone(accepted, Effect.succeed(socket))
    })
    yield* Effect.acquireRelease(
      Effect.async<void>((resume) => void server.listen(listen, () => resume(Effect.void))),
      () => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
    )
    const peer = yield* Peer.connect(target(server))
    const other = yield* Effect.acquireRelease(Deferred.await(accepted), (socket) =>
      Effect.sync(() => socket.destroy())
    )
    return [peer, other] as const
  })

const portOf = (server: net.Server) => (server.address() as net.AddressInfo).port

const tcp = accept(
  (listener) => net.createServer({ allowHalfOpen: true }, listener),
  { port: 0, host: "127.0.0.1" },
  (server) => ({ port: portOf(server) })
)

const secure = accept(
  (listener) => tls.createServer({ cert, key, allowHalfOpen: true }, listener),
  { port: 0, host: "127.0.0.1" },
  (server) => ({ port: portOf(server), tls: { ca: cert } })
)

const unix = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "peer-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true }))
  )
  const path = join(folder, "socket")
  return yield* accept(
    (listener) => net.createServer({ allowHalfOpen: true }, listener),
    { path },
    () => ({ path })
  )
})

const memory: Connected = Effect.gen(function* () {
  const [server, client] = pair()
  server.on("error", () => {})
  return [yield* Peer.fromDuplex(client), server] as const
})

const ascii = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1")

/** What an end emits: its pieces, and how it ended. */
const heard = (other: Other) => {
  const pieces: Array<string> = []
  const ending = new Promise<string>((resolve) => {
    other.on("end", () => resolve("end"))
    other.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
    other.on("close", () => resolve("close"))
  })
  other.on("data", (bytes: Buffer) => pieces.push(bytes.toString("latin1")))
  return { pieces, ending: Effect.promise(() => ending) }
}

describe.each([
  ["TCP", tcp],
  ["TLS", secure],
  ["a Unix socket", unix],
  ["a pair in memory", memory]
] as const)("a peer over %s", (name, connected) => {
  it.scopedLive("sends bytes and strings, and a FIN behind them", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      const { ending, pieces } = heard(other)
      yield* peer.send("one ")
      yield* peer.send(new Uint8Array([0x74, 0x77, 0x6f]))
      yield* peer.end
      assert.strictEqual(yield* ending, "end")
      assert.strictEqual(pieces.join(""), "one two")
      other.end("answer")
      assert.strictEqual(ascii(yield* peer.receiveAll), "answer")
      assert.strictEqual(yield* peer.closed, "end")
    })
  )

  it.scopedLive("loses no byte of what it splits", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      const { ending, pieces } = heard(other)
      yield* peer.sendSplit("0123456789", [9, 1, 5, 5, 0, 10, 99])
      yield* peer.end
      assert.strictEqual(yield* ending, "end")
      assert.strictEqual(pieces.join(""), "0123456789")
      if (name === "a pair in memory") {
        assert.deepStrictEqual(pieces, ["0", "1234", "5678", "9"])
      }
    })
  )

  it.scopedLive("receives up to a pattern, so many bytes, the next piece, and the rest", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      other.write("head\r\n")
      other.write("\r\nbody and ")
      assert.strictEqual(ascii(yield* peer.receiveUntil("\r\n\r\n")), "head\r\n\r\n")
      assert.strictEqual(ascii(yield* peer.receiveExactly(4)), "body")
      assert.strictEqual(ascii(yield* peer.receive), " and ")
      other.end("the rest")
      assert.strictEqual(ascii(yield* peer.receiveUntil(new Uint8Array([0x74, 0x68]))), "th")
      assert.strictEqual(ascii(yield* peer.receiveAll), "e rest")
    })
  )

  it.scopedLive("fails with what it has when the connection ends first, and has not taken it", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      other.end("too little")
      const error = yield* Effect.flip(peer.receiveUntil("enough"))
      assert.strictEqual(error.reason, "Ended")
      assert.strictEqual(ascii(error.received), "too little")
      assert.strictEqual(
        error.message,
        'The peer waited for "enough", but the connection ended. Unread are 10 bytes: "too little"'
      )
      assert.strictEqual((yield* Effect.flip(peer.receiveExactly(11))).reason, "Ended")
      assert.strictEqual(ascii(yield* peer.receive), "too little")
      const nothing = yield* Effect.flip(peer.receive)
      assert.deepStrictEqual([nothing.reason, nothing.received.length], ["Ended", 0])
    })
  )

  it.scopedLive("follows a script", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      other.on("data", (bytes) => other.write(bytes)).on("end", () => other.end())
      yield* Peer.run(peer, [
        { send: "echo" },
        { expect: "echo" },
        { send: "again", split: [1, 2] },
        { expect: Buffer.from("again") },
        { end: true }
      ])
      assert.strictEqual(yield* peer.closed, "end")
      const [second, silent] = yield* connected
      silent.end("surprise")
      const error = yield* Effect.flip(Peer.run(second, [{ expect: "expected" }, { end: true }]))
      assert.deepStrictEqual(
        [error.reason, error.expected, ascii(error.received)],
        ["Unexpected", '"expected"', "surprise"]
      )
    })
  )

  it.scopedLive("resets where the transport can, and sends nothing more", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      const { ending, pieces } = heard(other)
      yield* peer.send("a")
      yield* Effect.iterate(0, { while: () => pieces.length === 0, body: () => Effect.as(Effect.yieldNow(), 0) })
      yield* Peer.run(peer, [{ reset: true }])
      assert.strictEqual(yield* ending, name === "a Unix socket" ? "end" : "ECONNRESET")
      yield* peer.send("b")
      yield* peer.sendSplit("cd", [1])
      yield* peer.end
      assert.deepStrictEqual(pieces, ["a"])
      assert.strictEqual(yield* peer.closed, "close")
      assert.strictEqual((yield* Effect.flip(peer.receive)).reason, "Closed")
    })
  )

  it.scopedLive("does not read on when nobody receives", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* connected
      const block = Buffer.alloc(64 * 1024, "x")
      let sent = 0
      while (other.writableLength < 1 << 20) {
        other.write(block)
        sent += block.length
        if (other.writableLength === 0) {
          yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
        }
      }
      other.end()
      const all = yield* peer.receiveAll
      assert.strictEqual(all.length, sent)
    })
  )

  it.scopedLive("destroys its socket when its Scope closes", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const [peer, other] = yield* Scope.extend(connected, scope)
      other.resume()
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(peer.socket.destroyed)
    })
  )
})

describe("a peer", () => {
  const over = (client: Duplex) => Peer.fromDuplex(client)

  it.scopedLive("sees a reset as one", () =>
    Effect.gen(function* () {
      for (const connected of [tcp, memory]) {
        const [peer, other] = yield* connected
        other.resetAndDestroy()
        assert.strictEqual(yield* peer.closed, "reset")
        const error = yield* Effect.flip(peer.receiveAll)
        assert.strictEqual(error.reason, "Reset")
        assert.strictEqual(
          error.message,
          'The peer waited for a FIN, but the connection was reset (read ECONNRESET). Unread are 0 bytes: ""'
        )
      }
    })
  )

  it.scopedLive("keeps what came before a reset", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* memory
      yield* Effect.async<void>((resume) => void other.write("partial", () => resume(Effect.void)))
      other.resetAndDestroy()
      const error = yield* Effect.flip(peer.receiveAll)
      assert.deepStrictEqual([error.reason, ascii(error.received)], ["Reset", "partial"])
    })
  )

  it.scopedLive("tells of much that is unread only the first of it", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* memory
      other.end("x".repeat(201))
      const error = yield* Effect.flip(peer.receiveUntil("y"))
      assert.isTrue(error.message.endsWith(`Unread are 201 bytes: "${"x".repeat(200)}"...`))
      assert.lengthOf(error.received, 201)
    })
  )

  it.scopedLive("takes an error without a code for a close", () =>
    Effect.gen(function* () {
      const socket = new Duplex({ read() {}, write() {} })
      const peer = yield* over(socket)
      socket.destroy(new Error("no code"))
      assert.strictEqual(yield* peer.closed, "close")
    })
  )

  it.scopedLive("destroys what carried a socket that closed before", () =>
    Effect.gen(function* () {
      const [, socket] = pair()
      const [, transport] = pair()
      yield* Effect.scoped(
        Effect.gen(function* () {
          const peer = yield* Peer.fromDuplex(socket, { transport })
          socket.destroy()
          yield* peer.closed
        })
      )
      assert.isTrue(transport.destroyed)
    })
  )

  it.scopedLive("cannot connect where nobody listens", () =>
    Effect.gen(function* () {
      const server = net.createServer()
      const port = yield* Effect.async<number>((resume) => {
        server.listen(0, "127.0.0.1", () => {
          const { port } = server.address() as net.AddressInfo
          server.close(() => resume(Effect.succeed(port)))
        })
      })
      const error = yield* Effect.flip(Peer.connect({ port }))
      assert.strictEqual(error.reason, "Closed")
      assert.match(error.message, /^The peer waited for a connection, but the connection was closed \(.*ECONNREFUSED/)
    })
  )

  it.scopedLive("does not connect to a TLS server that it does not trust", () =>
    Effect.gen(function* () {
      const untrusted = accept(
        (listener) => tls.createServer({ cert, key }, listener),
        { port: 0, host: "127.0.0.1" },
        (server) => ({ port: portOf(server), host: "localhost", tls: {} })
      )
      const error = yield* Effect.flip(untrusted)
      assert.deepInclude(error.cause, { code: "DEPTH_ZERO_SELF_SIGNED_CERT" })
    })
  )

  it.scopedLive("knows how a socket ended that it was given afterwards", () =>
    Effect.gen(function* () {
      const [gone] = pair()
      gone.destroy()
      assert.strictEqual(yield* (yield* over(gone)).closed, "close")
      const [server, client] = pair()
      server.end()
      yield* Effect.async<void>((resume) => void client.once("end", () => resume(Effect.void)))
      assert.strictEqual(yield* (yield* over(client)).closed, "end")
    })
  )

  it.scopedLive("is not held up by a Duplex that never calls a write back", () =>
    Effect.gen(function* () {
      const mute = new Duplex({ read() {}, write() {} })
      const peer = yield* over(mute)
      const sending = yield* Effect.fork(peer.send("x"))
      yield* Effect.yieldNow()
      yield* peer.reset
      yield* Fiber.join(sending)
      assert.strictEqual(yield* peer.closed, "close")
    })
  )

  it.scopedLive("resets the transport under TLS", () =>
    Effect.gen(function* () {
      const [server, client] = pair()
      const secured = new tls.TLSSocket(server as unknown as net.Socket, { isServer: true, cert, key })
      secured.on("error", () => {}).resume()
      const failed = new Promise((resolve) => server.on("error", resolve))
      const socket = tls.connect({ socket: client as unknown as net.Socket, ca: cert, host: "localhost" })
      const peer = yield* Peer.fromDuplex(socket, { transport: client })
      yield* peer.send("x")
      yield* peer.reset
      assert.deepInclude(yield* Effect.promise(() => failed), { code: "ECONNRESET" })
    })
  )

  it.scopedLive("reads ahead again, once what it had was received", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* memory
      other.write(Buffer.alloc(20_000))
      other.write("x")
      yield* peer.receiveExactly(1)
      yield* peer.receiveExactly(19_999)
      const ended = new Promise((resolve) => peer.socket.on("end", resolve))
      other.end()
      yield* Effect.promise(() => ended)
      assert.strictEqual(ascii(yield* peer.receiveAll), "x")
    })
  )

  it.scopedLive("destroys the transport when its Scope closes", () =>
    Effect.gen(function* () {
      const [, socket] = pair()
      const [, transport] = pair()
      yield* Effect.scoped(Peer.fromDuplex(socket, { transport }))
      assert.isTrue(socket.destroyed)
      assert.isTrue(transport.destroyed)
    })
  )

  it.scopedLive("can be interrupted while it waits, and has taken nothing", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* memory
      const waiting = yield* Effect.fork(peer.receiveExactly(3))
      yield* Effect.yieldNow()
      yield* Fiber.interrupt(waiting)
      other.end("abc")
      assert.strictEqual(ascii(yield* peer.receiveExactly(3)), "abc")
    })
  )

  it.scopedLive("sends each piece of a split as a read of its own over a pair, byte by byte", () =>
    Effect.gen(function* () {
      const [peer, other] = yield* memory
      const { ending, pieces } = heard(other)
      const bytes = "0123456789"
      yield* peer.sendSplit(
        bytes,
        Array.from(bytes, (_, i) => i)
      )
      yield* peer.end
      yield* ending
      assert.deepStrictEqual(pieces, [...bytes])
    })
  )
})

describe("a response", () => {
  const parse = (wire: string, split: ReadonlyArray<number> = []) =>
    Effect.scoped(
      Effect.gen(function* () {
        const [server, client] = pair()
        const peer = yield* Peer.fromDuplex(client)
        const other = yield* Peer.fromDuplex(server)
        yield* Effect.fork(Effect.zipRight(other.sendSplit(wire, split), other.end))
        const response = yield* peer.receiveResponse
        return { ...response, rest: ascii(yield* peer.receiveAll) }
      })
    )

  const head = (fields: string, status = "200 OK") => `HTTP/1.1 ${status}\r\n${fields}\r\n`

  it.effect("is framed by Content-Length", () =>
    Effect.gen(function* () {
      const wire = head("X-A: 1\r\ncontent-length:  5 \r\nx-a: 2\r\nEmpty:\r\n")
      const response = yield* parse(`${wire}helloREST`)
      assert.deepInclude(response, {
        status: 200,
        statusText: "OK",
        version: "1.1",
        raw: wire,
        text: "hello",
        rest: "REST",
        interim: []
      })
      assert.deepStrictEqual({ ...response.headers }, { "x-a": "1, 2", "content-length": "5", empty: "" })
      assert.strictEqual(ascii(response.body), "hello")
    })
  )

  it.effect("is framed by chunks, with extensions and trailers", () =>
    Effect.gen(function* () {
      const wire = `${head("Transfer-Encoding: chunked\r\n")}5;a=b\r\nhello\r\n00C\r\n, big\r\nworld\r\n0\r\nX-T: t\r\n\r\nREST`
      const response = yield* parse(wire)
      assert.deepInclude(response, { text: "hello, big\r\nworld", rest: "REST" })
      assert.deepStrictEqual({ ...response.trailers }, { "x-t": "t" })
    })
  )

  it.effect("lasts until the FIN without a length", () =>
    Effect.gen(function* () {
      assert.deepInclude(yield* parse(`${head("")}everything`), { text: "everything", rest: "" })
    })
  )

  it.effect.each(["101 Switching Protocols", "204 No Content", "304 Not Modified"])(
    "has no content with %s",
    (status) =>
      Effect.gen(function* () {
        assert.deepInclude(yield* parse(`${head("Content-Length: 5\r\n", status)}other`), { text: "", rest: "other" })
      })
  )

  it.effect("comes behind the interim ones", () =>
    Effect.gen(function* () {
      const response = yield* parse(
        head("", "100 Continue") +
          head("Link: a\r\n", "103 Early Hints") +
          head("Content-Length: 0\r\n", "404 Not Found")
      )
      assert.deepInclude(response, { status: 404, statusText: "Not Found" })
      assert.deepStrictEqual(
        response.interim.map(({ status }) => status),
        [100, 103]
      )
    })
  )

  it.effect.each([
    ["no HTTP", "SSH-2.0-x\r\n\r\n", "not the head"],
    ["a field without a colon", head("what\r\n"), "not the head"],
    ["an unknown coding", head("Transfer-Encoding: gzip\r\n"), "gzip"],
    ["a length that is no number", head("Content-Length: 5x\r\n"), "5x"],
    ["a chunk without a size", `${head("Transfer-Encoding: chunked\r\n")}x\r\n`, "size"],
    ["a chunk without its end", `${head("Transfer-Encoding: chunked\r\n")}1\r\nabc`, "line break"],
    ["a trailer without a colon", `${head("Transfer-Encoding: chunked\r\n")}0\r\nx\r\n\r\n`, "colon"]
  ] as const)("is refused with %s", ([, wire, why]) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(parse(wire))
      assert.strictEqual(error.reason, "Unexpected")
      assert.include((error.cause as Error).message, why)
      assert.strictEqual(ascii(error.received), wire)
    })
  )

  it.effect("is missed when the connection ends within it, wherever that is", () =>
    Effect.gen(function* () {
      for (const whole of [
        `${head("Content-Length: 5\r\n")}hello`,
        `${head("", "100 Continue")}${head("Transfer-Encoding: chunked\r\n")}5\r\nhello\r\n0\r\n\r\n`
      ]) {
        assert.strictEqual((yield* parse(whole)).text, "hello")
        for (let length = 0; length < whole.length; length++) {
          const error = yield* Effect.flip(parse(whole.slice(0, length)))
          assert.deepStrictEqual([error.reason, ascii(error.received)], ["Ended", whole.slice(0, length)])
        }
      }
    })
  )

  it.effect("has its head read alone, interim or not", () =>
    Effect.gen(function* () {
      const [server, client] = pair()
      const peer = yield* Peer.fromDuplex(client)
      server.write(`${head("", "100 Continue")}HTTP/1.0 200\r\n\r\nx`)
      assert.strictEqual((yield* peer.receiveHead).status, 100)
      assert.deepInclude(yield* peer.receiveHead, { status: 200, statusText: "", version: "1.0" })
      assert.strictEqual(ascii(yield* peer.receiveExactly(1)), "x")
    }).pipe(Effect.scoped)
  )

  it("is the same however it is split", async () => {
    const wire = `${head("", "103 Early Hints")}${head("Transfer-Encoding: chunked\r\n")}5\r\nhello\r\n0\r\nA: b\r\n\r\nREST`
    const whole = await Effect.runPromise(parse(wire))
    await FastCheck.assert(
      FastCheck.asyncProperty(FastCheck.array(FastCheck.nat(wire.length)), async (at) => {
        assert.deepStrictEqual(await Effect.runPromise(parse(wire, at)), whole)
      }),
      { numRuns: 50 }
    )
  })
})
