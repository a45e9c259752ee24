import { type HttpApp, HttpServer, HttpServerResponse } from "@effect/platform"
import { it } from "@effect/vitest"
import { Deferred, Effect, Layer } from "effect"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"
import { Memory } from "effect-upgrade/testing"
import { assert, describe } from "vitest"

const asking = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

const served = <A, E, R>(app: HttpApp.Default<unknown>, test: Effect.Effect<A, E, R>) =>
  test.pipe(Effect.scoped, Effect.provide(Layer.provideMerge(HttpServer.serve(app), Memory.layer())))

describe("a connection that is claimed inside of its own Scope", () => {
  it.live("closes when its peer resets it, and leaves the registry", () =>
    Effect.gen(function* () {
      const owned = yield* Deferred.make<Connection.Connection>()
      const app: HttpApp.Default<unknown> = Effect.gen(function* () {
        const connection = yield* Connection.current
        const [response, claimed] = yield* Upgrade.respond(Protocol.raw("echo"))
        yield* Connection.fork(
          Effect.scoped(
            Effect.flatMap(claimed, () => Effect.zipRight(Deferred.succeed(owned, connection), Effect.never))
          ),
          connection
        )
        return response
      })
      yield* served(
        app,
        Effect.gen(function* () {
          const { connect } = yield* Memory.Memory
          const registry = yield* UpgradeServer.UpgradeServer
          const peer = yield* connect
          yield* peer.send(asking)
          yield* peer.receiveHead
          const connection = yield* Deferred.await(owned)
          assert.strictEqual((yield* registry.connections).length, 1)
          yield* peer.reset
          yield* Connection.awaitClosed(connection)
          assert.deepStrictEqual(yield* registry.connections, [])
        })
      )
    })
  )
})

it.live("an iterable that throws while it is written leaves the connection able to write", () =>
  served(
    Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
      Effect.zipRight(
        Effect.exit(
          Upgraded.writeAll(
            upgraded,
            (function* () {
              yield "a"
              throw new Error("thrown")
            })()
          )
        ),
        Upgraded.write(upgraded, "b")
      )
    ),
    Effect.gen(function* () {
      const { connect } = yield* Memory.Memory
      const peer = yield* connect
      yield* peer.send(asking)
      yield* peer.receiveHead
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(2)).toString(), "ab")
      yield* peer.end
    })
  )
)

it.live("a server that is served anew after a drain switches again", () =>
  Effect.gen(function* () {
    const { connect } = yield* Memory.Memory
    const ask = Effect.scoped(
      Effect.gen(function* () {
        const peer = yield* connect
        yield* peer.send(asking)
        const { status } = yield* peer.receiveHead
        yield* peer.end
        return status
      })
    )
    const done = yield* Deferred.make<void>()
    const app = Upgrade.onUpgrade(Protocol.raw("echo"), () => Deferred.succeed(done, undefined))
    yield* Effect.scoped(Effect.zipRight(HttpServer.serveEffect(HttpServerResponse.empty()), Effect.void))
    yield* HttpServer.serveEffect(app)
    assert.strictEqual(yield* ask, 101)
  }).pipe(Effect.scoped, Effect.provide(Memory.layer()))
)
