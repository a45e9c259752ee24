/**
 * The older form of a switch: an ordinary 200 without a length, and then the other protocol. Inside it is a switch like any
 * other, to a protocol that no request offers: the listener says which requests can be taken so.
 *
 * @internal
 */
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Protocol from "../Protocol.js"
import { HandshakeRefused } from "../UpgradeError.js"

export const hijacked = Protocol.make({ token: "hijack", statusText: "OK" })

/** What a listener asks, to know of a request whether its connection may be taken behind a 200. */
export type Hijackable = (request: {
  readonly method?: string | undefined
  readonly url?: string | undefined
  readonly headers: NodeJS.Dict<string | ReadonlyArray<string>>
}) => boolean

/** Why a response cannot be the last that HTTP has to say. */
export const unfit = (response: HttpServerResponse.HttpServerResponse): HandshakeRefused | undefined => {
  const refused = (description: string) => new HandshakeRefused({ protocol: hijacked.token, status: 500, description })
  return response.status !== 200
    ? refused(`A connection is taken behind a 200, and not behind a ${response.status}.`)
    : response.body._tag !== "Empty" || "content-length" in response.headers || "transfer-encoding" in response.headers
      ? refused("The 200 behind which a connection is taken has no content and no length: write to the connection.")
      : undefined
}
