import * as MsgPack from "@effect/platform/MsgPack"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { WebSocket } from "../../src/index.js"
import { Opcode } from "./frames.js"
import { close, frame, message, opening, turns } from "./support.js"

const Say = Schema.Struct({ text: Schema.String, at: Schema.Date, tags: Schema.Set(Schema.NumberFromString) })
const Said = Schema.Union(Schema.TaggedStruct("Text", { text: Schema.String }), Schema.TaggedStruct("Gone", {}))

type Say = typeof Say.Type

const say = (text: string): Say => ({ text, at: new Date(1000), tags: new Set([1, 2]) })

const encodedSay = (text: string) => ({ text, at: new Date(1000).toISOString(), tags: ["1", "2"] })

const json = (value: unknown): Buffer => message(JSON.stringify(value))

const msgpack = (value: unknown): Buffer =>
  message(Effect.runSync(Schema.encode(MsgPack.schema(Schema.Unknown))(value)) as Uint8Array)

const failure = <A, E>(exit: Exit.Exit<A, E>): any =>
  Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined

const formats = [
  ["json", json, message(Buffer.from("{}")), message("{")],
  ["msgpack", msgpack, message("{}"), message(Buffer.of(0xc1))]
] as const

describe.each(formats)("messages typed by a schema, as %s,", (format, encoded, otherKind, malformed) => {
  it.scoped("are decoded, for run and for stream", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory")
      for (const read of ["run", "stream"] as const) {
        const { send, ws } = yield* open()
        const typed = WebSocket.schema(ws, { receive: Say, send: Said, format })
        assert.strictEqual(typed.webSocket, ws)
        const seen: Array<Say> = []
        const take = (one: Say) => Effect.sync(() => seen.push(one))
        const reading = yield* Effect.fork(
          read === "run" ? Effect.asVoid(typed.run(take)) : Stream.runForEach(typed.stream, take)
        )
        yield* send(encoded(encodedSay("a")), frame(Opcode.Ping), encoded(encodedSay("ü")), close(1000))
        yield* Fiber.join(reading)
        assert.deepStrictEqual(seen, [say("a"), say("ü")])
      }
    })
  )

  it.scoped("are encoded, one or several, in the kind of message that the format has", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory")
      const { receive, ws } = yield* open()
      const typed = ws.pipe(WebSocket.schema({ receive: Said, send: Say, format }))
      yield* typed.send(say("a"))
      yield* typed.sendAll([say("b"), say("c")])
      for (const text of ["a", "b", "c"]) {
        const { opcode, payload } = yield* receive
        assert.strictEqual(opcode, format === "json" ? Opcode.Text : Opcode.Binary)
        const value =
          format === "json"
            ? JSON.parse(payload.toString())
            : yield* Schema.decode(MsgPack.schema(Schema.Unknown))(payload)
        assert.deepStrictEqual(value, encodedSay(text))
      }
    })
  )

  it.scoped.each([
    ["another shape", encoded({ text: 1 })],
    ["another value", encoded({ ...encodedSay("a"), at: "never" })],
    ["the other kind of message", otherKind],
    ["what is malformed", malformed]
  ] as const)("of %s fail with ParseError, and the caller may go on or close", ([_, wrong]) =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory")
      const { receiveClose, send, ws } = yield* open()
      const typed = WebSocket.schema(ws, { receive: Say, send: Said, format })
      const seen: Array<string> = []
      const run = typed.run(({ text }) => Effect.sync(() => seen.push(text)))
      yield* send(encoded(encodedSay("a")), wrong, encoded(encodedSay("b")), wrong)
      yield* turns(5)
      assert.strictEqual(failure(yield* Effect.exit(run))._tag, "ParseError")
      assert.deepStrictEqual(seen, ["a"])
      const closing = yield* Effect.fork(
        Effect.catchTag(run, "ParseError", () => WebSocket.close(ws, 1007, "expected a Say"))
      )
      assert.deepStrictEqual(yield* receiveClose, [1007, "expected a Say"])
      assert.deepStrictEqual(seen, ["a", "b"])
      yield* send(close(1007))
      yield* Fiber.join(closing)
      const { send: sendMore, ws: another } = yield* open()
      yield* sendMore(wrong)
      const streamed = Stream.runDrain(WebSocket.schema(another, { receive: Say, send: Said, format }).stream)
      assert.strictEqual(failure(yield* Effect.exit(streamed))._tag, "ParseError")
    })
  )

  it.scoped("that cannot be encoded fail with ParseError, and send nothing", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory")
      const { receive, ws } = yield* open()
      const Short = Schema.Struct({ text: Schema.String.pipe(Schema.maxLength(1)) })
      const typed = WebSocket.schema(ws, { receive: Said, send: Short, format })
      assert.strictEqual(failure(yield* Effect.exit(typed.send({ text: "long" })))._tag, "ParseError")
      assert.strictEqual(
        failure(yield* Effect.exit(typed.sendAll([{ text: "a" }, { text: "long" }])))._tag,
        "ParseError"
      )
      yield* WebSocket.send(ws, "next")
      assert.strictEqual(`${(yield* receive).payload}`, "next")
    })
  )

  it.scoped("fail as the websocket does", () =>
    Effect.gen(function* () {
      const { open } = yield* opening("memory")
      const { send, ws } = yield* open()
      const typed = WebSocket.schema(ws, { receive: Said, send: Said, format })
      yield* send(encoded({ _tag: "Gone" }), close(4000, "why"))
      assert.deepStrictEqual(yield* typed.run(() => Effect.void), { code: 4000, reason: "why" })
      for (const effect of [typed.send({ _tag: "Gone" }), Stream.runDrain(typed.stream)]) {
        assert.deepInclude(failure(yield* Effect.exit(effect)), { _tag: "WebSocketClosed", code: 4000 })
      }
    })
  )
})
