import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import * as Protocol from "../../src/Protocol.js"
import * as Arbitrary from "../../src/testing/Arbitrary.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import { type App, asking, echo, echoed, kinds, message, runs, serve, turn } from "../support.js"

const raw = Protocol.raw("echo")

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

const post = (fields: ReadonlyArray<string>, content: string) => asking("/", { method: "POST", fields, content })

const framings: ReadonlyArray<readonly [string, string]> = [
  ["Content-Length", post(["Content-Length: 12"], "body of 12 B")],
  ["chunked", post(["Transfer-Encoding: chunked"], "4\r\nbody\r\n8;x=y\r\n of 12 B\r\n0\r\nX-Trailer: z\r\n\r\n")]
]

/** Reads the body first, then says what it was and echoes. */
const reading: App = Effect.gen(function* () {
  const { text } = yield* HttpServerRequest.HttpServerRequest
  const body = yield* Effect.orDie(text)
  const upgraded = yield* Upgrade.upgrade(raw)
  yield* Upgraded.write(upgraded, `[${body}]`)
  yield* echoed(upgraded)
  return Upgrade.done
})

/** Says what the body is while the switch waits for it. */
const respondingFirst: App = Effect.gen(function* () {
  const request = yield* HttpServerRequest.HttpServerRequest
  const body = yield* Deferred.make<string>()
  const [response, upgraded] = yield* Upgrade.respond(raw)
  yield* Effect.forkDaemon(Effect.flatMap(Effect.orDie(request.text), (text) => Deferred.succeed(body, text)))
  // The reader has begun before the response is returned: from then on, what nobody reads is discarded
  yield* Effect.yieldNow()
  yield* Effect.forkDaemon(
    Effect.scoped(
      Effect.gen(function* () {
        const it = yield* upgraded
        yield* Upgraded.write(it, `[${yield* Deferred.await(body)}]`)
        yield* echoed(it)
      })
    )
  )
  return response
})

describe.each(kinds)("over %s", (kind) => {
  describe.each(framings)("with a body by %s", (_, request) => {
    it.scoped.each([
      ["does not read it", echo, "early"],
      ["reads it before", reading, "[body of 12 B]early"],
      ["reads it meanwhile", respondingFirst, "[body of 12 B]early"]
    ] as const)(
      "RFC 9110 §7.8: the switch is behind the body, wherever it is split, and the handler %s",
      ([_, app, expected]) =>
        Effect.gen(function* () {
          const { connect, idle } = yield* serve(app, { kind })
          const bytes = `${request}early`
          // TLS hands over what a record held: over it, some splits say as much as all
          const step = kind === "tcp" || kind === "memory" ? 1 : 7
          const offsets = Array.from({ length: Math.ceil(bytes.length / step) }, (_, i) => i * step)
          yield* Effect.forEach(
            offsets,
            (at) =>
              Effect.scoped(
                Effect.gen(function* () {
                  const peer = yield* connect
                  yield* peer.sendSplit(bytes, [at])
                  yield* peer.end
                  assert.strictEqual(
                    Buffer.from(yield* peer.receiveAll).toString(),
                    `${switching}${expected}`,
                    `split at ${at}`
                  )
                })
              ),
            { concurrency: 8 }
          )
          yield* idle
        })
    )
  })
})

describe("a body", () => {
  it.scoped("and what follows it arrive exactly once and in order, whatever they are and wherever they are split", () =>
    Effect.gen(function* () {
      const requests = Arbitrary.request({
        body: Arbitrary.body(2000),
        methods: ["POST", "PUT", "PATCH"],
        headers: Arbitrary.upgradeFields(
          Arbitrary.upgrade(FastCheck.constant([{ name: "echo", version: undefined, token: "echo" }]))
        )
      })
      const exchanges = FastCheck.tuple(requests, Arbitrary.payload(1000), FastCheck.boolean()).chain(
        ([request, early, read]) =>
          Arbitrary.splits(request.bytes.length + early.length).map((at) => ({ request, early, read, at }))
      )
      let content = new Uint8Array()
      let read = false
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const request = yield* HttpServerRequest.HttpServerRequest
          if (read) {
            content = new Uint8Array(yield* Effect.orDie(request.arrayBuffer))
          }
          return yield* Upgrade.onUpgrade(raw, echoed)
        })
      )
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(exchanges, (exchange) =>
            Effect.gen(function* () {
              read = exchange.read
              const peer = yield* connect
              yield* peer.sendSplit(Buffer.concat([exchange.request.bytes, exchange.early]), exchange.at)
              assert.strictEqual((yield* peer.receiveHead).status, 101)
              yield* peer.end
              assert.deepStrictEqual(Buffer.from(yield* peer.receiveAll), Buffer.from(exchange.early))
              if (read) {
                assert.deepStrictEqual(Buffer.from(content), Buffer.from(exchange.request.content))
              }
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: runs(60) }
        )
      )
    })
  )

  it.scoped.each(framings)("RFC 9110 §7.8: by %s holds the 101 back until it is whole", ([_, request]) =>
    Effect.gen(function* () {
      const decided = yield* Deferred.make<void>()
      const { connect, switched } = yield* serve(Effect.zipRight(Deferred.succeed(decided, undefined), echo))
      const peer = yield* connect
      yield* peer.send(request.slice(0, -1))
      yield* Deferred.await(decided)
      yield* Effect.repeatN(turn, 5)
      assert.strictEqual(yield* switched, 0)
      yield* peer.send(`${request.slice(-1)}early`)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
    })
  )

  const large = Buffer.alloc(1024 * 1024, "0123456789abcde\n")
  const largeRequests: ReadonlyArray<readonly [string, Buffer]> = [
    ["Content-Length", Buffer.concat([Buffer.from(post([`Content-Length: ${large.length}`], "")), large])],
    [
      "chunked",
      Buffer.concat([
        Buffer.from(`${post(["Transfer-Encoding: chunked"], "")}${large.length.toString(16)}\r\n`),
        large,
        Buffer.from("\r\n0\r\n\r\n")
      ])
    ]
  ]

  it.scoped.each(largeRequests)(
    "of a megabyte by %s is read as a stream, and the switch is behind it",
    ([_, request]) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(
          Effect.gen(function* () {
            const { stream } = yield* HttpServerRequest.HttpServerRequest
            const size = yield* Effect.orDie(Stream.runFold(stream, 0, (size, bytes) => size + bytes.length))
            const upgraded = yield* Upgrade.upgrade(raw)
            yield* Upgraded.write(upgraded, `[${size}]`)
            yield* echoed(upgraded)
            return Upgrade.done
          })
        )
        const peer = yield* connect
        yield* peer.send(Buffer.concat([request, Buffer.from("early")]))
        yield* peer.end
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}[${large.length}]early`)
      })
  )

  it.scoped.each(largeRequests)(
    "of a megabyte by %s that nobody reads is discarded before the switch",
    ([_, request]) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(echo)
        const peer = yield* connect
        yield* peer.send(Buffer.concat([request, Buffer.from("early")]))
        yield* peer.end
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
      })
  )

  it.scoped.each(largeRequests)(
    "of a megabyte by %s that is read half is discarded before the switch",
    ([_, request]) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(
          Effect.gen(function* () {
            const { stream } = yield* HttpServerRequest.HttpServerRequest
            yield* Effect.orDie(Stream.runDrain(Stream.take(stream, 2)))
            yield* echoed(yield* Upgrade.upgrade(raw))
            return Upgrade.done
          })
        )
        const peer = yield* connect
        yield* peer.send(Buffer.concat([request, Buffer.from("early")]))
        yield* peer.end
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
      })
  )

  it.scoped("as Docker's exec sends it is JSON for the handler, and its standard input begins behind it", () =>
    Effect.gen(function* () {
      const docker = Protocol.make({ token: "tcp", methods: ["POST"], statusText: "UPGRADED" })
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const request = yield* HttpServerRequest.HttpServerRequest
          const { Tty } = (yield* Effect.orDie(request.json)) as { readonly Tty: boolean }
          const upgraded = yield* Upgrade.upgrade(docker, {
            headers: { "content-type": "application/vnd.docker.raw-stream" }
          })
          yield* Upgraded.write(upgraded, `tty ${Tty} `)
          yield* echoed(upgraded)
          return Upgrade.done
        })
      )
      const json = JSON.stringify({ Detach: false, Tty: true })
      const peer = yield* connect
      yield* peer.send(
        message(
          "POST /v1.47/exec/1/start HTTP/1.1",
          [
            "Host: api.moby.localhost",
            "Connection: Upgrade",
            `Content-Length: ${json.length}`,
            "Content-Type: application/json",
            "Upgrade: tcp"
          ],
          `${json}ls\n`
        )
      )
      const head = yield* peer.receiveHead
      assert.deepStrictEqual(
        [head.status, head.statusText, head.headers.upgrade, head.headers["content-type"]],
        [101, "UPGRADED", "tcp", "application/vnd.docker.raw-stream"]
      )
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "tty true ls\n")
    })
  )

  it.scoped("that does not arrive within bodyTimeout is answered with 408, and the connection closed", () =>
    Effect.gen(function* () {
      for (const [_, request] of framings) {
        const decided = yield* Deferred.make<void>()
        const { connect, idle } = yield* serve(Effect.zipRight(Deferred.succeed(decided, undefined), echo), {
          bodyTimeout: "3 seconds"
        })
        const peer = yield* connect
        yield* peer.send(request.slice(0, -1))
        yield* Deferred.await(decided)
        yield* turn
        yield* TestClock.adjust("3 seconds")
        const { headers, status } = yield* peer.receiveResponse
        assert.deepStrictEqual([status, headers.connection], [408, "close"])
        assert.strictEqual((yield* peer.receiveAll).length, 0)
        yield* peer.end
        yield* idle
      }
    })
  )

  it.scoped("that ends before it is whole is an incomplete request: 400, and no switch (RFC 9112 §8)", () =>
    Effect.gen(function* () {
      for (const [_, request] of framings) {
        const { connect, idle } = yield* serve(echo)
        const peer = yield* connect
        yield* peer.send(request.slice(0, -1))
        yield* peer.end
        assert.match(Buffer.from(yield* peer.receiveAll).toString(), /^HTTP\/1\.1 400 [^\n]*\n(?:.*\r\n)*$/)
        yield* idle
      }
    })
  )
})

describe("Expect: 100-continue", () => {
  it.scoped.each(framings)(
    "RFC 9110 §10.1.1, §7.8: a body by %s is sent after the 100, and the 101 after it",
    ([_, request]) =>
      Effect.gen(function* () {
        for (const app of [reading, respondingFirst]) {
          const { connect } = yield* serve(app)
          const peer = yield* connect
          const [head, body] = request.split("\r\n\r\n", 1).concat(request.slice(request.indexOf("\r\n\r\n") + 4))
          yield* peer.send(`${head}\r\nExpect: 100-continue\r\n\r\n`)
          const interim = yield* peer.receiveHead
          assert.deepStrictEqual([interim.status, interim.raw], [100, "HTTP/1.1 100 Continue\r\n\r\n"])
          yield* peer.send(`${body}early`)
          yield* peer.end
          assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}[body of 12 B]early`)
        }
      })
  )
})

describe("strict framing", () => {
  const refused = (fields: ReadonlyArray<string>, content: string, version = "1.1") =>
    message(
      `POST / HTTP/${version}`,
      ["Host: a", "Connection: Upgrade, keep-alive", "Upgrade: echo", ...fields],
      content
    )

  const cases: ReadonlyArray<readonly [string, string, 400 | 501]> = [
    ["gzip alone", refused(["Transfer-Encoding: gzip"], "x"), 400],
    ["gzip before chunked", refused(["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n"), 501],
    ["an unknown coding", refused(["Transfer-Encoding: xchunked"], "0\r\n\r\n"), 400],
    ["chunked before another", refused(["Transfer-Encoding: chunked, identity"], "0\r\n\r\n"), 400],
    ["chunked twice", refused(["Transfer-Encoding: chunked, chunked"], "0\r\n\r\n"), 400],
    [
      "chunked twice, over two lines",
      refused(["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
      400
    ],
    ["chunked with a parameter", refused(["Transfer-Encoding: chunked;q=1"], "0\r\n\r\n"), 400],
    ["an empty coding", refused(["Transfer-Encoding:"], "0\r\n\r\n"), 400],
    [
      "Content-Length with Transfer-Encoding",
      refused(["Content-Length: 5", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
      400
    ],
    [
      "Transfer-Encoding with Content-Length",
      refused(["Transfer-Encoding: chunked", "Content-Length: 5"], "0\r\n\r\n"),
      400
    ],
    ["Transfer-Encoding in HTTP/1.0", refused(["Transfer-Encoding: chunked"], "0\r\n\r\n", "1.0"), 400],
    ["two lengths", refused(["Content-Length: 1", "Content-Length: 2"], "xx"), 400],
    ["a list of lengths", refused(["Content-Length: 1, 1"], "x"), 400],
    ["a signed length", refused(["Content-Length: +1"], "x"), 400],
    ["a hexadecimal length", refused(["Content-Length: 0x1"], "x"), 400],
    ["an empty length", refused(["Content-Length:"], "x"), 400],
    ["a length beyond all numbers", refused(["Content-Length: 99999999999999999999"], "x"), 400],
    ["a chunk size that is no number", refused(["Transfer-Encoding: chunked"], "x\r\n"), 400],
    ["a negative chunk size", refused(["Transfer-Encoding: chunked"], "-1\r\nx\r\n"), 400],
    ["a chunk size beyond all numbers", refused(["Transfer-Encoding: chunked"], "fffffffffffffffff\r\n"), 400],
    ["a bare LF behind a chunk size", refused(["Transfer-Encoding: chunked"], "1\nx\n0\n\n"), 400],
    ["more content than the chunk says", refused(["Transfer-Encoding: chunked"], "1\r\nxy\r\n0\r\n\r\n"), 400],
    ["a bare LF at the end", refused(["Transfer-Encoding: chunked"], "0\r\n\n"), 400],
    ["a NUL in a chunk extension", refused(["Transfer-Encoding: chunked"], "1;\0\r\nx\r\n0\r\n\r\n"), 400],
    [
      "endless chunk extensions",
      refused(["Transfer-Encoding: chunked"], `1;${"x".repeat(20_000)}\r\nx\r\n0\r\n\r\n`),
      400
    ],
    ["endless trailers", refused(["Transfer-Encoding: chunked"], `0\r\n${"X-Trailer: x\r\n".repeat(8000)}\r\n`), 400]
  ]

  it.scoped.each(cases)(
    "RFC 9112 §6: %s is refused and the connection closed, whoever reads the body",
    ([_, request, expected]) =>
      Effect.gen(function* () {
        for (const app of [echo, reading, Effect.succeed(HttpServerResponse.text("ordinary"))]) {
          const { connect, idle } = yield* serve(app)
          const peer = yield* connect
          yield* peer.send(request)
          yield* peer.send(message("GET /smuggled HTTP/1.1", ["Host: a"]))
          const { status } = yield* peer.receiveHead
          // What ignores the request may have answered before the body was seen to be wrong
          assert.include([expected, ...(app === echo || app === reading ? [] : [200])], status)
          const rest = Buffer.from(yield* Effect.orElseSucceed(peer.receiveAll, () => new Uint8Array())).toString()
          assert.notMatch(rest, /HTTP\/1\.1 (?:101|200)/)
          yield* peer.end
          yield* idle
        }
      })
  )

  it.scoped.each([
    ["extensions and trailers", '3;a;b=c;d="e;\\"f"\r\nabc\r\n0;x\r\nX-T: 1\r\nx-u:2\r\n\r\n'],
    ["upper case and padding zeros", "0003\r\nabc\r\n00\r\n\r\n"],
    ["a chunk for each byte", "1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"]
  ])("a chunked body with %s is accepted", ([_, content]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(reading)
      const peer = yield* connect
      yield* peer.send(`${post(["Transfer-Encoding: Chunked"], content)}early`)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}[abc]early`)
    })
  )
})
