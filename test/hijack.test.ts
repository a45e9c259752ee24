import * as Http from "node:http"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Stream from "effect/Stream"
import * as Connection from "../src/Connection.js"
import * as Upgrade from "../src/Upgrade.js"
import * as UpgradeClient from "../src/UpgradeClient.js"
import * as Upgraded from "../src/Upgraded.js"
import {
  type App,
  asking,
  echoed,
  kinds,
  message,
  runs,
  serve,
  serveOrdinary,
  unhandled,
  withoutDate
} from "./support.js"

const ok = (headers: Record<string, string> = {}) => HttpServerResponse.empty({ status: 200, headers })

const hijackable = ({ url }: { readonly url?: string | undefined }) => url?.startsWith("/attach") === true

const attach = Effect.gen(function* () {
  const upgraded = yield* Upgrade.hijack(ok({ "content-type": "application/vnd.docker.raw-stream" }))
  yield* echoed(upgraded)
  return Upgrade.done
})

const app: App = HttpRouter.empty.pipe(
  HttpRouter.all("/attach", attach),
  HttpRouter.post(
    "/attach/body",
    Effect.gen(function* () {
      const body = yield* Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => request.text)
      const upgraded = yield* Upgrade.hijack(ok())
      yield* Upgraded.write(upgraded, `[${body}]`)
      yield* echoed(upgraded)
      return Upgrade.done
    })
  ),
  HttpRouter.all(
    "/attach/not",
    Effect.map(
      Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => request.text),
      (body) => HttpServerResponse.text(`no: ${body}`)
    )
  ),
  HttpRouter.get("/plain", HttpServerResponse.text("plain"))
)

const head = "HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-type: application/vnd.docker.raw-stream\r\n\r\n"

const post = (target: string, body: string, chunked = false) =>
  chunked
    ? message(
        `POST ${target} HTTP/1.1`,
        ["Host: a", "Transfer-Encoding: chunked"],
        `${body === "" ? "" : `${body.length.toString(16)}\r\n${body}\r\n`}0\r\n\r\n`
      )
    : message(`POST ${target} HTTP/1.1`, ["Host: a", `Content-Length: ${body.length}`], body)

const letters = FastCheck.string({ maxLength: 60 }).map((s) => s.replace(/[^ -~]/g, "x"))

describe.each(kinds)("a connection that is taken behind a 200, over %s", (kind) => {
  it.scopedLive("is the other protocol's from the end of the head on, early bytes first, and half-closes", () =>
    Effect.gen(function* () {
      const { connect, idle, switched } = yield* serve(app, { kind, hijackable })
      const peer = yield* connect
      yield* peer.send(`${message("POST /attach HTTP/1.1", ["Host: a"])}GET / HTTP/1.1\r\n\r\n`)
      assert.strictEqual((yield* peer.receiveHead).raw, head)
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(18)).toString(), "GET / HTTP/1.1\r\n\r\n")
      assert.strictEqual(yield* switched, 1)
      yield* peer.send("late")
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "late")
      yield* idle
    })
  )

  it.scopedLive.prop(
    "has every byte behind the request's body once and in order, and none of the body, wherever they are split",
    [letters, letters, FastCheck.boolean(), FastCheck.array(FastCheck.nat({ max: 250 }), { maxLength: 4 })],
    ([body, early, chunked, splits]) =>
      Effect.gen(function* () {
        const { connect, idle } = yield* serve(app, { kind, hijackable })
        const peer = yield* connect
        yield* peer.sendSplit(
          `${post("/attach/body", body, chunked)}${early}`,
          splits.sort((a, b) => a - b)
        )
        yield* peer.end
        assert.strictEqual((yield* peer.receiveHead).status, 200)
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), `[${body}]${early}`)
        yield* idle
      }),
    { fastCheck: { numRuns: runs(15) } }
  )

  it.scopedLive("is not taken where the handler answers: byte for byte as without the possibility, kept alive", () =>
    Effect.gen(function* () {
      const requests =
        post("/attach/not", "one") + post("/attach/not", "two", true) + message("GET /plain HTTP/1.1", ["Host: a"])
      const answers = []
      for (const running of [yield* serve(app, { kind, hijackable }), yield* serveOrdinary(app as never, { kind })]) {
        const peer = yield* running.connect
        yield* peer.send(requests)
        const all = [yield* peer.receiveResponse, yield* peer.receiveResponse, yield* peer.receiveResponse]
        answers.push(all.map(({ raw, text }) => [withoutDate(raw), text]))
        // And again, on the connection that was given back
        yield* peer.send(post("/attach/not", "three"))
        assert.strictEqual((yield* peer.receiveResponse).text, "no: three")
      }
      assert.deepStrictEqual(answers[0], answers[1])
    })
  )

  it.scopedLive("leaves nothing behind when the peer resets it, or its Scope closes", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const { connect, idle } = yield* serve(
        HttpRouter.empty.pipe(
          HttpRouter.post("/attach", attach),
          HttpRouter.post(
            "/attach/short",
            Effect.as(Effect.flatMap(Upgrade.hijack(ok()), Upgraded.write("bye")), Upgrade.done)
          )
        ),
        { kind, hijackable }
      )
      const reset = yield* connect
      yield* reset.send(`${post("/attach", "")}x`)
      yield* reset.receiveUntil("\r\n\r\nx")
      yield* reset.reset
      const short = yield* connect
      yield* short.send(post("/attach/short", "unread"))
      yield* short.receiveHead
      assert.strictEqual(Buffer.from(yield* short.receiveAll).toString(), "bye")
      yield* short.end
      yield* idle
      assert.deepStrictEqual(seen, [])
    })
  )
})

describe("a connection that is taken behind a 200", () => {
  it.scopedLive("has the type of its listener's sockets, and the fields and cookies of its response", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.gen(function* () {
          const response = yield* HttpServerResponse.setCookie(ok({ "x-own": "1" }), "a", "b")
          const upgraded = yield* Upgrade.hijack(Connection.Net, response, { idleTimeout: "1 minute" })
          yield* Upgraded.write(upgraded, String(upgraded.socket.remotePort !== undefined))
          return Upgrade.done
        }),
        { hijackable: () => true }
      )
      const peer = yield* connect
      yield* peer.send(message("GET / HTTP/1.1", ["Host: a"]))
      assert.strictEqual(
        (yield* peer.receiveHead).raw,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nx-own: 1\r\nset-cookie: a=b\r\n\r\n"
      )
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "true")
    })
  )

  it.scopedLive("is what UpgradeClient.hijack takes", () =>
    Effect.gen(function* () {
      const { port } = yield* serve(app, { hijackable })
      const upgraded = yield* UpgradeClient.hijack(`http://127.0.0.1:${port}/attach`)
      yield* Upgraded.write(upgraded, "both ours")
      yield* Upgraded.end(upgraded)
      const text = yield* Stream.mkString(Stream.decodeText(Upgraded.stream(upgraded)))
      assert.strictEqual(text, "both ours")
    })
  )

  it.scopedLive("waits for the responses before it", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app, { hijackable })
      const peer = yield* connect
      yield* peer.send(`${message("GET /plain HTTP/1.1", ["Host: a"])}${post("/attach", "")}early`)
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      assert.strictEqual((yield* peer.receiveHead).raw, head)
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(5)).toString(), "early")
    })
  )

  it.scopedLive.each([
    ["204", HttpServerResponse.empty()],
    ["201", HttpServerResponse.empty({ status: 201 })],
    ["a text", HttpServerResponse.text("content")],
    ["a length", ok({ "content-length": "0" })],
    ["a coding", ok({ "transfer-encoding": "chunked" })],
    ["a line end in a field", ok({ "x-own": "a\r\nb: c" })]
  ] as const)("is not taken by a response with %s: 500, and a HandshakeRefused", ([_, response]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Effect.as(Upgrade.hijack(response), Upgrade.done), { hijackable: () => true })
      const peer = yield* connect
      yield* peer.send(post("/attach", ""))
      assert.strictEqual((yield* peer.receiveResponse).status, 500)
    })
  )

  it.scopedLive("is refused with a typed error where the listener does not name the request, or it is HEAD", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.as(Upgrade.hijack(ok()), Upgrade.done).pipe(
          Effect.catchTag("NotUpgradable", ({ reason }) => Effect.succeed(HttpServerResponse.text(reason)))
        ),
        { hijackable }
      )
      for (const request of ["POST /other", "HEAD /attach"]) {
        const peer = yield* connect
        yield* peer.send(message(`${request} HTTP/1.1`, ["Host: a", "Connection: close"]))
        assert.strictEqual((yield* peer.receiveHead).status, 200)
        assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), request.startsWith("HEAD") ? "" : "Server")
      }
    })
  )

  it.scopedLive("is not taken by a request that is refused: what lies behind it is not read as another", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        HttpRouter.empty.pipe(
          HttpRouter.post("/attach", HttpServerResponse.text("no such container", { status: 404 })),
          HttpRouter.get("/plain", HttpServerResponse.text("smuggled"))
        ),
        { hijackable }
      )
      const peer = yield* connect
      yield* peer.send(`${post("/attach", "")}${message("GET /plain HTTP/1.1", ["Host: a"])}`)
      const refused = yield* peer.receiveResponse
      assert.deepStrictEqual([refused.status, refused.headers.connection], [404, "close"])
      assert.strictEqual((yield* peer.receiveAll).length, 0)
    })
  )

  it.scopedLive("is not taken where the listener's own question throws, and nobody dies of it", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const { connect } = yield* serve(HttpServerResponse.text("plain"), {
        hijackable: ({ url }) => new URL(url ?? "").pathname === "/attach"
      })
      const peer = yield* connect
      yield* peer.send(message("GET /attach HTTP/1.1", ["Host: a"]))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive("can be had by a token too, where the client offers one", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app, { hijackable })
      const peer = yield* connect
      yield* peer.send(asking("/attach", { token: "tcp", content: "x" }))
      assert.strictEqual((yield* peer.receiveHead).raw, head)
      assert.strictEqual(Buffer.from(yield* peer.receiveExactly(1)).toString(), "x")
    })
  )

  it.scopedLive("is content until the end of the connection to a client that knows nothing of it", () =>
    Effect.gen(function* () {
      const { port } = yield* serve(
        Effect.as(Effect.flatMap(Upgrade.hijack(ok()), Upgraded.write("all there is")), Upgrade.done),
        { hijackable: () => true }
      )
      const text = yield* Effect.async<string>((resume) => {
        Http.get({ port, host: "127.0.0.1" }, (response) => {
          let text = ""
          response.on("data", (bytes) => (text += bytes))
          response.on("end", () => resume(Effect.succeed(text)))
        })
      })
      assert.strictEqual(text, "all there is")
    })
  )
})
