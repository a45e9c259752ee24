// The demonstration server, `npm start`: ordinary HTTP and a protocol of plain bytes on one port. PORT=4000 npm start
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Layer, Predicate, Stream } from "effect"
import { Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"

const saysBye = (bytes: Uint8Array) => /bye\s*$/.test(new TextDecoder().decode(bytes))

// Sends back what comes, beginning with what came behind the request, until "bye" or until the peer ends.
const echo = Upgrade.onUpgrade(Protocol.raw("echo"), (upgraded) =>
  Upgraded.stream(upgraded).pipe(Stream.takeUntil(saysBye), Stream.run(Upgraded.sink(upgraded)))
)

const router = HttpRouter.empty.pipe(
  HttpRouter.get("/echo", echo),
  HttpRouter.get("/hello", HttpServerResponse.text("Hello over ordinary HTTP.\n"))
)

const greet = HttpServer.addressWith((address) => {
  const at = `http://localhost:${address._tag === "TcpAddress" ? address.port : ""}`
  const offer = (token: string) => `curl -i -H 'Connection: Upgrade' -H 'Upgrade: ${token}'`
  return Console.log(`Listening on ${at}

Paste into another terminal:

  # switched to echo: the bytes sent behind the request come back behind the 101
  ${offer("echo")} -X GET -H 'Content-Length:' -d 'early bytes, bye' -w '\\n' ${at}/echo

  # declined: this route takes no notice of the offer, and answers over ordinary HTTP
  ${offer("echo")} ${at}/hello

  # refused: this route speaks echo alone, and says so with a 426
  ${offer("chat")} ${at}/echo

Ctrl-C ends it: open sessions get two seconds to finish.`)
})

const port = Config.nonEmptyString("PORT").pipe(
  Config.validate({ message: "not a port", validation: (text) => /^\d+$/.test(text) && Number(text) < 65536 }),
  Config.map(Number),
  Config.withDefault(3000)
)

const server = (port: number) =>
  Layer.merge(HttpServer.serve(router), Layer.effectDiscard(greet)).pipe(
    Layer.provide(UpgradeServer.layerNet({ port, drainTimeout: "2 seconds" })),
    Layer.launch
  )

/** Why it cannot listen, in one line. */
const explain = (port: number, cause: unknown): string =>
  Predicate.hasProperty(cause, "code") && cause.code === "EADDRINUSE"
    ? `Port ${port} is taken. Stop what listens there, or choose another: PORT=${port + 1} npm start`
    : `Cannot listen on port ${port}: ${cause instanceof Error ? cause.message : String(cause)}`

// Under npm a Ctrl-C comes twice, from the terminal and from npm: the second must not cut the sessions' two seconds short.
process.on("SIGINT", () => {})

port.pipe(
  Effect.mapError(() => `PORT must be a number from 0 to 65535, not ${JSON.stringify(process.env.PORT)}.`),
  Effect.flatMap((port) => Effect.mapError(server(port), ({ cause }) => explain(port, cause))),
  Effect.tapError(Console.error),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
