/** A bare 'upgrade' event: the least that node:http can do. */
import { createServer } from "node:http"
import type { Duplex } from "node:stream"
import { listen, pushBytes, pushChunk, took } from "./control.js"

const push = (socket: Duplex): void => {
  let left = pushBytes
  const fill = (): void => {
    while (left > 0) {
      left -= pushChunk.length
      took()
      if (!socket.write(pushChunk)) {
        return
      }
    }
    socket.end()
  }
  socket.on("drain", fill)
  socket.resume()
  fill()
}

const sessions: Record<string, (socket: Duplex) => void> = {
  "/data": (socket) => {
    socket.on("data", (bytes) => socket.write(bytes))
    socket.on("end", () => socket.end())
  },
  "/never": () => {},
  "/pipe": (socket) => {
    socket.pipe(socket)
  },
  "/push": push
}

const server = createServer()

server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => socket.destroy())
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${request.headers.upgrade}\r\n\r\n`)
  if (head.length > 0) {
    socket.unshift(head)
  }
  sessions[request.url!](socket)
})

listen(server)
