/** What the layer of a listener provides, however its connections come in. */

import type { Duplex } from "node:stream"
import * as HttpServer from "@effect/platform/HttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Connection from "../../Connection.js"
import type { UpgradeServer } from "../../UpgradeServer.js"
import type { ServerHost } from "../host.js"

/** The server's view of its connections. */
const registryOf = (host: ServerHost, address: HttpServer.Address): Context.Tag.Service<typeof UpgradeServer> => ({
  address,
  connections: Effect.sync(() => Array.from(host.connections)),
  draining: Effect.sync(() => host.draining),
  drain: host.drain
})

/** A TLS socket is a socket: what needs `Net` runs over TLS too. */
const listenerContext = (listener: Connection.Listener<Duplex>): Context.Context<any> => {
  const context = Context.make(Context.GenericTag<any, any>(listener.key), listener)
  return listener.key === Connection.Tls.key ? Context.add(context, Connection.Net, listener as never) : context
}

/** The platform's server, the registry, and the listener by its tag. */
export const contextOf = (
  registry: typeof UpgradeServer,
  { host, serve }: { readonly host: ServerHost; readonly serve: HttpServer.HttpServer["serve"] },
  address: HttpServer.Address
): Context.Context<any> =>
  listenerContext(host.listener).pipe(
    Context.add(HttpServer.HttpServer, HttpServer.make({ serve, address })),
    Context.add(registry, registryOf(host, address))
  )
