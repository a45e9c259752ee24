import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { listening } from "./control.js"

/** The platform traces each request as it is shipped; `--untraced` is for every Effect server alike. */
export const untraced = process.env.BENCH_UNTRACED === "1"

const announce = Layer.effectDiscard(
  HttpServer.addressWith((address) =>
    address._tag === "TcpAddress"
      ? Effect.sync(() => listening(address.port))
      : Effect.dieMessage(`expected a TCP address, got ${address.path}`)
  )
)

/** Serves a program, as a user's main does, and tells the parent its port. */
export const main = <E, E2>(
  served: Layer.Layer<never, E, HttpServer.HttpServer>,
  server: Layer.Layer<HttpServer.HttpServer, E2>
): void => {
  const program = served.pipe(Layer.merge(announce), Layer.provide(server))
  NodeRuntime.runMain(Layer.launch(untraced ? HttpMiddleware.withTracerDisabledWhen(program, () => true) : program))
}
