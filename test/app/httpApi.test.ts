import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Protocol, Upgrade, UpgradeError } from "../../src/index.js"
import { ask, echo, echoing, type Handler, type ServeOptions, serveLayer } from "../appSupport.js"
import { type Mount, switchesIn } from "./switching.js"

const declared = HttpApi.make("api").add(
  HttpApiGroup.make("all")
    .add(HttpApiEndpoint.get("echo", "/echo").addError(UpgradeError.UpgradeError))
    .add(HttpApiEndpoint.get("plain", "/plain").addSuccess(Schema.String))
)

/** The API that declares the errors, with this handler at `/echo`. */
const declaring: Mount = (handler) =>
  HttpApiBuilder.serve().pipe(
    Layer.provide(HttpApiBuilder.api(declared)),
    Layer.provide(
      HttpApiBuilder.group(declared, "all", (handlers) =>
        handlers.handleRaw("echo", () => handler).handleRaw("plain", () => HttpServerResponse.text("plain"))
      )
    )
  )

const undeclared = HttpApi.make("api").add(
  HttpApiGroup.make("all")
    .add(HttpApiEndpoint.get("echo", "/echo"))
    .add(HttpApiEndpoint.get("plain", "/plain").addSuccess(Schema.String))
)

describe("in an HttpApi whose endpoint declares the errors", () => {
  switchesIn(declaring)

  const refusal = (protocol: Protocol.Protocol<"echo">, options?: ServeOptions) =>
    Effect.gen(function* () {
      const served = yield* serveLayer(declaring(Upgrade.onUpgrade(protocol, echoing) as Handler), options)
      const answer = Effect.scoped(Effect.flatMap(served.send(ask()), (peer) => peer.receiveResponse))
      return { ...served, answer }
    })

  it.scoped("a wrong method is answered with 405 and Allow, and the error is the content", () =>
    Effect.gen(function* () {
      const { answer } = yield* refusal(Protocol.make({ token: "echo", methods: ["POST"] }))
      const { headers, status, text } = yield* answer
      assert.strictEqual(status, 405)
      assert.strictEqual(headers.allow, "POST")
      assert.include(JSON.parse(text), { _tag: "NotUpgradable", reason: "Method" })
    })
  )

  it.scoped("the protocol's own refusal is answered with its status, and the error is the content", () =>
    Effect.gen(function* () {
      const check = () =>
        Effect.fail(new UpgradeError.HandshakeRefused({ protocol: "echo", status: 403, description: "not from there" }))
      const { answer } = yield* refusal(Protocol.make({ token: "echo", check }))
      const { status, text } = yield* answer
      assert.strictEqual(status, 403)
      assert.include(JSON.parse(text), { _tag: "HandshakeRefused", status: 403 })
    })
  )

  it.scoped("a server that drains answers with 503, Retry-After and Connection: close", () =>
    Effect.gen(function* () {
      const { answer, server } = yield* refusal(echo)
      yield* server.drain
      const { headers, status, text } = yield* answer
      assert.strictEqual(status, 503)
      assert.isDefined(headers["retry-after"])
      assert.strictEqual(headers.connection, "close")
      assert.include(JSON.parse(text), { _tag: "ServerDraining" })
    })
  )

  it.scoped("one connection too many is answered with 503, Retry-After and Connection: close", () =>
    Effect.gen(function* () {
      const { answer, send } = yield* refusal(echo, { maxConnections: 1 })
      const first = yield* send(ask())
      assert.strictEqual((yield* first.receiveHead).status, 101)
      const { headers, status, text } = yield* answer
      assert.strictEqual(status, 503)
      assert.isDefined(headers["retry-after"])
      assert.strictEqual(headers.connection, "close")
      assert.include(JSON.parse(text), { _tag: "TooManyConnections", limit: 1 })
    })
  )
})

describe("in an HttpApi whose endpoint declares no error", () => {
  switchesIn((handler) =>
    HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.api(undeclared)),
      Layer.provide(
        HttpApiBuilder.group(undeclared, "all", (handlers) =>
          handlers
            .handleRaw("echo", () => Upgrade.orRespond(handler))
            .handleRaw("plain", () => HttpServerResponse.text("plain"))
        )
      )
    )
  )
})
