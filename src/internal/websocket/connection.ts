/**
 * A websocket over an `Upgraded`: frames are decoded in the socket's own callback into a queue of messages, control
 * frames are answered there, and what is sent within one turn leaves in one write.
 *
 * ```
 *   Open ──Close sent──▶ Closing ──Close received──▶ Closed      (the server ends the connection below, RFC 6455 §7.1.1)
 *     ├────Close received: answered──────────────────▶ Closed
 *     └────violation, loss, silence──▶ Failed
 * ```
 */

import type { Duplex } from "node:stream"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import { pipeArguments } from "effect/Pipeable"
import { ConnectionError } from "../../UpgradeError.js"
import type * as Public from "../../WebSocket.js"
import {
  MessageTooBig,
  ProtocolViolation,
  WebSocketClosed,
  type WebSocketError,
  WebSocketTimeout
} from "../../WebSocketError.js"
import type { Deadline } from "../deadlines.js"
import { type AnyFiber, begin, isDone } from "../duplex/inbox.js"
import type { Tenant } from "../duplex/wire.js"
import type { UpgradedImpl } from "../upgraded.js"
import { Close, Compressed, Decoder, decodeText, type Event, isMessage, Ping, Pong } from "./decoder.js"
import { CloseCode, isCloseCode, MAX_REASON, Opcode, Violation } from "./frames.js"
import { type Compression, type Message, Sender } from "./sender.js"

export const TypeId: Public.TypeId = Symbol.for("effect-upgrade/WebSocket") as Public.TypeId

const variance = { _IO: (_: never) => _, _Subprotocol: (_: never) => _ }

/** Above this much that is decoded and unread, the peer is stopped. */
const HIGH_WATER = 32 * 1024

/** What a read costs beside its bytes, so that a peer who sends the smallest messages one by one is bounded too. */
const PIECE = 256

/** Times in milliseconds. */
export interface Settings {
  readonly maxMessageSize: number
  readonly maxFragments: number
  readonly maxFrames: number
  readonly heartbeat: number
  readonly idleTimeout: number
}

interface Waiter {
  readonly fiber: AnyFiber
  readonly wake: () => void
}

interface PingWaiter {
  readonly fiber: AnyFiber
  readonly id: number
  readonly sentAt: bigint
  readonly resume: (effect: Effect.Effect<Duration.Duration, WebSocketError>) => void
}

export class WebSocketImpl<IO extends Duplex = Duplex, Subprotocol extends string | undefined = string | undefined>
  extends Sender
  implements Public.WebSocket<IO, Subprotocol>, Tenant
{
  readonly [TypeId] = variance
  private readonly decoder: Decoder
  /** What follows a message that is being inflated. */
  private backlog: Array<Event> | undefined
  private pong: Buffer | undefined
  private pings: Array<PingWaiter> | undefined
  private pingCount = 0
  /** Counts of what came and went, to tell whether anything did. */
  private reads = 0
  private messagesIn = 0

  /** The peer's Close. */
  private event: Public.CloseEvent | undefined
  private closedBy: "Peer" | "Self" = "Peer"
  /** A fiber was told how it ended. */
  private isTold = false
  private closeWaiters: Array<Waiter> | undefined
  /** What the peer's last frame leads to, once the messages before it are handled. */
  private due: (() => void) | undefined
  /** What still comes is dropped. */
  private isDropping = false
  private closeDeadline: Deadline | undefined
  private beat: Deadline | undefined
  private idle: Deadline | undefined

  constructor(
    override readonly upgraded: UpgradedImpl<IO, "websocket">,
    private readonly isServer: boolean,
    readonly subprotocol: Subprotocol,
    compression: Compression | undefined,
    private readonly settings: Settings
  ) {
    super(upgraded, !isServer, compression)
    this.decoder = new Decoder(isServer, compression !== undefined, settings)
    if (settings.heartbeat !== Infinity) {
      this.watchHeart()
    }
    if (settings.idleTimeout !== Infinity) {
      this.watchIdle()
    }
    this.wire.occupy(this)
  }

  // ---------------------------------------------------------------------------------------------------------- receiving

  receive(bytes: Uint8Array, isBorrowed: boolean): void {
    this.arrived(bytes.length, bytes, isBorrowed)
  }

  get space(): Uint8Array | undefined {
    return this.decoder.space
  }

  filled(size: number): void {
    this.arrived(size, undefined, false)
  }

  /** So much came: in `bytes`, or in the decoder's own space. */
  private arrived(size: number, bytes: Uint8Array | undefined, isBorrowed: boolean): void {
    if (this.event !== undefined || this.failure !== undefined || this.due !== undefined) {
      return
    }
    this.reads++
    this.size += size + PIECE
    this.isReceiving = true
    const { decoder, queue } = this
    const events: Array<Event> = this.backlog ?? queue
    const before = queue.length
    if (bytes === undefined) {
      decoder.filled(size, events)
    } else {
      decoder.decode(bytes, events, isBorrowed)
    }
    if (events === queue) {
      if (decoder.others > 0) {
        this.sort(events.splice(before))
      }
      if (queue.length > before) {
        this.messagesIn++
      }
    }
    if (this.isDropping) {
      this.hold()
    } else if (queue.length > 0 && this.awaitsInput) {
      this.offer()
    } else if (this.size >= HIGH_WATER) {
      this.hold()
    }
    this.isReceiving = false
    if (this.encoder.size > 0) {
      this.flush()
    }
  }

  /** Messages to the queue, all else to where it belongs, in order. */
  private sort(events: ReadonlyArray<Event>): void {
    for (let i = 0; i < events.length; i++) {
      const event = events[i]!
      if (isMessage(event)) {
        this.queue.push(event)
      } else if (event instanceof Compressed) {
        this.backlog = events.slice(i + 1)
        this.inflate(event)
        return
      } else {
        this.obey(event)
      }
    }
  }

  private obey(event: Ping | Pong | Close | Violation): void {
    if (event instanceof Ping) {
      this.answerPing(event.payload)
    } else if (event instanceof Pong) {
      this.takePong(event.payload)
    } else if (event instanceof Close) {
      this.takeClose(event)
    } else {
      this.violated(event)
    }
  }

  private inflate({ data, isText }: Compressed): void {
    const limit = this.settings.maxMessageSize
    this.compression!.inflater.inflate(data, limit, (error, inflated) => {
      const rest = this.backlog
      if (rest === undefined) {
        return
      }
      this.backlog = undefined
      if (error !== undefined) {
        this.violated(
          error === "TooBig"
            ? new Violation(
                CloseCode.TooBig,
                "RFC 6455 §10.4",
                `A message inflates to more than ${limit} bytes (maxMessageSize).`
              )
            : new Violation(CloseCode.InvalidPayload, "RFC 7692 §7.2.2", "A compressed message cannot be inflated.")
        )
      } else {
        const message = isText ? decodeInflated(inflated!) : inflated!
        if (message === undefined) {
          this.violated(new Violation(CloseCode.InvalidPayload, "RFC 6455 §8.1", "A text message is not valid UTF-8."))
        } else {
          this.size += inflated!.length
          this.messagesIn++
          this.queue.push(message)
          this.sort(rest)
        }
      }
      if (this.wire.eof && this.backlog === undefined) {
        this.onEof()
      }
      if (!this.isReceiving) {
        this.wakeReader()
        this.hold()
      }
    })
  }

  /** Stops the peer, or lets it go on. */
  private hold(): void {
    if (this.sentClose !== 0) {
      // Only its Close is waited for: what nobody reads is dropped, and all behind it, so that nothing is missing between.
      this.wire.resume()
      if (this.isDropping || (this.size >= HIGH_WATER && !this.isRead)) {
        this.isDropping = true
        this.queue = []
        this.size = 0
      }
    } else if (this.size >= HIGH_WATER && (this.queue.length > 0 || this.backlog !== undefined)) {
      this.wire.pause()
    } else {
      this.wire.resume()
    }
  }

  protected override taken(): void {
    this.hold()
  }

  /** What whoever reads is to fail with, once it has no more to read, though the websocket has not. */
  private readerFailure: object | undefined

  failReader(failure: object | undefined): void {
    this.readerFailure = failure
    this.wakeReader()
  }

  protected override ended(): Option.Option<WebSocketError> | undefined {
    const { readerFailure } = this
    if (readerFailure !== undefined) {
      return Option.some(readerFailure as WebSocketError)
    }
    if (this.backlog !== undefined) {
      return undefined
    }
    this.settle()
    if (this.failure === undefined && this.event !== undefined) {
      this.isTold = true
      return Option.none()
    }
    const failure = this.failure ?? this.closedBelow
    this.isTold ||= failure !== undefined
    return failure === undefined ? undefined : Option.some(failure)
  }

  /** How it was closed, where that is no end that a reader would expect. */
  get uncleanClose(): WebSocketClosed | undefined {
    const { event } = this
    return event === undefined ||
      this.closedBy === "Self" ||
      event.code === CloseCode.Normal ||
      event.code === CloseCode.GoingAway ||
      event.code === CloseCode.NoStatus
      ? undefined
      : new WebSocketClosed({ ...event, by: "Peer" })
  }

  private get closedBelow(): ConnectionError | undefined {
    return (
      this.wire.error ??
      (this.wire.closing || this.wire.isClosed
        ? new ConnectionError({ reason: "Closed", description: "The connection was closed at this end." })
        : undefined)
    )
  }

  /** Runs `handler` over all messages, one after the other, until the closing handshake. */
  runEach<A, E, R>(
    handler: (message: Message) => Effect.Effect<A, E, R>
  ): Effect.Effect<Public.CloseEvent, WebSocketError | E, R> {
    return this.run((messages) => {
      const all = Chunk.toReadonlyArray(messages)
      let at = 0
      let current: Effect.Effect<unknown, any, R> = Effect.void
      // Goes on up to an effect that is not done where it stands
      const advance = (): boolean => {
        while (at < all.length) {
          current = begin(handler(all[at++]!))
          if (!isDone(current)) {
            return true
          }
        }
        return false
      }
      // What was not handled is the next reader's
      const putBack = () => {
        const rest = all.slice(at)
        this.queue = rest.concat(this.queue)
        this.size += rest.reduce((size, message) => size + message.length, 0)
        this.hold()
      }
      try {
        if (!advance()) {
          return Effect.void
        }
      } catch (defect) {
        putBack()
        return Effect.die(defect)
      }
      if (at === all.length) {
        return current
      }
      let isFirst = true
      const loop = Effect.whileLoop({
        while: () => {
          if (isFirst) {
            isFirst = false
            return true
          }
          return advance()
        },
        body: () => current,
        step: () => {}
      })
      return Effect.onError(loop, () => Effect.sync(putBack))
    })
  }

  /** Why nothing can be sent. */
  protected override get unsendable(): WebSocketError | undefined {
    const failure =
      this.failure ??
      (this.event !== undefined || this.sentClose !== 0
        ? new WebSocketClosed({
            code: this.event?.code ?? this.sentClose,
            reason: this.event?.reason ?? "",
            by: this.closedBy
          })
        : this.closedBelow)
    this.isTold ||= failure !== undefined
    return failure
  }

  protected override get outcome(): Public.CloseEvent {
    return this.event!
  }

  // ---------------------------------------------------------------------------------------------------------- ping, pong

  onDrained(): void {
    const { pong } = this
    if (pong !== undefined) {
      this.pong = undefined
      this.answerPing(pong)
    }
    this.subscriptions?.forEach((subscription) => subscription.onWritable())
  }

  private answerPing(payload: Uint8Array): void {
    if (this.sentClose !== 0) {
      return
    }
    if (this.upgraded.socket.writableNeedDrain) {
      // RFC 6455 §5.5.3: only the most recent ping need be answered, so a peer that does not read cannot make us hold more
      this.pong = Buffer.from(payload)
      return
    }
    this.encoder.control(Opcode.Pong, payload)
    this.schedule()
  }

  private takePong(payload: Uint8Array): void {
    const { pings } = this
    if (pings === undefined || payload.length !== 4) {
      return
    }
    const id = Buffer.from(payload).readUInt32BE(0)
    if (id > this.pingCount) {
      return
    }
    const later = pings.findIndex((ping) => ping.id > id)
    const now = this.wire.deadlines.clock.unsafeCurrentTimeNanos()
    // RFC 6455 §5.5.3: it answers those before it too
    for (const { resume, sentAt } of pings.splice(0, later === -1 ? pings.length : later)) {
      resume(Effect.succeed(Duration.nanos(now - sentAt)))
    }
  }

  /** Sends a ping, and yields how long its pong took. */
  get ping(): Effect.Effect<Duration.Duration, WebSocketError> {
    return Effect.withFiberRuntime((fiber) => {
      if (!this.isSendable) {
        return Effect.fail(this.unsendable!)
      }
      return Effect.async<Duration.Duration, WebSocketError>((resume) => {
        const sentAt = this.wire.deadlines.clock.unsafeCurrentTimeNanos()
        const waiter: PingWaiter = { fiber, id: this.sendPing(), sentAt, resume }
        this.pings ??= []
        this.pings.push(waiter)
        return Effect.sync(() => {
          this.pings = this.pings?.filter((other) => other !== waiter)
        })
      })
    })
  }

  private sendPing(): number {
    this.pingCount = (this.pingCount + 1) >>> 0
    const payload = Buffer.allocUnsafe(4)
    payload.writeUInt32BE(this.pingCount, 0)
    this.encoder.control(Opcode.Ping, payload)
    this.schedule()
    return this.pingCount
  }

  /** Every `heartbeat` without a byte of the peer's a ping is sent, and the next must not pass without one. */
  private watchHeart(waiting = false): void {
    const { reads } = this
    const millis = this.settings.heartbeat
    this.beat = this.wire.deadlines.add(millis, () => {
      if (!this.isSendable) {
        return
      }
      if (this.reads !== reads) {
        this.watchHeart()
      } else if (waiting && this.wire.isFlowing) {
        this.fail(new WebSocketTimeout({ stage: "Heartbeat", millis }))
        this.upgraded.socket.destroy()
      } else {
        this.sendPing()
        this.watchHeart(true)
      }
    })
  }

  private watchIdle(): void {
    const { messagesIn, messagesOut } = this
    const millis = this.settings.idleTimeout
    this.idle = this.wire.deadlines.add(millis, () => {
      if (!this.isSendable) {
        return
      }
      if (this.messagesIn !== messagesIn || this.messagesOut !== messagesOut) {
        this.watchIdle()
      } else {
        const late = new WebSocketTimeout({ stage: "Idle", millis })
        this.writeClose(CloseCode.GoingAway, "idle")
        this.endBelow()
        this.fail(late)
      }
    })
  }

  // ------------------------------------------------------------------------------------------------------------- closing

  /** Writes the one Close of this end, and gives the peer `closeTimeout` to answer and to end. */
  private writeClose(code: number, reason: string): void {
    this.catchUp()
    if (this.sentClose !== 0) {
      return
    }
    this.sentClose = code
    this.leaveAll()
    if (code === CloseCode.NoStatus) {
      this.encoder.control(Opcode.Close, new Uint8Array(0))
    } else {
      const payload = Buffer.allocUnsafe(2 + Buffer.byteLength(reason))
      payload.writeUInt16BE(code, 0)
      payload.write(reason, 2)
      this.encoder.control(Opcode.Close, payload)
    }
    this.flush()
    const millis = this.wire.limits.closeTimeout
    this.closeDeadline = this.wire.deadlines.add(millis, () => {
      if (this.event === undefined && this.failure === undefined) {
        this.fail(new WebSocketTimeout({ stage: "Close", millis }))
      }
      this.upgraded.socket.destroy()
    })
    this.hold()
    this.wire.wakeWriters()
  }

  private takeClose({ code, reason }: Close): void {
    this.conclude(() => {
      this.event = { code, reason }
      if (this.sentClose === 0) {
        this.closedBy = "Peer"
        // RFC 6455 §5.5.1: it typically echos the code
        this.writeClose(code, "")
      }
      if (this.isServer) {
        // RFC 6455 §7.1.1: the server ends the connection first
        this.endBelow()
      }
      this.over()
    })
  }

  /**
   * Nothing follows: acts on that once the messages before it are handled, so that what answers them can still be sent
   * (RFC 6455 §5.5.1 allows for that), or after `closeTimeout`.
   */
  private conclude(act: () => void): void {
    const isHandling = this.isRead && this.readingFiber === undefined
    if (this.sentClose !== 0 || (this.queue.length === 0 && !isHandling)) {
      act()
      return
    }
    this.due = act
    this.beat?.cancel()
    this.idle?.cancel()
    this.closeDeadline = this.wire.deadlines.add(this.wire.limits.closeTimeout, () => this.settle())
  }

  private settle(): void {
    const act = this.due
    if (act !== undefined) {
      this.due = undefined
      this.closeDeadline?.cancel()
      act()
      if (this.wire.eof) {
        this.onEof()
      }
    }
  }

  private violated({ clause, code, description }: Violation): void {
    this.conclude(() => {
      this.writeClose(code, truncated(description))
      this.endBelow()
      this.fail(
        code === CloseCode.TooBig
          ? new MessageTooBig({ limit: this.settings.maxMessageSize, description })
          : new ProtocolViolation({ code, clause, description })
      )
    })
  }

  private endBelow(): void {
    this.flush()
    if (!this.upgraded.socket.writableEnded) {
      this.upgraded.socket.end()
    }
  }

  private fail(failure: WebSocketError): void {
    this.failure ??= failure
    this.inform()
    this.over()
  }

  /** Who waits is told, and need not be interrupted: the session, where it is among them. */
  private inform(): void {
    const waiting = [
      this.readingFiber,
      this.wire.writingFiber,
      ...(this.closeWaiters ?? []).map(({ fiber }) => fiber),
      ...(this.pings ?? []).map(({ fiber }) => fiber)
    ].filter((fiber) => fiber !== undefined)
    const { session } = this.upgraded.connection
    this.wire.informed ??= waiting.find((fiber) => fiber === session) ?? waiting[0]
  }

  /** Nothing more will be received: tells all who wait. */
  private over(): void {
    this.beat?.cancel()
    this.idle?.cancel()
    const { pings } = this
    this.pings = undefined
    if (pings !== undefined && pings.length > 0) {
      const failure = Effect.fail(this.unsendable!)
      pings.forEach(({ resume }) => resume(failure))
    }
    this.decoder.close()
    this.compression?.inflater.close()
    this.compression?.deflater.close()
    this.abandonDeflating()
    this.wire.resume()
    this.wakeReader()
    this.wire.wakeWriters()
    this.wakeClosers()
    this.leaveAll()
  }

  onEof(): void {
    if (this.backlog !== undefined || this.due !== undefined) {
      // What came before it is on its way to whoever reads.
      return
    }
    if (this.event === undefined && this.failure === undefined) {
      this.fail(new WebSocketClosed({ code: CloseCode.Abnormal, reason: "", by: "Peer" }))
    }
    this.endBelow()
    this.wakeClosers()
  }

  onLost(): void {
    this.backlog = undefined
    this.settle()
    this.closeDeadline?.cancel()
    if (this.event === undefined) {
      this.fail(this.closedBelow!)
    } else {
      // After the closing handshake it does not matter how the connection ends.
      this.wire.isLost = false
      this.over()
    }
    if (!this.wire.closing && !this.wire.isLost) {
      // A session that neither reads nor writes would wait for ever, and one that was told may take its time.
      this.closeDeadline = this.wire.deadlines.add(this.wire.limits.closeTimeout, () => {
        if (!this.isTold && !this.isRead) {
          this.upgraded.connection.abandon()
        }
      })
    }
  }

  private wakeClosers(): void {
    const waiters = this.closeWaiters
    this.closeWaiters = undefined
    waiters?.forEach(({ wake }) => wake())
  }

  /** Done when the closing handshake is, or when there will be none. */
  private get awaitOver(): Effect.Effect<void> {
    return Effect.suspend(() =>
      this.event !== undefined || this.failure !== undefined || this.wire.isClosed
        ? Effect.void
        : Effect.zipRight(this.awaitChange, this.awaitOver)
    )
  }

  private get awaitChange(): Effect.Effect<void> {
    return Effect.withFiberRuntime((fiber) =>
      Effect.async<void>((resume) => {
        this.closeWaiters ??= []
        this.closeWaiters.push({ fiber, wake: () => resume(Effect.void) })
      })
    )
  }

  /** Sends a Close, unless one was sent, and waits for the peer's. */
  close(code: number, reason: string): Effect.Effect<Public.CloseEvent, WebSocketError> {
    return Effect.suspend(() => {
      if (!isCloseCode(code)) {
        return Effect.die(
          new RangeError(
            `WebSocket.close: ${code} may not be sent; expected 1000 to 1014 but 1004 to 1006, or 3000 to 4999`
          )
        )
      }
      if (Buffer.byteLength(reason) > MAX_REASON) {
        return Effect.die(new RangeError(`WebSocket.close: the reason is over ${MAX_REASON} bytes of UTF-8`))
      }
      this.settle()
      if (this.isSendable) {
        this.closedBy = "Self"
        this.writeClose(code, reason)
      }
      return Effect.zipRight(
        this.awaitOver,
        Effect.suspend(() => {
          this.isTold = true
          return this.event !== undefined ? Effect.succeed(this.event) : Effect.fail(this.failure ?? this.closedBelow!)
        })
      )
    })
  }

  /** Sends a Close without waiting for its answer; one that may not go on the wire goes without a code. */
  beginClose(code: number, reason: string): void {
    this.settle()
    if (this.isSendable) {
      this.closedBy = "Self"
      const isValid = isCloseCode(code) && Buffer.byteLength(reason) <= MAX_REASON
      this.writeClose(isValid ? code : CloseCode.NoStatus, isValid ? reason : "")
    }
  }

  /** How it ended, once it has. */
  get awaitClosed(): Effect.Effect<Public.CloseEvent, WebSocketError> {
    return Effect.zipRight(
      this.awaitOver,
      Effect.suspend(() => {
        this.isTold = true
        return this.event !== undefined ? Effect.succeed(this.event) : Effect.fail(this.failure ?? this.closedBelow!)
      })
    )
  }

  /** The connection's Scope closes: the peer is told why, and its answer awaited. */
  farewell(exit: Exit.Exit<unknown, unknown>): Effect.Effect<boolean> {
    return Effect.suspend(() => {
      const { socket } = this.upgraded
      this.isTold = true
      if (this.wire.isLost || this.wire.isClosed || socket.destroyed) {
        this.closeDeadline?.cancel()
        return Effect.succeed(false)
      }
      this.flush()
      this.settle()
      if (this.isSendable) {
        this.closedBy = "Self"
        this.writeClose(
          Exit.isSuccess(exit)
            ? CloseCode.Normal
            : Cause.isInterruptedOnly(exit.cause)
              ? CloseCode.GoingAway
              : CloseCode.InternalError,
          ""
        )
      }
      return Effect.as(Effect.zipRight(this.awaitOver, this.isServer ? Effect.void : this.awaitEnd), true)
    })
  }

  /** RFC 6455 §7.1.1: a client waits for the server to end the connection. */
  private get awaitEnd(): Effect.Effect<void> {
    return Effect.suspend(() =>
      this.wire.eof || this.wire.isClosed || this.failure !== undefined
        ? Effect.void
        : Effect.zipRight(this.awaitChange, this.awaitEnd)
    )
  }

  // ---------------------------------------------------------------------------------------------------------- inspecting

  toJSON() {
    return {
      _id: "effect-upgrade/WebSocket",
      subprotocol: this.subprotocol,
      compression: this.compression !== undefined,
      closed: this.event,
      connection: this.upgraded.connection.toJSON()
    }
  }
  override toString() {
    return Inspectable.format(this.toJSON())
  }
  [Inspectable.NodeInspectSymbol]() {
    return this.toJSON()
  }
  pipe() {
    return pipeArguments(this, arguments)
  }
}

const decodeInflated = (bytes: Uint8Array): string | undefined => {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return decodeText(buffer, 0, buffer.length)
}

/** As much of a description as a Close may carry; they are ASCII. */
const truncated = (description: string): string => description.slice(0, MAX_REASON)
