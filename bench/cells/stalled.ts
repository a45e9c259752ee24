/** (e) A gibibyte against somebody who does not read: how far the resident set of the server grows. */
import type { Child } from "../child.js"
import type { LoadCommands, ServerCommands, Target } from "../commands.js"
import type { Options } from "../options.js"
import {
  bare,
  bareNever,
  barePush,
  chosen,
  never,
  note,
  onUpgrade,
  type Peer,
  pushSink,
  pushWrite,
  startLoad,
  startServer,
  stuck,
  targetOf
} from "../peers.js"
import { fixed, megabytes, type Table } from "../stats.js"

interface Outcome {
  readonly moved: number
  readonly before: number
  readonly growth: number
}

type Act = (load: Child<LoadCommands>, target: Target) => Promise<number>

/** Code and pools are warm by echoes; a push beforehand would leave behind what is to be measured. */
const warm = async (peer: Peer, load: Child<LoadCommands>, server: Child<ServerCommands>): Promise<void> => {
  const echo = [bare, onUpgrade].find((one) => one.server === peer.server)!
  for (let i = 0; i < 32; i++) {
    await load.call("verify", targetOf(echo, server))
  }
}

const measure = async (peer: Peer, options: Options, act: Act): Promise<Outcome> => {
  const server: Child<ServerCommands> = await startServer(peer, options)
  const load = await startLoad(options)
  try {
    await warm(peer, load, server)
    const before = await server.call("memory")
    await server.call("watch")
    const moved = await act(load, targetOf(peer, server))
    const growth = (await server.call("peak")) - before.rss
    note(`stalled: ${peer.name}: ${megabytes(growth)} MiB`)
    return { before: before.rss, growth, moved }
  } finally {
    await Promise.all([server.stop(), load.stop()])
  }
}

const stallMilliseconds = 3000

export const stalled = async (options: Options): Promise<ReadonlyArray<Table>> => {
  const rows: Array<ReadonlyArray<string>> = []
  const samples: Record<string, ReadonlyArray<Outcome>> = {}
  for (const peer of chosen([barePush, pushWrite, pushSink], options)) {
    const outcome = await measure(peer, options, (load, target) =>
      load.call("stall", { milliseconds: stallMilliseconds, target })
    )
    const { before, growth, moved } = outcome
    if (moved !== options.push) {
      throw new Error(`${peer.name}: ${moved} bytes arrived of ${options.push}`)
    }
    samples[peer.name] = [outcome]
    rows.push([`server pushes: ${peer.name}`, megabytes(moved), megabytes(before), megabytes(growth)])
  }
  for (const peer of chosen([bareNever, never, stuck], options)) {
    const outcome = await measure(peer, options, (load, target) =>
      load.call("push", { bytes: options.push, quiet: 1000, target })
    )
    const { before, growth, moved } = outcome
    samples[peer.name] = [outcome]
    rows.push([`client pushes: ${peer.name}`, megabytes(moved), megabytes(before), megabytes(growth)])
  }
  return [
    {
      columns: ["who pushes, against whom", "MiB moved", "RSS before MiB", "growth MiB"],
      rows,
      samples,
      title: `${megabytes(options.push)} MiB against a reader that stalls: the client for ${fixed(
        stallMilliseconds / 1000
      )} s and then reads all, the handler for ever`
    }
  ]
}
