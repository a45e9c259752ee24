/** A server on a free port, and raw peers that talk to it: over TCP, TLS with a client's certificate, a Unix socket, or memory. */
import * as fs from "node:fs"
import * as Http from "node:http"
import * as Https from "node:https"
import type * as net from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import type { Duplex } from "node:stream"
import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServer from "@effect/platform/HttpServer"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Connection from "../src/Connection.js"
import { pair } from "../src/internal/memory.js"
import * as Protocol from "../src/Protocol.js"
import * as Peer from "../src/testing/Peer.js"
import * as Upgrade from "../src/Upgrade.js"
import * as Upgraded from "../src/Upgraded.js"
import * as UpgradeServer from "../src/UpgradeServer.js"
import { cert, key } from "./testing/certificate.js"

export type Kind = "tcp" | "tls" | "unix" | "memory"

export const kinds: ReadonlyArray<Kind> = ["tcp", "tls", "unix", "memory"]

/** How often a property is tried: few times by default, so that all tests together stay fast. */
export const runs = (few: number): number => Number(process.env.LAWS_RUNS ?? few)

export interface Options extends UpgradeServer.Options {
  readonly kind?: Kind | undefined
  readonly node?: Http.ServerOptions | undefined
}

export interface Running {
  readonly server: Http.Server
  readonly port: number
  /** Where real clients connect to. */
  readonly target: Peer.Target
  readonly connect: Effect.Effect<Peer.Peer, Peer.PeerError, Scope.Scope>
  /** How many connections are switched now. */
  readonly switched: Effect.Effect<number>
  /** Done when no socket is open any more at the server's end, and no connection is switched. */
  readonly idle: Effect.Effect<void>
}

export type App = HttpApp.Default<
  unknown,
  | HttpServerRequest
  | Scope.Scope
  | Connection.Net
  | Connection.Tls
  | UpgradeServer.UpgradeServer
  | HttpServer.HttpServer
>

/** The client's side of TLS: it trusts the server's certificate, and shows the same one as its own. */
export const clientTls = { ca: cert, key, cert, servername: "localhost" }

const makeServer = (kind: Kind, options: Http.ServerOptions = {}): Http.Server =>
  kind === "tls"
    ? Https.createServer({ ...options, key, cert, ca: cert, requestCert: true, rejectUnauthorized: true })
    : Http.createServer(options)

const temporary = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "effect-upgrade-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
)

const listenOptions = (kind: Kind) =>
  kind === "unix"
    ? Effect.map(temporary, (directory): net.ListenOptions => ({ path: path.join(directory, "socket") }))
    : Effect.succeed<net.ListenOptions>({ port: 0, host: "127.0.0.1" })

/** One turn of the event loop. */
export const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const watch = (server: Http.Server) => {
  const open = new Set<Duplex>()
  const idle = Effect.unsafeMakeLatch(true)
  // A connection that is given back to the server is announced again
  server.on(server instanceof Https.Server ? "secureConnection" : "connection", (socket: Duplex) => {
    if (!open.has(socket)) {
      open.add(socket)
      idle.unsafeClose()
      socket.once("close", () => {
        open.delete(socket)
        if (open.size === 0) {
          idle.unsafeOpen()
        }
      })
    }
  })
  return idle.await
}

const running = (
  kind: Kind,
  server: Http.Server,
  listen: net.ListenOptions,
  idle: Effect.Effect<void>,
  switched: Effect.Effect<number>
): Running => {
  const empty: Effect.Effect<void> = Effect.flatMap(switched, (count) =>
    count === 0 ? Effect.void : Effect.zipRight(turn, empty)
  )
  const port = kind === "unix" ? 0 : (server.address() as net.AddressInfo).port
  const target: Peer.Target =
    kind === "unix" ? { path: listen.path! } : kind === "tls" ? { port, tls: clientTls } : { port }
  const connect =
    kind === "memory"
      ? Effect.suspend(() => {
          const [mine, theirs] = pair()
          server.emit("connection", mine)
          return Peer.fromDuplex(theirs)
        })
      : Peer.connect(target)
  return { server, port, target, connect, switched, idle: Effect.zipRight(idle, empty) }
}

/** Serves an app by an `UpgradeServer`, until the Scope closes. */
export const serve = (app: App, options: Options = {}): Effect.Effect<Running, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const kind = options.kind ?? "tcp"
    const server = makeServer(kind, options.node)
    const idle = watch(server)
    const listen = yield* listenOptions(kind)
    const layer = UpgradeServer.layer(() => server, { ...options, ...listen }) as Layer.Layer<
      UpgradeServer.Provided | Connection.Net | Connection.Tls,
      unknown
    >
    const context = yield* Layer.build(Layer.provideMerge(HttpServer.serve(app), layer))
    const { connections } = Context.get(context, UpgradeServer.UpgradeServer)
    return running(
      kind,
      server,
      listen,
      idle,
      Effect.map(connections, (all) => all.length)
    )
  })

/** Serves an app by the platform alone: what an ordinary request is answered with. */
export const serveOrdinary = <E>(
  app: HttpApp.Default<E>,
  options: Pick<Options, "kind" | "node"> = {}
): Effect.Effect<Running, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const kind = options.kind ?? "tcp"
    const server = makeServer(kind, options.node)
    const idle = watch(server)
    const listen = yield* listenOptions(kind)
    yield* Layer.build(
      Layer.provide(
        HttpServer.serve(app),
        NodeHttpServer.layer(() => server, listen)
      )
    )
    return running(kind, server, listen, idle, Effect.succeed(0))
  })

/** A message: its first line, its fields, and its content as it stands. */
export const message = (start: string, fields: ReadonlyArray<string>, content = ""): string =>
  `${[start, ...fields].join("\r\n")}\r\n\r\n${content}`

/** A request that asks for a switch. */
export const asking = (
  target: string,
  options: {
    readonly method?: string
    readonly token?: string
    readonly connection?: string
    readonly fields?: ReadonlyArray<string>
    readonly content?: string
  } = {}
): string =>
  message(
    `${options.method ?? "GET"} ${target} HTTP/1.1`,
    [
      "Host: example.com",
      `Connection: ${options.connection ?? "Upgrade"}`,
      `Upgrade: ${options.token ?? "echo"}`,
      ...(options.fields ?? [])
    ],
    options.content
  )

export const echoed = (upgraded: Upgraded.Upgraded) =>
  Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))

/** Sends back what comes, until the peer's FIN. */
export const echo = Upgrade.onUpgrade(Protocol.raw("echo"), echoed)

/** The same bytes, but for the time in Date fields. */
export const withoutDate = (bytes: Uint8Array | string): string =>
  Buffer.from(bytes as string)
    .toString("latin1")
    .replace(/^Date: .*$/gim, "Date: masked")

/** What the process would have died of, or warned of a leak, from here to the end of the Scope. */
export const unhandled: Effect.Effect<ReadonlyArray<unknown>, never, Scope.Scope> = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => {
      const seen: Array<unknown> = []
      const onCause = (cause: unknown) => {
        seen.push(cause)
      }
      const onWarning = (warning: Error) => {
        if (warning.name === "MaxListenersExceededWarning") {
          seen.push(warning)
        }
      }
      process.on("uncaughtException", onCause)
      process.on("unhandledRejection", onCause)
      process.on("warning", onWarning)
      return { seen, onCause, onWarning }
    }),
    ({ onCause, onWarning }) =>
      Effect.sync(() => {
        process.off("uncaughtException", onCause)
        process.off("unhandledRejection", onCause)
        process.off("warning", onWarning)
      })
  ),
  ({ seen }) => seen
)
