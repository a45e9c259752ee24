import type * as net from "node:net"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as Cookies from "@effect/platform/Cookies"
import * as Headers from "@effect/platform/Headers"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpBody from "@effect/platform/HttpBody"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as FiberRef from "effect/FiberRef"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeError } from "../src/index.js"
import {
  answering,
  ask,
  connected,
  decode,
  echo,
  echoing,
  forms,
  get,
  outcome,
  type Served,
  serve,
  textOf,
  turns,
  until,
  withLogs
} from "./appSupport.js"

type Mapping = (response: HttpServerResponse.HttpServerResponse) => HttpServerResponse.HttpServerResponse

const contents: ReadonlyArray<readonly [kind: string, found: string, put: Mapping]> = [
  ["text", "Uint8Array", (response) => HttpServerResponse.setBody(response, HttpBody.text("content"))],
  ["bytes", "Uint8Array", (response) => HttpServerResponse.setBody(response, HttpBody.uint8Array(new Uint8Array(3)))],
  ["no bytes", "Uint8Array", (response) => HttpServerResponse.setBody(response, HttpBody.text(""))],
  [
    "a stream",
    "Stream",
    (response) => HttpServerResponse.setBody(response, HttpBody.stream(Stream.make(new Uint8Array(3))))
  ],
  ["FormData", "FormData", (response) => HttpServerResponse.setBody(response, HttpBody.formData(new FormData()))],
  ["something raw", "Raw", (response) => HttpServerResponse.setBody(response, HttpBody.raw("content"))],
  ["Content-Length", "Content-Length", HttpServerResponse.setHeader("Content-Length", "0")],
  ["Transfer-Encoding", "Transfer-Encoding", HttpServerResponse.setHeader("transfer-encoding", "chunked")]
]

const hook = (put: Mapping) =>
  HttpApp.appendPreResponseHandler((_request, response) =>
    Effect.succeed(response.status === 101 ? put(response) : response)
  )

/** The response to a request that asks for a switch. */
const answerOf = (send: Served["send"]) => Effect.flatMap(send(ask()), (peer) => peer.receiveResponse)

describe("a 101 with content", () => {
  describe.each(contents)("(%s)", (_, found, put) => {
    it.scoped("of respond is a 500, and BodyOn101 for whoever awaits the connection", () =>
      Effect.gen(function* () {
        for (const where of ["handler", "hook"]) {
          const failed = outcome<never, UpgradeError.SwitchError>()
          const { send, server } = yield* serve(
            Effect.gen(function* () {
              const [response, upgraded] = yield* Upgrade.respond(echo)
              yield* Effect.forkDaemon(
                Effect.onExit(Effect.scoped(upgraded), (exit) => Deferred.done(failed, exit as Exit.Exit<never, any>))
              )
              if (where === "handler") {
                return put(response)
              }
              yield* hook(put)
              return response
            })
          )
          assert.strictEqual((yield* answerOf(send)).status, 500, where)
          const error = yield* Effect.flip(Deferred.await(failed))
          assert.instanceOf(error, UpgradeError.BodyOn101)
          assert.strictEqual((error as UpgradeError.BodyOn101).found, found)
          assert.lengthOf(yield* server.connections, 0)
        }
      })
    )

    it.scoped("of onUpgrade is a 500, and logged, and the session does not begin", () =>
      withLogs((logs) =>
        Effect.gen(function* () {
          let began = false
          const handler = Upgrade.onUpgrade(echo, () =>
            Effect.sync(() => {
              began = true
            })
          )
          for (const app of [Effect.map(handler, put), Effect.zipRight(hook(put), handler)]) {
            const before = logs.length
            const { send, server } = yield* serve(app)
            const response = yield* answerOf(send)
            assert.strictEqual(response.status, 500)
            assert.notInclude(response.raw, "echo")
            const logged = logs.slice(before).filter(({ level }) => level === "Error")
            assert.lengthOf(logged, 1)
            assert.include(logged[0]!.message, found)
            assert.lengthOf(yield* server.connections, 0)
          }
          assert.isFalse(began)
        })
      )
    )

    it.scoped("of respond is logged when nobody awaits the connection", () =>
      withLogs((logs) =>
        Effect.gen(function* () {
          const { send } = yield* serve(Effect.map(Upgrade.respond(echo), ([response]) => put(response)))
          assert.strictEqual((yield* answerOf(send)).status, 500)
          assert.isTrue(logs.some(({ level, message }) => level === "Error" && message.includes(found)))
        })
      )
    )

    it.scoped("of upgrade is BodyOn101 at the call, and a 500 where the handler lets it through", () =>
      Effect.gen(function* () {
        const failed = outcome<never, UpgradeError.UpgradeError>()
        const { send, server } = yield* serve(
          Effect.zipRight(hook(put), Upgrade.upgrade(echo)).pipe(
            Effect.tapError((error) => Deferred.fail(failed, error)),
            Effect.as(Upgrade.done)
          )
        )
        assert.strictEqual((yield* answerOf(send)).status, 500)
        const error = yield* Effect.flip(Deferred.await(failed))
        assert.strictEqual((error as UpgradeError.BodyOn101).found, found)
        assert.lengthOf(yield* server.connections, 0)
      })
    )

    it.scoped("of a session is BodyOn101 at its upgrade, and a 500", () =>
      Effect.gen(function* () {
        const failed = outcome<never, UpgradeError.UpgradeError>()
        const handler = Upgrade.session(
          Upgrade.upgrade(echo).pipe(
            Effect.tapError((error) => Deferred.fail(failed, error)),
            Effect.as(Upgrade.done)
          )
        )
        const { send, server } = yield* serve(Effect.map(handler, put))
        assert.strictEqual((yield* answerOf(send)).status, 500)
        const error = yield* Effect.flip(Deferred.await(failed))
        assert.strictEqual((error as UpgradeError.BodyOn101).found, found)
        assert.lengthOf(yield* server.connections, 0)
      })
    )
  })

  it.scoped("leaves the connection to HTTP", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          request.url === "/plain"
            ? Effect.succeed(HttpServerResponse.text("plain"))
            : Effect.map(Upgrade.onUpgrade(echo, echoing), contents[0]![2])
        )
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveResponse).status, 500)
      yield* peer.send(get("/plain"))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
    })
  )

  describe.each([
    ["Content-Length", { "Content-Length": "0" }],
    ["Transfer-Encoding", { "Transfer-Encoding": "chunked" }]
  ] as const)("announced by %s", (found, headers) => {
    it.scoped.each(forms.map(([name]) => name))("among the handler's headers fails %s with BodyOn101", (name) =>
      Effect.gen(function* () {
        const failed = outcome<never, UpgradeError.UpgradeError>()
        const form = forms.find(([form]) => form === name)![1]
        const { send } = yield* serve(
          Effect.tapError(form(echoing, { headers }), (error) => Deferred.fail(failed, error))
        )
        assert.strictEqual((yield* answerOf(send)).status, 500)
        const error = yield* Effect.flip(Deferred.await(failed))
        assert.strictEqual((error as UpgradeError.BodyOn101).found, found)
      })
    )
  })
})

describe("a 101 with a control character", () => {
  it.scoped("in a cookie is a 500 and not a head", () =>
    Effect.gen(function* () {
      const cookie = { ...Cookies.unsafeMakeCookie("a", "b"), valueEncoded: "b\r\nx-b: c" }
      const { send } = yield* serve(
        Effect.map(
          Upgrade.onUpgrade(echo, echoing),
          HttpServerResponse.replaceCookies(Cookies.fromReadonlyRecord({ a: cookie }))
        )
      )
      const response = yield* answerOf(send)
      assert.strictEqual(response.status, 500)
      assert.notInclude(response.raw, "x-b")
    })
  )

  it.scoped.each(
    ["a\r\nx-b: c", "a\nb", "a\0b", "a\rb"].flatMap((value) => answering.map(([name]) => [value, name] as const))
  )("%j in a field is a 500 and not a head, in %s", ([value, name]) =>
    Effect.gen(function* () {
      const form = answering.find(([form]) => form === name)![1]
      const put = HttpServerResponse.setHeader("x-a", value)
      for (const app of [Effect.map(form(echoing), put), form(echoing, { headers: { "x-a": value } })]) {
        const { send } = yield* serve(app)
        const response = yield* answerOf(send)
        assert.strictEqual(response.status, 500)
        assert.notInclude(response.raw, "x-b")
      }
    })
  )
})

describe("respond", () => {
  const awaited = <E>(
    make: (
      pair: readonly [
        Upgrade.SwitchingProtocols,
        Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>
      ]
    ) => Effect.Effect<HttpServerResponse.HttpServerResponse, E>,
    options?: Parameters<typeof serve>[1]
  ) =>
    Effect.gen(function* () {
      const exit = outcome<Exit.Exit<Upgraded.Upgraded, UpgradeError.SwitchError>, never>()
      const served = yield* serve(
        Effect.flatMap(Upgrade.respond(echo), (pair) =>
          Effect.zipRight(
            Effect.forkDaemon(Effect.intoDeferred(Effect.exit(Effect.scoped(pair[1])), exit) as Effect.Effect<boolean>),
            make(pair)
          )
        ),
        options
      )
      return { ...served, exit: Deferred.await(exit) }
    })

  const notSwitched = (exit: Exit.Exit<unknown, UpgradeError.SwitchError>) => {
    assert.isTrue(Exit.isFailure(exit))
    const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
    assert.instanceOf(error, UpgradeError.NotSwitched)
    return error as UpgradeError.NotSwitched
  }

  it.scoped("hands its effect to another fiber through a queue, which has the connection once the 101 is out", () =>
    Effect.gen(function* () {
      const sessions = yield* Queue.unbounded<Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>>()
      const { send, server } = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo, { headers: { "x-room": "1" } })
          yield* Queue.offer(sessions, upgraded)
          return response
        })
      )
      const scope = yield* Scope.make()
      const peer = yield* send(ask({ body: "early" }))
      assert.strictEqual((yield* peer.receiveHead).headers["x-room"], "1")
      const upgraded = yield* Effect.flatten(Queue.take(sessions)).pipe(Scope.extend(scope))
      assert.strictEqual(textOf(upgraded.leftover), "early")
      assert.lengthOf(yield* server.connections, 1)
      yield* Upgraded.write(upgraded, "hello")
      // In the claimer's Scope: it closes with that
      yield* peer.end
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(decode(yield* peer.receiveAll), "hello")
      assert.lengthOf(yield* server.connections, 0)
    })
  )

  it.scoped.each([200, 404, 500])(
    "yields NotSwitched 'Answered' with the status %d that was answered instead",
    (status) =>
      Effect.gen(function* () {
        const { exit, send } = yield* awaited(() => Effect.succeed(HttpServerResponse.text("no", { status })))
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveResponse).status, status)
        const error = notSwitched(yield* exit)
        assert.strictEqual(error.reason, "Answered")
        assert.strictEqual(error.status, status)
      })
  )

  it.scoped("yields NotSwitched 'Answered' where a hook answered instead", () =>
    Effect.gen(function* () {
      const { exit, send } = yield* awaited(([response]) =>
        Effect.as(
          HttpApp.appendPreResponseHandler(() => Effect.succeed(HttpServerResponse.empty({ status: 409 }))),
          response
        )
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveResponse).status, 409)
      const error = notSwitched(yield* exit)
      assert.deepStrictEqual([error.reason, error.status], ["Answered", 409])
    })
  )

  it.scoped.each([
    ["failed", Effect.fail("no"), "Failed"],
    ["died", Effect.die(new Error("no")), "Failed"],
    ["was interrupted", Effect.interrupt, "Interrupted"]
  ] as const)("yields NotSwitched where the handler %s", ([_, effect, reason]) =>
    Effect.gen(function* () {
      const { exit, send } = yield* awaited(() => effect)
      const peer = yield* send(ask())
      assert.isAtLeast((yield* peer.receiveResponse).status, 500)
      assert.strictEqual(notSwitched(yield* exit).reason, reason)
    })
  )

  it.scoped("fails with NotSwitched 'SelfAwait' at once in the handler's own fiber, which may still switch", () =>
    Effect.gen(function* () {
      const errors: Array<UpgradeError.SwitchError> = []
      const { send } = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo)
          errors.push(yield* Effect.flip(Effect.scoped(upgraded)))
          yield* Effect.forkDaemon(Effect.scoped(Effect.flatMap(upgraded, echoing)))
          return response
        })
      )
      const peer = yield* send(ask({ body: "early" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      assert.deepStrictEqual(
        errors.map((error) => error._tag === "NotSwitched" && error.reason),
        ["SelfAwait"]
      )
      assert.include(errors[0]!.message, "Return the response first")
    })
  )

  it.scoped("fails with AlreadyUpgraded when it is claimed a second time, before the switch and after", () =>
    Effect.gen(function* () {
      const claimed = outcome<UpgradeError.SwitchError, never>()
      const afterwards = outcome<UpgradeError.SwitchError, never>()
      const { send } = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo)
          const first = yield* Effect.forkDaemon(Effect.scoped(Effect.flatMap(upgraded, echoing)))
          yield* Effect.yieldNow()
          const second = yield* Effect.forkDaemon(Effect.scoped(upgraded))
          yield* Effect.intoDeferred(Effect.flip(Fiber.join(second)) as Effect.Effect<any>, claimed)
          yield* Effect.forkDaemon(
            Effect.zipRight(
              Fiber.await(first),
              Effect.intoDeferred(Effect.flip(Effect.scoped(upgraded)) as Effect.Effect<any>, afterwards)
            )
          )
          return response
        })
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual((yield* Deferred.await(claimed))._tag, "AlreadyUpgraded")
      yield* peer.end
      assert.strictEqual((yield* Deferred.await(afterwards))._tag, "AlreadyUpgraded")
    })
  )

  it.scoped("may be claimed again after the claim was interrupted", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo)
          const first = yield* Effect.forkDaemon(Effect.scoped(upgraded))
          yield* Effect.yieldNow()
          yield* Fiber.interrupt(first)
          yield* Effect.forkDaemon(Effect.scoped(Effect.flatMap(upgraded, echoing)))
          return response
        })
      )
      const peer = yield* send(ask({ body: "early" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
    })
  )

  it.scoped("is closed after claimTimeout, 10 s, where nobody claims it, with a warning", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const pairs = yield* Queue.unbounded<Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>>()
        const { send, server } = yield* serve(
          Effect.flatMap(Upgrade.respond(echo), ([response, upgraded]) =>
            Effect.as(Queue.offer(pairs, upgraded), response)
          )
        )
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* TestClock.adjust("9999 millis")
        assert.lengthOf(yield* server.connections, 1)
        assert.deepStrictEqual(logs, [])
        yield* TestClock.adjust("1 millis")
        yield* peer.closed
        yield* until(() => logs.length > 0)
        assert.strictEqual(logs[0]!.level, "Warning")
        assert.include(logs[0]!.message, "claimTimeout")
        yield* connected(server, 0)
        // Too late: what it yields is closed, or it says so itself
        const late = yield* Effect.exit(
          Effect.scoped(Effect.flatMap(Effect.flatten(Queue.take(pairs)), (upgraded) => Upgraded.write(upgraded, "x")))
        )
        assert.isTrue(Exit.isFailure(late))
      })
    )
  )

  it.scoped("says itself how long it may lie unclaimed, and is not closed once it was claimed", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const claim = outcome<void, never>()
        const { send, server } = yield* serve(
          Effect.gen(function* () {
            const [response, upgraded] = yield* Upgrade.respond(echo, { claimTimeout: "1 second" })
            yield* Effect.forkDaemon(
              Effect.zipRight(Deferred.await(claim), Effect.scoped(Effect.flatMap(upgraded, echoing)))
            )
            return response
          })
        )
        const peer = yield* send(ask({ body: "early" }))
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* TestClock.adjust("999 millis")
        yield* Deferred.succeed(claim, undefined)
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
        yield* TestClock.adjust("1 minute")
        assert.lengthOf(yield* server.connections, 1)
        assert.deepStrictEqual(logs, [])
      })
    )
  )

  it.scoped("yields ConnectionLost where the peer resets before the response is returned", () =>
    Effect.gen(function* () {
      const responded = outcome<void, never>()
      const { exit, send } = yield* awaited(([response]) =>
        Effect.as(Effect.zipRight(Deferred.succeed(responded, undefined), Effect.never), response)
      )
      const peer = yield* send(ask())
      yield* Deferred.await(responded)
      yield* peer.reset
      const result = yield* exit
      assert.isTrue(Exit.isFailure(result))
      assert.instanceOf(Exit.isFailure(result) ? Cause.squash(result.cause) : undefined, UpgradeError.ConnectionLost)
    })
  )

  it.scoped("yields UpgradeTimeout where the request's body does not arrive in time, and the client gets 408", () =>
    Effect.gen(function* () {
      const responded = outcome<void, never>()
      const { exit, send } = yield* awaited(([response]) => Effect.as(Deferred.succeed(responded, undefined), response))
      const peer = yield* send(ask({ method: "POST", fields: { "Content-Length": "10" }, body: "half" }))
      yield* Deferred.await(responded)
      yield* turns(20)
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual((yield* peer.receiveResponse).status, 408)
      const result = yield* exit
      const error = Exit.isFailure(result) ? Cause.squash(result.cause) : undefined
      assert.instanceOf(error, UpgradeError.UpgradeTimeout)
      assert.strictEqual((error as UpgradeError.UpgradeTimeout).stage, "Body")
    })
  )
})

describe("an interruption in the very turn in which the 101 is written", () => {
  /** Runs this within the write of the 101, before it goes out. */
  const whileWriting = (node: Served["node"], run: () => void) =>
    node.once("connection", (socket) => {
      const { write } = socket
      socket.write = (...args: Array<unknown>) => {
        if (String(args[0]).startsWith("HTTP/1.1 101")) {
          socket.write = write
          run()
        }
        return Reflect.apply(write, socket, args)
      }
    })

  it.scoped.each(forms.map(([name]) => name))("of the request leaves no connection that is nobody's: %s", (name) =>
    Effect.gen(function* () {
      let fiber: Fiber.RuntimeFiber<unknown, unknown> | undefined
      const form = forms.find(([form]) => form === name)![1]
      const { node, send, server } = yield* serve(
        Effect.withFiberRuntime<HttpServerResponse.HttpServerResponse, UpgradeError.UpgradeError, any>((it) => {
          fiber = it as Fiber.RuntimeFiber<unknown, unknown>
          return form(echoing)
        })
      )
      whileWriting(node, () => fiber!.unsafeInterruptAsFork(FiberId.none))
      const peer = yield* send(ask({ body: "early" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      if (name.startsWith("upgrade")) {
        // The request is the session
        yield* peer.closed
      } else {
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
        assert.lengthOf(yield* server.connections, 1)
        yield* peer.end
        yield* peer.receiveAll
      }
      yield* connected(server, 0)
    })
  )

  /** Interrupts the fiber that runs under it when that is to go on: what woke it and the interruption meet. */
  const interruptedWhenWoken = <A, E, R>(
    self: Effect.Effect<A, E, R>,
    interrupts: () => boolean
  ): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) => {
      const base = fiber.getFiberRef(FiberRef.currentScheduler)
      return Effect.withScheduler(self, {
        shouldYield: (fiber) => base.shouldYield(fiber),
        scheduleTask: (task, priority) => {
          base.scheduleTask(task, priority)
          if (interrupts()) {
            fiber.unsafeInterruptAsFork(FiberId.none)
          }
        }
      })
    })

  it.scoped("of the claimer leaves it to be claimed until claimTimeout, and then closes it", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        let writing = false
        const claims = yield* Queue.unbounded<Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>>()
        const { node, send, server } = yield* serve(
          Effect.gen(function* () {
            const [response, upgraded] = yield* Upgrade.respond(echo)
            yield* Effect.forkDaemon(Effect.scoped(interruptedWhenWoken(upgraded, () => writing)))
            yield* Effect.yieldNow()
            yield* Queue.offer(claims, upgraded)
            return response
          })
        )
        const write = () => {
          writing = true
        }
        whileWriting(node, write)
        const first = yield* send(ask({ body: "early" }))
        assert.strictEqual((yield* first.receiveHead).status, 101)
        const scope = yield* Scope.make()
        const upgraded = yield* Scope.extend(Effect.flatten(Queue.take(claims)), scope)
        assert.strictEqual(textOf(upgraded.leftover), "early")
        yield* Scope.close(scope, Exit.fail("no"))
        yield* connected(server, 0)
        writing = false
        whileWriting(node, write)
        const second = yield* send(ask())
        assert.strictEqual((yield* second.receiveHead).status, 101)
        yield* TestClock.adjust("9999 millis")
        assert.lengthOf(yield* server.connections, 1)
        assert.deepStrictEqual(logs, [])
        yield* TestClock.adjust("1 millis")
        yield* second.closed
        yield* connected(server, 0)
        assert.include(logs[0]!.message, "claimTimeout")
      })
    )
  )

  it.scoped("of a handler inside of session closes it at claimTimeout", () =>
    Effect.gen(function* () {
      let writing = false
      const interrupted = outcome<void, never>()
      const { node, send, server } = yield* serve(
        Upgrade.session(
          interruptedWhenWoken(Effect.as(Upgrade.upgrade(echo), Upgrade.done), () => writing).pipe(
            Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined))
          )
        )
      )
      whileWriting(node, () => {
        writing = true
      })
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      yield* Deferred.await(interrupted)
      yield* TestClock.adjust("10 seconds")
      yield* peer.closed
      yield* connected(server, 0)
    })
  )
})

describe("a connection that is lost or ends without its owner's doing", () => {
  type Claim = Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>

  /** Hands over what `respond` yields, and does something before the response is returned. */
  const claiming = (before: Effect.Effect<unknown>) =>
    Effect.gen(function* () {
      const claims = yield* Queue.unbounded<Claim>()
      const served = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo)
          yield* Queue.offer(claims, upgraded)
          yield* before
          return response
        })
      )
      return { ...served, claim: Effect.flatten(Queue.take(claims)) }
    })

  it.scoped("is ConnectionLost where the socket is destroyed in the turn in which the response is returned", () =>
    Effect.gen(function* () {
      let accepted: net.Socket | undefined
      const { claim, node, send } = yield* claiming(Effect.sync(() => accepted!.destroy()))
      node.once("connection", (socket) => {
        accepted = socket
      })
      const peer = yield* send(ask())
      assert.strictEqual((yield* Effect.flip(claim))._tag, "ConnectionLost")
      yield* peer.closed
    })
  )

  it.scoped("is closed and forgotten once both sides have ended", () =>
    Effect.gen(function* () {
      const { claim, send, server } = yield* claiming(Effect.void)
      const peer = yield* send(ask())
      const upgraded = yield* claim
      yield* Upgraded.end(upgraded)
      yield* peer.receiveHead
      yield* peer.receiveAll
      assert.lengthOf(yield* server.connections, 1)
      yield* peer.end
      yield* Connection.awaitClosed(upgraded.connection)
      yield* connected(server, 0)
    })
  )
})

describe("AlreadyUpgraded", () => {
  it.scoped("is what a second switch of the same request fails with, whichever form", () =>
    Effect.gen(function* () {
      const seconds = [
        Effect.scoped(Upgrade.upgrade(echo)),
        Upgrade.respond(echo),
        Upgrade.onUpgrade(echo, echoing)
      ] as ReadonlyArray<Effect.Effect<unknown, UpgradeError.UpgradeError, any>>
      for (const second of seconds) {
        const tags: Array<string> = []
        const { send } = yield* serve(
          Effect.gen(function* () {
            const upgraded = yield* Upgrade.upgrade(echo)
            tags.push((yield* Effect.flip(second))._tag)
            yield* Upgraded.write(upgraded, "still mine")
            return Upgrade.done
          }) as Effect.Effect<HttpServerResponse.HttpServerResponse, any, any>
        )
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* peer.end
        assert.strictEqual(decode(yield* peer.receiveAll), "still mine")
        assert.deepStrictEqual(tags, ["AlreadyUpgraded"])
      }
    })
  )

  it.scoped("is a 500 where it is let through before the switch", () =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(Effect.zipRight(Upgrade.respond(echo), Upgrade.onUpgrade(echo, echoing)))
      assert.strictEqual((yield* answerOf(send)).status, 500)
      assert.lengthOf(yield* server.connections, 0)
    })
  )
})

describe("onUpgrade", () => {
  it.scoped("gives its handler the connection's Scope and not the request's", () =>
    Effect.gen(function* () {
      const seen: Array<unknown> = []
      const { send } = yield* serve(
        Effect.flatMap(Effect.scope, (requestScope) =>
          Upgrade.onUpgrade(echo, (upgraded) =>
            Effect.flatMap(Effect.scope, (scope) => {
              seen.push(scope === upgraded.connection.scope, scope === requestScope)
              return echoing(upgraded)
            })
          )
        )
      )
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      assert.deepStrictEqual(seen, [true, false])
    })
  )

  it.scoped("gives its handler the services and fiber refs of the call, and the request without its body", () =>
    Effect.gen(function* () {
      class Name extends Context.Tag("Name")<Name, string>() {}
      const ref = FiberRef.unsafeMake("default")
      const { send } = yield* serve(
        Upgrade.onUpgrade(echo, (upgraded) =>
          Effect.gen(function* () {
            const request = yield* HttpServerRequest.HttpServerRequest
            const body = yield* Effect.either(request.text)
            const told = [
              yield* Name,
              yield* FiberRef.get(ref),
              request.method,
              request.url,
              request.originalUrl,
              request.headers["x-a"],
              request.cookies.c,
              request.remoteAddress._tag,
              body._tag
            ]
            yield* Upgraded.write(upgraded, told.join(" "))
          }).pipe(Effect.orDie)
        ).pipe(Effect.provideService(Name, "service"), Effect.locally(ref, "local"))
      )
      const peer = yield* send(ask({ path: "/p?q", fields: { "x-a": "1", Cookie: "c=2" } }))
      yield* peer.receiveHead
      yield* peer.end
      assert.strictEqual(decode(yield* peer.receiveAll), "service local GET /p?q /p?q 1 2 Some Left")
    })
  )

  it.scoped("has a fiber that does not retain the request", () =>
    Effect.gen(function* () {
      setFlagsFromString("--expose-gc")
      const gc = runInNewContext("gc") as () => void
      let request: WeakRef<object> | undefined
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (current) => {
          request = new WeakRef(current.source as object)
          return Upgrade.onUpgrade(echo, echoing)
        })
      )
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      yield* until(() => {
        gc()
        return request!.deref() === undefined
      })
      yield* peer.send("y")
      assert.strictEqual(decode(yield* peer.receiveExactly(1)), "y")
    })
  )

  it.scoped.each([
    ["fails", Effect.fail("the reason"), "Fail"],
    ["dies", Effect.die(new Error("the reason")), "Die"]
  ] as const)(
    "logs a session that %s, gives its cause to onFailure, and closes the connection as a failure",
    ([_, effect, tag]) =>
      withLogs((logs) =>
        Effect.gen(function* () {
          const failure = outcome<Cause.Cause<string>, never>()
          const closed = outcome<Exit.Exit<unknown, unknown>, never>()
          const { send, server } = yield* serve(
            Upgrade.onUpgrade(
              echo,
              (upgraded) =>
                Connection.addFinalizer(upgraded.connection, (exit) => Deferred.succeed(closed, exit)).pipe(
                  Effect.zipRight(effect as Effect.Effect<never, string>)
                ),
              { onFailure: (cause) => Deferred.succeed(failure, cause) }
            )
          )
          const peer = yield* send(ask())
          yield* peer.receiveHead
          const cause = yield* Deferred.await(failure)
          assert.strictEqual(cause._tag, tag)
          assert.isTrue(logs.some(({ level, message }) => level === "Error" && message.includes("the reason")))
          assert.isTrue(Exit.isFailure(yield* Deferred.await(closed)))
          yield* peer.closed
          yield* connected(server, 0)
        })
      )
  )

  it.scoped("neither logs a session that was interrupted, nor tells onFailure", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        let told = false
        const began = outcome<void, never>()
        const { send, server } = yield* serve(
          Upgrade.onUpgrade(echo, () => Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), {
            onFailure: () =>
              Effect.sync(() => {
                told = true
              })
          })
        )
        const peer = yield* send(ask())
        yield* Deferred.await(began)
        yield* peer.reset
        yield* connected(server, 0)
        assert.isFalse(told)
        assert.deepStrictEqual(
          logs.filter(({ level }) => level !== "Debug"),
          []
        )
      })
    )
  )

  it.scoped("does not begin before the 101 is out", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(Upgrade.onUpgrade(echo, (upgraded) => Upgraded.write(upgraded, "first")))
      const peer = yield* send(ask())
      yield* peer.end
      const received = decode(yield* peer.receiveAll)
      assert.match(received, /^HTTP\/1\.1 101 .*\r\n\r\nfirst$/s)
    })
  )
})

describe("upgrade", () => {
  it.scoped("closes the connection with the Scope at the call, before the request's", () =>
    Effect.gen(function* () {
      const closed: Array<boolean> = []
      const { send } = yield* serve(
        Effect.gen(function* () {
          const connection = yield* Effect.scoped(
            Effect.flatMap(Upgrade.upgrade(echo), (upgraded) =>
              Effect.as(Upgraded.write(upgraded, "inner scope"), upgraded.connection)
            )
          )
          closed.push(connection.socket.destroyed)
          return Upgrade.done
        })
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.end
      assert.strictEqual(decode(yield* peer.receiveAll), "inner scope")
      yield* until(() => closed.length > 0)
      assert.deepStrictEqual(closed, [true])
    })
  )

  it.scoped("fails with ConnectionLost where the peer goes while a hook takes its time", () =>
    Effect.gen(function* () {
      const waits = outcome<void, never>()
      const go = outcome<void, never>()
      const error = outcome<string, never>()
      const { node, send } = yield* serve(
        Effect.gen(function* () {
          yield* HttpApp.appendPreResponseHandler((_request, response) =>
            Effect.as(Effect.zipRight(Deferred.succeed(waits, undefined), Deferred.await(go)), response)
          )
          const { _tag } = yield* Effect.flip(Upgrade.upgrade(echo))
          yield* Deferred.succeed(error, _tag)
          return HttpServerResponse.empty()
        }).pipe(Effect.uninterruptible)
      )
      const closed = outcome<void, never>()
      node.once("connection", (socket) => socket.once("close", () => Deferred.unsafeDone(closed, Effect.void)))
      const peer = yield* send(ask())
      yield* Deferred.await(waits)
      yield* peer.reset
      yield* Deferred.await(closed)
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual(yield* Deferred.await(error), "ConnectionLost")
    })
  )

  it.scoped("leaves the request to be answered where it fails", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Upgrade.upgrade(Protocol.raw("other")).pipe(
          Effect.as(Upgrade.done),
          Effect.catchTag("ProtocolNotOffered", ({ offered }) =>
            HttpServerResponse.text(`instead of ${offered.join()}`)
          )
        )
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveResponse).text, "instead of echo")
    })
  )

  it.scoped("may be tried another way after a hook spoiled it", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.gen(function* () {
          yield* hook(HttpServerResponse.setHeader("content-length", "3"))
          const spoiled = yield* Effect.flip(Upgrade.upgrade(echo))
          const upgraded = yield* Upgrade.upgrade(echo)
          yield* Upgraded.write(upgraded, spoiled._tag)
          return Upgrade.done
        })
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      yield* peer.end
      assert.strictEqual(decode(yield* peer.receiveAll), "BodyOn101")
    })
  )
})

describe("session", () => {
  it.scoped("is what the handler is where that does not switch: response, error, hooks and Scope", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const handler = Upgrade.session(
        Effect.gen(function* () {
          yield* Effect.addFinalizer(() => Effect.sync(() => events.push("released")))
          yield* HttpApp.appendPreResponseHandler((_request, response) =>
            Effect.sync(() => {
              events.push("hook")
              return HttpServerResponse.setHeader(response, "x-hook", "1")
            })
          )
          return HttpServerResponse.text("ordinary")
        })
      )
      const { send } = yield* serve(handler)
      const peer = yield* send(ask())
      const response = yield* peer.receiveResponse
      assert.strictEqual(response.text, "ordinary")
      assert.strictEqual(response.headers["x-hook"], "1")
      yield* until(() => events.length === 2)
      assert.deepStrictEqual(events, ["hook", "released"])

      const failing = yield* serve(
        Upgrade.session(Upgrade.upgrade(Protocol.raw("other")).pipe(Effect.as(Upgrade.done)))
      )
      assert.strictEqual((yield* answerOf(failing.send)).status, 426)
    })
  )

  it.scoped("goes on in the connection's Scope, which closes when the handler ends", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const { send, server } = yield* serve(
        Effect.zipRight(
          Effect.addFinalizer(() => Effect.sync(() => events.push("request"))),
          Upgrade.session(
            Effect.gen(function* () {
              yield* Effect.addFinalizer(() => Effect.sync(() => events.push("session")))
              const upgraded = yield* Upgrade.upgrade(echo)
              yield* echoing(upgraded)
              return Upgrade.done
            })
          )
        )
      )
      const peer = yield* send(ask({ body: "x" }))
      yield* peer.receiveHead
      yield* peer.receiveExactly(1)
      yield* until(() => events.length > 0)
      assert.deepStrictEqual(events, ["request"])
      yield* peer.end
      yield* peer.receiveAll
      yield* until(() => events.length === 2)
      assert.deepStrictEqual(events, ["request", "session"])
      yield* connected(server, 0)
    })
  )

  it.scoped("is interrupted with the request before the switch", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const interrupted = outcome<void, never>()
      const { send } = yield* serve(
        Upgrade.session(
          Effect.onInterrupt(Effect.zipRight(Deferred.succeed(began, undefined), Effect.never), () =>
            Deferred.succeed(interrupted, undefined)
          )
        )
      )
      const peer = yield* send(ask())
      yield* Deferred.await(began)
      yield* peer.reset
      yield* Deferred.await(interrupted)
    })
  )

  it.scoped("logs a handler that fails behind the switch, and closes the connection", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const { send, server } = yield* serve(
          Upgrade.session(Effect.zipRight(Upgrade.upgrade(echo), Effect.fail("the reason")))
        )
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* peer.closed
        yield* until(() => logs.some(({ level, message }) => level === "Error" && message.includes("the reason")))
        yield* connected(server, 0)
      })
    )
  )
})

describe("a check that takes its time", () => {
  /** A protocol whose check waits, and how many of its checks do. */
  const checking = () => {
    const go = outcome<void, never>()
    let waiting = 0
    const check = () =>
      Effect.suspend(() => {
        waiting = waiting + 1
        return Effect.as(Deferred.await(go), Headers.empty)
      })
    return {
      protocol: Protocol.make({ token: "echo", check }),
      waiting: () => waiting,
      go: Deferred.succeed(go, undefined)
    }
  }

  it.scoped("leaves maxConnections what it is: room is looked for behind it again", () =>
    Effect.gen(function* () {
      const { go, protocol, waiting } = checking()
      const { send, server } = yield* serve(Upgrade.onUpgrade(protocol, echoing), { maxConnections: 1 })
      const peers = yield* Effect.all([send(ask()), send(ask())])
      yield* until(() => waiting() === 2)
      yield* go
      const statuses = yield* Effect.forEach(peers, (peer) => Effect.map(peer.receiveHead, ({ status }) => status))
      assert.deepStrictEqual(statuses.sort(), [101, 503])
      assert.lengthOf(yield* server.connections, 1)
    })
  )

  it.scoped("lets one of two fibers switch, and the other fails with AlreadyUpgraded", () =>
    Effect.gen(function* () {
      const { go, protocol, waiting } = checking()
      const errors: Array<string> = []
      const { send } = yield* serve(
        Effect.gen(function* () {
          const attempt = Effect.either(Upgrade.onUpgrade(protocol, echoing))
          const attempts = yield* Effect.all([attempt, attempt], { concurrency: 2 })
          errors.push(...attempts.filter(Either.isLeft).map(({ left }) => left._tag))
          return attempts.find(Either.isRight)!.right
        })
      )
      const peer = yield* send(ask({ body: "early" }))
      yield* until(() => waiting() === 2)
      yield* go
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      assert.deepStrictEqual(errors, ["AlreadyUpgraded"])
    })
  )
})

describe("a handler that does not decide", () => {
  it.scoped.each(forms.map(([name]) => name))(
    "within decisionTimeout is interrupted, and the client gets 503 (%s)",
    (name) =>
      Effect.gen(function* () {
        const form = forms.find(([form]) => form === name)![1]
        const began = outcome<void, never>()
        const interrupted = outcome<void, never>()
        const { send, server } = yield* serve(
          Effect.onInterrupt(
            Effect.zipRight(Deferred.succeed(began, undefined), Effect.zipRight(Effect.never, form(echoing))),
            () => Deferred.succeed(interrupted, undefined)
          )
        )
        const peer = yield* send(ask())
        yield* Deferred.await(began)
        yield* TestClock.adjust("60 seconds")
        const response = yield* peer.receiveResponse
        assert.strictEqual(response.status, 503)
        assert.strictEqual(response.headers.connection, "close")
        yield* Deferred.await(interrupted)
        assert.lengthOf(yield* server.connections, 0)
      })
  )

  it.scoped("after a pending respond fails whoever awaits the connection with UpgradeTimeout 'Decision'", () =>
    Effect.gen(function* () {
      const failed = outcome<never, UpgradeError.SwitchError>()
      const began = outcome<void, never>()
      const { send } = yield* serve(
        Effect.gen(function* () {
          const [response, upgraded] = yield* Upgrade.respond(echo)
          yield* Effect.forkDaemon(Effect.intoDeferred(Effect.scoped(upgraded) as Effect.Effect<never, any>, failed))
          yield* Deferred.succeed(began, undefined)
          return yield* Effect.as(Effect.never, response)
        }),
        { decisionTimeout: "1 second" }
      )
      const peer = yield* send(ask())
      yield* Deferred.await(began)
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* peer.receiveResponse).status, 503)
      const error = yield* Effect.flip(Deferred.await(failed))
      assert.strictEqual(error._tag === "UpgradeTimeout" && error.stage, "Decision")
    })
  )

  it.scoped("is left alone where the request does not offer a switch", () =>
    Effect.gen(function* () {
      const began = outcome<void, never>()
      const go = outcome<void, never>()
      const { send } = yield* serve(
        Effect.gen(function* () {
          yield* Deferred.succeed(began, undefined)
          yield* Deferred.await(go)
          return HttpServerResponse.text("late")
        })
      )
      const peer = yield* send(get("/"))
      yield* Deferred.await(began)
      yield* TestClock.adjust("1 hour")
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual((yield* peer.receiveResponse).text, "late")
    })
  )
})

describe("a hook that dies", () => {
  it.scoped("leaves nobody without an answer or an end, whichever form", () =>
    Effect.gen(function* () {
      for (const [, form] of forms) {
        const { send, server } = yield* serve(
          Effect.zipRight(
            HttpApp.appendPreResponseHandler(() => Effect.die(new Error("the hook"))),
            form(echoing)
          )
        )
        const peer = yield* send(ask())
        const response = yield* Effect.either(peer.receiveResponse)
        assert.strictEqual(response._tag === "Right" ? response.right.status : 500, 500)
        assert.lengthOf(yield* server.connections, 0)
      }
    })
  )
})

describe("orRespond", () => {
  it.scoped("answers for this library's errors, and leaves the others", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      const own = Upgrade.orRespond(Upgrade.onUpgrade(Protocol.raw("other"), echoing))
      const other = Effect.catchAll(Upgrade.orRespond(Effect.fail("not ours")), (error) =>
        Effect.sync(() => {
          seen.push(error)
          return HttpServerResponse.empty({ status: 418 })
        })
      )
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }) => (url === "/own" ? own : other))
      )
      const statuses = yield* Effect.forEach(["/own", "/other"], (path) =>
        Effect.map(
          Effect.flatMap(send(ask({ path })), (peer) => peer.receiveHead),
          ({ status }) => status
        )
      )
      assert.deepStrictEqual(statuses, [426, 418])
      assert.deepStrictEqual(seen, ["not ours"])
    })
  )
})

describe("the listener's tag", () => {
  it.scoped("of another server fails with NotUpgradable 'Server'", () =>
    Effect.gen(function* () {
      const errors: Array<UpgradeError.UpgradeError> = []
      const one = yield* serve(Upgrade.onUpgrade(Connection.Net, echo, echoing))
      const foreign = yield* Effect.map(serveListener, (listener) => listener)
      const { send } = yield* serve(
        Upgrade.onUpgrade(Connection.Net, echo, echoing).pipe(
          Effect.tapError((error) => Effect.sync(() => errors.push(error))),
          Effect.provideService(Connection.Net, foreign)
        )
      )
      assert.strictEqual((yield* answerOf(one.send)).status, 101)
      assert.strictEqual((yield* answerOf(send)).status, 426)
      assert.deepStrictEqual(
        errors.map((error) => error._tag === "NotUpgradable" && error.reason),
        ["Server"]
      )
    })
  )
})

/** The listener of a server of its own. */
const serveListener = Effect.gen(function* () {
  const seen = outcome<Context.Tag.Service<Connection.Net>, never>()
  const { send } = yield* serve(
    Effect.flatMap(Connection.Net, (listener) =>
      Effect.as(Deferred.succeed(seen, listener), HttpServerResponse.empty())
    )
  )
  yield* Effect.flatMap(send(get("/")), (peer) => peer.receiveHead)
  return yield* Deferred.await(seen)
})
