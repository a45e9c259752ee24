import * as Cookies from "@effect/platform/Cookies"
import type * as Headers from "@effect/platform/Headers"
import * as HttpIncomingMessage from "@effect/platform/HttpIncomingMessage"
import type { HttpMethod } from "@effect/platform/HttpMethod"
import { RequestError } from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"

/** A request that has been switched, for its session: all of it but the body, and nothing that holds its message. */
export class SessionRequest extends Inspectable.Class implements HttpServerRequest.HttpServerRequest {
  readonly [HttpServerRequest.TypeId]: HttpServerRequest.TypeId = HttpServerRequest.TypeId
  readonly [HttpIncomingMessage.TypeId]: HttpIncomingMessage.TypeId = HttpIncomingMessage.TypeId
  readonly source: { readonly socket: unknown }
  readonly method: HttpMethod
  readonly url: string
  readonly originalUrl: string
  readonly headers: Headers.Headers
  private readonly address: string | undefined

  constructor(
    request: HttpServerRequest.HttpServerRequest,
    options?: Parameters<HttpServerRequest.HttpServerRequest["modify"]>[0]
  ) {
    super()
    this.source = { socket: (request.source as { readonly socket?: unknown }).socket }
    this.method = request.method
    this.url = options?.url ?? request.url
    this.originalUrl = request.originalUrl
    this.headers = options?.headers ?? request.headers
    this.address = options?.remoteAddress ?? Option.getOrUndefined(request.remoteAddress)
  }

  get remoteAddress(): Option.Option<string> {
    return Option.fromNullable(this.address)
  }

  get cookies() {
    return Cookies.parseHeader(this.headers.cookie ?? "")
  }

  modify(options: Parameters<HttpServerRequest.HttpServerRequest["modify"]>[0]): HttpServerRequest.HttpServerRequest {
    return new SessionRequest(this, options)
  }

  private get gone(): Effect.Effect<never, RequestError> {
    return Effect.suspend(() =>
      Effect.fail(
        new RequestError({
          request: this,
          reason: "Decode",
          description: "The request was switched, and its body is not kept: read it before the switch."
        })
      )
    )
  }

  get text() {
    return this.gone
  }
  get json() {
    return this.gone
  }
  get urlParamsBody() {
    return this.gone
  }
  get arrayBuffer() {
    return this.gone
  }
  get stream() {
    return Stream.fromEffect(this.gone)
  }
  get multipart(): HttpServerRequest.HttpServerRequest["multipart"] {
    return Effect.orDie(this.gone)
  }
  get multipartStream(): HttpServerRequest.HttpServerRequest["multipartStream"] {
    return Stream.orDie(Stream.fromEffect(this.gone))
  }
  get upgrade() {
    return this.gone
  }

  toJSON(): unknown {
    return HttpIncomingMessage.inspect(this, {
      _id: "@effect/platform/HttpServerRequest",
      method: this.method,
      url: this.originalUrl
    })
  }
}
