/** (i) Bytes and messages through a proxy; the backend shares the core of the load. */
import type { Target } from "../commands.js"
import { compare, type Wanted } from "../compare.js"
import type { Options } from "../options.js"
import { bare, codec, httpProxy, join, type Peer, pipes, reverseProxy } from "../peers.js"
import { type Begin, withPeers } from "../rounds.js"
import type { Table } from "../stats.js"

const kibibyte = 1024

interface Shape {
  readonly name: string
  readonly begin: Begin
  readonly unit: string
  readonly latency: boolean
}

/** Behind the proxy. http-proxy passes on no other protocol, and what it is is all the same to the bytes. */
const at = (target: Target, { path }: Peer): Target => ({
  ...target,
  path: target.path + path,
  protocol: "websocket"
})

const bytes: ReadonlyArray<Shape> = [
  {
    begin: (load, target) =>
      load.call("flow", { connections: 4, inFlight: 8, size: 64 * kibibyte, target: at(target, bare) }),
    latency: false,
    name: "64 KiB echoed, 8 in flight, 4 connections",
    unit: "chunks"
  },
  {
    begin: (load, target) =>
      load.call("pingPong", { connections: 50, flood: false, size: 64, target: at(target, bare) }),
    latency: true,
    name: "64 B echoed, 1 in flight, 50 connections",
    unit: "round trips"
  }
]

const messages: ReadonlyArray<Shape> = [
  { connections: 50, inFlight: 1, name: "32 B", size: 32 },
  { connections: 20, inFlight: 16, name: "1 KiB", size: kibibyte },
  { connections: 4, inFlight: 4, name: "64 KiB", size: 64 * kibibyte }
].map(({ name, ...shape }) => ({
  begin: (load, target) => load.call("messages", { ...shape, target: at(target, codec), type: "binary" }),
  latency: shape.inFlight === 1,
  name: `WebSocket, ${name}, ${shape.inFlight} in flight, ${shape.connections} connections`,
  unit: "messages"
}))

const through = (
  backend: Peer,
  proxies: ReadonlyArray<Peer>,
  shapes: ReadonlyArray<Shape>,
  aims: ReadonlyArray<Wanted>,
  verify: Begin,
  options: Options
): Promise<ReadonlyArray<Table>> =>
  withPeers(
    proxies,
    options,
    async (runner) => {
      const tables: Array<Table> = []
      await runner.warm(0, verify)
      for (const { begin, latency, name, unit } of shapes) {
        await runner.warm(options.warmup / 2, begin)
        const samples = await runner.rounds(name, begin)
        tables.push(compare(samples, { aims, bases: [pipes, httpProxy], latency, title: `tunnel: ${name}`, unit }))
      }
      return tables
    },
    backend
  )

export const tunnel = async (options: Options): Promise<ReadonlyArray<Table>> => [
  ...(await through(
    bare,
    [pipes, httpProxy, join],
    bytes,
    [
      { aim: 0.9, base: pipes, peer: join },
      { aim: 1, base: httpProxy, peer: join }
    ],
    (load, target) => load.call("verify", at(target, bare)),
    options
  )),
  ...(await through(
    codec,
    [pipes, httpProxy, reverseProxy],
    messages,
    [{ aim: 1, base: httpProxy, peer: reverseProxy }],
    (load, target) => load.call("verifyMessages", at(target, codec)),
    options
  ))
]
