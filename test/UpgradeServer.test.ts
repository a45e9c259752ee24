import { existsSync, mkdtempSync } from "node:fs"
import * as Http from "node:http"
import * as Https from "node:https"
import type * as net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as FileSystem from "@effect/platform/FileSystem"
import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import { ServeError } from "@effect/platform/HttpServerError"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Connection, Upgrade, UpgradeServer } from "../src/index.js"
import * as Peer from "../src/testing/Peer.js"
import { ask, decode, echo, echoing, get, serve } from "./appSupport.js"
import { cert, key } from "./testing/certificate.js"

const host = "127.0.0.1"

const app = HttpServer.serve(
  HttpRouter.empty.pipe(
    HttpRouter.get("/plain", HttpServerResponse.text("plain")),
    HttpRouter.get("/echo", Upgrade.onUpgrade(echo, echoing))
  )
)

/** Builds the layer under the app, and switches a connection of it. */
const works = <R>(layer: Layer.Layer<R | UpgradeServer.Provided, unknown>, secure = false) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(Layer.provideMerge(app, layer as Layer.Layer<UpgradeServer.Provided, unknown>))
    const { address } = Context.get(context, HttpServer.HttpServer)
    assert.deepStrictEqual(Context.get(context, UpgradeServer.UpgradeServer).address, address)
    // All that NodeHttpServer.layer provides
    assert.isDefined(Context.get(context, FileSystem.FileSystem))
    const peer = yield* Peer.connect(
      address._tag === "UnixAddress"
        ? { path: address.path }
        : { port: address.port, ...(secure ? { tls: { rejectUnauthorized: false } } : {}) }
    )
    yield* peer.send(get("/plain"))
    assert.strictEqual((yield* peer.receiveResponse).text, "plain")
    yield* peer.send(ask({ body: "early" }))
    assert.strictEqual((yield* peer.receiveHead).status, 101)
    assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
    const has = (tag: Context.Tag<any, any>) => context.unsafeMap.has(tag.key)
    return { address, net: has(Connection.Net), tls: has(Connection.Tls) }
  })

describe("a listener's layer", () => {
  it.scoped("is layer, with Net for an http.Server", () =>
    Effect.gen(function* () {
      const { net, tls } = yield* works(UpgradeServer.layer(() => Http.createServer(), { port: 0, host }))
      assert.deepStrictEqual([net, tls], [true, false])
    })
  )

  it.scoped("is layer, with Tls for an https.Server, also where its type says http", () =>
    Effect.gen(function* () {
      const server = (): Http.Server => Https.createServer({ cert, key })
      const { tls } = yield* works(UpgradeServer.layer(server, { port: 0, host }), true)
      assert.isTrue(tls)
    })
  )

  it.scoped("is layerNet", () => works(UpgradeServer.layerNet({ port: 0, host, keepAliveTimeout: 1000 })))

  it.scoped("is layerTls", () => works(UpgradeServer.layerTls({ port: 0, host, cert, key }), true))

  it.scoped("is layerUnix, whose path is gone when it has closed", () =>
    Effect.gen(function* () {
      const path = join(mkdtempSync(join(tmpdir(), "effect-upgrade-")), "socket")
      const { address } = yield* Effect.scoped(works(UpgradeServer.layerUnix({ path })))
      assert.deepStrictEqual(address, { _tag: "UnixAddress", path })
      assert.isFalse(existsSync(path))
    })
  )

  it.scoped("is layerConfig, from the configuration", () =>
    Effect.gen(function* () {
      const provider = ConfigProvider.fromMap(new Map([["HOST", host]]))
      yield* works(
        UpgradeServer.layerConfig(() => Http.createServer(), {
          port: Config.succeed(0),
          host: Config.string("HOST")
        }).pipe(Layer.provide(Layer.setConfigProvider(provider)))
      )
    })
  )

  it.scoped("is layerTest, with a client whose requests go to it", () =>
    Effect.gen(function* () {
      const context = yield* Layer.build(
        Layer.provideMerge(app, UpgradeServer.layerTest as Layer.Layer<UpgradeServer.Provided | HttpClient.HttpClient>)
      )
      const response = yield* Context.get(context, HttpClient.HttpClient).get("/plain")
      assert.strictEqual(yield* response.text, "plain")
    })
  )

  it.scoped("is made of make, which promises no listener", () =>
    Effect.gen(function* () {
      const server = yield* UpgradeServer.make(() => Http.createServer(), { port: 0, host })
      yield* server.serve(HttpServerResponse.text("plain"))
      const peer = yield* Peer.connect({ port: (server.address as HttpServer.TcpAddress).port })
      yield* peer.send(get("/"))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
    })
  )

  it.scoped("fails with ServeError and its cause where the port is taken", () =>
    Effect.gen(function* () {
      const { port } = yield* serve(HttpServerResponse.empty())
      for (const layer of [
        UpgradeServer.layer(() => Http.createServer(), { port, host }),
        UpgradeServer.layerNet({ port, host })
      ]) {
        const error = yield* Effect.flip(Layer.build(layer))
        assert.instanceOf(error, ServeError)
        assert.strictEqual((error.cause as NodeJS.ErrnoException).code, "EADDRINUSE")
      }
    })
  )
})

describe("a server", () => {
  it.scoped("serves ordinary requests to Node's client, with keep-alive", () =>
    Effect.gen(function* () {
      const { node, port } = yield* serve(HttpServerResponse.text("plain"))
      let connections = 0
      node.on("connection", () => {
        connections = connections + 1
      })
      const agent = new Http.Agent({ keepAlive: true, maxSockets: 1 })
      yield* Effect.addFinalizer(() => Effect.sync(() => agent.destroy()))
      for (let i = 0; i < 3; i++) {
        const text = yield* Effect.promise(
          () =>
            new Promise<string>((resolve, reject) => {
              Http.get({ host, port, agent }, (response) => {
                let text = ""
                response.on("data", (bytes) => {
                  text += bytes
                })
                response.on("end", () => resolve(text))
              }).on("error", reject)
            })
        )
        assert.strictEqual(text, "plain")
      }
      assert.strictEqual(connections, 1)
    })
  )

  it.scoped("switches for Node's client", () =>
    Effect.gen(function* () {
      const { port } = yield* serve(Upgrade.onUpgrade(echo, echoing))
      const text = yield* Effect.promise(
        () =>
          new Promise<string>((resolve, reject) => {
            const request = Http.request({ host, port, headers: { connection: "Upgrade", upgrade: "echo" } })
            request.on("upgrade", (_response, socket: net.Socket) => {
              socket.once("data", (bytes) => {
                socket.end()
                resolve(String(bytes))
              })
              socket.write("hello")
            })
            request.on("error", reject)
            request.end()
          })
      )
      assert.strictEqual(text, "hello")
    })
  )

  it.scoped("serves what was served last, and what was before again when that is over", () =>
    Effect.gen(function* () {
      const server = yield* UpgradeServer.make(() => Http.createServer(), { port: 0, host })
      const { port } = server.address as HttpServer.TcpAddress
      yield* server.serve(HttpServerResponse.text("first"))
      const text = Effect.gen(function* () {
        const peer = yield* Peer.connect({ port })
        yield* peer.send(get("/"))
        return (yield* peer.receiveResponse).text
      })
      assert.strictEqual(yield* text, "first")
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* server.serve(HttpServerResponse.text("second"))
          assert.strictEqual(yield* text, "second")
        })
      )
      assert.strictEqual(yield* text, "first")
    })
  )
})
