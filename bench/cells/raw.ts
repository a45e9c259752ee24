/** (a) Bytes echoed on upgraded connections: round trips of small messages, and streams of large ones. */
import type { Options } from "../options.js"
import { bare, onUpgrade, onUpgradeStream } from "../peers.js"
import { type Begin, bound, byName, figures, middle, type Samples, withPeers } from "../rounds.js"
import { fixed, ratio, type Table, thousands } from "../stats.js"

const kibibyte = 1024

const pingPong =
  (size: number): Begin =>
  (load, target) =>
    load.call("pingPong", { connections: 50, flood: false, size, target })

const flow =
  (size: number, inFlight: number): Begin =>
  (load, target) =>
    load.call("flow", { connections: 4, inFlight, size, target })

const shapes = [
  { begin: pingPong(64), latency: true, name: "64 B ping-pong", size: 64 },
  { begin: pingPong(kibibyte), latency: true, name: "1 KiB ping-pong", size: kibibyte },
  { begin: flow(16 * kibibyte, 16), latency: false, name: "16 KiB stream", size: 16 * kibibyte },
  { begin: flow(64 * kibibyte, 8), latency: false, name: "64 KiB stream", size: 64 * kibibyte }
]

const table = (name: string, size: number, latency: boolean, samples: Samples): Table => {
  const base = samples.get(bare)
  return {
    columns: [
      "server",
      latency ? "round trips/s" : "MB/s",
      "x bare",
      ...(latency ? ["p50 ms", "p99 ms"] : []),
      "server us each",
      "cost x bare",
      "server busy",
      "load busy",
      "limit"
    ],
    rows: [...samples].map(([peer, one]) => [
      peer.name,
      latency ? thousands(middle(one, "rate")) : thousands((middle(one, "rate") * size) / 1e6),
      base ? fixed(ratio(figures(one, "rate"), figures(base, "rate")), 2) : "-",
      ...(latency ? [fixed(middle(one, "p50"), 2), fixed(middle(one, "p99"), 2)] : []),
      fixed(middle(one, "cost"), 1),
      base ? fixed(ratio(figures(one, "cost"), figures(base, "cost")), 2) : "-",
      `${fixed(middle(one, "busy") * 100)}%`,
      `${fixed(middle(one, "cpu") * 100)}%`,
      bound(one)
    ]),
    samples: byName(samples),
    title: `raw: ${name}, ${latency ? "50 connections, 1 in flight" : "4 connections, 256 KiB or 512 KiB in flight each"}`
  }
}

export const raw = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers([bare, onUpgrade, onUpgradeStream], options, async (runner) => {
    const tables: Array<Table> = []
    await runner.warm(0, (load, target) => load.call("verify", target))
    for (const shape of shapes) {
      await runner.warm(options.warmup / 2, shape.begin)
      tables.push(table(shape.name, shape.size, shape.latency, await runner.rounds(shape.name, shape.begin)))
    }
    return tables
  })
