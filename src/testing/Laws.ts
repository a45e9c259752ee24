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
import { type Broken, broken, check, difference, quote, type Trace } from "../internal/testing/property.js"
import { type Answer, connecting, Reader } from "../internal/testing/reader.js"
import * as Unhandled from "../internal/testing/unhandled.js"
import * as Arbitrary from "./Arbitrary.js"
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

// ------------------------------------------------------------------------------------------------------ what is sent

type Sent = Arbitrary.Request

/** Bytes, and where they are split. */
interface Split {
  readonly bytes: Uint8Array
  readonly at: ReadonlyArray<number>
}

const ascii = (text: string): Uint8Array => Buffer.from(text, "latin1")

const listOf = (requests: Requests): ReadonlyArray<Request> =>
  (Array.isArray(requests) ? (requests as ReadonlyArray<string | Request>) : [requests as string | Request]).map(
    (request) => (typeof request === "string" ? { path: request } : request)
  )

const noBody: Arbitrary.Body = { headers: [], bytes: new Uint8Array(0), content: new Uint8Array(0), trailers: [] }

const withBody = new Set(["POST", "PUT", "PATCH"])

const oneOf = (
  requests: Requests,
  fields: FastCheck.Arbitrary<ReadonlyArray<Arbitrary.Field>>
): FastCheck.Arbitrary<Sent> =>
  FastCheck.oneof(
    ...listOf(requests).map(({ body, headers = [], method = "GET", path }) =>
      Arbitrary.request({
        methods: [method],
        target: FastCheck.constant(path),
        headers: fields.map((fields) => [...headers, ...fields]),
        body:
          (body ?? withBody.has(method))
            ? FastCheck.oneof({ withCrossShrink: true }, FastCheck.constant(noBody), Arbitrary.body())
            : FastCheck.constant(noBody)
      })
    )
  )

// In use with protocols of their own: a server may take them before the target's
const taken = new Set(["websocket", "echo"])

/** The fields of a request that offers the protocol, sometimes among others. */
const offering = (protocol: string): FastCheck.Arbitrary<ReadonlyArray<Arbitrary.Field>> => {
  const [name = protocol, version] = protocol.split("/")
  const others = FastCheck.array(
    Arbitrary.offer.filter((other) => !taken.has(other.name.toLowerCase()) && other.name !== name),
    { maxLength: 3 }
  )
  return Arbitrary.upgradeFields(
    Arbitrary.upgrade(
      FastCheck.tuple(others, FastCheck.nat({ max: 3 })).map(([others, at]) => [
        ...others.slice(0, at),
        { name, version, token: protocol },
        ...others.slice(at)
      ])
    )
  )
}

/** The fields of a request that offers something, of which nothing may come. */
const offeringAny = (protocol: string): FastCheck.Arbitrary<ReadonlyArray<Arbitrary.Field>> =>
  FastCheck.oneof(Arbitrary.upgradeFields(), offering(protocol))

const offeringNothing: FastCheck.Arbitrary<ReadonlyArray<Arbitrary.Field>> = FastCheck.constant([])

/** Bytes of the other protocol: few and of any value, many, or those of a request, which must not be read as one. */
const payload = (target: Target): FastCheck.Arbitrary<Uint8Array> =>
  FastCheck.oneof(
    { withCrossShrink: true },
    { weight: 6, arbitrary: Arbitrary.payload(64) },
    { weight: 2, arbitrary: oneOf(target.ordinary, offeringNothing).map(({ bytes }) => bytes) },
    { weight: 1, arbitrary: FastCheck.integer({ min: 1000, max: 200_000 }).map(pattern) }
  )

/** Bytes that repeat late, so that each place in them is recognised. */
const pattern = (length: number): Uint8Array => {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) {
    bytes[i] = (i % 251) ^ (i >> 11)
  }
  return bytes
}

const splitted = (bytes: Uint8Array): FastCheck.Arbitrary<Split> =>
  Arbitrary.splits(bytes.length).map((at) => ({ bytes, at }))

const splitsOf = (...pieces: ReadonlyArray<Uint8Array>): FastCheck.Arbitrary<Split> => splitted(Buffer.concat(pieces))

const showSent = ({ at, bytes }: Split): string =>
  `sends ${quote(bytes)}${at.length === 0 ? "" : at.length > 20 ? ", every byte alone" : `, split before the bytes ${at.join(", ")}`}`

/** The same request, without its Upgrade field. */
const withoutUpgrade = ({ bytes }: Sent): Uint8Array => {
  const text = Buffer.from(bytes).toString("latin1")
  const end = text.indexOf("\r\n\r\n")
  const lines = text.slice(0, end).split("\r\n")
  return ascii(lines.filter((line) => !/^upgrade:/i.test(line)).join("\r\n") + text.slice(end))
}

// -------------------------------------------------------------------------------------------------- what is received

const connected = (target: Target, trace: Trace): Effect.Effect<Reader, Broken, Scope.Scope> => {
  trace.waitsFor = "a connection"
  return Effect.map(connecting(target.connect), (peer) => new Reader(peer, trace))
}

const sent = (reader: Reader, { at, bytes }: Split): Effect.Effect<void> => reader.peer.sendSplit(bytes, at)

/** Sends, and receives at the same time: what is sent may be more than the way holds. */
const meanwhile = <A, E>(send: Effect.Effect<void>, receive: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.zipRight(send, receive, { concurrent: true })

/** The answers to these requests, each sent when the one before is answered. */
const answersTo = (
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

const expectAnswers = (
  reader: Reader,
  requests: ReadonlyArray<Sent>,
  answers: ReadonlyArray<Answer>
): Effect.Effect<void, Broken> =>
  Effect.forEach(
    requests,
    ({ method, target }, i) => {
      const name = `the answer to request ${i + 1}, ${method} ${target}`
      return Effect.flatMap(reader.answer(method, name), ({ text }) =>
        text === answers[i]!.text
          ? Effect.void
          : broken(`${difference(answers[i]!.text, text)}, where ${name} should be`)
      )
    },
    { discard: true }
  )

const expectSwitch = (reader: Reader): Effect.Effect<void, Broken> =>
  Effect.flatMap(reader.answer("GET", "the 101"), ({ head }) =>
    head.status !== 101
      ? broken(`the answer was ${head.status} ${head.statusText}, and not 101`)
      : "content-length" in head.headers || "transfer-encoding" in head.headers
        ? broken(`the 101 frames content, which it cannot have: ${quote(head.raw)}`)
        : Effect.void
  )

const expectEcho = (reader: Reader, bytes: Uint8Array): Effect.Effect<void, Broken> =>
  reader.expect(bytes, `the echo of ${bytes.length} bytes`)

const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** Done when nothing is open at the server any more. */
const allClosed = (target: Target, trace: Trace): Effect.Effect<void> => {
  const { open } = target
  if (open === undefined) {
    return Effect.void
  }
  const wait: Effect.Effect<void> = Effect.flatMap(open, (count) => {
    trace.waitsFor = `what is open at the server (${count}) to close`
    return count === 0 ? Effect.void : Effect.zipRight(turn, wait)
  })
  return wait
}

// ------------------------------------------------------------------------------------------------------------ the laws

const law = <A>(
  name: string,
  arbitrary: (target: Target) => FastCheck.Arbitrary<A>,
  show: (input: A) => ReadonlyArray<string>,
  run: (target: Target, input: A, trace: Trace) => Effect.Effect<void, Broken, Scope.Scope>,
  runsOf: (numRuns: number) => number = (numRuns) => numRuns
) => {
  return (target: Target, options: Options = {}): Effect.Effect<void, LawBroken> =>
    Effect.suspend(() =>
      check(arbitrary(target), show, (input, trace) => run(target, input, trace), {
        numRuns: runsOf(options.numRuns ?? 100),
        seed: options.seed,
        path: options.path,
        timeout: Duration.toMillis(options.timeout ?? 5_000)
      })
    ).pipe(Effect.mapError((counterexample) => new LawBroken({ law: name, ...counterexample })))
}

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
      oneOf(target.switched, offering(target.protocol)),
      payload(target),
      payload(target).chain(splitted)
    ).chain(([request, early, late]) => splitsOf(request.bytes, early).map((first) => ({ first, early, late }))),
  ({ first, late }) => [showSent(first), "waits for the 101", showSent(late), "ends when all has come back"],
  (target, { early, first, late }, trace) =>
    Effect.gen(function* () {
      const reader = yield* connected(target, trace)
      yield* meanwhile(sent(reader, first), Effect.zipRight(expectSwitch(reader), expectEcho(reader, early)))
      yield* meanwhile(sent(reader, late), expectEcho(reader, late.bytes))
      yield* reader.peer.end
      yield* reader.end("behind the last byte of the echo")
    })
)

/**
 * 2. Each request gets exactly one answer, in order, pipelining included; a 101 is written only when all earlier answers
 * are finished, and no HTTP byte is written after it.
 *
 * An answer is compared byte for byte, but for its Date, with the answer to the same request by itself.
 *
 * @since 0.1.0
 * @category laws
 */
export const oneAnswer: Law = law(
  "oneAnswer",
  (target) =>
    FastCheck.tuple(
      FastCheck.array(oneOf(target.ordinary, FastCheck.oneof(offeringNothing, offeringAny(target.protocol))), {
        minLength: 1,
        maxLength: 4
      }),
      oneOf(target.switched, offering(target.protocol)),
      payload(target)
    ).chain(([requests, request, early]) =>
      splitsOf(...requests.map(({ bytes }) => bytes), request.bytes, early).map((all) => ({ requests, early, all }))
    ),
  ({ all }) => [showSent(all), "ends when all is answered"],
  (target, { all, early, requests }, trace) =>
    Effect.gen(function* () {
      const answers = yield* answersTo(target, trace, requests)
      const reader = yield* connected(target, trace)
      yield* meanwhile(
        sent(reader, all),
        Effect.gen(function* () {
          yield* expectAnswers(reader, requests, answers)
          yield* expectSwitch(reader)
          yield* expectEcho(reader, early)
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
export const noBodyOn101: Law = law(
  "noBodyOn101",
  (target) => {
    const switched = oneOf(target.switched, offering(target.protocol)).map((request) => ({ request, bodied: false }))
    const bodied =
      target.bodied === undefined
        ? []
        : [oneOf(target.bodied, offering(target.protocol)).map((request) => ({ request, bodied: true }))]
    return FastCheck.oneof(switched, ...bodied).chain(({ bodied, request }) =>
      splitsOf(request.bytes).map((all) => ({ request, all, bodied }))
    )
  },
  ({ all }) => [showSent(all), "ends"],
  (target, { all, bodied, request }, trace) =>
    Effect.gen(function* () {
      const reader = yield* connected(target, trace)
      if (bodied) {
        const { head } = yield* meanwhile(sent(reader, all), reader.answer(request.method))
        return yield* head.status < 500
          ? broken(`the answer was ${head.status} ${head.statusText}, and not a 5xx: ${quote(head.raw)}`)
          : Effect.void
      }
      yield* meanwhile(sent(reader, all), expectSwitch(reader))
      yield* reader.peer.end
      yield* reader.end("behind the 101 of a session that wrote nothing")
    })
)
