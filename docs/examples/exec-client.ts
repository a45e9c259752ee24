// The client's end of exec-server.ts, and of Docker's daemon: asks for a command, switches the connection, sends stdin and
// its end, and takes the frames of stdout and stderr apart.
import { HttpClient, HttpClientRequest, HttpClientResponse } from "@effect/platform"
import { NodeHttpClient } from "@effect/platform-node"
import { Chunk, Effect, Layer, Schema, Stream } from "effect"
import { Protocol, UpgradeClient, Upgraded } from "effect-upgrade"
import type { Listen } from "./exec-server.js"

const urlOf = (listen: Listen) => ("path" in listen ? "http://docker" : `http://127.0.0.1:${listen.port}`)

/** Ordinary requests, by Node's agent: it knows Unix sockets too. */
const clientOf = (listen: Listen) =>
  NodeHttpClient.layerWithoutAgent.pipe(
    Layer.provide(
      NodeHttpClient.makeAgentLayer({ keepAlive: false, ...("path" in listen && { socketPath: listen.path }) })
    )
  )

const Created = Schema.Struct({ Id: Schema.String })

const Inspected = Schema.Struct({ Running: Schema.Boolean, ExitCode: Schema.NullOr(Schema.Number) })

/** What a program said, as far as it is known: a frame may come in pieces. */
const output = (upgraded: Upgraded.Upgraded) =>
  Effect.gen(function* () {
    const said = { stdout: "", stderr: "" }
    while (true) {
      const header = yield* Effect.option(Upgraded.readExactly(upgraded, 8))
      if (header._tag === "None") {
        return said
      }
      const bytes = yield* Upgraded.readExactly(upgraded, Buffer.from(header.value).readUInt32BE(4))
      said[header.value[0] === 2 ? "stderr" : "stdout"] += Buffer.from(bytes).toString()
    }
  })

/** Runs a command at the server, and yields what it said and its exit code. */
export const exec = (listen: Listen, command: ReadonlyArray<string>, stdin: Stream.Stream<Uint8Array>) =>
  Effect.gen(function* () {
    const url = urlOf(listen)
    const client = HttpClient.filterStatusOk(yield* HttpClient.HttpClient)
    const { Id } = yield* HttpClientRequest.post(`${url}/containers/demo/exec`).pipe(
      HttpClientRequest.bodyUnsafeJson({ Cmd: command, AttachStdin: true, AttachStdout: true, AttachStderr: true }),
      client.execute,
      Effect.flatMap(HttpClientResponse.schemaBodyJson(Created))
    )
    const said = yield* Effect.scoped(
      Effect.gen(function* () {
        const upgraded = yield* HttpClientRequest.post(`${url}/exec/${Id}/start`).pipe(
          HttpClientRequest.bodyUnsafeJson({ Detach: false, Tty: false }),
          UpgradeClient.upgrade(Protocol.raw("tcp"), "path" in listen ? { socketPath: listen.path } : {})
        )
        // The end of stdin is a FIN: the other direction goes on until the program has said all.
        const sent = Effect.zipRight(Stream.run(stdin, Upgraded.sink(upgraded)), Upgraded.end(upgraded))
        const [said] = yield* Effect.all([output(upgraded), Effect.ignore(sent)], { concurrency: 2 })
        return said
      })
    )
    const { ExitCode } = yield* Effect.flatMap(
      client.get(`${url}/exec/${Id}/json`),
      HttpClientResponse.schemaBodyJson(Inspected)
    )
    return { ...said, exitCode: ExitCode }
  }).pipe(Effect.provide(clientOf(listen)))

/** Text as a stream of pieces, as it would come from a keyboard. */
export const lines = (...all: ReadonlyArray<string>): Stream.Stream<Uint8Array> =>
  Stream.fromChunk(Chunk.fromIterable(all.map((line) => Buffer.from(`${line}\n`))))
