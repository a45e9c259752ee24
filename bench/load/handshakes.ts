import type { Handshakes } from "../commands.js"
import { finish, open, requestOf } from "./open.js"
import { start, took } from "./running.js"

/** Connect, ask, be answered 101, end it, wait for the server's end, and again. */
export const handshakes = async (input: Handshakes): Promise<void> => {
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
        finish(socket, input.target)
      }
    })
    run.sockets.set(socket, input.target)
  }
  for (let i = 0; i < input.concurrency; i++) {
    next()
  }
}
