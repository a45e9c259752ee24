/**
 * `HttpServerRequest.upgrade` of the platform, for HttpApi, RpcServer and whoever uses it: a websocket by `ws`, as
 * `NodeHttpServer` gives it, but on a connection that this library has guarded up to there.
 */
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Socket from "@effect/platform/Socket"
import * as Effect from "effect/Effect"
import { WebSocketServer } from "ws"
import type { Http1Exchange } from "./exchange.js"

let webSockets: WebSocketServer | undefined

const acquire = (exchange: Http1Exchange) =>
  Effect.acquireRelease(
    exchange.surrender().pipe(
      Effect.mapError((cause) => new Socket.SocketGenericError({ reason: "Open", cause })),
      Effect.flatMap(({ head, socket }) =>
        Effect.async<globalThis.WebSocket>((resume) => {
          webSockets ??= new WebSocketServer({ noServer: true, clientTracking: false })
          webSockets.handleUpgrade(exchange.request, socket, head, (webSocket) => {
            resume(Effect.succeed(webSocket as unknown as globalThis.WebSocket))
          })
        })
      )
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
