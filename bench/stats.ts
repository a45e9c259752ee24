export const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** The nearest-rank percentile of values that are sorted already. */
export const percentile = (sorted: Float64Array, p: number): number =>
  sorted.length === 0 ? Number.NaN : sorted[Math.min(sorted.length - 1, Math.ceil((p / 100) * sorted.length) - 1)]

/**
 * A ratio is taken within each round, where both peers met the same weather on the machine, and the median of those is
 * what counts.
 */
export const ratio = (values: ReadonlyArray<number>, base: ReadonlyArray<number>): number =>
  median(values.map((value, round) => value / base[round]))

export const fixed = (value: number, digits = 0): string => (Number.isFinite(value) ? value.toFixed(digits) : "-")

export const thousands = (value: number): string =>
  Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "-"

export const kilobytes = (bytes: number): string => fixed(bytes / 1024, 1)

export const megabytes = (bytes: number): string => fixed(bytes / 1024 / 1024, 1)

/** What a ratio should come to, and what it came to. */
export interface Aim {
  readonly what: string
  readonly aim: number
  /** Whether the aim is a bound from above, as for memory. */
  readonly atMost?: boolean
  readonly result: number
  /** The same, of the CPU time that one unit costs the servers: what a busy machine disturbs least. */
  readonly byCpu?: number
}

export interface Table {
  readonly title: string
  readonly columns: ReadonlyArray<string>
  readonly rows: ReadonlyArray<ReadonlyArray<string>>
  /** What the rows were made of, round by round, for `--json`. */
  readonly samples: Readonly<Record<string, ReadonlyArray<object>>>
  readonly aims?: ReadonlyArray<Aim>
  readonly bars?: Bars
}

/** A group of a chart: how much each server does in a second of its CPU time. */
export interface Bars {
  readonly title: string
  readonly bars: ReadonlyArray<{ readonly name: string; readonly value: number }>
}

/** All aims of a run beside what was reached. */
export const aimed = (tables: ReadonlyArray<Table>): Table => {
  const aims = tables.flatMap((table) => table.aims ?? [])
  return {
    columns: ["ratio", "aim", "result", "by server CPU", "reached"],
    rows: aims.map(({ aim, atMost, byCpu = Number.NaN, result, what }) => [
      what,
      `${atMost ? "<=" : ">="} ${fixed(aim, 2)}`,
      fixed(result, 2),
      fixed(byCpu, 2),
      Number.isFinite(result) ? ((atMost ? result <= aim : result >= aim) ? "yes" : "no") : "-"
    ]),
    samples: {},
    title: "aims"
  }
}

/** The first column is a name and flush left; the others are figures and flush right. */
export const render = (table: Table): string => {
  const lines = [table.columns, ...table.rows]
  const widths = table.columns.map((_, column) => Math.max(...lines.map((line) => line[column].length)))
  const text = lines.map((line) =>
    line
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]) : cell.padStart(widths[column])))
      .join("  ")
      .trimEnd()
  )
  const rule = widths.map((width) => "-".repeat(width)).join("  ")
  return [table.title, "", text[0], rule, ...text.slice(1), ""].join("\n")
}
