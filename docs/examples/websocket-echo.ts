/**
 * A websocket that echoes: text and binary messages of up to 64 MiB.
 *
 *     npm run example:websocket-echo
 *
 * `PORT` sets the port, `DEFLATE=1` agrees to permessage-deflate.
 */
import { createServer } from "node:http"
import { HttpRouter, HttpServer } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Effect, Layer } from "effect"
import { UpgradeServer, WebSocket } from "effect-upgrade"

const echo = (compression: boolean) =>
  WebSocket.onUpgrade({ compression, maxMessageSize: 64 * 1024 * 1024, origin: "any" }, (ws) =>
    WebSocket.runBatch(ws, (messages) => WebSocket.sendAll(ws, messages))
  )

const app = Layer.unwrapEffect(
  Effect.gen(function* () {
    const port = yield* Config.integer("PORT").pipe(Config.withDefault(9001))
    const compression = yield* Config.boolean("DEFLATE").pipe(Config.withDefault(false))
    return HttpRouter.empty.pipe(
      HttpRouter.get("*", echo(compression)),
      HttpServer.serve(),
      HttpServer.withLogAddress,
      Layer.provide(UpgradeServer.layer(() => createServer(), { port }))
    )
  })
)

NodeRuntime.runMain(Layer.launch(app))
