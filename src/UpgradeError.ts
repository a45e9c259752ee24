/**
 * Every way in which a switch of protocols, or the connection after it, can fail.
 *
 * The errors of a server's handshake (`UpgradeError`) know the HTTP answer that they deserve: each is
 * `HttpServerRespondable`, so a handler that lets one through has answered, and each carries its status as an
 * annotation, so an `HttpApi` endpoint can declare it. The errors of the pair's effect (`SwitchError`) and of the
 * connection after the switch (`ConnectionError`) reach the program only: by then there is nothing to answer.
 *
 * | tag | what happened | the client sees |
 * |---|---|---|
 * | `NotUpgradable` | the request cannot be upgraded at all | 426 with `Upgrade`, or 405 with `Allow` |
 * | `ProtocolNotOffered` | it offers other protocols | 426 with `Upgrade` |
 * | `HandshakeRefused` | the protocol's own check said no | the protocol's status |
 * | `BodyOn101` | the 101 has content | 500 |
 * | `AlreadyUpgraded` | the connection was taken before | 500 |
 * | `UpgradeTimeout` | body, decision or claim took too long | 408 or 503 |
 * | `ServerDraining`, `TooManyConnections` | shutting down, over the limit | 503 with `Retry-After` |
 * | `ConnectionLost` | the peer went before the 101 was out | nothing |
 * | `NotSwitched` | the handler answered something else | what it answered |
 * | `ConnectionError` | the connection failed after the switch | nothing |
 *
 * Those of a client (`UpgradeClientError`) are met by whoever asks. A server that asks another one on behalf of its own
 * client answers with 502 or 504, or with what it was told.
 *
 * | tag | what happened |
 * |---|---|
 * | `InvalidRequest` | the request cannot be written as it is; nothing was sent, or the body failed |
 * | `ConnectFailed` | no connection: the name is unknown, the port refuses, the network is down |
 * | `TlsFailed` | no TLS over it: a certificate that is not trusted, no common version |
 * | `UpgradeTimeout` | connecting, the answer or the whole took too long |
 * | `ConnectionLost` | the server went before it had answered |
 * | `UpgradeRejected` | it answered something else: the whole response, with its body |
 * | `ProtocolMismatch` | it switched to what was not asked for, or what it sent is no HTTP |
 *
 * @since 0.1.0
 */
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"

const answer = (
  status: number,
  message: string,
  headers: Record<string, string>
): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  Effect.succeed(HttpServerResponse.text(`${message}\n`, { status, headers }))

const upgradeRequired = (tokens: ReadonlyArray<string>, message: string) =>
  // RFC 9110 §15.5.22: a 426 MUST name the protocols; §7.8: and Upgrade is a connection option
  answer(426, message, tokens.length === 0 ? {} : { connection: "upgrade", upgrade: tokens.join(", ") })

/**
 * The request cannot be switched to any protocol, whatever it offers.
 *
 * `reason` says why: `"NoUpgrade"` (no Upgrade field, or none that could be read), `"NoConnectionOption"` (Upgrade is
 * not listed in Connection, so it was not meant for this server: RFC 9110 §7.8), `"HttpVersion"` (HTTP/1.0, in which
 * Upgrade must be ignored), `"Method"` (the protocol cannot be entered by this method), `"Server"` (the request did not
 * come by an `UpgradeServer`, or not by the listener that was named).
 *
 * Answered with 426 and the protocols in `Upgrade`; with 405 and `Allow` where only the method is wrong.
 *
 * @since 0.1.0
 * @category errors
 */
export class NotUpgradable extends Schema.TaggedError<NotUpgradable>("effect-upgrade/NotUpgradable")(
  "NotUpgradable",
  {
    reason: Schema.Literal("NoUpgrade", "NoConnectionOption", "HttpVersion", "Method", "Server"),
    protocols: Schema.Array(Schema.String),
    methods: Schema.optional(Schema.Array(Schema.String)),
    description: Schema.String
  },
  HttpApiSchema.annotations({ status: 426 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return this.reason === "Method"
      ? answer(405, this.message, { allow: (this.methods ?? []).join(", ") })
      : upgradeRequired(this.protocols, this.message)
  }
}

/**
 * The client offers protocols, but none of those that the handler speaks. Answered with 426 and `Upgrade`.
 *
 * @since 0.1.0
 * @category errors
 */
export class ProtocolNotOffered extends Schema.TaggedError<ProtocolNotOffered>("effect-upgrade/ProtocolNotOffered")(
  "ProtocolNotOffered",
  {
    protocols: Schema.Array(Schema.String),
    offered: Schema.Array(Schema.String)
  },
  HttpApiSchema.annotations({ status: 426 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return `The client offered ${this.offered.join(", ") || "no protocol"}; this resource speaks ${this.protocols.join(
      ", "
    )}. Offer one of these in the Upgrade field.`
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return upgradeRequired(this.protocols, this.message)
  }
}

/**
 * The protocol's own check of the handshake failed: a key, a version, an origin, a field that may not be sent.
 *
 * Answered with `status` (a 4xx or 5xx; 400 by default in `Protocol.make`'s checks) and `headers`.
 *
 * @since 0.1.0
 * @category errors
 */
export class HandshakeRefused extends Schema.TaggedError<HandshakeRefused>("effect-upgrade/HandshakeRefused")(
  "HandshakeRefused",
  {
    protocol: Schema.String,
    status: Schema.Number,
    description: Schema.String,
    headers: Schema.optional(Schema.Record({ key: Schema.String, value: Schema.String }))
  },
  HttpApiSchema.annotations({ status: 400 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    if (this.status === 426 && this.headers?.upgrade === undefined) {
      return answer(426, this.message, { ...this.headers, connection: "upgrade", upgrade: this.protocol })
    }
    return answer(this.status, this.message, { ...this.headers })
  }
}

/**
 * The 101 has content, or a field that announces some (RFC 9110 §8.6, §15.2, RFC 9112 §6.1).
 *
 * `found` names it: `"Content-Length"`, `"Transfer-Encoding"`, or the kind of the body (`"Uint8Array"`, `"Stream"`,
 * `"FormData"`, `"Raw"`), whether it came from the handler, a middleware or a hook. No 101 is sent: the client gets a
 * 500, and the error goes to whoever awaits the connection; it is logged if nobody does.
 *
 * @since 0.1.0
 * @category errors
 */
export class BodyOn101 extends Schema.TaggedError<BodyOn101>("effect-upgrade/BodyOn101")(
  "BodyOn101",
  {
    protocol: Schema.String,
    found: Schema.String
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return (
      `The response that switches to ${this.protocol} has content (${this.found}); a 101 ends with its head. ` +
      "Send the bytes through the upgraded connection instead, and remove the body or the field."
    )
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 500 }))
  }
}

/**
 * The connection was switched, or its pair's effect claimed, before. Answered with 500 where an answer is still owed.
 *
 * @since 0.1.0
 * @category errors
 */
export class AlreadyUpgraded extends Schema.TaggedError<AlreadyUpgraded>("effect-upgrade/AlreadyUpgraded")(
  "AlreadyUpgraded",
  {
    protocol: Schema.String
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return (
      `The connection was already taken for ${this.protocol}. A request can be upgraded once, ` +
      "and the effect that yields its connection claimed once."
    )
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 500 }))
  }
}

/**
 * The effect of `Upgrade.respond` can yield no connection, since no switch took place.
 *
 * `reason` is `"Answered"` (the handler, a middleware or a hook answered another status), `"Failed"` (the handler failed
 * or died), `"Interrupted"`, or `"SelfAwait"` (the handler's own fiber awaits the connection before it has returned the
 * response, which could never end).
 *
 * @since 0.1.0
 * @category errors
 */
export class NotSwitched extends Schema.TaggedError<NotSwitched>("effect-upgrade/NotSwitched")(
  "NotSwitched",
  {
    protocol: Schema.String,
    reason: Schema.Literal("Answered", "Failed", "Interrupted", "SelfAwait"),
    status: Schema.optional(Schema.Number)
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    switch (this.reason) {
      case "Answered":
        return `The request was answered with ${this.status ?? "another response"} instead of the switch to ${this.protocol}.`
      case "Failed":
        return `The handler failed before the switch to ${this.protocol} was answered.`
      case "Interrupted":
        return `The handler was interrupted before the switch to ${this.protocol} was answered.`
      case "SelfAwait":
        return (
          "The handler awaits its own connection before it has returned the response, so the 101 could never be " +
          "sent. Return the response first and await the connection in another fiber, or use Upgrade.upgrade."
        )
    }
  }
}

/**
 * The connection ended before the 101 was out: the peer went, or an earlier pipelined response closed it.
 *
 * @since 0.1.0
 * @category errors
 */
export class ConnectionLost extends Schema.TaggedError<ConnectionLost>("effect-upgrade/ConnectionLost")(
  "ConnectionLost",
  {
    protocol: Schema.String,
    description: Schema.String
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return `The connection was lost before the switch to ${this.protocol}: ${this.description}`
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 500 }))
  }
}

/**
 * Something took too long (`stage`), in milliseconds.
 *
 * On a server: the request's body (`"Body"`), the handler's decision (`"Decision"`) or the claim of the connection
 * (`"Claim"`). Answered with 408 for the body and 503 for the decision; an unclaimed connection is closed.
 *
 * On a client: the connection, TLS included (`"Connect"`), the head of the answer (`"Head"`) or all of it together
 * (`"Total"`). A server that asked on behalf of its own client answers with 504.
 *
 * @since 0.1.0
 * @category errors
 */
export class UpgradeTimeout extends Schema.TaggedError<UpgradeTimeout>("effect-upgrade/UpgradeTimeout")(
  "UpgradeTimeout",
  {
    stage: Schema.Literal("Body", "Decision", "Claim", "Connect", "Head", "Total"),
    millis: Schema.Number
  },
  HttpApiSchema.annotations({ status: 503 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    switch (this.stage) {
      case "Body":
        return `The request's body did not arrive within ${this.millis} ms (bodyTimeout).`
      case "Decision":
        return `The handler did not answer the upgrade within ${this.millis} ms (decisionTimeout).`
      case "Claim":
        return `Nobody claimed the switched connection within ${this.millis} ms (claimTimeout).`
      case "Connect":
        return `The connection was not there within ${this.millis} ms (connectTimeout).`
      case "Head":
        return `The server did not answer within ${this.millis} ms (headTimeout).`
      case "Total":
        return `The upgrade took longer than ${this.millis} ms (timeout).`
    }
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    switch (this.stage) {
      case "Body":
        return answer(408, this.message, { connection: "close" })
      case "Decision":
      case "Claim":
        return answer(503, this.message, { connection: "close" })
      default:
        return Effect.succeed(HttpServerResponse.empty({ status: 504 }))
    }
  }
}

/**
 * The server is shutting down and switches no more connections. Answered with 503, `Retry-After` and
 * `Connection: close`.
 *
 * @since 0.1.0
 * @category errors
 */
export class ServerDraining extends Schema.TaggedError<ServerDraining>("effect-upgrade/ServerDraining")(
  "ServerDraining",
  {},
  HttpApiSchema.annotations({ status: 503 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return "The server is shutting down. Connect again in a moment."
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return answer(503, this.message, { connection: "close", "retry-after": "1" })
  }
}

/**
 * As many connections are switched as the server allows (`maxConnections`). Answered with 503, `Retry-After` and
 * `Connection: close`.
 *
 * @since 0.1.0
 * @category errors
 */
export class TooManyConnections extends Schema.TaggedError<TooManyConnections>("effect-upgrade/TooManyConnections")(
  "TooManyConnections",
  {
    limit: Schema.Number
  },
  HttpApiSchema.annotations({ status: 503 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return `The server holds as many upgraded connections as it may (${this.limit}). Try again later.`
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return answer(503, this.message, { connection: "close", "retry-after": "10" })
  }
}

/**
 * The other side answered a switch that was not asked for, or not as its protocol demands, or something that is no HTTP.
 * The connection is destroyed: nobody knows what its bytes mean.
 *
 * @since 0.1.0
 * @category errors
 */
export class ProtocolMismatch extends Schema.TaggedError<ProtocolMismatch>("effect-upgrade/ProtocolMismatch")(
  "ProtocolMismatch",
  {
    protocol: Schema.String,
    description: Schema.String
  },
  HttpApiSchema.annotations({ status: 502 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 502 }))
  }
}

const isClientRequest = (u: unknown): u is HttpClientRequest.HttpClientRequest =>
  Predicate.hasProperty(u, HttpClientRequest.TypeId)

const isClientResponse = (u: unknown): u is HttpClientResponse.HttpClientResponse =>
  Predicate.hasProperty(u, HttpClientResponse.TypeId)

/**
 * The server did not switch: it answered something else, a redirection included.
 *
 * `response` is the whole answer, with a body that can be read as text, JSON or a stream for as long as the Scope is
 * open. What nobody reads of it stays with the server.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Protocol, UpgradeClient } from "effect-upgrade"
 *
 * export const program = UpgradeClient.upgrade("http://localhost:3000/echo", Protocol.raw("echo")).pipe(
 *   Effect.catchTag("UpgradeRejected", (rejected) =>
 *     Effect.flatMap(rejected.response.text, (text) => Effect.logError(rejected.status, text))),
 *   Effect.scoped
 * )
 * ```
 *
 * @since 0.1.0
 * @category errors
 */
export class UpgradeRejected extends Schema.TaggedError<UpgradeRejected>("effect-upgrade/UpgradeRejected")(
  "UpgradeRejected",
  {
    protocol: Schema.String,
    request: Schema.declare(isClientRequest, { identifier: "HttpClientRequest" }),
    response: Schema.declare(isClientResponse, { identifier: "HttpClientResponse" })
  },
  HttpApiSchema.annotations({ status: 502 })
) {
  /**
   * The status of the answer.
   *
   * @since 0.1.0
   */
  get status(): number {
    return this.response.status
  }
  /** @since 0.1.0 */
  override get message(): string {
    return `The server answered ${this.status} instead of the switch to ${this.protocol}.`
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 502 }))
  }
}

/**
 * The request cannot be written: a control character in a field, an address that is no URL, a method that the protocol
 * is not entered by, a body that is longer or shorter than it says or that failed (its error is the `cause`).
 *
 * Nothing was sent, but where it is the body: then the connection is destroyed.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidRequest extends Schema.TaggedError<InvalidRequest>("effect-upgrade/InvalidRequest")(
  "InvalidRequest",
  {
    description: Schema.String,
    cause: Schema.optional(Schema.Defect)
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
}

/**
 * There is no connection to `address`: `reason` is `"Resolve"` (its name is not known) or `"Connect"` (nobody listens, or
 * the network does not lead there). What the system reported is the `cause`.
 *
 * @since 0.1.0
 * @category errors
 */
export class ConnectFailed extends Schema.TaggedError<ConnectFailed>("effect-upgrade/ConnectFailed")(
  "ConnectFailed",
  {
    address: Schema.String,
    reason: Schema.Literal("Resolve", "Connect"),
    description: Schema.String,
    cause: Schema.optional(Schema.Defect)
  },
  HttpApiSchema.annotations({ status: 502 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 502 }))
  }
}

/**
 * The connection could not be secured: a certificate that is not trusted or not of this name, no common version or
 * cipher, a peer that went or does not speak TLS. What was reported is the `cause`.
 *
 * @since 0.1.0
 * @category errors
 */
export class TlsFailed extends Schema.TaggedError<TlsFailed>("effect-upgrade/TlsFailed")(
  "TlsFailed",
  {
    description: Schema.String,
    cause: Schema.optional(Schema.Defect)
  },
  HttpApiSchema.annotations({ status: 502 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
  /** @since 0.1.0 */
  [HttpServerRespondable.symbol](): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.succeed(HttpServerResponse.empty({ status: 502 }))
  }
}

/**
 * The connection failed after the switch.
 *
 * `reason` is `"Reset"` (the peer reset it or broke the pipe), `"Closed"` (it was closed at this end, or ended in the
 * middle of what was to be read), `"Timeout"` (nothing moved for `writeTimeout` or `idleTimeout`), `"Busy"` (a second
 * reader at the same time), `"Read"` or `"Write"` (anything else that the system reported, in `cause`).
 *
 * @since 0.1.0
 * @category errors
 */
export class ConnectionError extends Schema.TaggedError<ConnectionError>("effect-upgrade/ConnectionError")(
  "ConnectionError",
  {
    reason: Schema.Literal("Read", "Write", "Reset", "Closed", "Timeout", "Busy"),
    description: Schema.String,
    cause: Schema.optional(Schema.Defect)
  },
  HttpApiSchema.annotations({ status: 500 })
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
}

/**
 * What a server's handshake can meet.
 *
 * @since 0.1.0
 * @category models
 */
export type UpgradeError =
  | NotUpgradable
  | ProtocolNotOffered
  | HandshakeRefused
  | BodyOn101
  | AlreadyUpgraded
  | ConnectionLost
  | UpgradeTimeout
  | ServerDraining
  | TooManyConnections

/**
 * What the pair's effect can meet instead of a connection.
 *
 * @since 0.1.0
 * @category models
 */
export type SwitchError = BodyOn101 | NotSwitched | ConnectionLost | AlreadyUpgraded | UpgradeTimeout

/**
 * What a client can meet instead of a connection.
 *
 * @since 0.1.0
 * @category models
 */
export type UpgradeClientError =
  | InvalidRequest
  | ConnectFailed
  | TlsFailed
  | UpgradeTimeout
  | ConnectionLost
  | UpgradeRejected
  | ProtocolMismatch

/**
 * The schema of `UpgradeError`, to declare all of them on an `HttpApi` endpoint at once.
 *
 * @since 0.1.0
 * @category schemas
 */
export const UpgradeError = Schema.Union(
  NotUpgradable,
  ProtocolNotOffered,
  HandshakeRefused,
  BodyOn101,
  AlreadyUpgraded,
  ConnectionLost,
  UpgradeTimeout,
  ServerDraining,
  TooManyConnections
)

const upgradeErrors: ReadonlyArray<abstract new (...args: ReadonlyArray<never>) => unknown> = UpgradeError.members

/**
 * Whether a value is one of the `UpgradeError`s.
 *
 * @since 0.1.0
 * @category guards
 */
export const isUpgradeError = (u: unknown): u is UpgradeError =>
  Predicate.isObject(u) && upgradeErrors.some((member) => u instanceof member)

/**
 * Whether a value is a `ConnectionError`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isConnectionError = (u: unknown): u is ConnectionError => u instanceof ConnectionError
