/**
 * The limit: a WebSocket codec on a bare 'upgrade' event, without Effect. A whole read is decoded into a batch of
 * messages, and what they are answered with leaves in one write. Clauses are those of RFC 6455.
 */
import { isUtf8 } from "node:buffer"
import { createHash } from "node:crypto"
import { createServer } from "node:http"
import type { Duplex } from "node:stream"
import { listen } from "./control.js"

type Message = string | Buffer

const opcodes = { binary: 2, close: 8, continuation: 0, ping: 9, pong: 10, text: 1 } as const

/** Batches of at most this are copied into one buffer; the payloads of others are written as they are. */
const copied = 32 * 1024

const maxMessage = 64 * 1024 * 1024

/** §5.3 in place; `phase` is how many bytes of the payload came before `from`. Answers with the phase behind `to`. */
const unmask = (bytes: Buffer, from: number, to: number, key: number, phase: number): number => {
  let position = from
  let offset = phase
  if (to - from >= 64) {
    for (; (bytes.byteOffset + position) & 3; position++, offset++) {
      bytes[position] ^= key >>> ((offset & 3) << 3)
    }
    const words = new Int32Array(bytes.buffer, bytes.byteOffset + position, (to - position) >> 2)
    const turn = (offset & 3) << 3
    const turned = turn === 0 ? key : (key >>> turn) | (key << (32 - turn))
    for (let i = 0; i < words.length; i++) {
      words[i] ^= turned
    }
    position += words.length << 2
  }
  for (; position < to; position++, offset++) {
    bytes[position] ^= key >>> ((offset & 3) << 3)
  }
  return offset & 3
}

class Violation extends Error {
  constructor(
    readonly code: number,
    message: string
  ) {
    super(message)
  }
}

/** Gives what a read completes; keeps the rest. */
class Decoder {
  readonly messages: Array<Message> = []
  readonly replies: Array<Buffer> = []
  closed = false
  /** The start of a head that the last read broke off. */
  private head: Buffer | undefined
  /** A payload that spans reads, filled so far. */
  private payload: Buffer | undefined
  private filled = 0
  private phase = 0
  private key = 0
  private opcode = 0
  private fin = true
  private fragments: Array<Buffer> = []
  private fragmented = 0
  private size = 0

  push(read: Buffer): void {
    let bytes = read
    if (this.head) {
      bytes = Buffer.concat([this.head, read])
      this.head = undefined
    }
    let position = this.payload ? this.fill(this.payload, bytes, 0) : 0
    while (position < bytes.length && !this.closed) {
      const start = position
      const first = bytes[position]
      const second = bytes[position + 1]
      const short = second & 0x7f
      const head = short < 126 ? 6 : short === 126 ? 8 : 14
      if (bytes.length - start < head) {
        this.head = bytes.subarray(start)
        return
      }
      const length =
        short < 126
          ? short
          : short === 126
            ? bytes.readUInt16BE(position + 2)
            : Number(bytes.readBigUInt64BE(position + 2))
      this.accept(first, second, length)
      position += head
      this.key = bytes.readInt32LE(position - 4)
      if (bytes.length - position >= length) {
        unmask(bytes, position, position + length, this.key, 0)
        this.complete(bytes.subarray(position, position + length))
        position += length
      } else {
        this.payload = Buffer.allocUnsafeSlow(length)
        this.filled = 0
        this.phase = 0
        position = this.fill(this.payload, bytes, position)
      }
    }
  }

  private accept(first: number, second: number, length: number): void {
    this.fin = first > 0x7f
    this.opcode = first & 0x0f
    const control = this.opcode > 7
    if ((first & 0x70) !== 0 || (this.opcode > 2 && this.opcode < 8) || this.opcode > 10) {
      throw new Violation(1002, "§5.2: a reserved bit or opcode")
    }
    if (second < 0x80) {
      throw new Violation(1002, "§5.1: an unmasked frame")
    }
    if (control && (length > 125 || !this.fin)) {
      throw new Violation(1002, "§5.5: a long or fragmented control frame")
    }
    if (!control && (this.opcode === opcodes.continuation) !== this.fragmented > 0) {
      throw new Violation(1002, "§5.4: a continuation of nothing, or none of what was begun")
    }
    if (!control && (this.size += length) > maxMessage) {
      throw new Violation(1009, "a message that is too big")
    }
  }

  private fill(payload: Buffer, bytes: Buffer, from: number): number {
    const taken = Math.min(payload.length - this.filled, bytes.length - from)
    bytes.copy(payload, this.filled, from, from + taken)
    this.phase = unmask(payload, this.filled, this.filled + taken, this.key, this.phase)
    this.filled += taken
    if (this.filled === payload.length) {
      this.payload = undefined
      this.complete(payload)
    }
    return from + taken
  }

  private complete(payload: Buffer): void {
    if (this.opcode > 7) {
      if (this.opcode === opcodes.ping) {
        this.replies.push(frame(opcodes.pong, payload))
      } else if (this.opcode === opcodes.close) {
        this.closed = true
        this.replies.push(frame(opcodes.close, payload.subarray(0, 2)))
      }
      return
    }
    if (this.fin && this.fragmented === 0) {
      this.size = 0
      this.message(this.opcode, payload)
      return
    }
    this.fragments.push(payload)
    this.fragmented = this.fragmented || this.opcode
    if (this.fin) {
      const opcode = this.fragmented
      const whole = Buffer.concat(this.fragments)
      this.fragments = []
      this.fragmented = 0
      this.size = 0
      this.message(opcode, whole)
    }
  }

  private message(opcode: number, payload: Buffer): void {
    if (opcode === opcodes.binary) {
      this.messages.push(payload)
    } else if (isUtf8(payload)) {
      this.messages.push(payload.toString())
    } else {
      throw new Violation(1007, "§8.1: a text that is not UTF-8")
    }
  }
}

const headSize = (length: number): number => (length < 126 ? 2 : length < 65_536 ? 4 : 10)

const writeHead = (target: Buffer, at: number, opcode: number, length: number): number => {
  target[at] = 0x80 | opcode
  if (length < 126) {
    target[at + 1] = length
    return at + 2
  }
  if (length < 65_536) {
    target[at + 1] = 126
    target[at + 2] = length >> 8
    target[at + 3] = length
    return at + 4
  }
  target[at + 1] = 127
  target.writeBigUInt64BE(BigInt(length), at + 2)
  return at + 10
}

const frame = (opcode: number, payload: Buffer): Buffer => {
  const whole = Buffer.allocUnsafe(headSize(payload.length) + payload.length)
  payload.copy(whole, writeHead(whole, 0, opcode, payload.length))
  return whole
}

/** False where the socket wants a pause. */
const send = (socket: Duplex, messages: ReadonlyArray<Message>): boolean => {
  const lengths = new Array<number>(messages.length)
  let total = 0
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i]
    lengths[i] = typeof message === "string" ? Buffer.byteLength(message) : message.length
    total += headSize(lengths[i]) + lengths[i]
  }
  if (total <= copied) {
    const whole = Buffer.allocUnsafe(total)
    let position = 0
    for (let i = 0; i < messages.length; i++) {
      const message = messages[i]
      if (typeof message === "string") {
        position = writeHead(whole, position, opcodes.text, lengths[i])
        position += whole.write(message, position)
      } else {
        position = writeHead(whole, position, opcodes.binary, lengths[i])
        whole.set(message, position)
        position += lengths[i]
      }
    }
    return socket.write(whole)
  }
  socket.cork()
  let more = true
  for (let i = 0; i < messages.length; i++) {
    const message = messages[i]
    const head = Buffer.allocUnsafe(headSize(lengths[i]))
    writeHead(head, 0, typeof message === "string" ? opcodes.text : opcodes.binary, lengths[i])
    socket.write(head)
    more = socket.write(message)
  }
  socket.uncork()
  return more
}

const members = new Set<Duplex>()

const publish = (messages: ReadonlyArray<Message>): void => {
  const whole = Buffer.concat(
    messages.map((message) =>
      typeof message === "string" ? frame(opcodes.text, Buffer.from(message)) : frame(opcodes.binary, message)
    )
  )
  for (const member of members) {
    member.write(whole)
  }
}

const server = createServer()

server.on("upgrade", (request, socket, head) => {
  const accept = createHash("sha1")
    .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest("base64")
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`
  )
  const decoder = new Decoder()
  const onMessages =
    request.url === "/publish"
      ? publish
      : (messages: ReadonlyArray<Message>): void => {
          if (!send(socket, messages)) {
            socket.pause()
          }
        }
  const onData = (bytes: Buffer): void => {
    try {
      decoder.push(bytes)
    } catch (error) {
      const code = Buffer.allocUnsafe(2)
      code.writeUInt16BE(error instanceof Violation ? error.code : 1011)
      socket.end(frame(opcodes.close, code))
      return
    }
    if (decoder.messages.length > 0) {
      onMessages(decoder.messages)
      decoder.messages.length = 0
    }
    if (decoder.replies.length > 0) {
      socket.write(Buffer.concat(decoder.replies))
      decoder.replies.length = 0
    }
    if (decoder.closed) {
      socket.end()
    }
  }
  socket.on("error", () => socket.destroy())
  socket.on("drain", () => socket.resume())
  socket.on("end", () => socket.end())
  if (request.url === "/member") {
    members.add(socket)
    socket.on("close", () => members.delete(socket))
  }
  if (head.length > 0) {
    onData(Buffer.from(head))
  }
  socket.on("data", onData)
})

listen(server)
