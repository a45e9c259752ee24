/**
 * A listener without a port: whole programs run over connections in memory, and through all that they run through over
 * TCP: Node's own HTTP parser, this library's switch, the app's middleware.
 *
 * ```
 *   Memory.connect ──▶ Peer ◀── connection in memory ──▶ http.Server (never listening) ──▶ the app
 * ```
 *
 * `layer` stands in for `UpgradeServer.layerNet`. `layerFor` stands in for any listener, `Connection.Tls` or one of your
 * own, with sockets made to order: a `getPeerCertificate` that answers what the test wants, say. A connection in memory
 * keeps what TCP promises and nothing more: bytes in order, a FIN each way, a reset that erases what was not yet read.
 * It has no port, no kernel and no latency, so tests of it neither collide nor wait.
 *
 * @example
 * ```ts
 * import { HttpRouter, HttpServer } from "@effect/platform"
 * import { Effect, Layer } from "effect"
 * import { Protocol, Upgrade, Upgraded } from "effect-upgrade"
 * import { Memory } from "effect-upgrade/testing"
 *
 * const app = HttpRouter.empty.pipe(
 *   HttpRouter.get("/echo", Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
 *     Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes)))),
 *   HttpServer.serve(),
 *   Layer.provideMerge(Memory.layer())
 * )
 *
 * export const program = Effect.gen(function*() {
 *   const peer = yield* Memory.connect
 *   yield* peer.send("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly")
 *   const head = yield* peer.receiveHead
 *   const echoed = yield* peer.receiveExactly(5)
 *   return [head.status, new TextDecoder().decode(echoed)]   // [101, "early"]
 * }).pipe(Effect.scoped, Effect.provide(app))
 * ```
 *
 * @since 0.1.0
 */

import * as Http from "node:http"
import * as Https from "node:https"
import type { Duplex } from "node:stream"
import type { HttpClient } from "@effect/platform/HttpClient"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Connection from "../Connection.js"
import { open } from "../internal/http1/server.js"
import { contextOf } from "../internal/http1/services.js"
import { pair } from "../internal/memory.js"
import * as UpgradeServer from "../UpgradeServer.js"
import * as Faults from "./Faults.js"
import * as Peer from "./Peer.js"

/**
 * What the listener may be told: what any `UpgradeServer` may, and Node's options of an `http.Server`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options extends UpgradeServer.Options, Http.ServerOptions {}

/**
 * The way in.
 *
 * - `connect`: a new connection, with a scripted peer at its other end.
 * - `connectWith`: the same over a bad network: split, delayed, ended or reset at a byte.
 * - `socket`: a new connection as a raw Duplex, for a client of your own. It has all that a `net.Socket` has and HTTP
 *   clients use.
 * - `agent`: for `http.request` of Node: each request by a new connection.
 *
 * A connection ends with the Scope that it was made in. Once the server has closed, a new one is closed at once, as a
 * port that nobody listens on refuses it.
 *
 * @since 0.1.0
 * @category services
 */
export class Memory extends Context.Tag("effect-upgrade/testing/Memory")<
  Memory,
  {
    readonly connect: Effect.Effect<Peer.Peer, never, Scope.Scope>
    readonly connectWith: (faults: Faults.Faults) => Effect.Effect<Peer.Peer, never, Scope.Scope>
    readonly socket: Effect.Effect<Duplex, never, Scope.Scope>
    readonly agent: Http.Agent
  }
>() {}

// What `Host` says of a client that was told no port
const address: HttpServer.TcpAddress = { _tag: "TcpAddress", hostname: "127.0.0.1", port: 80 }

const make = (
  tag: Context.Tag<any, Connection.Listener<any>>,
  socketOf: (duplex: Duplex) => Duplex,
  options: Options
): Effect.Effect<Context.Context<any>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const server = Http.createServer(options)
    let closed = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        server.close()
      })
    )
    const opened = yield* open(server, tag, options)
    // Node watches over the time that heads and requests take from here on
    server.emit("listening")

    const dial = (): Duplex => {
      const [accepted, client] = pair({ encrypted: tag.key === Connection.Tls.key })
      if (closed) {
        client.destroy()
      } else {
        server.emit("connection", socketOf(accepted))
      }
      return client
    }
    const socket = Effect.acquireRelease(Effect.sync(dial), (client) => Effect.sync(() => client.destroy()))
    const memory = Memory.of({
      connect: Effect.flatMap(socket, (client) => Peer.fromDuplex(client)),
      connectWith: (faults) =>
        socket.pipe(
          Effect.flatMap((client) => Faults.through(client, faults)),
          Effect.flatMap((client) => Peer.fromDuplex(client))
        ),
      socket,
      agent: Object.assign(new Http.Agent(), { createConnection: dial })
    })
    return Context.add(contextOf(UpgradeServer.UpgradeServer, opened, address), Memory, memory)
  })

const layerOf = (
  tag: Context.Tag<any, Connection.Listener<any>>,
  socketOf: (duplex: Duplex) => Duplex,
  options: Options
): Layer.Layer<any> => Layer.merge(Layer.scopedContext(make(tag, socketOf, options)), NodeHttpServer.layerContext)

/**
 * A listener in memory, in place of `UpgradeServer.layer` or `layerNet`, and `Memory` to connect to it.
 *
 * The sockets are no `net.Socket` by their class, and all of one that a program may want: addresses, `setTimeout`,
 * `setNoDelay`, `resetAndDestroy`, `bytesRead` and so on.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (options: Options = {}): Layer.Layer<UpgradeServer.Provided | Connection.Net | Memory> =>
  layerOf(Connection.Net, (duplex) => duplex, options)

/**
 * A listener in memory that stands in for any other, by its tag: `Connection.Net`, `Connection.Tls`, or a
 * `Context.Tag<Id, Connection.Listener<IO>>` of your own. `socket` makes each accepted connection what the tag promises:
 * put what the program asks for on the Duplex itself, or return one of your own that carries it (a `TLSSocket` over it,
 * for a real handshake).
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Connection } from "effect-upgrade"
 * import { Memory } from "effect-upgrade/testing"
 * import type { TLSSocket } from "node:tls"
 *
 * // For programs that read the client's certificate through Connection.Tls
 * export const alice = Memory.layerFor(Connection.Tls, {
 *   socket: (duplex) =>
 *     Object.assign(duplex, {
 *       authorized: true,
 *       getPeerCertificate: () => ({ subject: { CN: "alice" } })
 *     }) as unknown as TLSSocket
 * })
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layerFor = <Id, IO extends Duplex>(
  tag: Context.Tag<Id, Connection.Listener<IO>>,
  options: Options & { readonly socket: (duplex: Duplex) => IO }
): Layer.Layer<UpgradeServer.Provided | Id | Memory> => layerOf(tag, options.socket, options)

/**
 * An `HttpClient` whose requests go to the listener, for what is ordinary about a program. URLs are paths.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerClient: Layer.Layer<HttpClient, never, Memory | HttpServer.HttpServer> =
  HttpServer.layerTestClient.pipe(
    Layer.provide(NodeHttpClient.layerWithoutAgent),
    Layer.provide(
      Layer.effect(
        NodeHttpClient.HttpAgent,
        Effect.map(Memory, ({ agent }) =>
          NodeHttpClient.HttpAgent.of({
            [NodeHttpClient.HttpAgentTypeId]: NodeHttpClient.HttpAgentTypeId,
            http: agent,
            https: Https.globalAgent
          })
        )
      )
    )
  )

/**
 * A new connection to the listener, with a scripted peer at its other end.
 *
 * @since 0.1.0
 * @category accessors
 */
export const connect: Effect.Effect<Peer.Peer, never, Memory | Scope.Scope> = Effect.flatMap(
  Memory,
  ({ connect }) => connect
)

/**
 * A new connection over a bad network, with a scripted peer at its other end.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Memory } from "effect-upgrade/testing"
 *
 * // The request arrives byte by byte; the connection is reset after 100 bytes of the answer
 * export const peer = Memory.connectWith({ toServer: { split: 1 }, toClient: { resetAt: 100 } })
 * ```
 *
 * @since 0.1.0
 * @category accessors
 */
export const connectWith = (faults: Faults.Faults): Effect.Effect<Peer.Peer, never, Memory | Scope.Scope> =>
  Effect.flatMap(Memory, ({ connectWith }) => connectWith(faults))

/**
 * A new connection as a raw Duplex, for a client of your own.
 *
 * @since 0.1.0
 * @category accessors
 */
export const socket: Effect.Effect<Duplex, never, Memory | Scope.Scope> = Effect.flatMap(Memory, ({ socket }) => socket)
