/**
 * One request of a client over a wire, up to the head of its answer; and what the answers mean.
 *
 * Sending and reading go on at the same time, so that an early answer is seen: a refusal stops the sending, and a 101 to
 * a request that is not yet whole is a mismatch (RFC 9110 §7.8). What arrived behind the head goes back to the wire.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Protocol } from "../../Protocol.js"
import {
  type ConnectionError,
  ConnectionLost,
  type InvalidRequest,
  ProtocolMismatch,
  UpgradeTimeout
} from "../../UpgradeError.js"
import type { Wire } from "../duplex/wire.js"
import { type Message, type Progress, send } from "./clientRequest.js"
import { type ResponseHead, ResponseHeadReader } from "./clientResponse.js"
import { isProtocolToken, listElements, listIncludes, matches, parseOffers } from "./offers.js"

/** How many interim responses may come before the final one. */
const maxInterim = 32

const mismatch = (protocol: string, description: string) => new ProtocolMismatch({ protocol, description })

const receiveHead = (wire: Wire, protocol: string): Effect.Effect<ResponseHead, ConnectionLost | ProtocolMismatch> => {
  const lost = (description: string) => Effect.fail(new ConnectionLost({ protocol, description }))
  let interim = 0
  let reader = new ResponseHeadReader()
  const receive: Effect.Effect<ResponseHead, ConnectionLost | ProtocolMismatch> = Effect.matchEffect(wire.pullOrEnd(), {
    onFailure: (error: ConnectionError) => lost(error.message),
    onSuccess: (pieces) => {
      if (pieces === undefined) {
        return lost(
          reader.begun ? "the server ended in the middle of its answer." : "the server ended before it had answered."
        )
      }
      const queue = [...pieces]
      while (queue.length > 0) {
        const piece = queue.shift()!
        const taken = reader.write(piece)
        if (reader.error !== undefined) {
          return Effect.fail(mismatch(protocol, `The answer is no HTTP/1.1 response: ${reader.error}.`))
        }
        const { head } = reader
        if (head === undefined) {
          continue
        }
        queue.unshift(piece.subarray(taken))
        if (head.status >= 200 || head.status === 101) {
          while (queue.length > 0) {
            wire.unread(queue.pop()!)
          }
          return Effect.succeed(head)
        }
        // RFC 9110 §15.2: a client parses those that it did not expect, and ignores them
        if (++interim > maxInterim) {
          return Effect.fail(mismatch(protocol, `More than ${maxInterim} interim responses came before an answer.`))
        }
        reader = new ResponseHeadReader()
      }
      return receive
    }
  })
  return receive
}

export interface Answer {
  readonly head: ResponseHead
  /** Whether the socket had been given the whole request when the answer came. */
  readonly sent: boolean
}

/** Sends a request, and yields the head of the final answer, or of a 101. */
export const exchange = (
  wire: Wire,
  message: Message,
  protocol: string,
  headTimeout: number
): Effect.Effect<Answer, UpgradeTimeout | ConnectionLost | ProtocolMismatch | InvalidRequest> =>
  Effect.suspend(() => {
    const progress: Progress = { sent: false }
    // The time of the answer begins when the request is sent. A server that is gone tells the reader why.
    const sending = Effect.catchTag(send(wire, message, progress), "ConnectionError", () => Effect.never).pipe(
      Effect.zipRight(
        headTimeout === Infinity
          ? Effect.never
          : Effect.delay(
              Effect.fail(new UpgradeTimeout({ stage: "Head", millis: headTimeout })),
              Duration.millis(headTimeout)
            )
      )
    )
    return Effect.map(Effect.raceFirst(receiveHead(wire, protocol), sending), (head) => ({ head, sent: progress.sent }))
  })

/** What would make a switch of an answer that is none, or not a right one: RFC 9110 §7.8, §8.6, §15.2.2. */
const wrongSwitch = (
  { head, sent }: Answer,
  offered: ReadonlyArray<Protocol.Any>
): { readonly description: string } | Protocol.Any => {
  const { headers } = head
  if (head.minor === 0) {
    return { description: "A 101 came in HTTP/1.0, which knows none (RFC 9110 §15.2)." }
  }
  if (!sent) {
    return { description: "A 101 came before the request was sent (RFC 9110 §7.8)." }
  }
  for (const name of ["content-length", "transfer-encoding"]) {
    if (name in headers) {
      return {
        description: `The 101 has content (${name}: ${headers[name]}); it must end with its head (RFC 9110 §8.6).`
      }
    }
  }
  if (!listIncludes(headers.connection, "upgrade")) {
    return {
      description: `The 101 does not list upgrade in Connection, but ${headers.connection ?? "nothing"} (RFC 9110 §7.8).`
    }
  }
  const elements = headers.upgrade === undefined ? [] : listElements(headers.upgrade)
  const named = parseOffers(headers.upgrade)
  const chosen = offered.filter((protocol) => named.some((offer) => matches(offer, protocol.name, protocol.version)))
  const [protocol] = chosen
  // RFC 9110 §7.8: layers are listed from below, so TLS/1.0 comes with the HTTP/1.1 that is spoken over it (RFC 2817 §3.3)
  const others = elements.filter(
    (element) =>
      !isProtocolToken(element) ||
      (element !== "HTTP/1.1" &&
        !parseOffers(element).some((offer) => matches(offer, protocol?.name ?? "", protocol?.version)))
  )
  return protocol === undefined || chosen.length > 1 || others.length > 0
    ? {
        description: `The 101 switches to ${headers.upgrade ?? "no protocol"}, but the request offered ${offered
          .map(({ token }) => token)
          .join(", ")} (RFC 9110 §7.8).`
      }
    : protocol
}

/** The protocol that a 101 switches to. */
export const switched = (
  answer: Answer,
  message: Message,
  offered: ReadonlyArray<Protocol.Any>
): Effect.Effect<Protocol.Any, ProtocolMismatch> => {
  const found = wrongSwitch(answer, offered)
  return "description" in found
    ? Effect.fail(mismatch(offered.map(({ token }) => token).join(", "), found.description))
    : Effect.as(found.verify({ status: answer.head.status, headers: answer.head.headers }, message.fields), found)
}
