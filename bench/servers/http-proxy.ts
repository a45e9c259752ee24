import { createServer, type IncomingMessage } from "node:http"
import { createRequire } from "node:module"
import type { Duplex } from "node:stream"
import { backendPort, listen } from "./control.js"

interface HttpProxy {
  readonly createProxyServer: (options: { readonly target: string; readonly ws: boolean }) => {
    readonly ws: (request: IncomingMessage, socket: Duplex, head: Buffer) => void
    readonly on: (event: "error", listener: (error: Error) => void) => void
  }
}

const { createProxyServer }: HttpProxy = createRequire(import.meta.url)(process.env.BENCH_MODULE!)

const proxy = createProxyServer({ target: `http://127.0.0.1:${backendPort}`, ws: true })
proxy.on("error", () => {})

const server = createServer()
server.on("upgrade", (request, socket, head) => proxy.ws(request, socket, head))

listen(server)
