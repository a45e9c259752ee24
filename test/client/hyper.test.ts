/** hyper's tests of a client's upgrades over HTTP/1 (tests/client.rs), each with its equivalent here. */
import * as net from "node:net"
import { assert, describe, it } from "@effect/vitest"
import { Chunk, Effect } from "effect"
import { Protocol, UpgradeClient, Upgraded } from "effect-upgrade"
import { listening, received, requestHead } from "./support.js"

const text = (pieces: Chunk.Chunk<Uint8Array>) => Buffer.concat(Chunk.toReadonlyArray(pieces)).toString()

describe("hyper's tests of clients", () => {
  it.scopedLive("16. client_connect_method: the request line is in authority-form", () =>
    Effect.gen(function* () {
      const { accept, port } = yield* listening
      yield* Effect.fork(UpgradeClient.connect(`http://127.0.0.1:${port}`, `127.0.0.1:${port}`))
      const lines = yield* requestHead(yield* accept)
      assert.deepStrictEqual(lines, [`CONNECT 127.0.0.1:${port} HTTP/1.1`, `host: 127.0.0.1:${port}`])
    })
  )

  it.scopedLive("17. client_connect_method_with_absolute_uri: also where it is given as a URL", () =>
    Effect.gen(function* () {
      const { accept, port } = yield* listening
      yield* Effect.fork(UpgradeClient.connect(`http://127.0.0.1:${port}`, `http://127.0.0.1:${port}/path`))
      const lines = yield* requestHead(yield* accept)
      assert.deepStrictEqual(lines, [`CONNECT 127.0.0.1:${port} HTTP/1.1`, `host: 127.0.0.1:${port}`])
    })
  )

  it.scopedLive("18. conn::upgrade: early bytes are leftover, the socket is not shut down, and raw IO goes on", () =>
    Effect.gen(function* () {
      const { accept, port } = yield* listening
      yield* Effect.fork(
        Effect.gen(function* () {
          const server = yield* accept
          yield* requestHead(server)
          yield* server.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foobar\r\n\r\nfoobar=ready"
          )
          yield* server.receiveUntil("foo=bar")
          yield* server.send("bar=foo")
        })
      )
      const upgraded = yield* UpgradeClient.upgrade(`http://127.0.0.1:${port}/a`, Protocol.raw("foobar"))
      assert.strictEqual(upgraded.protocol, "foobar")
      assert.strictEqual(text(upgraded.leftover), "foobar=ready")
      const { leftover, socket } = yield* Upgraded.detach(upgraded)
      assert.instanceOf(socket, net.Socket)
      assert.isTrue(socket.writable && socket.readable)
      assert.strictEqual(text(leftover), "foobar=ready")
      const answer = yield* Effect.async<string>((resume) => {
        socket.once("data", (bytes: Buffer) => resume(Effect.succeed(bytes.toString())))
        socket.write("foo=bar")
      })
      assert.strictEqual(answer, "bar=foo")
    })
  )

  it.scopedLive("19. conn::connect_method: the same for a tunnel", () =>
    Effect.gen(function* () {
      const { accept, port } = yield* listening
      yield* Effect.fork(
        Effect.gen(function* () {
          const server = yield* accept
          yield* requestHead(server)
          yield* server.send("HTTP/1.1 200 OK\r\n\r\nfoobar=ready")
          yield* server.receiveUntil("foo=bar")
          yield* server.send("bar=foo")
          yield* server.end
        })
      )
      const tunnel = yield* UpgradeClient.connect(`http://127.0.0.1:${port}`, `127.0.0.1:${port}`)
      assert.strictEqual(text(tunnel.leftover), "foobar=ready")
      yield* Upgraded.write(tunnel, "foo=bar")
      assert.strictEqual(yield* received(tunnel), "foobar=readybar=foo")
    })
  )
})
