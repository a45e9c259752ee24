import { spawn, spawnSync } from "node:child_process"
import * as Http from "node:http"
import * as net from "node:net"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/TestClock"
import { ProxyAgent, request } from "undici"
import * as Tunnel from "../../src/Tunnel.js"
import * as Faults from "../../src/testing/Faults.js"
import * as Peer from "../../src/testing/Peer.js"
import { HandshakeRefused } from "../../src/UpgradeError.js"
import { turns, until } from "../appSupport.js"
import { kinds, message, runs, serve, unhandled } from "../support.js"
import { backend, closedPort, text, unanswering } from "./support.js"

const connecting = (authority: string, fields: ReadonlyArray<string> = [], content = "") =>
  message(`CONNECT ${authority} HTTP/1.1`, [`Host: ${authority}`, ...fields], content)

const established = "HTTP/1.1 200 Connection Established\r\n\r\n"

/** A proxy of the tests reaches this machine. */
const open: Tunnel.ConnectOptions = { ports: "any", allow: (address) => address.startsWith("127.") }

const resolving =
  (...addresses: ReadonlyArray<string>): NonNullable<Tunnel.ConnectOptions["resolve"]> =>
  () =>
    Effect.succeed(addresses)

/** What a proxy answers to a CONNECT. */
const answerTo = (authority: string, options: Tunnel.ConnectOptions, fields: ReadonlyArray<string> = []) =>
  Effect.gen(function* () {
    const { connect, idle } = yield* serve(Tunnel.connect(options))
    const peer = yield* connect
    yield* peer.send(connecting(authority, fields, "optimistic"))
    const response = yield* peer.receiveResponse
    assert.strictEqual((yield* peer.receiveAll).length, 0)
    yield* peer.end
    yield* idle
    return response
  })

/** Waits until nothing is open behind a proxy any more. */
const closed = (count: Effect.Effect<number>): Effect.Effect<void> =>
  Effect.flatMap(count, (n) => (n === 0 ? Effect.void : Effect.zipRight(turns(1), closed(count))))

describe.each(kinds)("a proxy over %s", (kind) => {
  it.scopedLive("connects to what the client names, and keeps what it sent early", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect, idle } = yield* serve(Tunnel.connect(open), { kind })
      const client = yield* connect
      yield* client.send(connecting(`127.0.0.1:${behind.port}`, [], "early "))
      const target = yield* behind.accept
      assert.strictEqual((yield* client.receiveHead).raw, established)
      yield* client.send("and late")
      yield* client.end
      assert.strictEqual(text(yield* target.receiveAll), "early and late")
      yield* target.send("answer")
      yield* target.end
      assert.strictEqual(text(yield* client.receiveAll), "answer")
      yield* idle
      yield* closed(behind.open)
    })
  )
})

describe("a CONNECT", () => {
  it.scopedLive.each(["example.com", "example.com:0", "example.com:65536", "a@example.com:443", "/", ":443"])(
    "RFC 9110 §9.3.6: without a host and a valid port is answered with 400 (%s)",
    (authority) =>
      Effect.gen(function* () {
        const { connect } = yield* serve(Tunnel.connect(open))
        const peer = yield* connect
        yield* peer.send(message(`CONNECT ${authority} HTTP/1.1`, ["Host: a"]))
        const { headers, status } = yield* peer.receiveResponse
        assert.deepStrictEqual([status, headers.connection], [400, "close"])
      })
  )

  it.scopedLive("to a port that is not allowed is answered with 403 before anything is resolved", () =>
    Effect.gen(function* () {
      let asked = 0
      const resolve = () => {
        asked = asked + 1
        return Effect.succeed(["127.0.0.1"])
      }
      for (const port of [22, 25, 8080, 65535]) {
        const { status, text } = yield* answerTo(`example.com:${port}`, { resolve })
        assert.deepStrictEqual([status, text], [403, `This proxy does not connect to port ${port}.\n`])
      }
      assert.strictEqual(asked, 0)
    })
  )

  it.scopedLive.each([
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "169.254.169.254",
    "192.168.1.1",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fd00::1",
    "fe80::1%lo"
  ])("to a name that means %s is answered with 403, unless something else is said", (address) =>
    Effect.gen(function* () {
      const { headers, status, text } = yield* answerTo("rebound.example:80", { resolve: resolving(address) })
      assert.deepStrictEqual([status, headers.connection], [403, "close"])
      // What the name means here is nobody's business
      assert.notInclude(text, address)
    })
  )

  it.scopedLive.each([
    "127.0.0.1:80",
    "[::1]:443",
    "[::ffff:7f00:1]:80",
    "127.1:80",
    "2130706433:80",
    "0x7f.1:80",
    "localhost:443"
  ])("to this machine by any of its names is answered with 403, as the system resolves them (%s)", (authority) =>
    Effect.map(answerTo(authority, {}), ({ status }) => assert.include([403, 502], status))
  )

  it.scopedLive("is dialled where it was resolved to once, and never looked up again", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const asked: Array<string> = []
      const checked: Array<readonly [string, Tunnel.Target]> = []
      const { connect } = yield* serve(
        Tunnel.connect({
          ports: "any",
          resolve: (host) =>
            Effect.sync(() => {
              asked.push(host)
              return asked.length === 1 ? ["127.0.0.1"] : ["127.0.0.9"]
            }),
          allow: (address, target) => {
            checked.push([address, target])
            return address === "127.0.0.1"
          }
        })
      )
      const client = yield* connect
      yield* client.send(connecting(`rebound.example:${behind.port}`))
      yield* behind.accept
      assert.strictEqual((yield* client.receiveHead).status, 200)
      assert.deepStrictEqual(asked, ["rebound.example"])
      assert.deepStrictEqual(checked, [["127.0.0.1", { host: "rebound.example", port: behind.port }]])
    })
  )

  it.scopedLive("is dialled at none of the addresses that are not allowed", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect } = yield* serve(
        Tunnel.connect({
          ports: "any",
          // Somebody listens at the forbidden address too, and would answer first.
          resolve: resolving("127.0.0.1", "127.0.0.2"),
          allow: (address) => address !== "127.0.0.1"
        })
      )
      const client = yield* connect
      yield* client.send(connecting(`mixed.example:${behind.port}`))
      assert.strictEqual((yield* client.receiveResponse).status, 502)
      assert.strictEqual(yield* behind.open, 0)
    })
  )

  it.scopedLive("goes to the next address when one refuses", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect } = yield* serve(
        Tunnel.connect({ ...open, resolve: resolving("127.0.0.2", "127.0.0.4", "127.0.0.1") })
      )
      const client = yield* connect
      yield* client.send(connecting(`several.example:${behind.port}`))
      yield* behind.accept
      assert.strictEqual((yield* client.receiveHead).status, 200)
    })
  )

  it.scoped("RFC 8305 §5: goes to the next address when one does not answer, and lets go of the slow one", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      yield* unanswering(behind.port)
      const { connect, idle } = yield* serve(Tunnel.connect({ ...open, resolve: resolving("127.0.0.3", "127.0.0.1") }))
      const before = connects()
      const client = yield* connect
      yield* client.send(connecting(`slow.example:${behind.port}`))
      yield* until(() => connects() > before)
      assert.strictEqual(yield* behind.open, 0)
      yield* TestClock.adjust("250 millis")
      const target = yield* behind.accept
      assert.strictEqual((yield* client.receiveHead).status, 200)
      yield* until(() => connects() === before)
      yield* Effect.all([client.end, target.end])
      yield* idle
    })
  )

  it.scoped("to what does not answer in time is answered with 504, and nothing of it is left", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      yield* unanswering(behind.port)
      const { connect } = yield* serve(Tunnel.connect({ ...open, resolve: resolving("127.0.0.3") }))
      const before = connects()
      const client = yield* connect
      yield* client.send(connecting(`slow.example:${behind.port}`))
      yield* until(() => connects() > before)
      yield* TestClock.adjust("10 seconds")
      const { status, text } = yield* client.receiveResponse
      assert.deepStrictEqual([status, text], [504, `slow.example:${behind.port} did not answer in time.\n`])
      yield* until(() => connects() === before)
    })
  )

  it.scoped("to a name that is not resolved in time is answered with 504", () =>
    Effect.gen(function* () {
      const asked = yield* Deferred.make<void>()
      const { connect } = yield* serve(
        Tunnel.connect({
          ...open,
          connectTimeout: "1 minute",
          resolve: () => Effect.zipRight(Deferred.succeed(asked, undefined), Effect.never)
        })
      )
      const client = yield* connect
      yield* client.send(connecting("slow.example:80"))
      yield* Deferred.await(asked)
      yield* TestClock.adjust("59 seconds")
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual((yield* client.receiveResponse).status, 504)
    })
  )

  it.scopedLive("to a host that refuses is answered with 502 and the reason", () =>
    Effect.gen(function* () {
      const port = yield* closedPort
      const { headers, status, text } = yield* answerTo(`127.0.0.1:${port}`, open)
      assert.deepStrictEqual(
        [status, headers.connection, text],
        [502, "close", `127.0.0.1:${port} cannot be reached (ECONNREFUSED).\n`]
      )
    })
  )

  it.scopedLive("to a name that nobody knows is answered with 502 and the reason", () =>
    Effect.gen(function* () {
      const unknown = yield* answerTo("nowhere.invalid:443", {})
      assert.strictEqual(unknown.status, 502)
      assert.match(unknown.text, /^nowhere\.invalid:443 cannot be resolved \(E\w+\)\.\n$/)
      assert.strictEqual((yield* answerTo("empty.example:443", { resolve: resolving() })).status, 502)
    })
  )

  it.scopedLive("whose tunnel cannot be opened after all lets go of the target", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect } = yield* serve(Tunnel.connect(open), { maxConnections: 0 })
      const client = yield* connect
      yield* client.send(connecting(`127.0.0.1:${behind.port}`))
      assert.strictEqual((yield* client.receiveResponse).status, 503)
      const target = yield* behind.accept
      yield* target.closed
      yield* target.end
      yield* closed(behind.open)
    })
  )

  it.scopedLive("whose client goes while the target is looked for leaves nothing behind", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      yield* unanswering(behind.port)
      const given = yield* Deferred.make<void>()
      const asked = yield* Deferred.make<void>()
      const resolved = yield* Deferred.make<void>()
      const resolve = (host: string) =>
        host === "unresolved.example"
          ? Deferred.succeed(asked, undefined).pipe(
              Effect.zipRight(Effect.never),
              Effect.onInterrupt(() => Deferred.succeed(given, undefined))
            )
          : Effect.as(Deferred.succeed(resolved, undefined), ["127.0.0.3"])
      const { connect, idle } = yield* serve(Tunnel.connect({ ...open, resolve }))
      const first = yield* connect
      yield* first.send(connecting(`unresolved.example:${behind.port}`))
      yield* Deferred.await(asked)
      yield* first.reset
      yield* Deferred.await(given)
      const before = connects()
      const second = yield* connect
      yield* second.send(connecting(`slow.example:${behind.port}`))
      // The request has been read by then: a reset in the same turn as data would look like a FIN
      yield* Deferred.await(resolved)
      yield* turns(10)
      yield* second.reset
      yield* until(() => connects() === before)
      yield* idle
    })
  )

  it.scopedLive.prop(
    "that is cut off at any byte, of the request or of the tunnel, leaves nothing open on either side",
    [FastCheck.integer({ min: 0, max: 90 }), FastCheck.boolean(), FastCheck.integer({ min: 0, max: 80 })],
    ([there, fin, back]) =>
      Effect.gen(function* () {
        const seen = yield* unhandled
        const behind = yield* backend
        const { idle, port } = yield* serve(Tunnel.connect(open))
        yield* Effect.forkScoped(
          Effect.gen(function* () {
            const target = yield* behind.accept
            yield* target.send("y".repeat(60))
            yield* target.closed
            yield* target.end
            yield* Effect.never
          })
        )
        yield* Effect.scoped(
          Effect.gen(function* () {
            const bad = yield* Faults.through(net.connect(port, "127.0.0.1"), {
              toServer: fin ? { endAt: there } : { resetAt: there },
              toClient: { resetAt: back }
            })
            const client = yield* Peer.fromDuplex(bad)
            yield* client.send(connecting(`127.0.0.1:${behind.port}`, [], "x".repeat(40)))
            yield* Effect.ignore(client.receiveAll)
          })
        )
        yield* idle
        yield* closed(behind.open)
        assert.deepStrictEqual(seen, [])
      }),
    { fastCheck: { numRuns: runs(15) } }
  )
})

/** Connections of this process that are being made. */
const connects = (): number => process.getActiveResourcesInfo().filter((name) => name.endsWith("ConnectWrap")).length

describe("who may use a proxy", () => {
  const asked: Array<string> = []
  const guarded: Tunnel.ConnectOptions = {
    ...open,
    resolve: (host) => {
      asked.push(host)
      return Effect.succeed(["127.0.0.1"])
    },
    authorize: (request) =>
      Effect.succeed(
        Option.exists(
          Tunnel.credentials(request),
          ({ password, username }) => username === "alice" && Redacted.value(password) === "open:sesame"
        )
      )
  }

  const authorization = (credentials: string) =>
    `Proxy-Authorization: Basic ${Buffer.from(credentials).toString("base64")}`

  it.scopedLive.each<ReadonlyArray<string>>([
    [],
    [authorization("alice:wrong")],
    [authorization("alice")],
    ["Proxy-Authorization: Basic !!!"],
    ["Proxy-Authorization: Bearer YWxpY2U6b3BlbjpzZXNhbWU="],
    [`Authorization: Basic ${Buffer.from("alice:open:sesame").toString("base64")}`]
  ])("RFC 9110 §15.5.8: a stranger gets 407 with a challenge, and learns nothing of the target (%s)", (fields) =>
    Effect.gen(function* () {
      const { headers, status } = yield* answerTo("secret.internal:25", guarded, [fields].flat())
      assert.deepStrictEqual(
        [status, headers["proxy-authenticate"], headers.connection],
        [407, 'Basic realm="proxy"', "close"]
      )
      assert.deepStrictEqual(asked, [])
    })
  )

  it.scopedLive("a client with the right credentials is connected, and they are not passed on", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      const { connect } = yield* serve(Tunnel.connect(guarded))
      const client = yield* connect
      yield* client.send(connecting(`a.example:${behind.port}`, [authorization("alice:open:sesame")], "x"))
      assert.strictEqual((yield* client.receiveHead).status, 200)
      yield* client.end
      assert.strictEqual(text(yield* (yield* behind.accept).receiveAll), "x")
    })
  )

  it.scopedLive("can be told by the client's target, with an answer and a challenge of one's own", () =>
    Effect.gen(function* () {
      const challenged = yield* answerTo("b.example:443", {
        ...open,
        challenge: 'Bearer realm="b"',
        authorize: (_request, target) => Effect.succeed(target.host !== "b.example")
      })
      assert.deepStrictEqual([challenged.status, challenged.headers["proxy-authenticate"]], [407, 'Bearer realm="b"'])
      const { status, text } = yield* answerTo("b.example:443", {
        ...open,
        authorize: () =>
          Effect.fail(new HandshakeRefused({ protocol: "CONNECT", status: 429, description: "Too many tunnels." }))
      })
      assert.deepStrictEqual([status, text], [429, "Too many tunnels.\n"])
    })
  )

  it("RFC 7617 §2: is read with any user-id that has no colon, and any password", () => {
    FastCheck.assert(
      FastCheck.property(
        FastCheck.string().map((name) => name.replaceAll(":", "")),
        FastCheck.string(),
        (username, password) => {
          const request = HttpServerRequest.fromWeb(
            new Request("http://a/", {
              headers: {
                "proxy-authorization": `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`
              }
            })
          )
          const found = Option.getOrThrow(Tunnel.credentials(request))
          return found.username === username && Redacted.value(found.password) === password
        }
      ),
      { numRuns: runs(100) }
    )
  })
})

describe("a proxy in front of an app", () => {
  const app = HttpRouter.empty.pipe(HttpRouter.all("*", HttpServerResponse.text("the app")))

  it.scopedLive("takes CONNECT, and leaves the rest to the app", () =>
    Effect.gen(function* () {
      const behind = yield* backend
      for (const both of [Tunnel.withConnect(app, open), app.pipe(Tunnel.withConnect(open))]) {
        const { connect } = yield* serve(both)
        const client = yield* connect
        yield* client.send(message("GET / HTTP/1.1", ["Host: a"]))
        assert.strictEqual((yield* client.receiveResponse).text, "the app")
        yield* client.send(connecting(`127.0.0.1:${behind.port}`))
        assert.strictEqual((yield* client.receiveHead).raw, established)
        yield* behind.accept
      }
    })
  )

  it.scopedLive("that stands alone answers other methods with 405", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(Tunnel.connect())
      const client = yield* connect
      yield* client.send(message("GET http://example.com/ HTTP/1.1", ["Host: example.com"]))
      const { headers, status } = yield* client.receiveResponse
      assert.deepStrictEqual([status, headers.allow], [405, "CONNECT"])
    })
  )
})

describe("a client that others made", () => {
  const origin = Effect.acquireRelease(
    Effect.async<Http.Server>((resume) => {
      const server = Http.createServer((request, response) => response.end(`you asked for ${request.url}`))
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.async<void>((resume) => {
        server.closeAllConnections()
        server.close(() => resume(Effect.void))
      })
  )
  const portOf = (server: Http.Server) => (server.address() as net.AddressInfo).port

  it.scopedLive("gets through a proxy: curl", (context) =>
    Effect.gen(function* () {
      if (spawnSync("curl", ["--version"]).error !== undefined) {
        return context.skip("curl is missing")
      }
      const port = portOf(yield* origin)
      const proxy = yield* serve(Tunnel.connect(open))
      const output = yield* Effect.async<string>((resume) => {
        const curl = spawn("curl", [
          "-sS",
          "-p",
          "-x",
          `http://127.0.0.1:${proxy.port}`,
          `http://127.0.0.1:${port}/curl`
        ])
        let output = ""
        curl.stdout.on("data", (bytes) => (output += bytes))
        curl.stderr.on("data", (bytes) => (output += bytes))
        curl.on("close", () => resume(Effect.succeed(output)))
      })
      assert.strictEqual(output, "you asked for /curl")
    })
  )

  it.scopedLive("gets through a proxy: undici", () =>
    Effect.gen(function* () {
      const port = portOf(yield* origin)
      const proxy = yield* serve(Tunnel.connect(open))
      const agent = yield* Effect.acquireRelease(
        Effect.sync(() => new ProxyAgent({ uri: `http://127.0.0.1:${proxy.port}`, proxyTunnel: true })),
        (agent) => Effect.promise(() => agent.close())
      )
      const text = yield* Effect.promise(async () =>
        (await request(`http://127.0.0.1:${port}/undici`, { dispatcher: agent })).body.text()
      )
      assert.strictEqual(text, "you asked for /undici")
    })
  )

  it.scopedLive("gets through a proxy: node:http", () =>
    Effect.gen(function* () {
      const port = portOf(yield* origin)
      const proxy = yield* serve(Tunnel.connect(open))
      const answer = yield* Effect.async<string>((resume) => {
        Http.request({ port: proxy.port, host: "127.0.0.1", method: "CONNECT", path: `127.0.0.1:${port}` })
          .on("connect", (_response, socket) => {
            let answer = ""
            socket.on("data", (bytes) => (answer += bytes))
            socket.on("end", () => resume(Effect.succeed(answer)))
            socket.end("GET /node HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
          })
          .end()
      })
      assert.match(answer, /\r\n\r\nyou asked for \/node$/)
    })
  )
})
