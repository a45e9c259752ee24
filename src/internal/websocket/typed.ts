/** Messages as values, by a schema for each direction. */

import * as MsgPack from "@effect/platform/MsgPack"
import * as Effect from "effect/Effect"
import type { ParseError } from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { Typed } from "../../WebSocket.js"
import { stream } from "./adapters.js"
import type { WebSocketImpl } from "./connection.js"
import type { Message } from "./sender.js"

export type { ParseError }

type Format = "json" | "msgpack"

/** A message of the other kind is no message of this schema, and says so. */
const onTheWire = <A, I, R>(schema: Schema.Schema<A, I, R>, format: Format): Schema.Schema<A, Message, R> =>
  (format === "json" ? Schema.parseJson(schema) : MsgPack.schema(schema)) as Schema.Schema<A, any, R>

/** From values to messages. */
export const encoderOf = <A, I, R>(
  schema: Schema.Schema<A, I, R>,
  format: Format
): ((value: A) => Effect.Effect<Message, ParseError, R>) => {
  const encode = Schema.encode(onTheWire(schema, format))
  return (value) => encode(value)
}

export const make = <A, I, RR, B, J, RS>(
  ws: WebSocketImpl<any, any>,
  options: {
    readonly receive: Schema.Schema<A, I, RR>
    readonly send: Schema.Schema<B, J, RS>
    readonly format?: Format | undefined
  }
): Typed<A, B, RR, RS> => {
  const format = options.format ?? "json"
  const decode = Schema.decodeUnknown(onTheWire(options.receive, format))
  const encode = encoderOf(options.send, format)
  return {
    webSocket: ws,
    stream: Stream.mapEffect(stream(ws), (message) => decode(message)),
    run: (handler) => ws.runEach((message) => Effect.flatMap(decode(message), handler)),
    send: (message) => Effect.flatMap(encode(message), (encoded) => ws.send(encoded)),
    sendAll: (messages) =>
      Effect.flatMap(
        Effect.forEach(messages, (message) => encode(message)),
        (encoded) => ws.sendAll(encoded)
      )
  }
}
