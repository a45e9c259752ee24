/**
 * Messages in, frames out (RFC 6455 §5): a batch of them in one buffer, with a large payload that need not be masked left
 * where it is.
 *
 * Buffers are cut from a slab that all encoders share, so that a batch costs no allocation of its own: what was cut off
 * is never written again, and a slab lives as long as its last piece.
 */

import { randomFillSync } from "node:crypto"
import { mask, Opcode } from "./frames.js"

const SLAB = 64 * 1024

/** A payload from here on gets a buffer, or stays where it is, rather than be copied into the slab. */
const LARGE = 16 * 1024

const none = Buffer.allocUnsafeSlow(0)

let slab = none
let slabAt = 0
/** Whose batch ends where the slab's rest begins: it may go on there. */
let slabOwner: Encoder | undefined

const keys = Buffer.allocUnsafeSlow(8 * 1024)
let keysAt = keys.length

/** RFC 6455 §5.3: a fresh key a frame, from a strong source. */
const freshKey = (): number => {
  if (keysAt === keys.length) {
    randomFillSync(keys)
    keysAt = 0
  }
  keysAt += 4
  return keys.readInt32BE(keysAt - 4)
}

const headerSize = (length: number): number => (length < 126 ? 2 : length < 0x10000 ? 4 : 10)

const RSV1 = 0x40

export class Encoder {
  /** How much is encoded and was not taken. */
  size = 0
  private pieces: Array<Uint8Array> | undefined
  /** The piece that may still grow. */
  private current = none
  private start = 0
  private end = 0

  constructor(
    /** Frames of a client are masked. */
    private readonly masks: boolean
  ) {}

  message(data: string | Uint8Array): void {
    if (typeof data === "string") {
      this.text(data)
    } else {
      this.frame(0x80 | Opcode.Binary, data)
    }
  }

  /** A message that is deflated already: RFC 7692 §7.2.1. */
  compressed(data: Uint8Array, isText: boolean): void {
    this.frame(0x80 | RSV1 | (isText ? Opcode.Text : Opcode.Binary), data)
  }

  control(opcode: number, payload: Uint8Array): void {
    this.frame(0x80 | opcode, payload)
  }

  /** Frames that are encoded already. */
  raw(frames: Uint8Array): void {
    this.seal()
    this.pieces ??= []
    this.pieces.push(frames)
    this.size += frames.length
  }

  /** All that was encoded, in order. */
  take(): Array<Uint8Array> {
    this.seal()
    const pieces = this.pieces ?? []
    this.pieces = undefined
    this.size = 0
    return pieces
  }

  /** All that was encoded, where it lies in one piece. */
  takeOne(): Uint8Array | undefined {
    if (this.pieces !== undefined || this.start === this.end) {
      return undefined
    }
    const piece = this.current.subarray(this.start, this.end)
    this.leave()
    this.size = 0
    return piece
  }

  private text(data: string): void {
    const { length } = data
    if (length <= 41) {
      // At most 123 bytes, whatever it says: the header has two bytes
      const head = this.masks ? 6 : 2
      const at = this.reserve(head + length * 3)
      const { current } = this
      const start = at + head
      let i = 0
      for (; i < length; i++) {
        const char = data.charCodeAt(i)
        if (char >= 0x80) {
          break
        }
        current[start + i] = char
      }
      const size = i === length ? length : current.write(data, start, "utf8")
      this.finish(at, 0x80 | Opcode.Text, start, size)
      return
    }
    const size = Buffer.byteLength(data, "utf8")
    const start = this.begin(size)
    this.current.write(data, start, size, size === length ? "latin1" : "utf8")
    this.finish(this.end, 0x80 | Opcode.Text, start, size)
  }

  /** A frame by the first byte of its header. */
  frame(first: number, payload: Uint8Array): void {
    const size = payload.length
    if (size >= LARGE && !this.masks) {
      const at = this.reserve(10)
      this.writeHeader(at, first, size)
      const header = headerSize(size)
      this.end = at + header
      this.size += header
      this.release()
      this.raw(payload)
      return
    }
    const start = this.begin(size)
    const { current } = this
    if (size <= 32) {
      for (let i = 0; i < size; i++) {
        current[start + i] = payload[i]!
      }
    } else {
      current.set(payload, start)
    }
    this.finish(this.end, first, start, size)
  }

  /** Makes room for a frame; returns where its payload begins. */
  private begin(size: number): number {
    const header = headerSize(size) + (this.masks ? 4 : 0)
    return this.reserve(header + size) + header
  }

  /** Writes the header before a payload that is in its place, and masks it. */
  private finish(at: number, first: number, start: number, size: number): void {
    const { current } = this
    this.writeHeader(at, first, size)
    const end = start + size
    if (this.masks) {
      const key = freshKey()
      current[at + 1] = current[at + 1]! | 0x80
      current[start - 4] = key >>> 24
      current[start - 3] = key >>> 16
      current[start - 2] = key >>> 8
      current[start - 1] = key
      mask(current, start, end, key, 0)
    }
    this.size += end - at
    this.end = end
    this.release()
  }

  private writeHeader(at: number, first: number, size: number): void {
    const { current } = this
    current[at] = first
    if (size < 126) {
      current[at + 1] = size
    } else if (size < 0x10000) {
      current[at + 1] = 126
      current[at + 2] = size >>> 8
      current[at + 3] = size
    } else {
      current[at + 1] = 127
      current.writeUInt32BE(Math.floor(size / 0x100000000), at + 2)
      current.writeUInt32BE(size >>> 0, at + 6)
    }
  }

  /** Finds `size` bytes in a row behind what this batch has, or begins another piece; returns where they are. */
  private reserve(size: number): number {
    if (slabOwner === this && this.current === slab && slabAt + size <= slab.length) {
      return this.end
    }
    this.seal()
    if (size > LARGE) {
      // A buffer of its own
      this.current = Buffer.allocUnsafeSlow(size)
      this.start = this.end = 0
      return 0
    }
    if (slabAt + size > slab.length) {
      slab = Buffer.allocUnsafeSlow(SLAB)
      slabAt = 0
    }
    slabOwner = this
    this.current = slab
    this.start = this.end = slabAt
    return slabAt
  }

  /** What was reserved and not used is the slab's again. */
  private release(): void {
    if (this.current === slab) {
      slabAt = this.end
    }
  }

  private seal(): void {
    if (this.end > this.start) {
      this.pieces ??= []
      this.pieces.push(this.current.subarray(this.start, this.end))
    }
    this.leave()
  }

  /** Holds nothing of the slab between two batches: an idle connection must not keep one alive. */
  private leave(): void {
    this.current = none
    this.start = this.end = 0
    if (slabOwner === this) {
      slabOwner = undefined
    }
  }
}
