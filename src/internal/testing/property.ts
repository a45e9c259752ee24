/**
 * A property whose run is an effect: tried over random inputs, each run with a time limit of its own, and told in words
 * where it does not hold.
 *
 * @internal
 */
import { Buffer } from "node:buffer"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import * as Unhandled from "./unhandled.js"

/** What did not hold, in a sentence. */
export class Broken {
  readonly _tag = "Broken"
  constructor(readonly reason: string) {}
}

export const broken = (reason: string): Effect.Effect<never, Broken> => Effect.fail(new Broken(reason))

/** What a run is waiting for, to be told where it waits in vain. */
export interface Trace {
  waitsFor: string
}

export interface Options {
  readonly numRuns: number
  readonly seed: number | undefined
  readonly path: string | undefined
  readonly timeout: number
}

export interface Counterexample {
  readonly reason: string
  readonly input: ReadonlyArray<string>
  readonly seed: number
  readonly path: string | undefined
}

/** So many turns of the event loop. */
export const turns = (count: number): Effect.Effect<void> =>
  Effect.repeatN(
    Effect.async<void>((resume) => {
      setImmediate(() => resume(Effect.void))
    }),
    count
  )

/** How long a counterexample is made smaller. Where each attempt waits in vain, there is no end to it otherwise. */
const shrinkMillis = (timeout: number): number => Math.min(5_000, 5 * timeout)

export const check = <A>(
  arbitrary: FastCheck.Arbitrary<A>,
  show: (input: A) => ReadonlyArray<string>,
  run: (input: A, trace: Trace) => Effect.Effect<void, Broken, Scope.Scope>,
  { numRuns, path, seed, timeout }: Options
): Effect.Effect<void, Counterexample> =>
  Effect.gen(function* () {
    const unhandled = yield* Unhandled.watch
    const runtime = yield* Effect.runtime<never>()
    const details = yield* Effect.promise((signal) => {
      let shrinkUntil = Infinity
      const property = FastCheck.asyncProperty(arbitrary, async (input) => {
        if (signal.aborted || performance.now() > shrinkUntil) {
          return
        }
        const trace: Trace = { waitsFor: "nothing" }
        const tried = Effect.flatMap(Effect.exit(limited(Effect.scoped(run(input, trace)), trace, timeout)), (exit) =>
          // What was thrown tells more than what then did not come
          Effect.flatMap(unhandled, ([error]) => (error === undefined ? exit : broken(`there was an ${error}`)))
        )
        const exit = await Runtime.runPromiseExit(runtime)(tried, { signal })
        if (Exit.isFailure(exit)) {
          shrinkUntil = Math.min(shrinkUntil, performance.now() + shrinkMillis(timeout))
          throw exit
        }
      })
      return FastCheck.check(property, {
        numRuns,
        ...(seed === undefined ? {} : { seed }),
        // A counterexample that is tried again is not made smaller again
        ...(path === undefined ? {} : { path, endOnFailure: true })
      })
    })
    // What the last connection left behind may still throw
    yield* turns(20)
    const [late] = yield* unhandled
    if (details.failed && details.counterexample !== null) {
      yield* Effect.fail<Counterexample>({
        reason: reasonOf(details.errorInstance),
        input: show(details.counterexample[0]),
        seed: details.seed,
        path: details.counterexamplePath ?? undefined
      })
    } else if (late !== undefined) {
      yield* Effect.fail<Counterexample>({
        reason: `when all was over, there was an ${late}`,
        input: ["does what it did in all runs"],
        seed: details.seed,
        path: undefined
      })
    }
  }).pipe(Effect.scoped)

const limited = <A, R>(
  self: Effect.Effect<A, Broken, R>,
  trace: Trace,
  millis: number
): Effect.Effect<A, Broken, R> => {
  const within = Effect.timeoutFail(self, {
    duration: millis,
    onTimeout: () => new Broken(`it waited for ${trace.waitsFor}, and ${millis} ms were over`)
  })
  // One that is not over when it is interrupted is left behind: otherwise nobody would hear of it
  const interrupted = Effect.timeoutFail(Effect.disconnect(within), {
    duration: 2 * millis,
    onTimeout: () =>
      new Broken(`it waited for ${trace.waitsFor}, and did not end when it was interrupted after ${millis} ms`)
  })
  // A TestClock does not move by itself, and real sockets do not wait for it
  return Effect.withClock(interrupted, Clock.make())
}

const reasonOf = (thrown: unknown): string => {
  if (!Exit.isExit(thrown) || Exit.isSuccess(thrown)) {
    return `the property could not be run: ${thrown}`
  }
  const error = Cause.squash(thrown.cause)
  return error instanceof Broken ? error.reason : `the run failed otherwise: ${Cause.pretty(thrown.cause)}`
}

const shown = 1000

/** Bytes as a string with escapes, cut where they are many. */
export const quote = (bytes: Uint8Array | string): string => {
  const text = typeof bytes === "string" ? bytes : Buffer.from(bytes).toString("latin1")
  return text.length <= shown
    ? JSON.stringify(text)
    : `${JSON.stringify(text.slice(0, shown))}... (${text.length} bytes in all)`
}

/** Two texts from a little before their first difference on. */
export const difference = (expected: string, came: string): string => {
  let at = 0
  while (at < expected.length && expected[at] === came[at]) {
    at++
  }
  const from = Math.max(0, at - 40)
  const where = from === 0 ? "" : ` from byte ${from} on`
  return `${from === came.length ? "nothing" : quote(came.slice(from))} came${where}, and not ${quote(expected.slice(from))}`
}
