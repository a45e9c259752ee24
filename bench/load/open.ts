import * as net from "node:net"
import type { Target } from "../commands.js"

export const scratch = Buffer.allocUnsafe(1024 * 1024)

export const requestOf = (target: Target): Buffer =>
  Buffer.from(
    `GET ${target.path} HTTP/1.1\r\nHost: 127.0.0.1:${target.port}\r\nConnection: Upgrade\r\nUpgrade: ${
      target.protocol
    }\r\n${
      target.protocol === "websocket"
        ? "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        : ""
    }${target.extension === undefined ? "" : `Sec-WebSocket-Extensions: ${target.extension}\r\n`}\r\n`
  )

/** RFC 6455, 5.5.1: a Close of 1000, under the key 0. */
const closeFrame = Buffer.from([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8])

/** Ends as the protocol does, and then with a FIN. */
export const finish = (socket: net.Socket, target: Target): void => {
  if (target.protocol === "websocket") {
    socket.end(closeFrame)
  } else {
    socket.end()
  }
}

export interface Handlers {
  readonly onSwitch: (socket: net.Socket, head: string) => void
  /** Bytes of the new protocol, in `scratch` from start to end; false stops the reading. */
  readonly onBytes: (start: number, end: number) => boolean
  readonly onClose: (error: Error | undefined) => void
}

export const open = (port: number, request: Buffer, handlers: Handlers, noDelay = true): net.Socket => {
  let head = ""
  let switched = false
  let failure: Error | undefined
  const socket = net.connect({
    host: "127.0.0.1",
    noDelay,
    onread: {
      buffer: scratch,
      callback: (length) => {
        if (switched) {
          return handlers.onBytes(0, length)
        }
        head += scratch.toString("latin1", 0, length)
        const end = head.indexOf("\r\n\r\n")
        if (end === -1) {
          return true
        }
        if (!head.startsWith("HTTP/1.1 101 ")) {
          failure = new Error(`expected a 101, got ${JSON.stringify(head.slice(0, 200))}`)
          socket.destroy()
          return false
        }
        switched = true
        const start = length - (head.length - end - 4)
        handlers.onSwitch(socket, head.slice(0, end))
        return start < length ? handlers.onBytes(start, length) : true
      }
    },
    port
  })
  socket.write(request)
  socket.on("error", (error) => {
    failure = error
  })
  socket.on("close", () => handlers.onClose(failure ?? (switched ? undefined : new Error("closed before a 101"))))
  return socket
}
