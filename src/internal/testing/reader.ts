/**
 * Reads what a law expects of a peer, exactly as it came.
 *
 * @internal
 */
import { Buffer } from "node:buffer"
import * as Effect from "effect/Effect"
import type { Head, Peer, Response } from "../../testing/Peer.js"
import { type Broken, broken, difference, quote, type Trace } from "./property.js"
import { type Found, findHead, findResponse } from "./response.js"

/**
 * A response as it came, its Date masked and its chunks joined: two that are equal were equal on the wire, but for where
 * a body was split into chunks, which is up to what the socket took at the time.
 */
export interface Answer {
  readonly head: Head
  readonly text: string
}

const masked = (head: string): string => head.replace(/^(date:).*$/gim, "$1 *")

/** RFC 9112 §6.3: neither has content, whatever its fields say. */
const findBodiless = (bytes: Buffer): Found<Head> => {
  let start = 0
  for (;;) {
    const found = findHead(bytes.subarray(start))
    if (found === undefined || "malformed" in found) {
      return found
    }
    start += found.length
    if (found.value.status >= 200 || found.value.status === 101) {
      return { value: found.value, length: start }
    }
  }
}

export class Reader {
  private bytes: Buffer = Buffer.alloc(0)
  private ended = false

  constructor(
    readonly peer: Peer,
    private readonly trace: Trace
  ) {}

  private find<A>(expected: string, find: (bytes: Buffer, ended: boolean) => Found<A>): Effect.Effect<A, Broken> {
    return Effect.suspend(() => {
      this.trace.waitsFor = expected
      const found = find(this.bytes, this.ended)
      if (found === undefined) {
        return this.ended
          ? broken(`the connection ended before ${expected} came; unread is ${quote(this.bytes)}`)
          : Effect.zipRight(this.more, this.find(expected, find))
      }
      if ("malformed" in found) {
        return broken(`${found.malformed}, where ${expected} should be: ${quote(this.bytes)}`)
      }
      this.bytes = this.bytes.subarray(found.length)
      return Effect.succeed(found.value)
    })
  }

  private get more(): Effect.Effect<void, Broken> {
    return Effect.matchEffect(this.peer.receive, {
      onFailure: (error) =>
        error.reason === "Ended"
          ? Effect.sync(() => {
              this.ended = true
            })
          : broken(
              `the connection was ${error.reason === "Reset" ? "reset" : "closed"} before ${this.trace.waitsFor} came`
            ),
      onSuccess: (piece) =>
        Effect.sync(() => {
          this.bytes = this.bytes.length === 0 ? Buffer.from(piece) : Buffer.concat([this.bytes, piece])
        })
    })
  }

  /** The whole answer to a request of this method. */
  answer(method: string, name = "an answer"): Effect.Effect<Answer, Broken> {
    return this.find(name, (bytes, ended): Found<Answer> => {
      const found: Found<Head & Partial<Response>> =
        method === "HEAD" ? findBodiless(bytes) : findResponse(bytes, ended)
      if (found === undefined || "malformed" in found) {
        return found
      }
      const { length, value: head } = found
      const { body = Buffer.alloc(0), interim = [], trailers = {} } = head
      const heads = masked([...interim, head].map(({ raw }) => raw).join(""))
      const text = heads + Buffer.from(body).toString("latin1") + Object.entries(trailers).flat().join("\r\n")
      return { value: { head, text }, length }
    })
  }

  /** Exactly these bytes. */
  expect(expected: Uint8Array, name: string): Effect.Effect<void, Broken> {
    const wanted = Buffer.from(expected)
    return Effect.flatMap(
      this.find(name, (bytes, ended) => {
        // What differs is told at once, and not waited behind
        const common = bytes.subarray(0, wanted.length)
        return common.length === wanted.length || ended || !common.equals(wanted.subarray(0, common.length))
          ? { value: common, length: common.length }
          : undefined
      }),
      (came) =>
        came.equals(wanted)
          ? Effect.void
          : broken(`${difference(wanted.toString("latin1"), came.toString("latin1"))}, where ${name} should be`)
    )
  }

  /** The FIN, and nothing before it. */
  end(name: string): Effect.Effect<void, Broken> {
    return Effect.flatMap(
      this.find(`the FIN ${name}`, (bytes, ended) =>
        ended || bytes.length > 0 ? { value: bytes, length: bytes.length } : undefined
      ),
      (bytes) => (bytes.length === 0 ? Effect.void : broken(`${quote(bytes)} came ${name}`))
    )
  }

  /** The end of the connection, whether by a FIN or not, and nothing before it. */
  over(name: string): Effect.Effect<void, Broken> {
    return Effect.suspend(() => {
      this.trace.waitsFor = `the end of the connection ${name}`
      if (this.bytes.length > 0) {
        return broken(`${quote(this.bytes)} came ${name}`)
      }
      return this.ended
        ? Effect.void
        : Effect.matchEffect(this.more, { onFailure: () => Effect.void, onSuccess: () => this.over(name) })
    })
  }

  /** Whatever comes until the connection ends, however it does. */
  get rest(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.trace.waitsFor = "the end of the connection"
      return this.ended
        ? Effect.void
        : Effect.matchEffect(this.more, { onFailure: () => Effect.void, onSuccess: () => this.rest })
    })
  }
}
