import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import type { Call, LoadCommands, Reply, ServerCommands } from "./commands.js"
import type { Options } from "./options.js"

const pinnable = spawnSync("taskset", ["--version"]).status === 0

export const pinning = (options: Options): string =>
  pinnable
    ? `server on core ${options.serverCore}, load on core ${options.loadCore}`
    : "not pinned to cores, for want of taskset"

/** A process of its own, on a core of its own. */
export class Child<Commands extends object> {
  private readonly calls = new Map<number, { resolve: (output: any) => void; reject: (error: Error) => void }>()
  private next = 0
  private gone: Error | undefined

  private constructor(
    readonly port: number,
    private readonly name: string,
    private readonly process: ChildProcess
  ) {
    process.on("message", (message: Reply) => {
      if (message._tag === "Ready") {
        return
      }
      const call = this.calls.get(message.id)
      this.calls.delete(message.id)
      if (message._tag === "Success") {
        call?.resolve(message.output)
      } else {
        call?.reject(new Error(`${this.name}: ${message.message}`))
      }
    })
    process.on("exit", (code, signal) => {
      this.gone = new Error(`${this.name} went away: ${signal ?? `exit code ${code}`}`)
      for (const call of this.calls.values()) {
        call.reject(this.gone)
      }
      this.calls.clear()
    })
  }

  static start<Commands extends object>(
    file: string,
    name: string,
    core: number,
    env: Record<string, string>,
    runtime: ReadonlyArray<string> = [process.execPath, "--expose-gc"]
  ): Promise<Child<Commands>> {
    const script = fileURLToPath(new URL(`.build/${file}.js`, import.meta.url))
    const command = [...(pinnable ? ["taskset", "-c", String(core)] : []), ...runtime, script]
    const child = spawn(command[0], command.slice(1), {
      env: { ...process.env, ...env },
      stdio: ["ignore", 2, 2, "ipc"]
    })
    return new Promise((resolve, reject) => {
      child.once("error", reject)
      child.once("exit", (code) => reject(new Error(`${name} did not start, exit code ${code}`)))
      child.once("message", (message: Reply) => {
        if (message._tag === "Ready") {
          resolve(new Child<Commands>(message.port, name, child))
        }
      })
    })
  }

  call<Name extends keyof Commands & string>(
    name: Name,
    ...input: Commands[Name] extends (...input: infer I) => unknown ? I : never
  ): Promise<Commands[Name] extends (...input: never) => infer A ? Awaited<A> : never> {
    return new Promise((resolve, reject) => {
      if (this.gone) {
        return reject(this.gone)
      }
      const id = this.next++
      this.calls.set(id, { reject, resolve })
      this.process.send({ id, input: input[0], name } satisfies Call)
    })
  }

  stop(): Promise<void> {
    return new Promise((resolve) => {
      if (this.gone) {
        return resolve()
      }
      this.process.once("exit", () => resolve())
      this.process.kill("SIGKILL")
    })
  }
}

export type Server = Child<ServerCommands>

export type Load = Child<LoadCommands>
