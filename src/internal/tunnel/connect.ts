/**
 * A proxy's answer to CONNECT: who may, where to, and the tunnel.
 *
 * @internal
 */
import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Protocol from "../../Protocol.js"
import type { ConnectOptions, Credentials } from "../../Tunnel.js"
import * as Upgrade from "../../Upgrade.js"
import { HandshakeRefused, NotUpgradable, type UpgradeError } from "../../UpgradeError.js"
import { parseAuthority } from "../authority.js"
import { isPublic } from "./addresses.js"
import { dial, lookupAll } from "./dial.js"
import { join } from "./join.js"

const defaultPorts: ReadonlyArray<number> = [443, 80]
const defaultTimeout = Duration.seconds(10)

const refused = (status: number, description: string, headers?: Record<string, string>) =>
  new HandshakeRefused({ protocol: Protocol.connect.token, status, description, ...(headers && { headers }) })

export const isConnect = (request: HttpServerRequest.HttpServerRequest): boolean =>
  (request.method as string) === "CONNECT"

export const connect = <R>(
  options: ConnectOptions<R>
): Effect.Effect<HttpServerResponse.HttpServerResponse, UpgradeError, HttpServerRequest.HttpServerRequest | R> =>
  Effect.scoped(
    Effect.gen(function* () {
      const request = yield* HttpServerRequest.HttpServerRequest
      if (!isConnect(request)) {
        return yield* new NotUpgradable({
          reason: "Method",
          protocols: [],
          methods: ["CONNECT"],
          description: "This is a proxy for CONNECT alone."
        })
      }
      const target = parseAuthority(request.originalUrl)
      if (target === undefined) {
        return yield* refused(400, "CONNECT needs host:port as its target, with a port between 1 and 65535.")
      }
      // Before anything is said of the target: who may not use the proxy learns nothing by it
      if (options.authorize !== undefined && !(yield* options.authorize(request, target))) {
        return yield* refused(407, "The proxy wants to know who you are.", {
          // RFC 9110 §15.5.8
          "proxy-authenticate": options.challenge ?? 'Basic realm="proxy"'
        })
      }
      const ports = options.ports ?? defaultPorts
      if (ports !== "any" && !ports.includes(target.port)) {
        return yield* refused(403, `This proxy does not connect to port ${target.port}.`)
      }
      const allow = options.allow ?? isPublic
      const socket = yield* Effect.uninterruptibleMask((restore) =>
        Effect.tap(
          restore(
            dial({
              ...target,
              name: request.originalUrl,
              resolve: options.resolve ?? lookupAll,
              allow: (address) => allow(address, target),
              timeout: options.connectTimeout ?? defaultTimeout
            })
          ),
          (socket) => Effect.addFinalizer(() => Effect.sync(() => socket.destroy()))
        )
      ).pipe(Effect.mapError(({ description, status }) => refused(status, description)))
      socket.setNoDelay(true)
      const upgraded = yield* Upgrade.upgrade(Protocol.connect)
      yield* join(upgraded, socket, options)
      return Upgrade.done
    })
  )

export const withConnect = <E, R, R2>(
  app: HttpApp.Default<E, R>,
  options: ConnectOptions<R2>
): HttpApp.Default<E | UpgradeError, R | R2> =>
  Effect.flatMap(
    HttpServerRequest.HttpServerRequest,
    (request): HttpApp.Default<E | UpgradeError, R | R2> => (isConnect(request) ? connect(options) : app)
  )

const basic = /^basic +([A-Za-z0-9+/]+={0,2}) *$/i

/** RFC 7617 §2: user-id and password, of which the first has no colon, in UTF-8. */
export const credentials = (request: HttpServerRequest.HttpServerRequest): Option.Option<Credentials> => {
  const encoded = basic.exec(request.headers["proxy-authorization"] ?? "")?.[1]
  if (encoded === undefined) {
    return Option.none()
  }
  const decoded = Buffer.from(encoded, "base64").toString()
  const colon = decoded.indexOf(":")
  return colon === -1
    ? Option.none()
    : Option.some({ username: decoded.slice(0, colon), password: Redacted.make(decoded.slice(colon + 1)) })
}
