import type { AddressInfo, Server } from "node:net"
import { setImmediate as tick } from "node:timers/promises"
import { answer, type Memory, ready } from "../commands.js"

/** There with --expose-gc, which Bun does not know. */
declare const gc: (() => void) | undefined

/** What a server pushes at a stalled reader. */
export const pushBytes = Number(process.env.BENCH_PUSH_BYTES)
export const pushChunk = Buffer.alloc(64 * 1024, "p")

/** Where a proxy finds its backend. */
export const backendPort = Number(process.env.BENCH_BACKEND_PORT)

let pushed = 0

/** A write of a chunk was taken. */
export const took = (): void => {
  pushed += pushChunk.length
}

export const listening = (port: number): void => {
  let peak = 0
  let timer: NodeJS.Timeout | undefined
  const sample = (): void => {
    peak = Math.max(peak, process.memoryUsage.rss())
  }
  answer({
    cpu: () => {
      const { system, user } = process.cpuUsage()
      return system + user
    },
    memory: async (): Promise<Memory> => {
      for (let i = 0; i < 4; i++) {
        gc?.()
        await tick()
      }
      const { external, heapUsed, rss } = process.memoryUsage()
      return { external, heapUsed, rss }
    },
    peak: () => {
      sample()
      clearInterval(timer)
      return peak
    },
    pushed: () => pushed,
    watch: () => {
      peak = 0
      timer = setInterval(sample, 10)
    }
  })
  ready(port)
}

export const listen = (server: Server): void => {
  server.listen(0, "127.0.0.1", () => listening((server.address() as AddressInfo).port))
}
