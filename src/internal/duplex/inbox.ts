/**
 * What has arrived and waits to be read, and who reads it: one fiber at a time, in batches, woken within the callback in
 * which something arrives.
 */

import type * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as Option from "effect/Option"
import type * as Scheduler from "effect/Scheduler"
import { ConnectionError } from "../../UpgradeError.js"

export type AnyFiber = Fiber.RuntimeFiber<any, any>

interface Reader {
  readonly fiber: AnyFiber
  readonly resume: (effect: any) => void
  /** With which it goes on: `run`, or a `pull`. */
  readonly next: Effect.Effect<any, any, any>
  /** The interruptions that its fiber had met when it began to wait: after another it may wait no more. */
  readonly interrupts: Cause.Cause<never> | undefined
  /** It was woken, and has not gone on yet: it is the reader still. */
  woken: boolean
}

const interruptsOf = (fiber: AnyFiber): Cause.Cause<never> => fiber.getFiberRef(FiberRef.interruptedCause)

const busy = new ConnectionError({
  reason: "Busy",
  description: "Another fiber is reading this connection. Read from one place, and hand the bytes on from there."
})

/**
 * A scheduler that goes on with a fiber within the socket's own callback, where the callback says so, instead of in a
 * later microtask: what a batch causes is written before the callback returns. All else it leaves to its base.
 */
class InlineScheduler implements Scheduler.Scheduler {
  static now = false
  constructor(private readonly base: Scheduler.Scheduler) {}
  shouldYield(fiber: AnyFiber): number | false {
    return this.base.shouldYield(fiber)
  }
  scheduleTask(task: Scheduler.Task, priority: number, fiber?: AnyFiber): void {
    if (InlineScheduler.now) {
      // For the one fiber that is woken: what it starts is scheduled as ever.
      InlineScheduler.now = false
      task()
    } else {
      this.base.scheduleTask(task, priority, fiber)
    }
  }
}

const inlineSchedulers = new WeakMap<Scheduler.Scheduler, InlineScheduler>()

export const inlineScheduler = (base: Scheduler.Scheduler): InlineScheduler => {
  if (base instanceof InlineScheduler) {
    return base
  }
  let scheduler = inlineSchedulers.get(base)
  if (scheduler === undefined) {
    scheduler = new InlineScheduler(base)
    inlineSchedulers.set(base, scheduler)
  }
  return scheduler
}

/** `End` is what `run` yields at the end of the input. */
export abstract class Inbox<A, E, End> {
  protected queue: Array<A> = []
  /** What the queue holds, in bytes. */
  protected size = 0
  private reader: Reader | undefined
  /** The fiber of `run`, while it handles a batch. */
  private runner: AnyFiber | undefined

  /** Why nothing more can be read; `undefined` while something may come, `None` at the end of it. */
  protected abstract ended(): Option.Option<E> | undefined

  /** What `run` ends with. */
  protected abstract readonly outcome: End

  /** All was taken: what was stopped for its size may go on. */
  protected abstract taken(): void

  /** Whether somebody other than the readers here has what arrives. */
  protected get isOccupied(): boolean {
    return false
  }

  get hasInput(): boolean {
    return this.queue.length > 0
  }

  /** The fiber that waits to read. */
  get readingFiber(): AnyFiber | undefined {
    return this.reader?.fiber
  }

  /** Whether a fiber waits to read, or handles what it has read in `run`. */
  get isRead(): boolean {
    const fiber = this.reader?.fiber ?? this.runner
    return fiber !== undefined && fiber.unsafePoll() === null
  }

  protected get awaitsInput(): boolean {
    return this.reader !== undefined && !this.reader.woken
  }

  wakeReader(): void {
    const reader = this.reader
    if (reader !== undefined && !reader.woken) {
      reader.woken = true
      reader.resume(reader.next)
    }
  }

  /**
   * Hands what has arrived to the fiber that waits for it, within this callback of its socket.
   *
   * The fiber of a `run` need not go on for a handler that is done where it stands: it is told only of one that is not.
   */
  protected offer(): void {
    const reader = this.reader!
    const { next } = reader
    if (!(next instanceof Step) || interruptsOf(reader.fiber) !== reader.interrupts) {
      this.wakeInline()
      return
    }
    while (this.queue.length > 0) {
      let handled: Effect.Effect<unknown, unknown, unknown>
      try {
        handled = begin(next.handler(this.takeAll()))
      } catch (defect) {
        handled = Effect.die(defect)
      }
      if (!isDone(handled)) {
        this.reader = undefined
        this.runner = reader.fiber
        InlineScheduler.now = true
        reader.resume(Effect.matchCauseEffect(handled, next.next))
        InlineScheduler.now = false
        return
      }
    }
    if (this.ended() !== undefined) {
      this.wakeInline()
    }
  }

  /** Wakes the reader within this callback of its socket. */
  protected wakeInline(): void {
    InlineScheduler.now = true
    this.wakeReader()
    InlineScheduler.now = false
  }

  protected takeAll(): Chunk.Chunk<A> {
    const queue = this.queue
    this.queue = []
    this.size = 0
    this.taken()
    return queue.length === 1 ? Chunk.of(queue[0]!) : Chunk.unsafeFromArray(queue)
  }

  /**
   * Whether another fiber waits to read. One that was interrupted leaves its place behind, rather than pay for a finalizer
   * at every read: it is known by being over, or by being the fiber that asks.
   */
  private isReadByOther(fiber: AnyFiber): boolean {
    if (this.isOccupied) {
      return true
    }
    const other = this.reader?.fiber ?? this.runner
    if (other === undefined) {
      return false
    }
    if (other !== fiber && other.unsafePoll() === null) {
      return true
    }
    this.reader = undefined
    return false
  }

  /** Takes what is there, or waits for it; `undefined` at the end. Interrupted, it has taken nothing. */
  pullOrEnd(): Effect.Effect<Chunk.Chunk<A> | undefined, E | ConnectionError> {
    const pull: Effect.Effect<Chunk.Chunk<A> | undefined, E | ConnectionError> = Effect.withFiberRuntime((fiber) => {
      if (this.isReadByOther(fiber)) {
        return Effect.fail(busy)
      }
      if (this.queue.length > 0) {
        return Effect.succeed(this.takeAll())
      }
      const ended = this.ended()
      return ended !== undefined
        ? Option.isNone(ended)
          ? Effect.succeed(undefined)
          : Effect.fail(ended.value)
        : Effect.async((resume) => {
            // The fiber takes the input itself, once it goes on: were it handed over, an interruption would lose it.
            this.reader = { fiber, resume, next: pull, woken: false, interrupts: undefined }
          })
    })
    return pull
  }

  /** `pullOrEnd`, with `None` for the end. */
  get pull(): Effect.Effect<Chunk.Chunk<A>, Option.Option<E | ConnectionError>> {
    return Effect.matchEffect(this.pullOrEnd(), {
      onFailure: (error) => Effect.fail(Option.some(error)),
      onSuccess: (batch) => (batch === undefined ? Effect.fail(Option.none()) : Effect.succeed(batch))
    })
  }

  /** Runs `handler` over all input until its end: one effect a batch, in the calling fiber. */
  run<B, E2, R>(
    handler: (batch: Chunk.Chunk<A>) => Effect.Effect<B, E2, R>
  ): Effect.Effect<End, E | ConnectionError | E2, R> {
    return Effect.withFiberRuntime((fiber) => {
      const step: Effect.Effect<End, E | ConnectionError | E2, R> = new Step(this, handler, fiber)
      const scheduler = fiber.getFiberRef(FiberRef.currentScheduler)
      const inlined = inlineScheduler(scheduler)
      // Left on the fiber afterwards: it differs from its base within a socket's callback only.
      return inlined === scheduler ? step : Effect.zipRight(FiberRef.set(FiberRef.currentScheduler, inlined), step)
    })
  }

  /** One turn of `run`: what is there, then what comes. */
  runStep<B, E2, R>(step: Step<A, E, End, B, E2, R>): Effect.Effect<End, E | ConnectionError | E2, R> {
    const { fiber } = step
    if (this.isReadByOther(fiber)) {
      return Effect.fail(busy)
    }
    while (this.queue.length > 0) {
      const handled = begin(step.handler(this.takeAll()))
      if (!isDone(handled)) {
        this.runner = fiber
        return Effect.matchCauseEffect(handled, step.next)
      }
    }
    const ended = this.ended()
    return ended === undefined
      ? Effect.async<End, E | ConnectionError | E2, R>((resume) => {
          this.reader = { fiber, resume, next: step, woken: false, interrupts: interruptsOf(fiber) }
        })
      : ended._tag === "None"
        ? Effect.succeed(this.outcome)
        : Effect.fail(ended.value)
  }

  /** The handler of `run` is through with its batch. */
  handled(): void {
    this.runner = undefined
  }
}

/** An effect that need not be run by a fiber to begin: its `commit` asks for none, and returns what is left to do. */
export abstract class Immediate<A, E> extends Effectable.Class<A, E> {}

/** Does what of an effect needs no fiber, and returns the rest. */
export const begin = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  effect instanceof Immediate ? effect.commit() : effect

/** Whether an effect is a success already, and need not be run. */
export const isDone = (effect: Effect.Effect<unknown, unknown, unknown>): boolean =>
  (effect as { readonly _tag?: string })._tag === "Success"

/** `run`, wherever it stands: an object instead of closures, since an idle connection holds it. */
class Step<A, E, End, B, E2, R> extends Effectable.Class<End, E | ConnectionError | E2, R> {
  private following:
    | {
        readonly onFailure: (cause: Cause.Cause<E2>) => Effect.Effect<never, E2>
        readonly onSuccess: () => Effect.Effect<End, E | ConnectionError | E2, R>
      }
    | undefined

  constructor(
    readonly inbox: Inbox<A, E, End>,
    readonly handler: (batch: Chunk.Chunk<A>) => Effect.Effect<B, E2, R>,
    readonly fiber: AnyFiber
  ) {
    super()
  }

  override commit(): Effect.Effect<End, E | ConnectionError | E2, R> {
    return this.inbox.runStep(this)
  }

  get next() {
    return (this.following ??= {
      onFailure: (cause) => {
        this.inbox.handled()
        return Effect.failCause(cause)
      },
      onSuccess: () => {
        this.inbox.handled()
        return this
      }
    })
  }
}
