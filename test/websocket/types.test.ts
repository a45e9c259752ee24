import type * as net from "node:net"
import type { Duplex } from "node:stream"
import type { TLSSocket } from "node:tls"
import type { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { type Chunk, Context, Effect, type Option, type ParseResult, Schema, type Scope, type Stream } from "effect"
import { describe, expectTypeOf, it } from "vitest"
import {
  Connection,
  Protocol,
  Upgrade,
  type Upgraded,
  type UpgradeError,
  WebSocket,
  type WebSocketError
} from "../../src/index.js"

type Success_<T> = T extends Effect.Effect<infer A, any, any> ? A : never
type Error_<T> = T extends Effect.Effect<any, infer E, any> ? E : never
type Context_<T> = T extends Effect.Effect<any, any, infer R> ? R : never

type Request = HttpServerRequest.HttpServerRequest

class Rooms extends Context.Tag("Rooms")<Rooms, ReadonlySet<string>>() {}

const subprotocolOf = <S extends string | undefined>(_: Effect.Effect<WebSocket.WebSocket<Duplex, S>, any, any>) =>
  undefined as unknown as S

describe("the subprotocol of a websocket", () => {
  it("is one of those listed, or none", () => {
    expectTypeOf(subprotocolOf(WebSocket.upgrade({ subprotocols: ["chat.v2", "chat.v1"] }))).toEqualTypeOf<
      "chat.v2" | "chat.v1" | undefined
    >()
  })

  it("is one of those listed where one is required", () => {
    expectTypeOf(
      subprotocolOf(WebSocket.upgrade({ subprotocols: ["chat.v2", "chat.v1"], requireSubprotocol: true }))
    ).toEqualTypeOf<"chat.v2" | "chat.v1">()
    expectTypeOf(
      subprotocolOf(WebSocket.upgrade({ subprotocols: ["chat.v2"], requireSubprotocol: false }))
    ).toEqualTypeOf<"chat.v2" | undefined>()
  })

  it("is none without a list", () => {
    expectTypeOf(subprotocolOf(WebSocket.upgrade())).toEqualTypeOf<undefined>()
    expectTypeOf(subprotocolOf(WebSocket.upgrade({ heartbeat: "1 second" }))).toEqualTypeOf<undefined>()
  })

  it("is typed alike by each form", () => {
    const respond = () => WebSocket.respond({ subprotocols: ["a", "b"], requireSubprotocol: true })
    type Claimed = Success_<Success_<ReturnType<typeof respond>>[1]>
    expectTypeOf<Claimed["subprotocol"]>().toEqualTypeOf<"a" | "b">()
    WebSocket.onUpgrade({ subprotocols: ["a", "b"], requireSubprotocol: true }, (ws) => {
      expectTypeOf(ws.subprotocol).toEqualTypeOf<"a" | "b">()
      return Effect.void
    })
    WebSocket.onUpgrade((ws) => {
      expectTypeOf(ws.subprotocol).toEqualTypeOf<undefined>()
      return Effect.void
    })
  })

  it("is a string or none for options of which nothing more is known", () => {
    const options: WebSocket.Options = {}
    expectTypeOf(subprotocolOf(WebSocket.upgrade(options))).toEqualTypeOf<string | undefined>()
  })

  it("is refused in a place where another is wanted", () => {
    const wants = (_: WebSocket.WebSocket<Duplex, "a">) => Effect.void
    // @ts-expect-error it may be none
    Effect.flatMap(WebSocket.upgrade({ subprotocols: ["a"] }), wants)
    Effect.flatMap(WebSocket.upgrade({ subprotocols: ["a"], requireSubprotocol: true }), wants)
    expectTypeOf<WebSocket.WebSocket<net.Socket, "a">>().toExtend<WebSocket.WebSocket>()
    expectTypeOf<WebSocket.WebSocket>().not.toExtend<WebSocket.WebSocket<net.Socket>>()
  })
})

describe("the types of the forms", () => {
  it("have the listener's socket where its tag is named, and then need it", () => {
    const plain = WebSocket.upgrade()
    expectTypeOf<Success_<typeof plain>>().toEqualTypeOf<WebSocket.WebSocket<Duplex, undefined>>()
    expectTypeOf<Context_<typeof plain>>().toEqualTypeOf<Request | Scope.Scope>()
    expectTypeOf<Error_<typeof plain>>().toEqualTypeOf<UpgradeError.UpgradeError>()
    const tls = WebSocket.upgrade(Connection.Tls, { subprotocols: ["a"] })
    expectTypeOf<Success_<typeof tls>>().toEqualTypeOf<WebSocket.WebSocket<TLSSocket, "a" | undefined>>()
    expectTypeOf<Context_<typeof tls>>().toEqualTypeOf<Connection.Tls | Request | Scope.Scope>()
    expectTypeOf<Success_<typeof tls>["upgraded"]>().toEqualTypeOf<Upgraded.Upgraded<TLSSocket, "websocket">>()
    const net_ = WebSocket.respond(Connection.Net)
    expectTypeOf<Context_<typeof net_>>().toEqualTypeOf<Connection.Net | Request>()
    expectTypeOf<Success_<typeof net_>[0]>().toEqualTypeOf<Upgrade.SwitchingProtocols>()
    expectTypeOf<Success_<typeof net_>[1]>().toEqualTypeOf<
      Effect.Effect<WebSocket.WebSocket<net.Socket, undefined>, UpgradeError.SwitchError, Scope.Scope>
    >()
  })

  it("take a session's needs but its Scope, and not its errors", () => {
    const session = WebSocket.onUpgrade(() => Effect.zipRight(Effect.scope, Effect.zipRight(Rooms, Effect.fail("no"))))
    expectTypeOf<Success_<typeof session>>().toEqualTypeOf<HttpServerResponse.HttpServerResponse>()
    expectTypeOf<Error_<typeof session>>().toEqualTypeOf<UpgradeError.UpgradeError>()
    expectTypeOf<Context_<typeof session>>().toEqualTypeOf<Request | Rooms>()
    const tagged = WebSocket.onUpgrade(Connection.Net, { heartbeat: "1 second" }, (ws) => {
      expectTypeOf(ws.upgraded.socket).toEqualTypeOf<net.Socket>()
      return Effect.void
    })
    expectTypeOf<Context_<typeof tagged>>().toEqualTypeOf<Connection.Net | Request>()
    const failing = WebSocket.onUpgrade({ onFailure: () => Effect.asVoid(Rooms) }, () => Effect.fail("no"))
    expectTypeOf<Context_<typeof failing>>().toEqualTypeOf<Request | Rooms>()
  })

  it("agree with the protocol by itself", () => {
    expectTypeOf(WebSocket.protocol()).toEqualTypeOf<Protocol.Protocol<"websocket">>()
    const upgraded = Effect.flatMap(Upgrade.upgrade(Connection.Tls, WebSocket.protocol()), WebSocket.fromUpgraded)
    expectTypeOf<Success_<typeof upgraded>["upgraded"]["socket"]>().toEqualTypeOf<TLSSocket>()
    // @ts-expect-error what is no websocket's
    Effect.flatMap(Upgrade.upgrade(Protocol.raw("echo")), WebSocket.fromUpgraded)
  })
})

describe("the types of what a websocket does", () => {
  const ws = undefined as unknown as WebSocket.WebSocket

  it("have the handler's errors and needs with the websocket's own", () => {
    const run = () => WebSocket.run(ws, () => Effect.zipRight(Rooms, Effect.fail("no" as const)))
    expectTypeOf<Success_<ReturnType<typeof run>>>().toEqualTypeOf<WebSocket.CloseEvent>()
    expectTypeOf<Error_<ReturnType<typeof run>>>().toEqualTypeOf<WebSocketError.WebSocketError | "no">()
    expectTypeOf<Context_<ReturnType<typeof run>>>().toEqualTypeOf<Rooms>()
    const batches = () =>
      WebSocket.runBatch(ws, (messages) => {
        expectTypeOf(messages).toEqualTypeOf<Chunk.Chunk<string | Uint8Array>>()
        return Effect.void
      })
    expectTypeOf(batches).returns.toEqualTypeOf<Effect.Effect<WebSocket.CloseEvent, WebSocketError.WebSocketError>>()
  })

  it("read and write what a message is, and nothing else", () => {
    expectTypeOf(WebSocket.pull).returns.toEqualTypeOf<
      Effect.Effect<Chunk.Chunk<WebSocket.Message>, Option.Option<WebSocketError.WebSocketError>>
    >()
    expectTypeOf(WebSocket.stream).returns.toEqualTypeOf<
      Stream.Stream<WebSocket.Message, WebSocketError.WebSocketError>
    >()
    const sends = () => {
      WebSocket.send(ws, "text")
      WebSocket.send(ws, new Uint8Array())
      WebSocket.send("text")(ws)
      // @ts-expect-error a value is no message: schema makes one of it
      WebSocket.send(ws, { text: "a" })
      // @ts-expect-error
      WebSocket.sendAll(ws, [1])
    }
    expectTypeOf(sends).returns.toBeVoid()
  })

  it("tell the five errors apart by their tags", () => {
    expectTypeOf<WebSocketError.WebSocketError["_tag"]>().toEqualTypeOf<
      "WebSocketClosed" | "ProtocolViolation" | "MessageTooBig" | "WebSocketTimeout" | "ConnectionError"
    >()
  })

  it("have values in place of messages under a schema, with ParseError and what the schemas need", () => {
    const At = Schema.Struct({ at: Schema.Date })
    const Needy = Schema.transformOrFail(Schema.String, Schema.String, {
      strict: true,
      decode: (text) => Effect.as(Rooms, text),
      encode: (text) => Effect.succeed(text)
    })
    const typed = () => WebSocket.schema(ws, { receive: At, send: Needy })
    type Typed = ReturnType<typeof typed>
    expectTypeOf<Typed["stream"]>().toEqualTypeOf<
      Stream.Stream<{ readonly at: Date }, WebSocketError.WebSocketError | ParseResult.ParseError>
    >()
    expectTypeOf<Parameters<Typed["send"]>>().toEqualTypeOf<[message: string]>()
    expectTypeOf<Context_<ReturnType<Typed["send"]>>>().toEqualTypeOf<Rooms>()
    expectTypeOf<Error_<ReturnType<Typed["send"]>>>().toEqualTypeOf<
      WebSocketError.WebSocketError | ParseResult.ParseError
    >()
  })
})
