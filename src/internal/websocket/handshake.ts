/**
 * The handshake of RFC 6455 §4: what a server demands of a request and answers, what a client sends and demands of the
 * 101.
 *
 * That the method is GET, and that Upgrade and Connection ask for a websocket, is checked before any of this.
 *
 * @internal
 */
import * as Crypto from "node:crypto"
import * as Headers from "@effect/platform/Headers"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import { HandshakeRefused, ProtocolMismatch } from "../../UpgradeError.js"
import { isToken, withoutWhitespace } from "../http1/offers.js"
import { type DeflateOptions, mismatch, negotiate, offerDeflate, parseExtensions } from "./negotiate.js"

/** What a server demands and chooses, and what a client offers. */
export interface HandshakeOptions {
  /** In the order of preference. */
  readonly subprotocols?: ReadonlyArray<string> | undefined
  /** Whether there must be a subprotocol: a server refuses who offers none, a client a server that chooses none. */
  readonly requireSubprotocol?: boolean | undefined
  /** Whose pages may connect; see `originFault`. A server's option. Default `"same-host"`. */
  readonly origin?:
    | "same-host"
    | "any"
    | ReadonlyArray<string | RegExp>
    | ((origin: string, host: string | undefined) => boolean)
    | undefined
  /** permessage-deflate. Default `false`. */
  readonly compression?: boolean | DeflateOptions | undefined
}

const protocol = "websocket"

const deflateOptions = (options: HandshakeOptions): DeflateOptions | undefined =>
  options.compression === true ? {} : options.compression === false ? undefined : options.compression

// --- options ---

const integer = (name: string, value: number | undefined, min: number, max: number): void => {
  if (value !== undefined && !(Number.isInteger(value) && value >= min && value <= max)) {
    throw new TypeError(`WebSocket: ${name} is ${value}; expected an integer from ${min} to ${max}`)
  }
}

/** Throws a `TypeError` for options that no handshake could be made with: the program's fault, not a peer's. */
export const validate = (options: HandshakeOptions): void => {
  const subprotocols = options.subprotocols ?? []
  for (const subprotocol of subprotocols) {
    if (!isToken(subprotocol)) {
      throw new TypeError(`WebSocket: the subprotocol ${JSON.stringify(subprotocol)} is not a token (RFC 6455 §4.1)`)
    }
  }
  if (new Set(subprotocols).size < subprotocols.length) {
    throw new TypeError(`WebSocket: a subprotocol is listed twice in ${subprotocols.join(", ")}`)
  }
  if (options.requireSubprotocol === true && subprotocols.length === 0) {
    throw new TypeError("WebSocket: requireSubprotocol needs a list of subprotocols")
  }
  if (Array.isArray(options.origin)) {
    for (const allowed of options.origin) {
      if (typeof allowed === "string" && !isPattern(allowed)) {
        throw new TypeError(
          `WebSocket: ${JSON.stringify(allowed)} is not an origin; expected one such as "https://app.example", or ` +
            '"https://*.example.com" for any one label'
        )
      }
    }
  }
  const deflate = deflateOptions(options)
  if (deflate !== undefined) {
    integer("serverMaxWindowBits", deflate.serverMaxWindowBits, 8, 15)
    integer("clientMaxWindowBits", deflate.clientMaxWindowBits, 8, 15)
    integer("level", deflate.level, -1, 9)
    integer("memLevel", deflate.memLevel, 1, 9)
    integer("threshold", deflate.threshold, 0, Number.MAX_SAFE_INTEGER)
    integer("concurrency", deflate.concurrency, 1, Number.MAX_SAFE_INTEGER)
  }
}

// --- origin ---

// origin = scheme "://" host [ ":" port ], RFC 6454 §6.2; some schemes have no host (file://). A list or several fields
// have whitespace or a comma in them, and are none.
const serialized = /^[a-z][a-z0-9+.-]*:\/\/(?:\[[0-9a-f:.]+\]|[a-z0-9._~%!$&'()*+;=-]*)(?::[0-9]{1,5})?$/i
const maxOriginLength = 512

const isOrigin = (origin: string): boolean => origin.length <= maxOriginLength && serialized.test(origin)

/** An origin, or one in which a whole label of the host, but not the last, is `*`. */
const isPattern = (allowed: string): boolean => {
  const star = allowed.indexOf("*")
  return (
    allowed === "null" ||
    (isOrigin(allowed) && (star === -1 || (/[/.]/.test(allowed[star - 1]!) && /^\*\.[^*]+$/.test(allowed.slice(star)))))
  )
}

const defaultPort = (scheme: string): string | undefined =>
  scheme === "https" ? "443" : scheme === "http" ? "80" : undefined

const schemeOf = (origin: string): string => origin.slice(0, origin.indexOf("://"))

/** `host:port` in lower case, where the port is the default one if none is given. */
const withPort = (authority: string, port: string): string => {
  const colon = authority.lastIndexOf(":")
  return colon <= authority.lastIndexOf("]")
    ? `${authority}:${port}`
    : colon === authority.length - 1
      ? authority + port
      : authority
}

/** In lower case and without a default port, as browsers send it. */
const normalized = (origin: string): string => {
  const lower = origin.toLowerCase()
  const port = defaultPort(schemeOf(lower))
  return port !== undefined && lower.endsWith(`:${port}`) ? lower.slice(0, -port.length - 1) : lower
}

const isSameHost = (origin: string, host: string | undefined, encrypted: boolean): boolean => {
  const lower = origin.toLowerCase()
  const scheme = schemeOf(lower)
  const port = defaultPort(scheme)
  // Behind a proxy that ends TLS a page of https reaches a server without it. The reverse is a page that somebody on
  // the way may have written, and the cookies of its host's encrypted pages would come with it.
  if (host === undefined || port === undefined || (encrypted && scheme !== "https")) {
    return false
  }
  return withPort(lower.slice(scheme.length + 3), port) === withPort(host.toLowerCase(), port)
}

const isAllowed = (origin: string, allowed: string | RegExp): boolean => {
  if (typeof allowed !== "string") {
    // The whole of it, so that an unanchored pattern lets in no evil-example.com; and a new one has no lastIndex
    return new RegExp(`^(?:${allowed.source})$`, allowed.flags).test(origin)
  }
  const given = normalized(origin)
  const wanted = normalized(allowed)
  const star = wanted.indexOf("*")
  if (star === -1) {
    return given === wanted
  }
  const before = wanted.slice(0, star)
  const behind = wanted.slice(star + 1)
  return (
    given.startsWith(before) &&
    given.endsWith(behind) &&
    /^[^.:/[\]]+$/.test(given.slice(before.length, given.length - behind.length))
  )
}

/**
 * Why a page of this origin may not connect (RFC 6455 §10.2), or `undefined` if it may.
 *
 * No origin is no browser's. `"same-host"`: its host and port are those of the Host field, which behind a proxy is what
 * the proxy sends; over TLS its scheme is https. A list: `"https://app.example"`, `"https://*.example.com"` (one
 * label), or a RegExp that the whole origin matches. A function decides itself, also about `"null"`, which a sandboxed
 * page, a file and a redirect send. `"any"`: no check at all.
 */
const originFault = (
  request: HttpServerRequest,
  allowed: NonNullable<HandshakeOptions["origin"]>
): string | undefined => {
  const origin = request.headers.origin
  if (origin === undefined || allowed === "any") {
    return undefined
  }
  if (origin !== "null" && !isOrigin(origin)) {
    return `The Origin field (${origin.slice(0, 100)}) is not one origin.`
  }
  const host = request.headers.host
  if (typeof allowed === "function") {
    return allowed(origin, host) ? undefined : `Pages of ${origin} may not connect to ${host}.`
  }
  if (allowed === "same-host") {
    const { socket } = request.source as { readonly socket?: { readonly encrypted?: boolean } }
    return isSameHost(origin, host, socket?.encrypted === true)
      ? undefined
      : `The page's origin ${origin} is not that of the host ${host}. Allow it in the origin option if it should be.`
  }
  return allowed.some((one) => isAllowed(origin, one))
    ? undefined
    : `The page's origin ${origin} is not among those that may connect to ${host}.`
}

// --- server ---

// base64 of 16 bytes: 22 characters, the last of which has four bits that must be zero (RFC 4648 §3.5), and padding.
// Of two fields, which Node joins by a comma, nothing is left that matches.
const validKey = /^[A-Za-z0-9+/]{21}[AQgw]==$/

/** Sec-WebSocket-Accept, RFC 6455 §4.2.2. */
export const accept = (key: string): string =>
  Crypto.createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`, "latin1").digest("base64")

/** The subprotocols of a field, or `undefined` if it is not a list of different tokens (RFC 6455 §4.1). */
const parseSubprotocols = (field: string): ReadonlyArray<string> | undefined => {
  const subprotocols = field.split(",").map((element) => withoutWhitespace(element))
  return subprotocols.every(isToken) && new Set(subprotocols).size === subprotocols.length ? subprotocols : undefined
}

const refused = (status: number, description: string, headers?: Record<string, string>) =>
  Effect.fail(
    new HandshakeRefused(
      headers === undefined ? { protocol, status, description } : { protocol, status, description, headers }
    )
  )

/**
 * What a server demands (RFC 6455 §4.2.1), and the fields of its 101 (§4.2.2). Refused are:
 *
 * - with 426, naming 13, any Sec-WebSocket-Version but 13;
 * - with 403 an Origin that may not connect;
 * - with 400 a key that is not the base64 of 16 bytes, a malformed list of subprotocols or extensions, subprotocols of
 *   which the server speaks none (a browser would fail such a connection anyway), and none where one is required.
 */
export const check = (
  request: HttpServerRequest,
  options: HandshakeOptions
): Effect.Effect<Headers.Headers, HandshakeRefused> =>
  Effect.suspend(() => {
    const sent = request.headers
    if (sent["sec-websocket-version"] !== "13") {
      return refused(426, "This server speaks version 13 of WebSocket (RFC 6455). Send it in Sec-WebSocket-Version.", {
        "sec-websocket-version": "13"
      })
    }
    const key = sent["sec-websocket-key"]
    if (key === undefined || !validKey.test(key)) {
      return refused(400, "Sec-WebSocket-Key must be one field with the base64 of 16 bytes.")
    }
    const fault = originFault(request, options.origin ?? "same-host")
    if (fault !== undefined) {
      return refused(403, fault)
    }
    const headers: Record<string, string> = { "sec-websocket-accept": accept(key) }

    const spoken = options.subprotocols ?? []
    const subprotocolField = sent["sec-websocket-protocol"]
    if (subprotocolField !== undefined) {
      const offered = parseSubprotocols(subprotocolField)
      if (offered === undefined) {
        return refused(400, "Sec-WebSocket-Protocol must be a list of different tokens.")
      }
      const chosen = spoken.find((subprotocol) => offered.includes(subprotocol))
      if (chosen !== undefined) {
        headers["sec-websocket-protocol"] = chosen
      } else if (spoken.length > 0) {
        return refused(
          400,
          `This server speaks the subprotocols ${spoken.join(", ")}; the request offers none of them.`
        )
      }
    } else if (options.requireSubprotocol === true) {
      return refused(400, `Offer one of the subprotocols ${spoken.join(", ")} in Sec-WebSocket-Protocol.`)
    }

    const extensionField = sent["sec-websocket-extensions"]
    if (extensionField !== undefined) {
      const offers = parseExtensions(extensionField)
      if (offers === undefined) {
        return refused(400, "Sec-WebSocket-Extensions is malformed (RFC 6455 §9.1).")
      }
      const deflate = deflateOptions(options)
      const accepted = deflate === undefined ? undefined : negotiate(offers, deflate)
      if (accepted !== undefined) {
        headers["sec-websocket-extensions"] = accepted.response
      }
    }
    return Effect.succeed(Headers.unsafeFromRecord(headers))
  })

// --- client ---

const pool = Buffer.allocUnsafeSlow(16 * 128)
let used = pool.length

// The nonce of RFC 6455 §4.1, never the same bytes twice
const freshKey = (): string => {
  if (used === pool.length) {
    Crypto.randomFillSync(pool)
    used = 0
  }
  used += 16
  return pool.toString("base64", used - 16, used)
}

/** The fields that a client sends (RFC 6455 §4.1), with a fresh key each time. */
export const offer = (options: HandshakeOptions): Headers.Headers => {
  const headers: Record<string, string> = { "sec-websocket-key": freshKey(), "sec-websocket-version": "13" }
  if (options.subprotocols !== undefined && options.subprotocols.length > 0) {
    headers["sec-websocket-protocol"] = options.subprotocols.join(", ")
  }
  const deflate = deflateOptions(options)
  if (deflate !== undefined) {
    headers["sec-websocket-extensions"] = offerDeflate(deflate)
  }
  return Headers.unsafeFromRecord(headers)
}

/** Why a client must fail the connection for this 101 to what it sent (RFC 6455 §4.1); `undefined` if it need not. */
export const verify = (
  response: { readonly headers: Headers.Headers },
  sent: Headers.Headers,
  options: HandshakeOptions
): ProtocolMismatch | undefined => {
  const mismatched = (description: string) => new ProtocolMismatch({ protocol, description })
  const given = response.headers["sec-websocket-accept"]
  const key = sent["sec-websocket-key"]
  if (key === undefined) {
    return mismatched("The request was sent without a Sec-WebSocket-Key, so that no answer to it can be verified.")
  }
  const expected = accept(key)
  if (given !== expected) {
    return mismatched(
      `The server's Sec-WebSocket-Accept is ${given ?? "missing"}; expected ${expected}. It did not read this key.`
    )
  }
  const chosen = response.headers["sec-websocket-protocol"]
  const offered = sent["sec-websocket-protocol"]
  if (chosen === undefined) {
    if (options.requireSubprotocol === true) {
      return mismatched(`The server chose none of the subprotocols offered (${offered ?? "none"}).`)
    }
  } else if (offered === undefined || !parseSubprotocols(offered)?.includes(chosen)) {
    return mismatched(`The server chose the subprotocol ${chosen}; offered was ${offered ?? "none"}.`)
  }
  const fault = mismatch(response.headers["sec-websocket-extensions"], sent["sec-websocket-extensions"])
  return fault === undefined ? undefined : mismatched(`The server's Sec-WebSocket-Extensions ${fault}.`)
}
