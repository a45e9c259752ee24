/** The platform's own upgrade: a WebSocket, through a router. */
import { createServer } from "node:http"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import { main } from "./effect.js"

const echo = Effect.gen(function* () {
  const socket = yield* HttpServerRequest.upgrade
  const write = yield* socket.writer
  yield* socket.runRaw((data) => write(data))
  return HttpServerResponse.empty()
})

main(
  HttpRouter.empty.pipe(HttpRouter.get("/echo", echo), HttpServer.serve()),
  NodeHttpServer.layer(() => createServer(), { host: "127.0.0.1", port: 0 })
)
