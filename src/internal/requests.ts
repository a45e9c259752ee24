/**
 * From a request of the platform to the server it came by: its exchange, where it asks for a switch, and its connection.
 */

import type { Duplex } from "node:stream"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import type { Listener } from "../Connection.js"
import { NotUpgradable } from "../UpgradeError.js"
import type { ConnectionImpl } from "./connection.js"
import type { Exchange, Host } from "./exchange.js"

const exchanges = new WeakMap<object, Exchange>()
const hosts = new WeakMap<object, Host>()

interface Sourced {
  readonly socket?: (Duplex & { readonly server?: object }) | null
}

// The platform hands `source` through `modify`, which makes a new request: the message below it is the request's identity.
const sourceOf = (request: HttpServerRequest.HttpServerRequest): (object & Sourced) | undefined =>
  typeof request.source === "object" && request.source !== null ? request.source : undefined

export const registerExchange = (source: object, exchange: Exchange): void => {
  exchanges.set(source, exchange)
}

export const exchangeOf = (request: HttpServerRequest.HttpServerRequest): Exchange | undefined => {
  const source = sourceOf(request)
  return source === undefined ? undefined : exchanges.get(source)
}

/** `server` is what Node calls `socket.server`. */
export const registerHost = (server: object, host: Host): void => {
  hosts.set(server, host)
}

export const hostOf = (request: HttpServerRequest.HttpServerRequest): Host | undefined => {
  const server = sourceOf(request)?.socket?.server
  return server === undefined ? undefined : hosts.get(server)
}

const elsewhere = (listener: Listener | undefined) =>
  new NotUpgradable({
    reason: "Server",
    protocols: [],
    description:
      listener === undefined
        ? "The request did not come by an UpgradeServer. Serve the app with UpgradeServer.layer in place of NodeHttpServer.layer."
        : `The request did not come by the server that provides ${listener.key}.`
  })

/** The request's connection; with a listener, only if it is that listener's. */
export const connectionOf = <IO extends Duplex>(
  request: HttpServerRequest.HttpServerRequest,
  listener?: Listener<IO>
): Effect.Effect<ConnectionImpl<IO>, NotUpgradable> =>
  Effect.suspend(() => {
    const exchange = exchangeOf(request)
    const host = exchange?.host ?? hostOf(request)
    if (host === undefined || (listener !== undefined && host.listener !== listener)) {
      return Effect.fail(elsewhere(listener))
    }
    // The listener promises the type of its sockets, and this is its socket
    return Effect.succeed(
      (exchange?.connection ?? host.connectionOf(sourceOf(request)!.socket!)) as ConnectionImpl<any>
    )
  })
