/**
 * Two connections made one, and the two places where that is needed: a proxy that answers CONNECT, and one that stands in
 * front of a backend.
 *
 * ```
 *   connect        client ──CONNECT host:443──▶ this server ──TCP──▶ the host it named, if it may
 *   reverseProxy   client ──any request──────▶ this server ──the same request──▶ the backend
 *   join                     a ◀──────────────── bytes ────────────────▶ b
 * ```
 *
 * Nothing here knows what the bytes mean. A FIN of one side is a FIN for the other, which may go on sending; a reset is a
 * reset; a side that does not read stops the one that writes.
 *
 * @since 0.1.0
 */

import type { Duplex } from "node:stream"
import type * as Chunk from "effect/Chunk"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as internal from "./internal/tunnel/join.js"
import { isUpgraded, type Upgraded } from "./Upgraded.js"

/**
 * A bare socket and the bytes that were read from it before, as `Upgraded.detach` yields them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Parts {
  readonly socket: Duplex
  readonly leftover: Chunk.Chunk<Uint8Array>
}

/**
 * What can be one end of a tunnel. An `Upgraded` stays its Scope's; a bare Duplex, with what was left over or without, is
 * the tunnel's from then on, which destroys it unless both directions ended in order.
 *
 * @since 0.1.0
 * @category models
 */
export type Joinable = Upgraded | Duplex | Parts

/**
 * Why a tunnel ended.
 *
 * - `"Ended"`: both sides sent their FIN, and everything was passed on.
 * - `"Reset"`: one side was lost, by a reset or any other error, or was closed at this end; the other was reset.
 * - `"IdleTimeout"`, `"HalfClosedTimeout"`: nothing moved for that long; both were destroyed.
 *
 * @since 0.1.0
 * @category models
 */
export type Reason = "Ended" | "Reset" | "IdleTimeout" | "HalfClosedTimeout"

/**
 * What went through a tunnel: `sent` are the bytes from `a` to `b`, `received` those from `b` to `a`, leftovers included.
 *
 * @since 0.1.0
 * @category models
 */
export interface Joined {
  readonly sent: number
  readonly received: number
  readonly reason: Reason
}

/**
 * How long a tunnel may rest. `Duration.infinity` for ever.
 *
 * - `idleTimeout` (1 h): how long nothing may move, either way, while both directions are open. The timeout of an `Upgraded`
 *   itself does not run in a tunnel.
 * - `halfClosedTimeout` (as `idleTimeout`): the same, once one direction has ended. A peer that has gone without a word
 *   looks like one that only listens: this is what it can hold.
 *
 * @since 0.1.0
 * @category models
 */
export interface JoinOptions {
  readonly idleTimeout?: Duration.DurationInput | undefined
  readonly halfClosedTimeout?: Duration.DurationInput | undefined
}

const isJoinable = (u: unknown): u is Joinable =>
  isUpgraded(u) || (Predicate.isObject(u) && ("leftover" in u || "pipe" in u))

/**
 * Passes everything that comes from `a` on to `b`, and from `b` to `a`, until both have ended: what was left over first,
 * each direction's FIN by itself, with backpressure, a reset as a reset.
 *
 * It does not fail: `reason` tells how it ended. Whatever that was but `"Ended"`, both sockets are destroyed by then. The
 * bytes go from socket to socket, in their own callbacks; nobody else can read or write an `Upgraded` that was joined.
 * Interrupted, it stops: an `Upgraded` is closed by its Scope then, and a bare Duplex is destroyed.
 *
 * TCP alone can reset: over TLS and Unix sockets a reset is passed on by destroying the socket, without TLS's farewell.
 *
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Protocol, Tunnel, Upgrade } from "effect-upgrade"
 * import { connect } from "node:net"
 *
 * // Whoever upgrades to "ssh" speaks to the SSH server of this machine.
 * export const ssh = Upgrade.onUpgrade(Protocol.raw("ssh"), (upgraded) =>
 *   Effect.suspend(() => Tunnel.join(upgraded, connect(22, "127.0.0.1"))).pipe(
 *     Effect.tap(({ reason, received, sent }) => Effect.log(`${reason}: ${sent} bytes there, ${received} back`))
 *   ))
 * ```
 *
 * @since 0.1.0
 * @category joining
 */
export const join: {
  (b: Joinable, options?: JoinOptions | undefined): (a: Joinable) => Effect.Effect<Joined>
  (a: Joinable, b: Joinable, options?: JoinOptions | undefined): Effect.Effect<Joined>
} = (...args: ReadonlyArray<any>): any =>
  isJoinable(args[1]) ? internal.join(args[0], args[1], args[2]) : (a: Joinable) => internal.join(a, args[0], args[1])
