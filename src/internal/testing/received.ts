/**
 * What the laws do with a connection, and what they expect on it.
 *
 * @internal
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Request } from "../../testing/Arbitrary.js"
import type { Target } from "../../testing/Laws.js"
import { Broken, broken, difference, quote, type Trace, turns } from "./property.js"
import { type Answer, Reader } from "./reader.js"
import type { Split } from "./sent.js"

export const connected = (target: Target, trace: Trace): Effect.Effect<Reader, Broken, Scope.Scope> =>
  Effect.suspend(() => {
    trace.waitsFor = "a connection"
    return Effect.mapBoth(target.connect, {
      onFailure: (error) => new Broken(`it could not connect: ${error}`),
      onSuccess: (peer) => new Reader(peer, trace)
    })
  })

export const send = ({ peer }: Reader, { at, bytes }: Split): Effect.Effect<void> => peer.sendSplit(bytes, at)

/** Sends, and receives at the same time: what is sent may be more than the way holds. */
export const meanwhile = <A, E>(send: Effect.Effect<void>, receive: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.zipRight(send, receive, { concurrent: true })

/** The answers to these requests, each sent when the one before is answered. */
export const answersTo = (
  target: Target,
  trace: Trace,
  requests: ReadonlyArray<{ readonly method: string; readonly bytes: Uint8Array }>
): Effect.Effect<ReadonlyArray<Answer>, Broken> =>
  Effect.scoped(
    Effect.flatMap(connected(target, trace), (reader) =>
      Effect.forEach(requests, ({ bytes, method }) =>
        meanwhile(reader.peer.send(bytes), reader.answer(method, "the answer to a request by itself"))
      )
    )
  )

export const expectAnswers = (
  reader: Reader,
  requests: ReadonlyArray<Request>,
  answers: ReadonlyArray<Answer>
): Effect.Effect<void, Broken> =>
  Effect.forEach(
    requests,
    ({ method, target }, i) => {
      const name = `the answer to request ${i + 1}, ${method} ${target}`
      const expected = answers[i]!.text
      return Effect.flatMap(reader.answer(method, name), ({ text }) =>
        text === expected ? Effect.void : broken(`${difference(expected, text)}, where ${name} should be`)
      )
    },
    { discard: true }
  )

export const expectSwitch = (reader: Reader): Effect.Effect<void, Broken> =>
  Effect.flatMap(reader.answer("GET", "the 101"), ({ head }) =>
    head.status !== 101
      ? broken(`the answer was ${head.status} ${head.statusText}, and not 101`)
      : "content-length" in head.headers || "transfer-encoding" in head.headers
        ? broken(`the 101 frames content, which it cannot have: ${quote(head.raw)}`)
        : Effect.void
  )

export const expectEcho = (reader: Reader, bytes: Uint8Array): Effect.Effect<void, Broken> =>
  reader.expect(bytes, `the echo of ${bytes.length} bytes`)

/** Done when nothing is open at the server any more. */
export const allClosed = (target: Target, trace: Trace): Effect.Effect<void> => {
  const { open } = target
  if (open === undefined) {
    return Effect.void
  }
  const wait: Effect.Effect<void> = Effect.flatMap(open, (count) => {
    trace.waitsFor = `what is open at the server (${count}) to close`
    return count === 0 ? Effect.void : Effect.zipRight(turns(1), wait)
  })
  return wait
}

/** Counts what a flow has let through, until it has let nothing through for a hundred turns of the event loop. */
export const settled = (count: () => number): Effect.Effect<number> => {
  const wait = (before: number, still: number): Effect.Effect<number> =>
    Effect.flatMap(turns(1), () => {
      const now = count()
      return now !== before ? wait(now, 0) : still === 100 ? Effect.succeed(now) : wait(now, still + 1)
    })
  return wait(-1, 0)
}
