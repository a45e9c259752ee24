/**
 * An upgrading request of HTTP/1.1: takes the socket from Node in the tick of the event, frames the body, keeps the order
 * of responses, writes the 101, and gives the socket back to the server after any other answer. See the README beside.
 */

import { type IncomingMessage, type Server, ServerResponse } from "node:http"
import type * as Headers from "@effect/platform/Headers"
import { clientAbortFiberId } from "@effect/platform/HttpServerError"
import * as Effect from "effect/Effect"
import type { Protocol } from "../../Protocol.js"
import { ConnectionLost, UpgradeTimeout } from "../../UpgradeError.js"
import { type Limits, Wire } from "../duplex/wire.js"
import { Exchange, type Host, type Obstacle } from "../exchange.js"
import { requestFraming } from "./framing.js"
import { switchHead } from "./head.js"
import * as Node from "./node.js"
import { listIncludes, type Offer, parseOffers } from "./offers.js"
import { FramedRequest } from "./request.js"

const aborted = () => Object.assign(new Error("aborted"), { code: "ECONNRESET" })

/** The parser lets other versions through (0.9, 2.0), which mean nothing here. */
const isHttp11 = (request: IncomingMessage): boolean => request.httpVersionMajor === 1 && request.httpVersionMinor >= 1

/** Whether the request lets the connection persist (RFC 9112 §9.3). */
export const keepsAlive = (request: IncomingMessage): boolean => {
  const { connection } = request.headers
  return isHttp11(request)
    ? connection === undefined || !/close/i.test(connection) || !listIncludes(connection, "close")
    : listIncludes(connection, "keep-alive")
}

export class Http1Exchange extends Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  private readonly wire: Wire
  /** The response has the socket: all earlier ones are sent. */
  private assigned = false
  private readyWaiters: Array<() => void> = []
  private malformed = false
  private continues = false
  private cachedOffers: ReadonlyArray<Offer> | undefined

  constructor(
    host: Host,
    private readonly server: Server & { readonly requireHostHeader?: boolean },
    head: IncomingMessage,
    early: Buffer
  ) {
    super(host, head.socket)
    const { socket } = this
    Node.clearTimeouts(socket)
    Node.allowHalfOpen(socket)
    const wire = new Wire(socket, host.deadlines, host.settings)
    this.wire = wire
    Node.readAgain(socket)
    wire.onDrained = () => Node.relayDrain(socket)
    wire.onEof = this.onEof
    socket.on("close", this.onSocketClose)
    const framing = requestFraming(head.rawHeaders, isHttp11(head) ? 1 : 0)
    const request = framing._tag === "Length" || framing._tag === "Chunked" ? new FramedRequest(head, framing) : head
    this.request = request
    this.response = new ServerResponse(request)
    Node.prepareResponse(this.response, server, this.keepsAlive)
    Node.endsOnClose(this.response)
    this.response.on("finish", () => this.finished())
    this.guardHead()
    if (request instanceof FramedRequest) {
      request.readFrom(wire, this.onBody)
    }
    if (early.length > 0) {
      wire.receive(early)
    }
    this.takeTurn()
    if (Node.lacksFields(server, head)) {
      this.refuse(431)
    } else if (framing._tag === "Refused") {
      this.refuse(framing.status)
    }
  }

  get method(): string {
    return this.request.method!
  }

  get obstacle(): Obstacle | undefined {
    const { headers } = this.request
    // RFC 9110 §7.8: Upgrade MUST be ignored in HTTP/1.0
    return !isHttp11(this.request)
      ? "HttpVersion"
      : this.isConnect
        ? undefined
        : this.offers.length === 0
          ? "NoUpgrade"
          : listIncludes(headers.connection, "upgrade")
            ? undefined
            : "NoConnectionOption"
  }

  get isHijackable(): boolean {
    // A response to HEAD has no content, and one to CONNECT is the tunnel or ends the connection
    return !this.isConnect && this.method !== "HEAD" && this.host.hijackable?.(this.request) === true
  }

  get offers(): ReadonlyArray<Offer> {
    return (this.cachedOffers ??= parseOffers(this.request.headers.upgrade))
  }

  protected get keepsAlive(): boolean {
    return keepsAlive(this.request)
  }

  /** Whether the app is to see the request. Node makes these checks itself, but not where it emits 'upgrade'. */
  admit(): boolean {
    const { headers } = this.request
    if (this.response.writableEnded) {
      return false
    }
    if (!isHttp11(this.request)) {
      return true
    }
    if (headers.host === undefined && this.server.requireHostHeader) {
      // RFC 9112 §3.2
      this.refuse(400)
      return false
    }
    if (!Node.countRequest(this.server, this.socket, this.response)) {
      return false
    }
    if (headers.expect === undefined) {
      return true
    }
    if (/(?:^|\W)100-continue(?:$|\W)/i.test(headers.expect)) {
      // RFC 9110 §7.8: 100 before 101
      this.continues = true
      this.writeContinue()
      return true
    }
    this.response.writeHead(417)
    this.response.end()
    return false
  }

  protected get hasInput(): boolean {
    return this.wire.hasInput
  }

  // ------------------------------------------------------------------------------------------------------------- input

  private readonly onBody = (error: string | undefined): void => {
    if (error !== undefined) {
      this.refuse(400)
    }
    // Once what lies behind the body is queued
    queueMicrotask(() => this.wake())
  }

  private readonly onEof = (): void => {
    if (!this.isReceived) {
      // RFC 9112 §8: an incomplete request
      this.request.destroy(aborted())
      this.refuse(400)
      this.wake()
    }
  }

  /** The whole request was received: what the wire holds lies behind it. */
  private get isReceived(): boolean {
    return !(this.request instanceof FramedRequest) || this.request.arrived
  }

  /** What nobody reads of the body is discarded: the bytes behind it are waited for. */
  private discardBody(): void {
    const { request } = this
    if (request.readableFlowing === null && request.listenerCount("readable") === 0) {
      request.resume()
    }
  }

  private readonly onSocketClose = () => {
    this.lost("the peer closed it")
    Node.closeResponse(this.response)
    if (!this.request.complete) {
      this.request.destroy(aborted())
    }
    this.wake()
  }

  // ------------------------------------------------------------------------------------------------------------ output

  /** Whatever writes the head, and however late: a 101 is written by `writeSwitch` alone, and so is a 2xx to CONNECT. */
  private guardHead(): void {
    const { response } = this
    const writeHead = response.writeHead
    response.writeHead = (status: number, ...rest: Array<unknown>) => {
      const tunnel = this.isConnect && status >= 200 && status < 300
      return Reflect.apply(writeHead, response, [status === 101 ? 500 : tunnel ? 501 : status, ...rest])
    }
  }

  /** Assigns the response to the socket once no earlier one has it (RFC 9112 §9.3.2: in the order of the requests). */
  private readonly takeTurn = (): void => {
    const { socket } = this
    if (socket.destroyed || socket.writableEnded) {
      // An earlier response closed the connection.
      this.lost("an earlier response on the connection closed it")
      this.fiber?.unsafeInterruptAsFork(clientAbortFiberId)
      this.wake()
      return
    }
    const earlier = Node.currentResponse(socket)
    if (earlier !== undefined) {
      earlier.once("finish", this.takeTurn)
      return
    }
    Node.clearTimeouts(socket)
    this.assigned = true
    this.response.assignSocket(socket as IncomingMessage["socket"])
    this.writeContinue()
    this.wake()
  }

  /** When it is this request's turn, and not inside of the answer, should that have been written before. */
  private writeContinue(): void {
    if (this.continues && this.assigned && !this.response.headersSent) {
      this.continues = false
      this.response.writeContinue()
    }
  }

  /** Answers and closes, whatever the handler does. */
  private refuse(status: number): void {
    const { response } = this
    this.malformed = true
    this.setSpent(false)
    if (!response.headersSent) {
      response.writeHead(status, ["Connection", "close"])
      response.end()
      // Over TLS a peer that has gone may leave the socket neither writable nor closed.
      const late = this.host.deadlines.add(this.host.settings.closeTimeout, () => this.destroy())
      this.socket.once("close", () => late.cancel())
      this.fiber?.unsafeInterruptAsFork(clientAbortFiberId)
    }
  }

  /** A spent response writes nothing: the platform takes it for sent. */
  private setSpent(spent: boolean): void {
    if (!this.response.headersSent) {
      Node.setSpent(this.response, spent)
    }
  }

  private wake(): void {
    const waiters = this.readyWaiters
    this.readyWaiters = []
    waiters.forEach((wake) => wake())
  }

  protected get isReady(): boolean {
    return this.assigned && this.isReceived
  }

  requestEnded(): void {
    if (this.phase === "Deciding") {
      Node.answerForNobody(this.response)
    }
  }

  protected ready(bodyTimeout: number): Effect.Effect<void, UpgradeTimeout | ConnectionLost> {
    const check: Effect.Effect<void, UpgradeTimeout | ConnectionLost> = Effect.suspend(() => {
      if (this.phase === "Lost" || this.phase === "Answered" || this.malformed) {
        return Effect.fail(
          new ConnectionLost({
            protocol: this.pending?.protocol.token ?? "the protocol",
            description: this.phase === "Lost" ? "it closed" : "the request was malformed"
          })
        )
      }
      if (this.isReady) {
        return Effect.void
      }
      // The switch has been decided: whoever waits here learns of the peer's going by an error, and is not interrupted.
      this.setSpent(true)
      this.discardBody()
      return Effect.zipRight(
        Effect.async<void, UpgradeTimeout>((resume) => {
          const late = this.isReceived
            ? undefined
            : this.host.deadlines.add(bodyTimeout, () =>
                resume(Effect.fail(new UpgradeTimeout({ stage: "Body", millis: bodyTimeout })))
              )
          const wake = () => {
            late?.cancel()
            resume(Effect.void)
          }
          this.readyWaiters.push(wake)
          return Effect.sync(() => {
            late?.cancel()
            this.readyWaiters = this.readyWaiters.filter((other) => other !== wake)
          })
        }),
        check
      )
    })
    return Effect.onError(check, () => Effect.sync(() => this.setSpent(this.phase === "Lost")))
  }

  protected writeSwitch(
    protocol: Protocol.Any,
    statusText: string,
    headers: Headers.Headers,
    cookies: ReadonlyArray<string>,
    limits: Limits
  ): Effect.Effect<Wire, ConnectionLost> {
    return Effect.suspend(() => {
      const { response, socket } = this
      const { wire } = this
      const lost = (description: string) => {
        this.lost(description)
        return Effect.fail(new ConnectionLost({ protocol: protocol.token, description }))
      }
      if (wire.isClosed || socket.destroyed || socket.writableEnded) {
        return lost("it closed before the 101 was written")
      }
      // The socket forgets the response, and the response that it was never sent.
      response.detachSocket(socket as IncomingMessage["socket"])
      this.setSpent(true)
      socket.off("close", this.onSocketClose)
      wire.onDrained = undefined
      wire.onEof = undefined
      wire.limits = limits
      let resumed = (_: Effect.Effect<Wire, ConnectionLost>): void => {}
      socket.write(switchHead(protocol, this.isConnect, statusText, headers, cookies), "latin1", (error) => {
        // Node tells no error of a write that the end of its socket cut off
        resumed(error || socket.destroyed ? lost("it failed while the 101 was written") : Effect.succeed(wire))
      })
      // Mostly the system has taken it by now, and the callback would only come later to say so.
      return socket.writableLength === 0 && !socket.destroyed
        ? Effect.succeed(wire)
        : Effect.async((resume) => {
            resumed = resume
            this.watchAnswer(limits.writeTimeout)
          })
    })
  }

  protected get isAnswering(): boolean {
    return this.response.headersSent
  }

  destroy(): void {
    this.socket.destroy()
  }

  // ------------------------------------------------------------------------------------------------ back to the server

  private finished(): void {
    const { response, socket } = this
    this.answered(response.statusCode)
    response.detachSocket(socket as IncomingMessage["socket"])
    setImmediate(Node.closeResponse, response)
    this.wake()
    if (Node.isLast(response) || this.malformed || this.wire.eof) {
      this.close()
    } else if (this.isReceived) {
      this.handBack()
    } else {
      this.discardBody()
      const late = this.host.deadlines.add(this.host.settings.bodyTimeout, () => this.close())
      const wait = () => {
        if (this.isReceived || this.malformed || socket.destroyed) {
          late.cancel()
          this.handBack()
        } else {
          this.readyWaiters.push(wait)
        }
      }
      wait()
    }
  }

  private close(): void {
    this.socket.off("close", this.onSocketClose)
    this.host.fork(this.wire.close(true))
  }

  private handBack(): void {
    const { socket, wire } = this
    if (this.malformed || wire.eof || wire.isClosed || socket.destroyed || socket.writableEnded) {
      this.close()
    } else {
      socket.off("close", this.onSocketClose)
      Node.handBack(this.server, socket, wire.release(), this.host.hijackable)
    }
  }
}
