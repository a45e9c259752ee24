/**
 * A scripted peer: the other end of a connection, byte by byte, as effects.
 *
 * It knows no more of HTTP than how to read a response. It sends what it is told to, split as it is told to, ends or
 * resets the connection where the test wants that, and reads what comes back. It runs over a real socket (`connect`) and
 * over any Duplex (`fromDuplex`), and a Scope owns it: when the Scope closes, the socket is destroyed.
 *
 * It reads 16 KiB ahead of what is received, and no more: a peer that does not receive is a stalled reader. There is no
 * timer in it: what never comes is waited for until the test's own limit.
 *
 * @example
 * ```ts
 * import { Peer } from "effect-upgrade/testing"
 * import { Effect } from "effect"
 *
 * export const program = Effect.gen(function*() {
 *   const peer = yield* Peer.connect({ port: 3000 })
 *   yield* peer.send("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly")
 *   const head = yield* peer.receiveHead
 *   const echoed = yield* peer.receiveExactly(5)
 *   yield* peer.end
 *   return [head.status, new TextDecoder().decode(echoed)]
 * }).pipe(Effect.scoped)
 * ```
 *
 * @since 0.1.0
 */

import { Buffer } from "node:buffer"
import * as net from "node:net"
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Found, findHead, findResponse } from "../internal/testing/response.js"

/**
 * How a connection ended, as the peer saw it: by a FIN (`end`), by a reset (`reset`), or by neither (`close`): it was
 * destroyed at this end, or failed otherwise.
 *
 * @since 0.1.0
 * @category models
 */
export type Ending = "end" | "reset" | "close"

/**
 * The peer did not get what it waited for.
 *
 * - `reason`: how the connection ended before that: `Ended` by a FIN, `Reset` by a reset, `Closed` otherwise (a
 *   connection that was refused is one); or `Unexpected`, when what came is not what was expected.
 * - `expected`: what it waited for, in words.
 * - `received`: what has come and was not received before; the next `receive` begins with it.
 *
 * @since 0.1.0
 * @category errors
 */
export class PeerError extends Data.TaggedError("PeerError")<{
  readonly reason: "Ended" | "Reset" | "Closed" | "Unexpected"
  readonly expected: string
  readonly received: Uint8Array
  readonly cause?: unknown
}> {
  /**
   * @since 0.1.0
   */
  override get message(): string {
    const { cause, expected, reason, received } = this
    const how = {
      Ended: "the connection ended",
      Reset: "the connection was reset",
      Closed: "the connection was closed",
      Unexpected: "something else came"
    }[reason]
    const why = cause instanceof Error ? ` (${cause.message})` : ""
    return `The peer waited for ${expected}, but ${how}${why}. Unread are ${received.length} bytes: ${quote(received)}`
  }
}

/**
 * The head of a response. The names of `headers` are in lower case; several fields of one name are joined by ", ". `raw`
 * is the head as it came, one character a byte, with the empty line.
 *
 * @since 0.1.0
 * @category models
 */
export interface Head {
  readonly status: number
  readonly statusText: string
  readonly version: string
  readonly headers: Readonly<Record<string, string>>
  readonly raw: string
}

/**
 * A whole response: its head, its content without the framing (`text` is the same as UTF-8), the trailer fields behind
 * chunked content, and the interim responses (1xx) that came before it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Response extends Head {
  readonly body: Uint8Array
  readonly text: string
  readonly trailers: Readonly<Record<string, string>>
  readonly interim: ReadonlyArray<Head>
}

/**
 * The other end of a connection.
 *
 * - `socket`: what it runs over; read it through the peer only.
 * - `send`: writes bytes, or a string as UTF-8; done when the socket has taken them. Sending to a connection that is
 *   gone is no error: how it ended is for `closed` and for whoever receives.
 * - `sendSplit`: the same in pieces, cut before the given offsets. Each piece is a write of its own, two turns of the
 *   event loop behind the one before, so that the other side reads it by itself: always over a pair in memory, and over
 *   a socket as far as the system delivers at once.
 * - `receive`: the next piece, as the socket gave it.
 * - `receiveUntil`: everything up to and with the pattern.
 * - `receiveExactly`: so many bytes.
 * - `receiveHead`: the head of one response, interim ones too. What follows it is left.
 * - `receiveResponse`: a whole response that is not interim: by Content-Length, chunked, or until the FIN. A 101, 204 or
 *   304 has no content. After HEAD or CONNECT, which the response itself does not tell, use `receiveHead`.
 * - `receiveAll`: everything until the FIN.
 * - `end`: sends a FIN behind what was sent; receiving goes on.
 * - `reset`: closes with a reset, where the transport knows one; otherwise it destroys.
 * - `closed`: waits until the other side has ended the connection, and tells how. What comes until then is kept.
 *
 * Each of those that receive fails with a `PeerError` when the connection ends before, and has then taken nothing.
 *
 * @since 0.1.0
 * @category models
 */
export interface Peer {
  readonly socket: Duplex
  readonly send: (bytes: Uint8Array | string) => Effect.Effect<void>
  readonly sendSplit: (bytes: Uint8Array | string, at: ReadonlyArray<number>) => Effect.Effect<void>
  readonly receive: Effect.Effect<Uint8Array, PeerError>
  readonly receiveUntil: (pattern: string | Uint8Array) => Effect.Effect<Uint8Array, PeerError>
  readonly receiveExactly: (length: number) => Effect.Effect<Uint8Array, PeerError>
  readonly receiveHead: Effect.Effect<Head, PeerError>
  readonly receiveResponse: Effect.Effect<Response, PeerError>
  readonly receiveAll: Effect.Effect<Uint8Array, PeerError>
  readonly end: Effect.Effect<void>
  readonly reset: Effect.Effect<void>
  readonly closed: Effect.Effect<Ending>
}

/**
 * A step of a script: bytes to send, split before these offsets; a FIN; a reset; or bytes that must come next.
 *
 * @since 0.1.0
 * @category models
 */
export type Step =
  | { readonly send: Uint8Array | string; readonly split?: ReadonlyArray<number> | undefined }
  | { readonly end: true }
  | { readonly reset: true }
  | { readonly expect: Uint8Array | string }

/**
 * Where to connect: a TCP port (of 127.0.0.1 unless `host` says otherwise), with `tls` over TLS, or the path of a Unix
 * socket.
 *
 * @since 0.1.0
 * @category models
 */
export type Target =
  | { readonly port: number; readonly host?: string | undefined; readonly tls?: tls.ConnectionOptions | undefined }
  | { readonly path: string }

/**
 * A peer over a Duplex that is connected. `transport` is what carries it, where that is another socket (TCP under TLS):
 * `reset` resets it, and the Scope destroys it too.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromDuplex = (
  socket: Duplex,
  options?: { readonly transport?: Duplex | undefined }
): Effect.Effect<Peer, never, Scope.Scope> => acquire(() => new PeerImpl(socket, options?.transport))

/**
 * A peer over a new connection, with `TCP_NODELAY`, open to both sides until each has sent its FIN. Fails with reason
 * `Closed` if it cannot be made.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (target: Target): Effect.Effect<Peer, PeerError, Scope.Scope> =>
  Effect.flatMap(
    acquire(() => open(target)),
    ({ event, peer }) => Effect.as(peer.connected(event), peer)
  )

/**
 * Does the steps one after the other. Fails when what is expected does not come: with reason `Unexpected` when something
 * else does.
 *
 * @since 0.1.0
 * @category combinators
 */
export const run = (peer: Peer, script: ReadonlyArray<Step>): Effect.Effect<void, PeerError> =>
  Effect.forEach(script, (step) => runStep(peer, step), { discard: true })

const runStep = (peer: Peer, step: Step): Effect.Effect<void, PeerError> => {
  if ("send" in step) {
    return peer.sendSplit(step.send, step.split ?? [])
  }
  if ("end" in step) {
    return peer.end
  }
  if ("reset" in step) {
    return peer.reset
  }
  const expected = bufferOf(step.expect)
  return Effect.flatMap(peer.receiveExactly(expected.length), (received) =>
    expected.equals(received)
      ? Effect.void
      : Effect.fail(new PeerError({ reason: "Unexpected", expected: quote(expected), received }))
  )
}

const bufferOf = (bytes: Uint8Array | string): Buffer =>
  typeof bytes === "string" ? Buffer.from(bytes) : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const quote = (bytes: Uint8Array): string => {
  const shown = JSON.stringify(bufferOf(bytes.subarray(0, 200)).toString("latin1"))
  return bytes.length > 200 ? `${shown}...` : shown
}

const reasons = { end: "Ended", reset: "Reset", close: "Closed" } as const

const resetCodes = new Set(["ECONNRESET", "EPIPE", "ECONNABORTED", "ERR_HTTP2_STREAM_ERROR"])

const readAhead = 16 * 1024

const empty = Buffer.alloc(0)

class PeerImpl implements Peer {
  private chunks: Array<Buffer> = []
  private size = 0
  private ending: Ending | undefined
  private cause: unknown
  private readonly waiting = new Set<() => void>()
  private readonly unsent = new Set<() => void>()

  constructor(
    readonly socket: Duplex,
    readonly transport: Duplex | undefined
  ) {
    if (socket.destroyed || socket.readableEnded) {
      this.ending = socket.destroyed ? "close" : "end"
    }
    // Errors are heard for as long as there is a socket; one without a listener ends the process
    transport?.on("error", () => {})
    socket.on("error", (error: NodeJS.ErrnoException) => {
      this.ended(resetCodes.has(error.code ?? "") ? "reset" : "close", error)
    })
    socket.on("end", () => this.ended("end"))
    socket.on("close", () => {
      this.ended("close")
      // not every Duplex calls back the write that its end interrupts
      this.unsent.forEach((done) => done())
    })
    socket.on("data", (bytes: Buffer) => {
      this.chunks.push(bytes)
      this.size += bytes.length
      this.wake()
      if (this.waiting.size === 0 && this.size >= readAhead) {
        socket.pause()
      }
    })
  }

  private ended(ending: Ending, cause?: unknown): void {
    if (this.ending === undefined) {
      this.ending = ending
      this.cause = cause
      this.wake()
    }
  }

  private wake(): void {
    const attempts = [...this.waiting]
    this.waiting.clear()
    attempts.forEach((attempt) => attempt())
  }

  /** Tries at once, and again whenever something has come or the connection has ended. */
  private attempt<A, E>(make: () => Effect.Effect<A, E> | undefined): Effect.Effect<A, E> {
    return Effect.async<A, E>((resume) => {
      const attempt = () => {
        const result = make()
        if (result !== undefined) {
          resume(result)
        } else {
          this.waiting.add(attempt)
          this.socket.resume()
        }
      }
      attempt()
      return Effect.sync(() => this.waiting.delete(attempt))
    })
  }

  private merged(): Buffer {
    if (this.chunks.length > 1) {
      this.chunks = [Buffer.concat(this.chunks)]
    }
    return this.chunks[0] ?? empty
  }

  private taken(length: number): void {
    this.size -= length
    if (this.size < readAhead) {
      this.socket.resume()
    }
  }

  private failure(expected: string): Effect.Effect<never, PeerError> | undefined {
    return this.ending === undefined
      ? undefined
      : Effect.fail(
          new PeerError({ reason: reasons[this.ending], expected, received: this.merged(), cause: this.cause })
        )
  }

  private find<A>(expected: string, find: (bytes: Buffer, ended: boolean) => Found<A>): Effect.Effect<A, PeerError> {
    return this.attempt(() => {
      const found = find(this.merged(), this.ending === "end")
      if (found === undefined) {
        return this.failure(expected)
      }
      if ("malformed" in found) {
        const received = this.merged()
        return Effect.fail(
          new PeerError({ reason: "Unexpected", expected, received, cause: new Error(found.malformed) })
        )
      }
      const rest = this.merged().subarray(found.length)
      this.chunks = rest.length > 0 ? [rest] : []
      this.taken(found.length)
      return Effect.succeed(found.value)
    })
  }

  connected(event: string): Effect.Effect<void, PeerError> {
    return Effect.async<void, PeerError>((resume) => {
      const attempt = () => {
        const failed = this.failure("a connection")
        if (failed !== undefined) {
          resume(failed)
        } else {
          this.waiting.add(attempt)
        }
      }
      attempt()
      this.socket.once(event, () => {
        this.waiting.delete(attempt)
        resume(Effect.void)
      })
      return Effect.sync(() => this.waiting.delete(attempt))
    })
  }

  private writing(write: (done: () => void) => void): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      const done = () => {
        this.unsent.delete(done)
        resume(Effect.void)
      }
      // A TLSSocket that is written to after its transport was reset ends the process
      if (this.socket.writable && this.transport?.destroyed !== true) {
        this.unsent.add(done)
        write(done)
      } else {
        done()
      }
    })
  }

  readonly send = (bytes: Uint8Array | string): Effect.Effect<void> =>
    this.writing((done) => this.socket.write(bytes, done))

  readonly sendSplit = (bytes: Uint8Array | string, at: ReadonlyArray<number>): Effect.Effect<void> =>
    Effect.forEach(
      cut(bufferOf(bytes), at),
      (piece, i) => (i === 0 ? this.send(piece) : Effect.zipRight(turns, this.send(piece))),
      { discard: true }
    )

  readonly receive: Effect.Effect<Uint8Array, PeerError> = this.attempt(() => {
    const chunk = this.chunks.shift()
    if (chunk === undefined) {
      return this.failure("more bytes")
    }
    this.taken(chunk.length)
    return Effect.succeed(chunk)
  })

  readonly receiveUntil = (pattern: string | Uint8Array): Effect.Effect<Uint8Array, PeerError> => {
    const wanted = bufferOf(pattern)
    return this.find(quote(wanted), (bytes) => {
      const index = bytes.indexOf(wanted)
      const length = index + wanted.length
      return index === -1 ? undefined : { value: bytes.subarray(0, length), length }
    })
  }

  readonly receiveExactly = (length: number): Effect.Effect<Uint8Array, PeerError> =>
    this.find(`${length} bytes`, (bytes) =>
      bytes.length < length ? undefined : { value: bytes.subarray(0, length), length }
    )

  readonly receiveHead: Effect.Effect<Head, PeerError> = this.find("the head of a response", findHead)

  readonly receiveResponse: Effect.Effect<Response, PeerError> = this.find("a response", findResponse)

  readonly receiveAll: Effect.Effect<Uint8Array, PeerError> = this.find("a FIN", (bytes, ended) =>
    ended ? { value: bytes, length: bytes.length } : undefined
  )

  readonly end: Effect.Effect<void> = this.writing((done) => this.socket.end(done))

  readonly reset: Effect.Effect<void> = Effect.sync(() => {
    const carrier = this.transport ?? this.socket
    try {
      ;(carrier as Partial<net.Socket>).resetAndDestroy?.()
    } catch {
      // only TCP knows a reset: a Unix socket refuses, and TLS without its transport
    }
    this.destroy()
  })

  readonly closed: Effect.Effect<Ending> = this.attempt(() =>
    this.ending === undefined ? undefined : Effect.succeed(this.ending)
  )

  /** Destroys, and is done when what carries the connection is destroyed. */
  get destroyed(): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      this.destroy()
      const { transport } = this
      if (transport === undefined || transport.destroyed) {
        resume(Effect.void)
      } else {
        transport.once("close", () => resume(Effect.void))
      }
    })
  }

  private destroy(): void {
    const { socket, transport } = this
    if (transport === undefined) {
      socket.destroy()
    } else if (transport.destroyed) {
      // A TLSSocket ends with the socket below it; one that is destroyed after a reset of that one ends the process
    } else if (socket.closed) {
      transport.destroy()
    } else {
      socket.once("close", () => transport.destroy())
      socket.destroy()
    }
  }
}

const acquire = <A extends PeerImpl | { readonly peer: PeerImpl }>(make: () => A) =>
  Effect.acquireRelease(Effect.sync(make), (made) => (made instanceof PeerImpl ? made : made.peer).destroyed)

const open = (target: Target): { readonly peer: PeerImpl; readonly event: string } => {
  if ("path" in target) {
    return { peer: new PeerImpl(net.connect({ path: target.path, allowHalfOpen: true }), undefined), event: "connect" }
  }
  const host = target.host ?? "127.0.0.1"
  const socket = net.connect({ port: target.port, host, allowHalfOpen: true, noDelay: true })
  if (target.tls === undefined) {
    return { peer: new PeerImpl(socket, undefined), event: "connect" }
  }
  // An address is no server name, RFC 6066 §3
  const name = net.isIP(host) === 0 ? { servername: host } : {}
  const secured = tls.connect({ host, ...name, ...target.tls, socket })
  return { peer: new PeerImpl(secured, socket), event: "secureConnect" }
}

// The first may come before the event loop has looked for input, the second does not
const turns = Effect.async<void>((resume) => {
  setImmediate(() => setImmediate(() => resume(Effect.void)))
})

const cut = (bytes: Buffer, at: ReadonlyArray<number>): Array<Buffer> => {
  const points = [0, ...at.filter((point) => point > 0 && point < bytes.length).sort((a, b) => a - b), bytes.length]
  return points
    .slice(1)
    .map((point, i) => bytes.subarray(points[i], point))
    .filter((piece) => piece.length > 0)
}
