import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Stream from "effect/Stream"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import { type App, asking, echo, echoed, kinds, message, runs, serve, turn, withoutDate } from "../support.js"

const raw = Protocol.raw("echo")

const get = (target: string, ...fields: ReadonlyArray<string>) =>
  message(`GET ${target} HTTP/1.1`, ["Host: example.com", ...fields])

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

/** What the platform answers `text` with. */
const ok = (text: string) =>
  "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n" +
  `content-length: ${text.length}\r\nDate: masked\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n${text}`

/** Answers by the target; `/wait/n` when the gate n opens. */
const routes = (gates: ReadonlyArray<Deferred.Deferred<void>>, upgrading: App): App =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }): App => {
    if (url.startsWith("/wait/")) {
      return Effect.as(Deferred.await(gates[Number(url.slice(6))]!), HttpServerResponse.text(url))
    }
    return url === "/upgrade" ? upgrading : Effect.succeed(HttpServerResponse.text(url))
  })

const signalled = (reached: Deferred.Deferred<void>): App => Effect.zipRight(Deferred.succeed(reached, undefined), echo)

describe.each(kinds)("over %s", (kind) => {
  it.scoped("RFC 9112 §9.3.2: a 101 waits for the response before it", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect, switched } = yield* serve(routes([gate], signalled(reached)), { kind })
      const peer = yield* connect
      yield* peer.send(`${get("/wait/0")}${asking("/upgrade")}early`)
      // The handler decides while the earlier one has not answered; turns enough for a 101 to be written too early
      yield* Deferred.await(reached)
      yield* Effect.repeatN(turn, 5)
      assert.strictEqual(yield* switched, 0)
      yield* Deferred.succeed(gate, undefined)
      yield* peer.end
      assert.strictEqual(withoutDate(yield* peer.receiveAll), `${ok("/wait/0")}${switching}early`)
    })
  )

  it.scoped("RFC 9112 §9.3.2: a 101 waits for all responses before it, whatever their order of being ready", () =>
    Effect.gen(function* () {
      const orders = FastCheck.integer({ min: 1, max: 4 }).chain((count) =>
        FastCheck.shuffledSubarray(
          Array.from({ length: count }, (_, i) => i),
          { minLength: count, maxLength: count }
        )
      )
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(orders, (order) =>
            Effect.gen(function* () {
              const gates = yield* Effect.forEach(order, () => Deferred.make<void>())
              const reached = yield* Deferred.make<void>()
              const { connect } = yield* serve(routes(gates, signalled(reached)), { kind })
              const peer = yield* connect
              const paths = order.map((_, i) => `/wait/${i}`)
              yield* peer.send(`${paths.map((path) => get(path)).join("")}${asking("/upgrade")}early`)
              yield* Deferred.await(reached)
              for (const i of order) {
                yield* Deferred.succeed(gates[i]!, undefined)
                yield* turn
              }
              yield* peer.end
              assert.strictEqual(withoutDate(yield* peer.receiveAll), `${paths.map(ok).join("")}${switching}early`)
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: runs(8) }
        )
      )
    })
  )

  // More than the system's buffers hold
  const large = 4 * 1024 * 1024

  it.scoped.each([
    ["in one piece", Effect.succeed(HttpServerResponse.uint8Array(Buffer.alloc(large, "x")))],
    [
      "as a stream",
      Effect.succeed(
        HttpServerResponse.stream(
          Stream.repeatValue(Buffer.alloc(16 * 1024, "x")).pipe(Stream.take(large / (16 * 1024))),
          { contentLength: large }
        )
      )
    ]
  ] as const)("a large response before it, %s, arrives whole at a slow reader before the 101", ([_, response]) =>
    Effect.gen(function* () {
      const reached = yield* Deferred.make<void>()
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ url }): App => (url === "/large" ? response : signalled(reached))
        ),
        { kind }
      )
      const peer = yield* connect
      yield* peer.send(`${get("/large")}${asking("/upgrade")}early`)
      yield* Deferred.await(reached)
      const { headers, status } = yield* peer.receiveHead
      assert.deepStrictEqual([status, headers["content-length"]], [200, String(large)])
      const body = yield* peer.receiveExactly(large)
      assert.isTrue(Buffer.alloc(large, "x").equals(body))
      const behind = `${switching}early`
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(behind.length)).toString(), behind)
      yield* peer.end
      assert.strictEqual((yield* peer.receiveAll).length, 0)
    })
  )

  it.scoped(
    "responses that fill the socket leave it to be read: after a switch, and after an upgrade that is ignored",
    () =>
      Effect.gen(function* () {
        const { connect } = yield* serve(
          Effect.flatMap(
            HttpServerRequest.HttpServerRequest,
            ({ url }): App =>
              url === "/large"
                ? Effect.succeed(HttpServerResponse.uint8Array(Buffer.alloc(large)))
                : url === "/upgrade"
                  ? echo
                  : Effect.succeed(HttpServerResponse.text(url))
          ),
          { kind }
        )
        for (const last of ["/upgrade", "/ignored"]) {
          const peer = yield* connect
          yield* peer.send(get("/large"))
          yield* Effect.repeatN(turn, 3)
          yield* peer.send(`${get("/small")}${asking(last)}`)
          yield* Effect.repeatN(turn, 3)
          assert.strictEqual((yield* peer.receiveResponse).body.length, large)
          assert.strictEqual((yield* peer.receiveResponse).text, "/small")
          if (last === "/upgrade") {
            assert.strictEqual((yield* peer.receiveHead).status, 101)
            yield* peer.send("ping")
            assert.strictEqual(Buffer.from(yield* peer.receiveExactly(4)).toString(), "ping")
          } else {
            assert.strictEqual((yield* peer.receiveResponse).text, "/ignored")
            yield* peer.send(get("/next"))
            assert.strictEqual((yield* peer.receiveResponse).text, "/next")
          }
        }
      })
  )

  it.scoped("RFC 9112 §9.6: nothing is switched behind a response that closes the connection", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const outcome = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      const { connect, idle } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ url }): App =>
            url === "/close"
              ? Effect.as(Deferred.await(gate), HttpServerResponse.text("last", { headers: { connection: "close" } }))
              : Effect.onExit(
                  Effect.flatMap(Upgrade.upgrade(raw), () => Effect.succeed(Upgrade.done)),
                  (exit) => Effect.zipRight(Deferred.succeed(gate, undefined), Deferred.succeed(outcome, exit))
                ).pipe(Effect.tap(() => Deferred.succeed(gate, undefined)))
        ),
        { kind }
      )
      const peer = yield* connect
      yield* peer.send(`${get("/close")}${asking("/upgrade")}early`)
      yield* Effect.repeatN(turn, 5)
      yield* Deferred.succeed(gate, undefined)
      const received = withoutDate(yield* peer.receiveAll)
      assert.match(received, /^HTTP\/1\.1 200 OK\r\n/)
      assert.match(received, /\r\n\r\nlast$/)
      const exit = yield* Deferred.await(outcome)
      assert.isTrue(Exit.isFailure(exit))
      yield* peer.end
      yield* idle
    })
  )
})

describe("before an upgrade", () => {
  it.scoped("a streamed response may still be going out when the switch is decided", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          ({ url }): App =>
            url === "/stream"
              ? Effect.succeed(
                  HttpServerResponse.stream(
                    Stream.concat(
                      Stream.make(Buffer.from("first ")),
                      Stream.fromEffect(Effect.as(Deferred.await(gate), Buffer.from("second")))
                    )
                  )
                )
              : signalled(reached)
        )
      )
      const peer = yield* connect
      yield* peer.send(get("/stream"))
      yield* peer.receiveUntil("first ")
      yield* peer.send(`${asking("/upgrade")}early`)
      yield* Deferred.await(reached)
      yield* Deferred.succeed(gate, undefined)
      yield* peer.end
      assert.strictEqual(
        Buffer.from(yield* peer.receiveAll).toString(),
        `\r\n6\r\nsecond\r\n0\r\n\r\n${switching}early`
      )
    })
  )

  it.scoped("a request with a body is read to its end, in one packet with the upgrade", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(
          HttpServerRequest.HttpServerRequest,
          (request): App =>
            request.url === "/upgrade"
              ? echo
              : Effect.map(Effect.orDie(request.text), (text) => HttpServerResponse.text(text))
        )
      )
      const peer = yield* connect
      yield* peer.send(
        message("POST / HTTP/1.1", ["Host: a", "Content-Length: 5"], "first") +
          message("POST / HTTP/1.1", ["Host: a", "Transfer-Encoding: chunked"], "6\r\nsecond\r\n0\r\n\r\n") +
          `${asking("/upgrade")}early`
      )
      yield* peer.end
      assert.strictEqual(withoutDate(yield* peer.receiveAll), `${ok("first")}${ok("second")}${switching}early`)
    })
  )

  it.scoped("RFC 9110 §7.8: a 100 waits for the response before it too", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect } = yield* serve(routes([gate], signalled(reached)))
      const peer = yield* connect
      yield* peer.send(`${get("/wait/0")}${asking("/upgrade", { fields: ["Expect: 100-continue"] })}early`)
      yield* Deferred.await(reached)
      yield* Deferred.succeed(gate, undefined)
      yield* peer.end
      assert.strictEqual(
        withoutDate(yield* peer.receiveAll),
        `${ok("/wait/0")}HTTP/1.1 100 Continue\r\n\r\n${switching}early`
      )
    })
  )

  it.scoped("RFC 9110 §10.1.1: a 100 is never inside of a response, also where the upgrade is ignored", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const { connect } = yield* serve(routes([gate], echo))
      const peer = yield* connect
      yield* peer.send(`${get("/wait/0")}${asking("/two", { fields: ["Expect: 100-continue"] })}`)
      yield* Effect.repeatN(turn, 5)
      yield* Deferred.succeed(gate, undefined)
      yield* peer.receiveResponse
      const { interim, text } = yield* peer.receiveResponse
      assert.strictEqual(text, "/two")
      assert.isTrue(interim.every(({ status }) => status === 100))
      yield* peer.send(get("/three"))
      assert.strictEqual((yield* peer.receiveResponse).text, "/three")
    })
  )

  it.scoped("the end of a response arms no timeout of HTTP on the switched connection", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect, server } = yield* serve(
        routes(
          [gate],
          Effect.zipRight(
            Deferred.succeed(reached, undefined),
            Upgrade.onUpgrade(raw, (upgraded) =>
              Effect.gen(function* () {
                yield* Upgraded.readExactly(upgraded, 1)
                yield* Upgraded.write(upgraded, String((upgraded.socket as { timeout?: number }).timeout ?? 0))
              })
            )
          )
        ),
        { node: { keepAliveTimeout: 60_000 } }
      )
      server.timeout = 70_000
      const peer = yield* connect
      yield* peer.send(`${get("/wait/0")}${asking("/upgrade")}`)
      yield* Deferred.await(reached)
      yield* Deferred.succeed(gate, undefined)
      yield* peer.receiveResponse
      yield* peer.receiveHead
      yield* peer.send("x")
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "0")
    })
  )

  it.scoped("the peer's going while it waits for its turn fails the switch, and interrupts nobody else", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const outcome = yield* Deferred.make<Exit.Exit<unknown, { readonly _tag: string }>>()
      const { connect, idle } = yield* serve(
        routes(
          [gate],
          Effect.gen(function* () {
            const [response, upgraded] = yield* Upgrade.respond(raw)
            yield* Effect.scoped(upgraded).pipe(
              Effect.exit,
              Effect.flatMap((exit) => Deferred.succeed(outcome, exit)),
              Effect.forkDaemon
            )
            yield* Deferred.succeed(reached, undefined)
            return response
          })
        )
      )
      const peer = yield* connect
      yield* peer.send(`${get("/wait/0")}${asking("/upgrade")}`)
      yield* Deferred.await(reached)
      yield* peer.reset
      const exit = yield* Deferred.await(outcome)
      assert.deepInclude(JSON.parse(JSON.stringify(exit)), { _tag: "Failure" })
      assert.include(JSON.stringify(exit), "ConnectionLost")
      yield* Deferred.succeed(gate, undefined)
      yield* idle
    })
  )
})

describe("behind an upgrade", () => {
  it.scoped("what looks like a request is the other protocol's", () =>
    Effect.gen(function* () {
      let requests = 0
      const { connect } = yield* serve(
        Effect.suspend(() => {
          requests++
          return echo
        })
      )
      const peer = yield* connect
      const next = `${get("/next")}${asking("/again")}`
      yield* peer.send(`${asking("/")}${next}`)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}${next}`)
      assert.strictEqual(requests, 1)
    })
  )

  it.scoped("that was ignored, requests are served in order, in its packet and in later ones", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(routes([], echo))
      const peer = yield* connect
      yield* peer.send(`${asking("/one", { token: "h2c" })}${get("/two")}${asking("/three")}${get("/four")}`)
      const texts = yield* Effect.replicateEffect(
        Effect.map(peer.receiveResponse, ({ text }) => text),
        4
      )
      assert.deepStrictEqual(texts, ["/one", "/two", "/three", "/four"])
      yield* peer.send(`${get("/five")}${asking("/upgrade")}early`)
      assert.strictEqual((yield* peer.receiveResponse).text, "/five")
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
    })
  )

  it.scoped("that is ignored late, a request waits for its answer", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const { connect } = yield* serve(routes([gate], echo))
      const peer = yield* connect
      yield* peer.send(`${asking("/wait/0")}${get("/two")}`)
      yield* Effect.repeatN(turn, 5)
      yield* Deferred.succeed(gate, undefined)
      const texts = yield* Effect.replicateEffect(
        Effect.map(peer.receiveResponse, ({ text }) => text),
        2
      )
      assert.deepStrictEqual(texts, ["/wait/0", "/two"])
    })
  )

  it.scoped("a second one on the same connection is switched after the first was ignored or refused", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }) =>
          url === "/ignored" ? Effect.succeed(HttpServerResponse.text(url)) : Upgrade.onUpgrade(raw, echoed)
        )
      )
      const peer = yield* connect
      for (let i = 0; i < 3; i++) {
        yield* peer.send(asking("/ignored"))
        assert.strictEqual((yield* peer.receiveResponse).text, "/ignored")
        yield* peer.send(asking("/", { token: "other" }))
        assert.strictEqual((yield* peer.receiveResponse).status, 426)
      }
      yield* peer.send(`${asking("/")}early`)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `${switching}early`)
    })
  )
})
