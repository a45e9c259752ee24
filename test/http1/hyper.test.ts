/** hyper's server tests of upgrades and CONNECT over HTTP/1, each with its equivalent here. */
import * as net from "node:net"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import * as UpgradeServer from "../../src/UpgradeServer.js"
import { type App, message, serve } from "../support.js"

const upgradeRequest = message(
  "GET / HTTP/1.1",
  ["Host: localhost", "Upgrade: foobar", "Connection: upgrade"],
  "eagerly optimistic"
)

const connectRequest = message("CONNECT localhost:80 HTTP/1.1", ["Host: localhost"], "eagerly optimistic")

const foobar = Protocol.raw("foobar")

/** What each of hyper's handlers does with the parts: looks at the early bytes, then exchanges two messages. */
const exchanged = (upgraded: Upgraded.Upgraded) =>
  Effect.gen(function* () {
    const leftover = Buffer.concat(Chunk.toReadonlyArray(upgraded.leftover)).toString()
    yield* Upgraded.readExactly(upgraded, leftover.length)
    const foo = Buffer.from(yield* Upgraded.readExactly(upgraded, 7)).toString()
    yield* Upgraded.write(upgraded, "bar=foo")
    return { leftover, foo, isTcp: Either.isRight(Upgraded.downcast(upgraded, net.Socket)) }
  })

type Exchanged = Effect.Effect.Success<ReturnType<typeof exchanged>>

const expected: Exchanged = { leftover: "eagerly optimistic", foo: "foo=bar", isTcp: true }

const direct = (protocol: Protocol.Protocol, seen: Deferred.Deferred<Exchanged, unknown>): App =>
  Effect.gen(function* () {
    const upgraded = yield* Upgrade.upgrade(protocol)
    yield* Effect.intoDeferred(exchanged(upgraded), seen)
    return Upgrade.done
  })

const queued = (protocol: Protocol.Protocol, seen: Deferred.Deferred<Exchanged, unknown>): App =>
  Effect.gen(function* () {
    const [response, upgraded] = yield* Upgrade.respond(protocol)
    yield* Effect.flatMap(upgraded, (upgraded) => Effect.intoDeferred(exchanged(upgraded), seen)).pipe(
      Effect.scoped,
      Effect.forkDaemon
    )
    return response
  })

describe("hyper", () => {
  it.scoped("hyper: http1_graceful_shutdown_after_upgrade", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Exchanged, unknown>()
      const scope = yield* Scope.make()
      const { connect } = yield* Scope.extend(serve(queued(foobar, seen), { drainTimeout: "1 hour" }), scope)
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 101)
      assert.strictEqual(head.headers.upgrade, "foobar")
      assert.notProperty(head.headers, "content-length")
      // The shutdown of the server lets the connection that is switched already go on
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* Effect.yieldNow()
      yield* peer.send("foo=bar")
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(7)).toString(), "bar=foo")
      assert.deepStrictEqual(yield* Deferred.await(seen), expected)
      yield* peer.end
      yield* closing
    })
  )

  it.scoped("hyper: upgrades", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Exchanged, unknown>()
      const { connect } = yield* serve(direct(foobar, seen))
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      const head = yield* peer.receiveHead
      assert.match(head.raw, /^HTTP\/1\.1 101 Switching Protocols\r\n/)
      yield* peer.send("foo=bar")
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(7)).toString(), "bar=foo")
      assert.deepStrictEqual(yield* Deferred.await(seen), expected)
    })
  )

  it.scoped("hyper: http_connect", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Exchanged, unknown>()
      const { connect } = yield* serve(direct(Protocol.connect, seen))
      const peer = yield* connect
      yield* peer.send(connectRequest)
      assert.match((yield* peer.receiveHead).raw, /^HTTP\/1\.1 200 /)
      yield* peer.send("foo=bar")
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(7)).toString(), "bar=foo")
      assert.deepStrictEqual(yield* Deferred.await(seen), expected)
    })
  )

  it.scoped("hyper: upgrades_new", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Exchanged, unknown>()
      const { connect } = yield* serve(queued(foobar, seen))
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 101)
      assert.notProperty(head.headers, "content-length")
      yield* peer.send("foo=bar")
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(7)).toString(), "bar=foo")
      assert.deepStrictEqual(yield* Deferred.await(seen), expected)
    })
  )

  it.scoped("hyper: upgrades_ignored", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Effect.succeed(HttpServerResponse.text("ignored")))
      const peer = yield* connect
      for (let i = 0; i < 2; i++) {
        yield* peer.send(message("GET / HTTP/1.1", ["Host: localhost", "Upgrade: yolo", "Connection: upgrade"]))
        const { status, text } = yield* peer.receiveResponse
        assert.deepStrictEqual([status, text], [200, "ignored"])
      }
    })
  )

  it.scoped("hyper: http_connect_new", () =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Exchanged, unknown>()
      const { connect } = yield* serve(queued(Protocol.connect, seen))
      const peer = yield* connect
      yield* peer.send(connectRequest)
      assert.match((yield* peer.receiveHead).raw, /^HTTP\/1\.1 200 /)
      yield* peer.send("foo=bar")
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(7)).toString(), "bar=foo")
      assert.deepStrictEqual(yield* Deferred.await(seen), expected)
    })
  )

  it.scoped("hyper: http_connect_new, whose target without a port must be refused (RFC 9110 §9.3.6)", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Upgrade.onUpgrade(Protocol.connect, exchanged))
      const peer = yield* connect
      yield* peer.send(connectRequest.replace("localhost:80", "localhost"))
      assert.strictEqual((yield* peer.receiveHead).status, 400)
    })
  )

  it.scoped("hyper: returning_1xx_response_is_error", () =>
    Effect.gen(function* () {
      for (const status of [100, 101, 102, 103, 199]) {
        const { connect } = yield* serve(Effect.succeed(HttpServerResponse.empty({ status })))
        for (const request of [message("GET / HTTP/1.1", ["Host: localhost"]), upgradeRequest]) {
          const peer = yield* connect
          yield* peer.send(request)
          assert.strictEqual((yield* peer.receiveHead).status, 500)
        }
      }
    })
  )

  it.scoped("hyper: disconnect_after_reading_request_before_responding", () =>
    Effect.gen(function* () {
      const reached = yield* Deferred.make<void>()
      const dropped = yield* Deferred.make<void>()
      const { connect, idle } = yield* serve(
        Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never).pipe(
          Effect.onInterrupt(() => Deferred.succeed(dropped, undefined))
        )
      )
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      yield* Deferred.await(reached)
      yield* peer.reset
      yield* Deferred.await(dropped)
      yield* idle
    })
  )

  it.scoped("hyper: http1_allow_half_close", () =>
    Effect.gen(function* () {
      const reached = yield* Deferred.make<void>()
      const gate = yield* Deferred.make<void>()
      const { connect } = yield* serve(
        Effect.zipRight(Deferred.succeed(reached, undefined), Deferred.await(gate)).pipe(
          Effect.zipRight(Upgrade.onUpgrade(foobar, (upgraded) => Upgraded.write(upgraded, "after the FIN")))
        )
      )
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      yield* peer.end
      yield* Deferred.await(reached)
      yield* Deferred.succeed(gate, undefined)
      assert.match(Buffer.from(yield* peer.receiveAll).toString(), /^HTTP\/1\.1 101 .*\r\n\r\nafter the FIN$/s)
    })
  )

  it.scoped("hyper: the registry has a connection from the switch to its end", () =>
    Effect.gen(function* () {
      const counts: Array<number> = []
      const { connect, idle, switched } = yield* serve(
        Effect.gen(function* () {
          const server = yield* UpgradeServer.UpgradeServer
          counts.push((yield* server.connections).length)
          yield* Upgrade.upgrade(foobar)
          counts.push((yield* server.connections).length)
          return Upgrade.done
        })
      )
      const peer = yield* connect
      yield* peer.send(upgradeRequest)
      yield* peer.receiveAll
      yield* peer.end
      yield* idle
      assert.deepStrictEqual([...counts, yield* switched], [0, 1, 0])
    })
  )
})
