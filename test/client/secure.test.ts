import { TLSSocket } from "node:tls"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Either } from "effect"
import { Connection, Protocol, Upgrade, UpgradeClient, Upgraded } from "effect-upgrade"
import { clientTls, echoed, kinds, serve } from "../support.js"
import { cert, key } from "../testing/certificate.js"
import { received } from "./support.js"

const tlsOver = Protocol.raw("TLS/1.0")
const server = { role: "server", cert, key } as const
const client = { role: "client", servername: "localhost", ca: cert } as const

/** A server that secures the connection in place, and echoes. */
const securing = Upgrade.onUpgrade(tlsOver, (upgraded) => Effect.flatMap(Upgraded.secure(upgraded, server), echoed))

const over = (kind: string, running: { readonly port: number; readonly target: object }) => ({
  url: `${kind === "tls" ? "https" : "http"}://localhost:${running.port}/`,
  options: kind === "unix" ? { socketPath: (running.target as { path: string }).path } : { tls: clientTls }
})

describe("TLS in place", () => {
  for (const kind of kinds.filter((kind) => kind !== "memory")) {
    it.scopedLive(`over ${kind}: both ends go on in TLS over the same connection, and each half closes by itself`, () =>
      Effect.gen(function* () {
        const running = yield* serve(securing, { kind })
        const { options, url } = over(kind, running)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const plain = yield* UpgradeClient.upgrade(url, tlsOver, options)
            const secured = yield* Upgraded.secure(plain, client)
            assert.isTrue(secured.socket instanceof TLSSocket)
            assert.isTrue(secured.socket.authorized)
            assert.strictEqual(secured.protocol, "TLS/1.0")
            assert.isTrue(Either.isRight(Upgraded.downcast(secured, Connection.Tls)))
            yield* Upgraded.write(secured, "x".repeat(300_000))
            yield* Upgraded.end(secured)
            assert.strictEqual((yield* received(secured)).length, 300_000)
          })
        )
        yield* running.idle
      })
    )
  }
})
