// The handler is the session: `Upgrade.upgrade`. Run it: npx tsx docs/examples/direct.ts
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Effect, Layer } from "effect"
import { Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"

// Frames of one length byte and as many bytes of text; an empty one ends the session.
const shout = Effect.gen(function* () {
  const upgraded = yield* Upgrade.upgrade([Protocol.raw("shout/2"), Protocol.raw("shout")])
  const loud = upgraded.protocol === "shout/2" ? "!!" : "!"
  while (true) {
    const [length] = yield* Upgraded.readExactly(upgraded, 1)
    if (length === 0) {
      return Upgrade.done
    }
    const text = new TextDecoder().decode(yield* Upgraded.readExactly(upgraded, length))
    yield* Upgraded.write(upgraded, `${text.toUpperCase()}${loud}\n`)
  }
})

// With `Upgrade.session` round the handler, what maps the route's response maps the 101 too.
const router = HttpRouter.empty.pipe(
  HttpRouter.get("/shout", Upgrade.session(shout)),
  HttpRouter.use(Effect.map(HttpServerResponse.setHeader("x-served-by", "direct.ts")))
)

const port = Config.withDefault(Config.integer("PORT"), 3000)

router.pipe(
  HttpServer.serve(),
  HttpServer.withLogAddress,
  Layer.provide(UpgradeServer.layerConfig(() => createServer(), { port })),
  Layer.launch,
  NodeRuntime.runMain
)
