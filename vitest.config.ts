import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

const src = fileURLToPath(new URL("src/", import.meta.url))

// LAWS_RUNS is the number of runs of each property; with many of them one property may take minutes.
const timeout = Number(process.env.LAWS_RUNS ?? 0) >= 1000 ? 600_000 : 20_000

export default defineConfig({
  resolve: {
    alias: [
      { find: /^effect-upgrade$/, replacement: `${src}index.ts` },
      { find: /^effect-upgrade\/testing$/, replacement: `${src}testing/index.ts` },
      { find: /^effect-upgrade\/(.+)$/, replacement: `${src}$1.ts` }
    ]
  },
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    // vitest leaves a core free for watching; these wait for sockets and processes much of the time
    maxWorkers: availableParallelism() + 1,
    testTimeout: timeout,
    hookTimeout: timeout,
    coverage: {
      provider: "v8",
      include: ["src/**/*.ts"],
      reporter: ["text", "json-summary"],
      thresholds: { lines: 95, branches: 95 }
    }
  }
})
