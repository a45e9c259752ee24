/**
 * Many deadlines on one Clock: a lane for each duration, in which the first in is the first to expire, so that adding
 * and cancelling one costs a Set entry, and a lane in use costs one sleeping fiber, however many connections there are.
 */
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

export interface Deadline {
  readonly cancel: () => void
}

const never: Deadline = { cancel() {} }

class Entry implements Deadline {
  constructor(
    readonly lane: Lane,
    readonly at: number,
    readonly expire: (target: any) => void,
    readonly target: unknown
  ) {}
  cancel() {
    this.lane.entries.delete(this)
  }
}

class Lane {
  readonly entries = new Set<Entry>()
  running = false
  constructor(
    readonly clock: Clock.Clock,
    private readonly over: () => void
  ) {}

  /** Sleeps from one deadline to the next, and ends when there is none. */
  readonly watch: Effect.Effect<void> = Effect.suspend(() => {
    const now = this.clock.unsafeCurrentTimeMillis()
    for (const entry of this.entries) {
      if (entry.at > now) {
        return Effect.zipRight(this.clock.sleep(Duration.millis(entry.at - now)), this.watch)
      }
      this.entries.delete(entry)
      entry.expire(entry.target)
    }
    this.running = false
    this.over()
    return Effect.void
  })
}

export class Deadlines {
  private readonly lanes = new Map<number, Lane>()

  constructor(
    readonly clock: Clock.Clock,
    private readonly fork: (effect: Effect.Effect<void>) => void
  ) {}

  /** Calls `expire` with `target` once after `millis`, unless cancelled; never for `Infinity`. */
  add<T = void>(millis: number, expire: (target: T) => void, target?: T): Deadline {
    if (millis === Infinity) {
      return never
    }
    let lane = this.lanes.get(millis)
    if (lane === undefined) {
      lane = new Lane(this.clock, () => this.lanes.delete(millis))
      this.lanes.set(millis, lane)
    }
    const entry = new Entry(lane, this.clock.unsafeCurrentTimeMillis() + millis, expire, target)
    lane.entries.add(entry)
    if (!lane.running) {
      lane.running = true
      this.fork(lane.watch)
    }
    return entry
  }
}
