/**
 * The client's switch: a request that offers protocols, the answer checked, and the connection, typed, owned by the Scope
 * at the call, with every byte that arrived behind the handshake.
 *
 * ```
 *   upgrade   GET / Upgrade: echo ──▶ server       101, checked     ──▶ Upgraded<net.Socket | TLSSocket, "echo">
 *   connect   CONNECT host:443    ──▶ proxy        2xx              ──▶ Upgraded<net.Socket | TLSSocket, "CONNECT">
 *   hijack    POST /attach        ──▶ server       200, no length   ──▶ Upgraded<net.Socket | TLSSocket, "hijack">
 *                                                  anything else    ──▶ UpgradeRejected, with the whole response
 * ```
 *
 * The protocol is the very value that the server uses: `offer` and `verify` are its rules for this side. The server's
 * answer is never trusted: a 101 must name in Upgrade what was offered, list it in Connection, come after the whole
 * request, and have no content. Anything else is a typed error, and the connection is destroyed.
 *
 * Nothing of the new protocol is sent before the answer, since a server that declines would read it as another request.
 * Redirections are not followed, and no proxy is taken from the environment: both are for the program to decide, by
 * `UpgradeRejected` and `connect`. A connection is used for one request, and speaks HTTP/1.1.
 *
 * @since 0.1.0
 */

import type * as net from "node:net"
import type { Duplex } from "node:stream"
import type * as tls from "node:tls"
import type * as Headers from "@effect/platform/Headers"
import type { HttpClient } from "@effect/platform/HttpClient"
import type { HttpClientRequest } from "@effect/platform/HttpClientRequest"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as internal from "./internal/client.js"
import { layerThrough } from "./internal/http1/clientAgent.js"
import { isProtocol, type Protocols, type Tokens } from "./Protocol.js"
import type { Upgraded } from "./Upgraded.js"
import type { UpgradeClientError } from "./UpgradeError.js"

/**
 * What is asked: a request of the platform, or a URL, which is a GET of it. The schemes are `http:` and `ws:`, which are
 * the same here, and `https:` and `wss:`. User information in the URL becomes an `Authorization: Basic`.
 *
 * @since 0.1.0
 * @category models
 */
export type Target = HttpClientRequest | string | URL

/**
 * The socket that leads to a target: of a URL that is known to the compiler, `TLSSocket` or `net.Socket` by its scheme.
 *
 * @since 0.1.0
 * @category models
 */
export type SocketOf<T> = T extends `https:${string}` | `wss:${string}`
  ? tls.TLSSocket
  : T extends `http:${string}` | `ws:${string}`
    ? net.Socket
    : net.Socket | tls.TLSSocket

/**
 * What may be said of one attempt. All of it may be left out.
 *
 * - `tls`: Node's options of the TLS connection, for `https:` and `wss:`: `ca`, `cert`, `key`, `servername` (default: the
 *   URL's host), `rejectUnauthorized` and so on.
 * - `socketPath`: a Unix socket to connect to in place of the URL's host and port, which still go into `Host`.
 * - `connectTimeout` (10 s): how long the connection may take, TLS included.
 * - `headTimeout` (30 s): how long the answer may take, once the request is sent.
 * - `timeout` (none): how long all of it may take. It does not end the connection once that is there.
 * - `writeTimeout` (2 min): how long a write may wait while nothing leaves the process.
 * - `idleTimeout` (1 h): how long nothing at all may move, either way, after the switch.
 * - `closeTimeout` (5 s): how long closing may take, from the FIN to the peer's.
 *
 * `Duration.infinity` switches a limit off.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly tls?: tls.ConnectionOptions | undefined
  readonly socketPath?: string | undefined
  readonly connectTimeout?: Duration.DurationInput | undefined
  readonly headTimeout?: Duration.DurationInput | undefined
  readonly timeout?: Duration.DurationInput | undefined
  readonly writeTimeout?: Duration.DurationInput | undefined
  readonly idleTimeout?: Duration.DurationInput | undefined
  readonly closeTimeout?: Duration.DurationInput | undefined
}

/**
 * A connection of one's own to ask over, in place of a new one: a Duplex that is connected (one of a listener in memory,
 * say), an `Upgraded` (a tunnel, before or after `Upgraded.secure`), or an effect that makes one. It is used as it is,
 * whatever the URL's scheme: nothing is put on top of it.
 *
 * A Duplex is owned from here on: it is closed with the Scope, or when the attempt fails. An `Upgraded` stays with its
 * owner, and what it is switched to is another `Upgraded` over the same connection: the first reads no more.
 *
 * @since 0.1.0
 * @category models
 */
export interface Over<IO extends Duplex, E = never, R = never> {
  readonly socket: IO | Upgraded<IO> | Effect.Effect<IO | Upgraded<IO>, E, R>
}

/**
 * Who asks a proxy: sent as `Proxy-Authorization: Basic`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  readonly username: string
  readonly password: string | Redacted.Redacted
}

/**
 * What may be said of a tunnel beside `Options`, which are those of the connection to the proxy.
 *
 * - `credentials`: for the proxy; default: the user information of its URL.
 * - `headers`: further fields of the CONNECT request.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions extends Options {
  readonly credentials?: Credentials | undefined
  readonly headers?: Headers.Input | undefined
}

/**
 * Asks a server to switch to a protocol, or to one of several, which are offered in this order.
 *
 * The body of the request, of any kind, is sent before the switch: bytes with their length, a stream chunked unless its
 * length is known. `Host`, `Connection`, `Upgrade` and the framing are written here; what the protocols offer goes beside
 * the request's own fields. The connection belongs to the Scope at the call: when that closes, so does the connection,
 * after success with all that was written flushed, otherwise at once. A fiber that has it is not interrupted when the
 * server goes: its next read or write fails, and `Connection.awaitClosed` tells one that does neither.
 *
 * Fails with
 * - `InvalidRequest`: what cannot be written is not sent;
 * - `ConnectFailed`, `TlsFailed`: there is no connection;
 * - `UpgradeTimeout`, of the stage `"Connect"`, `"Head"` or `"Total"`;
 * - `ConnectionLost`: the server went before it had answered;
 * - `UpgradeRejected`: it answered something else, with the response, whose body can be read while the Scope is open;
 * - `ProtocolMismatch`: it switched to something else, or what came is no HTTP (RFC 9110 §7.8, RFC 9112).
 *
 * After all but `UpgradeRejected`, and after an interruption at any point, nothing is left open.
 *
 * @example
 * ```ts
 * import { HttpClientRequest } from "@effect/platform"
 * import { Effect, Stream } from "effect"
 * import { Protocol, UpgradeClient, Upgraded } from "effect-upgrade"
 *
 * export const program = Effect.gen(function*() {
 *   const upgraded = yield* UpgradeClient.upgrade("http://localhost:3000/echo", Protocol.raw("echo"))
 *   yield* Upgraded.write(upgraded, "hello")
 *   yield* Upgraded.end(upgraded)
 *   return yield* Stream.runFold(Upgraded.stream(upgraded), 0, (size, bytes) => size + bytes.length)
 * }).pipe(Effect.scoped)
 *
 * // A request with a body, to Docker's daemon
 * export const exec = (id: string) =>
 *   UpgradeClient.upgrade(
 *     HttpClientRequest.post(`http://docker/exec/${id}/start`).pipe(
 *       HttpClientRequest.bodyUnsafeJson({ Detach: false, Tty: true })
 *     ),
 *     Protocol.raw("tcp"),
 *     { socketPath: "/var/run/docker.sock" }
 *   )
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const upgrade: {
  <const P extends Protocols, IO extends Duplex, E = never, R = never>(
    protocol: P,
    options: Options & Over<IO, E, R>
  ): (request: Target) => Effect.Effect<Upgraded<IO, Tokens<P>>, UpgradeClientError | E, Scope.Scope | R>
  <const P extends Protocols>(
    protocol: P,
    options?: Options | undefined
  ): <const T extends Target>(
    request: T
  ) => Effect.Effect<Upgraded<SocketOf<T>, Tokens<P>>, UpgradeClientError, Scope.Scope>
  <const P extends Protocols, IO extends Duplex, E = never, R = never>(
    request: Target,
    protocol: P,
    options: Options & Over<IO, E, R>
  ): Effect.Effect<Upgraded<IO, Tokens<P>>, UpgradeClientError | E, Scope.Scope | R>
  <const T extends Target, const P extends Protocols>(
    request: T,
    protocol: P,
    options?: Options | undefined
  ): Effect.Effect<Upgraded<SocketOf<T>, Tokens<P>>, UpgradeClientError, Scope.Scope>
} = dual(
  (args) => !(isProtocol(args[0]) || Array.isArray(args[0])),
  (request: Target, protocol: Protocols, options: internal.AnyOptions = {}): Effect.Effect<any, any, any> =>
    internal.upgrade(request, protocol, options)
)

/**
 * Asks a proxy for a tunnel to `host:port` by CONNECT (RFC 9110 §9.3.6). `authority` may be a URL too: its host, and its
 * port or that of its scheme.
 *
 * Any 2xx is the tunnel, whatever length it says of itself. Everything else, a 407 among them, is `UpgradeRejected` with
 * the response. Nothing is known of the other end: put TLS over the tunnel by `Upgraded.secure`. Fails as `upgrade`.
 *
 * @example
 * ```ts
 * import { Effect, Redacted } from "effect"
 * import { Protocol, UpgradeClient, Upgraded } from "effect-upgrade"
 *
 * const credentials = { username: "me", password: Redacted.make("secret") }
 *
 * // TLS to the host, through the tunnel; then a switch of protocols over it
 * export const program = UpgradeClient.upgrade("https://example.com/echo", Protocol.raw("echo"), {
 *   socket: UpgradeClient.connect("http://proxy:3128", "example.com:443", { credentials }).pipe(
 *     Effect.flatMap((tunnel) => Upgraded.secure(tunnel, { role: "client", servername: "example.com" }))
 *   )
 * })
 * ```
 *
 * @since 0.1.0
 * @category switching
 */
export const connect: {
  <IO extends Duplex, E = never, R = never>(
    proxy: string | URL,
    authority: string | URL,
    options: ConnectOptions & Over<IO, E, R>
  ): Effect.Effect<Upgraded<IO, "CONNECT">, UpgradeClientError | E, Scope.Scope | R>
  <const T extends string | URL>(
    proxy: T,
    authority: string | URL,
    options?: ConnectOptions | undefined
  ): Effect.Effect<Upgraded<SocketOf<T>, "CONNECT">, UpgradeClientError, Scope.Scope>
} = (
  proxy: string | URL,
  authority: string | URL,
  options: internal.ConnectOptions = {}
): Effect.Effect<any, any, any> => internal.connect(proxy, authority, options)

/**
 * Takes the connection behind an ordinary answer: a 200 without a length, after a request that offers nothing. The older
 * form, which Docker's `attach` still has; the counterpart of `Upgrade.hijack`.
 *
 * **Only for a server that is known to mean it.** Nothing in such an answer says that the connection is switched: to any
 * other server, and to every proxy on the way, it is a response that ends with the connection, and what is written after
 * it may be read as another request, or be dropped. Where the server offers a token, use `upgrade`.
 *
 * Any other answer, a 200 with a length among them, is `UpgradeRejected`. Fails as `upgrade`.
 *
 * @since 0.1.0
 * @category switching
 */
export const hijack: {
  <IO extends Duplex, E = never, R = never>(
    request: Target,
    options: Options & Over<IO, E, R>
  ): Effect.Effect<Upgraded<IO, "hijack">, UpgradeClientError | E, Scope.Scope | R>
  <const T extends Target>(
    request: T,
    options?: Options | undefined
  ): Effect.Effect<Upgraded<SocketOf<T>, "hijack">, UpgradeClientError, Scope.Scope>
} = (request: Target, options: internal.AnyOptions = {}): Effect.Effect<any, any, any> =>
  internal.hijack(request, options)

/**
 * An `HttpClient` that sends all its requests, of `http:` and `https:` alike, through tunnels of a proxy. Connections are
 * kept alive and used again for the same host; all are closed with the layer's Scope.
 *
 * The proxy sees host and port of each request, and of those over `https:` no more. `options` are those of `connect`;
 * `secure` are Node's options of the TLS inside of the tunnels. A tunnel that cannot be had fails the request with the
 * platform's `RequestError` (`"Transport"`), whose `cause` is the `UpgradeClientError`.
 *
 * @example
 * ```ts
 * import { HttpClient } from "@effect/platform"
 * import { Effect } from "effect"
 * import { UpgradeClient } from "effect-upgrade"
 *
 * export const program = Effect.flatMap(HttpClient.get("https://example.com/"), (response) => response.text).pipe(
 *   Effect.provide(UpgradeClient.layerHttpClient("http://proxy:3128"))
 * )
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layerHttpClient: (
  proxy: string | URL,
  options?: (ConnectOptions & { readonly secure?: tls.ConnectionOptions | undefined }) | undefined
) => Layer.Layer<HttpClient> = layerThrough
