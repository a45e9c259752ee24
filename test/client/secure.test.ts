import type * as net from "node:net"
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Either, Exit, Fiber, type Scope, TestClock } from "effect"
import { Connection, Protocol, Upgrade, UpgradeClient, Upgraded, type UpgradeError } from "effect-upgrade"
import { pair } from "../../src/internal/memory.js"
import type * as Peer from "../../src/testing/Peer.js"
import { clientTls, echoed, type Kind, kinds, type Running, serve, turn, unhandled } from "../support.js"
import { cert, key } from "../testing/certificate.js"
import { attempt, failureOf, listening, received, requestHead, scripted, switching } from "./support.js"

const tlsOver = Protocol.raw("TLS/1.0")
const server = { role: "server", cert, key } as const
const client = { role: "client", servername: "localhost", ca: cert } as const

/** A server that secures the connection in place, and echoes. */
const securing = Upgrade.onUpgrade(tlsOver, (upgraded) => Effect.flatMap(Upgraded.secure(upgraded, server), echoed))

const upgrading = (
  kind: Kind,
  running: Running
): Effect.Effect<Upgraded.Upgraded<Duplex, "TLS/1.0">, UpgradeError.UpgradeClientError, Scope.Scope> => {
  const url = `${kind === "tls" ? "https" : "http"}://localhost:${running.port}/`
  if (kind === "memory") {
    const [accepted, socket] = pair()
    running.server.emit("connection", accepted)
    return UpgradeClient.upgrade(url, tlsOver, { socket: socket as Duplex })
  }
  return UpgradeClient.upgrade(
    url,
    tlsOver,
    kind === "unix" ? { socketPath: (running.target as { readonly path: string }).path } : { tls: clientTls }
  )
}

/** A client that is switched, and the scripted server at the other end of its connection. */
const switched = Effect.gen(function* () {
  const { server: peer, socket } = yield* scripted()
  yield* Effect.fork(Effect.zipRight(requestHead(peer), peer.send(switching("TLS/1.0"))))
  const upgraded = yield* UpgradeClient.upgrade("http://a/", tlsOver, { socket })
  return { peer, socket, upgraded }
})

describe("TLS in place", () => {
  for (const kind of kinds) {
    it.scopedLive(`over ${kind}: both ends go on over the same connection, and each half closes by itself`, () =>
      Effect.gen(function* () {
        const running = yield* serve(securing, { kind })
        let carrier: Duplex | undefined
        yield* Effect.scoped(
          Effect.gen(function* () {
            const plain = yield* upgrading(kind, running)
            carrier = plain.socket
            const secured = yield* Upgraded.secure(plain, client)
            assert.isTrue(secured.socket instanceof tls.TLSSocket)
            assert.isTrue(secured.socket.authorized)
            assert.strictEqual(secured.protocol, "TLS/1.0")
            assert.strictEqual(secured.connection, plain.connection as unknown)
            assert.isTrue(Either.isRight(Upgraded.downcast(secured, Connection.Tls)))
            yield* Effect.fork(Effect.zipRight(Upgraded.write(secured, "x".repeat(300_000)), Upgraded.end(secured)))
            assert.strictEqual((yield* received(secured)).length, 300_000)
          })
        )
        assert.isTrue(carrier!.destroyed)
        yield* running.idle
      })
    )

    it.scopedLive(`over ${kind}: closing it flushes, and closes what is below`, () =>
      Effect.gen(function* () {
        const seen = yield* Deferred.make<string>()
        const running = yield* serve(
          Upgrade.onUpgrade(tlsOver, (upgraded) =>
            Upgraded.secure(upgraded, server).pipe(
              Effect.flatMap(received),
              Effect.flatMap((text) => Deferred.succeed(seen, text))
            )
          ),
          { kind }
        )
        const sockets: Array<Duplex> = []
        const text = "y".repeat(400_000)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const plain = yield* upgrading(kind, running)
            sockets.push(plain.socket)
            const secured = yield* Upgraded.secure(plain, client)
            sockets.push(secured.socket)
            yield* Upgraded.write(secured, text)
          })
        )
        assert.strictEqual(yield* Deferred.await(seen), text)
        assert.isTrue(sockets.every((socket) => socket.destroyed))
        yield* running.idle
      })
    )

    it.scopedLive(`over ${kind}: a failure of its session destroys both, at both ends`, () =>
      Effect.gen(function* () {
        const failed = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
        const running = yield* serve(
          Upgrade.onUpgrade(tlsOver, (upgraded) =>
            Effect.flatMap(Upgraded.secure(upgraded, server), (secured) =>
              Effect.onExit(echoed(secured), (exit) => Deferred.succeed(failed, exit))
            )
          ),
          { kind }
        )
        yield* attempt(
          upgrading(kind, running).pipe(
            Effect.flatMap((plain) => Upgraded.secure(plain, client)),
            Effect.tap((secured) => Upgraded.write(secured, "hello")),
            Effect.flatMap((secured) => Upgraded.readExactly(secured, 5)),
            Effect.flatMap(() => Effect.fail("no more"))
          )
        )
        yield* Deferred.await(failed)
        yield* running.idle
      })
    )
  }

  it.scopedLive("begins behind what was written before, and reads first what had been read and not taken", () =>
    Effect.gen(function* () {
      const { peer, upgraded } = yield* switched
      yield* Upgraded.write(upgraded, "plain text first\n")
      const securing = yield* Effect.fork(Upgraded.secure(upgraded, { role: "server", cert, key }))
      assert.strictEqual(Buffer.from(yield* peer.receiveUntil("\n")).toString(), "plain text first\n")
      // The scripted end is the TLS client now
      peer.socket.removeAllListeners("data")
      const secured = tls.connect({ socket: peer.socket as net.Socket, ca: cert, servername: "localhost" })
      secured.on("error", () => {})
      secured.write("from the client")
      const upgradedOver = yield* Fiber.join(securing)
      assert.strictEqual(Buffer.from(yield* Upgraded.readExactly(upgradedOver, 15)).toString(), "from the client")
    })
  )

  for (const kind of kinds.filter((kind) => kind !== "memory")) {
    it.scopedLive(`over ${kind}: a ClientHello that arrived with the request is leftover, and TLS reads it`, () =>
      Effect.gen(function* () {
        const leftover = yield* Deferred.make<number>()
        const running = yield* serve(
          Upgrade.onUpgrade(tlsOver, (upgraded) =>
            Effect.zipRight(
              Deferred.succeed(leftover, Array.from(upgraded.leftover).length),
              Effect.flatMap(Upgraded.secure(upgraded, server), echoed)
            )
          ),
          { kind }
        )
        const peer = yield* running.connect
        // A TLS client over a pair in memory, whose first flight goes out with the request
        const [near, far] = pair()
        const secured = tls.connect({ socket: near as unknown as net.Socket, ca: cert, servername: "localhost" })
        secured.on("error", () => {})
        const hello = yield* Effect.async<Buffer>((resume) => {
          far.once("data", (bytes: Buffer) => resume(Effect.succeed(bytes)))
        })
        yield* peer.send(
          Buffer.concat([
            Buffer.from("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n"),
            hello
          ])
        )
        assert.strictEqual((yield* peer.receiveHead).status, 101)
        assert.isAbove(yield* Deferred.await(leftover), 0)
        const pump = Effect.forever(Effect.flatMap(peer.receive, (bytes) => Effect.sync(() => far.write(bytes))))
        yield* Effect.forkScoped(pump)
        far.on("data", (bytes: Buffer) => Effect.runFork(peer.send(bytes)))
        const echo = yield* Effect.async<string>((resume) => {
          secured.once("data", (bytes: Buffer) => resume(Effect.succeed(bytes.toString())))
          secured.write("over TLS")
        })
        assert.strictEqual(echo, "over TLS")
        secured.destroy()
      })
    )
  }

  it.scopedLive("leaves the Upgraded that it was made of without a voice", () =>
    Effect.gen(function* () {
      const running = yield* serve(securing)
      const plain = yield* upgrading("tcp", running)
      const reading = yield* Effect.fork(Effect.flip(received(plain)))
      yield* turn
      const secured = yield* Upgraded.secure(plain, client)
      assert.strictEqual((yield* Fiber.join(reading)).reason, "Closed")
      assert.strictEqual((yield* Effect.flip(Upgraded.write(plain, "in clear"))).reason, "Closed")
      assert.strictEqual((yield* Effect.flip(received(plain))).reason, "Closed")
      yield* Upgraded.write(secured, "echo")
      assert.strictEqual(Buffer.from(yield* Upgraded.readExactly(secured, 4)).toString(), "echo")
      const again = yield* Effect.flip(Upgraded.secure(plain, client))
      assert.strictEqual(again._tag, "ConnectionError")
    })
  )

  it.scopedLive("can be put over TLS, and over that", () =>
    Effect.gen(function* () {
      const running = yield* serve(
        Upgrade.onUpgrade(tlsOver, (upgraded) =>
          Upgraded.secure(upgraded, server).pipe(
            Effect.flatMap((once) => Upgraded.secure(once, server)),
            Effect.flatMap(echoed)
          )
        ),
        { kind: "tls" }
      )
      const plain = yield* upgrading("tls", running)
      const twice = yield* Effect.flatMap(Upgraded.secure(plain, client), (once) => Upgraded.secure(once, client))
      yield* Upgraded.write(twice, "deep")
      yield* Upgraded.end(twice)
      assert.strictEqual(yield* received(twice), "deep")
    })
  )

  it.effect("has the time limits of the connection below it", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const running = yield* serve(securing)
        const plain = yield* UpgradeClient.upgrade(`http://localhost:${running.port}/`, tlsOver, {
          idleTimeout: "1 minute"
        })
        const secured = yield* Upgraded.secure(plain, client)
        const reading = yield* Effect.fork(Effect.flip(received(secured)))
        // The last of the handshake moved after the limit began
        yield* Effect.repeatN(Effect.zipRight(turn, TestClock.adjust("1 minute")), 2)
        assert.strictEqual((yield* Fiber.join(reading)).reason, "Timeout")
      })
    )
  )

  it.scopedLive("knows the client's certificate, and the protocol of ALPN", () =>
    Effect.gen(function* () {
      const known = yield* Deferred.make<readonly [string, string | false | null]>()
      const running = yield* serve(
        Upgrade.onUpgrade(tlsOver, (upgraded) =>
          Upgraded.secure(upgraded, { ...server, ca: cert, requestCert: true, ALPNProtocols: ["b", "a"] }).pipe(
            Effect.flatMap(({ socket }) =>
              Deferred.succeed(known, [String(socket.getPeerCertificate().subject.CN), socket.alpnProtocol] as const)
            )
          )
        )
      )
      const plain = yield* upgrading("tcp", running)
      yield* Upgraded.secure(plain, { ...client, cert, key, ALPNProtocols: ["a", "b"] })
      assert.deepStrictEqual(yield* Deferred.await(known), ["localhost", "b"])
    })
  )
})

describe("TLS in place that fails", () => {
  it.scopedLive("for a certificate that is not trusted, or of another name, is TlsFailed at both ends", () =>
    Effect.gen(function* () {
      const failures: Array<string> = []
      const running = yield* serve(
        Upgrade.onUpgrade(tlsOver, (upgraded) =>
          Effect.flatMap(Upgraded.secure(upgraded, server), echoed).pipe(
            Effect.catchAll((error) => Effect.sync(() => void failures.push(error._tag)))
          )
        )
      )
      for (const options of [
        { ...client, ca: [] },
        { ...client, servername: "example.com" },
        { ...client, servername: "127.0.0.2" }
      ]) {
        const plain = yield* upgrading("tcp", running)
        const error = yield* Effect.flip(Upgraded.secure(plain, options))
        assert.strictEqual(error._tag, "TlsFailed")
        assert.isTrue(plain.socket.destroyed)
        yield* Connection.awaitClosed(plain.connection)
      }
      yield* running.idle
      assert.strictEqual(failures.length, 3)
    })
  )

  it.scopedLive("for a peer that speaks something else, that ends, or that goes, is TlsFailed", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      for (const role of [client, server]) {
        for (const end of [
          (peer: Peer.Peer) => peer.send("no TLS at all, nothing like it\r\n"),
          (peer: Peer.Peer) => peer.end,
          (peer: Peer.Peer) => peer.reset
        ]) {
          yield* Effect.scoped(
            Effect.gen(function* () {
              const { peer, socket, upgraded } = yield* switched
              const securing = yield* Effect.fork(Effect.flip(Upgraded.secure(upgraded, role)))
              yield* turn
              yield* end(peer)
              const error = yield* Fiber.join(securing)
              assert.isTrue(error._tag === "TlsFailed" || error.reason === "Reset")
              assert.notInclude(error.message, "took longer")
              assert.isTrue(socket.destroyed)
            })
          )
        }
      }
      yield* turn
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive(
    "for a peer that had ended, or options that are none, is TlsFailed; for one that was lost, ConnectionError",
    () =>
      Effect.gen(function* () {
        const ended = yield* switched
        yield* ended.peer.end
        yield* received(ended.upgraded)
        assert.strictEqual((yield* Effect.flip(Upgraded.secure(ended.upgraded, client)))._tag, "TlsFailed")
        assert.isTrue(ended.socket.destroyed)
        const bad = yield* switched
        const options = { role: "server", cert: "nonsense", key } as const
        assert.strictEqual((yield* Effect.flip(Upgraded.secure(bad.upgraded, options)))._tag, "TlsFailed")
        assert.isTrue(bad.socket.destroyed)
        const lost = yield* switched
        yield* lost.peer.reset
        yield* Connection.awaitClosed(lost.upgraded.connection)
        assert.strictEqual((yield* Effect.flip(Upgraded.secure(lost.upgraded, client)))._tag, "ConnectionError")
      })
  )

  it.effect("because it takes longer than handshakeTimeout, 10 s by default, is TlsFailed", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const [role, limit] of [
          [client, "10 seconds"],
          [{ ...server, handshakeTimeout: "2 seconds" }, "2 seconds"]
        ] as const) {
          const { peer, socket, upgraded } = yield* switched
          const securing = yield* Effect.fork(Effect.flip(Upgraded.secure(upgraded, role)))
          yield* Effect.repeatN(turn, 3)
          yield* TestClock.adjust(limit)
          const error = yield* Fiber.join(securing)
          assert.include(error.message, "took longer than")
          assert.isTrue(socket.destroyed)
          yield* peer.closed
        }
      })
    )
  )

  it.scopedLive("because it is interrupted, in any turn, destroys the connection", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const running = yield* serve(
        Upgrade.onUpgrade(tlsOver, (upgraded) =>
          Effect.ignore(Effect.flatMap(Upgraded.secure(upgraded, server), echoed))
        )
      )
      let secured = 0
      for (let turns = 0; secured === 0; turns += 1 + (turns >> 4)) {
        yield* Effect.scoped(
          Effect.gen(function* () {
            const plain = yield* upgrading("tcp", running)
            const securing = yield* Effect.fork(
              Effect.tap(Upgraded.secure(plain, client), () => Effect.sync(() => void secured++))
            )
            yield* Effect.repeatN(turn, turns)
            if (Exit.isInterrupted(yield* Fiber.interrupt(securing))) {
              assert.isTrue(plain.socket.destroyed)
            }
          })
        )
        yield* running.idle
      }
      assert.deepStrictEqual(seen, [])
    })
  )

  it.scopedLive("by a reset at any byte of the handshake and of the session, is a typed error", () =>
    Effect.gen(function* () {
      const seen = yield* unhandled
      const { accept, port } = yield* listening
      for (let at = 0; at < 3000; at += 97) {
        const serving = yield* Effect.fork(
          Effect.gen(function* () {
            const peer = yield* accept
            yield* requestHead(peer)
            yield* peer.send(switching("TLS/1.0"))
            peer.socket.removeAllListeners("data")
            const [near, far] = pair()
            const secured = new tls.TLSSocket(near as unknown as net.Socket, { isServer: true, cert, key })
            secured.on("error", () => {})
            secured.on("data", (bytes) => secured.write(bytes))
            let sent = 0
            far.on("error", () => {})
            peer.socket.on("data", (bytes) => void far.write(bytes))
            far.on("data", (bytes: Buffer) => {
              const passed = bytes.subarray(0, at - sent)
              sent += passed.length
              peer.socket.write(passed, () => {
                if (sent >= at) {
                  ;(peer.socket as net.Socket).resetAndDestroy()
                }
              })
            })
            yield* peer.closed
            far.destroy()
          }).pipe(Effect.scoped)
        )
        const exit = yield* attempt(
          UpgradeClient.upgrade(`http://127.0.0.1:${port}/`, tlsOver).pipe(
            Effect.flatMap((plain) => Upgraded.secure(plain, client)),
            Effect.tap((secured) => Upgraded.write(secured, "z".repeat(5000))),
            Effect.flatMap(received)
          )
        )
        const error = failureOf(exit)
        assert.isTrue(
          error === undefined
            ? Exit.isSuccess(exit)
            : ["TlsFailed", "ConnectionError", "ConnectionLost"].includes(error._tag),
          `${at} ${error?._tag}`
        )
        yield* Fiber.interrupt(serving)
      }
      assert.deepStrictEqual(seen, [])
    })
  )
})
