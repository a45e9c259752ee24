/** A `SocketServer` of the platform whose sockets come from a route. */

import type * as HttpServer from "@effect/platform/HttpServer"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import type * as Socket from "@effect/platform/Socket"
import * as SocketServer from "@effect/platform/SocketServer"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import * as FiberSet from "effect/FiberSet"
import * as Scope from "effect/Scope"
import type { SwitchError, UpgradeError } from "../../UpgradeError.js"
import type { Options } from "../../WebSocket.js"
import { begin, claim } from "../switch.js"
import type { UpgradedImpl } from "../upgraded.js"
import { toSocket } from "./adapters.js"
import { open, protocolOf, upgradeOptions } from "./open.js"

type Claim = Effect.Effect<UpgradedImpl<any, "websocket">, SwitchError, Scope.Scope>

/** As the platform's socket servers do. */
const report = (cause: Cause.Cause<unknown>): Effect.Effect<void> =>
  Effect.withFiberRuntime((fiber) => {
    const level = fiber.getFiberRef(FiberRef.unhandledErrorLogLevel)
    return level._tag === "Some"
      ? Effect.logWithLevel(level.value, cause, "Unhandled error in SocketServer")
      : Effect.void
  })

export const make = (
  options: Options | undefined,
  address: HttpServer.Address
): {
  readonly httpApp: Effect.Effect<
    HttpServerResponse.HttpServerResponse,
    UpgradeError,
    HttpServerRequest.HttpServerRequest
  >
  readonly socketServer: SocketServer.SocketServer["Type"]
} => {
  const protocol = protocolOf(options)
  /** Those that run, the last of which takes what comes. */
  const runs: Array<(claim: Claim) => void> = []
  const isRun = Effect.unsafeMakeLatch(false)
  const run = <A, E, R>(handler: (socket: Socket.Socket) => Effect.Effect<A, E, R>): Effect.Effect<never, never, R> =>
    Effect.scopedWith((scope) =>
      Effect.gen(function* () {
        const sessions = yield* Scope.extend(FiberSet.make(), scope)
        const fork = yield* FiberSet.runtime(sessions)<R>()
        const take = (claim: Claim) => {
          fork(
            Effect.flatMap(claim, (upgraded) => handler(toSocket(open(upgraded)))).pipe(
              Effect.scoped,
              Effect.catchAllCause(report)
            )
          )
        }
        runs.push(take)
        isRun.unsafeOpen()
        return yield* Effect.ensuring(
          Effect.never,
          Effect.sync(() => {
            runs.splice(runs.indexOf(take), 1)
            if (runs.length === 0) {
              isRun.unsafeClose()
            }
          })
        )
      })
    )
  return {
    // A request waits for somebody to serve it as long as for any decision
    httpApp: Effect.zipRight(
      isRun.await,
      Effect.map(begin(undefined, protocol, upgradeOptions(options)), (begun) => {
        runs[runs.length - 1]?.(claim(begun) as Claim)
        return begun.response
      })
    ),
    socketServer: SocketServer.SocketServer.of({ address, run })
  }
}
