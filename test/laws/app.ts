/** An app in which every law has something to look at, and the count of what it leaves open. */
import type { Duplex } from "node:stream"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpBody from "@effect/platform/HttpBody"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Connection, Protocol, Upgrade, Upgraded, UpgradeError, UpgradeServer } from "../../src/index.js"
import type { Laws } from "../../src/testing/index.js"
import { turn } from "../support.js"

const echo = Protocol.raw("echo")

const forbidden = Protocol.make({
  token: "echo",
  check: () =>
    Effect.fail(new UpgradeError.HandshakeRefused({ protocol: "echo", status: 403, description: "Nobody may enter." }))
})

/** More than the buffers between two ends hold. */
const says = "Good bye. ".repeat(50_000)

/** What sessions leave behind: it is counted until it is gone. */
class Remains {
  readonly sessions = new Set<object>()
  readonly connections = new Set<Connection.Connection>()
  readonly sockets = new Set<Duplex>()

  /** Runs a session, which must have been ended when the connection is closed. */
  readonly during = <A, E, R>(upgraded: Upgraded.Upgraded, session: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => {
      const { connection } = upgraded
      this.sockets.add(connection.socket)
      this.connections.add(connection)
      this.sessions.add(upgraded)
      return Effect.zipRight(
        Connection.addFinalizer(connection, () => Effect.sync(() => this.connections.delete(connection))),
        Effect.ensuring(
          session,
          Effect.sync(() => this.sessions.delete(upgraded))
        )
      )
    })

  get count(): number {
    for (const socket of this.sockets) {
      if (socket.closed && socket.listenerCount("data") + socket.listenerCount("drain") === 0) {
        this.sockets.delete(socket)
      }
    }
    return this.sessions.size + this.connections.size + this.sockets.size
  }
}

const byRun = (upgraded: Upgraded.Upgraded) => Upgraded.run(upgraded, (bytes) => Upgraded.writeAll(upgraded, bytes))

const byStream = (upgraded: Upgraded.Upgraded) => Stream.run(Upgraded.stream(upgraded), Upgraded.sink(upgraded))

type Claim = Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>

const switched = (remains: Remains, claims: Queue.Enqueue<Claim>) => {
  const direct = Effect.gen(function* () {
    const upgraded = yield* Upgrade.upgrade(echo)
    yield* remains.during(upgraded, byStream(upgraded))
    return Upgrade.done
  })
  return HttpRouter.empty.pipe(
    HttpRouter.all(
      "/on-upgrade",
      Upgrade.onUpgrade(echo, (upgraded) => remains.during(upgraded, byRun(upgraded)))
    ),
    HttpRouter.all("/upgrade", direct),
    HttpRouter.all("/session", Upgrade.session(direct)),
    HttpRouter.all(
      "/respond",
      Effect.gen(function* () {
        const [response, upgraded] = yield* Upgrade.respond(echo)
        yield* Queue.offer(claims, upgraded)
        return response
      })
    ),
    HttpRouter.all(
      "/body-first",
      Effect.gen(function* () {
        const request = yield* HttpServerRequest.HttpServerRequest
        yield* request.arrayBuffer
        return yield* Upgrade.onUpgrade(echo, (upgraded) => remains.during(upgraded, byRun(upgraded)))
      })
    ),
    HttpRouter.all(
      "/closing",
      Upgrade.onUpgrade(echo, (upgraded) => remains.during(upgraded, Upgraded.write(upgraded, says)))
    )
  )
}

const ending = (remains: Remains, reads: Queue.Enqueue<Uint8Array>) =>
  Upgrade.onUpgrade(echo, (upgraded) =>
    remains.during(
      upgraded,
      Effect.gen(function* () {
        yield* Upgraded.end(upgraded)
        const pieces = yield* Stream.runCollect(Upgraded.stream(upgraded))
        yield* Queue.offer(reads, Buffer.concat(Chunk.toReadonlyArray(pieces)))
      })
    )
  )

const large = Stream.fromIterable(Array.from({ length: 8 }, (_, i) => Buffer.alloc(20_000, `${i}`)))

const ordinary = HttpRouter.empty.pipe(
  HttpRouter.get("/plain", HttpServerResponse.text("plain")),
  HttpRouter.get("/slow", Effect.as(Effect.repeatN(turn, 5), HttpServerResponse.text("slow"))),
  HttpRouter.get("/large", HttpServerResponse.stream(large)),
  HttpRouter.post(
    "/body",
    Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      Effect.map(request.arrayBuffer, (body) => HttpServerResponse.uint8Array(new Uint8Array(body)))
    )
  ),
  HttpRouter.post("/unread", HttpServerResponse.text("nobody read it"))
)

const bodies: ReadonlyArray<HttpBody.HttpBody> = [
  HttpBody.text("a body"),
  HttpBody.uint8Array(Buffer.from("a body")),
  HttpBody.stream(Stream.make(Buffer.from("a body"))),
  HttpBody.formData(new FormData()),
  HttpBody.raw("a body")
]

const given: ReadonlyArray<
  readonly [path: string, (response: HttpServerResponse.HttpServerResponse) => HttpServerResponse.HttpServerResponse]
> = [
  ...bodies.map((body, i) => [`/body-${i}`, HttpServerResponse.setBody(body)] as const),
  ["/content-length", HttpServerResponse.setHeader("content-length", "6")],
  ["/transfer-encoding", HttpServerResponse.setHeader("transfer-encoding", "chunked")]
]

const bodied = given.reduce<HttpRouter.HttpRouter<UpgradeError.UpgradeError>>(
  (router, [path, give]) =>
    router.pipe(
      HttpRouter.all(`/by-handler${path}`, Effect.map(Upgrade.onUpgrade(echo, byRun), give)),
      HttpRouter.all(
        `/by-hook${path}`,
        Effect.zipRight(
          HttpApp.appendPreResponseHandler((_, response) => Effect.succeed(give(response))),
          Upgrade.onUpgrade(echo, byRun)
        )
      )
    ),
  HttpRouter.empty
)

const refused = HttpRouter.empty.pipe(
  HttpRouter.all("/other", Upgrade.onUpgrade(Protocol.raw("other"), byRun)),
  HttpRouter.all("/forbidden", Upgrade.onUpgrade(forbidden, byRun))
)

const everyMethod = (...paths: ReadonlyArray<string>): Laws.Requests => {
  const [first, ...others] = paths.flatMap((path) => [{ path }, { path, method: "POST" }])
  return [first!, ...others]
}

/** The app is served, and this is what the laws are to know of it. */
export const target = (
  connect: Laws.Target["connect"],
  transport?: number
): Effect.Effect<Laws.Target, never, HttpServer.HttpServer | UpgradeServer.UpgradeServer | Scope.Scope> =>
  Effect.gen(function* () {
    const remains = new Remains()
    const claims = yield* Queue.unbounded<Claim>()
    const reads = yield* Queue.unbounded<Uint8Array>()
    yield* Queue.take(claims).pipe(
      Effect.flatMap((claim) =>
        Effect.fork(
          Effect.ignore(Effect.scoped(Effect.flatMap(claim, (upgraded) => remains.during(upgraded, byRun(upgraded)))))
        )
      ),
      Effect.forever,
      Effect.forkScoped
    )
    const app = HttpRouter.concatAll(
      switched(remains, claims),
      HttpRouter.empty.pipe(HttpRouter.all("/ending", ending(remains, reads))),
      ordinary,
      bodied,
      refused
    )
    yield* Layer.build(HttpServer.serve(app))
    const { connections } = yield* UpgradeServer.UpgradeServer
    return {
      connect,
      transport,
      protocol: "echo",
      switched: everyMethod("/on-upgrade", "/upgrade", "/session", "/respond", "/body-first"),
      ordinary: [
        "/plain",
        "/slow",
        "/large",
        "/missing",
        { path: "/plain", method: "HEAD" },
        { path: "/body", method: "POST" },
        { path: "/unread", method: "POST" }
      ],
      refused: everyMethod("/other", "/forbidden"),
      bodied: everyMethod(...given.flatMap(([path]) => [`/by-handler${path}`, `/by-hook${path}`])),
      closing: { request: "/closing", says },
      ending: { request: "/ending", read: Queue.take(reads) },
      open: Effect.map(connections, (all) => all.length + remains.count)
    }
  })
