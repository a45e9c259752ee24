import * as FastCheck from "effect/FastCheck"
import { assert, describe, it } from "vitest"
import { Decoder, type Event, type Limits } from "../../src/internal/websocket/decoder.js"
import { Encoder } from "../../src/internal/websocket/encoder.js"
import { runs } from "../support.js"
import { bytes, closePayload, decodeAll, encode, type Frame, hex, key, keyOf, Opcode, show, split } from "./frames.js"

const numRuns = runs(200)

const law = <Ts extends [unknown, ...Array<unknown>]>(
  ...args: [...{ [K in keyof Ts]: FastCheck.Arbitrary<Ts[K]> }, (...values: Ts) => void]
): void => FastCheck.assert(FastCheck.property<Ts>(...args), { numRuns })

const limits: Limits = { maxMessageSize: 1024 * 1024, maxFragments: 1000, maxFrames: 100_000 }

interface Reading {
  readonly masked?: boolean | undefined
  readonly compression?: boolean | undefined
  readonly limits?: Partial<Limits> | undefined
  readonly direct?: boolean | undefined
}

const decoderOf = ({ compression = false, masked = true, ...given }: Reading = {}): Decoder =>
  new Decoder(masked, compression, { ...limits, ...given.limits })

/** Decodes a read: with `direct`, the rest of a large payload by way of the decoder's own space, as a socket does. */
const feed = (decoder: Decoder, read: Uint8Array, events: Array<Event>, direct: boolean): void => {
  let rest = Buffer.from(read)
  let others = 0
  while (rest.length > 0) {
    const space = direct ? decoder.space : undefined
    const size = Math.min(rest.length, space?.length ?? rest.length)
    if (space === undefined) {
      decoder.decode(rest, events)
    } else {
      space.set(rest.subarray(0, size))
      decoder.filled(size, events)
    }
    others += decoder.others
    rest = rest.subarray(size)
  }
  decoder.others = others
}

const decodeEach = (pieces: ReadonlyArray<Uint8Array>, reading?: Reading): Array<Event> => {
  const decoder = decoderOf(reading)
  const events: Array<Event> = []
  for (const piece of pieces) {
    const before = events.length
    feed(decoder, piece, events, reading?.direct === true)
    const others = events.slice(before).filter((event) => typeof event !== "string" && !(event instanceof Uint8Array))
    assert.strictEqual(decoder.others, others.length)
  }
  return events
}

const shown = (pieces: ReadonlyArray<Uint8Array>, reading?: Reading): ReadonlyArray<string> =>
  decodeEach(pieces, reading).map(show)

const encodeFrames = (frames: ReadonlyArray<Frame>): Buffer => Buffer.concat(frames.map(encode))

// ------------------------------------------------------------------------------------------------- what is sent

/** Where the length takes more bytes, the mask another loop, and the payload a buffer of its own. */
const edges = [0, 1, 2, 3, 4, 5, 31, 32, 33, 41, 42, 63, 64, 65, 66, 67, 68, 69, 70, 71, 124, 125, 126, 127, 128]
const larger = [255, 256, 16_383, 16_384, 16_385, 65_533, 65_534, 65_535, 65_536, 65_537, 200 * 1024]

const size = FastCheck.oneof(
  { arbitrary: FastCheck.constantFrom(...edges), weight: 6 },
  { arbitrary: FastCheck.constantFrom(...larger), weight: 2 },
  { arbitrary: FastCheck.nat(300), weight: 3 },
  { arbitrary: FastCheck.nat(200 * 1024), weight: 1 }
)

/** Bytes without a pattern that a mask of four bytes could hide. */
const binaryOf = (size: number, seed: number): Buffer => {
  const all = Buffer.allocUnsafe(size)
  let state = seed | 1
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) | 0
    all[i] = state >>> 16
  }
  return all
}

const binary = FastCheck.tuple(size, FastCheck.integer()).map(([size, seed]) => binaryOf(size, seed))

const text = FastCheck.oneof(
  { arbitrary: FastCheck.string({ unit: "binary", maxLength: 60 }), weight: 3 },
  { arbitrary: FastCheck.string({ unit: "binary-ascii", maxLength: 200 }), weight: 2 },
  { arbitrary: FastCheck.constantFrom("", "\0", "\uFEFF", "\uFEFFa", "\u{10FFFF}", "\u07FF\u0800\uFFFF"), weight: 1 },
  {
    arbitrary: FastCheck.tuple(FastCheck.constantFrom("a", "ß", "€", "😀", "a€"), size).map(([unit, size]) =>
      unit.repeat(size).slice(0, size - (size % unit.length))
    ),
    weight: 2
  }
)

const message: FastCheck.Arbitrary<string | Buffer> = FastCheck.oneof<
  [FastCheck.Arbitrary<string>, FastCheck.Arbitrary<Buffer>]
>(text, binary)

const messages = FastCheck.array(message, { maxLength: 12 })

const cuts = FastCheck.oneof(
  { arbitrary: FastCheck.constant("nowhere" as const), weight: 1 },
  { arbitrary: FastCheck.constant("everywhere" as const), weight: 1 },
  { arbitrary: FastCheck.array(FastCheck.double({ min: 0, max: 1, noNaN: true }), { maxLength: 8 }), weight: 4 }
)

const cut = (all: Uint8Array, at: typeof cuts extends FastCheck.Arbitrary<infer A> ? A : never) =>
  at === "nowhere"
    ? [Buffer.from(all)]
    : at === "everywhere"
      ? // A read a byte costs: only the beginning of what is long
        split(
          all,
          Array.from({ length: Math.min(all.length, 2000) }, (_, i) => i)
        )
      : split(
          all,
          at.map((place) => Math.floor(place * all.length))
        )

const showMessage = (message: string | Uint8Array): string =>
  show(typeof message === "string" ? message : new Uint8Array(message))

const encoded = (messages: ReadonlyArray<string | Uint8Array>, masks: boolean): Buffer => {
  const encoder = new Encoder(masks)
  messages.forEach((message) => encoder.message(message))
  const { size } = encoder
  const all = Buffer.concat(encoder.take())
  assert.strictEqual(all.length, size)
  assert.strictEqual(encoder.size, 0)
  return all
}

describe("decoding", () => {
  it("undoes encoding, for any messages, masked or not, however the bytes are split", () => {
    law(messages, FastCheck.boolean(), FastCheck.boolean(), cuts, (messages, masked, direct, at) => {
      const pieces = cut(encoded(messages, masked), at)
      assert.deepStrictEqual(shown(pieces, { masked, direct }), messages.map(showMessage))
    })
  })

  const control = FastCheck.tuple(
    FastCheck.constantFrom(Opcode.Ping, Opcode.Pong),
    FastCheck.oneof(FastCheck.constantFrom(0, 1, 124, 125), FastCheck.nat(125))
  ).map(([opcode, size]) => ({ opcode, payload: binaryOf(size, size) }))

  const fragmented = FastCheck.record({
    message,
    at: FastCheck.array(FastCheck.double({ min: 0, max: 1, noNaN: true }), { maxLength: 6 }),
    /** Empty fragments too. */
    doubled: FastCheck.boolean(),
    between: FastCheck.array(FastCheck.array(control, { maxLength: 2 }), { maxLength: 8 })
  })

  const keys = FastCheck.uint8Array({ minLength: 4, maxLength: 4 })

  it("puts any fragments together, with control frames between them, in any split (RFC 6455 §5.4)", () => {
    const sequence = FastCheck.array(fragmented, { maxLength: 4 })
    law(sequence, FastCheck.boolean(), FastCheck.boolean(), keys, cuts, (sent, masked, direct, key, at) => {
      const frames: Array<Frame> = []
      const expected: Array<string> = []
      const mask = masked ? key : undefined
      for (const { at, between, doubled, message } of sent) {
        const content = Buffer.from(message as string)
        const points = at.map((place) => Math.floor(place * content.length)).sort((a, b) => a - b)
        const cuts = [0, ...points, ...(doubled ? points : []), content.length].sort((a, b) => a - b)
        cuts.slice(1).forEach((end, i) => {
          if (i > 0) {
            for (const { opcode, payload } of between[i - 1] ?? []) {
              frames.push({ opcode, payload, key: mask })
              expected.push(`${opcode === Opcode.Ping ? "ping" : "pong"} ${payload.toString("hex")}`)
            }
          }
          frames.push({
            opcode: i > 0 ? Opcode.Continuation : typeof message === "string" ? Opcode.Text : Opcode.Binary,
            payload: content.subarray(cuts[i], end),
            fin: i === cuts.length - 2,
            key: mask
          })
        })
        expected.push(showMessage(message))
      }
      assert.deepStrictEqual(shown(cut(encodeFrames(frames), at), { masked, direct }), expected)
    })
  })

  it("yields a message in the read in which its last byte comes, and not before", () => {
    law(
      FastCheck.array(
        message.filter((message) => message.length < 300),
        { maxLength: 5 }
      ),
      (messages) => {
        const decoder = decoderOf()
        for (const message of messages) {
          const pieces = cut(encoded([message], true), "everywhere")
          pieces.forEach((piece, i) => {
            const events: Array<Event> = []
            decoder.decode(piece, events)
            assert.deepStrictEqual(events.map(show), i === pieces.length - 1 ? [showMessage(message)] : [])
            assert.strictEqual(decoder.isInMessage, i < pieces.length - 1)
          })
        }
      }
    )
  })

  it("lets a binary message be a view of what was read, and no other message's", () => {
    const first = binaryOf(1000, 1)
    const second = binaryOf(1000, 2)
    const read = encoded([first, second], true)
    const events = decodeEach([read]) as Array<Uint8Array>
    events[0]!.fill(0)
    assert.isTrue(second.equals(events[1]!))
  })

  it("undoes any key at any phase, at any place in memory (RFC 6455 §5.3)", () => {
    law(
      keys,
      FastCheck.nat(7),
      FastCheck.oneof(FastCheck.constantFrom(...edges), FastCheck.nat(300)),
      FastCheck.nat(300),
      (key, offset, size, at) => {
        const content = binaryOf(size, at)
        const frame = encode({ opcode: Opcode.Binary, payload: content, key })
        const decoder = decoderOf()
        const events: Array<Event> = []
        for (const piece of split(frame, [at])) {
          const place = Buffer.alloc(offset + piece.length)
          piece.copy(place, offset)
          decoder.decode(place.subarray(offset), events)
        }
        assert.deepStrictEqual(events.map(show), [show(new Uint8Array(content))])
      }
    )
  })
})

describe("encoding", () => {
  it("writes the frames of RFC 6455 §5.2, each whole, its length in as few bytes as can be", () => {
    law(messages, (messages) => {
      const expected = messages.map((message) =>
        encode({ opcode: typeof message === "string" ? Opcode.Text : Opcode.Binary, payload: message })
      )
      assert.isTrue(Buffer.concat(expected).equals(encoded(messages, false)))
    })
  })

  it("masks a client's frames, each with a key of its own (§5.3)", () => {
    law(messages, (messages) => {
      const all = encoded(messages, true)
      const frames = decodeAll(all)
      assert.strictEqual(frames.length, messages.length)
      frames.forEach(({ fin, masked, opcode, payload, rsv }, i) => {
        const message = messages[i]!
        assert.deepInclude({ fin, masked, rsv }, { fin: true, masked: true, rsv: 0 })
        assert.strictEqual(opcode, typeof message === "string" ? Opcode.Text : Opcode.Binary)
        assert.isTrue(payload.equals(Buffer.from(message as string)))
      })
    })
    const zeros = encoded(
      Array.from({ length: 5000 }, () => Buffer.alloc(4)),
      true
    )
    const keys = new Set(Array.from({ length: 5000 }, (_, i) => zeros.readUInt32BE(i * 10 + 2)))
    // Two of 5,000 are alike by chance three times in a thousand
    assert.isAtLeast(keys.size, 4998)
  })

  it("writes a batch as its messages one by one", () => {
    law(messages, (messages) => {
      const single = messages.map((message) => encoded([message], false))
      assert.isTrue(Buffer.concat(single).equals(encoded(messages, false)))
    })
  })

  it("writes control frames and compressed messages by their opcode and RSV1 (RFC 7692 §7.2.1)", () => {
    law(FastCheck.nat(125), binary, FastCheck.boolean(), (size, data, isText) => {
      const encoder = new Encoder(false)
      const payload = binaryOf(size, size)
      encoder.control(Opcode.Ping, payload)
      encoder.compressed(data, isText)
      const expected = encodeFrames([
        { opcode: Opcode.Ping, payload },
        { opcode: isText ? Opcode.Text : Opcode.Binary, payload: data, rsv: 4 }
      ])
      assert.isTrue(expected.equals(Buffer.concat(encoder.take())))
    })
  })

  it("sends a lone surrogate, which no UTF-8 has, as U+FFFD", () => {
    for (const text of ["\uD800", "a\uDC00b", `${"x".repeat(50)}\uD83D`]) {
      const [frame] = decodeAll(encoded([text], false))
      assert.strictEqual(frame!.payload.toString(), Buffer.from(text).toString())
      assert.deepStrictEqual(shown([encoded([text], true)]), [show(Buffer.from(text).toString())])
    }
  })

  type Act = "message" | "control" | "raw" | "take" | "takeOne"

  const step = FastCheck.tuple(
    FastCheck.nat(3),
    FastCheck.constantFrom<Act[]>("message", "message", "message", "control", "raw", "take", "takeOne"),
    message
  )

  it("never writes again where a piece was cut from, however many encoders share the slab", () => {
    law(FastCheck.array(step, { maxLength: 60 }), (steps) => {
      const encoders = [false, true, false, true].map((masks) => ({
        encoder: new Encoder(masks),
        held: [] as Array<Uint8Array>,
        seen: [] as Array<Buffer>,
        expected: [] as Array<Buffer>
      }))
      const keep = ({ held, seen }: (typeof encoders)[number], pieces: ReadonlyArray<Uint8Array>) => {
        held.push(...pieces)
        seen.push(...pieces.map((piece) => Buffer.from(piece)))
      }
      for (const [which, act, message] of steps) {
        const one = encoders[which]!
        const { encoder, expected } = one
        if (act === "take") {
          keep(one, encoder.take())
        } else if (act === "takeOne") {
          const before = encoder.size
          const piece = encoder.takeOne()
          keep(one, piece === undefined ? [] : [piece])
          assert.strictEqual(encoder.size, piece === undefined ? before : 0)
        } else if (act === "control") {
          const payload = Buffer.from(message as string).subarray(0, 125)
          encoder.control(Opcode.Pong, payload)
          expected.push(payload)
        } else if (act === "raw") {
          encoder.raw(encode({ opcode: Opcode.Binary, payload: message }))
          expected.push(Buffer.from(message as string))
        } else {
          encoder.message(message)
          expected.push(Buffer.from(message as string))
        }
      }
      for (const one of encoders) {
        keep(one, one.encoder.take())
        assert.isTrue(Buffer.concat(one.held).equals(Buffer.concat(one.seen)), "a piece has changed")
        const payloads = decodeAll(Buffer.concat(one.held)).map(({ payload }) => payload.toString("hex"))
        assert.deepStrictEqual(
          payloads,
          one.expected.map((payload) => payload.toString("hex"))
        )
      }
    })
  })

  it("leaves a large payload where it is, and never changes what it was given", () => {
    const large = binaryOf(100_000, 7)
    const small = binaryOf(1000, 8)
    const before = Buffer.from(large)
    const server = new Encoder(false)
    server.message("first")
    server.message(large)
    server.message("last")
    const pieces = server.take()
    assert.strictEqual(pieces[1], large)
    assert.isBelow(pieces[0]!.length + pieces[2]!.length, 40)
    const client = new Encoder(true)
    client.message(large)
    client.message(small)
    client.control(Opcode.Ping, large.subarray(0, 100))
    assert.lengthOf(decodeAll(Buffer.concat(client.take())), 3)
    assert.isTrue(large.equals(before))
    assert.isTrue(small.equals(binaryOf(1000, 8)))
  })

  it("keeps no buffer between two batches", () => {
    const encoder = new Encoder(false)
    encoder.message("a")
    encoder.take()
    assert.strictEqual(encoder.takeOne(), undefined)
    assert.deepStrictEqual(encoder.take(), [])
    encoder.message("b")
    assert.deepStrictEqual(
      decodeAll(encoder.takeOne()!).map(({ payload }) => payload.toString()),
      ["b"]
    )
  })
})

// -------------------------------------------------------------------------------------------------- what is refused

interface Refused {
  readonly title: string
  readonly code: number
  readonly clause: string
  readonly frames: (masked: boolean) => ReadonlyArray<Frame>
  /** How many bytes of the last frame must have come before it is refused. */
  readonly within: number
  readonly compression?: boolean | undefined
}

const opcodes = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

const single = (
  title: string,
  clause: string,
  within: number,
  frame: Omit<Frame, "key">,
  rest: Partial<Refused> = {}
): Refused => ({
  title,
  clause,
  code: 1002,
  within,
  frames: (masked) => [{ ...frame, key: keyOf(masked) }],
  ...rest
})

const behind = (first: Omit<Frame, "key">, refused: Refused): Refused => ({
  ...refused,
  frames: (masked) => [{ ...first, key: keyOf(masked) }, ...refused.frames(masked)]
})

const refusals: ReadonlyArray<Refused> = [
  {
    title: "a frame that is masked the wrong way",
    code: 1002,
    clause: "RFC 6455 §5.1",
    within: 2,
    frames: (masked) => [{ opcode: Opcode.Text, payload: "a", key: keyOf(!masked) }]
  },
  {
    title: "a long frame that is masked the wrong way",
    code: 1002,
    clause: "RFC 6455 §5.1",
    within: 2,
    frames: (masked) => [{ opcode: Opcode.Binary, payload: Buffer.alloc(70_000), key: keyOf(!masked) }]
  },
  {
    title: "a control frame that is masked the wrong way",
    code: 1002,
    clause: "RFC 6455 §5.1",
    within: 2,
    frames: (masked) => [{ opcode: Opcode.Ping, key: keyOf(!masked) }]
  },
  ...[1, 2, 3, 4, 5, 6, 7].flatMap((rsv) =>
    [Opcode.Text, Opcode.Binary, Opcode.Close, Opcode.Ping, Opcode.Pong].map((opcode) =>
      single(`the reserved bits ${rsv} of opcode ${opcode}`, "RFC 6455 §5.2", 1, {
        opcode,
        rsv,
        payload: opcode === Opcode.Close ? closePayload(1000) : "abcd"
      })
    )
  ),
  ...[1, 2, 3, 5, 6, 7].map((rsv) =>
    single(
      `the reserved bits ${rsv} where permessage-deflate has RSV1`,
      "RFC 6455 §5.2",
      1,
      { opcode: Opcode.Text, rsv },
      { compression: true }
    )
  ),
  ...[Opcode.Close, Opcode.Ping, Opcode.Pong].map((opcode) =>
    single(
      `RSV1 of control opcode ${opcode} under permessage-deflate`,
      "RFC 7692 §6.1",
      1,
      { opcode, rsv: 4 },
      { compression: true }
    )
  ),
  behind(
    { opcode: Opcode.Text, fin: false, payload: "a", rsv: 4 },
    single(
      "RSV1 of a continuation under permessage-deflate",
      "RFC 7692 §6.1",
      1,
      { opcode: Opcode.Continuation, rsv: 4, payload: "b" },
      { compression: true }
    )
  ),
  ...[...opcodes(3, 7), ...opcodes(11, 15)].flatMap((opcode) => [
    single(`the reserved opcode ${opcode}`, "RFC 6455 §5.2", 1, { opcode }),
    single(`the reserved opcode ${opcode} with a payload`, "RFC 6455 §5.2", 1, { opcode, payload: "abc" }),
    behind(
      { opcode: Opcode.Binary, fin: false, payload: "a" },
      single(`the reserved opcode ${opcode} within a message`, "RFC 6455 §5.2", 1, { opcode, fin: false })
    )
  ]),
  ...[0, 1, 125].map((size) =>
    single(`${size} bytes with a length of 16 bits`, "RFC 6455 §5.2", 4, {
      opcode: Opcode.Text,
      payload: "a".repeat(size),
      lengthBytes: 3
    })
  ),
  ...[0, 125, 126, 65_535].map((size) =>
    single(`${size} bytes with a length of 64 bits`, "RFC 6455 §5.2", 10, {
      opcode: Opcode.Binary,
      payload: Buffer.alloc(size),
      lengthBytes: 9
    })
  ),
  behind(
    { opcode: Opcode.Binary, fin: false, payload: "a" },
    single("a continuation with a length of too many bits", "RFC 6455 §5.2", 4, {
      opcode: Opcode.Continuation,
      payload: "b",
      lengthBytes: 3
    })
  ),
  single("a length whose most significant bit is set", "RFC 6455 §5.2", 10, {
    opcode: Opcode.Binary,
    length: 2n ** 63n
  }),
  single("a length of all ones", "RFC 6455 §5.2", 10, { opcode: Opcode.Text, length: 2n ** 64n - 1n }),
  ...[Opcode.Close, Opcode.Ping, Opcode.Pong].flatMap((opcode) => [
    single(`a fragmented control frame (${opcode})`, "RFC 6455 §5.5", 1, { opcode, fin: false }),
    single(`a control frame (${opcode}) of 126 bytes`, "RFC 6455 §5.5", 2, { opcode, payload: Buffer.alloc(126) }),
    single(`a control frame (${opcode}) of 65,536 bytes`, "RFC 6455 §5.5", 2, {
      opcode,
      payload: Buffer.alloc(65_536)
    }),
    behind(
      { opcode: Opcode.Text, fin: false, payload: "a" },
      single(`a fragmented control frame (${opcode}) within a message`, "RFC 6455 §5.5", 1, { opcode, fin: false })
    )
  ]),
  single("a continuation of nothing", "RFC 6455 §5.4", 1, { opcode: Opcode.Continuation, payload: "a" }),
  single("a continuation of nothing that is not the last", "RFC 6455 §5.4", 1, {
    opcode: Opcode.Continuation,
    fin: false
  }),
  behind(
    { opcode: Opcode.Ping, payload: "a" },
    single("a continuation of a ping", "RFC 6455 §5.4", 1, { opcode: Opcode.Continuation, payload: "b" })
  ),
  ...[Opcode.Text, Opcode.Binary].flatMap((opcode) =>
    [true, false].map((fin) =>
      behind(
        { opcode: Opcode.Text, fin: false, payload: "a" },
        single(`a message (${opcode}, ${fin}) within a message`, "RFC 6455 §5.4", 1, { opcode, fin, payload: "b" })
      )
    )
  ),
  behind(
    { opcode: Opcode.Binary, fin: false },
    single("a message within a message whose first fragment is empty", "RFC 6455 §5.4", 1, { opcode: Opcode.Text })
  ),
  single("a Close of one byte", "RFC 6455 §5.5.1", 2, { opcode: Opcode.Close, payload: "a" }),
  ...[0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535].map((code) =>
    single(`a Close of code ${code}`, "RFC 6455 §7.4", Infinity, {
      opcode: Opcode.Close,
      payload: closePayload(code, "why")
    })
  ),
  ...["80", "c0 80", "ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 65 64", "f4 90 80 80", "e2 82"].map((reason) =>
    single(
      `a Close whose reason is ${reason}`,
      "RFC 6455 §5.5.1",
      Infinity,
      { opcode: Opcode.Close, payload: closePayload(1000, hex(reason)) },
      { code: 1007 }
    )
  )
]

const junk = bytes(0xff, 0x00, 0x81, 0x85, 0x12, 0x34)

describe.each([
  ["a server", true],
  ["a client", false]
])("%s refuses", (_, masked) => {
  // Behind another message, and before garbage that nobody looks at
  const before = encodeFrames([
    { opcode: Opcode.Text, payload: "before", key: keyOf(masked) },
    { opcode: Opcode.Ping, payload: "p", key: keyOf(masked) }
  ])
  const prefix = ['text "before"', "ping 70"]

  it.each(refusals.map((refused) => [refused.title, refused] as const))("%s", (_, refused) => {
    const { clause, code, compression, frames, within } = refused
    const all = frames(masked)
    const last = encode(all.at(-1)!)
    const untilLast = Buffer.concat([before, encodeFrames(all.slice(0, -1))])
    const whole = Buffer.concat([untilLast, last, junk])
    const reading = { masked, compression }
    const between = all.slice(0, -1).some(({ opcode }) => opcode === Opcode.Ping) ? ["ping 61"] : []
    const expected = [...prefix, ...between, `violation ${code} ${clause}`]
    assert.deepStrictEqual(shown([whole], reading), expected)
    const some = Math.min(whole.length, 300)
    for (let at = 1; at < some; at++) {
      assert.deepStrictEqual(shown(split(whole, [at]), reading), expected, `split before byte ${at}`)
    }
    const everywhere = Array.from({ length: some }, (_, i) => i)
    assert.deepStrictEqual(shown(split(whole, everywhere), reading), expected)
    // As early as it can be told
    const decoder = decoderOf(reading)
    const events: Array<Event> = []
    decoder.decode(Buffer.from(untilLast), events)
    const needed = Math.min(within, last.length)
    for (let at = 0; at < needed; at++) {
      assert.isFalse(decoder.done, `refused with byte ${at} of the frame`)
      decoder.decode(Buffer.from(last.subarray(at, at + 1)), events)
    }
    assert.isTrue(decoder.done, `not refused after ${needed} bytes of the frame`)
    assert.deepStrictEqual(events.map(show), expected)
  })
})

describe("a Close", () => {
  const close = (payload: Uint8Array) => encode({ opcode: Opcode.Close, payload, key })

  const allowed = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]

  it.each(allowed)("may have code %d, and any reason, at every split (RFC 6455 §7.4)", (code) => {
    for (const reason of ["", "why", "ünïcödé €", "x".repeat(123)]) {
      const all = Buffer.concat([close(closePayload(code, reason)), junk])
      const expected = [`close ${code} ${JSON.stringify(reason)}`]
      for (let at = 0; at < all.length; at++) {
        assert.deepStrictEqual(shown(split(all, [at])), expected)
      }
    }
  })

  it("may be empty, and counts as 1005 then (§7.1.5)", () => {
    assert.deepStrictEqual(shown([close(bytes())]), ['close 1005 ""'])
  })

  it("ends what is read: nothing behind it counts", () => {
    const frames = encodeFrames([
      { opcode: Opcode.Text, payload: "a", key },
      { opcode: Opcode.Close, key },
      { opcode: Opcode.Text, payload: "b", key }
    ])
    for (let at = 0; at < frames.length; at++) {
      assert.deepStrictEqual(shown(split(frames, [at])), ['text "a"', 'close 1005 ""'])
    }
  })

  it("may come within a fragmented message, of which nothing is yielded then", () => {
    const frames = encodeFrames([
      { opcode: Opcode.Text, fin: false, payload: "a", key },
      { opcode: Opcode.Close, payload: closePayload(1001), key }
    ])
    assert.deepStrictEqual(shown([frames]), ['close 1001 ""'])
  })
})

describe("compressed messages", () => {
  const data = binaryOf(300, 3)

  it("come out as they are, where permessage-deflate was agreed on (RFC 7692 §6)", () => {
    law(FastCheck.boolean(), FastCheck.boolean(), FastCheck.nat(300), cuts, (masked, isText, point, at) => {
      const opcode = isText ? Opcode.Text : Opcode.Binary
      const mask = keyOf(masked)
      const frames = encodeFrames([
        { opcode, rsv: 4, payload: data, key: mask },
        { opcode, rsv: 4, fin: false, payload: data.subarray(0, point), key: mask },
        { opcode: Opcode.Ping, key: mask },
        { opcode: Opcode.Continuation, payload: data.subarray(point), key: mask },
        { opcode: Opcode.Text, payload: "plain", key: mask },
        { opcode: Opcode.Text, fin: false, payload: "pl", key: mask },
        { opcode: Opcode.Continuation, payload: "ain", key: mask }
      ])
      const compressed = `compressed ${isText ? "text" : "binary"} ${data.toString("hex")}`
      assert.deepStrictEqual(shown(cut(frames, at), { masked, compression: true }), [
        compressed,
        "ping ",
        compressed,
        'text "plain"',
        'text "plain"'
      ])
    })
  })
})

// -------------------------------------------------------------------------------------------------------- UTF-8

/** RFC 3629 §4, as one regular expression over bytes: all that can still become UTF-8. */
const prefix =
  /^(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*(?:[\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xec\xee\xef][\x80-\xbf]?|\xed[\x80-\x9f]?|\xf0(?:[\x90-\xbf][\x80-\xbf]?)?|[\xf1-\xf3][\x80-\xbf]{0,2}|\xf4(?:[\x80-\x8f][\x80-\xbf]?)?)?$/

/** How many bytes from the beginning can be the beginning of a text. */
const utf8Prefix = (all: Uint8Array): number => {
  const latin1 = Buffer.from(all).toString("latin1")
  let length = 0
  while (length < latin1.length && prefix.test(latin1.slice(0, length + 1))) {
    length++
  }
  return length
}

/** The cases of Autobahn's chapter 6: what is valid, and what is not. */
const validTexts = [
  "48 65 6c 6c 6f 2d c2 b5 40 c3 9f c3 b6 c3 a4 c3 bc c3 a0 c3 a1 2d 55 54 46 2d 38 21 21",
  "ce ba e1 bd b9 cf 83 ce bc ce b5",
  "00",
  "c2 80",
  "e0 a0 80",
  "f0 90 80 80",
  "7f",
  "df bf",
  "ef bf bf",
  "f4 8f bf bf",
  "ed 9f bf",
  "ee 80 80",
  "ef bf bd",
  "ef bf be",
  "f0 9f bf be",
  "f0 9f bf bf",
  "f0 af bf be",
  "f3 bf bf bf",
  "f4 8f bf be",
  "ef bb bf 61"
]

const invalidTexts = [
  // 6.3: in the middle of what is valid
  "ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 65 64 69 74 65 64",
  "ce ba e1 bd b9 cf 83 ce bc ce b5 f4 90 80 80 65 64 69 74 65 64",
  // 6.6: not to the end
  "ce",
  "ce ba e1",
  "ce ba e1 bd",
  "ce ba e1 bd b9 cf",
  "ce ba e1 bd b9 cf 83 ce",
  "ce ba e1 bd b9 cf 83 ce bc ce",
  // 6.8, 6.10: five and six bytes, and beyond U+10FFFF
  "f8 88 80 80 80",
  "fc 84 80 80 80 80",
  "f7 bf bf bf",
  "fb bf bf bf bf",
  "fd bf bf bf bf bf",
  "f4 90 80 80",
  // 6.12: continuation bytes alone
  "80",
  "bf",
  "80 bf",
  "80 bf 80",
  "80 bf 80 bf",
  "80 bf 80 bf 80",
  "80 bf 80 bf 80 bf",
  Buffer.from(Array.from({ length: 64 }, (_, i) => 0x80 + i)).toString("hex"),
  // 6.13: first bytes alone, each before a space
  Buffer.from(Array.from({ length: 32 }, (_, i) => [0xc0 + i, 0x20]).flat()).toString("hex"),
  Buffer.from(Array.from({ length: 16 }, (_, i) => [0xe0 + i, 0x20]).flat()).toString("hex"),
  Buffer.from(Array.from({ length: 8 }, (_, i) => [0xf0 + i, 0x20]).flat()).toString("hex"),
  "f8 20 f9 20 fa 20 fb 20",
  "fc 20 fd 20",
  // 6.14: the last byte is missing
  "c0",
  "e0 80",
  "f0 80 80",
  "f8 80 80 80",
  "fc 80 80 80 80",
  "df",
  "ef bf",
  "f7 bf bf",
  "fb bf bf bf",
  "fd bf bf bf bf",
  // 6.15 to 6.19: several, impossible bytes, overlong forms
  "c0 e0 80 f0 80 80 f8 80 80 80 fc 80 80 80 80 df ef bf f7 bf bf fb bf bf bf fd bf bf bf bf",
  "fe",
  "ff",
  "fe fe ff ff",
  "c0 af",
  "e0 80 af",
  "f0 80 80 af",
  "f8 80 80 80 af",
  "fc 80 80 80 80 af",
  "c1 bf",
  "e0 9f bf",
  "f0 8f bf bf",
  "f8 87 bf bf bf",
  "fc 83 bf bf bf bf",
  "c0 80",
  "e0 80 80",
  "f0 80 80 80",
  "f8 80 80 80 80",
  "fc 80 80 80 80 80",
  // 6.20, 6.21: surrogates
  "ed a0 80",
  "ed ad bf",
  "ed ae 80",
  "ed af bf",
  "ed b0 80",
  "ed be 80",
  "ed bf bf",
  "ed a0 80 ed b0 80",
  "ed a0 80 ed bf bf",
  "ed ad bf ed b0 80",
  "ed ad bf ed bf bf",
  "ed ae 80 ed b0 80",
  "ed ae 80 ed bf bf",
  "ed af bf ed b0 80",
  "ed af bf ed bf bf"
]

/** A text in fragments of these sizes, and one of the rest. */
const textFrames = (content: Uint8Array, sizes: ReadonlyArray<number>): ReadonlyArray<Frame> => {
  let at = 0
  return [...sizes, content.length].map((size, i) => {
    const payload = content.subarray(at, at + size)
    at += size
    return { opcode: i === 0 ? Opcode.Text : Opcode.Continuation, payload, fin: i === sizes.length, key }
  })
}

const violation = "violation 1007 RFC 6455 §8.1"

/** Sends a text byte by byte, and says with how many of its bytes it was refused; `undefined` if it was not. */
const refusedAt = (content: Uint8Array, sizes: ReadonlyArray<number>): number | undefined => {
  const decoder = decoderOf()
  let sent = 0
  for (const frame of textFrames(content, sizes)) {
    const encoded = encode(frame)
    const payload = encoded.length - Buffer.from(frame.payload as Uint8Array).length
    for (let at = 0; at < encoded.length; at++) {
      const events: Array<Event> = []
      decoder.decode(Buffer.from(encoded.subarray(at, at + 1)), events)
      sent += at < payload ? 0 : 1
      if (decoder.done) {
        assert.deepStrictEqual(events.map(show), [violation])
        return sent
      }
    }
  }
  return undefined
}

describe("text", () => {
  const whole = (content: Uint8Array, sizes: ReadonlyArray<number>, at: ReadonlyArray<number>) =>
    shown(split(encodeFrames(textFrames(content, sizes)), at))

  it.each(validTexts)("may be %s, in any fragments and reads", (vector) => {
    const content = hex(vector)
    for (let i = 0; i <= content.length; i++) {
      for (let j = 0; j <= content.length; j++) {
        assert.deepStrictEqual(whole(content, [i], [j]), [show(content.toString())])
        assert.deepStrictEqual(whole(content, [i, j], []), [show(content.toString())])
      }
    }
    const each = Array.from(content, () => 1)
    assert.strictEqual(refusedAt(content, each), undefined)
  })

  it.each(invalidTexts)("is no %s, which is refused with its first byte that cannot be right (§8.1)", (vector) => {
    const content = hex(vector)
    const wrong = utf8Prefix(content)
    assert.deepStrictEqual(whole(content, [], []), [violation])
    for (let i = 0; i <= content.length; i++) {
      for (let j = 0; j <= content.length; j++) {
        assert.deepStrictEqual(whole(content, [i], [j]), [violation])
      }
      assert.strictEqual(refusedAt(content, [i]), Math.min(wrong + 1, content.length))
    }
  })

  const unit = FastCheck.oneof(
    {
      arbitrary: FastCheck.string({ unit: "binary", minLength: 1, maxLength: 3 }).map((text) => Buffer.from(text)),
      weight: 6
    },
    { arbitrary: FastCheck.constantFrom(...validTexts).map(hex), weight: 2 },
    { arbitrary: FastCheck.constantFrom(...invalidTexts).map(hex), weight: 1 },
    { arbitrary: FastCheck.uint8Array({ maxLength: 3 }).map((all) => Buffer.from(all)), weight: 1 }
  )

  it("is judged as RFC 3629 §4 does, with each byte, in any fragments", () => {
    law(
      FastCheck.array(unit, { maxLength: 8 }).map((units) => Buffer.concat(units)),
      FastCheck.array(FastCheck.nat(9), { maxLength: 5 }),
      cuts,
      (content, sizes, at) => {
        const right = utf8Prefix(content)
        const isValid = right === content.length && Buffer.from(content.toString()).equals(content)
        const frames = encodeFrames(textFrames(content, sizes))
        assert.deepStrictEqual(shown(cut(frames, at)), [isValid ? show(content.toString()) : violation])
        const refused = refusedAt(content, sizes)
        assert.strictEqual(refused, isValid ? undefined : Math.min(right + 1, content.length))
      }
    )
  })

  it("of many bytes is refused in the read in which its first wrong byte comes, wherever it is read to", () => {
    law(FastCheck.nat(79_800), FastCheck.constantFrom(...invalidTexts), FastCheck.boolean(), (at, vector, direct) => {
      const content = Buffer.alloc(80_000, "a")
      const wrong = hex(vector)
      wrong.copy(content, at)
      const first = at + utf8Prefix(Buffer.concat([content.subarray(at, at + wrong.length), content.subarray(0, 1)]))
      const decoder = decoderOf()
      const frame = encode({ opcode: Opcode.Text, payload: content, key })
      for (let start = 0; start < frame.length; start += 1000) {
        const events: Array<Event> = []
        feed(decoder, frame.subarray(start, start + 1000), events, direct)
        const isDue = start + 1000 > Math.min(first, content.length - 1) + 14
        assert.deepStrictEqual(events.map(show), isDue ? [violation] : [])
        if (isDue) {
          break
        }
      }
    })
  })

  it("keeps a byte order mark, which is a character of it", () => {
    assert.deepStrictEqual(shown([encode({ opcode: Opcode.Text, payload: "\uFEFFa", key })]), [show("\uFEFFa")])
  })

  it("of any bytes is told from binary, which is never judged", () => {
    law(FastCheck.uint8Array({ maxLength: 40 }), (content) => {
      const all = encode({ opcode: Opcode.Binary, payload: content, key })
      assert.deepStrictEqual(shown([all]), [show(content)])
    })
  })
})

// ------------------------------------------------------------------------------------------------------- limits

describe("the limits", () => {
  const tooBig = "violation 1009 RFC 6455 §10.4"
  const tooMany = "violation 1008 RFC 6455 §10.4"

  it("take a message of maxMessageSize, and refuse one byte more with its header", () => {
    law(FastCheck.oneof(FastCheck.nat(200), FastCheck.constantFrom(125, 126, 65_535, 65_536)), cuts, (limit, at) => {
      const reading = { limits: { maxMessageSize: limit } }
      const fits = encode({ opcode: Opcode.Binary, payload: Buffer.alloc(limit), key })
      assert.deepStrictEqual(shown(cut(fits, at), reading), [show(new Uint8Array(limit))])
      const header = encode({ opcode: Opcode.Binary, length: BigInt(limit + 1) })
      header[1] = header[1]! | 0x80
      // Without the mask, let alone the payload
      assert.deepStrictEqual(shown(cut(header, at), reading), [tooBig])
    })
  })

  it("count the fragments of a message together, and not those of the message before", () => {
    const fragments = [
      { opcode: Opcode.Binary, fin: false, payload: Buffer.alloc(60), key },
      { opcode: Opcode.Continuation, payload: Buffer.alloc(40), key }
    ]
    const reading = { limits: { maxMessageSize: 100 } }
    const message = show(new Uint8Array(100))
    assert.deepStrictEqual(shown([encodeFrames([...fragments, ...fragments])], reading), [message, message])
    const more = { opcode: Opcode.Continuation, fin: false, payload: Buffer.alloc(41), key }
    const all = encodeFrames([fragments[0]!, more])
    for (let at = 0; at < all.length; at++) {
      assert.deepStrictEqual(shown(split(all, [at]), reading), [tooBig])
    }
  })

  it("hold no control frame against the size of a message", () => {
    const ping = { opcode: Opcode.Ping, payload: Buffer.alloc(125, "p"), key }
    const reading = { limits: { maxMessageSize: 1 } }
    const shownPing = `ping ${Buffer.alloc(125, "p").toString("hex")}`
    assert.deepStrictEqual(
      shown(
        [encodeFrames([{ opcode: Opcode.Text, fin: false, payload: "a", key }, ping, { opcode: 0, key }])],
        reading
      ),
      [shownPing, 'text "a"']
    )
  })

  it("refuse a message of more than maxFragments, empty ones too, and count each message by itself", () => {
    const reading = { limits: { maxFragments: 3 } }
    const of = (count: number, payload: string) =>
      Array.from(
        { length: count },
        (_, i): Frame => ({ opcode: i === 0 ? Opcode.Text : Opcode.Continuation, fin: i === count - 1, payload, key })
      )
    for (const payload of ["", "a"]) {
      const message = show(payload.repeat(3))
      assert.deepStrictEqual(shown([encodeFrames([...of(3, payload), ...of(3, payload)])], reading), [message, message])
      const all = encodeFrames(of(4, payload))
      for (let at = 0; at < all.length; at++) {
        assert.deepStrictEqual(shown(split(all, [at]), reading), [tooMany])
      }
    }
  })

  it("refuse more than maxFrames in one read, and not in several", () => {
    const reading = { limits: { maxFrames: 10 } }
    for (const frame of [
      { opcode: Opcode.Text, payload: "a", key },
      { opcode: Opcode.Ping, payload: "a", key },
      { opcode: Opcode.Binary, payload: Buffer.alloc(200), key }
    ]) {
      const [ten, eleven] = [10, 11].map((count) => encodeFrames(Array.from({ length: count }, () => frame)))
      assert.lengthOf(shown([ten!, ten!], reading), 20)
      assert.deepStrictEqual(shown([eleven!], reading).slice(10), [tooMany])
    }
  })

  const growth = (make: () => ReadonlyArray<unknown>): number => {
    const before = process.memoryUsage().arrayBuffers
    const held = make()
    const grown = process.memoryUsage().arrayBuffers - before
    assert.isAbove(held.length, 0)
    return grown
  }

  const header = (length: bigint): Buffer => {
    const all = encode({ opcode: Opcode.Binary, length })
    all[1] = all[1]! | 0x80
    return Buffer.concat([all, key])
  }

  it("allocate nothing for a header that announces 2^40 bytes", () => {
    const huge = header(2n ** 40n)
    const grown = growth(() =>
      Array.from({ length: 1000 }, () => {
        const decoder = decoderOf()
        const events: Array<Event> = []
        decoder.decode(huge, events)
        assert.deepStrictEqual(events.map(show), [tooBig])
        return decoder
      })
    )
    assert.isBelow(grown, 64 * 1024)
  })

  it("believe an announced length that is allowed only as far as bytes come", () => {
    const allowed = { limits: { maxMessageSize: 2 ** 50 } }
    const announced = header(2n ** 40n)
    assert.isBelow(
      growth(() =>
        Array.from({ length: 100 }, () => {
          const decoder = decoderOf(allowed)
          decoder.decode(Buffer.from(announced), [])
          return decoder
        })
      ),
      64 * 1024,
      "with the header alone"
    )
    const grown = growth(() => {
      const decoder = decoderOf(allowed)
      decoder.decode(Buffer.from(announced), [])
      for (let i = 0; i < 40; i++) {
        decoder.decode(Buffer.alloc(64 * 1024), [])
      }
      return [decoder]
    })
    // 2.5 MiB came; all that is garbage by then counts too
    assert.isBelow(grown, 16 * 1024 * 1024)
  })
})
