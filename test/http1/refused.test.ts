import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import * as UpgradeError from "../../src/UpgradeError.js"
import { type App, asking, echo, echoed, kinds, message, serve, turn } from "../support.js"

const raw = Protocol.raw("echo")

const refusing = (status: number) =>
  Protocol.make({
    token: "echo",
    check: () =>
      Effect.fail(new UpgradeError.HandshakeRefused({ protocol: "echo", status, description: `No, ${status}.` }))
  })

/** Refusals by the target. */
const refusals: Record<string, App> = {
  "/426": Upgrade.onUpgrade(Protocol.raw("other"), echoed),
  "/405": Upgrade.onUpgrade(Protocol.make({ token: "echo", methods: ["POST"] }), echoed),
  "/400": Upgrade.onUpgrade(refusing(400), echoed),
  "/401": Upgrade.onUpgrade(refusing(401), echoed),
  "/403": Upgrade.onUpgrade(refusing(403), echoed),
  "/500": Upgrade.onUpgrade(raw, echoed, { headers: { "content-length": "1" } })
}

const app: App = Effect.flatMap(
  HttpServerRequest.HttpServerRequest,
  ({ url }): App => refusals[url] ?? Effect.succeed(HttpServerResponse.text(url))
)

const get = (target: string) => message(`GET ${target} HTTP/1.1`, ["Host: a"])

describe.each(kinds)("over %s", (kind) => {
  it.scoped.each(Object.keys(refusals))(
    "a refusal by %s closes a connection with bytes behind it: they may be the other protocol's (optimistic-upgrade draft)",
    (target) =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(app, { kind })
        const peer = yield* connect
        // What comes behind is not to be read as a request, which it could be made to look like
        yield* peer.send(`${asking(target)}${get("/smuggled")}`)
        const { headers, status } = yield* peer.receiveResponse
        assert.strictEqual(status, Number(target.slice(1)))
        assert.include(headers.connection!.split(/\s*,\s*/), "close")
        assert.strictEqual((yield* peer.receiveAll).length, 0)
        yield* peer.end
        yield* idle
      })
  )
})

describe("a refusal", () => {
  it.scoped.each(Object.keys(refusals).filter((target) => target !== "/500"))(
    "by %s with nothing behind it leaves the connection to further requests",
    (target) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(app)
        const peer = yield* connect
        for (let i = 0; i < 2; i++) {
          yield* peer.send(asking(target))
          assert.strictEqual((yield* peer.receiveResponse).status, Number(target.slice(1)))
        }
        yield* peer.send(get("/next"))
        assert.strictEqual((yield* peer.receiveResponse).text, "/next")
      })
  )

  it.scoped("by a protocol's check of 426 names what is expected, as the protocol says it", () =>
    Effect.gen(function* () {
      const versioned = Protocol.make({
        token: "websocket",
        check: () =>
          Effect.fail(
            new UpgradeError.HandshakeRefused({
              protocol: "websocket",
              status: 426,
              description: "Use version 13.",
              headers: { "sec-websocket-version": "13" }
            })
          )
      })
      const { connect } = yield* serve(Upgrade.onUpgrade(versioned, echoed))
      const peer = yield* connect
      yield* peer.send(asking("/", { token: "websocket" }))
      const { headers, status, text } = yield* peer.receiveResponse
      assert.deepStrictEqual(
        [status, text, headers.upgrade, headers["sec-websocket-version"]],
        [426, "Use version 13.\n", "websocket", "13"]
      )
      assert.include(headers.connection!.toLowerCase().split(/\s*,\s*/), "upgrade")
    })
  )

  it.scoped("is received whole, whatever the client sends meanwhile", () =>
    Effect.gen(function* () {
      const reason = "x".repeat(300_000)
      const { connect, idle } = yield* serve(
        Effect.catchAll(Upgrade.onUpgrade(refusing(403), echoed), () =>
          Effect.succeed(HttpServerResponse.text(reason, { status: 403 }))
        )
      )
      const peer = yield* connect
      yield* peer.send(Buffer.concat([Buffer.from(asking("/")), Buffer.alloc(60_000, "y")]))
      const { status, text } = yield* peer.receiveResponse
      assert.deepStrictEqual([status, text.length], [403, reason.length])
      yield* peer.send(Buffer.alloc(60_000, "z"))
      assert.strictEqual((yield* peer.receiveAll).length, 0)
      yield* peer.end
      yield* idle
    })
  )

  it.scoped("that the handler turns into a success is that success, and closes nothing", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.orElseSucceed(Upgrade.onUpgrade(Protocol.raw("other"), echoed), () => HttpServerResponse.text("plain"))
      )
      const peer = yield* connect
      for (let i = 0; i < 2; i++) {
        yield* peer.send(asking("/"))
        assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      }
    })
  )
})

describe("RFC 9110 §15.2, RFC 9112 §6.1: a 101 has no content", () => {
  const withBody = (response: HttpServerResponse.HttpServerResponse) =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<string>()
      const [switching, upgraded] = yield* Upgrade.respond(raw)
      yield* Effect.forkDaemon(
        Effect.scoped(
          Effect.matchEffect(upgraded, {
            onFailure: (error) => Deferred.succeed(seen, error._tag),
            onSuccess: () => Deferred.succeed(seen, "switched")
          })
        )
      )
      yield* Effect.yieldNow()
      return { seen, response: HttpServerResponse.setBody(switching, response.body), headers: response.headers }
    })

  const bodies: ReadonlyArray<readonly [string, HttpServerResponse.HttpServerResponse]> = [
    ["a text", HttpServerResponse.text("text")],
    ["an empty text", HttpServerResponse.text("")],
    ["JSON", HttpServerResponse.unsafeJson({ a: 1 })],
    ["bytes", HttpServerResponse.uint8Array(new Uint8Array([1]))],
    ["a stream", HttpServerResponse.stream(Stream.make(new Uint8Array([1])))],
    ["an empty stream", HttpServerResponse.stream(Stream.empty)],
    ["a form", HttpServerResponse.formData(new FormData())],
    ["something raw", HttpServerResponse.raw("raw")]
  ]

  it.scoped.each(bodies)("%s makes it a BodyOn101, and 500 for the client", ([_, body]) =>
    Effect.gen(function* () {
      const seen = yield* Deferred.make<Deferred.Deferred<string>>()
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const { response, seen: own } = yield* withBody(body)
          yield* Deferred.succeed(seen, own)
          return response
        })
      )
      const peer = yield* connect
      yield* peer.send(asking("/"))
      assert.strictEqual((yield* peer.receiveResponse).status, 500)
      assert.strictEqual(yield* Deferred.await(yield* Deferred.await(seen)), "BodyOn101")
    })
  )

  it.scoped.each([
    ["content-length", "0"],
    ["content-length", "5"],
    ["Content-Length", "5"],
    ["transfer-encoding", "chunked"]
  ])("a field %s: %s makes it a BodyOn101, from the handler, a mapping or a hook", ([name, value]) =>
    Effect.gen(function* () {
      const set = HttpServerResponse.setHeader(name, value)
      const apps: ReadonlyArray<App> = [
        Upgrade.onUpgrade(raw, echoed, { headers: { [name]: value } }),
        Effect.map(echo, set),
        Effect.zipRight(
          HttpApp.appendPreResponseHandler((_, response) => Effect.succeed(set(response))),
          echo
        ),
        Effect.zipRight(
          HttpApp.appendPreResponseHandler((_, response) => Effect.succeed(set(response))),
          Effect.as(Effect.flatMap(Upgrade.upgrade(raw), echoed), Upgrade.done)
        )
      ]
      for (const app of apps) {
        const { connect } = yield* serve(app)
        const peer = yield* connect
        yield* peer.send(`${asking("/")}early`)
        const { raw: head, status } = yield* peer.receiveResponse
        assert.strictEqual(status, 500)
        assert.notInclude(head, "101")
      }
    })
  )
})

describe("a field of the 101", () => {
  const controls = Array.from({ length: 0x20 }, (_, i) => String.fromCharCode(i))
    .filter((character) => character !== "\t")
    .concat("\x7f", "\u0100", "\u010a", "\u{1f600}")

  const answersOf = (app: App) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app)
      const peer = yield* connect
      yield* peer.send(asking("/"))
      yield* peer.end
      return Buffer.from(yield* peer.receiveAll).toString("latin1")
    }).pipe(Effect.scoped)

  it.scoped.each([
    ["the handler's fields", (text: string): App => Upgrade.onUpgrade(raw, echoed, { headers: { "x-own": text } })],
    [
      "the names of the handler's fields",
      (text: string): App => Upgrade.onUpgrade(raw, echoed, { headers: { [`x-own${text}`]: "1" } })
    ],
    [
      "the protocol's fields",
      (text: string): App =>
        Upgrade.onUpgrade(Protocol.make({ token: "echo", check: () => Effect.succeed({ "x-own": text }) }), echoed)
    ],
    ["a mapping's fields", (text: string): App => Effect.map(echo, HttpServerResponse.setHeader("x-own", text))],
    ["the reason", (text: string): App => Upgrade.onUpgrade(raw, echoed, { statusText: `OK${text}` })],
    [
      "the reason, by a mapping",
      (text: string): App => Effect.map(echo, (response) => HttpServerResponse.setStatus(response, 101, `OK${text}`))
    ]
  ] as const)("cannot carry a control character, in %s: the client gets 500 and nothing of it", ([_, app]) =>
    Effect.gen(function* () {
      for (const character of controls) {
        const received = yield* answersOf(app(`a${character}Injected: 1`))
        assert.match(received, /^HTTP\/1\.1 500 /, JSON.stringify(character))
        assert.notMatch(received, /^Injected/im)
      }
    })
  )

  it.scoped("can carry obs-text and tabs as they stand", () =>
    Effect.gen(function* () {
      const received = yield* answersOf(Upgrade.onUpgrade(raw, echoed, { headers: { "x-own": "a\tb \u00e9\u00ff" } }))
      assert.include(received, "\r\nx-own: a\tb \u00e9\u00ff\r\n")
    })
  )
})

describe("a handler", () => {
  it.scoped.each([
    ["dies before the switch", Effect.die("a defect")],
    ["fails before the switch", Effect.fail("an error")],
    ["is interrupted before the switch", Effect.interrupt],
    ["dies behind a switch that it has begun", Effect.zipRight(Upgrade.respond(raw), Effect.die("a defect"))],
    ["answers otherwise", Effect.as(Upgrade.respond(raw), HttpServerResponse.empty({ status: 500 }))]
  ] as ReadonlyArray<readonly [string, App]>)("that %s leaves an answer and no switch", ([_, app]) =>
    Effect.gen(function* () {
      const { connect, switched } = yield* serve(app)
      const peer = yield* connect
      yield* peer.send(asking("/"))
      assert.include([500, 503, 499], (yield* peer.receiveResponse).status)
      assert.strictEqual(yield* switched, 0)
    })
  )

  it.scoped("that dies as a session closes the connection, and no other", () =>
    Effect.gen(function* () {
      const { connect, idle, switched } = yield* serve(
        Upgrade.onUpgrade(raw, (upgraded) =>
          Effect.flatMap(Upgraded.readExactly(upgraded, 3), (bytes) =>
            Buffer.from(bytes).toString() === "die" ? Effect.die("a defect") : echoed(upgraded)
          )
        )
      )
      const dying = yield* connect
      const living = yield* connect
      yield* dying.send(asking("/"))
      yield* living.send(asking("/"))
      yield* dying.receiveHead
      yield* living.receiveHead
      yield* dying.send("die")
      yield* dying.closed
      while ((yield* switched) === 2) {
        yield* turn
      }
      assert.strictEqual(yield* switched, 1)
      yield* living.send("yes")
      yield* living.send("x")
      assert.strictEqual(Buffer.from(yield* living.receiveExactly(1)).toString(), "x")
      yield* living.end
      yield* idle
    })
  )
})
