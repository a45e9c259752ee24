/**
 * permessage-deflate (RFC 7692 §7.2) on the public API of `node:zlib`.
 *
 * No zlib stream lives longer than a message. What a context is, the last bytes that were sent or received, is kept
 * here and given to the next message's stream as its dictionary: so an idle connection holds a window, and not the 100
 * KB and more of a pair of streams, a context that is not wanted costs nothing, and a message that did not get smaller
 * can be sent as it is without a trace in the context. A short message is done at once, since the way through the
 * thread pool would take longer, and that on the main thread.
 *
 * @internal
 */
import * as Zlib from "node:zlib"

/** At most so many jobs of zlib at once in the thread pool, in the order in which they came. */
export class Limiter {
  private static readonly shared = new Map<number, Limiter>()

  /** One for all connections of the process that ask for the same number. */
  static of(concurrency = 10): Limiter {
    let limiter = Limiter.shared.get(concurrency)
    if (limiter === undefined) {
      limiter = new Limiter(concurrency)
      Limiter.shared.set(concurrency, limiter)
    }
    return limiter
  }

  private readonly running = new Set<() => void>()
  private readonly waiting = new Set<() => void>()

  constructor(readonly concurrency: number) {}

  /** Starts a job when there is room. What it returns says that the job has ended, or that it need not start. */
  run(start: () => void): () => void {
    const job = () => start()
    if (this.running.size < this.concurrency) {
      this.running.add(job)
      job()
    } else {
      this.waiting.add(job)
    }
    return () => {
      this.waiting.delete(job)
      if (this.running.delete(job)) {
        const [next] = this.waiting
        if (next !== undefined) {
          this.waiting.delete(next)
          this.running.add(next)
          next()
        }
      }
    }
  }
}

/** The last `size` bytes of what was appended, in little more memory than it takes. */
class Context {
  private bytes = Buffer.alloc(0)
  private length = 0

  constructor(private readonly size: number) {}

  /** Valid until the next `append`. */
  get dictionary(): Uint8Array | undefined {
    return this.length === 0 ? undefined : this.bytes.subarray(Math.max(0, this.length - this.size), this.length)
  }

  append(data: Uint8Array): void {
    const added = data.length > this.size ? data.subarray(data.length - this.size) : data
    if (this.length + added.length > this.bytes.length) {
      const kept = Math.min(this.length, this.size - added.length)
      const target =
        this.bytes.length < this.limit
          ? Buffer.allocUnsafeSlow(Math.min(this.limit, 2 * (kept + added.length)))
          : this.bytes
      this.bytes.copy(target, 0, this.length - kept, this.length)
      this.bytes = target
      this.length = kept
    }
    this.bytes.set(added, this.length)
    this.length += added.length
  }

  // Room behind the window, so that it need not be moved for each message
  private get limit(): number {
    return this.size + (this.size >> 1)
  }
}

type Job = (done: () => void) => void

interface Engine {
  readonly destroy: () => void
}

export interface CodecOptions {
  /** How many jobs of zlib may run in the thread pool at once. Default 10. */
  readonly concurrency?: number | undefined
}

/** One message after the other, and nothing behind `close`. */
abstract class Codec {
  private readonly jobs: Array<Job> = []
  private running = false
  private abort: (() => void) | undefined
  private readonly limiter: Limiter
  protected closed = false

  constructor(options: CodecOptions) {
    this.limiter = Limiter.of(options.concurrency)
  }

  /**
   * A job that is done at once is done before this returns; if it was submitted in the callback of another, behind
   * that, so that many of them need no deep stack.
   */
  protected submit(job: Job): void {
    if (!this.closed) {
      this.jobs.push(job)
      if (!this.running) {
        this.drain()
      }
    }
  }

  private drain(): void {
    this.running = true
    let at = 0
    while (at < this.jobs.length) {
      let isDone = false
      let isLate = false
      this.jobs[at++]!(() => {
        isDone = true
        if (isLate) {
          this.drain()
        }
      })
      if (!isDone) {
        isLate = true
        this.jobs.splice(0, at)
        return
      }
    }
    this.jobs.length = 0
    this.running = false
  }

  /**
   * Runs a stream of zlib in the limiter's turn, until `disengage` or `close`; `failed` if there is no memory for it.
   */
  protected engage(start: () => Engine, failed: () => void): void {
    let engine: Engine | undefined
    const release = this.limiter.run(() => {
      try {
        engine = start()
      } catch {
        process.nextTick(failed)
      }
    })
    this.abort = () => {
      engine?.destroy()
      release()
    }
  }

  protected disengage(): void {
    this.abort?.()
    this.abort = undefined
  }

  /** Frees what zlib holds. No callback comes after this. */
  close(): void {
    this.closed = true
    this.jobs.length = 0
    this.disengage()
  }
}

const nothing = Buffer.alloc(0)

// An empty block without compression, of which RFC 7692 §7.2.1 has the sender leave out all but the first bits; and
// behind it one that is the last, so that zlib says whether the message was whole.
const emptyBlock = Buffer.from([0x00, 0x00, 0xff, 0xff])
const tail = Buffer.from([...emptyBlock, 0x01, 0x00, 0x00, 0xff, 0xff])

// The way to zlib's threads and back takes 25 to 45 µs of the main thread (Node 24), and as much of theirs. In that
// time the main thread inflates about 64 KiB, or deflates 2 KiB.
const maxInflateAtOnce = 16 * 1024
const maxInflatedAtOnce = 64 * 1024
const maxDeflateAtOnce = 2 * 1024

const minChunk = 1024
const maxChunk = 64 * 1024

// Enough for who ends each fragment's stream. Of two bytes each, a message could have half a million of them.
const maxStreams = 256

export type InflateFault = "TooBig" | "Corrupt"

/** Undoes the compression of whole messages, in order. */
export class Inflater extends Codec {
  private readonly context: Context | undefined

  constructor(
    private readonly windowBits: number,
    noContextTakeover: boolean,
    options: CodecOptions = {}
  ) {
    super(options)
    this.context = noContextTakeover ? undefined : new Context(1 << windowBits)
  }

  /**
   * The message of a payload, or `"TooBig"` as soon as it has more than `maxSize` bytes, or `"Corrupt"`; either closes
   * this. The callback may come before this returns.
   */
  inflate(
    payload: Uint8Array,
    maxSize: number,
    callback: (error: InflateFault | undefined, message?: Uint8Array) => void
  ): void {
    this.submit((done) => {
      const finish = (result: Uint8Array | InflateFault) => {
        if (typeof result === "string") {
          this.close()
          callback(result)
        } else {
          callback(undefined, result)
        }
        done()
      }
      // An empty message is 0x00 (RFC 7692 §7.2.3.6); some send nothing at all
      const result = payload.length === 0 ? nothing : this.inflateAtOnce(payload, maxSize)
      if (result === undefined) {
        this.inflateInPool(payload, maxSize, finish)
      } else {
        finish(result)
      }
    })
  }

  /** `undefined` where it is better done in the thread pool. */
  private inflateAtOnce(payload: Uint8Array, maxSize: number): Uint8Array | InflateFault | undefined {
    if (payload.length > maxInflateAtOnce) {
      return undefined
    }
    const limit = Math.min(maxSize, maxInflatedAtOnce)
    const chunkSize = chunkFor(payload)
    let inflated: Inflated
    try {
      inflated = Zlib.inflateRawSync(Buffer.concat([payload, tail]), {
        ...this.options(this.context, chunkSize),
        maxOutputLength: Math.max(1, limit),
        info: true
      }) as unknown as Inflated
    } catch (error) {
      return (error as NodeJS.ErrnoException).code !== "ERR_BUFFER_TOO_LARGE"
        ? "Corrupt"
        : limit === maxSize
          ? "TooBig"
          : undefined
    }
    const { buffer, engine } = inflated
    const rest = restOf(payload, engine.bytesWritten)
    if (rest === undefined) {
      return "Corrupt"
    }
    if (rest.length > 0) {
      return undefined
    }
    if (buffer.length > maxSize) {
      return "TooBig"
    }
    this.context?.append(buffer)
    // A small message is not to keep a big chunk from being freed
    return chunkSize > 4096 && buffer.length < chunkSize / 2 ? Buffer.from(buffer) : buffer
  }

  private inflateInPool(
    payload: Uint8Array,
    maxSize: number,
    finish: (result: Uint8Array | InflateFault) => void
  ): void {
    const chunks: Array<Uint8Array> = []
    let size = 0
    let streams = 0
    let isOver = false
    let context = this.context
    const end = (result: Uint8Array | InflateFault) => {
      if (!isOver && !this.closed) {
        isOver = true
        this.disengage()
        finish(result)
      }
    }
    const next = (input: Uint8Array, consumed: number, first: number) => {
      const rest = restOf(input, consumed)
      if (rest === undefined) {
        end("Corrupt")
        return
      }
      const isLast = rest.length === 0
      if (!isLast) {
        // What follows may refer to what the message has so far, also where its context ends with it
        context ??= new Context(1 << this.windowBits)
      }
      for (let i = first; i < chunks.length; i++) {
        context?.append(chunks[i]!)
      }
      if (isLast) {
        end(Buffer.concat(chunks, size))
      } else if (++streams === maxStreams) {
        end("Corrupt")
      } else {
        this.disengage()
        inflate(rest)
      }
    }
    const inflate = (input: Uint8Array): void => {
      const first = chunks.length
      const failed = () => end("Corrupt")
      this.engage(() => {
        const engine = Zlib.createInflateRaw(this.options(context, chunkFor(input)))
        engine.on("data", (chunk: Uint8Array) => {
          size += chunk.length
          if (size > maxSize) {
            end("TooBig")
          } else {
            chunks.push(chunk)
          }
        })
        engine.on("error", failed)
        engine.on("end", () => {
          if (!isOver && !this.closed) {
            next(input, engine.bytesWritten, first)
          }
        })
        engine.write(input)
        engine.end(tail)
        return engine
      }, failed)
    }
    inflate(payload)
  }

  private options(context: Context | undefined, chunkSize: number): Zlib.ZlibOptions {
    return { windowBits: this.windowBits, chunkSize, dictionary: context?.dictionary }
  }
}

interface Inflated {
  readonly buffer: Buffer
  readonly engine: { readonly bytesWritten: number }
}

const chunkFor = (payload: Uint8Array): number => Math.min(maxChunk, Math.max(minChunk, 4 * payload.length))

/**
 * What zlib left of a payload with the `tail` behind it. It stops before the end at a block with BFINAL (RFC 7692
 * §7.2.3.5): then the next block follows, at least the empty one's first octet. `undefined`: in the middle of the tail,
 * so the payload ended within a block.
 */
const restOf = (payload: Uint8Array, consumed: number): Uint8Array | undefined => {
  const left = payload.length - consumed
  return left > 1 || (left === 1 && payload[consumed] !== 0)
    ? payload.subarray(consumed)
    : left >= 0 || left === -emptyBlock.length || left === -tail.length
      ? nothing
      : undefined
}

export interface DeflaterOptions extends CodecOptions {
  readonly level?: number | undefined
  readonly memLevel?: number | undefined
}

// zlib has no window of 8 bits, and takes 9 instead; a match is never further away than the window less 262 bytes, so
// that what it makes fits in 8. (RFC 7692 §7.1.2.1)
const minWindowBits = 9
const lookahead = 262

const maxShort = 1024

// To hash a dictionary of 32 KiB takes 40 µs a message, and makes messages of a KiB 6 % smaller than one of 8 KiB does.
const maxDictionary = 8 * 1024

/** Compresses messages, in order. */
export class Deflater extends Codec {
  private readonly context: Context | undefined
  private readonly level: number
  private readonly memLevel: number

  constructor(
    private readonly windowBits: number,
    noContextTakeover: boolean,
    options: DeflaterOptions = {}
  ) {
    super(options)
    this.context = noContextTakeover ? undefined : new Context(Math.min(1 << windowBits, maxDictionary))
    this.level = options.level ?? Zlib.constants.Z_DEFAULT_COMPRESSION
    this.memLevel = options.memLevel ?? Zlib.constants.Z_DEFAULT_MEMLEVEL
  }

  /**
   * The payload of a message, or neither error nor payload where that would be no smaller: then the message is to be
   * sent as it is, as is one for which zlib `"Failed"` (for want of memory). The message must not change before the
   * callback, which may come before this returns.
   */
  deflate(message: Uint8Array, callback: (error: "Failed" | undefined, payload?: Uint8Array) => void): void {
    this.submit((done) => {
      const finish = (output: Buffer | undefined) => {
        if (output === undefined) {
          callback("Failed")
        } else if (output.length - emptyBlock.length >= message.length && this.isDispensable(message)) {
          callback(undefined)
        } else {
          this.context?.append(message)
          callback(undefined, output.subarray(0, output.length - emptyBlock.length))
        }
        done()
      }
      if (message.length > maxDeflateAtOnce) {
        this.deflateInPool(message, finish)
      } else {
        finish(this.deflateAtOnce(message))
      }
    })
  }

  // A short message that is no smaller by itself makes the next ones so, which are like it
  private isDispensable(message: Uint8Array): boolean {
    return this.context === undefined || message.length === 0 || message.length > maxShort
  }

  private deflateAtOnce(message: Uint8Array): Buffer | undefined {
    try {
      return Zlib.deflateRawSync(message, this.options(message))
    } catch {
      return undefined
    }
  }

  private deflateInPool(message: Uint8Array, finish: (output: Buffer | undefined) => void): void {
    const chunks: Array<Uint8Array> = []
    const end = (output: Buffer | undefined) => {
      if (!this.closed) {
        this.disengage()
        finish(output)
      }
    }
    const failed = () => end(undefined)
    this.engage(() => {
      const engine = Zlib.createDeflateRaw(this.options(message))
      engine.on("data", (chunk: Uint8Array) => {
        chunks.push(chunk)
      })
      engine.on("error", failed)
      engine.on("end", () => end(Buffer.concat(chunks)))
      engine.end(message)
      return engine
    }, failed)
  }

  // No bigger a window, nor more memory, than this message can use: it takes zlib longer to clear it than to fill it
  private options(message: Uint8Array): Zlib.ZlibOptions {
    const dictionary = this.context?.dictionary
    const reach = message.length + (dictionary?.length ?? 0) + lookahead
    const windowBits = Math.max(minWindowBits, Math.min(this.windowBits, 32 - Math.clz32(reach - 1)))
    return {
      windowBits,
      memLevel: Math.min(this.memLevel, windowBits - 7),
      level: this.level,
      chunkSize: Math.min(maxChunk, message.length + 64),
      finishFlush: Zlib.constants.Z_SYNC_FLUSH,
      dictionary
    }
  }
}
