/**
 * One message to many websockets.
 *
 * ```
 *                         ┌──▶ member
 *   publish ──encoded──▶  ├──▶ member
 *              once       └──▶ member that takes no more: a bounded backlog, and then what `slow` says
 * ```
 *
 * A message is encoded once, and all members are written the same buffer; what is published within one turn of the event
 * loop leaves in one write to each. `publish` never waits for a member, and never fails because of one. A websocket is a
 * member as long as the Scope of its `subscribe` is open, and leaves by itself when it closes.
 *
 * What it does not do: it is known to this process alone, keeps no message for whoever joins later, and deflates nothing
 * (RFC 7692 §6 lets a message go as it is): the same bytes are for all.
 *
 * ```ts
 * import { HttpRouter } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Topic, WebSocket } from "effect-upgrade"
 *
 * export const router = Effect.map(Topic.make({ slow: "disconnect" }), (room) =>
 *   HttpRouter.empty.pipe(
 *     HttpRouter.get("/chat", WebSocket.onUpgrade((ws) =>
 *       Effect.zipRight(Topic.subscribe(room, ws), WebSocket.run(ws, (said) => Topic.publish(room, said)))))
 *   ))
 * ```
 *
 * @since 0.1.0
 */

import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type { ParseError } from "effect/ParseResult"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { WebSocketImpl } from "./internal/websocket/connection.js"
import * as internal from "./internal/websocket/topic.js"
import { encoderOf } from "./internal/websocket/typed.js"
import type { Message, WebSocket } from "./WebSocket.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = internal.TypeId as never

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * A set of websockets that a message can be published to.
 *
 * @since 0.1.0
 * @category models
 */
export interface Topic extends Inspectable.Inspectable, Pipeable {
  readonly [TypeId]: TypeId
}

/**
 * What becomes of a member that does not take what is published as fast as it comes, once its backlog is full.
 *
 * - `"dropOldest"`: the oldest message of its backlog is dropped for it: it is told what is new.
 * - `"dropNewest"`: the message is dropped for it: what it is told has no gap until there is one.
 * - `"disconnect"`: it is closed with 1013 ("try again later", RFC 6455 §7.4.2 and its registry): what it missed it learns
 *   when it connects again. Not 1008, which says that it broke a rule, and should not.
 *
 * @since 0.1.0
 * @category models
 */
export type SlowPolicy = "dropOldest" | "dropNewest" | "disconnect"

/**
 * What a topic may be told. All of it may be left out.
 *
 * - `slow` (`"dropOldest"`): what becomes of a slow member.
 * - `capacity` (64): messages that a slow member's backlog holds, behind what its socket has taken (Node's high-water
 *   mark, 16 to 64 KiB, and one turn's write). The members share the messages: a backlog holds no copies.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly slow?: SlowPolicy | undefined
  readonly capacity?: number | undefined
}

/**
 * Whether a value is a topic.
 *
 * @since 0.1.0
 * @category guards
 */
export const isTopic = (u: unknown): u is Topic => Predicate.hasProperty(u, TypeId)

const impl = (self: Topic) => self as internal.TopicImpl

/**
 * A topic without members. A `capacity` that is no integer from 0 on is a defect.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options?: Options): Effect.Effect<Topic> =>
  Effect.sync(() => {
    const capacity = options?.capacity ?? 64
    if (!Number.isInteger(capacity) || capacity < 0) {
      throw new RangeError(`Topic.make: capacity is ${capacity}; expected an integer from 0 on`)
    }
    return new internal.TopicImpl(options?.slow ?? "dropOldest", capacity)
  })

/**
 * Makes a websocket a member, until the Scope closes or the websocket does.
 *
 * It gets what is published from now on, in order, and in order with what it is sent by others. Subscribed again, it
 * still gets each message once, until the last of the Scopes closes. One that is closed already becomes no member.
 *
 * @since 0.1.0
 * @category members
 */
export const subscribe: {
  (ws: WebSocket): (self: Topic) => Effect.Effect<void, never, Scope.Scope>
  (self: Topic, ws: WebSocket): Effect.Effect<void, never, Scope.Scope>
} = dual(2, (self: Topic, ws: WebSocket) => impl(self).subscribe(ws as WebSocketImpl))

/**
 * Publishes a message to all who are members now: done at once, whatever they do.
 *
 * It leaves at the end of this turn of the event loop, or before the next thing that a member is sent. Binary messages are
 * copied: the bytes may be changed afterwards.
 *
 * @since 0.1.0
 * @category publishing
 */
export const publish: {
  (message: Message): (self: Topic) => Effect.Effect<void>
  (self: Topic, message: Message): Effect.Effect<void>
} = dual(2, (self: Topic, message: Message) => Effect.sync(() => impl(self).publish(message)))

/**
 * Publishes several messages, in order.
 *
 * @since 0.1.0
 * @category publishing
 */
export const publishAll: {
  (messages: Iterable<Message>): (self: Topic) => Effect.Effect<void>
  (self: Topic, messages: Iterable<Message>): Effect.Effect<void>
} = dual(2, (self: Topic, messages: Iterable<Message>) =>
  Effect.sync(() => {
    for (const message of messages) {
      impl(self).publish(message)
    }
  })
)

/**
 * How many members it has.
 *
 * @since 0.1.0
 * @category members
 */
export const size = (self: Topic): Effect.Effect<number> => Effect.sync(() => impl(self).members.length)

/**
 * How many messages were dropped, each counted for each member that did not get it, since the topic was made; with
 * `"disconnect"`, how many members were disconnected.
 *
 * @since 0.1.0
 * @category members
 */
export const dropped = (self: Topic): Effect.Effect<number> => Effect.sync(() => impl(self).dropped)

/**
 * Gives what is published a type, by a schema: as JSON in text messages, or as MsgPack in binary ones. It is encoded once.
 *
 * Members read it by `WebSocket.schema` with the same schema.
 *
 * @example
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { Topic } from "effect-upgrade"
 *
 * const Said = Schema.Struct({ by: Schema.String, text: Schema.String, at: Schema.Date })
 *
 * export const announce = (room: Topic.Topic, text: string) =>
 *   Effect.clockWith((clock) => clock.currentTimeMillis).pipe(
 *     Effect.flatMap((at) => Topic.publishAs(room, Said)({ by: "server", text, at: new Date(at) }))
 *   )
 * ```
 *
 * @since 0.1.0
 * @category publishing
 */
export const publishAs = <A, I, R>(
  self: Topic,
  schema: Schema.Schema<A, I, R>,
  options?: { readonly format?: "json" | "msgpack" | undefined }
): ((value: A) => Effect.Effect<void, ParseError, R>) => {
  const encode = encoderOf(schema, options?.format ?? "json")
  return (value) => Effect.map(encode(value), (message) => impl(self).publish(message))
}
