/**
 * Two connections made one: what comes of either is written to the other, in the callbacks of their sockets. No fiber and
 * no effect is in the path of a byte.
 *
 * ```
 *   a ──data──▶ flow "sent"     ──write──▶ b        a full b pauses a, its 'drain' resumes it
 *   a ◀──write── flow "received" ◀──data── b        a FIN ends one flow; a reset ends both
 * ```
 *
 * @internal
 */
import type { Duplex } from "node:stream"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Joinable, Joined, JoinOptions, Reason } from "../../Tunnel.js"
import { bytesSent } from "../duplex/node.js"
import type { Wire } from "../duplex/wire.js"
import { allowHalfOpen } from "../http1/node.js"
import { type UpgradedImpl, TypeId as UpgradedTypeId } from "../upgraded.js"

const defaultIdleTimeout = Duration.hours(1)

/** Closes with a reset where the transport knows one: TCP and memory do, TLS and a Unix socket refuse. */
const reset = (socket: Duplex): void => {
  try {
    ;(socket as Partial<{ resetAndDestroy: () => void }>).resetAndDestroy?.()
  } catch {
    // Refused: for TLS, a close without its own farewell says the same
  }
  socket.destroy()
}

// What is destroyed here can still fail; nobody's program dies of it
const ignore = () => {}

/** One of the two connections. */
class End {
  other!: End
  /** How many bytes were taken from here for the other. */
  bytes = 0
  /** The FIN of this end was passed on. */
  ended = false
  /** The FIN of the other was sent from here, and all before it. */
  finished: boolean
  /** It was lost after its own FIN: what it had sent is still on its way to the other. */
  gone = false

  private constructor(
    readonly socket: Duplex,
    readonly leftover: Iterable<Uint8Array>,
    readonly wire: Wire | undefined,
    /** The input was over before. */
    readonly eof: boolean
  ) {
    this.finished = socket.writableFinished
  }

  static of(joinable: Joinable): End {
    if (UpgradedTypeId in joinable) {
      const { wire } = joinable as UpgradedImpl
      const { eof, socket } = wire
      return new End(socket, wire.detach(), wire, eof)
    }
    const { leftover, socket } =
      "leftover" in joinable ? joinable : { leftover: Chunk.empty<Uint8Array>(), socket: joinable }
    allowHalfOpen(socket)
    return new End(socket, leftover, undefined, socket.readableEnded)
  }

  /** Bytes that have moved through the socket. */
  get moved(): number {
    return this.bytes + bytesSent(this.socket)
  }
}

/** The two ends, while bytes flow. */
class Join {
  private readonly a: End
  private readonly b: End
  private reason: Reason | undefined
  private resume: (reason: Effect.Effect<Reason>) => void = ignore
  /** Opens when one direction has ended. */
  readonly halfClosed = Effect.unsafeMakeLatch(false)
  isHalfClosed = false

  constructor(
    a: Joinable,
    b: Joinable,
    private readonly fiber: Fiber.RuntimeFiber<any, any>
  ) {
    this.a = End.of(a)
    this.b = End.of(b)
    this.a.other = this.b
    this.b.other = this.a
    const attach = [this.listen(this.a), this.listen(this.b)]
    for (const end of [this.a, this.b]) {
      for (const piece of end.leftover) {
        this.pass(end, piece)
      }
    }
    attach.forEach((start) => start())
  }

  get joined(): Joined {
    return { sent: this.a.bytes, received: this.b.bytes, reason: this.reason! }
  }

  /** Yields when the flow is over. */
  readonly awaited: Effect.Effect<Reason> = Effect.async((resume) => {
    if (this.reason !== undefined) {
      resume(Effect.succeed(this.reason))
    } else {
      this.resume = resume
    }
  })

  /** Listens for all but input, and returns what lets that in, and begins. */
  private listen(end: End): () => void {
    const { other, socket } = end
    const onData = (bytes: Uint8Array) => this.pass(end, bytes)
    const onEnd = () => this.passEnd(end)
    const onFinish = () => {
      end.finished = true
      if (other.gone) {
        this.over("Reset")
      } else {
        this.check()
      }
    }
    const onDrain = () => {
      if (!other.ended) {
        other.socket.resume()
      }
    }
    const onLost = () => this.lost(end)
    socket.on("end", onEnd)
    socket.on("finish", onFinish)
    socket.on("drain", onDrain)
    socket.on("error", onLost)
    socket.on("close", onLost)
    this.stops.push(() => {
      socket.off("data", onData)
      socket.off("end", onEnd)
      socket.off("finish", onFinish)
      socket.off("drain", onDrain)
      socket.on("error", ignore)
      socket.off("error", onLost)
      socket.off("close", onLost)
    })
    return () => {
      if (this.reason !== undefined) {
        return
      }
      if (end.eof) {
        this.passEnd(end)
      }
      if (socket.destroyed) {
        this.lost(end)
      } else if (!end.eof) {
        socket.on("data", onData)
        if (other.socket.writableNeedDrain) {
          socket.pause()
        } else {
          socket.resume()
        }
      }
    }
  }

  private readonly stops: Array<() => void> = []

  private pass(end: End, bytes: Uint8Array): void {
    const to = end.other.socket
    // Where it is not writable its peer is lost, or its owner closed it: 'close' follows, which says so.
    if (bytes.length > 0 && to.writable) {
      end.bytes += bytes.length
      if (!to.write(bytes)) {
        end.socket.pause()
      }
    }
  }

  private passEnd(end: End): void {
    end.ended = true
    end.other.socket.end()
    this.isHalfClosed = true
    this.halfClosed.unsafeOpen()
    this.check()
  }

  private check(): void {
    const { a, b } = this
    if (a.ended && b.ended && a.finished && b.finished) {
      this.over("Ended")
    }
  }

  /** An end failed, or closed before both directions had ended: the other learns of it in the same way. */
  private lost(end: End): void {
    if (this.reason !== undefined || (end.ended && end.finished)) {
      return
    }
    const { other } = end
    if (end.ended && !other.finished && !other.socket.destroyed) {
      // All that it sent is owed to the other first. What comes from there has nowhere to go.
      end.gone = true
      other.socket.resume()
    } else {
      this.over("Reset")
    }
  }

  /** The end of it: what has not ended in order is closed here, and not left to whoever owns it. */
  over(reason: Reason): void {
    if (this.reason !== undefined) {
      return
    }
    this.reason = reason
    for (const { socket, wire } of [this.a, this.b]) {
      if (reason !== "Ended" && wire !== undefined) {
        // Whoever waits for the tunnel learns of it from there, and need not be interrupted.
        wire.informed ??= this.fiber
      }
      if (reason === "Reset") {
        reset(socket)
      } else if (reason !== "Ended") {
        socket.destroy()
      }
    }
    this.stop()
    this.resume(Effect.succeed(reason))
  }

  private stop(): void {
    this.stops.forEach((stop) => stop())
  }

  /** Gives up in the middle: an `Upgraded` is closed by its Scope, and a bare socket here. */
  readonly abandon = Effect.sync(() => {
    if (this.reason === undefined) {
      this.stop()
      for (const { socket, wire } of [this.a, this.b]) {
        if (wire === undefined) {
          socket.destroy()
        } else {
          socket.pause()
        }
      }
    }
  })

  get moved(): number {
    return this.a.moved + this.b.moved
  }
}

/** Ends a tunnel in which nothing moves: by another time when one direction has ended. */
const watch = (join: Join, idle: Duration.Duration, halfClosed: Duration.Duration): Effect.Effect<void> => {
  const sooner = Duration.lessThan(halfClosed, idle)
  const loop: Effect.Effect<void> = Effect.suspend(() => {
    const half = join.isHalfClosed
    const before = join.moved
    const rest = Effect.sleep(half ? halfClosed : idle)
    return Effect.zipRight(
      half || !sooner ? rest : Effect.raceFirst(rest, join.halfClosed.await),
      Effect.suspend(() => {
        if (half === join.isHalfClosed && before === join.moved) {
          join.over(half ? "HalfClosedTimeout" : "IdleTimeout")
          return Effect.void
        }
        return loop
      })
    )
  })
  return loop
}

export const join = (a: Joinable, b: Joinable, options: JoinOptions = {}): Effect.Effect<Joined> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const idle = Duration.decode(options.idleTimeout ?? defaultIdleTimeout)
      const halfClosed = Duration.decode(options.halfClosedTimeout ?? idle)
      const join = new Join(a, b, fiber)
      const awaited = Effect.map(
        Effect.onInterrupt(restore(join.awaited), () => join.abandon),
        () => join.joined
      )
      return Duration.isFinite(idle) || Duration.isFinite(halfClosed)
        ? Effect.flatMap(Effect.fork(Effect.interruptible(watch(join, idle, halfClosed))), (watcher) =>
            Effect.ensuring(awaited, Fiber.interruptFork(watcher))
          )
        : awaited
    })
  )
