/**
 * Listeners whose connections can be switched: layers in place of `NodeHttpServer`'s, and nothing else to change.
 *
 * A layer here provides all that `NodeHttpServer.layer` does, the tag of its listener (`Connection.Net`,
 * `Connection.Tls`), and `UpgradeServer`, the registry of the switched connections. The same port serves ordinary
 * requests, as ever, by `node:http`; a request that asks for a switch is guarded from the first tick: its errors heard,
 * its body framed, its place behind earlier responses kept.
 *
 * When the layer closes, no more switches are made (503), ordinary requests are finished, sessions get `drainTimeout` to
 * end and are interrupted then, and the layer is done when every socket is closed. What cannot be interrupted holds it up.
 *
 * @since 0.1.0
 */

import * as Http from "node:http"
import * as Https from "node:https"
import type { ListenOptions } from "node:net"
import { Server as TlsServer } from "node:tls"
import type * as Etag from "@effect/platform/Etag"
import type { HttpClient } from "@effect/platform/HttpClient"
import type { HttpPlatform } from "@effect/platform/HttpPlatform"
import * as HttpServer from "@effect/platform/HttpServer"
import { ServeError } from "@effect/platform/HttpServerError"
import type { NodeContext } from "@effect/platform-node/NodeContext"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Config from "effect/Config"
import type { ConfigError } from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { LazyArg } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Connection from "./Connection.js"
import * as internal from "./internal/http1/server.js"
import { contextOf } from "./internal/http1/services.js"
import type * as WebSocket from "./WebSocket.js"

/**
 * What a server may be told beside Node's own options. All of it may be left out.
 *
 * - `decisionTimeout` (60 s): how long a handler may take to answer a request that offers a switch. Then it is
 *   interrupted, and the client gets 503. Ordinary requests have no such limit.
 * - `bodyTimeout` (30 s): how long a switch waits for the rest of the request's body. Then the client gets 408.
 * - `claimTimeout` (10 s): how long a connection of `Upgrade.respond` may lie unclaimed before it is closed.
 * - `writeTimeout` (2 min): how long a write may wait while nothing leaves the process (a slow peer empties the system's own buffer first), before `ConnectionError` `Timeout`. The answer to a request that offers a switch may wait as long, from `decisionTimeout` on; the connection is closed then.
 * - `idleTimeout` (1 h): how long nothing may move on a switched connection, either way, before the same.
 * - `closeTimeout` (5 s): how long closing may take, from the FIN to the peer's.
 * - `drainTimeout` (0): how long sessions, and requests that offer a switch, may go on after the shutdown began, before
 *   they are interrupted.
 * - `maxConnections` (no limit): how many connections may be switched at a time. One more gets 503.
 * - `hijackable` (none): the requests whose connection `Upgrade.hijack` may take behind an ordinary 200, by their head. They
 *   are served like others, but have `decisionTimeout`, and close where bytes lie behind a request that is refused.
 * - `websocket`: of the websockets that the platform's `HttpServerRequest.upgrade` opens here. As on the platform's own
 *   server every Origin may connect (`origin` is `"any"`), a message may have 100 MiB, nothing is compressed, and where
 *   `subprotocols` is left out the client's first one is agreed on.
 *
 * The times of a switch can be set for it alone, in `Upgrade.Options`. `Duration.infinity` switches one off.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly decisionTimeout?: Duration.DurationInput | undefined
  readonly bodyTimeout?: Duration.DurationInput | undefined
  readonly claimTimeout?: Duration.DurationInput | undefined
  readonly writeTimeout?: Duration.DurationInput | undefined
  readonly idleTimeout?: Duration.DurationInput | undefined
  readonly closeTimeout?: Duration.DurationInput | undefined
  readonly drainTimeout?: Duration.DurationInput | undefined
  readonly maxConnections?: number | undefined
  readonly websocket?: WebSocket.Options | undefined
  readonly hijackable?:
    | ((request: {
        readonly method?: string | undefined
        readonly url?: string | undefined
        readonly headers: NodeJS.Dict<string | ReadonlyArray<string>>
      }) => boolean)
    | undefined
}

/**
 * The server's view of its switched connections.
 *
 * - `address`: where it listens.
 * - `connections`: those that are open now.
 * - `draining`: whether the shutdown has begun.
 * - `drain`: begins it: no more switches are made, and it is done when every connection has ended, after `drainTimeout`
 *   unless one cannot be interrupted. Ordinary requests are still served.
 *
 * @since 0.1.0
 * @category services
 */
export class UpgradeServer extends Context.Tag("effect-upgrade/UpgradeServer")<
  UpgradeServer,
  {
    readonly address: HttpServer.Address
    readonly connections: Effect.Effect<ReadonlyArray<Connection.Connection>>
    readonly draining: Effect.Effect<boolean>
    readonly drain: Effect.Effect<void>
  }
>() {}

/**
 * What a layer provides beside the tag of its listener.
 *
 * @since 0.1.0
 * @category models
 */
export type Provided = HttpServer.HttpServer | UpgradeServer | HttpPlatform | Etag.Generator | NodeContext

const listening = (server: Http.Server, options: ListenOptions): Effect.Effect<void, ServeError> =>
  Effect.async<void, ServeError>((resume) => {
    const onError = (cause: Error) => resume(Effect.fail(new ServeError({ cause })))
    server.once("error", onError)
    server.listen(options, () => {
      server.off("error", onError)
      resume(Effect.void)
    })
  })

const addressOf = (server: Http.Server): HttpServer.Address => {
  const address = server.address()
  return address === null || typeof address === "string"
    ? { _tag: "UnixAddress", path: address ?? "" }
    : {
        _tag: "TcpAddress",
        hostname: address.address === "::" ? "0.0.0.0" : address.address,
        port: address.port
      }
}

const open = (
  tag: Context.Tag<any, Connection.Listener<any>> | undefined,
  evaluate: LazyArg<Http.Server>,
  options: ListenOptions & Options
) =>
  Effect.gen(function* () {
    const server = evaluate()
    const served = yield* internal.open(
      server,
      tag ?? (server instanceof TlsServer ? Connection.Tls : Connection.Net),
      options
    )
    yield* listening(server, options)
    return { ...served, address: addressOf(server) }
  })

const layerOf = (
  tag: Context.Tag<any, Connection.Listener<any>> | undefined,
  evaluate: LazyArg<Http.Server>,
  options: ListenOptions & Options
): Layer.Layer<any, ServeError> =>
  Layer.merge(
    Layer.scopedContext(
      Effect.map(open(tag, evaluate, options), (opened) => contextOf(UpgradeServer, opened, opened.address))
    ),
    NodeHttpServer.layerContext
  )

/**
 * A server by itself, as `NodeHttpServer.make`: listening when it is made, closed with the Scope.
 *
 * Fails with the platform's `ServeError` where it cannot listen (the port is taken, say): the system's error is its
 * `cause`. It promises no listener's type; the layers do.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  evaluate: LazyArg<Http.Server>,
  options: ListenOptions & Options
): Effect.Effect<HttpServer.HttpServer, ServeError, Scope.Scope> =>
  Effect.map(open(undefined, evaluate, options), HttpServer.make)

/**
 * A server of Node's own, in place of `NodeHttpServer.layer`: plain (`Connection.Net`) or TLS (`Connection.Tls`).
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer } from "@effect/platform"
 * import { NodeRuntime } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"
 * import { createServer } from "node:http"
 *
 * const echo = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
 *   Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes)))
 *
 * HttpRouter.empty.pipe(
 *   HttpRouter.get("/echo", echo),
 *   HttpServer.serve(),
 *   Layer.provide(UpgradeServer.layer(() => createServer(), { port: 3000 })),
 *   Layer.launch,
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: {
  (
    evaluate: LazyArg<Https.Server>,
    options: ListenOptions & Options
  ): Layer.Layer<Provided | Connection.Tls, ServeError>
  (evaluate: LazyArg<Http.Server>, options: ListenOptions & Options): Layer.Layer<Provided | Connection.Net, ServeError>
} = (evaluate: LazyArg<Http.Server>, options: ListenOptions & Options): Layer.Layer<any, ServeError> =>
  layerOf(undefined, evaluate, options)

/**
 * `layer` with its options read from the configuration.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig: {
  (
    evaluate: LazyArg<Https.Server>,
    options: Config.Config.Wrap<ListenOptions & Options>
  ): Layer.Layer<Provided | Connection.Tls, ServeError | ConfigError>
  (
    evaluate: LazyArg<Http.Server>,
    options: Config.Config.Wrap<ListenOptions & Options>
  ): Layer.Layer<Provided | Connection.Net, ServeError | ConfigError>
} = (
  evaluate: LazyArg<Http.Server>,
  options: Config.Config.Wrap<ListenOptions & Options>
): Layer.Layer<any, ServeError | ConfigError> =>
  Layer.unwrapEffect(Effect.map(Config.unwrap(options), (options) => layerOf(undefined, evaluate, options)))

/**
 * TCP: a plain `http.Server`, with Node's options of the server and of `listen` in one object.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerNet = (
  options: Http.ServerOptions & ListenOptions & Options
): Layer.Layer<Provided | Connection.Net, ServeError> =>
  layerOf(Connection.Net, () => Http.createServer(options), options)

/**
 * TLS over TCP: an `https.Server`, with Node's options of TLS, of the server and of `listen` in one object.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerTls = (
  options: Https.ServerOptions & ListenOptions & Options
): Layer.Layer<Provided | Connection.Tls, ServeError> =>
  layerOf(Connection.Tls, () => Https.createServer(options), options)

/**
 * A Unix socket at `path`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerUnix = (
  options: Http.ServerOptions & Omit<ListenOptions, "host" | "port"> & { readonly path: string } & Options
): Layer.Layer<Provided | Connection.Net, ServeError> =>
  layerOf(Connection.Net, () => Http.createServer(options), options)

/**
 * A plain server on a free port of this machine, and an `HttpClient` whose requests go to it, for tests of ordinary
 * requests beside `Upgrade`s. `effect-upgrade/testing` needs no port.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerTest: Layer.Layer<Provided | Connection.Net | HttpClient, ServeError> =
  HttpServer.layerTestClient.pipe(
    Layer.provide(NodeHttpClient.layerWithoutAgent),
    Layer.provide(NodeHttpClient.makeAgentLayer({ keepAlive: false })),
    Layer.provideMerge(layerNet({ port: 0 }))
  )
