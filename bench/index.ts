/**
 * The benchmark: `npm run bench -- --help`.
 *
 * Each server is a process of its own, compiled beforehand (bench/.build, over `dist`), pinned to one core; the load is
 * another on the other core. Servers take turns in rounds, and a ratio is taken within a round. A cell is a file under
 * `cells/`, a server one under `servers/`.
 */
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { cpus, totalmem } from "node:os"
import { fileURLToPath } from "node:url"
import { broadcast } from "./cells/broadcast.js"
import { deflateCell } from "./cells/deflate.js"
import { fairness } from "./cells/fairness.js"
import { handshake } from "./cells/handshake.js"
import { memory } from "./cells/memory.js"
import { raw } from "./cells/raw.js"
import { stalled } from "./cells/stalled.js"
import { tunnel } from "./cells/tunnel.js"
import { websocket } from "./cells/websocket.js"
import { chart } from "./chart.js"
import { pinning } from "./child.js"
import { type Cell, type Options, parseOptions, usage } from "./options.js"
import { note } from "./peers.js"
import { aimed, fixed, render, type Table } from "./stats.js"

const root = fileURLToPath(new URL("..", import.meta.url))

const cells: Record<Cell, (options: Options) => Promise<ReadonlyArray<Table>>> = {
  broadcast,
  deflate: deflateCell,
  fairness,
  handshake,
  memory,
  raw,
  stalled,
  tunnel,
  websocket
}

const build = (): void => {
  const run = (command: string, args: ReadonlyArray<string>): void => {
    note(`> ${command} ${args.join(" ")}`)
    execFileSync(command, args, { cwd: root, stdio: ["ignore", 2, 2] })
  }
  run("npm", ["run", "--silent", "build"])
  run("npx", ["--no-install", "tsc", "-p", "bench/tsconfig.json"])
}

const versions = (): string => {
  const require = createRequire(import.meta.url)
  return ["effect", "@effect/platform", "@effect/platform-node", "ws"]
    .map((name) => `${name} ${JSON.parse(readFileSync(require.resolve(`${name}/package.json`), "utf8")).version}`)
    .join(", ")
}

const main = async (options: Options): Promise<void> => {
  if (options.build) {
    build()
  }
  const machine = `${cpus().length} x ${cpus()[0].model.trim()}, ${fixed(totalmem() / 2 ** 30)} GiB, Node ${
    process.version
  } on ${process.platform}, ${versions()}`
  const conditions = `${options.rounds} rounds of ${options.seconds} s, ${pinning(options)}${
    options.untraced ? ", spans of the platform off" : ""
  }`
  process.stdout.write(`${machine}\n${conditions}\n\n`)
  const tables: Array<Table> = []
  for (const cell of options.only) {
    for (const table of await cells[cell](options)) {
      tables.push(table)
      process.stdout.write(`${render(table)}\n`)
    }
  }
  const aims = aimed(tables)
  if (aims.rows.length > 0) {
    tables.push(aims)
    process.stdout.write(`${render(aims)}\n`)
  }
  if (options.json !== undefined) {
    writeFileSync(options.json, `${JSON.stringify({ conditions, machine, options, tables }, null, 2)}\n`)
  }
  if (options.chart !== undefined) {
    const bars = tables.flatMap((table) => table.bars ?? [])
    writeFileSync(
      options.chart,
      chart(bars, `How many in a second of the server's CPU time. ${machine.split(", effect ")[0]}`)
    )
  }
}

try {
  const options = parseOptions(process.argv.slice(2), process.env)
  if (options) {
    await main(options)
  } else {
    process.stdout.write(`${usage}\n`)
  }
} catch (error) {
  note(error instanceof Error ? error.message : String(error))
  process.exitCode = 1
}
