/**
 * One request that asks for a switch, from its head to the end of its connection: the state machine that decides what
 * goes out in answer, and hands the connection to its owner. How a head is written and what must come before it is the
 * wire's matter (`internal/http1`); nothing here knows a version of HTTP.
 *
 * ```
 * Deciding ──response 101──▶ Switching ──head is out──▶ Switched      (the connection is the owner's)
 *     │                          │
 *     ├──any other response──────┴──▶ Answered                        (the connection is HTTP's again, or closed)
 *     └──the peer goes──▶ Lost
 * ```
 */

import type { Duplex } from "node:stream"
import * as Cookies from "@effect/platform/Cookies"
import * as Headers from "@effect/platform/Headers"
import { RouteNotFound } from "@effect/platform/HttpServerError"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import type { Listener } from "../Connection.js"
import type { Protocol } from "../Protocol.js"
import {
  AlreadyUpgraded,
  BodyOn101,
  ConnectionLost,
  HandshakeRefused,
  NotSwitched,
  type SwitchError,
  UpgradeTimeout
} from "../UpgradeError.js"
import type { Options as WebSocketOptions } from "../WebSocket.js"
import type { ConnectionImpl } from "./connection.js"
import type { Deadline, Deadlines } from "./deadlines.js"
import { bytesSent, unsent } from "./duplex/node.js"
import type { Limits, Wire } from "./duplex/wire.js"
import type { Hijackable } from "./hijack.js"
import { isFieldName, isFieldValue, listIncludes, type Offer } from "./http1/offers.js"
import { UpgradedImpl } from "./upgraded.js"

/** Times in milliseconds. */
export interface Settings extends Limits {
  readonly decisionTimeout: number
  readonly bodyTimeout: number
  readonly claimTimeout: number
}

/** The server of an exchange. */
export interface Host {
  readonly listener: Listener
  readonly settings: Settings
  readonly maxConnections: number
  /** Whether the connection of a request may be taken behind an ordinary response. */
  readonly hijackable: Hijackable | undefined
  /** Of the websockets that the platform's own requests open. */
  readonly websocket: WebSocketOptions
  readonly deadlines: Deadlines
  readonly connections: ReadonlySet<ConnectionImpl>
  /** Requests that offer a switch and are not yet answered. */
  readonly exchanges: ReadonlySet<Exchange>
  readonly enter: (exchange: Exchange) => void
  readonly leave: (exchange: Exchange) => void
  readonly register: (connection: ConnectionImpl) => void
  readonly draining: boolean
  readonly fork: (effect: Effect.Effect<void>) => void
  readonly connectionOf: (socket: Duplex) => ConnectionImpl
}

/** Why a request cannot be switched, whatever it offers. */
export type Obstacle = "NoUpgrade" | "NoConnectionOption" | "HttpVersion"

/** A switch that a handler asked for, until it has taken place or cannot. */
export class Pending {
  private deferred: Deferred.Deferred<UpgradedImpl, SwitchError> | undefined
  private outcome: Effect.Effect<UpgradedImpl, SwitchError> | undefined
  claimed = false
  deadline: Deadline | undefined
  /** Called when a connection that is there is nobody's: it is closed unless somebody claims it in time. */
  onUnclaimed: (() => void) | undefined
  /** The fiber that goes on as the session, where it is known before the switch. */
  session: Fiber.RuntimeFiber<any, any> | undefined
  constructor(
    readonly protocol: Protocol.Any,
    /** What the protocol itself puts on the 101, and the handler's own fields: asserted again when the head is written. */
    readonly headers: Headers.Headers,
    readonly fiber: Fiber.RuntimeFiber<any, any>,
    readonly limits: Partial<Settings> | undefined,
    /** Takes the connection in the name of somebody who need not claim it. */
    readonly onSwitched: ((upgraded: UpgradedImpl) => void) | undefined
  ) {}

  get settled(): boolean {
    return this.outcome !== undefined
  }

  settle(outcome: Effect.Effect<UpgradedImpl, SwitchError>): void {
    this.outcome = outcome
    if (this.deferred !== undefined) {
      Deferred.unsafeDone(this.deferred, outcome)
    }
  }

  readonly await: Effect.Effect<UpgradedImpl, SwitchError> = Effect.suspend(
    () => this.outcome ?? Deferred.await((this.deferred ??= Deferred.unsafeMake(FiberId.none)))
  )
}

/** What the 101 may not have: the name of the field, or the kind of the body. */
export const contentOf = (response: HttpServerResponse.HttpServerResponse): string | undefined => {
  if (response.body._tag !== "Empty") {
    return response.body._tag
  }
  // RFC 9110 §8.6 and RFC 9112 §6.1: neither field in any 1xx
  return "content-length" in response.headers
    ? "Content-Length"
    : "transfer-encoding" in response.headers
      ? "Transfer-Encoding"
      : undefined
}

/** What could not stand in a head: CR, LF or NUL in it would be another field, or another message. */
export const forbiddenField = (headers: Headers.Headers, statusText: string | undefined): string | undefined => {
  if (statusText !== undefined && !isFieldValue(statusText)) {
    return "the reason phrase"
  }
  for (const name in headers) {
    if (!isFieldName(name) || !isFieldValue(headers[name]!)) {
      return name
    }
  }
  return undefined
}

const isSuccessStatus = (status: number) => status >= 200 && status < 300

const closing = (response: HttpServerResponse.HttpServerResponse) =>
  listIncludes(response.headers.connection, "close")
    ? response
    : HttpServerResponse.setHeader(
        response,
        "connection",
        response.headers.connection === undefined ? "close" : `${response.headers.connection}, close`
      )

/** The last word on a response that is not a switch, for any request. */
export const ordinary = (
  response: HttpServerResponse.HttpServerResponse,
  keepsAlive: boolean,
  draining: boolean
): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  response.status >= 200
    ? Effect.succeed(
        // Node takes any Connection field of ours, such as that of a 426, for a wish to persist
        draining || (!keepsAlive && response.headers.connection !== undefined) ? closing(response) : response
      )
    : Effect.as(
        Effect.logError(
          response.status === 101
            ? "A response of status 101 without a pending switch was answered with 500. Only Upgrade's functions switch a connection, on requests that offer it."
            : `A response of status ${response.status} was answered with 500: it would not be final.`
        ),
        HttpServerResponse.empty({ status: 500 })
      )

export abstract class Exchange {
  phase: "Deciding" | "Switching" | "Switched" | "Answered" | "Lost" = "Deciding"
  /** A refusal was raised: the bytes behind the request may be the other protocol's. */
  refused = false
  pending: Pending | undefined
  /** The fiber of the app, and how it ended. */
  fiber: Fiber.RuntimeFiber<any, any> | undefined
  appExit: Exit.Exit<unknown, unknown> | undefined
  protected timedOut: UpgradeTimeout | undefined
  protected decision: Deadline

  abstract readonly method: string
  abstract readonly offers: ReadonlyArray<Offer>
  abstract readonly obstacle: Obstacle | undefined
  /** The listener lets the connection be taken behind an ordinary response. */
  abstract readonly isHijackable: boolean

  constructor(
    readonly host: Host,
    readonly socket: Duplex
  ) {
    this.decision = this.watchDecision()
    host.enter(this)
  }

  get connection(): ConnectionImpl {
    return this.host.connectionOf(this.socket)
  }

  get isConnect(): boolean {
    return this.method === "CONNECT"
  }

  /** The head of the switch may go out: the request was read whole, and all earlier responses are sent. */
  protected abstract readonly isReady: boolean
  /** Waits for that. */
  protected abstract ready(bodyTimeout: number): Effect.Effect<void, UpgradeTimeout | ConnectionLost>
  /** Writes the head of the switch, and gives the connection when it is out. */
  protected abstract writeSwitch(
    protocol: Protocol.Any,
    statusText: string,
    headers: Headers.Headers,
    cookies: ReadonlyArray<string>,
    limits: Limits
  ): Effect.Effect<Wire, ConnectionLost>
  /** Whether the request lets the connection persist. */
  protected abstract readonly keepsAlive: boolean
  /** Whether bytes lie behind the request. */
  protected abstract readonly hasInput: boolean
  /** The head of an ordinary response is out. */
  protected abstract readonly isAnswering: boolean
  /** Gives up: nothing was answered in time, and nothing can be. */
  abstract destroy(): void

  /** The fiber of the whole request has ended: a hook that died, say, leaves nobody to answer. */
  abstract requestEnded(): void

  private watchDecision(): Deadline {
    const millis = this.host.settings.decisionTimeout
    return this.host.deadlines.add(millis, () => this.undecided(millis))
  }

  private undecided(millis: number): void {
    if (this.isAnswering) {
      this.watchAnswer(this.host.settings.writeTimeout)
      return
    }
    this.timedOut = new UpgradeTimeout({ stage: "Decision", millis })
    this.fiber?.unsafeInterruptAsFork(FiberId.none)
    this.decision = this.host.deadlines.add(this.host.settings.closeTimeout, () => this.destroy())
  }

  /**
   * An answer of which nothing leaves for so long ends the connection: what the peer sends is not read on meanwhile, and
   * so its going is not seen.
   */
  protected watchAnswer(millis: number): void {
    const { socket } = this
    const sent = bytesSent(socket)
    const waits = unsent(socket) > 0
    this.decision = this.host.deadlines.add(millis, () => {
      if (waits && unsent(socket) > 0 && bytesSent(socket) === sent) {
        this.destroy()
      } else {
        this.watchAnswer(millis)
      }
    })
  }

  /** The peer went, or the connection was closed, before an answer was out. */
  protected lost(description: string): void {
    if (this.phase !== "Deciding" && this.phase !== "Switching") {
      return
    }
    this.over("Lost")
    this.settle((pending) => new ConnectionLost({ protocol: pending.protocol.token, description }))
  }

  /** The pending switch will not take place; `error` says why to whoever awaits it. */
  settle(error: (pending: Pending) => SwitchError): void {
    const pending = this.pending
    if (pending === undefined || pending.settled) {
      return
    }
    pending.settle(Effect.fail(error(pending)))
  }

  /** The app has ended: whatever is answered from now on is the last word. */
  appEnded(exit: Exit.Exit<unknown, unknown>): void {
    this.appExit = exit
  }

  /** The response has been sent, and it was not a switch. */
  protected answered(status: number): void {
    this.over("Answered")
    this.settle((pending) => this.notSwitched(pending, status))
  }

  private notSwitched(pending: Pending, status: number): NotSwitched {
    const exit = this.appExit
    const reason =
      exit === undefined || Exit.isSuccess(exit)
        ? "Answered"
        : Cause.isInterruptedOnly(exit.cause)
          ? "Interrupted"
          : "Failed"
    return new NotSwitched({ protocol: pending.protocol.token, reason, status })
  }

  /**
   * Switches: the response is checked and completed, its turn awaited, its head written, and the connection given to its
   * owner. For an uninterruptible region: it is interruptible, by `restore`, only while it waits; once the head goes out, the
   * connection belongs to somebody.
   */
  commit(
    pending: Pending,
    response: HttpServerResponse.HttpServerResponse,
    restore: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  ): Effect.Effect<UpgradedImpl, BodyOn101 | HandshakeRefused | ConnectionLost | UpgradeTimeout | AlreadyUpgraded> {
    type Failure = BodyOn101 | HandshakeRefused | ConnectionLost | UpgradeTimeout | AlreadyUpgraded
    return Effect.suspend((): Effect.Effect<UpgradedImpl, Failure> => {
      const { protocol } = pending
      const found = contentOf(response)
      if (found !== undefined) {
        return Effect.fail(new BodyOn101({ protocol: protocol.token, found }))
      }
      const statusText = response.statusText ?? protocol.statusText
      const headers = Headers.merge(response.headers, pending.headers)
      const cookies = Cookies.isEmpty(response.cookies) ? [] : Cookies.toSetCookieHeaders(response.cookies)
      const forbidden = forbiddenField(headers, statusText) ?? (cookies.every(isFieldValue) ? undefined : "set-cookie")
      if (forbidden !== undefined) {
        return Effect.fail(
          new HandshakeRefused({
            protocol: protocol.token,
            status: 500,
            description: "The response that would switch the connection has a field that may not stand in a head."
          })
        )
      }
      if (this.phase !== "Deciding") {
        return Effect.fail(
          this.phase === "Lost"
            ? new ConnectionLost({ protocol: protocol.token, description: "the peer has gone" })
            : new AlreadyUpgraded({ protocol: protocol.token })
        )
      }
      this.phase = "Switching"
      this.decision.cancel()
      const limits = pending.limits === undefined ? this.host.settings : { ...this.host.settings, ...pending.limits }
      const written = Effect.map(this.writeSwitch(protocol, statusText, headers, cookies, limits), (wire) =>
        this.switched(pending, wire, limits)
      )
      return this.isReady ? written : Effect.zipRight(this.whenReady(restore, limits.bodyTimeout), written)
    })
  }

  private whenReady(
    restore: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>,
    bodyTimeout: number
  ): Effect.Effect<void, UpgradeTimeout | ConnectionLost> {
    return Effect.onError(restore(this.ready(bodyTimeout)), () =>
      Effect.sync(() => {
        if (this.phase === "Switching") {
          this.phase = "Deciding"
          this.decision = this.watchDecision()
        }
      })
    )
  }

  /** The connection is another's, who answers in place of a 101 of ours. */
  protected taken(): void {
    this.over("Switched")
  }

  private over(phase: "Switched" | "Answered" | "Lost"): void {
    this.phase = phase
    this.decision.cancel()
    this.host.leave(this)
  }

  private switched(pending: Pending, wire: Wire, limits: Settings): UpgradedImpl {
    const { connection, host } = this
    connection.session = pending.session
    connection.own(wire)
    host.register(connection)
    this.taken()
    wire.watchIdle()
    const upgraded = new UpgradedImpl(connection, wire, pending.protocol, pending.headers)
    pending.settle(Effect.succeed(upgraded))
    if (pending.onSwitched !== undefined) {
      pending.claimed = true
      pending.onSwitched(upgraded)
    } else {
      const millis = limits.claimTimeout
      pending.onUnclaimed = () => {
        pending.deadline = host.deadlines.add(millis, () => {
          const late = new UpgradeTimeout({ stage: "Claim", millis })
          host.fork(
            Effect.zipRight(
              Effect.logWarning(`${late.message} It is closed. Run the effect that Upgrade.respond yields.`),
              connection.close(Exit.fail(late))
            )
          )
        })
      }
      if (!pending.claimed) {
        pending.onUnclaimed()
      }
    }
    return upgraded
  }

  /**
   * The one place that every response to this request passes last, after all that may change it. Yields what is to be
   * sent; after a switch that is nothing any more.
   */
  gate(
    _request: HttpServerRequest.HttpServerRequest,
    response: HttpServerResponse.HttpServerResponse
  ): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    return Effect.suspend(() => {
      if (this.phase === "Switched") {
        return response.body._tag === "Empty"
          ? Effect.succeed(response)
          : Effect.as(
              Effect.logWarning(
                `A response of status ${response.status} with content was discarded: the connection is upgraded. ` +
                  "Return Upgrade.done from a handler that has switched."
              ),
              response
            )
      }
      const pending = this.pending
      if (pending === undefined || response.status !== 101 || this.timedOut !== undefined) {
        this.settle((pending) => this.timedOut ?? this.notSwitched(pending, response.status))
        return this.plain(response)
      }
      return Effect.catchAll(
        Effect.as(
          Effect.uninterruptibleMask((restore) => this.commit(pending, response, restore)),
          response
        ),
        (error) => {
          const claimed = pending.claimed
          this.settle((pending) =>
            error._tag === "HandshakeRefused"
              ? new NotSwitched({ protocol: pending.protocol.token, reason: "Answered", status: error.status })
              : error
          )
          return Effect.zipRight(
            claimed || error._tag === "ConnectionLost" ? Effect.void : Effect.logError(error.message),
            Effect.flatMap(HttpServerRespondable.toResponse(error), (response) => this.plain(response))
          )
        }
      )
    })
  }

  /** The last word on a response that does not switch. */
  private plain(response: HttpServerResponse.HttpServerResponse): Effect.Effect<HttpServerResponse.HttpServerResponse> {
    if (this.timedOut !== undefined) {
      return HttpServerRespondable.toResponse(this.timedOut)
    }
    if (this.isConnect) {
      // RFC 9110 §9.3.6: a 2xx would be the tunnel; and a client that was refused may have sent its bytes already
      const unanswered = isSuccessStatus(response.status) || (response.status === 404 && this.isUnrouted)
      return Effect.map(
        ordinary(unanswered ? HttpServerResponse.empty({ status: 501 }) : response, true, true),
        closing
      )
    }
    return Effect.map(ordinary(response, this.keepsAlive, this.host.draining), (response) =>
      // The bytes behind a refusal may be the other protocol's: they must not be read as requests
      response.status >= 400 && (this.refused || this.isHijackable || response.status === 426) && this.hasInput
        ? closing(response)
        : response
    )
  }

  /** No route took the request: a CONNECT is then not missing (404) but not implemented. */
  private get isUnrouted(): boolean {
    const exit = this.appExit
    return (
      exit !== undefined &&
      Exit.isFailure(exit) &&
      [...Cause.failures(exit.cause)].some((error) => error instanceof RouteNotFound)
    )
  }
}
