/**
 * One message to many websockets: encoded once, kept until the end of the turn, and written as one buffer to each.
 *
 * ```
 *   publish ──▶ pending ──end of the turn, or 64 KiB──▶ every member ──takes no more──▶ its own backlog, bounded
 * ```
 *
 * What a member is sent by others comes in order with what was published: before it sends, it catches up.
 */

import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import type * as Scope from "effect/Scope"
import type * as Public from "../../Topic.js"
import type { WebSocketImpl } from "./connection.js"
import { Encoder } from "./encoder.js"
import { CloseCode, Opcode } from "./frames.js"
import type { Message, Subscription } from "./sender.js"

export const TypeId: Public.TypeId = Symbol.for("effect-upgrade/Topic") as Public.TypeId

/** So much is kept for the end of the turn. */
const FLUSH_AT = 64 * 1024

const encoder = new Encoder(false)

/** A message as the frame of a server, and its payload, which a client masks by itself. */
interface Published {
  readonly frame: Uint8Array
  readonly opcode: number
  readonly payload: Uint8Array
}

/** A buffer of its own: a slow member may hold it for long. */
const encode = (message: Message): Published => {
  const isText = typeof message === "string"
  const payload = isText ? Buffer.from(message) : message
  encoder.frame(0x80 | (isText ? Opcode.Text : Opcode.Binary), payload)
  const frame = Buffer.concat(encoder.take())
  return {
    frame,
    opcode: isText ? Opcode.Text : Opcode.Binary,
    payload: frame.subarray(frame.length - payload.length)
  }
}

class Member implements Subscription {
  /** Where it is among the members. */
  index: number
  private isMember = true
  /** How many subscribe it. */
  count = 1
  /** How much of what is pending it has. */
  seen: number
  /** What it could not be sent yet. */
  private backlog: Array<Published> | undefined

  constructor(
    readonly topic: TopicImpl,
    readonly ws: WebSocketImpl<any, any>
  ) {
    this.index = topic.members.push(this) - 1
    this.seen = topic.pending.length
    ws.subscriptions ??= []
    ws.subscriptions.push(this)
  }

  catchUp(): void {
    const { pending } = this.topic
    const { seen } = this
    if (seen < pending.length) {
      this.seen = pending.length
      this.send(pending, seen)
    }
  }

  /** Sends what is pending and was not sent, at the end of the turn. */
  flush(pending: ReadonlyArray<Published>, joined: () => Uint8Array): void {
    const { seen, ws } = this
    this.seen = 0
    if (seen === 0 && this.backlog === undefined && !ws.masks && ws.takesMore()) {
      ws.sendFrames(joined(), pending.length)
    } else {
      this.send(pending, seen)
    }
  }

  private send(pending: ReadonlyArray<Published>, from: number): void {
    for (let i = from; i < pending.length && this.isMember; i++) {
      if (this.backlog === undefined && this.ws.takesMore()) {
        this.sendOne(pending[i]!)
      } else {
        this.keep(pending[i]!)
      }
    }
  }

  private sendOne({ frame, opcode, payload }: Published): void {
    if (this.ws.masks) {
      this.ws.sendPayload(opcode, payload)
    } else {
      this.ws.sendFrame(frame)
    }
  }

  /** The peer is slow. */
  private keep(published: Published): void {
    const { topic } = this
    this.backlog ??= []
    if (this.backlog.length < topic.capacity) {
      this.backlog.push(published)
      return
    }
    topic.dropped++
    if (topic.slow === "disconnect") {
      this.ws.beginClose(CloseCode.TryAgainLater, "too slow")
    } else if (topic.slow === "dropOldest" && topic.capacity > 0) {
      this.backlog.shift()
      this.backlog.push(published)
    }
  }

  onWritable(): void {
    const { backlog } = this
    if (backlog !== undefined) {
      let sent = 0
      while (sent < backlog.length && this.ws.takesMore()) {
        this.sendOne(backlog[sent++]!)
      }
      if (sent === backlog.length) {
        this.backlog = undefined
      } else {
        backlog.splice(0, sent)
      }
    }
  }

  leave(): void {
    if (this.isMember) {
      this.isMember = false
      this.backlog = undefined
      const { members } = this.topic
      const last = members.pop()!
      if (last !== this) {
        members[this.index] = last
        last.index = this.index
      }
    }
  }

  unsubscribe(): void {
    this.count--
    if (this.count === 0) {
      this.catchUp()
      this.leave()
      const { ws } = this
      ws.subscriptions = ws.subscriptions?.filter((subscription) => subscription !== this)
    }
  }
}

export class TopicImpl implements Public.Topic {
  readonly [TypeId]: Public.TypeId = TypeId
  readonly members: Array<Member> = []
  pending: Array<Published> = []
  dropped = 0
  private size = 0
  private isScheduled = false

  constructor(
    readonly slow: Public.SlowPolicy,
    readonly capacity: number
  ) {}

  publish(message: Message): void {
    if (this.members.length === 0) {
      return
    }
    const published = encode(message)
    this.pending.push(published)
    this.size += published.frame.length
    if (this.size >= FLUSH_AT) {
      this.flush()
    } else if (!this.isScheduled) {
      this.isScheduled = true
      // After all that the event loop has to read now: what several members publish leaves in one write to each.
      setImmediate(() => {
        this.isScheduled = false
        this.flush()
      })
    }
  }

  private flush(): void {
    const { members, pending } = this
    if (pending.length === 0) {
      return
    }
    this.pending = []
    this.size = 0
    let bytes: Uint8Array | undefined
    const joined = () => (bytes ??= pending.length === 1 ? pending[0]!.frame : Buffer.concat(pending.map(frameOf)))
    // Backwards: one that leaves is replaced by one that was sent to.
    for (let i = members.length - 1; i >= 0; i--) {
      members[i]!.flush(pending, joined)
    }
  }

  subscribe(ws: WebSocketImpl<any, any>): Effect.Effect<void, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.sync(() => {
        if (!ws.isSendable) {
          return undefined
        }
        const member = this.memberOf(ws)
        if (member === undefined) {
          return new Member(this, ws)
        }
        member.count++
        return member
      }),
      (member) => Effect.sync(() => member?.unsubscribe())
    )
  }

  private memberOf(ws: WebSocketImpl<any, any>): Member | undefined {
    return ws.subscriptions?.find((other) => other instanceof Member && other.topic === this) as Member | undefined
  }

  toJSON() {
    return {
      _id: "effect-upgrade/Topic",
      members: this.members.length,
      slow: this.slow,
      capacity: this.capacity,
      dropped: this.dropped
    }
  }
  toString() {
    return Inspectable.format(this.toJSON())
  }
  [Inspectable.NodeInspectSymbol]() {
    return this.toJSON()
  }
  pipe() {
    return pipeArguments(this, arguments)
  }
}

const frameOf = ({ frame }: Published): Uint8Array => frame
