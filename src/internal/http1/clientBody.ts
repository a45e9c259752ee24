/** An answer that switches nothing, as the platform's `HttpClientResponse`: its content is read off the wire as it is asked for. */
import * as Cookies from "@effect/platform/Cookies"
import { ResponseError } from "@effect/platform/HttpClientError"
import type { HttpClientRequest } from "@effect/platform/HttpClientRequest"
import * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import * as HttpIncomingMessage from "@effect/platform/HttpIncomingMessage"
import * as UrlParams from "@effect/platform/UrlParams"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Wire } from "../duplex/wire.js"
import type { ResponseFraming, ResponseHead } from "./clientResponse.js"
import { BodyDecoder } from "./framing.js"

/** The next of the content; fails with `None` at its end, and with what is wrong otherwise. */
type Pull = Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<unknown>>

const ended = Effect.fail(Option.none())

const untilClose = (wire: Wire): Pull => wire.pull

const framed = (wire: Wire, framing: Extract<ResponseFraming, { readonly _tag: "Length" | "Chunked" }>): Pull => {
  const decoder = new BodyDecoder(framing)
  const pull: Pull = Effect.suspend(() =>
    decoder.done
      ? ended
      : Effect.flatMap(wire.pull, (pieces) => {
          const slices: Array<Uint8Array> = []
          for (const piece of pieces) {
            decoder.write(piece, (slice) => slices.push(slice))
          }
          return decoder.error !== undefined
            ? Effect.fail(Option.some(new Error(`The framing of the content is wrong: ${decoder.error}`)))
            : slices.length === 0
              ? pull
              : Effect.succeed(Chunk.unsafeFromArray(slices))
        })
  )
  return Effect.mapError(pull, (end) =>
    Option.isNone(end) && !decoder.done
      ? Option.some(new Error("The connection ended in the middle of the content."))
      : end
  )
}

const contentOf = (wire: Wire, framing: Exclude<ResponseFraming, { readonly _tag: "Malformed" }>): Pull =>
  framing._tag === "None" ? ended : framing._tag === "Close" ? untilClose(wire) : framed(wire, framing)

const sizeOf = (pieces: Chunk.Chunk<Uint8Array>): number =>
  Chunk.reduce(pieces, 0, (size, piece) => size + piece.length)

export class ClientResponse extends Inspectable.Class implements HttpClientResponse.HttpClientResponse {
  readonly [HttpIncomingMessage.TypeId]: HttpIncomingMessage.TypeId = HttpIncomingMessage.TypeId
  readonly [HttpClientResponse.TypeId]: HttpClientResponse.TypeId = HttpClientResponse.TypeId

  private readonly content: Pull
  private whole: Effect.Effect<Uint8Array, ResponseError> | undefined

  constructor(
    readonly request: HttpClientRequest,
    private readonly head: ResponseHead,
    wire: Wire,
    framing: Exclude<ResponseFraming, { readonly _tag: "Malformed" }>,
    readonly remoteAddress: Option.Option<string>
  ) {
    super()
    this.content = Effect.mapError(contentOf(wire, framing), Option.map(this.failed))
  }

  private readonly failed = (cause: unknown): ResponseError =>
    new ResponseError({ request: this.request, response: this, reason: "Decode", cause })

  get status() {
    return this.head.status
  }

  get headers() {
    return this.head.headers
  }

  get cookies(): Cookies.Cookies {
    return Cookies.fromSetCookie(this.head.setCookies)
  }

  get stream(): Stream.Stream<Uint8Array, ResponseError> {
    return Stream.repeatEffectChunkOption(
      this.content as Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<ResponseError>>
    )
  }

  /** All of it, at most so much as the platform's `MaxBodySize` allows; read once, for whoever asks. */
  private get bytes(): Effect.Effect<Uint8Array, ResponseError> {
    return (this.whole ??= Effect.runSync(
      Effect.cached(
        Effect.flatMap(HttpIncomingMessage.MaxBodySize, (limit) => {
          const most = Option.match(limit, { onNone: () => Infinity, onSome: Number })
          let size = 0
          return Effect.map(
            Stream.runCollect(
              Stream.mapChunksEffect(this.stream, (pieces) => {
                size += sizeOf(pieces)
                return size > most
                  ? Effect.fail(this.failed(new Error(`The content has more than ${most} bytes (maxBodySize).`)))
                  : Effect.succeed(pieces)
              })
            ),
            (pieces) => new Uint8Array(Buffer.concat(Chunk.toReadonlyArray(pieces)))
          )
        })
      )
    ))
  }

  get arrayBuffer(): Effect.Effect<ArrayBuffer, ResponseError> {
    return Effect.map(this.bytes, (bytes) => bytes.slice().buffer)
  }

  get text(): Effect.Effect<string, ResponseError> {
    return Effect.map(this.bytes, (bytes) => new TextDecoder().decode(bytes))
  }

  get json(): Effect.Effect<unknown, ResponseError> {
    return Effect.flatMap(this.text, (text) =>
      Effect.try({ try: () => (text === "" ? null : (JSON.parse(text) as unknown)), catch: this.failed })
    )
  }

  get urlParamsBody(): Effect.Effect<UrlParams.UrlParams, ResponseError> {
    return Effect.map(this.text, (text) => UrlParams.fromInput(new URLSearchParams(text)))
  }

  get formData(): Effect.Effect<FormData, ResponseError> {
    return Effect.flatMap(this.bytes, (bytes) =>
      Effect.tryPromise({
        try: () =>
          new Response(bytes.slice(), { headers: { "content-type": this.headers["content-type"] ?? "" } }).formData(),
        catch: this.failed
      })
    )
  }

  toJSON(): unknown {
    return HttpIncomingMessage.inspect(this, {
      _id: "@effect/platform/HttpClientResponse",
      request: this.request.toJSON(),
      status: this.status
    })
  }
}
