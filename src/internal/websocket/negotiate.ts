/**
 * The Sec-WebSocket-Extensions field (RFC 6455 §9.1), and what two peers agree on for permessage-deflate (RFC 7692
 * §7.1).
 *
 * Plain functions over strings: both sides make their codec from the field of the 101 alone (`agreed`).
 *
 * @internal
 */

/**
 * What is asked of permessage-deflate. A side's own window and contexts are the sender's memory, the other's the
 * reader's.
 */
export interface DeflateOptions {
  /** The server forgets its context behind each message: more bytes, less memory at the client. Default `false`. */
  readonly serverNoContextTakeover?: boolean | undefined
  /** The client forgets its context behind each message. Default `false`. */
  readonly clientNoContextTakeover?: boolean | undefined
  /** The server's window is at most 2 to this many bytes, 8 to 15. Default 15, which is 32 KiB. */
  readonly serverMaxWindowBits?: number | undefined
  /** The client's window, likewise. A server declines an offer of a client that cannot be limited. */
  readonly clientMaxWindowBits?: number | undefined
  /** Messages of fewer bytes are sent as they are. Default 1024. */
  readonly threshold?: number | undefined
  /** zlib's level, -1 to 9. Default -1, which is 6. */
  readonly level?: number | undefined
  /** zlib's memLevel, 1 to 9. Default 8; less is taken where a message is too short to need it. */
  readonly memLevel?: number | undefined
  /** How many jobs of zlib may run in the thread pool at once. Default 10. */
  readonly concurrency?: number | undefined
}

/** What both sides have agreed on. */
export interface DeflateParams {
  readonly serverNoContextTakeover: boolean
  readonly clientNoContextTakeover: boolean
  readonly serverMaxWindowBits: number
  readonly clientMaxWindowBits: number
}

/** One element of the field; `repeated` where a parameter occurs twice, of which `params` has the first. */
export interface Extension {
  readonly name: string
  readonly params: ReadonlyMap<string, string | true>
  readonly repeated: boolean
}

const deflate = "permessage-deflate"
const serverNoContextTakeover = "server_no_context_takeover"
const clientNoContextTakeover = "client_no_context_takeover"
const serverMaxWindowBits = "server_max_window_bits"
const clientMaxWindowBits = "client_max_window_bits"

const maxWindowBits = 15

// tchar, RFC 9110 §5.6.2
const tchars = new Uint8Array(256)
for (const char of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
  tchars[char.charCodeAt(0)] = 1
}
const isTchar = (code: number): boolean => tchars[code] === 1

const quote = 0x22
const comma = 0x2c
const semicolon = 0x3b
const equals = 0x3d
const backslash = 0x5c

class Cursor {
  at = 0
  constructor(readonly field: string) {}

  get code(): number {
    return this.field.charCodeAt(this.at)
  }

  /** A token, or the empty string where there is none. */
  token(): string {
    const start = this.at
    while (isTchar(this.code)) {
      this.at++
    }
    return this.field.slice(start, this.at)
  }

  /** A token, or a quoted string whose content is one (RFC 6455 §9.1); or the empty string. */
  value(): string {
    if (this.code !== quote) {
      return this.token()
    }
    let value = ""
    for (this.at++; this.code !== quote; this.at++) {
      if (this.code === backslash) {
        this.at++
      }
      if (!isTchar(this.code)) {
        return ""
      }
      value += this.field[this.at]
    }
    this.at++
    return value
  }

  /** Whether this separator stands here, whitespace around it or not: then it is passed. */
  separator(code: number): boolean {
    const start = this.at
    this.whitespace()
    if (this.code === code) {
      this.at++
      this.whitespace()
      return true
    }
    this.at = start
    return false
  }

  private whitespace(): void {
    while (this.code === 0x20 || this.code === 0x09) {
      this.at++
    }
  }
}

/**
 * `1#extension` of RFC 6455 §9.1, or `undefined` where the field is something else: an empty element, a quoted value
 * that is no token, whitespace round an equals sign. Linear in the field's length.
 */
export const parseExtensions = (field: string): ReadonlyArray<Extension> | undefined => {
  const cursor = new Cursor(field)
  const extensions: Array<Extension> = []
  do {
    const name = cursor.token()
    if (name === "") {
      return undefined
    }
    const params = new Map<string, string | true>()
    let repeated = false
    while (cursor.separator(semicolon)) {
      const param = cursor.token()
      if (param === "") {
        return undefined
      }
      let value: string | true = true
      if (cursor.code === equals) {
        cursor.at++
        value = cursor.value()
        if (value === "") {
          return undefined
        }
      }
      if (params.has(param)) {
        repeated = true
      } else {
        params.set(param, value)
      }
    }
    extensions.push({ name, params, repeated })
  } while (cursor.separator(comma))
  return cursor.at === field.length ? extensions : undefined
}

// "a decimal integer value without leading zeroes between 8 to 15 inclusive", RFC 7692 §7.1.2
const windowBits = (value: string | true | undefined): number | undefined =>
  typeof value === "string" && /^(?:[89]|1[0-5])$/.test(value) ? Number(value) : undefined

/** Why these parameters may not stand in an offer, or in a response to one (RFC 7692 §7.1); `undefined` if they may. */
const fault = (extension: Extension, inResponse: boolean): string | undefined => {
  if (extension.repeated) {
    return "has a parameter twice"
  }
  for (const [name, value] of extension.params) {
    switch (name) {
      case serverNoContextTakeover:
      case clientNoContextTakeover:
        if (value !== true) {
          return `has a value for ${name}, which takes none`
        }
        break
      case clientMaxWindowBits:
        // Without a value it is a hint that only an offer gives: RFC 7692 §7.1.2.2
        if (value === true && !inResponse) {
          break
        }
        if (windowBits(value) === undefined) {
          return `has ${name}${value === true ? " without a value" : `=${value}`}; expected 8 to 15`
        }
        break
      case serverMaxWindowBits:
        if (windowBits(value) === undefined) {
          return `has ${name}${value === true ? " without a value" : `=${value}`}; expected 8 to 15`
        }
        break
      default:
        return `has the unknown parameter ${name}`
    }
  }
  return undefined
}

const paramsOf = ({ params }: Extension): DeflateParams => ({
  serverNoContextTakeover: params.has(serverNoContextTakeover),
  clientNoContextTakeover: params.has(clientNoContextTakeover),
  serverMaxWindowBits: windowBits(params.get(serverMaxWindowBits)) ?? maxWindowBits,
  clientMaxWindowBits: windowBits(params.get(clientMaxWindowBits)) ?? maxWindowBits
})

const format = (params: {
  readonly [serverNoContextTakeover]: boolean
  readonly [clientNoContextTakeover]: boolean
  readonly [serverMaxWindowBits]: number | undefined
  readonly [clientMaxWindowBits]: number | true | undefined
}): string => {
  let field = deflate
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== false) {
      field += value === true ? `; ${name}` : `; ${name}=${value}`
    }
  }
  return field
}

/**
 * The server's answer to the first offer that it can accept, or `undefined` if there is none: then nothing is
 * compressed. An offer with a parameter that is unknown, invalid or repeated is declined (RFC 7692 §7.1), and so is one
 * whose client cannot be limited to `clientMaxWindowBits`, where that is asked for.
 */
export const negotiate = (
  offers: ReadonlyArray<Extension>,
  options: DeflateOptions
): { readonly response: string; readonly params: DeflateParams } | undefined => {
  for (const offer of offers) {
    if (offer.name !== deflate || fault(offer, false) !== undefined) {
      continue
    }
    const offered = paramsOf(offer)
    const limitable = offer.params.has(clientMaxWindowBits)
    if (!limitable && (options.clientMaxWindowBits ?? maxWindowBits) < maxWindowBits) {
      continue
    }
    const params: DeflateParams = {
      // Either side may ask for these, whatever the offer says: RFC 7692 §7.1.1
      serverNoContextTakeover: offered.serverNoContextTakeover || options.serverNoContextTakeover === true,
      clientNoContextTakeover: offered.clientNoContextTakeover || options.clientNoContextTakeover === true,
      serverMaxWindowBits: Math.min(offered.serverMaxWindowBits, options.serverMaxWindowBits ?? maxWindowBits),
      clientMaxWindowBits: Math.min(offered.clientMaxWindowBits, options.clientMaxWindowBits ?? maxWindowBits)
    }
    return {
      params,
      response: format({
        [serverNoContextTakeover]: params.serverNoContextTakeover,
        [clientNoContextTakeover]: params.clientNoContextTakeover,
        [serverMaxWindowBits]:
          offer.params.has(serverMaxWindowBits) || params.serverMaxWindowBits < maxWindowBits
            ? params.serverMaxWindowBits
            : undefined,
        // MUST NOT be in the response unless it was in the offer: RFC 7692 §7.1.2.2
        [clientMaxWindowBits]:
          typeof offer.params.get(clientMaxWindowBits) === "string" || params.clientMaxWindowBits < maxWindowBits
            ? params.clientMaxWindowBits
            : undefined
      })
    }
  }
  return undefined
}

/** The client's offer. It says that its window can be limited, as RFC 7692 §7.1.2.2 asks of it. */
export const offerDeflate = (options: DeflateOptions): string =>
  format({
    [serverNoContextTakeover]: options.serverNoContextTakeover === true,
    [clientNoContextTakeover]: options.clientNoContextTakeover === true,
    [serverMaxWindowBits]: options.serverMaxWindowBits,
    [clientMaxWindowBits]: options.clientMaxWindowBits ?? true
  })

const responseOf = (field: string): Extension | string => {
  const extensions = parseExtensions(field)
  if (extensions === undefined) {
    return "is malformed"
  }
  const [extension, ...more] = extensions
  if (extension!.name !== deflate) {
    return `names the extension ${extension!.name}`
  }
  if (more.length > 0) {
    return `names ${more[0]!.name} behind ${deflate}`
  }
  return fault(extension!, true) ?? extension!
}

/**
 * What the Sec-WebSocket-Extensions field of a 101 says: the parameters, `undefined` where there is no such field and
 * so no extension, or a string that says what is wrong with it.
 */
export const agreed = (field: string | undefined): DeflateParams | string | undefined => {
  if (field === undefined) {
    return undefined
  }
  const response = responseOf(field)
  return typeof response === "string" ? response : paramsOf(response)
}

// A response must accept what the offer demands, and may limit the client only where it said that it can be: §7.1
const unmet = (offer: Extension, response: Extension): string | undefined => {
  const demanded = paramsOf(offer)
  const given = paramsOf(response)
  if (demanded.serverNoContextTakeover && !given.serverNoContextTakeover) {
    return `lacks ${serverNoContextTakeover}, which was offered`
  }
  if (given.serverMaxWindowBits > demanded.serverMaxWindowBits) {
    return `has a server window of ${given.serverMaxWindowBits} bits; ${demanded.serverMaxWindowBits} were offered`
  }
  if (response.params.has(clientMaxWindowBits)) {
    if (!offer.params.has(clientMaxWindowBits)) {
      return `has ${clientMaxWindowBits}, which was not offered`
    }
    if (given.clientMaxWindowBits > demanded.clientMaxWindowBits) {
      return `has a client window of ${given.clientMaxWindowBits} bits; ${demanded.clientMaxWindowBits} were offered`
    }
  }
  return undefined
}

/**
 * Why a client must fail the connection for the extensions of this response to what it offered; `undefined` if it need
 * not.
 */
export const mismatch = (field: string | undefined, offered: string | undefined): string | undefined => {
  if (field === undefined) {
    return undefined
  }
  const response = responseOf(field)
  if (typeof response === "string") {
    return response
  }
  const offers =
    (offered === undefined ? [] : parseExtensions(offered))?.filter((offer) => offer.name === deflate) ?? []
  if (offers.length === 0) {
    return `names ${deflate}, which was not offered`
  }
  // Which of several offers was accepted, the response does not say
  const faults = offers.map((offer) => unmet(offer, response))
  return faults.includes(undefined) ? undefined : faults[0]
}
