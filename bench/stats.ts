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

export interface Table {
  readonly title: string
  readonly columns: ReadonlyArray<string>
  readonly rows: ReadonlyArray<ReadonlyArray<string>>
  /** What the rows were made of, round by round, for `--json`. */
  readonly samples: Readonly<Record<string, ReadonlyArray<object>>>
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
