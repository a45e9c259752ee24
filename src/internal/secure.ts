/**
 * TLS in place: the same connection, with another socket on top of the one that it had.
 *
 * The old wire keeps its place until the handshake is done, so that a carrier which fails before that ends the connection
 * as ever. What it had read and nobody had taken is put back, and is what TLS reads first.
 */
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Tls } from "../Connection.js"
import type { SecureOptions } from "../Upgraded.js"
import { ConnectionError, type TlsFailed } from "../UpgradeError.js"
import { type ConnectionImpl, makeListener } from "./connection.js"
import { Wire } from "./duplex/wire.js"
import { nameFor, tlsFailed } from "./http1/clientSocket.js"
import { UpgradedImpl } from "./upgraded.js"

const listener = makeListener(Tls)

const defaultTimeout = Duration.seconds(10)

// Its failures are those of the TLS socket over it, which tells them; an 'error' without a listener would throw.
const ignore = () => {}

const put = (socket: Duplex, pieces: ReadonlyArray<Uint8Array>): void => {
  for (const piece of Array.from(pieces).reverse()) {
    socket.unshift(piece)
  }
}

type ClientOptions = Omit<Extract<SecureOptions, { readonly role: "client" }>, "role" | "handshakeTimeout">
type ServerOptions = Omit<Extract<SecureOptions, { readonly role: "server" }>, "role" | "handshakeTimeout">

interface Ends {
  readonly onSecured: (socket: tls.TLSSocket) => void
  readonly onFailed: (cause: unknown) => void
}

const asClient = (carrier: Duplex, { servername, ...options }: ClientOptions, ends: Ends): void => {
  const socket = tls.connect({
    ...options,
    // What the certificate must be for, also where it is an address, which is no server name (RFC 6066 §3)
    host: servername,
    ...nameFor(servername),
    socket: carrier
  })
  const onError = (cause: unknown) => {
    socket.on("error", ignore)
    ends.onFailed(cause)
  }
  socket.once("error", onError)
  socket.once("secureConnect", () => {
    socket.off("error", onError)
    ends.onSecured(socket)
  })
}

/** What a timer of Node can wait: the time limit is on the Clock instead. */
const longest = 2 ** 31 - 1

/** A server that never listens: what is to be known of names, ALPN and certificates of clients, Node's knows. */
const asServer = (carrier: Duplex, options: ServerOptions, ends: Ends): void => {
  const server = tls.createServer({ ...options, handshakeTimeout: longest })
  server.once("secureConnection", (socket) => {
    socket.allowHalfOpen = true
    ends.onSecured(socket)
  })
  server.once("tlsClientError", (cause, socket) => {
    socket.on("error", ignore)
    ends.onFailed(cause)
  })
  // A peer that ends in the middle of its handshake is gone: only a socket that is not half-open takes it so
  const { allowHalfOpen } = carrier
  carrier.allowHalfOpen = false
  server.emit("connection", carrier)
  carrier.allowHalfOpen = allowHalfOpen
}

/** `taken` gets the socket in the callback in which it is secured, so that nothing of it goes unheard. */
const handshake = <A>(
  carrier: Duplex,
  options: SecureOptions,
  taken: (socket: tls.TLSSocket) => A
): Effect.Effect<A, TlsFailed> =>
  Effect.async((resume) => {
    // A TLS socket ends with the one below it, and one that is destroyed after it may end the process
    const stop = () => {
      carrier.off("close", onClose)
      carrier.destroy()
    }
    const onFailed = (cause: unknown) => {
      stop()
      resume(Effect.fail(tlsFailed("The connection", cause)))
    }
    const onClose = () => onFailed(undefined)
    carrier.once("close", onClose)
    const ends: Ends = {
      onFailed,
      onSecured: (socket) => {
        carrier.off("close", onClose)
        resume(Effect.succeed(taken(socket)))
      }
    }
    try {
      if (options.role === "client") {
        const { handshakeTimeout: _timeout, role: _role, ...given } = options
        asClient(carrier, given, ends)
      } else {
        const { handshakeTimeout: _timeout, role: _role, ...given } = options
        asServer(carrier, given, ends)
      }
    } catch (cause) {
      onFailed(cause)
    }
    return Effect.sync(stop)
  })

/** Done when the carrier has taken all that was written before, for which TLS of Node before 20.6 does not wait. */
const flushed = (socket: Duplex): Effect.Effect<void> =>
  Effect.async((resume) => {
    if (socket.writableLength === 0) {
      resume(Effect.void)
    } else {
      socket.write("", () => resume(Effect.void))
    }
  })

/** The connection goes on as the TLS socket's: what closes it, or is told of its loss, is the same as before. */
const replace = <Token extends string>(
  { agreed, connection, definition, isClient, wire }: UpgradedImpl<Duplex, Token>,
  socket: tls.TLSSocket
): UpgradedImpl<tls.TLSSocket, Token> => {
  const carrier = wire.socket
  const isRead = carrier.readableFlowing === true
  wire.release()
  carrier.on("error", ignore)
  if (isRead) {
    // By TLS, where the carrier has no handle of the system's that TLS could read by itself
    carrier.resume()
  }
  wire.error = new ConnectionError({
    reason: "Closed",
    description: "TLS is spoken over this connection now: use what Upgraded.secure yielded."
  })
  const secured = Object.assign(connection as unknown as ConnectionImpl<tls.TLSSocket>, { socket, listener })
  const next = new Wire(socket, wire.deadlines, wire.limits)
  secured.own(next)
  next.watchIdle()
  return new UpgradedImpl(secured, next, definition, agreed, isClient)
}

export const secure = <Token extends string>(
  self: UpgradedImpl<Duplex, Token>,
  options: SecureOptions
): Effect.Effect<UpgradedImpl<tls.TLSSocket, Token>, ConnectionError | TlsFailed> => {
  const { wire } = self
  const { socket } = wire
  const millis = Duration.toMillis(options.handshakeTimeout ?? defaultTimeout)
  return wire.write("").pipe(
    Effect.zipRight(flushed(socket)),
    Effect.zipRight(
      Effect.suspend(() => {
        if (wire.eof) {
          return Effect.fail(tlsFailed("The connection", new Error("the peer has ended it")))
        }
        put(socket, wire.detach())
        return handshake(socket, options, (secured) => replace(self, secured))
      })
    ),
    Effect.timeoutFail({
      duration: Duration.millis(millis),
      onTimeout: () => tlsFailed("The connection", new Error(`the handshake took longer than ${millis} ms`))
    }),
    // Half a handshake is of no use to anybody
    Effect.onError(() => Effect.sync(() => socket.destroy()))
  )
}
