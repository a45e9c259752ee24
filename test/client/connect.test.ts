import * as Http from "node:http"
import * as Https from "node:https"
import * as net from "node:net"
import type { Duplex } from "node:stream"
import { HttpClient, HttpClientRequest } from "@effect/platform"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Redacted, Stream } from "effect"
import { Protocol, Upgrade, UpgradeClient, Upgraded, UpgradeError } from "effect-upgrade"
import { clientTls, echo, echoed, kinds, serve, turn } from "../support.js"
import { cert, key } from "../testing/certificate.js"
import { attempt, failureOf, fieldOf, nothingLeft, received, requestHead, scripted } from "./support.js"

const tunnelled = Upgrade.onUpgrade(Protocol.connect, echoed)

/** What a scripted proxy is sent, and what comes of its answer. */
const asked = (
  answer: string,
  authority: string | URL = "example.com:443",
  options: UpgradeClient.ConnectOptions = {},
  proxy: string | URL = "http://proxy:3128"
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { server, socket } = yield* scripted()
      const asking = yield* Effect.fork(
        attempt(
          UpgradeClient.connect(proxy, authority, { ...options, socket }).pipe(
            Effect.flatMap((tunnel) => Effect.zip(Effect.succeed(tunnel), received(tunnel))),
            Effect.catchTag("UpgradeRejected", (error) =>
              Effect.flatMap(Effect.orDie(error.response.text), (text) =>
                Effect.fail({ _tag: error._tag, error, text } as const)
              )
            )
          )
        )
      )
      const lines = yield* requestHead(server)
      yield* server.send(answer)
      yield* server.end
      const exit = yield* Fiber.join(asking)
      yield* nothingLeft(socket)
      return { lines, exit, error: failureOf(exit) }
    })
  )

describe("CONNECT", () => {
  for (const kind of kinds.filter((kind) => kind !== "memory")) {
    it.scopedLive(`opens a tunnel through a proxy over ${kind}`, () =>
      Effect.gen(function* () {
        const running = yield* serve(tunnelled, { kind })
        const options = kind === "unix" ? { socketPath: (running.target as { path: string }).path } : { tls: clientTls }
        const tunnel = yield* UpgradeClient.connect(
          `${kind === "tls" ? "https" : "http"}://localhost:${running.port}`,
          "example.com:443",
          options
        )
        assert.strictEqual(tunnel.protocol, "CONNECT")
        yield* Upgraded.write(tunnel, "through")
        yield* Upgraded.end(tunnel)
        assert.strictEqual(yield* received(tunnel), "through")
      })
    )
  }

  it.live("is asked for in authority-form, with Host, and nothing of Upgrade (RFC 9112 §3.2.3)", () =>
    Effect.gen(function* () {
      const { lines } = yield* asked("HTTP/1.1 200 OK\r\n\r\n", "example.com:443", { headers: { "X-Own": "1" } })
      assert.deepStrictEqual(lines, ["CONNECT example.com:443 HTTP/1.1", "host: example.com:443", "x-own: 1"])
      assert.strictEqual((yield* asked("HTTP/1.1 200 OK\r\n\r\n", "[::1]:80")).lines[0], "CONNECT [::1]:80 HTTP/1.1")
    })
  )

  it.live("names the port of the scheme where the authority is a URL", () =>
    Effect.gen(function* () {
      for (const [authority, target] of [
        ["https://a/b", "a:443"],
        ["ws://a", "a:80"],
        ["http://a:8080", "a:8080"],
        [new URL("wss://[::1]/"), "[::1]:443"]
      ] as const) {
        assert.strictEqual((yield* asked("HTTP/1.1 200 OK\r\n\r\n", authority)).lines[0], `CONNECT ${target} HTTP/1.1`)
      }
    })
  )

  it.live("is not asked for without a host and a port (RFC 9110 §9.3.6)", () =>
    Effect.forEach(
      ["a", "a:", "a:0", "a:65536", "a:80/b", "u@a:80", ":80", "a b:80", "a\r\n:80", "ftp://a", "http://["],
      (authority) =>
        Effect.map(attempt(UpgradeClient.connect("http://127.0.0.1:1", authority)), (exit) =>
          assert.strictEqual(failureOf(exit)?._tag, "InvalidRequest", authority)
        )
    )
  )

  it.live("names who asks: by the credentials, or by the user information of the proxy's URL", () =>
    Effect.gen(function* () {
      const ok = "HTTP/1.1 200 OK\r\n\r\n"
      const basic = (text: string) => `Basic ${Buffer.from(text).toString("base64")}`
      const field = (options: UpgradeClient.ConnectOptions, proxy?: string | URL) =>
        Effect.map(asked(ok, "a:1", options, proxy), ({ lines }) => fieldOf(lines, "proxy-authorization"))
      assert.isUndefined(yield* field({}))
      assert.strictEqual(yield* field({ credentials: { username: "me", password: "ü:" } }), basic("me:ü:"))
      assert.strictEqual(
        yield* field({ credentials: { username: "me", password: Redacted.make("secret") } }),
        basic("me:secret")
      )
      assert.strictEqual(yield* field({}, new URL("http://us%40er:p%3Aw@proxy")), basic("us@er:p:w"))
    })
  )

  it.live("ignores a length on a 2xx, and every byte behind the head is the tunnel's (RFC 9110 §9.3.6)", () =>
    Effect.gen(function* () {
      for (const head of [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 x\r\n\r\n",
        "HTTP/1.0 200 x\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
      ]) {
        const { exit } = yield* asked(`${head}abcdef`)
        assert.strictEqual(exit._tag === "Success" && exit.value[1], "abcdef", head)
      }
    })
  )

  it.live("that is refused is the whole answer, its body too: 407, 403, 502", () =>
    Effect.gen(function* () {
      const { error } = yield* asked(
        'HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 5\r\n\r\nwho?!more'
      )
      assert.strictEqual(error?._tag, "UpgradeRejected")
      if (error?._tag === "UpgradeRejected" && "text" in error) {
        assert.strictEqual(error.text, "who?!")
        assert.strictEqual(error.error.status, 407)
        assert.strictEqual(error.error.response.headers["proxy-authenticate"], 'Basic realm="x"')
        assert.strictEqual(error.error.request.method, "CONNECT" as never)
      }
      assert.strictEqual((yield* asked("HTTP/1.1 302 x\r\nLocation: /\r\n\r\n")).error?._tag, "UpgradeRejected")
    })
  )

  it.live("that is answered 101 is a mismatch", () =>
    Effect.gen(function* () {
      const { error } = yield* asked("HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
      assert.strictEqual(error?._tag, "ProtocolMismatch")
    })
  )

  it.scopedLive("leads through one proxy to another, and to a switch behind both", () =>
    Effect.gen(function* () {
      const target = yield* serve(echo)
      const first = yield* proxy()
      const second = yield* proxy()
      const upgraded = yield* UpgradeClient.upgrade(`http://127.0.0.1:${target.port}/`, Protocol.raw("echo"), {
        socket: UpgradeClient.connect(`http://127.0.0.1:${second.port}`, `127.0.0.1:${target.port}`, {
          socket: UpgradeClient.connect(`http://127.0.0.1:${first.port}`, `127.0.0.1:${second.port}`)
        })
      })
      yield* Upgraded.write(upgraded, "far")
      yield* Upgraded.end(upgraded)
      assert.strictEqual(yield* received(upgraded), "far")
      assert.deepStrictEqual(first.asked, [`127.0.0.1:${second.port}`])
      assert.deepStrictEqual(second.asked, [`127.0.0.1:${target.port}`])
    })
  )
})

interface Proxy {
  readonly port: number
  /** The targets that were asked for. */
  readonly asked: Array<string>
  /** The tunnels that are open. */
  readonly open: Set<Duplex>
  /** Done when none is. */
  readonly idle: Effect.Effect<void>
}

/** A proxy by Node's own server, that knows every name as this machine. */
const proxy = (options: { readonly secure?: boolean; readonly credentials?: string } = {}) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.async<Proxy & { readonly close: () => void }>((resume) => {
        const server = options.secure === true ? Https.createServer({ key, cert }) : Http.createServer()
        const asked: Array<string> = []
        const open = new Set<Duplex>()
        server.on("connect", (request: Http.IncomingMessage, client: Duplex, head: Buffer) => {
          client.on("error", () => {})
          if (options.credentials !== undefined && request.headers["proxy-authorization"] !== options.credentials) {
            client.end("HTTP/1.1 407 Who\r\nContent-Length: 3\r\n\r\nwho")
            return
          }
          asked.push(request.url!)
          open.add(client)
          client.once("close", () => open.delete(client))
          const port = Number(request.url!.slice(request.url!.lastIndexOf(":") + 1))
          const target = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true }, () => {
            client.write("HTTP/1.1 200 Connection Established\r\n\r\n")
            target.write(head)
            target.pipe(client)
            client.pipe(target)
          })
          target.on("error", () => client.destroy())
          target.once("close", () => client.destroy())
          client.once("close", () => target.destroy())
        })
        const idle: Effect.Effect<void> = Effect.suspend(() =>
          open.size === 0 ? Effect.void : Effect.zipRight(turn, idle)
        )
        server.listen(0, "127.0.0.1", () =>
          resume(
            Effect.succeed({
              port: (server.address() as net.AddressInfo).port,
              asked,
              open,
              idle,
              close: () => {
                open.forEach((socket) => socket.destroy())
                server.close()
                server.closeAllConnections()
              }
            })
          )
        )
      }),
      ({ close }) => Effect.sync(close)
    ),
    (proxy): Proxy => proxy
  )

/** A server of Node's own that tells what it was asked. */
const origin = (secure: boolean) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.async<Http.Server>((resume) => {
        const answer: Http.RequestListener = (request, response) => {
          let size = 0
          request.on("data", (bytes: Buffer) => {
            size += bytes.length
          })
          request.on("end", () => response.end(`${request.method} ${request.headers.host} ${request.url} ${size}`))
        }
        const server = secure ? Https.createServer({ key, cert }, answer) : Http.createServer(answer)
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.sync(() => {
          server.close()
          server.closeAllConnections()
        })
    ),
    (server) => (server.address() as net.AddressInfo).port
  )

describe("an HttpClient through tunnels", () => {
  for (const secure of [false, true]) {
    it.scopedLive(
      `sends requests of http: and https: through a proxy over ${secure ? "TLS" : "TCP"}, and closes with its layer`,
      () =>
        Effect.gen(function* () {
          const { asked, idle, open, port } = yield* proxy({ secure })
          const plain = yield* origin(false)
          const encrypted = yield* origin(true)
          const layer = UpgradeClient.layerHttpClient(`${secure ? "https" : "http"}://localhost:${port}`, {
            tls: { ca: cert },
            secure: { ca: cert }
          })
          yield* Effect.gen(function* () {
            const get = (url: string) => Effect.flatMap(HttpClient.get(url), (response) => response.text)
            assert.strictEqual(yield* get(`http://localhost:${plain}/a`), `GET localhost:${plain} /a 0`)
            assert.strictEqual(yield* get(`https://localhost:${encrypted}/b`), `GET localhost:${encrypted} /b 0`)
            assert.strictEqual(yield* get(`http://localhost:${plain}/c`), `GET localhost:${plain} /c 0`)
            assert.strictEqual(yield* get(`https://localhost:${encrypted}/d`), `GET localhost:${encrypted} /d 0`)
            const posted = yield* Effect.flatMap(
              HttpClient.execute(
                HttpClientRequest.bodyStream(
                  HttpClientRequest.post(`https://localhost:${encrypted}/e`),
                  Stream.repeatValue(Buffer.alloc(10_000)).pipe(Stream.take(30))
                )
              ),
              (response) => response.text
            )
            assert.strictEqual(posted, `POST localhost:${encrypted} /e 300000`)
            // One tunnel a host: they are kept alive
            assert.deepStrictEqual(asked, [`localhost:${plain}`, `localhost:${encrypted}`])
            assert.strictEqual(open.size, 2)
          }).pipe(Effect.provide(layer))
          yield* idle
        })
    )
  }

  it.scopedLive("fails a request whose tunnel is refused, with the refusal as its cause", () =>
    Effect.gen(function* () {
      const { port } = yield* proxy({ credentials: `Basic ${Buffer.from("me:secret").toString("base64")}` })
      const plain = yield* origin(false)
      const url = `http://localhost:${plain}/`
      const error = yield* Effect.flip(HttpClient.get(url)).pipe(
        Effect.provide(UpgradeClient.layerHttpClient(`http://127.0.0.1:${port}`))
      )
      assert.strictEqual(error._tag === "RequestError" && error.reason, "Transport")
      const { cause } = error
      assert.instanceOf(cause, UpgradeError.UpgradeRejected)
      assert.strictEqual((cause as UpgradeError.UpgradeRejected).status, 407)
      const credentials = { username: "me", password: Redacted.make("secret") }
      const text = yield* Effect.flatMap(HttpClient.get(url), (response) => response.text).pipe(
        Effect.provide(UpgradeClient.layerHttpClient(`http://127.0.0.1:${port}`, { credentials }))
      )
      assert.include(text, "GET")
    })
  )

  it.scopedLive("does not trust a target whose certificate it does not know", () =>
    Effect.gen(function* () {
      const { idle, port } = yield* proxy()
      const encrypted = yield* origin(true)
      const error = yield* Effect.flip(HttpClient.get(`https://localhost:${encrypted}/`)).pipe(
        Effect.provide(UpgradeClient.layerHttpClient(`http://127.0.0.1:${port}`))
      )
      assert.strictEqual(error._tag, "RequestError")
      yield* idle
    })
  )

  it.scopedLive("closes what is on its way when the layer closes", () =>
    Effect.gen(function* () {
      const { idle, open, port } = yield* proxy()
      const silent = yield* Effect.acquireRelease(
        Effect.async<net.Server>((resume) => {
          const server = net.createServer((socket) => void socket.on("error", () => {}).resume())
          server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => void server.close())
      )
      const url = `http://localhost:${(silent.address() as net.AddressInfo).port}/`
      const asking = yield* Effect.fork(
        Effect.exit(HttpClient.get(url)).pipe(Effect.provide(UpgradeClient.layerHttpClient(`http://127.0.0.1:${port}`)))
      )
      const opened: Effect.Effect<void> = Effect.suspend(() =>
        open.size > 0 ? Effect.void : Effect.zipRight(turn, opened)
      )
      yield* opened
      yield* Fiber.interrupt(asking)
      yield* idle
    })
  )
})
