import type * as net from "node:net"
import type { Flow, PingPong, Target } from "../commands.js"
import { open, requestOf, scratch } from "./open.js"
import { openAll, type Running, start, took } from "./running.js"

export const pingPong = async (input: PingPong): Promise<void> => {
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

export const flow = async (input: Flow): Promise<void> => {
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

export const verify = (target: Target): Promise<void> =>
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
