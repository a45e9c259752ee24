/**
 * An upgrading request whose body this library frames: the parser stops at the head of such a request, and leaves the
 * body's bytes, framing and all, in front of the other protocol's.
 */
import { IncomingMessage } from "node:http"
import type { Wire } from "../duplex/wire.js"
import { BodyDecoder, type Framing } from "./framing.js"

export type Framed = Extract<Framing, { readonly _tag: "Length" | "Chunked" }>

export class FramedRequest extends IncomingMessage {
  /** The whole body has arrived, read or not. */
  arrived = false
  private wire: Wire | undefined

  constructor(
    head: IncomingMessage,
    private readonly framing: Framed
  ) {
    super(head.socket)
    this.httpVersionMajor = head.httpVersionMajor
    this.httpVersionMinor = head.httpVersionMinor
    this.httpVersion = head.httpVersion
    this.method = head.method!
    this.url = head.url!
    this.rawHeaders = head.rawHeaders
    this.headers = head.headers
    this.complete = false
  }

  /** Takes the body off the wire as it comes. Calls `done` once it is whole, or with what is wrong with it. */
  readFrom(wire: Wire, done: (error: string | undefined) => void): void {
    const decoder = new BodyDecoder(this.framing)
    let room = true
    let slices: Array<Uint8Array> = []
    const onData = (slice: Uint8Array) => {
      slices.push(slice)
    }
    const deliver = () => {
      // What nobody will read is framed all the same: the bytes behind it are another's. Chunks of a byte each would cost
      // more than they hold: what came together is one piece.
      if (slices.length > 0) {
        room = this.destroyed || this.push(slices.length === 1 ? slices[0] : Buffer.concat(slices))
        slices = []
      }
    }
    this.wire = wire
    wire.intake = (bytes) => {
      const consumed = decoder.write(bytes, onData)
      deliver()
      if (decoder.error !== undefined) {
        wire.intake = undefined
        this.destroy(new Error(decoder.error))
        done(decoder.error)
        return undefined
      }
      if (decoder.done) {
        wire.intake = undefined
        this.arrived = true
        this.complete = true
        this.push(null)
        wire.resume()
        done(undefined)
        return bytes.subarray(consumed)
      }
      if (!room) {
        wire.pause()
      }
      return undefined
    }
  }

  /** Node's own would read from the socket, past this body's end. */
  override _read(): void {
    if (!this.arrived) {
      this.wire?.resume()
    }
  }

  /** Node's own destroys the socket when a body is dropped half-read; here the rest of it is discarded. */
  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    if (!this.arrived) {
      this.wire?.resume()
    }
    // As in Node: a request that nobody reads fails unheard
    callback(this.listenerCount("error") === 0 ? null : error)
  }
}
