// A chat with types each way, one Topic for all, and an end that says so: open http://localhost:3000/?name=ada in two
// windows, say something, and press Ctrl-C here. Run it: npx tsx docs/examples/chat.ts
import { createServer } from "node:http"
import { HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Context, Effect, Layer, Schema } from "effect"
import { Topic, UpgradeServer, WebSocket } from "effect-upgrade"

/** What a member says. */
const Say = Schema.Struct({ text: Schema.NonEmptyString.pipe(Schema.maxLength(500)) })

/** What all members are told. */
const Told = Schema.Union(
  Schema.TaggedStruct("Joined", { name: Schema.String }),
  Schema.TaggedStruct("Said", { name: Schema.String, text: Schema.String }),
  Schema.TaggedStruct("Left", { name: Schema.String }),
  Schema.TaggedStruct("Closing", {})
)

// A member that cannot keep up is closed with 1013, and may come again: what it is told has no gaps.
class Room extends Context.Tag("Room")<Room, Topic.Topic>() {
  static readonly layer = Layer.effect(Room, Topic.make({ slow: "disconnect" }))
}

const tell = (told: typeof Told.Type) => Effect.flatMap(Room, (room) => Effect.orDie(Topic.publishAs(room, Told)(told)))

/** A member's session: in the room as long as its connection's Scope is open. */
const member = (name: string) => (ws: WebSocket.WebSocket) =>
  Effect.gen(function* () {
    yield* Topic.subscribe(yield* Room, ws)
    yield* tell({ _tag: "Joined", name })
    yield* Effect.addFinalizer(() => tell({ _tag: "Left", name }))
    const typed = WebSocket.schema(ws, { receive: Say, send: Told })
    yield* typed.run(({ text }) => tell({ _tag: "Said", name, text }))
  }).pipe(
    // RFC 6455 §7.4.1: the message is not what it claims to be
    Effect.catchTag("ParseError", () => WebSocket.close(ws, 1007, "expected { text }")),
    // The peer is gone, by a Close or without
    Effect.catchTag("WebSocketClosed", ({ code }) => Effect.logInfo(`${name} left: ${code}`))
  )

const Name = Schema.Struct({ name: Schema.NonEmptyString.pipe(Schema.maxLength(20)) })

const options = { heartbeat: "30 seconds", maxMessageSize: 4096 } as const

// Without a name in the URL it is a 400, and no switch.
const chat = Effect.flatMap(HttpServerRequest.schemaSearchParams(Name), ({ name }) =>
  WebSocket.onUpgrade(options, member(name))
)

const page = HttpServerResponse.html(`<!doctype html><meta charset="utf-8"><title>Chat</title>
<form><input autofocus> <button>Say</button></form><pre></pre>
<script>
  const ws = new WebSocket("/chat" + (location.search || "?name=somebody"))
  const show = (text) => document.querySelector("pre").prepend(text + "\\n")
  ws.onmessage = ({ data }) => show(data)
  ws.onclose = ({ code, reason }) => show("closed: " + code + " " + reason)
  document.querySelector("form").onsubmit = (event) => {
    const input = document.querySelector("input")
    ws.send(JSON.stringify({ text: input.value }))
    input.value = ""
    event.preventDefault()
  }
</script>`)

const served = HttpRouter.empty.pipe(
  HttpRouter.get("/", page),
  HttpRouter.get("/chat", chat),
  HttpServer.serve(),
  HttpServer.withLogAddress
)

// Built last, so it is undone first: members hear of it, and have a second to leave before they are closed with 1001.
const closing = Layer.scopedDiscard(Effect.addFinalizer(() => tell({ _tag: "Closing" })))

const port = Config.withDefault(Config.integer("PORT"), 3000)

closing.pipe(
  Layer.provide(served),
  Layer.provide(Room.layer),
  Layer.provide(
    UpgradeServer.layerConfig(() => createServer(), { port, drainTimeout: Config.succeed("1 second" as const) })
  ),
  Layer.launch,
  NodeRuntime.runMain
)
