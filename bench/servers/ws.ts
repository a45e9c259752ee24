import { createServer } from "node:http"
import { WebSocketServer } from "ws"
import { listen } from "./control.js"

const server = createServer()
const sockets = new WebSocketServer({ server })

sockets.on("connection", (socket) => {
  socket.on("error", () => socket.terminate())
  socket.on("message", (data, binary) => socket.send(data, { binary }))
})

listen(server)
