/**
 * The server's switch: a handler answers `101 Switching Protocols` and has the connection, typed, with every byte that
 * arrived behind the handshake.
 *
 * There are three ways, and they differ in who goes on with the connection:
 *
 * | | the handler | the connection belongs to | router-level mapping reaches the 101 |
 * |---|---|---|---|
 * | `onUpgrade` | returns the response; a callback is the session | its own Scope | yes |
 * | `upgrade` | is the session | the Scope at the call, mostly the request's | with `session` round it |
 * | `respond` | returns the response; somebody else takes the connection | the Scope of whoever claims it | yes |
 *
 * None of them is another server: a request may be switched, or answered like any other. A switch that was not asked
 * for, or that the protocol's check refuses, is a typed error that knows its own HTTP answer.
 *
 * The switch itself waits until the request's body has arrived (what the handler did not read of it is discarded), and
 * until the responses to earlier requests on the connection are sent. What the library does not do: know what the bytes
 * mean. That is the protocol's, on top of `Upgraded`.
 *
 * @since 0.1.0
 */

import type { Duplex } from "node:stream"
import type * as Cookies from "@effect/platform/Cookies"
import type * as Headers from "@effect/platform/Headers"
import type * as HttpBody from "@effect/platform/HttpBody"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Listener } from "./Connection.js"
import type { Offer } from "./internal/http1/offers.js"
import * as internal from "./internal/switch.js"
import type { Needs, Protocols, Tokens } from "./Protocol.js"
import type { Upgraded } from "./Upgraded.js"
import { isUpgradeError, type SwitchError, type UpgradeError } from "./UpgradeError.js"

/**
 * What may be said of one switch. All fields may be left out; the timeouts default to the server's.
 *
 * - `headers`, `cookies`, `statusText`: of the 101, beside what the protocol puts there. A Content-Length or
 *   Transfer-Encoding among them is `BodyOn101`; a control character is `HandshakeRefused` with status 500.
 * - `bodyTimeout` (30 s): how long the switch waits for the rest of the request's body.
 * - `claimTimeout` (10 s): how long a connection of `respond` may lie unclaimed, before it is closed with a warning.
 * - `writeTimeout` (2 min): how long a write may wait while nothing leaves the process (a slow peer empties the system's own buffer first).
 * - `idleTimeout` (1 h): how long nothing at all may move, either way. `Duration.infinity` to let it rest for ever.
 * - `closeTimeout` (5 s): how long closing may take, from the FIN to the peer's.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly headers?: Headers.Input | undefined
  readonly cookies?: Cookies.Cookies | undefined
  readonly statusText?: string | undefined
  readonly bodyTimeout?: Duration.DurationInput | undefined
  readonly claimTimeout?: Duration.DurationInput | undefined
  readonly writeTimeout?: Duration.DurationInput | undefined
  readonly idleTimeout?: Duration.DurationInput | undefined
  readonly closeTimeout?: Duration.DurationInput | undefined
}

/**
 * The response that switches: status 101, nothing but a head. Map it as any response; a body makes it a `BodyOn101`.
 *
 * @since 0.1.0
 * @category models
 */
export interface SwitchingProtocols extends HttpServerResponse.HttpServerResponse {
  readonly status: 101
  readonly body: HttpBody.Empty
}

type Arguments = ReadonlyArray<any>

/** The listener's tag comes first, or not at all. */
const parse = <Rest>(args: Arguments) =>
  (Context.isTag(args[0])
    ? { listener: args[0], rest: args.slice(1) }
    : { listener: Effect.succeed(undefined), rest: args }) as unknown as {
    readonly listener: Effect.Effect<Listener | undefined>
    readonly rest: Rest
  }

/**
 * Switches here: the 101 goes out, and the handler goes on as the session.
 *
 * The connection belongs to the Scope at the call. When that closes, the connection is closed: after success with all
 * that was written flushed, after failure or interruption at once. In a handler it is the request's Scope, so the
 * request lasts, in logs and spans, as long as the session. Return `Upgrade.done` at its end.
 *
 * The hooks that were registered before (`HttpApp.appendPreResponseHandler`) see the 101; later mapping of the response
 * cannot, since the handler has not returned: wrap it in `Upgrade.session` for that.
 *
 * Fails with any `UpgradeError`, before anything was sent: let it through, and it answers for itself.
 *
 * @example
 * ```ts
 * import { Effect, Stream } from "effect"
 * import { Connection, Protocol, Upgrade, Upgraded } from "effect-upgrade"
 *
 * export const echo = Effect.gen(function*() {
 *   const upgraded = yield* Upgrade.upgrade(Protocol.raw("echo"))
 *   yield* Stream.run(Upgraded.stream(upgraded), Upgraded.sink(upgraded))
 *   return Upgrade.done
 * })
 *
 * // With the listener named, the socket has its type, and the program compiles only under such a listener.
 * export const whoami = Effect.gen(function*() {
 *   const upgraded = yield* Upgrade.upgrade(Connection.Tls, Protocol.raw("whoami"))
 *   yield* Upgraded.write(upgraded, String(upgraded.socket.getPeerCertificate().subject?.CN))
 *   return Upgrade.done
 * })
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const upgrade: {
  <const P extends Protocols>(
    protocol: P,
    options?: Options | undefined
  ): Effect.Effect<
    Upgraded<Duplex, Tokens<P>>,
    UpgradeError,
    HttpServerRequest.HttpServerRequest | Scope.Scope | Needs<P>
  >
  <Id, IO extends Duplex, const P extends Protocols>(
    listener: Context.Tag<Id, Listener<IO>>,
    protocol: P,
    options?: Options | undefined
  ): Effect.Effect<
    Upgraded<IO, Tokens<P>>,
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Scope.Scope | Needs<P>
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const {
    listener,
    rest: [protocols, options]
  } = parse<[Protocols, Options?]>(args)
  return Effect.flatMap(listener, (listener) => internal.direct(listener, protocols, options))
}

/**
 * Answers now, and yields the connection as an effect for somebody else: through a queue, say.
 *
 * The handler returns the response, as it is or mapped; the effect resolves once the 101 is out, in the Scope of whoever
 * runs it. It fails with `NotSwitched` where the handler, a middleware or a hook answered otherwise, or where the
 * handler awaits it itself; with `BodyOn101`, `ConnectionLost` or `UpgradeTimeout`; and with `AlreadyUpgraded` when it is
 * run a second time. A switched connection that nobody claims within `claimTimeout` is closed.
 *
 * A fiber that claims a connection is not interrupted when the peer is lost, since it may serve others: its next read or
 * write fails, and `Connection.awaitClosed` tells one that does neither.
 *
 * @example
 * ```ts
 * import { Effect, Queue, type Scope } from "effect"
 * import { Protocol, Upgrade, type UpgradeError, type Upgraded } from "effect-upgrade"
 *
 * type Session = Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>
 *
 * export const handler = (sessions: Queue.Enqueue<Session>) =>
 *   Effect.gen(function*() {
 *     const [response, upgraded] = yield* Upgrade.respond(Protocol.raw("chat"), { headers: { "x-room": "1" } })
 *     yield* Queue.offer(sessions, upgraded)
 *     return response
 *   })
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const respond: {
  <const P extends Protocols>(
    protocol: P,
    options?: Options | undefined
  ): Effect.Effect<
    readonly [SwitchingProtocols, Effect.Effect<Upgraded<Duplex, Tokens<P>>, SwitchError, Scope.Scope>],
    UpgradeError,
    HttpServerRequest.HttpServerRequest | Needs<P>
  >
  <Id, IO extends Duplex, const P extends Protocols>(
    listener: Context.Tag<Id, Listener<IO>>,
    protocol: P,
    options?: Options | undefined
  ): Effect.Effect<
    readonly [SwitchingProtocols, Effect.Effect<Upgraded<IO, Tokens<P>>, SwitchError, Scope.Scope>],
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Needs<P>
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const {
    listener,
    rest: [protocols, options]
  } = parse<[Protocols, Options?]>(args)
  return Effect.flatMap(listener, (listener) =>
    Effect.map(
      internal.begin(listener, protocols, options),
      (begun) => [begun.response, internal.claim(begun)] as const
    )
  )
}

/**
 * What `onUpgrade` may be told: `Options`, and `onFailure`, which gets the cause of a session that failed or died, after
 * it was logged.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionOptions<in E = never, out R = never> extends Options {
  readonly onFailure?: ((cause: Cause.Cause<E>) => Effect.Effect<unknown, never, R>) | undefined
}

/**
 * Answers now; the session is forked once the 101 is out, and lives as long as the connection.
 *
 * The handler gets the connection's Scope, and a fiber of its own with the services and fiber refs of the call. When it
 * ends, the connection is closed: after success with all that was written flushed, otherwise at once, and its failure is
 * logged and given to `onFailure`. When the peer is lost, a pending read or write fails, and a session that does neither
 * is interrupted. The request is over with the 101: its Scope closes, its span ends, and the session sees it without its
 * body. Resources that a middleware acquired for the request can be kept with `HttpApp.ejectDefaultScopeClose`.
 *
 * This is the form that holds the least memory for a connection.
 *
 * @example
 * ```ts
 * import { Protocol, Upgrade, Upgraded } from "effect-upgrade"
 *
 * export const echo = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
 *   Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes)))
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const onUpgrade: {
  <const P extends Protocols, A, E, R, RF = never>(
    protocol: P,
    handler: (upgraded: Upgraded<Duplex, Tokens<P>>) => Effect.Effect<A, E, R>,
    options?: SessionOptions<E, RF> | undefined
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    HttpServerRequest.HttpServerRequest | Exclude<R | RF, Scope.Scope> | Needs<P>
  >
  <Id, IO extends Duplex, const P extends Protocols, A, E, R, RF = never>(
    listener: Context.Tag<Id, Listener<IO>>,
    protocol: P,
    handler: (upgraded: Upgraded<IO, Tokens<P>>) => Effect.Effect<A, E, R>,
    options?: SessionOptions<E, RF> | undefined
  ): Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    Id | HttpServerRequest.HttpServerRequest | Exclude<R | RF, Scope.Scope> | Needs<P>
  >
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const {
    listener,
    rest: [protocols, handler, options]
  } = parse<[Protocols, (upgraded: any) => Effect.Effect<unknown, unknown, any>, SessionOptions<unknown, any>?]>(args)
  return Effect.flatMap(listener, (listener) =>
    Effect.withFiberRuntime((fiber) =>
      Effect.map(
        internal.begin(listener, protocols, options, internal.onSwitched(fiber, handler, options?.onFailure)),
        (begun) => begun.response
      )
    )
  )
}

/**
 * What may be said of a connection that `hijack` takes: `Options`, but for what stands in its response.
 *
 * @since 0.1.0
 * @category models
 */
export type HijackOptions = Omit<Options, "headers" | "cookies" | "statusText" | "claimTimeout">

/**
 * The older form: answers an ordinary 200 without a length, and takes the connection behind it. Docker's `attach` is of
 * this kind, where a client does not offer `Upgrade: tcp`.
 *
 * **Only for clients that ask for it, and with nobody between.** Nothing in such an answer says that the connection is
 * switched: a client that does not know better reads the bytes as the response's content until the end of the connection,
 * and a proxy between may hold them back, or take what the client sends for its next request (request smuggling). It is sent
 * with `Connection: close`. Where the client offers a token, use `upgrade`.
 *
 * The listener must know beforehand which requests these are (`UpgradeServer.Options.hijackable`): Node would read what
 * follows the request as another one, and lose it. In all else it is an `upgrade`: the connection belongs to the Scope at the
 * call, the request's body is awaited, `leftover` is what follows it, hooks that are registered see the head as that of a
 * switch, of status 101. Return `Upgrade.done` at its end.
 *
 * `response` has status 200 and no content; its fields and cookies are sent. Fails with `NotUpgradable` (reason `"Server"`)
 * where the listener does not allow it, with `HandshakeRefused` (500) for another response, and as `upgrade`.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
 * import { Effect, Layer } from "effect"
 * import { Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"
 *
 * const attach = Effect.gen(function*() {
 *   const upgraded = yield* Upgrade.hijack(HttpServerResponse.empty({
 *     status: 200,
 *     headers: { "content-type": "application/vnd.docker.raw-stream" }
 *   }))
 *   yield* Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))
 *   return Upgrade.done
 * })
 *
 * export const server = HttpRouter.empty.pipe(
 *   HttpRouter.post("/containers/:id/attach", attach),
 *   HttpServer.serve(),
 *   Layer.provide(UpgradeServer.layerUnix({
 *     path: "/run/app.sock",
 *     hijackable: ({ method, url }) => method === "POST" && /^\/containers\/[^/]+\/attach/.test(url ?? "")
 *   }))
 * )
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const hijack: {
  (
    response: HttpServerResponse.HttpServerResponse,
    options?: HijackOptions | undefined
  ): Effect.Effect<Upgraded<Duplex, "hijack">, UpgradeError, HttpServerRequest.HttpServerRequest | Scope.Scope>
  <Id, IO extends Duplex>(
    listener: Context.Tag<Id, Listener<IO>>,
    response: HttpServerResponse.HttpServerResponse,
    options?: HijackOptions | undefined
  ): Effect.Effect<Upgraded<IO, "hijack">, UpgradeError, Id | HttpServerRequest.HttpServerRequest | Scope.Scope>
} = (...args: Arguments): Effect.Effect<any, UpgradeError, any> => {
  const {
    listener,
    rest: [response, options]
  } = parse<[HttpServerResponse.HttpServerResponse, HijackOptions?]>(args)
  return Effect.flatMap(listener, (listener) => internal.hijack(listener, response, options))
}

/**
 * Lets all that maps a response reach the 101 of a direct `upgrade`: at the call, the 101 becomes the value of the
 * wrapped handler, and the handler goes on in a fiber of its own, with a Scope that closes when it ends.
 *
 * A handler that does not switch is what it was without it, but that it runs in another fiber. Logs and spans of the
 * request end with the handshake.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Protocol, Upgrade, Upgraded } from "effect-upgrade"
 *
 * const greet = Effect.gen(function*() {
 *   const upgraded = yield* Upgrade.upgrade(Protocol.raw("greet"))
 *   yield* Upgraded.write(upgraded, "hello")
 *   return Upgrade.done
 * })
 *
 * export const router = HttpRouter.empty.pipe(
 *   HttpRouter.get("/greet", Upgrade.session(greet)),
 *   HttpRouter.use(Effect.map(HttpServerResponse.setHeader("x-served-by", "one")))   // is on the 101
 * )
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const session: <E, R>(
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
) => Effect.Effect<HttpServerResponse.HttpServerResponse, E, R | Scope.Scope> = internal.session

/**
 * Whether the request can be switched to this protocol, or to one of these: it offers it, by a method that enters it.
 * The protocol's own check is not run.
 *
 * @since 0.1.0
 * @category asking
 */
export const wants = (protocol: Protocols): Effect.Effect<boolean, never, HttpServerRequest.HttpServerRequest> =>
  Effect.map(HttpServerRequest.HttpServerRequest, (request) => internal.wants(request, protocol))

/**
 * The protocols that the request offers, in the client's order (RFC 9110 §7.8); none where it cannot be upgraded.
 *
 * @since 0.1.0
 * @category asking
 */
export const offers: Effect.Effect<ReadonlyArray<Offer>, never, HttpServerRequest.HttpServerRequest> = Effect.map(
  HttpServerRequest.HttpServerRequest,
  internal.offersOf
)

/**
 * Answers a handshake's `UpgradeError` with the response that it stands for, so that the handler cannot fail with one.
 *
 * A handler need not: an error that it lets through is answered the same. This is for an `HttpApi` endpoint that does
 * not declare them, or for a log that shall not show them.
 *
 * @since 0.1.0
 * @category combinators
 */
export const orRespond = <E, R>(
  self: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse.HttpServerResponse, Exclude<E, UpgradeError>, R> =>
  Effect.catchAll(
    self,
    (error): Effect.Effect<HttpServerResponse.HttpServerResponse, Exclude<E, UpgradeError>> =>
      isUpgradeError(error) ? HttpServerRespondable.toResponse(error) : Effect.fail(error as Exclude<E, UpgradeError>)
  )

/**
 * What a handler returns after a session: nothing is sent, since the 101 was; logs and spans say 101.
 *
 * @since 0.1.0
 * @category responses
 */
export const done: SwitchingProtocols = HttpServerResponse.empty({ status: 101 }) as SwitchingProtocols

/**
 * A protocol that a client offers: its name, its version if it has one, and the token as it was sent.
 *
 * @since 0.1.0
 * @category models
 */
export type { Offer }
