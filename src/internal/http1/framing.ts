/**
 * Where a request's body ends: RFC 9112 §6 decides how it is framed, §7 how chunks are read.
 *
 * Before version 26 Node's parser stops at the head of a request that asks for an upgrade, so its body is framed here. A
 * parser that forgives what another refuses lets a second request hide in a body, so nothing is forgiven. What is accepted
 * here llhttp accepts too, but for three things that the RFCs allow or demand: whitespace in a chunk extension (RFC 9110
 * §5.6.3), trailers named like framing fields (ignored, §6.5.1) and equal lines of Content-Length (RFC 9112 §6.3).
 *
 * @internal
 */
import { listElements, withoutWhitespace } from "./offers.js"

export type Framing =
  | { readonly _tag: "None" }
  | { readonly _tag: "Length"; readonly length: number }
  | { readonly _tag: "Chunked" }
  | { readonly _tag: "Refused"; readonly status: 400 | 501; readonly reason: string }

const none: Framing = { _tag: "None" }
const chunked: Framing = { _tag: "Chunked" }
const refused = (status: 400 | 501, reason: string): Framing => ({ _tag: "Refused", status, reason })

/**
 * How the body of a request is framed, by its `rawHeaders` (name, value, name, value) and its version's minor number.
 * Whoever refuses a request must also close its connection: nobody knows where the next request begins.
 */
export const requestFraming = (rawHeaders: ReadonlyArray<string>, httpVersionMinor: number): Framing => {
  let codings: string | undefined
  let length: string | undefined
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    switch (rawHeaders[i].toLowerCase()) {
      case "transfer-encoding": {
        // several lines are one list, RFC 9110 §5.3
        codings = codings === undefined ? rawHeaders[i + 1] : `${codings},${rawHeaders[i + 1]}`
        break
      }
      case "content-length": {
        const value = withoutWhitespace(rawHeaders[i + 1])
        if (length !== undefined && length !== value) {
          return refused(400, "Content-Length was sent twice with different values (RFC 9112 §6.3); send it once")
        }
        length = value
        break
      }
    }
  }
  if (codings !== undefined) {
    return codingsFraming(codings, length !== undefined, httpVersionMinor)
  }
  return length === undefined ? none : lengthFraming(length)
}

const codingsFraming = (codings: string, hasLength: boolean, httpVersionMinor: number): Framing => {
  if (httpVersionMinor < 1) {
    return refused(400, "Transfer-Encoding in an HTTP/1.0 request is faulty framing (RFC 9112 §6.1); use HTTP/1.1")
  }
  if (hasLength) {
    return refused(400, "Transfer-Encoding came together with Content-Length (RFC 9112 §6.3); send one of them")
  }
  const elements = listElements(codings)
  // An empty element is ignored (RFC 9110 §5.6.1) but not behind "chunked": parsers do not agree whether it is then last
  if (!isChunked(elements[elements.length - 1])) {
    return refused(
      400,
      "the last Transfer-Encoding of a request must be chunked, without parameters (RFC 9112 §6.3, §7.1)"
    )
  }
  if (elements.filter(isChunked).length > 1) {
    return refused(400, "Transfer-Encoding names chunked more than once (RFC 9112 §6.1)")
  }
  return elements.slice(0, -1).some((element) => element !== "")
    ? refused(501, "the only Transfer-Encoding understood here is chunked (RFC 9112 §6.1)")
    : chunked
}

// without the u flag, i folds ASCII only: names of codings are case-insensitive, RFC 9112 §7
const isChunked = (coding: string): boolean => /^chunked$/i.test(coding)

const lengthFraming = (value: string): Framing => {
  // 1*DIGIT, RFC 9110 §8.6: a list of equal values may be refused, and a sign, hexadecimal or nothing must be
  if (!/^[0-9]+$/.test(value)) {
    return refused(400, "Content-Length must be one number in decimal digits (RFC 9110 §8.6)")
  }
  const length = Number(value)
  if (!Number.isSafeInteger(length)) {
    return refused(400, `Content-Length must not be over ${Number.MAX_SAFE_INTEGER} (RFC 9110 §8.6)`)
  }
  return length === 0 ? none : { _tag: "Length", length }
}

/** Octets that a chunked body may hold beside its content. Both are totals of a whole body. */
export interface BodyLimits {
  /**
   * Chunk extensions, and zeros that pad a chunk's size beyond 16 digits. 16,384, as in Node: without a limit a peer
   * keeps a connection busy for ever with a body that never grows (CVE-2024-22019).
   */
  readonly maxChunkExtension: number
  /** The trailer section. 16,384, as for a whole head in Node. */
  readonly maxTrailer: number
}

const defaultLimits: BodyLimits = { maxChunkExtension: 16384, maxTrailer: 16384 }

// What comes next in a body. Those of the extensions and those of the trailers stand together: they are limited.
const Failed = 0
const Done = 1
const Content = 2
const ContentCR = 3
const ContentLF = 4
const Size = 5
const SizeRest = 6
const SizeLF = 7
const FinalLF = 8
const Extension = 9
const ExtensionName = 10
const ExtensionNameRest = 11
const ExtensionNameEnd = 12
const ExtensionValue = 13
const ExtensionValueRest = 14
const ExtensionQuoted = 15
const ExtensionQuotedPair = 16
const ExtensionQuotedEnd = 17
const Trailer = 18
const TrailerName = 19
const TrailerValue = 20
const TrailerLF = 21

// The state behind an octet, by state and octet: whatever the grammar does not name is Failed
const transitions = new Uint8Array(22 << 8)
const expected: Array<string> = []

const state = (from: number, expects: string, ...rules: ReadonlyArray<readonly [octets: RegExp, to: number]>): void => {
  expected[from] = expects
  for (const [octets, to] of rules) {
    for (let octet = 0; octet < 256; octet++) {
      if (octets.test(String.fromCharCode(octet))) {
        transitions[(from << 8) | octet] = to
      }
    }
  }
}

const hexadecimal = /[0-9A-Fa-f]/
const tchar = /[!#$%&'*+\-.^_`|~0-9A-Za-z]/
// HTAB, SP, VCHAR, obs-text: a field value (RFC 9110 §5.5), and what a quoted string holds (§5.6.4)
const text = /[\t\x20-\x7e\x80-\xff]/
// BWS, which must be parsed and never sent: RFC 9110 §5.6.3
const whitespace = /[\t ]/

// chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF: RFC 9112 §7.1
const size = "a chunk size in hexadecimal, then CR LF (RFC 9112 §7.1)"
state(Size, size, [hexadecimal, SizeRest])
state(SizeRest, size, [hexadecimal, SizeRest], [whitespace, Extension], [/;/, ExtensionName], [/\r/, SizeLF])
state(SizeLF, "LF behind the CR of a chunk size (RFC 9112 §7.1)", [/\n/, Content])
const contentEnd = "CR LF behind the content of a chunk (RFC 9112 §7.1)"
state(ContentCR, contentEnd, [/\r/, ContentLF])
state(ContentLF, contentEnd, [/\n/, Size])

// chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] ): RFC 9112 §7.1.1
const extension = "a chunk extension, ;name or ;name=value (RFC 9112 §7.1.1)"
state(Extension, extension, [whitespace, Extension], [/;/, ExtensionName])
state(ExtensionName, extension, [whitespace, ExtensionName], [tchar, ExtensionNameRest])
state(
  ExtensionNameRest,
  extension,
  [tchar, ExtensionNameRest],
  [whitespace, ExtensionNameEnd],
  [/=/, ExtensionValue],
  [/;/, ExtensionName],
  [/\r/, SizeLF]
)
state(ExtensionNameEnd, extension, [whitespace, ExtensionNameEnd], [/=/, ExtensionValue], [/;/, ExtensionName])
state(ExtensionValue, extension, [whitespace, ExtensionValue], [tchar, ExtensionValueRest], [/"/, ExtensionQuoted])
state(
  ExtensionValueRest,
  extension,
  [tchar, ExtensionValueRest],
  [whitespace, Extension],
  [/;/, ExtensionName],
  [/\r/, SizeLF]
)
state(ExtensionQuoted, extension, [text, ExtensionQuoted], [/\\/, ExtensionQuotedPair], [/"/, ExtensionQuotedEnd])
state(ExtensionQuotedPair, extension, [text, ExtensionQuoted])
state(ExtensionQuotedEnd, extension, [whitespace, Extension], [/;/, ExtensionName], [/\r/, SizeLF])

// trailer-section = *( field-line CRLF ), then CRLF: RFC 9112 §7.1.2. A line that folds is refused, §5.2.
const trailer = "a trailer line, name: value, then CR LF (RFC 9112 §7.1.2)"
state(Trailer, trailer, [tchar, TrailerName], [/\r/, FinalLF])
state(TrailerName, trailer, [tchar, TrailerName], [/:/, TrailerValue])
state(TrailerValue, trailer, [text, TrailerValue], [/\r/, TrailerLF])
state(TrailerLF, trailer, [/\n/, Trailer])
state(FinalLF, "LF behind the CR that ends the body (RFC 9112 §7.1)", [/\n/, Done])

// One more hexadecimal digit and a size has over 13, more than a number holds exactly: RFC 9112 §7.1 warns of it
const lastSize = 2 ** 48
const freeSizeDigits = 16

/**
 * Takes the body of a request out of what arrives, in whatever pieces it does. The content goes to `onData` uncopied,
 * extensions and trailers are skipped, and what follows the message is left alone.
 */
export class BodyDecoder {
  private readonly chunked: boolean
  private state: number
  // what is left of the content, or of this chunk of it
  private remaining: number
  private digits = 0
  private extensionLeft: number
  private trailerLeft: number
  private failure: string | undefined

  constructor(framing: Extract<Framing, { readonly _tag: "Length" | "Chunked" }>, limits: BodyLimits = defaultLimits) {
    this.chunked = framing._tag === "Chunked"
    this.remaining = framing._tag === "Length" ? framing.length : 0
    this.state = this.chunked ? Size : this.remaining === 0 ? Done : Content
    this.extensionLeft = limits.maxChunkExtension
    this.trailerLeft = limits.maxTrailer
  }

  /** Whether the body has ended. */
  get done(): boolean {
    return this.state === Done
  }

  /** What is wrong with the framing, in a sentence. Nothing is read behind it. */
  get error(): string | undefined {
    return this.failure
  }

  /**
   * Reads on, and returns how many of `bytes` belong to the body: all of them, unless it is done or wrong. A slice is a
   * view of `bytes`, and never empty.
   */
  write(bytes: Uint8Array, onData: (slice: Uint8Array) => void): number {
    let at = 0
    while (at < bytes.length && this.state > Done) {
      if (this.state === Content) {
        const start = at
        at = Math.min(start + this.remaining, bytes.length)
        this.remaining -= at - start
        if (this.remaining === 0) {
          this.state = this.chunked ? ContentCR : Done
        }
        onData(bytes.subarray(start, at))
      } else {
        this.state = this.next(bytes[at])
        if (this.state !== Failed) {
          at++
        }
      }
    }
    return at
  }

  private next(octet: number): number {
    const next = transitions[(this.state << 8) | octet]
    if (next === Failed) {
      const found = octet.toString(16).toUpperCase().padStart(2, "0")
      return this.fail(`expected ${expected[this.state]}, but there came the octet 0x${found}`)
    }
    if (next >= Trailer) {
      if (--this.trailerLeft < 0) {
        return this.fail("the trailer section is too long; send fewer or shorter trailers")
      }
    } else if (next >= Extension) {
      if (--this.extensionLeft < 0) {
        return this.fail("the chunk extensions are too long; send fewer or shorter ones")
      }
    } else if (next === SizeRest) {
      return this.sizeDigit(octet)
    } else if (next === Content && this.remaining === 0) {
      return Trailer
    }
    return next
  }

  private sizeDigit(octet: number): number {
    this.digits = this.state === Size ? 1 : this.digits + 1
    if (this.digits > freeSizeDigits && --this.extensionLeft < 0) {
      return this.fail("the zeros before a chunk size are too many; send the size without them")
    }
    if (this.remaining >= lastSize) {
      return this.fail("a chunk size has more than 13 hexadecimal digits (RFC 9112 §7.1); send smaller chunks")
    }
    this.remaining = this.remaining * 16 + hexadecimalValue(octet)
    return SizeRest
  }

  private fail(reason: string): number {
    this.failure = reason
    return Failed
  }
}

// '0' is 0x30, 'A' is 0x41, 'a' is 0x61
const hexadecimalValue = (octet: number): number => (octet <= 0x39 ? octet - 0x30 : (octet & 0x0f) + 9)
