/** This library's proxies, from `dist`: `join` by itself, and `reverseProxy`. */
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import * as Protocol from "effect-upgrade/Protocol"
import * as Tunnel from "effect-upgrade/Tunnel"
import * as Upgrade from "effect-upgrade/Upgrade"
import * as UpgradeClient from "effect-upgrade/UpgradeClient"
import * as UpgradeServer from "effect-upgrade/UpgradeServer"
import { backendPort } from "./control.js"
import { main } from "./effect.js"

const prefix = "/join"

/** What the load says that it speaks; to these two it is bytes. */
const protocol = Protocol.raw("websocket")

const joined = (path: string) =>
  Upgrade.onUpgrade(protocol, (client) =>
    Effect.flatMap(UpgradeClient.upgrade(`http://127.0.0.1:${backendPort}${path}`, protocol), (backend) =>
      Tunnel.join(client, backend)
    )
  )

const proxied = Tunnel.reverseProxy(`http://127.0.0.1:${backendPort}`)

const app = Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }) =>
  url.startsWith(prefix) ? joined(url.slice(prefix.length)) : proxied
)

main(HttpServer.serve(app), UpgradeServer.layerNet({ host: "127.0.0.1", port: 0 }))
