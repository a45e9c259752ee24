/** This library, from `dist`, as its README has it. */
import { createServer } from "node:http"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import type { Chunk } from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import type { Scope } from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Protocol from "effect-upgrade/Protocol"
import * as Upgrade from "effect-upgrade/Upgrade"
import * as Upgraded from "effect-upgrade/Upgraded"
import type { SwitchError } from "effect-upgrade/UpgradeError"
import * as UpgradeServer from "effect-upgrade/UpgradeServer"
import { pushBytes, pushChunk, took } from "./control.js"
import { main } from "./effect.js"

const protocol = Protocol.raw("echo")

const echo = (upgraded: Upgraded.Upgraded) =>
  Upgraded.run(upgraded, (bytes: Chunk<Uint8Array>) => Upgraded.writeAll(upgraded, bytes))

const upgrade = Effect.gen(function* () {
  const upgraded = yield* Upgrade.upgrade(protocol)
  yield* echo(upgraded)
  return Upgrade.done
})

const program = Layer.unwrapScoped(
  Effect.gen(function* () {
    const sessions = yield* Queue.unbounded<Effect.Effect<Upgraded.Upgraded, SwitchError, Scope>>()
    yield* Queue.take(sessions).pipe(
      Effect.flatMap((claim) => Effect.fork(Effect.scoped(Effect.flatMap(claim, echo)))),
      Effect.forever,
      Effect.forkScoped
    )
    const respond = Effect.gen(function* () {
      const [response, upgraded] = yield* Upgrade.respond(protocol)
      yield* Queue.offer(sessions, upgraded)
      return response
    })
    return HttpRouter.empty.pipe(
      HttpRouter.get("/run", Upgrade.onUpgrade(protocol, echo)),
      HttpRouter.get(
        "/stream",
        Upgrade.onUpgrade(protocol, (upgraded) => Stream.run(Upgraded.stream(upgraded), Upgraded.sink(upgraded)))
      ),
      HttpRouter.get("/upgrade", upgrade),
      HttpRouter.get("/session", Upgrade.session(upgrade)),
      HttpRouter.get("/respond", respond),
      HttpRouter.get(
        "/push",
        Upgrade.onUpgrade(protocol, (upgraded) =>
          Upgraded.write(upgraded, pushChunk).pipe(Effect.tap(took), Effect.repeatN(pushBytes / pushChunk.length - 1))
        )
      ),
      HttpRouter.get(
        "/push-sink",
        Upgrade.onUpgrade(protocol, (upgraded) =>
          Stream.range(1, pushBytes / pushChunk.length, 1).pipe(
            Stream.map((): Uint8Array => {
              took()
              return pushChunk
            }),
            Stream.run(Upgraded.sink(upgraded))
          )
        )
      ),
      HttpRouter.get(
        "/never",
        Upgrade.onUpgrade(protocol, () => Effect.never)
      ),
      HttpRouter.get(
        "/stuck",
        Upgrade.onUpgrade(protocol, (upgraded) => Upgraded.run(upgraded, () => Effect.never))
      ),
      HttpServer.serve()
    )
  })
)

main(
  program,
  UpgradeServer.layer(() => createServer(), { host: "127.0.0.1", port: 0 })
)
