/** A wire as what others read and write: Effect's streams, sinks and channels, the platform's Socket, Node's Duplex. */

import { Duplex } from "node:stream"
import * as Socket from "@effect/platform/Socket"
import type * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import type * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { ConnectionError } from "../../UpgradeError.js"
import type { Wire } from "./wire.js"

export const readExactly = (wire: Wire, size: number): Effect.Effect<Uint8Array, ConnectionError> =>
  Effect.suspend(() => {
    if (!Number.isSafeInteger(size) || size < 0) {
      return Effect.die(new RangeError(`Upgraded.readExactly: ${size} is not a number of bytes`))
    }
    const taken: Array<Uint8Array> = []
    let length = 0
    const giveBack = () => {
      while (taken.length > 0) {
        wire.unread(taken.pop()!)
      }
    }
    const read: Effect.Effect<Uint8Array, ConnectionError> = Effect.suspend(() => {
      if (length >= size) {
        const all = Buffer.concat(taken)
        wire.unread(all.subarray(size))
        return Effect.succeed(all.subarray(0, size))
      }
      return Effect.flatMap(wire.pullOrEnd(), (pieces) => {
        if (pieces === undefined) {
          giveBack()
          return Effect.fail(
            new ConnectionError({
              reason: "Closed",
              description: `The peer ended after ${length} of the ${size} bytes that were to be read.`
            })
          )
        }
        for (const piece of pieces) {
          taken.push(piece)
          length += piece.length
        }
        return read
      })
    })
    return Effect.onInterrupt(read, () => Effect.sync(giveBack))
  })

export const stream = (wire: Wire): Stream.Stream<Uint8Array, ConnectionError> => {
  const loop: Channel.Channel<Chunk.Chunk<Uint8Array>, unknown, ConnectionError, unknown, unknown> = Channel.flatMap(
    Channel.fromEffect(wire.pullOrEnd()),
    (bytes) => (bytes === undefined ? Channel.void : Channel.zipRight(Channel.write(bytes), loop))
  )
  return Stream.fromChannel(loop)
}

export const sink = (wire: Wire): Sink.Sink<void, Uint8Array | string, never, ConnectionError> =>
  Sink.forEachChunk((pieces: Chunk.Chunk<Uint8Array | string>) => wire.writeAll(pieces))

export const channel = <IE>(
  wire: Wire
): Channel.Channel<
  Chunk.Chunk<Uint8Array>,
  Chunk.Chunk<Uint8Array | string>,
  ConnectionError | IE,
  IE,
  void,
  unknown
> =>
  Channel.unwrap(
    Effect.map(Deferred.make<void, ConnectionError | IE>(), (failed) =>
      Channel.embedInput(
        Channel.interruptWhenDeferred(
          Channel.mapOut(Stream.toChannel(stream(wire)), (bytes) => bytes) as Channel.Channel<
            Chunk.Chunk<Uint8Array>,
            unknown,
            ConnectionError,
            unknown,
            void
          >,
          failed
        ),
        {
          awaitRead: () => Effect.void,
          emit: (pieces: Chunk.Chunk<Uint8Array | string>) =>
            Effect.catchAllCause(wire.writeAll(pieces), (cause) => Deferred.failCause(failed, cause)),
          error: (cause: Cause.Cause<IE>) => Deferred.failCause(failed, cause),
          done: () => Effect.catchAllCause(wire.end(), (cause) => Deferred.failCause(failed, cause))
        }
      )
    )
  )

const socketError =
  (reason: "Read" | "Write") =>
  (cause: ConnectionError): Socket.SocketError =>
    cause.reason === "Closed"
      ? new Socket.SocketCloseError({ reason: "Close", code: 1006, closeReason: cause.message })
      : new Socket.SocketGenericError({ reason, cause })

export const toSocket = (wire: Wire): Socket.Socket => {
  const run = <A, E, R>(
    handler: (bytes: Uint8Array) => Effect.Effect<A, E, R> | void,
    options?: { readonly onOpen?: Effect.Effect<void> | undefined }
  ): Effect.Effect<void, Socket.SocketError | E, R> =>
    Effect.zipRight(
      options?.onOpen ?? Effect.void,
      wire.run((pieces) =>
        Effect.forEach(
          pieces,
          (piece) => {
            const handled = handler(piece)
            return Effect.isEffect(handled) ? handled : Effect.void
          },
          { discard: true }
        )
      )
    ).pipe(
      Effect.catchIf(
        (error): error is ConnectionError => error instanceof ConnectionError,
        (error) => Effect.fail(socketError("Read")(error))
      )
    ) as Effect.Effect<void, Socket.SocketError | E, R>
  return {
    [Socket.TypeId]: Socket.TypeId,
    run,
    runRaw: run,
    writer: Effect.succeed((chunk) =>
      Effect.mapError(Socket.isCloseEvent(chunk) ? wire.end() : wire.write(chunk), socketError("Write"))
    )
  }
}

class WireDuplex extends Duplex {
  private isReading = false
  private reading: Fiber.RuntimeFiber<void> | undefined

  constructor(private readonly wire: Wire) {
    super({ allowHalfOpen: true })
  }

  override _read(): void {
    if (this.isReading) {
      return
    }
    this.isReading = true
    this.reading = Effect.runFork(
      Effect.match(this.wire.pullOrEnd(), {
        onFailure: (error) => {
          this.destroy(error)
        },
        onSuccess: (bytes) => {
          this.isReading = false
          if (bytes === undefined) {
            this.push(null)
          } else {
            for (const piece of bytes) {
              this.push(piece)
            }
          }
        }
      })
    )
  }

  private settle(effect: Effect.Effect<void, ConnectionError>, callback: (error?: Error | null) => void): void {
    Effect.runFork(Effect.match(effect, { onFailure: callback, onSuccess: () => callback() }))
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.settle(this.wire.write(chunk), callback)
  }

  override _writev(chunks: ReadonlyArray<{ readonly chunk: Buffer }>, callback: (error?: Error | null) => void): void {
    this.settle(this.wire.writeAll(chunks.map(({ chunk }) => chunk)), callback)
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.settle(this.wire.end(), callback)
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.reading?.unsafeInterruptAsFork(FiberId.none)
    callback(error)
  }
}

export const toDuplex = (wire: Wire): Duplex => new WireDuplex(wire)
