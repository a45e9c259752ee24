/** A server of websockets, and a peer that speaks in frames, well or badly. */
import type { Duplex } from "node:stream"
import * as Channel from "effect/Channel"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Upgrade, type UpgradeError, type UpgradeServer, WebSocket, type WebSocketError } from "../../src/index.js"
import type * as Peer from "../../src/testing/Peer.js"
import { asking, type Kind, type Running, serve, turn } from "../support.js"
import { closePayload, type Decoded, decodeAll, encode, type Frame, key, Opcode } from "./frames.js"

export type Message = string | Uint8Array

/** What asks for a websocket. */
export const handshake = (fields: ReadonlyArray<string> = []): string =>
  asking("/", {
    token: "websocket",
    fields: ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", ...fields]
  })

/** A client's frame. */
export const frame = (opcode: number, payload: Uint8Array | string = "", rest: Partial<Frame> = {}): Buffer =>
  encode({ opcode, payload, key, ...rest })

export const message = (message: Message): Buffer =>
  frame(typeof message === "string" ? Opcode.Text : Opcode.Binary, message)

export const close = (code?: number, reason = ""): Buffer =>
  frame(Opcode.Close, code === undefined ? "" : closePayload(code, reason))

/** What a Close says: its code, and its reason. */
export const closeOf = ({ payload }: Decoded): readonly [code: number, reason: string] =>
  payload.length === 0 ? [1005, ""] : [payload.readUInt16BE(0), payload.subarray(2).toString()]

export interface Client {
  readonly peer: Peer.Peer
  readonly head: Peer.Head
  /** Sends bytes, or the frames of messages. */
  readonly send: (...frames: ReadonlyArray<Uint8Array>) => Effect.Effect<void>
  readonly receive: Effect.Effect<Decoded, Peer.PeerError>
  /** The next frame, which is a Close. */
  readonly receiveClose: Effect.Effect<readonly [code: number, reason: string], Peer.PeerError>
  /** All frames until the FIN. */
  readonly receiveAll: Effect.Effect<ReadonlyArray<Decoded>, Peer.PeerError>
}

const receiveFrame = (peer: Peer.Peer): Effect.Effect<Decoded, Peer.PeerError> =>
  Effect.gen(function* () {
    const first = yield* peer.receiveExactly(2)
    const form = first[1]! & 0x7f
    const more = yield* peer.receiveExactly((form === 126 ? 2 : form === 127 ? 8 : 0) + (first[1]! >= 0x80 ? 4 : 0))
    const length =
      form === 126
        ? Buffer.from(more).readUInt16BE(0)
        : form === 127
          ? Number(Buffer.from(more).readBigUInt64BE(0))
          : form
    const payload = yield* peer.receiveExactly(length)
    return decodeAll(Buffer.concat([first, more, payload]))[0]!
  })

/** A peer that has sent its handshake, and these frames in the same packet. */
export const clientOf = (
  connect: Effect.Effect<Peer.Peer, Peer.PeerError, Scope.Scope>,
  early: Uint8Array = Buffer.alloc(0),
  fields: ReadonlyArray<string> = []
): Effect.Effect<Client, Peer.PeerError, Scope.Scope> =>
  Effect.gen(function* () {
    const peer = yield* connect
    yield* peer.send(Buffer.concat([Buffer.from(handshake(fields)), early]))
    return yield* switched(peer)
  })

/** The same of a peer that has sent it all. */
export const switched = (peer: Peer.Peer): Effect.Effect<Client, Peer.PeerError> =>
  Effect.gen(function* () {
    const head = yield* peer.receiveHead
    if (head.status !== 101) {
      yield* Effect.die(new Error(`the answer was ${head.raw}`))
    }
    const receive = receiveFrame(peer)
    return {
      peer,
      head,
      send: (...frames) => peer.send(Buffer.concat(frames)),
      receive,
      receiveClose: Effect.map(receive, (received) =>
        received.opcode === Opcode.Close
          ? closeOf(received)
          : ([-1, `opcode ${received.opcode}: ${received.payload}`] as const)
      ),
      receiveAll: Effect.map(peer.receiveAll, decodeAll)
    }
  })

export type Options = WebSocket.Options & Pick<UpgradeServer.Options, "closeTimeout" | "drainTimeout" | "writeTimeout">

export interface Opened<Ws = WebSocket.WebSocket> extends Client {
  readonly ws: Ws
  /** Closes the Scope that owns the connection. */
  readonly shut: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void>
}

/** Websockets by themselves: the peer's end and ours, in a Scope of its own. */
export const opening = <const O extends Options>(kind: Kind = "tcp", options?: O) =>
  Effect.gen(function* () {
    type Ws = Effect.Effect<
      WebSocket.WebSocket<Duplex, WebSocket.SubprotocolOf<O>>,
      UpgradeError.SwitchError,
      Scope.Scope
    >
    const claims = yield* Queue.unbounded<Ws>()
    const running = yield* serve(
      Effect.flatMap(WebSocket.respond(options as O), ([response, ws]) => Effect.as(Queue.offer(claims, ws), response)),
      { kind }
    )
    const open = (early?: Uint8Array, fields?: ReadonlyArray<string>) =>
      Effect.gen(function* () {
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const client = yield* clientOf(running.connect, early, fields)
        const ws = yield* Effect.orDie(Effect.flatten(Queue.take(claims))).pipe(Scope.extend(scope))
        return { ...client, ws, shut: (exit: Exit.Exit<unknown, unknown>) => Scope.close(scope, exit) }
      })
    return { ...running, open }
  })

export type Session = (ws: WebSocket.WebSocket) => Effect.Effect<unknown, any>

/** Serves a session by each of the forms. */
export const forms: ReadonlyArray<
  readonly [name: string, form: (session: Session, options?: Options) => Parameters<typeof serve>[0]]
> = [
  [
    "upgrade",
    (session, options) =>
      Effect.gen(function* () {
        yield* session(yield* WebSocket.upgrade(options))
        return Upgrade.done
      })
  ],
  [
    "respond",
    (session, options) =>
      Effect.gen(function* () {
        const [response, ws] = yield* WebSocket.respond(options)
        yield* Effect.forkDaemon(Effect.scoped(Effect.flatMap(ws, session)))
        return response
      })
  ],
  ["onUpgrade", (session, options) => WebSocket.onUpgrade(options ?? {}, session)]
]

/** Echoes until the closing handshake. */
export const echo: Session = (ws) => WebSocket.runBatch(ws, (messages) => WebSocket.sendAll(ws, messages))

/** Some turns of the event loop: what was to happen at once has happened. */
export const turns = (count: number): Effect.Effect<void> =>
  count === 0 ? Effect.void : Effect.zipRight(turn, turns(count - 1))

/** Waits for the condition; the test's own limit ends it. */
export const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => (condition() ? Effect.void : Effect.zipRight(turn, until(condition))))

/** Waits until so many connections are switched. */
export const left = (running: Pick<Running, "switched">, count: number): Effect.Effect<void> =>
  Effect.flatMap(running.switched, (switched) =>
    switched === count ? Effect.void : Effect.zipRight(turn, left(running, count))
  )

/** Waits until what changes does so no more. */
export const settled = (value: () => number): Effect.Effect<number> => {
  let last = -1
  let same = 0
  const loop: Effect.Effect<number> = Effect.suspend(() => {
    const now = value()
    same = now === last ? same + 1 : 0
    last = now
    return same >= 200 ? Effect.succeed(now) : Effect.zipRight(turn, loop)
  })
  return loop
}

type Reading = Effect.Effect<ReadonlyArray<Message>, WebSocketError.WebSocketError>

const collect = (read: (all: Array<Message>) => Effect.Effect<unknown, any>): Reading =>
  Effect.suspend(() => {
    const all: Array<Message> = []
    return Effect.as(read(all), all)
  })

const pullAll = (ws: WebSocket.WebSocket, all: Array<Message>): Effect.Effect<void, WebSocketError.WebSocketError> =>
  Effect.matchEffect(WebSocket.pull(ws), {
    onFailure: (end) => (end._tag === "None" ? Effect.void : Effect.fail(end.value)),
    onSuccess: (messages) => {
      all.push(...messages)
      return pullAll(ws, all)
    }
  })

/** Each way of reading all messages. */
export const readers: ReadonlyArray<readonly [string, (ws: WebSocket.WebSocket) => Reading]> = [
  ["run", (ws) => collect((all) => WebSocket.run(ws, (message) => Effect.sync(() => all.push(message))))],
  [
    "run, whose handler waits a turn",
    (ws) =>
      collect((all) =>
        WebSocket.run(ws, (message) =>
          Effect.zipRight(
            turn,
            Effect.sync(() => all.push(message))
          )
        )
      )
  ],
  ["runBatch", (ws) => collect((all) => WebSocket.runBatch(ws, (more) => Effect.sync(() => all.push(...more))))],
  ["pull", (ws) => collect((all) => pullAll(ws, all))],
  [
    "stream",
    (ws) => collect((all) => Stream.runForEach(WebSocket.stream(ws), (message) => Effect.sync(() => all.push(message))))
  ],
  [
    "channel",
    (ws) =>
      Effect.map(
        Channel.runCollect(Channel.pipeTo(Channel.fromEffect(Effect.never), WebSocket.channel(ws))),
        ([all]) => [...Chunk.flatten(all)]
      )
  ]
]

/** Two that are alike are equal: bytes are shown, whatever they are a view of. */
export const shown = (message: Message): string =>
  typeof message === "string" ? `text ${message}` : `binary ${Buffer.from(message).toString("hex")}`

export const someMessage: FastCheck.Arbitrary<Message> = FastCheck.oneof(
  FastCheck.string({ unit: "binary", maxLength: 40 }),
  FastCheck.uint8Array({ maxLength: 40 }),
  FastCheck.tuple(FastCheck.constantFrom(126, 1000, 65_536), FastCheck.nat(255)).map(([size, byte]) =>
    Buffer.alloc(size, byte)
  )
)

export const someMessages = FastCheck.array(someMessage, { maxLength: 8 })
