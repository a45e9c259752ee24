/** What the pages under docs say of this repository is so. Their code is compiled by `npm run docs:check`. */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"

const root = fileURLToPath(new URL("..", import.meta.url))

const filesUnder = (directory: string): Array<string> =>
  readdirSync(join(root, directory), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".md"))
    .map((name) => join(directory, name))

const pages = ["README.md", "CHANGELOG.md", ...filesUnder("docs"), ...filesUnder("src")].map((page) => ({
  page,
  text: readFileSync(join(root, page), "utf8")
}))

/** Where GitHub's anchors of a page's headings point. */
const anchorsOf = (text: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(/^#+ (.*)$/gm), ([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-")
  )

describe("the docs", () => {
  it("name tests that exist, by titles that they have", () => {
    const missing: Array<string> = []
    let found = 0
    for (const { page, text } of pages) {
      for (const [, path, title] of text.matchAll(/\]\((?:\.\.\/)?(test\/[^)]+)\) "([^"]+)"/g)) {
        found = found + 1
        // A title may be written over several cases, and with quotes of another kind.
        if (!existsSync(join(root, path!)) || !readFileSync(join(root, path!), "utf8").includes(title!)) {
          missing.push(`${page}: ${path} "${title}"`)
        }
      }
    }
    assert.deepStrictEqual(missing, [])
    assert.isAbove(found, 50)
  })

  it("link to files and headings that exist", () => {
    const broken: Array<string> = []
    for (const { page, text } of pages) {
      for (const [, link] of text.matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
        const [path, anchor] = link!.split("#")
        const target = path === "" ? join(root, page) : join(root, dirname(page), path!)
        if (
          !existsSync(target) ||
          (anchor !== undefined && !anchorsOf(readFileSync(target, "utf8")).includes(anchor))
        ) {
          broken.push(`${page}: ${link}`)
        }
      }
    }
    assert.deepStrictEqual(broken, [])
  })
})
