/**
 * What would end the process, while somebody watches: uncaught exceptions and unhandled rejections.
 *
 * @internal
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

type Listener = (...args: Array<any>) => void

const events = ["uncaughtException", "unhandledRejection"] as const

const watchers = new Set<Array<string>>()
let others: ReadonlyArray<ReadonlyArray<Listener>> = []

const listeners = events.map((event) => (error: unknown) => {
  const text = `${event}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`
  watchers.forEach((seen) => seen.push(text))
})

const install = () => {
  others = events.map((event) => process.rawListeners(event) as Array<Listener>)
  events.forEach((event, i) => {
    process.removeAllListeners(event)
    process.on(event, listeners[i]!)
  })
}

const restore = () => {
  events.forEach((event, i) => {
    process.off(event, listeners[i]!)
    others[i]!.forEach((other) => process.on(event, other))
  })
}

/**
 * Collects them until the Scope closes, and yields those that came since it was last asked. Nobody else hears of them
 * until then: a test runner would count them as its own.
 */
export const watch: Effect.Effect<Effect.Effect<ReadonlyArray<string>>, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const seen: Array<string> = []
    if (watchers.size === 0) {
      install()
    }
    watchers.add(seen)
    return seen
  }),
  (seen) =>
    Effect.sync(() => {
      watchers.delete(seen)
      if (watchers.size === 0) {
        restore()
      }
    })
).pipe(Effect.map((seen) => Effect.sync(() => seen.splice(0))))
