/**
 * `HttpServerRequest.upgrade` of the platform, for HttpApi, RpcServer and whoever uses it: a websocket by `ws`, as
 * `NodeHttpServer` gives it, but on a connection that this library has guarded up to there.
 */

import type { Duplex } from "node:stream"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Socket from "@effect/platform/Socket"
import * as Effect from "effect/Effect"
import { WebSocketServer } from "ws"
import type { Http1Exchange } from "./exchange.js"

let webSockets: WebSocketServer | undefined

const notOpened = (cause: unknown) => new Socket.SocketGenericError({ reason: "Open", cause })

const handshake = (
  exchange: Http1Exchange,
  socket: Duplex,
  head: Buffer
): Effect.Effect<globalThis.WebSocket, Socket.SocketError> =>
  Effect.async((resume) => {
    webSockets ??= new WebSocketServer({ noServer: true, clientTracking: false })
    // What `ws` refuses it answers itself, closes, and says no more about it
    const refused = () => resume(Effect.fail(notOpened(new Error("the websocket handshake was refused"))))
    socket.once("close", refused)
    webSockets.handleUpgrade(exchange.request, socket, head, (webSocket) => {
      socket.off("close", refused)
      // Frames that came with the handshake wait until somebody listens
      webSocket.pause()
      setImmediate(() => webSocket.resume())
      resume(Effect.succeed(webSocket as unknown as globalThis.WebSocket))
    })
  })

const acquire = (exchange: Http1Exchange) =>
  Effect.acquireRelease(
    Effect.flatMap(Effect.mapError(exchange.surrender(), notOpened), ({ head, socket }) =>
      handshake(exchange, socket, head)
    ),
    (webSocket) => Effect.sync(() => webSocket.close())
  )

/**
 * Gives the platform's request what its own server would have constructed it with. The field is the platform's own, and
 * private: it goes along when the request is modified, which a wrapper round the request would have to imitate.
 */
export const provideUpgrade = (request: HttpServerRequest.HttpServerRequest, exchange: Http1Exchange): void => {
  ;(request as unknown as { upgradeEffect: Effect.Effect<Socket.Socket> }).upgradeEffect = Effect.suspend(() =>
    Socket.fromWebSocket(acquire(exchange))
  )
}
