/** Bun's own server, under Bun. */
import { listening } from "./control.js"

interface Socket {
  readonly data: string
  readonly send: (message: string | Uint8Array, compress: boolean) => number
  readonly subscribe: (topic: string) => void
}

interface Server {
  readonly port: number
  readonly upgrade: (request: Request, options: { readonly data: string }) => boolean
  readonly publish: (topic: string, message: string | Uint8Array, compress: boolean) => number
}

declare const Bun: {
  readonly serve: (options: {
    readonly hostname: string
    readonly port: number
    readonly fetch: (request: Request, server: Server) => Response | undefined
    readonly websocket: {
      readonly perMessageDeflate: boolean
      readonly idleTimeout: number
      readonly backpressureLimit: number
      readonly maxPayloadLength: number
      readonly open: (socket: Socket) => void
      readonly message: (socket: Socket, message: string | Uint8Array) => void
    }
  }) => Server
}

const server = Bun.serve({
  fetch: (request, server) =>
    server.upgrade(request, { data: new URL(request.url).pathname })
      ? undefined
      : new Response("expected a WebSocket", { status: 426 }),
  hostname: "127.0.0.1",
  port: 0,
  websocket: {
    backpressureLimit: 1 << 28,
    idleTimeout: 0,
    maxPayloadLength: 1 << 26,
    message: (socket, message) => {
      if (socket.data === "/publish") {
        server.publish("topic", message, false)
      } else {
        socket.send(message, socket.data === "/deflate")
      }
    },
    open: (socket) => {
      if (socket.data === "/member") {
        socket.subscribe("topic")
      }
    },
    perMessageDeflate: true
  }
})

listening(server.port)
