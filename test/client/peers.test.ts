/** The client against servers of others: Node's own, bare, and the platform's. */
import * as Http from "node:http"
import * as Https from "node:https"
import type * as net from "node:net"
import { HttpClientRequest, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { Protocol, Upgrade, UpgradeClient, Upgraded, type UpgradeError } from "effect-upgrade"
import { Memory } from "../../src/testing/index.js"
import { clientTls, echo, echoed, kinds, serve, serveOrdinary } from "../support.js"
import { cert, key } from "../testing/certificate.js"
import { nothingLeft, received } from "./support.js"

/** A bare server of Node's: its 'upgrade' event switches, and echoes; what is no upgrade it answers itself. */
const bare = (secure: boolean, onUpgrade: (socket: net.Socket, request: Http.IncomingMessage, head: Buffer) => void) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.async<Http.Server>((resume) => {
        const server = secure ? Https.createServer({ key, cert }) : Http.createServer()
        server.on("request", (request, response) => {
          request.resume()
          request.on("end", () => response.writeHead(403, { "x-refused": "yes" }).end("not an upgrade"))
        })
        server.on("upgrade", (request, socket, head) => {
          socket.on("error", () => {})
          onUpgrade(socket as net.Socket, request, head)
        })
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => void server.close().closeAllConnections())
    ),
    (server) => `${secure ? "https" : "http"}://localhost:${(server.address() as net.AddressInfo).port}`
  )

const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

for (const secure of [false, true]) {
  describe(`Node's bare server over ${secure ? "TLS" : "TCP"}`, () => {
    const options = { tls: { ca: cert } }

    it.scopedLive("switches this client, which has the first bytes that it writes", () =>
      Effect.gen(function* () {
        const origin = yield* bare(secure, (socket, _request, first) => {
          socket.write(`${head}welcome `)
          socket.write(first)
          socket.pipe(socket)
        })
        const upgraded = yield* UpgradeClient.upgrade(`${origin}/`, Protocol.raw("echo"), options)
        yield* Upgraded.write(upgraded, "to you")
        yield* Upgraded.end(upgraded)
        assert.strictEqual(yield* received(upgraded), "welcome to you")
      })
    )

    it.scopedLive("refuses it like any other, and the connection is closed with the Scope", () =>
      Effect.gen(function* () {
        const origin = yield* bare(secure, (socket) => {
          socket.end("HTTP/1.1 401 Who\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nwho\r\n0\r\n\r\n")
        })
        const error = yield* Effect.flip(UpgradeClient.upgrade(`${origin}/`, Protocol.raw("echo"), options))
        assert.strictEqual(error._tag, "UpgradeRejected")
        const { response, status } = error as UpgradeError.UpgradeRejected
        assert.deepStrictEqual([status, yield* response.text], [401, "who"])
      })
    )

    it.scopedLive("that reads the body only after its 101 still gets all of it", () =>
      Effect.gen(function* () {
        // Before Node 26 the body is what the 'upgrade' event's socket holds
        const origin = yield* bare(secure, (socket, request, first) => {
          let body = first.toString()
          const length = Number(request.headers["content-length"])
          const done = () => {
            if (body.length >= length) {
              socket.write(`${head}${body}`)
              socket.end()
            }
          }
          request.on("data", (bytes) => {
            body += bytes
            done()
          })
          socket.on("data", (bytes) => {
            body += bytes
            done()
          })
          done()
        })
        const body = "b".repeat(300_000)
        const upgraded = yield* UpgradeClient.upgrade(
          HttpClientRequest.bodyText(HttpClientRequest.post(`${origin}/`), body),
          Protocol.raw("echo"),
          options
        )
        assert.strictEqual(yield* received(upgraded), body)
      })
    )
  })
}

describe("hijack", () => {
  const attach = (answer: string) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.async<Http.Server>((resume) => {
          const server = Http.createServer((request, response) => {
            request.resume()
            request.on("end", () => {
              // As Docker's daemon does: the answer past the response, and then the connection
              const socket = response.socket!
              socket.on("error", () => {})
              response.detachSocket(socket)
              socket.removeAllListeners("data")
              socket.write(answer)
              socket.on("data", (bytes) => socket.write(bytes))
              socket.on("end", () => socket.end())
              socket.resume()
            })
          })
          server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => void server.close().closeAllConnections())
      ),
      (server) => `http://127.0.0.1:${(server.address() as net.AddressInfo).port}/containers/x/attach`
    )

  it.scopedLive("takes the connection behind a 200 without a length, and what came with it", () =>
    Effect.gen(function* () {
      const url = yield* attach("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nhello ")
      let socket: net.Socket | undefined
      yield* Effect.scoped(
        Effect.gen(function* () {
          const upgraded = yield* UpgradeClient.hijack(HttpClientRequest.bodyText(HttpClientRequest.post(url), "body"))
          socket = upgraded.socket
          yield* Upgraded.write(upgraded, "raw")
          assert.strictEqual(Buffer.from(yield* Upgraded.readExactly(upgraded, 9)).toString(), "hello raw")
        })
      )
      yield* nothingLeft(socket!)
    })
  )

  for (const [answer, tag] of [
    ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "UpgradeRejected"],
    ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "UpgradeRejected"],
    ["HTTP/1.1 204 No Content\r\n\r\n", "UpgradeRejected"],
    ["HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "UpgradeRejected"],
    ["HTTP/1.1 201 Created\r\n\r\n", "UpgradeRejected"],
    [head, "ProtocolMismatch"]
  ] as const) {
    it.scopedLive(`is ${tag} with ${answer.split("\r\n", 2).join(", ")}`, () =>
      Effect.gen(function* () {
        const url = yield* attach(answer)
        assert.strictEqual((yield* Effect.flip(UpgradeClient.hijack(url)))._tag, tag)
      })
    )
  }
})

describe("hijack at both ends", () => {
  for (const kind of kinds.filter((kind) => kind !== "memory")) {
    it.scopedLive(`over ${kind}: goes on behind a 200, and closes like any session`, () =>
      Effect.gen(function* () {
        const attached = Effect.gen(function* () {
          const upgraded = yield* Upgrade.hijack(HttpServerResponse.empty({ status: 200, headers: { "x-raw": "1" } }))
          yield* echoed(upgraded)
          return Upgrade.done
        })
        const running = yield* serve(attached, { kind, hijackable: () => true })
        yield* Effect.scoped(
          Effect.gen(function* () {
            const upgraded = yield* UpgradeClient.hijack(
              HttpClientRequest.bodyText(
                HttpClientRequest.post(`${kind === "tls" ? "https" : "http"}://localhost:${running.port}/`),
                "body"
              ),
              kind === "unix" ? { socketPath: (running.target as { readonly path: string }).path } : { tls: clientTls }
            )
            assert.strictEqual(upgraded.protocol, "hijack")
            yield* Upgraded.write(upgraded, "raw bytes")
            yield* Upgraded.end(upgraded)
            assert.strictEqual(yield* received(upgraded), "raw bytes")
          })
        )
        yield* running.idle
      })
    )
  }
})

describe("the listener in memory", () => {
  const app = HttpRouter.empty.pipe(
    HttpRouter.get("/echo", echo),
    HttpServer.serve(),
    Layer.provideMerge(Memory.layer())
  )

  it.scoped("is asked over a socket of its own, without a port and on the test's Clock", () =>
    Effect.gen(function* () {
      const upgraded = yield* UpgradeClient.upgrade("http://localhost/echo", Protocol.raw("echo"), {
        socket: Memory.socket
      })
      yield* Upgraded.write(upgraded, "in memory")
      yield* Upgraded.end(upgraded)
      assert.strictEqual(yield* received(upgraded), "in memory")
    }).pipe(Effect.provide(app))
  )

  it.scoped("is asked again over the same connection, by what was switched", () =>
    Effect.gen(function* () {
      const first = yield* UpgradeClient.upgrade("http://localhost/echo", Protocol.raw("echo"), {
        socket: Memory.socket
      })
      // What it echoes is the request itself, which is no answer: the connection is destroyed, for its owner too
      const error = yield* Effect.flip(
        UpgradeClient.upgrade("http://localhost/echo", Protocol.raw("echo"), { socket: first })
      )
      assert.strictEqual(error._tag, "ProtocolMismatch")
      assert.isTrue(first.socket.destroyed)
    }).pipe(Effect.provide(app))
  )
})

describe("the platform's own server", () => {
  it.scopedLive("which does not know of upgrades answers as ever", () =>
    Effect.gen(function* () {
      const running = yield* serveOrdinary(Effect.succeed(HttpServerResponse.text("plain")))
      const error = yield* Effect.flip(UpgradeClient.upgrade(`http://127.0.0.1:${running.port}/`, Protocol.raw("echo")))
      assert.isTrue(error._tag === "UpgradeRejected" || error._tag === "ConnectionLost")
    })
  )
})
