/** Real clients: Node's own, undici, and curl. */
import { spawn, spawnSync } from "node:child_process"
import * as Http from "node:http"
import * as Https from "node:https"
import type { Duplex } from "node:stream"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as undici from "undici"
import * as Connection from "../../src/Connection.js"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import * as Upgraded from "../../src/Upgraded.js"
import { type App, asking, clientTls, echo, echoed, type Kind, type Running, serve } from "../support.js"

const app: App = Effect.flatMap(HttpServerRequest.HttpServerRequest, (request): App => {
  switch (request.url) {
    case "/echo":
      return echo
    case "/greet":
      return Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) => Upgraded.write(upgraded, "hello"))
    case "/refused":
      return Upgrade.onUpgrade(Protocol.raw("other"), echoed)
    case "/who":
      return Effect.map(Connection.current, ({ socket }) =>
        HttpServerResponse.text("authorized" in socket ? String(socket.authorized) : "plain")
      )
    default:
      return request.url.endsWith(":443")
        ? Upgrade.onUpgrade(Protocol.connect, echoed)
        : Effect.map(request.text, (text) => HttpServerResponse.text(`${request.method} ${text}`))
  }
})

/** Sends, ends, and yields all that comes from a switched socket. */
const conversation = (socket: Duplex, early: Uint8Array, sent: string): Promise<string> =>
  new Promise((resolve, reject) => {
    let received = Buffer.from(early).toString()
    socket.on("data", (bytes: Buffer) => {
      received += bytes.toString()
    })
    socket.on("end", () => resolve(received))
    socket.on("error", reject)
    socket.end(sent)
  })

const clients: ReadonlyArray<Kind> = ["tcp", "tls", "unix"]

describe.each(clients)("Node's client over %s", (kind) => {
  const requestOptions = ({ port, target }: Running, options: Http.RequestOptions): Http.RequestOptions => ({
    ...("path" in target ? { socketPath: target.path } : { host: "127.0.0.1", port }),
    ...(kind === "tls" ? clientTls : {}),
    agent: false,
    ...options
  })

  const request = (running: Running, options: Http.RequestOptions) =>
    (kind === "tls" ? Https : Http).request(requestOptions(running, options))

  const upgrading = (running: Running, options: Http.RequestOptions, body = "") =>
    Effect.promise(
      () =>
        new Promise<{ readonly status: number; readonly content: string }>((resolve, reject) => {
          const client = request(running, {
            headers: { connection: "Upgrade", upgrade: "echo", ...(body ? { "content-length": body.length } : {}) },
            ...options
          })
          client.on("upgrade", ({ statusCode }, socket, head) => {
            conversation(socket, head, "through Node").then(
              (content) => resolve({ status: statusCode!, content }),
              reject
            )
          })
          client.on("connect", ({ statusCode }, socket, head) => {
            conversation(socket, head, "through Node").then(
              (content) => resolve({ status: statusCode!, content }),
              reject
            )
          })
          client.on("response", (response) => {
            let content = ""
            response.setEncoding("utf8")
            response.on("data", (text) => {
              content += text
            })
            response.on("end", () => resolve({ status: response.statusCode!, content }))
          })
          client.on("error", reject)
          client.end(body)
        })
    )

  it.scoped("is switched", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      assert.deepStrictEqual(yield* upgrading(running, { path: "/echo" }), { status: 101, content: "through Node" })
      yield* running.idle
    })
  )

  it.scoped("is switched behind a body", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const switched = yield* upgrading(running, { path: "/echo", method: "POST" }, "the body")
      assert.deepStrictEqual(switched, { status: 101, content: "through Node" })
    })
  )

  it.scoped("receives what comes with the head of the 101", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      assert.deepStrictEqual(yield* upgrading(running, { path: "/greet" }), { status: 101, content: "hello" })
    })
  )

  it.scoped("is answered an ordinary response where its upgrade is ignored, and 426 where it is refused", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const ignored = yield* upgrading(running, { path: "/", method: "POST" }, "the body")
      assert.deepStrictEqual(ignored, { status: 200, content: "POST the body" })
      const refused = yield* upgrading(running, { path: "/refused" })
      assert.strictEqual(refused.status, 426)
    })
  )

  it.scoped("keeps its connection for further requests after ignored upgrades", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const agent = new (kind === "tls" ? Https : Http).Agent({ keepAlive: true, maxSockets: 1 })
      let connections = 0
      running.server.on(kind === "tls" ? "secureConnection" : "connection", (socket: { counted?: boolean }) => {
        connections += socket.counted ? 0 : 1
        socket.counted = true
      })
      for (let i = 0; i < 3; i++) {
        const { content } = yield* upgrading(
          running,
          { path: "/", method: "POST", agent, headers: { connection: "keep-alive, Upgrade", upgrade: "h2c" } },
          `body ${i}`
        )
        assert.strictEqual(content, `POST body ${i}`)
      }
      agent.destroy()
      assert.strictEqual(connections, 1)
    })
  )

  it.scoped("opens a tunnel", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const tunnel = yield* upgrading(running, { path: "example.com:443", method: "CONNECT", headers: {} })
      assert.deepStrictEqual(tunnel, { status: 200, content: "through Node" })
    })
  )

  it.scoped("is known by its certificate, where there is one", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const { content } = yield* upgrading(running, { path: "/who" })
      assert.strictEqual(content, kind === "tls" ? "true" : "plain")
    })
  )
})

describe.each(clients)("undici over %s", (kind) => {
  const client = ({ port, target }: Running) =>
    Effect.acquireRelease(
      Effect.sync(
        () =>
          new undici.Client(`${kind === "tls" ? "https" : "http"}://127.0.0.1:${port || 80}`, {
            connect: {
              ...("path" in target ? { socketPath: target.path } : {}),
              ...(kind === "tls" ? clientTls : {})
            }
          })
      ),
      (client) => Effect.promise(() => client.destroy())
    )

  it.scoped("is switched", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const dispatcher = yield* client(running)
      const { headers, socket } = yield* Effect.promise(() =>
        dispatcher.upgrade({ path: "/echo", method: "GET", protocol: "foo, echo" })
      )
      assert.strictEqual(headers.upgrade, "echo")
      const content = yield* Effect.promise(() => conversation(socket, new Uint8Array(), "through undici"))
      assert.strictEqual(content, "through undici")
    })
  )

  it.scoped("opens a tunnel", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const dispatcher = yield* client(running)
      const { socket, statusCode } = yield* Effect.promise(() => dispatcher.connect({ path: "example.com:443" }))
      assert.strictEqual(statusCode, 200)
      const content = yield* Effect.promise(() => conversation(socket, new Uint8Array(), "through undici"))
      assert.strictEqual(content, "through undici")
    })
  )

  it.scoped("is told that its upgrade is refused", () =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const dispatcher = yield* client(running)
      const error = yield* Effect.flip(
        Effect.tryPromise(() => dispatcher.upgrade({ path: "/refused", method: "GET", protocol: "echo" }))
      )
      assert.match(String(error.error), /bad upgrade/)
    })
  )
})

const curl = spawnSync("curl", ["--version"], { encoding: "utf8" })
const noCurl = curl.error !== undefined

describe.skipIf(noCurl)(noCurl ? "curl (skipped: there is none on this machine)" : "curl", () => {
  const run = (args: ReadonlyArray<string>, input = "") =>
    Effect.async<{ readonly out: string; readonly code: number | null }>((resume) => {
      const child = spawn("curl", ["--silent", "--no-buffer", "--max-time", "15", ...args])
      let out = ""
      child.stdout.on("data", (bytes: Buffer) => {
        out += bytes.toString()
      })
      child.on("close", (code) => resume(Effect.succeed({ out, code })))
      child.stdin.end(input)
    })

  const url = ({ port, target }: Running, path: string) => [
    ...("path" in target ? ["--unix-socket", target.path] : []),
    `http://localhost:${port || 80}${path}`
  ]

  const upgrade = ["--include", "--header", "Connection: Upgrade", "--header", "Upgrade: echo"]

  it.scoped.each(["tcp", "unix"] as const)("over %s is switched, and shows what comes through it", (kind) =>
    Effect.gen(function* () {
      const running = yield* serve(app, { kind })
      const { out } = yield* run([...upgrade, ...url(running, "/greet")])
      assert.match(out, /^HTTP\/1\.1 101 Switching Protocols\r\n(?:.*\r\n)*\r\nhello$/)
    })
  )

  it.scoped("with --http2 on a plain port is answered in HTTP/1.1: its h2c is ignored, with a body and without", () =>
    Effect.gen(function* () {
      const running = yield* serve(app)
      const plain = yield* run(["--http2", "--http1.1", ...upgrade.slice(0, -1), "Upgrade: h2c", ...url(running, "/")])
      assert.match(plain.out, /^HTTP\/1\.1 200 OK\r\n(?:.*\r\n)*\r\nGET $/)
      const h2c = yield* run(["--http2", "--include", "--data", "the body", ...url(running, "/")])
      assert.match(h2c.out, /HTTP\/1\.1 200 OK\r\n(?:.*\r\n)*\r\nPOST the body$/)
    })
  )

  it.scoped("makes two requests on one connection behind an ignored upgrade", () =>
    Effect.gen(function* () {
      const running = yield* serve(app)
      const { code, out } = yield* run([
        ...upgrade,
        "--write-out",
        "[%{num_connects}]",
        ...url(running, "/one"),
        ...url(running, "/two")
      ])
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(
        [...out.matchAll(/\[(\d)\]/g)].map(([_, connects]) => connects),
        ["1", "0"]
      )
    })
  )

  it.scoped("opens a tunnel, through which it makes its request", () =>
    Effect.gen(function* () {
      const proxy: App = Effect.flatMap(
        HttpServerRequest.HttpServerRequest,
        ({ method }): App =>
          (method as string) === "CONNECT"
            ? Upgrade.onUpgrade(Protocol.connect, (upgraded) =>
                Upgraded.run(upgraded, (bytes) =>
                  Buffer.concat([...bytes])
                    .toString()
                    .includes("\r\n\r\n")
                    ? Upgraded.write(upgraded, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntunnel")
                    : Effect.void
                )
              )
            : Effect.succeed(HttpServerResponse.empty({ status: 500 }))
      )
      const { port } = yield* serve(proxy)
      const { out } = yield* run(["--proxytunnel", "--proxy", `http://127.0.0.1:${port}`, "http://example.com:80/"])
      assert.strictEqual(out, "tunnel")
    })
  )
})

describe("a real client's request", () => {
  it.scoped("is decoded by a schema, upgrade or not", () =>
    Effect.gen(function* () {
      const Body = Schema.Struct({ answer: Schema.Number })
      const { connect } = yield* serve(
        Effect.map(HttpServerRequest.schemaBodyJson(Body), ({ answer }) => HttpServerResponse.text(String(answer)))
      )
      const peer = yield* connect
      const content = JSON.stringify({ answer: 42 })
      yield* peer.send(
        asking("/", {
          method: "POST",
          fields: ["Content-Type: application/json", `Content-Length: ${content.length}`],
          content
        })
      )
      assert.strictEqual((yield* peer.receiveResponse).text, "42")
    })
  )
})
