/** Both ends ours, and a proxy of ours between. */
import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Protocol from "../../src/Protocol.js"
import * as Tunnel from "../../src/Tunnel.js"
import * as UpgradeClient from "../../src/UpgradeClient.js"
import * as Upgraded from "../../src/Upgraded.js"
import * as WebSocket from "../../src/WebSocket.js"
import { type App, clientTls, echo, kinds, serve, unhandled } from "../support.js"

const open: Tunnel.ConnectOptions = {
  ports: "any",
  allow: (address) => address.startsWith("127."),
  authorize: (request) =>
    Effect.succeed(Option.exists(Tunnel.credentials(request), ({ password }) => Redacted.value(password) === "sesame"))
}

const credentials = { username: "alice", password: "sesame" }

/** Says something, ends, and yields what came back. */
const said = (upgraded: Upgraded.Upgraded, words: string) =>
  Effect.gen(function* () {
    yield* Upgraded.write(upgraded, words)
    yield* Upgraded.end(upgraded)
    return yield* Stream.mkString(Stream.decodeText(Upgraded.stream(upgraded)))
  })

const webSockets: App = Effect.flatMap(
  HttpServerRequest.HttpServerRequest,
  (request): App =>
    request.headers.upgrade === undefined
      ? Effect.succeed(HttpServerResponse.text("plain"))
      : WebSocket.onUpgrade((ws) => WebSocket.run(ws, (message) => WebSocket.send(ws, message)))
)

/** Sends a message over a websocket, and yields what came back and the code of the Close. */
const exchanged = (ws: WebSocket.WebSocket, message: string) =>
  Effect.gen(function* () {
    const answer = yield* Deferred.make<WebSocket.Message>()
    yield* WebSocket.send(ws, message)
    const closed = yield* Effect.all(
      [
        WebSocket.run(ws, (message) => Deferred.succeed(answer, message)),
        Effect.zipRight(Deferred.await(answer), WebSocket.close(ws, 4000, "enough"))
      ],
      { concurrency: 2 }
    )
    return [yield* Deferred.await(answer), closed[0].code]
  })

describe.each(kinds.filter((kind) => kind === "tcp" || kind === "tls"))(
  "through a proxy for CONNECT to a server over %s",
  (kind) => {
    const target = (port: number, scheme: "http" | "ws") => `${scheme}${kind === "tls" ? "s" : ""}://localhost:${port}/`

    const tunnelled = (proxy: number, port: number): Effect.Effect<Upgraded.Upgraded, unknown, Scope.Scope> => {
      const tunnel = UpgradeClient.connect(`http://127.0.0.1:${proxy}`, `localhost:${port}`, { credentials })
      return kind === "tls"
        ? Effect.flatMap(tunnel, (upgraded) => Upgraded.secure(upgraded, { role: "client", ...clientTls }))
        : tunnel
    }

    it.scopedLive("a switch is one of client and server, and all is closed with its Scope", () =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        const behind = yield* serve(echo, { kind })
        const proxy = yield* serve(Tunnel.connect(open))
        const answer = yield* Effect.scoped(
          Effect.gen(function* () {
            const upgraded = yield* UpgradeClient.upgrade(target(behind.port, "http"), Protocol.raw("echo"), {
              socket: tunnelled(proxy.port, behind.port)
            })
            return yield* said(upgraded, "all the way")
          })
        )
        assert.strictEqual(answer, "all the way")
        yield* behind.idle
        yield* proxy.idle
        assert.deepStrictEqual(seen, [])
      })
    )

    it.scopedLive("a websocket is one of client and server", () =>
      Effect.gen(function* () {
        const behind = yield* serve(webSockets, { kind })
        const proxy = yield* serve(Tunnel.connect(open))
        const ws = yield* WebSocket.connect(target(behind.port, "ws"), {
          socket: tunnelled(proxy.port, behind.port)
        })
        assert.deepStrictEqual(yield* exchanged(ws, "hello"), ["hello", 4000])
      })
    )

    it.scopedLive("an HttpClient's requests are answered", () =>
      Effect.gen(function* () {
        const behind = yield* serve(webSockets, { kind })
        const proxy = yield* serve(Tunnel.connect(open))
        const text = yield* Effect.flatMap(
          HttpClient.get(target(behind.port, "http")),
          (response) => response.text
        ).pipe(
          Effect.provide(
            UpgradeClient.layerHttpClient(`http://127.0.0.1:${proxy.port}`, { credentials, secure: clientTls })
          )
        )
        assert.strictEqual(text, "plain")
        yield* behind.idle
        yield* proxy.idle
      })
    )

    it.scopedLive("nobody gets who is not known", () =>
      Effect.gen(function* () {
        const behind = yield* serve(echo, { kind })
        const proxy = yield* serve(Tunnel.connect(open))
        const error = yield* Effect.flip(
          UpgradeClient.connect(`http://127.0.0.1:${proxy.port}`, `localhost:${behind.port}`)
        )
        assert.strictEqual(error._tag === "UpgradeRejected" ? error.response.status : error._tag, 407)
      })
    )
  }
)

describe("through a reverse proxy", () => {
  it.scopedLive("a websocket is one of client and server, also where a browser says where it comes from", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const behind = yield* serve(webSockets)
      const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`))
      yield* Effect.scoped(
        Effect.gen(function* () {
          const ws = yield* WebSocket.connect(`ws://127.0.0.1:${proxy.port}/`, {
            headers: { origin: `http://127.0.0.1:${proxy.port}` }
          })
          assert.deepStrictEqual(yield* exchanged(ws, "x".repeat(300_000)), ["x".repeat(300_000), 4000])
        })
      )
      const refused = yield* Effect.flip(
        WebSocket.connect(`ws://127.0.0.1:${proxy.port}/`, { headers: { origin: "http://elsewhere.example" } })
      )
      assert.strictEqual(refused._tag === "UpgradeRejected" ? refused.response.status : refused._tag, 403)
      yield* behind.idle
      yield* proxy.idle
      assert.deepStrictEqual(seen, [])
    })
  )
})
