import type { Duplex } from "node:stream"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import * as Protocol from "../../src/Protocol.js"
import * as Arbitrary from "../../src/testing/Arbitrary.js"
import type * as Peer from "../../src/testing/Peer.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import {
  type App,
  asking,
  echo,
  echoed,
  type Kind,
  message,
  type Running,
  runs,
  serve,
  turn,
  unhandled
} from "../support.js"

const raw = Protocol.raw("echo")

const forms: ReadonlyArray<readonly [string, App]> = [
  ["onUpgrade", echo],
  [
    "upgrade, behind its body",
    Effect.gen(function* () {
      const request = yield* HttpServerRequest.HttpServerRequest
      yield* request.text
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
      yield* Effect.forkDaemon(Effect.exit(Effect.scoped(Effect.flatMap(upgraded, echoed))))
      return response
    })
  ],
  ["an answer that ignores it", Effect.succeed(HttpServerResponse.text("plain"))],
  [
    "an answer that ignores it, behind its body",
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      Effect.map(request.text, (text) => HttpServerResponse.text(text))
    )
  ]
]

const bodies: ReadonlyArray<readonly [string, ReadonlyArray<string>, string]> = [
  ["Content-Length", ["Content-Length: 4"], "body"],
  ["chunked", ["Transfer-Encoding: chunked"], "4\r\nbody\r\n0\r\n\r\n"]
]

const stillServes = ({ connect }: Running) =>
  Effect.gen(function* () {
    const peer = yield* connect
    yield* peer.send(asking("/", { method: "POST", fields: ["Content-Length: 0"] }))
    assert.include([101, 200], (yield* peer.receiveHead).status)
    yield* peer.end
    yield* peer.receiveAll
  }).pipe(Effect.scoped)

const breaking: ReadonlyArray<readonly [Kind, "reset" | "end"]> = [
  ["tcp", "reset"],
  ["tcp", "end"],
  ["memory", "reset"],
  ["memory", "end"],
  ["tls", "reset"],
  ["tls", "end"],
  ["unix", "end"]
]

describe.each(breaking)("over %s, a peer's %s at any byte", (kind, how) => {
  it.scoped.each(forms)("leaves nothing behind, with %s", ([_, app]) =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const running = yield* serve(app, { kind })
      for (const [_, fields, content] of bodies) {
        const bytes = asking("/", { method: "POST", fields, content: `${content}session` })
        // TLS costs a handshake a connection, and hands over what a record held
        const step = kind === "tls" ? 9 : 1
        yield* Effect.forEach(
          Array.from({ length: Math.floor(bytes.length / step) + 1 }, (_, i) => i * step),
          (at) =>
            Effect.gen(function* () {
              const peer = yield* running.connect
              yield* peer.send(bytes.slice(0, at))
              if (at % 3 === 0) {
                yield* turn
              }
              yield* peer[how]
              if (how === "end") {
                const received = Buffer.from(yield* peer.receiveAll).toString()
                assert.match(received, /^(?:|HTTP\/1\.1 (?:101|200|400) .*)$/s, `after ${at} bytes`)
              }
            }).pipe(Effect.scoped),
          { concurrency: 16 }
        )
      }
      // What is written to a TLS socket that was reset may never be called back: such a socket has closeTimeout
      const time = Effect.zipRight(turn, TestClock.adjust("1 second"))
      yield* kind === "tls" && how === "reset" ? Effect.raceFirst(running.idle, Effect.forever(time)) : running.idle
      yield* stillServes(running)
      yield* running.idle
      assert.deepStrictEqual(seen, [])
    })
  )
})

describe("a peer that goes", () => {
  const exitOf = (app: (exit: Deferred.Deferred<Exit.Exit<unknown, unknown>>) => App) =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const reached = yield* Deferred.make<void>()
      const exit = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      const running = yield* serve(
        Effect.zipRight(
          Deferred.succeed(reached, undefined),
          Effect.onExit(app(exit), (it) => Deferred.succeed(exit, it))
        )
      )
      const peer = yield* running.connect
      return { ...running, seen, peer, reached: Deferred.await(reached), exit: Deferred.await(exit) }
    })

  it.scoped("while the handler decides interrupts the handler", () =>
    Effect.gen(function* () {
      const { exit, idle, peer, reached, seen } = yield* exitOf(() => Effect.never)
      yield* peer.send(asking("/"))
      yield* reached
      yield* peer.reset
      assert.isTrue(Exit.isInterrupted(yield* exit))
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("while the handler decides, with a few bytes unread, interrupts the handler", () =>
    Effect.gen(function* () {
      const { exit, idle, peer, reached, seen } = yield* exitOf(() => Effect.never)
      yield* peer.send(`${asking("/")}early`)
      yield* reached
      yield* turn
      yield* peer.reset
      assert.isTrue(Exit.isInterrupted(yield* exit))
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("while the handler decides, unseen behind what is unread, is seen at decisionTimeout", () =>
    Effect.gen(function* () {
      const { exit, idle, peer, reached, seen } = yield* exitOf(() => Effect.never)
      yield* peer.send(asking("/"))
      yield* reached
      // More than is read before the decision
      yield* Effect.race(peer.send(Buffer.alloc(1024 * 1024)), Effect.repeatN(turn, 20))
      yield* peer.reset
      yield* turn
      yield* TestClock.adjust("60 seconds")
      assert.isTrue(Exit.isInterrupted(yield* exit))
      yield* TestClock.adjust("5 seconds")
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("while an uninterruptible handler decides fails its switch with ConnectionLost", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const error = yield* Deferred.make<string>()
      const { idle, peer, reached, seen } = yield* exitOf(() =>
        Effect.uninterruptible(
          Effect.zipRight(
            Deferred.await(gate),
            Effect.matchEffect(Upgrade.upgrade(raw), {
              onFailure: ({ _tag }) => Effect.as(Deferred.succeed(error, _tag), HttpServerResponse.empty()),
              onSuccess: () => Effect.as(Deferred.succeed(error, "switched"), Upgrade.done)
            })
          )
        )
      )
      yield* peer.send(asking("/"))
      yield* reached
      yield* peer.reset
      yield* idle
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Deferred.await(error), "ConnectionLost")
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("while the handler reads the body fails that reading", () =>
    Effect.gen(function* () {
      const { exit, idle, peer, reached, seen } = yield* exitOf(() =>
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          Effect.as(Effect.uninterruptible(request.text), HttpServerResponse.empty())
        )
      )
      yield* peer.send(asking("/", { method: "POST", fields: ["Content-Length: 10"], content: "half" }))
      yield* reached
      yield* turn
      yield* peer.reset
      const it = yield* exit
      assert.isTrue(Exit.isFailure(it))
      assert.include(Exit.isFailure(it) ? Cause.pretty(it.cause) : "", "RequestError")
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("while its 100 is awaited leaves nothing behind", () =>
    Effect.gen(function* () {
      const { idle, peer, seen } = yield* exitOf(() => echo)
      yield* peer.send(asking("/", { method: "POST", fields: ["Expect: 100-continue", "Content-Length: 10"] }))
      assert.strictEqual((yield* peer.receiveHead).status, 100)
      yield* peer.reset
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("interrupts a session that neither reads nor writes", () =>
    Effect.gen(function* () {
      const session = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      const { idle, peer, seen } = yield* exitOf(() =>
        Upgrade.onUpgrade(raw, () => Effect.onExit(Effect.never, (exit) => Deferred.succeed(session, exit)))
      )
      yield* peer.send(asking("/"))
      yield* peer.receiveHead
      yield* peer.reset
      assert.isTrue(Exit.isInterrupted(yield* Deferred.await(session)))
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("fails a session's reading and its writing, typed", () =>
    Effect.gen(function* () {
      for (const use of [
        (upgraded: Upgraded.Upgraded) => Upgraded.readExactly(upgraded, 10),
        (upgraded: Upgraded.Upgraded) => Effect.forever(Upgraded.write(upgraded, Buffer.alloc(100_000)))
      ]) {
        const session = yield* Deferred.make<Exit.Exit<unknown, { readonly _tag: string }>>()
        const { idle, peer, seen } = yield* exitOf(() =>
          Upgrade.onUpgrade(raw, (upgraded) => Effect.onExit(use(upgraded), (exit) => Deferred.succeed(session, exit)))
        )
        yield* peer.send(asking("/"))
        yield* peer.receiveHead
        yield* peer.reset
        const exit = yield* Deferred.await(session)
        const failure = Exit.isFailure(exit) ? Cause.failureOption(exit.cause) : undefined
        assert.deepInclude(failure, { _tag: "Some" })
        assert.strictEqual(failure?._tag === "Some" ? failure.value._tag : "", "ConnectionError")
        yield* idle
        assert.deepStrictEqual(seen, [])
      }
    })
  )
})

describe("a handler that never decides", () => {
  it.scoped("is interrupted at decisionTimeout: 503, and the end of the connection", () =>
    Effect.gen(function* () {
      const exit = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      const reached = yield* Deferred.make<void>()
      const { connect, idle } = yield* serve(
        Effect.zipRight(
          Deferred.succeed(reached, undefined),
          Effect.onExit(Effect.never, (it) => Deferred.succeed(exit, it))
        ),
        { decisionTimeout: "7 seconds" }
      )
      const peer = yield* connect
      yield* peer.send(`${asking("/")}early`)
      yield* Deferred.await(reached)
      yield* TestClock.adjust("6 seconds")
      assert.isFalse(yield* Deferred.isDone(exit))
      yield* TestClock.adjust("1 seconds")
      const { headers, status } = yield* peer.receiveResponse
      assert.deepStrictEqual([status, headers.connection], [503, "close"])
      assert.isTrue(Exit.isInterrupted(yield* Deferred.await(exit)))
      assert.strictEqual((yield* peer.receiveAll).length, 0)
      yield* peer.end
      yield* idle
    })
  )

  it.scoped("and cannot be interrupted loses its connection at closeTimeout", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect, idle } = yield* serve(
        Effect.zipRight(
          Deferred.succeed(reached, undefined),
          Effect.as(Effect.uninterruptible(Deferred.await(gate)), HttpServerResponse.empty())
        ),
        { decisionTimeout: "7 seconds", closeTimeout: "2 seconds" }
      )
      const peer = yield* connect
      yield* peer.send(asking("/"))
      yield* Deferred.await(reached)
      yield* TestClock.adjust("7 seconds")
      yield* TestClock.adjust("2 seconds")
      yield* peer.closed
      yield* idle
      yield* Deferred.succeed(gate, undefined)
    })
  )

  it.scoped("on an ordinary request has no such limit", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const reached = yield* Deferred.make<void>()
      const { connect } = yield* serve(
        Effect.zipRight(
          Deferred.succeed(reached, undefined),
          Effect.as(Deferred.await(gate), HttpServerResponse.text("late"))
        ),
        { decisionTimeout: "1 seconds" }
      )
      const peer = yield* connect
      yield* peer.send(message("GET / HTTP/1.1", ["Host: a"]))
      yield* Deferred.await(reached)
      yield* TestClock.adjust("1 hour")
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* peer.receiveResponse).text, "late")
    })
  )
})

describe("an answer that does not leave", () => {
  interface Stuck {
    readonly running: Running
    readonly peer: Peer.Peer
    /** How many requests are over: each has closed its Scope, and none of its fibers is left. */
    readonly over: () => number
    readonly close: Effect.Effect<void>
  }

  /** Answers with more than the way holds, to a peer that reads nothing. */
  const stuck = (
    requests: ReadonlyArray<string>,
    answer = HttpServerResponse.uint8Array(new Uint8Array(1024 * 1024))
  ): Effect.Effect<Stuck, unknown, Scope.Scope> =>
    Effect.gen(function* () {
      let over = 0
      let socket: Duplex | undefined
      const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
      const app = Effect.gen(function* () {
        yield* Effect.addFinalizer(() =>
          Effect.sync(() => {
            over++
          })
        )
        const { url } = yield* HttpServerRequest.HttpServerRequest
        return url === "/endless"
          ? HttpServerResponse.stream(Stream.concat(Stream.make(Buffer.alloc(1024 * 1024)), Stream.never))
          : answer
      })
      const running = yield* Scope.extend(serve(app, { kind: "memory" }), scope)
      running.server.once("connection", (accepted: Duplex) => {
        socket = accepted
      })
      const peer = yield* running.connect
      peer.socket.pause()
      yield* peer.send(requests.join(""))
      yield* Effect.repeat(turn, { until: () => socket!.writableNeedDrain })
      assert.strictEqual(over, 0)
      return { running, peer, over: () => over, close: Scope.close(scope, Exit.void) }
    })

  const plain = message("GET / HTTP/1.1", ["Host: a"])

  const endless = message("GET /endless HTTP/1.1", ["Host: a"])

  const requests: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
    ["to a request that offers a switch", [asking("/")]],
    ["to an ordinary request", [plain]],
    ["to an ordinary request before another", [plain, plain]],
    ["to an ordinary request behind one whose answer has no end", [endless, plain]],
    ["to one that offers a switch behind an ordinary one", [plain, asking("/")]]
  ]

  it.scoped.each(requests)("%s, leaves no fiber behind when the peer resets", ([_, requests]) =>
    Effect.gen(function* () {
      const { over, peer, running } = yield* stuck(requests)
      yield* peer.reset
      yield* running.idle
      yield* Effect.repeat(turn, { until: () => over() === requests.length })
    })
  )

  // The platform waits for the end of any answer to HEAD, that to a client which has gone too
  const heads = [asking("/", { method: "HEAD" }), message("HEAD / HTTP/1.1", ["Host: a"])]

  it.scoped.each(heads)("and is made after the peer has gone, leaves no fiber behind: %j", (request) =>
    Effect.gen(function* () {
      const reached = yield* Deferred.make<void>()
      const gate = yield* Deferred.make<void>()
      const over = yield* Deferred.make<void>()
      const late = Effect.addFinalizer(() => Deferred.succeed(over, undefined)).pipe(
        Effect.zipRight(Deferred.succeed(reached, undefined)),
        Effect.zipRight(Deferred.await(gate)),
        Effect.as(HttpServerResponse.text("late")),
        Effect.uninterruptible
      )
      const { connect, idle } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }) =>
          url === "/endless" ? Effect.succeed(HttpServerResponse.stream(Stream.never)) : late
        )
      )
      const peer = yield* connect
      yield* peer.send(endless + request)
      yield* Deferred.await(reached)
      yield* peer.reset
      yield* idle
      yield* Deferred.succeed(gate, undefined)
      yield* Deferred.await(over)
    })
  )

  it.scoped("ends its connection when nothing leaves for writeTimeout behind decisionTimeout", () =>
    Effect.gen(function* () {
      const { over, peer, running } = yield* stuck([asking("/")])
      yield* TestClock.adjust("60 seconds")
      yield* TestClock.adjust("119 seconds")
      assert.strictEqual(over(), 0)
      yield* TestClock.adjust("1 seconds")
      yield* running.idle
      yield* Effect.repeat(turn, { until: () => over() === 1 })
      yield* peer.closed
    })
  )

  it.scoped("is waited for as long as the peer takes something now and then", () =>
    Effect.gen(function* () {
      const pieces = Stream.fromIterable(Array.from({ length: 10 }, () => Buffer.alloc(100_000)))
      const { over, peer } = yield* stuck([asking("/")], HttpServerResponse.stream(pieces))
      yield* TestClock.adjust("60 seconds")
      for (let i = 0; i < 4; i++) {
        yield* peer.receiveExactly(150_000)
        peer.socket.pause()
        yield* Effect.repeatN(turn, 5)
        yield* TestClock.adjust("119 seconds")
      }
      assert.strictEqual(over(), 0)
      yield* peer.receiveUntil("\r\n0\r\n\r\n")
      yield* Effect.repeat(turn, { until: () => over() === 1 })
    })
  )

  it.scoped("holds up the shutdown no longer than closeTimeout", () =>
    Effect.gen(function* () {
      const { close, over, peer } = yield* stuck([asking("/")])
      const closing = yield* Effect.fork(close)
      yield* Effect.repeatN(turn, 5)
      yield* TestClock.adjust("4999 millis")
      assert.isNull(closing.unsafePoll())
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      assert.strictEqual(over(), 1)
      yield* peer.closed
    })
  )

  /** Sends a request to an app of which a peer has taken as much as it will: nothing more leaves. */
  const behind = (request: string, app: App) =>
    Effect.gen(function* () {
      let socket: Duplex | undefined
      const running = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) =>
          headers.upgrade === undefined ? HttpServerResponse.uint8Array(new Uint8Array(64 * 1024)) : app
        ),
        { kind: "memory" }
      )
      running.server.once("connection", (accepted: Duplex) => {
        socket = accepted
      })
      const peer = yield* running.connect
      peer.socket.pause()
      yield* peer.send(plain)
      yield* Effect.repeat(turn, { until: () => peer.socket.readableLength > 64 * 1024 })
      yield* peer.send(request)
      return { ...running, written: Effect.repeat(turn, { until: () => socket!.writableLength > 0 }) }
    })

  it.scoped("when it is the 101 yields ConnectionLost after writeTimeout", () =>
    Effect.gen(function* () {
      const error = yield* Deferred.make<string>()
      const { idle, switched, written } = yield* behind(
        asking("/"),
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(raw, { writeTimeout: "7 seconds" })
          const claim = Effect.matchEffect(Effect.scoped(upgraded), {
            onFailure: ({ _tag }) => Deferred.succeed(error, _tag),
            onSuccess: () => Deferred.succeed(error, "switched")
          })
          yield* Effect.forkDaemon(claim)
          return response
        })
      )
      yield* written
      assert.strictEqual(yield* switched, 0)
      yield* TestClock.adjust("7 seconds")
      assert.strictEqual(yield* Deferred.await(error), "ConnectionLost")
      yield* idle
    })
  )

  it.scoped("in place of a switch that came to nothing ends its connection too", () =>
    Effect.gen(function* () {
      const body = asking("/", { method: "POST", fields: ["Content-Length: 10"], content: "half" })
      const { idle, written } = yield* behind(body, echo)
      yield* Effect.repeatN(turn, 5)
      yield* TestClock.adjust("30 seconds")
      yield* written
      yield* TestClock.adjust("60 seconds")
      yield* TestClock.adjust("120 seconds")
      yield* idle
    })
  )
})

describe("a head", () => {
  it.scoped("of 100,000 bytes is refused by 431 before any handler, and the connection closed", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      let calls = 0
      const { connect, idle } = yield* serve(
        Effect.suspend(() => {
          calls++
          return echo
        })
      )
      for (const fields of [
        [`X-Long: ${"x".repeat(100_000)}`],
        Array.from({ length: 5000 }, (_, i) => `X-Many-${i}: ${"x".repeat(8)}`),
        [`Upgrade: ${"x,".repeat(50_000)}`]
      ]) {
        const peer = yield* connect
        yield* peer.send(asking("/", { fields }))
        assert.strictEqual((yield* peer.receiveHead).status, 431)
        yield* peer.closed
      }
      yield* idle
      assert.strictEqual(calls, 0)
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped("with more fields than maxHeadersCount switches nothing and kills nobody (CVE-2024-37890)", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const running = yield* serve(echo)
      running.server.maxHeadersCount = 32
      const many = Array.from({ length: 70 }, (_, i) => `X-${i}: ${i}`)
      for (const request of [
        message("GET / HTTP/1.1", ["Host: a", ...many, "Connection: Upgrade", "Upgrade: echo"]),
        message("GET / HTTP/1.1", [...many, "Host: a", "Connection: Upgrade", "Upgrade: echo"])
      ]) {
        const peer = yield* running.connect
        yield* peer.send(request)
        assert.include([400, 426, 431], (yield* peer.receiveHead).status)
      }
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scoped.each([
    ["the default", undefined, 1100],
    ["one of its own", 32, 70]
  ] as const)(
    "whose framing fields are cut off by %s of maxHeadersCount lets no request hide in its body",
    ([_, limit, count]) =>
      Effect.gen(function* () {
        let smuggled = false
        const running = yield* serve(
          Effect.map(HttpServerRequest.HttpServerRequest, ({ url }) => {
            smuggled ||= url === "/smuggled"
            return HttpServerResponse.text(url)
          })
        )
        if (limit !== undefined) {
          running.server.maxHeadersCount = limit
        }
        const many = Array.from({ length: count }, (_, i) => `${i}:`)
        const hidden = message("GET /smuggled HTTP/1.1", ["Host: a"])
        const peer = yield* running.connect
        yield* peer.send(
          asking("/", { method: "POST", fields: [...many, `Content-Length: ${hidden.length}`], content: hidden })
        )
        assert.strictEqual((yield* peer.receiveHead).status, 431)
        yield* peer.closed
        assert.isFalse(smuggled)
      })
  )

  // Of those that mean nothing to anybody some stand for all by default
  const anyOctet = Array.from({ length: 256 }, (_, i) => i).filter(
    (octet) =>
      octet <= 0x20 ||
      octet === 0x7f ||
      octet % 13 === 0 ||
      runs(0) > 0 ||
      '",:;/\\='.includes(String.fromCharCode(octet))
  )
  const fields: ReadonlyArray<readonly [string, (octet: string) => string]> = [
    ["the method", (octet) => asking("/").replace("GET", `G${octet}T`)],
    ["the target", (octet) => asking(`/a${octet}b`)],
    ["the version", (octet) => asking("/").replace("HTTP/1.1", `HTTP/1.${octet}`)],
    ["the Host", (octet) => asking("/").replace("example", `exa${octet}ple`)],
    ["a name", (octet) => asking("/", { fields: [`X${octet}Y: z`] })],
    ["a value", (octet) => asking("/", { fields: [`X: y${octet}z`] })],
    ["the Upgrade", (octet) => asking("/", { token: `ec${octet}ho` })],
    ["the Connection", (octet) => asking("/", { connection: `Up${octet}grade` })],
    ["the end of a line", (octet) => asking("/", { fields: [`X: y${octet}`] })],
    ["the place of CR LF", (octet) => asking("/").replace("\r\nUpgrade", `${octet}Upgrade`)],
    ["the Content-Length", (octet) => asking("/", { fields: [`Content-Length: 0${octet}`] })]
  ]

  it.scoped.each(fields)("with any octet in %s is answered or refused, and harms nobody else", ([place, make]) =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const running = yield* serve(echo)
      yield* Effect.forEach(
        anyOctet,
        (octet) =>
          Effect.gen(function* () {
            const peer = yield* running.connect
            yield* peer.send(Buffer.from(make(String.fromCharCode(octet)), "latin1"))
            yield* peer.end
            const received = Buffer.from(yield* peer.receiveAll).toString("latin1")
            assert.match(received, /^(?:|HTTP\/1\.1 (?:101|400|404|405|426) .*)$/s, `octet ${octet}`)
            if (octet < 0x20 && octet !== 0x09 && octet !== 0x0d && octet !== 0x0a) {
              assert.notMatch(received, /^HTTP\/1\.1 101/, `octet ${octet} in ${place}`)
            }
          }).pipe(Effect.scoped),
        { concurrency: 16 }
      )
      yield* running.idle
      yield* stillServes(running)
      assert.deepStrictEqual(seen, [])
    })
  )
})

describe("garbage", () => {
  it.scoped("of any kind, before or behind a switch, is refused or carried", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const running = yield* serve(echo)
      const cases = Arbitrary.split(
        FastCheck.tuple(
          FastCheck.constantFrom("", "G", "GET / HTTP/1.1\r\n", asking("/").slice(0, -2)),
          Arbitrary.payload(2000)
        ).map(([start, garbage]) => ({ bytes: Buffer.concat([Buffer.from(start), garbage]) }))
      )
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(cases, ({ at, bytes }) =>
            Effect.gen(function* () {
              const peer = yield* running.connect
              yield* peer.sendSplit(bytes, at)
              yield* peer.end
              yield* peer.closed
            }).pipe(Effect.scoped, Effect.runPromise)
          ),
          { numRuns: runs(100) }
        )
      )
      yield* running.idle
      yield* stillServes(running)
      assert.deepStrictEqual(seen, [])
    })
  )
})

describe("many requests", () => {
  it.scoped("pipelined on one connection leave no listener behind", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const listeners: Array<number> = []
      const { connect } = yield* serve(
        Effect.map(HttpServerRequest.HttpServerRequest, ({ source }) => {
          const { socket } = source as unknown as { readonly socket: NodeJS.EventEmitter }
          listeners.push(socket.eventNames().reduce((sum, name) => sum + socket.listenerCount(name), 0))
          return HttpServerResponse.text("plain")
        })
      )
      const peer = yield* connect
      const round = asking("/") + message("GET / HTTP/1.1", ["Host: a"])
      for (let i = 0; i < 30; i++) {
        yield* peer.send(round)
        yield* peer.receiveResponse
        yield* peer.receiveResponse
      }
      assert.deepStrictEqual(listeners.slice(-2), listeners.slice(2, 4))
      yield* peer.send(asking("/").repeat(40))
      yield* Effect.replicateEffect(peer.receiveResponse, 40)
      assert.deepStrictEqual(seen, [])
    })
  )
})
