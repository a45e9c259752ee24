import { Child, type Load, type Server } from "./child.js"
import type { Target } from "./commands.js"
import { type Extra, extra } from "./extras.js"
import type { Options } from "./options.js"

/** One server program, at one of its paths; each is run in a process of its own. */
export interface Peer {
  readonly name: string
  /** The file under `servers/`. */
  readonly server: string
  readonly path: string
  readonly protocol: Target["protocol"]
  /** What must be installed for it. */
  readonly extra?: Extra
}

const peer = (name: string, server: string, path: string, protocol: Target["protocol"] = "echo"): Peer => ({
  name,
  path,
  protocol,
  server
})

const webSocket = (name: string, server: string, path: string, extra?: Extra): Peer => ({
  ...peer(name, server, path, "websocket"),
  ...(extra && { extra })
})

export const bare = peer("bare 'upgrade', socket.pipe(socket)", "bare", "/pipe")
export const bareData = peer("bare 'upgrade', a 'data' listener", "bare", "/data")
export const ws = webSocket("ws", "ws", "/echo")
export const platform = webSocket("platform-node, HttpServerRequest.upgrade", "platform", "/echo")
export const handler = peer("makeHandler, a constant 101", "handler", "/constant")
export const handlerRouter = peer("makeHandler, a constant 101 in a router", "handler", "/router")
export const direct = peer("ours, upgrade and run", "ours", "/upgrade")
export const session = peer("ours, session(upgrade and run)", "ours", "/session")
export const respond = peer("ours, respond, claimed from a Queue, run", "ours", "/respond")
export const onUpgrade = peer("ours, onUpgrade with run", "ours", "/run")
export const onUpgradeStream = peer("ours, onUpgrade with stream and sink", "ours", "/stream")

export const codec = webSocket("a bare codec, no Effect", "codec", "/echo")
export const uws = webSocket("uWebSockets", "uws", "/echo", "uws")
export const bun = webSocket("Bun", "bun", "/echo", "bun")
export const run = webSocket("ours, WebSocket.run", "websocket", "/run")
export const runBatch = webSocket("ours, WebSocket.runBatch", "websocket", "/run-batch")
export const stream = webSocket("ours, WebSocket.stream and sink", "websocket", "/stream")
export const deflate = webSocket("ours, deflate", "websocket", "/deflate")
export const topic = webSocket("ours, Topic", "websocket", "/echo")

/** The paths of proxies are put before those of what is behind them. */
export const pipes = peer("two pipes", "pipes", "")
export const httpProxy: Peer = { ...peer("http-proxy", "http-proxy", ""), extra: "http-proxy" }
export const join = peer("ours, Tunnel.join", "tunnel", "/join")
export const reverseProxy = peer("ours, Tunnel.reverseProxy", "tunnel", "")

export const barePush = peer("bare, write and 'drain'", "bare", "/push")
export const pushWrite = peer("ours, write in a loop", "ours", "/push")
export const pushSink = peer("ours, a stream into sink", "ours", "/push-sink")
export const bareNever = peer("bare, paused", "bare", "/never")
export const never = peer("ours, a handler that never reads", "ours", "/never")
export const stuck = peer("ours, run with an effect that never ends", "ours", "/stuck")

export const chosen = (peers: ReadonlyArray<Peer>, options: Options): ReadonlyArray<Peer> =>
  peers.filter(
    (peer) => options.servers.includes(peer.server) && (peer.extra === undefined || extra(peer.extra) !== undefined)
  )

const start = (peer: Peer, options: Options, core: number, backend: Server | undefined): Promise<Server> => {
  const file = peer.extra === undefined ? "" : extra(peer.extra)!
  const env = {
    BENCH_BACKEND_PORT: backend ? String(backend.port) : "",
    BENCH_MODULE: file,
    BENCH_PUSH_BYTES: String(options.push),
    BENCH_UNTRACED: options.untraced ? "1" : ""
  }
  const runtime = peer.extra === "bun" ? [file] : undefined
  return Child.start(`servers/${peer.server}`, peer.name, core, env, runtime)
}

export const startServer = (peer: Peer, options: Options, backend?: Server): Promise<Server> =>
  start(peer, options, options.serverCore, backend)

/** What stands behind a proxy is no part of what is measured, and shares the core of the load. */
export const startBackend = (peer: Peer, options: Options): Promise<Server> =>
  start(peer, options, options.loadCore, undefined)

export const startLoad = (options: Options): Promise<Load> => Child.start("load", "load", options.loadCore, {})

export const targetOf = (peer: Peer, server: Server): Target => ({
  path: peer.path,
  port: server.port,
  protocol: peer.protocol
})

/** Each round begins with another peer and every other one goes backwards, so that none is always first. */
export const order = <A>(items: ReadonlyArray<A>, round: number): ReadonlyArray<A> => {
  const turned = items.map((_, index) => items[(index + round) % items.length])
  return round % 2 === 0 ? turned : turned.reverse()
}

export const note = (text: string): void => {
  process.stderr.write(`${text}\n`)
}

export const sleep = (seconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
