import * as http from "node:http"
import * as net from "node:net"
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { Client } from "undici"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeServer } from "../../src/index.js"
import { pair } from "../../src/internal/memory.js"
import { Faults, Memory, Peer } from "../../src/testing/index.js"
import { asking, message, turn } from "../support.js"
import { cert, key } from "./certificate.js"

const echo = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
  Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))
)

const router = HttpRouter.empty.pipe(
  HttpRouter.get("/plain", HttpServerResponse.text("plain")),
  HttpRouter.get("/echo", echo),
  HttpRouter.get("/never", Effect.never),
  HttpRouter.get(
    "/peer",
    Effect.map(Connection.current, ({ peer }) => HttpServerResponse.text(`${peer.address} ${peer.family}`))
  ),
  HttpRouter.post(
    "/body",
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      Effect.map(request.text, (text) => HttpServerResponse.text(text.toUpperCase()))
    )
  )
)

const served = (options?: Memory.Options) => Layer.provideMerge(HttpServer.serve(router), Memory.layer(options))

const plain = message("GET /plain HTTP/1.1", ["Host: a"])

/** Two ends of a connection: a socket, and a peer at the other end of it. */
const pipe = Effect.gen(function* () {
  const [inner, outer] = pair()
  return [inner, yield* Peer.fromDuplex(outer)] as const
})

/** Done when somebody sleeps on the TestClock. */
const awaitSleep: Effect.Effect<void> = Effect.flatMap(TestClock.sleeps(), (sleeps) =>
  Chunk.isEmpty(sleeps) ? Effect.zipRight(turn, awaitSleep) : Effect.void
)

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1")

/** Switches, and sends bytes behind the handshake. */
const early = (peer: Peer.Peer) => peer.send(`${asking("/echo")}early`)

describe("a listener in memory", () => {
  it.effect("runs a whole program: requests in a row, then a switch with bytes behind it", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      yield* peer.send(
        plain + message("POST /body HTTP/1.1", ["Host: a", "Content-Length: 5"], "hello") + asking("/echo")
      )
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      assert.strictEqual((yield* peer.receiveResponse).text, "HELLO")
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      yield* peer.send("ping")
      yield* peer.end
      assert.strictEqual(text(yield* peer.receiveAll), "ping")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("keeps a registry of what is switched, and it empties when the peer goes", () =>
    Effect.gen(function* () {
      const { connections } = yield* UpgradeServer.UpgradeServer
      const scope = yield* Scope.make()
      const peer = yield* Scope.extend(Memory.connect, scope)
      yield* early(peer)
      yield* peer.receiveUntil("early")
      const [connection] = yield* connections
      yield* Scope.close(scope, Exit.void)
      yield* Connection.awaitClosed(connection!)
      assert.deepStrictEqual(yield* connections, [])
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("tells where a connection comes from", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      yield* peer.send(message("GET /peer HTTP/1.1", ["Host: a"]))
      assert.strictEqual((yield* peer.receiveResponse).text, "127.0.0.1 IPv4")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("takes what any UpgradeServer takes, and Node's options", () =>
    Effect.gen(function* () {
      const first = yield* Memory.connect
      yield* early(first)
      yield* first.receiveHead
      const second = yield* Memory.connect
      yield* early(second)
      assert.strictEqual((yield* second.receiveResponse).status, 503)
      const third = yield* Memory.connect
      yield* third.send(message("GET /plain HTTP/1.1", ["Host: a", `X-Long: ${"x".repeat(500)}`]))
      assert.strictEqual((yield* third.receiveResponse).status, 431)
    }).pipe(Effect.scoped, Effect.provide(served({ maxConnections: 1, maxHeaderSize: 400 })))
  )

  it.effect("has its times on the Clock, which a test moves", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      yield* peer.send(asking("/never"))
      const answer = yield* Effect.fork(peer.receiveResponse)
      yield* awaitSleep
      yield* TestClock.adjust("60 seconds")
      assert.strictEqual((yield* Fiber.join(answer)).status, 503)
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.live("has Node watch over the time that a head takes", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      assert.strictEqual((yield* peer.receiveResponse).status, 408)
    }).pipe(
      Effect.scoped,
      Effect.provide(served({ headersTimeout: 1, requestTimeout: 1, connectionsCheckingInterval: 5 }))
    )
  )

  it.effect("ends its sessions when it closes, and takes no connection afterwards", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(served(), scope)
      const { connect } = Context.get(context, Memory.Memory)
      const peer = yield* connect
      yield* early(peer)
      yield* peer.receiveHead
      yield* Scope.close(scope, Exit.void)
      assert.notStrictEqual(yield* peer.closed, undefined)
      const late = yield* connect
      assert.strictEqual(yield* late.closed, "close")
    }).pipe(Effect.scoped)
  )

  it.effect("serves a client of Node's own, which switches", () =>
    Effect.gen(function* () {
      const { agent } = yield* Memory.Memory
      const echoed = yield* Effect.async<string>((resume) => {
        const request = http.request({ agent, path: "/echo", headers: { connection: "Upgrade", upgrade: "echo" } })
        request.on("upgrade", (_, socket: net.Socket) => {
          socket.end("by node:http")
          socket.on("data", (bytes: Buffer) => resume(Effect.succeed(text(bytes))))
        })
        request.end()
      })
      assert.strictEqual(echoed, "by node:http")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("serves a raw client: undici over one of its sockets", () =>
    Effect.gen(function* () {
      const socket = yield* Memory.socket
      const client = yield* Effect.acquireRelease(
        Effect.sync(
          () =>
            new Client("http://a", {
              connect: (_, callback) => setImmediate(callback, null, socket as net.Socket),
              pipelining: 1
            })
        ),
        (client) => Effect.promise(() => client.destroy())
      )
      const answer = yield* Effect.promise(async () => {
        const { body } = await client.request({ path: "/plain", method: "GET" })
        return body.text()
      })
      assert.strictEqual(answer, "plain")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("has an HttpClient for what is ordinary", () =>
    Effect.gen(function* () {
      const response = yield* HttpClientRequest.post("/body").pipe(
        HttpClientRequest.bodyText("a body"),
        HttpClient.execute
      )
      assert.strictEqual(yield* response.text, "A BODY")
      assert.strictEqual(yield* Effect.flatMap(HttpClient.get("/plain"), ({ text }) => text), "plain")
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(Memory.layerClient, served())))
  )
})

describe("a listener that stands in for another", () => {
  const whoami = Effect.map(Connection.currentWith(Connection.Tls), ({ socket }) =>
    HttpServerResponse.text(`${socket.getPeerCertificate().subject.CN} ${socket.encrypted}`)
  )

  const greeting = Upgrade.onUpgrade(Connection.Tls, Protocol.raw("greeting"), (upgraded) =>
    Upgraded.write(upgraded, `hello ${upgraded.socket.getPeerCertificate().subject.CN}`)
  )

  const secure = HttpRouter.empty.pipe(HttpRouter.get("/whoami", whoami), HttpRouter.get("/greeting", greeting))

  const alice = Memory.layerFor(Connection.Tls, {
    socket: (duplex) =>
      Object.assign(duplex, { getPeerCertificate: () => ({ subject: { CN: "alice" } }) }) as unknown as tls.TLSSocket
  })

  it.effect("answers for a certificate that the test has made up", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      yield* peer.send(message("GET /whoami HTTP/1.1", ["Host: a"]) + asking("/greeting", { token: "greeting" }))
      assert.strictEqual((yield* peer.receiveResponse).text, "alice true")
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(text(yield* peer.receiveAll), "hello alice")
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(secure), alice)))
  )

  it.effect("makes a real handshake, where the socket is a TLSSocket over the connection", () =>
    Effect.gen(function* () {
      const socket = yield* Memory.socket
      const client = tls.connect({ socket, ca: cert, key, cert, servername: "localhost", allowHalfOpen: true } as never)
      const peer = yield* Peer.fromDuplex(client, { transport: socket })
      yield* peer.send(message("GET /whoami HTTP/1.1", ["Host: a"]))
      assert.strictEqual((yield* peer.receiveResponse).text, "localhost true")
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.provideMerge(
          HttpServer.serve(secure),
          Memory.layerFor(Connection.Tls, {
            socket: (duplex) =>
              new tls.TLSSocket(duplex as net.Socket, { isServer: true, cert, key, ca: cert, requestCert: true })
          })
        )
      )
    )
  )

  interface Serial extends Duplex {
    readonly baudRate: number
  }

  class Line extends Context.Tag("test/Line")<Line, Connection.Listener<Serial>>() {}

  const line = Memory.layerFor(Line, { socket: (duplex) => Object.assign(duplex, { baudRate: 9600 }) })

  it.effect("may be a listener of the program's own, by its tag", () =>
    Effect.gen(function* () {
      const narrowed = yield* Deferred.make<boolean>()
      const handler = Upgrade.onUpgrade(Line, Protocol.raw("at"), (upgraded) =>
        Effect.zipRight(
          Upgraded.write(upgraded, `${upgraded.socket.baudRate}`),
          Deferred.succeed(narrowed, Either.isRight(Upgraded.downcast(upgraded, Line)))
        )
      )
      yield* Effect.gen(function* () {
        const peer = yield* Memory.connect
        yield* peer.send(asking("/", { token: "at" }))
        yield* peer.receiveHead
        assert.strictEqual(text(yield* peer.receiveAll), "9600")
        assert.isTrue(yield* Deferred.await(narrowed))
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(handler), line)))
    })
  )

  it.effect("does not pass its connections off as another listener's", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connect
      yield* peer.send(message("GET /whoami HTTP/1.1", ["Host: a"]))
      assert.strictEqual((yield* peer.receiveResponse).status, 426)
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(HttpServer.serve(secure), Layer.provideMerge(Memory.layer(), alice)))
    )
  )
})

describe("a bad network", () => {
  it.effect("splits what goes through, and loses nothing of it", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connectWith({ toServer: { split: 30 }, toClient: { split: 2 } })
      yield* early(peer)
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(text(yield* peer.receiveExactly(5)), "early")
      yield* peer.send("late")
      assert.strictEqual(text(yield* peer.receive), "la")
      assert.strictEqual(text(yield* peer.receive), "te")
      yield* peer.end
      assert.strictEqual(text(yield* peer.receiveAll), "")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("delays each piece, on the Clock", () =>
    Effect.gen(function* () {
      const [inner, outer] = yield* pipe
      const faulty = yield* Faults.through(inner, { toServer: { delay: "1 second", split: 3 } })
      const peer = yield* Peer.fromDuplex(faulty)
      yield* Effect.fork(peer.send("abcdef"))
      const first = yield* Effect.fork(outer.receive)
      yield* awaitSleep
      yield* TestClock.adjust("1 second")
      assert.strictEqual(text(yield* Fiber.join(first)), "abc")
      yield* awaitSleep
      const second = yield* Effect.fork(outer.receive)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(text(yield* Fiber.join(second)), "def")
    }).pipe(Effect.scoped)
  )

  it.effect("ends after so many bytes, and swallows the rest", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connectWith({ toClient: { endAt: 8 } })
      yield* peer.send(plain)
      assert.strictEqual(text(yield* peer.receiveAll), "HTTP/1.1")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("ends the request where it is told to, as a peer would", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connectWith({ toServer: { endAt: asking("/echo").length + 3 } })
      yield* early(peer)
      yield* peer.receiveHead
      assert.strictEqual(text(yield* peer.receiveAll), "ear")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.effect("resets at a byte, for both ends", () =>
    Effect.gen(function* () {
      const ended = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      const handler = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
        Effect.onExit(
          Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes)),
          (exit) => Deferred.succeed(ended, exit)
        )
      )
      yield* Effect.gen(function* () {
        const peer = yield* Memory.connectWith({ toServer: { resetAt: asking("/").length + 4 } })
        yield* peer.send(asking("/"))
        yield* peer.receiveHead
        yield* Effect.fork(peer.send("session"))
        assert.strictEqual(yield* peer.closed, "reset")
        const exit = yield* Deferred.await(ended)
        assert.isTrue(Exit.isFailure(exit) && String(exit.cause).includes("The peer reset the connection"))
      }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(handler), Memory.layer())))
    })
  )

  it.effect("resets before the first byte", () =>
    Effect.gen(function* () {
      const peer = yield* Memory.connectWith({ toClient: { resetAt: 0 } })
      assert.strictEqual(yield* peer.closed, "reset")
    }).pipe(Effect.scoped, Effect.provide(served()))
  )

  it.live("goes between any two ends, TCP among them", () =>
    Effect.gen(function* () {
      const { address } = yield* HttpServer.HttpServer
      const port = address._tag === "TcpAddress" ? address.port : 0
      const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true })
      const peer = yield* Effect.flatMap(Faults.through(socket, { toServer: { split: 7 } }), (socket) =>
        Peer.fromDuplex(socket)
      )
      yield* early(peer)
      yield* peer.end
      yield* peer.receiveHead
      assert.strictEqual(text(yield* peer.receiveAll), "early")
      const broken = net.connect({ port, host: "127.0.0.1" })
      const cut = yield* Effect.flatMap(Faults.through(broken, { toClient: { resetAt: 4 } }), (socket) =>
        Peer.fromDuplex(socket)
      )
      yield* cut.send(plain)
      assert.strictEqual(yield* cut.closed, "reset")
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.provideMerge(HttpServer.serve(router), UpgradeServer.layerNet({ port: 0, host: "127.0.0.1" }))
      )
    )
  )

  it.effect("loses both ends when it loses one, and what is on its way with them", () =>
    Effect.gen(function* () {
      const [inner, outer] = yield* pipe
      const peer = yield* Effect.flatMap(
        Faults.through(inner, { toClient: { split: 1, delay: "1 second" } }),
        (socket) => Peer.fromDuplex(socket)
      )
      yield* Effect.fork(outer.send("two"))
      yield* awaitSleep
      yield* TestClock.adjust("1 second")
      assert.strictEqual(text(yield* peer.receiveExactly(1)), "t")
      yield* peer.reset
      yield* awaitSleep
      yield* TestClock.adjust("2 seconds")
      assert.include(["reset", "close"], yield* outer.closed)
    }).pipe(Effect.scoped)
  )

  it.effect("stops a sender whose other side does not read", () =>
    Effect.gen(function* () {
      const [inner, outer] = yield* pipe
      const peer = yield* Effect.flatMap(Faults.through(inner, {}), (socket) => Peer.fromDuplex(socket))
      const flood = yield* Effect.fork(peer.send(Buffer.alloc(4 * 1024 * 1024)))
      yield* Effect.repeatN(turn, 50)
      assert.isTrue(Option.isNone(yield* Fiber.poll(flood)))
      assert.strictEqual((yield* outer.receiveExactly(4 * 1024 * 1024)).length, 4 * 1024 * 1024)
      yield* Fiber.join(flood)
    }).pipe(Effect.scoped)
  )
})
