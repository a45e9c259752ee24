/** Frames as RFC 6455 §5.2 draws them, written down here once more, and broken where a test wants that. */
import { Close, Compressed, type Event, Ping, Pong } from "../../src/internal/websocket/decoder.js"

export const Opcode = { Continuation: 0, Text: 1, Binary: 2, Close: 8, Ping: 9, Pong: 10 } as const

export interface Frame {
  readonly opcode: number
  readonly payload?: Uint8Array | string | undefined
  readonly fin?: boolean | undefined
  /** The three reserved bits: 4 is RSV1. */
  readonly rsv?: number | undefined
  /** The four bytes of the key; none for a frame of a server. */
  readonly key?: Uint8Array | undefined
  /** How many bytes the length takes: 1, 3 or 9; as few as can be unless it is given. */
  readonly lengthBytes?: 1 | 3 | 9 | undefined
  /** What the length says, where that is a lie. */
  readonly length?: bigint | undefined
}

export const bytes = (...values: ReadonlyArray<number>): Buffer => Buffer.from(values)

export const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex")

/** A key without two equal bytes. */
export const key = bytes(0x37, 0xfa, 0x21, 0x3d)

/** What a test that does not care masks with: a client's frames are, a server's are not. */
export const keyOf = (masked: boolean): Uint8Array | undefined => (masked ? key : undefined)

export const masked = (payload: Uint8Array, key: Uint8Array): Buffer =>
  Buffer.from(payload.map((byte, i) => byte ^ key[i & 3]!))

export const encode = ({ fin = true, key, length, lengthBytes, opcode, payload = "", rsv = 0 }: Frame): Buffer => {
  const content = Buffer.from(payload as string)
  const size = length ?? BigInt(content.length)
  const form = lengthBytes ?? (size < 126n ? 1 : size < 65536n ? 3 : 9)
  const head = Buffer.alloc(1 + form)
  head[0] = (fin ? 0x80 : 0) | (rsv << 4) | opcode
  const mask = key === undefined ? 0 : 0x80
  if (form === 1) {
    head[1] = mask | Number(size)
  } else if (form === 3) {
    head[1] = mask | 126
    head.writeUInt16BE(Number(size), 2)
  } else {
    head[1] = mask | 127
    head.writeBigUInt64BE(size, 2)
  }
  return Buffer.concat(key === undefined ? [head, content] : [head, key, masked(content, key)])
}

export const closePayload = (code: number, reason: Uint8Array | string = ""): Buffer =>
  Buffer.concat([bytes(code >> 8, code & 0xff), Buffer.from(reason as string)])

export interface Decoded {
  readonly opcode: number
  readonly payload: Buffer
  readonly fin: boolean
  readonly rsv: number
  readonly masked: boolean
}

/** Frames as a peer reads them. It checks nothing but that they are whole. */
export const decodeAll = (input: Uint8Array): ReadonlyArray<Decoded> => {
  const frames: Array<Decoded> = []
  let rest = Buffer.from(input.buffer, input.byteOffset, input.byteLength)
  while (rest.length > 0) {
    const found = decodeOne(rest)
    if (found === undefined) {
      throw new Error(`${rest.length} bytes are no whole frame`)
    }
    frames.push(found.frame)
    rest = rest.subarray(found.length)
  }
  return frames
}

/** The first frame, where it is all there. */
export const decodeOne = (input: Buffer): { readonly frame: Decoded; readonly length: number } | undefined => {
  if (input.length < 2) {
    return undefined
  }
  const [first, second] = input as unknown as [number, number]
  const isMasked = second >= 0x80
  const form = second & 0x7f
  const start = 2 + (form === 126 ? 2 : form === 127 ? 8 : 0) + (isMasked ? 4 : 0)
  if (input.length < start) {
    return undefined
  }
  const size = form === 126 ? input.readUInt16BE(2) : form === 127 ? Number(input.readBigUInt64BE(2)) : form
  if (input.length < start + size) {
    return undefined
  }
  const content = input.subarray(start, start + size)
  return {
    frame: {
      opcode: first & 15,
      payload: isMasked ? masked(content, input.subarray(start - 4, start)) : Buffer.from(content),
      fin: first >= 0x80,
      rsv: (first >> 4) & 7,
      masked: isMasked
    },
    length: start + size
  }
}

/** An event, with bytes as hexadecimal and without what no test looks at: two that are alike are equal. */
export const show = (event: Event): string => {
  const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex")
  return typeof event === "string"
    ? `text ${JSON.stringify(event)}`
    : event instanceof Uint8Array
      ? `binary ${hexOf(event)}`
      : event instanceof Ping
        ? `ping ${hexOf(event.payload)}`
        : event instanceof Pong
          ? `pong ${hexOf(event.payload)}`
          : event instanceof Close
            ? `close ${event.code} ${JSON.stringify(event.reason)}`
            : event instanceof Compressed
              ? `compressed ${event.isText ? "text" : "binary"} ${hexOf(event.data)}`
              : `violation ${event.code} ${event.clause}`
}

/** The bytes in pieces, cut before these offsets. */
export const split = (input: Uint8Array, at: ReadonlyArray<number>): ReadonlyArray<Buffer> => {
  const points = [...new Set([0, ...at.filter((point) => point > 0 && point < input.length), input.length])].sort(
    (a, b) => a - b
  )
  // Copies: whoever decodes a piece may change it
  return points.slice(1).map((point, i) => Buffer.from(input.subarray(points[i], point)))
}
