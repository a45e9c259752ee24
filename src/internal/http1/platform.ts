/**
 * `HttpServerRequest.upgrade` of the platform, for HttpApi, RpcServer and whoever uses it: the platform's `Socket` over a
 * websocket of this library, on the connection that it has guarded up to there.
 */

import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as Socket from "@effect/platform/Socket"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { UpgradeError } from "../../UpgradeError.js"
import type { Options } from "../../WebSocket.js"
import { direct } from "../switch.js"
import type { UpgradedImpl } from "../upgraded.js"
import { lazySocket } from "../websocket/adapters.js"
import { open, protocolOf, upgradeOptions } from "../websocket/open.js"
import { isToken, withoutWhitespace } from "./offers.js"

/**
 * The handshake was refused. Whether the app fails or dies of it, the client is told what any client is told, and the
 * error says nothing less to an app that has its own answer.
 */
class NotOpened extends Socket.SocketGenericError {
  constructor(private readonly refused: UpgradeError) {
    super({ reason: "Open", cause: refused })
  }
  override get message(): string {
    return this.refused.message
  }
  [HttpServerRespondable.symbol]() {
    return HttpServerRespondable.toResponse(this.refused)
  }
}

/** Without a list of its own a server agrees to what the client likes best: a browser would not go on with none. */
const optionsFor = (request: HttpServerRequest.HttpServerRequest, options: Options): Options => {
  const offered = request.headers["sec-websocket-protocol"]
  if (offered === undefined || options.subprotocols !== undefined) {
    return options
  }
  const first = withoutWhitespace(offered.split(",", 1)[0]!)
  return isToken(first) ? { ...options, subprotocols: [first] } : options
}

const acquire = (request: HttpServerRequest.HttpServerRequest, server: Options) =>
  Effect.suspend(() => {
    const options = optionsFor(request, server)
    return direct(undefined, protocolOf(options), upgradeOptions(options)) as Effect.Effect<
      UpgradedImpl<any, "websocket">,
      UpgradeError,
      HttpServerRequest.HttpServerRequest | Scope.Scope
    >
  }).pipe(
    Effect.map(open),
    Effect.mapError((error) => new NotOpened(error)),
    Effect.provideService(HttpServerRequest.HttpServerRequest, request)
  )

/**
 * Gives the platform's request what its own server would have constructed it with. The field is the platform's own, and
 * private: it goes along when the request is modified, which a wrapper round the request would have to imitate.
 */
export const provideUpgrade = (request: HttpServerRequest.HttpServerRequest, options: Options): void => {
  ;(request as unknown as { upgradeEffect: Effect.Effect<Socket.Socket> }).upgradeEffect = Effect.suspend(() =>
    lazySocket(acquire(request, options))
  )
}
