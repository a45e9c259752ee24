// The response now, the session afterwards: `Upgrade.onUpgrade`. Run it: npx tsx docs/examples/callback.ts
import { createServer } from "node:http"
import { HttpRouter, HttpServer } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Layer } from "effect"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"

const echo = Upgrade.onUpgrade(
  Protocol.raw("echo"),
  (upgraded) =>
    Effect.gen(function* () {
      // Whatever ends the connection, its finalizers run.
      yield* Connection.addFinalizer(upgraded.connection, (exit) => Console.log(`closed: ${exit._tag}`))
      // One effect for each batch of what has arrived, the early bytes first, until the peer's FIN.
      yield* Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))
    }),
  { headers: { "x-greeting": "hello" }, onFailure: () => Console.log("the peer was lost") }
)

const port = Config.withDefault(Config.integer("PORT"), 3000)

HttpRouter.empty.pipe(
  HttpRouter.get("/echo", echo),
  HttpServer.serve(),
  HttpServer.withLogAddress,
  Layer.provide(UpgradeServer.layerConfig(() => createServer(), { port })),
  Layer.launch,
  NodeRuntime.runMain
)
