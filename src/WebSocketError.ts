/**
 * Every way in which a websocket can fail, once it is one.
 *
 * The handshake fails with what any switch fails with (`UpgradeError`). After it a websocket fails with one of these, or
 * with the `ConnectionError` of what carries it. Whoever reads is told once, after the last message that came before;
 * whoever writes is told the same from then on.
 *
 * | tag | what happened | the peer is sent |
 * |---|---|---|
 * | `WebSocketClosed` | it was closed, by the peer's Close or this end's, or ended without one (1006) | its own code in answer |
 * | `ProtocolViolation` | the peer broke the protocol: `clause` says which rule | 1002, 1007 or 1008 |
 * | `MessageTooBig` | a message was over `maxMessageSize` | 1009 |
 * | `WebSocketTimeout` | no answer to a ping or a Close, or no message, for too long | 1001, or nothing |
 * | `ConnectionError` | the connection below failed | nothing |
 *
 * @since 0.1.0
 */
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import { ConnectionError } from "./UpgradeError.js"

/**
 * The websocket is closed.
 *
 * `by` says whose Close came first. `code` and `reason` are what the peer's Close said: 1005 where it said nothing, and
 * 1006 where the connection ended without a Close (RFC 6455 §7.1.5); of this end's own Close where the peer has not
 * answered it yet.
 *
 * @since 0.1.0
 * @category errors
 */
export class WebSocketClosed extends Schema.TaggedError<WebSocketClosed>("effect-upgrade/WebSocketClosed")(
  "WebSocketClosed",
  {
    code: Schema.Number,
    reason: Schema.String,
    by: Schema.Literal("Peer", "Self")
  }
) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.code === 1006
      ? "The connection ended without a Close frame (1006)."
      : `The websocket was closed by ${this.by === "Peer" ? "the peer" : "this end"} with ${this.code}${
          this.reason === "" ? "" : ` (${this.reason})`
        }.`
  }
}

/**
 * The peer broke the protocol. `code` is what it was told in the Close: 1002, 1007 for text that is no UTF-8, 1008 for
 * too many frames or fragments. `clause` is the rule, such as `"RFC 6455 §5.1"`.
 *
 * @since 0.1.0
 * @category errors
 */
export class ProtocolViolation extends Schema.TaggedError<ProtocolViolation>("effect-upgrade/ProtocolViolation")(
  "ProtocolViolation",
  {
    code: Schema.Number,
    clause: Schema.String,
    description: Schema.String
  }
) {
  /** @since 0.1.0 */
  override get message(): string {
    return `${this.description} (${this.clause})`
  }
}

/**
 * The peer sent, or announced, a message of more than `limit` bytes; it was told 1009. Nothing of it was kept.
 *
 * @since 0.1.0
 * @category errors
 */
export class MessageTooBig extends Schema.TaggedError<MessageTooBig>("effect-upgrade/MessageTooBig")("MessageTooBig", {
  limit: Schema.Number,
  description: Schema.String
}) {
  /** @since 0.1.0 */
  override get message(): string {
    return this.description
  }
}

/**
 * The peer was silent for too long: it did not answer a Close for `closeTimeout`, or a ping of the heartbeat, or no
 * message went either way for `idleTimeout`. `stage` says which.
 *
 * @since 0.1.0
 * @category errors
 */
export class WebSocketTimeout extends Schema.TaggedError<WebSocketTimeout>("effect-upgrade/WebSocketTimeout")(
  "WebSocketTimeout",
  {
    stage: Schema.Literal("Close", "Heartbeat", "Idle"),
    millis: Schema.Number
  }
) {
  /** @since 0.1.0 */
  override get message(): string {
    switch (this.stage) {
      case "Close":
        return `The peer did not answer the Close for ${this.millis} ms (closeTimeout).`
      case "Heartbeat":
        return `The peer did not answer a ping for ${this.millis} ms (heartbeat).`
      case "Idle":
        return `No message went either way for ${this.millis} ms (idleTimeout).`
    }
  }
}

/**
 * What a websocket can fail with.
 *
 * @since 0.1.0
 * @category models
 */
export type WebSocketError = WebSocketClosed | ProtocolViolation | MessageTooBig | WebSocketTimeout | ConnectionError

/**
 * The schema of `WebSocketError`.
 *
 * @since 0.1.0
 * @category schemas
 */
export const WebSocketError = Schema.Union(
  WebSocketClosed,
  ProtocolViolation,
  MessageTooBig,
  WebSocketTimeout,
  ConnectionError
)

const webSocketErrors: ReadonlyArray<abstract new (...args: ReadonlyArray<never>) => unknown> = WebSocketError.members

/**
 * Whether a value is one of the `WebSocketError`s.
 *
 * @since 0.1.0
 * @category guards
 */
export const isWebSocketError = (u: unknown): u is WebSocketError =>
  Predicate.isObject(u) && webSocketErrors.some((member) => u instanceof member)
