/**
 * What a session has of its request, which it outlives: the services and fiber refs of the call, and neither the request's
 * message, Scope, span nor hooks. Most of it is the same for all sessions of a server, and is held once.
 */

import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as FiberId from "effect/FiberId"
import * as FiberRef from "effect/FiberRef"
import * as FiberRefs from "effect/FiberRefs"
import * as Runtime from "effect/Runtime"
import * as RuntimeFlags from "effect/RuntimeFlags"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import type { Listener } from "../Connection.js"
import type { ConnectionImpl } from "./connection.js"
import { inlineScheduler } from "./duplex/inbox.js"
import { SessionRequest } from "./sessionRequest.js"

type Services = ReadonlyMap<string, unknown>

type Refs = FiberRefs.FiberRefs

/** What each request has of its own. */
const requestKeys = [
  HttpServerRequest.HttpServerRequest.key,
  HttpServerRequest.ParsedSearchParams.key,
  HttpRouter.RouteContext.key,
  Scope.Scope.key,
  Tracer.ParentSpan.key
]

/** What the sessions of a server share. */
interface Shared {
  readonly services: Services
  readonly refs: Refs
}

const shared = new WeakMap<Listener, Shared>()

/** The services of a session as a Map that holds what is its own, and looks for the rest where all have it. */
class SessionServices implements Services {
  constructor(
    private readonly base: Services,
    private readonly connection: ConnectionImpl,
    private readonly request: HttpServerRequest.HttpServerRequest,
    private readonly searchParams: unknown,
    private readonly route: unknown
  ) {}

  private own(key: string): unknown {
    switch (key) {
      case HttpServerRequest.HttpServerRequest.key:
        return this.request
      case Scope.Scope.key:
        // Made when somebody asks for it
        return this.connection.scope
      case HttpServerRequest.ParsedSearchParams.key:
        return this.searchParams
      case HttpRouter.RouteContext.key:
        return this.route
      default:
        return undefined
    }
  }

  get(key: string): unknown {
    return this.base.get(key) ?? this.own(key)
  }
  has(key: string): boolean {
    return this.base.has(key) || this.own(key) !== undefined
  }
  get size(): number {
    return this.whole().size
  }
  forEach(f: (value: unknown, key: string, map: Services) => void): void {
    this.whole().forEach((value, key) => f(value, key, this))
  }
  keys() {
    return this.whole().keys()
  }
  values() {
    return this.whole().values()
  }
  entries() {
    return this.whole().entries()
  }
  [Symbol.iterator]() {
    return this.whole()[Symbol.iterator]()
  }

  private whole(): Map<string, unknown> {
    const all = new Map(this.base)
    for (const key of requestKeys) {
      const value = this.own(key)
      if (value !== undefined) {
        all.set(key, value)
      }
    }
    return all
  }
}

const withoutRequest = (services: Services): Map<string, unknown> => {
  const base = new Map(services)
  requestKeys.forEach((key) => base.delete(key))
  return base
}

/** Whether these are the shared services, and those of a request. */
const isOver = (base: Services, services: Services): boolean => {
  let own = 0
  for (const key of requestKeys) {
    if (services.has(key)) {
      own++
    }
  }
  if (services.size - own !== base.size) {
    return false
  }
  for (const [key, service] of base) {
    if (services.get(key) !== service) {
      return false
    }
  }
  return true
}

const noRefs = FiberRefs.empty()

const isOfRequest = (ref: FiberRef.FiberRef<any>): boolean =>
  ref === FiberRef.currentContext || ref === HttpApp.currentPreResponseHandlers

/** Only the values of now: below them lie those of the fibers before, and what they hold. */
const valuesOf = (fiberRefs: Refs, without: FiberRef.FiberRef<any>): Refs => {
  const refs = new Map<FiberRef.FiberRef<any>, readonly [readonly [FiberId.Single, any]]>()
  fiberRefs.locals.forEach((stack, ref) => {
    if (!isOfRequest(ref) && ref !== without && stack[0][1] !== FiberRefs.getOrDefault(noRefs, ref)) {
      refs.set(ref, [[FiberId.none, stack[0][1]]])
    }
  })
  refs.set(FiberRef.currentScheduler, [
    [FiberId.none, inlineScheduler(FiberRefs.getOrDefault(fiberRefs, FiberRef.currentScheduler))]
  ])
  return FiberRefs.unsafeMake(refs)
}

const isSame = (one: Refs, other: Refs): boolean => {
  if (one.locals.size !== other.locals.size) {
    return false
  }
  for (const [ref, stack] of one.locals) {
    if (other.locals.get(ref)?.[0][1] !== stack[0][1]) {
      return false
    }
  }
  return true
}

const sessionFlags = RuntimeFlags.make(
  RuntimeFlags.Interruption,
  RuntimeFlags.CooperativeYielding,
  RuntimeFlags.RuntimeMetrics
)

export const runtimeOf = (services: Context.Context<never>, fiberRefs: Refs): Runtime.Runtime<never> =>
  Runtime.make({ context: services, fiberRefs, runtimeFlags: sessionFlags })

/** The runtime of a session over this connection; `without` is a ref of the request's own. */
export const sessionRuntime = (
  services: Context.Context<never>,
  fiberRefs: Refs,
  connection: ConnectionImpl,
  without: FiberRef.FiberRef<any>
): Runtime.Runtime<never> => {
  const all: Services = services.unsafeMap
  let common = shared.get(connection.listener)
  let refs = valuesOf(fiberRefs, without)
  if (common === undefined) {
    common = { services: withoutRequest(all), refs }
    shared.set(connection.listener, common)
  } else if (isSame(common.refs, refs)) {
    refs = common.refs
  }
  const own = new SessionServices(
    isOver(common.services, all) ? common.services : withoutRequest(all),
    connection,
    new SessionRequest(all.get(HttpServerRequest.HttpServerRequest.key) as HttpServerRequest.HttpServerRequest),
    all.get(HttpServerRequest.ParsedSearchParams.key),
    all.get(HttpRouter.RouteContext.key)
  )
  return runtimeOf(Context.unsafeMake(own as unknown as Map<string, any>), refs)
}
