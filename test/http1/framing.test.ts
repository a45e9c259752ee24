import { createServer, type Server } from "node:http"
import { type AddressInfo, connect } from "node:net"
import * as FastCheck from "effect/FastCheck"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { BodyDecoder, type BodyLimits, type Framing, requestFraming } from "../../src/internal/http1/framing.js"

const numRuns = Number(process.env.LAWS_RUNS ?? 100)

const chunked = { _tag: "Chunked" } as const
const length = (length: number) => ({ _tag: "Length", length }) as const

const latin1 = (s: string): Buffer => Buffer.from(s, "latin1")

interface Decoded {
  readonly content: string
  readonly consumed: number
  readonly done: boolean
  readonly error: string | undefined
}

// these are checked a million times, for which expect is too slow
const holds = (law: boolean, title: string): void => {
  if (!law) {
    expect.fail(title)
  }
}

/** Decodes a body that arrives in these pieces, and checks what holds for every write. */
const decode = (
  framing: Extract<Framing, { readonly _tag: "Length" | "Chunked" }>,
  pieces: Iterable<Uint8Array>,
  limits?: BodyLimits
): Decoded => {
  const decoder = new BodyDecoder(framing, limits)
  let content = ""
  let consumed = 0
  for (const piece of pieces) {
    const settled = decoder.done || decoder.error !== undefined
    let from = 0
    const n = decoder.write(piece, (slice) => {
      const at = slice.byteOffset - piece.byteOffset
      holds(slice.buffer === piece.buffer, "a slice is a view of what was written")
      holds(slice.length > 0 && at >= from && at + slice.length <= piece.length, "slices are in order, none is empty")
      from = at + slice.length
      content += Buffer.from(slice.buffer, slice.byteOffset, slice.length).toString("latin1")
    })
    holds(n >= from && n <= piece.length, "what is consumed holds all slices, and ends inside of what was written")
    holds(n === 0 || !settled, "nothing is consumed behind the end or an error")
    holds(n === piece.length || decoder.done || decoder.error !== undefined, "only the end and an error leave a rest")
    holds(!decoder.done || decoder.error === undefined, "a body that is wrong is not done")
    consumed += n
  }
  return { content, consumed, done: decoder.done, error: decoder.error }
}

const cut = (bytes: Buffer, at: ReadonlyArray<number>): Array<Buffer> => {
  const cuts = [0, ...at.map((n) => n % (bytes.length + 1)).sort((a, b) => a - b), bytes.length]
  return cuts.slice(1).map((end, i) => bytes.subarray(cuts[i], end))
}

/** Decodes a body whole, octet by octet and in two pieces for every place to cut: the result must be the same. */
const decodeEverySplit = (
  framing: Extract<Framing, { readonly _tag: "Length" | "Chunked" }>,
  bytes: Buffer,
  limits?: BodyLimits
): Decoded => {
  const whole = decode(framing, [bytes], limits)
  expect(decode(framing, cut(bytes, [...bytes.keys()]), limits)).toEqual(whole)
  for (let at = 0; at <= bytes.length; at++) {
    expect(decode(framing, cut(bytes, [at]), limits), `cut at ${at}`).toEqual(whole)
  }
  return whole
}

const octets = (alphabet: ReadonlyArray<string>, maxLength: number, minLength = 0) =>
  FastCheck.string({ unit: FastCheck.constantFrom(...alphabet), minLength, maxLength })
const anyOctet = Array.from({ length: 256 }, (_, octet) => String.fromCharCode(octet))
const textOctet = anyOctet.filter((s) => /[\t\x20-\x7e\x80-\xff]/.test(s))
const tchars = [..."!#$%&'*+-.^_`|~059AZaz"]

const content = FastCheck.oneof(octets(anyOctet, 20), octets([..."\r\n0123;: "], 20))
const token = octets(tchars, 6, 1)
const quoted = FastCheck.array(
  FastCheck.oneof(
    FastCheck.constantFrom(...textOctet.filter((s) => s !== '"' && s !== "\\")),
    FastCheck.constantFrom(...textOctet).map((s) => `\\${s}`)
  ),
  { maxLength: 6 }
).map((parts) => `"${parts.join("")}"`)

/** chunk-ext (RFC 9112 §7.1.1), with this whitespace where BWS may stand. */
const extensions = (whitespace: FastCheck.Arbitrary<string>) =>
  FastCheck.array(
    FastCheck.oneof(
      FastCheck.tuple(whitespace, FastCheck.constant(";"), whitespace, token),
      FastCheck.tuple(
        whitespace,
        FastCheck.constant(";"),
        whitespace,
        token,
        whitespace,
        FastCheck.constant("="),
        whitespace,
        FastCheck.oneof(token, quoted)
      )
    ).map((parts) => parts.join("")),
    { maxLength: 3 }
  ).map((list) => list.join(""))

const trailers = (text: ReadonlyArray<string>) =>
  FastCheck.array(FastCheck.tuple(token, octets(text, 10)), { maxLength: 3 }).map((lines) =>
    lines.map(([name, value]) => `${name}:${value}\r\n`).join("")
  )

const chunkSize = (n: number) =>
  FastCheck.tuple(FastCheck.nat(8), FastCheck.boolean()).map(([zeros, upper]) => {
    const digits = n.toString(16)
    return "0".repeat(zeros) + (upper ? digits.toUpperCase() : digits)
  })

/** A chunked body: its content, and one of the ways to write it. */
const chunkedBody = (
  content: FastCheck.Arbitrary<string>,
  whitespace: FastCheck.Arbitrary<string>,
  text: ReadonlyArray<string>
) =>
  FastCheck.tuple(
    FastCheck.array(
      content
        .filter((s) => s !== "")
        .chain((s) =>
          FastCheck.tuple(chunkSize(s.length), extensions(whitespace)).map(([size, extension]) => ({
            content: s,
            written: `${size}${extension}\r\n${s}\r\n`
          }))
        ),
      { maxLength: 5 }
    ),
    chunkSize(0),
    extensions(whitespace),
    trailers(text)
  ).map(([chunks, size, extension, trailer]) => ({
    content: chunks.map((chunk) => chunk.content).join(""),
    written: `${chunks.map((chunk) => chunk.written).join("")}${size}${extension}\r\n${trailer}\r\n`
  }))

const whitespace = octets([" ", "\t"], 2)
const anyBody = chunkedBody(content, whitespace, textOctet)
const cuts = FastCheck.array(FastCheck.nat(), { maxLength: 8 })

/** Some octets of a string changed, taken away, doubled or put in. */
const mutated = (written: string, alphabet: ReadonlyArray<string>) =>
  FastCheck.array(
    FastCheck.tuple(
      FastCheck.nat(),
      FastCheck.nat(3),
      FastCheck.constantFrom(...alphabet),
      FastCheck.integer({ min: 1, max: 4 })
    ),
    { minLength: 1, maxLength: 3 }
  ).map((mutations) =>
    mutations.reduce((s, [where, kind, octet, n]) => {
      const at = where % (s.length + 1)
      const replacement =
        kind === 0 ? octet : kind === 1 ? "" : kind === 2 ? s.slice(at, at + n).repeat(2) : octet + s.slice(at, at + n)
      return s.slice(0, at) + replacement + s.slice(at + n)
    }, written)
  )

describe("how a request's body is framed", () => {
  const raw = (lines: ReadonlyArray<string>): Array<string> =>
    lines.flatMap((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1)])
  const framing = (...lines: ReadonlyArray<string>): Framing => requestFraming(raw(lines), 1)
  const status = (...lines: ReadonlyArray<string>): number | undefined => {
    const result = framing(...lines)
    return result._tag === "Refused" ? result.status : undefined
  }

  it("without Content-Length and Transfer-Encoding there is none (RFC 9112 §6.3)", () => {
    expect(framing()).toEqual({ _tag: "None" })
    expect(framing("Host: a", "Content-Type: text/plain", "TE: chunked", "Content-Length-X: 5")).toEqual({
      _tag: "None"
    })
    expect(requestFraming([], 0)).toEqual({ _tag: "None" })
  })

  it("Content-Length is its length, whatever the case of the name and the whitespace around the value (RFC 9112 §6.2)", () => {
    FastCheck.assert(
      FastCheck.property(
        FastCheck.nat(Number.MAX_SAFE_INTEGER),
        whitespace,
        whitespace,
        chunkSize(0),
        (n, before, after, zeros) => {
          for (const name of ["Content-Length", "content-length", "CONTENT-LENGTH"]) {
            const expected = n === 0 ? { _tag: "None" } : length(n)
            expect(framing("Host: a", `${name}:${before}${zeros}${n}${after}`)).toEqual(expected)
          }
        }
      ),
      { numRuns }
    )
    expect(requestFraming(["Content-Length", "5"], 0)).toEqual(length(5))
  })

  it("Content-Length: 0 is no body", () => {
    expect(framing("Content-Length: 0")).toEqual({ _tag: "None" })
    expect(framing("Content-Length: 000")).toEqual({ _tag: "None" })
  })

  it("Content-Length that is not one decimal number is 400 (RFC 9110 §8.6)", () => {
    for (const bad of [
      "",
      " ",
      "+5",
      "-5",
      "-0",
      "0x5",
      "5a",
      "1e3",
      "5.0",
      "5 5",
      "5,5",
      "5, 5",
      "5,",
      ",5",
      '"5"',
      "５",
      "٥",
      "5\xa0",
      "\x0b5",
      "5\n",
      "5\0",
      "NaN",
      "Infinity",
      "chunked"
    ]) {
      expect(status(`Content-Length:${bad}`), JSON.stringify(bad)).toBe(400)
    }
  })

  it("Content-Length that a number cannot hold exactly is 400 (RFC 9110 §8.6)", () => {
    expect(framing(`Content-Length: ${Number.MAX_SAFE_INTEGER}`)).toEqual(length(Number.MAX_SAFE_INTEGER))
    for (const bad of ["9007199254740992", "9007199254740993", "18446744073709551617", "9".repeat(400)]) {
      expect(status(`Content-Length: ${bad}`)).toBe(400)
    }
  })

  it("Content-Length twice is 400 unless both say the same (RFC 9112 §6.3)", () => {
    expect(status("Content-Length: 5", "content-length: 6")).toBe(400)
    expect(status("Content-Length: 5", "content-length: 05")).toBe(400)
    expect(status("Content-Length: 0", "Content-Length: 5")).toBe(400)
    expect(status("Content-Length: 5", "Content-Length:")).toBe(400)
    expect(framing("Content-Length: 5", "Content-Length: 5 ")).toEqual(length(5))
  })

  it("Transfer-Encoding: chunked is chunked, in any case (RFC 9112 §7)", () => {
    for (const value of ["chunked", "Chunked", "CHUNKED", " \tchunked\t ", ",chunked", " , ,chunked"]) {
      expect(framing(`Transfer-Encoding:${value}`), value).toEqual(chunked)
      expect(framing("Host: a", `transfer-encoding:${value}`)).toEqual(chunked)
    }
    expect(framing("Transfer-Encoding:", "Transfer-Encoding: chunked")).toEqual(chunked)
  })

  it("Transfer-Encoding together with Content-Length is 400, in any order, of any value (RFC 9112 §6.3)", () => {
    for (const value of ["0", "5", "", "x"]) {
      for (const coding of ["chunked", "gzip, chunked", "gzip", ""]) {
        expect(status(`Transfer-Encoding: ${coding}`, `Content-Length: ${value}`)).toBe(400)
        expect(status(`Content-Length: ${value}`, `Transfer-Encoding: ${coding}`)).toBe(400)
      }
    }
  })

  it("Transfer-Encoding in HTTP/1.0 is 400 (RFC 9112 §6.1)", () => {
    for (const value of ["chunked", "gzip, chunked", ""]) {
      expect(requestFraming(["Transfer-Encoding", value], 0)).toMatchObject({ _tag: "Refused", status: 400 })
    }
  })

  it("Transfer-Encoding whose last coding is not chunked is 400 (RFC 9112 §6.3)", () => {
    for (const bad of [
      "",
      ",",
      "gzip",
      "identity",
      "xchunked",
      "chunkedx",
      "chunked, gzip",
      "chunked, identity",
      "chunked,",
      "chunked ,\t",
      '"chunked"',
      "gzip;a=b",
      'gzip;a=", chunked',
      'gzip;a=", chunked"',
      "chunked chunked",
      "chun ked",
      "chunked\x0b",
      "\xa0chunked",
      "chunked\0",
      "chun\u212aed",
      "chunked\r\n",
      "chunked\n"
    ]) {
      expect(status(`Transfer-Encoding:${bad}`), JSON.stringify(bad)).toBe(400)
    }
    expect(status("Transfer-Encoding: chunked", "Transfer-Encoding: gzip")).toBe(400)
    expect(status("Transfer-Encoding: chunked", "Transfer-Encoding:")).toBe(400)
  })

  it("chunked has no parameters: with one it is 400 (RFC 9112 §7.1)", () => {
    for (const bad of ["chunked;a=b", "chunked;", "chunked ; q=1"]) {
      expect(status(`Transfer-Encoding: ${bad}`)).toBe(400)
    }
  })

  it("chunked more than once is 400 (RFC 9112 §6.1)", () => {
    expect(status("Transfer-Encoding: chunked, chunked")).toBe(400)
    expect(status("Transfer-Encoding: chunked, gzip, Chunked")).toBe(400)
    expect(status("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")).toBe(400)
  })

  it("another coding before chunked is 501 (RFC 9112 §6.1)", () => {
    for (const coding of [
      "gzip",
      "x-gzip",
      "deflate",
      "compress",
      "identity",
      "x",
      'x;a=", b"',
      "chunked;a=b",
      "not a coding"
    ]) {
      expect(status(`Transfer-Encoding: ${coding}, chunked`), coding).toBe(501)
      expect(status(`Transfer-Encoding: ${coding}`, "Transfer-Encoding: chunked")).toBe(501)
    }
  })

  it("a refusal says what is wrong in one line that may go into a log", () => {
    for (const lines of [
      ["Content-Length: \0"],
      ["Transfer-Encoding: \n"],
      ["Content-Length: 1", "Content-Length: 2"]
    ]) {
      const result = framing(...lines)
      expect(result._tag === "Refused" && /^[\x20-\x7e§]+$/.test(result.reason)).toBe(true)
    }
  })
})

describe("a body with Content-Length", () => {
  it("is as long as it says, in every split, and what follows is left (RFC 9112 §6.2)", () => {
    FastCheck.assert(
      FastCheck.property(content, content, cuts, (body, rest, at) => {
        const bytes = latin1(body + rest)
        const whole = { content: body, consumed: body.length, done: true, error: undefined }
        expect(decode(length(body.length), cut(bytes, at))).toEqual(whole)
        expect(decodeEverySplit(length(body.length), bytes)).toEqual(whole)
      }),
      { numRuns }
    )
  })

  it("is not done before its last octet", () => {
    expect(decodeEverySplit(length(6), latin1("hello"))).toEqual({
      content: "hello",
      consumed: 5,
      done: false,
      error: undefined
    })
  })

  it("of no length is done at once", () => {
    expect(new BodyDecoder(length(0)).done).toBe(true)
    expect(decode(length(0), [latin1("rest")]).consumed).toBe(0)
  })

  it("may be of any length that a number holds", () => {
    const decoder = new BodyDecoder(length(Number.MAX_SAFE_INTEGER))
    expect(decoder.write(latin1("hello"), () => {})).toBe(5)
    expect(decoder.done).toBe(false)
  })
})

describe("a chunked body", () => {
  it("is read the same in every split, and what follows is left (RFC 9112 §7.1)", () => {
    FastCheck.assert(
      FastCheck.property(anyBody, content, cuts, (body, rest, at) => {
        const bytes = latin1(body.written + rest)
        const whole = { content: body.content, consumed: body.written.length, done: true, error: undefined }
        expect(decode(chunked, cut(bytes, at))).toEqual(whole)
        expect(decodeEverySplit(chunked, bytes)).toEqual(whole)
      }),
      { numRuns }
    )
  })

  it("is not done, and not wrong, before its last octet", () => {
    FastCheck.assert(
      FastCheck.property(anyBody, FastCheck.nat(), ({ content, written }, n) => {
        const short = latin1(written.slice(0, n % written.length))
        const result = decode(chunked, [short])
        expect(result).toMatchObject({ consumed: short.length, done: false, error: undefined })
        expect(content.startsWith(result.content)).toBe(true)
      }),
      { numRuns }
    )
  })

  it("that is mutated never throws, and is read the same in every split", () => {
    FastCheck.assert(
      FastCheck.property(
        anyBody.chain(({ written }) => mutated(written, anyOctet)),
        cuts,
        (written, at) => {
          const bytes = latin1(written)
          const whole = decodeEverySplit(chunked, bytes)
          expect(decode(chunked, cut(bytes, at))).toEqual(whole)
          if (whole.error !== undefined) {
            expect(whole.consumed).toBeLessThan(bytes.length)
          }
        }
      ),
      { numRuns }
    )
  })

  it("may have a size of thirteen digits in any case, with zeros before it", () => {
    for (const size of ["FFFFFFFFFFFFF", "fffffffffffff", "000fFfFfFfFfFfFf", "1000000000000"]) {
      expect(decodeEverySplit(chunked, latin1(`${size}\r\nhello`))).toMatchObject({
        content: "hello",
        error: undefined
      })
    }
    for (let n = 1; n <= 300; n++) {
      const written = `${n.toString(16)}\r\n${"x".repeat(n)}\r\n0\r\n\r\n`
      expect(decode(chunked, [latin1(written)])).toMatchObject({ content: "x".repeat(n), done: true })
      expect(decode(chunked, [latin1(written.toUpperCase())])).toMatchObject({ content: "X".repeat(n), done: true })
    }
  })

  const refused = (title: string, ...written: ReadonlyArray<readonly [bytes: string, at: number]>) =>
    it(title, () => {
      for (const [bytes, at] of written) {
        const result = decodeEverySplit(chunked, latin1(bytes))
        expect(result.error, JSON.stringify(bytes)).toBeDefined()
        expect(result.error).toMatch(/^[\x20-\x7e§]+$/)
        expect(result.done).toBe(false)
        expect(result.consumed, JSON.stringify(bytes)).toBe(at)
      }
    })

  refused(
    "is refused for a size that is not hexadecimal digits alone (RFC 9112 §7.1)",
    ["\r\n", 0],
    [";a\r\n", 0],
    [" 5\r\nhello\r\n", 0],
    ["+5\r\nhello\r\n", 0],
    ["-5\r\nhello\r\n", 0],
    ["0x5\r\nhello\r\n", 1],
    ["5g\r\nhello\r\n", 1],
    ["5_0\r\n", 1],
    ["5.\r\n", 1],
    ["5h\r\n", 1],
    ["5\0\r\n", 1],
    ["\xb5\r\n", 0],
    ["G\r\n", 0],
    ["/\r\n", 0],
    [":\r\n", 0],
    ["@\r\n", 0],
    ["`\r\n", 0]
  )

  refused(
    "is refused for a size over thirteen digits, which would overflow (RFC 9112 §7.1)",
    ["10000000000000\r\n", 13],
    ["FFFFFFFFFFFFFF\r\n", 13],
    ["00010000000000000\r\n", 16],
    ["1FFFFFFFFFFFFFFFF\r\n", 13],
    ["FFFFFFFFFFFFFFFF\r\n", 13]
  )

  refused(
    "is refused for a bare LF or CR, with which a second request is smuggled (RFC 9112 §2.2, §7.1)",
    ["5\nhello\r\n0\r\n\r\n", 1],
    ["5\rhello\r\n0\r\n\r\n", 2],
    ["5\r\r\nhello", 2],
    ["5\r\nhello\n0\r\n\r\n", 8],
    ["5\r\nhello\r0\r\n\r\n", 9],
    ["5\r\nhello\r\n0\n\r\n", 11],
    ["5;a\nhello\r\n", 3],
    ["5;a=b\nhello\r\n", 5],
    ['5;a="b\n"\r\n', 6],
    ['5;a="b\r\n"\r\n', 6],
    ['5;a="b\\\r\n"\r\n', 7],
    ['5;a="b"\nhello\r\n', 7],
    ["5;a\r;b\r\n", 4],
    ["0\r\n\n", 3],
    ["0\r\n\r\r\n", 4],
    ["0\r\na: b\n\r\n", 7],
    ["0\r\na: b\rc\r\n", 8]
  )

  refused(
    "is refused for content that is longer or shorter than its size (RFC 9112 §7.1)",
    ["5\r\nhello!\r\n0\r\n\r\n", 8],
    ["6\r\nhello\r\n0\r\n\r\n", 9],
    ["5\r\nhello0\r\n\r\n", 8],
    ["5\r\nhello\r\n\r\n", 10]
  )

  refused(
    "is refused for whitespace that is not before or behind the ; or = of an extension (RFC 9112 §7.1.1)",
    ["5 \r\nhello\r\n", 2],
    ["5\t\r\nhello\r\n", 2],
    ["5 5\r\n", 2],
    ["5;a \r\n", 4],
    ["5;a=b \r\n", 6],
    ['5;a="b" \r\n', 8],
    ["5;a b\r\n", 4],
    ["5;a=b c\r\n", 6],
    ["5\r\nhello \r\n", 8],
    ["5\x0b;a\r\n", 1],
    ["5\xa0;a\r\n", 1]
  )

  refused(
    "is refused for an extension that is not ;name or ;name=value (RFC 9112 §7.1.1)",
    ["5;\r\n", 2],
    ["5;;a\r\n", 2],
    ["5;=b\r\n", 2],
    ["5;a=\r\n", 4],
    ["5;a=;b\r\n", 4],
    ["5;a==b\r\n", 4],
    ["5;a=b=c\r\n", 5],
    ['5;"a"\r\n', 2],
    ['5;a=b"c"\r\n', 5],
    ['5;a="b"c\r\n', 7],
    ['5;a="b""c"\r\n', 7],
    ["5;a\0\r\n", 3],
    ["5;a=\x7f\r\n", 4],
    ['5;a="\0"\r\n', 5],
    ['5;a="\\\0"\r\n', 6],
    ["5,a\r\n", 1]
  )

  refused(
    "is refused for a trailer that is no field line, that folds or that holds a control character (RFC 9112 §5, §7.1.2)",
    ["0\r\na\r\n\r\n", 4],
    ["0\r\n: b\r\n\r\n", 3],
    ["0\r\na : b\r\n\r\n", 4],
    ["0\r\n a: b\r\n\r\n", 3],
    ["0\r\n\ta: b\r\n\r\n", 3],
    ["0\r\na: b\r\n c\r\n\r\n", 9],
    ["0\r\na: \0\r\n\r\n", 6],
    ["0\r\na: \x7f\r\n\r\n", 6],
    ["0\r\na: \x1b[2J\r\n\r\n", 6],
    ["0\r\na\xe9: b\r\n\r\n", 4],
    ["0\r\nGET / HTTP/1.1\r\n\r\n", 6]
  )

  it("is read with the bad whitespace that must be parsed (RFC 9110 §5.6.3)", () => {
    for (const extension of [" ;a", "\t;a", "; a", ";a =b", ";a= b", ';a = "b" ; c', " \t; \ta \t= \tb \t;c"]) {
      const result = decodeEverySplit(chunked, latin1(`5${extension}\r\nhello\r\n0${extension}\r\n\r\n`))
      expect(result, extension).toMatchObject({ content: "hello", done: true, error: undefined })
    }
  })

  it("has no trailer that frames anything: Content-Length there is skipped as any other (RFC 9110 §6.5.1)", () => {
    const trailer = "Content-Length: 100\r\nTransfer-Encoding: gzip\r\nUpgrade: x\r\n"
    const result = decodeEverySplit(chunked, latin1(`5\r\nhello\r\n0\r\n${trailer}\r\nrest`))
    expect(result).toMatchObject({ content: "hello", done: true })
  })

  it("may hold a bounded amount of extensions in all its chunks together (CVE-2024-22019)", () => {
    const limits = { maxChunkExtension: 10, maxTrailer: 0 }
    const chunk = (extension: string) => `1${extension}\r\nx\r\n`
    const end = "0\r\n\r\n"
    const read = (written: string) => decodeEverySplit(chunked, latin1(written), limits)
    expect(read(chunk(";a=bcdefgh") + chunk("") + end)).toMatchObject({ content: "xx", done: true })
    expect(read(chunk(";abcd") + chunk(";abcd") + end)).toMatchObject({ content: "xx", done: true })
    expect(read(chunk(";a=bcdefghi") + end)).toMatchObject({ content: "", done: false, consumed: 11 })
    expect(read(chunk(";abcd") + chunk(";abcd") + chunk(";a") + end)).toMatchObject({ content: "xx", done: false })
    expect(read(chunk("          ;a") + end).error).toContain("too long")
    expect(read(chunk(';a="bcdefghi"') + end).error).toContain("too long")
  })

  it("may hold a bounded number of zeros before its sizes, beyond sixteen digits", () => {
    const limits = { maxChunkExtension: 10, maxTrailer: 0 }
    const chunk = (digits: number) => `${"1".padStart(digits, "0")}\r\nx\r\n`
    const read = (written: string) => decodeEverySplit(chunked, latin1(written), limits)
    expect(read(`${chunk(16).repeat(20)}0\r\n\r\n`)).toMatchObject({ content: "x".repeat(20), done: true })
    expect(read(`${chunk(21)}${chunk(21)}0\r\n\r\n`)).toMatchObject({ content: "xx", done: true })
    expect(read(`${chunk(21)}${chunk(22)}0\r\n\r\n`).error).toContain("zeros")
    expect(read("0".repeat(40)).error).toContain("zeros")
  })

  it("may hold a bounded trailer section (RFC 9112 §7.1.2)", () => {
    const limits = { maxChunkExtension: 0, maxTrailer: 12 }
    const read = (written: string) => decodeEverySplit(chunked, latin1(written), limits)
    expect(read("0\r\na: b\r\nc: d\r\n\r\n")).toMatchObject({ done: true })
    expect(read("0\r\nabcdef: gh\r\n\r\n")).toMatchObject({ done: true })
    expect(read("0\r\nabcdef: ghi\r\n\r\n")).toMatchObject({ done: false, consumed: 15 })
    expect(read("0\r\na: b\r\nc: de\r\n\r\n").error).toContain("too long")
  })

  it("may hold 16,384 octets of each unless told otherwise", () => {
    const body = (extension: number, trailer: number) =>
      latin1(`5;${"a".repeat(extension - 1)}\r\nhello\r\n0\r\n${"a".repeat(trailer - 3)}:\r\n\r\n`)
    expect(decode(chunked, [body(16384, 16384)])).toMatchObject({ done: true })
    expect(decode(chunked, [body(16385, 16384)])).toMatchObject({ done: false, content: "" })
    expect(decode(chunked, [body(16384, 16385)])).toMatchObject({ done: false, content: "hello" })
  })

  it("of a hundred thousand chunks is read at once", () => {
    const written = latin1(`${"1\r\nx\r\n".repeat(100_000)}0\r\n\r\nrest`)
    const decoder = new BodyDecoder(chunked)
    let received = 0
    const consumed = decoder.write(written, (slice) => {
      received += slice.length
    })
    expect([received, decoder.done, written.length - consumed]).toEqual([100_000, true, 4])
  })
})

describe("beside Node's own parser", () => {
  interface Seen {
    readonly url: string | undefined
    body: string
  }

  let server: Server
  const seen = new Map<number | undefined, Array<Seen>>()

  beforeAll(async () => {
    server = createServer((request, response) => {
      const entry: Seen = { url: request.url, body: "" }
      seen.get(request.socket.remotePort)?.push(entry)
      request.on("data", (chunk: Buffer) => {
        entry.body += chunk.toString("latin1")
      })
      request.on("end", () => response.end())
    })
    server.on("clientError", (_, socket) => socket.destroy())
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  })
  afterAll(() => new Promise<void>((resolve) => server.close(() => resolve())))

  /** The requests that Node reads out of these bytes, until it closes the connection. */
  const node = (bytes: Buffer): Promise<ReadonlyArray<Seen>> =>
    new Promise((resolve) => {
      const requests: Array<Seen> = []
      let port: number | undefined
      const socket = connect((server.address() as AddressInfo).port, "127.0.0.1", () => {
        port = socket.localPort
        seen.set(port, requests)
        socket.end(bytes)
      })
      // a refused request is answered with a reset when bytes are left
      socket.on("error", () => {})
      socket.on("close", () => {
        seen.delete(port)
        resolve(requests)
      })
      socket.resume()
    })

  const successor = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
  const agreed = (body: string): ReadonlyArray<Seen> => [
    { url: "/", body },
    { url: "/next", body: "" }
  ]

  const none = FastCheck.constant("")
  // llhttp refuses the whitespace that must be parsed, so there is none
  const solid = anyOctet.filter((s) => s !== " " && s !== "\t")
  const body = chunkedBody(
    octets(solid, 20),
    none,
    textOctet.filter((s) => s !== " " && s !== "\t")
  )
  const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

  it("a chunked body that is read here, llhttp reads with the same content and the same end", async () => {
    await FastCheck.assert(
      FastCheck.asyncProperty(body, async ({ content, written }) => {
        expect(decode(chunked, [latin1(written + successor)])).toMatchObject({
          content,
          consumed: written.length,
          done: true
        })
        expect(await node(latin1(head + written + successor))).toEqual(agreed(content))
      }),
      { numRuns }
    )
  })

  it("a mutated chunked body that is still read here, llhttp reads with the same content and the same end", async () => {
    let accepted = 0
    const significant = [...'0123456789abcdefABCDEF;="\\:\r\n\0x']
    await FastCheck.assert(
      FastCheck.asyncProperty(
        body.chain(({ written }) => mutated(written, significant)),
        async (written) => {
          const bytes = latin1(written)
          const result = decode(chunked, [bytes])
          if (result.done) {
            accepted++
            const taken = bytes.subarray(0, result.consumed).toString("latin1")
            expect(await node(latin1(head + taken + successor)), JSON.stringify(taken)).toEqual(agreed(result.content))
          }
        }
      ),
      { numRuns: numRuns * 5 }
    )
    expect(accepted).toBeGreaterThan(0)
  })

  it("a head whose framing is accepted here, llhttp accepts with the same body", async () => {
    const spaces = octets([" "], 2)
    const anyCase = (s: string) => FastCheck.constantFrom(s, s.toLowerCase(), s.toUpperCase())
    const value = FastCheck.tuple(
      spaces,
      FastCheck.oneof(
        FastCheck.constantFrom("5", "05", "0", "", "+5", "0x5", "5, 5", "5 5"),
        FastCheck.constantFrom("chunked", "Chunked", "gzip", "identity", "gzip, chunked", "chunked, chunked"),
        FastCheck.constantFrom(
          ", chunked",
          ",,chunked",
          "chunked,",
          "chunked, ,",
          "xchunked",
          "chunked;a=b",
          '"chunked"'
        )
      ),
      spaces
    ).map((parts) => parts.join(""))
    const lines = FastCheck.array(
      FastCheck.tuple(
        FastCheck.oneof(anyCase("Content-Length"), anyCase("Transfer-Encoding"), FastCheck.constant("X")),
        value
      ),
      { maxLength: 3 }
    )
      // equal lines of Content-Length may be taken for one or refused (RFC 9112 §6.3): llhttp refuses them
      .filter((lines) => lines.filter(([name]) => /^content-length$/i.test(name)).length < 2)
    let accepted = 0
    await FastCheck.assert(
      FastCheck.asyncProperty(lines, async (lines) => {
        const framing = requestFraming(lines.flat(), 1)
        if (framing._tag === "Refused") {
          return
        }
        accepted++
        const written =
          framing._tag === "Chunked" ? "5\r\nhello\r\n0\r\n\r\n" : framing._tag === "Length" ? "hello" : ""
        const fields = lines.map(([name, value]) => `${name}:${value}\r\n`).join("")
        expect(await node(latin1(`POST / HTTP/1.1\r\nHost: a\r\n${fields}\r\n${written}${successor}`))).toEqual(
          agreed(framing._tag === "None" ? "" : "hello")
        )
      }),
      { numRuns }
    )
    expect(accepted).toBeGreaterThan(0)
  })
})
