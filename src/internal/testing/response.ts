/**
 * Reads HTTP/1 responses as a client does, from what has come so far, and again from the start when more has come.
 *
 * @internal
 */
import { Buffer } from "node:buffer"
import type { Head, Response } from "../../testing/Peer.js"

/** What was found at the beginning of the input, and how long it is; `undefined` while there is not enough of it. */
export type Found<A> = { readonly value: A; readonly length: number } | { readonly malformed: string } | undefined

const statusLine = /^HTTP\/(\d\.\d) (\d{3})(?: (.*))?$/

const fields = (lines: ReadonlyArray<string>): Record<string, string> | undefined => {
  const headers: Record<string, string> = Object.create(null)
  for (const line of lines) {
    const colon = line.indexOf(":")
    if (colon < 1) {
      return undefined
    }
    const name = line.slice(0, colon).toLowerCase()
    const value = line.slice(colon + 1).trim()
    headers[name] = name in headers ? `${headers[name]}, ${value}` : value
  }
  return headers
}

const endOfHead = "\r\n\r\n"

/** The head of a response, interim or not: RFC 9112 §4. */
export const findHead = (bytes: Buffer): Found<Head> => {
  const index = bytes.indexOf(endOfHead)
  if (index === -1) {
    return undefined
  }
  const length = index + endOfHead.length
  const raw = bytes.toString("latin1", 0, length)
  const [first, ...lines] = raw.slice(0, index).split("\r\n")
  const match = statusLine.exec(first!)
  const headers = fields(lines)
  if (match === null || headers === undefined) {
    return { malformed: "this is not the head of an HTTP/1 response" }
  }
  const [, version, status, statusText = ""] = match
  return { value: { status: Number(status), statusText, version: version!, headers, raw }, length }
}

/** A response that is not interim, with what came before it. `ended`: its FIN has come. */
export const findResponse = (bytes: Buffer, ended: boolean): Found<Response> => {
  const interim: Array<Head> = []
  let start = 0
  for (;;) {
    const found = findHead(bytes.subarray(start))
    if (found === undefined || "malformed" in found) {
      return found
    }
    start += found.length
    const head = found.value
    if (head.status >= 200 || head.status === 101) {
      const content = findContent(head, bytes.subarray(start), ended)
      if (content === undefined || "malformed" in content) {
        return content
      }
      const { body, trailers } = content.value
      return {
        value: { ...head, body, text: body.toString(), trailers, interim },
        length: start + content.length
      }
    }
    interim.push(head)
  }
}

interface Content {
  readonly body: Buffer
  readonly trailers: Readonly<Record<string, string>>
}

/** RFC 9112 §6.3, but for HEAD and CONNECT. */
const findContent = ({ headers, status }: Head, bytes: Buffer, ended: boolean): Found<Content> => {
  const all = (length: number): Found<Content> =>
    bytes.length < length ? undefined : { value: { body: bytes.subarray(0, length), trailers: {} }, length }
  if (status === 101 || status === 204 || status === 304) {
    return all(0)
  }
  if (headers["transfer-encoding"] !== undefined) {
    return headers["transfer-encoding"].toLowerCase() === "chunked"
      ? findChunked(bytes)
      : { malformed: `Transfer-Encoding is ${headers["transfer-encoding"]}, only chunked is understood` }
  }
  const length = headers["content-length"]
  if (length !== undefined) {
    return /^\d+$/.test(length) ? all(Number(length)) : { malformed: `Content-Length is ${length}` }
  }
  return ended ? all(bytes.length) : undefined
}

/** RFC 9112 §7.1. */
const findChunked = (bytes: Buffer): Found<Content> => {
  const chunks: Array<Buffer> = []
  let start = 0
  for (;;) {
    const line = bytes.indexOf("\r\n", start)
    if (line === -1) {
      return undefined
    }
    const size = /^([0-9a-f]+)(?:;.*)?$/i.exec(bytes.toString("latin1", start, line))
    if (size === null) {
      return { malformed: "the size of a chunk is not hexadecimal digits" }
    }
    const length = Number.parseInt(size[1]!, 16)
    start = line + 2
    if (length === 0) {
      return findTrailers(bytes, line, Buffer.concat(chunks))
    }
    if (bytes.length < start + length + 2) {
      return undefined
    }
    chunks.push(bytes.subarray(start, start + length))
    start += length
    if (bytes.toString("latin1", start, start + 2) !== "\r\n") {
      return { malformed: "no line break behind the data of a chunk" }
    }
    start += 2
  }
}

/** `line` is the end of the last chunk's line: with no trailer fields the empty line follows at once. */
const findTrailers = (bytes: Buffer, line: number, body: Buffer): Found<Content> => {
  const index = bytes.indexOf(endOfHead, line)
  if (index === -1) {
    return undefined
  }
  const trailers = fields(
    bytes
      .toString("latin1", line + 2, Math.max(index, line + 2))
      .split("\r\n")
      .filter((field) => field !== "")
  )
  return trailers === undefined
    ? { malformed: "a trailer field has no colon" }
    : { value: { body, trailers }, length: index + endOfHead.length }
}
