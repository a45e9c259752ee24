/**
 * WebSocket clients: frames are encoded, masked and deflated beforehand and leave in one write for each read, and what
 * comes back is not decoded but counted: by its bytes, or by the heads of its frames where the server deflates.
 */
import { randomBytes } from "node:crypto"
import type * as net from "node:net"
import { constants, deflateRawSync, inflateRawSync } from "node:zlib"
import type { Broadcast, Messages, Target } from "../commands.js"
import { finish, open, requestOf, scratch } from "./open.js"
import { openAll, start, took } from "./running.js"

type Type = Messages["type"]

const opcodes: Record<Type, number> = { binary: 2, text: 1 }

const headOf = (first: number, length: number, second = 0): Buffer => {
  if (length < 126) {
    return Buffer.from([first, second | length])
  }
  if (length < 65_536) {
    return Buffer.from([first, second | 126, length >> 8, length & 0xff])
  }
  const head = Buffer.from([first, second | 127, 0, 0, 0, 0, 0, 0, 0, 0])
  head.writeBigUInt64BE(BigInt(length), 2)
  return head
}

const headSize = (head: Buffer): number => (head[1] < 126 ? 2 : head[1] === 126 ? 4 : 10)

const payloadSize = (head: Buffer): number =>
  head[1] < 126 ? head[1] : head[1] === 126 ? head.readUInt16BE(2) : Number(head.readBigUInt64BE(2))

/** §7.2.1 of RFC 7692: no message refers to an earlier one, so that each may be sent any number of times. */
const deflated = (payload: Buffer): Buffer =>
  deflateRawSync(payload, { finishFlush: constants.Z_SYNC_FLUSH }).subarray(0, -4)

const clientFrame = (payload: Buffer, opcode: number, compressed: boolean): Buffer => {
  const content = compressed ? deflated(payload) : payload
  const key = randomBytes(4)
  const masked = Buffer.allocUnsafe(content.length)
  for (let i = 0; i < content.length; i++) {
    masked[i] = content[i] ^ key[i & 3]
  }
  return Buffer.concat([headOf(0x80 | (compressed ? 0x40 : 0) | opcode, content.length, 0x80), key, masked])
}

/** An event as it may be written to a log: it deflates as such things do, to about a third. */
const event = (): string =>
  JSON.stringify({
    id: randomBytes(8).toString("hex"),
    level: ["debug", "info", "warning", "error"][randomBytes(1)[0] & 3],
    message: `user ${randomBytes(2).readUInt16BE()} opened document ${randomBytes(4).toString("hex")}`,
    time: new Date(1.7e12 + randomBytes(4).readUInt32BE()).toISOString()
  })

const jsonOf = (size: number): Buffer => {
  let text = "["
  while (text.length < size) {
    text += `${event()},`
  }
  return Buffer.from(text.slice(0, size))
}

const payloadOf = (size: number, type: Type, compressed: boolean): Buffer =>
  compressed ? jsonOf(size) : type === "text" ? Buffer.alloc(size, "message ") : randomBytes(size)

/**
 * Sends any number of messages, up to `inFlight`, in one write. Those that are deflated come around so late that a
 * window of 32 KiB has forgotten them.
 */
const sender = ({ inFlight, size, type }: Omit<Messages, "connections" | "target">, compressed: boolean) => {
  const count = compressed ? Math.max(inFlight, Math.ceil((64 * 1024) / size)) : inFlight
  const frames = Array.from({ length: count }, () =>
    clientFrame(payloadOf(size, type, compressed), opcodes[type], compressed)
  )
  const offsets = [0]
  for (const frame of [...frames, ...frames]) {
    offsets.push(offsets[offsets.length - 1] + frame.length)
  }
  const bytes = Buffer.concat([...frames, ...frames])
  return () => {
    let next = 0
    return (socket: net.Socket, messages: number): void => {
      socket.write(bytes.subarray(offsets[next], offsets[next + messages]))
      next = (next + messages) % count
    }
  }
}

/** Counts messages of a connection, given the bytes in `scratch`; nothing but `scratch` and a length is looked at. */
type Counter = (length: number, start: number) => number

const byBytes = (each: number): Counter => {
  let received = 0
  return (length) => {
    received += length
    const messages = Math.floor(received / each)
    received -= messages * each
    return messages
  }
}

/** Steps over payloads from head to head. */
const byHeads = (): Counter => {
  const head = Buffer.alloc(10)
  let known = 0
  let skip = 0
  return (length, start) => {
    const end = start + length
    let messages = 0
    for (let position = start; position < end; ) {
      if (skip > 0) {
        const skipped = Math.min(skip, end - position)
        skip -= skipped
        position += skipped
      } else {
        head[known++] = scratch[position++]
        if (known < 2 || known < headSize(head)) {
          continue
        }
        known = 0
        skip = payloadSize(head)
      }
      messages += skip === 0 ? 1 : 0
    }
    return messages
  }
}

export const messages = async (input: Messages): Promise<void> => {
  const run = start()
  const compressed = input.target.extension !== undefined
  const connection = sender(input, compressed)
  const senders = Array.from({ length: input.connections }, connection)
  const each = headOf(0, input.size).length + input.size
  const counters = Array.from({ length: input.connections }, () => (compressed ? byHeads() : byBytes(each)))
  const sent = new Float64Array(input.connections)
  const sockets = await openAll(run, input.target, input.connections, (socket, index, length, from) => {
    if (run.measuring) {
      run.received += length
    }
    const arrived = counters[index](length, from)
    if (arrived === 0) {
      return
    }
    if (input.inFlight === 1) {
      took(run, sent[index])
      sent[index] = performance.now()
    } else if (run.measuring) {
      run.done += arrived
    }
    if (!run.stopped) {
      senders[index](socket, arrived)
    }
  })
  sockets.forEach((socket, index) => {
    sent[index] = performance.now()
    senders[index](socket, input.inFlight)
  })
}

export const broadcast = async (input: Broadcast): Promise<void> => {
  const run = start()
  const send = sender({ ...input, type: "binary" }, false)()
  const each = (headOf(0, input.size).length + input.size) * input.members
  let received = 0
  let since = 0
  await openAll(run, input.member, input.members, (_socket, _index, length) => {
    received += length
    if (received < each) {
      return
    }
    received -= each
    if (input.inFlight === 1) {
      took(run, since)
      since = performance.now()
    } else if (run.measuring) {
      run.done++
    }
    if (!run.stopped) {
      send(publisher, 1)
    }
  })
  const [publisher] = await openAll(run, input.publisher, 1, () => {})
  since = performance.now()
  send(publisher, input.inFlight)
}

const sizes = [0, 1, 125, 126, 1024, 65_535, 65_536, 1024 * 1024]

/** Text of more than one byte a character, so that a server that reads it as something else is found out. */
const textOf = (size: number): Buffer => Buffer.from("é".repeat(size >> 1) + (size % 2 === 1 ? "e" : ""))

export const verifyMessages = (target: Target): Promise<void> =>
  new Promise((resolve, reject) => {
    // What does not deflate grows by some bytes, and with them it is over the usual limit of a mebibyte.
    const tried = target.extension === undefined ? sizes : sizes.slice(0, -1)
    const expected = tried.flatMap((size) => [
      { opcode: 2, payload: randomBytes(size) },
      { opcode: 1, payload: textOf(size) }
    ])
    let rest: Buffer = Buffer.alloc(0)
    let next = 0
    let deflating = false
    let ending = false
    /** All that came deflated, since a message may refer to those before it. */
    const context: Array<Buffer> = []
    let inflated = 0
    const inflate = (content: Buffer): Buffer => {
      context.push(content, Buffer.from([0, 0, 0xff, 0xff]))
      const all = inflateRawSync(Buffer.concat(context), { finishFlush: constants.Z_SYNC_FLUSH })
      const message = all.subarray(inflated)
      inflated = all.length
      return message
    }
    const check = (): void => {
      while (next < expected.length && rest.length >= 2 && rest.length >= headSize(rest)) {
        const end = headSize(rest) + payloadSize(rest)
        if (rest.length < end) {
          return
        }
        const { opcode, payload } = expected[next]
        const compressed = (rest[0] & 0x40) !== 0
        if ((rest[0] & 0xbf) !== (0x80 | opcode) || (compressed && !deflating)) {
          throw new Error(`message ${next} came back in a frame that begins with ${rest[0].toString(2)}`)
        }
        const content = rest.subarray(headSize(rest), end)
        const received = compressed ? inflate(content) : content
        if (!received.equals(payload)) {
          throw new Error(`message ${next}, of ${payload.length} bytes, came back as another, of ${received.length}`)
        }
        rest = rest.subarray(end)
        next++
      }
    }
    const fail = (error: unknown): false => {
      reject(error)
      socket.destroy()
      return false
    }
    const socket = open(target.port, requestOf(target), {
      onBytes: (start, end) => {
        rest = Buffer.concat([rest, scratch.subarray(start, end)])
        try {
          check()
        } catch (error) {
          return fail(error)
        }
        if (next === expected.length && !ending) {
          ending = true
          finish(socket, target)
        }
        return true
      },
      onClose: (error) =>
        next === expected.length
          ? resolve()
          : reject(error ?? new Error(`${next} of ${expected.length} messages came back`)),
      onSwitch: (_, head) => {
        deflating = /^sec-websocket-extensions:\s*permessage-deflate/im.test(head)
        if (deflating !== (target.extension !== undefined)) {
          fail(new Error(`offered ${target.extension}, and was answered ${JSON.stringify(head)}`))
          return
        }
        for (const { opcode, payload } of expected) {
          socket.write(clientFrame(payload, opcode, deflating))
        }
      }
    })
  })
