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

import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as internal from "../internal/testing/laws.js"
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
 * - `timeout`: how long one run may take. Default 10 s, of real time.
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
  (name: string, property: internal.Property): Law =>
  (target, options = {}) =>
    Effect.mapError(property(target, options), (counterexample) => new LawBroken({ law: name, ...counterexample }))

/**
 * 1. What follows the request on the wire, split anywhere, is read after the switch exactly once and in order. Nothing of
 * the request's body is in it, and nothing after it is missing.
 *
 * @since 0.1.0
 * @category laws
 */
export const bytes: Law = law("bytes", internal.bytes)

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
export const oneAnswer: Law = law("oneAnswer", internal.oneAnswer)

/**
 * 3. No body on a 101, of any kind, by any path: behind the 101 comes what the session writes and nothing before it, and
 * a handler that gives it a body (`bodied`) is answered with a 5xx, never a 101.
 *
 * @since 0.1.0
 * @category laws
 */
export const noBody: Law = law("noBody", internal.noBody)

/**
 * 4. A request whose Upgrade is not acted on is answered byte for byte as if it had not asked (Date and the bounds of
 * chunks aside), its body read, the connection kept, and the requests behind it served. One that is refused closes the
 * connection where bytes lie behind it, which may be the other protocol's; and CONNECT without a tunnel is answered, but
 * never with a 2xx.
 *
 * @since 0.1.0
 * @category laws
 */
export const ignoredUpgrade: Law = law("ignoredUpgrade", internal.ignoredUpgrade)

/**
 * 5. When a session has ended, whoever ended it, nothing of it is left: the server ends the connection too, and what the
 * target counts as `open` comes down to 0. A session that ended by itself (`closing`) has all that it wrote received,
 * whatever the peer was sending.
 *
 * @since 0.1.0
 * @category laws
 */
export const scope: Law = law("scope", internal.scope)

/**
 * 6. A reset, a FIN or garbage at any byte of the exchange ends this connection at most: no uncaught exception, no
 * unhandled rejection (as far as the server runs in this process), nothing left open, and the next request is answered.
 *
 * An uncaught exception breaks any other law too. While one is tried, nobody else hears of them.
 *
 * @since 0.1.0
 * @category laws
 */
export const hostilePeers: Law = law("hostilePeers", internal.hostilePeers)

/**
 * 7. A reader that stops stops the sender: a peer that sends and does not read is stopped when 256 KiB and what the
 * transport holds are on their way, and nothing of it is lost when it reads on.
 *
 * @since 0.1.0
 * @category laws
 */
export const boundedMemory: Law = law("boundedMemory", internal.boundedMemory)

/**
 * 8. A FIN ends one direction, and the other goes on: what was sent before the peer's FIN is echoed after it, and a
 * session that has ended its side (`ending`) reads what comes until the peer's.
 *
 * @since 0.1.0
 * @category laws
 */
export const halfClose: Law = law("halfClose", internal.halfClose)

/**
 * All laws by their names, to make a test of each.
 *
 * @example
 * ```ts
 * import { it } from "@effect/vitest"
 * import { Laws, Peer } from "effect-upgrade/testing"
 *
 * // A server in another process, of whatever kind
 * const target: Laws.Target = {
 *   connect: Peer.connect({ port: 3000 }),
 *   protocol: "echo",
 *   switched: "/echo",
 *   ordinary: ["/", { method: "POST", path: "/form" }],
 *   transport: 16 * 1024 * 1024
 * }
 *
 * for (const [name, law] of Object.entries(Laws.laws)) {
 *   it.live(name, () => law(target, { numRuns: 200 }))
 * }
 * ```
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
