/** Tables of peers beside each other, and ratios between them. */
import type { Peer } from "./peers.js"
import { bound, byName, figures, middle, type Sample, type Samples } from "./rounds.js"
import { type Aim, fixed, ratio, type Table, thousands } from "./stats.js"

/** How much more of a figure one peer has than another; NaN where one of them did not run. */
const against = (samples: Samples, figure: keyof Sample, peer: Peer, base: Peer): number => {
  const [one, other] = [samples.get(peer), samples.get(base)]
  return one && other ? ratio(figures(one, figure), figures(other, figure)) : Number.NaN
}

export interface Wanted {
  readonly peer: Peer
  readonly base: Peer
  readonly aim: number
}

export interface Comparison {
  readonly title: string
  /** What is counted, in the plural. */
  readonly unit: string
  readonly bases: ReadonlyArray<Peer>
  readonly latency: boolean
  /** Whether the peers may differ in how many bytes they answer with. */
  readonly sizes?: boolean
  readonly aims?: ReadonlyArray<Wanted>
}

export const aimsOf = (title: string, samples: Samples, wanted: ReadonlyArray<Wanted>): ReadonlyArray<Aim> =>
  wanted.map(({ aim, base, peer }) => ({
    aim,
    byCpu: against(samples, "cost", base, peer),
    result: against(samples, "rate", peer, base),
    what: `${title}: ${peer.name} over ${base.name}`
  }))

/**
 * The load is a bottleneck where a unit costs it more than it costs the server: its own figure stands beside. What a
 * unit costs the server is told against the bases too, as that holds whatever the limit was.
 */
export const compare = (
  samples: Samples,
  { aims = [], bases, latency, sizes = false, title, unit }: Comparison
): Table => {
  const micros = (value: number): string => fixed(value, value < 10 ? 2 : 0)
  const loadCost = (one: ReadonlyArray<Sample>): number => (middle(one, "cpu") * 1e6) / middle(one, "rate")
  return {
    aims: aimsOf(title, samples, aims),
    bars: { bars: [...samples].map(([peer, one]) => ({ name: peer.name, value: 1e6 / middle(one, "cost") })), title },
    columns: [
      "server",
      `${unit}/s`,
      ...bases.map((base) => `x ${base.name}`),
      ...(latency ? ["p50 ms", "p99 ms"] : []),
      ...(sizes ? ["bytes each"] : []),
      "server us each",
      ...bases.map((base) => `cost x ${base.name}`),
      "load us each",
      "server busy",
      "load busy",
      "limit"
    ],
    rows: [...samples].map(([peer, one]) => [
      peer.name,
      thousands(middle(one, "rate")),
      ...bases.map((base) => fixed(against(samples, "rate", peer, base), 2)),
      ...(latency ? [fixed(middle(one, "p50"), 2), fixed(middle(one, "p99"), 2)] : []),
      ...(sizes ? [fixed(middle(one, "size"))] : []),
      micros(middle(one, "cost")),
      ...bases.map((base) => fixed(against(samples, "cost", peer, base), 2)),
      micros(loadCost(one)),
      `${fixed(middle(one, "busy") * 100)}%`,
      `${fixed(middle(one, "cpu") * 100)}%`,
      bound(one)
    ]),
    samples: byName(samples),
    title
  }
}
