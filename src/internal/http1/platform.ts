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

/** The request as the app sees it. */
export const withUpgrade = (
  request: HttpServerRequest.HttpServerRequest,
  exchange: Http1Exchange
): HttpServerRequest.HttpServerRequest =>
  Object.create(request, {
    upgrade: { get: () => Socket.fromWebSocket(acquire(exchange)) },
    modify: {
      value: (options: Parameters<HttpServerRequest.HttpServerRequest["modify"]>[0]) =>
        withUpgrade(request.modify(options), exchange)
    }
  })
