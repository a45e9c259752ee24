/** How attempts end that do not come to a switch: by a time limit, an interruption, a fault; and that nothing is left then. */
import * as net from "node:net"
import * as tls from "node:tls"
import { HttpBody, HttpClientRequest } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, FastCheck, Fiber, Stream, Supervisor, TestClock } from "effect"
import { Connection, Protocol, UpgradeClient, Upgraded, UpgradeError } from "effect-upgrade"
import { clientTls, echo, kinds, runs, serve, turn, unhandled } from "../support.js"
import { cert, key } from "../testing/certificate.js"
import {
  attempt,
  failureOf,
  lingering,
  listening,
  nothingLeft,
  received,
  requestHead,
  scripted,
  switching
} from "./support.js"

const raw = Protocol.raw("echo")

/** An effect, and the fibers that are left a few turns after it. */
const withFibers = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const supervisor = yield* Supervisor.track
    const exit = yield* Effect.exit(Effect.supervised(effect, supervisor))
    for (let i = 0; i < 5; i++) {
      yield* turn
    }
    return { exit, fibers: yield* supervisor.value }
  })

describe("a time limit", () => {
  const late = (
    options: UpgradeClient.Options,
    limit: "10 seconds" | "30 seconds",
    request: UpgradeClient.Target = "http://a/"
  ) =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const asking = yield* Effect.fork(attempt(UpgradeClient.upgrade(request, raw, { ...options, socket })))
        yield* requestHead(server)
        yield* turn
        yield* TestClock.adjust(limit)
        const error = failureOf(yield* Fiber.join(asking))
        assert.strictEqual(error?._tag, "UpgradeTimeout")
        yield* nothingLeft(socket)
        return error?._tag === "UpgradeTimeout" ? `${error.stage} ${error.millis}: ${error.message}` : ""
      })
    )

  it.effect("ends an attempt whose answer does not come: 30 s by default", () =>
    Effect.gen(function* () {
      assert.include(yield* late({}, "30 seconds"), "Head 30000: The server did not answer")
      assert.include(yield* late({ headTimeout: "10 seconds" }, "10 seconds"), "Head 10000")
    })
  )

  it.effect("of the whole ends it wherever it is", () =>
    Effect.gen(function* () {
      assert.include(yield* late({ timeout: "10 seconds" }, "10 seconds"), "Total 10000")
      const endless = HttpClientRequest.setBody(HttpClientRequest.post("http://a/"), HttpBody.stream(Stream.never))
      assert.include(yield* late({ timeout: "10 seconds" }, "10 seconds", endless), "Total 10000")
    })
  )

  it.effect("of the answer does not run while the body is sent", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const more = yield* Deferred.make<void>()
        const body = HttpBody.stream(Stream.fromEffect(Effect.as(Deferred.await(more), Buffer.from("a"))), "text/x", 1)
        const asking = yield* Effect.fork(
          attempt(
            UpgradeClient.upgrade(HttpClientRequest.setBody(HttpClientRequest.post("http://a/"), body), raw, { socket })
          )
        )
        yield* requestHead(server)
        yield* TestClock.adjust("1 hour")
        yield* Deferred.succeed(more, undefined)
        yield* server.receiveExactly(1)
        yield* server.send(switching())
        assert.isTrue(Exit.isSuccess(yield* Fiber.join(asking)))
      })
    )
  )

  it.effect("can be switched off", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        const asking = yield* Effect.fork(
          attempt(UpgradeClient.upgrade("http://a/", raw, { headTimeout: Infinity, connectTimeout: Infinity, socket }))
        )
        yield* requestHead(server)
        yield* TestClock.adjust("1 day")
        yield* server.send(switching())
        assert.isTrue(Exit.isSuccess(yield* Fiber.join(asking)))
      })
    )
  )

  it.effect("of the connection covers TLS, and a connection that is made elsewhere", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { accept, port } = yield* listening
        const asking = yield* Effect.fork(attempt(UpgradeClient.upgrade(`https://127.0.0.1:${port}/`, raw)))
        const server = yield* accept
        yield* server.receive
        yield* TestClock.adjust("10 seconds")
        const error = failureOf(yield* Fiber.join(asking))
        assert.strictEqual(error?._tag === "UpgradeTimeout" && error.stage, "Connect")
        yield* server.closed
        const never = yield* Effect.fork(
          attempt(UpgradeClient.upgrade("http://a/", raw, { connectTimeout: "1 second", socket: Effect.never }))
        )
        yield* Effect.yieldNow()
        yield* TestClock.adjust("1 second")
        assert.strictEqual(failureOf(yield* Fiber.join(never))?._tag, "UpgradeTimeout")
      })
    )
  )

  it.effect("of the session is the attempt's: one on which nothing moves for idleTimeout fails", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        yield* Effect.fork(Effect.zipRight(requestHead(server), server.send(switching())))
        const upgraded = yield* UpgradeClient.upgrade("http://a/", raw, { socket, idleTimeout: "1 minute" })
        const reading = yield* Effect.fork(Effect.flip(received(upgraded)))
        yield* TestClock.adjust("1 minute")
        assert.strictEqual((yield* Fiber.join(reading)).reason, "Timeout")
      })
    )
  )

  it.effect("of the session is that of a refusal's content too", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        yield* Effect.fork(Effect.zipRight(requestHead(server), server.send("HTTP/1.1 403 No\r\n\r\nand then nothing")))
        const error = yield* Effect.flip(UpgradeClient.upgrade("http://a/", raw, { socket, idleTimeout: "1 minute" }))
        assert.instanceOf(error, UpgradeError.UpgradeRejected)
        const reading = yield* Effect.fork(Effect.flip((error as UpgradeError.UpgradeRejected).response.text))
        yield* TestClock.adjust("1 minute")
        assert.include(String((yield* Fiber.join(reading)).cause), "idleTimeout")
      })
    )
  )

  it.effect("closes a session whose server never ends: after closeTimeout", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { accept, port } = yield* lingering
        const asking = yield* Effect.fork(
          Effect.scoped(
            Effect.map(
              UpgradeClient.upgrade(`http://127.0.0.1:${port}/`, raw, { closeTimeout: "3 seconds" }),
              (_) => _.socket
            )
          )
        )
        const server = yield* accept
        yield* requestHead(server)
        yield* server.send(switching())
        yield* server.receiveAll
        yield* TestClock.adjust("3 seconds")
        assert.isTrue((yield* Fiber.join(asking)).destroyed)
      })
    )
  )
})

describe("a connection that cannot be had", () => {
  const failed = (url: string, options?: UpgradeClient.Options) =>
    Effect.map(attempt(UpgradeClient.upgrade(url, raw, options)), (exit) => {
      const error = failureOf(exit)
      assert.isDefined(error)
      return error!
    })

  it.live("is ConnectFailed: nobody listens, the name is unknown, there is no such socket", () =>
    Effect.gen(function* () {
      const port = yield* Effect.scoped(Effect.map(listening, ({ port }) => port))
      const refused = yield* failed(`http://127.0.0.1:${port}/`)
      assert.strictEqual(refused._tag === "ConnectFailed" && refused.reason, "Connect")
      assert.include(refused.message, `127.0.0.1:${port}`)
      const both = yield* failed(`http://localhost:${port}/`)
      assert.include(both.message, "ECONNREFUSED")
      const unknown = yield* failed("http://no-such-name.invalid/")
      assert.strictEqual(unknown._tag === "ConnectFailed" && unknown.reason, "Resolve")
      const path = yield* failed("http://a/", { socketPath: "/no/such/socket" })
      assert.include(path.message, "/no/such/socket")
      assert.strictEqual((yield* failed("http://[::1]:1/"))._tag, "ConnectFailed")
      const socket = new net.Socket()
      socket.destroy()
      const exit = yield* attempt(UpgradeClient.upgrade("http://a/", raw, { socket }))
      assert.strictEqual(failureOf(exit)?._tag, "ConnectFailed")
    })
  )

  it.scopedLive(
    "is TlsFailed: a certificate that is not trusted, or of another name; a server without TLS; bad options",
    () =>
      Effect.gen(function* () {
        const running = yield* serve(echo, { kind: "tls" })
        const url = `https://localhost:${running.port}/`
        const untrusted = yield* failed(url, { tls: { ...clientTls, ca: [] } })
        assert.strictEqual(untrusted._tag, "TlsFailed")
        const named = yield* failed(url, { tls: { ...clientTls, servername: "example.com" } })
        assert.include(named.message, "example.com")
        assert.strictEqual((yield* failed(url, { tls: { ca: cert, cert: "nonsense" } }))._tag, "TlsFailed")
        const plain = yield* serve(echo)
        assert.strictEqual((yield* failed(`https://localhost:${plain.port}/`))._tag, "TlsFailed")
        const { accept, port } = yield* listening
        yield* Effect.fork(Effect.flatMap(accept, (server) => Effect.zipRight(server.receive, server.end)))
        assert.strictEqual((yield* failed(`https://127.0.0.1:${port}/`))._tag, "TlsFailed")
      })
  )

  it.scopedLive("is lost where the server refuses the client's certificate after the handshake", () =>
    Effect.gen(function* () {
      const running = yield* serve(echo, { kind: "tls" })
      const error = yield* failed(`https://localhost:${running.port}/`, { tls: { ca: cert } })
      assert.isTrue(error._tag === "ConnectionLost" || error._tag === "TlsFailed", error._tag)
    })
  )
})

describe("an interruption", () => {
  it.scopedLive("while the name is resolved, or the connection made, leaves nothing", () =>
    Effect.gen(function* () {
      const { accept, port } = yield* listening
      for (const url of ["http://no-such-name.invalid/", `http://127.0.0.1:${port}/`, `https://127.0.0.1:${port}/`]) {
        const asking = yield* Effect.fork(attempt(UpgradeClient.upgrade(url, raw)))
        yield* Effect.yieldNow()
        yield* Fiber.interrupt(asking)
        if (url.includes("127")) {
          yield* Effect.race(
            Effect.flatMap(accept, ({ closed }) => closed),
            turn.pipe(Effect.repeatN(50))
          )
        }
      }
    })
  )

  it.scopedLive("in any turn of an attempt leaves no socket and no fiber, over TCP, TLS and Unix", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      for (const kind of kinds.filter((kind) => kind !== "memory")) {
        const running = yield* serve(echo, { kind })
        const options = kind === "unix" ? { socketPath: (running.target as { path: string }).path } : { tls: clientTls }
        const request = HttpClientRequest.bodyText(
          HttpClientRequest.post(`${kind === "tls" ? "https" : "http"}://localhost:${running.port}/`),
          "body".repeat(10)
        )
        let switched = 0
        for (let turns = 0; switched === 0; turns += 1 + (turns >> 4)) {
          const { exit, fibers } = yield* withFibers(
            Effect.gen(function* () {
              const asking = yield* Effect.fork(
                Effect.scoped(
                  Effect.tap(UpgradeClient.upgrade(request, raw, options), () => {
                    switched++
                    return Effect.never
                  })
                )
              )
              yield* Effect.repeatN(turn, turns)
              yield* Fiber.interrupt(asking)
            })
          )
          assert.isTrue(Exit.isSuccess(exit))
          assert.deepStrictEqual(fibers, [])
          yield* running.idle
        }
      }
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive("of the request's body ends it, and the connection", () =>
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      const interrupted = yield* Deferred.make<void>()
      const body = HttpBody.stream(
        Stream.fromEffect(Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined)))
      )
      const asking = yield* Effect.fork(
        attempt(
          UpgradeClient.upgrade(HttpClientRequest.setBody(HttpClientRequest.post("http://a/"), body), raw, { socket })
        )
      )
      yield* requestHead(server)
      yield* Fiber.interrupt(asking)
      yield* Deferred.await(interrupted)
      yield* nothingLeft(socket)
    })
  )
})

describe("a session's end", () => {
  it.scopedLive("leaves no fiber, timer or listener, however it came", () =>
    Effect.gen(function* () {
      const running = yield* serve(echo)
      const url = `http://127.0.0.1:${running.port}/`
      const sockets: Array<net.Socket> = []
      const session = <A, E>(use: (upgraded: Upgraded.Upgraded) => Effect.Effect<A, E>) =>
        Effect.gen(function* () {
          const { fibers } = yield* withFibers(
            attempt(
              Effect.flatMap(UpgradeClient.upgrade(url, raw), (upgraded) => {
                sockets.push(upgraded.socket)
                return use(upgraded)
              })
            )
          )
          assert.deepStrictEqual(fibers, [])
        })
      yield* session(() => Effect.void)
      yield* session(() => Effect.fail("failed"))
      yield* session(() => Effect.die("died"))
      yield* session((upgraded) => Effect.zipRight(Upgraded.end(upgraded), received(upgraded)))
      yield* session((upgraded) =>
        Effect.zipRight(
          Effect.sync(() => upgraded.socket.destroy()),
          Connection.awaitClosed(upgraded.connection)
        )
      )
      yield* Effect.forEach(sockets, nothingLeft)
      yield* running.idle
    })
  )

  it.scopedLive("runs the finalizers of the connection, with a failure where the server is lost", () =>
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      yield* Effect.fork(Effect.zipRight(requestHead(server), server.send(switching())))
      const upgraded = yield* UpgradeClient.upgrade("http://a/", raw, { socket })
      const closed = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      yield* Connection.addFinalizer(upgraded.connection, (exit) => Deferred.succeed(closed, exit))
      const reading = yield* Effect.fork(Effect.flip(received(upgraded)))
      yield* server.reset
      assert.strictEqual((yield* Fiber.join(reading)).reason, "Reset")
      assert.isTrue(Exit.isFailure(yield* Deferred.await(closed)))
    })
  )
})

describe("a server that fails", () => {
  const answer = Buffer.from(`HTTP/1.1 103 Early\r\nA: b\r\n\r\n${switching()}behind`)
  const head = answer.length - "behind".length

  const cut = (how: "end" | "reset", at: number) =>
    Effect.scoped(
      Effect.gen(function* () {
        const { server, socket } = yield* scripted()
        yield* Effect.fork(
          requestHead(server).pipe(
            Effect.zipRight(server.send(answer.subarray(0, at))),
            Effect.zipRight(Effect.repeatN(turn, 3)),
            Effect.zipRight(server[how])
          )
        )
        const exit = yield* attempt(
          UpgradeClient.upgrade("http://a/", raw, { socket }).pipe(
            Effect.mapError((error) => error._tag),
            Effect.flatMap((upgraded) => Effect.flip(received(upgraded)))
          )
        )
        yield* nothingLeft(socket)
        return exit
      })
    )

  for (const how of ["end", "reset"] as const) {
    it.scopedLive(`by a ${how} at any byte of its answer is a typed error, and nothing is left`, () =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        for (let at = 0; at < head; at++) {
          assert.strictEqual(failureOf(yield* cut(how, at)), "ConnectionLost", String(at))
        }
        assert.deepStrictEqual(seen, [])
      })
    )
  }

  it.scopedLive("by a reset behind its 101 fails the session", () =>
    Effect.gen(function* () {
      const exit = yield* cut("reset", answer.length)
      assert.isTrue(Exit.isSuccess(exit) && exit.value.reason === "Reset")
    })
  )

  for (const kind of ["tcp", "tls"] as const) {
    it.scopedLive(`by a reset at any byte, over ${kind}, is a typed error`, () =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        const server = yield* Effect.acquireRelease(
          Effect.async<net.Server>((resume) => {
            let at = 0
            const serving = (socket: net.Socket, transport: net.Socket) => {
              socket.on("error", () => {})
              socket.once("data", () => {
                socket.write(answer.subarray(0, at++ % answer.length), () =>
                  setImmediate(() => transport.resetAndDestroy())
                )
              })
            }
            const server = net.createServer((socket) => {
              socket.on("error", () => {})
              serving(kind === "tls" ? new tls.TLSSocket(socket, { isServer: true, cert, key }) : socket, socket)
            })
            server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
          }),
          (server) => Effect.sync(() => void server.close())
        )
        const { port } = server.address() as net.AddressInfo
        const url = `${kind === "tls" ? "https" : "http"}://localhost:${port}/`
        for (let i = 0; i < answer.length; i++) {
          const exit = yield* attempt(Effect.flatMap(UpgradeClient.upgrade(url, raw, { tls: { ca: cert } }), received))
          const tag = failureOf(exit)?._tag
          // Node sends a FIN before its reset: a session may see that first
          assert.isTrue(
            i < head
              ? tag === "ConnectionLost"
              : Exit.isSuccess(exit) || tag === "ConnectionLost" || tag === "ConnectionError",
            `${i} ${tag}`
          )
        }
        assert.deepStrictEqual(seen, [])
      })
    )
  }

  it.live("by garbage is a typed error, whatever garbage it is", () =>
    Effect.gen(function* () {
      const seen: Array<unknown> = []
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(
            FastCheck.nat(answer.length),
            FastCheck.oneof(
              FastCheck.uint8Array({ maxLength: 50 }),
              FastCheck.string().map((text) => Buffer.from(`${text}\r\n\r\n`))
            ),
            (at, garbage) =>
              Effect.runPromise(
                Effect.scoped(
                  Effect.gen(function* () {
                    const { server, socket } = yield* scripted()
                    yield* Effect.fork(
                      requestHead(server).pipe(
                        Effect.zipRight(server.send(answer.subarray(0, at))),
                        Effect.zipRight(server.send(garbage)),
                        Effect.zipRight(server.end)
                      )
                    )
                    const exit = yield* attempt(
                      Effect.flatMap(UpgradeClient.upgrade("http://a/", raw, { socket }), (upgraded) =>
                        received(upgraded)
                      )
                    )
                    if (Exit.isFailure(exit) && failureOf(exit) === undefined) {
                      seen.push(exit.cause)
                    }
                    yield* nothingLeft(socket)
                  })
                )
              )
          ),
          { numRuns: runs(100) }
        )
      )
      assert.deepStrictEqual(seen, [])
    })
  )
})
