/** A client's request: its head, checked, and its content as it goes out. Nothing here waits for an answer. */
import * as Headers from "@effect/platform/Headers"
import type * as HttpBody from "@effect/platform/HttpBody"
import type { HttpClientRequest } from "@effect/platform/HttpClientRequest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import { type ConnectionError, InvalidRequest } from "../../UpgradeError.js"
import type { Wire } from "../duplex/wire.js"
import { isFieldName, isFieldValue, isToken, listElements } from "./offers.js"

const invalid = (description: string, cause?: unknown): InvalidRequest =>
  new InvalidRequest({ description, ...(cause === undefined ? {} : { cause }) })

/** What follows a head. Of a stream only the end tells how long it was, unless it says so before. */
export type Content =
  | { readonly _tag: "None" }
  | { readonly _tag: "Bytes"; readonly bytes: Uint8Array }
  | {
      readonly _tag: "Stream"
      readonly stream: Stream.Stream<Uint8Array, InvalidRequest>
      readonly length: number | undefined
    }

export interface Message {
  readonly method: string
  /** The request as it was given, for whoever is told of the answer. */
  readonly request: HttpClientRequest
  readonly head: Uint8Array
  /** The fields as they were sent. */
  readonly fields: Headers.Headers
  readonly content: Content
}

const none: Content = { _tag: "None" }

const stream = (stream: Stream.Stream<Uint8Array, unknown>, length: number | undefined): Content => ({
  _tag: "Stream",
  length,
  stream: Stream.mapError(stream, (cause) => invalid("The body of the request failed.", cause))
})

const bytes = (bytes: Uint8Array): Content => ({ _tag: "Bytes", bytes })

const isAsyncIterable = (u: unknown): u is AsyncIterable<Uint8Array | string> =>
  typeof u === "object" && u !== null && Symbol.asyncIterator in u

const encode = (piece: unknown): Uint8Array => {
  if (typeof piece === "string") {
    return Buffer.from(piece)
  }
  if (piece instanceof Uint8Array) {
    return piece
  }
  throw new TypeError(`expected bytes or text, but there came ${typeof piece}`)
}

/** What Node's and the Web's own clients take as a body. */
const rawContent = (body: unknown, length: number | undefined): Content | undefined => {
  if (body === undefined || body === null) {
    return none
  }
  if (typeof body === "string" || body instanceof Uint8Array) {
    return bytes(encode(body))
  }
  if (body instanceof ArrayBuffer) {
    return bytes(new Uint8Array(body))
  }
  if (body instanceof URLSearchParams) {
    return bytes(Buffer.from(body.toString()))
  }
  if (body instanceof Blob) {
    return stream(
      Stream.fromReadableStream(
        () => body.stream() as ReadableStream<Uint8Array>,
        (cause) => cause
      ),
      body.size
    )
  }
  return isAsyncIterable(body)
    ? stream(
        Stream.mapEffect(
          Stream.fromAsyncIterable(body, (cause) => cause),
          (piece) => Effect.try(() => encode(piece))
        ),
        length
      )
    : undefined
}

interface Carried {
  readonly content: Content
  readonly contentType: string | undefined
}

const contentOf = (body: HttpBody.HttpBody): Carried | undefined => {
  const { contentType } = body
  switch (body._tag) {
    case "Empty":
      return { content: none, contentType }
    case "Uint8Array":
      return { content: bytes(body.body), contentType }
    case "Raw": {
      const content = rawContent(body.body, body.contentLength)
      return content && { content, contentType }
    }
    case "FormData": {
      // The Web's own encoder chooses the boundary, and says so in the type
      const encoded = new Response(body.formData)
      return {
        content: stream(
          Stream.fromReadableStream(
            () => encoded.body!,
            (cause) => cause
          ),
          undefined
        ),
        contentType: encoded.headers.get("content-type") ?? undefined
      }
    }
    case "Stream":
      return { content: stream(body.stream, body.contentLength), contentType }
  }
}

// RFC 9110 §8.6: a request without content says so where its method anticipates some
const anticipatesContent = new Set(["POST", "PUT", "PATCH"])

type Fields = Record<string, string>

/** How the content is framed (RFC 9112 §6): the fields that were given may say so too, but nothing else. */
const framed = (method: string, given: Fields, content: Content): Either.Either<Content, InvalidRequest> => {
  const codings = given["transfer-encoding"]
  const told = given["content-length"]
  delete given["transfer-encoding"]
  delete given["content-length"]
  const length = content._tag === "None" ? 0 : content._tag === "Bytes" ? content.bytes.length : content.length
  const said = told !== undefined && /^[0-9]{1,15}$/.test(told) ? Number(told) : undefined
  if (codings !== undefined && (content._tag !== "Stream" || !/^chunked$/i.test(codings) || told !== undefined)) {
    return Either.left(
      invalid(
        `The request has Transfer-Encoding: ${codings}, which is the library's to write. Remove the field; a stream is sent chunked.`
      )
    )
  }
  if (told !== undefined && (said === undefined || (length !== undefined && length !== said))) {
    return Either.left(
      invalid(
        `The request says Content-Length: ${told}, but its content has ${length ?? "no"} bytes. Remove the field.`
      )
    )
  }
  const known = length ?? said
  if (known === undefined) {
    given["transfer-encoding"] = "chunked"
  } else if (content._tag !== "None" || told !== undefined || anticipatesContent.has(method)) {
    given["content-length"] = String(known)
  }
  return Either.right(content._tag === "Stream" ? { ...content, length: known } : content)
}

/** Connection lists what the field named before, and this: RFC 9110 §7.6.1. */
const withOption = (connection: string | undefined, option: string): string => {
  const others = connection === undefined ? [] : listElements(connection).filter((element) => element !== "")
  return others.some((element) => element.toLowerCase() === option.toLowerCase())
    ? others.join(", ")
    : [option, ...others].join(", ")
}

/**
 * The message of a request: its head as it goes out, or what in it cannot. A CR, LF or NUL in a field would be another
 * field, or another request.
 */
export const message = (
  request: HttpClientRequest,
  target: string,
  host: string,
  /** Fields beside the request's own, which they replace: what a protocol demands. */
  added: Headers.Headers,
  /** What Upgrade offers; without it neither that field nor the option is sent. */
  tokens: ReadonlyArray<string> | undefined
): Either.Either<Message, InvalidRequest> => {
  const { method } = request
  const given: Fields = { ...request.headers, ...added }
  if (added.connection !== undefined && request.headers.connection !== undefined) {
    given.connection = `${request.headers.connection}, ${added.connection}`
  }
  const carried = contentOf(request.body)
  if (carried === undefined) {
    return Either.left(
      invalid("The body of the request is of no kind that can be sent: give it as bytes, text, FormData or a stream.")
    )
  }
  if (carried.contentType !== undefined && (given["content-type"] === undefined || request.body._tag === "FormData")) {
    given["content-type"] = carried.contentType
  }
  const framing = framed(method, given, carried.content)
  if (Either.isLeft(framing)) {
    return Either.left(framing.left)
  }
  const { connection, host: ownHost, upgrade: _upgrade, ...rest } = given
  const first: Fields = { host: ownHost ?? host }
  if (tokens !== undefined) {
    // RFC 9110 §7.8: the sender of Upgrade MUST send the option
    first.connection = withOption(connection, "Upgrade")
    first.upgrade = tokens.join(", ")
  } else if (connection !== undefined) {
    first.connection = connection
  }
  const fields = Headers.fromInput({ ...first, ...rest })
  if (!isToken(method) || !/^[\x21-\x7e]+$/.test(target)) {
    return Either.left(invalid(`The request line cannot be written: ${JSON.stringify(`${method} ${target}`)}.`))
  }
  let head = `${method} ${target} HTTP/1.1\r\n`
  for (const name of Object.keys(fields)) {
    const value = fields[name]!
    if (!isFieldName(name) || !isFieldValue(value)) {
      return Either.left(
        invalid(
          `The field ${JSON.stringify(name)} has a character that may not stand in a head (CR, LF, NUL, another control, ` +
            "or one above U+00FF). Remove or encode it."
        )
      )
    }
    head += `${name}: ${value}\r\n`
  }
  return Either.right({ method, request, head: Buffer.from(`${head}\r\n`, "latin1"), fields, content: framing.right })
}

/** How far the request is: whether the socket has been given all of it. */
export interface Progress {
  sent: boolean
}

/** Pieces that are noted as sent in the moment in which the socket takes them. */
function* last(pieces: Iterable<Uint8Array | string>, progress: Progress): Iterable<Uint8Array | string> {
  yield* pieces
  progress.sent = true
}

/** So much of a body is written at a time: whether it was all sent is known to within so much. */
const PIECE = 64 * 1024

const sendBytes = (
  wire: Wire,
  head: Uint8Array | undefined,
  bytes: Uint8Array,
  progress: Progress
): Effect.Effect<void, ConnectionError> => {
  const pieces = [...(head === undefined ? [] : [head]), bytes.subarray(0, PIECE)]
  return bytes.length <= PIECE
    ? wire.writeAll(last(pieces, progress))
    : Effect.zipRight(
        wire.writeAll(pieces),
        Effect.suspend(() => sendBytes(wire, undefined, bytes.subarray(PIECE), progress))
      )
}

const sendStream = (
  wire: Wire,
  content: Extract<Content, { readonly _tag: "Stream" }>,
  progress: Progress
): Effect.Effect<void, ConnectionError | InvalidRequest> => {
  const { length } = content
  let sent = 0
  const put = (chunk: Chunk.Chunk<Uint8Array>): Effect.Effect<void, ConnectionError | InvalidRequest> => {
    const pieces = Chunk.toReadonlyArray(chunk).filter((piece) => piece.length > 0)
    const size = pieces.reduce((size, piece) => size + piece.length, 0)
    sent += size
    if (size === 0) {
      return Effect.void
    }
    if (length === undefined) {
      return wire.writeAll([`${size.toString(16)}\r\n`, ...pieces, "\r\n"])
    }
    return sent > length
      ? Effect.fail(invalid(`The body of the request has more than the ${length} bytes that it said.`))
      : wire.writeAll(sent === length ? last(pieces, progress) : pieces)
  }
  return Effect.zipRight(
    Stream.runForEachChunk(content.stream, put),
    Effect.suspend((): Effect.Effect<void, ConnectionError | InvalidRequest> => {
      if (length === undefined) {
        return wire.writeAll(last(["0\r\n\r\n"], progress))
      }
      progress.sent ||= sent === length
      return progress.sent
        ? Effect.void
        : Effect.fail(invalid(`The body of the request ended after ${sent} of the ${length} bytes that it said.`))
    })
  )
}

/** Sends all of a request, as fast as the server takes it. */
export const send = (
  wire: Wire,
  message: Message,
  progress: Progress
): Effect.Effect<void, ConnectionError | InvalidRequest> => {
  const { content, head } = message
  switch (content._tag) {
    case "None":
      return wire.writeAll(last([head], progress))
    case "Bytes":
      return sendBytes(wire, head, content.bytes, progress)
    case "Stream":
      return Effect.zipRight(wire.write(head), sendStream(wire, content, progress))
  }
}
