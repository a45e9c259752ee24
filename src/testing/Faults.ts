/**
 * A bad network: what goes through is split, delayed, and cut off by a FIN or a reset at a byte of one's choice.
 *
 * ```
 *   peer ◀──▶ [ pair in memory ] ◀── toServer, toClient ──▶ socket ◀──▶ server
 * ```
 *
 * The bytes themselves arrive as they were sent and in order, as TCP promises. Backpressure goes through: what one side
 * does not read, the other cannot send for ever.
 *
 * @since 0.1.0
 */

import type { Socket } from "node:net"
import type { Duplex } from "node:stream"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { pair } from "../internal/memory.js"

/**
 * What happens to the bytes of one direction. All of it may be left out.
 *
 * - `split`: no piece is larger than so many bytes; each is read by itself. Default: as they were written.
 * - `delay`: how long each piece is on its way, on the Clock of whoever connects. Default: not at all.
 * - `endAt`: after so many bytes comes a FIN; whatever follows is swallowed.
 * - `resetAt`: after so many bytes the connection is reset, at both ends. 0: before the first.
 *
 * @since 0.1.0
 * @category models
 */
export interface Fault {
  readonly split?: number | undefined
  readonly delay?: Duration.DurationInput | undefined
  readonly endAt?: number | undefined
  readonly resetAt?: number | undefined
}

/**
 * What happens to both directions: `toServer` is what the returned end sends, `toClient` what it receives.
 *
 * @since 0.1.0
 * @category models
 */
export interface Faults {
  readonly toServer?: Fault | undefined
  readonly toClient?: Fault | undefined
}

/**
 * A connected socket with faults between: the end that is returned is for the client, to be made a `Peer` of
 * (`Peer.fromDuplex`) or given to any client of Node's. Works over every Duplex; where that knows no reset (TLS), it is
 * destroyed instead. When the Scope closes, both are.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Faults, Peer } from "effect-upgrade/testing"
 * import * as Net from "node:net"
 *
 * // The head of the request arrives byte by byte, and the connection is reset in the middle of the answer
 * export const bad = (port: number) =>
 *   Effect.suspend(() => Faults.through(Net.connect(port), { toServer: { split: 1 }, toClient: { resetAt: 20 } })).pipe(
 *     Effect.flatMap((socket) => Peer.fromDuplex(socket))
 *   )
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const through = (socket: Duplex, faults: Faults): Effect.Effect<Duplex, never, Scope.Scope> =>
  Effect.gen(function* () {
    const [inner, client] = pair()
    for (const end of [socket, inner, client]) {
      // Heard for as long as there is a socket: an error without a listener ends the process
      end.on("error", () => {})
    }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        client.destroy()
        socket.destroy()
        inner.destroy()
      })
    )
    const resetBoth = Effect.sync(() => {
      reset(inner)
      reset(socket)
    })
    yield* Effect.forkScoped(pump(inner, socket, faults.toServer ?? {}, resetBoth))
    yield* Effect.forkScoped(pump(socket, inner, faults.toClient ?? {}, resetBoth))
    return client
  })

/** TCP and memory know a reset; a Unix socket refuses, and TLS has none. */
const reset = (socket: Duplex): void => {
  try {
    ;(socket as Partial<Socket>).resetAndDestroy?.()
  } catch {
    // refused: destroyed below
  }
  socket.destroy()
}

const pump = (from: Duplex, to: Duplex, fault: Fault, resetBoth: Effect.Effect<void>): Effect.Effect<void> => {
  const limit = Math.min(fault.endAt ?? Infinity, fault.resetAt ?? Infinity)
  const cut = limit === Infinity ? Effect.void : limit === fault.resetAt ? resetBoth : swallow(from, to)
  const send = (bytes: Uint8Array): Effect.Effect<void> => {
    const delayed = fault.delay === undefined ? Effect.void : Effect.sleep(fault.delay)
    return Effect.zipRight(delayed, write(to, bytes))
  }
  const loop = (sent: number): Effect.Effect<void> =>
    sent === limit
      ? cut
      : Effect.flatMap(read(from), (bytes) => {
          if (typeof bytes === "string") {
            // A lost connection is lost on the other side too
            return bytes === "end" ? Effect.sync(() => void to.end()) : Effect.sync(() => reset(to))
          }
          const passed = bytes.subarray(0, limit - sent)
          return Effect.zipRight(
            Effect.forEach(piecesOf(passed, fault.split ?? Infinity), send, { discard: true }),
            Effect.suspend(() => loop(sent + passed.length))
          )
        })
  return loop(0)
}

const swallow = (from: Duplex, to: Duplex): Effect.Effect<void> =>
  Effect.sync(() => {
    to.end()
    from.resume()
  })

const piecesOf = (bytes: Uint8Array, size: number): ReadonlyArray<Uint8Array> => {
  const pieces: Array<Uint8Array> = []
  for (let at = 0; at < bytes.length; at += size) {
    pieces.push(bytes.subarray(at, Math.min(at + size, bytes.length)))
  }
  return pieces
}

/** What has come, or how the input ended: by a FIN, or with the connection. */
const read = (from: Duplex): Effect.Effect<Uint8Array | "end" | "lost"> =>
  Effect.async((resume) => {
    const events = ["readable", "end", "close"] as const
    const stop = () => events.forEach((event) => from.off(event, attempt))
    const attempt = () => {
      const bytes: Uint8Array | null = from.read()
      const result = bytes ?? (from.readableEnded ? "end" : from.destroyed ? "lost" : undefined)
      if (result !== undefined) {
        stop()
        resume(Effect.succeed(result))
      }
    }
    events.forEach((event) => from.on(event, attempt))
    attempt()
    return Effect.sync(stop)
  })

const write = (to: Duplex, bytes: Uint8Array): Effect.Effect<void> =>
  Effect.async((resume) => {
    if (to.destroyed || to.writableEnded) {
      return resume(Effect.void)
    }
    const done = () => {
      to.off("close", done)
      resume(Effect.void)
    }
    to.once("close", done)
    to.write(bytes, done)
  })
