/** A server round an app, a peer to speak to it, and the three ways of switching as values, for the tests of them all. */
import { mkdtempSync } from "node:fs"
import * as Http from "node:http"
import * as Https from "node:https"
import type { ListenOptions } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Duplex } from "node:stream"
import * as HttpServer from "@effect/platform/HttpServer"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import type * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { Connection, Protocol, Upgrade, Upgraded, type UpgradeError, UpgradeServer } from "../src/index.js"
import * as Peer from "../src/testing/Peer.js"
import { cert, key } from "./testing/certificate.js"

export interface Served {
  readonly port: number
  readonly node: Http.Server
  readonly server: Context.Tag.Service<UpgradeServer.UpgradeServer>
  /** A new connection. */
  readonly connect: Effect.Effect<Peer.Peer, Peer.PeerError, Scope.Scope>
  /** A new connection that has sent these bytes. */
  readonly send: (bytes: Uint8Array | string) => Effect.Effect<Peer.Peer, Peer.PeerError, Scope.Scope>
}

type Listening = UpgradeServer.Provided | Connection.Net

/** Where a server of the tests listens. */
export type Kind = "TCP" | "TLS" | "Unix"

export const kinds: ReadonlyArray<Kind> = ["TCP", "TLS", "Unix"]

export interface ServeOptions extends UpgradeServer.Options {
  readonly kind?: Kind | undefined
  readonly tls?: Https.ServerOptions | undefined
}

const listening: Record<Kind, (options: ServeOptions) => readonly [node: Http.Server, options: ListenOptions]> = {
  TCP: () => [Http.createServer(), { port: 0, host: "127.0.0.1" }],
  TLS: ({ tls }) => [Https.createServer({ cert, key, ...tls }), { port: 0, host: "127.0.0.1" }],
  Unix: () => [Http.createServer(), { path: join(mkdtempSync(join(tmpdir(), "effect-upgrade-")), "socket") }]
}

/** Serves what `HttpServer.serve` and its like make of an app, where nothing else is, for as long as the Scope is open. */
export const serveLayer = <E>(
  app: Layer.Layer<never, E, Listening>,
  options: ServeOptions = {}
): Effect.Effect<Served, never, Scope.Scope> =>
  Effect.gen(function* () {
    const [node, listen] = listening[options.kind ?? "TCP"](options)
    const { kind: _, tls: __, ...own } = options
    const context = yield* Layer.build(
      app.pipe(Layer.provideMerge(UpgradeServer.layer(() => node, { ...listen, ...own })))
    ).pipe(Effect.orDie)
    const server = Context.get(context, UpgradeServer.UpgradeServer)
    const port = server.address._tag === "TcpAddress" ? server.address.port : 0
    const connect =
      server.address._tag === "UnixAddress"
        ? Peer.connect({ path: server.address.path })
        : Peer.connect({ port, ...(options.kind === "TLS" ? { tls: { rejectUnauthorized: false } } : {}) })
    const send = (bytes: Uint8Array | string) => Effect.tap(connect, (peer) => peer.send(bytes))
    return { port, node, server, connect, send }
  })

type Available = HttpServerRequest.HttpServerRequest | Scope.Scope | Listening

/** Serves a bare app. */
export const serve = <E, R extends Available>(
  app: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>,
  options?: ServeOptions
): Effect.Effect<Served, never, Scope.Scope> => serveLayer(HttpServer.serve(app), options)

export interface Ask {
  readonly method?: string
  readonly path?: string
  readonly upgrade?: string
  readonly fields?: Readonly<Record<string, string>>
  readonly body?: string
}

/** The bytes of a request that asks for a switch. */
export const ask = ({ body = "", fields = {}, method = "GET", path = "/echo", upgrade = "echo" }: Ask = {}): string => {
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`)
  return `${method} ${path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: ${upgrade}\r\n${lines.join("")}\r\n${body}`
}

/** The bytes of an ordinary request. */
export const get = (path: string, fields = ""): string => `GET ${path} HTTP/1.1\r\nHost: a\r\n${fields}\r\n`

export const echo = Protocol.raw("echo")

export const decode = (bytes: Uint8Array): string => Buffer.from(bytes).toString()

export const bytesOf = (pieces: Chunk.Chunk<Uint8Array>): Buffer => Buffer.concat([...pieces])

export const textOf = (pieces: Chunk.Chunk<Uint8Array>): string => bytesOf(pieces).toString()

/** Waits for the condition, a turn of the event loop at a time; the test's own limit ends it. */
export const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() =>
    condition()
      ? Effect.void
      : Effect.zipRight(
          Effect.async<void>((resume) => {
            setImmediate(() => resume(Effect.void))
          }),
          until(condition)
        )
  )

/** Some turns of the event loop: what was to happen at once has happened. */
export const turns = (count: number): Effect.Effect<void> => {
  let left = count
  return until(() => left-- <= 0)
}

/** Waits until so many connections are switched. */
export const connected = (server: Served["server"], count: number): Effect.Effect<void> =>
  Effect.flatMap(server.connections, (connections) =>
    connections.length === count ? Effect.void : Effect.zipRight(turns(1), connected(server, count))
  )

export interface Logged {
  readonly level: string
  readonly message: string
}

/** Runs with all that is logged kept in a list. */
export const withLogs = <A, E, R>(
  use: (logs: ReadonlyArray<Logged>) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const logs: Array<Logged> = []
    const logger = Logger.make<unknown, void>(({ cause, logLevel, message }) => {
      const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
      const why = Cause.isEmpty(cause) ? "" : ` ${Cause.pretty(cause)}`
      logs.push({ level: logLevel._tag, message: text + why })
    })
    return Effect.provide(use(logs), Logger.add(logger))
  })

/** What an effect ends in, for another fiber to look at. */
export const outcome = <A, E>() => Effect.runSync(Deferred.make<A, E>())

export type Session = (
  upgraded: Upgraded.Upgraded<Duplex, string>
) => Effect.Effect<unknown, UpgradeError.ConnectionError>

export type Handler = Effect.Effect<
  HttpServerResponse.HttpServerResponse,
  UpgradeError.UpgradeError,
  HttpServerRequest.HttpServerRequest | Scope.Scope | Connection.Net
>

export type Form = (session: Session, options?: Upgrade.Options) => Handler

const claimed = (
  pair: readonly [
    Upgrade.SwitchingProtocols,
    Effect.Effect<Upgraded.Upgraded<Duplex, string>, UpgradeError.SwitchError, Scope.Scope>
  ],
  session: Session
) => Effect.as(Effect.forkDaemon(Effect.scoped(Effect.flatMap(pair[1], session))), pair[0])

/** The ways to switch, each with and without the listener's tag. */
export const forms: ReadonlyArray<readonly [name: string, form: Form]> = [
  [
    "upgrade",
    (session, options) => Effect.as(Effect.flatMap(Upgrade.upgrade(echo, options), session), Upgrade.done) as Handler
  ],
  [
    "upgrade with the listener's tag",
    (session, options) =>
      Effect.as(Effect.flatMap(Upgrade.upgrade(Connection.Net, echo, options), session), Upgrade.done) as Handler
  ],
  [
    "session round upgrade",
    (session, options) =>
      Upgrade.session(
        Effect.as(Effect.flatMap(Upgrade.upgrade(echo, options), session), Upgrade.done) as Handler
      ) as Handler
  ],
  [
    "session round upgrade with the listener's tag",
    (session, options) =>
      Upgrade.session(
        Effect.as(Effect.flatMap(Upgrade.upgrade(Connection.Net, echo, options), session), Upgrade.done) as Handler
      )
  ],
  ["respond", (session, options) => Effect.flatMap(Upgrade.respond(echo, options), (pair) => claimed(pair, session))],
  [
    "respond with the listener's tag",
    (session, options) =>
      Effect.flatMap(Upgrade.respond(Connection.Net, echo, options), (pair) => claimed(pair, session))
  ],
  ["onUpgrade", (session, options) => Upgrade.onUpgrade(echo, session, options)],
  ["onUpgrade with the listener's tag", (session, options) => Upgrade.onUpgrade(Connection.Net, echo, session, options)]
]

/** The forms whose 101 is the route's value. */
export const answering = forms.filter(([name]) => !name.startsWith("upgrade"))

/** Echoes until the peer's FIN. */
export const echoing: Session = (upgraded) => Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))

export interface Opened {
  readonly peer: Peer.Peer
  readonly upgraded: Upgraded.Upgraded<Duplex, "echo">
  /** Closes the Scope that owns the connection. */
  readonly close: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void>
}

/** Switched connections by themselves: the peer's end and ours, in a Scope of their own. */
export const opening = (options?: ServeOptions & { readonly options?: Upgrade.Options }) =>
  Effect.gen(function* () {
    const switches =
      yield* Queue.unbounded<Effect.Effect<Upgraded.Upgraded<Duplex, "echo">, UpgradeError.SwitchError, Scope.Scope>>()
    const { options: own, ...rest } = options ?? {}
    const served = yield* serve(
      Effect.flatMap(Upgrade.respond(echo, own), ([response, upgraded]) =>
        Effect.as(Queue.offer(switches, upgraded), response)
      ),
      rest
    )
    const open = (early: Uint8Array | string = ""): Effect.Effect<Opened, Peer.PeerError, Scope.Scope> =>
      Effect.gen(function* () {
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const peer = yield* served.send(Buffer.concat([Buffer.from(ask()), Buffer.from(early)]))
        yield* peer.receiveHead
        const upgraded = yield* Effect.orDie(Effect.flatten(Queue.take(switches))).pipe(Scope.extend(scope))
        return { peer, upgraded, close: (exit) => Scope.close(scope, exit) }
      })
    return { ...served, open }
  })
