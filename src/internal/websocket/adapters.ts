/** A websocket as what others read and write: Effect's streams, sinks and channels, the platform's Socket. */

import * as Socket from "@effect/platform/Socket"
import * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import type * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Runtime from "effect/Runtime"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { isWebSocketError, type WebSocketError } from "../../WebSocketError.js"
import type { WebSocketImpl } from "./connection.js"
import type { Message } from "./sender.js"

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
const socketError = (cause: WebSocketError): Socket.SocketError =>
  cause._tag === "WebSocketClosed"
    ? new Socket.SocketCloseError({ reason: "Close", code: cause.code, closeReason: cause.reason })
    : cause._tag === "ConnectionError" && (cause.reason === "Closed" || cause.reason === "Reset")
      ? new Socket.SocketCloseError({ reason: "Close", code: 1006, closeReason: cause.message })
      : new Socket.SocketGenericError({ reason: "Read", cause })

type Handler<A, E, R, M> = (message: M) => Effect.Effect<A, E, R> | void

interface RunOptions {
  readonly onOpen?: Effect.Effect<void> | undefined
}

/** So many handlers run at a time. The platform sets no bound, and a peer that is faster than they has all of memory. */
const MAX_HANDLERS = 128

/** What has to be waited for while a socket runs: handlers that did not end where they began. */
class Handlers<E, R> {
  private readonly running = new Set<Fiber.RuntimeFiber<unknown, E>>()
  private wake: (() => void) | undefined
  private failed: Cause.Cause<E> | undefined
  private isOver = false

  constructor(
    private readonly runtime: Runtime.Runtime<R>,
    private readonly ws: AnyWebSocket
  ) {}

  /** Begins one, in a fiber of its own, and waits where there are too many. */
  begin(effect: Effect.Effect<unknown, E, R>): Effect.Effect<void, E> {
    const fiber = Runtime.runFork(this.runtime, effect)
    const exit = fiber.unsafePoll()
    if (exit === null) {
      this.running.add(fiber)
      fiber.addObserver((exit) => {
        this.running.delete(fiber)
        this.settle(exit)
        if (this.failed !== undefined && !this.isOver) {
          this.ws.failReader(new Failed(this.failed))
        }
        this.wake?.()
      })
    } else {
      this.settle(exit)
    }
    return this.failed !== undefined
      ? Effect.failCause(this.failed)
      : this.running.size < MAX_HANDLERS
        ? Effect.void
        : Effect.async<void>((resume) => {
            this.wake = () => {
              this.wake = undefined
              resume(Effect.void)
            }
          })
  }

  private settle(exit: Exit.Exit<unknown, E>): void {
    if (Exit.isFailure(exit) && !Cause.isInterruptedOnly(exit.cause)) {
      this.failed ??= exit.cause
    }
  }

  /** The run is over, and with it all that still runs. */
  get end(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.isOver = true
      this.ws.failReader(undefined)
      return this.running.size === 0 ? Effect.void : Fiber.interruptAll(this.running)
    })
  }
}

/** What the reader is told where a handler has failed that it does not wait for. */
class Failed<E> {
  constructor(readonly cause: Cause.Cause<E>) {}
}

/**
 * Runs over an open websocket until it is closed, as `Socket.run` does: each message's handler begins when it has come, in
 * order, and none waits for another, since one may wait for what a later message brings.
 */
export const runSocket = <A, E, R>(
  ws: AnyWebSocket,
  handler: Handler<A, E, R, Message>,
  closeCodeIsError: (code: number) => boolean
): Effect.Effect<void, Socket.SocketError | E, R> =>
  Effect.flatMap(Effect.runtime<R>(), (runtime) => {
    const handlers = new Handlers<E, R>(runtime, ws)
    return ws
      .runEach((message) => {
        const handled = handler(message)
        return Effect.isEffect(handled) ? handlers.begin(handled) : Effect.void
      })
      .pipe(
        Effect.catchAll((error: WebSocketError | E | Failed<E>) =>
          error instanceof Failed
            ? Effect.failCause(error.cause)
            : Effect.fail(isWebSocketError(error) ? socketError(error) : error)
        ),
        Effect.flatMap(({ code, reason }) =>
          Effect.fail(new Socket.SocketCloseError({ reason: "Close", code, closeReason: reason }))
        ),
        Effect.ensuring(handlers.end)
      )
  }).pipe(
    Effect.catchIf(
      Socket.SocketCloseError.isClean((code) => !closeCodeIsError(code)),
      () => Effect.void
    ),
    Effect.interruptible
  )

/**
 * Done when the connection takes more. What is sent after the end is dropped, as the platform's own does: `run` tells. A
 * code that may not be sent, such as the 1005 or 1006 that somebody passes on, is sent as a plain Close.
 */
export const writeSocket = (
  ws: AnyWebSocket,
  chunk: Uint8Array | string | Socket.CloseEvent
): Effect.Effect<void, Socket.SocketError> =>
  Socket.isCloseEvent(chunk)
    ? Effect.sync(() => ws.beginClose(chunk.code, chunk.reason ?? ""))
    : Effect.ignore(ws.send(chunk))

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
