/** The example in Docker's shape: both ends of it, and Docker's own client at its server. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { vi } from "vitest"
import * as Peer from "../../src/testing/Peer.js"

// Each starts a Node of its own, which compiles what it runs.
vi.setConfig({ testTimeout: 60_000 })

const root = fileURLToPath(new URL("../..", import.meta.url))

interface Ended {
  readonly code: number | null
  readonly stdout: Buffer
  readonly stderr: string
}

const ended = (child: ChildProcess): Promise<Ended> => {
  const stdout: Array<Buffer> = []
  let stderr = ""
  child.stdout!.on("data", (bytes) => stdout.push(bytes))
  child.stderr!.on("data", (bytes) => (stderr += bytes))
  return new Promise((resolve) =>
    child.once("close", (code) => resolve({ code, stdout: Buffer.concat(stdout), stderr }))
  )
}

const example = (...args: ReadonlyArray<string>) =>
  spawn(process.execPath, ["--import", "tsx", "docs/examples/exec.ts", ...args], { cwd: root, stdio: "pipe" })

const directory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-upgrade-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** The example's server, on a Unix socket. */
const serving = Effect.gen(function* () {
  const path = join(yield* directory, "docker.sock")
  const { child } = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const child = example(path)
      return { child, over: ended(child) }
    }),
    ({ child, over }) =>
      Effect.promise(() => {
        child.kill("SIGKILL")
        return over
      })
  )
  yield* Effect.async<void>((resume) => {
    child.stdout.once("data", () => resume(Effect.void))
  })
  return path
})

const asJson = (path: string, body: unknown) => {
  const content = JSON.stringify(body)
  return `POST ${path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: ${content.length}\r\n`.concat(
    "\r\n",
    content
  )
}

describe("the example exec.ts", () => {
  it.scopedLive("runs commands at its own server, with their output, their end of input and their exit codes", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* Effect.promise(() => ended(example()))
      assert.deepStrictEqual([code, stderr], [0, ""])
      assert.strictEqual(
        stdout.toString(),
        [
          "$ sort\napple\nfig\npear\nexit code 0\n",
          "$ tr a-z A-Z\nHALF A CONNECTION IS CLOSED,\nTHE OTHER HALF ANSWERS\nexit code 0\n",
          "$ false\nexit code 1\n",
          "$ rm -rf /\nrm -rf /: not allowed here\nexit code 126\n",
          ""
        ].join("\n")
      )
    })
  )

  it.scopedLive("gives a client that offers no upgrade the older form: a 200, and the same bytes behind it", () =>
    Effect.gen(function* () {
      const path = yield* serving
      const creating = yield* Peer.connect({ path })
      yield* creating.send(asJson("/v1.43/containers/demo/exec", { Cmd: ["tr", "a-z", "A-Z"], AttachStdin: true }))
      const { Id } = JSON.parse((yield* creating.receiveResponse).text)
      const peer = yield* Peer.connect({ path })
      yield* peer.send(`${asJson(`/v1.43/exec/${Id}/start`, {})}early and `)
      assert.strictEqual((yield* peer.receiveHead).status, 200)
      yield* peer.send("late")
      yield* peer.end
      const frames = Buffer.from(yield* peer.receiveAll)
      let said = ""
      for (let at = 0; at < frames.length; at += 8 + frames.readUInt32BE(at + 4)) {
        assert.strictEqual(frames[at], 1)
        said += frames.subarray(at + 8, at + 8 + frames.readUInt32BE(at + 4))
      }
      assert.strictEqual(said, "EARLY AND LATE")
    })
  )

  it.scopedLive("serves Docker's own client: input, its end, output, errors and exit codes", (context) =>
    Effect.gen(function* () {
      if (spawnSync("docker", ["--version"]).error !== undefined) {
        return context.skip("docker is missing")
      }
      const path = yield* serving
      const docker = (stdin: Buffer, ...args: ReadonlyArray<string>) =>
        Effect.promise(() => {
          const child = spawn("docker", ["-H", `unix://${path}`, "exec", ...args], { stdio: "pipe" })
          child.stdin.on("error", () => {})
          child.stdin.end(stdin)
          return ended(child)
        })
      const sorted = yield* docker(Buffer.from("pear\napple\n"), "-i", "demo", "sort")
      assert.deepStrictEqual([sorted.code, sorted.stdout.toString()], [0, "apple\npear\n"])
      const failed = yield* docker(Buffer.alloc(0), "demo", "false")
      assert.strictEqual(failed.code, 1)
      const refused = yield* docker(Buffer.alloc(0), "demo", "rm", "x")
      assert.deepStrictEqual([refused.code, refused.stderr], [126, "rm x: not allowed here\n"])
      const much = Buffer.alloc(2_000_000, "0123456789\n")
      const copied = yield* docker(much, "-i", "demo", "cat")
      assert.isTrue(copied.code === 0 && copied.stdout.equals(much))
    })
  )
})
