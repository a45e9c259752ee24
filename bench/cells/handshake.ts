/** (b) Connect, request, 101, FIN, FIN: how many a second, 32 at a time. */
import { aimsOf } from "../compare.js"
import type { Options } from "../options.js"
import {
  bare,
  bun,
  codec,
  direct,
  handler,
  handlerRouter,
  onUpgrade,
  type Peer,
  platform,
  respond,
  run,
  session,
  uws,
  ws
} from "../peers.js"
import { type Begin, bound, byName, figures, middle, type Sample, withPeers } from "../rounds.js"
import { fixed, ratio, type Table, thousands } from "../stats.js"

const begin: Begin = (load, target) => load.call("handshakes", { concurrency: 32, target })

export const handshake = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers(
    [bare, codec, ws, uws, bun, platform, handler, handlerRouter, direct, session, respond, onUpgrade, run],
    options,
    async (runner) => {
      await runner.warm(options.warmup, begin)
      const samples = await runner.rounds("handshakes", begin)
      const against = (one: ReadonlyArray<Sample>, peer: Peer): string => {
        const base = samples.get(peer)
        return base ? fixed(ratio(figures(one, "rate"), figures(base, "rate")), 2) : "-"
      }
      const title = `handshakes, 32 at a time, after ${options.warmup} s of warm-up each`
      return [
        {
          aims: aimsOf("handshakes", samples, [
            { aim: 2, base: platform, peer: direct },
            { aim: 0.45, base: ws, peer: direct },
            { aim: 2, base: platform, peer: run },
            { aim: 0.45, base: ws, peer: run }
          ]),
          columns: [
            "server",
            "handshakes/s",
            "x bare",
            "x ws",
            "x platform",
            "p50 ms",
            "p99 ms",
            "server us each",
            "server busy",
            "load busy",
            "limit"
          ],
          rows: [...samples].map(([peer, one]) => [
            peer.name,
            thousands(middle(one, "rate")),
            against(one, bare),
            against(one, ws),
            against(one, platform),
            fixed(middle(one, "p50"), 1),
            fixed(middle(one, "p99"), 1),
            fixed(middle(one, "cost")),
            `${fixed(middle(one, "busy") * 100)}%`,
            `${fixed(middle(one, "cpu") * 100)}%`,
            bound(one)
          ]),
          samples: byName(samples),
          title
        }
      ]
    }
  )
