import { Readable } from "node:stream"
import { HttpBody, HttpClientRequest } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FastCheck, Fiber, Stream } from "effect"
import { Protocol, UpgradeClient, type UpgradeError } from "effect-upgrade"
import { isFieldName, isFieldValue } from "../../src/internal/http1/offers.js"
import type { Peer } from "../../src/testing/Peer.js"
import { runs } from "../support.js"
import { attempt, failureOf, fieldOf, requestHead, scripted, switching } from "./support.js"

const echo = Protocol.raw("echo")

/** What a scripted server is sent, up to the switch. */
const sent = <A, E>(
  target: UpgradeClient.Target,
  protocol: Protocol.Protocols = echo,
  read: (server: Peer) => Effect.Effect<A, E> = () => Effect.succeed(undefined as A)
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      const asking = yield* Effect.fork(Effect.scoped(UpgradeClient.upgrade(target, protocol, { socket })))
      const lines = yield* requestHead(server)
      const body = yield* read(server)
      yield* server.send(switching(Protocol.isProtocol(protocol) ? protocol.token : protocol[0].token))
      yield* server.end
      yield* Fiber.join(asking)
      return { lines, body }
    })
  )

const chunked = (server: Peer) =>
  Effect.map(server.receiveUntil("\r\n0\r\n\r\n"), (bytes) => {
    const text = Buffer.from(bytes).toString()
    let content = ""
    for (let at = 0; at < text.length; ) {
      const end = text.indexOf("\r\n", at)
      const size = Number.parseInt(text.slice(at, end), 16)
      content += text.slice(end + 2, end + 2 + size)
      at = end + 2 + size + 2
    }
    return content
  })

const exactly = (length: number) => (server: Peer) =>
  Effect.map(server.receiveExactly(length), (bytes) => Buffer.from(bytes).toString())

const refused = (
  target: UpgradeClient.Target,
  protocol: Protocol.Protocols = echo,
  options?: UpgradeClient.Options
): Effect.Effect<UpgradeError.InvalidRequest> =>
  Effect.map(attempt(UpgradeClient.upgrade(target, protocol, options)), (exit) => {
    const error = failureOf(exit)
    assert.strictEqual(error?._tag, "InvalidRequest")
    return error as UpgradeError.InvalidRequest
  })

describe("the head of a client's request", () => {
  it.live("asks in origin-form, with Host, upgrade in Connection and the token in Upgrade (RFC 9110 §7.8)", () =>
    Effect.gen(function* () {
      const { lines } = yield* sent("http://example.com:8080/a/b?c=d#e")
      assert.deepStrictEqual(lines, [
        "GET /a/b?c=d HTTP/1.1",
        "host: example.com:8080",
        "connection: Upgrade",
        "upgrade: echo"
      ])
    })
  )

  it.live("has the query parameters of the request, and none of the fragment", () =>
    Effect.gen(function* () {
      const request = HttpClientRequest.get("ws://example.com/a?b=c").pipe(
        HttpClientRequest.setUrlParam("d", "e f"),
        HttpClientRequest.setHash("g")
      )
      assert.strictEqual((yield* sent(request)).lines[0], "GET /a?b=c&d=e+f HTTP/1.1")
    })
  )

  it.live("leaves the port of the scheme out of Host", () =>
    Effect.forEach(["http://a:80/", "ws://a:80/", "https://a:443/", "wss://a:443/"], (url) =>
      Effect.map(sent(url), ({ lines }) => assert.strictEqual(fieldOf(lines, "host"), "a"))
    )
  )

  it.live("has the brackets of an IPv6 address in Host", () =>
    Effect.map(sent("http://[::1]:81/"), ({ lines }) => assert.strictEqual(fieldOf(lines, "host"), "[::1]:81"))
  )

  it.live(
    "offers several protocols in their order, with the fields of each; the preferred one's where two send one",
    () =>
      Effect.gen(function* () {
        const { lines } = yield* sent("http://a/", [
          Protocol.make({ token: "one/2", offer: { "x-one": "1", "x-both": "one", connection: "X-One" } }),
          Protocol.make({
            token: "two",
            offer: Effect.sync(() => ({ "x-both": "two", "x-two": "2", connection: "X-Two" }))
          })
        ])
        assert.strictEqual(fieldOf(lines, "upgrade"), "one/2, two")
        assert.strictEqual(fieldOf(lines, "connection"), "Upgrade, X-One, X-Two")
        assert.strictEqual(fieldOf(lines, "x-both"), "one")
        assert.strictEqual(fieldOf(lines, "x-one"), "1")
        assert.strictEqual(fieldOf(lines, "x-two"), "2")
      })
  )

  it.live("makes an offer anew for each attempt", () =>
    Effect.gen(function* () {
      let count = 0
      const protocol = Protocol.make({ token: "echo", offer: Effect.sync(() => ({ "x-key": String(++count) })) })
      const first = yield* sent("http://a/", protocol)
      const second = yield* sent("http://a/", protocol)
      assert.deepStrictEqual([fieldOf(first.lines, "x-key"), fieldOf(second.lines, "x-key")], ["1", "2"])
    })
  )

  it.live("keeps the request's own options of Connection beside upgrade, and its Host", () =>
    Effect.gen(function* () {
      const request = HttpClientRequest.get("http://a/").pipe(
        HttpClientRequest.setHeaders({ connection: "close, UPGRADE", host: "b", upgrade: "h2c", "x-own": "ü" })
      )
      const { lines } = yield* sent(request)
      assert.strictEqual(fieldOf(lines, "connection"), "close, UPGRADE")
      assert.strictEqual(fieldOf(lines, "host"), "b")
      assert.strictEqual(fieldOf(lines, "upgrade"), "echo")
      assert.strictEqual(fieldOf(lines, "x-own"), "ü")
    })
  )

  it.live("turns the user information of the URL into Basic credentials, unless the request has its own", () =>
    Effect.gen(function* () {
      const basic = yield* sent("http://me%3A:s%20e@a/")
      assert.strictEqual(fieldOf(basic.lines, "authorization"), `Basic ${Buffer.from("me::s e").toString("base64")}`)
      assert.strictEqual(fieldOf(basic.lines, "host"), "a")
      const own = yield* sent(HttpClientRequest.get("http://me:s@a/").pipe(HttpClientRequest.bearerToken("t")))
      assert.strictEqual(fieldOf(own.lines, "authorization"), "Bearer t")
    })
  )

  it.effect.prop(
    "is never written with a character that would end a field",
    {
      name: FastCheck.string({ maxLength: 8 }),
      value: FastCheck.string({ unit: "binary", maxLength: 8 }),
      end: FastCheck.constantFrom("\r", "\n", "\0", "\r\nx: y", "\u0100", "")
    },
    ({ end, name, value }) =>
      Effect.gen(function* () {
        const field = `${value}${end}`
        if (isFieldValue(field) && isFieldName(name || "x")) {
          return
        }
        yield* refused(HttpClientRequest.setHeader(HttpClientRequest.get("http://a/"), name || "x", field))
      }),
    { fastCheck: { numRuns: runs(50) } }
  )

  it.live("is refused where it can not be written, and nothing is connected to", () =>
    Effect.gen(function* () {
      const get = HttpClientRequest.get("http://127.0.0.1:1/")
      yield* refused(HttpClientRequest.setHeader(get, "x", "a\r\nb: c"))
      yield* refused(HttpClientRequest.setHeader(get, "x y", "a"))
      yield* refused(get, Protocol.make({ token: "t", offer: { x: "a\nb" } }))
      yield* refused("/relative")
      yield* refused("ftp://a/")
      yield* refused("http://[oops/")
      yield* refused(get, Protocol.connect)
      yield* refused(HttpClientRequest.setMethod(get, "G T" as "GET"))
      yield* refused(HttpClientRequest.setHeader(get, "transfer-encoding", "gzip"))
      yield* refused(HttpClientRequest.setHeader(get, "content-length", "5"))
      yield* refused(HttpClientRequest.setHeader(get, "content-length", "+0"))
      const wrong = yield* refused(get, Protocol.make({ token: "tcp", methods: ["POST"] }))
      assert.include(wrong.message, "tcp is entered by POST, not by GET")
    })
  )
})

const post = (body: HttpBody.HttpBody) => HttpClientRequest.setBody(HttpClientRequest.post("http://a/"), body)

describe("the body of a client's request", () => {
  it.live("that is bytes goes out with its length and its type", () =>
    Effect.gen(function* () {
      const text = "x".repeat(200_000)
      const { body, lines } = yield* sent(post(HttpBody.text(text, "text/x")), echo, exactly(text.length))
      assert.strictEqual(body, text)
      assert.strictEqual(fieldOf(lines, "content-length"), "200000")
      assert.strictEqual(fieldOf(lines, "content-type"), "text/x")
      assert.isUndefined(fieldOf(lines, "transfer-encoding"))
    })
  )

  it.live("that is a stream goes out chunked, or with the length that it says", () =>
    Effect.gen(function* () {
      const pieces = Stream.make(Buffer.from("ab"), Buffer.alloc(0), Buffer.from("c"))
      const unknown = yield* sent(post(HttpBody.stream(pieces)), echo, chunked)
      assert.strictEqual(unknown.body, "abc")
      assert.strictEqual(fieldOf(unknown.lines, "transfer-encoding"), "chunked")
      assert.isUndefined(fieldOf(unknown.lines, "content-length"))
      const known = yield* sent(post(HttpBody.stream(pieces, "text/x", 3)), echo, exactly(3))
      assert.strictEqual(known.body, "abc")
      assert.strictEqual(fieldOf(known.lines, "content-length"), "3")
      const own = HttpClientRequest.setHeader(post(HttpBody.stream(pieces)), "content-length", "3")
      assert.strictEqual((yield* sent(own, echo, exactly(3))).body, "abc")
      const empty = yield* sent(post(HttpBody.stream(Stream.empty, "text/x", 0)))
      assert.strictEqual(fieldOf(empty.lines, "content-length"), "0")
    })
  )

  it.live("is framed in one way, whatever the fields of the request say (RFC 9112 §6.3)", () =>
    Effect.gen(function* () {
      const pieces = Stream.make(Buffer.from("abc"))
      const chunks = (request: HttpClientRequest.HttpClientRequest) =>
        HttpClientRequest.setHeader(request, "transfer-encoding", "Chunked")
      const unknown = yield* sent(chunks(post(HttpBody.stream(pieces))), echo, chunked)
      assert.deepStrictEqual(
        unknown.lines.filter((line) => /^(transfer-encoding|content-length)/.test(line)),
        ["transfer-encoding: chunked"]
      )
      yield* refused(chunks(post(HttpBody.stream(pieces, "text/x", 3))))
      yield* refused(chunks(post(HttpBody.text("abc"))))
      yield* refused(HttpClientRequest.setHeader(chunks(post(HttpBody.stream(pieces))), "content-length", "3"))
    })
  )

  it.live("that is a form goes out with the boundary that its type names", () =>
    Effect.gen(function* () {
      const form = new FormData()
      form.append("name", "value")
      const { body, lines } = yield* sent(post(HttpBody.formData(form)), echo, chunked)
      const boundary = /^multipart\/form-data; boundary=(.+)$/.exec(fieldOf(lines, "content-type")!)![1]!
      assert.isTrue(body.startsWith(`--${boundary}\r\n`) && body.includes("value"))
    })
  )

  it.live("that is raw goes out as what it is: text, bytes, a Blob, parameters, a stream of Node's or of the Web", () =>
    Effect.gen(function* () {
      for (const raw of ["abc", Buffer.from("abc"), new TextEncoder().encode("abc").buffer, new Blob(["abc"])]) {
        const { body, lines } = yield* sent(post(HttpBody.raw(raw)), echo, exactly(3))
        assert.strictEqual(body, "abc")
        assert.strictEqual(fieldOf(lines, "content-length"), "3")
      }
      const parameters = yield* sent(post(HttpBody.raw(new URLSearchParams({ a: "b" }))), echo, exactly(3))
      assert.strictEqual(parameters.body, "a=b")
      for (const raw of [Readable.from(["a", "bc"]), new Response("abc").body]) {
        assert.strictEqual((yield* sent(post(HttpBody.raw(raw)), echo, chunked)).body, "abc")
      }
      const known = yield* sent(post(HttpBody.raw(Readable.from(["abc"]), { contentLength: 3 })), echo, exactly(3))
      assert.strictEqual(known.body, "abc")
      assert.strictEqual(fieldOf((yield* sent(post(HttpBody.raw(undefined)))).lines, "content-length"), "0")
      yield* refused(post(HttpBody.raw(5)))
    })
  )

  it.live("that is none says so where the method anticipates one (RFC 9110 §8.6)", () =>
    Effect.gen(function* () {
      assert.strictEqual(fieldOf((yield* sent(HttpClientRequest.post("http://a/"))).lines, "content-length"), "0")
      assert.isUndefined(fieldOf((yield* sent(HttpClientRequest.del("http://a/"))).lines, "content-length"))
    })
  )

  for (const [how, stream] of [
    ["is longer than it says", HttpBody.stream(Stream.make(Buffer.from("abcd")), "text/x", 3)],
    ["is shorter than it says", HttpBody.stream(Stream.make(Buffer.from("ab")), "text/x", 3)],
    ["fails", HttpBody.stream(Stream.concat(Stream.make(Buffer.from("ab")), Stream.fail("broken")))],
    ["is a stream of other things", HttpBody.raw(Readable.from([5]))]
  ] as const) {
    it.live(`that ${how} ends the attempt, and the connection`, () =>
      Effect.scoped(
        Effect.gen(function* () {
          const { server, socket } = yield* scripted()
          const exit = yield* attempt(UpgradeClient.upgrade(post(stream), echo, { socket }))
          assert.strictEqual(failureOf(exit)?._tag, "InvalidRequest")
          assert.isTrue(socket.destroyed)
          yield* server.closed
        })
      )
    )
  }

  it.live("never goes on behind the length that it says: that would be another request", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const body = HttpBody.stream(
          Stream.make("ab", "cGET / HTTP/1.1\r\n\r\n").pipe(
            Stream.map((text) => Buffer.from(text)),
            Stream.rechunk(1)
          ),
          "text/x",
          3
        )
        const asking = yield* Effect.fork(attempt(UpgradeClient.upgrade(post(body), echo, { socket })))
        yield* requestHead(server)
        const { received } = yield* Effect.flip(server.receiveExactly(100))
        assert.isAtMost(received.length, 3)
        assert.strictEqual(failureOf(yield* Fiber.join(asking))?._tag, "InvalidRequest")
      })
    )
  )

  it.live("stops at an answer that comes before its end, and the answer is there", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const endless = Stream.repeatValue(Buffer.alloc(1000))
        const asking = yield* Effect.fork(
          Effect.flip(UpgradeClient.upgrade(post(HttpBody.stream(endless)), echo, { socket }))
        )
        yield* requestHead(server)
        yield* server.receiveExactly(100_000)
        yield* server.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        const error = yield* Fiber.join(asking)
        assert.strictEqual(error._tag, "UpgradeRejected")
        if (error._tag === "UpgradeRejected") {
          assert.strictEqual(yield* error.response.text, "big")
        }
      })
    )
  )

  it.live("that is not yet sent makes a 101 a mismatch (RFC 9110 §7.8)", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const body of [
          HttpBody.stream(Stream.concat(Stream.make(Buffer.from("a")), Stream.never)),
          HttpBody.stream(Stream.concat(Stream.make(Buffer.from("a")), Stream.never), "text/x", 2),
          HttpBody.uint8Array(new Uint8Array(1_000_000))
        ]) {
          const { server, socket } = yield* scripted()
          const asking = yield* Effect.fork(attempt(UpgradeClient.upgrade(post(body), echo, { socket })))
          yield* requestHead(server)
          yield* server.send(switching())
          assert.strictEqual(failureOf(yield* Fiber.join(asking))?._tag, "ProtocolMismatch")
          assert.isTrue(socket.destroyed)
        }
      })
    )
  )
})
