/** What both directions of RFC 6455 §5 share: opcodes, close codes, masks, and the ways to break the rules. */

/** RFC 6455 §5.2 */
export const Opcode = { Continuation: 0, Text: 1, Binary: 2, Close: 8, Ping: 9, Pong: 10 } as const

/** RFC 6455 §7.4.1 */
export const CloseCode = {
  Normal: 1000,
  GoingAway: 1001,
  ProtocolError: 1002,
  /** Said of a Close without a code; never on the wire. */
  NoStatus: 1005,
  /** Said of a connection that ended without a Close; never on the wire. */
  Abnormal: 1006,
  InvalidPayload: 1007,
  PolicyViolation: 1008,
  TooBig: 1009,
  InternalError: 1011,
  TryAgainLater: 1013
} as const

/** Which codes a Close frame may carry: RFC 6455 §7.4.1, §7.4.2, and the registry's 1012 to 1014. */
export const isCloseCode = (code: number): boolean =>
  (code >= 1000 && code <= 1014 && code !== 1004 && code !== 1005 && code !== 1006) || (code >= 3000 && code <= 4999)

/** RFC 6455 §5.5: the payload of a control frame. */
export const MAX_CONTROL = 125

/** What is left of a Close frame's payload for the reason: RFC 6455 §5.5.1. */
export const MAX_REASON = MAX_CONTROL - 2

/**
 * Unmasks or masks `bytes` from `start` to `end` in place (RFC 6455 §5.3). The key is given as on the wire, its first
 * byte highest, and `phase` is how far into the key the first byte is.
 *
 * 32 bits at a time where that is worth the view, on the four bytes' own alignment in memory.
 */
export const mask = (bytes: Uint8Array, start: number, end: number, key: number, phase: number): void => {
  let at = start
  if (end - start > 64) {
    while (((bytes.byteOffset + at) & 3) !== 0) {
      bytes[at] = bytes[at]! ^ (key >>> (24 - ((phase & 3) << 3)))
      at++
      phase++
    }
    const words = (end - at) >> 2
    const view = new Int32Array(bytes.buffer, bytes.byteOffset + at, words)
    const word = littleEndian(rotate(key, phase))
    let i = 0
    for (const many = words - 7; i < many; i += 8) {
      view[i] = view[i]! ^ word
      view[i + 1] = view[i + 1]! ^ word
      view[i + 2] = view[i + 2]! ^ word
      view[i + 3] = view[i + 3]! ^ word
      view[i + 4] = view[i + 4]! ^ word
      view[i + 5] = view[i + 5]! ^ word
      view[i + 6] = view[i + 6]! ^ word
      view[i + 7] = view[i + 7]! ^ word
    }
    for (; i < words; i++) {
      view[i] = view[i]! ^ word
    }
    at += words << 2
  }
  for (; at < end; at++) {
    bytes[at] = bytes[at]! ^ (key >>> (24 - ((phase & 3) << 3)))
    phase++
  }
}

/** The key that begins `phase` bytes later. */
const rotate = (key: number, phase: number): number => {
  const bits = (phase & 3) << 3
  return bits === 0 ? key | 0 : (key << bits) | (key >>> (32 - bits))
}

const isLittleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1

/** The key as a word in memory. */
const littleEndian = (key: number): number =>
  isLittleEndian ? (key >>> 24) | ((key >>> 8) & 0xff00) | ((key << 8) & 0xff0000) | ((key & 0xff) << 24) : key

/** How a peer broke the protocol: what it is told, and where the rule stands. */
export class Violation {
  constructor(
    readonly code: number,
    readonly clause: string,
    readonly description: string
  ) {}
}
