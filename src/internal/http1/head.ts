/** The heads that this library writes itself: those of a switch. */
import type { Headers } from "@effect/platform/Headers"
import type { Protocol } from "../../Protocol.js"
import { hijacked } from "../hijack.js"

/**
 * The head of a switch: 101 with the protocol (RFC 9110 §7.8, §15.2.2), or 200 to a CONNECT (§9.3.6) or where a connection
 * is taken behind it, which is then the last that HTTP says (RFC 9112 §9.6). The fields were checked before
 * (`forbiddenField`).
 */
export const switchHead = (
  protocol: Protocol.Any,
  isConnect: boolean,
  statusText: string,
  headers: Headers,
  cookies: ReadonlyArray<string>
): string => {
  let head = isConnect
    ? `HTTP/1.1 200 ${statusText}\r\n`
    : protocol === hijacked
      ? `HTTP/1.1 200 ${statusText}\r\nConnection: close\r\n`
      : `HTTP/1.1 101 ${statusText}\r\nConnection: Upgrade\r\nUpgrade: ${protocol.token}\r\n`
  for (const name in headers) {
    if (name !== "connection" && name !== "upgrade") {
      head += `${name}: ${headers[name]}\r\n`
    }
  }
  for (const cookie of cookies) {
    head += `set-cookie: ${cookie}\r\n`
  }
  return `${head}\r\n`
}
