import { once } from "node:events"
import * as Http from "node:http"
import type * as net from "node:net"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Supervisor from "effect/Supervisor"
import * as TestClock from "effect/TestClock"
import { Connection, Upgrade, Upgraded } from "../src/index.js"
import {
  ask,
  connected,
  decode,
  echo,
  echoing,
  type Form,
  forms,
  kinds,
  opening,
  outcome,
  type Session,
  serve,
  serveLayer,
  turns,
  until
} from "./appSupport.js"

const named = (name: string): Form => forms.find(([form]) => form === name)![1]
const names = forms.map(([name]) => name)

const large = Buffer.alloc(500_000, "0123456789")

describe("closing after success", () => {
  it.scoped.each(
    kinds.flatMap((kind) =>
      ["upgrade", "session round upgrade", "respond", "onUpgrade"].map((name) => [kind, name] as const)
    )
  )("over %s, a slow reader receives all that %s wrote before it returned", ([kind, name]) =>
    Effect.gen(function* () {
      const form = named(name)
      const returned = outcome<void, never>()
      const { send, server } = yield* serve(
        form((upgraded) =>
          Effect.zipRight(
            // Written, and waited for no longer: closing is what flushes it
            Effect.fork(Upgraded.write(upgraded, large)).pipe(Effect.zipRight(turns(1))),
            Deferred.succeed(returned, undefined)
          )
        ),
        { kind }
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* Deferred.await(returned)
      // Unread input at the close would reset the connection (RFC 9112 §9.6)
      yield* peer.send("unread")
      const received: Array<Uint8Array> = []
      let size = 0
      while (size < large.length) {
        const piece = yield* peer.receive
        received.push(piece)
        size += piece.length
        yield* turns(2)
      }
      assert.isTrue(Buffer.concat(received).equals(large))
      assert.strictEqual(yield* peer.closed, "end")
      yield* peer.end
      yield* connected(server, 0)
    })
  )

  it.scoped("waits for the peer's FIN no longer than closeTimeout, 5 s", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { close, peer, upgraded } = yield* open()
      const closing = yield* Effect.fork(close(Exit.void))
      assert.strictEqual(yield* peer.closed, "end")
      yield* TestClock.adjust("4999 millis")
      yield* turns(5)
      assert.isNull(closing.unsafePoll())
      assert.isFalse(upgraded.socket.destroyed)
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(closing)
      assert.isTrue(upgraded.socket.destroyed)
    })
  )

  it.scoped("discards what a peer goes on sending, and ends all the same", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ options: { closeTimeout: "1 second" } })
      const { close, peer, upgraded } = yield* open()
      const closing = yield* Effect.fork(close(Exit.void))
      assert.strictEqual(yield* peer.closed, "end")
      const before = (upgraded.socket as net.Socket).bytesRead
      const sending = yield* Effect.fork(Effect.forever(peer.send(Buffer.alloc(64 * 1024))))
      yield* until(() => (upgraded.socket as net.Socket).bytesRead > before + 16 * 1024 * 1024)
      assert.isNull(closing.unsafePoll())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
      yield* Fiber.interrupt(sending)
    })
  )

  it.scoped("waits for a peer that takes nothing no longer than closeTimeout", () =>
    Effect.gen(function* () {
      const { open } = yield* opening({ options: { closeTimeout: "1 second" } })
      const { close, upgraded } = yield* open()
      yield* Effect.fork(Upgraded.write(upgraded, Buffer.alloc(32 * 1024 * 1024)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      const closing = yield* Effect.fork(close(Exit.void))
      yield* turns(5)
      assert.isNull(closing.unsafePoll())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(closing)
    })
  )

  it.scoped("is done when the socket is closed", () =>
    Effect.gen(function* () {
      const { open, server } = yield* opening()
      const { close, peer, upgraded } = yield* open()
      yield* peer.end
      yield* close(Exit.void)
      assert.isTrue(upgraded.socket.destroyed)
      assert.lengthOf(yield* server.connections, 0)
      assert.strictEqual(yield* peer.closed, "end")
    })
  )
})

describe("closing after failure", () => {
  it.scoped.each([
    ["a failure", Exit.fail("no")],
    ["a defect", Exit.die(new Error("no"))],
    ["an interruption", Exit.interrupt]
  ] as const)("destroys the socket: %s", ([_, exit]) =>
    Effect.gen(function* () {
      const { open, server } = yield* opening()
      const { close, peer, upgraded } = yield* open()
      yield* Effect.fork(Upgraded.write(upgraded, Buffer.alloc(32 * 1024 * 1024)))
      yield* until(() => upgraded.socket.writableNeedDrain)
      yield* close(typeof exit === "function" ? Exit.interrupt(yield* Effect.fiberId) : exit)
      assert.isTrue(upgraded.socket.destroyed)
      assert.lengthOf(yield* server.connections, 0)
      yield* peer.closed
    })
  )

  const failing: ReadonlyArray<readonly [string, Effect.Effect<never, any>]> = [
    ["fails", Effect.fail("no")],
    ["dies", Effect.die(new Error("no"))],
    ["interrupts itself", Effect.interrupt]
  ]

  it.scoped.each(names.flatMap((name) => failing.map(([how, effect]) => [name, how, effect] as const)))(
    "destroys the socket of a session of %s that %s",
    ([name, _, effect]) =>
      Effect.gen(function* () {
        const exit = outcome<Exit.Exit<unknown, unknown>, never>()
        let socket: { readonly destroyed: boolean } | undefined
        const session: Session = (upgraded) => {
          socket = upgraded.socket
          return Connection.addFinalizer(upgraded.connection, (result) => Deferred.succeed(exit, result)).pipe(
            Effect.zipRight(effect)
          )
        }
        const { send, server } = yield* serve(named(name)(session))
        const peer = yield* send(ask())
        yield* peer.receiveHead
        assert.isTrue(Exit.isFailure(yield* Deferred.await(exit)))
        // The peer has not ended, and no time passes: nothing lingers
        yield* connected(server, 0)
        assert.isTrue(socket!.destroyed)
        yield* peer.closed
      })
  )
})

describe("the loss of the peer", () => {
  it.scoped.each(names.filter((name) => !name.startsWith("respond")))(
    "interrupts a session of %s that neither reads nor writes",
    (name) =>
      Effect.gen(function* () {
        const began = outcome<void, never>()
        const interrupted = outcome<void, never>()
        const { send, server } = yield* serve(
          named(name)(() =>
            Effect.onInterrupt(Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), () =>
              Deferred.succeed(interrupted, undefined)
            )
          )
        )
        const peer = yield* send(ask())
        yield* peer.receiveHead
        yield* Deferred.await(began)
        yield* peer.reset
        yield* Deferred.await(interrupted)
        yield* connected(server, 0)
      })
  )

  it.scoped.each(names)("fails a read of %s with a typed error that the session may handle", (name) =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const seen = outcome<string, never>()
      const { send, server } = yield* serve(
        named(name)((upgraded) =>
          Deferred.succeed(began, undefined).pipe(
            Effect.zipRight(Upgraded.readExactly(upgraded, 1)),
            Effect.catchAll((error) => Effect.zipRight(turns(10), Deferred.succeed(seen, error.reason)))
          )
        )
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* Deferred.await(began)
      yield* turns(3)
      yield* peer.reset
      assert.strictEqual(yield* Deferred.await(seen), "Reset")
      yield* connected(server, 0)
    })
  )

  it.scoped("does not interrupt the fiber that claimed a connection of respond: awaitClosed tells it", () =>
    Effect.gen(function* () {
      const { open, server } = yield* opening()
      const { peer, upgraded } = yield* open()
      const closed = yield* Effect.fork(Connection.awaitClosed(upgraded.connection))
      yield* turns(3)
      assert.isNull(closed.unsafePoll())
      yield* peer.reset
      yield* Fiber.join(closed)
      assert.lengthOf(yield* server.connections, 0)
    })
  )

  it.scoped("by a FIN alone is not a loss: the session goes on", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const go = outcome<void, never>()
      const { send } = yield* serve(
        Upgrade.onUpgrade(echo, (upgraded) =>
          Deferred.succeed(began, undefined).pipe(
            Effect.zipRight(Deferred.await(go)),
            Effect.zipRight(Upgraded.write(upgraded, "late"))
          )
        )
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.end
      yield* Deferred.await(began)
      yield* turns(20)
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual(decode(yield* peer.receiveAll), "late")
    })
  )
})

describe("the Scope of a connection", () => {
  it.scoped.each(names)("runs its finalizers, the last first, and interrupts what was forked into it (%s)", (name) =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const event = (text: string) => Effect.sync(() => events.push(text))
      const { send, server } = yield* serve(
        named(name)((upgraded) =>
          Effect.gen(function* () {
            const { connection } = upgraded
            yield* Connection.addFinalizer(connection, (exit) => event(`first ${exit._tag}`))
            yield* connection.pipe(Connection.addFinalizer((exit) => event(`second ${exit._tag}`)))
            yield* Connection.fork(
              Effect.onInterrupt(Effect.never, () => event("forked interrupted")),
              connection
            )
            yield* Connection.fork(connection)(Effect.onInterrupt(Effect.never, () => event("other interrupted")))
            yield* turns(2)
            yield* echoing(upgraded)
          })
        )
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.end
      yield* peer.receiveAll
      yield* connected(server, 0)
      assert.deepStrictEqual(events, ["other interrupted", "forked interrupted", "second Success", "first Success"])
    })
  )

  it.scoped("gives a finalizer the services of whoever registered it", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const { close, peer, upgraded } = yield* open()
      const seen: Array<Scope.Scope> = []
      const scope = yield* Scope.make()
      yield* Connection.addFinalizer(upgraded.connection, () =>
        Effect.map(Effect.scope, (scope) => seen.push(scope))
      ).pipe(Effect.provideService(Scope.Scope, scope))
      yield* peer.end
      yield* close(Exit.void)
      assert.deepStrictEqual(seen, [scope])
    })
  )

  it.scoped("closes with a failure where the peer was lost, also where the session handled that", () =>
    Effect.gen(function* () {
      const exits: Array<string> = []
      const { send } = yield* serve(
        Effect.gen(function* () {
          const connection = yield* Effect.orDie(Connection.current)
          yield* Connection.addFinalizer(connection, (exit) => Effect.sync(() => exits.push(exit._tag)))
          return yield* Upgrade.upgrade(echo).pipe(
            Effect.flatMap(Upgraded.pull),
            Effect.as(Upgrade.done),
            Effect.orElseSucceed(() => Upgrade.done)
          )
        })
      )
      const switched = yield* send(ask())
      yield* switched.receiveHead
      yield* turns(5)
      yield* switched.reset
      yield* until(() => exits.length === 1)
      assert.deepStrictEqual(exits, ["Failure"])
    })
  )
})

describe("what is left after a connection", () => {
  /** How many listeners of each event a socket has. */
  const listeners = (socket: net.Socket) =>
    Object.fromEntries(socket.eventNames().map((name) => [String(name), socket.listenerCount(name)]))

  /** The same of a socket that a bare 'upgrade' event took and closed. */
  const bare = Effect.promise(async () => {
    const server = Http.createServer()
    server.listen(0, "127.0.0.1")
    await once(server, "listening")
    const request = Http.request({
      port: (server.address() as net.AddressInfo).port,
      host: "127.0.0.1",
      headers: { connection: "Upgrade", upgrade: "echo" }
    })
    request.on("error", () => {})
    request.end()
    const [, socket] = (await once(server, "upgrade")) as [Http.IncomingMessage, net.Socket]
    socket.destroy()
    await once(socket, "close")
    server.close()
    return listeners(socket)
  })

  const sessions: ReadonlyArray<readonly [string, Session]> = [
    ["returns", echoing],
    ["fails", () => Effect.die("no")],
    ["writes, ends and reads", (upgraded) => Effect.zipRight(Upgraded.end(upgraded), echoing(upgraded))],
    [
      "detaches",
      (upgraded) =>
        Effect.flatMap(Upgraded.detach(upgraded), ({ socket }) => {
          socket.resume()
          return Effect.promise(() => once(socket, "end"))
        })
    ]
  ]

  it.scoped.each(names.flatMap((name) => sessions.map(([how, session]) => [name, how, session] as const)))(
    "is no listener on the socket, and no entry in the registry: %s, %s",
    ([name, _, session]) =>
      Effect.gen(function* () {
        const expected = yield* bare
        const { node, send, server } = yield* serve(named(name)(session))
        let socket: net.Socket | undefined
        node.once("connection", (accepted) => {
          socket = accepted
        })
        const peer = yield* send(ask({ body: "early" }))
        yield* peer.receiveHead
        yield* peer.end
        yield* peer.closed
        yield* connected(server, 0)
        yield* until(() => socket!.destroyed)
        yield* turns(5)
        const left = listeners(socket!)
        // One that ignores errors: a socket can fail after its end, and an 'error' without a listener throws
        assert.isAtMost(left.error ?? 0, 1)
        for (const [event, count] of Object.entries(left)) {
          assert.isAtMost(count, event === "error" ? 1 : (expected[event] ?? 0), event)
        }
      })
  )

  it.scopedLive("is no fiber: as many as before, however many connections there were", () =>
    Effect.gen(function* () {
      const supervisor = yield* Supervisor.track
      yield* Effect.gen(function* () {
        const scope = yield* Scope.make()
        const served = yield* Scope.extend(
          Effect.all(forms.map(([, form]) => serve(form(echoing), { closeTimeout: "1 minute" }))),
          scope
        )
        const visit = (count: number) =>
          Effect.scoped(
            Effect.forEach(served, ({ send, server }) =>
              Effect.gen(function* () {
                for (let i = 0; i < count; i++) {
                  const peer = yield* send(ask({ body: "x" }))
                  yield* peer.receiveHead
                  yield* peer.receiveExactly(1)
                  yield* peer.end
                  yield* peer.receiveAll
                }
                yield* connected(server, 0)
              })
            )
          )
        yield* visit(1)
        yield* turns(20)
        const before = (yield* supervisor.value).length
        assert.isAbove(before, 0)
        yield* visit(20)
        yield* turns(20)
        // What waits for the deadlines of a server is one fiber for each duration, not one for each connection
        assert.isAtMost((yield* supervisor.value).length, before)
        yield* Scope.close(scope, Exit.void)
        yield* turns(20)
        assert.lengthOf(yield* supervisor.value, 0)
      }).pipe(Effect.supervised(supervisor))
    })
  )

  it.scopedLive("is no timer and no handle once the server has closed", () =>
    Effect.gen(function* () {
      const count = () =>
        process
          .getActiveResourcesInfo()
          .filter((name) => /^(Timeout|TCP|Pipe|TLS)/.test(name))
          .sort()
      const before = count()
      yield* Effect.scoped(
        Effect.forEach(forms, ([, form]) =>
          Effect.gen(function* () {
            const { send } = yield* serve(form(echoing))
            const peer = yield* send(ask({ body: "x" }))
            yield* peer.receiveHead
            yield* peer.receiveExactly(1)
            yield* peer.end
            yield* peer.receiveAll
          })
        )
      )
      const of = (names: ReadonlyArray<string>, name: string) => names.filter((other) => other === name).length
      yield* until(() => {
        const now = count()
        return now.every((name) => of(now, name) <= of(before, name))
      })
    })
  )
})

describe("the registry", () => {
  it.scoped.each(names)("has the connection while it is open, and not before or after (%s)", (name) =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(named(name)(echoing))
      const idle = yield* send("")
      assert.lengthOf(yield* server.connections, 0)
      const first = yield* send(ask({ body: "x" }))
      const second = yield* send(ask({ body: "x" }))
      yield* first.receiveHead
      yield* second.receiveHead
      yield* first.receiveExactly(1)
      yield* second.receiveExactly(1)
      assert.lengthOf(yield* server.connections, 2)
      yield* first.end
      yield* first.receiveAll
      yield* connected(server, 1)
      yield* second.reset
      yield* connected(server, 0)
      yield* idle.end
    })
  )
})

describe("a bare HttpApp", () => {
  it.scoped("is interruptible: the loss of the peer interrupts it before the switch", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const interrupted = outcome<void, never>()
      const { send } = yield* serve(
        Effect.onInterrupt(Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), () =>
          Deferred.succeed(interrupted, undefined)
        )
      )
      const peer = yield* send(ask())
      yield* Deferred.await(began)
      yield* peer.reset
      yield* Deferred.await(interrupted)
    })
  )

  it.scoped("closes its connection as it ended, although the platform closes the request's Scope with success", () =>
    Effect.gen(function* () {
      const exits: Array<readonly [string, string]> = []
      const app = Effect.gen(function* () {
        yield* Effect.addFinalizer((exit) => Effect.sync(() => exits.push(["request", exit._tag])))
        const upgraded = yield* Upgrade.upgrade(echo)
        yield* Connection.addFinalizer(upgraded.connection, (exit) =>
          Effect.sync(() => exits.push(["connection", exit._tag]))
        )
        return yield* Effect.fail("no")
      })
      const { send, server } = yield* serveLayer(
        HttpServer.serve(app, (app) => Effect.catchAll(app, () => HttpServerResponse.empty()))
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.closed
      yield* connected(server, 0)
      yield* until(() => exits.length === 2)
      assert.deepStrictEqual(exits, [
        ["connection", "Failure"],
        ["request", "Success"]
      ])
    })
  )
})
