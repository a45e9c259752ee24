/** This library's WebSocket, from `dist`: an effect a message, an effect a batch, a stream into a sink; and its Topic. */
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as Topic from "effect-upgrade/Topic"
import * as UpgradeServer from "effect-upgrade/UpgradeServer"
import * as WebSocket from "effect-upgrade/WebSocket"
import { main } from "./effect.js"

const echo = (ws: WebSocket.WebSocket) => WebSocket.run(ws, (message) => WebSocket.send(ws, message))

const echoBatch = (ws: WebSocket.WebSocket) => WebSocket.runBatch(ws, (messages) => WebSocket.sendAll(ws, messages))

const program = Layer.unwrapEffect(
  Effect.map(Topic.make(), (topic) =>
    HttpRouter.empty.pipe(
      HttpRouter.get("/run", WebSocket.onUpgrade({}, echo)),
      HttpRouter.get("/run-batch", WebSocket.onUpgrade({}, echoBatch)),
      HttpRouter.get(
        "/stream",
        WebSocket.onUpgrade({}, (ws) => Stream.run(WebSocket.stream(ws), WebSocket.sink(ws)))
      ),
      HttpRouter.get("/deflate", WebSocket.onUpgrade({ compression: { threshold: 0 } }, echo)),
      HttpRouter.get(
        "/member",
        WebSocket.onUpgrade({}, (ws) =>
          Effect.zipRight(
            Topic.subscribe(topic, ws),
            WebSocket.run(ws, () => Effect.void)
          )
        )
      ),
      HttpRouter.get(
        "/publish",
        WebSocket.onUpgrade({}, (ws) => WebSocket.run(ws, (message) => Topic.publish(topic, message)))
      ),
      HttpServer.serve()
    )
  )
)

main(program, UpgradeServer.layerNet({ host: "127.0.0.1", port: 0 }))
