/** A websocket as what others read and write: Effect's streams, sinks and channels, the platform's Socket. */

import * as Socket from "@effect/platform/Socket"
import type * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import type * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { isWebSocketError, type WebSocketError } from "../../WebSocketError.js"
import type { Message, WebSocketImpl } from "./connection.js"

type AnyWebSocket = WebSocketImpl<any, any>

export const stream = (ws: AnyWebSocket): Stream.Stream<Message, WebSocketError> => {
  const loop: Channel.Channel<Chunk.Chunk<Message>, unknown, WebSocketError, unknown, unknown> = Channel.flatMap(
    Channel.fromEffect(ws.pullOrEnd()),
    (messages) =>
      messages === undefined
        ? ws.uncleanClose === undefined
          ? Channel.void
          : Channel.fail(ws.uncleanClose)
        : Channel.zipRight(Channel.write(messages), loop)
  )
  return Stream.fromChannel(loop)
}

export const sink = (ws: AnyWebSocket): Sink.Sink<void, Message, never, WebSocketError> =>
  Sink.forEachChunk((messages: Chunk.Chunk<Message>) => ws.sendAll(messages))

export const channel = <IE>(
  ws: AnyWebSocket
): Channel.Channel<Chunk.Chunk<Message>, Chunk.Chunk<Message>, WebSocketError | IE, IE, void, unknown> =>
  Channel.unwrap(
    Effect.map(Deferred.make<void, WebSocketError | IE>(), (failed) =>
      Channel.embedInput(
        Channel.interruptWhenDeferred(
          Stream.toChannel(stream(ws)) as Channel.Channel<Chunk.Chunk<Message>, unknown, WebSocketError, unknown, void>,
          failed
        ),
        {
          awaitRead: () => Effect.void,
          emit: (messages: Chunk.Chunk<Message>) =>
            Effect.catchAllCause(ws.sendAll(messages), (cause) => Deferred.failCause(failed, cause)),
          error: (cause: Cause.Cause<IE>) => Deferred.failCause(failed, cause),
          // The peer may go on until it answers: whoever reads the channel sees the end of it.
          done: () =>
            Effect.catchAllCause(Effect.asVoid(ws.close(1000, "")), (cause) => Deferred.failCause(failed, cause))
        }
      )
    )
  )

/** What a websocket fails with, as the platform's own socket would tell it. */
const socketError =
  (reason: "Read" | "Write") =>
  (cause: WebSocketError): Socket.SocketError =>
    cause._tag === "WebSocketClosed"
      ? new Socket.SocketCloseError({ reason: "Close", code: cause.code, closeReason: cause.reason })
      : cause._tag === "ConnectionError" && (cause.reason === "Closed" || cause.reason === "Reset")
        ? new Socket.SocketCloseError({ reason: "Close", code: 1006, closeReason: cause.message })
        : new Socket.SocketGenericError({ reason, cause })

type Handler<A, E, R, M> = (message: M) => Effect.Effect<A, E, R> | void

interface RunOptions {
  readonly onOpen?: Effect.Effect<void> | undefined
}

/** Runs over an open websocket until it is closed, as `Socket.run` does. */
export const runSocket = <A, E, R>(
  ws: AnyWebSocket,
  handler: Handler<A, E, R, Message>,
  closeCodeIsError: (code: number) => boolean
): Effect.Effect<void, Socket.SocketError | E, R> =>
  ws
    .runEach((message) => {
      const handled = handler(message)
      return Effect.isEffect(handled) ? handled : Effect.void
    })
    .pipe(
      Effect.mapError((error) => (isWebSocketError(error) ? socketError("Read")(error) : error)),
      Effect.flatMap(({ code, reason }) =>
        Effect.fail(new Socket.SocketCloseError({ reason: "Close", code, closeReason: reason }))
      ),
      Effect.catchIf(
        Socket.SocketCloseError.isClean((code) => !closeCodeIsError(code)),
        () => Effect.void
      )
    ) as Effect.Effect<void, Socket.SocketError | E, R>

/** A code that may not be sent, such as the 1005 or 1006 that somebody passes on, is sent as a plain Close. */
export const writeSocket = (
  ws: AnyWebSocket,
  chunk: Uint8Array | string | Socket.CloseEvent
): Effect.Effect<void, Socket.SocketError> =>
  Socket.isCloseEvent(chunk)
    ? Effect.sync(() => ws.beginClose(chunk.code, chunk.reason ?? ""))
    : Effect.mapError(ws.send(chunk), socketError("Write"))

const encoder = new TextEncoder()

/** The `run` of a socket from its `runRaw`: text as bytes. */
export const bytesOnly =
  (runRaw: Socket.Socket["runRaw"]): Socket.Socket["run"] =>
  (handler, options) =>
    runRaw((message) => handler(typeof message === "string" ? encoder.encode(message) : message), options)

export const toSocket = (
  ws: AnyWebSocket,
  closeCodeIsError: (code: number) => boolean = Socket.defaultCloseCodeIsError
): Socket.Socket => {
  const runRaw = <A, E, R>(handler: Handler<A, E, R, Message>, options?: RunOptions) =>
    options?.onOpen === undefined
      ? runSocket(ws, handler, closeCodeIsError)
      : Effect.zipRight(options.onOpen, runSocket(ws, handler, closeCodeIsError))
  return {
    [Socket.TypeId]: Socket.TypeId,
    run: bytesOnly(runRaw),
    runRaw,
    writer: Effect.succeed((chunk) => writeSocket(ws, chunk))
  }
}

/**
 * The platform's `Socket` over a websocket that is opened by each `run`, in a Scope of its own, and closed with it. What
 * is written waits until one is open.
 */
export const lazySocket = (
  acquire: Effect.Effect<AnyWebSocket, Socket.SocketError, any>,
  closeCodeIsError: (code: number) => boolean = Socket.defaultCloseCodeIsError
): Effect.Effect<Socket.Socket> =>
  Effect.sync(() => {
    let current: AnyWebSocket | undefined
    const isOpen = Effect.unsafeMakeLatch(false)
    const runRaw = <A, E, R>(
      handler: Handler<A, E, R, Message>,
      options?: RunOptions
    ): Effect.Effect<void, Socket.SocketError | E, R> =>
      Effect.scoped(
        Effect.flatMap(acquire, (ws) => {
          current = ws
          isOpen.unsafeOpen()
          return Effect.zipRight(options?.onOpen ?? Effect.void, runSocket(ws, handler, closeCodeIsError))
        })
      ).pipe(
        Effect.ensuring(
          Effect.sync(() => {
            current = undefined
            isOpen.unsafeClose()
          })
        ),
        Effect.interruptible
      ) as Effect.Effect<void, Socket.SocketError | E, R>
    return {
      [Socket.TypeId]: Socket.TypeId,
      run: bytesOnly(runRaw),
      runRaw,
      writer: Effect.succeed((chunk) => isOpen.whenOpen(Effect.suspend(() => writeSocket(current!, chunk))))
    }
  })
