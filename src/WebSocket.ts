/**
 * A websocket (RFC 6455) over any `Upgraded`: messages, typed and bounded, with the closing handshake done right.
 *
 * ```
 *             run · runBatch · stream · pull        send · sendAll · sink ───▶ peer
 *   peer ───▶ ends at the closing handshake         close begins it
 * ```
 *
 * A message is a `string` (text) or a `Uint8Array` (binary). What one read of the connection brings is one batch, and
 * what is sent in one turn leaves in one write: `run` and `runBatch` are the fast path, `stream` is chunked. Pings are
 * answered, fragments put together and Closes echoed without anybody's help, as long as the messages are read: a
 * websocket that nobody reads stops its peer.
 *
 * It knows nothing of what carries it: TCP, TLS, memory, server or client.
 *
 * @since 0.1.0
 */

import type { Duplex } from "node:stream"
import type * as Headers from "@effect/platform/Headers"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpServer from "@effect/platform/HttpServer"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import type * as Socket from "@effect/platform/Socket"
import type * as SocketServer from "@effect/platform/SocketServer"
import type * as Channel from "effect/Channel"
import type * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type * as Types from "effect/Types"
import type { Listener } from "./Connection.js"
import type { UpgradedImpl } from "./internal/upgraded.js"
import * as adapters from "./internal/websocket/adapters.js"
import { TypeId as internalTypeId, type WebSocketImpl } from "./internal/websocket/connection.js"
import * as internal from "./internal/websocket/open.js"
import * as socketServers from "./internal/websocket/socketServer.js"
import * as typed from "./internal/websocket/typed.js"
import type { Protocol } from "./Protocol.js"
import * as Upgrade from "./Upgrade.js"
import * as UpgradeClient from "./UpgradeClient.js"
import type { Upgraded } from "./Upgraded.js"
import type { SwitchError, UpgradeClientError, UpgradeError } from "./UpgradeError.js"
import type { WebSocketError } from "./WebSocketError.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = internalTypeId as never

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * What a websocket carries: text as a `string`, binary as bytes.
 *
 * The bytes may be a view of a larger buffer, which messages of other websockets share: copy what is kept for long, and
 * never give its `buffer` away.
 *
 * @since 0.1.0
 * @category models
 */
export type Message = string | Uint8Array

/**
 * The peer's Close: its code, 1005 where it had none (RFC 6455 §7.1.5), and its reason.
 *
 * @since 0.1.0
 * @category models
 */
export interface CloseEvent {
  readonly code: number
  readonly reason: string
}

/**
 * A websocket.
 *
 * - `subprotocol`: what was agreed on, typed by the list that the options gave.
 * - `upgraded`: what carries it: its socket, its connection, its peer. Its bytes are the websocket's.
 *
 * @since 0.1.0
 * @category models
 */
export interface WebSocket<
  out IO extends Duplex = Duplex,
  out Subprotocol extends string | undefined = string | undefined
> extends Inspectable.Inspectable,
    Pipeable {
  readonly [TypeId]: { readonly _IO: Types.Covariant<IO>; readonly _Subprotocol: Types.Covariant<Subprotocol> }
  readonly subprotocol: Subprotocol
  readonly upgraded: Upgraded<IO, "websocket">
}

/**
 * permessage-deflate (RFC 7692). `true` in its place takes all defaults.
 *
 * - `threshold` (1024): messages of fewer bytes are sent as they are.
 * - `serverNoContextTakeover`, `clientNoContextTakeover` (false): each message is deflated by itself: less memory
 *   between messages, less compression.
 * - `serverMaxWindowBits`, `clientMaxWindowBits` (15): 9 to 15; each bit less halves the memory of a direction.
 * - `level`, `memLevel`: of zlib.
 * - `concurrency` (10): how many messages the process deflates and inflates at the same time.
 *
 * @since 0.1.0
 * @category models
 */
export interface CompressionOptions {
  readonly threshold?: number | undefined
  readonly serverNoContextTakeover?: boolean | undefined
  readonly clientNoContextTakeover?: boolean | undefined
  readonly serverMaxWindowBits?: number | undefined
  readonly clientMaxWindowBits?: number | undefined
  readonly level?: number | undefined
  readonly memLevel?: number | undefined
  readonly concurrency?: number | undefined
}

/**
 * What both ends may be told of a websocket. All of it may be left out.
 *
 * - `subprotocols`: those spoken here, in order of preference. On a server a client that offers others only is refused
 *   with 400 (a browser would fail the connection anyway); one that offers none gets none.
 * - `requireSubprotocol` (false): refuses a peer with which none was agreed on.
 * - `compression` (false): permessage-deflate, if the peer agrees. It costs memory and time for each connection, and
 *   leaks what secrets and a stranger's text have in common (RFC 7692 §8): leave it off unless the text is your own.
 * - `maxMessageSize` (1 MiB): bytes of one message, as it comes and inflated. Over it: `MessageTooBig`, 1009.
 * - `maxFragments` (65,536): frames of one message. Over it: `ProtocolViolation`, 1008.
 * - `maxFrames` (65,536): frames in one read of the connection. Over it: the same.
 * - `heartbeat` (none): after so long without a byte of the peer's it is sent a ping, and after as long again without
 *   an answer the websocket fails with `WebSocketTimeout`.
 * - `idleTimeout` (none): how long no message may go either way, at least, before it is closed with 1001.
 *
 * @since 0.1.0
 * @category models
 */
export interface CommonOptions {
  readonly subprotocols?: ReadonlyArray<string> | undefined
  readonly requireSubprotocol?: boolean | undefined
  readonly compression?: boolean | CompressionOptions | undefined
  readonly maxMessageSize?: number | undefined
  readonly maxFragments?: number | undefined
  readonly maxFrames?: number | undefined
  readonly heartbeat?: Duration.DurationInput | undefined
  readonly idleTimeout?: Duration.DurationInput | undefined
}

/**
 * Which pages may open a websocket, by the Origin that a browser sends (RFC 6455 §10.2).
 *
 * - `"same-host"`: those of the host that the request names in `Host`, port included.
 * - a list: these origins, as `"https://app.example"`, with `*` for one label (`"https://*.example.com"`), or
 *   as a `RegExp` over all of it. The same host is not among them unless it is named.
 * - a function of the origin and the `Host`.
 * - `"any"`: every page of the world can connect in the name of the user who visits it, with the user's cookies.
 *
 * @since 0.1.0
 * @category models
 */
export type Origins =
  | "same-host"
  | "any"
  | ReadonlyArray<string | RegExp>
  | ((origin: string, host: string | undefined) => boolean)

/**
 * What a server may be told of a websocket: what is common to both ends, what any switch may be told, and `origin`
 * (`"same-host"`).
 *
 * A request without Origin is no browser's, and passes. Behind a proxy that rewrites `Host`, list the origins.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options extends CommonOptions, Omit<Upgrade.Options, "idleTimeout" | "statusText"> {
  readonly origin?: Origins | undefined
}

/**
 * The subprotocol that may be agreed on under these options.
 *
 * @since 0.1.0
 * @category models
 */
export type SubprotocolOf<O> = O extends { readonly subprotocols: ReadonlyArray<infer S extends string> }
  ? O extends { readonly requireSubprotocol: true }
    ? S
    : S | undefined
  : "subprotocols" extends keyof O
    ? O["subprotocols"] extends ReadonlyArray<infer S extends string> | undefined
      ? S | undefined
      : undefined
    : undefined

/**
 * Whether a value is a websocket.
 *
 * @since 0.1.0
 * @category guards
 */
export const isWebSocket = (u: unknown): u is WebSocket => Predicate.hasProperty(u, TypeId)

const impl = (self: WebSocket) => self as WebSocketImpl

/**
 * The protocol, for `Upgrade` and `UpgradeClient`: the handshake of RFC 6455 §4 and RFC 7692 §7.
 *
 * A server's check refuses: a key that is none with 400, a version other than 13 with 426 and `Sec-WebSocket-Version`, a
 * malformed subprotocol or extension field with 400, an Origin that may not connect with 403; a method other than GET
 * is 405. A client's verification fails with `ProtocolMismatch` where the accept key is wrong, or the server chose what
 * was not offered.
 *
 * `fromUpgraded` makes the websocket of what the switch yields.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Upgrade, WebSocket } from "effect-upgrade"
 *
 * const chat = WebSocket.protocol({ subprotocols: ["chat.v2", "chat.v1"] })
 *
 * // The same as WebSocket.upgrade with these options
 * export const handler = Effect.gen(function*() {
 *   const ws = yield* Effect.flatMap(Upgrade.upgrade(chat), WebSocket.fromUpgraded)
 *   yield* WebSocket.run(ws, (message) => WebSocket.send(ws, message))
 *   return Upgrade.done
 * })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const protocol = (options?: Options): Protocol<"websocket"> => internal.protocolOf(options)

/**
 * The websocket over a connection that was switched by `protocol`: its options, and what was agreed on, come along. One
 * that was switched by a handshake of your own gets the defaults, and the side of the server.
 *
 * From here on the connection's bytes are the websocket's.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromUpgraded = <IO extends Duplex>(upgraded: Upgraded<IO, "websocket">): Effect.Effect<WebSocket<IO>> =>
  Effect.sync(() => internal.open(upgraded as UpgradedImpl<IO, "websocket">))

type Arguments = ReadonlyArray<any>

const isListener = (u: unknown) => Context.isTag(u as never)

const openAs = (upgraded: Upgraded<any, any>): WebSocket<any, any> => internal.open(upgraded as UpgradedImpl<any, any>)

/**
 * Switches here, and goes on with the websocket: `Upgrade.upgrade`, and what it says of Scopes holds.
 *
 * When the Scope closes, so does the websocket: with 1000 after success, 1001 after an interruption (a drain), 1011
 * after a failure or defect.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Upgrade, WebSocket } from "effect-upgrade"
 *
 * export const echo = Effect.gen(function*() {
 *   const ws = yield* WebSocket.upgrade({ subprotocols: ["echo.v2", "echo.v1"] })
 *   yield* WebSocket.send(ws, `you speak ${ws.subprotocol ?? "nothing that I know"}`)
 *   yield* WebSocket.run(ws, (message) => WebSocket.send(ws, message))
 *   return Upgrade.done
 * })
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const upgrade: {
  <const O extends Options = {}>(
    options?: O | undefined
  ): Effect.Effect<WebSocket<Duplex, SubprotocolOf<O>>, UpgradeError, HttpServerRequest.HttpServerRequest | Scope.Scope>
  <Id, IO extends Duplex, const O extends Options = {}>(
    listener: Context.Tag<Id, Listener<IO>>,
    options?: O | undefined
  ): Effect.Effect<
    WebSocket<IO, SubprotocolOf<O>>,
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Scope.Scope
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const [listener, options] = isListener(args[0]) ? args : [undefined, args[0]]
  const switched =
    listener === undefined
      ? Upgrade.upgrade(internal.protocolOf(options), internal.upgradeOptions(options))
      : Upgrade.upgrade(listener, internal.protocolOf(options), internal.upgradeOptions(options))
  return Effect.map(switched, openAs)
}

/**
 * Answers now, and yields the websocket as an effect for somebody else: `Upgrade.respond`.
 *
 * @since 0.1.0
 * @category switching
 */
export const respond: {
  <const O extends Options = {}>(
    options?: O | undefined
  ): Effect.Effect<
    readonly [Upgrade.SwitchingProtocols, Effect.Effect<WebSocket<Duplex, SubprotocolOf<O>>, SwitchError, Scope.Scope>],
    UpgradeError,
    HttpServerRequest.HttpServerRequest
  >
  <Id, IO extends Duplex, const O extends Options = {}>(
    listener: Context.Tag<Id, Listener<IO>>,
    options?: O | undefined
  ): Effect.Effect<
    readonly [Upgrade.SwitchingProtocols, Effect.Effect<WebSocket<IO, SubprotocolOf<O>>, SwitchError, Scope.Scope>],
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const [listener, options] = isListener(args[0]) ? args : [undefined, args[0]]
  const switched =
    listener === undefined
      ? Upgrade.respond(internal.protocolOf(options), internal.upgradeOptions(options))
      : Upgrade.respond(listener, internal.protocolOf(options), internal.upgradeOptions(options))
  return Effect.map(switched, ([response, upgraded]) => [response, Effect.map(upgraded, openAs)] as const)
}

/**
 * Answers now; the handler is forked with the websocket once the 101 is out, and lives as long as the connection:
 * `Upgrade.onUpgrade`. The options may be left out.
 *
 * This is the form that holds the least memory for a connection.
 *
 * @example
 * ```ts
 * import { HttpRouter } from "@effect/platform"
 * import { WebSocket } from "effect-upgrade"
 *
 * export const router = HttpRouter.empty.pipe(
 *   HttpRouter.get("/echo", WebSocket.onUpgrade({ heartbeat: "30 seconds" }, (ws) =>
 *     WebSocket.run(ws, (message) => WebSocket.send(ws, message))))
 * )
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const onUpgrade: {
  <A, E, R>(
    handler: (ws: WebSocket<Duplex, undefined>) => Effect.Effect<A, E, R>
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    HttpServerRequest.HttpServerRequest | Exclude<R, Scope.Scope>
  >
  <const O extends Options & Pick<Upgrade.SessionOptions<any, any>, "onFailure">, A, E, R>(
    options: O,
    handler: (ws: WebSocket<Duplex, SubprotocolOf<O>>) => Effect.Effect<A, E, R>
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    HttpServerRequest.HttpServerRequest | Exclude<R | FailureNeeds<O>, Scope.Scope>
  >
  <Id, IO extends Duplex, A, E, R>(
    listener: Context.Tag<Id, Listener<IO>>,
    handler: (ws: WebSocket<IO, undefined>) => Effect.Effect<A, E, R>
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Exclude<R, Scope.Scope>
  >
  <Id, IO extends Duplex, const O extends Options & Pick<Upgrade.SessionOptions<any, any>, "onFailure">, A, E, R>(
    listener: Context.Tag<Id, Listener<IO>>,
    options: O,
    handler: (ws: WebSocket<IO, SubprotocolOf<O>>) => Effect.Effect<A, E, R>
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Exclude<R | FailureNeeds<O>, Scope.Scope>
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const rest = isListener(args[0]) ? args.slice(1) : args
  const [options, handler] = rest.length === 1 ? [undefined, rest[0]] : rest
  const session = (upgraded: Upgraded<any, any>) => handler(openAs(upgraded))
  const definition = internal.protocolOf(options)
  return isListener(args[0])
    ? Upgrade.onUpgrade(args[0], definition, session, internal.upgradeOptions(options))
    : Upgrade.onUpgrade(definition, session, internal.upgradeOptions(options))
}

/**
 * What the `onFailure` of these options needs.
 *
 * @since 0.1.0
 * @category models
 */
export type FailureNeeds<O> = O extends {
  readonly onFailure: (...args: any) => Effect.Effect<any, any, infer R>
}
  ? R
  : never

// ------------------------------------------------------------------------------------------------------------- client

/**
 * What a client may be told of a websocket: what is common to both ends, what any attempt of `UpgradeClient` may be
 * told, and `headers` of the request (`Origin`, `Authorization`, `Cookie`).
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions extends CommonOptions, Omit<UpgradeClient.Options, "idleTimeout"> {
  readonly headers?: Headers.Input | undefined
}

/**
 * Opens a websocket, in the Scope at the call. When that closes, so does the websocket, as `upgrade` says.
 *
 * The URL is one of `ws:`, `wss:`, `http:` or `https:`, or a request of the platform, a GET. The answer is verified: the
 * accept key, a subprotocol that was asked for, extensions that were offered (RFC 6455 §4.1). A redirection or any other
 * answer is `UpgradeRejected`, with the response; nothing is followed. `options.socket` opens it over a connection of
 * your own: through `UpgradeClient.connect` for a proxy.
 *
 * It does not reconnect: an effect can be retried.
 *
 * @example
 * ```ts
 * import { Effect, Schedule } from "effect"
 * import { WebSocket } from "effect-upgrade"
 *
 * const session = Effect.scoped(
 *   Effect.gen(function*() {
 *     const ws = yield* WebSocket.connect("ws://localhost:3000/chat", { subprotocols: ["chat.v2"], heartbeat: "30 seconds" })
 *     yield* WebSocket.send(ws, "hello")
 *     return yield* WebSocket.run(ws, (message) => Effect.log(message))
 *   })
 * )
 *
 * // Again after every failure, after a second, two, four …, at most a minute
 * export const forever = Effect.retry(
 *   session,
 *   Schedule.exponential("1 second").pipe(Schedule.union(Schedule.spaced("1 minute")), Schedule.jittered)
 * )
 * ```
 *
 * @since 0.1.0
 * @category client
 */
export const connect: {
  <IO extends Duplex, E = never, R = never, const O extends ConnectOptions = {}>(
    url: UpgradeClient.Target,
    options: O & UpgradeClient.Over<IO, E, R>
  ): Effect.Effect<WebSocket<IO, SubprotocolOf<O>>, UpgradeClientError | E, Scope.Scope | R>
  <const T extends UpgradeClient.Target, const O extends ConnectOptions = {}>(
    url: T,
    options?: O | undefined
  ): Effect.Effect<WebSocket<UpgradeClient.SocketOf<T>, SubprotocolOf<O>>, UpgradeClientError, Scope.Scope>
} = (
  url: UpgradeClient.Target,
  options?: ConnectOptions & Partial<UpgradeClient.Over<any, any, any>>
): Effect.Effect<WebSocket<any, any>, any, any> => {
  const request =
    options?.headers === undefined
      ? url
      : HttpClientRequest.setHeaders(
          typeof url === "string" || url instanceof URL ? HttpClientRequest.get(url) : url,
          options.headers
        )
  return Effect.map(
    UpgradeClient.upgrade(request, internal.protocolOf(options), internal.clientOptions(options)),
    openAs
  )
}

// --------------------------------------------------------------------------------------------------------- receiving

/**
 * Runs a handler over all messages, one after the other, until the closing handshake, and yields the peer's Close.
 *
 * The messages of one read are handled in the calling fiber without a switch between them, and what the handler sends
 * leaves in one write: a handler that finishes synchronously costs next to nothing. While it runs the peer is stopped
 * at a bound.
 *
 * What the handlers send still leaves before the answer to the peer's Close, or to what broke the protocol: those wait
 * until the messages before them are handled, for `closeTimeout` at most.
 *
 * Fails with a `WebSocketError`, after all messages that came before it; with the handler's own errors, after which
 * another `run` goes on with the next message; and with `ConnectionError` `Busy` while another fiber reads.
 *
 * @since 0.1.0
 * @category receiving
 */
export const run: {
  <A, E, R>(
    handler: (message: Message) => Effect.Effect<A, E, R>
  ): (self: WebSocket) => Effect.Effect<CloseEvent, WebSocketError | E, R>
  <A, E, R>(
    self: WebSocket,
    handler: (message: Message) => Effect.Effect<A, E, R>
  ): Effect.Effect<CloseEvent, WebSocketError | E, R>
} = dual(
  2,
  <A, E, R>(
    self: WebSocket,
    handler: (message: Message) => Effect.Effect<A, E, R>
  ): Effect.Effect<CloseEvent, WebSocketError | E, R> => impl(self).runEach(handler)
)

/**
 * `run`, with all messages of one read at once: one effect a batch.
 *
 * @example
 * ```ts
 * import { WebSocket } from "effect-upgrade"
 *
 * export const echo = WebSocket.onUpgrade((ws) =>
 *   WebSocket.runBatch(ws, (messages) => WebSocket.sendAll(ws, messages)))
 * ```
 *
 * @since 0.1.0
 * @category receiving
 */
export const runBatch: {
  <A, E, R>(
    handler: (messages: Chunk.Chunk<Message>) => Effect.Effect<A, E, R>
  ): (self: WebSocket) => Effect.Effect<CloseEvent, WebSocketError | E, R>
  <A, E, R>(
    self: WebSocket,
    handler: (messages: Chunk.Chunk<Message>) => Effect.Effect<A, E, R>
  ): Effect.Effect<CloseEvent, WebSocketError | E, R>
} = dual(
  2,
  <A, E, R>(
    self: WebSocket,
    handler: (messages: Chunk.Chunk<Message>) => Effect.Effect<A, E, R>
  ): Effect.Effect<CloseEvent, WebSocketError | E, R> => impl(self).run(handler)
)

/**
 * Takes the messages that have arrived, at least one, or waits for one. Fails with `None` at the closing handshake, and
 * with `Some` of what `run` fails with.
 *
 * @since 0.1.0
 * @category receiving
 */
export const pull = (self: WebSocket): Effect.Effect<Chunk.Chunk<Message>, Option.Option<WebSocketError>> =>
  impl(self).pull

/**
 * All messages, as a stream whose chunks are what had arrived at each pull.
 *
 * It ends with a Close of 1000, 1001 or no code, and with one that this end began; another code fails it with
 * `WebSocketClosed`, since a stream has no other way to tell.
 *
 * @since 0.1.0
 * @category receiving
 */
export const stream = (self: WebSocket): Stream.Stream<Message, WebSocketError> => adapters.stream(impl(self))

/**
 * The peer's Close, once the closing handshake is done. Fails with why there was none.
 *
 * It does not read: somebody else does.
 *
 * @since 0.1.0
 * @category closing
 */
export const awaitClosed = (self: WebSocket): Effect.Effect<CloseEvent, WebSocketError> => impl(self).awaitClosed

// ----------------------------------------------------------------------------------------------------------- sending

/**
 * Sends one message, and is done when the connection takes more. What is sent within one turn leaves in one write.
 *
 * The bytes must not be changed afterwards. Fails with `WebSocketClosed` after a Close, either way, and with why the
 * websocket failed.
 *
 * @since 0.1.0
 * @category sending
 */
export const send: {
  (message: Message): (self: WebSocket) => Effect.Effect<void, WebSocketError>
  (self: WebSocket, message: Message): Effect.Effect<void, WebSocketError>
} = dual(2, (self: WebSocket, message: Message) => impl(self).send(message))

/**
 * Sends several messages, encoded into as few buffers as they fit. Done, and failing, as `send`.
 *
 * @since 0.1.0
 * @category sending
 */
export const sendAll: {
  (messages: Iterable<Message>): (self: WebSocket) => Effect.Effect<void, WebSocketError>
  (self: WebSocket, messages: Iterable<Message>): Effect.Effect<void, WebSocketError>
} = dual(2, (self: WebSocket, messages: Iterable<Message>) => impl(self).sendAll(messages))

/**
 * Sends all that it is given. It sends no Close when its input ends: `close` does, and so does the owning Scope.
 *
 * @since 0.1.0
 * @category sending
 */
export const sink = (self: WebSocket): Sink.Sink<void, Message, never, WebSocketError> => adapters.sink(impl(self))

/**
 * Both directions as a channel: sends what it is given, closes with 1000 at the end of it, and yields the messages
 * until the closing handshake.
 *
 * @since 0.1.0
 * @category converting
 */
export const channel = <IE = never>(
  self: WebSocket
): Channel.Channel<Chunk.Chunk<Message>, Chunk.Chunk<Message>, WebSocketError | IE, IE, void, unknown> =>
  adapters.channel(impl(self))

/**
 * Sends a ping, and yields how long the pong took.
 *
 * It waits as long as the peer does: use `Effect.timeout`. Somebody must read, or a full queue of messages stands before
 * the pong. Fails as `send` does.
 *
 * @since 0.1.0
 * @category sending
 */
export const ping = (self: WebSocket): Effect.Effect<Duration.Duration, WebSocketError> => impl(self).ping

// ----------------------------------------------------------------------------------------------------------- closing

/**
 * Sends a Close, and waits for the peer's, which it yields (RFC 6455 §7). Nothing can be sent from then on; what still
 * comes can be read. Again, it waits for the same.
 *
 * `code` is 1000, one of 1001 to 1014 that may go on the wire, or 3000 to 4999; `reason` is at most 123 bytes of UTF-8:
 * anything else is a defect. Fails with `WebSocketTimeout` where the peer does not answer within `closeTimeout`.
 *
 * @since 0.1.0
 * @category closing
 */
export const close: {
  (code?: number, reason?: string): (self: WebSocket) => Effect.Effect<CloseEvent, WebSocketError>
  (self: WebSocket, code?: number, reason?: string): Effect.Effect<CloseEvent, WebSocketError>
} = dual(
  (args) => isWebSocket(args[0]),
  (self: WebSocket, code = 1000, reason = ""): Effect.Effect<CloseEvent, WebSocketError> =>
    impl(self).close(code, reason)
)

// -------------------------------------------------------------------------------------------------------- converting

/**
 * The websocket as the platform's `Socket`, for what is written against that: an RPC protocol, a `DevTools` client.
 *
 * `run` gets text as bytes, `runRaw` as a string; a `CloseEvent` that is written closes. As with the platform's own, it
 * fails with `SocketCloseError` for a code that `closeCodeIsError` says is one: all but 1000 and 1006 by default.
 *
 * Handlers are begun in order and do not wait for each other, up to 128 of them at a time. Writing is done when the
 * connection takes more; what is written after the end is dropped: `run` tells of it.
 *
 * @since 0.1.0
 * @category converting
 */
export const toSocket = (
  self: WebSocket,
  options?: { readonly closeCodeIsError?: ((code: number) => boolean) | undefined }
): Socket.Socket => adapters.toSocket(impl(self), options?.closeCodeIsError)

/**
 * A `SocketServer` of the platform whose sockets come from a route: for what is written against that, such as
 * `RpcServer.layerProtocolSocketServer`, beside everything else that the HTTP server does.
 *
 * - `httpApp`: the route. It switches, and gives the websocket, as `toSocket` does, to whatever `run` was called last with;
 *   until it was called once a request waits, for `decisionTimeout` at most.
 * - `socketServer`: the service. Its `address` is that of the HTTP server. When a `run` is interrupted, its websockets are
 *   closed with 1001.
 *
 * The options are those of `upgrade`, with the same defaults: pages of the same host may connect.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer, SocketServer } from "@effect/platform"
 * import { Rpc, RpcGroup, RpcSerialization, RpcServer } from "@effect/rpc"
 * import { Effect, Layer, Schema } from "effect"
 * import { WebSocket } from "effect-upgrade"
 *
 * const group = RpcGroup.make(Rpc.make("Double", { payload: { n: Schema.Number }, success: Schema.Number }))
 *
 * export const served = Layer.unwrapEffect(Effect.map(WebSocket.socketServer(), ({ httpApp, socketServer }) =>
 *   Layer.merge(
 *     HttpRouter.empty.pipe(HttpRouter.get("/rpc", httpApp), HttpServer.serve()),
 *     RpcServer.layer(group).pipe(
 *       Layer.provide(group.toLayer({ Double: ({ n }) => Effect.succeed(n * 2) })),
 *       Layer.provide(RpcServer.layerProtocolSocketServer),
 *       Layer.provide(RpcSerialization.layerJson),
 *       Layer.provide(Layer.succeed(SocketServer.SocketServer, socketServer))
 *     )
 *   )
 * ))
 * ```
 *
 * @since 0.1.0
 * @category converting
 */
export const socketServer = (
  options?: Options
): Effect.Effect<
  {
    readonly httpApp: Effect.Effect<
      HttpServerResponse.HttpServerResponse,
      UpgradeError,
      HttpServerRequest.HttpServerRequest
    >
    readonly socketServer: SocketServer.SocketServer["Type"]
  },
  never,
  HttpServer.HttpServer
> => HttpServer.addressWith((address) => Effect.sync(() => socketServers.make(options, address)))

/**
 * A websocket whose messages are values: what `schema` makes.
 *
 * - `stream`, `run`: the messages, decoded. One that cannot be decoded fails with a `ParseError`; catch it to close with
 *   1007 or 1008.
 * - `send`, `sendAll`: encode and send.
 *
 * @since 0.1.0
 * @category models
 */
export interface Typed<in out Receive, in out Send, out RR = never, out RS = never> {
  readonly webSocket: WebSocket
  readonly stream: Stream.Stream<Receive, WebSocketError | typed.ParseError, RR>
  readonly run: <A, E, R>(
    handler: (message: Receive) => Effect.Effect<A, E, R>
  ) => Effect.Effect<CloseEvent, WebSocketError | typed.ParseError | E, R | RR>
  readonly send: (message: Send) => Effect.Effect<void, WebSocketError | typed.ParseError, RS>
  readonly sendAll: (messages: Iterable<Send>) => Effect.Effect<void, WebSocketError | typed.ParseError, RS>
}

/**
 * Gives the messages types, by a schema for each direction: as JSON in text messages, or as MsgPack in binary ones.
 *
 * @example
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { WebSocket } from "effect-upgrade"
 *
 * const Say = Schema.Struct({ room: Schema.String, text: Schema.String })
 * const Said = Schema.Struct({ text: Schema.String, at: Schema.Date })
 *
 * export const chat = WebSocket.onUpgrade((ws) => {
 *   const typed = WebSocket.schema(ws, { receive: Say, send: Said })
 *   return typed.run(({ text }) => typed.send({ text, at: new Date(0) })).pipe(
 *     // RFC 6455 §7.4.1: 1007 is for a message that is not what it claims to be
 *     Effect.catchTag("ParseError", () => WebSocket.close(ws, 1007, "expected { room, text }"))
 *   )
 * })
 * ```
 *
 * @since 0.1.0
 * @category converting
 */
export const schema: {
  <A, I, RR, B, J, RS>(options: {
    readonly receive: Schema.Schema<A, I, RR>
    readonly send: Schema.Schema<B, J, RS>
    readonly format?: "json" | "msgpack" | undefined
  }): (self: WebSocket) => Typed<A, B, RR, RS>
  <A, I, RR, B, J, RS>(
    self: WebSocket,
    options: {
      readonly receive: Schema.Schema<A, I, RR>
      readonly send: Schema.Schema<B, J, RS>
      readonly format?: "json" | "msgpack" | undefined
    }
  ): Typed<A, B, RR, RS>
} = dual(
  2,
  <A, I, RR, B, J, RS>(
    self: WebSocket,
    options: {
      readonly receive: Schema.Schema<A, I, RR>
      readonly send: Schema.Schema<B, J, RS>
      readonly format?: "json" | "msgpack" | undefined
    }
  ): Typed<A, B, RR, RS> => typed.make(impl(self), options)
)
