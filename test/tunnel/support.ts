/** What stands behind a tunnel: a server of bare sockets, each a scripted peer. */
import * as net from "node:net"
import { Worker } from "node:worker_threads"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Peer from "../../src/testing/Peer.js"

export interface Backend {
  readonly port: number
  /** The next connection that was accepted. */
  readonly accept: Effect.Effect<Peer.Peer, never, Scope.Scope>
  /** A socket that connects to it, without waiting. */
  readonly dial: () => net.Socket
  /** Connections that are open at its end. */
  readonly open: Effect.Effect<number>
}

export const backend: Effect.Effect<Backend, never, Scope.Scope> = Effect.gen(function* () {
  const accepted = yield* Queue.unbounded<net.Socket>()
  const sockets = new Set<net.Socket>()
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    sockets.add(socket)
    socket.on("error", () => {})
    socket.on("close", () => sockets.delete(socket))
    Queue.unsafeOffer(accepted, socket)
  })
  yield* Effect.acquireRelease(
    Effect.async<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.sync(() => {
        sockets.forEach((socket) => socket.destroy())
        server.close()
      })
  )
  const { port } = server.address() as net.AddressInfo
  return {
    port,
    accept: Effect.flatMap(Queue.take(accepted), (socket) =>
      Effect.tap(Peer.fromDuplex(socket), () => Effect.sync(() => socket.resume()))
    ),
    dial: () => net.connect(port, "127.0.0.1"),
    open: Effect.sync(() => sockets.size)
  }
})

/** Some port on which nobody listens. */
export const closedPort: Effect.Effect<number> = Effect.async((resume) => {
  const server = net.createServer()
  server.listen(0, "127.0.0.1", () => {
    const { port } = server.address() as net.AddressInfo
    server.close(() => resume(Effect.succeed(port)))
  })
})

export const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")

/** A listener at 127.0.0.3 of this port that never accepts: once its queue is full, who connects to it waits. */
export const unanswering = (port: number): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const released = new Int32Array(new SharedArrayBuffer(4))
    yield* Effect.acquireRelease(
      Effect.async<Worker>((resume) => {
        const worker = new Worker(
          `const { parentPort, workerData } = require("node:worker_threads")
           require("node:net").createServer().listen({ port: workerData.port, host: "127.0.0.3", backlog: 1 }, () => {
             parentPort.postMessage("listening")
             setImmediate(() => { Atomics.wait(workerData.released, 0, 0); process.exit() })
           })`,
          { eval: true, workerData: { port, released } }
        )
        worker.once("message", () => resume(Effect.succeed(worker)))
      }),
      (worker) =>
        Effect.promise(() => {
          Atomics.store(released, 0, 1)
          Atomics.notify(released, 0)
          return worker.terminate()
        })
    )
    // The queue takes some connections; the first that is not answered at once is behind them.
    for (let open = true; open; ) {
      const socket = yield* Effect.acquireRelease(
        Effect.sync(() => net.connect(port, "127.0.0.3").on("error", () => {})),
        (socket) => Effect.sync(() => socket.destroy())
      )
      open = yield* Effect.async<boolean>((resume) => {
        socket.once("connect", () => resume(Effect.succeed(true)))
        let turns = 50
        const turn = () => (turns-- > 0 ? setImmediate(turn) : resume(Effect.succeed(false)))
        turn()
      })
    }
  })
