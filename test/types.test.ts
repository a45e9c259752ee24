import { createServer } from "node:http"
import type { ServerHttp2Stream } from "node:http2"
import { createServer as createSecureServer } from "node:https"
import type * as net from "node:net"
import type { Duplex } from "node:stream"
import type { TLSSocket } from "node:tls"
import {
  type HttpBody,
  HttpRouter,
  HttpServer,
  type HttpServerError,
  type HttpServerRequest,
  type HttpServerResponse
} from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { Context, Effect, type Either, Layer, Queue, type Scope, Stream } from "effect"
import { describe, expectTypeOf, it } from "vitest"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeError, UpgradeServer } from "../src/index.js"

// What a user writes: it compiles as DESIGN says it does

const called = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
  Stream.run(Upgraded.stream(upgraded), Upgraded.sink(upgraded))
)

const direct = Effect.gen(function* () {
  const upgraded = yield* Upgrade.upgrade(Protocol.raw("echo"))
  expectTypeOf(upgraded).toEqualTypeOf<Upgraded.Upgraded<Duplex, "echo">>()
  yield* Stream.run(Upgraded.stream(upgraded), Upgraded.sink(upgraded))
  return Upgrade.done
})

const typed = Effect.gen(function* () {
  const upgraded = yield* Upgrade.upgrade(Connection.Tls, [Protocol.raw("v2"), Protocol.raw("v1")])
  expectTypeOf(upgraded).toEqualTypeOf<Upgraded.Upgraded<TLSSocket, "v2" | "v1">>()
  upgraded.socket.getPeerCertificate()
  return Upgrade.done
})

type Session = Effect.Effect<Upgraded.Upgraded<Duplex, "websocket">, UpgradeError.SwitchError, Scope.Scope>

const queued = (sessions: Queue.Queue<Session>) =>
  Effect.gen(function* () {
    const [response, upgraded] = yield* Upgrade.respond(Protocol.raw("websocket"), { headers: { "x-room": "1" } })
    yield* Queue.offer(sessions, upgraded)
    return response
  })

const serving = (layer: Layer.Layer<UpgradeServer.Provided, HttpServerError.ServeError>) =>
  HttpRouter.empty.pipe(HttpRouter.get("/echo", called), HttpServer.serve(), Layer.provide(layer))

// With a check that needs a service, and one that does not

class Keys extends Context.Tag("Keys")<Keys, ReadonlySet<string>>() {}
class Origins extends Context.Tag("Origins")<Origins, ReadonlySet<string>>() {}

const keyed = Protocol.make({ token: "keyed", check: () => Effect.as(Keys, { "x-accept": "1" }) })
const trusted = Protocol.make({ token: "trusted/1", check: () => Effect.asVoid(Origins) })
const raw = Protocol.raw("raw")

type Context_<T> = T extends Effect.Effect<any, any, infer R> ? R : never
type Error_<T> = T extends Effect.Effect<any, infer E, any> ? E : never
type Success_<T> = T extends Effect.Effect<infer A, any, any> ? A : never

type Request = HttpServerRequest.HttpServerRequest

describe("the types of a protocol", () => {
  it("have its token as a literal, and what its check needs", () => {
    expectTypeOf(raw).toEqualTypeOf<Protocol.Protocol<"raw">>()
    expectTypeOf(keyed).toEqualTypeOf<Protocol.Protocol<"keyed", Keys>>()
    expectTypeOf<Protocol.Tokens<typeof raw>>().toEqualTypeOf<"raw">()
    expectTypeOf<Protocol.Tokens<readonly [typeof raw, typeof trusted]>>().toEqualTypeOf<"raw" | "trusted/1">()
    expectTypeOf<Protocol.Needs<typeof raw>>().toBeNever()
    expectTypeOf<Protocol.Needs<typeof keyed>>().toEqualTypeOf<Keys>()
    expectTypeOf<Protocol.Needs<readonly [typeof keyed, typeof trusted, typeof raw]>>().toEqualTypeOf<Keys | Origins>()
  })

  it("allow no empty list", () => {
    // @ts-expect-error
    expectTypeOf(Upgrade.upgrade([])).toBeObject()
  })
})

describe("the types of upgrade", () => {
  it("are Duplex without a tag, and the listener's socket with one", () => {
    const plain = Upgrade.upgrade(raw)
    expectTypeOf<Success_<typeof plain>>().toEqualTypeOf<Upgraded.Upgraded<Duplex, "raw">>()
    expectTypeOf<Context_<typeof plain>>().toEqualTypeOf<Request | Scope.Scope>()
    const net_ = Upgrade.upgrade(Connection.Net, raw)
    expectTypeOf<Success_<typeof net_>>().toEqualTypeOf<Upgraded.Upgraded<net.Socket, "raw">>()
    expectTypeOf<Context_<typeof net_>>().toEqualTypeOf<Connection.Net | Request | Scope.Scope>()
    const http2 = Upgrade.upgrade(Connection.Http2, raw)
    expectTypeOf<Success_<typeof http2>["socket"]>().toEqualTypeOf<ServerHttp2Stream>()
    const alpn = Upgrade.upgrade(Connection.Alpn, raw)
    expectTypeOf<Success_<typeof alpn>["socket"]>().toEqualTypeOf<ServerHttp2Stream | TLSSocket>()
  })

  it("fail with UpgradeError, in which BodyOn101 always is", () => {
    const plain = Upgrade.upgrade(raw)
    expectTypeOf<Error_<typeof plain>>().toEqualTypeOf<UpgradeError.UpgradeError>()
    expectTypeOf<UpgradeError.BodyOn101>().toExtend<UpgradeError.UpgradeError>()
    expectTypeOf<UpgradeError.NotSwitched>().not.toExtend<UpgradeError.UpgradeError>()
    expectTypeOf<UpgradeError.UpgradeError["_tag"]>().toEqualTypeOf<
      | "NotUpgradable"
      | "ProtocolNotOffered"
      | "HandshakeRefused"
      | "BodyOn101"
      | "AlreadyUpgraded"
      | "ConnectionLost"
      | "UpgradeTimeout"
      | "ServerDraining"
      | "TooManyConnections"
    >()
  })

  it("need what the protocols' checks need", () => {
    const list = Upgrade.upgrade([keyed, trusted])
    expectTypeOf<Context_<typeof list>>().toEqualTypeOf<Request | Scope.Scope | Keys | Origins>()
    expectTypeOf<Success_<typeof list>["protocol"]>().toEqualTypeOf<"keyed" | "trusted/1">()
  })
})

describe("the types of respond", () => {
  it("are a response without a body, and an effect that fails with SwitchError, in the claimer's Scope", () => {
    const responded = Upgrade.respond(keyed)
    expectTypeOf<Error_<typeof responded>>().toEqualTypeOf<UpgradeError.UpgradeError>()
    // No Scope: the connection is whose claims it
    expectTypeOf<Context_<typeof responded>>().toEqualTypeOf<Request | Keys>()
    expectTypeOf<Success_<typeof responded>[0]["status"]>().toEqualTypeOf<101>()
    expectTypeOf<Success_<typeof responded>[0]["body"]>().toEqualTypeOf<HttpBody.Empty>()
    expectTypeOf<Success_<typeof responded>[0]>().toExtend<HttpServerResponse.HttpServerResponse>()
    expectTypeOf<Success_<typeof responded>[1]>().toEqualTypeOf<
      Effect.Effect<Upgraded.Upgraded<Duplex, "keyed">, UpgradeError.SwitchError, Scope.Scope>
    >()
    expectTypeOf<UpgradeError.SwitchError["_tag"]>().toEqualTypeOf<
      "BodyOn101" | "NotSwitched" | "ConnectionLost" | "AlreadyUpgraded" | "UpgradeTimeout"
    >()
    const tls = Upgrade.respond(Connection.Tls, raw)
    expectTypeOf<Context_<typeof tls>>().toEqualTypeOf<Connection.Tls | Request>()
    expectTypeOf<Success_<Success_<typeof tls>[1]>>().toEqualTypeOf<Upgraded.Upgraded<TLSSocket, "raw">>()
  })
})

describe("the types of onUpgrade", () => {
  it("take the session's needs but its Scope, and not its errors", () => {
    const plain = Upgrade.onUpgrade(raw, () => Effect.zipRight(Effect.scope, Effect.zipRight(Keys, Effect.fail("no"))))
    expectTypeOf<Error_<typeof plain>>().toEqualTypeOf<UpgradeError.UpgradeError>()
    expectTypeOf<Context_<typeof plain>>().toEqualTypeOf<Request | Keys>()
    expectTypeOf<Success_<typeof plain>>().toEqualTypeOf<HttpServerResponse.HttpServerResponse>()
    const tls = Upgrade.onUpgrade(Connection.Tls, [raw, trusted], (upgraded) => {
      expectTypeOf(upgraded).toEqualTypeOf<Upgraded.Upgraded<TLSSocket, "raw" | "trusted/1">>()
      return Effect.void
    })
    expectTypeOf<Context_<typeof tls>>().toEqualTypeOf<Connection.Tls | Request | Origins>()
  })

  it("give onFailure the session's own error", () => {
    Upgrade.onUpgrade(raw, () => Effect.fail("no" as const), {
      onFailure: (cause) => {
        expectTypeOf(cause).toEqualTypeOf<import("effect").Cause.Cause<"no">>()
        return Effect.void
      }
    })
  })
})

describe("the types of the combinators", () => {
  it("take the errors of the handshake away, and no other", () => {
    const mixed = Effect.zipRight(Upgrade.upgrade(raw), Effect.fail("mine" as const))
    const answered = Upgrade.orRespond(mixed)
    expectTypeOf<Error_<typeof answered>>().toEqualTypeOf<"mine">()
    const nothing = Upgrade.orRespond(called)
    expectTypeOf<Error_<typeof nothing>>().toBeNever()
    const session = Upgrade.session(direct)
    expectTypeOf<Error_<typeof session>>().toEqualTypeOf<Error_<typeof direct>>()
  })

  it("hand an Upgraded back on the wrong type, and erase its socket where Duplex is enough", () => {
    const upgraded = undefined as unknown as Upgraded.Upgraded<net.Socket, "raw">
    const narrow = () => Upgraded.downcast(upgraded, Connection.Tls)
    expectTypeOf(narrow).returns.toEqualTypeOf<
      Either.Either<Upgraded.Upgraded<TLSSocket, "raw">, Upgraded.Upgraded<net.Socket, "raw">>
    >()
    expectTypeOf(upgraded).toExtend<Upgraded.Upgraded>()
    expectTypeOf<Upgraded.Upgraded>().not.toExtend<typeof upgraded>()
    const detached = () => Upgraded.detach(upgraded)
    expectTypeOf<Success_<ReturnType<typeof detached>>["socket"]>().toEqualTypeOf<net.Socket>()
  })
})

describe("a program that names a listener", () => {
  const app = HttpServer.serve(HttpRouter.empty.pipe(HttpRouter.get("/", typed)))
  const plain = () => UpgradeServer.layer(() => createServer(), { port: 0 })
  const secure = () => UpgradeServer.layer(() => createSecureServer(), { port: 0 })
  const platform = () => NodeHttpServer.layer(() => createServer(), { port: 0 })

  it("compiles only under a listener that promises it", () => {
    expectTypeOf<Layer.Layer.Context<typeof app>>().toExtend<Connection.Tls | HttpServer.HttpServer>()
    const over = (layer: Layer.Layer<UpgradeServer.Provided | Connection.Tls, unknown>) => Layer.provide(app, layer)
    const runs = (_: () => Layer.Layer<never, any, never>) => {}
    runs(() => over(secure()))
    runs(() => Layer.provide(app, UpgradeServer.layerTls({ port: 0 })))
    // @ts-expect-error Net alone is promised
    runs(() => Layer.provide(app, plain()))
    // @ts-expect-error Net alone is promised
    runs(() => Layer.provide(app, UpgradeServer.layerNet({ port: 0 })))
    // @ts-expect-error nothing is promised by another server
    runs(() => Layer.provide(app, platform()))
    runs(() => serving(plain()))
    runs(() => serving(secure()))
  })

  it("has the https overload first, since an https.Server is an http.Server too", () => {
    expectTypeOf<Layer.Layer.Success<ReturnType<typeof secure>>>().toEqualTypeOf<
      UpgradeServer.Provided | Connection.Tls
    >()
    expectTypeOf<Layer.Layer.Success<ReturnType<typeof plain>>>().toEqualTypeOf<
      UpgradeServer.Provided | Connection.Net
    >()
    // What NodeHttpServer.layer provides is provided here too
    expectTypeOf<Layer.Layer.Success<ReturnType<typeof platform>>>().toExtend<UpgradeServer.Provided>()
  })

  it("reads its socket by currentWith, and may fail with NotUpgradable alone", () => {
    const current = Connection.currentWith(Connection.Tls)
    expectTypeOf<Success_<typeof current>>().toEqualTypeOf<Connection.Connection<TLSSocket>>()
    expectTypeOf<Error_<typeof current>>().toEqualTypeOf<UpgradeError.NotUpgradable>()
    expectTypeOf<Context_<typeof current>>().toEqualTypeOf<Connection.Tls | Request>()
  })

  it("has its handlers' sessions typed through a queue", () => {
    const queue = Effect.runSync(Queue.unbounded<Session>())
    const handler = queued(queue)
    expectTypeOf<Success_<typeof handler>>().toEqualTypeOf<Upgrade.SwitchingProtocols>()
  })
})

describe("ConnectionError", () => {
  it("has these reasons and no other", () => {
    expectTypeOf<UpgradeError.ConnectionError["reason"]>().toEqualTypeOf<
      "Read" | "Write" | "Reset" | "Closed" | "Timeout" | "Busy"
    >()
    expectTypeOf<UpgradeError.NotSwitched["reason"]>().toEqualTypeOf<
      "Answered" | "Failed" | "Interrupted" | "SelfAwait"
    >()
    expectTypeOf(UpgradeError.isUpgradeError).guards.toEqualTypeOf<UpgradeError.UpgradeError>()
  })
})
