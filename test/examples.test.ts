/** Each program under docs/examples runs by itself and switches a connection, as its comment promises. */
import { type ChildProcessByStdio, spawn, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import * as net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import { vi } from "vitest"
import * as Client from "ws"
import * as Peer from "../src/testing/Peer.js"
import { asking, clientTls } from "./support.js"
import { cert, key } from "./testing/certificate.js"

// Each starts a Node of its own, which compiles what it runs.
vi.setConfig({ testTimeout: 60_000 })

const root = fileURLToPath(new URL("..", import.meta.url))

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

class Program {
  stdout = ""
  stderr = ""
  private waiting: Array<() => void> = []
  readonly ended: Promise<Ended>

  constructor(readonly child: ChildProcessByStdio<null, Readable, Readable>) {
    child.stdout.setEncoding("utf8").on("data", (text) => {
      this.stdout += text
      this.wake()
    })
    child.stderr.setEncoding("utf8").on("data", (text) => {
      this.stderr += text
    })
    this.ended = new Promise((resolve) =>
      child.once("close", (code) => {
        resolve({ code, stdout: this.stdout, stderr: this.stderr })
        this.wake()
      })
    )
  }

  private wake() {
    for (const wake of this.waiting.splice(0)) {
      wake()
    }
  }

  /** What it prints, once it has printed this much. */
  async printed(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = pattern.exec(this.stdout)
      if (found !== null) {
        return found
      }
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        throw new Error(`it ended before it printed ${pattern}:\n${this.stdout}${this.stderr}`)
      }
      await new Promise<void>((resolve) => this.waiting.push(resolve))
    }
  }
}

/** Starts an example; with the Scope it is killed. */
const start = (name: string, env: Record<string, string> = {}, args: ReadonlyArray<string> = []) =>
  Effect.acquireRelease(
    Effect.sync(
      () =>
        new Program(
          spawn(process.execPath, ["--import", "tsx", `docs/examples/${name}.ts`, ...args], {
            cwd: root,
            env: { ...process.env, PORT: "0", NO_COLOR: "1", ...env },
            stdio: ["ignore", "pipe", "pipe"]
          })
        )
    ),
    ({ child, ended }) =>
      Effect.promise(() => {
        child.kill("SIGKILL")
        return ended
      })
  )

const listening = (program: Program) =>
  Effect.map(
    Effect.promise(() => program.printed(/Listening on \w+:\/\/\S+:(\d+)/i)),
    (found) => Number(found[1])
  )

/** A peer that has sent this to the example. */
const sending = (port: number, bytes: string, tls?: Parameters<typeof Peer.connect>[0] & { readonly port: number }) =>
  Effect.tap(Peer.connect(tls ?? { port }), (peer) => peer.send(bytes))

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString()

describe("the demonstration server", () => {
  it.scoped("prints three lines of curl that show a switch, an ordinary answer and a refusal", (context) =>
    Effect.gen(function* () {
      const program = yield* start("server")
      const port = yield* listening(program)
      yield* Effect.promise(() => program.printed(/Ctrl-C/))
      const lines = program.stdout.split("\n").filter((line) => /^\s+curl /.test(line))
      assert.strictEqual(lines.length, 3)
      assert.isTrue(lines.every((line) => line.includes(`http://localhost:${port}/`)))
      if (spawnSync("curl", ["--version"]).error !== undefined) {
        return context.skip("curl is missing")
      }
      const [echoed, declined, refused] = lines.map((line) => spawnSync("sh", ["-c", line], { encoding: "utf8" }))
      assert.deepStrictEqual([echoed!.status, declined!.status, refused!.status], [0, 0, 0])
      assert.match(echoed!.stdout, /^HTTP\/1\.1 101 [\s\S]*\r\n\r\nearly bytes, bye\n$/)
      assert.match(declined!.stdout, /^HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\nHello over ordinary HTTP\.\n$/)
      assert.match(refused!.stdout, /^HTTP\/1\.1 426 Upgrade Required\r\n[\s\S]*\bupgrade: echo\r\n/i)
    })
  )

  it.scoped("says in one line that its port is taken, and exits with 1", () =>
    Effect.gen(function* () {
      const taken = yield* Effect.acquireRelease(
        Effect.async<net.Server>((resume) => {
          const server = net.createServer()
          server.listen(0, () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      const { port } = taken.address() as net.AddressInfo
      const program = yield* start("server", { PORT: String(port) })
      const ended = yield* Effect.promise(() => program.ended)
      assert.strictEqual(
        ended.stderr,
        `Port ${port} is taken. Stop what listens there, or choose another: PORT=${port + 1} npm start\n`
      )
      assert.deepStrictEqual([ended.code, ended.stdout], [1, ""])
    })
  )

  it.scoped("says in one line that PORT is no port, and exits with 1", () =>
    Effect.gen(function* () {
      const program = yield* start("server", { PORT: "99999" })
      const ended = yield* Effect.promise(() => program.ended)
      assert.strictEqual(ended.stderr, 'PORT must be a number from 0 to 65535, not "99999".\n')
      assert.deepStrictEqual([ended.code, ended.stdout], [1, ""])
    })
  )

  it.scoped("ends with 0 at Ctrl-C, and lets an open session finish before that", () =>
    Effect.gen(function* () {
      const program = yield* start("server")
      const port = yield* listening(program)
      const peer = yield* sending(port, asking("/echo", { content: "x" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(text(yield* peer.receiveExactly(1)), "x")
      program.child.kill("SIGINT")
      // A request after the signal is refused, so the signal has arrived; the session still works.
      yield* refusing(port)
      yield* peer.send("still here")
      yield* peer.end
      assert.strictEqual(text(yield* peer.receiveAll), "still here")
      assert.strictEqual(yield* peer.closed, "end")
      const ended = yield* Effect.promise(() => program.ended)
      assert.deepStrictEqual([ended.code, ended.stderr], [0, ""])
    })
  )

  it.scoped("closes at Ctrl-C, and exits with 0, when an open session does not finish", () =>
    Effect.gen(function* () {
      const program = yield* start("server")
      const peer = yield* sending(yield* listening(program), asking("/echo", { content: "x" }))
      yield* peer.receiveUntil("\r\n\r\nx")
      program.child.kill("SIGINT")
      yield* peer.closed
      const ended = yield* Effect.promise(() => program.ended)
      assert.deepStrictEqual([ended.code, ended.stderr], [0, ""])
    })
  )
})

/** Asks for a switch until it is refused: the server is draining, or listens no more. */
const refusing = (port: number): Effect.Effect<void> =>
  Effect.flatMap(
    sending(port, asking("/echo")).pipe(
      Effect.flatMap((peer) => peer.receiveHead),
      Effect.match({ onFailure: () => true, onSuccess: ({ status }) => status === 503 }),
      Effect.scoped
    ),
    (refused) => (refused ? Effect.void : Effect.suspend(() => refusing(port)))
  )

describe("the example", () => {
  it.scoped("callback.ts echoes, and hears how the connection ended", () =>
    Effect.gen(function* () {
      const program = yield* start("callback")
      const peer = yield* sending(yield* listening(program), asking("/echo", { content: "early" }))
      const head = yield* peer.receiveHead
      assert.deepStrictEqual([head.status, head.headers["x-greeting"]], [101, "hello"])
      assert.strictEqual(text(yield* peer.receiveExactly(5)), "early")
      yield* peer.end
      yield* peer.closed
      yield* Effect.promise(() => program.printed(/closed: Success/))
    })
  )

  it.scoped("direct.ts reads frames in the version that was agreed on, and its router maps the 101", () =>
    Effect.gen(function* () {
      const program = yield* start("direct")
      const peer = yield* sending(
        yield* listening(program),
        asking("/shout", { token: "shout, shout/2", content: "\x03hey\x02" })
      )
      const head = yield* peer.receiveHead
      assert.deepStrictEqual(
        [head.status, head.headers.upgrade, head.headers["x-served-by"]],
        [101, "shout/2", "direct.ts"]
      )
      assert.strictEqual(text(yield* peer.receiveExactly(6)), "HEY!!\n")
      yield* peer.send("ho\x00")
      assert.strictEqual(text(yield* peer.receiveAll), "HO!!\n")
    })
  )

  it.scoped("queue.ts hands its connections to a room in which all hear what one says", () =>
    Effect.gen(function* () {
      const program = yield* start("queue")
      const port = yield* listening(program)
      const first = yield* sending(port, asking("/chat", { token: "chat" }))
      assert.strictEqual((yield* first.receiveHead).headers["x-room"], "1")
      // Whoever hears itself has joined.
      yield* first.send("first")
      assert.strictEqual(text(yield* first.receiveExactly(5)), "first")
      const second = yield* sending(port, asking("/chat", { token: "chat", content: "hello, room" }))
      assert.strictEqual((yield* second.receiveHead).status, 101)
      assert.strictEqual(text(yield* first.receiveExactly(11)), "hello, room")
      assert.strictEqual(text(yield* second.receiveExactly(11)), "hello, room")
      yield* first.end
      assert.strictEqual(text(yield* first.receiveAll), "")
    })
  )

  it.scoped("typed-tls.ts reads the client's certificate before and after a switch", () =>
    Effect.gen(function* () {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-upgrade-"))),
        (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
      )
      const files = { TLS_KEY: join(directory, "key.pem"), TLS_CERT: join(directory, "cert.pem") }
      writeFileSync(files.TLS_KEY, key)
      writeFileSync(files.TLS_CERT, cert)
      const program = yield* start("typed-tls", files)
      const port = yield* listening(program)
      const peer = yield* Peer.connect({ port, tls: clientTls })
      yield* peer.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
      // The server has no authority for client certificates here: it is shown one, and verifies nothing of it.
      assert.strictEqual((yield* peer.receiveResponse).text, "localhost\n")
      yield* peer.send(asking("/whoami", { token: "whoami" }))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      assert.strictEqual(text(yield* peer.receiveAll), "localhost over TLSv1.3\n")
    })
  )

  it.scoped("http-api.ts switches in both endpoints, and answers 426 in both", () =>
    Effect.gen(function* () {
      const program = yield* start("http-api")
      const port = yield* listening(program)
      for (const path of ["/declared", "/responded"]) {
        const peer = yield* sending(port, asking(path, { content: "early" }))
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        assert.strictEqual(text(yield* peer.receiveExactly(5)), "early")
        const other = yield* sending(port, asking(path, { token: "other" }))
        const refused = yield* other.receiveResponse
        assert.deepStrictEqual([refused.status, refused.headers.upgrade], [426, "echo"])
      }
    })
  )
})

interface Heard {
  readonly client: Client.WebSocket
  readonly next: Effect.Effect<string>
  readonly closed: Promise<readonly [code: number, reason: string]>
}

/** A websocket of `ws` to an example, once it is open. */
const webSocket = (port: number, path = "/", options: Client.ClientOptions = {}) =>
  Effect.acquireRelease(
    Effect.async<Heard>((resume) => {
      const messages = Effect.runSync(Queue.unbounded<string>())
      const client = new Client.WebSocket(`ws://127.0.0.1:${port}${path}`, options)
      client.on("message", (data) => Queue.unsafeOffer(messages, String(data)))
      const closed = new Promise<readonly [number, string]>((resolve) =>
        client.once("close", (code, reason) => resolve([code, reason.toString()]))
      )
      client.once("open", () => resume(Effect.succeed({ client, next: Queue.take(messages), closed })))
    }),
    ({ client }) => Effect.sync(() => client.terminate())
  )

describe("the example of websockets", () => {
  it.scoped("websocket-echo.ts echoes, deflated where it is told to agree to that", () =>
    Effect.gen(function* () {
      const program = yield* start("websocket-echo", { DEFLATE: "1" })
      const { client, next } = yield* webSocket(yield* listening(program), "/", { perMessageDeflate: true })
      assert.include(client.extensions, "permessage-deflate")
      for (const message of ["one", "again ".repeat(200_000)]) {
        client.send(message)
        assert.strictEqual(yield* next, message)
      }
    })
  )

  it.scoped("websocket-client.ts echoes until it is closed, and exits with 0", () =>
    Effect.gen(function* () {
      const server = yield* Effect.acquireRelease(
        Effect.async<Client.WebSocketServer>((resume) => {
          const server = new Client.WebSocketServer({ port: 0, host: "127.0.0.1" })
          server.once("listening", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      const echoed = new Promise<string>((resolve) =>
        server.once("connection", (peer) => {
          peer.send("echo this")
          peer.once("message", (data) => {
            resolve(String(data))
            peer.close(1000, "thanks")
          })
        })
      )
      const program = yield* start("websocket-client", {}, [
        `ws://127.0.0.1:${(server.address() as net.AddressInfo).port}`
      ])
      assert.strictEqual(yield* Effect.promise(() => echoed), "echo this")
      const ended = yield* Effect.promise(() => program.ended)
      assert.deepStrictEqual([ended.code, ended.stderr], [0, "closed: 1000 thanks\n"])
    })
  )

  it.scoped("chat.ts tells all what one says, refuses what is no message, and says that it closes", () =>
    Effect.gen(function* () {
      const program = yield* start("chat")
      const port = yield* listening(program)
      const page = yield* sending(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
      assert.include((yield* page.receiveResponse).text, "<title>Chat</title>")
      // Without a name there is nothing to join as
      const nameless = yield* sending(
        port,
        asking("/chat", {
          token: "websocket",
          fields: ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
        })
      )
      assert.strictEqual((yield* nameless.receiveResponse).status, 400)
      const ada = yield* webSocket(port, "/chat?name=ada")
      assert.deepStrictEqual(JSON.parse(yield* ada.next), { _tag: "Joined", name: "ada" })
      const bob = yield* webSocket(port, "/chat?name=bob")
      for (const { next } of [ada, bob]) {
        assert.deepStrictEqual(JSON.parse(yield* next), { _tag: "Joined", name: "bob" })
      }
      bob.client.send(JSON.stringify({ text: "hi" }))
      for (const { next } of [ada, bob]) {
        assert.deepStrictEqual(JSON.parse(yield* next), { _tag: "Said", name: "bob", text: "hi" })
      }
      bob.client.send("{}")
      assert.deepStrictEqual(yield* Effect.promise(() => bob.closed), [1007, "expected { text }"])
      assert.deepStrictEqual(JSON.parse(yield* ada.next), { _tag: "Left", name: "bob" })
      program.child.kill("SIGINT")
      assert.deepStrictEqual(JSON.parse(yield* ada.next), { _tag: "Closing" })
      assert.deepStrictEqual(yield* Effect.promise(() => ada.closed), [1001, ""])
      assert.strictEqual((yield* Effect.promise(() => program.ended)).code, 0)
    })
  )
})
