import { HttpServerRequest } from "@effect/platform"
import { it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { Connection, Protocol, Upgrade, type UpgradeError } from "effect-upgrade"
import { assert, describe } from "vitest"

/** A request of the platform that came by no server of Node's. */
const fromWeb = HttpServerRequest.fromWeb(
  new Request("http://a/", { headers: { upgrade: "echo", connection: "upgrade" } })
)

const withSource = (source: unknown): HttpServerRequest.HttpServerRequest =>
  Object.create(fromWeb, { source: { value: source } })

describe("a request that came by another server", () => {
  it.effect.each([
    ["a web request", fromWeb],
    ["one without a message", withSource(undefined)],
    ["one whose message has no socket", withSource({ socket: null })],
    ["one whose socket has no server", withSource({ socket: {} })],
    ["one of a server that is not ours", withSource({ socket: { server: {} } })]
  ] as const)("is %s: it wants nothing, offers nothing, and cannot be switched", ([_, request]) =>
    Effect.gen(function* () {
      assert.isFalse(yield* Upgrade.wants(Protocol.raw("echo")))
      assert.deepStrictEqual(yield* Upgrade.offers, [])
      assert.strictEqual((yield* Effect.flip(Connection.current))._tag, "NotUpgradable")
      for (const attempt of [
        Upgrade.upgrade(Protocol.raw("echo")),
        Upgrade.respond(Protocol.raw("echo")),
        Upgrade.onUpgrade(Protocol.raw("echo"), () => Effect.void)
      ]) {
        const error = yield* Effect.flip<
          unknown,
          UpgradeError.UpgradeError,
          HttpServerRequest.HttpServerRequest | Scope.Scope
        >(attempt)
        assert(error._tag === "NotUpgradable")
        assert.deepStrictEqual([error._tag, error.reason], ["NotUpgradable", "Server"])
      }
    }).pipe(Effect.scoped, Effect.provideService(HttpServerRequest.HttpServerRequest, request))
  )
})
