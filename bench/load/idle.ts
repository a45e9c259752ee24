import type * as net from "node:net"
import type { Target } from "../commands.js"
import { open, requestOf } from "./open.js"

const holding = new Set<net.Socket>()

export const held = (): number => holding.size

export const hold = async (input: { readonly target: Target; readonly connections: number }): Promise<void> => {
  const request = requestOf(input.target)
  let left = input.connections
  const one = async (): Promise<void> => {
    while (left > 0) {
      left--
      await new Promise<void>((resolve, reject) => {
        const socket = open(input.target.port, request, {
          onBytes: () => true,
          onClose: (error) => {
            holding.delete(socket)
            reject(error ?? new Error("closed"))
          },
          onSwitch: () => {
            holding.add(socket)
            resolve()
          }
        })
      })
    }
  }
  await Promise.all(Array.from({ length: 64 }, one))
}

let resumeStalled: () => Promise<number> = () => Promise.reject(new Error("nothing is stalled"))

export const resume = (): Promise<number> => resumeStalled()

export const stall = (target: Target): Promise<void> =>
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
    resumeStalled = () =>
      new Promise((resolve) => {
        ended = resolve
        reading = true
        socket.resume()
      })
  })

export const push = (input: {
  readonly target: Target
  readonly bytes: number
  readonly quiet: number
}): Promise<number> =>
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
