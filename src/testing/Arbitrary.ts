/**
 * What an HTTP/1.1 server may meet, as arbitraries of FastCheck: whatever is generated here is well-formed by RFC 9110
 * and 9112, however odd it looks, and comes with what a right parser makes of it.
 *
 * All of it is bytes or strings in which one character is one byte. What is generated shrinks to what is plain. One thing
 * is left out, since Node before version 26 does not read it: a tab behind a value of Connection, Content-Length and the
 * like.
 *
 * @example
 * ```ts
 * import { Arbitrary } from "effect-upgrade/testing"
 * import { FastCheck } from "effect"
 *
 * FastCheck.assert(
 *   FastCheck.property(Arbitrary.request(), ({ bytes }) => bytes.length > 0)
 * )
 * ```
 *
 * @since 0.1.0
 */

import { Buffer } from "node:buffer"
import * as FastCheck from "effect/FastCheck"

/**
 * A field of a head: its name and its value, without the whitespace around it.
 *
 * @since 0.1.0
 * @category models
 */
export type Field = readonly [name: string, value: string]

/**
 * One protocol of an Upgrade field, as RFC 9110 §7.8 has it: `token` is what was sent, `name["/"version]`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Offer {
  readonly name: string
  readonly version: string | undefined
  readonly token: string
}

/**
 * The values of one or more Upgrade lines, and the offers in them, in order.
 *
 * @since 0.1.0
 * @category models
 */
export interface Upgrade {
  readonly lines: ReadonlyArray<string>
  readonly offers: ReadonlyArray<Offer>
}

/**
 * The head of a request: the bytes with the empty line, and what a parser makes of them. `headers` are in the order and
 * the case in which they stand there.
 *
 * @since 0.1.0
 * @category models
 */
export interface RequestHead {
  readonly bytes: Uint8Array
  readonly method: string
  readonly target: string
  readonly headers: ReadonlyArray<Field>
}

/**
 * The body of a message: the fields that frame it, its bytes on the wire, its content, and the trailer fields behind it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Body {
  readonly headers: ReadonlyArray<Field>
  readonly bytes: Uint8Array
  readonly content: Uint8Array
  readonly trailers: ReadonlyArray<Field>
}

/**
 * A whole request: `bytes` are its head and its body, `headers` the fields of both.
 *
 * @since 0.1.0
 * @category models
 */
export interface Request extends RequestHead {
  readonly content: Uint8Array
  readonly trailers: ReadonlyArray<Field>
}

/**
 * Several requests in a row: `bytes` are those of all.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pipeline {
  readonly bytes: Uint8Array
  readonly requests: ReadonlyArray<Request>
}

/**
 * What `requestHead` takes.
 *
 * - `methods`: the methods to choose from. Default: every common one but CONNECT, whose target is no path.
 * - `target`: the request target. Default: a path with or without a query, sometimes in absolute form.
 * - `headers`: fields that must be in it, anywhere among the others. Default: none.
 *
 * @since 0.1.0
 * @category models
 */
export interface RequestOptions {
  readonly methods?: readonly [string, ...ReadonlyArray<string>] | undefined
  readonly target?: FastCheck.Arbitrary<string> | undefined
  readonly headers?: FastCheck.Arbitrary<ReadonlyArray<Field>> | undefined
}

const letters = "abcdefghijklmnopqrstuvwxyz"
const alphanumeric = `${letters}${letters.toUpperCase()}0123456789`
const ascii = Array.from({ length: 0x5f }, (_, i) => String.fromCharCode(0x20 + i)).join("")
const obsText = Array.from({ length: 0x80 }, (_, i) => String.fromCharCode(0x80 + i)).join("")

const oneOf = (characters: string): FastCheck.Arbitrary<string> => FastCheck.constantFrom(...characters)

const stringOf = (character: FastCheck.Arbitrary<string>, minLength: number, maxLength: number) =>
  FastCheck.string({ unit: character, minLength, maxLength })

// Shrinks to the first alternative
const crossShrink = { withCrossShrink: true } as const

const mostly = <A>(usual: FastCheck.Arbitrary<A>, odd: FastCheck.Arbitrary<A>) =>
  FastCheck.oneof(crossShrink, { weight: 4, arbitrary: usual }, { weight: 1, arbitrary: odd })

/** The same letters, each in either case. */
const anyCase = (text: string): FastCheck.Arbitrary<string> =>
  mostly(FastCheck.constant(text), FastCheck.mixedCase(FastCheck.constant(text)))

const bytesOf = (text: string): Uint8Array => Buffer.from(text, "latin1")

/**
 * A token: 1 to 12 of the characters that RFC 9110 §5.6.2 allows.
 *
 * @since 0.1.0
 * @category fields
 */
export const token: FastCheck.Arbitrary<string> = stringOf(mostly(oneOf(alphanumeric), oneOf("!#$%&'*+-.^_`|~")), 1, 12)

// Those that frame a message, steer the connection, or make a server answer otherwise
const special = new Set([
  "connection",
  "content-length",
  "expect",
  "host",
  "http2-settings",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade"
])

/**
 * A field name in any case that means nothing: none that frames a message or steers a connection.
 *
 * @since 0.1.0
 * @category fields
 */
export const fieldName: FastCheck.Arbitrary<string> = FastCheck.oneof(
  anyCase("X-Name"),
  anyCase("Accept"),
  token
).filter((name) => !special.has(name.toLowerCase()))

/**
 * A field value (RFC 9110 §5.5), empty ones among them: visible characters, obs-text, and whitespace within.
 *
 * @since 0.1.0
 * @category fields
 */
export const fieldValue: FastCheck.Arbitrary<string> = stringOf(
  mostly(oneOf(alphanumeric), FastCheck.oneof(oneOf(ascii), oneOf(obsText), FastCheck.constant("\t"))),
  0,
  24
).map((value) => value.replace(/^[\t ]+|[\t ]+$/g, ""))

/**
 * A field that means nothing to a server.
 *
 * @since 0.1.0
 * @category fields
 */
export const field: FastCheck.Arbitrary<Field> = FastCheck.tuple(fieldName, fieldValue)

/** OWS, RFC 9110 §5.6.3. */
const whitespace: FastCheck.Arbitrary<string> = mostly(FastCheck.constant(""), stringOf(oneOf(" \t"), 0, 3))

/** Before version 26, Node does not read a value that means something to its parser when a tab stands behind it. */
const withoutTabs = (whitespace: string): string => whitespace.replaceAll("\t", " ")

/** The lines of a list (RFC 9110 §5.6.1): whitespace around the elements, empty ones between them, over several lines. */
const listLines = <A>(
  elements: FastCheck.Arbitrary<ReadonlyArray<A>>,
  textOf: (element: A) => string,
  spaceAfter: (whitespace: string) => string = (whitespace) => whitespace
): FastCheck.Arbitrary<{ readonly lines: ReadonlyArray<string>; readonly elements: ReadonlyArray<A> }> =>
  elements.chain((elements) =>
    FastCheck.array(
      FastCheck.record({
        before: whitespace,
        after: whitespace,
        empty: mostly(FastCheck.constant(""), FastCheck.constantFrom(",", " ,", ",\t,")),
        newLine: mostly(FastCheck.constant(false), FastCheck.boolean())
      }),
      { minLength: elements.length, maxLength: elements.length }
    ).map((spacings) => {
      const lines: Array<string> = []
      elements.forEach((element, i) => {
        const { after, before, empty, newLine } = spacings[i]!
        const text = `${empty}${before}${textOf(element)}${spaceAfter(after)}`
        if (i === 0 || newLine) {
          lines.push(text)
        } else {
          lines[lines.length - 1] += `,${text}`
        }
      })
      // What stands around a whole value is no part of it
      return { lines: lines.map((line) => line.replace(/^[\t ]+|[\t ]+$/g, "")), elements }
    })
  )

/**
 * An offer of a protocol, with a version or without: now and then one that is in use, in any case.
 *
 * @since 0.1.0
 * @category upgrades
 */
export const offer: FastCheck.Arbitrary<Offer> = FastCheck.record({
  name: FastCheck.oneof(token, anyCase("websocket"), FastCheck.constantFrom("h2c", "TLS", "echo")),
  version: FastCheck.option(FastCheck.oneof(FastCheck.constantFrom("1.0", "1.2", "2"), token), { nil: undefined })
}).map(({ name, version }) => ({ name, version, token: version === undefined ? name : `${name}/${version}` }))

/**
 * The lines of an Upgrade field with what `offers` yields, in odd spacing, over one line or several. Default: one to
 * five offers of any kind.
 *
 * @since 0.1.0
 * @category upgrades
 */
export const upgrade = (
  offers: FastCheck.Arbitrary<ReadonlyArray<Offer>> = FastCheck.array(offer, { minLength: 1, maxLength: 5 })
): FastCheck.Arbitrary<Upgrade> =>
  listLines(offers, ({ token }) => token).map(({ elements, lines }) => ({ lines, offers: elements }))

/**
 * The lines of a Connection field with the option `upgrade` in any case, sometimes among others, in odd spacing.
 *
 * @since 0.1.0
 * @category upgrades
 */
export const connection: FastCheck.Arbitrary<ReadonlyArray<string>> = FastCheck.tuple(
  anyCase("Upgrade"),
  FastCheck.array(FastCheck.oneof(anyCase("keep-alive"), FastCheck.constantFrom("x-hop", "HTTP2-Settings")), {
    maxLength: 2
  }),
  FastCheck.nat({ max: 2 })
).chain(([upgrade, others, at]) =>
  listLines(
    FastCheck.constant([...others.slice(0, at), upgrade, ...others.slice(at)]),
    (option) => option,
    withoutTabs
  ).map(({ lines }) => lines)
)

/**
 * The fields with which a request asks for an upgrade, to be given to `requestHead` or `request` as `headers`. Default:
 * any offers.
 *
 * @since 0.1.0
 * @category upgrades
 */
export const upgradeFields = (
  upgrades: FastCheck.Arbitrary<Upgrade> = upgrade()
): FastCheck.Arbitrary<ReadonlyArray<Field>> =>
  FastCheck.record({
    upgrade: upgrades,
    connection,
    upgradeName: anyCase("Upgrade"),
    connectionName: anyCase("Connection")
  }).map(({ connection, connectionName, upgrade, upgradeName }) => [
    ...connection.map((line): Field => [connectionName, line]),
    ...upgrade.lines.map((line): Field => [upgradeName, line])
  ])

const pathCharacter = mostly(oneOf(alphanumeric), oneOf("-._~!$&'()*+,;=:@"))

const originForm: FastCheck.Arbitrary<string> = FastCheck.tuple(
  FastCheck.array(FastCheck.oneof(stringOf(pathCharacter, 1, 8), FastCheck.constant("%20")), { maxLength: 3 }),
  FastCheck.option(stringOf(FastCheck.oneof(pathCharacter, oneOf("/?")), 0, 12), { nil: undefined })
).map(([segments, query]) => `/${segments.join("/")}${query === undefined ? "" : `?${query}`}`)

const anyTarget = mostly(
  originForm,
  originForm.map((path) => `http://example.com${path}`)
)

const commonMethods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"] as const

/** Each element of `others` at a place of its own among `base`, which keeps its order. */
const interleave = <A>(base: ReadonlyArray<A>, others: ReadonlyArray<A>, at: ReadonlyArray<number>): Array<A> => {
  const result = [...base]
  others.forEach((other, i) => result.splice(at[i]! % (result.length + 1), 0, other))
  return result
}

interface HeadParts {
  readonly method: string
  readonly target: string
  readonly headers: ReadonlyArray<Field>
  readonly spacing: ReadonlyArray<Field>
}

const headOf = ({ headers, method, spacing, target }: HeadParts): RequestHead => {
  const lines = headers.map(([name, value], i) => {
    const [before, after] = spacing[i % spacing.length]!
    return `${name}:${before}${value}${special.has(name.toLowerCase()) ? withoutTabs(after) : after}\r\n`
  })
  return { bytes: bytesOf(`${method} ${target} HTTP/1.1\r\n${lines.join("")}\r\n`), method, target, headers }
}

const maxOtherFields = 6

/**
 * The head of an HTTP/1.1 request with a Host: fields in any order, names in any case, whitespace around the values. It
 * has no body and asks for nothing, unless `headers` say so.
 *
 * @since 0.1.0
 * @category requests
 */
export const requestHead = (options: RequestOptions = {}): FastCheck.Arbitrary<RequestHead> =>
  FastCheck.record({
    method: FastCheck.constantFrom(...(options.methods ?? commonMethods)),
    target: options.target ?? anyTarget,
    required: options.headers ?? FastCheck.constant<ReadonlyArray<Field>>([]),
    host: FastCheck.tuple(anyCase("Host"), FastCheck.constantFrom("example.com", "localhost:3000", "[::1]:80")),
    others: FastCheck.array(field, { maxLength: maxOtherFields }),
    at: FastCheck.array(FastCheck.nat(), { minLength: maxOtherFields + 1, maxLength: maxOtherFields + 1 }),
    spacing: FastCheck.array(FastCheck.tuple(mostly(FastCheck.constant(" "), whitespace), whitespace), {
      minLength: 1,
      maxLength: 5
    })
  }).map(({ at, host, method, others, required, spacing, target }) =>
    headOf({ method, target, spacing, headers: interleave(required, [host, ...others], at) })
  )

/**
 * Bytes of any value: up to `maxLength`, which is 256 by default.
 *
 * @since 0.1.0
 * @category bytes
 */
export const payload = (maxLength = 256): FastCheck.Arbitrary<Uint8Array> => FastCheck.uint8Array({ maxLength })

/** Every byte alone makes a run slow, and shows nothing that is not seen in fewer. */
const maxSingleBytes = 2048

/**
 * Where so many bytes are split: offsets between 1 and `length - 1`, ascending, none twice. No split, a split at every
 * byte (of up to 2,048), or up to eight somewhere. For `Peer.sendSplit`.
 *
 * @since 0.1.0
 * @category bytes
 */
export const splits = (length: number): FastCheck.Arbitrary<ReadonlyArray<number>> => {
  const none = FastCheck.constant<ReadonlyArray<number>>([])
  if (length < 2) {
    return none
  }
  const some = FastCheck.uniqueArray(FastCheck.integer({ min: 1, max: length - 1 }), {
    minLength: 1,
    maxLength: Math.min(8, length - 1)
  }).map((points) => points.sort((a, b) => a - b))
  return length > maxSingleBytes
    ? FastCheck.oneof(crossShrink, none, some)
    : FastCheck.oneof(
        crossShrink,
        none,
        { weight: 3, arbitrary: some },
        FastCheck.constant(Array.from({ length: length - 1 }, (_, i) => i + 1))
      )
}

/**
 * Bytes, and where they are split.
 *
 * @since 0.1.0
 * @category bytes
 */
export const split = <A extends { readonly bytes: Uint8Array }>(
  arbitrary: FastCheck.Arbitrary<A>
): FastCheck.Arbitrary<A & { readonly at: ReadonlyArray<number> }> =>
  arbitrary.chain((value) => splits(value.bytes.length).map((at) => ({ ...value, at })))

const noBody: Body = { headers: [], bytes: new Uint8Array(0), content: new Uint8Array(0), trailers: [] }

const fixedBody = (maxLength: number): FastCheck.Arbitrary<Body> =>
  FastCheck.tuple(payload(maxLength), anyCase("Content-Length")).map(([content, name]) => ({
    headers: [[name, String(content.length)]],
    bytes: content,
    content,
    trailers: []
  }))

// RFC 9110 §5.6.4; a line break cannot be in it, quoted or not
const quotedString = stringOf(
  oneOf(ascii).map((character) => (character === '"' || character === "\\" ? `\\${character}` : character)),
  0,
  8
).map((text) => `"${text}"`)

const extensions: FastCheck.Arbitrary<string> = mostly(
  FastCheck.constant(""),
  FastCheck.array(FastCheck.tuple(token, FastCheck.option(FastCheck.oneof(token, quotedString), { nil: undefined })), {
    minLength: 1,
    maxLength: 2
  }).map((all) => all.map(([name, value]) => (value === undefined ? `;${name}` : `;${name}=${value}`)).join(""))
)

const chunkSize = (size: number): FastCheck.Arbitrary<string> =>
  FastCheck.tuple(mostly(FastCheck.constant(""), FastCheck.constantFrom("0", "000")), anyCase(size.toString(16))).map(
    ([zeros, digits]) => `${zeros}${digits}`
  )

const chunkedBody = (maxLength: number): FastCheck.Arbitrary<Body> =>
  payload(maxLength)
    .chain((content) => FastCheck.tuple(FastCheck.constant(content), splits(content.length)))
    .chain(([content, at]) => {
      const points = content.length === 0 ? [0] : [0, ...at, content.length]
      const chunks = points.slice(1).map((end, i) => content.subarray(points[i], end))
      return FastCheck.record({
        name: anyCase("Transfer-Encoding"),
        coding: anyCase("chunked"),
        sizes: FastCheck.tuple(...[...chunks.map(({ length }) => length), 0].map(chunkSize)),
        extensions: FastCheck.array(extensions, { minLength: 1, maxLength: 4 }),
        trailers: mostly(
          FastCheck.constant<ReadonlyArray<Field>>([]),
          FastCheck.array(field, { minLength: 1, maxLength: 2 })
        )
      }).map(
        ({ coding, extensions, name, sizes, trailers }): Body => ({
          headers: [[name, coding]],
          bytes: Buffer.concat([
            ...sizes.flatMap((size, i) => [
              bytesOf(`${size}${extensions[i % extensions.length]}\r\n`),
              ...(i < chunks.length ? [chunks[i]!, bytesOf("\r\n")] : [])
            ]),
            bytesOf(`${trailers.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`)
          ]),
          content,
          trailers
        })
      )
    })

/**
 * The body of a request: by Content-Length, or chunked with chunks of any size, extensions and trailers. The content is
 * up to `maxLength` bytes, which is 256 by default.
 *
 * @since 0.1.0
 * @category requests
 */
export const body = (maxLength = 256): FastCheck.Arbitrary<Body> =>
  FastCheck.oneof(crossShrink, fixedBody(maxLength), chunkedBody(maxLength))

/**
 * A whole request, with a body or without one. Takes what `requestHead` takes, and the `body`.
 *
 * @since 0.1.0
 * @category requests
 */
export const request = (
  options: RequestOptions & { readonly body?: FastCheck.Arbitrary<Body> | undefined } = {}
): FastCheck.Arbitrary<Request> =>
  (options.body ?? FastCheck.oneof(crossShrink, FastCheck.constant(noBody), body())).chain(
    ({ bytes, content, headers, trailers }) =>
      requestHead({
        ...options,
        headers: FastCheck.tuple(
          options.headers ?? FastCheck.constant<ReadonlyArray<Field>>([]),
          FastCheck.constant(headers)
        ).map(([required, framing]) => [...required, ...framing])
      }).map((head) => ({ ...head, bytes: Buffer.concat([head.bytes, bytes]), content, trailers }))
  )

/**
 * Requests in a row on one connection. Default: one to five of any kind.
 *
 * @since 0.1.0
 * @category requests
 */
export const pipeline = (
  requests: FastCheck.Arbitrary<ReadonlyArray<Request>> = FastCheck.array(request(), { minLength: 1, maxLength: 5 })
): FastCheck.Arbitrary<Pipeline> =>
  requests.map((requests) => ({ bytes: Buffer.concat(requests.map(({ bytes }) => bytes)), requests }))
