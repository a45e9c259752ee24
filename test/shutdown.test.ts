import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { Upgrade, Upgraded } from "../src/index.js"
import * as Peer from "../src/testing/Peer.js"
import {
  ask,
  connected,
  decode,
  echo,
  echoing,
  type Form,
  forms,
  get,
  outcome,
  type Served,
  type ServeOptions,
  serve,
  serveLayer,
  turns,
  until
} from "./appSupport.js"

const named = (name: string): Form => forms.find(([form]) => form === name)![1]
const names = forms.map(([name]) => name)

/** A server in a Scope of its own, to close. */
const serving = (app: Parameters<typeof serve>[0], options?: ServeOptions) =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const served = yield* Scope.extend(serve(app, options), scope)
    return { ...served, close: Scope.close(scope, Exit.void) }
  })

const isDraining = (server: Served["server"]): Effect.Effect<void> =>
  Effect.flatMap(server.draining, (draining) =>
    draining ? Effect.void : Effect.zipRight(turns(1), isDraining(server))
  )

describe("closing the layer", () => {
  it.scoped.each(names)("interrupts the sessions of %s, and is done when every socket is closed", (name) =>
    Effect.gen(function* () {
      const interrupted = outcome<void, never>()
      const { close, node, send, server } = yield* serving(
        named(name)((upgraded) =>
          Effect.onExit(Effect.zipRight(Upgraded.write(upgraded, "began"), echoing(upgraded)), () =>
            Deferred.succeed(interrupted, undefined)
          )
        )
      )
      let sockets = 0
      node.on("connection", (socket) => {
        sockets = sockets + 1
        socket.once("close", () => {
          sockets = sockets - 1
        })
      })
      const peer = yield* send(ask())
      const idle = yield* send("")
      yield* peer.receiveHead
      yield* peer.receiveExactly(5)
      yield* until(() => sockets === 2)
      yield* close
      yield* Deferred.await(interrupted)
      assert.strictEqual(sockets, 0)
      assert.isFalse(node.listening)
      assert.lengthOf(yield* server.connections, 0)
      yield* peer.closed
      yield* idle.closed
    })
  )

  it.scoped("gives sessions drainTimeout to end, and interrupts the others then", () =>
    Effect.gen(function* () {
      const { close, send, server } = yield* serving(Upgrade.onUpgrade(echo, echoing), { drainTimeout: "10 seconds" })
      const ending = yield* send(ask({ body: "x" }))
      const staying = yield* send(ask({ body: "x" }))
      for (const peer of [ending, staying]) {
        yield* peer.receiveHead
        yield* peer.receiveExactly(1)
      }
      const closing = yield* Effect.fork(close)
      yield* isDraining(server)
      yield* ending.send("still served")
      assert.strictEqual(decode(yield* ending.receiveExactly(12)), "still served")
      yield* ending.end
      yield* ending.receiveAll
      yield* connected(server, 1)
      yield* TestClock.adjust("9999 millis")
      yield* turns(5)
      assert.isNull(closing.unsafePoll())
      yield* staying.send("y")
      assert.strictEqual(decode(yield* staying.receiveExactly(1)), "y")
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      yield* staying.closed
    })
  )

  it.scoped("waits for sessions as long as they like with an infinite drainTimeout", () =>
    Effect.gen(function* () {
      const { close, send, server } = yield* serving(Upgrade.onUpgrade(echo, echoing), {
        drainTimeout: Duration.infinity
      })
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      const closing = yield* Effect.fork(close)
      yield* isDraining(server)
      yield* TestClock.adjust("30 minutes")
      yield* peer.send("y")
      assert.strictEqual(decode(yield* peer.receiveExactly(1)), "y")
      assert.isNull(closing.unsafePoll())
      yield* peer.end
      yield* Fiber.join(closing)
    })
  )

  it.scoped("is done as soon as the last session has ended, before drainTimeout", () =>
    Effect.gen(function* () {
      const { close, send, server } = yield* serving(Upgrade.onUpgrade(echo, echoing), { drainTimeout: "1 hour" })
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      const closing = yield* Effect.fork(close)
      yield* isDraining(server)
      yield* peer.end
      yield* Fiber.join(closing)
    })
  )

  it.scoped("finishes an ordinary response that is under way", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const go = outcome<void, never>()
      const { close, send } = yield* serving(
        Deferred.succeed(began, undefined).pipe(
          Effect.zipRight(Deferred.await(go)),
          Effect.as(HttpServerResponse.text("finished"))
        )
      )
      const peer = yield* send(get("/"))
      yield* Deferred.await(began)
      const closing = yield* Effect.fork(close)
      yield* turns(10)
      // Only an answer that is written, and does not leave, is given up
      yield* TestClock.adjust("1 minute")
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual((yield* peer.receiveResponse).text, "finished")
      yield* peer.end
      yield* Fiber.join(closing)
    })
  )

  it.scoped("interrupts a handler that has not decided, and its client gets an answer or an end", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const interrupted = outcome<void, never>()
      const { close, send } = yield* serving(
        Effect.onInterrupt(Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), () =>
          Deferred.succeed(interrupted, undefined)
        )
      )
      const peer = yield* send(ask())
      yield* Deferred.await(began)
      const closing = yield* Effect.fork(close)
      yield* Deferred.await(interrupted)
      const response = yield* Effect.either(peer.receiveResponse)
      assert.strictEqual(response._tag === "Right" ? response.right.status : 503, 503)
      yield* peer.end
      yield* Fiber.join(closing)
    })
  )

  it.scoped("ends a TCP connection to a TLS port on which nothing was said", () =>
    Effect.gen(function* () {
      const { close, node, port } = yield* serving(HttpServerResponse.text("plain"), { kind: "TLS" })
      const accepted = outcome<void, never>()
      node.once("connection", () => Deferred.unsafeDone(accepted, Effect.void))
      const peer = yield* Peer.connect({ port })
      yield* Deferred.await(accepted)
      yield* close
      yield* peer.closed
    })
  )

  it.scoped("waits for a session's finalizers", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const { close, send } = yield* serving(
        Upgrade.onUpgrade(echo, (upgraded) =>
          Effect.ensuring(
            echoing(upgraded),
            Effect.zipRight(
              turns(50),
              Effect.sync(() => events.push("finalized"))
            )
          )
        )
      )
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      yield* close
      assert.deepStrictEqual(events, ["finalized"])
    })
  )
})

describe("draining", () => {
  it.scoped.each(names)("refuses a new switch of %s with 503, Retry-After and Connection: close", (name) =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(named(name)(echoing), { drainTimeout: "1 hour" })
      const before = yield* send(ask({ body: "x" }))
      yield* before.receiveHead
      yield* before.receiveExactly(1)
      assert.isFalse(yield* server.draining)
      const draining = yield* Effect.fork(server.drain)
      yield* isDraining(server)
      const peer = yield* send(ask())
      const response = yield* peer.receiveResponse
      assert.strictEqual(response.status, 503)
      assert.isDefined(response.headers["retry-after"])
      assert.strictEqual(response.headers.connection, "close")
      assert.strictEqual(yield* peer.closed, "end")
      yield* before.end
      yield* Fiber.join(draining)
    })
  )

  it.scoped("serves ordinary requests as before", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(HttpServerResponse.text("plain"))
      yield* server.drain
      const peer = yield* send(get("/"))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
    })
  )

  it.scoped("has the error ServerDraining, which a handler may catch", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(
        Upgrade.onUpgrade(echo, echoing).pipe(
          Effect.catchTag("ServerDraining", (error) => HttpServerResponse.text(error._tag))
        )
      )
      yield* server.drain
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveResponse).text, "ServerDraining")
    })
  )
})

describe("maxConnections", () => {
  it.scoped.each(names)("refuses one more of %s with 503, and takes another once there is room", (name) =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(named(name)(echoing), { maxConnections: 2 })
      const first = yield* send(ask())
      const second = yield* send(ask())
      yield* first.receiveHead
      yield* second.receiveHead
      yield* connected(server, 2)
      const refused = yield* send(ask())
      const response = yield* refused.receiveResponse
      assert.strictEqual(response.status, 503)
      assert.isDefined(response.headers["retry-after"])
      assert.strictEqual(response.headers.connection, "close")
      assert.include(response.text, "2")
      yield* first.end
      yield* connected(server, 1)
      const next = yield* send(ask({ body: "x" }))
      assert.strictEqual((yield* next.receiveHead).status, 101)
      assert.strictEqual(decode(yield* next.receiveExactly(1)), "x")
    })
  )

  it.scoped("does not count ordinary connections, and holds for switches that are decided together", () =>
    Effect.gen(function* () {
      const waiting: Array<Deferred.Deferred<void>> = []
      const go = outcome<void, never>()
      const { send, server } = yield* serve(
        Effect.gen(function* () {
          const [response] = yield* Upgrade.respond(echo, { claimTimeout: "1 hour" })
          waiting.push(go)
          yield* Deferred.await(go)
          return response
        }),
        { maxConnections: 1 }
      )
      yield* Effect.all([send(""), send("")])
      const peers = yield* Effect.all([send(ask()), send(ask()), send(ask())])
      const answers = yield* Effect.fork(
        Effect.forEach(peers, (peer) => Effect.map(peer.receiveHead, ({ status }) => status), { concurrency: 3 })
      )
      yield* until(() => waiting.length > 0)
      yield* turns(50)
      yield* Deferred.succeed(go, undefined)
      const statuses = (yield* Fiber.join(answers)).sort()
      assert.deepStrictEqual(statuses, [101, 503, 503])
      assert.lengthOf(yield* server.connections, 1)
    })
  )
})

describe("a server that serves nothing yet", () => {
  it.scoped("answers 503, to a request that asks for a switch too", () =>
    Effect.gen(function* () {
      const { send } = yield* serveLayer(Layer.empty)
      for (const request of [get("/"), ask()]) {
        const peer = yield* send(request)
        assert.strictEqual((yield* peer.receiveResponse).status, 503)
      }
    })
  )
})
