// Type-checks every `ts` block of README.md, docs/**/*.md and of the JSDoc in src/, each as a module of its own.
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join, relative } from "node:path"
import { fileURLToPath } from "node:url"

interface Block {
  readonly file: string
  readonly line: number
  readonly code: ReadonlyArray<string>
}

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = ".docs-check"

const filesIn = (directory: string, suffix: string): Array<string> =>
  existsSync(join(root, directory))
    ? readdirSync(join(root, directory), { recursive: true, encoding: "utf8" })
        .filter((name) => name.endsWith(suffix))
        .map((name) => join(directory, name))
        .sort()
    : []

const fail = (message: string): never => {
  console.error(message)
  process.exit(1)
}

/** The fenced `ts` blocks of Markdown lines; `undefined` is a line that is not Markdown. */
const blocksOf = (file: string, lines: ReadonlyArray<string | undefined>): Array<Block> => {
  const blocks: Array<Block> = []
  let open: { fence: string; indent: number; line: number; code: Array<string> | undefined } | undefined
  for (const [index, line] of [...lines, undefined].entries()) {
    if (open === undefined) {
      const start = /^(\s*)(`{3,}|~{3,})\s*(\w*)/.exec(line ?? "")
      if (start !== null) {
        const isTs = start[3] === "ts" || start[3] === "typescript"
        open = { fence: start[2]!, indent: start[1]!.length, line: index + 1, code: isTs ? [] : undefined }
      }
    } else if (line === undefined) {
      fail(`${file}:${open.line}: this block is never closed`)
    } else if (line.trim().startsWith(open.fence) && /^(`+|~+)$/.test(line.trim())) {
      if (open.code !== undefined) blocks.push({ file, line: open.line, code: open.code })
      open = undefined
    } else {
      open.code?.push(line.slice(0, open.indent).trim() === "" ? line.slice(open.indent) : line)
    }
  }
  return blocks
}

/** A source file's JSDoc as Markdown, line for line. */
const jsdocOf = (file: string, text: string): Array<string | undefined> => {
  let inside = false
  let exampleAt: number | null = null
  const endExample = () => {
    if (exampleAt !== null) fail(`${file}:${exampleAt}: this @example has no \`\`\`ts block`)
  }
  return text.split("\n").map((line, index) => {
    if (!inside && /^\s*\/\*\*/.test(line)) inside = !line.includes("*/")
    else if (inside && line.includes("*/")) {
      endExample()
      inside = false
    } else if (inside) {
      const content = line.replace(/^\s*\* ?/, "")
      if (/^@example\b/.test(content)) {
        endExample()
        exampleAt = index + 1
      } else if (/^\s*```ts\b/.test(content)) exampleAt = null
      return content
    }
    return undefined
  })
}

const read = (file: string) => readFileSync(join(root, file), "utf8")

const blocks = [
  ...["README.md", ...filesIn("docs", ".md")]
    .filter((file) => existsSync(join(root, file)))
    .flatMap((file) => blocksOf(file, read(file).split("\n"))),
  ...filesIn("src", ".md").flatMap((file) => blocksOf(file, read(file).split("\n"))),
  ...filesIn("src", ".ts").flatMap((file) => blocksOf(file, jsdocOf(file, read(file))))
]

if (blocks.length === 0) fail("no ts block was found in README.md, docs/ and src/")

rmSync(join(root, folder), { recursive: true, force: true })
mkdirSync(join(root, folder))
const byModule = new Map<string, Block>()
try {
  for (const block of blocks) {
    const name = `${block.file.replaceAll(/[/\\]/g, "__")}__${block.line}.ts`
    byModule.set(name, block)
    // Empty lines in front of a block make its line numbers those of the file that it stands in.
    writeFileSync(join(root, folder, name), "\n".repeat(block.line) + block.code.join("\n"))
  }
  writeFileSync(
    join(root, folder, "tsconfig.json"),
    JSON.stringify({
      extends: "../tsconfig.json",
      compilerOptions: { noUnusedLocals: false, noUnusedParameters: false },
      include: ["*.ts"]
    })
  )
  const tsc = spawnSync(
    process.execPath,
    [join(root, "node_modules/typescript/bin/tsc"), "-p", folder, "--noEmit", "--pretty", "false"],
    { cwd: root, encoding: "utf8" }
  )
  const failed = new Set<Block>()
  for (const line of (tsc.stdout + tsc.stderr).split("\n").filter((line) => line !== "")) {
    const at = /^(.+?)\((\d+),(\d+)\): (.*)$/.exec(line)
    const block = at === null ? undefined : byModule.get(relative(folder, at[1]!))
    if (at === null || block === undefined) console.error(line)
    else {
      failed.add(block)
      console.error(`${block.file}:${at[2]}: ${at[4]} (the block at line ${block.line})`)
    }
  }
  if (tsc.error !== undefined) console.error(String(tsc.error))
  if (tsc.status === 0) console.log(`${blocks.length} blocks compile`)
  else console.error(`${failed.size} of ${blocks.length} blocks do not compile`)
  process.exitCode = tsc.status === 0 ? 0 : 1
} finally {
  rmSync(join(root, folder), { recursive: true, force: true })
}
