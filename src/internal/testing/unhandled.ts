/**
 * What would end the process, while somebody watches: uncaught exceptions and unhandled rejections.
 *
 * @internal
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

const events = ["uncaughtException", "unhandledRejection"] as const

const textOf = (event: string, error: unknown): string =>
  `${event}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`

/** Collects them until the Scope closes. Nobody else hears of them until then: a test runner would count them as its own. */
export const watch: Effect.Effect<ReadonlyArray<string>, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const seen: Array<string> = []
    const restore = events.map((event) => {
      const others = process.rawListeners(event) as Array<(...args: Array<any>) => void>
      const listener = (error: unknown) => void seen.push(textOf(event, error))
      process.removeAllListeners(event)
      process.on(event, listener)
      return () => {
        process.off(event, listener)
        others.forEach((other) => process.on(event, other))
      }
    })
    return { seen, restore }
  }),
  ({ restore }) => Effect.sync(() => restore.forEach((restore) => restore()))
).pipe(Effect.map(({ seen }) => seen))
