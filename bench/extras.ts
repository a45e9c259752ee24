/** Peers that are no dependencies of this package, not even for development: installed where they are first needed. */
import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"

const folder =
  process.env.BENCH_PEERS ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "effect-upgrade-bench")

const bunPackage = `@oven/bun-${process.platform}-${process.arch}`

const extras = {
  bun: { file: "bin/bun", package: bunPackage, version: "1.4.5" },
  "http-proxy": { file: "index.js", package: "http-proxy", version: "1.18.1" },
  uws: {
    file: `dist/uws_${process.platform}_${process.arch}_${process.versions.modules}.node`,
    package: "@trufflesuite/uws-js-unofficial",
    version: "20.30.0-unofficial.0"
  }
} as const

export type Extra = keyof typeof extras

const install = (name: string, version: string): void => {
  mkdirSync(folder, { recursive: true })
  const manifest = join(folder, "package.json")
  if (!existsSync(manifest)) {
    writeFileSync(manifest, '{ "private": true }\n')
  }
  process.stderr.write(`installing ${name}@${version} into ${folder}\n`)
  const flags = ["--save-exact", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
  execFileSync("npm", ["install", "--prefix", folder, ...flags, `${name}@${version}`], { stdio: ["ignore", 2, 2] })
}

const found = new Map<Extra, string | undefined>()

const find = (extra: Extra): string | undefined => {
  const { file, package: name, version } = extras[extra]
  const path = join(folder, "node_modules", name, file)
  try {
    if (!existsSync(join(folder, "node_modules", name))) {
      install(name, version)
    }
    if (existsSync(path)) {
      return path
    }
    process.stderr.write(`left out: ${name}@${version} has no ${file}\n`)
  } catch (error) {
    process.stderr.write(`left out: ${name}@${version}: ${error instanceof Error ? error.message : String(error)}\n`)
  }
  return undefined
}

/** The file of a peer that is there, or could be had; said once where not. */
export const extra = (name: Extra): string | undefined => {
  if (!found.has(name)) {
    found.set(name, find(name))
  }
  return found.get(name)
}
