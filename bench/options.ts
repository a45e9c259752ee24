import { cpus } from "node:os"
import { parseArgs } from "node:util"

export const cells = [
  "raw",
  "handshake",
  "memory",
  "fairness",
  "stalled",
  "websocket",
  "broadcast",
  "deflate",
  "tunnel"
] as const

export type Cell = (typeof cells)[number]

/** The files under `servers/` that serve. */
export const servers = [
  "bare",
  "ws",
  "platform",
  "handler",
  "ours",
  "codec",
  "uws",
  "bun",
  "websocket",
  "pipes",
  "http-proxy",
  "tunnel"
] as const

export interface Options {
  readonly only: ReadonlyArray<Cell>
  readonly servers: ReadonlyArray<string>
  readonly rounds: number
  /** The length of one measurement. */
  readonly seconds: number
  /** Seconds before the first measurement of a server; the JIT doubles a handshake's rate in its first eight. */
  readonly warmup: number
  /** Idle connections of the memory cell. */
  readonly connections: number
  /** Bytes pushed against a stalled reader. */
  readonly push: number
  readonly serverCore: number
  readonly loadCore: number
  /** The platform's request spans, on as shipped; without them for every Effect server alike. */
  readonly untraced: boolean
  readonly build: boolean
  readonly json: string | undefined
  /** Where to draw what was measured. */
  readonly chart: string | undefined
}

export const usage = `npm run bench -- [options]

  --only=CELLS         ${cells.join(",")}
  --servers=NAMES      ${servers.join(",")}
  --rounds=N           rounds, of which the median is taken (5)
  --seconds=N          the length of one measurement (3)
  --warmup=N           seconds before the first measurement of each server (8)
  --connections=N      idle connections of the memory cell (10000)
  --push=MIB           pushed against a stalled reader (1024)
  --cores=SERVER,LOAD  the cores to pin to (0,1)
  --untraced           the platform's spans off, in every Effect server
  --no-build           take dist and bench/.build as they are
  --json=FILE          write the results there as well
  --chart=FILE         draw them as an SVG
  --quick              --rounds=1 --seconds=1 --warmup=1 --connections=1000 --push=128

All of it takes about three quarters of an hour. Each option has an environment variable: BENCH_ROUNDS=3 is --rounds=3.`

const flags = ["untraced", "no-build", "quick", "help"]

export const parseOptions = (args: ReadonlyArray<string>, env: NodeJS.ProcessEnv): Options | undefined => {
  const values: Record<string, string | boolean | undefined> = parseArgs({
    args: [...args],
    options: {
      chart: { type: "string" },
      connections: { type: "string" },
      cores: { type: "string" },
      help: { type: "boolean" },
      json: { type: "string" },
      "no-build": { type: "boolean" },
      only: { type: "string" },
      push: { type: "string" },
      quick: { type: "boolean" },
      rounds: { type: "string" },
      seconds: { type: "string" },
      servers: { type: "string" },
      untraced: { type: "boolean" },
      warmup: { type: "string" }
    }
  }).values
  const text = (name: string): string | undefined => {
    const value = values[name] ?? env[`BENCH_${name.replace("-", "_").toUpperCase()}`]
    return value === undefined || value === false || (flags.includes(name) && value === "0") ? undefined : String(value)
  }
  if (text("help") !== undefined) {
    return undefined
  }
  const quick = text("quick") !== undefined
  const number = (name: string, usual: number, quickly = usual): number => {
    const value = Number(text(name) ?? (quick ? quickly : usual))
    if (!(value >= 0)) {
      throw new Error(`--${name} takes a number, not ${JSON.stringify(text(name))}`)
    }
    return value
  }
  const list = (name: string, usual: ReadonlyArray<string>): ReadonlyArray<string> => text(name)?.split(",") ?? usual
  const among = (name: string, known: ReadonlyArray<string>): ReadonlyArray<string> => {
    const names = list(name, known)
    const unknown = names.find((one) => !known.includes(one))
    if (unknown !== undefined) {
      throw new Error(`--${name} takes ${known.join(",")}, not ${JSON.stringify(unknown)}`)
    }
    return names
  }
  const [serverCore, loadCore] = list("cores", ["0", cpus().length > 1 ? "1" : "0"]).map(Number)
  return {
    build: text("no-build") === undefined,
    chart: text("chart"),
    connections: number("connections", 10_000, 1000),
    json: text("json"),
    loadCore,
    only: among("only", cells) as ReadonlyArray<Cell>,
    push: number("push", 1024, 128) * 1024 * 1024,
    rounds: Math.max(1, number("rounds", 5, 1)),
    seconds: number("seconds", 3, 1),
    serverCore,
    servers: among("servers", servers),
    untraced: text("untraced") !== undefined,
    warmup: number("warmup", 8, 1)
  }
}
