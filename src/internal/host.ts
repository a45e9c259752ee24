/**
 * One listening server: its settings, its registry of switched connections, and how it shuts down.
 */

import type { Server } from "node:http"
import type { Duplex } from "node:stream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"
import type { Listener } from "../Connection.js"
import type { Options } from "../UpgradeServer.js"
import type { Options as WebSocketOptions } from "../WebSocket.js"
import { type ConnectionImpl, connectionOf } from "./connection.js"
import { Deadlines } from "./deadlines.js"
import type { Exchange, Host, Settings } from "./exchange.js"
import type { Hijackable } from "./hijack.js"
import { carrierOf, closeUnanswered, currentResponse, stopAtUpgrades } from "./http1/node.js"
import { connectionDefaults, settingsOf } from "./settings.js"

const defaults: Settings = {
  decisionTimeout: 60_000,
  bodyTimeout: 30_000,
  claimTimeout: 10_000,
  ...connectionDefaults
}

/** What the platform's own server lets pass: programs that are written for it must find it here. */
const asPlatform: WebSocketOptions = { origin: "any", maxMessageSize: 100 * 1024 * 1024 }

export class ServerHost implements Host {
  readonly settings: Settings
  readonly maxConnections: number
  readonly hijackable: Hijackable | undefined
  readonly websocket: WebSocketOptions
  readonly drainTimeout: Duration.Duration
  readonly connections = new Set<ConnectionImpl>()
  readonly exchanges = new Set<Exchange>()
  draining = false
  /** The time to drain is over: what is switched from now on is closed at once. */
  private drained = false
  private readonly sockets = new Set<Duplex>()
  private readonly carriers = new Set<Duplex>()
  private readonly emptied = Effect.unsafeMakeLatch(true)

  constructor(
    readonly listener: Listener,
    readonly deadlines: Deadlines,
    readonly fork: (effect: Effect.Effect<void>) => void,
    options: Options
  ) {
    this.settings = settingsOf(defaults, options)
    this.maxConnections = options.maxConnections ?? Infinity
    this.websocket = options.websocket === undefined ? asPlatform : { ...asPlatform, ...options.websocket }
    const { hijackable } = options
    this.hijackable =
      hijackable &&
      ((request) => {
        try {
          return hijackable(request)
        } catch {
          // It is asked inside of Node's parser: a target that it cannot read must not end the process
          return false
        }
      })
    this.drainTimeout = Duration.decode(options.drainTimeout ?? 0)
  }

  connectionOf(socket: Duplex): ConnectionImpl {
    return connectionOf(socket, this.listener, this.fork)
  }

  enter(exchange: Exchange): void {
    this.exchanges.add(exchange)
    this.emptied.unsafeClose()
  }

  leave(exchange: Exchange): void {
    this.exchanges.delete(exchange)
    this.left()
  }

  private left(): void {
    if (this.connections.size === 0 && this.exchanges.size === 0) {
      this.emptied.unsafeOpen()
    }
  }

  register(connection: ConnectionImpl): void {
    this.emptied.unsafeClose()
    this.connections.add(connection)
    connection.registry = this
    if (this.drained) {
      this.fork(connection.shutdown())
    }
  }

  forget(connection: ConnectionImpl): void {
    this.connections.delete(connection)
    this.left()
  }

  /** A socket is the HTTP server's, for the first time or again: kept in sight, lest an idle one hold up the shutdown. */
  readonly track = (socket: Duplex): void => {
    const { sockets } = this
    stopAtUpgrades(socket, this.hijackable)
    const carrier = carrierOf(socket)
    if (carrier !== undefined) {
      this.carriers.delete(carrier)
    }
    if (!sockets.has(socket)) {
      sockets.add(socket)
      socket.once("close", () => {
        sockets.delete(socket)
        closeUnanswered(socket)
      })
    }
  }

  /** A TCP connection that has not become TLS yet. */
  readonly trackCarrier = (socket: Duplex): void => {
    this.carriers.add(socket)
    socket.once("close", () => this.carriers.delete(socket))
  }

  /** Something is served again after a drain. */
  serves(): void {
    this.draining = false
    this.drained = false
  }

  /** No new switches; those that are, and requests that offer one, get `drainTimeout` to end, and are interrupted then. */
  readonly drain: Effect.Effect<void> = Effect.suspend(() => {
    this.draining = true
    return Effect.zipRight(
      Duration.isFinite(this.drainTimeout)
        ? Duration.toMillis(this.drainTimeout) === 0
          ? Effect.void
          : Effect.asVoid(Effect.timeoutOption(Effect.interruptible(this.emptied.await), this.drainTimeout))
        : this.emptied.await,
      Effect.suspend(() =>
        Effect.zipRight(
          this.interruptExchanges,
          Effect.suspend(() => {
            this.drained = true
            return Effect.forEach(Array.from(this.connections), (connection) => connection.shutdown(), {
              concurrency: "unbounded",
              discard: true
            })
          })
        )
      )
    )
  })

  /** One whose answer is on its way is not interruptible, and ends with its socket where the answer does not leave. */
  private readonly interruptExchanges: Effect.Effect<void> = Effect.suspend(() => {
    const late = this.deadlines.add(this.settings.closeTimeout, () => {
      this.exchanges.forEach((exchange) => exchange.destroy())
    })
    return Effect.ensuring(
      Effect.forEach(
        Array.from(this.exchanges, ({ fiber }) => fiber).filter((fiber) => fiber !== undefined),
        (fiber) => Fiber.interrupt(fiber),
        { concurrency: "unbounded", discard: true }
      ),
      Effect.sync(() => late.cancel())
    )
  })

  /**
   * Destroys the sockets that wait for nothing: between two requests there is nothing to wait for, and one whose answer
   * is written but does not leave in `closeTimeout` has lost its peer, or is as good as lost.
   */
  private destroyIdle(late: boolean): void {
    for (const socket of this.sockets) {
      const response = currentResponse(socket)
      if (response === undefined || (late && response.writableEnded)) {
        socket.destroy()
      }
    }
    if (this.sockets.size > 0) {
      this.deadlines.add(this.settings.closeTimeout, () => this.destroyIdle(true))
    }
  }

  /** Stops listening, and is done when every connection is closed. */
  close(server: Server): Effect.Effect<void> {
    return Effect.zipRight(
      this.drain,
      Effect.async<void>((resume) => {
        if (!server.listening && this.sockets.size === 0) {
          return resume(Effect.void)
        }
        let open = this.sockets.size + 1
        const closed = () => {
          open = open - 1
          if (open === 0) {
            resume(Effect.void)
          }
        }
        for (const socket of this.sockets) {
          socket.once("close", closed)
        }
        this.destroyIdle(false)
        this.carriers.forEach((carrier) => carrier.destroy())
        server.close(closed)
      })
    )
  }
}

export const makeHost = (listener: Listener, options: Options): Effect.Effect<ServerHost, never, Scope.Scope> =>
  Effect.gen(function* () {
    const clock = yield* Effect.clock
    const run = yield* FiberSet.makeRuntime<never>()
    const fork = (effect: Effect.Effect<void>) => {
      run(effect)
    }
    return new ServerHost(listener, new Deadlines(clock, fork), fork, options)
  })
