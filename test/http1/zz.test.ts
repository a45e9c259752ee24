import { assert, describe, it } from "@effect/vitest"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Effect from "effect/Effect"
import { asking, echo, kinds, serve } from "../support.js"
describe.each(kinds)("%s", (kind) => {
  it.scoped("echo", () => Effect.gen(function*() {
    const running = yield* serve(echo, { kind })
    const peer = yield* running.connect
    yield* peer.send(asking("/", { }) + "early")
    const head = yield* peer.receiveHead
    console.log(head.raw)
    assert.strictEqual((yield* peer.receiveExactly(5)).toString(), "early")
    assert.strictEqual(yield* running.switched, 1)
    yield* peer.end
    yield* peer.receiveAll
    yield* running.idle
    assert.strictEqual(yield* running.switched, 0)
  }))
})
