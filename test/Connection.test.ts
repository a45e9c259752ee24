import { createServer } from "node:http"
import type * as net from "node:net"
import { TLSSocket } from "node:tls"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeServer } from "../src/index.js"
import * as Peer from "../src/testing/Peer.js"
import { ask, decode, echo, echoing, get, kinds, opening, serve } from "./appSupport.js"
import * as alice from "./clientCertificate.js"
import { cert, key } from "./testing/certificate.js"

/** A server over TLS that asks its clients for a certificate, and a client that shows one. */
const secured = <E, R extends Connection.Tls | UpgradeServer.Provided>(
  app: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(
      HttpServer.serve(app).pipe(
        Layer.provideMerge(
          UpgradeServer.layerTls({ port: 0, host: "127.0.0.1", cert, key, requestCert: true, ca: alice.cert })
        )
      )
    )
    const { port } = Context.get(context, HttpServer.HttpServer).address as HttpServer.TcpAddress
    return yield* Peer.connect({ port, tls: { rejectUnauthorized: false, cert: alice.cert, key: alice.key } })
  })

describe("currentWith", () => {
  it.scoped("reads a client's certificate in a handler that does not switch", () =>
    Effect.gen(function* () {
      const peer = yield* secured(
        Effect.gen(function* () {
          const connection = yield* Connection.currentWith(Connection.Tls)
          return HttpServerResponse.text(String(connection.socket.getPeerCertificate().subject.CN))
        }) as Effect.Effect<HttpServerResponse.HttpServerResponse, unknown, Connection.Tls>
      )
      for (const request of [get("/"), ask()]) {
        yield* peer.send(request)
        assert.strictEqual((yield* peer.receiveResponse).text, "alice")
      }
    })
  )

  it.scoped("and the listener's tag on a switch give the TLS socket its type", () =>
    Effect.gen(function* () {
      const peer = yield* secured(
        Upgrade.onUpgrade(Connection.Tls, Protocol.raw("echo"), (upgraded) =>
          Upgraded.write(upgraded, `${upgraded.socket.getPeerCertificate().subject.CN} ${upgraded.socket.authorized}`)
        ) as Effect.Effect<HttpServerResponse.HttpServerResponse, unknown, Connection.Tls>
      )
      yield* peer.send(ask())
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(decode(yield* peer.receiveAll), "alice true")
    })
  )

  it.scoped("serves a handler that names Net under TLS too: a TLS socket is one", () =>
    Effect.gen(function* () {
      const peer = yield* secured(
        Upgrade.onUpgrade(Connection.Net, echo, echoing) as Effect.Effect<
          HttpServerResponse.HttpServerResponse,
          unknown,
          never
        >
      )
      yield* peer.send(ask({ body: "x" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
    })
  )
})

describe("current", () => {
  it.scoped.each(kinds)("tells the connection of any request over %s: its socket, its peer, its listener", (kind) =>
    Effect.gen(function* () {
      const seen: Array<Connection.Connection> = []
      const { connect } = yield* serve(
        Effect.map(Connection.current, (connection) => {
          seen.push(connection)
          return HttpServerResponse.empty()
        }),
        { kind }
      )
      const peer = yield* connect
      for (const request of [get("/"), ask(), get("/")]) {
        yield* peer.send(request)
        yield* peer.receiveHead
      }
      const other = yield* connect
      yield* other.send(get("/"))
      yield* other.receiveHead
      const [first, second, third, another] = seen
      // One connection, however many requests
      assert.strictEqual(first, second)
      assert.strictEqual(first, third)
      assert.notStrictEqual(first, another)
      assert.isTrue(Connection.isConnection(first))
      assert.strictEqual(first!.socket instanceof TLSSocket, kind === "TLS")
      assert.strictEqual(first!.listener.key, kind === "TLS" ? Connection.Tls.key : Connection.Net.key)
      const local = (peer.socket as net.Socket).localPort
      assert.deepStrictEqual(
        first!.peer,
        kind === "Unix"
          ? { address: undefined, port: undefined, family: undefined }
          : { address: "127.0.0.1", port: local, family: "IPv4" }
      )
      const json = JSON.parse(JSON.stringify(first))
      assert.strictEqual(json._id, "effect-upgrade/Connection")
      assert.strictEqual(json.closed, false)
      assert.include(String(first), "effect-upgrade/Connection")
    })
  )

  it.scoped("fails with NotUpgradable 'Server' where the request came by another server", () =>
    Effect.gen(function* () {
      const node = createServer()
      yield* Layer.build(
        HttpServer.serve(
          Effect.gen(function* () {
            const current = yield* Effect.flip(Connection.current)
            const switching = yield* Effect.flip(Upgrade.onUpgrade(echo, echoing))
            const wanted = yield* Upgrade.wants(echo)
            return HttpServerResponse.text(
              `${current.reason} ${switching._tag === "NotUpgradable" && switching.reason} ${wanted}`
            )
          })
        ).pipe(Layer.provide(NodeHttpServer.layer(() => node, { port: 0, host: "127.0.0.1" })))
      )
      const { port } = node.address() as net.AddressInfo
      const peer = yield* Peer.connect({ port })
      yield* peer.send(get("/"))
      assert.strictEqual((yield* peer.receiveResponse).text, "Server Server false")
    })
  )
})

describe("awaitClosed", () => {
  it.scoped("is done when the connection is closed and its finalizers have run, and at once after that", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      const events: Array<string> = []
      yield* Connection.addFinalizer(upgraded.connection, () => Effect.sync(() => events.push("finalizer")))
      yield* peer.reset
      yield* Connection.awaitClosed(upgraded.connection)
      assert.deepStrictEqual(events, ["finalizer"])
      assert.isTrue(upgraded.socket.destroyed)
      yield* Connection.awaitClosed(upgraded.connection)
    })
  )

  it.scoped("finalizers and fibers of a closed connection run at once, or not at all", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { peer, upgraded } = yield* open()
      yield* peer.reset
      yield* Connection.awaitClosed(upgraded.connection)
      const events: Array<string> = []
      yield* Connection.addFinalizer(upgraded.connection, () => Effect.sync(() => events.push("finalizer")))
      assert.deepStrictEqual(events, ["finalizer"])
    })
  )
})
