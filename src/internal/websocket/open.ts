/** From options to a protocol, and from what it switched to a websocket. */

import type { Duplex } from "node:stream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Protocol from "../../Protocol.js"
import type * as Upgrade from "../../Upgrade.js"
import type { CommonOptions, ConnectOptions, Options } from "../../WebSocket.js"
import type { UpgradedImpl } from "../upgraded.js"
import { type Settings, WebSocketImpl } from "./connection.js"
import { Deflater, Inflater } from "./deflate.js"
import * as Handshake from "./handshake.js"
import { agreed as agreedDeflate, type DeflateOptions } from "./negotiate.js"
import type { Compression } from "./sender.js"

const MAX_MESSAGE = 1024 * 1024
const MAX_FRAMES = 65_536

const kOptions = Symbol("effect-upgrade/WebSocket/options")

/** The protocol of these options, which it carries to the websocket. */
interface WebSocketProtocol extends Protocol.Protocol<"websocket"> {
  readonly [kOptions]: Resolved
}

interface Resolved {
  readonly settings: Settings
  readonly compression: DeflateOptions | undefined
}

const millis = (duration: Duration.DurationInput | undefined): number =>
  duration === undefined ? Infinity : Duration.toMillis(duration)

const limit = (name: string, given: number | undefined, otherwise: number): number => {
  if (given !== undefined && !(given >= 0)) {
    throw new RangeError(`WebSocket: ${name} is ${given}; expected a number from 0 on`)
  }
  return given ?? otherwise
}

const resolve = (options: CommonOptions | undefined): Resolved => ({
  settings: {
    maxMessageSize: limit("maxMessageSize", options?.maxMessageSize, MAX_MESSAGE),
    maxFragments: limit("maxFragments", options?.maxFragments, MAX_FRAMES),
    maxFrames: limit("maxFrames", options?.maxFrames, MAX_FRAMES),
    heartbeat: millis(options?.heartbeat),
    idleTimeout: millis(options?.idleTimeout)
  },
  compression:
    options?.compression === true
      ? {}
      : options?.compression === false || options?.compression === undefined
        ? undefined
        : (options.compression as DeflateOptions)
})

const make = (options: CommonOptions | undefined): WebSocketProtocol => {
  const handshake: Handshake.HandshakeOptions = options ?? {}
  Handshake.validate(handshake)
  return Object.assign(
    Protocol.make({
      token: "websocket",
      methods: ["GET"],
      check: (request) => Handshake.check(request, handshake),
      offer: Effect.sync(() => Handshake.offer(handshake)),
      verify: (response, sent) => {
        const mismatch = Handshake.verify(response, sent, handshake)
        return mismatch === undefined ? Effect.void : Effect.fail(mismatch)
      }
    }),
    { [kOptions]: resolve(options) }
  )
}

const protocols = new WeakMap<CommonOptions, WebSocketProtocol>()
let byDefault: WebSocketProtocol | undefined

/** Made once for the same options: a handler that writes them down anew for each request pays for it. */
export const protocolOf = (options: CommonOptions | undefined): WebSocketProtocol => {
  if (options === undefined) {
    return (byDefault ??= make(undefined))
  }
  let protocol = protocols.get(options)
  if (protocol === undefined) {
    protocol = make(options)
    protocols.set(options, protocol)
  }
  return protocol
}

/** What is said of the switch and the connection, and not of the websocket. */
export const upgradeOptions = (options: Options | undefined): Upgrade.Options | undefined => {
  if (options === undefined) {
    return undefined
  }
  const { idleTimeout: _, ...rest } = options
  return rest
}

export const clientOptions = <O extends ConnectOptions>(options: O | undefined): Omit<O, "idleTimeout" | "headers"> => {
  const { headers: _headers, idleTimeout: _idleTimeout, ...rest } = options ?? ({} as O)
  return rest
}

let defaults: Resolved | undefined

/** The websocket of a connection that was switched: by `protocol`, or by a handshake of somebody's own. */
export const open = <IO extends Duplex>(upgraded: UpgradedImpl<IO, "websocket">): WebSocketImpl<IO, any> => {
  const { agreed, definition, isClient } = upgraded
  const { compression, settings } = isWebSocketProtocol(definition)
    ? definition[kOptions]
    : (defaults ??= resolve(undefined))
  return new WebSocketImpl(
    upgraded,
    !isClient,
    agreed["sec-websocket-protocol"],
    compressionOf(agreed["sec-websocket-extensions"], compression, isClient),
    settings
  )
}

const isWebSocketProtocol = (definition: Protocol.Protocol.Any): definition is WebSocketProtocol =>
  kOptions in definition

const compressionOf = (
  field: string | undefined,
  options: DeflateOptions | undefined,
  isClient: boolean
): Compression | undefined => {
  // What the field may say was checked by the handshake
  const agreed = options === undefined ? undefined : agreedDeflate(field)
  if (options === undefined || agreed === undefined || typeof agreed === "string") {
    return undefined
  }
  const server = [agreed.serverMaxWindowBits, agreed.serverNoContextTakeover] as const
  const client = [agreed.clientMaxWindowBits, agreed.clientNoContextTakeover] as const
  const [own, peers] = isClient ? [client, server] : [server, client]
  return {
    inflater: new Inflater(...peers, options),
    deflater: new Deflater(...own, options),
    threshold: options.threshold ?? 1024
  }
}
