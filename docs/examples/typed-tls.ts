// A socket whose type the listener promises. It needs a key and a certificate, which this line makes:
//
//   openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -keyout key.pem -out cert.pem
//   TLS_KEY=key.pem TLS_CERT=cert.pem npx tsx docs/examples/typed-tls.ts
import { readFileSync } from "node:fs"
import type { TLSSocket } from "node:tls"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Effect, Layer } from "effect"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"

/** The name in a client's certificate. */
const nameOf = ({ socket }: Connection.Connection<TLSSocket>) => socket.getPeerCertificate().subject?.CN ?? "nobody"

// `upgraded.socket` is a TLSSocket, and the program compiles only under a listener that provides `Connection.Tls`.
const whoami = Effect.gen(function* () {
  const upgraded = yield* Upgrade.upgrade(Connection.Tls, Protocol.raw("whoami"))
  yield* Upgraded.write(upgraded, `${nameOf(upgraded.connection)} over ${upgraded.socket.getProtocol()}\n`)
  return Upgrade.done
})

// An ordinary handler reads the same from the request's connection.
const plain = Effect.gen(function* () {
  const connection = yield* Connection.currentWith(Connection.Tls)
  return HttpServerResponse.text(`${nameOf(connection)}\n`)
})

const file = (name: string) => Config.map(Config.string(name), (path) => readFileSync(path))

const listener = Config.all({
  port: Config.withDefault(Config.integer("PORT"), 3443),
  key: file("TLS_KEY"),
  cert: file("TLS_CERT")
}).pipe(
  // Ask clients for a certificate, and serve those without one too.
  Effect.map((options) => UpgradeServer.layerTls({ ...options, requestCert: true, rejectUnauthorized: false })),
  Layer.unwrapEffect
)

HttpRouter.empty.pipe(
  HttpRouter.get("/whoami", whoami),
  HttpRouter.get("/", plain),
  HttpServer.serve(),
  HttpServer.withLogAddress,
  Layer.provide(listener),
  Layer.launch,
  NodeRuntime.runMain
)
