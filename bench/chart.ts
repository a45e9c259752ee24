/** A chart of what the cells measured, as an SVG: a panel for each cell, a bar for each peer. */
import { type Bars, fixed } from "./stats.js"

const panel = { gap: 26, width: 480 }
const columns = 2
const bar = { height: 14, label: 190, step: 19, value: 70 }

const escaped = (text: string): string => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`)

const figure = (value: number): string =>
  value >= 1e6
    ? `${fixed(value / 1e6, 2)} M`
    : value >= 1e4
      ? `${fixed(value / 1e3)} k`
      : value >= 1e3
        ? `${fixed(value / 1e3, 1)} k`
        : fixed(value)

/** "ours, WebSocket.run" is told by its colour, and by its last word. */
const named = (name: string): { readonly ours: boolean; readonly label: string } => {
  const [first, rest] = name.split(", ")
  return first === "ours" ? { label: rest, ours: true } : { label: first, ours: false }
}

const heightOf = ({ bars }: Bars): number => 24 + bars.length * bar.step + panel.gap

const drawn = ({ bars, title }: Bars, x: number, y: number): string => {
  const most = Math.max(...bars.map(({ value }) => value))
  const room = panel.width - bar.label - bar.value
  const rows = bars.map(({ name, value }, index) => {
    const top = 24 + index * bar.step
    const { label, ours } = named(name)
    const width = fixed(Math.max(1, (value / most) * room), 1)
    const middle = top + bar.height / 2
    return [
      `<text x="${bar.label - 8}" y="${middle}" text-anchor="end">${escaped(label)}</text>`,
      `<rect x="${bar.label}" y="${top}" width="${width}" height="${bar.height}" class="${ours ? "ours" : "peer"}"/>`,
      `<text x="${fixed(bar.label + Number(width) + 6, 1)}" y="${middle}" class="value">${figure(value)}</text>`
    ].join("")
  })
  return `<g transform="translate(${x} ${y})"><text x="0" y="8" class="title">${escaped(title)}</text>${rows.join("\n")}</g>`
}

export const chart = (all: ReadonlyArray<Bars>, caption: string): string => {
  const shown = all.filter(({ bars }) => bars.length > 0)
  const placed: Array<string> = []
  const below = new Array<number>(columns).fill(44)
  for (const bars of shown) {
    const column = below.indexOf(Math.min(...below))
    placed.push(drawn(bars, 16 + column * (panel.width + 32), below[column]))
    below[column] += heightOf(bars)
  }
  const width = columns * panel.width + (columns - 1) * 32 + 32
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${Math.max(...below)}" width="${width}" role="img">
<title>${escaped(caption)}</title>
<style>
text { font: 12px system-ui, sans-serif; dominant-baseline: central; fill: #333 }
.title { font-weight: 600 }
.value, .caption { fill: #666 }
.ours { fill: #2f6fdb }
.peer { fill: #b4b9c2 }
.ground { fill: #fff }
@media (prefers-color-scheme: dark) {
text { fill: #ddd }
.value, .caption { fill: #999 }
.ours { fill: #6ea0ff }
.peer { fill: #5a616c }
.ground { fill: #14171c }
}
</style>
<rect width="100%" height="100%" class="ground"/>
<text x="16" y="20" class="caption">${escaped(caption)}</text>
${placed.join("\n")}
</svg>
`
}
