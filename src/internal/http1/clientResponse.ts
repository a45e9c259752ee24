/** A server's answer as a client reads it: the head, strictly (RFC 9112 §2 to §5), and how its content is framed (§6). */
import * as Headers from "@effect/platform/Headers"
import { type Framing, requestFraming } from "./framing.js"
import { isFieldName, withoutWhitespace } from "./offers.js"

export interface ResponseHead {
  readonly status: number
  readonly statusText: string
  /** The minor number of the version: 0, or 1 for any above. */
  readonly minor: 0 | 1
  /** Name, value, name, value, as they came. */
  readonly rawHeaders: ReadonlyArray<string>
  /** Lines of one name are one list (RFC 9110 §5.3). */
  readonly headers: Headers.Headers
  /** Set-Cookie is no list. */
  readonly setCookies: ReadonlyArray<string>
}

/** What a head may be at most, so that a server cannot fill a client's memory with one. */
const maxHead = 64 * 1024
const maxFields = 1000

const prefix = "HTTP/1."

// What comes next
const Failed = 0
const Done = 1
const Prefix = 2
const Line = 3
const LineLF = 4
const Start = 5
const EndLF = 6

const CR = 0x0d
const LF = 0x0a
const HTAB = 0x09
const SP = 0x20

/**
 * Takes one head out of what arrives, in whatever pieces it does. It fails at the first octet that cannot stand in one, so
 * that a server of another kind is known by its first line and not by a time limit.
 */
export class ResponseHeadReader {
  private state = Prefix
  private pieces: Array<Uint8Array> = []
  private length = 0
  private lines = 0
  private failure: string | undefined
  private parsed: ResponseHead | undefined

  /** Whether anything has come. */
  get begun(): boolean {
    return this.length > 0
  }

  get head(): ResponseHead | undefined {
    return this.parsed
  }

  /** What is wrong with the head, in a sentence. Nothing is read behind it. */
  get error(): string | undefined {
    return this.failure
  }

  /** Reads on, and returns how many of `bytes` belong to the head: all of them, unless it is done or wrong. */
  write(bytes: Uint8Array): number {
    let at = 0
    while (at < bytes.length && this.state > Done) {
      if (this.length + at >= maxHead) {
        this.state = this.fail(`it is longer than ${maxHead} bytes`)
        break
      }
      this.state = this.next(bytes[at]!, this.length + at)
      if (this.state !== Failed) {
        at++
      }
    }
    if (at > 0) {
      this.pieces.push(bytes.subarray(0, at))
      this.length += at
    }
    if (this.state === Done && this.parsed === undefined) {
      const text = Buffer.concat(this.pieces).toString("latin1")
      this.pieces = []
      const parsed = parse(text)
      if (typeof parsed === "string") {
        this.state = this.fail(parsed)
      } else {
        this.parsed = parsed
      }
    }
    return at
  }

  private next(octet: number, at: number): number {
    switch (this.state) {
      case Prefix:
        return octet !== prefix.charCodeAt(at)
          ? this.fail(`it does not begin with ${prefix}`)
          : at === prefix.length - 1
            ? Line
            : Prefix
      case Line:
        return octet === CR
          ? LineLF
          : (octet < SP && octet !== HTAB) || octet === 0x7f
            ? this.fail(`it has the octet 0x${octet.toString(16).padStart(2, "0")}, which may not stand in a line`)
            : Line
      case LineLF:
        this.lines++
        return octet !== LF
          ? this.fail("it has a CR without LF (RFC 9112 §2.2)")
          : this.lines > maxFields + 1
            ? this.fail(`it has more than ${maxFields} fields`)
            : Start
      case Start:
        return octet === CR
          ? EndLF
          : octet === SP || octet === HTAB
            ? this.fail("a field is folded over several lines (RFC 9112 §5.2)")
            : octet < SP || octet === 0x7f
              ? this.fail(`it has the octet 0x${octet.toString(16).padStart(2, "0")}, which may not begin a line`)
              : Line
      default:
        return octet === LF ? Done : this.fail("it has a CR without LF (RFC 9112 §2.2)")
    }
  }

  private fail(reason: string): number {
    this.failure = reason
    this.pieces = []
    return Failed
  }
}

// status-line = HTTP-version SP status-code SP [ reason-phrase ], RFC 9112 §4; some leave out the last SP with the phrase
const statusLine = /^HTTP\/1\.([0-9]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?$/

const parse = (text: string): ResponseHead | string => {
  const [first, ...lines] = text.slice(0, -4).split("\r\n")
  const status = statusLine.exec(first!)
  if (status === null) {
    return `its status line is ${JSON.stringify(first!.slice(0, 100))} (RFC 9112 §4)`
  }
  const rawHeaders: Array<string> = []
  const setCookies: Array<string> = []
  const record: Record<string, string> = Object.create(null)
  for (const line of lines) {
    const colon = line.indexOf(":")
    const name = line.slice(0, Math.max(colon, 0))
    // No whitespace before the colon: RFC 9112 §5.1
    if (!isFieldName(name)) {
      return `${JSON.stringify(line.slice(0, 100))} is no field line (RFC 9112 §5)`
    }
    const value = withoutWhitespace(line, colon + 1)
    rawHeaders.push(name, value)
    const key = name.toLowerCase()
    if (key === "set-cookie") {
      setCookies.push(value)
    }
    record[key] = key in record ? `${record[key]}, ${value}` : value
  }
  return {
    status: Number(status[2]),
    statusText: status[3] ?? "",
    minor: status[1] === "0" ? 0 : 1,
    rawHeaders,
    headers: Headers.unsafeFromRecord(record),
    setCookies
  }
}

/** How the content of a response is framed; `Close`: it ends with the connection. */
export type ResponseFraming =
  | Exclude<Framing, { readonly _tag: "Refused" }>
  | { readonly _tag: "Close" }
  | { readonly _tag: "Malformed"; readonly reason: string }

/** RFC 9112 §6.3, for an answer that is not to be tunnelled. */
export const responseFraming = (method: string, head: ResponseHead): ResponseFraming => {
  if (method === "HEAD" || head.status === 204 || head.status === 304 || head.status < 200) {
    return { _tag: "None" }
  }
  if (!("transfer-encoding" in head.headers || "content-length" in head.headers)) {
    return { _tag: "Close" }
  }
  const framing = requestFraming(head.rawHeaders, head.minor)
  return framing._tag === "Refused" ? { _tag: "Malformed", reason: framing.reason } : framing
}
