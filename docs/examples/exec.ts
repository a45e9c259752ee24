// Both ends of a protocol in Docker's shape. Run it: npm run example:exec
// With a Unix socket or a port it serves there, for a client of your own: npm run example:exec -- /tmp/exec.sock
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer } from "effect"
import { exec, lines } from "./exec-client.js"
import { type Listen, server } from "./exec-server.js"

/** `/tmp/exec.sock`, `unix:///tmp/exec.sock`, `4000` or `tcp://127.0.0.1:4000`. */
const listenOf = (given: string): Listen => {
  const port = /^(?:tcp:\/\/[^:/]+:)?(\d+)$/.exec(given)?.[1]
  return port === undefined ? { path: given.replace(/^unix:\/\//, "") } : { port: Number(port) }
}

const serve = (listen: Listen) => {
  const host = "path" in listen ? `unix://${listen.path}` : `tcp://127.0.0.1:${listen.port}`
  return Layer.launch(
    Layer.provideMerge(
      Layer.effectDiscard(
        Console.log(`Listening on ${host}

A client of Docker's API can be pointed at it:

  printf 'pear\\napple\\n' | docker -H ${host} exec -i demo sort

It runs cat, echo, sort, wc, tr, sleep, true and false, and nothing else. Ctrl-C ends it.`)
      ),
      server(listen)
    )
  )
}

const demonstration = Effect.gen(function* () {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "exec-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
  )
  const listen = { path: join(directory, "docker.sock") }
  yield* Layer.build(server(listen))
  for (const [command, stdin] of [
    [["sort"], lines("pear", "apple", "fig")],
    [["tr", "a-z", "A-Z"], lines("half a connection is closed,", "the other half answers")],
    [["false"], lines()],
    [["rm", "-rf", "/"], lines()]
  ] as const) {
    const { exitCode, stderr, stdout } = yield* exec(listen, command, stdin)
    yield* Console.log(`$ ${command.join(" ")}\n${stdout}${stderr}exit code ${exitCode}\n`)
  }
}).pipe(Effect.scoped)

const given = process.argv[2] ?? process.env.EXEC_LISTEN

NodeRuntime.runMain(given === undefined ? demonstration : serve(listenOf(given)))
