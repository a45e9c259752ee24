/**
 * The load: node:net with one read buffer for all connections, requests and messages encoded beforehand. What comes
 * back is counted where it lies, so that a byte costs the load less than it costs any server.
 */
import * as net from "node:net"
import { answer, type Flow, type Handshakes, type Measured, type PingPong, ready, type Target } from "./commands.js"
import { percentile } from "./stats.js"

const scratch = Buffer.allocUnsafe(1024 * 1024)

const requestOf = (target: Target): Buffer =>
  Buffer.from(
    `GET ${target.path} HTTP/1.1\r\nHost: 127.0.0.1:${target.port}\r\nConnection: Upgrade\r\nUpgrade: ${
      target.protocol
    }\r\n${
      target.protocol === "websocket"
        ? "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        : ""
    }\r\n`
  )

interface Handlers {
  readonly onSwitch: (socket: net.Socket) => void
  /** Bytes of the new protocol, in `scratch` from start to end; false stops the reading. */
  readonly onBytes: (start: number, end: number) => boolean
  readonly onClose: (error: Error | undefined) => void
}

const open = (port: number, request: Buffer, handlers: Handlers, noDelay = true): net.Socket => {
  let head = ""
  let switched = false
  let failure: Error | undefined
  const socket = net.connect({
    host: "127.0.0.1",
    noDelay,
    onread: {
      buffer: scratch,
      callback: (length) => {
        if (switched) {
          return handlers.onBytes(0, length)
        }
        head += scratch.toString("latin1", 0, length)
        const end = head.indexOf("\r\n\r\n")
        if (end === -1) {
          return true
        }
        if (!head.startsWith("HTTP/1.1 101 ")) {
          failure = new Error(`expected a 101, got ${JSON.stringify(head.slice(0, 200))}`)
          socket.destroy()
          return false
        }
        switched = true
        const start = length - (head.length - end - 4)
        handlers.onSwitch(socket)
        return start < length ? handlers.onBytes(start, length) : true
      }
    },
    port
  })
  socket.write(request)
  socket.on("error", (error) => {
    failure = error
  })
  socket.on("close", () => handlers.onClose(failure ?? (switched ? undefined : new Error("closed before a 101"))))
  return socket
}

interface Running {
  /** What the rate counts. */
  done: number
  errors: number
  flooded: number
  measuring: boolean
  latencies: Float64Array
  readonly sockets: Set<net.Socket>
  stopped: boolean
}

let running: Running | undefined

const start = (): Running => {
  if (running) {
    throw new Error("a load is running already")
  }
  running = {
    done: 0,
    errors: 0,
    flooded: 0,
    latencies: new Float64Array(1 << 16),
    measuring: false,
    sockets: new Set(),
    stopped: false
  }
  return running
}

const took = (run: Running, since: number): void => {
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
const openAll = (
  run: Running,
  target: Target,
  connections: number,
  onBytes: (socket: net.Socket, index: number, length: number) => void
): Promise<ReadonlyArray<net.Socket>> => {
  const request = requestOf(target)
  const sockets = Array.from(
    { length: connections },
    (_, index) =>
      new Promise<net.Socket>((resolve, reject) => {
        const socket = open(target.port, request, {
          onBytes: (start, end) => {
            onBytes(socket, index, end - start)
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
        run.sockets.add(socket)
      })
  )
  return Promise.all(sockets)
}

const pingPong = async (input: PingPong): Promise<void> => {
  const run = start()
  const message = Buffer.alloc(input.size, "m")
  const missing = new Array<number>(input.connections).fill(input.size)
  const sent = new Float64Array(input.connections)
  const send = (socket: net.Socket, index: number): void => {
    missing[index] = input.size
    sent[index] = performance.now()
    socket.write(message)
  }
  const sockets = await openAll(run, input.target, input.connections, (socket, index, length) => {
    missing[index] -= length
    if (missing[index] <= 0) {
      took(run, sent[index])
      if (!run.stopped) {
        send(socket, index)
      }
    }
  })
  sockets.forEach(send)
  if (input.flood) {
    await flood(run, input.target)
  }
}

const flood = async (run: Running, target: Target): Promise<void> => {
  const chunk = Buffer.alloc(64 * 1024, "f")
  const [socket] = await openAll(run, target, 1, (_socket, _index, length) => {
    if (run.measuring) {
      run.flooded += length
    }
  })
  // A little in each turn of the loop, or the load would keep its own round trips waiting.
  const fill = (): void => {
    for (let i = 0; i < 4; i++) {
      if (run.stopped || !socket.write(chunk)) {
        return
      }
    }
    setImmediate(fill)
  }
  socket.on("drain", fill)
  fill()
}

const flow = async (input: Flow): Promise<void> => {
  const run = start()
  const message = Buffer.alloc(input.size, "m")
  const received = new Array<number>(input.connections).fill(0)
  const sockets = await openAll(run, input.target, input.connections, (socket, index, length) => {
    received[index] += length
    const messages = Math.floor(received[index] / input.size)
    if (messages === 0) {
      return
    }
    received[index] -= messages * input.size
    if (run.measuring) {
      run.done += messages
    }
    if (run.stopped) {
      return
    }
    socket.cork()
    for (let i = 0; i < messages; i++) {
      socket.write(message)
    }
    socket.uncork()
  })
  for (const socket of sockets) {
    for (let i = 0; i < input.inFlight; i++) {
      socket.write(message)
    }
  }
}

/** Connect, ask, be answered 101, say FIN, wait for the server's, and again. */
const handshakes = async (input: Handshakes): Promise<void> => {
  const run = start()
  const request = requestOf(input.target)
  const next = (): void => {
    const since = performance.now()
    const socket = open(input.target.port, request, {
      onBytes: () => true,
      onClose: (error) => {
        run.sockets.delete(socket)
        if (error) {
          run.errors++
          if (run.errors > 1000) {
            run.stopped = true
          }
        }
        if (!run.stopped) {
          next()
        }
      },
      onSwitch: () => {
        took(run, since)
        socket.end()
      }
    })
    run.sockets.add(socket)
  }
  for (let i = 0; i < input.concurrency; i++) {
    next()
  }
}

const measure = async (input: { readonly seconds: number }): Promise<Measured> => {
  if (!running) {
    throw new Error("nothing to measure")
  }
  const run = running
  run.done = 0
  run.errors = 0
  run.flooded = 0
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
    rate: run.done / seconds
  }
}

const closed = (socket: net.Socket): Promise<void> =>
  new Promise((resolve) => (socket.closed ? resolve() : socket.once("close", () => resolve())))

const stop = async (): Promise<void> => {
  if (!running) {
    return
  }
  const run = running
  running = undefined
  run.stopped = true
  const sockets = [...run.sockets]
  for (const socket of sockets) {
    socket.end()
  }
  const late = setTimeout(() => {
    process.stderr.write(`${run.sockets.size} connections did not end within 5 s and are destroyed\n`)
    for (const socket of run.sockets) {
      socket.destroy()
    }
  }, 5000)
  await Promise.all(sockets.map(closed))
  clearTimeout(late)
}

const verify = (target: Target): Promise<void> =>
  new Promise((resolve, reject) => {
    const sent = Buffer.allocUnsafe(1024 * 1024 + 7)
    for (let i = 0; i < sent.length; i++) {
      sent[i] = (i * 31 + (i >> 8)) & 0xff
    }
    let position = 0
    const socket = open(target.port, requestOf(target), {
      onBytes: (start, end) => {
        if (sent.compare(scratch, start, end, position, position + (end - start)) !== 0) {
          reject(new Error(`wrong bytes came back at ${position}`))
          socket.destroy()
          return false
        }
        position += end - start
        if (position === sent.length) {
          socket.end()
        }
        return true
      },
      onClose: (error) =>
        error === undefined && position === sent.length
          ? resolve()
          : reject(error ?? new Error(`${position} of ${sent.length} bytes came back`)),
      onSwitch: () => socket.write(sent)
    })
  })

const held = new Set<net.Socket>()

const hold = async (input: { readonly target: Target; readonly connections: number }): Promise<void> => {
  const request = requestOf(input.target)
  let left = input.connections
  const one = async (): Promise<void> => {
    while (left > 0) {
      left--
      await new Promise<void>((resolve, reject) => {
        const socket = open(input.target.port, request, {
          onBytes: () => true,
          onClose: (error) => {
            held.delete(socket)
            reject(error ?? new Error("closed"))
          },
          onSwitch: () => {
            held.add(socket)
            resolve()
          }
        })
      })
    }
  }
  await Promise.all(Array.from({ length: 64 }, one))
}

let resume: () => Promise<number> = () => Promise.reject(new Error("nothing is stalled"))

const stall = (target: Target): Promise<void> =>
  new Promise((resolve, reject) => {
    let received = 0
    let reading = false
    let ended: (received: number) => void = () => {}
    const socket = open(target.port, requestOf(target), {
      onBytes: (start, end) => {
        received += end - start
        return reading
      },
      onClose: (error) => (error ? reject(error) : ended(received)),
      onSwitch: () => resolve()
    })
    resume = () =>
      new Promise((resolve) => {
        ended = resolve
        reading = true
        socket.resume()
      })
  })

const push = (input: { readonly target: Target; readonly bytes: number; readonly quiet: number }): Promise<number> =>
  new Promise((resolve, reject) => {
    const chunk = Buffer.alloc(64 * 1024, "p")
    let offered = 0
    let taken = 0
    const request = requestOf(input.target)
    const socket = open(input.target.port, request, {
      onBytes: () => true,
      onClose: (error) => (error ? reject(error) : resolve(taken)),
      onSwitch: () => {
        const fill = (): void => {
          while (offered < input.bytes) {
            offered += chunk.length
            if (!socket.write(chunk)) {
              return
            }
          }
        }
        const progress = setInterval(() => {
          const now = socket.bytesWritten - request.length - socket.writableLength
          if (now === taken || now >= input.bytes) {
            clearInterval(progress)
            taken = now
            socket.destroy()
          }
          taken = now
        }, input.quiet)
        socket.on("drain", fill)
        fill()
      }
    })
  })

answer({
  flow,
  handshakes,
  held: () => held.size,
  hold,
  measure,
  pingPong,
  push,
  resume: () => resume(),
  stall,
  stop,
  verify
})
ready(0)
