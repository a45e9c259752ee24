/** From a `node:http` server's events to the app, and from the app's response to the exchange's gate. */

import type { IncomingMessage, Server, ServerResponse } from "node:http"
import type { Duplex } from "node:stream"
import { Server as TlsServer } from "node:tls"
import type * as App from "@effect/platform/HttpApp"
import * as HttpApp from "@effect/platform/HttpApp"
import type * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import type * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { Listener } from "../../Connection.js"
import type { Options } from "../../UpgradeServer.js"
import { makeListener } from "../connection.js"
import { ordinary } from "../exchange.js"
import { makeHost, type ServerHost } from "../host.js"
import { exchangeOf, hostOf, registerExchange, registerHost } from "../requests.js"
import { Http1Exchange, keepsAlive } from "./exchange.js"
import { answerForNobody, closesWithSocket, countRequest } from "./node.js"
import { provideUpgrade } from "./platform.js"

type Handler = (request: IncomingMessage, response: ServerResponse) => void

/** What `HttpApp.toHandled` marks a request with once its response was handled. */
const handledSymbol = Symbol.for("@effect/platform/HttpApp/handled")

// A hook may fail with a ResponseError only, by its type; these fail with nothing.
const last = (hook: App.PreResponseHandler) => HttpApp.appendPreResponseHandler(hook)

const ordinaryHook: App.PreResponseHandler = (request, response) =>
  ordinary(response, keepsAlive(NodeHttpServerRequest.toIncomingMessage(request)), hostOf(request)?.draining === true)

/** Nobody is left without an answer: a hook that dies on every response would leave the platform with none. */
const answered = (fiber: Fiber.RuntimeFiber<any, any>, request: HttpServerRequest.HttpServerRequest): void => {
  fiber.addObserver(() => {
    const exchange = exchangeOf(request)
    if (exchange === undefined) {
      answerForNobody(NodeHttpServerRequest.toServerResponse(request))
    } else {
      exchange.requestEnded()
    }
  })
}

/**
 * Around the app: interruptible, as a route is; its exit is known; the gate is the last hook that its response passes.
 * By a match rather than a finalizer: where this stands nothing is interrupted, and a session that lasts holds less.
 */
const gated = <E, R>(app: App.Default<E, R>, isWhole: boolean): App.Default<E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const request = Context.unsafeGet(fiber.currentContext, HttpServerRequest.HttpServerRequest)
    const exchange = exchangeOf(request)
    if (isWhole) {
      answered(fiber, request)
    }
    if (exchange === undefined) {
      return Effect.matchCauseEffect(Effect.interruptible(app), {
        onFailure: (cause) => Effect.zipRight(last(ordinaryHook), Effect.failCause(cause)),
        onSuccess: (response) => Effect.as(last(ordinaryHook), response)
      })
    }
    exchange.fiber = fiber
    provideUpgrade(request, exchange.host.websocket)
    const gate: App.PreResponseHandler = (request, response) => exchange.gate(request, response)
    return Effect.matchCauseEffect(Effect.interruptible(app), {
      onFailure: (cause) => {
        exchange.appEnded(Exit.failCause(cause))
        return Effect.zipRight(last(gate), Effect.failCause(cause))
      },
      onSuccess: (response) => {
        exchange.appEnded(Exit.succeed(response))
        return Effect.as(last(gate), response)
      }
    })
  })

/** Around the serve-level middleware: a response of its own, for which it never asked the app, passes the gate too. */
const gatedMiddleware =
  (middleware: HttpMiddleware.HttpMiddleware): HttpMiddleware.HttpMiddleware =>
  (app: App.Default<any, any>) =>
    Effect.withFiberRuntime((fiber) => {
      const request = Context.unsafeGet(
        fiber.currentContext as Context.Context<HttpServerRequest.HttpServerRequest>,
        HttpServerRequest.HttpServerRequest
      )
      answered(fiber, request)
      return Effect.flatMap(middleware(app), (response: HttpServerResponse.HttpServerResponse) => {
        if (handledSymbol in request) {
          return Effect.succeed(response)
        }
        const exchange = exchangeOf(request)
        return exchange === undefined ? ordinaryHook(request, response) : exchange.gate(request, response)
      })
    })

/** A request handler of Node's over an app, as `NodeHttpServer` makes it. */
export const makeHandler = <E, R>(
  app: App.Default<E, R>,
  middleware?: HttpMiddleware.HttpMiddleware
): Effect.Effect<Handler, never, Exclude<R, HttpServerRequest.HttpServerRequest | Scope.Scope>> =>
  NodeHttpServer.makeHandler(
    gated(app, middleware === undefined),
    (middleware === undefined ? undefined : gatedMiddleware(middleware)) as never
  )

const unserved: Handler = (_request, response) => {
  response.writeHead(503, { connection: "close", "retry-after": "1", "content-length": "0" })
  response.end()
}

/**
 * Takes a server's requests, upgrading or not, for what is served on it; several may be, and the last one answers. With
 * the Scope the server stops, and is closed when every connection is.
 */
export const open = (
  server: Server,
  tag: Context.Tag<any, Listener<any>>,
  options: Options
): Effect.Effect<{ readonly host: ServerHost; readonly serve: HttpServer.HttpServer["serve"] }, never, Scope.Scope> =>
  Effect.gen(function* () {
    const host = yield* makeHost(makeListener(tag), options)
    const handlers: Array<Handler> = []
    const handle: Handler = (request, response) => (handlers[handlers.length - 1] ?? unserved)(request, response)
    const onRequest: Handler = (request, response) => {
      closesWithSocket(response)
      if (countRequest(server, request.socket, response)) {
        handle(request, response)
      }
    }
    const onUpgrade = (head: IncomingMessage, _socket: Duplex, early: Buffer) => {
      const exchange = new Http1Exchange(host, server, head, early)
      if (exchange.admit()) {
        registerExchange(exchange.request, exchange)
        handle(exchange.request, exchange.response)
      }
    }
    registerHost(server, host)
    server.on("request", onRequest)
    server.on("upgrade", onUpgrade)
    server.on("connect", onUpgrade)
    if (server instanceof TlsServer) {
      server.on("connection", host.trackCarrier)
      server.on("secureConnection", host.track)
    } else {
      server.on("connection", host.track)
    }
    yield* Effect.addFinalizer(() => host.close(server))
    const serve = (httpApp: App.Default<any, any>, middleware?: HttpMiddleware.HttpMiddleware) =>
      Effect.flatMap(makeHandler(httpApp, middleware), (handler) =>
        Effect.acquireRelease(
          Effect.sync(() => {
            host.serves()
            handlers.push(handler)
          }),
          () =>
            Effect.zipRight(
              host.drain,
              Effect.sync(() => {
                handlers.splice(handlers.indexOf(handler), 1)
              })
            )
        )
      )
    return { host, serve: serve as HttpServer.HttpServer["serve"] }
  })
