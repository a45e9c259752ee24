/**
 * Frames in, messages out (RFC 6455 §5): any split of the bytes, a batch of events a call. It unmasks in place: the
 * bytes that it is given are its own, and a binary message is a view of them where it lies in one piece.
 *
 * Nothing is allocated for a message before its length was held against the limits, and a message in several reads or
 * fragments is put together in one buffer that grows with what has come, not with what was announced.
 */

import { isUtf8 } from "node:buffer"
import { copyOf } from "../duplex/copy.js"
import { CloseCode, isCloseCode, MAX_CONTROL, mask, Opcode, Violation } from "./frames.js"
import { validateUpTo } from "./utf8.js"

export interface Limits {
  /** The bytes of one message, fragments and all, as it is on the wire. */
  readonly maxMessageSize: number
  /** The frames of one message. */
  readonly maxFragments: number
  /** The frames of one read. */
  readonly maxFrames: number
}

export class Ping {
  constructor(readonly payload: Uint8Array) {}
}

export class Pong {
  constructor(readonly payload: Uint8Array) {}
}

export class Close {
  constructor(
    /** 1005 where the frame carries none. */
    readonly code: number,
    readonly reason: string
  ) {}
}

/** A message that is still deflated (RFC 7692 §7.2.2). */
export class Compressed {
  constructor(
    readonly data: Uint8Array,
    readonly isText: boolean
  ) {}
}

/** A string or bytes is a message. After a `Close` or a `Violation` nothing follows. */
export type Event = string | Uint8Array | Ping | Pong | Close | Compressed | Violation

export const isMessage = (event: Event): event is string | Uint8Array =>
  typeof event === "string" || event instanceof Uint8Array

/** What is allocated for a message on its announcement alone. */
const BELIEVED = 64 * 1024

/** What is allocated at once when so much of it has come; beyond this the buffer doubles as the bytes come. */
const EAGER = 1024 * 1024

/** So much of a payload must be missing for a read of its own. */
const DIRECT = 16 * 1024

const none = new Uint8Array(0)

const masked = new Violation(CloseCode.ProtocolError, "RFC 6455 §5.1", "A server must not mask its frames.")
const unmasked = new Violation(CloseCode.ProtocolError, "RFC 6455 §5.1", "A client must mask its frames.")
const reserved = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.2",
  "A reserved bit is set that no extension gave a meaning."
)
const compressedPart = new Violation(
  CloseCode.ProtocolError,
  "RFC 7692 §6.1",
  "Only the first frame of a data message may say that the message is compressed."
)
const lengthTooLong = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.2",
  "The payload length is not encoded in the minimal number of bytes."
)
const lengthTooBig = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.2",
  "The most significant bit of a 64-bit payload length must be 0."
)
const controlFragment = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.5",
  "A control frame must not be fragmented."
)
const controlTooBig = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.5",
  "A control frame carries at most 125 bytes."
)
const nothingToContinue = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.4",
  "A continuation frame came, and there is no message to continue."
)
const unfinished = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.4",
  "A new message began before the fragmented one was finished."
)
const closeTooShort = new Violation(
  CloseCode.ProtocolError,
  "RFC 6455 §5.5.1",
  "The payload of a Close frame has one byte, and a code has two."
)
const invalidText = new Violation(CloseCode.InvalidPayload, "RFC 6455 §8.1", "A text message is not valid UTF-8.")
const invalidReason = new Violation(
  CloseCode.InvalidPayload,
  "RFC 6455 §5.5.1",
  "The reason of a Close frame is not valid UTF-8."
)

const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export class Decoder {
  /** How many of the last call's events are no messages. */
  others = 0
  /** A Close or a violation was met: all that follows is ignored. */
  done = false

  /** The beginning of a header that came in pieces, and how much of it is there. */
  private header: Uint8Array | undefined
  private headerSize = 0

  /** The frame whose payload is on its way: its opcode, and -1 between frames. */
  private opcode = -1
  private isFinal = false
  private remaining = 0
  private key = 0
  private phase = 0

  /** The message that is on its way: 0 where there is none. */
  private message = 0
  private isCompressed = false
  private fragments = 0
  /** What has come of it, or of a control frame. */
  private part: Buffer = none as Buffer
  private partSize = 0
  /** Up to where the text is valid. */
  private validated = 0
  private isBorrowed = false
  private control: Buffer | undefined
  private controlSize = 0

  constructor(
    /** Frames must be masked: they come from a client. */
    private readonly expectMask: boolean,
    /** permessage-deflate was agreed on. */
    private readonly allowCompression: boolean,
    private readonly limits: Limits
  ) {}

  /** Whether the peer is in the middle of a frame or of a message. */
  get isInMessage(): boolean {
    return this.opcode !== -1 || this.message !== 0 || this.headerSize > 0
  }

  /**
   * Decodes `input`, and appends what it amounts to. The bytes are changed, and belong to the events afterwards; where
   * they are borrowed, the events have copies.
   */
  decode(input: Uint8Array, events: Array<Event>, isBorrowed = false): void {
    this.others = 0
    this.isBorrowed = isBorrowed
    if (this.done) {
      return
    }
    const bytes = asBuffer(input)
    const end = bytes.length
    let at = 0
    if (this.opcode !== -1) {
      at = this.continuePayload(bytes, 0, end, events)
    } else if (this.headerSize > 0) {
      at = this.continueHeader(bytes, end, events)
    }
    if (at >= end || this.done) {
      return
    }
    const { allowCompression, expectMask } = this
    const { maxMessageSize } = this.limits
    let frames = this.limits.maxFrames
    while (at < end) {
      // The whole frame, in a common form: a final text or binary message, or what may pass for one
      const first = bytes[at]!
      const second = at + 1 < end ? bytes[at + 1]! : 0
      let length = second & 0x7f
      let start = at + 2
      if (
        (first === 0x81 || first === 0x82) &&
        this.message === 0 &&
        length < 127 &&
        second >= 0x80 === expectMask &&
        at + 8 <= end
      ) {
        if (length === 126) {
          length = (bytes[start]! << 8) | bytes[start + 1]!
          start += 2
          if (length < 126) {
            this.fail(lengthTooLong, events)
            return
          }
        }
        let key = 0
        if (expectMask) {
          if (start + 4 > end) {
            this.stash(bytes, at, end)
            return
          }
          key = (bytes[start]! << 24) | (bytes[start + 1]! << 16) | (bytes[start + 2]! << 8) | bytes[start + 3]!
          start += 4
        }
        const next = start + length
        if (next <= end && length <= maxMessageSize) {
          if (--frames < 0) {
            this.fail(this.tooManyFrames(), events)
            return
          }
          if (first === 0x82) {
            if (key !== 0) {
              unmaskPayload(bytes, start, next, key)
            }
            events.push(isBorrowed ? ownOf(bytes, start, next) : viewOf(bytes, start, next))
          } else {
            const text = key === 0 ? decodeText(bytes, start, next) : decodeMasked(bytes, start, next, key)
            if (text === undefined) {
              this.fail(invalidText, events)
              return
            }
            events.push(text)
          }
          at = next
          continue
        }
      }
      // Any other frame, step by step
      const after = this.beginFrame(bytes, at, end, events, allowCompression)
      if (after === -1) {
        this.stash(bytes, at, end)
        return
      }
      if (this.done) {
        return
      }
      if (--frames < 0) {
        this.fail(this.tooManyFrames(), events)
        return
      }
      at = this.continuePayload(bytes, after, end, events)
      if (this.done) {
        return
      }
    }
  }

  private fail(violation: Violation, events: Array<Event>): void {
    this.others++
    this.close()
    events.push(violation)
  }

  /** Nothing follows: lets go of what has come of a message. */
  close(): void {
    this.done = true
    this.part = none as Buffer
    this.partSize = 0
    this.control = undefined
    this.header = undefined
  }

  private tooManyFrames(): Violation {
    return new Violation(
      CloseCode.PolicyViolation,
      "RFC 6455 §10.4",
      `More than ${this.limits.maxFrames} frames came at once (maxFrames).`
    )
  }

  private tooBig(size: number): Violation {
    return new Violation(
      CloseCode.TooBig,
      "RFC 6455 §10.4",
      `A message of at least ${size} bytes came, and at most ${this.limits.maxMessageSize} are taken (maxMessageSize).`
    )
  }

  // ----------------------------------------------------------------------------------------------------------- headers

  /** Keeps the beginning of a header for the next read. */
  private stash(bytes: Uint8Array, at: number, end: number): void {
    this.header ??= new Uint8Array(14)
    for (; at < end; at++) {
      this.header[this.headerSize++] = bytes[at]!
    }
  }

  /** Completes the header that began in an earlier read, byte by byte, and goes on with its payload. */
  private continueHeader(bytes: Buffer, end: number, events: Array<Event>): number {
    const header = this.header!
    let at = 0
    while (at < end) {
      header[this.headerSize++] = bytes[at++]!
      const after = this.beginFrame(header, 0, this.headerSize, events, this.allowCompression)
      if (after !== -1) {
        this.headerSize = 0
        this.header = undefined
        return this.done ? end : this.continuePayload(bytes, at, end, events)
      }
    }
    return end
  }

  /** Reads a header: returns where the payload begins, or -1 where the header is not all there. */
  private beginFrame(
    bytes: Uint8Array,
    at: number,
    end: number,
    events: Array<Event>,
    allowCompression: boolean
  ): number {
    const first = bytes[at]!
    const opcode = first & 0x0f
    const isFinal = first >= 0x80
    const isControl = opcode >= 8
    const rsv1 = (first & 0x40) !== 0
    // The checks that need no more than what is there come first: a peer is told as early as it can be.
    if ((first & 0x30) !== 0 || (rsv1 && !allowCompression)) {
      this.fail(reserved, events)
      return end
    }
    if (rsv1 && (isControl || opcode === Opcode.Continuation)) {
      this.fail(compressedPart, events)
      return end
    }
    if (isControl ? opcode > Opcode.Pong : opcode > Opcode.Binary) {
      this.fail(new Violation(CloseCode.ProtocolError, "RFC 6455 §5.2", `The opcode ${opcode} is reserved.`), events)
      return end
    }
    if (isControl) {
      if (!isFinal) {
        this.fail(controlFragment, events)
        return end
      }
    } else if ((opcode === Opcode.Continuation) !== (this.message !== 0)) {
      this.fail(opcode === Opcode.Continuation ? nothingToContinue : unfinished, events)
      return end
    }
    if (at + 2 > end) {
      return -1
    }
    const second = bytes[at + 1]!
    if (second >= 0x80 !== this.expectMask) {
      this.fail(this.expectMask ? unmasked : masked, events)
      return end
    }
    let length = second & 0x7f
    let start = at + 2
    if (isControl && length > MAX_CONTROL) {
      this.fail(controlTooBig, events)
      return end
    }
    if (opcode === Opcode.Close && length === 1) {
      this.fail(closeTooShort, events)
      return end
    }
    if (length === 126) {
      if (start + 2 > end) {
        return -1
      }
      length = (bytes[start]! << 8) | bytes[start + 1]!
      start += 2
      if (length < 126) {
        this.fail(lengthTooLong, events)
        return end
      }
    } else if (length === 127) {
      if (start + 8 > end) {
        return -1
      }
      const high =
        bytes[start]! * 0x1000000 + ((bytes[start + 1]! << 16) | (bytes[start + 2]! << 8) | bytes[start + 3]!)
      const low =
        bytes[start + 4]! * 0x1000000 + ((bytes[start + 5]! << 16) | (bytes[start + 6]! << 8) | bytes[start + 7]!)
      start += 8
      if (high >= 0x80000000) {
        this.fail(lengthTooBig, events)
        return end
      }
      length = high * 0x100000000 + low
      if (length < 0x10000) {
        this.fail(lengthTooLong, events)
        return end
      }
    }
    if (!isControl && this.partSize + length > this.limits.maxMessageSize) {
      this.fail(this.tooBig(this.partSize + length), events)
      return end
    }
    let key = 0
    if (this.expectMask) {
      if (start + 4 > end) {
        return -1
      }
      key = (bytes[start]! << 24) | (bytes[start + 1]! << 16) | (bytes[start + 2]! << 8) | bytes[start + 3]!
      start += 4
    }
    if (!isControl) {
      if (opcode !== Opcode.Continuation) {
        this.message = opcode
        this.isCompressed = rsv1
        this.fragments = 0
      }
      if (++this.fragments > this.limits.maxFragments) {
        this.fail(
          new Violation(
            CloseCode.PolicyViolation,
            "RFC 6455 §10.4",
            `A message came in more than ${this.limits.maxFragments} fragments (maxFragments).`
          ),
          events
        )
        return end
      }
    }
    this.opcode = opcode
    this.isFinal = isFinal
    this.remaining = length
    this.key = key
    this.phase = 0
    return start
  }

  // ---------------------------------------------------------------------------------------------------------- payloads

  /** Takes what there is of the current frame's payload; returns where the next frame begins. */
  private continuePayload(bytes: Buffer, at: number, end: number, events: Array<Event>): number {
    const next = Math.min(end, at + this.remaining)
    const size = next - at
    if (this.key !== 0 && size > 0) {
      mask(bytes, at, next, this.key, this.phase)
      this.phase = (this.phase + size) & 3
    }
    this.remaining -= size
    const isWhole = this.remaining === 0
    if (this.opcode >= 8) {
      this.takeControl(bytes, at, next, isWhole, events)
      return next
    }
    if (isWhole && this.isFinal && this.partSize === 0) {
      // All of the message lies here
      this.finish(bytes, at, next, 0, this.isBorrowed, events)
      return next
    }
    if (size > 0) {
      this.reserve(size, this.partSize + size + this.remaining)
      this.part.set(bytes.subarray(at, next), this.partSize)
    }
    this.took(size, events)
    return next
  }

  /** So much more of the payload is in its place, unmasked. */
  private took(size: number, events: Array<Event>): void {
    this.partSize += size
    if (size > 0 && this.message === Opcode.Text && !this.isCompressed) {
      // RFC 6455 §8.1: a peer that sends garbage is told at once, not at the end of the message
      this.validated = validateUpTo(this.part, this.validated, this.partSize)
      if (this.validated === -1) {
        this.fail(invalidText, events)
        return
      }
    }
    if (this.remaining === 0) {
      this.opcode = -1
      if (this.isFinal) {
        const { part, partSize, validated } = this
        this.part = none as Buffer
        this.finish(part, 0, partSize, validated, false, events)
      }
    }
  }

  /** Makes room for `size` bytes more of a message that comes to `announced` with this frame. */
  private reserve(size: number, announced: number): void {
    const needed = this.partSize + size
    if (needed > this.part.length) {
      // What the frame announces was held against the limit; only so much of it is believed at once.
      const capacity = Math.min(announced, needed <= BELIEVED ? BELIEVED : Math.max(EAGER, needed * 2))
      const grown = Buffer.allocUnsafeSlow(
        this.isFinal ? capacity : Math.max(needed, Math.min(this.part.length * 2, this.limits.maxMessageSize), capacity)
      )
      grown.set(this.part.subarray(0, this.partSize))
      this.part = grown
    }
  }

  /** Where the rest of a large payload may be read to, rather than be given to `decode`. */
  get space(): Uint8Array | undefined {
    if (this.done || this.opcode === -1 || this.opcode >= 8 || this.remaining < DIRECT) {
      return undefined
    }
    this.reserve(DIRECT, this.partSize + this.remaining)
    return this.part.subarray(this.partSize, this.partSize + this.remaining)
  }

  /** So many bytes were read to `space`. */
  filled(size: number, events: Array<Event>): void {
    this.others = 0
    if (this.done) {
      return
    }
    const end = this.partSize + size
    if (this.key !== 0) {
      mask(this.part, this.partSize, end, this.key, this.phase)
      this.phase = (this.phase + size) & 3
    }
    this.remaining -= size
    this.took(size, events)
  }

  /** The message is all there, in `bytes` from `start` to `end`; up to `validated` it is known to be UTF-8. */
  private finish(
    bytes: Buffer,
    start: number,
    end: number,
    validated: number,
    isBorrowed: boolean,
    events: Array<Event>
  ): void {
    const isText = this.message === Opcode.Text
    const { isCompressed } = this
    this.opcode = -1
    this.message = 0
    this.partSize = 0
    this.validated = 0
    if (isCompressed) {
      this.others++
      events.push(new Compressed(isBorrowed ? ownOf(bytes, start, end) : viewOf(bytes, start, end), isText))
    } else if (isText) {
      const text =
        validated === 0
          ? decodeText(bytes, start, end)
          : validated === end
            ? bytes.toString("utf8", start, end)
            : // A code point that was never finished
              undefined
      if (text === undefined) {
        this.fail(invalidText, events)
      } else {
        events.push(text)
      }
    } else {
      events.push(isBorrowed ? ownOf(bytes, start, end) : viewOf(bytes, start, end))
    }
  }

  private takeControl(bytes: Buffer, at: number, next: number, isWhole: boolean, events: Array<Event>): void {
    let payload: Buffer
    if (isWhole && this.control === undefined) {
      payload = this.isBorrowed ? Buffer.from(bytes.subarray(at, next)) : bytes.subarray(at, next)
    } else {
      this.control ??= Buffer.allocUnsafeSlow(MAX_CONTROL)
      this.control.set(bytes.subarray(at, next), this.controlSize)
      this.controlSize += next - at
      if (!isWhole) {
        return
      }
      payload = this.control.subarray(0, this.controlSize)
      this.control = undefined
      this.controlSize = 0
    }
    const { opcode } = this
    this.opcode = -1
    if (opcode === Opcode.Close) {
      this.takeClose(payload, events)
    } else {
      this.others++
      events.push(opcode === Opcode.Ping ? new Ping(payload) : new Pong(payload))
    }
  }

  private takeClose(payload: Buffer, events: Array<Event>): void {
    const code = payload.length === 0 ? CloseCode.NoStatus : payload.readUInt16BE(0)
    if (payload.length > 0 && !isCloseCode(code)) {
      this.fail(
        new Violation(
          CloseCode.ProtocolError,
          "RFC 6455 §7.4",
          `The close code ${code} may not be sent in a Close frame.`
        ),
        events
      )
      return
    }
    const reason = decodeText(payload, Math.min(2, payload.length), payload.length)
    if (reason === undefined) {
      this.fail(invalidReason, events)
      return
    }
    this.others++
    this.close()
    events.push(new Close(code, reason))
  }
}

const viewOf = (bytes: Buffer, start: number, end: number): Uint8Array =>
  new Uint8Array(bytes.buffer, bytes.byteOffset + start, end - start)

/** A copy, of the class that a view has. */
const ownOf = (bytes: Buffer, start: number, end: number): Uint8Array => {
  const copy = copyOf(bytes, start, end)
  return viewOf(copy, 0, copy.length)
}

/** Up to so many bytes a loop is faster than a call into the runtime. */
const SHORT = 64

const unmaskPayload = (bytes: Uint8Array, start: number, end: number, key: number): void => {
  if (end - start > SHORT) {
    mask(bytes, start, end, key, 0)
    return
  }
  const k0 = key >>> 24
  const k1 = (key >>> 16) & 0xff
  const k2 = (key >>> 8) & 0xff
  const k3 = key & 0xff
  let at = start
  for (const last = end - 3; at < last; at += 4) {
    bytes[at] = bytes[at]! ^ k0
    bytes[at + 1] = bytes[at + 1]! ^ k1
    bytes[at + 2] = bytes[at + 2]! ^ k2
    bytes[at + 3] = bytes[at + 3]! ^ k3
  }
  if (at < end) {
    bytes[at] = bytes[at]! ^ k0
    if (++at < end) {
      bytes[at] = bytes[at]! ^ k1
      if (++at < end) {
        bytes[at] = bytes[at]! ^ k2
      }
    }
  }
}

/** UTF-8 as a string; `undefined` where it is none. */
export const decodeText = (bytes: Buffer, start: number, end: number): string | undefined => {
  if (end - start <= SHORT) {
    let all = 0
    for (let at = start; at < end; at++) {
      all |= bytes[at]!
    }
    return all < 0x80 ? bytes.toString("latin1", start, end) : decodeUnicode(bytes, start, end)
  }
  return decodeUnicode(bytes, start, end)
}

const decodeUnicode = (bytes: Buffer, start: number, end: number): string | undefined =>
  isUtf8(bytes.subarray(start, end)) ? bytes.toString("utf8", start, end) : undefined

const decodeMasked = (bytes: Buffer, start: number, end: number, key: number): string | undefined => {
  unmaskPayload(bytes, start, end, key)
  return decodeText(bytes, start, end)
}
