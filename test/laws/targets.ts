/** The app of the laws, over every kind of connection. */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as HttpServer from "@effect/platform/HttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import * as Supervisor from "effect/Supervisor"
import { UpgradeServer } from "../../src/index.js"
import { type Laws, Memory, Peer } from "../../src/testing/index.js"
import { cert, key } from "../testing/certificate.js"
import * as app from "./app.js"

export class Target extends Context.Tag("test/Target")<Target, Laws.Target>() {}

/** What a TCP connection within one Linux machine holds. */
const tcpBuffers = 16 * 1024 * 1024

const address = Effect.map(HttpServer.HttpServer, ({ address }) => address)

const tcp = Effect.flatMap(address, (address) =>
  address._tag === "TcpAddress" ? app.target(Peer.connect({ port: address.port }), tcpBuffers) : Effect.die(address)
)

const tls = Effect.flatMap(address, (address) =>
  address._tag === "TcpAddress"
    ? app.target(Peer.connect({ port: address.port, tls: { ca: cert } }), tcpBuffers)
    : Effect.die(address)
)

const unix = Effect.flatMap(address, (address) =>
  address._tag === "UnixAddress" ? app.target(Peer.connect({ path: address.path }), tcpBuffers) : Effect.die(address)
)

const unixSocket = Layer.unwrapScoped(
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "laws-"))),
      (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true }))
    ),
    (directory) => UpgradeServer.layerUnix({ path: path.join(directory, "socket") })
  )
)

const port = { port: 0, host: "127.0.0.1" }

/** The fibers of the law itself, and those that sleep until a deadline of the server's, one for each setting. */
const otherFibers = 20

/** The target over a listener: what is open there are its fibers too, beyond what is there always. */
const over = <R, E>(
  make: Effect.Effect<Laws.Target, unknown, R | Scope.Scope>,
  listener: Layer.Layer<R, E>
): Layer.Layer<Target, unknown> =>
  Layer.unwrapEffect(
    Effect.map(Supervisor.track, (supervisor) =>
      Layer.scoped(
        Target,
        Effect.map(make, (target) => ({
          ...target,
          open: Effect.zipWith(
            target.open!,
            supervisor.value,
            (open, fibers) => open + Math.max(0, fibers.length - otherFibers)
          )
        }))
      ).pipe(
        Layer.provide(listener),
        Layer.provide(Supervisor.addSupervisor(supervisor)),
        // Sessions whose peers are lost are logged, and most of these are
        Layer.provide(Logger.remove(Logger.defaultLogger))
      )
    )
  )

export const targets: Record<string, Layer.Layer<Target, unknown>> = {
  "in memory": over(
    Effect.flatMap(Memory.Memory, ({ connect }) => app.target(connect)),
    Memory.layer()
  ),
  "over TCP": over(tcp, UpgradeServer.layerNet(port)),
  "over TLS": over(tls, UpgradeServer.layerTls({ ...port, cert, key })),
  "over a Unix socket": over(unix, unixSocket)
}
