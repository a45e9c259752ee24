import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import * as UpgradeError from "../../src/UpgradeError.js"
import { type App, asking, echoed, kinds, message, serve } from "../support.js"

const connecting = (authority: string, fields: ReadonlyArray<string> = [], content = "") =>
  message(`CONNECT ${authority} HTTP/1.1`, [`Host: ${authority || "a"}`, ...fields], content)

const established = "HTTP/1.1 200 Connection Established\r\n\r\n"

const tunnel = Upgrade.onUpgrade(Protocol.connect, echoed)

const direct = Effect.gen(function* () {
  yield* echoed(yield* Upgrade.upgrade(Protocol.connect))
  return Upgrade.done
})

describe.each(kinds)("over %s", (kind) => {
  it.scoped.each([
    ["onUpgrade", tunnel],
    ["upgrade", direct],
    ["session", Upgrade.session(direct)]
  ] as ReadonlyArray<readonly [string, App]>)(
    "RFC 9110 §9.3.6: a CONNECT is a tunnel from the end of the 200's head on, with %s",
    ([_, app]) =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(app, { kind })
        const peer = yield* connect
        yield* peer.send(connecting("example.com:443", [], "early "))
        assert.strictEqual((yield* peer.receiveHead).raw, established)
        yield* peer.send("and late")
        yield* peer.end
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "early and late")
        yield* idle
      })
  )

  it.scoped("a CONNECT that nobody answers gets 501 and the end of the connection, never silence", () =>
    Effect.gen(function* () {
      const { connect, idle } = yield* serve(
        HttpRouter.empty.pipe(HttpRouter.get("/", Effect.succeed(HttpServerResponse.empty()))),
        {
          kind
        }
      )
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443", [], "early"))
      const { headers, status } = yield* peer.receiveResponse
      assert.deepStrictEqual([status, headers.connection], [501, "close"])
      assert.strictEqual((yield* peer.receiveAll).length, 0)
      yield* peer.end
      yield* idle
    })
  )
})

describe("the target of a CONNECT", () => {
  it.scoped.each([
    "example.com",
    "example.com:",
    "example.com:0",
    "example.com:65536",
    "example.com:http",
    "example.com:+80",
    ":443",
    "user@example.com:443",
    "user:password@example.com:443",
    "[::1",
    "[::1]",
    "[::g]:443",
    "::1:443",
    "example.com:443/path",
    "http://example.com:443/",
    "/",
    "*"
  ])("RFC 9110 §9.3.6: without a valid port and host is refused with 400, and the connection closed (%s)", (target) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(tunnel)
      const peer = yield* connect
      yield* peer.send(connecting(target))
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 400)
      assert.include((head.headers.connection ?? "").split(/\s*,\s*/), "close")
    })
  )

  it.scoped.each(["example.com:443", "127.0.0.1:1", "[::1]:65535", "[2001:db8::1]:22", "a:80", "EXAMPLE.com:080"])(
    "RFC 9112 §3.2.3: in authority-form reaches the handler as it stands (%s)",
    (target) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(
          Effect.gen(function* () {
            const { url } = yield* HttpServerRequest.HttpServerRequest
            const upgraded = yield* Upgrade.upgrade(Protocol.connect)
            yield* Upgraded.write(upgraded, url)
            return Upgrade.done
          })
        )
        const peer = yield* connect
        yield* peer.send(connecting(target))
        assert.strictEqual((yield* peer.receiveHead).raw, established)
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), target)
      })
  )

  it.scoped("RFC 9110 §9.3.6: is for the handler to restrict, as with 403 for a port", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ url }): App =>
            url.endsWith(":25") ? Effect.succeed(HttpServerResponse.text("no mail", { status: 403 })) : tunnel
        )
      )
      const refused = yield* connect
      yield* refused.send(connecting("example.com:25"))
      assert.deepInclude(yield* refused.receiveResponse, { status: 403, text: "no mail" })
      const allowed = yield* connect
      yield* allowed.send(connecting("example.com:443"))
      assert.strictEqual((yield* allowed.receiveHead).status, 200)
    })
  )
})

describe("the answer to a CONNECT", () => {
  it.scoped("RFC 9110 §9.3.6: has neither Content-Length nor Transfer-Encoding when it is the tunnel", () =>
    Effect.gen(function* () {
      for (const headers of [{ "content-length": "0" }, { "transfer-encoding": "chunked" }]) {
        const { connect } = yield* serve(Upgrade.onUpgrade(Protocol.connect, echoed, { headers }))
        const peer = yield* connect
        yield* peer.send(connecting("example.com:443"))
        assert.strictEqual((yield* peer.receiveHead).status, 500)
      }
      const { connect } = yield* serve(Upgrade.onUpgrade(Protocol.connect, echoed, { headers: { "x-via": "here" } }))
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443"))
      assert.strictEqual((yield* peer.receiveHead).raw, "HTTP/1.1 200 Connection Established\r\nx-via: here\r\n\r\n")
    })
  )

  it.scoped.each([
    ["200 with a text", Effect.succeed(HttpServerResponse.text("everything is fine"))],
    ["204", Effect.succeed(HttpServerResponse.empty())],
    ["200 with a stream", Effect.succeed(HttpServerResponse.stream(Stream.make(Buffer.from("x"))))],
    [
      "a catch-all route's 200",
      HttpRouter.empty.pipe(HttpRouter.all("*", Effect.succeed(HttpServerResponse.text("everything is fine"))))
    ]
  ] as ReadonlyArray<readonly [string, App]>)(
    "RFC 9110 §9.3.6: is 501 in place of %s without a switch, for that would be the tunnel",
    ([_, app]) =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(app)
        const peer = yield* connect
        yield* peer.send(connecting("example.com:443", [], message("GET / HTTP/1.1", ["Host: a"])))
        const { headers, status } = yield* peer.receiveResponse
        assert.deepStrictEqual([status, headers.connection], [501, "close"])
        assert.strictEqual((yield* peer.receiveAll).length, 0)
        yield* peer.end
        yield* idle
      })
  )

  it.scoped.each([301, 400, 403, 404, 405, 407, 500, 502, 504])(
    "RFC 9110 §9.3.6: of status %s is an ordinary one with its content, and closes the connection (optimistic-upgrade draft)",
    (status) =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(
          Effect.succeed(HttpServerResponse.text(`No, ${status}.`, { status, headers: { "x-own": "1" } }))
        )
        const peer = yield* connect
        yield* peer.send(connecting("example.com:443", [], "optimistic"))
        const response = yield* peer.receiveResponse
        assert.deepStrictEqual(
          [response.status, response.text, response.headers["x-own"], response.headers.connection],
          [status, `No, ${status}.`, "1", "close"]
        )
        assert.strictEqual((yield* peer.receiveAll).length, 0)
        yield* peer.end
        yield* idle
      })
  )

  it.scoped("RFC 9110 §9.3.6: is 501 in place of a 2xx that a handler writes by itself, past the platform", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.map(HttpServerRequest.HttpServerRequest, (request) => {
          const response = NodeHttpServerRequest.toServerResponse(request)
          response.writeHead(200, { "content-length": "0" })
          response.end()
          return HttpServerResponse.empty()
        })
      )
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443"))
      assert.strictEqual((yield* peer.receiveResponse).status, 501)
    })
  )

  it.scoped("is a refusal where the handler speaks no tunnel, and does not name CONNECT as a token", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade(Protocol.raw("echo"), echoed))
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443"))
      const { headers, status } = yield* peer.receiveResponse
      assert.include([405, 426, 501], status)
      assert.strictEqual(headers.connection, "close")
      assert.notInclude(headers.upgrade ?? "", "CONNECT")
    })
  )

  it.scoped("of a handler that refuses is the protocol's, and closes", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.zipRight(
          Effect.fail(
            new UpgradeError.HandshakeRefused({
              protocol: "CONNECT",
              status: 407,
              description: "Who are you?",
              headers: { "proxy-authenticate": "Basic" }
            })
          ),
          tunnel
        )
      )
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443"))
      const { headers, status } = yield* peer.receiveResponse
      assert.deepStrictEqual([status, headers["proxy-authenticate"], headers.connection], [407, "Basic", "close"])
    })
  )
})

describe("a CONNECT", () => {
  it.scoped("RFC 9110 §9.3.6: has no content: what follows its head is the tunnel's", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(tunnel)
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443", [], "\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${established}\r\n\r\nGET / HTTP/1.1\r\n\r\n`)
    })
  )

  it.scoped("RFC 9110 §9.3.6: one side's end reaches the other with all that was written before", () =>
    Effect.gen(function* () {
      const size = 300_000
      const { connect, idle } = yield* serve(
        Upgrade.onUpgrade(Protocol.connect, (upgraded) =>
          Effect.zipRight(Upgraded.write(upgraded, Buffer.alloc(size)), Upgraded.end(upgraded))
        )
      )
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443"))
      yield* peer.receiveHead
      assert.strictEqual((yield* peer.receiveAll).length, size)
      yield* peer.end
      yield* idle
    })
  )

  it.scoped("waits for the responses before it", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ method }): App =>
            (method as string) === "CONNECT" ? tunnel : Effect.as(Effect.yieldNow(), HttpServerResponse.text("first"))
        )
      )
      const peer = yield* connect
      yield* peer.send(`${message("GET / HTTP/1.1", ["Host: a"])}${connecting("example.com:443", [], "early")}`)
      assert.strictEqual((yield* peer.receiveResponse).text, "first")
      assert.strictEqual((yield* peer.receiveHead).raw, established)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "early")
    })
  )

  it.scoped("with an Upgrade field is still the tunnel", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade([Protocol.raw("echo"), Protocol.connect], echoed))
      const peer = yield* connect
      yield* peer.send(connecting("example.com:443", ["Connection: Upgrade", "Upgrade: echo"]))
      assert.strictEqual((yield* peer.receiveHead).raw, established)
    })
  )

  it.scoped("is not entered by another method", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(tunnel)
      for (const request of [asking("/", { token: "CONNECT" }), message("GET / HTTP/1.1", ["Host: a"])]) {
        const peer = yield* connect
        yield* peer.send(request)
        const { status } = yield* peer.receiveHead
        assert.isTrue(status >= 400)
      }
    })
  )

  it.scoped("in HTTP/1.0 or without a Host is answered, and is no tunnel without a handler's word", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Effect.succeed(HttpServerResponse.text("plain")))
      for (const request of [
        message("CONNECT example.com:443 HTTP/1.0", []),
        message("CONNECT example.com:443 HTTP/1.1", [])
      ]) {
        const peer = yield* connect
        yield* peer.send(request)
        yield* peer.end
        assert.match(Buffer.from(yield* peer.receiveAll).toString(), /^HTTP\/1\.1 (?:400|501) /)
      }
    })
  )
})
