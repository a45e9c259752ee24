/** uWebSockets.js: C++ below, a callback a message above. */
import { createRequire } from "node:module"
import { listening } from "./control.js"

interface Socket {
  readonly send: (message: ArrayBuffer, binary: boolean, compress: boolean) => number
  readonly subscribe: (topic: string) => void
}

interface Behavior {
  readonly compression: number
  readonly idleTimeout: number
  readonly maxBackpressure: number
  readonly maxPayloadLength: number
  readonly open?: (socket: Socket) => void
  readonly message?: (socket: Socket, message: ArrayBuffer, binary: boolean) => void
}

interface App {
  readonly ws: (path: string, behavior: Behavior) => App
  readonly publish: (topic: string, message: ArrayBuffer, binary: boolean, compress: boolean) => boolean
  readonly listen: (host: string, port: number, listening: (token: unknown) => void) => App
}

interface UWebSockets {
  readonly App: () => App
  readonly us_socket_local_port: (token: unknown) => number
  readonly DEDICATED_COMPRESSOR: number
  readonly DEDICATED_DECOMPRESSOR: number
}

const uws: UWebSockets = createRequire(import.meta.url)(process.env.BENCH_MODULE!)

const usual = { compression: 0, idleTimeout: 0, maxBackpressure: 1 << 28, maxPayloadLength: 1 << 26 }

const app = uws.App()

app
  .ws("/echo", { ...usual, message: (socket, message, binary) => socket.send(message, binary, false) })
  .ws("/deflate", {
    ...usual,
    compression: uws.DEDICATED_COMPRESSOR | uws.DEDICATED_DECOMPRESSOR,
    message: (socket, message, binary) => socket.send(message, binary, true)
  })
  .ws("/member", { ...usual, open: (socket) => socket.subscribe("topic") })
  .ws("/publish", { ...usual, message: (_socket, message, binary) => app.publish("topic", message, binary, false) })
  .listen("127.0.0.1", 0, (token) => listening(uws.us_socket_local_port(token)))
