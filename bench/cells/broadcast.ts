/** (g) One message to a thousand members. */
import { compare } from "../compare.js"
import type { Options } from "../options.js"
import { bun, codec, topic, uws, ws } from "../peers.js"
import { type Begin, withPeers } from "../rounds.js"
import type { Table } from "../stats.js"

const members = 1000

const begin =
  (inFlight: number): Begin =>
  (load, target) =>
    load.call("broadcast", {
      inFlight,
      member: { ...target, path: "/member" },
      members,
      publisher: { ...target, path: "/publish" },
      size: 1024
    })

export const broadcast = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers([codec, ws, uws, bun, topic], options, async (runner) => {
    const tables: Array<Table> = []
    for (const inFlight of [1, 16]) {
      await runner.warm(options.warmup / 2, begin(inFlight))
      tables.push(
        compare(await runner.rounds(`broadcast, ${inFlight} in flight`, begin(inFlight)), {
          aims: [{ aim: 3, base: ws, peer: topic }],
          bases: [ws, uws],
          latency: inFlight === 1,
          title: `broadcast: 1 KiB to ${members} members, ${inFlight} in flight`,
          unit: "broadcasts"
        })
      )
    }
    return tables
  })
