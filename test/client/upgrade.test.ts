import type { Duplex } from "node:stream"
import { TLSSocket } from "node:tls"
import { HttpClientRequest, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Chunk, Deferred, Effect, Either, Exit, Fiber, Option, Stream } from "effect"
import { Connection, Protocol, Upgrade, UpgradeClient, Upgraded, UpgradeError } from "effect-upgrade"
import { pair } from "../../src/internal/memory.js"
import { Arbitrary } from "../../src/testing/index.js"
import { type App, clientTls, echo, type Kind, kinds, type Running, runs, serve, turn } from "../support.js"
import { attempt, failureOf, nothingLeft, received, requestHead, scripted, switching } from "./support.js"

const raw = Protocol.raw("echo")

/** How a client gets to a server of this kind: the origin of its URLs, and the options of an attempt. */
const way = (kind: Kind, running: Running) => ({
  origin: `${kind === "tls" ? "https" : "http"}://localhost:${running.port}`,
  options: (): UpgradeClient.Options & { socket?: Duplex } => {
    switch (kind) {
      case "tls":
        return { tls: clientTls }
      case "unix":
        return { socketPath: (running.target as { readonly path: string }).path }
      case "memory": {
        const [accepted, socket] = pair()
        running.server.emit("connection", accepted)
        return { socket }
      }
      default:
        return {}
    }
  }
})

const app: App = Effect.gen(function* () {
  const request = yield* HttpServerRequest.HttpServerRequest
  const path = request.url.split("?")[0]
  switch (path) {
    case "/echo":
      return yield* echo
    case "/body":
      return yield* Upgrade.onUpgrade(raw, (upgraded) =>
        Effect.flatMap(request.text, (text) => Upgraded.write(upgraded, text)).pipe(Effect.orDie)
      )
    case "/mirror":
      return HttpServerResponse.text(yield* request.text, { status: 403 })
    case "/moved":
      return HttpServerResponse.empty({ status: 302, headers: { location: "/echo" } })
    default:
      return HttpServerResponse.unsafeJson({ nothing: path }, { status: 404 })
  }
})

for (const kind of kinds) {
  describe(`a client over ${kind}`, () => {
    it.scopedLive("has every byte once and in order, both ways, whatever is sent with the request", () =>
      Effect.gen(function* () {
        const running = yield* serve(app, { kind })
        const { options, origin } = way(kind, running)
        const { FastCheck } = yield* Effect.promise(() => import("effect"))
        const run = Effect.runPromise
        yield* Effect.promise(() =>
          FastCheck.assert(
            FastCheck.asyncProperty(
              FastCheck.array(Arbitrary.payload(3000), { maxLength: 5 }),
              FastCheck.option(Arbitrary.payload(100_000)),
              (pieces, body) =>
                run(
                  Effect.scoped(
                    Effect.gen(function* () {
                      const request =
                        body === null
                          ? HttpClientRequest.get(`${origin}/echo`)
                          : HttpClientRequest.bodyUint8Array(HttpClientRequest.post(`${origin}/echo`), body)
                      const upgraded = yield* UpgradeClient.upgrade(request, raw, options())
                      yield* Effect.fork(
                        Effect.zipRight(
                          Effect.forEach(pieces, (piece) => Upgraded.write(upgraded, piece)),
                          Upgraded.end(upgraded)
                        )
                      )
                      assert.strictEqual(yield* received(upgraded), Buffer.concat(pieces).toString("latin1"))
                    })
                  )
                )
            ),
            { numRuns: runs(15) }
          )
        )
        yield* running.idle
      })
    )

    it.scopedLive("gets the whole answer of a server that does not switch, and follows no redirection", () =>
      Effect.gen(function* () {
        const running = yield* serve(app, { kind })
        const { options, origin } = way(kind, running)
        const rejection = (target: UpgradeClient.Target) =>
          Effect.map(Effect.flip(UpgradeClient.upgrade(target, raw, options())), (error) => {
            assert.instanceOf(error, UpgradeError.UpgradeRejected)
            return error as UpgradeError.UpgradeRejected
          })
        const missing = yield* rejection(`${origin}/nowhere`)
        assert.strictEqual(missing.status, 404)
        assert.deepStrictEqual(yield* missing.response.json, { nothing: "/nowhere" })
        assert.strictEqual(missing.response.request.url, `${origin}/nowhere`)
        const moved = yield* rejection(`${origin}/moved`)
        assert.strictEqual(moved.status, 302)
        assert.strictEqual(moved.response.headers.location, "/echo")
        const big = "0123456789".repeat(100_000)
        const mirrored = yield* rejection(
          HttpClientRequest.bodyText(HttpClientRequest.post(`${origin}/mirror`), big, "text/plain")
        )
        assert.strictEqual(yield* mirrored.response.text, big)
        assert.strictEqual(yield* mirrored.response.text, big)
      })
    )

    it.scopedLive("sends the body before the switch", () =>
      Effect.gen(function* () {
        const running = yield* serve(app, { kind })
        const { options, origin } = way(kind, running)
        const body = "body ".repeat(50_000)
        const upgraded = yield* UpgradeClient.upgrade(
          HttpClientRequest.bodyStream(
            HttpClientRequest.post(`${origin}/echo`),
            Stream.fromIterable(body.match(/.{1,1000}/g)!).pipe(Stream.map((text) => Buffer.from(text)))
          ),
          raw,
          options()
        )
        yield* Upgraded.write(upgraded, "session")
        yield* Upgraded.end(upgraded)
        assert.strictEqual(yield* received(upgraded), "session")
      })
    )

    it.scopedLive("has the socket of its kind, and the listener that tells it", () =>
      Effect.gen(function* () {
        const running = yield* serve(app, { kind })
        const { options, origin } = way(kind, running)
        const upgraded = yield* UpgradeClient.upgrade(`${origin}/echo`, raw, options())
        assert.strictEqual(upgraded.socket instanceof TLSSocket, kind === "tls")
        assert.strictEqual(Either.isRight(Upgraded.downcast(upgraded, Connection.Tls)), kind === "tls")
        assert.isTrue(Either.isRight(Upgraded.downcast(upgraded, Connection.Net)))
        assert.strictEqual(upgraded.connection.peer.address === undefined, kind === "unix")
      })
    )

    it.scopedLive("closes with its Scope: what was written arrives, and the server sees the end", () =>
      Effect.gen(function* () {
        const seen = yield* Deferred.make<string>()
        const running = yield* serve(
          Upgrade.onUpgrade(raw, (upgraded) =>
            Effect.flatMap(Effect.orDie(received(upgraded)), (text) => Deferred.succeed(seen, text))
          ),
          { kind }
        )
        const { options, origin } = way(kind, running)
        let socket: Duplex | undefined
        const text = "z".repeat(500_000)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const upgraded = yield* UpgradeClient.upgrade(`${origin}/`, raw, options())
            socket = upgraded.socket
            yield* Upgraded.write(upgraded, text)
          })
        )
        assert.strictEqual(yield* Deferred.await(seen), text)
        yield* nothingLeft(socket!)
        yield* running.idle
      })
    )
  })
}

describe("what arrives behind the 101", () => {
  it.scopedLive("is leftover, and every reader begins with it, wherever the answer is split", () =>
    Effect.gen(function* () {
      const bytes = Buffer.from(`HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${switching()}early bytes`)
      for (let at = 1; at < bytes.length; at++) {
        yield* Effect.scoped(
          Effect.gen(function* () {
            const { server, socket } = yield* scripted()
            yield* Effect.fork(
              Effect.zipRight(requestHead(server), Effect.zipRight(server.sendSplit(bytes, [at]), server.end))
            )
            const upgraded = yield* UpgradeClient.upgrade("http://a/", raw, { socket })
            const leftover = Chunk.toReadonlyArray(upgraded.leftover)
            const text = yield* received(upgraded)
            assert.strictEqual(text, "early bytes")
            assert.isTrue(text.startsWith(Buffer.concat(leftover).toString()))
          })
        )
      }
    })
  )

  it.scopedLive("is read byte by byte as in one piece", () =>
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      const bytes = Buffer.from(`HTTP/1.1 100 Continue\r\n\r\n${switching()}early`)
      yield* Effect.fork(
        Effect.zipRight(
          requestHead(server),
          server.sendSplit(
            bytes,
            Array.from(bytes, (_, at) => at)
          )
        )
      )
      const upgraded = yield* UpgradeClient.upgrade("http://a/", raw, { socket })
      assert.strictEqual(Buffer.from(yield* Upgraded.readExactly(upgraded, 5)).toString(), "early")
    })
  )
})

/** What comes of an answer, whatever it is; the server ends behind it if it is told to. */
const answered = (
  answer: string,
  protocols: Protocol.Protocols = raw,
  options: { readonly end?: boolean; readonly method?: "HEAD" } = {}
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      const asking = yield* Effect.fork(
        attempt(
          UpgradeClient.upgrade(
            options.method === "HEAD" ? HttpClientRequest.head("http://a/") : "http://a/",
            protocols,
            { socket, headTimeout: "10 seconds" }
          ).pipe(
            Effect.catchTag("UpgradeRejected", (error) =>
              Effect.zipRight(Effect.ignore(error.response.text), Effect.fail(error))
            )
          )
        )
      )
      yield* requestHead(server)
      yield* server.send(answer)
      if (options.end === true) {
        yield* server.end
      }
      const exit = yield* Fiber.join(asking)
      yield* nothingLeft(socket)
      return exit
    })
  )

describe("the answer of a server", () => {
  const mismatch = (answer: string, protocols: Protocol.Protocols = raw) =>
    Effect.map(answered(answer, protocols), (exit) => {
      const error = failureOf(exit)
      assert.strictEqual(error?._tag, "ProtocolMismatch", answer)
      return error!.message
    })

  const head = "HTTP/1.1 101 Switching Protocols\r\n"

  it.live("101 to another protocol is a mismatch (RFC 9110 §7.8)", () =>
    Effect.gen(function* () {
      assert.include(yield* mismatch(switching("other")), "switches to other, but the request offered echo")
      for (const other of ["echo/1", "echo, other", "other, echo", "echo, echo/2", "", "echo;q=1", "echo other"]) {
        yield* mismatch(switching(other))
      }
      yield* mismatch(switching("echo/2"), Protocol.raw("echo/1"))
      yield* mismatch(switching("echo/V"), Protocol.raw("echo/v"))
      yield* mismatch(switching("one, two"), [Protocol.raw("one"), Protocol.raw("two")])
    })
  )

  it.live("101 without Upgrade, or without upgrade in Connection, is a mismatch (RFC 9110 §7.8)", () =>
    Effect.gen(function* () {
      assert.include(yield* mismatch(`${head}Connection: Upgrade\r\n\r\n`), "no protocol")
      assert.include(yield* mismatch(`${head}Upgrade: echo\r\n\r\n`), "Connection")
      assert.include(yield* mismatch(`${head}Upgrade: echo\r\nConnection: keep-alive\r\n\r\n`), "keep-alive")
    })
  )

  it.live("101 with content is a mismatch (RFC 9110 §8.6, RFC 9112 §6.1)", () =>
    Effect.gen(function* () {
      assert.include(yield* mismatch(switching("echo", ["Content-Length: 0"])), "content-length: 0")
      yield* mismatch(`${switching("echo", ["Content-Length: 3"])}abc`)
      assert.include(yield* mismatch(switching("echo", ["Transfer-Encoding: chunked"])), "transfer-encoding")
    })
  )

  it.live("101 in HTTP/1.0 is a mismatch (RFC 9110 §15.2)", () =>
    Effect.map(mismatch(switching().replace("HTTP/1.1", "HTTP/1.0")), (message) => assert.include(message, "HTTP/1.0"))
  )

  it.live("101 that the protocol's own check does not accept is a mismatch; it sees what was sent", () =>
    Effect.gen(function* () {
      const protocol = Protocol.make({
        token: "keyed",
        offer: { "x-key": "1" },
        verify: (response, sent) =>
          response.headers["x-accept"] === `accepted ${sent["x-key"]} ${sent.upgrade} ${sent.host}` &&
          response.status === 101
            ? Effect.void
            : Effect.fail(new UpgradeError.ProtocolMismatch({ protocol: "keyed", description: "not my key" }))
      })
      assert.strictEqual(yield* mismatch(switching("keyed", ["X-Accept: 2"]), protocol), "not my key")
      assert.isTrue(Exit.isSuccess(yield* answered(switching("keyed", ["X-Accept: accepted 1 keyed a"]), protocol)))
    })
  )

  it.live("101 in any case, among other options of Connection, is a switch; so is one that names the layer above", () =>
    Effect.gen(function* () {
      for (const [answer, protocol] of [
        [`${head}connection: keep-alive, UPGRADE\r\nuPgRaDe: ECHO\r\n\r\n`, raw],
        [switching("TLS/1.0, HTTP/1.1"), Protocol.raw("TLS/1.0")],
        [switching("two"), [Protocol.raw("one"), Protocol.raw("two")]]
      ] as const) {
        const exit = yield* answered(answer, protocol)
        assert.isTrue(Exit.isSuccess(exit), answer)
      }
    })
  )

  it.live("names the protocol that was agreed on, among several", () =>
    Effect.map(answered(switching("two/2"), [Protocol.raw("one"), Protocol.raw("two/2")]), (exit) =>
      assert.strictEqual(Exit.isSuccess(exit) && exit.value.protocol, "two/2")
    )
  )

  it.live("that is interim is skipped, 103 and unknown ones too, but not for ever (RFC 9110 §15.2)", () =>
    Effect.gen(function* () {
      const interim = ["100 Continue", "102 x", "103 Early Hints\r\nLink: </x>", "199 x"]
        .map((line) => `HTTP/1.1 ${line}\r\n\r\n`)
        .join("")
      assert.isTrue(Exit.isSuccess(yield* answered(interim + switching())))
      assert.include(yield* mismatch("HTTP/1.1 103 x\r\n\r\n".repeat(40) + switching()), "interim")
    })
  )

  it.live("that is no HTTP/1.1 is a mismatch at once, however long the server waits behind it", () =>
    Effect.gen(function* () {
      for (const answer of [
        "SSH-2.0-x\r\n",
        "\0",
        "HTTP/1.1 101 x\n\n",
        `${head}a: ${"x".repeat(70_000)}`,
        `${head}a\r\n b: c\r\n\r\n`
      ]) {
        assert.include(yield* mismatch(answer), "no HTTP/1.1 response")
      }
      assert.include(
        yield* mismatch("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "cannot be read"
      )
    })
  )

  it.live("that never comes is a lost connection", () =>
    Effect.gen(function* () {
      for (const [answer, text] of [
        ["", "before it had answered"],
        ["HTTP/1.1 1", "in the middle of its answer"],
        ["HTTP/1.1 100 Continue\r\n\r\n", "before it had answered"]
      ] as const) {
        const error = failureOf(yield* answered(answer, raw, { end: true }))
        assert.strictEqual(error?._tag, "ConnectionLost")
        assert.include(error!.message, text)
      }
    })
  )
})

describe("the content of a refusal", () => {
  const rejected = <A, E>(
    answer: string,
    read: (error: UpgradeError.UpgradeRejected) => Effect.Effect<A, E>,
    end = false
  ) =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        yield* Effect.fork(
          requestHead(server).pipe(
            Effect.zipRight(server.send(answer)),
            Effect.zipRight(end ? server.end : Effect.void)
          )
        )
        const error = yield* Effect.flip(UpgradeClient.upgrade("http://a/", raw, { socket }))
        assert.instanceOf(error, UpgradeError.UpgradeRejected)
        return yield* read(error as UpgradeError.UpgradeRejected)
      })
    )

  it.live("is read by its length, by chunks, and until the end of the connection", () =>
    Effect.gen(function* () {
      const text = (error: UpgradeError.UpgradeRejected) => error.response.text
      assert.strictEqual(yield* rejected("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcmore", text), "abc")
      assert.strictEqual(
        yield* rejected(
          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx: y\r\n\r\nmore",
          text
        ),
        "abc"
      )
      assert.strictEqual(yield* rejected("HTTP/1.0 400 No\r\n\r\nabc", text, true), "abc")
      assert.strictEqual(yield* rejected("HTTP/1.1 204 No\r\n\r\nabc", text), "")
    })
  )

  it.live("that is cut off, or wrongly framed, is a ResponseError", () =>
    Effect.gen(function* () {
      for (const answer of [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz"
      ]) {
        const error = yield* rejected(answer, ({ response }) => Effect.flip(response.text), true)
        assert.strictEqual(error._tag, "ResponseError")
      }
    })
  )

  it.live("is JSON, parameters, a form, bytes and a stream to whoever asks; the cookies are there", () =>
    Effect.gen(function* () {
      const of = (type: string, content: string, fields = "") =>
        `HTTP/1.1 403 No\r\nContent-Type: ${type}\r\nContent-Length: ${content.length}\r\n${fields}\r\n${content}`
      assert.deepStrictEqual(yield* rejected(of("application/json", '{"a":1}'), ({ response }) => response.json), {
        a: 1
      })
      assert.strictEqual(yield* rejected(of("application/json", ""), ({ response }) => response.json), null)
      assert.strictEqual(
        (yield* rejected(of("application/json", "{"), ({ response }) => Effect.flip(response.json))).reason,
        "Decode"
      )
      const url = "application/x-www-form-urlencoded"
      assert.deepStrictEqual(yield* rejected(of(url, "a=b"), ({ response }) => response.urlParamsBody), [["a", "b"]])
      const form = yield* rejected(of(url, "a=b"), ({ response }) => response.formData)
      assert.strictEqual(form.get("a"), "b")
      yield* rejected(of("text/plain", "a=b"), ({ response }) => Effect.flip(response.formData))
      const bytes = yield* rejected(of("text/plain", "abc"), ({ response }) => response.arrayBuffer)
      assert.strictEqual(Buffer.from(bytes).toString(), "abc")
      yield* rejected(
        of("text/plain", "abc", "Set-Cookie: a=1\r\nSet-Cookie: b=2; HttpOnly\r\n"),
        ({ message, response }) =>
          Effect.map(Stream.runCollect(response.stream), (pieces) => {
            assert.strictEqual(Buffer.concat(Chunk.toReadonlyArray(pieces)).toString(), "abc")
            assert.deepStrictEqual(Object.keys(response.cookies.cookies), ["a", "b"])
            assert.isTrue(Option.isSome(response.remoteAddress))
            assert.include(message, "403")
            assert.include(String(response), "403")
          })
      )
    })
  )

  it.live("is held no more than the platform's MaxBodySize allows", () =>
    Effect.gen(function* () {
      const { HttpIncomingMessage } = yield* Effect.promise(() => import("@effect/platform"))
      const error = yield* rejected("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", ({ response }) =>
        Effect.flip(HttpIncomingMessage.withMaxBodySize(response.text, Option.some(4)))
      )
      assert.include(String(error.cause), "maxBodySize")
    })
  )

  it.live("stays with the server until it is read", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const error = yield* Effect.zipRight(
          Effect.fork(Effect.zipRight(requestHead(server), server.send("HTTP/1.1 200 OK\r\n\r\n"))),
          Effect.flip(UpgradeClient.upgrade("http://a/", raw, { socket }))
        )
        let sent = 0
        const flood: Effect.Effect<void> = Effect.flatMap(server.send(Buffer.alloc(64 * 1024)), () => {
          sent += 64 * 1024
          return flood
        })
        const flooding = yield* Effect.fork(flood)
        for (let i = 0; i < 200; i++) {
          yield* turn
        }
        assert.isBelow(sent, 512 * 1024)
        assert.instanceOf(error, UpgradeError.UpgradeRejected)
        const first = yield* Stream.runHead((error as UpgradeError.UpgradeRejected).response.stream)
        assert.isTrue(Option.isSome(first))
        yield* Fiber.interrupt(flooding)
      })
    )
  )

  it.live("can be read no more when the Scope has closed", () =>
    Effect.gen(function* () {
      const { response } = yield* rejected("HTTP/1.1 200 OK\r\n\r\nabc", Effect.succeed)
      const error = yield* Effect.flip(Stream.runDrain(response.stream))
      assert.strictEqual(error._tag, "ResponseError")
    })
  )
})
