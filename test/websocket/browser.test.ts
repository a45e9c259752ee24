/** A page in a real browser talks to a websocket here: headless Chromium, where the machine has one. */
import { existsSync } from "node:fs"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { type Browser, chromium, type Page } from "playwright-core"
import { afterAll, beforeAll, type TestContext, vi } from "vitest"
import { WebSocket } from "../../src/index.js"
import { serveLayer } from "../appSupport.js"

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium"

let browser: Browser | undefined

beforeAll(async () => {
  if (existsSync(executablePath)) {
    browser = await chromium.launch({
      executablePath,
      headless: true,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync"
      ]
    })
  }
})

afterAll(() => browser?.close())

const html = HttpServerResponse.html("<!doctype html><title>page</title>")

const echo = (ws: WebSocket.WebSocket) => WebSocket.run(ws, (message) => WebSocket.send(ws, message))

/** Serves a page at `/`, and what the test wants beside it; yields the page, opened. */
const opening = (context: TestContext, router: HttpRouter.HttpRouter<unknown, any>) =>
  Effect.gen(function* () {
    if (browser === undefined) {
      return context.skip(`${executablePath} is missing`)
    }
    const own = browser
    const { port } = yield* serveLayer(
      HttpServer.serve(router.pipe(HttpRouter.get("/", html))) as Parameters<typeof serveLayer>[0]
    )
    const page = yield* Effect.acquireRelease(
      Effect.promise(() => own.newPage()),
      (page) => Effect.promise(() => page.close())
    )
    yield* Effect.promise(() => page.goto(`http://127.0.0.1:${port}/`))
    return { page, port }
  })

/** Runs in the page: opens a websocket, sends text and bytes, and tells what came until it was closed. */
const exchange = (
  page: Page,
  url: string,
  sent: ReadonlyArray<string | ReadonlyArray<number>>,
  protocols: Array<string>
) =>
  Effect.promise(() =>
    page.evaluate(
      ({ protocols, sent, url }) =>
        new Promise<{
          readonly received: ReadonlyArray<string | ReadonlyArray<number>>
          readonly protocol: string
          readonly extensions: string
          readonly close: { readonly code: number; readonly reason: string; readonly wasClean: boolean }
        }>((resolve) => {
          const ws = new globalThis.WebSocket(url, protocols)
          ws.binaryType = "arraybuffer"
          const received: Array<string | ReadonlyArray<number>> = []
          ws.onopen = () =>
            sent.forEach((message) => ws.send(typeof message === "string" ? message : new Uint8Array(message)))
          ws.onmessage = ({ data }) => {
            received.push(typeof data === "string" ? data : [...new Uint8Array(data)])
            if (received.length === sent.length) {
              ws.close(4001, "enough")
            }
          }
          ws.onclose = ({ code, reason, wasClean }) =>
            resolve({ received, protocol: ws.protocol, extensions: ws.extensions, close: { code, reason, wasClean } })
        }),
      { protocols, sent, url }
    )
  )

describe("a page in a browser", () => {
  it.scopedLive("sends and gets text and binary messages, and closes with a code of its own", (context) =>
    Effect.gen(function* () {
      const closed = yield* Deferred.make<WebSocket.CloseEvent>()
      const { page, port } = yield* opening(
        context,
        HttpRouter.empty.pipe(
          HttpRouter.get(
            "/ws",
            WebSocket.onUpgrade((ws) => Effect.flatMap(echo(ws), (event) => Deferred.succeed(closed, event)))
          )
        )
      )
      const sent = [
        "",
        "text",
        "é😀",
        [],
        [0, 1, 254, 255],
        "x".repeat(70_000),
        Array.from({ length: 70_000 }, (_, i) => i & 255)
      ]
      const result = yield* exchange(page, `ws://127.0.0.1:${port}/ws`, sent, [])
      assert.deepStrictEqual(result, {
        received: sent,
        protocol: "",
        extensions: "",
        // RFC 6455 §5.5.1: what answers a Close echoes its code
        close: { code: 4001, reason: "", wasClean: true }
      })
      assert.deepStrictEqual(yield* Deferred.await(closed), { code: 4001, reason: "enough" })
    })
  )

  it.scopedLive("sees the code and reason of a server that closes first", (context) =>
    Effect.gen(function* () {
      const { page, port } = yield* opening(
        context,
        HttpRouter.empty.pipe(
          HttpRouter.get(
            "/ws",
            WebSocket.onUpgrade((ws) => WebSocket.close(ws, 4002, "not today"))
          ),
          HttpRouter.get(
            "/ended",
            WebSocket.onUpgrade(() => Effect.void)
          ),
          HttpRouter.get(
            "/died",
            WebSocket.onUpgrade(() => Effect.die("on purpose"))
          )
        )
      )
      const close = (path: string) =>
        Effect.map(exchange(page, `ws://127.0.0.1:${port}${path}`, ["x"], []), (result) => result.close)
      assert.deepStrictEqual(yield* close("/ws"), { code: 4002, reason: "not today", wasClean: true })
      assert.deepStrictEqual(yield* close("/ended"), { code: 1000, reason: "", wasClean: true })
      assert.deepStrictEqual(yield* close("/died"), { code: 1011, reason: "", wasClean: true })
    })
  )

  it.scopedLive("agrees on a subprotocol, and on permessage-deflate", (context) =>
    Effect.gen(function* () {
      const { page, port } = yield* opening(
        context,
        HttpRouter.empty.pipe(
          HttpRouter.get(
            "/ws",
            WebSocket.onUpgrade({ subprotocols: ["chat.v2", "chat.v1"], compression: { threshold: 0 } }, echo)
          )
        )
      )
      const sent = ["again ".repeat(20_000), "again ".repeat(20_000), [1, 2, 3], ""]
      const result = yield* exchange(page, `ws://127.0.0.1:${port}/ws`, sent, ["chat.v1", "chat.v2"])
      assert.strictEqual(result.protocol, "chat.v2")
      assert.match(result.extensions, /^permessage-deflate/)
      assert.deepStrictEqual(result.received, sent)
    })
  )

  it.scopedLive("of another origin is refused with 403, and let in where its origin is listed", (context) =>
    Effect.gen(function* () {
      const { page, port: own } = yield* opening(context, HttpRouter.empty)
      const other = yield* serveLayer(
        HttpServer.serve(
          HttpRouter.empty.pipe(
            HttpRouter.get("/closed", WebSocket.onUpgrade(echo)),
            HttpRouter.get("/open", WebSocket.onUpgrade({ origin: [`http://127.0.0.1:${own}`] }, echo))
          )
        )
      )
      const said: Array<string> = []
      page.on("console", (message) => said.push(message.text()))
      const refused = yield* exchange(page, `ws://127.0.0.1:${other.port}/closed`, ["x"], [])
      assert.deepStrictEqual([refused.received, refused.close.code], [[], 1006])
      assert.include(said.join("\n"), "Unexpected response code: 403")
      const open = yield* exchange(page, `ws://127.0.0.1:${other.port}/open`, ["x"], [])
      assert.deepStrictEqual([open.received, open.close.code], [["x"], 4001])
    })
  )
})
