/** (c) What an idle upgraded connection holds: the growth from some to many, in a fresh process each time. */
import { execFileSync } from "node:child_process"
import type { Memory } from "../commands.js"
import type { Options } from "../options.js"
import {
  bare,
  bareData,
  chosen,
  codec,
  direct,
  note,
  onUpgrade,
  onUpgradeStream,
  order,
  type Peer,
  platform,
  respond,
  run,
  runBatch,
  session,
  sleep,
  startLoad,
  startServer,
  stream,
  targetOf,
  uws,
  ws
} from "../peers.js"
import { type Aim, fixed, kilobytes, median, ratio, type Table } from "../stats.js"

const all = [
  bareData,
  bare,
  codec,
  ws,
  uws,
  platform,
  direct,
  session,
  respond,
  onUpgrade,
  onUpgradeStream,
  run,
  runBatch,
  stream
]

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
  const ratioOf = (peer: Peer, figure: keyof Memory, base: Peer): number =>
    grown.has(peer) && grown.has(base) ? ratio(figures(peer, figure), figures(base, figure)) : Number.NaN
  const against = (peer: Peer, figure: keyof Memory, base: Peer): string => fixed(ratioOf(peer, figure, base), 2)
  const atMost = (peer: Peer, base: Peer, aim: number): ReadonlyArray<Aim> =>
    (["heapUsed", "rss"] as const).map((figure) => ({
      aim,
      atMost: true,
      result: ratioOf(peer, figure, base),
      what: `memory, ${figure === "rss" ? "resident" : "heap"}: ${peer.name} over ${base.name}`
    }))
  return [
    {
      aims: [...atMost(direct, bareData, 5), ...atMost(run, ws, 1.5)],
      columns: [
        "server",
        "heap KiB",
        "x bare",
        "x pipe",
        "x ws",
        "external KiB",
        "RSS KiB",
        "x bare",
        "x pipe",
        "x ws"
      ],
      rows: peers.map((peer) => [
        peer.name,
        kilobytes(median(figures(peer, "heapUsed"))),
        against(peer, "heapUsed", bareData),
        against(peer, "heapUsed", bare),
        against(peer, "heapUsed", ws),
        kilobytes(median(figures(peer, "external"))),
        kilobytes(median(figures(peer, "rss"))),
        against(peer, "rss", bareData),
        against(peer, "rss", bare),
        against(peer, "rss", ws)
      ]),
      samples: Object.fromEntries([...grown].map(([peer, one]) => [peer.name, one])),
      title: `memory of one idle upgraded connection of ${connections}, after collection${
        connections < options.connections ? ` (ulimit -n allows no more, ${options.connections} were asked for)` : ""
      }`
    }
  ]
}
