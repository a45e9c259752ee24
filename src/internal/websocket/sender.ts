/**
 * The sending half of a websocket: what is sent within one turn is encoded into one batch, and leaves in one write.
 */

import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import type { CloseEvent } from "../../WebSocket.js"
import type { WebSocketError } from "../../WebSocketError.js"
import { Immediate, Inbox } from "../duplex/inbox.js"
import type { Wire } from "../duplex/wire.js"
import type { UpgradedImpl } from "../upgraded.js"
import type { Deflater, Inflater } from "./deflate.js"
import { Encoder } from "./encoder.js"

export type Message = string | Uint8Array

/** So much is encoded before it is written, however much is to be sent in one turn. */
const FLUSH_AT = 64 * 1024

/** What sends to this websocket beside its owner: a topic of which it is a member. */
export interface Subscription {
  /** Sends what was published before: whatever is sent next comes after it. */
  readonly catchUp: () => void
  /** The connection takes more again. */
  readonly onWritable: () => void
  /** Nothing can be sent any more. */
  readonly leave: () => void
}

/** permessage-deflate, as it was agreed on. */
export interface Compression {
  readonly inflater: Inflater
  readonly deflater: Deflater
  readonly threshold: number
}

/** What `send` yields: a loop over a batch begins it where it stands. */
class Send extends Immediate<void, WebSocketError> {
  constructor(
    private readonly ws: Sender,
    private readonly message: Message
  ) {
    super()
  }
  override commit(): Effect.Effect<void, WebSocketError> {
    return this.ws.sendNow(this.message)
  }
}

/** Who has something to write at the end of the turn. */
let dirty: Array<Sender> = []

const flushAll = (): void => {
  const all = dirty
  dirty = []
  for (let i = 0; i < all.length; i++) {
    all[i]!.flush()
  }
}

export abstract class Sender extends Inbox<Message, WebSocketError, CloseEvent> {
  protected readonly wire: Wire
  protected readonly encoder: Encoder
  private isDirty = false
  /** The socket's callback is at work: it writes at its end. */
  protected isReceiving = false
  /** One message is deflated at a time. */
  private readonly deflating: Effect.Semaphore | undefined
  /** Tells who waits for a message to be deflated that it will not be. */
  private undeflated: (() => void) | undefined
  protected messagesOut = 0
  /** The code of the Close that was sent, 0 before. */
  protected sentClose = 0
  protected failure: WebSocketError | undefined

  constructor(
    readonly upgraded: UpgradedImpl<any, "websocket">,
    readonly masks: boolean,
    readonly compression: Compression | undefined
  ) {
    super()
    this.wire = upgraded.wire
    this.encoder = new Encoder(masks)
    this.deflating = compression === undefined ? undefined : Effect.unsafeMakeSemaphore(1)
  }

  /** Why nothing can be sent. */
  protected abstract readonly unsendable: WebSocketError | undefined

  get isSendable(): boolean {
    return this.sentClose === 0 && this.failure === undefined && !this.wire.closing && !this.wire.isClosed
  }

  /** Sends one message: done when the connection takes more. */
  send(message: Message): Effect.Effect<void, WebSocketError> {
    return new Send(this, message)
  }

  sendNow(message: Message): Effect.Effect<void, WebSocketError> {
    if (this.deflating !== undefined) {
      return this.deflating.withPermits(1)(this.sendDeflated([message]))
    }
    this.catchUp()
    if (!this.isSendable) {
      return Effect.fail(this.unsendable!)
    }
    if (this.upgraded.socket.writableNeedDrain) {
      return Effect.zipRight(this.drained(), this.send(message))
    }
    this.messagesOut++
    this.encoder.message(message)
    if (this.encoder.size >= FLUSH_AT) {
      return this.flush() ? Effect.void : this.drained()
    }
    this.schedule()
    return Effect.void
  }

  /** Sends several, in as few writes as they fit. */
  sendAll(messages: Iterable<Message>): Effect.Effect<void, WebSocketError> {
    return Effect.suspend(() => {
      const all = Chunk.isChunk(messages)
        ? Chunk.toReadonlyArray(messages as Chunk.Chunk<Message>)
        : Array.isArray(messages)
          ? (messages as ReadonlyArray<Message>)
          : Array.from(messages)
      return this.deflating === undefined
        ? this.sendFrom(all, 0)
        : this.deflating.withPermits(1)(this.sendDeflated(all))
    })
  }

  private sendFrom(all: ReadonlyArray<Message>, at: number): Effect.Effect<void, WebSocketError> {
    this.catchUp()
    if (!this.isSendable) {
      return Effect.fail(this.unsendable!)
    }
    const { encoder } = this
    const { socket } = this.upgraded
    if (socket.writableNeedDrain) {
      return this.goOnSending(all, at)
    }
    while (at < all.length) {
      this.messagesOut++
      encoder.message(all[at++]!)
      if (encoder.size >= FLUSH_AT && !this.flush()) {
        return at < all.length ? this.goOnSending(all, at) : this.drained()
      }
    }
    if (encoder.size > 0) {
      this.schedule()
    }
    return Effect.void
  }

  private goOnSending(all: ReadonlyArray<Message>, at: number): Effect.Effect<void, WebSocketError> {
    return Effect.zipRight(
      this.drained(),
      Effect.suspend(() => this.sendFrom(all, at))
    )
  }

  /** One at a time and in order: a message is deflated with what was sent before it. */
  private sendDeflated(all: ReadonlyArray<Message>): Effect.Effect<void, WebSocketError> {
    const { threshold } = this.compression!
    return Effect.forEach(
      all,
      (message) => {
        this.catchUp()
        if (!this.isSendable) {
          return Effect.fail(this.unsendable!)
        }
        if ((typeof message === "string" ? Buffer.byteLength(message) : message.length) >= threshold) {
          return Effect.zipRight(this.deflate(message), this.room())
        }
        this.messagesOut++
        this.encoder.message(message)
        return this.room()
      },
      { discard: true }
    )
  }

  /**
   * Done when the message is in the turn's write. It goes there also where nobody waits any more: what the peer inflates
   * next may refer to it.
   */
  private deflate(message: Message): Effect.Effect<void, WebSocketError> {
    return Effect.async((resume) => {
      const fail = () => resume(Effect.suspend(() => Effect.fail(this.unsendable!)))
      // A deflater that is closed calls nobody back
      this.undeflated = fail
      const isText = typeof message === "string"
      this.compression!.deflater.deflate(isText ? Buffer.from(message) : message, (error, data) => {
        if (this.undeflated === fail) {
          this.undeflated = undefined
        }
        this.catchUp()
        if (!this.isSendable) {
          fail()
          return
        }
        this.messagesOut++
        if (error !== undefined || data === undefined) {
          // One that cannot be deflated is sent as it is.
          this.encoder.message(message)
        } else {
          this.encoder.compressed(data, isText)
        }
        this.schedule()
        resume(Effect.void)
      })
    })
  }

  /** Writes what is much already, and waits for a socket that is full. */
  private room(): Effect.Effect<void, WebSocketError> {
    return Effect.suspend(() => {
      this.schedule()
      return this.encoder.size < FLUSH_AT && !this.upgraded.socket.writableNeedDrain
        ? Effect.void
        : this.flush()
          ? Effect.void
          : this.drained()
    })
  }

  /** One message as the frame that it is encoded in, in the turn's write. It is not deflated. */
  sendFrame(frame: Uint8Array): void {
    this.messagesOut++
    this.encoder.raw(frame)
    this.schedule()
  }

  /** Such frames, as so many messages, at once. */
  sendFrames(frames: Uint8Array, messages: number): void {
    const { socket } = this.upgraded
    this.messagesOut += messages
    if (this.encoder.size > 0) {
      this.encoder.raw(frames)
      this.flush()
    } else if (!socket.destroyed && !socket.writableEnded) {
      socket.write(frames)
    }
  }

  /** The same for a peer whose frames are masked: each gets a key of its own. */
  sendPayload(opcode: number, payload: Uint8Array): void {
    this.messagesOut++
    this.encoder.frame(0x80 | opcode, payload)
    this.schedule()
  }

  /**
   * Whether more can be sent at once: what the system has taken of a write is no burden, whatever its size was. Where it
   * cannot, the socket drains later.
   */
  takesMore(): boolean {
    const { socket } = this.upgraded
    if (this.encoder.size >= FLUSH_AT) {
      this.flush()
    }
    return socket.writableLength < socket.writableHighWaterMark
  }

  subscriptions: Array<Subscription> | undefined

  protected catchUp(): void {
    const { subscriptions } = this
    if (subscriptions !== undefined) {
      for (let i = 0; i < subscriptions.length; i++) {
        subscriptions[i]!.catchUp()
      }
    }
  }

  protected leaveAll(): void {
    const { subscriptions } = this
    this.subscriptions = undefined
    subscriptions?.forEach((subscription) => subscription.leave())
  }

  protected schedule(): void {
    if (!this.isDirty && !this.isReceiving) {
      this.isDirty = true
      if (dirty.push(this) === 1) {
        queueMicrotask(flushAll)
      }
    }
  }

  /** Writes what was encoded. `false` where the socket takes no more for now. */
  flush(): boolean {
    this.isDirty = false
    const { encoder } = this
    const { socket } = this.upgraded
    if (encoder.size === 0) {
      return !socket.writableNeedDrain
    }
    if (socket.destroyed || socket.writableEnded) {
      encoder.take()
      return true
    }
    const piece = encoder.takeOne()
    if (piece !== undefined) {
      return socket.write(piece)
    }
    const pieces = encoder.take()
    if (pieces.length === 1) {
      return socket.write(pieces[0]!)
    }
    let more = true
    socket.cork()
    for (const piece of pieces) {
      more = socket.write(piece)
    }
    socket.uncork()
    return more
  }

  protected drained(): Effect.Effect<void, WebSocketError> {
    return Effect.suspend(() => {
      const failure = this.isSendable ? undefined : this.unsendable
      return failure !== undefined
        ? Effect.fail(failure)
        : this.upgraded.socket.writableNeedDrain
          ? Effect.zipRight(this.wire.awaitWrite, this.drained())
          : Effect.void
    })
  }

  /** Who waits for a message to be deflated waits no more. */
  protected abandonDeflating(): void {
    this.undeflated?.()
    this.undeflated = undefined
  }
}
