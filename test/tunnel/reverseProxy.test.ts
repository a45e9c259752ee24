import * as Http from "node:http"
import * as net from "node:net"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { WebSocket, WebSocketServer } from "ws"
import * as Tunnel from "../../src/Tunnel.js"
import * as Faults from "../../src/testing/Faults.js"
import * as Peer from "../../src/testing/Peer.js"
import { turns, until } from "../appSupport.js"
import { type App, asking, clientTls, echo, kinds, message, runs, serve, unhandled } from "../support.js"
import { type Backend, backend, closedPort, text } from "./support.js"

const get = (path: string, fields: ReadonlyArray<string> = []) =>
  message(`GET ${path} HTTP/1.1`, ["Host: a", ...fields])

const post = (path: string, content: string, fields: ReadonlyArray<string> = []) =>
  message(`POST ${path} HTTP/1.1`, ["Host: a", `Content-Length: ${content.length}`, ...fields], content)

const offer = (content = "", token = "websocket") => asking("/", { token, content })

const switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Own: 1\r\n\r\n"

/** A proxy in front of a backend that is scripted byte by byte. */
const scripted = (options: Tunnel.ReverseProxyOptions = {}) =>
  Effect.gen(function* () {
    const behind = yield* backend
    const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`, options))
    return { behind, proxy }
  })

/** A client that has sent this, and the backend's end of what came of it. */
const asked = (
  { behind, proxy }: Effect.Effect.Success<ReturnType<typeof scripted>>,
  bytes: string
): Effect.Effect<
  { readonly client: Peer.Peer; readonly target: Peer.Peer; readonly head: string },
  Peer.PeerError,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const client = yield* proxy.connect
    yield* client.send(bytes)
    const target = yield* behind.accept
    return { client, target, head: text(yield* target.receiveUntil("\r\n\r\n")) }
  })

/** Waits until the backend has no connection any more. */
const left = (behind: Backend): Effect.Effect<void> =>
  Effect.flatMap(behind.open, (count) => (count === 0 ? Effect.void : Effect.zipRight(turns(1), left(behind))))

/** An app that says what it was asked. */
const told: App = HttpRouter.empty.pipe(
  HttpRouter.all(
    "*",
    Effect.gen(function* () {
      const request = yield* HttpServerRequest.HttpServerRequest
      return HttpServerResponse.text(`${request.method} ${request.url} ${yield* request.text}`, {
        headers: { "x-own": "1" }
      })
    })
  )
)

describe("an ordinary request", () => {
  it.scopedLive("reaches the backend without what is between two neighbours, and with what says who asked", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, head, target } = yield* asked(
        both,
        get("/path?query", [
          "Connection: close, X-Hop",
          "X-Hop: 1",
          "X-Kept: one",
          "X-Kept: two",
          "Upgrade: websocket",
          "Cookie: a=b"
        ])
      )
      assert.strictEqual(
        head,
        [
          "GET /path?query HTTP/1.1",
          "Host: a",
          "X-Kept: one",
          "X-Kept: two",
          "Cookie: a=b",
          "Via: 1.1 effect-upgrade",
          "Forwarded: for=127.0.0.1;host=a;proto=http",
          "X-Forwarded-For: 127.0.0.1",
          "X-Forwarded-Host: a",
          "X-Forwarded-Proto: http",
          "Connection: keep-alive",
          "",
          ""
        ].join("\r\n")
      )
      yield* target.send(
        message(
          "HTTP/1.1 203 Fine",
          [
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "Date: then",
            "Content-Length: 2",
            "Set-Cookie: a=1; Path=/; New",
            "Set-Cookie: a=2; Path=/b",
            "Link: <a>",
            "Link: <b>"
          ],
          "ok"
        )
      )
      const { headers, raw, status, text: content } = yield* client.receiveResponse
      assert.deepStrictEqual([status, content], [203, "ok"])
      assert.deepStrictEqual(
        [headers["x-hop"], headers["keep-alive"], headers.date, headers.link, headers.via, headers.connection],
        [undefined, undefined, "then", "<a>, <b>", "1.1 effect-upgrade", "close"]
      )
      assert.deepStrictEqual(
        raw.match(/^set-cookie: .*$/gim)?.map((line) => line.trim().toLowerCase()),
        ["set-cookie: a=1; path=/; new", "set-cookie: a=2; path=/b"]
      )
    })
  )

  it.scopedLive.prop(
    "and its answer have their content whole, however it is framed and split",
    [
      FastCheck.string({ maxLength: 200 }).map((s) => s.replace(/[^ -~]/g, "x")),
      FastCheck.boolean(),
      FastCheck.array(FastCheck.nat({ max: 400 }), { maxLength: 4 })
    ],
    ([content, chunked, splits]) =>
      Effect.gen(function* () {
        const behind = yield* serve(told)
        const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`))
        const client = yield* proxy.connect
        const bytes = chunked
          ? message(
              "POST /a HTTP/1.1",
              ["Host: a", "Transfer-Encoding: chunked"],
              `${content === "" ? "" : `${content.length.toString(16)}\r\n${content}\r\n`}0\r\n\r\n`
            )
          : post("/a", content)
        yield* client.sendSplit(
          bytes,
          splits.sort((a, b) => a - b)
        )
        const { headers, status, text: answered } = yield* client.receiveResponse
        assert.deepStrictEqual([status, answered, headers["x-own"]], [200, `POST /a ${content}`, "1"])
      }),
    { fastCheck: { numRuns: runs(15) } }
  )

  it.scopedLive("streams: neither side's content is waited for", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, head, target } = yield* asked(
        both,
        message("POST / HTTP/1.1", ["Host: a", "Transfer-Encoding: chunked"], "3\r\none\r\n")
      )
      assert.match(head, /^Transfer-Encoding: chunked\r$/m)
      yield* target.receiveUntil("one\r\n")
      yield* target.send(message("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], "3\r\nuno\r\n"))
      yield* client.receiveHead
      yield* client.receiveUntil("uno\r\n")
      yield* client.send("3\r\ntwo\r\n0\r\n\r\n")
      yield* target.receiveUntil("two\r\n0\r\n\r\n")
      yield* target.send("3\r\ndue\r\n0\r\n\r\n")
      assert.match(text(yield* client.receiveUntil("0\r\n\r\n")), /due/)
    })
  )

  it.scopedLive("goes by a connection that was used before", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, target } = yield* asked(both, get("/first"))
      for (const path of ["/second", "/third"]) {
        yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1"], "x"))
        assert.strictEqual((yield* client.receiveResponse).text, "x")
        // The agent has the connection back a turn later
        yield* turns(3)
        yield* client.send(get(path))
        assert.include(text(yield* target.receiveUntil("\r\n\r\n")), `GET ${path} `)
      }
    })
  )

  it.scopedLive(
    "RFC 9112 §9.3.1: is asked again where the backend closed a kept connection, and no content was sent",
    () =>
      Effect.gen(function* () {
        const both = yield* scripted()
        const { client, target } = yield* asked(both, get("/first"))
        yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1"], "x"))
        yield* client.receiveResponse
        yield* turns(3)
        yield* client.send(get("/second"))
        yield* target.receiveUntil("\r\n\r\n")
        yield* target.reset
        const other = yield* both.behind.accept
        assert.include(text(yield* other.receiveUntil("\r\n\r\n")), "GET /second ")
        yield* other.send(message("HTTP/1.1 200 OK", ["Content-Length: 1"], "y"))
        assert.strictEqual((yield* client.receiveResponse).text, "y")
      })
  )

  it.scopedLive.each([
    ["HEAD", "HTTP/1.1 200 OK", "Content-Length: 5"],
    ["GET", "HTTP/1.1 204 No Content", "X-Own: 1"],
    ["GET", "HTTP/1.1 304 Not Modified", 'ETag: "a"']
  ])("by %s, answered %s, has no content and keeps its fields and both connections", ([method, status, field]) =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, target } = yield* asked(both, message(`${method} / HTTP/1.1`, ["Host: a"]))
      yield* target.send(message(status, [field]))
      assert.include((yield* client.receiveHead).raw.toLowerCase(), field.toLowerCase())
      yield* turns(3)
      yield* client.send(get("/next"))
      assert.include(text(yield* target.receiveUntil("\r\n\r\n")), "GET /next ")
      yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1"], "x"))
      assert.strictEqual((yield* client.receiveResponse).text, "x")
    })
  )

  it.scopedLive("has the target's path before its own, also behind a router, and in absolute-form", () =>
    Effect.gen(function* () {
      const behind = yield* serve(told)
      const proxy = yield* serve(
        HttpRouter.empty.pipe(
          HttpRouter.mountApp("/api", Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}/base/`)),
          HttpRouter.all("*", Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`))
        )
      )
      const client = yield* proxy.connect
      for (const [target, seen] of [
        ["/api/a?b=c", "/base/a?b=c"],
        ["/other", "/other"],
        ["/a%2Fb/c?x=%20%zz'", "/a%2Fb/c?x=%20%zz'"]
      ]) {
        yield* client.send(get(target!))
        assert.strictEqual((yield* client.receiveResponse).text, `GET ${seen} `)
      }
      const absolute = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`))
      const other = yield* absolute.connect
      for (const [target, seen] of [
        ["http://example.com/a?b", "/a?b"],
        ["http://example.com", "/"],
        ["http://example.com?b", "/?b"]
      ]) {
        yield* other.send(get(target!))
        assert.strictEqual((yield* other.receiveResponse).text, `GET ${seen} `)
      }
    })
  )

  it.scopedLive("can have the target's Host, and be believed what it says of its client", () =>
    Effect.gen(function* () {
      const both = yield* scripted({ preserveHost: false, trust: (address) => address === "127.0.0.1", via: "front" })
      const { head } = yield* asked(both, get("/", ["X-Forwarded-For: 192.0.2.1", "Via: 1.0 first"]))
      assert.include(head, `\r\nHost: 127.0.0.1:${both.behind.port}\r\n`)
      assert.include(head, "X-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n")
      assert.include(head, "Via: 1.0 first, 1.1 front\r\n")
    })
  )

  it.scopedLive("RFC 9110 §7.6.2: is forwarded as often as Max-Forwards says", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const options = (left: number) => message("OPTIONS * HTTP/1.1", ["Host: a", `Max-Forwards: ${left}`])
      const { head } = yield* asked(both, options(3))
      assert.match(head, /^OPTIONS \* HTTP\/1\.1\r\n[\s\S]*Max-Forwards: 2\r\n/)
      const client = yield* both.proxy.connect
      yield* client.send(options(0))
      assert.strictEqual((yield* client.receiveHead).status, 204)
      yield* client.send(message("TRACE / HTTP/1.1", ["Host: a", "Max-Forwards: 0"]))
      assert.strictEqual((yield* client.receiveHead).status, 405)
    })
  )

  it.scopedLive("whose answer somebody replaces on its way is let go of", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const proxy = yield* serve(
        Effect.as(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`), HttpServerResponse.text("replaced"))
      )
      const client = yield* proxy.connect
      yield* client.send(get("/"))
      const target = yield* behind.accept
      yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1000"], "some"))
      assert.strictEqual((yield* client.receiveResponse).text, "replaced")
      yield* target.closed
      yield* target.end
      yield* left(behind)
    })
  )

  it.scopedLive("RFC 9112 §6.1: in a coding that is not understood gets 501, and goes nowhere", () =>
    Effect.gen(function* () {
      const { behind, proxy } = yield* scripted()
      const client = yield* proxy.connect
      yield* client.send(message("POST / HTTP/1.1", ["Host: a", "Transfer-Encoding: gzip, chunked"], "0\r\n\r\n"))
      assert.strictEqual((yield* client.receiveResponse).status, 501)
      assert.strictEqual(yield* behind.open, 0)
    })
  )

  it.scopedLive("whose target was made one that cannot be sent gets 400", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const proxy = yield* serve(
        Effect.updateService(
          Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`),
          HttpServerRequest.HttpServerRequest,
          (request) => request.modify({ url: "/a b" })
        )
      )
      const client = yield* proxy.connect
      yield* client.send(get("/"))
      assert.strictEqual((yield* client.receiveResponse).status, 400)
    })
  )

  it.scopedLive("in HTTP/1.0 without a Host is forwarded as what it is", () =>
    Effect.gen(function* () {
      const both = yield* scripted({ idleTimeout: Duration.infinity })
      const { client, head, target } = yield* asked(both, "GET / HTTP/1.0\r\n\r\n")
      assert.include(head, `\r\nHost: 127.0.0.1:${both.behind.port}\r\n`)
      assert.match(head, /^Via: 1\.0 effect-upgrade\r\nForwarded: for=127\.0\.0\.1;proto=http\r$/m)
      yield* target.send(message("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], "2\r\nok\r\n0\r\n\r\n"))
      assert.match(text(yield* client.receiveAll), /\r\n\r\nok$/)
    })
  )

  it.scopedLive("by CONNECT gets 405, and opens nothing", () =>
    Effect.gen(function* () {
      const { behind, proxy } = yield* scripted()
      const client = yield* proxy.connect
      yield* client.send(message("CONNECT example.com:443 HTTP/1.1", ["Host: example.com:443"]))
      assert.strictEqual((yield* client.receiveResponse).status, 405)
      assert.strictEqual(yield* behind.open, 0)
    })
  )

  it.scopedLive("is asked over TLS and over a Unix socket too", () =>
    Effect.gen(function* () {
      const tls = yield* serve(told, { kind: "tls" })
      const unix = yield* serve(told, { kind: "unix" })
      const proxy = yield* serve(
        HttpRouter.empty.pipe(
          HttpRouter.all("/tls", Tunnel.reverseProxy(`https://localhost:${tls.port}`, { tls: clientTls })),
          HttpRouter.all(
            "/unix",
            Tunnel.reverseProxy("http://unix", { socketPath: "path" in unix.target ? unix.target.path : "" })
          )
        )
      )
      const client = yield* proxy.connect
      for (const path of ["/tls", "/unix"]) {
        yield* client.send(get(path))
        assert.strictEqual((yield* client.receiveResponse).text, `GET ${path} `)
      }
    })
  )
})

describe.each(kinds)("a switch through a proxy over %s", (kind) => {
  it.scopedLive("is one on both sides, with the early bytes of both, and each one's FIN by itself", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const behind = yield* serve(echo)
      const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`, { upgrades: ["echo"] }), {
        kind
      })
      const client = yield* proxy.connect
      yield* client.send(asking("/", { token: "h2c, ECHO", content: "early" }))
      const head = yield* client.receiveHead
      assert.deepStrictEqual([head.status, head.headers.upgrade, head.headers.via], [101, "ECHO", "1.1 effect-upgrade"])
      assert.strictEqual(text(yield* client.receiveExactly(5)), "early")
      yield* client.send("late")
      yield* client.end
      assert.strictEqual(text(yield* client.receiveAll), "late")
      yield* proxy.idle
      yield* behind.idle
      assert.deepStrictEqual(seen, [])
    })
  )
})

describe("a switch", () => {
  it.scopedLive("is asked of the backend with the tokens that are allowed, and its 101 is given back", () =>
    Effect.gen(function* () {
      const both = yield* scripted({ upgrades: ["websocket", "chat/2"] })
      const { client, head, target } = yield* asked(both, offer("from the client", "h2c, chat/1, chat/2, WebSocket"))
      assert.match(head, /^upgrade: chat\/2, WebSocket\r$/im)
      assert.match(head, /^connection: Upgrade\r$/im)
      assert.match(head, /^x-forwarded-for: 127\.0\.0\.1\r$/im)
      yield* target.send(`${switched}from the backend`)
      const { headers, status } = yield* client.receiveHead
      assert.deepStrictEqual([status, headers.upgrade, headers["x-own"]], [101, "WebSocket", "1"])
      assert.strictEqual(text(yield* client.receiveExactly(16)), "from the backend")
      assert.strictEqual(text(yield* target.receiveExactly(15)), "from the client")
    })
  )

  it.scopedLive("sends the backend nothing of the new protocol before its 101, nor the client before its own", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, head, target } = yield* asked(both, offer("optimistic"))
      yield* turns(20)
      assert.strictEqual((target.socket as net.Socket).bytesRead, head.length)
      assert.strictEqual((client.socket as net.Socket).bytesRead, 0)
      yield* target.send(`${switched}early`)
      assert.strictEqual(text(yield* target.receiveExactly(10)), "optimistic")
      assert.strictEqual((yield* client.receiveHead).status, 101)
      assert.strictEqual(text(yield* client.receiveExactly(5)), "early")
    })
  )

  it.scopedLive("of a request with content has that first, as Docker's has", () =>
    Effect.gen(function* () {
      const both = yield* scripted({ upgrades: ["tcp"] })
      const { client, head, target } = yield* asked(
        both,
        asking("/exec/1/start", {
          method: "POST",
          token: "tcp",
          fields: ["Content-Type: application/json", "Content-Length: 14"],
          content: '{"Tty": false}stdin'
        })
      )
      assert.match(head, /^content-length: 14\r$/im)
      assert.match(head, /^content-type: application\/json\r$/im)
      assert.strictEqual(text(yield* target.receiveExactly(14)), '{"Tty": false}')
      yield* target.send("HTTP/1.1 101 UPGRADED\r\nContent-Type: x/raw\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
      assert.strictEqual((yield* client.receiveHead).headers["content-type"], "x/raw")
      assert.strictEqual(text(yield* target.receiveExactly(5)), "stdin")
    })
  )

  it.scopedLive("of a request with chunked content is asked with the same content", () =>
    Effect.gen(function* () {
      const both = yield* scripted({ idleTimeout: Duration.infinity })
      const { client, head, target } = yield* asked(
        both,
        asking("/", {
          method: "POST",
          token: "websocket",
          fields: ["Transfer-Encoding: chunked"],
          content: "5\r\nhello\r\n0\r\n\r\nearly"
        })
      )
      assert.match(head, /^transfer-encoding: chunked\r$/im)
      assert.match(text(yield* target.receiveUntil("0\r\n\r\n")), /hello/)
      yield* target.send(message("HTTP/1.1 403 Forbidden", ["Content-Length: 2"], "no"))
      assert.strictEqual((yield* client.receiveResponse).text, "no")
      assert.strictEqual((yield* client.receiveAll).length, 0)
    })
  )

  it.scopedLive("that is answered without content is answered so", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, target } = yield* asked(both, asking("/", { method: "HEAD", token: "websocket" }))
      yield* target.send(message("HTTP/1.1 404 Not Found", ["Content-Length: 10"]))
      const head = yield* client.receiveHead
      assert.deepStrictEqual([head.status, head.headers["content-length"]], [404, "10"])
      yield* target.closed
    })
  )

  it.scopedLive.each(["h2c", "h2c, TLS/1.0", "websocket/13"])(
    "to what is not allowed is not forwarded: the backend sees an ordinary request (%s)",
    (token) =>
      Effect.gen(function* () {
        const both = yield* scripted()
        const client = yield* both.proxy.connect
        yield* client.send(
          asking("/", { token, connection: "Upgrade, HTTP2-Settings", fields: ["HTTP2-Settings: AAA"] })
        )
        const target = yield* both.behind.accept
        const head = text(yield* target.receiveUntil("\r\n\r\n"))
        assert.notMatch(head, /upgrade:|http2-settings/i)
        yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 2"], "ok"))
        assert.strictEqual((yield* client.receiveResponse).text, "ok")
      })
  )

  it.scopedLive("that the backend refuses is refused by its own answer, whole, and the connection closed", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, target } = yield* asked(both, offer(get("/smuggled")))
      yield* target.send(
        message(
          "HTTP/1.1 401 Unauthorized",
          ["WWW-Authenticate: Basic", "Set-Cookie: a=1; Path=/", "Connection: upgrade", "Transfer-Encoding: chunked"],
          "4\r\nWho?\r\n0\r\n\r\n"
        )
      )
      const { headers, status, text: content } = yield* client.receiveResponse
      assert.deepStrictEqual(
        [status, content, headers["www-authenticate"], headers["set-cookie"], headers.connection],
        [401, "Who?", "Basic", "a=1; Path=/", "close"]
      )
      assert.strictEqual((yield* client.receiveAll).length, 0)
      yield* client.end
      yield* target.closed
      yield* target.end
      yield* left(both.behind)
    })
  )

  it.scopedLive("that the backend ignores is answered with what it says, and the connection goes on", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      const { client, target } = yield* asked(both, offer())
      yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 5"], "plain"))
      assert.strictEqual((yield* client.receiveResponse).text, "plain")
      yield* client.send(get("/next"))
      yield* both.behind.accept
    })
  )

  it.scopedLive("RFC 9110 §15.5.22: that needs another protocol is told which of those that are forwarded", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      for (const request of [get("/"), offer()]) {
        const { client, target } = yield* asked(both, request)
        yield* target.send(
          message("HTTP/1.1 426 Upgrade Required", [
            "Connection: upgrade, close",
            "Upgrade: h2c, websocket",
            "Content-Length: 0"
          ])
        )
        const { headers, status } = yield* client.receiveResponse
        assert.deepStrictEqual([status, headers.upgrade, headers.connection], [426, "websocket", "upgrade"])
      }
    })
  )

  it.scopedLive("on a path with dot segments is refused, since it would become another", () =>
    Effect.gen(function* () {
      const { behind, proxy } = yield* scripted()
      for (const path of ["/a/../admin", "/a/%2e%2E/admin", "/a/.", "/.."]) {
        const client = yield* proxy.connect
        yield* client.send(asking(path, { token: "websocket" }))
        assert.strictEqual((yield* client.receiveResponse).status, 400)
      }
      assert.strictEqual(yield* behind.open, 0)
    })
  )

  it.scopedLive("passes on a reset, of either side", () =>
    Effect.gen(function* () {
      const both = yield* scripted()
      for (const who of ["client", "target"] as const) {
        const ends = yield* asked(both, offer("x"))
        yield* ends.target.send(`${switched}y`)
        yield* ends.target.receiveExactly(1)
        yield* ends.client.receiveUntil("\r\n\r\ny")
        yield* ends[who].reset
        assert.strictEqual(yield* ends[who === "client" ? "target" : "client"].closed, "reset")
      }
      yield* both.proxy.idle
      yield* left(both.behind)
    })
  )

  it.scopedLive("of real websockets works: ws on both sides", () =>
    Effect.gen(function* () {
      const server = yield* Effect.acquireRelease(
        Effect.async<WebSocketServer>((resume) => {
          const server: WebSocketServer = new WebSocketServer({ port: 0, host: "127.0.0.1" }, () =>
            resume(Effect.succeed(server))
          )
          server.on("connection", (socket, request) => {
            socket.send(`hello ${request.headers["x-forwarded-for"]}`)
            socket.on("message", (data) => socket.send(data))
          })
        }),
        (server) =>
          Effect.sync(() => {
            server.clients.forEach((client) => client.terminate())
            server.close()
          })
      )
      const { port } = server.address() as net.AddressInfo
      const proxy = yield* serve(Tunnel.reverseProxy(`ws://127.0.0.1:${port}`))
      const messages = yield* Effect.async<ReadonlyArray<string>>((resume) => {
        const seen: Array<string> = []
        const socket = new WebSocket(`ws://127.0.0.1:${proxy.port}/`)
        socket.on("open", () => socket.send("x".repeat(100_000)))
        socket.on("message", (data) => {
          seen.push(String(data))
          if (seen.length === 2) {
            socket.close(4000, "enough")
          }
        })
        socket.on("close", (code, reason) => resume(Effect.succeed([...seen, `${code} ${reason}`])))
      })
      assert.deepStrictEqual(messages, ["hello 127.0.0.1", "x".repeat(100_000), "4000 enough"])
      yield* proxy.idle
    })
  )
})

describe("a backend", () => {
  const both = [
    ["an ordinary request", get("/")],
    ["a switch", offer("early")]
  ] as const

  it.scopedLive.each(both)("that is dead is answered for with 502, by %s", ([_, request]) =>
    Effect.gen(function* () {
      const port = yield* closedPort
      const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${port}`))
      const client = yield* proxy.connect
      yield* client.send(request)
      const { status, text: reason } = yield* client.receiveResponse
      assert.strictEqual(status, 502)
      assert.include(reason, "ECONNREFUSED")
    })
  )

  it.scoped.each(both)("that never answers is answered for with 504, by %s, and let go", ([_, request]) =>
    Effect.gen(function* () {
      const all = yield* scripted({ headTimeout: "30 seconds" })
      const { client, target } = yield* asked(all, request)
      yield* turns(10)
      yield* TestClock.adjust("31 seconds")
      const { status } = yield* client.receiveResponse
      assert.strictEqual(status, 504)
      yield* target.closed
      yield* target.end
      yield* left(all.behind)
    })
  )

  it.scoped("that takes its time for a request that is still sent is waited for", () =>
    Effect.gen(function* () {
      const all = yield* scripted({ headTimeout: "30 seconds" })
      const { client, target } = yield* asked(all, message("POST / HTTP/1.1", ["Host: a", "Content-Length: 4"]))
      for (const piece of ["a", "b", "c", "d"]) {
        yield* turns(10)
        yield* TestClock.adjust("20 seconds")
        yield* client.send(piece)
        yield* target.receiveExactly(1)
      }
      yield* turns(10)
      yield* TestClock.adjust("20 seconds")
      yield* target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1"], "x"))
      assert.strictEqual((yield* client.receiveResponse).text, "x")
    })
  )

  it.scoped("that stops in the middle of its answer is cut off, and so is the answer", () =>
    Effect.gen(function* () {
      const all = yield* scripted({ idleTimeout: "10 minutes" })
      const { client, target } = yield* asked(all, get("/"))
      yield* target.send(message("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], "3\r\none\r\n"))
      yield* client.receiveUntil("one\r\n")
      yield* turns(10)
      yield* TestClock.adjust("9 minutes")
      yield* target.send("3\r\ntwo\r\n")
      yield* client.receiveUntil("two\r\n")
      yield* TestClock.adjust("20 minutes")
      yield* target.closed
      const rest = yield* Effect.either(client.receiveUntil("0\r\n\r\n"))
      assert.strictEqual(rest._tag, "Left")
    })
  )

  it.scopedLive.each([
    ["a 101 for another protocol", "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"],
    ["a 101 without Connection", "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n"],
    ["a 101 with a length", `${switched.slice(0, -2)}Content-Length: 5\r\n\r\nhello`],
    ["a 101 with a coding", `${switched.slice(0, -2)}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
    ["garbage", "SSH-2.0-OpenSSH_9.9\r\n\r\n"],
    ["a head without end", `HTTP/1.1 200 OK\r\nX: ${"x".repeat(100_000)}`],
    ["nothing, and its end", ""]
  ])("that answers a switch with %s is answered for with 502, and nothing of it reaches the client", ([_, answer]) =>
    Effect.gen(function* () {
      const all = yield* scripted()
      const { client, target } = yield* asked(all, offer("early"))
      yield* target.send(answer)
      yield* target.end
      assert.strictEqual((yield* client.receiveResponse).status, 502)
      yield* client.end
      yield* all.proxy.idle
      yield* left(all.behind)
    })
  )

  it.scopedLive.each([
    ["a 101 that was not asked for", switched],
    ["a bare 101", "HTTP/1.1 101 X\r\n\r\n"],
    ["garbage", "SSH-2.0-OpenSSH_9.9\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"],
    ["nothing, and its end", ""]
  ])("that answers an ordinary request with %s is answered for with 502", ([_, answer]) =>
    Effect.gen(function* () {
      const all = yield* scripted()
      const { client, target } = yield* asked(all, get("/", ["Connection: close"]))
      yield* target.send(answer)
      yield* target.end
      assert.strictEqual((yield* client.receiveResponse).status, 502)
      yield* client.end
      yield* all.proxy.idle
      yield* left(all.behind)
    })
  )

  it.scopedLive("whose answer breaks off breaks the client's off too: it does not look whole", () =>
    Effect.gen(function* () {
      const all = yield* scripted()
      for (const request of [get("/"), offer()]) {
        for (const framing of ["Content-Length: 10", "Transfer-Encoding: chunked"]) {
          const { client, target } = yield* asked(all, request)
          yield* target.send(message("HTTP/1.1 404 Not Found", [framing], "3\r\none\r\n"))
          yield* client.receiveUntil("one\r\n")
          yield* target.reset
          const rest = yield* Effect.either(client.receiveUntil("0\r\n\r\n"))
          assert.strictEqual(rest._tag, "Left")
        }
      }
      yield* all.proxy.idle
    })
  )

  it.scopedLive.prop(
    "that ends or resets at any byte of its answer leaves a whole answer or a broken one, and nothing open",
    [
      FastCheck.nat({ max: 120 }),
      FastCheck.boolean(),
      FastCheck.constantFrom(get("/"), post("/", "content"), offer("early"))
    ],
    ([at, fin, request]) =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        const all = yield* scripted()
        const answer = request.startsWith("GET / HTTP/1.1\r\nHost: example")
          ? `${switched}${"x".repeat(60)}`
          : message("HTTP/1.1 200 OK", ["Content-Length: 60"], "x".repeat(60))
        const client = yield* all.proxy.connect
        yield* client.send(request)
        const target = yield* all.behind.accept
        yield* target.receiveUntil("\r\n\r\n")
        yield* target.send(answer.slice(0, at))
        yield* fin ? target.end : target.reset
        const first = yield* Effect.either(client.receiveHead)
        if (first._tag === "Right") {
          assert.include([101, 200, 502], first.right.status)
        }
        yield* client.end
        yield* Effect.forkScoped(Effect.zipRight(target.closed, target.end))
        yield* client.closed
        yield* all.proxy.idle
        yield* left(all.behind)
        assert.deepStrictEqual(seen, [])
      }),
    { fastCheck: { numRuns: runs(25) } }
  )
})

describe("a client", () => {
  it.scopedLive("that goes takes its request to the backend with it, before the answer and during it", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const all = yield* scripted()
      for (const request of [get("/"), post("/", "content"), offer()]) {
        const early = yield* asked(all, request)
        yield* turns(5)
        yield* early.client.reset
        yield* early.target.closed
        yield* early.target.end
      }
      const late = yield* asked(all, get("/"))
      yield* late.target.send(message("HTTP/1.1 200 OK", ["Content-Length: 1000"], "some"))
      yield* late.client.receiveUntil("some")
      yield* late.client.reset
      yield* late.target.closed
      yield* late.target.end
      yield* all.proxy.idle
      yield* left(all.behind)
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive.prop(
    "that is cut off at any byte leaves nothing open on either side",
    [
      FastCheck.constantFrom(get("/"), post("/", "content"), offer("x".repeat(40))),
      FastCheck.nat({ max: 110 }),
      FastCheck.boolean(),
      FastCheck.nat({ max: 150 })
    ],
    ([request, there, fin, back]) =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        const behind = yield* serve(
          Effect.flatMap(
            HttpServerRequest.HttpServerRequest,
            (request): App => (request.headers.upgrade === undefined ? told : echo)
          )
        )
        const proxy = yield* serve(Tunnel.reverseProxy(`http://127.0.0.1:${behind.port}`, { agent: new Http.Agent() }))
        yield* Effect.scoped(
          Effect.gen(function* () {
            const bad = yield* Faults.through(net.connect(proxy.port, "127.0.0.1"), {
              toServer: fin ? { endAt: there } : { resetAt: there },
              toClient: { resetAt: back }
            })
            const client = yield* Peer.fromDuplex(bad)
            yield* client.send(request)
            yield* client.end
            yield* client.closed
          })
        )
        yield* proxy.idle
        yield* behind.idle
        assert.deepStrictEqual(seen, [])
      }),
    { fastCheck: { numRuns: runs(25) } }
  )

  it.scopedLive("that does not read stops the backend, for both kinds of request", () =>
    Effect.gen(function* () {
      const all = yield* scripted()
      for (const [request, head] of [
        [get("/"), message("HTTP/1.1 200 OK", ["Connection: close"])],
        [offer(), switched]
      ] as const) {
        const { client, target } = yield* asked(all, request)
        const sending = yield* Effect.fork(
          Effect.forEach([head, ...Array(640).fill(Buffer.alloc(65_536))], (bytes) => target.send(bytes), {
            discard: true
          })
        )
        yield* until(() => target.socket.writableNeedDrain)
        yield* turns(200)
        assert.isNull(sending.unsafePoll())
        yield* Effect.all([Fiber.interrupt(sending), client.reset, target.reset])
      }
    })
  )
})

describe("a reverse proxy", () => {
  it("is made for a URL of HTTP or WebSocket alone", () => {
    for (const target of ["ftp://a", "a:80", "unix:/run/a", "mailto:a@b"]) {
      assert.throws(() => Tunnel.reverseProxy(target), TypeError)
    }
  })
})
