/**
 * A connection without a port: two ends, each of which behaves as a `net.Socket` does, for `node:http` and for this
 * library, so that what runs over them goes through the same code as over TCP.
 *
 * What is on its way to an end lies in its inbox, which stands for the buffers of both kernels. It is delivered packet
 * by packet, each in a turn of the event loop of its own (`setImmediate`), as libuv delivers what it reads: never inside
 * the peer's call, and with `nextTick` and the promise jobs run in between.
 *
 * In two things it is stricter than a TCP connection within one Linux machine, and no stricter than TCP may be: a reset
 * erases what was not yet read (RFC 9112 §9.6), and the kernels hold no more than one write.
 *
 * @internal
 */
import { isIPv6 } from "node:net"
import { constants } from "node:os"
import { Duplex } from "node:stream"

/** One end's address. */
export interface Endpoint {
  readonly address: string
  readonly port: number
}

export interface PairOptions {
  /** Where the server listens: `127.0.0.1`, port 80. */
  readonly server?: Endpoint | undefined
  /** Where the client connects from: `127.0.0.1` and a port that no other pair has had lately. */
  readonly client?: Endpoint | undefined
  /** Neither end has an address, as over a Unix socket. */
  readonly unix?: boolean | undefined
  /** Sets `encrypted` on the server's end, as a `TLSSocket` has it. */
  readonly encrypted?: boolean | undefined
  /** The high-water mark of both directions of both ends, in bytes: 64 KiB. */
  readonly highWaterMark?: number | undefined
}

// What libuv reads at once
const maxRead = 64 * 1024

interface Handle {
  reading: boolean
  readonly isStreamBase: false
  readonly readStart: () => void
  readonly readStop: () => void
}

const systemError = (syscall: "read" | "write", code: "ECONNRESET" | "EPIPE"): NodeJS.ErrnoException =>
  Object.assign(new Error(`${syscall} ${code}`), { errno: -constants.errno[code], code, syscall })

const family = (endpoint: Endpoint | undefined): string | undefined =>
  endpoint === undefined ? undefined : isIPv6(endpoint.address) ? "IPv6" : "IPv4"

const sizeOf = (packets: ReadonlyArray<Uint8Array>): number => packets.reduce((size, packet) => size + packet.length, 0)

/** What was written and neither handed to `_write` nor corked. `Writable` tells only its length in public. */
const queuedWrites = (socket: Duplex): ReadonlyArray<Buffer> => {
  const { _writableState: state } = socket as unknown as {
    readonly _writableState: { readonly getBuffer: () => ReadonlyArray<{ readonly chunk: Buffer }> }
  }
  return socket.writableCorked > 0 ? [] : state.getBuffer().map(({ chunk }) => chunk)
}

/** One end of a pair. */
export class MemorySocket extends Duplex {
  readonly connecting = false
  declare readonly encrypted?: boolean
  /** What `setTimeout` was last called with. */
  timeout: number | undefined
  bytesRead = 0
  readonly localAddress: string | undefined
  readonly localPort: number | undefined
  readonly localFamily: string | undefined
  readonly remoteAddress: string | undefined
  readonly remotePort: number | undefined
  readonly remoteFamily: string | undefined

  /**
   * The part of a socket's handle that `node:http` looks at: it starts and stops reading through it, and takes its own
   * 'pause' and 'resume' listeners away after an upgrade only if there is one. Null once destroyed.
   */
  _handle: Handle | null

  #peer: MemorySocket = this
  #inbox: Array<Buffer> = []
  /** The peer's FIN stands behind the inbox. */
  #finSent = false
  #finRead = false
  /** The peer has reset the connection. */
  #reset = false
  #resetting = false
  #scheduled = false
  /** The callback of the write that the peer has not read. */
  #unread: ((error?: Error | null) => void) | undefined
  #unreadBytes = 0
  #bytesTaken = 0
  #timer: NodeJS.Timeout | undefined

  private constructor(local: Endpoint | undefined, remote: Endpoint | undefined, highWaterMark: number) {
    // 'close' is emitted here, with `hadError`, as net.Socket does
    super({ allowHalfOpen: true, autoDestroy: true, emitClose: false, highWaterMark })
    this.localAddress = local?.address
    this.localPort = local?.port
    this.localFamily = family(local)
    this.remoteAddress = remote?.address
    this.remotePort = remote?.port
    this.remoteFamily = family(remote)
    this._handle = { reading: false, isStreamBase: false, readStart: () => this.#schedule(), readStop() {} }
  }

  static pair(options: PairOptions = {}): readonly [server: MemorySocket, client: MemorySocket] {
    const { highWaterMark = maxRead } = options
    const [server, client] =
      options.unix === true
        ? []
        : [
            options.server ?? { address: "127.0.0.1", port: 80 },
            options.client ?? { address: "127.0.0.1", port: port() }
          ]
    const ends = [
      new MemorySocket(server, client, highWaterMark),
      new MemorySocket(client, server, highWaterMark)
    ] as const
    ends[0].#peer = ends[1]
    ends[1].#peer = ends[0]
    if (options.encrypted === true) {
      Object.assign(ends[0], { encrypted: true })
    }
    for (const end of ends) {
      // A socket reads up to its high-water mark before anybody asks
      end.read(0)
    }
    return ends
  }

  // ------------------------------------------------------------------------------------------------- reading

  override _read(): void {
    if (this._handle !== null && !this._handle.reading) {
      this._handle.reading = true
      this.#schedule()
    }
  }

  get #readable(): boolean {
    return this._handle?.reading === true && (this.#inbox.length > 0 || this.#reset || this.#finSent) && !this.#finRead
  }

  #schedule(): void {
    if (!this.#scheduled && this.#readable) {
      this.#scheduled = true
      setImmediate(() => {
        this.#scheduled = false
        if (this.#readable) {
          this.#deliver()
        }
      })
    }
  }

  #deliver(): void {
    if (this.#reset) {
      this.destroy(systemError("read", "ECONNRESET"))
      return
    }
    const packet = this.#inbox.shift()
    if (packet === undefined) {
      this.#finRead = true
      this.push(null)
      // ends a stream that nobody reads and that has nothing to be read
      this.read(0)
      return
    }
    if (packet.length > maxRead) {
      this.#inbox.unshift(packet.subarray(maxRead))
    } else {
      // before the reader sees it, as a kernel has taken it before; but outside of this call
      process.nextTick(() => this.#peer.#taken())
    }
    const bytes = packet.subarray(0, maxRead)
    this.bytesRead += bytes.length
    this._unrefTimer()
    // beforehand, since a listener may throw
    this.#schedule()
    if (!this.push(bytes) && this._handle !== null) {
      this._handle.reading = false
    }
  }

  /** The peer is gone, and what it had sent with it. A reset is seen by who reads or writes, and by nobody else. */
  #resetByPeer(): void {
    this.#reset = true
    this.#inbox = []
    setImmediate(() => {
      if (this.#readable) {
        this.#deliver()
      } else {
        this.#taken(systemError("write", "ECONNRESET"))
      }
    })
  }

  // ------------------------------------------------------------------------------------------------- writing

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this._unrefTimer()
    if (this.#reset) {
      callback(systemError("write", "EPIPE"))
      return
    }
    this.#unread = callback
    this.#unreadBytes = chunk.length
    if (this.#peer.destroyed || chunk.length === 0) {
      if (this.#peer.destroyed) {
        // A kernel takes the first bytes for a peer that has closed; what comes back is a reset
        this.#resetByPeer()
      }
      process.nextTick(() => this.#taken())
      return
    }
    this.#send(chunk)
  }

  #send(bytes: Uint8Array): void {
    // A copy: the two ends share no memory
    this.#peer.#inbox.push(Buffer.from(bytes))
    this.#peer.#schedule()
  }

  #sendFin(): void {
    this.#peer.#finSent = true
    this.#peer.#schedule()
  }

  #taken(error?: Error): void {
    const callback = this.#unread
    if (callback !== undefined) {
      this.#unread = undefined
      // `Writable` takes them off its length before it calls anybody
      this.#bytesTaken += this.#unreadBytes
      callback(error)
    }
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#sendFin()
    setImmediate(callback)
  }

  get bytesWritten(): number {
    return this.#bytesTaken + this.writableLength
  }

  // ------------------------------------------------------------------------------------------------- closing

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    clearTimeout(this.#timer)
    this._handle = null
    if (!this.#reset && !this.#peer.destroyed) {
      const queued = queuedWrites(this)
      if (this.#resetting || this.#inbox.length > 0 || sizeOf(this.#peer.#inbox) + sizeOf(queued) > maxRead) {
        this.#peer.#resetByPeer()
      } else {
        // A kernel would have taken these before the close
        queued.forEach((bytes) => this.#send(bytes))
        this.#sendFin()
      }
    }
    callback(error)
    this.#taken(error ?? undefined)
    setImmediate(() => this.emit("close", error !== null))
  }

  /** Ends the writing side, and destroys the socket when all is written. */
  destroySoon(): void {
    if (this.writable) {
      this.end()
    }
    if (this.writableFinished) {
      this.destroy()
    } else {
      this.once("finish", () => this.destroy())
    }
  }

  /** Closes with a reset. */
  resetAndDestroy(): this {
    this.#resetting = true
    return this.destroy()
  }

  // ------------------------------------------------------------------------------------------------- the rest of net.Socket

  /** Emits 'timeout' once when nothing was read or written for so long; 0 for never. It does not close the socket. */
  setTimeout(milliseconds: number, listener?: () => void): this {
    if (this.destroyed) {
      return this
    }
    this.timeout = milliseconds
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (milliseconds === 0) {
      if (listener !== undefined) {
        this.removeListener("timeout", listener)
      }
      return this
    }
    this.#timer = setTimeout(() => this.emit("timeout"), milliseconds).unref()
    if (listener !== undefined) {
      this.once("timeout", listener)
    }
    return this
  }

  /** Called by `node:http` and by reads and writes: there was activity. */
  _unrefTimer(): void {
    this.#timer?.refresh()
  }

  setNoDelay(_noDelay?: boolean): this {
    return this
  }

  setKeepAlive(_enable?: boolean, _initialDelay?: number): this {
    return this
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }

  address(): { readonly address: string; readonly family: string; readonly port: number } | {} {
    return this.localAddress === undefined
      ? {}
      : { address: this.localAddress, family: this.localFamily, port: this.localPort }
  }

  get pending(): boolean {
    return this._handle === null
  }

  get readyState(): "open" | "readOnly" | "writeOnly" | "closed" {
    return this.readable ? (this.writable ? "open" : "readOnly") : this.writable ? "writeOnly" : "closed"
  }
}

// The ephemeral ports, RFC 6335 §6
const firstPort = 49152
let ports = 0
const port = (): number => firstPort + (ports++ % (65536 - firstPort))

/**
 * The two ends of a new connection. Both are half-open: a FIN is 'end' at the other, which can go on writing. Each write
 * of one end is one 'data' of the other (cut at 64 KiB), and its callback comes when the other has read it.
 */
export const pair = (options?: PairOptions): readonly [server: MemorySocket, client: MemorySocket] =>
  MemorySocket.pair(options)
