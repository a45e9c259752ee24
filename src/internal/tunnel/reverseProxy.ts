/**
 * A server in front of another: each request is asked of the backend, and the answer given back; a switch of protocols is
 * one between the client and this server, one between this server and the backend, and a tunnel between the two.
 *
 * @internal
 */
import type { IncomingMessage } from "node:http"
import type { Duplex } from "node:stream"
import type * as Headers from "@effect/platform/Headers"
import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpBody from "@effect/platform/HttpBody"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as NodeStream from "@effect/platform-node/NodeStream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Protocol from "../../Protocol.js"
import type { ReverseProxyOptions } from "../../Tunnel.js"
import * as Upgrade from "../../Upgrade.js"
import * as UpgradeClient from "../../UpgradeClient.js"
import { NotUpgradable, type UpgradeClientError, type UpgradeError, type UpgradeRejected } from "../../UpgradeError.js"
import { matches, type Offer, parseOffers } from "../http1/offers.js"
import { exchangeOf } from "../requests.js"
import type { UpgradedImpl } from "../upgraded.js"
import { ask, type Backend, BackendError, isSecure, makeAgent } from "./backend.js"
import { isConnect } from "./connect.js"
import { endToEnd, type Field, type Origin, recordOf, requestFields, responseFields, valueOf } from "./fields.js"
import { join } from "./join.js"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse

/** What is the same for all requests. */
interface Proxy {
  readonly backend: Backend
  readonly base: string
  readonly allowed: ReadonlyArray<Offer>
  readonly via: string
  readonly trusts: (address: string | undefined) => boolean
  readonly preservesHost: boolean
  readonly options: ReverseProxyOptions
}

const schemes = new Set(["http:", "https:", "ws:", "wss:"])

const makeProxy = (target: string | URL, options: ReverseProxyOptions): Proxy => {
  const url = new URL(target)
  if (!schemes.has(url.protocol)) {
    throw new TypeError(`Tunnel.reverseProxy: ${url.protocol} is no scheme of a backend; expected http: or https:`)
  }
  const tls = options.tls ?? {}
  const trust = options.trust ?? false
  return {
    backend: {
      url,
      tls,
      socketPath: options.socketPath,
      agent: options.agent ?? makeAgent(url, tls),
      connectTimeout: Duration.decode(options.connectTimeout ?? "10 seconds"),
      headTimeout: Duration.decode(options.headTimeout ?? "1 minute"),
      idleTimeout: Duration.decode(options.idleTimeout ?? "1 hour")
    },
    base: url.pathname.replace(/\/$/, ""),
    allowed: parseOffers((options.upgrades ?? ["websocket"]).join(", ")),
    via: options.via ?? "effect-upgrade",
    trusts: typeof trust === "function" ? trust : () => trust,
    preservesHost: options.preserveHost ?? true,
    options
  }
}

interface Sourced {
  readonly encrypted?: boolean
}

const mapped = /^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i

const originOf = (message: IncomingMessage): Origin => ({
  address: message.socket.remoteAddress?.replace(mapped, ""),
  host: message.headers.host,
  secure: (message.socket as Sourced).encrypted === true,
  version: message.httpVersion
})

/** The target that the backend is asked for, in origin-form, below the path of its URL. */
const pathOf = ({ base }: Proxy, url: string): string => {
  if (url === "*") {
    return url
  }
  const path = url.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, "")
  return `${base}${path.startsWith("/") ? "" : "/"}${path}`
}

const fieldsFor = (proxy: Proxy, message: IncomingMessage): ReadonlyArray<Field> => {
  const origin = originOf(message)
  return requestFields(message.rawHeaders, origin, {
    trust: proxy.trusts(origin.address),
    via: proxy.via,
    host: (proxy.preservesHost ? origin.host : undefined) ?? proxy.backend.url.host
  })
}

const answer = ({ description, status }: BackendError): Effect.Effect<Response> =>
  HttpServerResponse.text(`${description}\n`, { status })

const hasNoContent = (request: Request, status: number): boolean =>
  request.method === "HEAD" || status === 204 || status === 304

// ---------------------------------------------------------------------------------------------------- ordinary requests

/** RFC 9110 §7.6.2: how many servers may forward it still; `undefined` where it says nothing of that. */
const forwardsLeft = (method: string, fields: ReadonlyArray<Field>): number | undefined => {
  const left = method === "OPTIONS" || method === "TRACE" ? valueOf(fields, "max-forwards") : undefined
  return left !== undefined && /^\d{1,9}$/.test(left) ? Number(left) : undefined
}

const forward = (proxy: Proxy, request: Request): Effect.Effect<Response, never, Scope.Scope> =>
  Effect.suspend(() => {
    const message = NodeHttpServerRequest.toIncomingMessage(request)
    const method: string = request.method
    const coding = message.headers["transfer-encoding"]
    if (coding !== undefined && !/^chunked$/i.test(coding)) {
      // RFC 9112 §6.1: it would have to be undone here
      return answer(new BackendError(501, "The proxy understands no Transfer-Encoding but chunked."))
    }
    const all = fieldsFor(proxy, message)
    const left = forwardsLeft(method, all)
    if (left === 0) {
      return Effect.succeed(HttpServerResponse.empty({ status: method === "TRACE" ? 405 : 204 }))
    }
    const fields: Array<Field> = all.map(([name, value]) =>
      left !== undefined && name.toLowerCase() === "max-forwards" ? [name, String(left - 1)] : [name, value]
    )
    if (coding !== undefined) {
      fields.push(["Transfer-Encoding", "chunked"])
    }
    const length = message.headers["content-length"]
    return ask(proxy.backend, {
      method,
      path: pathOf(proxy, request.url),
      fields,
      body: coding !== undefined || (length !== undefined && length !== "0") ? message : undefined
    }).pipe(
      Effect.map((response) => {
        const status = response.statusCode!
        const options = {
          status,
          statusText: response.statusMessage,
          ...responseFields(advertising(proxy, status, response.rawHeaders), response.httpVersion, proxy.via)
        }
        return hasNoContent(request, status)
          ? HttpServerResponse.empty(options)
          : HttpServerResponse.raw(response, options)
      }),
      Effect.catchAll(answer)
    )
  })

/** RFC 9110 §15.5.22: a 426 names the protocols; of them those that this server would forward. */
const advertising = (proxy: Proxy, status: number, raw: ReadonlyArray<string>): ReadonlyArray<Field> => {
  const fields = endToEnd(raw)
  if (status !== 426) {
    return fields
  }
  const named: Array<Field> = []
  for (let i = 0; i + 1 < raw.length; i += 2) {
    named.push([raw[i]!, raw[i + 1]!])
  }
  const tokens = parseOffers(valueOf(named, "upgrade"))
    .filter((offer) => isAllowed(proxy, offer))
    .map(({ token }) => token)
  return tokens.length === 0 ? fields : [...fields, ["Connection", "upgrade"], ["Upgrade", tokens.join(", ")]]
}

// ---------------------------------------------------------------------------------------------------- switches

const isAllowed = ({ allowed }: Proxy, offer: Offer): boolean =>
  allowed.some(({ name, version }) => matches(offer, name, version))

/** The client library's own path resolution would make another of it. */
const dotSegment = /(?:^|\/)(?:\.|%2e){1,2}(?:\/|\?|$)/i

const flat = (headers: Headers.Headers): ReadonlyArray<string> => Object.entries(headers).flat()

const statusOf = (error: Exclude<UpgradeClientError, UpgradeRejected>): 400 | 502 | 504 =>
  error._tag === "UpgradeTimeout" ? 504 : error._tag === "InvalidRequest" ? 400 : 502

/** What the backend said instead: the client gets all of it. */
const refusal = (
  proxy: Proxy,
  request: Request,
  { response }: UpgradeRejected
): Effect.Effect<Response, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { status } = response
    const options = {
      status,
      ...responseFields(advertising(proxy, status, flat(response.headers)), "1.1", proxy.via)
    }
    // What offers a switch has an exchange
    exchangeOf(request)!.refused = true
    if (hasNoContent(request, status)) {
      return HttpServerResponse.empty(options)
    }
    const { idleTimeout } = proxy.backend
    const stream = Duration.isFinite(idleTimeout)
      ? Stream.timeoutFail(response.stream, () => new Error("The backend's answer stopped."), idleTimeout)
      : response.stream
    // As a Readable, since the end of a stream that fails would look like the end of the content
    const body = yield* NodeStream.toReadable(stream)
    yield* Effect.addFinalizer(() => Effect.sync(() => body.destroy()))
    return HttpServerResponse.raw(body, options)
  })

const bodyOf = (request: Request, message: IncomingMessage): HttpBody.HttpBody => {
  const length = message.headers["content-length"]
  return message.headers["transfer-encoding"] !== undefined
    ? HttpBody.stream(request.stream)
    : length === undefined || length === "0"
      ? HttpBody.empty
      : HttpBody.stream(request.stream, undefined, Number(length))
}

const asking = (
  proxy: Proxy,
  request: Request,
  path: string,
  offered: readonly [Offer, ...Array<Offer>]
): Effect.Effect<UpgradedImpl<Duplex>, UpgradeClientError, Scope.Scope> => {
  const message = NodeHttpServerRequest.toIncomingMessage(request)
  const { backend } = proxy
  const { "content-length": _length, ...headers } = recordOf(fieldsFor(proxy, message))
  const protocols = offered.map(({ token }) => Protocol.raw(token)) as unknown as readonly [Protocol.Protocol.Any]
  const body = bodyOf(request, message)
  return UpgradeClient.upgrade(
    HttpClientRequest.make(request.method as "GET")(
      `${isSecure(backend.url) ? "https" : "http"}://${backend.url.host}${path}`
    ).pipe((asked) => HttpClientRequest.setBody(asked, body), HttpClientRequest.setHeaders(headers)),
    protocols,
    {
      tls: backend.tls,
      socketPath: backend.socketPath,
      connectTimeout: backend.connectTimeout,
      headTimeout: backend.headTimeout
    }
  ) as Effect.Effect<any, UpgradeClientError, Scope.Scope>
}

/** The client's switch follows the backend's, and says what that said. */
const tunnel = (
  proxy: Proxy,
  backend: UpgradedImpl<Duplex>
): Effect.Effect<Response, UpgradeError, Request | Scope.Scope> =>
  Effect.gen(function* () {
    const { cookies, headers } = responseFields(endToEnd(flat(backend.agreed)), "1.1", proxy.via)
    const upgraded = yield* Upgrade.upgrade(Protocol.raw(backend.protocol), { headers, cookies })
    yield* join(upgraded, backend, proxy.options)
    return Upgrade.done
  }) as Effect.Effect<Response, UpgradeError, any>

const upgrade = (
  proxy: Proxy,
  request: Request,
  offered: readonly [Offer, ...Array<Offer>]
): Effect.Effect<Response, UpgradeError, Request | Scope.Scope> =>
  Effect.suspend(() => {
    const path = pathOf(proxy, request.url)
    if (dotSegment.test(path)) {
      return answer(new BackendError(400, "A path with dot segments is not forwarded with an upgrade."))
    }
    return Effect.matchEffect(asking(proxy, request, path, offered), {
      onFailure: (error): Effect.Effect<Response, never, Scope.Scope> =>
        error._tag === "UpgradeRejected"
          ? refusal(proxy, request, error)
          : answer(new BackendError(statusOf(error), `The backend did not switch: ${error.message}`)),
      onSuccess: (backend) => tunnel(proxy, backend) as Effect.Effect<Response, UpgradeError, any>
    })
  })

export const reverseProxy = (target: string | URL, options: ReverseProxyOptions): HttpApp.Default<UpgradeError> => {
  const proxy = makeProxy(target, options)
  return Effect.flatMap(HttpServerRequest.HttpServerRequest, (request): HttpApp.Default<UpgradeError> => {
    if (isConnect(request)) {
      return Effect.fail(
        new NotUpgradable({
          reason: "Method",
          protocols: [],
          methods: ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"],
          description: "This server forwards requests to its backend, and opens no tunnels."
        })
      )
    }
    return Effect.flatMap(Upgrade.offers, (offers) => {
      const [first, ...others] = offers.filter((offer) => isAllowed(proxy, offer))
      return (
        first === undefined ? forward(proxy, request) : upgrade(proxy, request, [first, ...others])
      ) as HttpApp.Default<UpgradeError>
    })
  })
}
