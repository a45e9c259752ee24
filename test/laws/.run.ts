import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Laws } from "/work/main/src/testing/index.js"
import { Target, targets } from "/work/main/test/laws/targets.js"

const [transport, name, numRuns, ...rest] = process.argv.slice(2)
const extra = rest.length ? JSON.parse(rest[0]!) : {}
process.on("exit", (c) => console.log("exit", c))
const names = name === "all" ? Object.keys(Laws.laws) : [name!]
Effect.gen(function* () {
  const base = yield* Target
  const target = process.env.SOFT
    ? {
        ...base,
        connect: Effect.map(base.connect, (peer: any) => {
          const t = peer.transport
          if (process.env.SOFT === "destroy") t.resetAndDestroy = () => t.destroy()
          if (process.env.SOFT === "order") {
            const r = t.resetAndDestroy
            t.resetAndDestroy = () => {
              peer.socket.destroy()
              setImmediate(() => (t.resetAndDestroy = r), r.call(t))
            }
          }
          if (process.env.SOFT === "later") {
            let gone = false
            const d = peer.destroy.bind(peer)
            peer.destroy = () => {
              if (!gone) d()
            }
            const r = t.resetAndDestroy.bind(t)
            t.resetAndDestroy = () => {
              gone = true
              t.once("close", () => setImmediate(() => peer.socket.destroy()))
              r()
            }
          }
          if (process.env.SOFT === "only") {
            peer.destroy = () => {}
          }
          return peer
        })
      }
    : base
  for (const name of names) {
    const t0 = performance.now()
    const r = yield* Effect.either(
      (Laws.laws as any)[name](target, { numRuns: Number(numRuns), ...extra }) as Effect.Effect<void, any>
    )
    console.log(name, r._tag, r._tag === "Left" ? r.left.message : "", Math.round(performance.now() - t0), "ms")
  }
})
  .pipe(
    Effect.provide(Layer.provideMerge(targets[transport!]!, Logger.remove(Logger.defaultLogger))),
    Effect.runPromise
  )
  .catch((e) => {
    console.error("FAILED", e)
    process.exit(1)
  })
