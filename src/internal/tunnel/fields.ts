/**
 * What an intermediary does to the fields that it forwards: RFC 9110 §7.6, RFC 7239.
 *
 * @internal
 */
import * as Cookies from "@effect/platform/Cookies"
import { isToken, listElements } from "../http1/offers.js"

/** Name, value, name, value, as Node has them. */
export type RawFields = ReadonlyArray<string>

export type Field = readonly [name: string, value: string]

/** RFC 9110 §7.6.1: what is for this connection alone, whether or not Connection lists it. */
const hopByHop = new Set([
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authentication-info",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "http2-settings"
])

/** Connection may name any field, but without these the message would be another. */
const kept = new Set(["host", "content-length"])

const fieldsOf = (raw: RawFields): ReadonlyArray<Field> => {
  const fields: Array<Field> = []
  for (let i = 0; i + 1 < raw.length; i += 2) {
    fields.push([raw[i]!, raw[i + 1]!])
  }
  return fields
}

/** The fields that go on: all but those of the connection that they came by. */
export const endToEnd = (raw: RawFields): ReadonlyArray<Field> => {
  const fields = fieldsOf(raw)
  const listed = new Set<string>()
  for (const [name, value] of fields) {
    if (name.toLowerCase() === "connection") {
      for (const option of listElements(value)) {
        listed.add(option.toLowerCase())
      }
    }
  }
  return fields.filter(([name]) => {
    const key = name.toLowerCase()
    return !hopByHop.has(key) && (!listed.has(key) || kept.has(key))
  })
}

/** All values of a field as one list (RFC 9110 §5.3); `undefined` where there is none. */
export const valueOf = (fields: ReadonlyArray<Field>, name: string): string | undefined => {
  const values = fields.filter(([other]) => other.toLowerCase() === name).map(([, value]) => value)
  return values.length === 0 ? undefined : values.join(", ")
}

/** As one record, in which lines of one name are one list; Cookie is a list of its own kind (RFC 6265 §5.4). */
export const recordOf = (fields: ReadonlyArray<Field>): Record<string, string> => {
  const record: Record<string, string> = Object.create(null)
  for (const [name, value] of fields) {
    const key = name.toLowerCase()
    const before = record[key]
    record[key] = before === undefined ? value : `${before}${key === "cookie" ? "; " : ", "}${value}`
  }
  return record
}

/** Who asked, and how. */
export interface Origin {
  readonly address: string | undefined
  readonly host: string | undefined
  readonly secure: boolean
  /** What Via calls the version that the message came in. */
  readonly version: string
}

/** RFC 7239 §4: a value is a token, or quoted. */
const quoted = (value: string): string => (isToken(value) ? value : `"${value.replace(/["\\]/g, "\\$&")}"`)

/** RFC 7239 §6: an IPv6 address stands in brackets, and what is not known is called so. */
const nodeOf = (address: string | undefined): string =>
  address === undefined ? "unknown" : quoted(address.includes(":") ? `[${address}]` : address)

const forwardedElement = ({ address, host, secure }: Origin): string =>
  [
    `for=${nodeOf(address)}`,
    ...(host === undefined ? [] : [`host=${quoted(host)}`]),
    `proto=${secure ? "https" : "http"}`
  ].join(";")

const isForwarding = (name: string): boolean => /^(?:forwarded|x-forwarded-.*)$/i.test(name)

const appended = (before: string | undefined, value: string): string =>
  before === undefined || before === "" ? value : `${before}, ${value}`

/**
 * The fields of a request as the next server gets them: who asked is told by Forwarded and X-Forwarded-*, behind what was
 * told before where that is trusted, and in place of it otherwise. `host` is what it is told in Host.
 */
export const requestFields = (
  raw: RawFields,
  origin: Origin,
  options: { readonly trust: boolean; readonly via: string; readonly host: string }
): ReadonlyArray<Field> => {
  const all = endToEnd(raw)
  const before = (name: string) => (options.trust ? valueOf(all, name) : undefined)
  const others = all.filter(
    // The client was told 100 to its expectation by this server already
    ([name]) => !isForwarding(name) && !/^(?:host|via|expect)$/i.test(name)
  )
  const { address, host, secure } = origin
  const forwarded: Array<Field> = [
    ["Via", appended(valueOf(all, "via"), `${origin.version} ${options.via}`)],
    ["Forwarded", appended(before("forwarded"), forwardedElement(origin))]
  ]
  const forwardedFor = address === undefined ? before("x-forwarded-for") : appended(before("x-forwarded-for"), address)
  if (forwardedFor !== undefined) {
    forwarded.push(["X-Forwarded-For", forwardedFor])
  }
  // Of these the first that was told is the client's own
  const forwardedHost = before("x-forwarded-host") ?? host
  if (forwardedHost !== undefined) {
    forwarded.push(["X-Forwarded-Host", forwardedHost])
  }
  forwarded.push(["X-Forwarded-Proto", before("x-forwarded-proto") ?? (secure ? "https" : "http")])
  return [["Host", options.host], ...others, ...forwarded]
}

export interface ResponseFields {
  readonly headers: Record<string, string>
  readonly cookies: Cookies.Cookies
}

const template = Cookies.unsafeMakeCookie("a", "")

/** A Set-Cookie as it stands: nothing of it is read, so nothing is lost, whatever attributes it has. */
const cookieOf = (line: string): Cookies.Cookie => {
  const equals = line.indexOf("=")
  return Object.assign(Object.create(Object.getPrototypeOf(template)), template, {
    name: line.slice(0, Math.max(equals, 0)),
    value: line.slice(equals + 1),
    valueEncoded: line.slice(equals + 1)
  })
}

// Where lines of Set-Cookie were joined: Expires has a comma too, but no name and "=" behind it
const betweenCookies = /,\s*(?=[!#$%&'*+\-.^_`|~0-9A-Za-z]+=)/

/** The fields of a response as the client gets them. */
export const responseFields = (fields: ReadonlyArray<Field>, version: string, via: string): ResponseFields => {
  const cookies: Record<string, Cookies.Cookie> = {}
  const others: Array<Field> = []
  for (const [name, value] of fields) {
    if (name.toLowerCase() === "set-cookie") {
      for (const line of value.split(betweenCookies)) {
        // Two of one name may differ in their path: the key is for nobody to read
        cookies[`${Object.keys(cookies).length} ${line}`] = cookieOf(line)
      }
    } else {
      others.push([name, value])
    }
  }
  const headers = recordOf(others)
  headers.via = appended(headers.via, `${version} ${via}`)
  return { headers, cookies: Cookies.fromReadonlyRecord(cookies) }
}
