/**
 * What a switch yields: the connection, typed, owned, and with the bytes that arrived behind the handshake.
 *
 * ```
 *             leftover, then what comes           what is written
 *   peer ───▶ pull · run · stream · readExactly   write · writeAll · sink ───▶ peer
 *             ends at the peer's FIN              end sends FIN
 * ```
 *
 * Each way of reading begins with `leftover` and continues with what comes: a byte is read once, by whoever reads next,
 * and an interrupted read has taken none. One fiber reads at a time; a second is told `ConnectionError` `"Busy"`.
 *
 * Memory is bounded both ways. A connection that nobody reads stops its sender, and a write is done only when the socket
 * takes more. The socket closes with the Scope that owns the connection, and by no function here.
 *
 * @since 0.1.0
 */

import type { Duplex } from "node:stream"
import type { ConnectionOptions, TLSSocket, TlsOptions } from "node:tls"
import type * as Socket from "@effect/platform/Socket"
import type * as Channel from "effect/Channel"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type * as Types from "effect/Types"
import { type Connection, type Listener, Net, Tls } from "./Connection.js"
import * as internal from "./internal/duplex/adapters.js"
import { secure as secureInPlace } from "./internal/secure.js"
import { TypeId as internalTypeId, type UpgradedImpl } from "./internal/upgraded.js"
import type { ConnectionError, TlsFailed } from "./UpgradeError.js"

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
 * A connection that was switched to the protocol `Token`, over a socket of type `IO`.
 *
 * - `socket`: the real socket, for what it tells. Read and write through the functions here, or `detach` it.
 * - `leftover`: what arrived behind the handshake, in order. Every reader begins with it; to look at it takes nothing.
 * - `protocol`: the token that was agreed on.
 * - `connection`: the Scope, the peer, the listener.
 *
 * @since 0.1.0
 * @category models
 */
export interface Upgraded<out IO extends Duplex = Duplex, out Token extends string = string>
  extends Inspectable.Inspectable,
    Pipeable {
  readonly [TypeId]: { readonly _IO: Types.Covariant<IO>; readonly _Token: Types.Covariant<Token> }
  readonly socket: IO
  readonly leftover: Chunk.Chunk<Uint8Array>
  readonly protocol: Token
  readonly connection: Connection<IO>
}

/** What listens for TLS accepts sockets too. */
const isListenedBy = (own: string, asked: string) => own === asked || (own === Tls.key && asked === Net.key)

const wireOf = (self: Upgraded) => (self as UpgradedImpl).wire

/**
 * Whether a value is an `Upgraded`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isUpgraded = (u: unknown): u is Upgraded => Predicate.hasProperty(u, TypeId)

/**
 * Takes what has arrived, at least one piece, or waits for it.
 *
 * Fails with `None` at the peer's FIN, and with `Some` of a `ConnectionError`: `Reset`, `Timeout` or `Read` where the
 * connection was lost, `Closed` after its Scope closed or it was detached, `Busy` while another fiber reads.
 *
 * @since 0.1.0
 * @category reading
 */
export const pull = (self: Upgraded): Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<ConnectionError>> =>
  wireOf(self).pull

/**
 * Reads exactly `size` bytes, and leaves the rest for the next reader.
 *
 * Fails with `ConnectionError`; with `Closed` where the peer's FIN comes before: what had come until then is put back. A
 * size that the peer told must be bounded by the program: so much is held. One that is no number of bytes is a defect.
 *
 * @since 0.1.0
 * @category reading
 */
export const readExactly: {
  (size: number): (self: Upgraded) => Effect.Effect<Uint8Array, ConnectionError>
  (self: Upgraded, size: number): Effect.Effect<Uint8Array, ConnectionError>
} = dual(2, (self: Upgraded, size: number) => internal.readExactly(wireOf(self), size))

/**
 * Runs a handler over all that comes, a batch at a time, until the peer's FIN: the fast path.
 *
 * Everything that has arrived is one batch, and the handler's effect runs in the calling fiber: one that finishes
 * synchronously costs no switch of fibers. While it runs, what arrives is kept, up to a bound at which the peer is
 * stopped; the handler may read on in its own fiber, others are told `Busy`. Fails with `ConnectionError` as `pull` does, and with the handler's own errors.
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
 * @category reading
 */
export const run: {
  <A, E, R>(
    handler: (bytes: Chunk.Chunk<Uint8Array>) => Effect.Effect<A, E, R>
  ): (self: Upgraded) => Effect.Effect<void, ConnectionError | E, R>
  <A, E, R>(
    self: Upgraded,
    handler: (bytes: Chunk.Chunk<Uint8Array>) => Effect.Effect<A, E, R>
  ): Effect.Effect<void, ConnectionError | E, R>
} = dual(
  2,
  <A, E, R>(
    self: Upgraded,
    handler: (bytes: Chunk.Chunk<Uint8Array>) => Effect.Effect<A, E, R>
  ): Effect.Effect<void, ConnectionError | E, R> => wireOf(self).run(handler)
)

/**
 * All that comes, as a stream that ends at the peer's FIN. Its chunks are what had arrived at each pull. Fails as `pull`
 * does. A stream that is run twice goes on where the first left off.
 *
 * @since 0.1.0
 * @category reading
 */
export const stream = (self: Upgraded): Stream.Stream<Uint8Array, ConnectionError> => internal.stream(wireOf(self))

/**
 * Writes bytes, or a string as UTF-8, and is done when the socket takes more: at once while it has room, otherwise when
 * the peer has made some. The bytes must not be changed afterwards: the socket may still hold them.
 *
 * Fails with `ConnectionError`: `Closed` after `end` or after the close, `Reset` where the peer has gone, `Timeout` when
 * it takes nothing for `writeTimeout`.
 *
 * @since 0.1.0
 * @category writing
 */
export const write: {
  (bytes: Uint8Array | string): (self: Upgraded) => Effect.Effect<void, ConnectionError>
  (self: Upgraded, bytes: Uint8Array | string): Effect.Effect<void, ConnectionError>
} = dual(2, (self: Upgraded, bytes: Uint8Array | string) => wireOf(self).write(bytes))

/**
 * Writes several pieces, in one system call where the socket can. Done, and failing, as `write`.
 *
 * @since 0.1.0
 * @category writing
 */
export const writeAll: {
  (pieces: Iterable<Uint8Array | string>): (self: Upgraded) => Effect.Effect<void, ConnectionError>
  (self: Upgraded, pieces: Iterable<Uint8Array | string>): Effect.Effect<void, ConnectionError>
} = dual(2, (self: Upgraded, pieces: Iterable<Uint8Array | string>) => wireOf(self).writeAll(pieces))

/**
 * Sends FIN after all that was written, and is done when that is out. Reading goes on: the peer may still answer.
 * Again, it does nothing. Fails as `write` does.
 *
 * @since 0.1.0
 * @category writing
 */
export const end = (self: Upgraded): Effect.Effect<void, ConnectionError> => wireOf(self).end()

/**
 * Writes all that it is given. It sends no FIN when its input ends: `end` does, and so does the owning Scope.
 *
 * @since 0.1.0
 * @category writing
 */
export const sink = (self: Upgraded): Sink.Sink<void, Uint8Array | string, never, ConnectionError> =>
  internal.sink(wireOf(self))

/**
 * Both directions as a channel: writes what it is given and sends FIN at the end of it, and yields what comes until the
 * peer's FIN.
 *
 * @since 0.1.0
 * @category converting
 */
export const channel = <IE = never>(
  self: Upgraded
): Channel.Channel<
  Chunk.Chunk<Uint8Array>,
  Chunk.Chunk<Uint8Array | string>,
  ConnectionError | IE,
  IE,
  void,
  unknown
> => internal.channel(wireOf(self))

/**
 * Hands the socket over: from here on the library reads no more, and `leftover` is all that it had read and nobody had
 * taken. What comes next comes on the socket, which is paused as Node hands one out, until somebody listens.
 *
 * The owning Scope still closes it, and the loss of the peer still interrupts the session.
 *
 * @since 0.1.0
 * @category converting
 */
export const detach = <IO extends Duplex>(
  self: Upgraded<IO>
): Effect.Effect<{ readonly socket: IO; readonly leftover: Chunk.Chunk<Uint8Array> }> =>
  Effect.sync(() => ({ socket: self.socket, leftover: Chunk.fromIterable(wireOf(self).detach()) }))

/**
 * The connection as the platform's `Socket`: `run` and `runRaw` end at the peer's FIN, a `CloseEvent` that is written
 * sends FIN.
 *
 * @since 0.1.0
 * @category converting
 */
export const toSocket = (self: Upgraded): Socket.Socket => internal.toSocket(wireOf(self))

/**
 * The connection as a Duplex of Node, for a library that wants one: it reads `leftover` first. Destroying it with an
 * error resets nothing of its own: the owning Scope closes the connection. The library reads through it from here on, so
 * other readers are told `Busy` or `Closed`.
 *
 * @since 0.1.0
 * @category converting
 */
export const toDuplex = (self: Upgraded): Effect.Effect<Duplex> => Effect.sync(() => internal.toDuplex(wireOf(self)))

/**
 * The connection with a narrower type of socket, where it has one: by the class of the socket, or by the tag of the
 * listener. On the wrong type it hands itself back, in the `Left`.
 *
 * @example
 * ```ts
 * import { Either } from "effect"
 * import { Upgraded } from "effect-upgrade"
 * import { TLSSocket } from "node:tls"
 *
 * export const cipher = (upgraded: Upgraded.Upgraded) =>
 *   Either.match(Upgraded.downcast(upgraded, TLSSocket), {
 *     onLeft: () => "none",
 *     onRight: (tls) => tls.socket.getCipher().name
 *   })
 * ```
 *
 * @since 0.1.0
 * @category converting
 */
export const downcast: {
  <T extends Duplex>(
    type: (abstract new (...args: any) => T) | Context.Tag<any, Listener<T>>
  ): <IO extends Duplex, Token extends string>(
    self: Upgraded<IO, Token>
  ) => Either.Either<Upgraded<T, Token>, Upgraded<IO, Token>>
  <IO extends Duplex, Token extends string, T extends Duplex>(
    self: Upgraded<IO, Token>,
    type: (abstract new (...args: any) => T) | Context.Tag<any, Listener<T>>
  ): Either.Either<Upgraded<T, Token>, Upgraded<IO, Token>>
} = dual(
  2,
  <IO extends Duplex, Token extends string, T extends Duplex>(
    self: Upgraded<IO, Token>,
    type: (abstract new (...args: any) => T) | Context.Tag<any, Listener<T>>
  ): Either.Either<Upgraded<T, Token>, Upgraded<IO, Token>> => {
    const fits = Context.isTag(type)
      ? isListenedBy(self.connection.listener.key, type.key)
      : (self.socket as Duplex) instanceof (type as abstract new (...args: any) => T)
    return fits ? Either.right(self as Upgraded<any, Token>) : Either.left(self)
  }
)

/**
 * TLS in place, as a client or as the server of it.
 *
 * - `servername` (client): what the certificate must be for: the name of the host, or its address.
 * - Node's options of TLS: `ca`, `cert`, `key`, `ALPNProtocols`, `requestCert`, `rejectUnauthorized` and so on.
 * - `handshakeTimeout` (10 s): how long it may take.
 *
 * @since 0.1.0
 * @category models
 */
export type SecureOptions = { readonly handshakeTimeout?: Duration.DurationInput | undefined } & (
  | ({ readonly role: "client"; readonly servername: string } & Omit<
      ConnectionOptions,
      "host" | "path" | "port" | "servername" | "socket"
    >)
  | ({ readonly role: "server" } & Omit<TlsOptions, "handshakeTimeout">)
)

/**
 * Secures the connection where it stands: through a tunnel, after an `Upgrade: TLS/1.0` (RFC 2817), or whatever the
 * protocol agreed on. TLS begins behind all that was written, and reads `leftover` first.
 *
 * The connection stays the same, with its Scope and its owner; its `socket` is the TLS socket from here on, and closing it
 * closes what is below. The `Upgraded` that was given reads and writes no more.
 *
 * Fails with `ConnectionError` where the connection is gone, and with `TlsFailed` where the handshake fails; the connection
 * is then destroyed, as it is after an interruption.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { UpgradeClient, Upgraded } from "effect-upgrade"
 *
 * export const cipher = Effect.gen(function*() {
 *   const tunnel = yield* UpgradeClient.connect("http://proxy:3128", "example.com:443")
 *   const secured = yield* Upgraded.secure(tunnel, { role: "client", servername: "example.com" })
 *   return secured.socket.getCipher().name
 * }).pipe(Effect.scoped)
 * ```
 *
 * @since 0.1.0
 * @category converting
 */
export const secure: {
  (
    options: SecureOptions
  ): <Token extends string>(
    self: Upgraded<Duplex, Token>
  ) => Effect.Effect<Upgraded<TLSSocket, Token>, ConnectionError | TlsFailed>
  <Token extends string>(
    self: Upgraded<Duplex, Token>,
    options: SecureOptions
  ): Effect.Effect<Upgraded<TLSSocket, Token>, ConnectionError | TlsFailed>
} = dual(
  2,
  <Token extends string>(
    self: Upgraded<Duplex, Token>,
    options: SecureOptions
  ): Effect.Effect<Upgraded<TLSSocket, Token>, ConnectionError | TlsFailed> =>
    Effect.suspend(() => secureInPlace(self as UpgradedImpl<Duplex, Token>, options))
)
