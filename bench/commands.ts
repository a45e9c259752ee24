/** What the measuring process asks of the processes that serve and that load, and how a child answers. */

export interface Target {
  readonly port: number
  readonly path: string
  readonly protocol: "echo" | "websocket"
  /** What the client offers in Sec-WebSocket-Extensions. */
  readonly extension?: string
}

export interface Memory {
  readonly rss: number
  readonly heapUsed: number
  readonly external: number
}

export interface ServerCommands {
  /** Microseconds of CPU, user and system, that the process has had. */
  readonly cpu: () => number
  /** After several collections. */
  readonly memory: () => Promise<Memory>
  /** Begins to sample the resident set. */
  readonly watch: () => void
  /** Ends it: the largest seen since. */
  readonly peak: () => number
  /** The bytes that the writes of a push have taken so far. */
  readonly pushed: () => number
}

export interface PingPong {
  readonly target: Target
  readonly connections: number
  readonly size: number
  /** One more connection, that writes without a pause and reads what comes back. */
  readonly flood: boolean
}

export interface Flow {
  readonly target: Target
  readonly connections: number
  readonly size: number
  readonly inFlight: number
}

/** Messages echoed by a WebSocket. */
export interface Messages {
  readonly target: Target
  readonly connections: number
  /** Of the payload. */
  readonly size: number
  readonly inFlight: number
  readonly type: "text" | "binary"
}

/** One WebSocket sends; each message arrives at all members. */
export interface Broadcast {
  readonly publisher: Target
  readonly member: Target
  readonly members: number
  readonly size: number
  /** Messages that are on their way to the members at the same time. */
  readonly inFlight: number
}

export interface Handshakes {
  readonly target: Target
  readonly concurrency: number
}

export interface Measured {
  /** Round trips, messages, deliveries or handshakes a second. */
  readonly rate: number
  /** Milliseconds. */
  readonly p50: number
  readonly p99: number
  readonly errors: number
  /** The share of a core that the load itself took; with that of a backend, where there is one. */
  readonly cpu: number
  /** The bytes that one message came back in; NaN where nobody counted. */
  readonly size: number
  /** Bytes a second that the flooding connection got back. */
  readonly flooded: number
}

export interface LoadCommands {
  /** Fails where what comes back is not what was sent. */
  readonly verify: (target: Target) => Promise<void>
  readonly pingPong: (input: PingPong) => Promise<void>
  readonly flow: (input: Flow) => Promise<void>
  readonly handshakes: (input: Handshakes) => Promise<void>
  /** Fails where a message does not come back as it was, in one frame. */
  readonly verifyMessages: (target: Target) => Promise<void>
  readonly messages: (input: Messages) => Promise<void>
  readonly broadcast: (input: Broadcast) => Promise<void>
  /** Measures what one of those above started. */
  readonly measure: (input: { readonly seconds: number }) => Promise<Measured>
  readonly stop: () => Promise<void>
  /** Opens connections and leaves them alone. */
  readonly hold: (input: { readonly target: Target; readonly connections: number }) => Promise<void>
  /** How many of them are open. */
  readonly held: () => number
  /** Switches and does not read. */
  readonly stall: (target: Target) => Promise<void>
  /** Reads what was stalled to its end; answers with the bytes. */
  readonly resume: () => Promise<number>
  /** Writes until nothing was taken for a while; answers with what was. */
  readonly push: (input: { readonly target: Target; readonly bytes: number; readonly quiet: number }) => Promise<number>
}

export interface Call {
  readonly id: number
  readonly name: string
  readonly input: unknown
}

export type Reply =
  | { readonly _tag: "Ready"; readonly port: number }
  | { readonly _tag: "Success"; readonly id: number; readonly output: unknown }
  | { readonly _tag: "Failure"; readonly id: number; readonly message: string }

const reply = (message: Reply): void => {
  process.send?.(message)
}

/** Answers the calls of the parent, and goes with it. */
export const answer = (commands: ServerCommands | LoadCommands): void => {
  const byName = commands as unknown as Record<string, (input: unknown) => unknown>
  process.on("disconnect", () => process.exit(0))
  process.on("message", async ({ id, input, name }: Call) => {
    try {
      reply({ _tag: "Success", id, output: await byName[name](input) })
    } catch (error) {
      reply({ _tag: "Failure", id, message: error instanceof Error ? error.message : String(error) })
    }
  })
}

export const ready = (port: number): void => reply({ _tag: "Ready", port })
