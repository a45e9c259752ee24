/** The least that a proxy can do: the request again for the backend, and two pipes. */
import { createServer } from "node:http"
import { connect } from "node:net"
import { backendPort, listen } from "./control.js"

const server = createServer()

server.on("upgrade", (request, socket, head) => {
  const backend = connect({ host: "127.0.0.1", noDelay: true, port: backendPort })
  const fields: Array<string> = []
  for (let i = 0; i < request.rawHeaders.length; i += 2) {
    fields.push(`${request.rawHeaders[i]}: ${request.rawHeaders[i + 1]}\r\n`)
  }
  backend.write(`GET ${request.url} HTTP/1.1\r\n${fields.join("")}\r\n`)
  backend.write(head)
  socket.on("error", () => backend.destroy())
  backend.on("error", () => socket.destroy())
  socket.pipe(backend)
  backend.pipe(socket)
})

listen(server)
