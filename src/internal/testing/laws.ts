/**
 * The laws: for each what a peer does, how that is told, and what must come of it. What they say is in `testing/Laws`.
 *
 * @internal
 */
import { Buffer } from "node:buffer"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import type * as Scope from "effect/Scope"
import type * as Arbitrary from "../../testing/Arbitrary.js"
import type { Options, Target } from "../../testing/Laws.js"
import { type Broken, broken, type Counterexample, check, quote, type Trace, turns } from "./property.js"
import * as received from "./received.js"
import * as sent from "./sent.js"

export type Property = (target: Target, options: Options) => Effect.Effect<void, Counterexample>

const property =
  <A>(
    arbitrary: (target: Target) => FastCheck.Arbitrary<A>,
    show: (input: A) => ReadonlyArray<string>,
    run: (target: Target, input: A, trace: Trace) => Effect.Effect<void, Broken, Scope.Scope>,
    runsOf: (numRuns: number) => number = (numRuns) => numRuns
  ): Property =>
  (target, options) =>
    Effect.suspend(() =>
      check(arbitrary(target), show, (input, trace) => run(target, input, trace), {
        numRuns: runsOf(options.numRuns ?? 100),
        seed: options.seed,
        path: options.path,
        timeout: Duration.toMillis(options.timeout ?? 10_000)
      })
    )

export const bytes = property(
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

export const oneAnswer = property(
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

export const noBody = property(
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

export const ignoredUpgrade = property(
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

export const scope = property(
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

export const hostilePeers = property(
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

export const boundedMemory = property(
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

export const halfClose = property(
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
