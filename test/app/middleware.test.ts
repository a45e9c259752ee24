import * as Cookies from "@effect/platform/Cookies"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpLayerRouter from "@effect/platform/HttpLayerRouter"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { Connection, Protocol, Upgrade, Upgraded, type UpgradeError } from "../../src/index.js"
import {
  answering,
  ask,
  decode,
  echo,
  echoing,
  forms,
  get,
  type Handler,
  outcome,
  serve,
  serveLayer,
  turns,
  until,
  withLogs
} from "../appSupport.js"

const setHeader = (name: string, value: string) => Effect.map(HttpServerResponse.setHeader(name, value))

const named = (name: string) => forms.find(([form]) => form === name)![1]

const routes = (handler: Handler) =>
  HttpRouter.empty.pipe(HttpRouter.get("/echo", handler), HttpRouter.get("/plain", HttpServerResponse.text("plain")))

/** The heads of the 101 and of an ordinary response of the same app. */
const heads = (app: Layer.Layer<never, never, any>) =>
  Effect.gen(function* () {
    const { send } = yield* serveLayer(app)
    const switched = yield* Effect.flatMap(send(ask()), (peer) => peer.receiveHead)
    const ordinary = yield* Effect.flatMap(send(get("/plain")), (peer) => peer.receiveHead)
    assert.strictEqual(switched.status, 101)
    assert.strictEqual(ordinary.status, 200)
    return { switched, ordinary }
  })

describe("serve-level middleware", () => {
  it.scoped.each(forms.map(([name]) => name))("maps no response, neither an ordinary one nor a 101 of %s", (name) =>
    Effect.gen(function* () {
      const { ordinary, switched } = yield* heads(
        HttpServer.serve(routes(named(name)(echoing)), setHeader("x-outer", "1"))
      )
      assert.isUndefined(ordinary.headers["x-outer"])
      assert.isUndefined(switched.headers["x-outer"])
    })
  )

  it.scoped.each(forms.map(([name]) => name))("can answer in place of a handler of %s", (name) =>
    Effect.gen(function* () {
      let called = false
      const handler = Effect.zipRight(
        Effect.sync(() => {
          called = true
        }),
        named(name)(echoing)
      )
      const { send, server } = yield* serveLayer(
        HttpServer.serve(routes(handler), () => HttpServerResponse.text("no", { status: 403 }))
      )
      const peer = yield* send(ask())
      const response = yield* peer.receiveResponse
      assert.strictEqual(response.status, 403)
      assert.strictEqual(response.text, "no")
      assert.isFalse(called)
      assert.lengthOf(yield* server.connections, 0)
    })
  )

  it.scoped("can answer 101 without a switch no more than a handler can", () =>
    Effect.gen(function* () {
      const { send } = yield* serveLayer(
        HttpServer.serve(routes(named("onUpgrade")(echoing)), () => HttpServerResponse.empty({ status: 101 }))
      )
      for (const request of [ask(), get("/plain")]) {
        const peer = yield* send(request)
        assert.strictEqual((yield* peer.receiveResponse).status, 500)
      }
    })
  )
})

describe("router-level mapping", () => {
  it.scoped.each(answering.map(([name]) => name))("reaches the 101 of %s as it reaches any response", (name) =>
    Effect.gen(function* () {
      const { ordinary, switched } = yield* heads(
        HttpServer.serve(
          routes(named(name)(echoing)).pipe(
            HttpRouter.use(
              Effect.map((response) =>
                response.pipe(
                  HttpServerResponse.setHeader("x-mapped", "1"),
                  HttpServerResponse.unsafeSetCookie("seen", "yes", { httpOnly: true }),
                  HttpServerResponse.setStatus(response.status, "As Mapped")
                )
              )
            )
          )
        )
      )
      for (const head of [ordinary, switched]) {
        assert.strictEqual(head.headers["x-mapped"], "1")
        assert.strictEqual(head.headers["set-cookie"], "seen=yes; HttpOnly")
      }
      // Of an ordinary response the platform sends no reason phrase
      assert.strictEqual(switched.statusText, "As Mapped")
    })
  )

  it.scoped.each(["upgrade", "upgrade with the listener's tag"])("comes too late for the 101 of %s", (name) =>
    Effect.gen(function* () {
      const { ordinary, switched } = yield* heads(
        HttpServer.serve(routes(named(name)(echoing)).pipe(HttpRouter.use(setHeader("x-mapped", "1"))))
      )
      assert.strictEqual(ordinary.headers["x-mapped"], "1")
      assert.isUndefined(switched.headers["x-mapped"])
    })
  )

  it.scoped.each(answering.map(([name]) => name))("of an HttpLayerRouter reaches the 101 of %s", (name) =>
    Effect.gen(function* () {
      const { ordinary, switched } = yield* heads(
        HttpLayerRouter.serve(
          Layer.mergeAll(
            HttpLayerRouter.add("GET", "/echo", named(name)(echoing)),
            HttpLayerRouter.add("GET", "/plain", HttpServerResponse.text("plain"))
          ).pipe(Layer.provide(HttpLayerRouter.middleware(HttpMiddleware.make(setHeader("x-mapped", "1"))).layer)),
          { disableLogger: true, disableListenLog: true }
        ) as Layer.Layer<never, never, any>
      )
      assert.strictEqual(ordinary.headers["x-mapped"], "1")
      assert.strictEqual(switched.headers["x-mapped"], "1")
    })
  )

  it.scoped.each(answering.map(([name]) => name))("may put a new response of status 101 for that of %s", (name) =>
    Effect.gen(function* () {
      const { switched } = yield* heads(
        HttpServer.serve(
          routes(named(name)(echoing)).pipe(
            HttpRouter.use(
              Effect.map((response) =>
                response.status === 101
                  ? HttpServerResponse.empty({ status: 101, headers: { "x-new": "1" } })
                  : response
              )
            )
          )
        )
      )
      // The switch is the request's: what it needs on the head is there whatever the response was made of
      assert.strictEqual(switched.headers["x-new"], "1")
      assert.strictEqual(switched.headers.upgrade, "echo")
      assert.strictEqual(switched.headers.connection, "Upgrade")
    })
  )

  it.scoped.each(answering.map(([name]) => name))("may answer otherwise, and nothing of %s is left", (name) =>
    Effect.gen(function* () {
      const { send, server } = yield* serveLayer(
        HttpServer.serve(
          routes(named(name)(echoing)).pipe(
            HttpRouter.use(Effect.map(() => HttpServerResponse.text("other", { status: 203 })))
          )
        )
      )
      const peer = yield* send(ask())
      for (let i = 0; i < 2; i++) {
        const response = yield* peer.receiveResponse
        assert.strictEqual(response.status, 203)
        assert.strictEqual(response.text, "other")
        // Not switched, the connection is HTTP's as before
        yield* peer.send(get("/plain"))
      }
      assert.lengthOf(yield* server.connections, 0)
    })
  )
})

describe("pre-response hooks", () => {
  it.scoped.each(forms.map(([name]) => name))("that were registered before reach the 101 of %s, once", (name) =>
    Effect.gen(function* () {
      let runs = 0
      const hook = HttpApp.appendPreResponseHandler((_request, response) =>
        Effect.sync(() => {
          runs = runs + 1
          return HttpServerResponse.setHeader(response, "x-hook", `${response.status} ${runs}`)
        })
      )
      const ended = outcome<void, never>()
      const { send } = yield* serve(
        Effect.zipRight(
          hook,
          named(name)((upgraded) => Effect.ensuring(echoing(upgraded), Deferred.succeed(ended, undefined)))
        )
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveHead).headers["x-hook"], "101 1")
      yield* peer.end
      yield* Deferred.await(ended)
      yield* peer.closed
      assert.strictEqual(runs, 1)
    })
  )

  it.scoped("registered inside a session before its upgrade reach the 101, once", () =>
    Effect.gen(function* () {
      let runs = 0
      const { send } = yield* serve(
        Upgrade.session(
          Effect.gen(function* () {
            yield* HttpApp.appendPreResponseHandler((_request, response) =>
              Effect.sync(() => {
                runs = runs + 1
                return HttpServerResponse.setHeader(response, "x-hook", "1")
              })
            )
            const upgraded = yield* Upgrade.upgrade(echo)
            yield* echoing(upgraded)
            return Upgrade.done
          })
        )
      )
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveHead).headers["x-hook"], "1")
      yield* peer.end
      yield* peer.receiveAll
      assert.strictEqual(runs, 1)
    })
  )

  it.scoped("registered behind a direct upgrade see the response that is discarded", () =>
    Effect.gen(function* () {
      const seen: Array<number> = []
      const { send } = yield* serve(
        Effect.gen(function* () {
          const upgraded = yield* Upgrade.upgrade(echo)
          yield* HttpApp.appendPreResponseHandler((_request, response) =>
            Effect.sync(() => {
              seen.push(response.status)
              return response
            })
          )
          yield* Upgraded.end(upgraded)
          return Upgrade.done
        })
      )
      const peer = yield* send(ask())
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 101)
      yield* peer.receiveAll
      yield* until(() => seen.length > 0)
      assert.deepStrictEqual(seen, [101])
    })
  )

  it.scoped.each(answering.map(([name]) => name))("may answer otherwise than %s", (name) =>
    Effect.gen(function* () {
      const { send, server } = yield* serve(
        Effect.zipRight(
          HttpApp.appendPreResponseHandler(() => Effect.succeed(HttpServerResponse.text("hook", { status: 409 }))),
          named(name)(echoing)
        )
      )
      const peer = yield* send(ask())
      const response = yield* peer.receiveResponse
      assert.strictEqual(response.status, 409)
      assert.strictEqual(response.text, "hook")
      assert.lengthOf(yield* server.connections, 0)
    })
  )
})

describe("middleware of the platform", () => {
  it.scoped("cors puts its fields on the 101", () =>
    Effect.gen(function* () {
      const { send } = yield* serveLayer(
        HttpServer.serve(routes(named("onUpgrade")(echoing)), HttpMiddleware.cors({ allowedOrigins: ["http://a"] }))
      )
      const peer = yield* send(ask({ fields: { Origin: "http://a" } }))
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 101)
      assert.strictEqual(head.headers["access-control-allow-origin"], "http://a")
    })
  )

  it.scoped(
    "searchParamsParser, xForwardedHeaders and a mounted router, each with a new request, keep the switch",
    () =>
      Effect.gen(function* () {
        const seen: Array<string> = []
        const inner = HttpRouter.empty.pipe(
          HttpRouter.get(
            "/echo",
            Effect.gen(function* () {
              const request = yield* HttpServerRequest.HttpServerRequest
              const { q } = yield* HttpServerRequest.ParsedSearchParams
              seen.push(`${request.url} ${request.headers.host} ${q} ${yield* Upgrade.wants(echo)}`)
              return yield* Upgrade.onUpgrade(echo, echoing)
            })
          )
        )
        const { send } = yield* serveLayer(
          HttpRouter.empty
            .pipe(HttpRouter.mount("/v1", inner))
            .pipe((app) => HttpServer.serve(app, (app) => HttpMiddleware.xForwardedHeaders(app)))
        )
        const peer = yield* send(ask({ path: "/v1/echo?q=1", fields: { "X-Forwarded-Host": "front" }, body: "early" }))
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
        assert.deepStrictEqual(seen, ["/echo?q=1 front 1 true"])
      })
  )

  it.scoped("logger logs the handshake of onUpgrade at once, and that of upgrade when its session ends, as 101", () =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const sent = () => logs.filter(({ message }) => message === "Sent HTTP response").length
        for (const [name, before] of [
          ["onUpgrade", 1],
          ["session round upgrade", 1],
          ["respond", 1],
          ["upgrade", 0]
        ] as const) {
          const start = sent()
          const { send } = yield* serveLayer(HttpServer.serve(routes(named(name)(echoing)), HttpMiddleware.logger))
          const peer = yield* send(ask())
          yield* peer.receiveHead
          // an answer from the session: the handshake is over
          yield* peer.send("x")
          yield* peer.receiveExactly(1)
          assert.strictEqual(sent() - start, before, name)
          yield* peer.end
          yield* until(() => sent() - start === 1)
        }
      })
    )
  )
})

describe("the request's span", () => {
  const tracing = <A, E, R>(
    use: (spans: Array<{ readonly name: string; ended: boolean; status: unknown }>) => Effect.Effect<A, E, R>
  ) =>
    Effect.gen(function* () {
      const spans: Array<{ readonly name: string; ended: boolean; status: unknown }> = []
      const native = yield* Effect.tracer
      const tracer = Tracer.make({
        span: (name, parent, context, links, startTime, kind) => {
          const span = native.span(name, parent, context, links, startTime, kind)
          const record = { name, ended: false, status: undefined as unknown }
          spans.push(record)
          const end = span.end.bind(span)
          span.end = (time, exit) => {
            record.ended = true
            record.status = span.attributes.get("http.response.status_code")
            end(time, exit)
          }
          return span
        },
        context: (f) => f()
      })
      return yield* Effect.withTracer(use(spans), tracer)
    })

  it.scoped.each(answering.map(([name]) => name))("ends with the handshake of %s, and says 101", (name) =>
    tracing((spans) =>
      Effect.gen(function* () {
        const { send } = yield* serve(named(name)(echoing))
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* peer.send("x")
        yield* peer.receiveExactly(1)
        const [span] = spans.filter(({ name }) => name.startsWith("http.server"))
        yield* until(() => span!.ended)
        assert.strictEqual(span!.status, 101)
      })
    )
  )

  it.scoped("lasts as long as the session of a direct upgrade, and Upgrade.done makes it say 101", () =>
    tracing((spans) =>
      Effect.gen(function* () {
        const { send } = yield* serve(named("upgrade")(echoing))
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        yield* peer.send("x")
        yield* peer.receiveExactly(1)
        const [span] = spans.filter(({ name }) => name.startsWith("http.server"))
        assert.isFalse(span!.ended)
        yield* peer.end
        yield* until(() => span!.ended)
        assert.strictEqual(span!.status, 101)
      })
    )
  )
})

describe("a response of status 101", () => {
  it.scoped.each([
    ["to a request that asks for a switch", ask()],
    ["to one that does not", get("/echo")]
  ] as const)("without a pending switch, %s, is a 500", ([_, request]) =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const { send } = yield* serve(
          HttpServerResponse.empty({ status: 101, headers: { connection: "Upgrade", upgrade: "echo" } })
        )
        const peer = yield* send(request)
        const response = yield* peer.receiveResponse
        assert.strictEqual(response.status, 500)
        assert.isUndefined(response.headers.upgrade)
        assert.isTrue(logs.some(({ level, message }) => level === "Error" && message.includes("101")))
      })
    )
  )

  it.scoped("is a 500 too when it is Upgrade.done without an upgrade", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(Effect.succeed(Upgrade.done))
      const peer = yield* send(ask())
      assert.strictEqual((yield* peer.receiveResponse).status, 500)
    })
  )
})

describe("a response behind a direct upgrade", () => {
  const after = (response: HttpServerResponse.HttpServerResponse) =>
    withLogs((logs) =>
      Effect.gen(function* () {
        const scopeClosed = outcome<void, never>()
        const { send } = yield* serve(
          Effect.gen(function* () {
            yield* Effect.addFinalizer(() => Deferred.succeed(scopeClosed, undefined))
            const upgraded = yield* Upgrade.upgrade(echo)
            yield* Upgraded.write(upgraded, "session")
            return response
          })
        )
        const peer = yield* send(ask())
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        const received = decode(yield* peer.receiveAll)
        yield* peer.end
        yield* Deferred.await(scopeClosed)
        return { received, warnings: logs.filter(({ level }) => level === "Warning") }
      })
    )

  it.scoped("is discarded, with a warning if it has content", () =>
    Effect.gen(function* () {
      const { received, warnings } = yield* after(HttpServerResponse.text("content"))
      assert.strictEqual(received, "session")
      assert.lengthOf(warnings, 1)
      assert.include(warnings[0]!.message, "discarded")
    })
  )

  it.scoped.each([
    ["Upgrade.done", Upgrade.done],
    ["an empty one", HttpServerResponse.empty()]
  ] as const)("without content, %s, is discarded without a word", ([_, response]) =>
    Effect.gen(function* () {
      const { received, warnings } = yield* after(response)
      assert.strictEqual(received, "session")
      assert.deepStrictEqual(warnings, [])
    })
  )
})

describe("what a middleware acquires for the request", () => {
  const acquiring = (events: Array<string>, eject: boolean) => (app: Handler) =>
    Effect.gen(function* () {
      const scope = yield* Effect.scope
      yield* Effect.addFinalizer(() => Effect.sync(() => events.push("released")))
      if (eject) {
        HttpApp.ejectDefaultScopeClose(scope)
      }
      return yield* app
    })

  it.scoped("is released when the request is over, before the session of onUpgrade has ended", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const { send } = yield* serve(acquiring(events, false)(named("onUpgrade")(echoing)))
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.send("x")
      yield* peer.receiveExactly(1)
      yield* until(() => events.length > 0)
      yield* peer.send("still there")
      assert.strictEqual(decode(yield* peer.receiveExactly(11)), "still there")
    })
  )

  it.scoped("is kept by HttpApp.ejectDefaultScopeClose until somebody closes the Scope", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const { send } = yield* serve(
        acquiring(
          events,
          true
        )(
          Effect.flatMap(Effect.scope, (scope) =>
            Upgrade.onUpgrade(echo, (upgraded) =>
              Effect.ensuring(
                Effect.zipLeft(
                  echoing(upgraded),
                  Effect.sync(() => events.push("session ended"))
                ),
                Scope.close(scope as Scope.CloseableScope, Exit.void)
              )
            )
          )
        )
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.send("x")
      yield* peer.receiveExactly(1)
      yield* turns(20)
      assert.deepStrictEqual(events, [])
      yield* peer.end
      yield* until(() => events.length === 2)
      assert.deepStrictEqual(events, ["session ended", "released"])
    })
  )

  it.scoped("is there as long as the session of a direct upgrade", () =>
    Effect.gen(function* () {
      const events: Array<string> = []
      const { send } = yield* serve(acquiring(events, false)(named("upgrade")(echoing)))
      const peer = yield* send(ask())
      yield* peer.receiveHead
      yield* peer.send("x")
      yield* peer.receiveExactly(1)
      assert.deepStrictEqual(events, [])
      yield* peer.end
      yield* until(() => events.length === 1)
    })
  )
})

describe("CONNECT", () => {
  const tunnel = Upgrade.onUpgrade(Protocol.connect, echoing)
  const connect = "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\nearly"

  it.scoped("is for an app in front of a router", () =>
    Effect.gen(function* () {
      const router = routes(named("onUpgrade")(echoing))
      const { send } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
          (request.method as string) === "CONNECT"
            ? (tunnel as Effect.Effect<HttpServerResponse.HttpServerResponse, UpgradeError.UpgradeError, any>)
            : router
        )
      )
      const peer = yield* send(connect)
      assert.strictEqual((yield* peer.receiveHead).status, 200)
      assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      const other = yield* send(ask())
      assert.strictEqual((yield* other.receiveHead).status, 101)
    })
  )

  it.scoped("is answered by a router that has no route for it, and closed, since the bytes behind are a tunnel's", () =>
    Effect.gen(function* () {
      const { send } = yield* serveLayer(HttpServer.serve(routes(named("onUpgrade")(echoing))))
      const peer = yield* send(connect)
      const head = yield* peer.receiveHead
      assert.include([405, 501], head.status)
      assert.strictEqual(yield* peer.closed, "end")
    })
  )
})

describe("a handler that does not upgrade", () => {
  it.scoped("answers a request that asks for it as any other, and Upgrade.wants tells it", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.gen(function* () {
          const wanted = yield* Effect.all([
            Upgrade.wants(echo),
            Upgrade.wants(Protocol.raw("other")),
            Upgrade.wants([Protocol.raw("other"), echo]),
            Upgrade.wants(Protocol.make({ token: "echo", methods: ["POST"] }))
          ])
          const offers = yield* Upgrade.offers
          return HttpServerResponse.unsafeJson({ wanted, offers: offers.map(({ token }) => token) })
        })
      )
      const peer = yield* send(ask({ upgrade: "b/2, ECHO" }))
      assert.deepStrictEqual(JSON.parse((yield* peer.receiveResponse).text), {
        wanted: [true, false, true, false],
        offers: ["b/2", "ECHO"]
      })
      yield* peer.send(get("/echo"))
      assert.deepStrictEqual(JSON.parse((yield* peer.receiveResponse).text), {
        wanted: [false, false, false, false],
        offers: []
      })
    })
  )
})

describe("the 101", () => {
  it.scoped.each(forms.map(([name]) => name))("of %s has the handler's headers, cookies and status text", (name) =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        named(name)(echoing, {
          headers: { "x-a": "1", "x-b": "2" },
          cookies: Cookies.unsafeSetAll(Cookies.empty, [
            ["c", "3", undefined],
            ["d", "4", { path: "/" }]
          ] as never),
          statusText: "Off You Go"
        })
      )
      const peer = yield* send(ask())
      const head = yield* peer.receiveHead
      assert.strictEqual(head.statusText, "Off You Go")
      assert.strictEqual(head.headers["x-a"], "1")
      assert.strictEqual(head.headers["x-b"], "2")
      assert.strictEqual(head.headers["set-cookie"], "c=3, d=4; Path=/")
      assert.isUndefined(head.headers["content-length"])
      assert.isUndefined(head.headers["transfer-encoding"])
    })
  )

  it.scoped("keeps what the protocol puts there, whatever the handler says", () =>
    Effect.gen(function* () {
      const own = Protocol.make({
        token: "echo",
        statusText: "UPGRADED",
        check: () => Effect.succeed({ "x-accept": "protocol" })
      })
      const { send } = yield* serve(
        Upgrade.onUpgrade(own, echoing, { headers: { "x-accept": "handler", upgrade: "other", connection: "close" } })
      )
      const peer = yield* send(ask())
      const head = yield* peer.receiveHead
      assert.strictEqual(head.statusText, "UPGRADED")
      assert.strictEqual(head.headers["x-accept"], "protocol")
      assert.strictEqual(head.headers.upgrade, "echo")
      assert.strictEqual(head.headers.connection, "Upgrade")
    })
  )

  it.scoped("is the same connection that Connection.current tells before it", () =>
    Effect.gen(function* () {
      const { send } = yield* serve(
        Effect.gen(function* () {
          const before = yield* Connection.current
          const upgraded = yield* Upgrade.upgrade(echo)
          yield* Upgraded.write(upgraded, String(before === upgraded.connection))
          return Upgrade.done
        })
      )
      const peer = yield* send(ask())
      yield* peer.receiveHead
      assert.strictEqual(decode(yield* peer.receiveAll), "true")
    })
  )
})
