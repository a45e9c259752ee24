/**
 * The Upgrade field (RFC 9110 §7.8), and the field syntax that it stands on (RFC 9110 §5.5, §5.6).
 *
 * @internal
 */

/** One protocol of an Upgrade field: `name["/"version]`. */
export interface Offer {
  readonly name: string
  readonly version: string | undefined
  /** The offer as it was sent. */
  readonly token: string
}

// tchar, RFC 9110 §5.6.2
const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
const protocolToken = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:\/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?$/
const fieldValue = /^[\t\x20-\x7e\x80-\xff]*$/

/** token, RFC 9110 §5.6.2. */
export const isToken = (s: string): boolean => token.test(s)

/** protocol = protocol-name ["/" protocol-version], both tokens: RFC 9110 §7.8. */
export const isProtocolToken = (s: string): boolean => protocolToken.test(s)

/** field-name = token: RFC 9110 §5.1. */
export const isFieldName: (s: string) => boolean = isToken

/**
 * What may stand in a field value: HTAB, SP, VCHAR and obs-text (RFC 9110 §5.5), so neither CR, LF, NUL nor another
 * control character. The same octets that Node's own writer allows.
 */
export const isFieldValue = (s: string): boolean => fieldValue.test(s)

const comma = 0x2c
const quote = 0x22
const backslash = 0x5c

const isWhitespace = (code: number): boolean => code === 0x20 || code === 0x09

/** A field, or a piece of it, without the OWS around it: SP and HTAB (RFC 9110 §5.6.3), where `trim` takes more away. */
export const withoutWhitespace = (field: string, start = 0, end = field.length): string => {
  while (start < end && isWhitespace(field.charCodeAt(start))) {
    start++
  }
  while (end > start && isWhitespace(field.charCodeAt(end - 1))) {
    end--
  }
  return field.slice(start, end)
}

/**
 * The first `limit` elements of a list (RFC 9110 §5.6.1), empty ones among them, without the whitespace around them. A
 * comma in a quoted string (§5.6.4) does not separate, and a string that is never closed reaches to the end.
 */
export const listElements = (field: string, limit = Number.POSITIVE_INFINITY): Array<string> => {
  const elements: Array<string> = []
  let start = 0
  let quoted = false
  for (let i = 0; i < field.length && elements.length < limit; i++) {
    const code = field.charCodeAt(i)
    if (code === quote) {
      quoted = !quoted
    } else if (quoted) {
      if (code === backslash) {
        i++
      }
    } else if (code === comma) {
      elements.push(withoutWhitespace(field, start, i))
      start = i + 1
    }
  }
  if (elements.length < limit) {
    elements.push(withoutWhitespace(field, start, field.length))
  }
  return elements
}

// §5.6.1.2 asks for a reasonable number of empty elements to be ignored; no client offers a tenth of this
const maxOffers = 64

/**
 * The offers of an Upgrade field in the client's order, which is its preference (RFC 9110 §7.8). What is not a protocol
 * is skipped, and what stands behind the 64th element is not looked at.
 */
export const parseOffers = (field: string | undefined): ReadonlyArray<Offer> => {
  const offers: Array<Offer> = []
  if (field === undefined) {
    return offers
  }
  for (const element of listElements(field, maxOffers)) {
    if (isProtocolToken(element)) {
      const slash = element.indexOf("/")
      offers.push(
        slash === -1
          ? { name: element, version: undefined, token: element }
          : { name: element.slice(0, slash), version: element.slice(slash + 1), token: element }
      )
    }
  }
  return offers
}

/** Whether an offer is of this protocol: the name in any case (RFC 9110 §7.8), the version as it stands. */
export const matches = (offer: Offer, name: string, version: string | undefined): boolean =>
  offer.version === version && offer.name.toLowerCase() === name.toLowerCase()

/** Whether a list of tokens, such as Connection (RFC 9110 §7.6.1), has this one, in any case. */
export const listIncludes = (field: string | undefined, token: string): boolean => {
  if (field === undefined) {
    return false
  }
  const wanted = token.toLowerCase()
  return listElements(field).some((element) => isToken(element) && element.toLowerCase() === wanted)
}
