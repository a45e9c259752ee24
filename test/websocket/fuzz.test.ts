/**
 * The decoder against the receiver of `ws`, over sequences of frames made at random and then broken: the same messages,
 * or both refuse with the same code.
 *
 * Each sequence has a seed, which a failure prints: `FUZZ_SEED=<seed> npx vitest run test/websocket/fuzz.test.ts` begins
 * with it. `FUZZ=long` tries millions.
 *
 * Where the two differ on purpose:
 * - A length in more bytes than it needs, and one of 2^63 or more, are refused here (RFC 6455 §5.2); `ws` takes the first,
 *   and calls the second too big.
 * - What is refused here is refused with the first byte that tells, and there with the header, the frame or the message:
 *   so `ws` is given the rest of them where it waits.
 * - A deflated message that ends within a block is refused here; `ws` takes what there is of it. Behind a block that says
 *   it is the last, the context is kept here (RFC 7692 §7.2.3.5).
 */
import { isUtf8 } from "node:buffer"
import { createRequire } from "node:module"
import { assert, describe, it } from "vitest"
import { Close, Compressed, Decoder, type Event, type Limits, Ping } from "../../src/internal/websocket/decoder.js"
import { Deflater, Inflater } from "../../src/internal/websocket/deflate.js"
import { Violation } from "../../src/internal/websocket/frames.js"
import { runs } from "../support.js"
import { encode, type Frame, Opcode } from "./frames.js"

// ----------------------------------------------------------------------------------------------------------- ws

interface Receiver {
  readonly on: (event: string, listener: (...args: ReadonlyArray<any>) => void) => void
  _write: (chunk: Buffer, encoding: string, callback: (error?: Error) => void) => void
  createError: (make: unknown, message: string, prefix: boolean, code: number, name: string) => Error
  end: () => void
  _loop: boolean
  _errored: boolean
}

interface Extension {
  readonly decompress: (
    data: Buffer,
    fin: boolean,
    callback: (error: Error | null | undefined, data?: Buffer) => void
  ) => void
}

interface WsDeflate extends Extension {
  readonly accept: (offers: ReadonlyArray<object>) => object
  readonly compress: (data: Buffer, fin: boolean, callback: (error: Error | null, data: Buffer) => void) => void
  readonly cleanup: () => void
}

const require = createRequire(import.meta.url)
const ReceiverOf: new (options: object) => Receiver = require("../../node_modules/ws/lib/receiver.js")
const PerMessageDeflate: new (options: object) => WsDeflate = require("../../node_modules/ws/lib/permessage-deflate.js")
const { kStatusCode } = require("../../node_modules/ws/lib/constants.js") as { readonly kStatusCode: symbol }

const limits: Limits = { maxMessageSize: 2000, maxFragments: 8, maxFrames: Infinity }

interface Outcome {
  /** Messages and control frames, in order. */
  readonly seen: ReadonlyArray<string>
  /** With what it refused. */
  code: number | undefined
}

const latin1 = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1")

const receiver = (isServer: boolean, extension: Extension | undefined, maxFragments = limits.maxFragments) => {
  const seen: Array<string> = []
  const outcome: Outcome = { seen, code: undefined }
  const receiver = new ReceiverOf({
    isServer,
    maxPayload: limits.maxMessageSize,
    maxFragments,
    extensions: extension === undefined ? {} : { "permessage-deflate": extension }
  })
  receiver.on("message", (data: Buffer, isBinary: boolean) => seen.push(`${isBinary ? "b" : "t"}${latin1(data)}`))
  receiver.on("ping", (data: Buffer) => seen.push(`p${latin1(data)}`))
  receiver.on("pong", (data: Buffer) => seen.push(`q${latin1(data)}`))
  receiver.on("conclude", (code: number, reason: Buffer) => seen.push(`c${code} ${latin1(reason)}`))
  const failure = new Error("refused")
  receiver.createError = (_make, _message, _prefix, code) => {
    outcome.code ??= code
    receiver._loop = false
    receiver._errored = true
    return failure
  }
  receiver.end = () => {}
  return { receiver, outcome }
}

const ignore = () => {}

/** An extension that leaves all as it is: what RSV1 means for frames, without zlib. */
const identity: Extension = { decompress: (data, _fin, callback) => callback(null, data) }

const byWs = (
  pieces: ReadonlyArray<Buffer>,
  masked: boolean,
  compression: boolean,
  maxFragments = limits.maxFragments
): Outcome => {
  const { outcome, receiver: ws } = receiver(masked, compression ? identity : undefined, maxFragments)
  for (const piece of pieces) {
    if (outcome.code !== undefined) {
      break
    }
    ws._write(piece, "buffer", ignore)
  }
  return outcome
}

// ---------------------------------------------------------------------------------------------------------- here

interface Own extends Outcome {
  readonly violation: Violation | undefined
}

const showOther = (event: Exclude<Event, string | Uint8Array | Violation | Compressed>): string =>
  event instanceof Close
    ? `c${event.code} ${Buffer.from(event.reason).toString("latin1")}`
    : `${event instanceof Ping ? "p" : "q"}${latin1(event.payload)}`

const showMessage = (message: string | Uint8Array): string =>
  typeof message === "string" ? `t${Buffer.from(message).toString("latin1")}` : `b${latin1(message)}`

const invalidText = new Violation(1007, "RFC 6455 §8.1", "")

const byUs = (pieces: ReadonlyArray<Buffer>, masked: boolean, compression: boolean): Own => {
  const decoder = new Decoder(masked, compression, limits)
  const events: Array<Event> = []
  for (const piece of pieces) {
    decoder.decode(piece, events)
  }
  const seen: Array<string> = []
  for (const event of events) {
    if (event instanceof Violation) {
      return { seen, code: event.code, violation: event }
    }
    if (event instanceof Compressed) {
      if (event.isText && !isUtf8(event.data)) {
        return { seen, code: 1007, violation: invalidText }
      }
      seen.push(`${event.isText ? "t" : "b"}${latin1(event.data)}`)
    } else {
      seen.push(typeof event === "string" || event instanceof Uint8Array ? showMessage(event) : showOther(event))
    }
  }
  return { seen, code: undefined, violation: undefined }
}

/** With how many bytes it was refused here. */
const refusedWith = (all: Buffer, masked: boolean, compression: boolean): number => {
  const decoder = new Decoder(masked, compression, limits)
  const events: Array<Event> = []
  for (let at = 0; at < all.length; at++) {
    decoder.decode(Buffer.from(all.subarray(at, at + 1)), events)
    const last = events.at(-1)
    if (decoder.done || (last instanceof Compressed && last.isText && !isUtf8(last.data))) {
      return at + 1
    }
  }
  return all.length
}

/** What ends the frame in which these bytes end, and then the message. */
const rest = (all: Buffer, masked: boolean): Buffer => {
  let at = 0
  let left = 0
  while (at < all.length) {
    if (at + 2 > all.length) {
      left = 1
      break
    }
    const form = all[at + 1]! & 0x7f
    const start = at + 2 + (form === 126 ? 2 : form === 127 ? 8 : 0)
    const payload = start + (all[at + 1]! >= 0x80 ? 4 : 0)
    const size =
      start > all.length
        ? 0
        : form === 126
          ? all.readUInt16BE(at + 2)
          : form === 127
            ? Number(all.readBigUInt64BE(at + 2))
            : form
    left = Math.max(0, payload + size - all.length)
    at = payload + size
  }
  const key = masked ? Buffer.alloc(4) : undefined
  return Buffer.concat([Buffer.alloc(Math.min(left, 10_000)), encode({ opcode: Opcode.Continuation, key })])
}

const sameSeen = (a: Outcome, b: Outcome): boolean =>
  a.seen.length === b.seen.length && a.seen.every((event, i) => event === b.seen[i])

const begins = (a: Outcome, b: Outcome): boolean =>
  a.seen.length <= b.seen.length && a.seen.every((event, i) => event === b.seen[i])

/** What is wrong between the two; nothing where they agree. */
const disagreement = (
  all: Buffer,
  masked: boolean,
  compression: boolean,
  own: Own,
  ws: Outcome
): string | undefined => {
  const { violation } = own
  if (violation === undefined) {
    return ws.code === undefined && sameSeen(own, ws) ? undefined : "not refused here"
  }
  if (violation.description.includes("minimal number of bytes")) {
    return begins(own, ws) ? undefined : "other messages before the length that is too long"
  }
  if (violation.description.startsWith("The most significant bit")) {
    return ws.code === 1009 && sameSeen(own, ws) ? undefined : "a length of 2^63 or more"
  }
  if (ws.code === own.code && sameSeen(own, ws)) {
    return undefined
  }
  const part = all.subarray(0, refusedWith(all, masked, compression))
  // What is appended may be a fragment too many
  const maxFragments = own.code === 1008 ? limits.maxFragments : limits.maxFragments + 1
  const later = byWs([Buffer.concat([part, rest(part, masked)])], masked, compression, maxFragments)
  return later.code === own.code && sameSeen(own, later) ? undefined : `refused here (${violation.description})`
}

// ----------------------------------------------------------------------------------------------------- sequences

/** Mulberry32: a number from 0 to 1 for each call, the same for the same seed. */
const random = (seed: number) => {
  let state = seed | 0
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
  }
  const below = (limit: number): number => Math.floor(next() * limit)
  return {
    below,
    chance: (of: number): boolean => next() * of < 1,
    pick: <A>(all: ReadonlyArray<A>): A => all[below(all.length)]!
  }
}

type Random = ReturnType<typeof random>

const codePoints = ["a", "Z", "\0", "ß", "߿", "ࠀ", "€", "퟿", "￿", "𐀀", "😀", "\u{10FFFF}"].map((text) =>
  Buffer.from(text)
)
const garbage = [
  "80",
  "bf",
  "c0",
  "c1",
  "c2",
  "e0 80",
  "e1 80",
  "ed a0 80",
  "f0 80",
  "f0 90 80",
  "f4 90",
  "f8",
  "ff"
].map((text) => Buffer.from(text.replaceAll(" ", ""), "hex"))
const sizes = [0, 0, 1, 2, 3, 63, 64, 65, 66, 124, 125, 126, 127, 128, 300, 1999, 2000, 2001]

const someText = (r: Random): Buffer => {
  const parts: Array<Buffer> = []
  for (let i = r.below(r.chance(8) ? 60 : 8); i > 0; i--) {
    parts.push(r.pick(codePoints))
  }
  if (r.chance(6)) {
    parts.splice(r.below(parts.length + 1), 0, r.pick(garbage))
  }
  return Buffer.concat(parts)
}

const someBytes = (r: Random, size: number): Buffer => {
  const all = Buffer.allocUnsafe(size)
  const first = r.below(256)
  const step = r.below(256)
  for (let i = 0; i < size; i++) {
    all[i] = first + i * step
  }
  return all
}

const closeCodes = [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999, 999, 1004, 1005, 1006, 1015, 2000, 5000, 0, 65535]

const someClose = (r: Random): Buffer => {
  if (r.chance(4)) {
    return someBytes(r, r.below(3))
  }
  const code = r.chance(3) ? r.pick(closeCodes) : 1000
  const reason = someText(r).subarray(0, 123)
  return Buffer.concat([Buffer.of(code >> 8, code & 255), reason])
}

const keyOf = (r: Random): Buffer =>
  r.chance(10) ? Buffer.alloc(4) : Buffer.of(r.below(256), r.below(256), r.below(256), r.below(256))

const control = (r: Random): Frame => ({
  opcode: r.chance(2) ? Opcode.Ping : Opcode.Pong,
  payload: someBytes(r, r.chance(3) ? r.pick([124, 125, 126]) : r.below(10))
})

const message = (r: Random, compression: boolean): ReadonlyArray<Frame> => {
  const isText = r.chance(2)
  const content = isText ? someText(r) : someBytes(r, r.chance(2) ? r.below(40) : r.pick(sizes))
  const rsv = compression && r.chance(2) ? 4 : 0
  const count = r.chance(3) ? 2 + r.below(r.chance(6) ? 9 : 3) : 1
  const frames: Array<Frame> = []
  let at = 0
  for (let i = 0; i < count; i++) {
    const end = i === count - 1 ? content.length : Math.min(content.length, at + r.below(content.length + 1))
    frames.push({
      opcode: i === 0 ? (isText ? Opcode.Text : Opcode.Binary) : Opcode.Continuation,
      rsv: i === 0 ? rsv : 0,
      fin: i === count - 1,
      payload: content.subarray(at, end)
    })
    at = end
    if (r.chance(4)) {
      frames.push(control(r))
    }
  }
  return frames
}

/** Breaks one thing of a frame. */
const broken = (r: Random, frame: Frame, masked: boolean): Frame => {
  switch (r.below(7)) {
    case 0:
      return { ...frame, rsv: 1 + r.below(7) }
    case 1:
      return { ...frame, opcode: r.below(16) }
    case 2:
      return { ...frame, fin: frame.fin === false }
    case 3:
      return { ...frame, key: masked ? undefined : keyOf(r) }
    case 4:
      return { ...frame, lengthBytes: Buffer.from(frame.payload as string).length < 126 && r.chance(2) ? 3 : 9 }
    case 5:
      return {
        ...frame,
        lengthBytes: 9,
        length: r.pick([0n, 2001n, 65_536n, 2n ** 32n, 2n ** 53n, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n])
      }
    default:
      return { ...frame, opcode: r.pick([Opcode.Continuation, Opcode.Text, Opcode.Close, Opcode.Ping]) }
  }
}

/** Breaks some bytes, whatever they are. */
const damaged = (r: Random, all: Buffer): Buffer => {
  if (all.length === 0) {
    return all
  }
  const at = r.below(all.length)
  switch (r.below(5)) {
    case 0: {
      const flipped = Buffer.from(all)
      flipped[at] = flipped[at]! ^ (1 << r.below(8))
      return flipped
    }
    case 1:
      return Buffer.concat([all.subarray(0, at), someBytes(r, 1 + r.below(4)), all.subarray(at)])
    case 2:
      return Buffer.concat([all.subarray(0, at), all.subarray(at + 1 + r.below(4))])
    case 3:
      return all.subarray(0, at)
    default:
      return Buffer.concat([all, all.subarray(at)])
  }
}

const sequence = (r: Random, masked: boolean, compression: boolean): Buffer => {
  const frames: Array<Frame> = []
  for (let i = 1 + r.below(4); i > 0; i--) {
    frames.push(...(r.chance(5) ? [control(r)] : message(r, compression)))
  }
  if (r.chance(4)) {
    frames.push({ opcode: Opcode.Close, payload: someClose(r) })
  }
  const sent = frames.map((frame) => ({ ...frame, key: masked ? keyOf(r) : undefined }))
  if (r.chance(3)) {
    const at = r.below(sent.length)
    sent[at] = broken(r, sent[at]!, masked) as (typeof sent)[number]
  }
  let all = Buffer.concat(sent.map(encode))
  while (r.chance(3)) {
    all = damaged(r, all) as typeof all
  }
  return all
}

/** The bytes in a few pieces, each in memory of its own: both change what they are given. */
const pieces = (r: Random, all: Buffer): ReadonlyArray<Buffer> => {
  const result: Array<Buffer> = []
  let at = 0
  while (at < all.length) {
    const end = r.chance(2) ? all.length : at + 1 + r.below(r.chance(2) ? 4 : all.length)
    result.push(Buffer.from(all.subarray(at, end)))
    at = end
  }
  return result
}

const isLong = process.env.FUZZ === "long"
/** As CI has it once. */
const manyRuns = runs(1) >= 1000
const firstSeed = Number(process.env.FUZZ_SEED ?? (isLong ? Date.now() % 1_000_000_000 : 1))
const timeout = isLong ? 3_600_000 : 60_000

/** A seed tells the role and the extension too: any failing one can be run by itself. */
const check = (seed: number, counts: { refused: number; whole: number }): void => {
  const r = random(Math.imul(seed, 0x9e3779b1))
  const masked = r.chance(2)
  const compression = r.chance(4)
  const all = sequence(r, masked, compression)
  const own = byUs(pieces(r, all), masked, compression)
  const ws = byWs(pieces(r, all), masked, compression)
  const wrong = disagreement(all, masked, compression, own, ws)
  if (wrong !== undefined) {
    throw new Error(
      [
        `FUZZ_SEED=${seed}: ${wrong}`,
        `as a ${masked ? "server" : "client"}${compression ? " with permessage-deflate" : ""}: ${all.toString("hex")}`,
        `here ${own.code}: ${JSON.stringify(own.seen)}`,
        `ws   ${ws.code}: ${JSON.stringify(ws.seen)}`
      ].join("\n")
    )
  }
  counts.refused += own.code === undefined ? 0 : 1
  counts.whole += own.code === undefined && own.seen.length > 0 ? 1 : 0
}

describe("random and broken sequences of frames", () => {
  const count = isLong ? 5_000_000 : manyRuns ? 400_000 : 50_000

  it(
    "yield the same messages as in ws, or are refused with the same code",
    () => {
      const counts = { refused: 0, whole: 0 }
      for (let i = 0; i < count; i++) {
        check(firstSeed + i, counts)
      }
      // That neither side of the law is tried too seldom
      assert.isAbove(counts.refused, count / 5)
      assert.isAbove(counts.whole, count / 5)
    },
    timeout
  )
})

// --------------------------------------------------------------------------------------------- permessage-deflate

type Step =
  | { readonly message: Buffer; readonly isText: boolean; readonly by: "ws" | "us" | "none" }
  | { readonly control: Frame }

const inflated = (inflater: Inflater, data: Uint8Array): Promise<Uint8Array | number> =>
  new Promise((resolve) =>
    inflater.inflate(data, limits.maxMessageSize, (error, message) =>
      resolve(error === undefined ? message! : error === "TooBig" ? 1009 : 1007)
    )
  )

interface Inflated extends Outcome {
  /** Refused since zlib could not make sense of it. */
  readonly isCorrupt: boolean
}

/** As a websocket does it: each message inflated before what follows it is looked at. */
const inflatedByUs = async (
  pieces: ReadonlyArray<Buffer>,
  masked: boolean,
  noContextTakeover: boolean
): Promise<Inflated> => {
  const decoder = new Decoder(masked, true, limits)
  const inflater = new Inflater(15, noContextTakeover)
  const events: Array<Event> = []
  for (const piece of pieces) {
    decoder.decode(piece, events)
  }
  const seen: Array<string> = []
  const ended = (code: number | undefined, isCorrupt = false): Inflated => {
    inflater.close()
    return { seen, code, isCorrupt }
  }
  for (const event of events) {
    if (event instanceof Violation) {
      return ended(event.code)
    }
    if (event instanceof Compressed) {
      const message = await inflated(inflater, event.data)
      if (typeof message === "number") {
        return ended(message, message === 1007)
      }
      if (event.isText && !isUtf8(message)) {
        return ended(1007)
      }
      seen.push(`${event.isText ? "t" : "b"}${latin1(message)}`)
    } else {
      seen.push(typeof event === "string" || event instanceof Uint8Array ? showMessage(event) : showOther(event))
    }
  }
  return ended(undefined)
}

const wsDeflate = (isServer: boolean, noContextTakeover: boolean): WsDeflate => {
  const deflate = new PerMessageDeflate({ isServer, maxPayload: limits.maxMessageSize, threshold: 0 })
  deflate.accept([noContextTakeover ? { server_no_context_takeover: [true], client_no_context_takeover: [true] } : {}])
  return deflate
}

const inflatedByWs = async (
  pieces: ReadonlyArray<Buffer>,
  masked: boolean,
  noContextTakeover: boolean
): Promise<Outcome> => {
  const extension = wsDeflate(masked, noContextTakeover)
  const { outcome, receiver: ws } = receiver(masked, extension)
  for (const piece of pieces) {
    await new Promise<void>((resolve) => {
      ws._write(piece, "buffer", (error) => {
        outcome.code ??= (error as { readonly [kStatusCode]?: number } | undefined)?.[kStatusCode as never]
        resolve()
      })
    })
    if (outcome.code !== undefined) {
      break
    }
  }
  extension.cleanup()
  return outcome
}

const compressedBy = (deflate: WsDeflate, message: Buffer): Promise<Buffer> =>
  new Promise((resolve) => deflate.compress(message, true, (_, data) => resolve(Buffer.from(data))))

const deflated = (deflater: Deflater, message: Buffer): Promise<Uint8Array | undefined> =>
  new Promise((resolve) => deflater.deflate(message, (_, payload) => resolve(payload)))

const words = ["the same words ", "again and again ", "€ ", '{"type":"event","id":', "0123456789"].map((text) =>
  Buffer.from(text)
)

/** None is empty: ws deflates that to nothing, which it cannot undo. */
const compressible = (r: Random): Buffer =>
  Buffer.concat(Array.from({ length: 1 + r.below(r.chance(5) ? 150 : 30) }, () => r.pick(words)))

const checkDeflate = async (seed: number): Promise<number> => {
  const r = random(Math.imul(seed, 0x85ebca6b))
  const masked = r.chance(2)
  const noContextTakeover = r.chance(2)
  // All by one, since both keep a context of what they deflated
  const byWs = r.chance(2)
  const ws = wsDeflate(!masked, noContextTakeover)
  const us = new Deflater(15, noContextTakeover)
  const steps: Array<Step> = Array.from({ length: 1 + r.below(4) }, () =>
    r.chance(5)
      ? { control: control(r) }
      : { message: compressible(r), isText: r.chance(2), by: r.chance(4) ? "none" : byWs ? "ws" : "us" }
  )
  const frames: Array<Frame> = []
  for (const step of steps) {
    if ("control" in step) {
      frames.push(step.control)
      continue
    }
    const payload =
      step.by === "ws"
        ? await compressedBy(ws, step.message)
        : step.by === "us"
          ? await deflated(us, step.message)
          : undefined
    const content = payload ?? step.message
    const cut = r.chance(3) ? r.below(content.length + 1) : content.length
    frames.push({
      opcode: step.isText ? Opcode.Text : Opcode.Binary,
      rsv: payload === undefined ? 0 : 4,
      fin: cut === content.length,
      payload: content.subarray(0, cut)
    })
    if (cut < content.length) {
      frames.push({ opcode: Opcode.Continuation, payload: content.subarray(cut) })
    }
  }
  ws.cleanup()
  us.close()
  // What is deflated stays as it is: zlib makes something of many a damaged block, and ws of what follows the last one
  const plain = frames.flatMap(({ opcode, rsv }, i) => (rsv !== 4 && opcode !== Opcode.Continuation ? [i] : []))
  const sent = frames.map((frame) => ({ ...frame, key: masked ? keyOf(r) : undefined }))
  if (plain.length > 0 && r.chance(3)) {
    const at = r.pick(plain)
    const frame = broken(r, sent[at]!, masked)
    sent[at] = { ...frame, rsv: (frame.rsv ?? 0) & 3 } as (typeof sent)[number]
  }
  const whole = Buffer.concat(sent.map(encode))
  const all = r.chance(4) ? whole.subarray(0, r.below(whole.length + 1)) : whole
  const here = await inflatedByUs(pieces(r, all), masked, noContextTakeover)
  const there = await inflatedByWs(pieces(r, all), masked, noContextTakeover)
  const isRight = (here.code === there.code && sameSeen(here, there)) || (here.isCorrupt && begins(here, there))
  if (!isRight && !explained(all, masked, here, there)) {
    throw new Error(
      [
        `FUZZ_SEED=${seed}: permessage-deflate${noContextTakeover ? " without context takeover" : ""}`,
        `as a ${masked ? "server" : "client"}: ${all.toString("hex")}`,
        `here ${here.code}: ${JSON.stringify(here.seen)}`,
        `ws   ${there.code}: ${JSON.stringify(there.seen)}`
      ].join("\n")
    )
  }
  return here.code === undefined ? 1 : 0
}

/** Refused by the frames alone, as the law above has it. */
const explained = (all: Buffer, masked: boolean, here: Outcome, there: Outcome): boolean =>
  here.code !== undefined && begins(here, there) && byUs([Buffer.from(all)], masked, true).code !== undefined

describe("deflated messages in broken sequences of frames", () => {
  const count = isLong ? 100_000 : 3000

  it(
    "come out as in ws, or are refused with the same code",
    async () => {
      let whole = 0
      for (let i = 0; i < count; i++) {
        whole += await checkDeflate(firstSeed + i)
      }
      assert.isAbove(whole, count / 3)
    },
    timeout
  )
})
