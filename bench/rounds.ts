import type { Load, Server } from "./child.js"
import type { Measured, Target } from "./commands.js"
import type { Options } from "./options.js"
import { chosen, note, order, type Peer, sleep, startBackend, startLoad, startServer, targetOf } from "./peers.js"
import { fixed, median } from "./stats.js"

export interface Sample extends Measured {
  /** Microseconds of CPU that one unit of `rate` costs the server. */
  readonly cost: number
  /** The share of a core that the server took. */
  readonly busy: number
}

/** Samples of each peer, one a round, in the order of the rounds. */
export type Samples = ReadonlyMap<Peer, ReadonlyArray<Sample>>

export interface Runner {
  readonly peers: ReadonlyArray<Peer>
  readonly load: Load
  /** Starts a load on each server for that long, without measuring. */
  readonly warm: (seconds: number, begin: Begin) => Promise<void>
  /** The given load on each server in turn, round after round. */
  readonly rounds: (label: string, begin: Begin) => Promise<Samples>
}

export type Begin = (load: Load, target: Target) => Promise<void>

/**
 * All servers are up, each in its process, for as long as the cell takes; only the one that is measured has work. One
 * load process serves all of them.
 */
export const withPeers = async <A>(
  peers: ReadonlyArray<Peer>,
  options: Options,
  use: (runner: Runner) => Promise<A>,
  behind?: Peer
): Promise<A> => {
  const servers = new Map<Peer, Server>()
  const load = await startLoad(options)
  const backend = behind && (await startBackend(behind, options))
  const run = async <B>(peer: Peer, begin: Begin, lead: number, measure: (server: Server) => Promise<B>) => {
    const server = servers.get(peer)!
    await begin(load, targetOf(peer, server))
    await sleep(lead)
    const result = await measure(server)
    await load.call("stop")
    return result
  }
  const sample = async (server: Server): Promise<Sample> => {
    const backendBefore = (await backend?.call("cpu")) ?? 0
    const before = await server.call("cpu")
    const measured = await load.call("measure", { seconds: options.seconds })
    const cpu = (await server.call("cpu")) - before
    const backendCpu = ((await backend?.call("cpu")) ?? 0) - backendBefore
    return {
      ...measured,
      busy: cpu / 1e6 / options.seconds,
      cost: cpu / options.seconds / measured.rate,
      cpu: measured.cpu + backendCpu / 1e6 / options.seconds
    }
  }
  try {
    for (const peer of chosen(peers, options)) {
      servers.set(peer, await startServer(peer, options, backend))
    }
    const started = [...servers.keys()]
    return await use({
      load,
      peers: started,
      rounds: async (label, begin) => {
        const samples = new Map<Peer, Array<Sample>>(started.map((peer) => [peer, []]))
        for (let round = 0; round < options.rounds; round++) {
          for (const peer of order(started, round)) {
            const one = await run(peer, begin, Math.min(0.5, options.seconds / 4), sample)
            if (one.errors > 0) {
              note(`${label}: ${peer.name}: ${one.errors} connections failed`)
            }
            samples.get(peer)!.push(one)
            note(`${label}, round ${round + 1}: ${peer.name}: ${fixed(one.rate)}/s`)
          }
        }
        return samples
      },
      warm: async (seconds, begin) => {
        for (const peer of started) {
          note(`warming up ${peer.name} for ${seconds} s`)
          await run(peer, begin, seconds, async () => undefined)
        }
      }
    })
  } finally {
    await Promise.all([load, ...(backend ? [backend] : []), ...servers.values()].map((child) => child.stop()))
  }
}

export const middle = (samples: ReadonlyArray<Sample>, figure: keyof Sample): number =>
  median(samples.map((sample) => sample[figure]))

export const byName = (samples: Samples): Record<string, ReadonlyArray<Sample>> =>
  Object.fromEntries([...samples].map(([peer, one]) => [peer.name, one]))

export const figures = (samples: ReadonlyArray<Sample>, figure: keyof Sample): ReadonlyArray<number> =>
  samples.map((sample) => sample[figure])

/**
 * Who had its core full. Where it was the load, or somebody else on the machine, the rate tells little about the
 * server; what a unit cost the server still does.
 */
export const bound = (samples: ReadonlyArray<Sample>): string =>
  middle(samples, "busy") > 0.9 ? "server" : middle(samples, "cpu") > 0.9 ? "load" : "others"
