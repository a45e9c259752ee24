/** (e) A gibibyte against somebody who does not read: how far the resident set of the server grows. */
import type { Child } from "../child.js"
import type { LoadCommands, ServerCommands, Target } from "../commands.js"
import type { Options } from "../options.js"
import {
  bareNever,
  barePush,
  chosen,
  never,
  note,
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
  readonly growth: number
}

type Act = (load: Child<LoadCommands>, target: Target) => Promise<number>

const measure = async (peer: Peer, options: Options, warm: Act, act: Act): Promise<Outcome> => {
  const server: Child<ServerCommands> = await startServer(peer, options)
  const load = await startLoad(options)
  try {
    const target = targetOf(peer, server)
    await warm(load, target)
    const before = await server.call("memory")
    await server.call("watch")
    const moved = await act(load, target)
    const growth = (await server.call("peak")) - before.rss
    note(`stalled: ${peer.name}: ${megabytes(growth)} MiB`)
    return { growth, moved }
  } finally {
    await Promise.all([server.stop(), load.stop()])
  }
}

const stallMilliseconds = 3000

export const stalled = async (options: Options): Promise<ReadonlyArray<Table>> => {
  const rows: Array<ReadonlyArray<string>> = []
  const samples: Record<string, ReadonlyArray<Outcome>> = {}
  for (const peer of chosen([barePush, pushWrite, pushSink], options)) {
    const outcome = await measure(
      peer,
      options,
      (load, target) => load.call("stall", { milliseconds: 0, target }),
      (load, target) => load.call("stall", { milliseconds: stallMilliseconds, target })
    )
    const { growth, moved } = outcome
    if (moved !== options.push) {
      throw new Error(`${peer.name}: ${moved} bytes arrived of ${options.push}`)
    }
    samples[peer.name] = [outcome]
    rows.push([`server pushes: ${peer.name}`, megabytes(moved), megabytes(growth)])
  }
  for (const peer of chosen([bareNever, never, stuck], options)) {
    const push: Act = (load, target) => load.call("push", { bytes: options.push, quiet: 1000, target })
    const outcome = await measure(peer, options, push, push)
    const { growth, moved } = outcome
    samples[peer.name] = [outcome]
    rows.push([`client pushes: ${peer.name}`, megabytes(moved), megabytes(growth)])
  }
  return [
    {
      columns: ["who pushes, against whom", "MiB moved", "RSS growth MiB"],
      rows,
      samples,
      title: `${megabytes(options.push)} MiB against a reader that stalls: the client for ${fixed(
        stallMilliseconds / 1000
      )} s and then reads all, the handler for ever`
    }
  ]
}
