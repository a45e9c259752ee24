/**
 * What the platform's path costs by itself: its own request handler answers each 'upgrade' with a constant 101, first
 * as a bare app and then as the only route of a router.
 */
import { createServer, ServerResponse } from "node:http"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import { listen } from "./control.js"
import { untraced } from "./effect.js"

const constant = HttpServerResponse.empty({ headers: { connection: "Upgrade", upgrade: "echo" }, status: 101 })

const program = Effect.gen(function* () {
  const constantHandler = yield* NodeHttpServer.makeHandler(constant)
  const routerHandler = yield* NodeHttpServer.makeHandler(HttpRouter.empty.pipe(HttpRouter.get("/router", constant)))
  const server = createServer()
  server.on("upgrade", (request, socket, head) => {
    socket.on("error", () => socket.destroy())
    const response = new ServerResponse(request)
    response.assignSocket(socket as Parameters<typeof response.assignSocket>[0])
    response.on("finish", () => {
      response.detachSocket(socket as Parameters<typeof response.detachSocket>[0])
      if (head.length > 0) {
        socket.unshift(head)
      }
      socket.pipe(socket)
    })
    if (request.url === "/router") {
      routerHandler(request, response)
    } else {
      constantHandler(request, response)
    }
  })
  listen(server)
  return yield* Effect.never
})

NodeRuntime.runMain(untraced ? HttpMiddleware.withTracerDisabledWhenEffect(program, () => true) : program)
