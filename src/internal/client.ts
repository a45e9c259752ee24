/**
 * A client's connection: made, asked, and given to the Scope once it is switched. Whatever ends the asking before that
 * ends the connection too, but for an answer that switches nothing: its content can be read while the Scope is open.
 */
import type { Duplex } from "node:stream"
import { TLSSocket } from "node:tls"
import * as Headers from "@effect/platform/Headers"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type { HttpMethod } from "@effect/platform/HttpMethod"
import * as UrlParams from "@effect/platform/UrlParams"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import * as RuntimeFlags from "effect/RuntimeFlags"
import type * as Scope from "effect/Scope"
import { Net, Tls } from "../Connection.js"
import * as Protocol from "../Protocol.js"
import type { Credentials, Options, Target } from "../UpgradeClient.js"
import { isUpgraded, type Upgraded } from "../Upgraded.js"
import {
  ConnectFailed,
  InvalidRequest,
  ProtocolMismatch,
  type UpgradeClientError,
  UpgradeRejected,
  UpgradeTimeout
} from "../UpgradeError.js"
import { parseAuthority } from "./authority.js"
import { ConnectionImpl, makeListener } from "./connection.js"
import { Deadlines } from "./deadlines.js"
import { type Limits, Wire } from "./duplex/wire.js"
import { hijacked } from "./hijack.js"
import { type Answer, exchange, switched } from "./http1/client.js"
import { ClientResponse } from "./http1/clientBody.js"
import { type Message, message } from "./http1/clientRequest.js"
import { responseFraming } from "./http1/clientResponse.js"
import { dial, targetOf } from "./http1/clientSocket.js"
import { connectionDefaults, settingsOf } from "./settings.js"
import { UpgradedImpl } from "./upgraded.js"

/** The options of one attempt, with any connection given to it. */
export interface AnyOptions extends Options {
  readonly socket?: Duplex | Upgraded | Effect.Effect<Duplex | Upgraded, unknown, unknown> | undefined
}

/** Times in milliseconds. */
interface Settings extends Limits {
  readonly connectTimeout: number
  readonly headTimeout: number
  readonly timeout: number
}

const defaults: Settings = {
  connectTimeout: 10_000,
  headTimeout: 30_000,
  timeout: Infinity,
  ...connectionDefaults
}

const net = makeListener(Net)
const tls = makeListener(Tls)

const listenerOf = (socket: Duplex) =>
  socket instanceof TLSSocket || (socket as { readonly encrypted?: boolean }).encrypted === true ? tls : net

/** A connection that is there, and how it ends where it was not given. */
export interface Carrier {
  readonly wire: Wire
  readonly connection: ConnectionImpl
  /** For the Scope that owns it; `undefined` where somebody else does. */
  finalizer: ((exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void>) | undefined
}

/** What makes the wires of one attempt, with its deadlines on the caller's Clock. */
const attaching = (settings: Settings): Effect.Effect<(socket: Duplex) => Carrier> =>
  Effect.gen(function* () {
    // Whoever asks may be uninterruptible; what sleeps until a deadline must not be
    const fork = Runtime.runFork(Runtime.enableRuntimeFlag(yield* Effect.runtime<never>(), RuntimeFlags.Interruption))
    const clock = yield* Effect.clock
    return (socket) => {
      const sleeping = new Set<Fiber.RuntimeFiber<void>>()
      const deadlines = new Deadlines(clock, (effect) => {
        const fiber = fork(effect)
        sleeping.add(fiber)
        fiber.addObserver(() => sleeping.delete(fiber))
      })
      const wire = new Wire(socket, deadlines, settings)
      if (socket.isPaused()) {
        socket.resume()
      }
      const connection = new ConnectionImpl<Duplex>(socket, listenerOf(socket), fork)
      connection.own(wire)
      connection.registry = { forget: () => sleeping.forEach((fiber) => fiber.unsafeInterruptAsFork(FiberId.none)) }
      return {
        wire,
        connection,
        finalizer: (exit) =>
          Effect.zipRight(
            connection.release(exit),
            Effect.suspend(() => (wire.isClosed ? Fiber.awaitAll(Array.from(sleeping)) : Effect.void))
          )
      }
    }
  })

const within = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  stage: UpgradeTimeout["stage"],
  millis: number
): Effect.Effect<A, E | UpgradeTimeout, R> =>
  millis === Infinity
    ? effect
    : Effect.timeoutFail(effect, {
        duration: Duration.millis(millis),
        onTimeout: () => new UpgradeTimeout({ stage, millis })
      })

const invalid = (description: string, cause?: unknown) =>
  new InvalidRequest({ description, ...(cause === undefined ? {} : { cause }) })

const carried = (
  given: Duplex | Upgraded,
  attach: (socket: Duplex) => Carrier
): Effect.Effect<Carrier, ConnectFailed> => {
  if (isUpgraded(given)) {
    const { connection, wire } = given as UpgradedImpl
    return Effect.succeed({ connection, wire, finalizer: undefined })
  }
  return given.destroyed
    ? Effect.fail(
        new ConnectFailed({
          address: "the given socket",
          reason: "Connect",
          description: "The socket that was given is closed already."
        })
      )
    : Effect.sync(() => attach(given))
}

/** The connection of an attempt: the one that was given, or a new one. */
const connecting = (
  url: URL,
  options: AnyOptions,
  attach: (socket: Duplex) => Carrier
): Effect.Effect<Carrier, UpgradeClientError, any> => {
  if (options.socket !== undefined) {
    return Effect.isEffect(options.socket)
      ? Effect.flatMap(options.socket as Effect.Effect<Duplex | Upgraded, never>, (given) => carried(given, attach))
      : carried(options.socket, attach)
  }
  const target = targetOf(url, options.socketPath)
  return target === undefined
    ? Effect.fail(invalid(`${url.protocol}//${url.host} is no address of http:, https:, ws: or wss:.`))
    : dial(target, options.tls ?? {}, attach)
}

interface Attempt<A> {
  readonly url: URL
  readonly message: Message
  /** What errors call the protocol. */
  readonly protocol: string
  /** What the answer means: a switch, or something else, which `undefined` is. */
  readonly decide: (answer: Answer) => Effect.Effect<A, UpgradeClientError> | undefined
}

const rejected = <A>(
  { message, protocol }: Attempt<A>,
  { head }: Answer,
  { connection, wire }: Carrier
): UpgradeRejected | ProtocolMismatch => {
  const framing = responseFraming(message.method, head)
  if (framing._tag === "Malformed") {
    return new ProtocolMismatch({
      protocol,
      description: `The content of the answer (${head.status}) cannot be read: ${framing.reason}.`
    })
  }
  return new UpgradeRejected({
    protocol,
    request: message.request,
    response: new ClientResponse(message.request, head, wire, framing, Option.fromNullable(connection.peer.address))
  })
}

/** Asks once. What is left open afterwards belongs to the Scope. */
const ask = <A, B>(
  attempt: Attempt<A>,
  options: AnyOptions,
  taken: (carrier: Carrier, switched: A, answer: Answer) => B
): Effect.Effect<B, UpgradeClientError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const settings = settingsOf(defaults, options)
      const attach = yield* attaching(settings)
      const held: { carrier?: Carrier } = {}
      const asking = within(
        connecting(attempt.url, options, (socket) => (held.carrier = attach(socket))),
        "Connect",
        settings.connectTimeout
      ).pipe(
        Effect.flatMap((connected) => {
          held.carrier = connected
          return Effect.flatMap(
            exchange(connected.wire, attempt.message, attempt.protocol, settings.headTimeout),
            (answer) => {
              const decided = attempt.decide(answer)
              return decided === undefined
                ? Effect.fail(rejected(attempt, answer, connected))
                : Effect.map(decided, (switched) => taken(connected, switched, answer))
            }
          )
        })
      )
      const exit = yield* Effect.exit(restore(within(asking, "Total", settings.timeout)))
      const { carrier } = held
      if (carrier !== undefined) {
        const failure = Exit.isFailure(exit) ? Cause.failureOption(exit.cause) : Option.none()
        const isRejected = Option.isSome(failure) && failure.value instanceof UpgradeRejected
        if (Exit.isFailure(exit) && !isRejected) {
          yield* carrier.connection.close(exit)
        } else if (carrier.finalizer !== undefined) {
          const { finalizer, wire } = carrier
          if (isRejected) {
            wire.watchIdle()
          }
          // After a refusal there is nothing to be flushed, and nothing to be waited for
          yield* Effect.addFinalizer((closed) => finalizer(isRejected ? exit : closed))
        }
      }
      return yield* exit
    })
  )

/** The connection is the protocol's from here on. */
const upgradedOf = (
  { connection, finalizer, wire }: Carrier,
  protocol: Protocol.Protocol.Any,
  { head }: Answer
): UpgradedImpl => {
  if (finalizer !== undefined) {
    wire.watchIdle()
  }
  return new UpgradedImpl(connection, wire, protocol, head.headers, true)
}

// ---------------------------------------------------------------------------------------------------- the three requests

const requestOf = (target: Target): HttpClientRequest.HttpClientRequest =>
  typeof target === "string" || target instanceof URL ? HttpClientRequest.get(target) : target

const urlOf = (request: HttpClientRequest.HttpClientRequest): Either.Either<URL, InvalidRequest> =>
  Either.mapLeft(UrlParams.makeUrl(request.url, request.urlParams, request.hash), (cause) =>
    invalid(`${JSON.stringify(request.url)} is no URL: give it whole, with its scheme and host.`, cause)
  )

const basic = (username: string, password: string): string =>
  `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`

/** The credentials of a URL's userinfo, or those that were given. */
const authorization = (url: URL, given: Credentials | undefined): string | undefined => {
  if (given !== undefined) {
    const { password, username } = given
    return basic(username, Redacted.isRedacted(password) ? Redacted.value(password) : password)
  }
  return url.username === "" && url.password === ""
    ? undefined
    : basic(decodeURIComponent(url.username), decodeURIComponent(url.password))
}

const own = (name: string, value: string | undefined): Headers.Headers =>
  Headers.fromInput(value === undefined ? {} : { [name]: value })

/** The request to a resource, in origin-form (RFC 9112 §3.2.1). */
const resource = (
  request: HttpClientRequest.HttpClientRequest,
  added: Headers.Headers,
  tokens: ReadonlyArray<string> | undefined
): Either.Either<{ readonly url: URL; readonly message: Message }, InvalidRequest> =>
  Either.gen(function* () {
    const url = yield* urlOf(request)
    const credentials = request.headers.authorization === undefined ? authorization(url, undefined) : undefined
    return {
      url,
      message: yield* message(
        request,
        `${url.pathname}${url.search}`,
        url.host,
        Headers.merge(own("authorization", credentials), added),
        tokens
      )
    }
  })

/** The fields of several protocols together; of one that two of them send, the preferred one's. */
const offerOf = (protocols: ReadonlyArray<Protocol.Protocol.Any>): Effect.Effect<Headers.Headers> =>
  Effect.reduceRight(protocols, Headers.empty, (protocol, fields) =>
    Effect.map(protocol.offer, (own) => {
      const merged = Headers.merge(fields, own)
      return own.connection !== undefined && fields.connection !== undefined
        ? Headers.set(merged, "connection", `${own.connection}, ${fields.connection}`)
        : merged
    })
  )

const notEntered = (method: string, protocols: ReadonlyArray<Protocol.Protocol.Any>): InvalidRequest | undefined => {
  if (protocols.includes(Protocol.connect)) {
    return invalid("CONNECT is no protocol of an Upgrade field: use UpgradeClient.connect.")
  }
  const wrong = protocols.find(({ methods }) => methods !== undefined && !methods.includes(method))
  return wrong && invalid(`${wrong.token} is entered by ${wrong.methods!.join(" or ")}, not by ${method}.`)
}

export const upgrade = (
  target: Target,
  protocols: Protocol.Protocols,
  options: AnyOptions
): Effect.Effect<UpgradedImpl, UpgradeClientError, Scope.Scope> =>
  Effect.suspend(() => {
    const request = requestOf(target)
    const list: ReadonlyArray<Protocol.Protocol.Any> = Protocol.isProtocol(protocols) ? [protocols] : protocols
    const wrong = notEntered(request.method, list)
    const tokens = list.map(({ token }) => token)
    return wrong !== undefined
      ? Effect.fail(wrong)
      : Effect.flatMap(offerOf(list), (added) =>
          Effect.flatMap(resource(request, added, tokens), ({ message, url }) =>
            ask(
              {
                url,
                message,
                protocol: tokens.join(", "),
                decide: (answer) => (answer.head.status === 101 ? switched(answer, message, list) : undefined)
              },
              options,
              upgradedOf
            )
          )
        )
  })

const unsolicited = (protocol: string) =>
  Effect.fail(
    new ProtocolMismatch({ protocol, description: "A 101 came to a request that offered no protocol (RFC 9110 §7.8)." })
  )

export const hijack = (
  target: Target,
  options: AnyOptions
): Effect.Effect<UpgradedImpl, UpgradeClientError, Scope.Scope> =>
  Effect.suspend(() =>
    Effect.flatMap(resource(requestOf(target), Headers.empty, undefined), ({ message, url }) =>
      ask(
        {
          url,
          message,
          protocol: hijacked.token,
          decide: ({ head, sent }) =>
            head.status === 101
              ? unsolicited(hijacked.token)
              : head.status === 200 && sent && responseFraming(message.method, head)._tag === "Close"
                ? Effect.succeed(hijacked)
                : undefined
        },
        options,
        upgradedOf
      )
    )
  )

// ---------------------------------------------------------------------------------------------------------------- CONNECT

/** `host:port`; of a URL what it stands for. */
const authorityOf = (authority: string | URL): string | undefined => {
  const text = String(authority)
  if (!text.includes("://")) {
    return parseAuthority(text) === undefined ? undefined : text
  }
  const url = URL.canParse(text) ? new URL(text) : undefined
  const target = url && targetOf(url, undefined)
  return target && `${url!.hostname}:${target.port}`
}

export interface ConnectOptions extends AnyOptions {
  readonly credentials?: Credentials | undefined
  readonly headers?: Headers.Input | undefined
}

const connectAttempt = (
  proxy: string | URL,
  authority: string | URL,
  options: ConnectOptions
): Either.Either<Attempt<typeof Protocol.connect>, InvalidRequest> =>
  Either.gen(function* () {
    const target = authorityOf(authority)
    if (target === undefined) {
      return yield* Either.left(
        invalid(
          `${JSON.stringify(String(authority))} is no authority: expected host:port, with a port between 1 and 65535.`
        )
      )
    }
    const request = HttpClientRequest.make("CONNECT" as HttpMethod)(proxy, { headers: options.headers ?? {} })
    const url = yield* urlOf(request)
    return {
      url,
      protocol: Protocol.connect.token,
      message: yield* message(
        request,
        target,
        target,
        own("proxy-authorization", authorization(url, options.credentials)),
        undefined
      ),
      decide: ({ head }) =>
        head.status === 101
          ? unsolicited(Protocol.connect.token)
          : // RFC 9110 §9.3.6: any 2xx is the tunnel, whatever length it says
            head.status >= 200 && head.status < 300
            ? Effect.succeed(Protocol.connect)
            : undefined
    }
  })

export const connect = (
  proxy: string | URL,
  authority: string | URL,
  options: ConnectOptions
): Effect.Effect<UpgradedImpl, UpgradeClientError, Scope.Scope> =>
  Effect.suspend(() =>
    Effect.flatMap(connectAttempt(proxy, authority, options), (attempt) => ask(attempt, options, upgradedOf))
  )

// A socket that is handed over can fail before anybody listens to it.
const ignore = () => {}

/**
 * A tunnel whose socket somebody else goes on with, such as an agent of Node's: it is handed over with what was read of it
 * put back, and nothing here hears it any more. The Scope destroys it.
 */
export const connectRaw = (
  proxy: string | URL,
  authority: string,
  options: ConnectOptions
): Effect.Effect<Duplex, UpgradeClientError, Scope.Scope> =>
  Effect.suspend(() =>
    Effect.flatMap(connectAttempt(proxy, authority, options), (attempt) =>
      ask(attempt, options, (carrier) => {
        const { wire } = carrier
        const { socket } = wire
        socket.on("error", ignore)
        for (const piece of Array.from(wire.release()).reverse()) {
          socket.unshift(piece)
        }
        carrier.finalizer = () => Effect.sync(() => void socket.destroy())
        return socket
      })
    )
  )
