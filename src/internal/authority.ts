/**
 * The authority-form of a request target, which CONNECT has (RFC 9112 §3.2.3, RFC 9110 §9.3.6).
 *
 * @internal
 */

export interface Authority {
  /** A registered name or an IPv4 address as it was sent, or an IPv6 address without its brackets. */
  readonly host: string
  readonly port: number
}

// 1*( unreserved / pct-encoded / sub-delims ), RFC 3986 §3.2.2; an IPv4 address looks like one
const registeredName = /^(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+$/

/**
 * The host and port of a CONNECT request; `undefined` for what must be refused with 400: an empty or missing port
 * (RFC 9110 §9.3.6), one outside 1 to 65535, user information, a path, whitespace, no host.
 */
export const parseAuthority = (target: string): Authority | undefined => {
  const colon = target.lastIndexOf(":")
  if (colon === -1) {
    return undefined
  }
  const digits = target.slice(colon + 1)
  const port = /^[0-9]+$/.test(digits) ? Number(digits) : 0
  if (port < 1 || port > 65535) {
    return undefined
  }
  const host = target.slice(0, colon)
  if (host.startsWith("[") && host.endsWith("]")) {
    const address = host.slice(1, -1)
    return isIPv6(address) ? { host: address, port } : undefined
  }
  return registeredName.test(host) ? { host, port } : undefined
}

const h16 = /^[0-9A-Fa-f]{1,4}$/
const ipv4 = /^(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}$/

// IPv6address, RFC 3986 §3.2.2: no zone, whose "%" RFC 6874 would have to encode
const isIPv6 = (address: string): boolean => {
  const [head, tail, ...more] = address.split("::")
  if (tail === undefined) {
    return groups(head, true) === 8
  }
  // "::" stands for at least one group
  return more.length === 0 && groups(head, false) + groups(tail, true) <= 7
}

// how many groups of 16 bits are written here; NaN, which equals and exceeds nothing, if something else is
const groups = (written: string, last: boolean): number => {
  if (written === "") {
    return 0
  }
  const parts = written.split(":")
  const embedded = last && ipv4.test(parts[parts.length - 1])
  return (embedded ? parts.slice(0, -1) : parts).every((part) => h16.test(part))
    ? parts.length + (embedded ? 1 : 0)
    : Number.NaN
}
