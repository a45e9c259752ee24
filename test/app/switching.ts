/** What holds of a switch in every kind of app: the same statements are made of each. */
import type * as HttpServer from "@effect/platform/HttpServer"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type { Connection, UpgradeServer } from "../../src/index.js"
import { Upgrade } from "../../src/index.js"
import { ask, decode, echoing, forms, get, type Handler, serveLayer } from "../appSupport.js"

/** The app with this handler at `/echo`, and an ordinary one at `/plain` that answers "plain". */
export type Mount = (
  handler: Handler
) => Layer.Layer<never, unknown, UpgradeServer.Provided | Connection.Net | HttpServer.HttpServer>

export const switchesIn = (mount: Mount): void => {
  describe.each(forms)("%s", (_, form) => {
    it.scoped("switches, and the session has the early bytes first", () =>
      Effect.gen(function* () {
        const { send } = yield* serveLayer(mount(form(echoing, { headers: { "x-room": "1" } })))
        const peer = yield* send(ask({ body: "early" }))
        const head = yield* peer.receiveHead
        assert.strictEqual(head.status, 101)
        assert.strictEqual(head.headers.upgrade, "echo")
        assert.strictEqual(head.headers.connection, "Upgrade")
        assert.strictEqual(head.headers["x-room"], "1")
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
        yield* peer.send("later")
        yield* peer.end
        assert.strictEqual(decode(yield* peer.receiveAll), "later")
      })
    )

    it.scoped("leaves the other routes, and its own on another connection, as they were", () =>
      Effect.gen(function* () {
        const { send } = yield* serveLayer(mount(form(echoing)))
        const switched = yield* send(ask())
        assert.strictEqual((yield* switched.receiveHead).status, 101)
        const peer = yield* send(get("/plain"))
        const first = yield* peer.receiveResponse
        assert.strictEqual(first.status, 200)
        assert.strictEqual(first.text, "plain")
        yield* peer.send(ask({ body: "early" }))
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      })
    )

    it.scoped("answers 426 with the protocols to a request that offers none of them", () =>
      Effect.gen(function* () {
        const { send } = yield* serveLayer(mount(form(echoing)))
        for (const request of [get("/echo"), ask({ upgrade: "other" })]) {
          const peer = yield* send(request)
          const response = yield* peer.receiveResponse
          assert.strictEqual(response.status, 426)
          // RFC 9110 §15.5.22: a 426 MUST have Upgrade; §7.8: and Upgrade is a connection option
          assert.strictEqual(response.headers.upgrade, "echo")
          assert.include(response.headers.connection?.toLowerCase(), "upgrade")
        }
      })
    )

    it.scoped("is answered for by orRespond", () =>
      Effect.gen(function* () {
        const { send } = yield* serveLayer(mount(Upgrade.orRespond(form(echoing))))
        const refused = yield* send(ask({ upgrade: "other" }))
        const response = yield* refused.receiveResponse
        assert.strictEqual(response.status, 426)
        assert.strictEqual(response.headers.upgrade, "echo")
        const peer = yield* send(ask({ body: "early" }))
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        assert.strictEqual(decode(yield* peer.receiveExactly(5)), "early")
      })
    )
  })
}
