// A protocol in the shape of Docker's exec: a POST with a JSON body, `Upgrade: tcp`, `101 UPGRADED`, then stdin one way and
// frames of stdout and stderr the other. It speaks enough of Docker's API for `docker -H unix:///path exec -i demo sort`.
// A client that offers no upgrade gets the older form, a 200 and the same bytes behind it.
import {
  Command,
  type CommandExecutor,
  HttpRouter,
  HttpServer,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { Effect, Layer, Schema, Stream } from "effect"
import { Protocol, Upgrade, Upgraded, UpgradeServer } from "effect-upgrade"

/** Where a server listens, and a client connects. */
export type Listen = { readonly path: string } | { readonly port: number }

interface Exec {
  readonly id: string
  readonly command: ReadonlyArray<string>
  readonly stdin: boolean
  running: boolean
  exitCode: number | null
}

const execs = new Map<string, Exec>()

// What may be run, and with which arguments: nothing here reads a file, writes one, or starts another program.
const harmless: Record<string, (args: ReadonlyArray<string>) => boolean> = {
  cat: (args) => args.length === 0,
  echo: () => true,
  sort: (args) => args.every((arg) => /^-[bdfginru]+$/.test(arg)),
  wc: (args) => args.every((arg) => /^-[clmw]+$/.test(arg)),
  tr: (args) => args.every((arg) => !arg.startsWith("--")),
  sleep: (args) => args.length === 1 && /^\d{1,2}$/.test(args[0]!),
  true: () => true,
  false: () => true
}

/** A frame of Docker's multiplexed stream: which stream (1 is stdout, 2 stderr), three zeros, the length, the bytes. */
const frame = (stream: 1 | 2) => (bytes: Uint8Array) => {
  const header = Buffer.alloc(8)
  header[0] = stream
  header.writeUInt32BE(bytes.length, 4)
  return Buffer.concat([header, bytes])
}

/** Runs the command over the connection. The exit code is known before the connection ends. */
const session = (exec: Exec, upgraded: Upgraded.Upgraded) =>
  Effect.gen(function* () {
    const [name = "", ...args] = exec.command
    if (!Object.hasOwn(harmless, name) || !harmless[name]!(args)) {
      exec.exitCode = 126
      return yield* Upgraded.write(upgraded, frame(2)(Buffer.from(`${exec.command.join(" ")}: not allowed here\n`)))
    }
    const process = yield* Command.start(Command.make(name, ...args))
    const stdin = exec.stdin ? Upgraded.stream(upgraded) : Stream.empty
    // The client's FIN is the end of stdin, and what the program has to say comes after it.
    yield* Effect.forkScoped(Effect.ignore(Stream.run(stdin, process.stdin)))
    yield* Stream.merge(Stream.map(process.stdout, frame(1)), Stream.map(process.stderr, frame(2))).pipe(
      Stream.run(Upgraded.sink(upgraded))
    )
    exec.exitCode = yield* process.exitCode
  }).pipe(
    Effect.ensuring(
      Effect.sync(() => {
        exec.running = false
      })
    ),
    Effect.scoped
  )

const tcp = Protocol.make({ token: "tcp", methods: ["POST"], statusText: "UPGRADED" })

const multiplexed = { "content-type": "application/vnd.docker.multiplexed-stream" }

/** The connection, in the form that the client asks for. */
const taken = Effect.if(Upgrade.wants(tcp), {
  onTrue: () => Effect.map(Upgrade.upgrade(tcp, { headers: multiplexed }), (upgraded): Upgraded.Upgraded => upgraded),
  onFalse: () => Upgrade.hijack(HttpServerResponse.empty({ status: 200, headers: multiplexed }))
})

const notFound = HttpServerResponse.unsafeJson({ message: "No such exec instance" }, { status: 404 })

const found = <E, R>(use: (exec: Exec) => Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>) =>
  Effect.flatMap(HttpRouter.params, ({ id = "" }) => {
    const exec = execs.get(id)
    return exec === undefined ? Effect.succeed(notFound) : use(exec)
  })

const Create = Schema.Struct({
  Cmd: Schema.Array(Schema.String),
  AttachStdin: Schema.optionalWith(Schema.Boolean, { default: () => false })
})

const create = Effect.gen(function* () {
  const { AttachStdin, Cmd } = yield* HttpServerRequest.schemaBodyJson(Create)
  const id = crypto.randomUUID().replaceAll("-", "")
  execs.set(id, { id, command: Cmd, stdin: AttachStdin, running: false, exitCode: null })
  return HttpServerResponse.unsafeJson({ Id: id }, { status: 201 })
}).pipe(Effect.catchTag("ParseError", (error) => HttpServerResponse.json({ message: error.message }, { status: 400 })))

const Start = Schema.Struct({ Detach: Schema.optional(Schema.Boolean), Tty: Schema.optional(Schema.Boolean) })

const start = found((exec) =>
  Effect.gen(function* () {
    yield* HttpServerRequest.schemaBodyJson(Start)
    const upgraded = yield* taken
    exec.running = true
    yield* session(exec, upgraded)
    return Upgrade.done
  })
)

const inspect = found((exec) =>
  HttpServerResponse.json({ ID: exec.id, Running: exec.running, ExitCode: exec.exitCode, Pid: 0 })
)

const container = Effect.map(HttpRouter.params, ({ name }) =>
  HttpServerResponse.unsafeJson({
    Id: name,
    Name: `/${name}`,
    State: { Status: "running", Running: true },
    Config: { Tty: false }
  })
)

const api = { "api-version": "1.43", ostype: "linux", "docker-experimental": "false" }

const router = HttpRouter.empty.pipe(
  HttpRouter.all("/_ping", HttpServerResponse.text("OK", { headers: api })),
  HttpRouter.get(
    "/version",
    HttpServerResponse.unsafeJson({
      Version: "0.1.0",
      ApiVersion: "1.43",
      MinAPIVersion: "1.24",
      Os: "linux",
      Arch: "amd64"
    })
  ),
  HttpRouter.get("/containers/:name/json", container),
  HttpRouter.post("/containers/:name/exec", create),
  HttpRouter.post("/exec/:id/start", start),
  HttpRouter.get("/exec/:id/json", inspect)
)

/** Docker's clients put the version before the path. */
const unversioned = Effect.updateService(router, HttpServerRequest.HttpServerRequest, (request) =>
  request.modify({ url: request.url.replace(/^\/v\d+\.\d+(?=\/)/, "") })
)

/** The server, until the layer closes. */
export const server = (
  listen: Listen
): Layer.Layer<HttpServer.HttpServer | CommandExecutor.CommandExecutor, unknown> => {
  const options = {
    hijackable: ({ method, url }: { readonly method?: string | undefined; readonly url?: string | undefined }) =>
      method === "POST" && /^(?:\/v\d+\.\d+)?\/exec\/\w+\/start$/.test(url ?? "")
  }
  return HttpServer.serve(unversioned).pipe(
    Layer.provideMerge(
      "path" in listen
        ? UpgradeServer.layerUnix({ ...options, path: listen.path })
        : UpgradeServer.layerNet({ ...options, port: listen.port, host: "127.0.0.1" })
    )
  )
}
