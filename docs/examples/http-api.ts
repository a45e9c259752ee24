// Endpoints of an HttpApi that switch: one declares the handshake's errors, the other answers them itself.
// Run it: npx tsx docs/examples/http-api.ts
import { createServer } from "node:http"
import { HttpApi, HttpApiBuilder, HttpApiEndpoint, HttpApiGroup, HttpServer } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Layer } from "effect"
import { Protocol, Upgrade, Upgraded, UpgradeError, UpgradeServer } from "effect-upgrade"

const api = HttpApi.make("api").add(
  HttpApiGroup.make("echo")
    // In the API's description, and so in its OpenAPI document and its derived client.
    .add(HttpApiEndpoint.get("declared", "/declared").addError(UpgradeError.UpgradeError))
    .add(HttpApiEndpoint.get("responded", "/responded"))
)

const echo = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
  Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))
)

const handlers = HttpApiBuilder.group(api, "echo", (handlers) =>
  handlers.handleRaw("declared", () => echo).handleRaw("responded", () => Upgrade.orRespond(echo))
)

const port = Config.withDefault(Config.integer("PORT"), 3000)

HttpApiBuilder.serve().pipe(
  HttpServer.withLogAddress,
  Layer.provide(HttpApiBuilder.api(api)),
  Layer.provide(handlers),
  Layer.provide(UpgradeServer.layerConfig(() => createServer(), { port })),
  Layer.launch,
  NodeRuntime.runMain
)
