// Packs the package and uses the tarball as a stranger would: its metadata is linted, a project outside this repo
// installs it, imports every entry, compiles the README's first example, runs it and switches one connection of it.
import { spawn, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import type { AddressInfo } from "node:net"
import { connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const work = mkdtempSync(join(tmpdir(), "effect-upgrade-pack-"))
const consumer = join(work, "consumer")

const run = (cwd: string, command: string, ...args: ReadonlyArray<string>): string => {
  const result = spawnSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })
  if (result.status !== 0) {
    throw new Error(
      `${command} ${args.join(" ")}: ${result.error ?? `exit code ${result.status}`}\n${result.stdout}${result.stderr}`
    )
  }
  return result.stdout
}

const versionOf = (name: string): string =>
  JSON.parse(readFileSync(join(root, "node_modules", name, "package.json"), "utf8")).version

const firstExample = (): string => {
  const block = /^```ts[^\n]*\n(.*?)^```/ms.exec(readFileSync(join(root, "README.md"), "utf8"))
  if (block === null) throw new Error("README.md has no ts block")
  return block[1]!
}

const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const server = createServer()
    server.once("error", reject)
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })

/** Sends a head with early bytes behind it, and returns all that came back once it ends with those bytes. */
const exchange = (port: number, path: string, token: string, early: string): Promise<string> =>
  new Promise((resolve, reject) => {
    let received = ""
    const socket = connect(port, "127.0.0.1")
    socket.setEncoding("latin1")
    socket.once("connect", () =>
      socket.write(
        `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: ${token}\r\n\r\n${early}`
      )
    )
    socket.setTimeout(10_000, () => socket.destroy(new Error("the server was silent for 10 s")))
    socket.on("data", (chunk) => {
      received += chunk
      if (received.endsWith(`\r\n\r\n${early}`)) {
        socket.destroy()
        resolve(received)
      }
    })
    socket.once("error", reject)
    socket.once("close", () =>
      reject(new Error(`the connection ended, and these bytes came: ${JSON.stringify(received)}`))
    )
  })

const whenListening = async (port: number, isAlive: () => boolean): Promise<void> => {
  const refused = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1", () => {
        socket.destroy()
        resolve(false)
      })
      socket.once("error", () => resolve(true))
    })
  const deadline = Date.now() + 30_000
  while (await refused()) {
    if (!isAlive()) throw new Error("the example ended before it listened")
    if (Date.now() > deadline) throw new Error("the example did not listen within 30 s")
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

const switchOnce = async (example: string): Promise<void> => {
  const path = /\.(?:get|all)\(\s*"([^"]+)"/.exec(example)?.[1] ?? "/"
  const token = /Protocol\.raw\(\s*"([^"]+)"/.exec(example)?.[1]
  if (token === undefined) throw new Error("the README's first example has no Protocol.raw(…)")
  const port = await freePort()
  const compiled = join(consumer, "example.js")
  const code = readFileSync(compiled, "utf8")
  // A port that the example names is replaced, so that the check needs no port of its own.
  const moved = code.replace(/\bport: \d+/, `port: ${port}`)
  if (moved === code && !code.includes("PORT")) throw new Error("the README's first example names no port and no PORT")
  writeFileSync(compiled, moved)

  const server = spawn(process.execPath, [compiled], {
    cwd: consumer,
    env: { ...process.env, PORT: String(port) },
    stdio: ["ignore", "pipe", "pipe"]
  })
  let output = ""
  server.stdout.on("data", (chunk) => (output += chunk))
  server.stderr.on("data", (chunk) => (output += chunk))
  const exited = new Promise<void>((resolve) => server.once("exit", () => resolve()))
  try {
    await whenListening(port, () => server.exitCode === null)
    const answer = await exchange(port, path, token, "early bytes\n")
    if (!/^HTTP\/1\.1 101 /.test(answer)) throw new Error(`not a 101: ${JSON.stringify(answer)}`)
    server.kill("SIGTERM")
    const late = setTimeout(() => server.kill("SIGKILL"), 15_000)
    await exited
    clearTimeout(late)
    if (server.signalCode === "SIGKILL") throw new Error("the example did not end within 15 s of SIGTERM")
  } catch (error) {
    throw new Error(`${String(error)}\nthe example printed:\n${output}`)
  } finally {
    server.kill("SIGKILL")
    await exited
  }
}

const main = async (): Promise<void> => {
  const [packed] = JSON.parse(
    run(root, "npm", "pack", "--silent", "--json", "--ignore-scripts", "--pack-destination", work)
  )
  const files: Array<string> = packed.files.map((file: { readonly path: string }) => file.path)
  const stray = files.filter((path) => !/^(dist|src)\/|^(package\.json|README\.md|LICENSE|CHANGELOG\.md)$/.test(path))
  if (stray.length > 0) throw new Error(`the tarball holds what it should not: ${stray.join(", ")}`)
  for (const path of ["README.md", "LICENSE", "CHANGELOG.md"]) {
    if (!files.includes(path)) throw new Error(`the tarball lacks ${path}`)
  }
  const tarball = join(work, packed.filename)
  console.log(`${packed.filename}: ${files.length} files, ${Math.ceil(packed.size / 1024)} KiB`)

  const bin = (name: string) => join(root, "node_modules/.bin", name)
  run(root, bin("publint"), tarball, "--strict")
  run(root, bin("attw"), tarball, "--profile", "esm-only", "--format", "ascii", "--no-emoji")
  console.log("publint and attw find nothing")

  mkdirSync(consumer)
  writeFileSync(
    join(consumer, "package.json"),
    JSON.stringify({
      name: "consumer",
      private: true,
      type: "module",
      dependencies: { "effect-upgrade": `file:${tarball}` },
      // @types/ws: the declarations of @effect/platform-node refer to it.
      devDependencies: Object.fromEntries(
        ["@types/node", "@types/ws", "typescript"].map((name) => [name, versionOf(name)])
      )
    })
  )
  run(consumer, "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts")

  const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    exports: Record<string, unknown>
  }
  const entries = Object.keys(exports).filter((entry) => !entry.includes("*") && !entry.endsWith(".json"))
  writeFileSync(
    join(consumer, "entries.ts"),
    entries.map((entry, index) => `export * as entry${index} from "effect-upgrade${entry.slice(1)}"\n`).join("")
  )
  writeFileSync(join(consumer, "example.ts"), firstExample())
  writeFileSync(
    join(consumer, "tsconfig.json"),
    JSON.stringify({
      compilerOptions: {
        target: "ES2022",
        module: "NodeNext",
        strict: true,
        exactOptionalPropertyTypes: true,
        skipLibCheck: false,
        types: ["node"]
      },
      include: ["*.ts"]
    })
  )
  run(consumer, process.execPath, "node_modules/typescript/bin/tsc", "-p", ".")
  run(consumer, process.execPath, "entries.js")
  const inside = files.find((path) => /^dist\/internal\/.*\.js$/.test(path))
  if (inside !== undefined) {
    const specifier = inside.replace(/^dist/, "effect-upgrade")
    for (const name of [specifier, specifier.replace(/\.js$/, "")]) {
      const result = spawnSync(process.execPath, ["--input-type=module", "-e", `import ${JSON.stringify(name)}`], {
        cwd: consumer,
        encoding: "utf8"
      })
      if (!result.stderr.includes("ERR_PACKAGE_PATH_NOT_EXPORTED")) throw new Error(`${name} can be imported`)
    }
  }
  console.log(`${entries.length} entries and the README's first example compile in a project outside this repo`)

  await switchOnce(firstExample())
  console.log("the example ran and switched a connection")
}

try {
  run(root, "npm", "run", "build")
  await main()
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 1
} finally {
  rmSync(work, { recursive: true, force: true })
}
