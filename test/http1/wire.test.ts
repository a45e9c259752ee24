import * as Http from "node:http"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Connection from "../../src/Connection.js"
import * as Protocol from "../../src/Protocol.js"
import * as Arbitrary from "../../src/testing/Arbitrary.js"
import type * as Peer from "../../src/testing/Peer.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import { type App, asking, echo, echoed, kinds, message, runs, serve } from "../support.js"

const raw = Protocol.raw("echo")

const forms: ReadonlyArray<readonly [string, App]> = [
  ["onUpgrade", echo],
  [
    "upgrade",
    Effect.gen(function* () {
      yield* echoed(yield* Upgrade.upgrade(raw))
      return Upgrade.done
    })
  ],
  [
    "session",
    Upgrade.session(
      Effect.gen(function* () {
        yield* echoed(yield* Upgrade.upgrade(raw))
        return Upgrade.done
      })
    )
  ],
  [
    "respond",
    Effect.gen(function* () {
      const [response, upgraded] = yield* Upgrade.respond(raw)
      yield* Effect.forkDaemon(Effect.scoped(Effect.flatMap(upgraded, echoed)))
      return response
    })
  ]
]

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

/** Sends a request and what follows it, ends, and yields all that comes back until the server's FIN. */
const exchange = (connect: Effect.Effect<Peer.Peer, Peer.PeerError, any>, bytes: string | Uint8Array) =>
  Effect.scoped(
    Effect.gen(function* () {
      const peer = yield* connect
      yield* peer.send(bytes)
      yield* peer.end
      return Buffer.from(yield* peer.receiveAll).toString("latin1")
    })
  )

/** The head of the answer to a request, on a connection of its own. */
const answer = (connect: Effect.Effect<Peer.Peer, Peer.PeerError, any>, bytes: string | Uint8Array) =>
  Effect.scoped(
    Effect.gen(function* () {
      const peer = yield* connect
      yield* peer.send(bytes)
      return yield* peer.receiveHead
    })
  )

describe.each(kinds)("over %s", (kind) => {
  describe.each(forms)("with %s", (_, app) => {
    it.scoped("the 101 is its head and nothing else, then the other protocol's bytes (RFC 9110 §7.8)", () =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(app, { kind })
        assert.strictEqual(yield* exchange(connect, `${asking("/")}early`), `${switching}early`)
        yield* idle
      })
    )
  })

  it.scoped("a request and the bytes behind it are read the same, wherever they are split", () =>
    Effect.gen(function* () {
      const { connect, idle } = yield* serve(echo, { kind })
      const bytes = `${asking("/")}early`
      yield* Effect.forEach(
        Array.from({ length: bytes.length - 1 }, (_, i) => i + 1),
        (at) =>
          Effect.scoped(
            Effect.gen(function* () {
              const peer = yield* connect
              yield* peer.sendSplit(bytes, [at])
              yield* peer.end
              assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
            })
          ),
        { concurrency: 8 }
      )
      yield* idle
    })
  )

  it.scoped("a request that is sent byte by byte is switched", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo, { kind })
      const peer = yield* connect
      const bytes = `${asking("/")}early`
      yield* peer.sendSplit(
        bytes,
        Array.from(bytes, (_, i) => i)
      )
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
    })
  )

  it.scoped("each side may end first and the other goes on", () =>
    Effect.gen(function* () {
      const { connect, idle } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) =>
          Effect.gen(function* () {
            yield* Upgraded.end(upgraded)
            const bytes = yield* Upgraded.readExactly(upgraded, 4)
            assert.strictEqual(Buffer.from(bytes).toString(), "late")
          })
        ),
        { kind }
      )
      const peer = yield* connect
      yield* peer.send(asking("/"))
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), switching)
      yield* peer.send("late")
      yield* peer.end
      yield* idle
    })
  )

  it.scoped("RFC 9112 §9.6: what was written is received, whatever input is left unread", () =>
    Effect.gen(function* () {
      const size = 512 * 1024
      const { connect, idle } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) => Upgraded.write(upgraded, Buffer.alloc(size, "x"))),
        { kind }
      )
      const peer = yield* connect
      yield* peer.send(Buffer.concat([Buffer.from(asking("/")), Buffer.alloc(100_000, "y")]))
      yield* peer.receiveHead
      const received = yield* peer.receiveAll
      assert.strictEqual(received.length, size)
      yield* peer.end
      yield* idle
    })
  )
})

describe("a listener", () => {
  it.scoped("with TLS shows the client's certificate, before the switch and after it", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const { socket } = yield* Connection.currentWith(Connection.Tls)
          const before = socket.getPeerCertificate().subject.CN
          const upgraded = yield* Upgrade.upgrade(Connection.Tls, raw)
          yield* Upgraded.write(upgraded, `${before} ${upgraded.socket.getPeerCertificate().subject.CN}`)
          return Upgrade.done
        }),
        { kind: "tls" }
      )
      const peer = yield* connect
      yield* peer.send(asking("/"))
      yield* peer.receiveHead
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "localhost localhost")
    })
  )

  it.scoped("with TLS shows the client's certificate to an ordinary request", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.map(Connection.currentWith(Connection.Tls), ({ socket }) =>
          HttpServerResponse.text(String(socket.getPeerCertificate().subject.CN))
        ),
        { kind: "tls" }
      )
      const peer = yield* connect
      yield* peer.send(message("GET / HTTP/1.1", ["Host: a"]))
      assert.strictEqual((yield* peer.receiveResponse).text, "localhost")
    })
  )

  it.scoped("with TLS is also what needs a plain one", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade(Connection.Tls, raw, echoed), { kind: "tls" })
      assert.strictEqual(yield* exchange(connect, `${asking("/")}x`), `${switching}x`)
    })
  )

  it.scoped("without TLS is not one with TLS", () =>
    Effect.gen(function* () {
      const failed = yield* Effect.exit(
        serve(Upgrade.onUpgrade(Connection.Tls, raw, echoed) as App, { kind: "tcp" }).pipe(
          Effect.flatMap(({ connect }) => answer(connect, asking("/")))
        )
      )
      // The types forbid it; at run time the service is missing, and the client gets a 500
      assert.strictEqual(failed._tag === "Success" ? failed.value.status : 500, 500)
    })
  )
})

describe("the offers", () => {
  const offers = Effect.map(Upgrade.offers, (offers) => HttpServerResponse.unsafeJson(offers.map(({ token }) => token)))

  it.scoped("RFC 9110 §7.8: are a list over all field lines, in the client's order", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(offers)
      const requests = Arbitrary.upgrade().chain((upgrade) =>
        Arbitrary.split(
          Arbitrary.request({
            methods: ["GET", "POST", "OPTIONS"],
            headers: Arbitrary.upgradeFields(FastCheck.constant(upgrade))
          })
        ).map((request) => ({ ...request, upgrade }))
      )
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(requests, ({ at, bytes, upgrade }) =>
            Effect.gen(function* () {
              const peer = yield* connect
              yield* peer.sendSplit(bytes, at)
              const { text } = yield* peer.receiveResponse
              assert.deepStrictEqual(
                JSON.parse(text),
                upgrade.offers.map(({ token }) => token)
              )
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: runs(60) }
        )
      )
    })
  )

  it.scoped.each([
    ["a list", ["Upgrade: foo, echo"]],
    ["several field lines", ["Upgrade: foo", "Upgrade: bar, echo"]],
    ["empty elements and whitespace", ["Upgrade: ,foo , ,\techo\t,"]],
    ["what is no protocol", ["Upgrade: @, a b, echo"]],
    ["versions of others", ["Upgrade: echo/2, TLS/1.2, echo"]]
  ] as const)("RFC 9110 §7.8: a protocol is found among %s", ([_, fields]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      const request = message("GET / HTTP/1.1", ["Host: a", "Connection: Upgrade", ...fields], "x")
      assert.strictEqual(yield* exchange(connect, request), `${switching}x`)
    })
  )

  it.scoped.each(["echo/2", "echoes", "ech", "e-cho", '"echo"', "echo;q=1", "echo/", "foo/echo", "ech\u00d3"])(
    "RFC 9110 §7.8: the server never switches to what was not listed (%s)",
    (token) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(echo)
        const { headers, status } = yield* answer(connect, Buffer.from(asking("/", { token }), "latin1"))
        assert.strictEqual(status, 426)
        assert.strictEqual(headers.upgrade, "echo")
      })
  )

  it.scoped("RFC 9110 §7.8: names are matched without regard to case", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      for (const token of ["ECHO", "Echo", "eChO"]) {
        assert.strictEqual(yield* exchange(connect, `${asking("/", { token })}x`), `${switching}x`)
      }
    })
  )

  it.scoped("RFC 9110 §7.8: versions are matched as they stand", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade(Protocol.raw("chat/V2"), echoed))
      const statuses = yield* Effect.forEach(["chat/V2", "Chat/V2", "chat/v2", "chat/2", "chat"], (token) =>
        Effect.map(answer(connect, asking("/", { token })), ({ status }) => status)
      )
      assert.deepStrictEqual(statuses, [101, 101, 426, 426, 426])
    })
  )

  it.scoped("RFC 9110 §7.8: the server's own order decides between several", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade([Protocol.raw("v2"), Protocol.raw("v1")], echoed))
      const chosen = yield* Effect.forEach(["v1, v2", "v2, v1", "v1", "v0, v1"], (token) =>
        Effect.map(answer(connect, asking("/", { token })), ({ headers }) => headers.upgrade)
      )
      assert.deepStrictEqual(chosen, ["v2", "v2", "v1", "v1"])
    })
  )

  it.scoped("RFC 9110 §7.8: the client's order is there for a handler that follows it", () =>
    Effect.gen(function* () {
      const protocols = { v1: Protocol.raw("v1"), v2: Protocol.raw("v2") }
      const { connect } = yield* serve(
        Effect.flatMap(Upgrade.offers, ([first]) => Upgrade.onUpgrade(protocols[first!.token as "v1" | "v2"], echoed))
      )
      const chosen = yield* Effect.forEach(["v1, v2", "v2, v1"], (token) =>
        Effect.map(answer(connect, asking("/", { token })), ({ headers }) => headers.upgrade)
      )
      assert.deepStrictEqual(chosen, ["v1", "v2"])
    })
  )
})

describe("the Connection field", () => {
  it.scoped.each([
    [["Connection: keep-alive, Upgrade"]],
    [["Connection: Upgrade,keep-alive"]],
    [["Connection: keep-alive", "Connection: Upgrade"]],
    [["Connection: upgrade"]],
    [["connection:UPGRADE"]],
    [["Connection: Upgrade, HTTP2-Settings"]],
    [["Connection:   Upgrade  "]]
  ] as const)("RFC 9110 §7.8: with the option upgrade in it the request may be switched (%j)", ([fields]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      const request = message("GET / HTTP/1.1", ["Host: a", ...fields, "Upgrade: echo"], "x")
      assert.strictEqual(yield* exchange(connect, request), `${switching}x`)
    })
  )

  it.scoped.each([
    [[]],
    [["Connection: keep-alive"]],
    [["Connection: upgraded"]],
    [["Connection: no-upgrade"]],
    [["Connection: up grade"]],
    [['Connection: "upgrade"']]
  ] as const)("RFC 9110 §7.6.1: without it the Upgrade field is not for this server (%j)", ([fields]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const wanted = yield* Upgrade.wants(raw)
          const error = yield* Effect.flip(Upgrade.upgrade(raw))
          return HttpServerResponse.text(`${wanted} ${error._tag} ${"reason" in error ? error.reason : ""}`)
        })
      )
      const peer = yield* connect
      yield* peer.send(message("GET / HTTP/1.1", ["Host: a", ...fields, "Upgrade: echo"]))
      assert.strictEqual((yield* peer.receiveResponse).text, "false NotUpgradable NoConnectionOption")
    })
  )

  it.scoped("RFC 9110 §7.8: an Upgrade field is missing where Connection only announces it", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      const { headers, status } = yield* answer(connect, message("GET / HTTP/1.1", ["Host: a", "Connection: Upgrade"]))
      assert.deepStrictEqual([status, headers.upgrade], [426, "echo"])
    })
  )
})

describe("the 101", () => {
  it.scoped("RFC 9110 §15.2.2: names the protocol in one Upgrade field, and upgrade in Connection", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Upgrade.onUpgrade(raw, echoed, { headers: { upgrade: "other", connection: "close", "x-room": "1" } })
      )
      const { raw: head } = yield* answer(connect, asking("/", { token: "h2c, echo, foo" }))
      assert.strictEqual(
        head,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nx-room: 1\r\n\r\n"
      )
    })
  )

  it.scoped("RFC 9110 §8.6, RFC 9112 §6.1: has neither Content-Length nor Transfer-Encoding", () =>
    Effect.gen(function* () {
      for (const [, app] of forms) {
        const { connect } = yield* serve(app)
        const { headers } = yield* answer(connect, asking("/"))
        assert.deepStrictEqual(Object.keys(headers), ["connection", "upgrade"])
      }
    })
  )

  it.scoped("RFC 9110 §7.8: what the handler writes follows its head at once", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) => Upgraded.write(upgraded, "the answer in the other protocol"))
      )
      assert.strictEqual(yield* exchange(connect, asking("/")), `${switching}the answer in the other protocol`)
    })
  )

  it.scoped("carries the handler's fields, cookies and reason, and those of hooks", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          yield* HttpApp.appendPreResponseHandler((_, response) =>
            Effect.succeed(HttpServerResponse.setHeader(response, "x-hook", "2"))
          )
          return yield* Upgrade.onUpgrade(raw, echoed, { headers: { "x-own": "1" }, statusText: "UPGRADED" }).pipe(
            Effect.flatMap(HttpServerResponse.setCookie("a", "b"))
          )
        })
      )
      const { headers, statusText } = yield* answer(connect, asking("/"))
      assert.strictEqual(statusText, "UPGRADED")
      assert.strictEqual(headers["x-own"], "1")
      assert.strictEqual(headers["x-hook"], "2")
      assert.strictEqual(headers["set-cookie"], "a=b")
    })
  )

  it.scoped("is never answered to a second switch of the same request", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const upgraded = yield* Upgrade.upgrade(raw)
          const error = yield* Effect.flip(Upgrade.upgrade(raw))
          yield* Upgraded.write(upgraded, error._tag)
          return Upgrade.done
        })
      )
      assert.strictEqual(yield* exchange(connect, asking("/")), `${switching}AlreadyUpgraded`)
    })
  )

  it.scoped("is followed by no byte of HTTP, whatever the handler returns after its session", () =>
    Effect.gen(function* () {
      for (const last of [HttpServerResponse.text("late", { status: 500 }), HttpServerResponse.empty(), Upgrade.done]) {
        const { connect } = yield* serve(
          Effect.gen(function* () {
            yield* echoed(yield* Upgrade.upgrade(raw))
            return last
          })
        )
        assert.strictEqual(yield* exchange(connect, `${asking("/")}x`), `${switching}x`)
      }
    })
  )
})

describe("the request's method", () => {
  it.scoped("RFC 9110 §7.8: a protocol is not entered by a method that it cannot honour: 405 with Allow", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Upgrade.onUpgrade(Protocol.make({ token: "echo", methods: ["POST", "OPTIONS"] }), echoed)
      )
      const { headers, status } = yield* answer(connect, asking("/"))
      assert.deepStrictEqual([status, headers.allow], [405, "POST, OPTIONS"])
      assert.strictEqual(
        yield* exchange(connect, asking("/", { method: "POST", fields: ["Content-Length: 0"], content: "x" })),
        `${switching}x`
      )
    })
  )

  it.scoped("RFC 9110 §7.8: OPTIONS switches, also with the target *", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      assert.strictEqual(yield* exchange(connect, `${asking("*", { method: "OPTIONS" })}x`), `${switching}x`)
    })
  )

  it.scoped.each(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])(
    "a raw protocol is entered by %s",
    (method) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(echo)
        assert.strictEqual(yield* exchange(connect, `${asking("/", { method })}x`), `${switching}x`)
      })
  )
})

describe("the version", () => {
  const http10 = (...fields: ReadonlyArray<string>) =>
    message("GET / HTTP/1.0", ["Connection: Upgrade", "Upgrade: echo", ...fields])

  it.scoped("RFC 9110 §7.8: in HTTP/1.0 an Upgrade is ignored", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const wanted = yield* Upgrade.wants(raw)
          const offers = yield* Upgrade.offers
          const error = yield* Effect.flip(Upgrade.upgrade(raw))
          return HttpServerResponse.text(
            `${wanted} ${offers.length} ${error._tag} ${"reason" in error ? error.reason : ""}`
          )
        })
      )
      const peer = yield* connect
      yield* peer.send(http10())
      const response = yield* peer.receiveResponse
      assert.deepStrictEqual([response.status, response.text], [200, "false 0 NotUpgradable HttpVersion"])
      assert.strictEqual(response.headers.connection, "close")
      assert.strictEqual((yield* peer.receiveAll).length, 0)
    })
  )

  it.scoped("RFC 9110 §15.2: HTTP/1.0 gets no 1xx, whatever it expects and whatever the handler does", () =>
    Effect.gen(function* () {
      for (const [, app] of forms) {
        const { connect } = yield* serve(app)
        const received = yield* exchange(connect, http10("Expect: 100-continue"))
        assert.match(received, /^HTTP\/1\.1 426 /)
        assert.notMatch(received, /HTTP\/1\.\d 1\d\d/)
      }
    })
  )

  it.scoped("HTTP/1.0 with keep-alive is kept alive after an ignored upgrade", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Effect.succeed(HttpServerResponse.text("plain")))
      const peer = yield* connect
      for (let i = 0; i < 2; i++) {
        yield* peer.send(message("GET / HTTP/1.0", ["Connection: keep-alive, Upgrade", "Upgrade: echo"]))
        const { headers, text } = yield* peer.receiveResponse
        assert.deepStrictEqual([text, headers.connection], ["plain", "keep-alive"])
      }
    })
  )

  it.scoped("HTTP/2.0 and other versions in the request line never switch", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo)
      for (const version of ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/1", "HTTQ/1.1"]) {
        const received = yield* exchange(
          connect,
          message(`GET / ${version}`, ["Host: a", "Connection: Upgrade", "Upgrade: echo"])
        )
        assert.notMatch(received, /^HTTP\/1\.1 101/)
      }
    })
  )
})

describe("the target", () => {
  const where = Effect.gen(function* () {
    const request = yield* HttpServerRequest.HttpServerRequest
    const upgraded = yield* Upgrade.upgrade(raw)
    yield* Upgraded.write(upgraded, `${request.url} ${request.originalUrl}`)
    return Upgrade.done
  })

  it.scoped.each([
    "/a?b=c",
    "http://example.com/a?b=c",
    "http://example.com",
    "/%00%ff",
    "//",
    "/a#b",
    "*",
    "http://["
  ])("RFC 9112 §3.2: %s reaches the handler as it stands", (target) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(where)
      const received = yield* exchange(connect, asking(target, { method: "OPTIONS" }))
      assert.strictEqual(received, `${switching}${target} ${target}`)
    })
  )
})

describe("the Host field", () => {
  const missing = message("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: echo"], "early")

  it.scoped("RFC 9112 §3.2: its lack is answered with 400, and the connection closed", () =>
    Effect.gen(function* () {
      const { connect, idle } = yield* serve(echo)
      const peer = yield* connect
      yield* peer.send(missing)
      const { headers, status } = yield* peer.receiveResponse
      assert.deepStrictEqual([status, headers.connection], [400, "close"])
      assert.strictEqual((yield* peer.receiveAll).length, 0)
      yield* peer.end
      yield* idle
    })
  )

  it.scoped("its lack is allowed where the server says so", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(echo, { node: { requireHostHeader: false } })
      assert.strictEqual(yield* exchange(connect, missing), `${switching}early`)
    })
  )
})

describe("the interim response", () => {
  it.scoped("RFC 9110 §7.8: 100 is sent before the 101 to a request that expects it", () =>
    Effect.gen(function* () {
      for (const [, app] of forms) {
        const { connect } = yield* serve(app)
        const received = yield* exchange(connect, `${asking("/", { fields: ["Expect: 100-continue"] })}x`)
        assert.strictEqual(received, `HTTP/1.1 100 Continue\r\n\r\n${switching}x`)
      }
    })
  )

  it.scoped("RFC 9110 §10.1.1: another expectation is answered with 417, before any handler", () =>
    Effect.gen(function* () {
      let called = false
      const { connect } = yield* serve(
        Effect.suspend(() => {
          called = true
          return echo
        })
      )
      const { status } = yield* answer(connect, asking("/", { fields: ["Expect: the-unexpected"] }))
      assert.deepStrictEqual([status, called], [417, false])
    })
  )
})

describe("other responses", () => {
  it.scoped("RFC 9110 §7.8: may advertise Upgrade, and switch nothing by it", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.succeed(HttpServerResponse.text("plain", { headers: { upgrade: "echo, h2c", connection: "upgrade" } }))
      )
      const peer = yield* connect
      for (const request of [
        message("GET / HTTP/1.1", ["Host: a"]),
        asking("/", { connection: "keep-alive, Upgrade" })
      ]) {
        yield* peer.send(request)
        const { headers, status, text } = yield* peer.receiveResponse
        assert.deepStrictEqual([status, text, headers.upgrade], [200, "plain", "echo, h2c"])
      }
    })
  )

  it.scoped(
    "RFC 9110 §15.5.22: a 426 names the protocols in Upgrade, the preferred one first, and lists upgrade in Connection",
    () =>
      Effect.gen(function* () {
        const { connect } = yield* serve(Upgrade.onUpgrade([Protocol.raw("v2"), Protocol.raw("v1")], echoed))
        for (const request of [
          message("GET / HTTP/1.1", ["Host: a"]),
          asking("/", { token: "v3" }),
          message("GET / HTTP/1.1", ["Host: a", "Upgrade: v2"])
        ]) {
          const { headers, status } = yield* answer(connect, request)
          assert.strictEqual(status, 426)
          assert.strictEqual(headers.upgrade, "v2, v1")
          assert.include(headers.connection!.toLowerCase().split(/\s*,\s*/), "upgrade")
        }
      })
  )

  it.scoped("of status 101 without a switch are a 500", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Effect.succeed(HttpServerResponse.empty({ status: 101 })))
      for (const request of [message("GET / HTTP/1.1", ["Host: a"]), asking("/")]) {
        assert.strictEqual((yield* answer(connect, request)).status, 500)
      }
    })
  )
})

describe("a handler that writes by itself, past the platform", () => {
  it.scoped("gets a 500 in place of its 101 on a request that asks for a switch, and is served otherwise", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.map(HttpServerRequest.HttpServerRequest, (request) => {
          const response = NodeHttpServerRequest.toServerResponse(request)
          response.writeHead(request.url === "/101" ? 101 : 203, { "content-length": "0" })
          response.end()
          return HttpServerResponse.empty()
        })
      )
      const peer = yield* connect
      yield* peer.send(asking("/203"))
      assert.strictEqual((yield* peer.receiveResponse).status, 203)
      yield* peer.send(asking("/101"))
      assert.strictEqual((yield* peer.receiveResponse).status, 500)
    })
  )
})

describe("a switched connection", () => {
  it.scoped("is free of Node's own limits: of time, of requests, of closing what is idle", () =>
    Effect.gen(function* () {
      const { connect, server } = yield* serve(echo, {
        node: { requestTimeout: 20, headersTimeout: 10, keepAliveTimeout: 1, connectionsCheckingInterval: 10 }
      })
      server.maxRequestsPerSocket = 1
      const switchedOne = yield* connect
      yield* switchedOne.send(asking("/"))
      assert.strictEqual((yield* switchedOne.receiveHead).status, 101)
      // Where the limits hold they have passed when one who sends half a request is told so
      const slow = yield* connect
      yield* slow.send("GET / HTTP/1.1\r\n")
      assert.strictEqual((yield* slow.receiveHead).status, 408)
      server.closeAllConnections()
      yield* switchedOne.send("still here")
      yield* switchedOne.end
      assert.strictEqual(Buffer.from(yield* switchedOne.receiveAll).toString(), "still here")
    })
  )
})

describe("shouldUpgradeCallback", () => {
  const node: Http.ServerOptions & { readonly shouldUpgradeCallback: () => boolean } = {
    shouldUpgradeCallback: () => false
  }
  const supported = "shouldUpgradeCallback" in Http.createServer()

  it.scoped.skipIf(!supported)("that says no makes a request an ordinary one, which is refused or ignored", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ url }): App => (url === "/" ? echo : Effect.succeed(HttpServerResponse.text("plain")))
        ),
        { node }
      )
      const peer = yield* connect
      // One after the other: Node loses what is pipelined behind such a request
      yield* peer.send(asking("/ordinary"))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      yield* peer.send(asking("/"))
      assert.strictEqual((yield* peer.receiveResponse).status, 426)
    })
  )
})

describe("the leftover", () => {
  it.scoped("is all that came behind the request in its packet, and is read first", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<readonly [string, string]>()
      const { connect } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) =>
          Effect.gen(function* () {
            const leftover = Buffer.concat(Chunk.toReadonlyArray(upgraded.leftover)).toString()
            const first = yield* Upgraded.readExactly(upgraded, 5)
            yield* Deferred.succeed(seen, [leftover, Buffer.from(first).toString()])
          })
        )
      )
      const peer = yield* connect
      yield* peer.send(`${asking("/")}early`)
      assert.deepStrictEqual(yield* Deferred.await(seen), ["early", "early"])
    })
  )
})
