import { HttpClientRequest, HttpClientResponse, HttpServerRespondable } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Effect, pipe } from "effect"
import { Protocol, UpgradeClient, Upgraded, UpgradeError } from "effect-upgrade"
import { requestHead, scripted, switching } from "./support.js"

const request = HttpClientRequest.get("http://a/")
const response = HttpClientResponse.fromWeb(request, new Response("no", { status: 401 }))

describe("a client's error", () => {
  for (const [error, status] of [
    [new UpgradeError.UpgradeRejected({ protocol: "echo", request, response }), 502],
    [new UpgradeError.ProtocolMismatch({ protocol: "echo", description: "other" }), 502],
    [new UpgradeError.ConnectFailed({ address: "a:1", reason: "Connect", description: "refused" }), 502],
    [new UpgradeError.TlsFailed({ description: "not trusted" }), 502],
    [new UpgradeError.UpgradeTimeout({ stage: "Connect", millis: 1 }), 504],
    [new UpgradeError.UpgradeTimeout({ stage: "Head", millis: 1 }), 504],
    [new UpgradeError.UpgradeTimeout({ stage: "Total", millis: 1 }), 504]
  ] as const) {
    it.effect(
      `${error._tag}${"stage" in error ? ` ${error.stage}` : ""} that a handler lets through is ${status}, and tells nothing`,
      () =>
        Effect.gen(function* () {
          const answer = yield* HttpServerRespondable.toResponse(error)
          assert.strictEqual(answer.status, status)
          assert.strictEqual(answer.body._tag, "Empty")
        })
    )
  }

  it("has a message that says what happened", () => {
    assert.strictEqual(
      new UpgradeError.UpgradeRejected({ protocol: "echo", request, response }).message,
      "The server answered 401 instead of the switch to echo."
    )
    assert.strictEqual(new UpgradeError.InvalidRequest({ description: "no URL" }).message, "no URL")
  })

  it("holds a request and a response of the platform, and nothing else", () => {
    assert.throws(() => new UpgradeError.UpgradeRejected({ protocol: "echo", request, response: {} as never }))
    assert.throws(() => new UpgradeError.UpgradeRejected({ protocol: "echo", request: {} as never, response }))
  })
})

describe("a client in a pipe", () => {
  it.scopedLive("takes its request last", () =>
    Effect.gen(function* () {
      for (const protocol of [Protocol.raw("echo"), [Protocol.raw("echo")] as const]) {
        const { server, socket } = yield* scripted()
        yield* Effect.fork(Effect.zipRight(requestHead(server), server.send(switching())))
        const upgraded = yield* pipe(request, UpgradeClient.upgrade(protocol, { socket }))
        assert.isTrue(Upgraded.isUpgraded(upgraded))
      }
    })
  )

  it.scopedLive("secures its connection last", () =>
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      yield* Effect.fork(Effect.zipRight(requestHead(server), server.send(switching())))
      const upgraded = yield* UpgradeClient.upgrade(request, Protocol.raw("echo"), { socket })
      yield* server.end
      const error = yield* Effect.flip(pipe(upgraded, Upgraded.secure({ role: "client", servername: "a" })))
      assert.strictEqual(error._tag, "TlsFailed")
    })
  )
})
