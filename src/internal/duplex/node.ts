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

type OnRead = (this: Duplex, size: number, buffer: Uint8Array) => boolean

/** The fields that `onread` of Node's `net.connect` sets; a socket that was accepted has them too, and no way to set them. */
interface Lent {
  readonly buffer: symbol
  readonly callback: symbol
  readonly next: symbol
}

let lent: Lent | undefined

const lentOf = (socket: Duplex): Lent | undefined => {
  const find = (name: string) =>
    Object.getOwnPropertySymbols(socket).find(({ description }) => description === name) as symbol
  const found = { buffer: find("kBuffer"), callback: find("kBufferCb"), next: find("kBufferGen") }
  return Object.values(found).includes(undefined as never) ? undefined : found
}

/**
 * Reads into buffers of ours from here on, instead of one that Node makes for each read: into `first`, then each time into
 * what `next` yields. `onRead` is called with what was read, in place of 'data'. Returns whether the socket can do so.
 */
export const lend = (socket: Duplex, first: Uint8Array, onRead: OnRead, next: () => Uint8Array): boolean => {
  const handle = (socket as unknown as { _handle?: { useUserBuffer?: (buffer: Uint8Array) => void } | null })._handle
  const fields = socket as unknown as Record<symbol, unknown>
  if (typeof handle?.useUserBuffer !== "function") {
    return false
  }
  lent ??= lentOf(socket)
  if (lent === undefined || fields[lent.buffer] !== null) {
    return false
  }
  fields[lent.buffer] = first
  fields[lent.callback] = onRead
  fields[lent.next] = next
  handle.useUserBuffer(first)
  return true
}
