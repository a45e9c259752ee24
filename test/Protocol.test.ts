import * as Headers from "@effect/platform/Headers"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import { Protocol, Upgrade, UpgradeError } from "../src/index.js"
import { ask, decode, echoing, serve } from "./appSupport.js"

const tokenCharacter = FastCheck.constantFrom(
  ..."!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
const token = FastCheck.array(tokenCharacter, { minLength: 1, maxLength: 8 }).map((characters) => characters.join(""))

const statusOf = (app: Effect.Effect<HttpServerResponse.HttpServerResponse, any, any>, request: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { send } = yield* serve(app)
      return yield* Effect.flatMap(send(request), (peer) => peer.receiveHead)
    })
  )

describe("raw", () => {
  it.prop(
    "takes any token, name or name/version (RFC 9110 §7.8)",
    [token, FastCheck.option(token)],
    ([name, version]) => {
      const protocol = Protocol.raw(version === null ? name : `${name}/${version}`)
      assert.strictEqual(protocol.name, name)
      assert.strictEqual(protocol.version, version ?? undefined)
      assert.isTrue(Protocol.isProtocol(protocol))
    }
  )

  it.each(["", "/", "a/", "/1", "a/1/2", "a b", "a,b", "a\r\nb", "é", "a\0", '"a"', "a;b"])(
    "throws a TypeError for %j",
    (bad) => {
      assert.throws(() => Protocol.raw(bad), TypeError)
    }
  )

  it("tells what it is", () => {
    const protocol = Protocol.raw("chat/2")
    assert.deepStrictEqual(JSON.parse(JSON.stringify(protocol)), { _id: "effect-upgrade/Protocol", token: "chat/2" })
    assert.strictEqual(
      protocol.pipe((self) => self.token),
      "chat/2"
    )
    assert.isFalse(Protocol.isProtocol({ token: "chat" }))
  })
})

describe("make", () => {
  it("throws a TypeError for a statusText that could not stand in a status line", () => {
    assert.throws(() => Protocol.make({ token: "a", statusText: "b\r\nc" }), TypeError)
  })

  it.effect("has for a client what it offers and verifies", () =>
    Effect.gen(function* () {
      const constant = Protocol.make({ token: "a", offer: { "X-Key": "1" } })
      assert.deepStrictEqual({ ...(yield* constant.offer) }, { "x-key": "1" })
      let calls = 0
      const made = Protocol.make({
        token: "a",
        offer: Effect.sync(() => ({ "x-key": String(++calls) })),
        verify: (response, sent) =>
          response.headers["x-accept"] === sent["x-key"]
            ? Effect.void
            : Effect.fail(new UpgradeError.ProtocolMismatch({ protocol: "a", description: "not mine" }))
      })
      const sent = yield* made.offer
      assert.strictEqual(sent["x-key"], "1")
      yield* made.verify({ status: 101, headers: Headers.fromInput({ "x-accept": "1" }) }, sent)
      const error = yield* Effect.flip(made.verify({ status: 101, headers: Headers.empty }, sent))
      assert.strictEqual(error._tag, "ProtocolMismatch")
      const plain = Protocol.raw("a")
      assert.deepStrictEqual({ ...(yield* plain.offer) }, {})
      yield* plain.verify({ status: 101, headers: Headers.empty }, Headers.empty)
    })
  )

  it.effect("is entered by its methods alone; by another, 405 with Allow", () =>
    Effect.gen(function* () {
      const docker = Protocol.make({ token: "tcp", methods: ["post", "put"], statusText: "UPGRADED" })
      const app = Upgrade.onUpgrade(docker, echoing)
      const entered = yield* statusOf(app, ask({ method: "POST", upgrade: "tcp", fields: { "Content-Length": "0" } }))
      assert.deepStrictEqual([entered.status, entered.statusText], [101, "UPGRADED"])
      const refused = yield* statusOf(app, ask({ upgrade: "tcp" }))
      assert.strictEqual(refused.status, 405)
      assert.strictEqual(refused.headers.allow, "POST, PUT")
    })
  )

  it.effect("answers what its check fails with, and puts on the 101 what it yields", () =>
    Effect.gen(function* () {
      class Secret extends Context.Tag("Secret")<Secret, string>() {}
      const keyed = Protocol.make({
        token: "keyed",
        check: (request) =>
          Effect.flatMap(Secret, (secret) =>
            request.headers["x-key"] === secret
              ? Effect.succeed({ "x-accept": secret })
              : Effect.fail(
                  new UpgradeError.HandshakeRefused({
                    protocol: "keyed",
                    status: 403,
                    description: "The key is not the one.",
                    headers: { "x-why": "key" }
                  })
                )
          )
      })
      const app = Effect.provideService(Upgrade.onUpgrade(keyed, echoing), Secret, "s")
      const entered = yield* statusOf(app, ask({ upgrade: "keyed", fields: { "X-Key": "s" } }))
      assert.strictEqual(entered.headers["x-accept"], "s")
      const refused = yield* statusOf(app, ask({ upgrade: "keyed" }))
      assert.strictEqual(refused.status, 403)
      assert.strictEqual(refused.headers["x-why"], "key")
    })
  )

  it.effect("may check without a word", () =>
    Effect.gen(function* () {
      const silent = Protocol.make({ token: "silent", check: () => Effect.void })
      const head = yield* statusOf(Upgrade.onUpgrade(silent, echoing), ask({ upgrade: "silent" }))
      assert.strictEqual(head.status, 101)
    })
  )
})

describe("a list of protocols", () => {
  const list = [Protocol.raw("v2"), Protocol.raw("v1/1.0"), Protocol.raw("v1")] as const

  it.scoped.each([
    ["v1", "v1"],
    ["v1, v2", "v2"],
    ["V2", "v2"],
    ["v1/1.0", "v1/1.0"],
    ["x, V1/1.0, v1", "v1/1.0"]
  ])("is in the server's order of preference: of %s it takes %s", ([offered, taken]) =>
    Effect.gen(function* () {
      const { send } = yield* serve(Upgrade.onUpgrade(list, (upgraded) => echoing(upgraded)))
      const peer = yield* send(ask({ upgrade: offered, body: "x" }))
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, 101)
      // RFC 9110 §15.2.2: the 101 names what was switched to
      assert.strictEqual(head.headers.upgrade, taken)
      assert.strictEqual(decode(yield* peer.receiveExactly(1)), "x")
    })
  )

  it.effect("that has none of what is offered answers 426 with all of them", () =>
    Effect.gen(function* () {
      const head = yield* statusOf(Upgrade.onUpgrade(list, echoing), ask({ upgrade: "v1/2.0, v3" }))
      assert.strictEqual(head.status, 426)
      assert.strictEqual(head.headers.upgrade, "v2, v1/1.0, v1")
    })
  )
})

describe("connect", () => {
  const app = Upgrade.onUpgrade(Protocol.connect, echoing)
  const connect = (target: string) => `CONNECT ${target} HTTP/1.1\r\nHost: a\r\n\r\n`

  it.effect.each(["a:443", "[::1]:80", "10.0.0.1:65535"])("is entered by CONNECT %s, and answered 200", (target) =>
    Effect.gen(function* () {
      const head = yield* statusOf(app, connect(target))
      assert.deepStrictEqual([head.status, head.statusText], [200, "Connection Established"])
      assert.isUndefined(head.headers["content-length"])
      assert.isUndefined(head.headers["transfer-encoding"])
      assert.isUndefined(head.headers.upgrade)
    })
  )

  it.effect.each(["a", "a:", "a:0", "a:65536", ":80"])("refuses the target %s with 400 (RFC 9110 §9.3.6)", (target) =>
    Effect.gen(function* () {
      assert.strictEqual((yield* statusOf(app, connect(target))).status, 400)
    })
  )

  it.effect("is not entered by an Upgrade field", () =>
    Effect.gen(function* () {
      assert.include([405, 426], (yield* statusOf(app, ask({ upgrade: "CONNECT" }))).status)
    })
  )
})
