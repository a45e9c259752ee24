/** (h) Messages that are inflated and deflated again, with and without the context of those before. */
import { compare } from "../compare.js"
import type { Options } from "../options.js"
import { bun, deflate, uws, ws } from "../peers.js"
import { type Begin, withPeers } from "../rounds.js"
import type { Table } from "../stats.js"

const offers = {
  "a context": "permessage-deflate",
  "no context": "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
}

export const deflateCell = (options: Options): Promise<ReadonlyArray<Table>> =>
  withPeers([ws, uws, bun, deflate], options, async (runner) => {
    const tables: Array<Table> = []
    for (const [name, extension] of Object.entries(offers)) {
      const offering = <A extends { readonly path: string }>(target: A) => ({ ...target, extension, path: "/deflate" })
      const begin: Begin = (load, target) =>
        load.call("messages", {
          connections: 20,
          inFlight: 16,
          size: 1024,
          target: offering(target),
          type: "text"
        })
      await runner.warm(0, (load, target) => load.call("verifyMessages", offering(target)))
      await runner.warm(options.warmup / 2, begin)
      tables.push(
        compare(await runner.rounds(`deflate, ${name}`, begin), {
          aims: [{ aim: 1, base: ws, peer: deflate }],
          bases: [ws, uws],
          latency: false,
          sizes: true,
          title: `deflate: 1 KiB of JSON, 16 in flight, 20 connections, ${name} kept`,
          unit: "messages"
        })
      )
    }
    return tables
  })
