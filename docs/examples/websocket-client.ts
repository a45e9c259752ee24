/**
 * A websocket client that echoes whatever comes, until it is closed.
 *
 *     npm run example:websocket-client -- ws://127.0.0.1:9001
 *
 * It ends with 0 after a clean close. `DEFLATE=1` offers permessage-deflate.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect } from "effect"
import { WebSocket } from "effect-upgrade"

const url = process.argv[2] ?? "ws://127.0.0.1:9001"

const program = Effect.gen(function* () {
  const compression = yield* Config.boolean("DEFLATE").pipe(Config.withDefault(false))
  const ws = yield* WebSocket.connect(url, { compression, maxMessageSize: 64 * 1024 * 1024 })
  const { code, reason } = yield* WebSocket.runBatch(ws, (messages) => WebSocket.sendAll(ws, messages))
  yield* Console.error(`closed: ${code} ${reason}`)
})

NodeRuntime.runMain(Effect.scoped(program))
