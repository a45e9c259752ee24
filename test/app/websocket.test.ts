import { once } from "node:events"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Rpc from "@effect/rpc/Rpc"
import * as RpcClient from "@effect/rpc/RpcClient"
import * as RpcGroup from "@effect/rpc/RpcGroup"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import * as RpcServer from "@effect/rpc/RpcServer"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { WebSocket } from "ws"
import { Protocol, Upgrade } from "../../src/index.js"
import { ask, connected, decode, echo, echoing, get, outcome, serve, serveLayer, until } from "../appSupport.js"

const echoSocket = Effect.gen(function* () {
  const socket = yield* HttpServerRequest.upgrade
  const write = yield* socket.writer
  yield* socket.runRaw((message) => write(message))
  return HttpServerResponse.empty()
})

const client = (port: number, path = "/ws") =>
  Effect.acquireRelease(
    Effect.sync(() => new WebSocket(`ws://127.0.0.1:${port}${path}`)),
    (socket) => Effect.sync(() => socket.terminate())
  )

const exchange = (socket: WebSocket, message: string) =>
  Effect.promise(async () => {
    const answered = once(socket, "message")
    socket.send(message)
    const [data] = await answered
    return String(data)
  })

const opened = (socket: WebSocket) => Effect.promise(() => once(socket, "open"))

describe("HttpServerRequest.upgrade of the platform", () => {
  it.scoped("keeps working, beside switches and ordinary requests, in a router", () =>
    Effect.gen(function* () {
      const { port, send, server } = yield* serveLayer(
        HttpRouter.empty.pipe(
          HttpRouter.get("/ws", echoSocket),
          HttpRouter.get("/echo", Upgrade.onUpgrade(echo, echoing)),
          HttpRouter.get("/plain", HttpServerResponse.text("plain")),
          HttpServer.serve()
        )
      )
      const socket = yield* client(port)
      yield* opened(socket)
      assert.strictEqual(yield* exchange(socket, "one"), "one")
      const big = "x".repeat(100_000)
      assert.strictEqual(yield* exchange(socket, big), big)
      yield* connected(server, 1)
      const peer = yield* send(get("/plain"))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      yield* peer.send(ask({ body: "early" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      socket.close(1000)
      yield* Effect.promise(() => once(socket, "close"))
      yield* connected(server, 1)
    })
  )

  it.scoped("has the frames that came with the handshake", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(echoSocket)
      // A masked text frame "hi", the mask being zero
      const frame = Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69])
      const head = ask({
        upgrade: "websocket",
        fields: { "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" }
      })
      const peer = yield* send(Buffer.concat([Buffer.from(head), frame]))
      const response = yield* peer.receiveHead
      assert.strictEqual(response.status, 101)
      assert.strictEqual(response.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
      assert.deepStrictEqual([...(yield* peer.receiveExactly(4))], [0x81, 2, 0x68, 0x69])
    })
  )

  it.scoped("is told by a request that was modified, and mounted", () =>
    Effect.gen(function* () {
      const { port } = yield* serveLayer(
        HttpRouter.empty.pipe(
          HttpRouter.mount("/v1", HttpRouter.empty.pipe(HttpRouter.get("/ws", echoSocket))),
          HttpServer.serve()
        )
      )
      const socket = yield* client(port, "/v1/ws")
      yield* opened(socket)
      assert.strictEqual(yield* exchange(socket, "one"), "one")
    })
  )

  it.scoped("waits for the responses before it, which ws itself does not", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          request.url === "/slow"
            ? Effect.promise(() => new Promise((resolve) => setImmediate(resolve))).pipe(
                Effect.as(HttpServerResponse.text("slow"))
              )
            : echoSocket
        )
      )
      const head = ask({
        upgrade: "websocket",
        fields: { "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" }
      })
      const peer = yield* send(get("/slow") + head)
      assert.strictEqual((yield* peer.receiveResponse).text, "slow")
      assert.strictEqual((yield* peer.receiveHead).status, 101)
    })
  )

  const websocket = (fields = {}) =>
    ask({
      upgrade: "websocket",
      fields: { "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13", ...fields }
    })

  it.scoped("has the connection: who then asks for another switch is told AlreadyUpgraded", () =>
    Effect.gen(function* () {
      const told = outcome<string, never>()
      const { send } = yield* serve(
        Effect.gen(function* () {
          const socket = yield* HttpServerRequest.upgrade
          yield* socket.runRaw(() =>
            Effect.flatMap(Effect.flip(Upgrade.upgrade(Protocol.raw("websocket"))), ({ _tag }) =>
              Deferred.succeed(told, _tag)
            )
          )
          return HttpServerResponse.empty()
        })
      )
      const peer = yield* send(websocket())
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      yield* peer.send(Buffer.from([0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69]))
      assert.strictEqual(yield* Deferred.await(told), "AlreadyUpgraded")
    })
  )

  it.scoped("fails where the request's body ends too soon, and the client gets 400", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(echoSocket)
      const peer = yield* send(`${websocket({ "Content-Length": "10" })}half`)
      yield* peer.end
      assert.strictEqual((yield* peer.receiveResponse).status, 400)
      yield* peer.closed
      yield* connected(server, 0)
    })
  )

  it.scoped("is closed at once behind a shutdown's drain", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(echoSocket)
      yield* server.drain
      const peer = yield* send(websocket())
      yield* peer.closed
      yield* connected(server, 0)
    })
  )

  it.scoped("is refused with its own status where the handshake is wrong, and nothing is left", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(echoSocket, { websocket: { origin: "same-host" } })
      const key = { "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==" }
      const version = { "Sec-WebSocket-Version": "13" }
      const cases = [
        { upgrade: "websocket", fields: version, status: 400 },
        { upgrade: "websocket", fields: { ...key, "Sec-WebSocket-Version": "8" }, status: 426 },
        { upgrade: "websocket", fields: { ...key, ...version, Origin: "https://other.example" }, status: 403 },
        { upgrade: "websocket", fields: { ...key, ...version, "Sec-WebSocket-Protocol": "a,,b" }, status: 400 },
        { upgrade: "chat", fields: { ...key, ...version }, status: 426 }
      ]
      for (const { fields, status, upgrade } of cases) {
        const peer = yield* send(ask({ upgrade, fields }))
        const response = yield* peer.receiveResponse
        assert.strictEqual(response.status, status)
        assert.strictEqual(
          response.headers["sec-websocket-version"],
          upgrade === "websocket" && status === 426 ? "13" : undefined
        )
      }
      const posted = yield* send(ask({ method: "POST", upgrade: "websocket", fields: { ...key, ...version } }))
      assert.strictEqual((yield* posted.receiveResponse).status, 405)
      const plain = yield* send(get("/"))
      assert.strictEqual((yield* plain.receiveResponse).status, 400)
      yield* connected(server, 0)
    })
  )

  it.scoped("lets the app answer a refusal in its own way, which may die of it", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          request.url === "/own"
            ? Effect.catchTag(echoSocket, "SocketError", (error) =>
                HttpServerResponse.text(`${error.reason}: ${error.message}`, { status: 418 })
              )
            : Effect.orDie(echoSocket)
        )
      )
      const own = yield* send(ask({ path: "/own", upgrade: "chat" }))
      const answer = yield* own.receiveResponse
      assert.strictEqual(answer.status, 418)
      assert.match(answer.text, /^Open: .*websocket/)
      const dying = yield* send(ask({ path: "/", upgrade: "chat" }))
      assert.strictEqual((yield* dying.receiveResponse).status, 426)
    })
  )

  it.scoped(
    "agrees on the first subprotocol of the client, where the server lists none, and on its own where it does",
    () =>
      Effect.gen(function* () {
        const fields = {
          "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
          "Sec-WebSocket-Version": "13",
          "Sec-WebSocket-Protocol": "a, b"
        }
        const { send } = yield* serve(echoSocket)
        const peer = yield* send(ask({ upgrade: "websocket", fields }))
        assert.strictEqual((yield* peer.receiveHead).headers["sec-websocket-protocol"], "a")
        const listing = yield* serve(echoSocket, { websocket: { subprotocols: ["b"] } })
        const other = yield* listing.send(ask({ upgrade: "websocket", fields }))
        assert.strictEqual((yield* other.receiveHead).headers["sec-websocket-protocol"], "b")
      })
  )

  it.scoped("ends with its socket: a reset harms nobody, and the registry is empty", () =>
    Effect.gen(function* () {
      const { node, port, server } = yield* serve(echoSocket)
      let sockets = 0
      node.on("connection", (socket) => {
        sockets = sockets + 1
        socket.once("close", () => {
          sockets = sockets - 1
        })
      })
      const socket = yield* client(port)
      yield* opened(socket)
      assert.strictEqual(yield* exchange(socket, "one"), "one")
      socket.terminate()
      yield* until(() => sockets === 0)
      yield* connected(server, 0)
    })
  )
})

describe("an RPC server over the platform's websocket", () => {
  const group = RpcGroup.make(
    Rpc.make("Double", { payload: { n: Schema.Number }, success: Schema.Number }),
    Rpc.make("Count", { payload: { to: Schema.Number }, success: Schema.Number, stream: true })
  )

  it.scopedLive("answers and streams, for @effect/rpc's own client", () =>
    Effect.gen(function* () {
      const { port } = yield* serveLayer(
        HttpRouter.Default.serve().pipe(
          Layer.provide(RpcServer.layer(group)),
          Layer.provide(
            group.toLayer({
              Double: ({ n }) => Effect.succeed(n * 2),
              Count: ({ to }) => Stream.range(1, to)
            })
          ),
          Layer.provide(RpcServer.layerProtocolWebsocket({ path: "/rpc" })),
          Layer.provide(RpcSerialization.layerJson)
        )
      )
      const protocol = RpcClient.layerProtocolSocket().pipe(
        Layer.provide(NodeSocket.layerWebSocket(`ws://127.0.0.1:${port}/rpc`)),
        Layer.provide(RpcSerialization.layerJson)
      )
      yield* Effect.gen(function* () {
        const rpc = yield* RpcClient.make(group)
        assert.strictEqual(yield* rpc.Double({ n: 21 }), 42)
        const counted = yield* Stream.runCollect(rpc.Count({ to: 3 }))
        assert.deepStrictEqual([...counted], [1, 2, 3])
      }).pipe(Effect.scoped, Effect.provide(protocol))
    })
  )
})
