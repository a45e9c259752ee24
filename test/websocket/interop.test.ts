/** What is written against the platform's sockets runs over this library's websockets, and cannot tell. */
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import * as HttpLayerRouter from "@effect/platform/HttpLayerRouter"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Socket from "@effect/platform/Socket"
import * as SocketServer from "@effect/platform/SocketServer"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Rpc from "@effect/rpc/Rpc"
import * as RpcClient from "@effect/rpc/RpcClient"
import * as RpcGroup from "@effect/rpc/RpcGroup"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import * as RpcServer from "@effect/rpc/RpcServer"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Client from "ws"
import { UpgradeServer, WebSocket } from "../../src/index.js"
import { connected, serveLayer, turns, until } from "../appSupport.js"

// --------------------------------------------------------------------------------------------------------------- RPC

const group = RpcGroup.make(
  Rpc.make("Double", { payload: { n: Schema.Number }, success: Schema.Number, error: Schema.String }),
  Rpc.make("Count", { payload: { to: Schema.Number }, success: Schema.Number, stream: true })
)

const handlers = group.toLayer({
  Double: ({ n }) => (n < 0 ? Effect.fail("negative") : Effect.succeed(n * 2)),
  Count: ({ to }) => Stream.range(1, to)
})

/** An `@effect/rpc` server at `/rpc`, by each way that its protocol can come by a websocket here. */
const rpcServers: ReadonlyArray<readonly [name: string, app: Layer.Layer<never, never, HttpServer.HttpServer>]> = [
  [
    "HttpServerRequest.upgrade in an HttpRouter",
    HttpRouter.Default.serve().pipe(
      Layer.provide(RpcServer.layer(group)),
      Layer.provide(handlers),
      Layer.provide(RpcServer.layerProtocolWebsocket({ path: "/rpc" })),
      Layer.provide(RpcSerialization.layerJson)
    )
  ],
  [
    "HttpServerRequest.upgrade in an HttpLayerRouter",
    HttpLayerRouter.serve(
      RpcServer.layerHttpRouter({ group, path: "/rpc", protocol: "websocket" }).pipe(
        Layer.provide(handlers),
        Layer.provide(RpcSerialization.layerJson)
      )
    ) as Layer.Layer<never, never, HttpServer.HttpServer>
  ],
  [
    "a SocketServer on a route",
    Layer.unwrapEffect(
      Effect.map(WebSocket.socketServer(), ({ httpApp, socketServer }) =>
        Layer.merge(
          HttpRouter.empty.pipe(HttpRouter.get("/rpc", httpApp), HttpServer.serve()),
          RpcServer.layer(group).pipe(
            Layer.provide(handlers),
            Layer.provide(RpcServer.layerProtocolSocketServer),
            Layer.provide(RpcSerialization.layerJson),
            Layer.provide(Layer.succeed(SocketServer.SocketServer, socketServer))
          )
        )
      )
    )
  ]
]

const ours = (url: string): Layer.Layer<Socket.Socket, never, never> =>
  Layer.scoped(Socket.Socket, Effect.map(Effect.orDie(WebSocket.connect(url)), WebSocket.toSocket))

const rpcClients: ReadonlyArray<readonly [name: string, socket: (url: string) => Layer.Layer<Socket.Socket>]> = [
  ["the platform's own websocket", (url) => NodeSocket.layerWebSocket(url)],
  ["WebSocket.connect and toSocket", ours]
]

describe("@effect/rpc", () => {
  for (const [server, app] of rpcServers) {
    for (const [client, socket] of rpcClients) {
      it.scopedLive(`answers and streams over ${server}, for a client over ${client}`, () =>
        Effect.gen(function* () {
          const served = yield* serveLayer(app)
          const protocol = RpcClient.layerProtocolSocket().pipe(
            Layer.provide(socket(`ws://127.0.0.1:${served.port}/rpc`)),
            Layer.provide(RpcSerialization.layerJson)
          )
          yield* Effect.gen(function* () {
            const rpc = yield* RpcClient.make(group)
            assert.strictEqual(yield* rpc.Double({ n: 21 }), 42)
            assert.strictEqual(yield* Effect.flip(rpc.Double({ n: -1 })), "negative")
            const [counted, doubled] = yield* Effect.all(
              [
                Stream.runCollect(rpc.Count({ to: 1000 })),
                Effect.forEach([1, 2, 3], (n) => rpc.Double({ n }), { concurrency: "unbounded" })
              ],
              { concurrency: "unbounded" }
            )
            assert.deepStrictEqual(
              [...counted],
              Array.from({ length: 1000 }, (_, i) => i + 1)
            )
            assert.deepStrictEqual(doubled, [2, 4, 6])
            // One that takes a part stops the stream, and the connection serves on
            const some = yield* Stream.runCollect(Stream.take(rpc.Count({ to: 100_000 }), 3))
            assert.deepStrictEqual([...some], [1, 2, 3])
            assert.strictEqual(yield* rpc.Double({ n: 4 }), 8)
          }).pipe(Effect.scoped, Effect.provide(protocol))
          yield* connected(served.server, 0)
        })
      )
    }
  }
})

// ---------------------------------------------------------------------------------- the platform's Socket, and this one

type CloseCodeIsError = (code: number) => boolean

interface Opened {
  readonly socket: Socket.Socket
  /** The other end, by `ws`, once they are connected. */
  readonly peer: Effect.Effect<Client.WebSocket>
}

type Open = (closeCodeIsError?: CloseCodeIsError) => Effect.Effect<Opened, unknown, Scope.Scope>

interface End {
  readonly name: string
  readonly open: Open
  /** It is opened by each `run`, and closed with it. */
  readonly isLazy: boolean
  /** It can be told which codes are errors. */
  readonly isTold: boolean
}

const optionsOf = (closeCodeIsError: CloseCodeIsError | undefined) =>
  closeCodeIsError === undefined ? {} : { closeCodeIsError }

const inboxes = new WeakMap<Client.WebSocket, Queue.Queue<string>>()

/** From its first message on. */
const heard = (peer: Client.WebSocket): Client.WebSocket => {
  const inbox = Effect.runSync(Queue.unbounded<string>())
  inboxes.set(peer, inbox)
  return peer.on("message", (data) => Queue.unsafeOffer(inbox, String(data)))
}

const messageOf = (peer: Client.WebSocket): Effect.Effect<string> => Queue.take(inboxes.get(peer)!)

/** A server of `ws`, and its ends of the websockets that clients open. */
const wsServer = Effect.gen(function* () {
  const peers = yield* Queue.unbounded<Client.WebSocket>()
  const server = yield* Effect.acquireRelease(
    Effect.async<Client.WebSocketServer>((resume) => {
      const server = new Client.WebSocketServer({ port: 0, host: "127.0.0.1" })
      server.on("listening", () => resume(Effect.succeed(server)))
      server.on("connection", (peer) => Queue.unsafeOffer(peers, heard(peer)))
    }),
    (server) =>
      Effect.sync(() => {
        server.clients.forEach((client) => client.terminate())
        server.close()
      })
  )
  return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}`, peer: Queue.take(peers) }
})

const wsClient = (port: number): Effect.Effect<Client.WebSocket, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<Client.WebSocket>((resume) => {
      const client = heard(new Client.WebSocket(`ws://127.0.0.1:${port}`))
      client.once("open", () => resume(Effect.succeed(client)))
    }),
    (client) => Effect.sync(() => client.terminate())
  )

/** The server's end, as `HttpServerRequest.upgrade` gives it. */
const fromRequest = (
  serving: (app: Layer.Layer<never, never, HttpServer.HttpServer>) => Layer.Layer<HttpServer.HttpServer, unknown>
) =>
  Effect.gen(function* () {
    const sockets = yield* Queue.unbounded<Socket.Socket>()
    const over = yield* Deferred.make<void>()
    const app = HttpServer.serve(
      Effect.gen(function* () {
        yield* Queue.offer(sockets, yield* HttpServerRequest.upgrade)
        yield* Deferred.await(over)
        return HttpServerResponse.empty()
      })
    )
    const context = yield* Layer.build(serving(app))
    const { address } = Context.get(context, HttpServer.HttpServer)
    const peer = yield* Effect.forkScoped(wsClient(address._tag === "TcpAddress" ? address.port : 0))
    yield* Effect.addFinalizer(() => Deferred.succeed(over, undefined))
    return { socket: yield* Queue.take(sockets), peer: Fiber.join(peer) }
  })

const ends: ReadonlyArray<End> = [
  {
    name: "the platform's websocket client",
    isLazy: true,
    isTold: true,
    open: (closeCodeIsError) =>
      Effect.gen(function* () {
        const { peer, url } = yield* wsServer
        // By `ws` on every Node: what Node has of its own from 22 on tells of a lost peer as an error
        const socket = yield* Socket.makeWebSocket(url, optionsOf(closeCodeIsError)).pipe(
          Effect.provideService(
            Socket.WebSocketConstructor,
            (url, protocols) => new Client.WebSocket(url, protocols) as unknown as globalThis.WebSocket
          )
        )
        return { socket, peer }
      })
  },
  {
    name: "toSocket of WebSocket.connect",
    isLazy: false,
    isTold: true,
    open: (closeCodeIsError) =>
      Effect.gen(function* () {
        const { peer, url } = yield* wsServer
        const ws = yield* WebSocket.connect(url)
        return { socket: WebSocket.toSocket(ws, optionsOf(closeCodeIsError)), peer }
      })
  },
  {
    name: "HttpServerRequest.upgrade of the platform's server",
    isLazy: true,
    isTold: false,
    open: () =>
      fromRequest((app) =>
        Layer.provideMerge(
          app,
          NodeHttpServer.layer(() => Http.createServer(), { port: 0, host: "127.0.0.1" })
        )
      )
  },
  {
    name: "HttpServerRequest.upgrade under UpgradeServer",
    isLazy: true,
    isTold: false,
    open: () => fromRequest((app) => Layer.provideMerge(app, UpgradeServer.layerNet({ port: 0, host: "127.0.0.1" })))
  },
  {
    name: "toSocket of WebSocket.upgrade",
    isLazy: false,
    isTold: true,
    open: (closeCodeIsError) =>
      Effect.gen(function* () {
        const sockets = yield* Queue.unbounded<Socket.Socket>()
        const { port } = yield* serveLayer(
          HttpServer.serve(
            WebSocket.onUpgrade((ws) =>
              Effect.zipRight(
                Queue.offer(sockets, WebSocket.toSocket(ws, optionsOf(closeCodeIsError))),
                Effect.ignore(WebSocket.awaitClosed(ws))
              )
            )
          )
        )
        const peer = yield* wsClient(port)
        return { socket: yield* Queue.take(sockets), peer: Effect.succeed(peer) }
      })
  }
]

/** Until the peer has seen the end, and as what. */
const closedAs = (peer: Client.WebSocket) =>
  Effect.async<{ readonly code: number; readonly reason: string }>((resume) => {
    peer.once("close", (code, reason) => resume(Effect.succeed({ code, reason: reason.toString() })))
  })

/** How a run ends when the peer ends it in this way. */
const endedBy = (open: Open, end: (peer: Client.WebSocket) => void, closeCodeIsError?: CloseCodeIsError) =>
  Effect.gen(function* () {
    const { peer, socket } = yield* open(closeCodeIsError)
    const isOpen = yield* Deferred.make<void>()
    const run = yield* Effect.fork(
      socket.runRaw(() => {}, { onOpen: Effect.asVoid(Deferred.succeed(isOpen, undefined)) })
    )
    const other = yield* peer
    yield* Deferred.await(isOpen)
    end(other)
    return yield* Fiber.await(run)
  })

const codeOf = (exit: Exit.Exit<void, Socket.SocketError>) =>
  Exit.match(exit, {
    onSuccess: () => "success" as const,
    onFailure: (cause) => {
      const error = Cause.squash(cause)
      return Socket.SocketCloseError.is(error) ? ([error.code, error.closeReason] as const) : error
    }
  })

for (const { isLazy, isTold, name, open } of ends) {
  describe(`a Socket that is ${name}`, () => {
    it.scopedLive("gives text as a string to runRaw, and bytes as bytes", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const received: Array<string | Uint8Array> = []
        const run = yield* Effect.fork(socket.runRaw((message) => void received.push(message)))
        const other = yield* peer
        other.send("text")
        other.send(Buffer.from([1, 2]))
        other.close(1000)
        yield* Fiber.join(run)
        assert.deepStrictEqual(
          received.map((message) => (typeof message === "string" ? message : [...message])),
          ["text", [1, 2]]
        )
      })
    )

    it.scopedLive("gives all messages as bytes to run", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const received: Array<Uint8Array> = []
        const run = yield* Effect.fork(socket.run((message) => Effect.sync(() => received.push(message))))
        const other = yield* peer
        other.send("é")
        other.send(Buffer.from([1, 2]))
        other.close(1000)
        yield* Fiber.join(run)
        assert.deepStrictEqual(
          received.map((bytes) => [...bytes]),
          [
            [0xc3, 0xa9],
            [1, 2]
          ]
        )
      })
    )

    it.scopedLive("ends well with 1000, and where the peer is gone, and fails with every other code", () =>
      Effect.gen(function* () {
        assert.strictEqual(codeOf(yield* endedBy(open, (peer) => peer.close(1000))), "success")
        assert.strictEqual(codeOf(yield* endedBy(open, (peer) => peer.terminate())), "success")
        assert.deepStrictEqual(codeOf(yield* endedBy(open, (peer) => peer.close(4001, "why"))), [4001, "why"])
        assert.deepStrictEqual(codeOf(yield* endedBy(open, (peer) => peer.close(1001))), [1001, ""])
        assert.deepStrictEqual(codeOf(yield* endedBy(open, (peer) => peer.close())), [1005, ""])
      })
    )

    if (isTold) {
      it.scopedLive("asks closeCodeIsError", () =>
        Effect.gen(function* () {
          const asked: Array<number> = []
          const ask = (answer: boolean) => (code: number) => {
            asked.push(code)
            return answer
          }
          assert.strictEqual(codeOf(yield* endedBy(open, (peer) => peer.close(4001), ask(false))), "success")
          assert.deepStrictEqual(codeOf(yield* endedBy(open, (peer) => peer.close(1000), ask(true))), [1000, ""])
          assert.deepStrictEqual(asked, [4001, 1000])
        })
      )
    }

    it.scopedLive("sends what is written before it runs, once it does", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const write = yield* socket.writer
        const writing = yield* Effect.fork(
          Effect.forEach(["one", Buffer.from("two")], (message) => write(message), { discard: true })
        )
        yield* Effect.yieldNow()
        const run = yield* Effect.fork(socket.runRaw(() => {}))
        const other = yield* peer
        assert.deepStrictEqual(yield* Effect.replicateEffect(messageOf(other), 2), ["one", "two"])
        yield* Fiber.join(writing)
        other.close(1000)
        yield* Fiber.join(run)
      })
    )

    it.scopedLive("closes with a CloseEvent that is written, and runs up to the peer's answer", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const run = yield* Effect.fork(socket.runRaw(() => {}))
        const other = yield* peer
        const write = yield* socket.writer
        const closed = yield* Effect.fork(closedAs(other))
        yield* Effect.yieldNow()
        yield* write(new Socket.CloseEvent(4002, "enough"))
        // Too late for the wire, and no failure
        yield* write("lost")
        assert.deepStrictEqual(yield* Fiber.join(closed), { code: 4002, reason: "enough" })
        assert.deepStrictEqual(codeOf(yield* Fiber.await(run)), [4002, "enough"])
      })
    )

    it.scopedLive("begins a handler for each message, that waits for no other", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const second = yield* Deferred.make<void>()
        const order: Array<string> = []
        const write = yield* socket.writer
        const run = yield* Effect.fork(
          socket.runRaw((message) =>
            message === "first"
              ? Deferred.await(second).pipe(
                  Effect.zipRight(Effect.sync(() => order.push("first"))),
                  Effect.zipRight(write("done"))
                )
              : Effect.zipRight(
                  Effect.sync(() => order.push(String(message))),
                  Deferred.succeed(second, undefined)
                )
          )
        )
        const other = yield* peer
        const done = yield* Effect.fork(messageOf(other))
        other.send("first")
        other.send("second")
        assert.strictEqual(yield* Fiber.join(done), "done")
        assert.deepStrictEqual(order, ["second", "first"])
        other.close(1000)
        yield* Fiber.join(run)
      })
    )

    it.scopedLive("fails with what a handler fails with, at once or later, and interrupts the others", () =>
      Effect.gen(function* () {
        for (const later of [false, true]) {
          const { peer, socket } = yield* open()
          let interrupted = 0
          const run = yield* Effect.fork(
            socket.runRaw((message) =>
              message === "wait"
                ? Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
                : Effect.zipRight(later ? Effect.promise(() => Promise.resolve()) : Effect.void, Effect.fail("mine"))
            )
          )
          const other = yield* peer
          other.send("wait")
          other.send("fail")
          assert.strictEqual(yield* Effect.flip(Fiber.join(run)), "mine")
          assert.strictEqual(interrupted, 1)
        }
      })
    )

    it.scopedLive("dies of what a handler dies of", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const run = yield* Effect.fork(socket.runRaw(() => Effect.die("mine")))
        const other = yield* peer
        other.send("die")
        const exit = yield* Fiber.await(run)
        assert.isTrue(Exit.isFailure(exit) && Cause.isDie(exit.cause))
      })
    )

    if (isLazy) {
      it.scopedLive("is closed when its run is interrupted", () =>
        Effect.gen(function* () {
          const { peer, socket } = yield* open()
          const isOpen = yield* Deferred.make<void>()
          const run = yield* Effect.fork(
            socket.runRaw(() => {}, { onOpen: Effect.asVoid(Deferred.succeed(isOpen, undefined)) })
          )
          const other = yield* peer
          yield* Deferred.await(isOpen)
          const closed = yield* Effect.fork(closedAs(other))
          yield* Effect.yieldNow()
          yield* Fiber.interrupt(run)
          yield* Fiber.join(closed)
        })
      )
    }

    it.scopedLive("is a channel by Socket.toChannel", () =>
      Effect.gen(function* () {
        const { peer, socket } = yield* open()
        const lines = yield* Effect.fork(
          Stream.make("hello").pipe(
            Stream.concat(Stream.never),
            Stream.pipeThroughChannel(Socket.toChannelString(socket)),
            Stream.runCollect
          )
        )
        const other = yield* peer
        assert.strictEqual(yield* messageOf(other), "hello")
        other.send("a")
        other.send("b")
        other.close(1000)
        assert.deepStrictEqual([...(yield* Fiber.join(lines))], ["a", "b"])
      })
    )
  })
}

describe("a Socket over a websocket of this library", () => {
  it.scopedLive("stops its peer where 128 handlers are at work", () =>
    Effect.gen(function* () {
      const { peer, socket } = yield* ends.find(({ name }) => name === "toSocket of WebSocket.upgrade")!.open()
      const gate = yield* Effect.makeLatch(false)
      let begun = 0
      const run = yield* Effect.fork(
        socket.runRaw(() => {
          begun++
          return gate.await
        })
      )
      const other = yield* peer
      for (let i = 0; i < 300; i++) {
        other.send(String(i))
      }
      other.close(1000)
      yield* until(() => begun === 128)
      yield* turns(20)
      assert.strictEqual(begun, 128)
      yield* gate.open
      yield* Fiber.join(run)
      assert.strictEqual(begun, 300)
    })
  )
})

describe("a SocketServer on a route", () => {
  const serving = (options?: WebSocket.Options) =>
    Effect.gen(function* () {
      const made = yield* Deferred.make<Effect.Effect.Success<ReturnType<typeof WebSocket.socketServer>>>()
      const served = yield* serveLayer(
        Layer.unwrapEffect(
          Effect.map(
            Effect.tap(WebSocket.socketServer(options), (both) => Deferred.succeed(made, both)),
            ({ httpApp }) => HttpRouter.empty.pipe(HttpRouter.get("/", httpApp), HttpServer.serve())
          )
        )
      )
      return { ...served, ...(yield* Deferred.await(made)) }
    })

  it.scopedLive("has the address of the HTTP server, and gives its sockets to whoever runs it", () =>
    Effect.gen(function* () {
      const { port, server, socketServer } = yield* serving()
      assert.deepStrictEqual(socketServer.address, { _tag: "TcpAddress", hostname: "127.0.0.1", port })
      // Whoever connects before that waits.
      const early = yield* Effect.fork(wsClient(port))
      yield* turns(5)
      const run = yield* Effect.fork(
        socketServer.run((socket) =>
          Effect.scoped(Effect.flatMap(socket.writer, (write) => socket.runRaw((message) => write(message))))
        )
      )
      const client = yield* Fiber.join(early)
      client.send("one")
      assert.strictEqual(yield* messageOf(client), "one")
      const closed = yield* Effect.fork(closedAs(client))
      yield* Effect.yieldNow()
      yield* Fiber.interrupt(run)
      assert.strictEqual((yield* Fiber.join(closed)).code, 1001)
      yield* connected(server, 0)
    })
  )

  it.scopedLive("survives a handler that fails or dies, and closes its websocket with 1011", () =>
    Effect.gen(function* () {
      const { port, socketServer } = yield* serving()
      yield* Effect.forkScoped(
        socketServer.run((socket) =>
          socket.runRaw((message) => (message === "die" ? Effect.die("mine") : Effect.fail("mine")))
        )
      )
      for (const message of ["die", "fail"]) {
        const client = yield* wsClient(port)
        client.send(message)
        assert.strictEqual((yield* closedAs(client)).code, 1011)
      }
    })
  )

  it.scopedLive("refuses what no websocket of its options may come from", () =>
    Effect.gen(function* () {
      const { port, socketServer } = yield* serving({ subprotocols: ["a"], requireSubprotocol: true })
      yield* Effect.forkScoped(socketServer.run(() => Effect.void))
      const statusOf = (protocols: ReadonlyArray<string>, origin?: string) =>
        Effect.async<number | undefined>((resume) => {
          const client = new Client.WebSocket(`ws://127.0.0.1:${port}`, [...protocols], origin ? { origin } : {})
          client.once("unexpected-response", (_request, response) => resume(Effect.succeed(response.statusCode)))
          client.once("open", () => resume(Effect.succeed(101)))
        })
      assert.strictEqual(yield* statusOf(["a"]), 101)
      assert.strictEqual(yield* statusOf([]), 400)
      assert.strictEqual(yield* statusOf(["a"], "https://other.example"), 403)
    })
  )
})
