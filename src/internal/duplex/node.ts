/**
 * What a Duplex of Node tells beside its public interface. Everything here answers also for a Duplex that has none of it.
 */
import type { Duplex } from "node:stream"

interface Told {
  readonly bytesWritten?: unknown
  readonly _handle?: { readonly writeQueueSize?: unknown } | null
}

/** Bytes written that have not reached the operating system: in the stream and, for TCP and TLS, below it. */
export const unsent = (socket: Duplex): number => {
  const below = (socket as Told)._handle?.writeQueueSize
  return socket.writableLength + (typeof below === "number" ? below : 0)
}

/** Bytes that have left, as far as the socket counts them. */
export const bytesSent = (socket: Duplex): number => {
  const written = (socket as Told).bytesWritten
  return (typeof written === "number" ? written : 0) - unsent(socket)
}

/** Undoes `pause` in the way in which Node's own http does: the next 'data' listener or `pipe` starts the flow. */
export const unflow = (socket: Duplex): void => {
  ;(socket as { readableFlowing: boolean | null }).readableFlowing = null
}
