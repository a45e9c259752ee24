/** (e) A gibibyte against somebody who does not read: how far the resident set of the server grows. */
import type { Load, Server } from "../child.js"
import type { Target } from "../commands.js"
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
  sleep,
  startLoad,
  startServer,
  stuck,
  targetOf
} from "../peers.js"
import { megabytes, type Table } from "../stats.js"

interface Outcome {
  /** Bytes that whoever writes got rid of while nobody read. */
  readonly taken: number
  readonly before: number
  readonly growth: number
}

/** Answers with `taken`. */
type Act = (load: Load, target: Target, server: Server) => Promise<number>

/** Code and pools are warm by echoes; a push beforehand would leave behind what is to be measured. */
const warm = async (peer: Peer, load: Load, server: Server): Promise<void> => {
  const echo = [bare, onUpgrade].find((one) => one.server === peer.server)!
  for (let i = 0; i < 32; i++) {
    await load.call("verify", targetOf(echo, server))
  }
}

const measure = async (peer: Peer, options: Options, act: Act): Promise<Outcome> => {
  const server = await startServer(peer, options)
  const load = await startLoad(options)
  try {
    await warm(peer, load, server)
    const before = await server.call("memory")
    await server.call("watch")
    const taken = await act(load, targetOf(peer, server), server)
    const growth = (await server.call("peak")) - before.rss
    note(`stalled: ${peer.name}: ${megabytes(growth)} MiB`)
    return { before: before.rss, growth, taken }
  } finally {
    await Promise.all([server.stop(), load.stop()])
  }
}

const stallSeconds = 3

export const stalled = async (options: Options): Promise<ReadonlyArray<Table>> => {
  const samples: Record<string, ReadonlyArray<Outcome>> = {}
  const client: Act = async (load, target, server) => {
    await load.call("stall", target)
    await sleep(stallSeconds)
    const taken = await server.call("pushed")
    const received = await load.call("resume")
    if (received !== options.push) {
      throw new Error(`${received} bytes arrived of ${options.push}`)
    }
    return taken
  }
  const handler: Act = (load, target) => load.call("push", { bytes: options.push, quiet: 1000, target })
  for (const peer of chosen([barePush, pushWrite, pushSink], options)) {
    samples[`the client, ${peer.name}`] = [await measure(peer, options, client)]
  }
  for (const peer of chosen([bareNever, never, stuck], options)) {
    samples[`the handler, ${peer.name}`] = [await measure(peer, options, handler)]
  }
  return [
    {
      columns: ["who stalls, and against whom", "taken MiB", "RSS before MiB", "growth MiB"],
      rows: Object.entries(samples).map(([name, [{ before, growth, taken }]]) => [
        name,
        megabytes(taken),
        megabytes(before),
        megabytes(growth)
      ]),
      samples,
      title: `${megabytes(options.push)} MiB against a reader that stalls, the client for ${stallSeconds} s before it reads all, the handler for ever; taken: what the writer got rid of meanwhile, most of it into the kernel`
    }
  ]
}
