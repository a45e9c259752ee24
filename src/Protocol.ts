/**
 * What a connection may become: the token that names a protocol in the Upgrade field, and its rules of the handshake.
 *
 * One value serves both sides. A server matches it against what the client offers, runs `check` on the request and puts
 * the fields that it yields on the 101; a client sends `offer` and runs `verify` on the 101. Most protocols need none of
 * that, and are `raw`.
 *
 * Offers are matched by RFC 9110 §7.8: the name without regard to case, the version exactly.
 *
 * @since 0.1.0
 */
import * as Headers from "@effect/platform/Headers"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import { parseAuthority } from "./internal/authority.js"
import { isFieldValue, isProtocolToken } from "./internal/http1/offers.js"
import * as UpgradeError from "./UpgradeError.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-upgrade/Protocol")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * A protocol that a connection may be switched to.
 *
 * - `token`: `name` or `name/version`, as in the Upgrade field.
 * - `methods`: the request methods by which it can be entered; `undefined` for any.
 * - `statusText`: the reason phrase of the 101.
 * - `check`: what a server demands of the request; yields the fields of its own that the 101 carries.
 * - `offer`: the fields that a client sends beside `Upgrade`.
 * - `verify`: what a client demands of the 101, given the fields that it sent.
 *
 * @since 0.1.0
 * @category models
 */
export interface Protocol<out Token extends string = string, out R = never> extends Inspectable.Inspectable, Pipeable {
  readonly [TypeId]: TypeId
  readonly token: Token
  readonly name: string
  readonly version: string | undefined
  readonly methods: ReadonlyArray<string> | undefined
  readonly statusText: string
  readonly check: (
    request: HttpServerRequest.HttpServerRequest
  ) => Effect.Effect<Headers.Headers, UpgradeError.HandshakeRefused, R>
  readonly offer: Effect.Effect<Headers.Headers>
  readonly verify: (
    response: { readonly status: number; readonly headers: Headers.Headers },
    sent: Headers.Headers
  ) => Effect.Effect<void, UpgradeError.ProtocolMismatch>
}

/**
 * @since 0.1.0
 */
export declare namespace Protocol {
  /**
   * Any protocol, whatever its check needs.
   *
   * @since 0.1.0
   * @category models
   */
  export type Any = Protocol<string, any>
}

/**
 * One protocol, or several in the server's order of preference.
 *
 * @since 0.1.0
 * @category models
 */
export type Protocols = Protocol.Any | readonly [Protocol.Any, ...ReadonlyArray<Protocol.Any>]

/**
 * The tokens of one protocol or of a list, as a union.
 *
 * @since 0.1.0
 * @category models
 */
export type Tokens<P extends Protocols> =
  P extends Protocol<infer Token, any>
    ? Token
    : P extends ReadonlyArray<infer Member>
      ? Member extends Protocol<infer Token, any>
        ? Token
        : never
      : never

/**
 * The services that the checks of one protocol or of a list need; `never` for `raw`.
 *
 * @since 0.1.0
 * @category models
 */
export type Needs<P extends Protocols> =
  P extends Protocol<string, infer R>
    ? R
    : P extends ReadonlyArray<infer Member>
      ? Member extends Protocol<string, infer R>
        ? R
        : never
      : never

/**
 * What `make` takes. All but `token` may be left out.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Token extends string, R> {
  readonly token: Token
  readonly methods?: ReadonlyArray<string> | undefined
  readonly statusText?: string | undefined
  readonly check?:
    | ((
        request: HttpServerRequest.HttpServerRequest
      ) => Effect.Effect<Headers.Input | void, UpgradeError.HandshakeRefused, R>)
    | undefined
  readonly offer?: Headers.Input | Effect.Effect<Headers.Input> | undefined
  readonly verify?:
    | ((
        response: { readonly status: number; readonly headers: Headers.Headers },
        sent: Headers.Headers
      ) => Effect.Effect<void, UpgradeError.ProtocolMismatch>)
    | undefined
}

const noHeaders = Effect.succeed(Headers.empty)

const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Protocol.Any) {
    return { _id: "effect-upgrade/Protocol", token: this.token }
  },
  pipe() {
    return pipeArguments(this, arguments)
  }
}

const unsafeMake = <Token extends string, R>(
  fields: Omit<Protocol<Token, R>, TypeId | keyof Inspectable.Inspectable | "pipe">
): Protocol<Token, R> => Object.assign(Object.create(Proto), fields)

/**
 * Whether a value is a protocol.
 *
 * @since 0.1.0
 * @category guards
 */
export const isProtocol = (u: unknown): u is Protocol.Any => Predicate.hasProperty(u, TypeId)

/**
 * A protocol with rules of its own.
 *
 * Throws a `TypeError` where `token` is not `name` or `name/version` (RFC 9110 §7.8), or `statusText` could not stand in
 * a status line: both are the program's, not a peer's.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Protocol, UpgradeError } from "effect-upgrade"
 *
 * // What Docker's daemon does: the token "tcp", entered by POST, answered "101 UPGRADED".
 * export const docker = Protocol.make({
 *   token: "tcp",
 *   methods: ["POST"],
 *   statusText: "UPGRADED",
 *   check: (request) =>
 *     request.headers["content-type"] === "application/json"
 *       ? Effect.succeed({ "content-type": "application/vnd.docker.raw-stream" })
 *       : Effect.fail(
 *         new UpgradeError.HandshakeRefused({ protocol: "tcp", status: 415, description: "Send the exec as JSON." })
 *       )
 * })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <const Token extends string, R = never>(options: Options<Token, R>): Protocol<Token, R> => {
  if (!isProtocolToken(options.token)) {
    throw new TypeError(`Protocol.make: "${options.token}" is not a protocol token; expected name or name/version`)
  }
  if (options.statusText !== undefined && !isFieldValue(options.statusText)) {
    throw new TypeError("Protocol.make: statusText has a character that may not stand in a status line")
  }
  const slash = options.token.indexOf("/")
  const { check, offer, verify } = options
  return unsafeMake({
    token: options.token,
    name: slash < 0 ? options.token : options.token.slice(0, slash),
    version: slash < 0 ? undefined : options.token.slice(slash + 1),
    methods: options.methods?.map((method) => method.toUpperCase()),
    statusText: options.statusText ?? "Switching Protocols",
    check:
      check === undefined
        ? () => noHeaders
        : (request) => Effect.map(check(request), (headers) => Headers.fromInput(headers ?? undefined)),
    offer:
      offer === undefined
        ? noHeaders
        : Effect.isEffect(offer)
          ? Effect.map(offer as Effect.Effect<Headers.Input>, Headers.fromInput)
          : Effect.succeed(Headers.fromInput(offer)),
    verify: verify ?? (() => Effect.void)
  })
}

/**
 * A protocol that is nothing but its token: bytes, in both directions, from the end of the 101's head.
 *
 * @example
 * ```ts
 * import { Protocol } from "effect-upgrade"
 *
 * export const echo = Protocol.raw("echo")        // Protocol<"echo">
 * export const chat = Protocol.raw("chat/2")      // matches only an offer of chat in version 2
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const raw = <const Token extends string>(token: Token): Protocol<Token> => make({ token })

/**
 * The tunnel of a CONNECT request (RFC 9110 §9.3.6): no Upgrade field, entered by the method alone, and answered 200.
 *
 * The target must be an authority with a port: any other is refused with 400. Where to connect, and whether the client
 * may, is for the handler to decide from the request's `url`.
 *
 * @since 0.1.0
 * @category protocols
 */
export const connect: Protocol<"CONNECT"> = make({
  token: "CONNECT",
  methods: ["CONNECT"],
  statusText: "Connection Established",
  check: (request) =>
    parseAuthority(request.originalUrl) !== undefined
      ? Effect.succeed(Headers.empty)
      : Effect.fail(
          new UpgradeError.HandshakeRefused({
            protocol: "CONNECT",
            status: 400,
            description: "CONNECT needs host:port as its target, with a port between 1 and 65535."
          })
        )
})
