/** (f) Messages echoed by WebSockets. */
import type { Messages } from "../commands.js"
import { compare, type Wanted } from "../compare.js"
import type { Options } from "../options.js"
import { bun, codec, platform, run, runBatch, stream, uws, ws } from "../peers.js"
import { type Begin, withPeers } from "../rounds.js"
import type { Table } from "../stats.js"

const kibibyte = 1024

interface Shape extends Omit<Messages, "target"> {
  readonly name: string
  readonly aims: ReadonlyArray<Wanted>
}

const aims = (ofWs: number, ofUws: number): ReadonlyArray<Wanted> => [
  { aim: ofWs, base: ws, peer: run },
  { aim: ofUws, base: uws, peer: run },
  { aim: ofWs, base: ws, peer: runBatch },
  { aim: ofUws, base: uws, peer: runBatch }
]

const shapes: ReadonlyArray<Shape> = [
  { aims: aims(1, 0.9), connections: 50, inFlight: 1, name: "32 B, 1 in flight", size: 32, type: "binary" },
  {
    aims: [...aims(15, 1.5), { aim: 8, base: ws, peer: stream }, { aim: 0.8, base: uws, peer: stream }],
    connections: 50,
    inFlight: 64,
    name: "32 B, 64 in flight",
    size: 32,
    type: "binary"
  },
  { aims: [], connections: 50, inFlight: 64, name: "32 B of text, 64 in flight", size: 32, type: "text" },
  { aims: aims(3, 0.4), connections: 20, inFlight: 16, name: "1 KiB, 16 in flight", size: kibibyte, type: "binary" },
  {
    aims: aims(2.5, 0.5),
    connections: 4,
    inFlight: 4,
    name: "64 KiB, 4 in flight",
    size: 64 * kibibyte,
    type: "binary"
  },
  {
    aims: aims(2.5, 0.5),
    connections: 2,
    inFlight: 2,
    name: "1 MiB, 2 in flight",
    size: kibibyte * kibibyte,
    type: "binary"
  }
]

export const websocket = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers([codec, ws, platform, uws, bun, run, runBatch, stream], options, async (runner) => {
    const tables: Array<Table> = []
    await runner.warm(0, (load, target) => load.call("verifyMessages", target))
    for (const { aims, name, ...shape } of shapes) {
      const begin: Begin = (load, target) => load.call("messages", { ...shape, target })
      await runner.warm(options.warmup / 2, begin)
      tables.push(
        compare(await runner.rounds(name, begin), {
          aims,
          bases: [ws, uws],
          latency: shape.inFlight === 1,
          title: `websocket: ${name}, ${shape.connections} connections`,
          unit: "messages"
        })
      )
    }
    return tables
  })
