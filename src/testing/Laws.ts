/**
 * What this library promises of every connection, as properties to be tried on an app of yours: over random requests,
 * bodies, bytes behind them, and every way to split them.
 *
 * | law | what it says |
 * |---|---|
 * | `bytes` | What follows the request is read after the switch exactly once and in order, and nothing of its body is |
 * | `oneAnswer` | Each request has one answer, in order; a 101 waits for those before it, and no HTTP follows it |
 * | `noBody` | A 101 has no content, whoever tries to give it one |
 * | `ignoredUpgrade` | An Upgrade that is not acted on changes nothing; a refusal and a CONNECT lead to no misread bytes |
 * | `scope` | When a session has ended, nothing of it is left |
 * | `hostilePeers` | A reset, a FIN or garbage at any byte ends a connection at most |
 * | `boundedMemory` | A reader that stops stops the sender |
 * | `halfClose` | A FIN ends one direction, and the other goes on |
 *
 * A `Target` says how to connect, and what the app does where: it needs a route whose session echoes, and one that is
 * ordinary. The laws look at the wire alone, and so work for servers of any kind, over memory (`Memory.connect`), a
 * port or a Unix socket (`Peer.connect`). What the wire cannot tell, the target's other fields do.
 *
 * A law is an effect that fails with `LawBroken`, whose message has the smallest counterexample that was found.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Laws, Memory } from "effect-upgrade/testing"
 *
 * export const program = Effect.gen(function*() {
 *   const { connect } = yield* Memory.Memory
 *   yield* Laws.all({ connect, protocol: "echo", switched: "/echo", ordinary: "/plain" }, { numRuns: 200 })
 * })
 * ```
 *
 * @since 0.1.0
 */

import { Buffer } from "node:buffer"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import type * as Scope from "effect/Scope"
import { type Broken, broken, check, quote, type Trace, turns } from "../internal/testing/property.js"
import * as received from "../internal/testing/received.js"
import * as sent from "../internal/testing/sent.js"
import type * as Arbitrary from "./Arbitrary.js"
import type * as Peer from "./Peer.js"

/**
 * A request that the app answers. A path alone is a GET of it.
 *
 * - `method`: default GET.
 * - `path`: with the query, if any.
 * - `headers`: fields that it needs beside Host, and the Upgrade and Connection that the laws add.
 * - `body`: whether the laws may give it a body. Default: for POST, PUT and PATCH.
 *
 * @since 0.1.0
 * @category models
 */
export interface Request {
  readonly method?: string | undefined
  readonly path: string
  readonly headers?: ReadonlyArray<Arbitrary.Field> | undefined
  readonly body?: boolean | undefined
}

/**
 * One request or several, of which the laws choose at random.
 *
 * @since 0.1.0
 * @category models
 */
export type Requests = string | Request | readonly [string | Request, ...ReadonlyArray<string | Request>]

/**
 * The app under test, seen from the wire. The laws add fields and offers of their own to the requests: what the app
 * does with those below must not depend on them.
 *
 * - `connect`: a new connection to it.
 * - `protocol`: the token that the switched requests offer.
 * - `switched`: requests that are switched to it. The session echoes every byte until the peer's FIN, and ends then.
 * - `ordinary`: requests that are answered by HTTP, whatever they offer, each time the same. The more they differ (a slow
 *   one, a large one, one that answers with its body), the more `oneAnswer` sees.
 *
 * What follows may be left out; the laws then see less.
 *
 * - `refused`: requests that offer the protocol and are answered with a 4xx.
 * - `bodied`: requests that offer the protocol, and whose handlers answer with a 101 that has content. They are answered
 *   with a 5xx.
 * - `tunnels`: whether CONNECT to `example.com:443` is switched. Default: no, and it is answered all the same.
 * - `closing`: a request whose session writes `says` and ends, without reading.
 * - `ending`: a request whose session ends its side at once (`Upgraded.end`) and reads until the peer's FIN. `read`
 *   yields what it has read, once for each such session.
 * - `open`: how much is still open at the server: sessions, connections (`UpgradeServer`'s, say), resources. It must come
 *   down to 0 when the peers have gone.
 * - `transport`: how many bytes the way there and back holds by itself, at most. Default 256 KiB, which is enough for
 *   memory; the buffers of TCP on one Linux machine come to `16 * 1024 * 1024`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Target {
  readonly connect: Effect.Effect<Peer.Peer, unknown, Scope.Scope>
  readonly protocol: string
  readonly switched: Requests
  readonly ordinary: Requests
  readonly refused?: Requests | undefined
  readonly bodied?: Requests | undefined
  readonly tunnels?: boolean | undefined
  readonly closing?: { readonly request: string | Request; readonly says: string } | undefined
  readonly ending?: { readonly request: string | Request; readonly read: Effect.Effect<Uint8Array> } | undefined
  readonly open?: Effect.Effect<number> | undefined
  readonly transport?: number | undefined
}

/**
 * How a law is tried.
 *
 * - `numRuns`: how many inputs. Default 100. `boundedMemory` takes one of fifty, since its runs are long.
 * - `seed`, `path`: to try a counterexample again: its message has both.
 * - `timeout`: how long one run may take. Default 5 s, of real time.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly numRuns?: number | undefined
  readonly seed?: number | undefined
  readonly path?: string | undefined
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * A law does not hold.
 *
 * - `law`: which.
 * - `reason`: what came, and what should have.
 * - `input`: what the peer did, line by line.
 * - `seed`, `path`: options that try it again.
 *
 * @since 0.1.0
 * @category errors
 */
export class LawBroken extends Data.TaggedError("LawBroken")<{
  readonly law: string
  readonly reason: string
  readonly input: ReadonlyArray<string>
  readonly seed: number
  readonly path: string | undefined
}> {
  /**
   * @since 0.1.0
   */
  override get message(): string {
    const { input, law, path, reason, seed } = this
    const again = JSON.stringify({ seed, path })
    return [`The law "${law}" is broken: ${reason}`, "by a peer that did this:", ...input.map((line) => `  ${line}`)]
      .concat(`Try it again with the options ${again}`)
      .join("\n")
  }
}

/**
 * A law, to be tried on a target.
 *
 * @since 0.1.0
 * @category models
 */
export type Law = (target: Target, options?: Options) => Effect.Effect<void, LawBroken>

const law =
  <A>(
    name: string,
    arbitrary: (target: Target) => FastCheck.Arbitrary<A>,
    show: (input: A) => ReadonlyArray<string>,
    run: (target: Target, input: A, trace: Trace) => Effect.Effect<void, Broken, Scope.Scope>,
    runsOf: (numRuns: number) => number = (numRuns) => numRuns
  ): Law =>
  (target, options = {}) =>
    Effect.suspend(() =>
      check(arbitrary(target), show, (input, trace) => run(target, input, trace), {
        numRuns: runsOf(options.numRuns ?? 100),
        seed: options.seed,
        path: options.path,
        timeout: Duration.toMillis(options.timeout ?? 5_000)
      })
    ).pipe(Effect.mapError((counterexample) => new LawBroken({ law: name, ...counterexample })))

/**
 * 1. What follows the request on the wire, split anywhere, is read after the switch exactly once and in order. Nothing of
 * the request's body is in it, and nothing after it is missing.
 *
 * @since 0.1.0
 * @category laws
 */
export const bytes: Law = law(
  "bytes",
  (target) =>
    FastCheck.tuple(
      sent.oneOf(target.switched, sent.offering(target.protocol)),
      sent.payload(target),
      sent.splits,
      sent.payload(target),
      sent.splits
    ).map(([request, early, splitFirst, late, splitLate]) => ({
      early,
      first: splitFirst(request.bytes, early),
      late: splitLate(late)
    })),
  ({ first, late }) => [sent.show(first), "reads the 101 and the echo", sent.show(late), "reads the echo, and ends"],
  (target, { early, first, late }, trace) =>
    Effect.gen(function* () {
      const reader = yield* received.connected(target, trace)
      yield* received.meanwhile(
        received.send(reader, first),
        Effect.zipRight(received.expectSwitch(reader), received.expectEcho(reader, early))
      )
      yield* received.meanwhile(received.send(reader, late), received.expectEcho(reader, late.bytes))
      yield* reader.peer.end
      yield* reader.end("behind the last byte of the echo")
    })
)

/**
 * 2. Each request gets exactly one answer, in order, pipelining included; a 101 is written only when all earlier answers
 * are finished, and no HTTP byte is written after it.
 *
 * An answer is compared byte for byte, but for its Date and for where its body is split into chunks, with the answer to
 * the same request by itself.
 *
 * @since 0.1.0
 * @category laws
 */
export const oneAnswer: Law = law(
  "oneAnswer",
  (target) =>
    FastCheck.tuple(
      FastCheck.array(
        sent.oneOf(target.ordinary, FastCheck.oneof(sent.offeringNothing, sent.offeringAny(target.protocol))),
        { minLength: 1, maxLength: 4 }
      ),
      sent.oneOf(target.switched, sent.offering(target.protocol)),
      sent.payload(target),
      sent.splits,
      FastCheck.boolean()
    ).map(([requests, request, early, split, late]) => ({
      requests,
      early,
      late,
      all: split(...requests.map(({ bytes }) => bytes), request.bytes, early)
    })),
  ({ all, late }) => [
    sent.show(all),
    `reads the answers, the 101 and the echo${late ? ", but only when nothing more is taken" : ""}, and ends`
  ],
  (target, { all, early, late, requests }, trace) =>
    Effect.gen(function* () {
      const answers = yield* received.answersTo(target, trace, requests)
      const reader = yield* received.connected(target, trace)
      yield* received.meanwhile(
        received.send(reader, all),
        Effect.gen(function* () {
          if (late) {
            yield* received.settled(() => reader.peer.socket.writableLength)
          }
          yield* received.expectAnswers(reader, requests, answers)
          yield* received.expectSwitch(reader)
          yield* received.expectEcho(reader, early)
        })
      )
      yield* reader.peer.end
      yield* reader.end("behind the last byte of the echo")
    })
)

/**
 * 3. No body on a 101, of any kind, by any path: behind the 101 comes what the session writes and nothing before it, and
 * a handler that gives it a body (`bodied`) is answered with a 5xx, never a 101.
 *
 * @since 0.1.0
 * @category laws
 */
export const noBody: Law = law(
  "noBody",
  (target) => {
    const switched = sent
      .oneOf(target.switched, sent.offering(target.protocol))
      .map((request) => ({ request, bodied: false }))
    const bodied =
      target.bodied === undefined
        ? []
        : [sent.oneOf(target.bodied, sent.offering(target.protocol)).map((request) => ({ request, bodied: true }))]
    return FastCheck.tuple(FastCheck.oneof(switched, ...bodied), sent.splits).map(([{ bodied, request }, split]) => ({
      request,
      all: split(request.bytes),
      bodied
    }))
  },
  ({ all }) => [sent.show(all), "reads the answer, and ends"],
  (target, { all, bodied, request }, trace) =>
    Effect.gen(function* () {
      const reader = yield* received.connected(target, trace)
      const sending = received.send(reader, all)
      if (!bodied) {
        yield* received.meanwhile(sending, received.expectSwitch(reader))
        yield* reader.peer.end
        return yield* reader.end("behind the 101, where the session wrote nothing")
      }
      const { head } = yield* received.meanwhile(sending, reader.answer(request.method))
      if (head.status < 500) {
        yield* broken(`the answer was ${head.status} ${head.statusText}, and not a 5xx: ${quote(head.raw)}`)
      }
    })
)

type Unswitched =
  | { readonly _tag: "Ignored"; readonly requests: ReadonlyArray<Arbitrary.Request>; readonly all: sent.Split }
  | { readonly _tag: "Refused"; readonly request: Arbitrary.Request; readonly all: sent.Split }
  | { readonly _tag: "Connect"; readonly all: sent.Split }

const connectRequest = Buffer.from("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")

/**
 * 4. A request whose Upgrade is not acted on is answered byte for byte as if it had not asked (Date and the bounds of
 * chunks aside), its body read, the connection kept, and the requests behind it served. One that is refused closes the
 * connection where bytes lie behind it, which may be the other protocol's; and CONNECT without a tunnel is answered, but
 * never with a 2xx.
 *
 * @since 0.1.0
 * @category laws
 */
export const ignoredUpgrade: Law = law(
  "ignoredUpgrade",
  (target) => {
    const { ordinary, protocol, refused } = target
    const behind = sent.oneOf(ordinary, sent.offeringNothing)
    const ignored: FastCheck.Arbitrary<Unswitched> = FastCheck.tuple(
      FastCheck.array(sent.oneOf(ordinary, sent.offeringAny(protocol)), { minLength: 1, maxLength: 4 }),
      sent.splits
    ).map(([requests, split]) => ({ _tag: "Ignored", requests, all: split(...requests.map(({ bytes }) => bytes)) }))
    const others: Array<FastCheck.Arbitrary<Unswitched>> = []
    if (refused !== undefined) {
      others.push(
        FastCheck.tuple(sent.oneOf(refused, sent.offering(protocol)), behind).map(([request, { bytes }]) => ({
          _tag: "Refused",
          request,
          all: sent.whole(request.bytes, bytes)
        }))
      )
    }
    if (target.tunnels !== true) {
      others.push(
        FastCheck.tuple(behind, sent.splits).map(([{ bytes }, split]) => ({
          _tag: "Connect",
          all: split(connectRequest, bytes)
        }))
      )
    }
    return FastCheck.oneof({ weight: 4, arbitrary: ignored }, ...others)
  },
  ({ all }) => [sent.show(all), "reads the answers"],
  (target, input, trace) =>
    Effect.gen(function* () {
      if (input._tag === "Ignored") {
        const answers = yield* received.answersTo(target, trace, input.requests.map(sent.withoutUpgrade))
        const reader = yield* received.connected(target, trace)
        yield* received.meanwhile(
          received.send(reader, input.all),
          received.expectAnswers(reader, input.requests, answers)
        )
        return
      }
      const reader = yield* received.connected(target, trace)
      const { head } = yield* received.meanwhile(
        received.send(reader, input.all),
        reader.answer(input._tag === "Refused" ? input.request.method : "CONNECT")
      )
      if (head.status < 400) {
        yield* broken(`the answer was ${head.status} ${head.statusText}, and not an error: ${quote(head.raw)}`)
      }
      yield* reader.over(`behind the ${head.status}, where what follows must not be read as HTTP`)
    })
)

type Leaving = "ends" | "resets the connection" | "goes away"

/**
 * 5. When a session has ended, whoever ended it, nothing of it is left: the server ends the connection too, and what the
 * target counts as `open` comes down to 0. A session that ended by itself (`closing`) has all that it wrote received,
 * whatever the peer was sending.
 *
 * @since 0.1.0
 * @category laws
 */
export const scope: Law = law(
  "scope",
  (target) => {
    const session = FastCheck.record({
      request: sent.oneOf(target.switched, sent.offering(target.protocol)),
      bytes: sent.payload(target),
      leaving: FastCheck.constantFrom<Array<Leaving>>("ends", "resets the connection", "goes away"),
      after: FastCheck.nat({ max: 20 })
    }).map(({ after, bytes, leaving, request }) => ({
      all: sent.whole(request.bytes, bytes),
      leaving,
      after,
      says: undefined
    }))
    const { closing } = target
    return closing === undefined
      ? session
      : FastCheck.oneof(
          { weight: 3, arbitrary: session },
          FastCheck.tuple(sent.oneOf(closing.request, sent.offering(target.protocol)), sent.many).map(
            ([request, bytes]) => ({
              all: sent.whole(request.bytes, bytes),
              leaving: "ends" as const,
              after: 0,
              says: Buffer.from(closing.says)
            })
          )
        )
  },
  ({ after, all, leaving, says }) => [
    sent.show(all),
    says === undefined ? `${leaving} after ${after} turns of the event loop` : "reads until the server ends"
  ],
  (target, { after, all, leaving, says }, trace) =>
    Effect.zipRight(
      Effect.scoped(
        Effect.gen(function* () {
          const reader = yield* received.connected(target, trace)
          const sending = received.send(reader, all)
          if (says !== undefined) {
            return yield* received.meanwhile(
              sending,
              Effect.gen(function* () {
                yield* received.expectSwitch(reader)
                yield* reader.expect(says, "what the session writes")
                yield* reader.end("behind what the session writes")
              })
            )
          }
          if (leaving === "ends") {
            return yield* received.meanwhile(Effect.zipRight(sending, reader.peer.end), reader.rest)
          }
          yield* Effect.forkScoped(sending)
          yield* turns(after)
          if (leaving === "resets the connection") {
            yield* reader.peer.reset
          }
        })
      ),
      received.allClosed(target, trace)
    )
)

/**
 * 6. A reset, a FIN or garbage at any byte of the exchange ends this connection at most: no uncaught exception, no
 * unhandled rejection (as far as the server runs in this process), nothing left open, and the next request is answered.
 *
 * An uncaught exception breaks any other law too. While one is tried, nobody else hears of them.
 *
 * @since 0.1.0
 * @category laws
 */
export const hostilePeers: Law = law(
  "hostilePeers",
  (target) =>
    FastCheck.record({
      before: FastCheck.array(sent.oneOf(target.ordinary, sent.offeringNothing), { maxLength: 1 }),
      request: sent.oneOf(target.switched, sent.offering(target.protocol)),
      bytes: sent.payload(target),
      probe: sent.oneOf(target.ordinary, sent.offeringNothing),
      resets: FastCheck.boolean(),
      cut: sent.place,
      inHead: FastCheck.boolean(),
      garbage: FastCheck.option(FastCheck.tuple(sent.place, FastCheck.uint8Array({ maxLength: 8 })), {
        freq: 2,
        nil: undefined
      }),
      split: sent.splits
    }).map(({ before, bytes, cut, garbage, inHead, probe, request, resets, split }) => {
      const whole = Buffer.concat([...before.map(({ bytes }) => bytes), request.bytes, bytes])
      // The offsets in the heads are the interesting ones
      const most = inHead ? Math.min(whole.length, 1000) : whole.length
      const all = whole.subarray(0, cut(most + 1))
      if (garbage !== undefined) {
        const at = garbage[0](all.length)
        all.set(garbage[1].subarray(0, all.length - at), at)
      }
      return { all: split(all), probe, resets }
    }),
  ({ all, resets }) => [
    sent.show(all),
    resets ? "resets the connection" : "ends, and reads until the server does",
    "sends an ordinary request on a new connection"
  ],
  (target, { all, probe, resets }, trace) =>
    Effect.gen(function* () {
      yield* Effect.scoped(
        Effect.gen(function* () {
          const reader = yield* received.connected(target, trace)
          const sending = received.send(reader, all)
          if (resets) {
            // It may never be taken whole: nobody reads the echo
            yield* Effect.race(
              sending,
              received.settled(() => reader.peer.socket.writableLength)
            )
            yield* reader.peer.reset
          } else {
            yield* received.meanwhile(Effect.zipRight(sending, reader.peer.end), reader.rest)
          }
        })
      )
      yield* received.allClosed(target, trace)
      yield* received.answersTo(target, trace, [probe])
    })
)

const kibibytes = (bytes: number) => `${Math.round(bytes / 1024)} KiB`

/** A connection's buffers, both ways. */
const buffers = 256 * 1024

/** What the peer holds itself: it reads ahead. */
const readAhead = 128 * 1024

/**
 * 7. A reader that stops stops the sender: a peer that sends and does not read is stopped when 256 KiB and what the
 * transport holds are on their way, and nothing of it is lost when it reads on.
 *
 * @since 0.1.0
 * @category laws
 */
export const boundedMemory: Law = law(
  "boundedMemory",
  (target) =>
    FastCheck.record({
      request: sent.oneOf(target.switched, sent.offering(target.protocol)),
      piece: FastCheck.constantFrom(64, 4, 16, 63).map((kibibytes) => kibibytes * 1024)
    }),
  ({ piece, request }) => [
    sent.show(sent.whole(request.bytes)),
    `sends pieces of ${piece} bytes and reads nothing until it is stopped`,
    "reads it all"
  ],
  (target, { piece, request }, trace) =>
    Effect.gen(function* () {
      const bound = buffers + readAhead + (target.transport ?? 256 * 1024)
      const count = Math.ceil((bound + 1024 * 1024) / piece)
      const reader = yield* received.connected(target, trace)
      yield* received.meanwhile(reader.peer.send(request.bytes), received.expectSwitch(reader))
      let taken = 0
      const flood = Effect.forEach(
        Array.from({ length: count }, (_, i) => i),
        (i) =>
          Effect.map(reader.peer.send(sent.pattern(piece, i * piece)), () => {
            taken += piece
          }),
        { discard: true }
      )
      yield* received.meanwhile(
        flood,
        Effect.gen(function* () {
          trace.waitsFor = "the server to take no more"
          yield* received.settled(() => taken)
          if (taken > bound) {
            yield* broken(`${kibibytes(taken)} were taken from a peer that reads nothing, and not ${kibibytes(bound)}`)
          }
          for (let i = 0; i < count; i++) {
            yield* reader.expect(sent.pattern(piece, i * piece), `piece ${i + 1} of the echo`)
          }
        })
      )
    }),
  (numRuns) => Math.ceil(numRuns / 50)
)

/**
 * 8. A FIN ends one direction, and the other goes on: what was sent before the peer's FIN is echoed after it, and a
 * session that has ended its side (`ending`) reads what comes until the peer's.
 *
 * @since 0.1.0
 * @category laws
 */
export const halfClose: Law = law(
  "halfClose",
  (target) => {
    const { ending, protocol, switched } = target
    const inputOf = (request: FastCheck.Arbitrary<Arbitrary.Request>, ends: boolean) =>
      FastCheck.tuple(request, sent.payload(target), sent.splits, FastCheck.boolean()).map(
        ([request, bytes, split, atOnce]) => ({ request, bytes: split(bytes), atOnce, ends })
      )
    const peerEnds = inputOf(sent.oneOf(switched, sent.offering(protocol)), false)
    return ending === undefined
      ? peerEnds
      : FastCheck.oneof(peerEnds, inputOf(sent.oneOf(ending.request, sent.offering(protocol)), true))
  },
  ({ atOnce, bytes, ends, request }) => [
    sent.show(sent.whole(request.bytes)),
    ...(ends ? ["reads the 101 and the FIN"] : atOnce ? [] : ["reads the 101"]),
    sent.show(bytes),
    "ends",
    ...(ends ? [] : [`reads ${atOnce ? "the 101, " : ""}the echo and the FIN`])
  ],
  (target, { atOnce, bytes, ends, request }, trace) =>
    Effect.gen(function* () {
      const reader = yield* received.connected(target, trace)
      const { peer } = reader
      const last = Effect.zipRight(received.send(reader, bytes), peer.end)
      if (ends) {
        yield* received.meanwhile(peer.send(request.bytes), received.expectSwitch(reader))
        yield* reader.end("of a session that ends at once")
        yield* last
        trace.waitsFor = "the session to read until the FIN"
        const read = Buffer.from(yield* target.ending!.read)
        return yield* read.equals(bytes.bytes)
          ? Effect.void
          : broken(`the session read ${quote(read)}, and not ${quote(bytes.bytes)}`)
      }
      const echoed = Effect.zipRight(
        received.expectEcho(reader, bytes.bytes),
        reader.end("behind the last byte of the echo")
      )
      if (atOnce) {
        return yield* received.meanwhile(
          Effect.zipRight(peer.send(request.bytes), last),
          Effect.zipRight(received.expectSwitch(reader), echoed)
        )
      }
      yield* received.meanwhile(peer.send(request.bytes), received.expectSwitch(reader))
      yield* received.meanwhile(last, echoed)
    })
)

/**
 * All laws by their names, to make a test of each.
 *
 * @since 0.1.0
 * @category laws
 */
export const laws = { bytes, oneAnswer, noBody, ignoredUpgrade, scope, hostilePeers, boundedMemory, halfClose }

/**
 * All laws, one after the other, up to the first that is broken.
 *
 * @since 0.1.0
 * @category laws
 */
export const all: Law = (target, options) =>
  Effect.forEach(Object.values(laws), (law) => law(target, options), { discard: true })
