/** The three ways of switching, on whatever exchange the request has. */
import * as Headers from "@effect/platform/Headers"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import { globalValue } from "effect/GlobalValue"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import type { Listener } from "../Connection.js"
import * as Protocol from "../Protocol.js"
import type { HijackOptions, Options } from "../Upgrade.js"
import {
  AlreadyUpgraded,
  BodyOn101,
  ConnectionLost,
  HandshakeRefused,
  NotSwitched,
  NotUpgradable,
  ProtocolNotOffered,
  ServerDraining,
  type SwitchError,
  TooManyConnections,
  type UpgradeError
} from "../UpgradeError.js"
import { isWebSocketError } from "../WebSocketError.js"
import { contentOf, type Exchange, forbiddenField, type Host, Pending, type Settings } from "./exchange.js"
import { hijacked, unfit } from "./hijack.js"
import { listIncludes, matches, type Offer, parseOffers } from "./http1/offers.js"
import { exchangeOf, hostOf } from "./requests.js"
import { runtimeOf, sessionRuntime } from "./session.js"
import type { UpgradedImpl } from "./upgraded.js"

type Request = HttpServerRequest.HttpServerRequest

export const listOf = (protocols: Protocol.Protocols): ReadonlyArray<Protocol.Protocol.Any> =>
  Protocol.isProtocol(protocols) ? [protocols] : protocols

/** The offers that count: none where the request cannot be upgraded. */
export const offersOf = (request: Request): ReadonlyArray<Offer> => {
  const exchange = exchangeOf(request)
  return exchange === undefined || exchange.obstacle !== undefined ? [] : exchange.offers
}

const enters = (exchange: Exchange, protocol: Protocol.Protocol.Any): boolean =>
  protocol === hijacked
    ? exchange.isHijackable
    : exchange.isConnect
      ? protocol === Protocol.connect
      : exchange.offers.some((offer) => matches(offer, protocol.name, protocol.version))

/** Whether the request offers one of these, by a method that enters it. */
export const wants = (request: Request, protocols: Protocol.Protocols): boolean => {
  const exchange = exchangeOf(request)
  return (
    exchange !== undefined &&
    exchange.obstacle === undefined &&
    listOf(protocols).some(
      (protocol) =>
        enters(exchange, protocol) && (protocol.methods === undefined || protocol.methods.includes(exchange.method))
    )
  )
}

const obstacles = {
  HttpVersion: "HTTP/1.0 cannot be upgraded: its Upgrade field is ignored. Use HTTP/1.1.",
  NoUpgrade: "The request has no Upgrade field, or none that can be read. Send one, with the protocol to switch to.",
  NoConnectionOption: 'The request does not list Upgrade in its Connection field. Send "Connection: Upgrade" with it.'
}

const notUpgradable = (
  reason: NotUpgradable["reason"],
  protocols: ReadonlyArray<Protocol.Protocol.Any>,
  description: string,
  methods?: ReadonlyArray<string>
) =>
  new NotUpgradable({
    reason,
    // CONNECT is a method, and no token that an Upgrade field could name
    protocols: protocols.filter((protocol) => protocol !== Protocol.connect).map((protocol) => protocol.token),
    methods,
    description
  })

/** A request without an exchange did not ask for a switch, or asked another server. */
const withoutExchange = (request: Request, protocols: ReadonlyArray<Protocol.Protocol.Any>): NotUpgradable =>
  hostOf(request) === undefined
    ? notUpgradable(
        "Server",
        protocols,
        "The request did not come by an UpgradeServer. Serve the app with UpgradeServer.layer in place of NodeHttpServer.layer."
      )
    : parseOffers(request.headers.upgrade).length > 0 && !listIncludes(request.headers.connection, "upgrade")
      ? notUpgradable("NoConnectionOption", protocols, obstacles.NoConnectionOption)
      : notUpgradable("NoUpgrade", protocols, obstacles.NoUpgrade)

/** Why the exchange can begin no switch any more. */
const takenBefore = (exchange: Exchange, token: string): AlreadyUpgraded | ConnectionLost | undefined =>
  exchange.phase === "Lost"
    ? new ConnectionLost({ protocol: token, description: "the peer has gone" })
    : exchange.phase !== "Deciding" || exchange.pending !== undefined
      ? new AlreadyUpgraded({ protocol: exchange.pending?.protocol.token ?? token })
      : undefined

const choose = (
  exchange: Exchange,
  listener: Listener | undefined,
  protocols: ReadonlyArray<Protocol.Protocol.Any>
): UpgradeError | Protocol.Protocol.Any => {
  const { host } = exchange
  if (listener !== undefined && host.listener !== listener) {
    return notUpgradable("Server", protocols, `The request did not come by the server that provides ${listener.key}.`)
  }
  const taken = takenBefore(exchange, protocols[0]!.token)
  if (taken !== undefined) {
    return taken
  }
  if (exchange.obstacle !== undefined && protocols[0] !== hijacked) {
    return notUpgradable(exchange.obstacle, protocols, obstacles[exchange.obstacle])
  }
  const protocol = protocols.find((protocol) => enters(exchange, protocol))
  if (protocol === undefined) {
    return exchange.isConnect
      ? notUpgradable("Method", protocols, "The resource is not a tunnel: CONNECT cannot enter it.", ["GET"])
      : new ProtocolNotOffered({
          protocols: protocols.map((protocol) => protocol.token),
          offered: exchange.offers.map((offer) => offer.token)
        })
  }
  if (protocol.methods !== undefined && !protocol.methods.includes(exchange.method)) {
    return notUpgradable(
      "Method",
      protocols,
      `${protocol.token} is entered by ${protocol.methods.join(" or ")}, not by ${exchange.method}.`,
      protocol.methods
    )
  }
  if (host.draining) {
    return new ServerDraining()
  }
  return isFull(host) ? new TooManyConnections({ limit: host.maxConnections }) : protocol
}

/** Those that are about to be switched count too, or a burst would pass the limit. */
const isFull = (host: Host): boolean => {
  if (host.maxConnections === Infinity) {
    return false
  }
  let taken = host.connections.size
  host.exchanges.forEach((exchange) => {
    taken += exchange.pending === undefined ? 0 : 1
  })
  return taken >= host.maxConnections
}

const settingsOf = (options: Options | undefined): Partial<Settings> | undefined => {
  if (options === undefined) {
    return undefined
  }
  let settings: { -readonly [K in keyof Settings]?: Settings[K] } | undefined
  for (const name of ["bodyTimeout", "claimTimeout", "closeTimeout", "idleTimeout", "writeTimeout"] as const) {
    if (options[name] !== undefined) {
      settings ??= {}
      settings[name] = Duration.toMillis(options[name])
    }
  }
  return settings
}

const isEncoded = (error: UpgradeError, response: HttpServerResponse.HttpServerResponse): boolean =>
  response.body._tag === "Uint8Array" &&
  response.body.body.length < 65_536 &&
  Buffer.from(response.body.body).includes(`"_tag":"${error._tag}"`)

/** The one status that an error is declared with, whatever its answer would be. */
const declaredStatus = (error: UpgradeError, own: number): number =>
  error._tag === "NotUpgradable" ? 426 : error._tag === "HandshakeRefused" ? 400 : own

/**
 * An `HttpApi` endpoint that declares an error encodes it by itself: the fields that its answer must have, and a status
 * that depends on what happened, are completed on the way out (RFC 9110 §15.5.22: a 426 names the protocols).
 */
const completing = (error: UpgradeError): Effect.Effect<void> =>
  HttpApp.appendPreResponseHandler((_request, response) =>
    Effect.map(HttpServerRespondable.toResponse(error), (own) => {
      const encoded = response.status === declaredStatus(error, own.status) && isEncoded(error, response)
      if (response.status !== own.status && !encoded) {
        return response
      }
      const { "content-length": _length, "content-type": _type, ...fields } = own.headers
      const completed = HttpServerResponse.setHeaders(response, { ...fields, ...response.headers })
      return encoded ? HttpServerResponse.setStatus(completed, own.status) : completed
    })
  )

interface Begun {
  readonly exchange: Exchange
  readonly pending: Pending
  readonly response: HttpServerResponse.HttpServerResponse
}

/** Negotiates: from here on the exchange has a pending switch, and the response to answer it with. */
export const begin = (
  listener: Listener | undefined,
  protocols: Protocol.Protocols,
  options: Options | undefined,
  onSwitched?: (upgraded: UpgradedImpl) => void
): Effect.Effect<Begun, UpgradeError, any> =>
  Effect.withFiberRuntime((fiber) => {
    const request = Context.unsafeGet(
      fiber.currentContext as Context.Context<Request>,
      HttpServerRequest.HttpServerRequest
    )
    const list = listOf(protocols)
    const exchange = exchangeOf(request)
    const refuse = (error: UpgradeError) => {
      if (exchange !== undefined) {
        exchange.refused = true
      }
      return Effect.zipRight(
        // The client can do nothing about that: it is the program that serves elsewhere
        error._tag === "NotUpgradable" && error.reason === "Server"
          ? Effect.logWarning(error.message)
          : completing(error),
        Effect.fail(error)
      )
    }
    if (exchange === undefined) {
      return refuse(withoutExchange(request, list))
    }
    const chosen = choose(exchange, listener, list)
    if (!Protocol.isProtocol(chosen)) {
      return refuse(chosen)
    }
    return Effect.matchEffect(chosen.check(request) as Effect.Effect<Headers.Headers, HandshakeRefused>, {
      onFailure: refuse,
      onSuccess: (fields) => {
        const taken =
          takenBefore(exchange, chosen.token) ??
          (isFull(exchange.host) ? new TooManyConnections({ limit: exchange.host.maxConnections }) : undefined)
        if (taken !== undefined) {
          return refuse(taken)
        }
        const own = options?.headers === undefined ? fields : Headers.merge(Headers.fromInput(options.headers), fields)
        const response = HttpServerResponse.empty({
          status: 101,
          statusText: options?.statusText,
          headers: Headers.merge(own, Headers.unsafeFromRecord({ connection: "Upgrade", upgrade: chosen.token })),
          ...(options?.cookies === undefined ? {} : { cookies: options.cookies })
        })
        const found = contentOf(response)
        const forbidden = forbiddenField(own, options?.statusText)
        if (forbidden !== undefined) {
          return refuse(
            new HandshakeRefused({
              protocol: chosen.token,
              status: 500,
              description: `The field ${JSON.stringify(
                forbidden
              )} of the 101 has a character that may not stand in a head (CR, LF, NUL or another control).`
            })
          )
        }
        const pending = new Pending(chosen, fields, fiber, settingsOf(options), onSwitched)
        if (found !== undefined) {
          return refuse(new BodyOn101({ protocol: chosen.token, found }))
        }
        exchange.pending = pending
        return Effect.succeed({ exchange, pending, response })
      }
    })
  })

/** The effect that yields the connection to whoever claims it, in the claimer's Scope. */
export const claim = ({ exchange, pending }: Begun): Effect.Effect<UpgradedImpl, SwitchError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      if (pending.claimed) {
        return Effect.fail(new AlreadyUpgraded({ protocol: pending.protocol.token }))
      }
      if (!pending.settled && exchange.appExit === undefined && fiber === pending.fiber) {
        return Effect.fail(new NotSwitched({ protocol: pending.protocol.token, reason: "SelfAwait" }))
      }
      pending.claimed = true
      pending.deadline?.cancel()
      return Effect.onInterrupt(restore(pending.await), () =>
        Effect.sync(() => {
          // Nobody has it: it may be claimed again.
          pending.claimed = false
          pending.onUnclaimed?.()
        })
      ).pipe(Effect.tap((upgraded) => Effect.addFinalizer((exit) => upgraded.connection.release(exit))))
    })
  )

/** Where a wrapped handler's switch becomes the value of its route. */
interface Boundary {
  /** The fiber of the handler. */
  fiber: Fiber.RuntimeFiber<any, any> | undefined
  /** The 101 that it is to be answered with, and the hooks that the handler registered before. */
  answer:
    | {
        readonly protocol: string
        readonly response: HttpServerResponse.HttpServerResponse
        readonly hooks: Option.Option<HttpApp.PreResponseHandler>
      }
    | undefined
  /** Called when there is an answer. */
  wake: () => void
}

const currentBoundary: FiberRef.FiberRef<Boundary | undefined> = globalValue(
  Symbol.for("effect-upgrade/Upgrade/boundary"),
  () => FiberRef.unsafeMake<Boundary | undefined>(undefined)
)

/** Switches where the handler stands, and gives the connection to the Scope. */
export const direct = (
  listener: Listener | undefined,
  protocols: Protocol.Protocols,
  options: Options | undefined
): Effect.Effect<UpgradedImpl, UpgradeError, any> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(begin(listener, protocols, options)), (begun) =>
      Effect.withFiberRuntime<UpgradedImpl, UpgradeError, Scope.Scope | Request>((fiber) => {
        const { exchange, pending } = begun
        pending.claimed = true
        const boundary = fiber.getFiberRef(currentBoundary)
        const switched =
          boundary !== undefined && boundary.answer === undefined
            ? cross(boundary, begun, fiber, restore)
            : Effect.onError(inPlace(begun, fiber, restore), () =>
                Effect.sync(() => {
                  // The request may still be answered, or switched another way.
                  exchange.pending = undefined
                })
              )
        return Effect.tap(switched, (upgraded) =>
          Effect.addFinalizer((exit) => upgraded.connection.release(ownExit(exchange, exit)))
        )
      })
    )
  )

/** Switches behind an ordinary response: to nothing that was offered, where the listener allows it. */
export const hijack = (
  listener: Listener | undefined,
  response: HttpServerResponse.HttpServerResponse,
  options: HijackOptions | undefined
): Effect.Effect<UpgradedImpl, UpgradeError, any> =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => {
    const error =
      exchangeOf(request)?.isHijackable === true
        ? unfit(response)
        : notUpgradable(
            "Server",
            [],
            "The connection of this request cannot be taken: its listener does not say so in UpgradeServer.Options.hijackable."
          )
    return error === undefined
      ? direct(listener, hijacked, {
          ...options,
          headers: response.headers,
          cookies: response.cookies,
          statusText: response.statusText
        })
      : Effect.zipRight(Effect.logWarning(error.message), Effect.fail(error))
  })

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/**
 * The platform closes a request's Scope with success whatever happened, or adds the response to the cause: how the app
 * itself failed is what counts.
 */
const ownExit = (exchange: Exchange, exit: Exit.Exit<unknown, unknown>): Exit.Exit<unknown, unknown> =>
  exchange.appExit !== undefined && Exit.isFailure(exchange.appExit) ? exchange.appExit : exit

/** The 101 passes the hooks that are registered by now; they are cleared, since they ran. */
const inPlace = (
  { exchange, pending, response }: Begun,
  fiber: Fiber.RuntimeFiber<any, any>,
  restore: Restore
): Effect.Effect<UpgradedImpl, UpgradeError, Request> => {
  const hooks = fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
  const request = Context.unsafeGet(
    fiber.currentContext as Context.Context<Request>,
    HttpServerRequest.HttpServerRequest
  )
  const completed =
    hooks._tag === "None"
      ? Effect.succeed(response)
      : Effect.zipLeft(
          restore(Effect.orDie(hooks.value(request, response))),
          FiberRef.set(HttpApp.currentPreResponseHandlers, Option.none())
        )
  return Effect.flatMap(completed, (response) => {
    pending.session = exchange.fiber
    return exchange.commit(pending, response, restore)
  })
}

/** The 101 becomes the value of the wrapped handler, and whatever maps the route's response maps it. */
const cross = (
  boundary: Boundary,
  begun: Begun,
  fiber: Fiber.RuntimeFiber<any, any>,
  restore: Restore
): Effect.Effect<UpgradedImpl, UpgradeError> => {
  begun.pending.session = boundary.fiber ?? fiber
  boundary.answer = {
    protocol: begun.pending.protocol.token,
    response: begun.response,
    hooks: fiber.getFiberRef(HttpApp.currentPreResponseHandlers)
  }
  boundary.wake()
  return restore(begun.pending.await).pipe(
    Effect.onInterrupt(() => Effect.sync(() => begun.pending.onUnclaimed?.())),
    // Somebody round the route answered in its place: there is nothing to go on with.
    Effect.catchTag("NotSwitched", () => Effect.interrupt)
  )
}

/**
 * Runs a handler in a fiber of its own, up to its end or to its switch: the 101 is then the value, and the handler goes
 * on. Its Scope is its own: it closes when the handler ends, or with the request's where it did not switch.
 */
export const session = <E, R>(
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse.HttpServerResponse, E, any> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const requestScope = yield* Effect.scope
      const scope = yield* Scope.make()
      const boundary: Boundary = { fiber: undefined, answer: undefined, wake: () => {} }
      const fiber = yield* restore(Scope.extend(handler, scope)).pipe(
        Effect.locally(currentBoundary, boundary),
        Effect.forkDaemon
      )
      boundary.fiber = fiber
      fiber.addObserver((exit) => {
        if (boundary.answer !== undefined) {
          const closed = Scope.close(scope, exit)
          runAfter(
            fiber,
            isFailure(exit) ? Effect.zipRight(logFailure(boundary.answer.protocol, exit.cause), closed) : closed
          )
        }
      })
      yield* restore(
        Effect.async<void>((resume) => {
          const wake = () => resume(Effect.void)
          boundary.wake = wake
          fiber.addObserver(wake)
          return Fiber.interrupt(fiber)
        })
      )
      if (boundary.answer !== undefined) {
        yield* FiberRef.set(HttpApp.currentPreResponseHandlers, boundary.answer.hooks)
        return boundary.answer.response
      }
      yield* Fiber.inheritAll(fiber)
      yield* Scope.addFinalizerExit(requestScope, (exit) => Scope.close(scope, exit))
      return yield* yield* Fiber.await(fiber)
    })
  )

/** Runs what follows a fiber that has ended, with its services and fiber refs. */
const runAfter = (fiber: Fiber.RuntimeFiber<any, any>, effect: Effect.Effect<unknown>): void => {
  Runtime.runFork(runtimeOf(fiber.currentContext, fiber.getFiberRefs()), effect)
}

const isFailure = <E>(exit: Exit.Exit<unknown, E>): exit is Exit.Failure<unknown, E> =>
  Exit.isFailure(exit) && !Cause.isInterruptedOnly(exit.cause)

type OnFailure<E> = ((cause: Cause.Cause<E>) => Effect.Effect<unknown, never, any>) | undefined

/** Goes on with what follows a session. By an observer rather than a finalizer: an idle session holds no frames for it. */
const whenOver = <E>(upgraded: UpgradedImpl, fiber: Fiber.RuntimeFiber<unknown, E>, onFailure: OnFailure<E>): void => {
  fiber.addObserver((exit) => {
    const closed = upgraded.connection.close(exit)
    runAfter(
      fiber,
      isFailure(exit)
        ? logFailure(upgraded.protocol, exit.cause).pipe(
            Effect.zipRight(closed),
            Effect.zipRight((onFailure?.(exit.cause) ?? Effect.void) as Effect.Effect<unknown>)
          )
        : closed
    )
  })
}

/** That a peer went is nothing that the program did wrong. */
const levelOf = (cause: Cause.Cause<unknown>): LogLevel.LogLevel => {
  const failure = Cause.failureOption(cause)
  return failure._tag === "Some" && isWebSocketError(failure.value) ? LogLevel.Debug : LogLevel.Error
}

const logFailure = (protocol: string, cause: Cause.Cause<unknown>): Effect.Effect<void> =>
  Effect.logWithLevel(levelOf(cause), `The ${protocol} session failed.`, cause)

/** What runs a session once its connection is there: in a fiber of its own, with the services and fiber refs of the call. */
export const onSwitched = <E>(
  fiber: Fiber.RuntimeFiber<any, any>,
  handler: (upgraded: UpgradedImpl) => Effect.Effect<unknown, E, any>,
  onFailure: OnFailure<E>
): ((upgraded: UpgradedImpl) => void) => {
  const services = fiber.currentContext
  const fiberRefs = fiber.getFiberRefs()
  return (upgraded) => {
    const { connection } = upgraded
    const session = Runtime.runFork(
      sessionRuntime(services, fiberRefs, connection, currentBoundary),
      startSession(upgraded, handler)
    )
    connection.session = session
    whenOver(upgraded, session, onFailure)
  }
}

/** Nothing of the request is in its closure: it lives as long as the connection. */
const startSession = <E>(
  upgraded: UpgradedImpl,
  handler: (upgraded: UpgradedImpl) => Effect.Effect<unknown, E, any>
): Effect.Effect<unknown, E> => Effect.suspend(() => handler(upgraded) as Effect.Effect<unknown, E>)
