/** (d) Round trips on fifty connections, alone and beside one that writes without a pause. */
import type { Options } from "../options.js"
import { bare, onUpgrade, onUpgradeStream } from "../peers.js"
import { type Begin, bound, byName, figures, middle, withPeers } from "../rounds.js"
import { fixed, ratio, type Table, thousands } from "../stats.js"

const begin =
  (flood: boolean): Begin =>
  (load, target) =>
    load.call("pingPong", { connections: 50, flood, size: 64, target })

export const fairness = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers([bare, onUpgrade, onUpgradeStream], options, async (runner) => {
    await runner.warm(options.warmup / 2, begin(true))
    const alone = await runner.rounds("alone", begin(false))
    const beside = await runner.rounds("beside a flood", begin(true))
    return [
      {
        columns: [
          "server",
          "p50 ms",
          "p99 ms",
          "flooded p50",
          "flooded p99",
          "p99 x alone",
          "round trips/s",
          "flood MB/s",
          "limit"
        ],
        rows: [...alone].map(([peer, quiet]) => {
          const flooded = beside.get(peer)!
          return [
            peer.name,
            fixed(middle(quiet, "p50"), 2),
            fixed(middle(quiet, "p99"), 2),
            fixed(middle(flooded, "p50"), 2),
            fixed(middle(flooded, "p99"), 2),
            fixed(ratio(figures(flooded, "p99"), figures(quiet, "p99")), 2),
            thousands(middle(flooded, "rate")),
            thousands(middle(flooded, "flooded") / 1e6),
            bound(flooded)
          ]
        }),
        samples: {
          ...byName(alone),
          ...Object.fromEntries(Object.entries(byName(beside)).map(([name, one]) => [`${name}, flooded`, one]))
        },
        title: "fairness: 64 B ping-pong on 50 connections while one more floods"
      }
    ]
  })
