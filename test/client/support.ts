/** Servers for a client's tests: scripted ones, in memory or on a port, and what must be left of an attempt: nothing. */
import * as net from "node:net"
import type { Duplex } from "node:stream"
import { assert } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { pair } from "../../src/internal/memory.js"
import * as Peer from "../../src/testing/Peer.js"
import * as Upgraded from "../../src/Upgraded.js"
import { turn } from "../support.js"

/** A connection in memory: one end for the client, and a scripted server at the other, which ends when the client does. */
export const scripted = (): Effect.Effect<
  { readonly server: Peer.Peer; readonly socket: Duplex },
  never,
  Scope.Scope
> =>
  Effect.suspend(() => {
    const [accepted, socket] = pair()
    accepted.on("end", () => accepted.end())
    return Effect.map(Peer.fromDuplex(accepted), (server) => ({ server, socket }))
  })

/** A scripted server on a port: each of its connections, as it comes. */
export interface Listening {
  readonly port: number
  readonly accept: Effect.Effect<Peer.Peer, never, Scope.Scope>
}

const listen = Effect.fnUntraced(function* (ends: boolean) {
  const accepted = yield* Queue.unbounded<net.Socket>()
  const server = yield* Effect.acquireRelease(
    Effect.async<net.Server>((resume) => {
      const server = net.createServer({ allowHalfOpen: true }, (socket) => {
        socket.on("error", () => {})
        if (ends) {
          socket.on("end", () => socket.end())
        }
        Queue.unsafeOffer(accepted, socket)
      })
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => void server.close())
  )
  const { port } = server.address() as net.AddressInfo
  return { port, accept: Effect.flatMap(Queue.take(accepted), (socket) => Peer.fromDuplex(socket)) }
})

export const listening: Effect.Effect<Listening, never, Scope.Scope> = listen(true)

/** One that does not end when the client does. */
export const lingering: Effect.Effect<Listening, never, Scope.Scope> = listen(false)

/** The head of the request that a scripted server got, line by line. */
export const requestHead = (server: Peer.Peer): Effect.Effect<ReadonlyArray<string>, Peer.PeerError> =>
  Effect.map(server.receiveUntil("\r\n\r\n"), (bytes) =>
    Buffer.from(bytes).toString("latin1").slice(0, -4).split("\r\n")
  )

export const fieldOf = (lines: ReadonlyArray<string>, name: string): string | undefined =>
  lines.find((line) => line.toLowerCase().startsWith(`${name}: `))?.slice(name.length + 2)

export const switching = (token = "echo", fields: ReadonlyArray<string> = []): string =>
  ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", `Upgrade: ${token}`, ...fields, "", ""].join("\r\n")

/** All that comes until the peer's FIN, as text of one byte a character. */
export const received = (upgraded: Upgraded.Upgraded) =>
  Effect.map(Stream.runCollect(Upgraded.stream(upgraded)), (pieces) =>
    Buffer.concat(Chunk.toReadonlyArray(pieces)).toString("latin1")
  )

/** Done when a socket is destroyed. */
export const destroyed = (socket: Duplex): Effect.Effect<void> =>
  Effect.suspend(() => (socket.destroyed ? Effect.void : Effect.zipRight(turn, destroyed(socket))))

/** Fails the test where a socket is open, or has listeners other than those that keep its errors from being thrown. */
export const nothingLeft = (socket: Duplex): Effect.Effect<void> =>
  Effect.sync(() => {
    assert.isTrue(socket.destroyed)
    assert.strictEqual(socket.listenerCount("data") + socket.listenerCount("drain"), 0)
  })

/** The exit of an attempt in a Scope of its own, which is closed when it is told. */
export const attempt = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<Exit.Exit<A, E>, never, Exclude<R, Scope.Scope>> => Effect.exit(Effect.scoped(effect))

export const failureOf = <A, E>(exit: Exit.Exit<A, E>): E | undefined =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined
