import { createServer } from "node:http"
import { type WebSocket, WebSocketServer } from "ws"
import { listen } from "./control.js"

const maxPayload = 64 * 1024 * 1024

const plain = new WebSocketServer({ maxPayload, noServer: true, perMessageDeflate: false })
const deflating = new WebSocketServer({ maxPayload, noServer: true, perMessageDeflate: { threshold: 0 } })

const members = new Set<WebSocket>()

const sessions: Record<string, (socket: WebSocket) => void> = {
  "/deflate": (socket) => socket.on("message", (data, binary) => socket.send(data, { binary })),
  "/echo": (socket) => socket.on("message", (data, binary) => socket.send(data, { binary })),
  "/member": (socket) => {
    members.add(socket)
    socket.on("close", () => members.delete(socket))
  },
  "/publish": (socket) =>
    socket.on("message", (data, binary) => {
      for (const member of members) {
        member.send(data, { binary })
      }
    })
}

const server = createServer()

server.on("upgrade", (request, socket, head) => {
  const sockets = request.url === "/deflate" ? deflating : plain
  sockets.handleUpgrade(request, socket, head, (one) => {
    one.on("error", () => one.terminate())
    sessions[request.url!](one)
  })
})

listen(server)
