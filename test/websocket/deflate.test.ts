import { randomBytes } from "node:crypto"
import { createRequire } from "node:module"
import * as Zlib from "node:zlib"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import { assert, describe, it } from "vitest"
import { Deflater, Inflater, Limiter } from "../../src/internal/websocket/deflate.js"
import { runs, turn } from "../support.js"

interface WsDeflate {
  params: Record<string, number | true>
  readonly compress: (data: Uint8Array, fin: true, callback: (error: Error | null, data: Buffer) => void) => void
  readonly decompress: (data: Uint8Array, fin: true, callback: (error: Error | null, data: Buffer) => void) => void
  readonly cleanup: () => void
}

const require = createRequire(import.meta.url)
const WsDeflate: new (options: object) => WsDeflate = require("../../node_modules/ws/lib/permessage-deflate.js")

const law = <Ts extends [unknown, ...Array<unknown>]>(
  numRuns: number,
  ...args: [...{ [K in keyof Ts]: FastCheck.Arbitrary<Ts[K]> }, (...values: Ts) => Promise<void>]
): Promise<void> => FastCheck.assert(FastCheck.asyncProperty<Ts>(...args), { numRuns })

const deflate = (deflater: Deflater, message: Uint8Array) =>
  new Promise<Uint8Array | undefined>((resolve, reject) => {
    deflater.deflate(message, (error, payload) => (error === undefined ? resolve(payload) : reject(new Error(error))))
  })

const inflate = (inflater: Inflater, payload: Uint8Array, maxSize = 1 << 24) =>
  new Promise<Uint8Array | string>((resolve) => {
    inflater.inflate(payload, maxSize, (error, message) => resolve(error ?? message!))
  })

const called = (method: "compress" | "decompress", peer: WsDeflate, data: Uint8Array) =>
  new Promise<Buffer>((resolve, reject) => {
    peer[method](data, true, (error, result) => (error ? reject(error) : resolve(result)))
  })

const assertBytes = (actual: Uint8Array | string | undefined, expected: Uint8Array) => {
  assert.instanceOf(actual, Uint8Array)
  assert.strictEqual((actual as Uint8Array).length, expected.length)
  assert.strictEqual(Buffer.compare(actual as Uint8Array, expected), 0)
}

/** What zlib makes of a message, with the end that is not sent left out. */
const payloadOf = (message: Uint8Array | string, options: Zlib.ZlibOptions = {}): Buffer =>
  Zlib.deflateRawSync(message, { ...options, finishFlush: Zlib.constants.Z_SYNC_FLUSH }).subarray(0, -4)

const lastBlock = (message: Uint8Array | string): Buffer => Zlib.deflateRawSync(message)

const windowBits = FastCheck.integer({ min: 8, max: 15 })
const words = ["market", "order", '{"id":', "}", "filled", "0.", "1", "2", "user", "\0", "é"]
const text = FastCheck.array(FastCheck.constantFrom(...words), { maxLength: 60 }).map((all) =>
  Buffer.from(all.join(""))
)
// From a seed, so that a long one shrinks as fast as a short one; far repeats reach beyond small windows
const long = FastCheck.tuple(
  FastCheck.oneof(
    { weight: 3, arbitrary: FastCheck.integer({ min: 0, max: 4000 }) },
    { weight: 1, arbitrary: FastCheck.integer({ min: 2000, max: 2100 }) },
    { weight: 1, arbitrary: FastCheck.integer({ min: 16_000, max: 150_000 }) }
  ),
  FastCheck.integer({ min: 1, max: 60 }),
  FastCheck.integer({ min: 1, max: 2 ** 31 - 1 })
).map(([length, variety, seed]) => {
  const bytes = Buffer.alloc(length)
  let state = seed
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    const back = 1 + ((state >> 8) % 40_000)
    bytes[i] = i > back && state % 4 > 0 ? bytes[i - back]! : 32 + ((state >> 8) % variety)
  }
  return bytes
})
const random = FastCheck.uint8Array({ maxLength: 300 })
const messages = FastCheck.array(FastCheck.oneof<FastCheck.Arbitrary<Uint8Array>[]>(text, text, long, random), {
  maxLength: 8
})

describe("what a Deflater makes", () => {
  it("an Inflater undoes, whatever the windows, contexts, sizes and the order of them", () =>
    law(runs(60), windowBits, FastCheck.boolean(), messages, async (bits, noContextTakeover, all) => {
      const deflater = new Deflater(bits, noContextTakeover)
      const inflater = new Inflater(bits, noContextTakeover)
      // All at once: each waits for those before it
      const payloads = await Promise.all(all.map((message) => deflate(deflater, message)))
      const order: Array<number> = []
      const results = await Promise.all(
        payloads.map((payload, i) =>
          payload === undefined ? all[i]! : inflate(inflater, payload).finally(() => order.push(i))
        )
      )
      results.forEach((result, i) => assertBytes(result, all[i]!))
      assert.deepStrictEqual(
        order,
        [...order].sort((a, b) => a - b)
      )
      deflater.close()
      inflater.close()
    }))

  it("ws undoes, and an Inflater what ws makes", () =>
    law(runs(40), windowBits, FastCheck.boolean(), messages, async (bits, noContextTakeover, all) => {
      const params = {
        server_max_window_bits: bits,
        ...(noContextTakeover ? { server_no_context_takeover: true } : {})
      }
      const client = new WsDeflate({ isServer: false })
      const server = new WsDeflate({ isServer: true })
      client.params = params as Record<string, number | true>
      server.params = params as Record<string, number | true>
      const deflater = new Deflater(bits, noContextTakeover)
      const inflater = new Inflater(bits, noContextTakeover)
      for (const message of all) {
        const payload = await deflate(deflater, message)
        if (payload !== undefined) {
          assertBytes(await called("decompress", client, payload), message)
        }
        assertBytes(await inflate(inflater, await called("compress", server, message)), message)
      }
      client.cleanup()
      server.cleanup()
      deflater.close()
      inflater.close()
    }))

  it("refers to nothing further away than its window, of 8 bits too, which zlib has not (RFC 7692 §7.1.2.1)", () =>
    law(
      runs(60),
      FastCheck.integer({ min: 8, max: 11 }),
      FastCheck.integer({ min: 0, max: 9 }),
      long,
      async (bits, level, message) => {
        const deflater = new Deflater(bits, true, { level })
        const payload = await deflate(deflater, message)
        if (payload !== undefined) {
          // zlib keeps what it has given out in chunks in a window of just this size
          const strict = Zlib.inflateRawSync(payload, {
            windowBits: bits,
            chunkSize: 64,
            finishFlush: Zlib.constants.Z_SYNC_FLUSH
          })
          assertBytes(strict, message)
        }
      }
    ))

  it("is smaller than the message, or nothing, which leaves no trace in the context", () =>
    law(
      runs(60),
      windowBits,
      FastCheck.boolean(),
      FastCheck.array(FastCheck.oneof(text, random, FastCheck.uint8Array({ minLength: 1025, maxLength: 2000 })), {
        maxLength: 12
      }),
      async (bits, noContextTakeover, all) => {
        const deflater = new Deflater(bits, noContextTakeover)
        // Hears of nothing that was sent as it is
        const inflater = new Inflater(bits, noContextTakeover)
        for (const message of all) {
          const payload = await deflate(deflater, message)
          if (payload !== undefined) {
            // In a context a short one may be longer by the head of a block, for the sake of those behind it
            const more = noContextTakeover || message.length > 1024 ? -1 : 8
            assert.isAtMost(payload.length, message.length + more)
            assertBytes(await inflate(inflater, payload), message)
          }
        }
      }
    ))

  it("gets smaller with a context, and does not without one", async () => {
    const message = Buffer.from(JSON.stringify({ type: "order", id: 4711, price: 0.25, at: "2026-11-22T19:00Z" }))
    const keeping = new Deflater(15, false)
    const forgetting = new Deflater(15, true)
    // By itself it does not get smaller
    assert.isUndefined(await deflate(forgetting, message))
    assert.isUndefined(await deflate(forgetting, message))
    assert.isAtLeast((await deflate(keeping, message))!.length, message.length)
    assert.isBelow((await deflate(keeping, message))!.length, 10)
  })

  it("is nothing for an empty message, and for one that is compressed already", async () => {
    const deflater = new Deflater(15, false)
    assert.isUndefined(await deflate(deflater, new Uint8Array(0)))
    for (const size of [2000, 9000, 100_000]) {
      assert.isUndefined(await deflate(deflater, randomBytes(size)))
    }
  })

  it("follows level and memLevel", async () => {
    const message = Buffer.from(Array.from({ length: 5000 }, (_, i) => `${i * i} `).join(""))
    const fast = await deflate(new Deflater(15, true, { level: 1 }), message)
    const small = await deflate(new Deflater(15, true, { level: 9, memLevel: 9 }), message)
    assert.isBelow(small!.length, fast!.length)
    assert.isUndefined(await deflate(new Deflater(15, true, { level: 0 }), message))
  })
})

describe("an Inflater", () => {
  const hello = Buffer.from("Hello")

  it("reads the examples of RFC 7692 §7.2.3", async () => {
    const examples = [
      "f2 48 cd c9 c9 07 00",
      // The same, as a second message in the first one's window
      "f2 00 11 00 00",
      // Without compression
      "00 05 00 fa ff 48 65 6c 6c 6f 00",
      // BFINAL
      "f3 48 cd c9 c9 07 00 00",
      // Two blocks
      "f2 48 05 00 00 00 ff ff ca c9 c9 07 00"
    ]
    const inflater = new Inflater(15, false)
    for (const example of examples) {
      assertBytes(await inflate(inflater, Buffer.from(example.replaceAll(" ", ""), "hex")), hello)
    }
    // §7.2.3.6, and what some send in its place
    for (const empty of ["00", "0200", "", "01"]) {
      assertBytes(await inflate(inflater, Buffer.from(empty, "hex")), new Uint8Array(0))
    }
  })

  it("goes on behind blocks with BFINAL, and keeps the context over them (§7.2.3.5)", () =>
    law(
      runs(60),
      FastCheck.boolean(),
      FastCheck.array(FastCheck.oneof(text, long), { minLength: 1, maxLength: 5 }),
      async (ends, parts) => {
        const inflater = new Inflater(15, false)
        const message = Buffer.concat(parts)
        // Each part a stream of its own, as who ends the stream with each write sends it; then with the octet of
        // §7.2.3.5
        const payload = Buffer.concat([...parts.map(lastBlock), Buffer.alloc(ends ? 1 : 0)])
        assertBytes(await inflate(inflater, payload), message)
        // The next message refers to this one
        const next = Buffer.concat([message.subarray(-20_000), message.subarray(-100)])
        const referring = payloadOf(next, message.length > 0 ? { dictionary: message.subarray(-32_768) } : {})
        assertBytes(await inflate(inflater, referring), next)
      }
    ))

  it("lets a part refer to those before it, also without a context between messages", async () => {
    const part = Buffer.from("the quick brown fox jumps over the lazy dog")
    const inflater = new Inflater(15, true)
    const referring = Buffer.concat([lastBlock(part), payloadOf(part, { dictionary: part })])
    assertBytes(await inflate(inflater, referring), Buffer.concat([part, part]))
    // But the message after it may not
    assert.strictEqual(await inflate(inflater, payloadOf(part, { dictionary: part })), "Corrupt")
  })

  it("refuses a message of more streams than it would be worth", async () => {
    const nothing = lastBlock("")
    const payload = (count: number) => Buffer.concat(Array.from({ length: count }, () => nothing))
    assertBytes(await inflate(new Inflater(15, false), payload(200)), new Uint8Array(0))
    assert.strictEqual(await inflate(new Inflater(15, false), payload(1000)), "Corrupt")
  })

  it("refuses a message that ends within a block, of which zlib alone would give the part that it has", () =>
    law(runs(100), FastCheck.oneof(text, long), FastCheck.nat(), async (message, at) => {
      const payload = payloadOf(message)
      const cut = payload.subarray(0, at % payload.length)
      const result = await inflate(new Inflater(15, true), cut)
      // The last octet may hold nothing but the beginning of the block that is left out
      if (typeof result !== "string" && cut.length > 0 && cut.length < payload.length - 1) {
        assert.fail(`${cut.toString("hex")} of ${payload.toString("hex")} is ${result.length} bytes`)
      }
    }))

  it("refuses a last block that only the octets left out would end, and less than a block behind it", async () => {
    const letter = lastBlock("a")
    assertBytes(await inflate(new Inflater(15, true), letter), Buffer.from("a"))
    assert.strictEqual(await inflate(new Inflater(15, true), letter.subarray(0, -1)), "Corrupt")
    assert.strictEqual(await inflate(new Inflater(15, true), Buffer.concat([letter, Buffer.from([5])])), "Corrupt")
  })

  it("answers garbage with Corrupt or what zlib makes of it, and never throws", () =>
    law(
      runs(300),
      FastCheck.oneof(text, long, random),
      FastCheck.array(FastCheck.tuple(FastCheck.nat(), FastCheck.nat(255)), { maxLength: 3 }),
      async (message, changes) => {
        const payload = payloadOf(message)
        for (const [at, value] of changes) {
          payload[at % payload.length] = value
        }
        const result = await inflate(new Inflater(15, false), payload, 1 << 20)
        if (typeof result !== "string") {
          // Which stops at the first block with BFINAL
          const first = Zlib.inflateRawSync(Buffer.concat([payload, Buffer.from([0, 0, 0xff, 0xff])]), {
            finishFlush: Zlib.constants.Z_SYNC_FLUSH
          })
          assertBytes(result.subarray(0, first.length), first)
        }
      }
    ))

  it("stops at the limit, and not before it", () =>
    law(
      runs(60),
      FastCheck.oneof(
        FastCheck.integer({ min: 1, max: 300 }),
        FastCheck.integer({ min: 65_000, max: 66_000 }),
        FastCheck.integer({ min: 60_000, max: 600_000 })
      ),
      FastCheck.integer({ min: 0, max: 2 }),
      async (size, streams) => {
        const message = Buffer.alloc(size, "x")
        const parts = [message.subarray(0, size >> 1), message.subarray(size >> 1)]
        const payload = streams === 2 ? Buffer.concat(parts.map(lastBlock)) : payloadOf(message)
        assertBytes(await inflate(new Inflater(15, true), payload, size), message)
        assert.strictEqual(await inflate(new Inflater(15, true), payload, size - 1), "TooBig")
        assert.strictEqual(await inflate(new Inflater(15, true), payload, 0), "TooBig")
      }
    ))

  it("spends no more on a bomb of 1 GiB than the limit and a chunk", async () => {
    const mebibyte = Zlib.deflateRawSync(Buffer.alloc(1 << 20), { finishFlush: Zlib.constants.Z_SYNC_FLUSH })
    const bomb = Buffer.concat(Array.from({ length: 1024 }, () => mebibyte))
    const limit = 1 << 20
    const inflater = new Inflater(15, false)
    const before = process.memoryUsage().arrayBuffers
    const result = await inflate(inflater, bomb, limit)
    const spent = process.memoryUsage().arrayBuffers - before
    assert.strictEqual(result, "TooBig")
    assert.isBelow(spent, limit + 2 * 64 * 1024)
  })

  it("is closed by a fault: of what follows in a broken context nothing is heard", async () => {
    const heard: Array<unknown> = []
    const inflater = new Inflater(15, false)
    inflater.inflate(Buffer.from([0xff]), 100, (error) => {
      heard.push(error)
    })
    inflater.inflate(payloadOf("fine"), 100, (_, message) => heard.push(message))
    await inflate(new Inflater(15, false), payloadOf(Buffer.alloc(100_000)))
    assert.deepStrictEqual(heard, ["Corrupt"])
  })

  it("takes messages in the callbacks of others, one behind the other and without a deep stack", () => {
    const payload = payloadOf("a message")
    const inflater = new Inflater(15, false)
    let count = 0
    const next = (error: unknown, message?: Uint8Array) => {
      assert.isUndefined(error)
      assert.strictEqual(Buffer.from(message!).toString(), "a message")
      if (++count < 20_000) {
        inflater.inflate(payload, 100, next)
      }
    }
    inflater.inflate(payload, 100, next)
    // Short ones are done at once
    assert.strictEqual(count, 20_000)
  })
})

describe("close", () => {
  const big = Buffer.from(Array.from({ length: 50_000 }, (_, i) => `${(i * 7919) % 10_007} `).join(""))

  it("is the end of all callbacks, of what runs, waits for its turn, and waits for another message", async () => {
    const concurrency = 1
    const heard: Array<string> = []
    const payload = payloadOf(big)
    const codecs = Array.from(
      { length: 3 },
      () => [new Deflater(15, false, { concurrency }), new Inflater(15, false, { concurrency })] as const
    )
    for (const [deflater, inflater] of codecs) {
      for (let i = 0; i < 2; i++) {
        deflater.deflate(big, () => heard.push("deflated"))
        inflater.inflate(payload, 1 << 24, () => heard.push("inflated"))
      }
    }
    for (const [deflater, inflater] of codecs) {
      deflater.close()
      inflater.close()
      inflater.close()
      deflater.deflate(big, () => heard.push("deflated after the close"))
      inflater.inflate(payloadOf("short"), 100, () => heard.push("inflated after the close"))
    }
    // The limit of one is free again, and whatever zlib still did has ended with this
    const rest = await deflate(new Deflater(15, false, { concurrency }), big)
    assertBytes(await inflate(new Inflater(15, false, { concurrency }), rest!), big)
    await Effect.runPromise(turn)
    assert.deepStrictEqual(heard, [])
  })

  it("may come in a callback", async () => {
    const heard: Array<string> = []
    for (const message of [Buffer.from("short ".repeat(9)), big]) {
      await new Promise<void>((resolve) => {
        const inflater = new Inflater(15, false)
        inflater.inflate(payloadOf(message), 1 << 24, () => {
          inflater.close()
          resolve()
        })
        inflater.inflate(payloadOf("short"), 1 << 24, () => heard.push("inflated"))
      })
      await new Promise<void>((resolve) => {
        const deflater = new Deflater(15, false)
        deflater.deflate(message, () => {
          deflater.close()
          resolve()
        })
        deflater.deflate(Buffer.from("short"), () => heard.push("deflated"))
      })
    }
    await inflate(new Inflater(15, false), payloadOf(big))
    assert.deepStrictEqual(heard, [])
  })

  it("does not disturb others in the middle of their messages", () =>
    law(runs(20), FastCheck.array(FastCheck.boolean(), { minLength: 2, maxLength: 12 }), async (closing) => {
      const payload = payloadOf(big)
      const done = closing.map((closes) => {
        const inflater = new Inflater(15, false, { concurrency: 2 })
        const result = inflate(inflater, payload)
        if (closes) {
          setImmediate(() => inflater.close())
          return undefined
        }
        return result
      })
      for (const result of done) {
        if (result !== undefined) {
          assertBytes(await result, big)
        }
      }
    }))
})

describe("a Limiter", () => {
  it("runs no more than it may, starts all in the order in which they came, and none that gave up", () =>
    law(
      runs(200),
      FastCheck.integer({ min: 1, max: 4 }),
      FastCheck.array(FastCheck.oneof(FastCheck.constant(-1), FastCheck.nat(20)), { maxLength: 60 }),
      async (concurrency, steps) => {
        const limiter = new Limiter(concurrency)
        const started: Array<number> = []
        const releases: Array<() => void> = []
        const released = new Set<number>()
        const release = (job: number) => {
          // A second time as well, which is nothing
          released.add(job)
          releases[job]!()
          releases[job]!()
        }
        for (const step of steps) {
          if (step === -1) {
            const job = releases.length
            releases.push(limiter.run(() => started.push(job)))
          } else if (step < releases.length) {
            const wasStarted = started.includes(step)
            release(step)
            assert.strictEqual(started.includes(step), wasStarted)
          }
          assert.isAtMost(started.filter((job) => !released.has(job)).length, concurrency)
        }
        releases.forEach((_, job) => {
          if (started.includes(job)) {
            release(job)
          }
        })
        assert.deepStrictEqual(
          started,
          [...started].sort((a, b) => a - b)
        )
        const neverStarted = releases.map((_, job) => job).filter((job) => !started.includes(job))
        assert.isTrue(neverStarted.every((job) => released.has(job)))
      }
    ))

  it("is one for all that ask for the same number, which is 10 by default", () => {
    assert.strictEqual(Limiter.of(), Limiter.of(10))
    assert.strictEqual(Limiter.of(3), Limiter.of(3))
    assert.notStrictEqual(Limiter.of(3), Limiter.of(4))
  })
})
