/**
 * What is switched: a connection, as a Scope with a typed socket.
 *
 * A `Connection<IO>` stands for one socket of a listener (in HTTP/1.1; a stream in HTTP/2) from the first request that
 * asks for it to its end. Its Scope closes with it, whatever ended it: register finalizers there, or fork into it what
 * shall live as long as the peer does.
 *
 * ```
 * listener (tag)  ──accepts──▶  Connection<IO>  ──Upgrade──▶  Upgraded<IO, Token>
 *      Net, Tls, Http2, Alpn          socket, scope, peer          socket, leftover, protocol
 * ```
 *
 * A listener's tag carries the type of its sockets: `Connection.Tls` is provided by a server that speaks TLS and by no
 * other, so a handler that names it compiles only under such a server.
 *
 * @since 0.1.0
 */

import type { ServerHttp2Stream } from "node:http2"
import type * as Net_ from "node:net"
import type { Duplex } from "node:stream"
import type * as Tls_ from "node:tls"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import type * as Types from "effect/Types"
import * as internal from "./internal/connection.js"
import * as registry from "./internal/requests.js"
import type { NotUpgradable } from "./UpgradeError.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = internal.TypeId as never

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export const ListenerTypeId: unique symbol = internal.ListenerTypeId as never

/**
 * @since 0.1.0
 * @category type ids
 */
export type ListenerTypeId = typeof ListenerTypeId

/**
 * Who is at the other end, as far as the socket knows: nothing for a Unix socket, nothing once it is closed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Peer {
  readonly address: string | undefined
  readonly port: number | undefined
  readonly family: string | undefined
}

/**
 * A listening server, as far as its connections are concerned: the type of their sockets, and the tag that names it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Listener<out IO extends Duplex = Duplex> {
  readonly [ListenerTypeId]: { readonly _IO: Types.Covariant<IO> }
  readonly key: string
}

/**
 * One connection of a listener.
 *
 * - `socket`: the socket itself, typed by the listener. Ask it what it knows (a certificate, an address); before a
 *   switch it is the HTTP server's to read and write.
 * - `scope`: closes with the connection, with a failure where the peer was lost.
 * - `peer`: the address of the other end.
 * - `listener`: the server that accepted it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Connection<out IO extends Duplex = Duplex> extends Inspectable.Inspectable, Pipeable {
  readonly [TypeId]: { readonly _IO: Types.Covariant<IO> }
  readonly socket: IO
  readonly scope: Scope.Scope
  readonly peer: Peer
  readonly listener: Listener<IO>
}

/**
 * Whether a value is a `Connection`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isConnection = (u: unknown): u is Connection => Predicate.hasProperty(u, TypeId)

/**
 * Plain sockets: TCP, or a Unix path. Provided by `UpgradeServer.layer` for an `http.Server`, `layerNet` and `layerUnix`.
 *
 * @since 0.1.0
 * @category listeners
 */
export class Net extends Context.Tag("effect-upgrade/Connection/Net")<Net, Listener<Net_.Socket>>() {}

/**
 * TLS over TCP. Provided by `UpgradeServer.layer` for an `https.Server`, and by `layerTls`.
 *
 * @since 0.1.0
 * @category listeners
 */
export class Tls extends Context.Tag("effect-upgrade/Connection/Tls")<Tls, Listener<Tls_.TLSSocket>>() {}

/**
 * Streams of HTTP/2 alone.
 *
 * @since 0.1.0
 * @category listeners
 */
export class Http2 extends Context.Tag("effect-upgrade/Connection/Http2")<Http2, Listener<ServerHttp2Stream>>() {}

/**
 * HTTP/2 and HTTP/1.1 by ALPN on one port: a stream of the one, or the TLS socket of the other.
 *
 * @since 0.1.0
 * @category listeners
 */
export class Alpn extends Context.Tag("effect-upgrade/Connection/Alpn")<
  Alpn,
  Listener<ServerHttp2Stream | Tls_.TLSSocket>
>() {}

/**
 * The connection that the current request came by, whatever its listener.
 *
 * Fails with `NotUpgradable` (reason `"Server"`) where the request did not come by an `UpgradeServer`.
 *
 * @since 0.1.0
 * @category accessors
 */
export const current: Effect.Effect<Connection, NotUpgradable, HttpServerRequest.HttpServerRequest> = Effect.flatMap(
  HttpServerRequest.HttpServerRequest,
  (request) => registry.connectionOf(request)
)

/**
 * The connection that the current request came by, typed by its listener: to read a client's certificate, say.
 *
 * Fails with `NotUpgradable` (reason `"Server"`) where the request came by another server than the listener's.
 *
 * @example
 * ```ts
 * import { HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Connection } from "effect-upgrade"
 *
 * export const whoami = Effect.gen(function*() {
 *   const connection = yield* Connection.currentWith(Connection.Tls)
 *   return HttpServerResponse.text(String(connection.socket.getPeerCertificate().subject?.CN))
 * })
 * ```
 *
 * @since 0.1.0
 * @category accessors
 */
export const currentWith = <Id, IO extends Duplex>(
  tag: Context.Tag<Id, Listener<IO>>
): Effect.Effect<Connection<IO>, NotUpgradable, Id | HttpServerRequest.HttpServerRequest> =>
  Effect.flatMap(tag, (listener) =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => registry.connectionOf(request, listener))
  )

/**
 * Runs an effect when the connection closes, given how: with success after an orderly end, otherwise with a failure.
 *
 * @since 0.1.0
 * @category scope
 */
export const addFinalizer: {
  <R>(
    finalizer: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<unknown, never, R>
  ): (self: Connection) => Effect.Effect<void, never, R>
  <R>(
    self: Connection,
    finalizer: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<unknown, never, R>
  ): Effect.Effect<void, never, R>
} = dual(
  2,
  <R>(
    self: Connection,
    finalizer: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<unknown, never, R>
  ): Effect.Effect<void, never, R> =>
    Effect.contextWithEffect((context: Context.Context<R>) =>
      Scope.addFinalizerExit(self.scope, (exit) => Effect.provide(finalizer(exit), context))
    )
)

/**
 * Forks an effect that lives as long as the connection: it is interrupted when the connection closes.
 *
 * @since 0.1.0
 * @category scope
 */
export const fork: {
  (self: Connection): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<Fiber.RuntimeFiber<A, E>, never, R>
  <A, E, R>(effect: Effect.Effect<A, E, R>, self: Connection): Effect.Effect<Fiber.RuntimeFiber<A, E>, never, R>
} = dual(2, <A, E, R>(effect: Effect.Effect<A, E, R>, self: Connection) => Effect.forkIn(effect, self.scope))

/**
 * Done when the connection is closed and its finalizers have run; not for one of those finalizers, which would wait for
 * itself.
 *
 * @since 0.1.0
 * @category scope
 */
export const awaitClosed = (self: Connection): Effect.Effect<void> => (self as internal.ConnectionImpl).awaitClosed
