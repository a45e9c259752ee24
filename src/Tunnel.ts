/**
 * Two connections made one, and the two places where that is needed: a proxy that answers CONNECT, and one that stands in
 * front of a backend.
 *
 * ```
 *   connect        client ──CONNECT host:443──▶ this server ──TCP──▶ the host it named, if it may
 *   reverseProxy   client ──any request──────▶ this server ──the same request──▶ the backend
 *   join                     a ◀──────────────── bytes ────────────────▶ b
 * ```
 *
 * Nothing here knows what the bytes mean. A FIN of one side is a FIN for the other, which may go on sending; a reset is a
 * reset; a side that does not read stops the one that writes.
 *
 * @since 0.1.0
 */

import type { Agent } from "node:http"
import type { Duplex } from "node:stream"
import type { ConnectionOptions } from "node:tls"
import type * as HttpApp from "@effect/platform/HttpApp"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import type * as Chunk from "effect/Chunk"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Redacted from "effect/Redacted"
import * as addresses from "./internal/tunnel/addresses.js"
import * as connecting from "./internal/tunnel/connect.js"
import * as internal from "./internal/tunnel/join.js"
import * as proxying from "./internal/tunnel/reverseProxy.js"
import { isUpgraded, type Upgraded } from "./Upgraded.js"
import type { HandshakeRefused, UpgradeError } from "./UpgradeError.js"

/**
 * A bare socket and the bytes that were read from it before, as `Upgraded.detach` yields them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Parts {
  readonly socket: Duplex
  readonly leftover: Chunk.Chunk<Uint8Array>
}

/**
 * What can be one end of a tunnel. An `Upgraded` stays its Scope's; a bare Duplex, with what was left over or without, is
 * the tunnel's from then on, which destroys it unless both directions ended in order.
 *
 * @since 0.1.0
 * @category models
 */
export type Joinable = Upgraded | Duplex | Parts

/**
 * Why a tunnel ended.
 *
 * - `"Ended"`: both sides sent their FIN, and everything was passed on.
 * - `"Reset"`: one side was lost, by a reset or any other error, or was closed at this end; the other was reset.
 * - `"IdleTimeout"`, `"HalfClosedTimeout"`: nothing moved for that long; both were destroyed.
 *
 * @since 0.1.0
 * @category models
 */
export type Reason = "Ended" | "Reset" | "IdleTimeout" | "HalfClosedTimeout"

/**
 * What went through a tunnel: `sent` are the bytes from `a` to `b`, `received` those from `b` to `a`, leftovers included.
 *
 * @since 0.1.0
 * @category models
 */
export interface Joined {
  readonly sent: number
  readonly received: number
  readonly reason: Reason
}

/**
 * How long a tunnel may rest. `Duration.infinity` for ever.
 *
 * - `idleTimeout` (1 h): how long nothing may move, either way, while both directions are open. The timeout of an `Upgraded`
 *   itself does not run in a tunnel.
 * - `halfClosedTimeout` (as `idleTimeout`): the same, once one direction has ended. A peer that has gone without a word
 *   looks like one that only listens: this is what it can hold.
 *
 * @since 0.1.0
 * @category models
 */
export interface JoinOptions {
  readonly idleTimeout?: Duration.DurationInput | undefined
  readonly halfClosedTimeout?: Duration.DurationInput | undefined
}

const isJoinable = (u: unknown): u is Joinable =>
  isUpgraded(u) || (Predicate.isObject(u) && ("leftover" in u || "pipe" in u))

/**
 * Passes everything that comes from `a` on to `b`, and from `b` to `a`, until both have ended: what was left over first,
 * each direction's FIN by itself, with backpressure, a reset as a reset.
 *
 * It does not fail: `reason` tells how it ended. Whatever that was but `"Ended"`, both sockets are destroyed by then. The
 * bytes go from socket to socket, in their own callbacks; nobody else can read or write an `Upgraded` that was joined.
 * Interrupted, it stops: an `Upgraded` is closed by its Scope then, and a bare Duplex is destroyed.
 *
 * TCP alone can reset: over TLS and Unix sockets a reset is passed on by destroying the socket, without TLS's farewell.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Protocol, Tunnel, Upgrade } from "effect-upgrade"
 * import { connect } from "node:net"
 *
 * // Whoever upgrades to "ssh" speaks to the SSH server of this machine.
 * export const ssh = Upgrade.onUpgrade(Protocol.raw("ssh"), (upgraded) =>
 *   Effect.suspend(() => Tunnel.join(upgraded, connect(22, "127.0.0.1"))).pipe(
 *     Effect.tap(({ reason, received, sent }) => Effect.log(`${reason}: ${sent} bytes there, ${received} back`))
 *   ))
 * ```
 *
 * @since 0.1.0
 * @category joining
 */
export const join: {
  (b: Joinable, options?: JoinOptions | undefined): (a: Joinable) => Effect.Effect<Joined>
  (a: Joinable, b: Joinable, options?: JoinOptions | undefined): Effect.Effect<Joined>
} = (...args: ReadonlyArray<any>): any =>
  isJoinable(args[1]) ? internal.join(args[0], args[1], args[2]) : (a: Joinable) => internal.join(a, args[0], args[1])

/**
 * Where a client wants to be connected to: the authority of its CONNECT, an IPv6 address without its brackets.
 *
 * @since 0.1.0
 * @category models
 */
export interface Target {
  readonly host: string
  readonly port: number
}

/**
 * Who may be connected, and where to. All of it may be left out: then everybody may, to the web's ports of the public
 * Internet.
 *
 * - `authorize`: whether this client may use the proxy; `false` is answered with 407, and a failure with its own answer.
 *   It is asked before anything else, so that a stranger learns nothing of the network by the proxy. Default: everybody.
 * - `challenge` (`Basic realm="proxy"`): what a 407 says in Proxy-Authenticate.
 * - `ports` (443 and 80): those that may be connected to, or `"any"`. Port 25 lets strangers send mail in your name.
 * - `allow` (`Tunnel.isPublic`): whether an address that the target's name was resolved to may be connected to. Those that
 *   pass are what is dialled: the name is not looked up a second time, and cannot point elsewhere by then.
 * - `resolve` (the system's resolver): from a host, which may be a literal address, to its addresses.
 * - `connectTimeout` (10 s): how long resolving and connecting may take together.
 * - `idleTimeout`, `halfClosedTimeout`: as for `join`.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions<out R = never> extends JoinOptions {
  readonly authorize?:
    | ((request: HttpServerRequest, target: Target) => Effect.Effect<boolean, HandshakeRefused, R>)
    | undefined
  readonly challenge?: string | undefined
  readonly ports?: ReadonlyArray<number> | "any" | undefined
  readonly allow?: ((address: string, target: Target) => boolean) | undefined
  readonly resolve?: ((host: string) => Effect.Effect<ReadonlyArray<string>, unknown>) | undefined
  readonly connectTimeout?: Duration.DurationInput | undefined
}

/**
 * An app that is a proxy for CONNECT (RFC 9110 §9.3.6): it connects to the host and port that the client names, answers
 * 200, and joins the two.
 *
 * What cannot be is a `HandshakeRefused`, answered with its reason in a line of text and the end of the connection: 400 for
 * a target that is no host and port, 407 and 403 for what `ConnectOptions` forbids, 502 for a name that is not found or a
 * host that refuses, 504 for one that does not answer in time. Any other method gets 405.
 *
 * No router knows the method CONNECT: serve this app by itself, or in front of another with `withConnect`. To open it
 * wider than the public Internet, name what may be reached: an `allow` of `() => true` lends every client your place in
 * the network, this machine's own services and the metadata service of its cloud included.
 *
 * @example
 * ```ts
 * import { HttpServer } from "@effect/platform"
 * import { NodeRuntime } from "@effect/platform-node"
 * import { Effect, Layer, Option, Redacted } from "effect"
 * import { Tunnel, UpgradeServer } from "effect-upgrade"
 *
 * const proxy = Tunnel.connect({
 *   ports: [443, 8443],
 *   allow: (address) => Tunnel.isPublic(address) || address === "10.0.0.7",
 *   authorize: (request) =>
 *     Effect.succeed(Option.exists(Tunnel.credentials(request), ({ password, username }) =>
 *       username === "alice" && Redacted.value(password) === process.env.ALICE))
 * })
 *
 * HttpServer.serve(proxy).pipe(
 *   Layer.provide(UpgradeServer.layerNet({ port: 3128 })),
 *   Layer.launch,
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @since 0.1.0
 * @category proxies
 */
export const connect = <R = never>(
  options: ConnectOptions<R> = {}
): Effect.Effect<HttpServerResponse.HttpServerResponse, UpgradeError, HttpServerRequest | R> =>
  connecting.connect(options)

/**
 * `connect` in front of another app, which gets every request but those of method CONNECT.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
 * import { Tunnel } from "effect-upgrade"
 *
 * export const app = HttpRouter.empty.pipe(
 *   HttpRouter.get("/health", HttpServerResponse.text("ok")),
 *   Tunnel.withConnect({ ports: [443] }),
 *   HttpServer.serve()
 * )
 * ```
 *
 * @since 0.1.0
 * @category proxies
 */
export const withConnect: {
  <R2 = never>(
    options?: ConnectOptions<R2> | undefined
  ): <E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E | UpgradeError, R | R2>
  <E, R, R2 = never>(
    app: HttpApp.Default<E, R>,
    options?: ConnectOptions<R2> | undefined
  ): HttpApp.Default<E | UpgradeError, R | R2>
} = (...args: ReadonlyArray<any>): any =>
  Effect.isEffect(args[0])
    ? connecting.withConnect(args[0] as HttpApp.Default<any, any>, args[1] ?? {})
    : (app: HttpApp.Default<any, any>) => connecting.withConnect(app, args[0] ?? {})

/**
 * Whether an address, IPv4 or IPv6, is of the public Internet: not loopback, private, link-local, shared, multicast,
 * reserved or for documentation, and not another address in disguise (IPv4-mapped, NAT64, 6to4, Teredo). What is no address
 * is not public.
 *
 * @since 0.1.0
 * @category proxies
 */
export const isPublic: (address: string) => boolean = addresses.isPublic

/**
 * What a client says of itself in Proxy-Authorization.
 *
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  readonly username: string
  readonly password: Redacted.Redacted
}

/**
 * The Basic credentials of Proxy-Authorization (RFC 7617); none where there are none that can be read. Basic is readable
 * to everybody on the way: let the clients reach the proxy by TLS.
 *
 * @since 0.1.0
 * @category proxies
 */
export const credentials: (request: HttpServerRequest) => Option.Option<Credentials> = connecting.credentials

/**
 * How requests are forwarded. All of it may be left out.
 *
 * - `upgrades` (`["websocket"]`): the tokens that are forwarded, `name` or `name/version`. Others are taken off the request,
 *   which is then an ordinary one. Never name `h2c` before a backend that shall see each request pass here: in such a
 *   tunnel a client asks whatever it likes.
 * - `trust` (`false`): whether to believe the Forwarded and X-Forwarded-* fields that come in, for all clients or by the
 *   address of the one that is connected. They are continued then, and replaced otherwise.
 * - `preserveHost` (`true`): whether the backend sees the client's Host, in place of that of the target. A check of Origin
 *   needs it, as `WebSocket`'s does; a backend that serves several names by Host may need its own.
 * - `via` (`"effect-upgrade"`): what this server calls itself in Via, on requests and responses.
 * - `socketPath`: a Unix socket to connect to, in place of the host and port of the target.
 * - `tls`: Node's options of TLS to the backend, for `https:`.
 * - `agent` (one of this proxy's own that keeps connections alive): Node's agent for ordinary requests.
 * - `connectTimeout` (10 s): how long connecting may take.
 * - `headTimeout` (1 min): how long the backend may do nothing, neither take the request nor begin its answer. For a switch:
 *   how long its answer may take.
 * - `idleTimeout` (1 h): how long an answer may stand still, and a tunnel as in `join`; `halfClosedTimeout` as there.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReverseProxyOptions extends JoinOptions {
  readonly upgrades?: ReadonlyArray<string> | undefined
  readonly trust?: boolean | ((address: string | undefined) => boolean) | undefined
  readonly preserveHost?: boolean | undefined
  readonly via?: string | undefined
  readonly socketPath?: string | undefined
  readonly tls?: ConnectionOptions | undefined
  readonly agent?: Agent | undefined
  readonly connectTimeout?: Duration.DurationInput | undefined
  readonly headTimeout?: Duration.DurationInput | undefined
}

/**
 * An app that stands in front of a backend: it asks it for every request that it gets, and gives back what it answers, the
 * content of both streamed. The path of the target is put before that of the request.
 *
 * A request that offers one of `upgrades` is offered to the backend with those tokens alone. Its 101 is checked first: it
 * must name one of them, and have no content. Then the client gets its own 101 and the two are joined, with the early bytes
 * of both. Anything else that the backend says, a 401 with its content, is given back as it is.
 *
 * Fields of one connection alone (RFC 9110 §7.6.1) go no further; Via, Forwarded and X-Forwarded-For, -Host and -Proto are
 * set. A backend that cannot be reached, goes, or answers nonsense is answered with 502, one that is silent with 504, each
 * with the reason in a line of text. When the client goes, the backend's request is cut off, and the other way round.
 *
 * It is an app like any other: put it on a router (`HttpRouter.mountApp`), and map its responses. Fails as `Upgrade.upgrade`.
 * Throws a `TypeError` where the target is no URL of `http:`, `https:`, `ws:` or `wss:`.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer } from "@effect/platform"
 * import { NodeRuntime } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { Tunnel, UpgradeServer } from "effect-upgrade"
 *
 * HttpRouter.empty.pipe(
 *   HttpRouter.mountApp("/chat", Tunnel.reverseProxy("http://127.0.0.1:4000")),
 *   HttpRouter.mountApp("/files", Tunnel.reverseProxy("http://files", {
 *     socketPath: "/run/files.sock",
 *     upgrades: ["sync/2"]
 *   })),
 *   HttpServer.serve(),
 *   Layer.provide(UpgradeServer.layerNet({ port: 3000 })),
 *   Layer.launch,
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @since 0.1.0
 * @category proxies
 */
export const reverseProxy = (target: string | URL, options: ReverseProxyOptions = {}): HttpApp.Default<UpgradeError> =>
  proxying.reverseProxy(target, options)
