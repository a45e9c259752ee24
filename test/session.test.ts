import { type HttpApp, HttpServer, HttpServerRequest, HttpServerResponse, Socket } from "@effect/platform"
import { it } from "@effect/vitest"
import { Deferred, Effect, Exit, Layer, Option, Stream } from "effect"
import { Connection, Protocol, Upgrade, Upgraded } from "effect-upgrade"
import { Memory } from "effect-upgrade/testing"
import { assert, describe } from "vitest"

const asking = "GET /room?x=1 HTTP/1.1\r\nHost: a\r\nCookie: id=7\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly"

/** Runs a session of `onUpgrade`, and yields how it ended. */
const inSession = <A, E>(
  session: (upgraded: Upgraded.Upgraded) => Effect.Effect<A, E, HttpServerRequest.HttpServerRequest>
) =>
  Effect.gen(function* () {
    const ended = yield* Deferred.make<Exit.Exit<A, E>>()
    const app: HttpApp.Default<unknown> = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
      Effect.flatMap(Effect.exit(session(upgraded)), (exit) => Deferred.succeed(ended, exit))
    )
    yield* Effect.gen(function* () {
      const { connect } = yield* Memory.Memory
      const peer = yield* connect
      yield* peer.send(asking)
      yield* peer.receiveHead
      yield* peer.end
      yield* peer.receiveAll
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(app), Memory.layer())))
    return yield* yield* Deferred.await(ended)
  })

describe("a session sees its request", () => {
  it.scoped("with its method, target, fields and peer, and may modify it", () =>
    Effect.gen(function* () {
      const seen = yield* inSession(() =>
        Effect.gen(function* () {
          const request = yield* HttpServerRequest.HttpServerRequest
          const modified = request.modify({ url: "/", headers: {} as never, remoteAddress: "10.0.0.1" })
          const { peer } = yield* Connection.current
          assert.include(JSON.stringify(request), "GET")
          return {
            line: `${request.method} ${request.url} ${request.originalUrl}`,
            cookie: request.cookies.id,
            none: Object.keys(modified.cookies).length,
            address: Option.getOrNull(request.remoteAddress) === peer.address,
            modified: [modified.url, modified.originalUrl, Option.getOrNull(modified.remoteAddress)]
          }
        })
      )
      assert.deepStrictEqual(seen, {
        line: "GET /room?x=1 /room?x=1",
        cookie: "7",
        none: 0,
        address: true,
        modified: ["/", "/room?x=1", "10.0.0.1"]
      })
    })
  )

  const bodies: ReadonlyArray<
    readonly [string, (request: HttpServerRequest.HttpServerRequest) => Effect.Effect<unknown, unknown>]
  > = [
    ["text", (request) => request.text],
    ["json", (request) => request.json],
    ["urlParamsBody", (request) => request.urlParamsBody],
    ["arrayBuffer", (request) => request.arrayBuffer],
    ["stream", (request) => Stream.runDrain(request.stream)],
    ["multipart", (request) => request.multipart as Effect.Effect<unknown, unknown>],
    ["multipartStream", (request) => Stream.runDrain(request.multipartStream)],
    ["upgrade", (request) => request.upgrade]
  ]

  it.scoped.each(bodies)("without its %s, which says why", ([_, read]) =>
    Effect.gen(function* () {
      const cause = yield* inSession(() =>
        Effect.flip(Effect.sandbox(Effect.flatMap(HttpServerRequest.HttpServerRequest, read)))
      )
      assert.include(String(cause), "read it before the switch")
    })
  )
})

describe("an upgraded connection", () => {
  it.scoped("tells a person what it is", () =>
    Effect.gen(function* () {
      const told = yield* inSession((upgraded) =>
        Effect.sync(() => [String(upgraded), JSON.stringify(upgraded.connection), String(upgraded.connection)])
      )
      for (const text of told) {
        assert.include(text, "effect-upgrade/")
      }
      assert.include(told[0], '"leftover": 5')
    })
  )

  it.scoped("as a Socket fails its handler's own errors as they are, and its reads as the platform's", () =>
    Effect.gen(function* () {
      const failed = yield* inSession((upgraded) =>
        Effect.flip(Upgraded.toSocket(upgraded).run(() => Effect.fail("mine" as const)))
      )
      assert.strictEqual(failed, "mine")
      const closed = yield* inSession((upgraded) =>
        Effect.gen(function* () {
          yield* Upgraded.detach(upgraded)
          return yield* Effect.flip(Upgraded.toSocket(upgraded).runRaw(() => {}))
        })
      )
      assert.isTrue(Socket.SocketCloseError.is(closed))
    })
  )

  it.scoped("is read no more by the library once it is detached", () =>
    Effect.gen(function* () {
      const error = yield* inSession((upgraded) =>
        Effect.gen(function* () {
          const { leftover } = yield* Upgraded.detach(upgraded)
          assert.strictEqual(Buffer.concat([...leftover]).toString(), "early")
          return yield* Effect.flip(Upgraded.pull(upgraded))
        })
      )
      assert.strictEqual(Option.getOrThrow(error).reason, "Closed")
    })
  )

  it.scoped("reads no size that is none", () =>
    Effect.gen(function* () {
      for (const size of [-1, Number.NaN, 2 ** 60, 0.5]) {
        const exit = yield* inSession((upgraded) => Effect.exit(Upgraded.readExactly(upgraded, size)))
        assert.isTrue(Exit.isFailure(exit) && String(exit.cause).includes("RangeError"))
      }
      const none = yield* inSession((upgraded) => Upgraded.readExactly(upgraded, 0))
      assert.strictEqual(none.length, 0)
    })
  )
})

it.scoped("a Scope that is asked for after the connection closed is closed", () =>
  Effect.gen(function* () {
    const told = yield* Deferred.make<Connection.Connection>()
    const app: HttpApp.Default<unknown> = Effect.gen(function* () {
      yield* Deferred.succeed(told, yield* Connection.current)
      return HttpServerResponse.empty()
    })
    yield* Effect.gen(function* () {
      const { connect } = yield* Memory.Memory
      const peer = yield* connect
      yield* peer.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
      yield* peer.receiveAll
      yield* peer.end
      yield* Connection.awaitClosed(yield* Deferred.await(told))
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(app), Memory.layer())))
    const connection = yield* Deferred.await(told)
    let ran = false
    yield* Connection.addFinalizer(connection, () =>
      Effect.sync(() => {
        ran = true
      })
    )
    assert.isTrue(ran)
  })
)
