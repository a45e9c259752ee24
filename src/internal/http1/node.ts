/**
 * What differs between versions of Node, and every field of `node:http` that it does not document. Nothing else in this
 * library reads one; `test/http1/node.test.ts` fails where a version no longer has it.
 */
import type * as Http from "node:http"
import type * as Net from "node:net"
import type { Duplex } from "node:stream"
import * as Tls from "node:tls"
import type { Hijackable } from "../hijack.js"

interface HttpSocket extends Duplex {
  _httpMessage?: Http.ServerResponse | null
  parser?: { onIncoming: (request: Http.IncomingMessage & { upgrade?: boolean }, keepAlive: boolean) => number } | null
  setTimeout?: (millis: number) => void
}

interface Response extends Http.ServerResponse {
  _last?: boolean
  _keepAliveTimeout?: number
  _maxRequestsPerSocket?: number | null
  _closed?: boolean
  maxRequestsOnConnectionReached?: boolean
}

const framesBodies = Number(process.versions.node.split(".")[0]) >= 26

/**
 * Has the parser of a new connection stop at the head of an upgrading request, as it does up to Node 24. From 26 on it
 * would parse the body too, and stand another stream in for the socket meanwhile, which swallows what is malformed, and
 * announces one such request a connection. Framed here, bodies are the same on all versions.
 *
 * A request whose connection may be taken behind an ordinary response is made an upgrading one: once the parser had gone
 * past its head, it would read the other protocol's bytes as another request, on every version.
 */
export const stopAtUpgrades = (socket: Duplex, hijackable?: Hijackable): void => {
  const { parser } = socket as HttpSocket
  if ((framesBodies || hijackable !== undefined) && parser) {
    const { onIncoming } = parser
    // 2: the message ends with its head, and what follows is not HTTP
    parser.onIncoming = (request, keepAlive) => {
      if (hijackable?.(request)) {
        request.upgrade = true
      }
      const result = onIncoming(request, keepAlive)
      return request.upgrade ? 2 : result
    }
  }
}

/**
 * Whether fields are missing behind the server's limit of them. Node 20 cuts them off, from 22 on it refuses the request;
 * one that is cut off may be the body's length, and the body would be taken for the next request.
 */
export const lacksFields = (server: Http.Server, request: Http.IncomingMessage): boolean => {
  const limit = typeof server.maxHeadersCount === "number" ? server.maxHeadersCount * 2 : 2000
  return limit > 0 && request.rawHeaders.length >= limit
}

/** The TCP socket below a TLS one that a server accepted. */
export const carrierOf = (socket: Duplex): Duplex | undefined => (socket as { _parent?: Duplex })._parent

/** The response that is being written to the socket: an earlier one, of a pipelined request, or this request's own. */
export const currentResponse = (socket: Duplex): Http.ServerResponse | undefined =>
  (socket as HttpSocket)._httpMessage ?? undefined

/** Node takes off its own relay at 'upgrade', and a response that waits for the socket to drain would wait for ever. */
export const relayDrain = (socket: Duplex): void => {
  currentResponse(socket)?.emit("drain")
}

/** Makes a response as Node does for an ordinary request, so that what it writes is the same. */
export const prepareResponse = (response: Http.ServerResponse, server: Http.Server, keepAlive: boolean): void => {
  const prepared = response as Response
  prepared._keepAliveTimeout = server.keepAliveTimeout
  prepared._maxRequestsPerSocket = server.maxRequestsPerSocket
  prepared.shouldKeepAlive = keepAlive
}

/** Whether the connection ends with this response. */
export const isLast = (response: Http.ServerResponse): boolean => (response as Response)._last === true

/** A response that is out is closed, as after an ordinary request. */
export const closeResponse = (response: Http.ServerResponse): void => {
  const closed = response as Response
  if (closed._closed !== true) {
    closed.destroyed = true
    closed._closed = true
    closed.emit("close")
  }
}

/**
 * Has the callback of `end` called also where the response closes unfinished: it waits for 'finish', which the loss of the
 * peer takes away, and a fiber that waits for it, as the platform's do, would be left behind.
 */
export const endsOnClose = (response: Http.ServerResponse): void => {
  const { end } = response
  response.end = (...args: Array<unknown>) => {
    const callback = args[args.length - 1]
    if (typeof callback !== "function") {
      return Reflect.apply(end, response, args)
    }
    let called = false
    const once = () => {
      if (!called) {
        called = true
        callback()
      }
    }
    Reflect.apply(end, response, [...args.slice(0, -1), once])
    if ((response as Response)._closed === true) {
      once()
    } else {
      response.once("close", once)
    }
    return response
  }
}

const kUnanswered = Symbol("effect-upgrade/unanswered")

type Answering = Duplex & { [kUnanswered]?: Set<Http.ServerResponse> }

/** Has a response of Node's own closed with its socket also where it has not had its turn: Node leaves those open. */
export const closesWithSocket = (response: Http.ServerResponse): void => {
  const unanswered = ((response.req.socket as Answering)[kUnanswered] ??= new Set())
  unanswered.add(response)
  response.once("finish", () => unanswered.delete(response))
  endsOnClose(response)
}

/** The socket has closed: nothing that was not answered will be. */
export const closeUnanswered = (socket: Duplex): void => {
  ;(socket as Answering)[kUnanswered]?.forEach((response) => {
    // The one that has the socket is closed by Node itself
    if (response !== currentResponse(socket)) {
      closeResponse(response)
    }
  })
}

/** A response that will write nothing: the connection has become another's, or is about to. */
export const setSpent = (response: Http.ServerResponse, spent: boolean): void => {
  response.finished = spent
}

/** Whoever was to answer is gone. */
export const answerForNobody = (response: Http.ServerResponse): void => {
  if (!response.headersSent && !response.writableEnded) {
    response.writeHead(500, { "content-length": "0" })
    response.end()
  }
}

/** Takes the timeouts of HTTP off a socket. */
export const clearTimeouts = (socket: Duplex): void => {
  ;(socket as HttpSocket).setTimeout?.(0)
}

/**
 * Starts reading again where Node stopped it, because pipelined responses had filled the socket: it takes off the
 * listeners that would have, and the stream goes on waiting for a read that was stopped below it. A push of nothing ends
 * that read.
 */
export const readAgain = (socket: Duplex): void => {
  socket.push(Buffer.alloc(0))
}

/** A socket that Node accepted for HTTP half-closes, also where it is TLS. */
export const allowHalfOpen = (socket: Duplex): void => {
  socket.allowHalfOpen = true
}

const kRequests = Symbol("effect-upgrade/requests")

/**
 * Counts a request for the server's `maxRequestsPerSocket`: Node counts anew each time that it is given the socket back.
 * The last response that is allowed says so; `false` for a request beyond it, which has been answered as Node does.
 */
export const countRequest = (server: Http.Server, socket: Duplex, response: Http.ServerResponse): boolean => {
  const limit = server.maxRequestsPerSocket
  if (limit === null || limit <= 0) {
    return true
  }
  const counted = socket as Duplex & { [kRequests]?: number }
  const requests = (counted[kRequests] = (counted[kRequests] ?? 0) + 1)
  ;(response as Response).maxRequestsOnConnectionReached = requests >= limit
  if (requests > limit) {
    server.emit("dropRequest", response.req, socket)
    response.writeHead(503)
    response.end()
    return false
  }
  return true
}

/** Gives the socket back to the server, as if it had just connected: Node serves what is unread on it, and what follows. */
export const handBack = (
  server: Http.Server,
  socket: Duplex,
  unread: ReadonlyArray<Uint8Array>,
  hijackable?: Hijackable
): void => {
  if (unread.length > 0) {
    socket.unshift(unread.length === 1 ? unread[0]! : Buffer.concat(unread))
  }
  const event = server instanceof Tls.Server ? "secureConnection" : "connection"
  // Node's own listener only: to the others it is no new connection
  const own = server.listeners(event).find(({ name }) => name === "connectionListener")
  if (own === undefined) {
    server.emit(event, socket)
  } else {
    Reflect.apply(own, server, [socket])
    stopAtUpgrades(socket, hijackable)
  }
  if (unread.length === 0 && server.keepAliveTimeout > 0) {
    const net = socket as Net.Socket
    // What Node does between two requests: it allows a second more than it told the client.
    net.setTimeout(server.keepAliveTimeout + 1000)
    net.once("data", () => net.setTimeout(server.timeout))
  }
}
