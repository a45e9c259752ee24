/**
 * The one owner of a socket's listeners: pull, write, half-close and close over any Node Duplex.
 *
 * A `Wire` is attached in the tick in which the socket is handed over, so no error of the peer is ever unheard. From then
 * on it reads into a bounded queue, from which readers take; `leftover` is what lies there at the moment of the switch.
 */

import type { Duplex } from "node:stream"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { ConnectionError } from "../../UpgradeError.js"
import type { Deadline, Deadlines } from "../deadlines.js"
import { copyOf } from "./copy.js"
import { type AnyFiber, Immediate, Inbox } from "./inbox.js"
import { bytesSent, lend, unflow, unsent } from "./node.js"

/** Above this much unread input the socket is paused. With Node's own buffers a connection holds less than 256 KiB. */
const HIGH_WATER = 32 * 1024

/** What Node reads at a time, at most. */
const FULL_READ = 64 * 1024

/** What a queued piece costs beside its bytes, so that a peer who sends single bytes is bounded too. */
const PIECE = 256

export interface Limits {
  readonly writeTimeout: number
  readonly idleTimeout: number
  readonly closeTimeout: number
}

const takeTurn = (wire: Wire) => wire.takeTurn()

const whenIdle = (wire: Wire) => Wire.idleOver(wire)

const kWire = Symbol("effect-upgrade/Wire")

type Wired = Duplex & { [kWire]: Wire }

interface Waiter {
  readonly fiber: AnyFiber
  readonly wake: () => void
}

/** A protocol that takes what the connection brings in the socket's own callbacks, in place of those who read the queue. */
export interface Tenant {
  /** Takes bytes that are its own, or, where they are borrowed, only until it returns; it may change them. */
  readonly receive: (bytes: Uint8Array, isBorrowed: boolean) => void
  /** Where what comes next may be read to directly. */
  readonly space: Uint8Array | undefined
  /** So much was read to `space`. */
  readonly filled: (size: number) => void
  /** The peer's FIN was read. */
  readonly onEof: () => void
  /** The connection failed, or closed; `wire.error` says why. */
  readonly onLost: () => void
  /** The socket has sent all that it held. */
  readonly onDrained: () => void
  /** The connection is to be closed: says what is to be said before, and yields whether its end is an orderly one. */
  readonly farewell: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<boolean>
}

const codeOf = (cause: unknown): string | undefined =>
  typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : undefined

const resetCodes = new Set(["ECONNRESET", "EPIPE", "ECONNABORTED", "ERR_STREAM_PREMATURE_CLOSE"])

/** Not checked by the schema again: a lost connection should cost little. */
const failure = (reason: ConnectionError["reason"], description: string, cause?: unknown): ConnectionError =>
  new ConnectionError(cause === undefined ? { reason, description } : { reason, description, cause }, true)

/** What the system reported, as an error of the field. */
const fromCause = (cause: unknown): ConnectionError => {
  const code = codeOf(cause)
  const text = cause instanceof Error ? cause.message : String(cause)
  if (code !== undefined && resetCodes.has(code)) {
    return failure("Reset", `The peer reset the connection (${code}).`, cause)
  }
  if (code === "ETIMEDOUT") {
    return failure("Timeout", `The connection timed out (${code}).`, cause)
  }
  const write = typeof cause === "object" && cause !== null && "syscall" in cause && cause.syscall === "write"
  return failure(write ? "Write" : "Read", `${write ? "Writing" : "Reading"} failed: ${text}`, cause)
}

const closed = (description: string) => failure("Closed", description)

function onData(this: Wired, bytes: Uint8Array) {
  this[kWire].receive(bytes)
}

/** What all sockets that have a tenant read to; nobody else sees it. */
const shared = Buffer.allocUnsafeSlow(FULL_READ)

/** A read of so much is copied at once, lest each message in it be. */
const SMALL_READ = 16 * 1024

/** What the socket that has just read reads to next. */
let next: Uint8Array = shared

const nextBuffer = () => next

function onRead(this: Duplex, size: number, buffer: Uint8Array): boolean {
  next = (this as Wired)[kWire].read(size, buffer)
  return true
}

function onEnd(this: Wired) {
  const wire = this[kWire]
  wire.endedByPeer()
}

function onError(this: Wired, cause: unknown) {
  this[kWire].failed(fromCause(cause))
}

function onDrain(this: Wired) {
  const wire = this[kWire]
  wire.onDrained?.()
  wire.wakeWriters()
  wire.tenant?.onDrained()
}

function onClose(this: Wired) {
  this[kWire].closedNow()
}

// A socket that is no longer ours can still fail; nobody's program dies of it (an 'error' without a listener throws).
const ignore = () => {}

export class Wire extends Inbox<Uint8Array, ConnectionError, void> {
  private paused = false
  private held = false
  private yielding = false
  private discarding = false
  private detached = false
  private writers: Array<Waiter> | undefined
  private stall: Deadline | undefined
  private idle: Deadline | undefined
  private received = 0
  /** What had moved when nothing was known to move since. */
  private idleSince = 0

  /** The peer's FIN was read. */
  eof = false
  /** The socket has emitted 'close'. */
  isClosed = false
  /** Closing began at this end. */
  closing = false
  error: ConnectionError | undefined
  /** The connection went before both sides had ended, and not by this end's closing it. */
  isLost = false
  /** The fiber whose pending read or write was failed by the loss: it knows, and need not be interrupted. */
  informed: AnyFiber | undefined
  /** Takes what arrives before it is queued, and returns what is not for it: the request's body, before the switch. */
  intake: ((bytes: Uint8Array) => Uint8Array | undefined) | undefined
  /** Called at the peer's FIN. */
  onEof: (() => void) | undefined
  /** Called when the socket has sent all that it held. */
  onDrained: (() => void) | undefined
  /** Told once, when the socket has closed. */
  owner: { readonly wireClosed: () => void } | undefined
  private closeWaiters: Array<() => void> | undefined
  tenant: Tenant | undefined

  constructor(
    readonly socket: Duplex,
    readonly deadlines: Deadlines,
    public limits: Limits
  ) {
    super()
    const wired = socket as Wired
    wired[kWire] = this
    wired.on("error", onError)
    wired.on("end", onEnd)
    wired.on("close", onClose)
    wired.on("drain", onDrain)
    wired.on("data", onData)
  }

  // ---------------------------------------------------------------------------------------------------------- reading

  /** Takes what was read to a buffer of ours, and says where to read to next. */
  read(size: number, buffer: Uint8Array): Uint8Array {
    const { tenant } = this
    const isShared = buffer === shared
    if (this.detached) {
      this.socket.push(isShared ? copyOf(shared, 0, size) : Buffer.from(buffer.subarray(0, size)))
    } else if (!this.discarding) {
      this.count(size, buffer.length)
      if (!isShared) {
        tenant!.filled(size)
      } else if (size <= SMALL_READ) {
        tenant!.receive(copyOf(shared, 0, size), false)
      } else {
        tenant!.receive(shared.subarray(0, size), true)
      }
    }
    return (this.discarding || this.detached ? undefined : tenant!.space) ?? shared
  }

  private count(size: number, capacity: number): void {
    this.received += size
    if (size >= FULL_READ && size >= capacity && !this.yielding) {
      // There is more: the system would go on reading this socket up to 32 times before it looks at another.
      this.yielding = true
      this.flow()
      setImmediate(takeTurn, this)
    }
  }

  receive(bytes: Uint8Array): void {
    if (this.discarding) {
      return
    }
    this.count(bytes.length, FULL_READ)
    if (this.intake !== undefined) {
      const rest = this.intake(bytes)
      if (rest === undefined || rest.length === 0) {
        return
      }
      bytes = rest
    }
    if (this.tenant !== undefined) {
      this.tenant.receive(bytes, false)
      return
    }
    this.queue.push(bytes)
    this.size += bytes.length + PIECE
    if (this.awaitsInput) {
      this.offer()
    } else if (this.size >= HIGH_WATER) {
      this.pause()
    }
  }

  /** Stops the peer, until `resume`. */
  pause(): void {
    this.held = true
    this.flow()
  }

  resume(): void {
    this.held = false
    this.flow()
  }

  /** The peer is not being stopped. */
  get isFlowing(): boolean {
    return !this.held
  }

  private flow(): void {
    if (this.detached) {
      return
    }
    const paused = this.held || this.yielding
    if (paused !== this.paused) {
      this.paused = paused
      if (paused) {
        this.socket.pause()
      } else {
        this.socket.resume()
      }
    }
  }

  /** Goes on reading after the others had their turn. */
  takeTurn(): void {
    this.yielding = false
    if (!this.detached && !this.isClosed) {
      this.flow()
    }
  }

  /** What has arrived and was not read, without taking it. */
  peek(): Chunk.Chunk<Uint8Array> {
    return this.queue.length === 0 ? Chunk.empty() : Chunk.fromIterable(this.queue)
  }

  protected override get outcome(): undefined {
    return undefined
  }

  protected override taken(): void {
    this.resume()
  }

  endedByPeer(): void {
    this.eof = true
    this.onEof?.()
    this.tenant?.onEof()
    this.wakeInline()
  }

  /**
   * From here on all that comes is the tenant's, and what was not read yet the first of it: a copy, since a tenant may
   * change the bytes that it is given, and these are `leftover`.
   */
  occupy(tenant: Tenant): void {
    this.tenant = tenant
    const unread = this.queue
    this.queueless()
    this.resume()
    for (const bytes of unread) {
      tenant.receive(Buffer.from(bytes), false)
    }
    if (!this.eof && !this.isClosed) {
      lend(this.socket, shared, onRead, nextBuffer)
    }
    if (this.eof) {
      tenant.onEof()
    }
    if (this.error !== undefined || this.isClosed) {
      tenant.onLost()
    }
  }

  protected override get isOccupied(): boolean {
    return this.tenant !== undefined
  }

  /** Puts bytes back, before all that is queued. */
  unread(bytes: Uint8Array): void {
    if (bytes.length > 0) {
      this.queue.unshift(bytes)
      this.size += bytes.length + PIECE
    }
  }

  /** Why nothing more can be read; `undefined` while something may come, `None` for the peer's FIN. */
  protected override ended(): Option.Option<ConnectionError> | undefined {
    if (this.detached) {
      return Option.some(closed("The socket was detached: the library reads it no more."))
    }
    // What arrived before a reset was read before: the FIN, once seen, stays the end of the input.
    return this.eof
      ? Option.none()
      : this.error !== undefined
        ? Option.some(this.error)
        : this.closing
          ? Option.some(closed("The connection was closed at this end."))
          : undefined
  }

  // ---------------------------------------------------------------------------------------------------------- writing

  private unwritable(): ConnectionError | undefined {
    if (this.error !== undefined) {
      return this.error
    }
    if (this.closing || this.isClosed) {
      return closed("The connection is closed.")
    }
    return this.socket.writableEnded ? closed("This side has ended: nothing can be written after end.") : undefined
  }

  private get takesMore(): boolean {
    const { socket } = this
    return (
      this.error === undefined && !this.closing && !this.isClosed && !socket.writableEnded && !socket.writableNeedDrain
    )
  }

  /** Writes, and is done when the socket takes more. A full socket is waited for before it as well as after. */
  writing(write: Write): Effect.Effect<void, ConnectionError> {
    if (this.takesMore) {
      return write.put(this.socket) ? Effect.void : this.drained()
    }
    const failure = this.unwritable()
    return failure !== undefined ? Effect.fail(failure) : Effect.zipRight(this.drained(), write)
  }

  write(bytes: Uint8Array | string): Effect.Effect<void, ConnectionError> {
    return new WriteOne(this, bytes)
  }

  /** All of it in one system call where the socket can. */
  writeAll(pieces: Iterable<Uint8Array | string>): Effect.Effect<void, ConnectionError> {
    return Chunk.isChunk(pieces) && pieces.length === 1
      ? this.write(Chunk.unsafeHead(pieces) as Uint8Array | string)
      : new WriteAll(this, pieces)
  }

  /** Sends FIN after all that was written, and is done when that is out. */
  end(): Effect.Effect<void, ConnectionError> {
    return Effect.withFiberRuntime((fiber) => {
      const { socket } = this
      if (socket.writableFinished) {
        return Effect.void
      }
      if (this.error !== undefined || this.isClosed || this.closing) {
        return Effect.fail(this.error ?? closed("The connection is closed."))
      }
      if (!socket.writableEnded) {
        socket.end()
        socket.once("finish", () => this.wakeWriters())
      }
      return Effect.zipRight(this.awaitWriter(fiber), this.end())
    })
  }

  private drained(): Effect.Effect<void, ConnectionError> {
    return Effect.withFiberRuntime((fiber) => {
      if (this.error !== undefined || this.isClosed || this.closing) {
        return Effect.fail(this.error ?? closed("The connection was closed while a write waited for the peer."))
      }
      return this.socket.writableNeedDrain ? Effect.zipRight(this.awaitWriter(fiber), this.drained()) : Effect.void
    })
  }

  /** Done when the socket has sent all that it held, and when it will send no more. */
  get awaitWrite(): Effect.Effect<void> {
    return Effect.withFiberRuntime((fiber) => this.awaitWriter(fiber))
  }

  /** A fiber that waits to write. */
  get writingFiber(): AnyFiber | undefined {
    return this.writers?.[0]?.fiber
  }

  private awaitWriter(fiber: AnyFiber): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      const waiter: Waiter = { fiber, wake: () => resume(Effect.void) }
      if (this.writers === undefined) {
        this.writers = [waiter]
        this.watchStall()
      } else {
        this.writers.push(waiter)
      }
      return Effect.sync(() => {
        const at = this.writers === undefined ? -1 : this.writers.indexOf(waiter)
        if (at >= 0) {
          this.writers!.splice(at, 1)
        }
      })
    })
  }

  wakeWriters(): void {
    this.stall?.cancel()
    this.stall = undefined
    const writers = this.writers
    this.writers = undefined
    if (writers !== undefined) {
      for (const writer of writers) {
        writer.wake()
      }
    }
  }

  /** A write that waits while nothing leaves for `writeTimeout` fails, and the connection with it. */
  private watchStall(): void {
    const before = unsent(this.socket)
    const millis = this.limits.writeTimeout
    this.stall?.cancel()
    this.stall = this.deadlines.add(millis, () => {
      this.stall = undefined
      if (unsent(this.socket) !== before) {
        this.watchStall()
      } else if (this.writers !== undefined && this.writers.length > 0) {
        this.abort(
          new ConnectionError({
            reason: "Timeout",
            description: `The peer took nothing of what was written for ${millis} ms (writeTimeout).`
          })
        )
      } else {
        this.writers = undefined
      }
    })
  }

  private get moved(): number {
    return this.received + bytesSent(this.socket)
  }

  /** A connection on which nothing moves for `idleTimeout`, either way, fails. */
  watchIdle(): void {
    this.idleSince = this.moved
    this.idle = this.deadlines.add(this.limits.idleTimeout, whenIdle, this)
  }

  private idleOver(): void {
    if (this.moved !== this.idleSince) {
      this.watchIdle()
    } else {
      this.abort(
        new ConnectionError({
          reason: "Timeout",
          description: `Nothing was received or sent for ${this.limits.idleTimeout} ms (idleTimeout).`
        })
      )
    }
  }

  static idleOver(wire: Wire): void {
    wire.idleOver()
  }

  // ---------------------------------------------------------------------------------------------------------- closing

  /** Fails whoever waits, and whoever comes. */
  private fail(error: ConnectionError): void {
    this.error ??= error
    this.informed ??= this.readingFiber ?? this.writers?.[0]?.fiber
    this.wakeReader()
    this.wakeWriters()
    this.tenant?.onLost()
  }

  /** The socket reported an error; 'close' follows. */
  failed(error: ConnectionError): void {
    this.isLost ||= !this.closing
    this.fail(error)
  }

  private abort(error: ConnectionError): void {
    this.failed(error)
    this.socket.destroy()
  }

  closedNow(): void {
    if (this.isClosed) {
      return
    }
    this.isClosed = true
    if (!this.closing && !(this.eof && this.socket.writableFinished)) {
      this.isLost = true
      this.fail(closed("The connection closed before both sides had ended."))
    } else {
      this.wakeReader()
      this.wakeWriters()
      this.tenant?.onLost()
    }
    this.unlisten()
    this.owner?.wireClosed()
    this.owner = undefined
    const waiters = this.closeWaiters
    this.closeWaiters = undefined
    waiters?.forEach((wake) => wake())
  }

  /**
   * Closes for good, and is done when the socket is closed. Gracefully: what was written is flushed, FIN sent, and input
   * discarded until the peer's FIN (RFC 9112 §9.6: closing with input unread resets the connection, and the peer loses
   * what it had not read yet). Otherwise, or after `closeTimeout`, the socket is destroyed.
   */
  close(graceful: boolean): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      if (this.isClosed) {
        resume(Effect.void)
        return
      }
      let late: Deadline | undefined
      this.closeWaiters ??= []
      this.closeWaiters.push(() => {
        late?.cancel()
        resume(Effect.void)
      })
      const first = !this.closing
      this.closing = true
      if (first) {
        this.discarding = true
        this.intake = undefined
        this.queueless()
        this.wakeReader()
        this.wakeWriters()
        this.tenant?.onLost()
        this.idle?.cancel()
      }
      late = this.deadlines.add(this.limits.closeTimeout, () => {
        this.socket.destroy()
        this.closedNow()
      })
      if (!graceful) {
        this.socket.destroy()
      } else if (first) {
        if (this.detached && !this.socket.destroyed) {
          this.socket.on("data", onData)
        }
        this.socket.end()
        this.held = false
        this.yielding = false
        this.paused = false
        this.socket.resume()
      }
    })
  }

  private queueless(): void {
    this.queue = []
    this.size = 0
  }

  private unlisten(): void {
    this.idle?.cancel()
    this.stall?.cancel()
    const { socket } = this
    socket.off("data", onData)
    socket.off("end", onEnd)
    socket.off("drain", onDrain)
    socket.off("error", onError)
    socket.off("close", onClose)
    if (this.isClosed) {
      socket.on("error", ignore)
    }
  }

  /** Takes off every listener, and hands over what was unread: the socket is another's. */
  release(): ReadonlyArray<Uint8Array> {
    this.unlisten()
    return this.letGo()
  }

  /** Reads no more, and hands over what was unread. Errors are still heard, and the socket is still closed here. */
  detach(): ReadonlyArray<Uint8Array> {
    this.idle?.cancel()
    this.socket.off("data", onData)
    this.wakeReader()
    return this.letGo()
  }

  /** Leaves the socket as Node hands it out: not flowing, nobody's. */
  private letGo(): ReadonlyArray<Uint8Array> {
    this.detached = true
    if (!this.isClosed) {
      this.socket.pause()
      unflow(this.socket)
    }
    const unread = this.queue
    this.queueless()
    return unread
  }
}

/** What writing yields: `run` begins it where it stands. */
abstract class Write extends Immediate<void, ConnectionError> {
  constructor(private readonly wire: Wire) {
    super()
  }
  /** Whether the socket takes more. */
  abstract put(socket: Duplex): boolean
  override commit(): Effect.Effect<void, ConnectionError> {
    return this.wire.writing(this)
  }
}

class WriteOne extends Write {
  constructor(
    wire: Wire,
    private readonly bytes: Uint8Array | string
  ) {
    super(wire)
  }
  override put(socket: Duplex): boolean {
    return this.bytes.length === 0 || socket.write(this.bytes)
  }
}

class WriteAll extends Write {
  constructor(
    wire: Wire,
    private readonly pieces: Iterable<Uint8Array | string>
  ) {
    super(wire)
  }
  override put(socket: Duplex): boolean {
    socket.cork()
    try {
      let more = true
      for (const piece of this.pieces) {
        if (piece.length > 0) {
          more = socket.write(piece)
        }
      }
      return more
    } finally {
      socket.uncork()
    }
  }
}
