/** (c) What an idle upgraded connection holds: the growth from some to many, in a fresh process each time. */
import { execFileSync } from "node:child_process"
import type { Memory } from "../commands.js"
import type { Options } from "../options.js"
import {
  bare,
  bareData,
  chosen,
  direct,
  note,
  onUpgrade,
  onUpgradeStream,
  order,
  type Peer,
  platform,
  respond,
  session,
  sleep,
  startLoad,
  startServer,
  targetOf,
  ws
} from "../peers.js"
import { fixed, kilobytes, median, ratio, type Table } from "../stats.js"

const all = [bareData, bare, ws, platform, direct, session, respond, onUpgrade, onUpgradeStream]

/** Each connection is a descriptor in the server and another in the load, and a tenth is held before the reading. */
const possible = (wanted: number): number => {
  const limit = Number(execFileSync("sh", ["-c", "ulimit -Hn"], { encoding: "utf8" }))
  return Number.isFinite(limit) ? Math.min(wanted, Math.floor((limit - 100) / 1.1)) : wanted
}

const measure = async (peer: Peer, connections: number, options: Options): Promise<Memory> => {
  const server = await startServer(peer, options)
  const load = await startLoad(options)
  try {
    const target = targetOf(peer, server)
    // Held before the first reading, so that code, caches and pools are not counted.
    const first = Math.ceil(connections / 10)
    await load.call("hold", { connections: first, target })
    await sleep(1)
    const before = await server.call("memory")
    await load.call("hold", { connections, target })
    await sleep(1)
    const after = await server.call("memory")
    const held = await load.call("held")
    if (held !== first + connections) {
      throw new Error(`${peer.name}: ${held} connections are left of ${first + connections}`)
    }
    const each = (figure: keyof Memory): number => (after[figure] - before[figure]) / connections
    return { external: each("external"), heapUsed: each("heapUsed"), rss: each("rss") }
  } finally {
    await Promise.all([server.stop(), load.stop()])
  }
}

export const memory = async (options: Options): Promise<ReadonlyArray<Table>> => {
  const peers = chosen(all, options)
  const connections = possible(options.connections)
  const grown = new Map<Peer, Array<Memory>>(peers.map((peer) => [peer, []]))
  // Memory hardly varies: three fresh processes of each are enough.
  for (let round = 0; round < Math.min(3, options.rounds); round++) {
    for (const peer of order(peers, round)) {
      const one = await measure(peer, connections, options)
      note(`memory, round ${round + 1}: ${peer.name}: ${kilobytes(one.heapUsed)} KiB of heap`)
      grown.get(peer)!.push(one)
    }
  }
  const figures = (peer: Peer, figure: keyof Memory): ReadonlyArray<number> =>
    (grown.get(peer) ?? []).map((one) => one[figure])
  const against = (peer: Peer, figure: keyof Memory, base: Peer): string =>
    grown.has(base) ? fixed(ratio(figures(peer, figure), figures(base, figure)), 2) : "-"
  return [
    {
      columns: ["server", "heap KiB", "x bare", "x pipe", "external KiB", "RSS KiB", "x bare", "x pipe"],
      rows: peers.map((peer) => [
        peer.name,
        kilobytes(median(figures(peer, "heapUsed"))),
        against(peer, "heapUsed", bareData),
        against(peer, "heapUsed", bare),
        kilobytes(median(figures(peer, "external"))),
        kilobytes(median(figures(peer, "rss"))),
        against(peer, "rss", bareData),
        against(peer, "rss", bare)
      ]),
      samples: Object.fromEntries([...grown].map(([peer, one]) => [peer.name, one])),
      title: `memory of one idle upgraded connection of ${connections}, after collection${
        connections < options.connections ? ` (ulimit -n allows no more, ${options.connections} were asked for)` : ""
      }`
    }
  ]
}
