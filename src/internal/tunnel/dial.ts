/**
 * From a name to a socket: resolved once, and the addresses that were found are those that are dialled.
 *
 * @internal
 */
import { lookup } from "node:dns"
import { connect, type Socket } from "node:net"
import * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

/** Why there is no socket: the status of the answer that says so, and the words. */
export class Unreachable {
  readonly _tag = "Unreachable"
  constructor(
    readonly status: 403 | 502 | 504,
    readonly description: string
  ) {}
}

/** RFC 8305 §5: how long an address is tried alone. */
const attemptDelay = "250 millis"

/** What a name may cost: whoever asks for it may also be who fills it with addresses. */
const maxAddresses = 8

const codeOf = (cause: unknown): string =>
  typeof cause === "object" && cause !== null && "code" in cause ? ` (${String(cause.code)})` : ""

/** All addresses of a name, in the order of the system's preference (RFC 6724). */
export const lookupAll = (host: string): Effect.Effect<ReadonlyArray<string>, unknown> =>
  Effect.async((resume) => {
    lookup(host, { all: true, verbatim: true }, (error, addresses) =>
      resume(error === null ? Effect.succeed(addresses.map(({ address }) => address)) : Effect.fail(error))
    )
  })

const ignore = () => {}

const attempt = (address: string, port: number, opened: Set<Socket>): Effect.Effect<Socket, unknown> =>
  Effect.async((resume) => {
    const socket = connect({ host: address, port, allowHalfOpen: true })
    opened.add(socket)
    // Heard from the first tick to the last, whoever has the socket
    socket.on("error", ignore)
    socket.once("error", (error) => resume(Effect.fail(error)))
    socket.once("connect", () => resume(Effect.succeed(socket)))
  })

/** One address after the other, and the next one also while the one before has not answered in time (RFC 8305 §5). */
const attempts = (
  [address, ...others]: ReadonlyArray<string>,
  port: number,
  opened: Set<Socket>
): Effect.Effect<Socket, unknown> => {
  const first = attempt(address!, port, opened)
  if (others.length === 0) {
    return first
  }
  return Effect.suspend(() => {
    const failed = Effect.unsafeMakeLatch(false)
    return Effect.race(
      Effect.tapError(first, () => failed.open),
      Effect.zipRight(
        Effect.raceFirst(Effect.sleep(attemptDelay), failed.await),
        Effect.suspend(() => attempts(others, port, opened))
      )
    )
  })
}

const timedOut = new Set(["ETIMEDOUT", "ESOCKETTIMEDOUT"])

/** Connects to the first of the addresses that answers. What was tried beside it is destroyed. */
const dialAny = (addresses: ReadonlyArray<string>, port: number, name: string): Effect.Effect<Socket, Unreachable> =>
  Effect.suspend(() => {
    const opened = new Set<Socket>()
    const destroyBut = (kept?: Socket) =>
      Effect.sync(() => {
        for (const socket of opened) {
          if (socket !== kept) {
            socket.destroy()
          }
        }
      })
    return attempts(addresses.slice(0, maxAddresses), port, opened).pipe(
      Effect.tap((socket) => destroyBut(socket)),
      Effect.onError(() => destroyBut()),
      Effect.catchAllCause((cause) => {
        const [error] = Cause.failures(cause)
        const code = codeOf(error)
        return Cause.isInterruptedOnly(cause)
          ? Effect.interrupt
          : Effect.fail(
              new Unreachable(timedOut.has(code.slice(2, -1)) ? 504 : 502, `${name} cannot be reached${code}.`)
            )
      })
    )
  })

/** What decides where a dial goes. */
export interface Route {
  readonly host: string
  readonly port: number
  /** The target as the client or the configuration names it, for messages. */
  readonly name: string
  readonly resolve: (host: string) => Effect.Effect<ReadonlyArray<string>, unknown>
  readonly allow: (address: string) => boolean
  readonly timeout: Duration.DurationInput
}

/** The name is resolved once, and only its addresses that are allowed are dialled: what was checked is what is used. */
export const dial = ({ allow, host, name, port, resolve, timeout }: Route): Effect.Effect<Socket, Unreachable> =>
  resolve(host).pipe(
    Effect.mapError((cause) => new Unreachable(502, `${name} cannot be resolved${codeOf(cause)}.`)),
    Effect.flatMap((addresses) => {
      const allowed = addresses.filter(allow)
      return addresses.length === 0
        ? Effect.fail(new Unreachable(502, `${name} cannot be resolved: it has no address.`))
        : allowed.length === 0
          ? Effect.fail(new Unreachable(403, `${name} is not where this proxy may connect to.`))
          : dialAny(allowed, port, name)
    }),
    Effect.timeoutFail({
      duration: timeout,
      onTimeout: () => new Unreachable(504, `${name} did not answer in time.`)
    })
  )
