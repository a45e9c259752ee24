/** Agents of Node's whose connections are tunnels of a proxy, for the platform's own HTTP client. */
import * as Http from "node:http"
import * as Https from "node:https"
import type { Duplex } from "node:stream"
import * as tls from "node:tls"
import type { HttpClient } from "@effect/platform/HttpClient"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { UpgradeClientError } from "../../UpgradeError.js"
import { type ConnectOptions, connectRaw } from "../client.js"
import { nameFor } from "./clientSocket.js"

type Made = (error: Error | null, socket?: Duplex) => void

/** What an agent says of the connection that it wants. */
interface Wanted extends tls.ConnectionOptions {
  readonly host: string
  readonly port: number
}

const authorityOf = ({ host, port }: Wanted): string => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`)

/** TLS through the tunnel; the agent's own options of it come last, since they are of the request. */
const secured = (socket: Duplex, wanted: Wanted, secure: tls.ConnectionOptions): Duplex => {
  const { host, path: _path, port: _port, ...options } = wanted
  return tls.connect({ ...nameFor(host), ...secure, ...options, socket })
}

interface Options extends ConnectOptions {
  readonly secure?: tls.ConnectionOptions | undefined
}

const agents = (proxy: string | URL, options: Options): Effect.Effect<NodeHttpClient.HttpAgent, never, Scope.Scope> =>
  Effect.gen(function* () {
    const layer = yield* Effect.scope
    const run = yield* FiberSet.makeRuntime<never>()
    const tunnel = (wanted: Wanted): Effect.Effect<Duplex, UpgradeClientError> =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          const scope = yield* Scope.fork(layer, ExecutionStrategy.sequential)
          const exit = yield* Effect.exit(restore(Scope.extend(connectRaw(proxy, authorityOf(wanted), options), scope)))
          if (Exit.isFailure(exit)) {
            yield* Scope.close(scope, exit)
          } else {
            exit.value.once("close", () => void Effect.runFork(Scope.close(scope, Exit.void)))
          }
          return yield* exit
        })
      )
    const connecting = (over: (socket: Duplex, wanted: Wanted) => Duplex) => (wanted: Wanted, made: Made) => {
      run(
        Effect.matchCause(tunnel(wanted), {
          onFailure: (cause) => made(Cause.squash(cause) as Error),
          onSuccess: (socket) => made(null, over(socket, wanted))
        })
      )
    }
    const agent = <A extends Http.Agent>(make: () => A, over: (socket: Duplex, wanted: Wanted) => Duplex) =>
      Effect.acquireRelease(
        Effect.sync(() => Object.assign(make(), { createConnection: connecting(over) })),
        (agent) => Effect.sync(() => agent.destroy())
      )
    return NodeHttpClient.HttpAgent.of({
      [NodeHttpClient.HttpAgentTypeId]: NodeHttpClient.HttpAgentTypeId,
      http: yield* agent(
        () => new Http.Agent({ keepAlive: true }),
        (socket) => socket
      ),
      https: yield* agent(
        () => new Https.Agent({ keepAlive: true }),
        (socket, wanted) => secured(socket, wanted, options.secure ?? {})
      )
    })
  })

export const layerThrough = (proxy: string | URL, options: Options = {}): Layer.Layer<HttpClient> =>
  Layer.provide(NodeHttpClient.layerWithoutAgent, Layer.scoped(NodeHttpClient.HttpAgent, agents(proxy, options)))
