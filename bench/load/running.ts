import type * as net from "node:net"
import type { Measured, Target } from "../commands.js"
import { percentile } from "../stats.js"
import { finish, open, requestOf } from "./open.js"

export interface Running {
  /** What the rate counts. */
  done: number
  /** The bytes in which that came, where they tell something. */
  received: number
  errors: number
  flooded: number
  measuring: boolean
  latencies: Float64Array
  readonly sockets: Map<net.Socket, Target>
  stopped: boolean
}

let running: Running | undefined

export const start = (): Running => {
  if (running) {
    throw new Error("a load is running already")
  }
  running = {
    done: 0,
    errors: 0,
    flooded: 0,
    latencies: new Float64Array(1 << 16),
    measuring: false,
    received: 0,
    sockets: new Map(),
    stopped: false
  }
  return running
}

export const took = (run: Running, since: number): void => {
  if (!run.measuring) {
    return
  }
  if (run.done === run.latencies.length) {
    const wider = new Float64Array(run.latencies.length * 2)
    wider.set(run.latencies)
    run.latencies = wider
  }
  run.latencies[run.done++] = performance.now() - since
}

/** Opens connections that stay, and waits until all have switched. */
export const openAll = (
  run: Running,
  target: Target,
  connections: number,
  onBytes: (socket: net.Socket, index: number, length: number, start: number) => void
): Promise<ReadonlyArray<net.Socket>> => {
  const request = requestOf(target)
  const sockets = Array.from(
    { length: connections },
    (_, index) =>
      new Promise<net.Socket>((resolve, reject) => {
        const socket = open(target.port, request, {
          onBytes: (start, end) => {
            onBytes(socket, index, end - start, start)
            return true
          },
          onClose: (error) => {
            run.sockets.delete(socket)
            if (!run.stopped) {
              run.errors++
            }
            reject(error ?? new Error("closed"))
          },
          onSwitch: resolve
        })
        run.sockets.set(socket, target)
      })
  )
  return Promise.all(sockets)
}

export const measure = async (input: { readonly seconds: number }): Promise<Measured> => {
  if (!running) {
    throw new Error("nothing to measure")
  }
  const run = running
  run.done = 0
  run.errors = 0
  run.flooded = 0
  run.received = 0
  const cpuBefore = process.cpuUsage()
  const before = performance.now()
  run.measuring = true
  await new Promise((resolve) => setTimeout(resolve, input.seconds * 1000))
  run.measuring = false
  const seconds = (performance.now() - before) / 1000
  const cpu = process.cpuUsage(cpuBefore)
  const latencies = run.latencies.slice(0, run.done).sort()
  return {
    cpu: (cpu.user + cpu.system) / 1e6 / seconds,
    errors: run.errors,
    flooded: run.flooded / seconds,
    p50: percentile(latencies, 50),
    p99: percentile(latencies, 99),
    rate: run.done / seconds,
    size: run.received / run.done
  }
}

const closed = (socket: net.Socket): Promise<void> =>
  new Promise((resolve) => (socket.closed ? resolve() : socket.once("close", () => resolve())))

export const stop = async (): Promise<void> => {
  if (!running) {
    return
  }
  const run = running
  running = undefined
  run.stopped = true
  const sockets = [...run.sockets.keys()]
  for (const [socket, target] of run.sockets) {
    finish(socket, target)
  }
  const late = setTimeout(() => {
    process.stderr.write(`${run.sockets.size} connections did not end within 5 s and are destroyed\n`)
    for (const socket of run.sockets.keys()) {
      socket.destroy()
    }
  }, 5000)
  await Promise.all(sockets.map(closed))
  clearTimeout(late)
}
