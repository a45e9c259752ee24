import * as HttpServer from "@effect/platform/HttpServer"
import { it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Connection, Upgrade, Upgraded, UpgradeServer } from "../src/index.js"
import * as Peer from "../src/testing/Peer.js"
import { ask, decode, echo, turns } from "./appSupport.js"
import * as alice from "./clientCertificate.js"
import { cert, key } from "./testing/certificate.js"
it.scopedLive("x", () => Effect.gen(function*() {
  const app = Upgrade.onUpgrade(Connection.Tls, echo, (upgraded) => Effect.suspend(() => { console.log(upgraded.socket.getPeerCertificate()); return Effect.onExit(Upgraded.write(upgraded, `x`), (e) => Effect.log(e)) }))
    const context = yield* Layer.build(
      HttpServer.serve(app).pipe(
        Layer.provideMerge(
          UpgradeServer.layerTls({ port: 0, host: "127.0.0.1", cert, key, requestCert: true, ca: alice.cert })
        )
      )
    )
    const { port } = Context.get(context, HttpServer.HttpServer).address as HttpServer.TcpAddress
    const peer = yield* Peer.connect({ port, tls: { rejectUnauthorized: false, cert: alice.cert, key: alice.key } })
    yield* peer.send(ask())
    console.log(yield* peer.receiveHead)
    if (process.env.WAIT) yield* turns(100)
    yield* peer.end
    console.log(decode(yield* peer.receiveAll))
}))
