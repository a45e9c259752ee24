/** Where a client's connections come from: TCP, TLS, a Unix socket. */
import * as net from "node:net"
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import * as Effect from "effect/Effect"
import { ConnectFailed, TlsFailed } from "../../UpgradeError.js"

export interface Target {
  readonly host: string
  readonly port: number
  /** A Unix socket in place of host and port. */
  readonly path: string | undefined
  readonly secure: boolean
}

const defaultPorts: Record<string, number> = { "http:": 80, "ws:": 80, "https:": 443, "wss:": 443 }

/** Where a URL leads; `undefined` for a scheme that is not HTTP's. */
export const targetOf = (url: URL, path: string | undefined): Target | undefined => {
  const standard = defaultPorts[url.protocol]
  return standard === undefined || url.hostname === ""
    ? undefined
    : {
        // Without the brackets of an IPv6 address
        host: url.hostname.startsWith("[") ? url.hostname.slice(1, -1) : url.hostname,
        port: url.port === "" ? standard : Number(url.port),
        path,
        secure: standard === 443
      }
}

const nameOf = ({ host, path, port }: Target): string =>
  path ?? (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`)

const textOf = (cause: unknown): string => {
  if (cause instanceof AggregateError) {
    return cause.errors.map(textOf).join("; ")
  }
  return cause instanceof Error ? cause.message : String(cause)
}

export const tlsFailed = (what: string, cause: unknown): TlsFailed =>
  new TlsFailed({
    description: `${what} could not be secured: ${cause === undefined ? "the peer closed the connection" : textOf(cause)}.`,
    ...(cause === undefined ? {} : { cause })
  })

const connectFailed = (target: Target, cause: unknown): ConnectFailed => {
  const address = nameOf(target)
  const resolving = typeof cause === "object" && cause !== null && "syscall" in cause && cause.syscall === "getaddrinfo"
  return new ConnectFailed({
    address,
    reason: resolving ? "Resolve" : "Connect",
    description: resolving
      ? `The name of ${address} could not be resolved: ${textOf(cause)}.`
      : `There is no connection to ${address}: ${textOf(cause)}.`,
    ...(cause === undefined ? {} : { cause })
  })
}

/** A failed socket may fail again; nobody's program dies of it (an 'error' without a listener throws). */
const ignore = () => {}

/** What a TLS client says of itself: an address is no server name (RFC 6066 §3). */
export const nameFor = (host: string): { readonly servername?: string } =>
  net.isIP(host) === 0 ? { servername: host } : {}

const open = (target: Target, options: tls.ConnectionOptions): net.Socket => {
  const where = target.path === undefined ? { host: target.host, port: target.port } : { path: target.path }
  // Node documents allowHalfOpen for both; the types of tls.connect lack it
  const common = { ...where, allowHalfOpen: true }
  return target.secure
    ? tls.connect({ ...nameFor(target.host), ALPNProtocols: ["http/1.1"], ...options, ...common })
    : net.connect(common)
}

/**
 * A new connection, secured where its target is. `attach` gets the socket in the callback in which it is ready, so that
 * nothing of it goes unheard. Interrupted, it leaves nothing.
 */
export const dial = <A>(
  target: Target,
  options: tls.ConnectionOptions,
  attach: (socket: Duplex) => A
): Effect.Effect<A, ConnectFailed | TlsFailed> =>
  Effect.async((resume) => {
    let socket: net.Socket
    try {
      socket = open(target, options)
    } catch (cause) {
      resume(Effect.fail(target.secure ? tlsFailed(nameOf(target), cause) : connectFailed(target, cause)))
      return
    }
    const ready = target.secure ? "secureConnect" : "connect"
    let connected = false
    const onConnect = () => {
      connected = true
    }
    const onReady = () => {
      stop()
      socket.setNoDelay(true)
      resume(Effect.succeed(attach(socket)))
    }
    const failed = (cause: unknown) => {
      give()
      resume(Effect.fail(connected ? tlsFailed(nameOf(target), cause) : connectFailed(target, cause)))
    }
    const onClose = () => failed(undefined)
    const stop = () => {
      socket.off("connect", onConnect)
      socket.off(ready, onReady)
      socket.off("error", failed)
      socket.off("close", onClose)
    }
    const give = () => {
      stop()
      socket.on("error", ignore)
      socket.destroy()
    }
    socket.once("connect", onConnect)
    socket.once(ready, onReady)
    socket.once("error", failed)
    socket.once("close", onClose)
    return Effect.sync(give)
  })
