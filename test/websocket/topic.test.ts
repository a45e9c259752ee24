/** One message to many websockets, over real sockets: in order, once, and without waiting for the slow. */
import { once } from "node:events"
import type { Socket } from "node:net"
import type { Duplex } from "node:stream"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as fc from "effect/FastCheck"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Client from "ws"
import { Topic, WebSocket } from "../../src/index.js"
import type * as Peer from "../../src/testing/Peer.js"
import { ask, serve, turns, until } from "../appSupport.js"
import { runs } from "../support.js"

const asking = (fields: Readonly<Record<string, string>> = {}): string =>
  ask({
    upgrade: "websocket",
    fields: { "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13", ...fields }
  })

interface Frame {
  readonly first: number
  readonly payload: Buffer
}

const receiveFrame = (peer: Peer.Peer): Effect.Effect<Frame, Peer.PeerError> =>
  Effect.gen(function* () {
    const head = yield* peer.receiveExactly(2)
    const short = head[1]!
    const size =
      short < 126
        ? short
        : short === 126
          ? Buffer.from(yield* peer.receiveExactly(2)).readUInt16BE(0)
          : Number(Buffer.from(yield* peer.receiveExactly(8)).readBigUInt64BE(0))
    return { first: head[0]!, payload: Buffer.from(yield* peer.receiveExactly(size)) }
  })

const receiveTexts = (peer: Peer.Peer, count: number): Effect.Effect<ReadonlyArray<string>, Peer.PeerError> =>
  Effect.map(Effect.replicateEffect(receiveFrame(peer), count), (frames) =>
    frames.map(({ payload }) => payload.toString())
  )

interface Opened {
  readonly peer: Peer.Peer
  readonly ws: WebSocket.WebSocket
}

/** A server whose websockets are handed out, and peers that speak to them by hand. */
const opening = (options: WebSocket.Options = {}, fields?: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const queue = yield* Queue.unbounded<WebSocket.WebSocket>()
    const served = yield* serve(
      WebSocket.onUpgrade(options, (ws) =>
        Effect.zipRight(
          Queue.offer(queue, ws),
          WebSocket.run(ws, () => Effect.void)
        )
      )
    )
    const open: Effect.Effect<Opened, Peer.PeerError, Scope.Scope> = Effect.gen(function* () {
      const peer = yield* served.send(asking(fields))
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      return { peer, ws: yield* Queue.take(queue) }
    })
    return { ...served, open, take: Queue.take(queue) }
  })

/** Counts what is written, and keeps it, while it goes out. */
const spied = (socket: Duplex): ReadonlyArray<Uint8Array> => {
  const written: Array<Uint8Array> = []
  const write = socket.write.bind(socket)
  socket.write = ((bytes: Uint8Array) => {
    written.push(bytes)
    return write(bytes)
  }) as typeof socket.write
  return written
}

const numbered = (at: number): Buffer => {
  const message = Buffer.alloc(64 * 1024)
  message.writeUInt32BE(at, 0)
  return message
}

const numberOf = ({ payload }: Frame): number => payload.readUInt32BE(0)

/** Publishes numbered messages until so many were dropped, each when the one before has arrived; yields how many. */
const publishUntilDropped = (
  topic: Topic.Topic,
  dropped: number,
  arrived: ReadonlyArray<number>
): Effect.Effect<number> => {
  const go = (at: number): Effect.Effect<number> =>
    Effect.flatMap(Topic.dropped(topic), (count) =>
      count >= dropped
        ? Effect.succeed(at)
        : Topic.publish(topic, numbered(at)).pipe(
            Effect.zipRight(until(() => arrived.length > at)),
            Effect.flatMap(() => go(at + 1))
          )
    )
  return go(0)
}

describe("a topic", () => {
  it.scoped("sends text and binary messages to clients of ws, in order", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { port, take } = yield* opening()
      const clients = yield* Effect.replicateEffect(
        Effect.gen(function* () {
          const client = yield* Effect.acquireRelease(
            Effect.sync(() => new Client.WebSocket(`ws://127.0.0.1:${port}`)),
            (client) => Effect.sync(() => client.terminate())
          )
          const received: Array<string | Buffer> = []
          client.on("message", (data, isBinary) => received.push(isBinary ? (data as Buffer) : String(data)))
          yield* Effect.promise(() => once(client, "open"))
          yield* Topic.subscribe(topic, yield* take)
          return received
        }),
        5
      )
      const sent = ["", "a", "é".repeat(70), Buffer.from([0, 255]), "x".repeat(70_000), Buffer.alloc(40_000, 7), "end"]
      yield* Topic.publishAll(topic, sent)
      yield* until(() => clients.every((received) => received.length === sent.length))
      for (const received of clients) {
        assert.deepStrictEqual(received, sent)
      }
    })
  )

  it.scoped("writes one buffer to all members, for all that is published within one turn", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening()
      const members = yield* Effect.replicateEffect(open, 3)
      const written = members.map(({ ws }) => spied(ws.upgraded.socket))
      yield* Effect.forEach(members, ({ ws }) => Topic.subscribe(topic, ws))
      yield* Topic.publish(topic, "one")
      yield* Topic.publishAll(topic, ["two", "three"])
      for (const { peer } of members) {
        assert.deepStrictEqual(yield* receiveTexts(peer, 3), ["one", "two", "three"])
      }
      for (const all of written) {
        assert.strictEqual(all.length, 1)
        assert.strictEqual(all[0], written[0]![0])
      }
    })
  )

  it.scopedLive("gives each member what was published while it was one, in order with what it was sent", () =>
    Effect.gen(function* () {
      const { open } = yield* opening()
      const count = 3
      const step = fc.oneof(
        { weight: 4, arbitrary: fc.constant({ _tag: "Publish" as const, member: 0 }) },
        ...(["Send", "SendAll", "Join", "Leave"] as const).map((_tag) => ({
          weight: 2,
          arbitrary: fc.record({ _tag: fc.constant(_tag), member: fc.nat(count - 1) })
        })),
        { weight: 1, arbitrary: fc.constant({ _tag: "Turn" as const, member: 0 }) }
      )
      const tried = (steps: ReadonlyArray<{ readonly _tag: string; readonly member: number }>) =>
        Effect.gen(function* () {
          const topic = yield* Topic.make()
          const members = yield* Effect.replicateEffect(open, count)
          const scopes: Array<Scope.CloseableScope | undefined> = []
          const expected = members.map((): Array<string> => [])
          let at = 0
          for (const { _tag, member } of steps) {
            const { ws } = members[member]!
            const message = String(at++)
            switch (_tag) {
              case "Publish": {
                expected.forEach((list, i) => scopes[i] !== undefined && list.push(message))
                yield* Topic.publish(topic, message)
                break
              }
              case "Send": {
                expected[member]!.push(message)
                yield* WebSocket.send(ws, message)
                break
              }
              case "SendAll": {
                expected[member]!.push(message, "and")
                yield* WebSocket.sendAll(ws, [message, "and"])
                break
              }
              case "Join": {
                if (scopes[member] === undefined) {
                  const scope = yield* Scope.make()
                  scopes[member] = scope
                  yield* Scope.extend(Topic.subscribe(topic, ws), scope)
                }
                break
              }
              case "Leave": {
                const scope = scopes[member]
                scopes[member] = undefined
                yield* scope === undefined ? Effect.void : Scope.close(scope, Exit.void)
                break
              }
              default: {
                yield* turns(1)
              }
            }
          }
          assert.strictEqual(yield* Topic.size(topic), scopes.filter((scope) => scope !== undefined).length)
          for (const [i, { peer, ws }] of members.entries()) {
            yield* WebSocket.send(ws, "end")
            assert.deepStrictEqual(yield* receiveTexts(peer, expected[i]!.length + 1), [...expected[i]!, "end"])
          }
        }).pipe(Effect.scoped)
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(fc.array(step, { maxLength: 40 }), (steps) => Effect.runPromise(tried(steps))),
          { numRuns: runs(40) }
        )
      )
    })
  )

  it.scoped("is left by a websocket that closes, at either end, and by its Scope", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening()
      const [a, b, c, d] = yield* Effect.replicateEffect(open, 4)
      const scope = yield* Scope.make()
      for (const { ws } of [a!, b!, c!]) {
        yield* Topic.subscribe(topic, ws)
      }
      yield* Scope.extend(Topic.subscribe(topic, d!.ws), scope)
      assert.strictEqual(yield* Topic.size(topic), 4)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* Topic.size(topic), 3)
      yield* a!.peer.reset
      yield* until(() => Effect.runSync(Topic.size(topic)) === 2)
      // A masked Close of 1000, the mask being zero
      yield* b!.peer.send(Buffer.from([0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]))
      yield* until(() => Effect.runSync(Topic.size(topic)) === 1)
      yield* Effect.fork(WebSocket.close(c!.ws))
      yield* until(() => Effect.runSync(Topic.size(topic)) === 0)
      yield* Topic.publish(topic, "to nobody")
      yield* Topic.subscribe(topic, c!.ws)
      assert.strictEqual(yield* Topic.size(topic), 0)
      yield* WebSocket.send(d!.ws, "still open")
      assert.deepStrictEqual(yield* receiveTexts(d!.peer, 1), ["still open"])
    })
  )

  it.scoped("sends what was published before a Close, before the Close", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening()
      const { peer, ws } = yield* open
      yield* Topic.subscribe(topic, ws)
      yield* Topic.publish(topic, "last words")
      yield* Effect.fork(WebSocket.close(ws, 4000))
      const [words, close] = yield* Effect.replicateEffect(receiveFrame(peer), 2)
      assert.strictEqual(words!.payload.toString(), "last words")
      assert.deepStrictEqual([close!.first, close!.payload.readUInt16BE(0)], [0x88, 4000])
    })
  )

  it.scoped("sends each message once to a websocket that is subscribed twice, until both Scopes are closed", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening()
      const { peer, ws } = yield* open
      const scopes = yield* Effect.replicateEffect(Scope.make(), 2)
      yield* Effect.forEach(scopes, (scope) => Scope.extend(Topic.subscribe(topic, ws), scope))
      yield* Topic.publish(topic, "one")
      yield* Scope.close(scopes[0]!, Exit.void)
      yield* Topic.publish(topic, "two")
      yield* Scope.close(scopes[1]!, Exit.void)
      yield* Topic.publish(topic, "three")
      yield* WebSocket.send(ws, "end")
      assert.deepStrictEqual(yield* receiveTexts(peer, 3), ["one", "two", "end"])
    })
  )

  it.scoped("may share its members with others", () =>
    Effect.gen(function* () {
      const topics = yield* Effect.replicateEffect(Topic.make(), 2)
      const { open } = yield* opening()
      const { peer, ws } = yield* open
      yield* Effect.forEach(topics, (topic) => Topic.subscribe(topic, ws))
      yield* Topic.publish(topics[0]!, "a")
      yield* Topic.publish(topics[1]!, "b")
      assert.deepStrictEqual([...(yield* receiveTexts(peer, 2))].sort(), ["a", "b"])
      ;(ws.upgraded.socket as Socket).resetAndDestroy()
      yield* until(() => topics.every((topic) => Effect.runSync(Topic.size(topic)) === 0))
    })
  )

  it.scoped("has its messages masked for members that are clients, each with a key of its own", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const received = yield* Queue.unbounded<WebSocket.Message>()
      const { port } = yield* serve(
        WebSocket.onUpgrade((ws) => WebSocket.run(ws, (message) => Queue.offer(received, message)))
      )
      const clients = yield* Effect.replicateEffect(WebSocket.connect(`ws://127.0.0.1:${port}`), 2)
      const written = clients.map((ws) => spied(ws.upgraded.socket))
      yield* Effect.forEach(clients, (ws) => Topic.subscribe(topic, ws))
      yield* Topic.publish(topic, "é, and more")
      yield* Topic.publish(topic, Buffer.from([1, 2, 3]))
      const messages = yield* Queue.takeN(received, 4)
      assert.deepStrictEqual(
        [...messages].map((message) => (typeof message === "string" ? message : [...message])),
        ["é, and more", [1, 2, 3], "é, and more", [1, 2, 3]]
      )
      const [one, other] = written.map((all) => Buffer.concat([...all]))
      assert.strictEqual(one!.length, other!.length)
      assert.notDeepEqual(one!.subarray(2, 6), other!.subarray(2, 6))
    })
  )

  it.scoped("sends its messages as they are to a member that agreed on compression", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening(
        { compression: { threshold: 0 } },
        { "Sec-WebSocket-Extensions": "permessage-deflate" }
      )
      const { peer, ws } = yield* open
      yield* Topic.subscribe(topic, ws)
      yield* WebSocket.send(ws, "deflated")
      yield* Topic.publish(topic, "plain")
      const frames = yield* Effect.replicateEffect(receiveFrame(peer), 2)
      assert.deepStrictEqual(
        frames.map(({ first }) => first),
        [0xc1, 0x81]
      )
      assert.strictEqual(frames[1]!.payload.toString(), "plain")
    })
  )

  it.scoped("encodes values by a schema, and fails with what cannot be encoded", () =>
    Effect.gen(function* () {
      const topic = yield* Topic.make()
      const { open } = yield* opening()
      const { peer, ws } = yield* open
      yield* Topic.subscribe(topic, ws)
      const Said = Schema.Struct({ at: Schema.Date, text: Schema.NonEmptyString })
      const publish = Topic.publishAs(topic, Said)
      const failed = yield* Effect.flip(publish({ at: new Date(0), text: "" }))
      assert.strictEqual(failed._tag, "ParseError")
      yield* publish({ at: new Date(0), text: "hi" })
      yield* Topic.publishAs(topic, Said, { format: "msgpack" })({ at: new Date(0), text: "hi" })
      const [json, packed] = yield* Effect.replicateEffect(receiveFrame(peer), 2)
      assert.deepStrictEqual(JSON.parse(json!.payload.toString()), { at: "1970-01-01T00:00:00.000Z", text: "hi" })
      assert.deepStrictEqual([json!.first, packed!.first], [0x81, 0x82])
    })
  )

  it.effect("has a capacity that is a number of messages", () =>
    Effect.gen(function* () {
      for (const capacity of [-1, 0.5, Number.NaN, Infinity]) {
        const exit = yield* Effect.exit(Topic.make({ capacity }))
        assert.isTrue(Exit.isFailure(exit) && exit.cause._tag === "Die")
      }
      const topic = yield* Topic.make({ capacity: 0 })
      assert.isTrue(Topic.isTopic(topic))
      assert.deepStrictEqual(JSON.parse(JSON.stringify(topic)), {
        _id: "effect-upgrade/Topic",
        members: 0,
        slow: "dropOldest",
        capacity: 0,
        dropped: 0
      })
    })
  )
})

describe("a member that does not read", () => {
  const capacity = 5

  /** One that reads and one that does not, told the same until the latter has lost so many messages. */
  const stalling = (slow: Topic.SlowPolicy, dropped: number) =>
    Effect.gen(function* () {
      const topic = yield* Topic.make({ slow, capacity })
      const { open } = yield* opening({ closeTimeout: "1 hour" })
      const fast = yield* open
      const stalled = yield* open
      yield* Topic.subscribe(topic, fast.ws)
      yield* Topic.subscribe(topic, stalled.ws)
      const received: Array<number> = []
      yield* Effect.forkScoped(
        Effect.forever(
          Effect.map(receiveFrame(fast.peer), (frame) => {
            received.push(numberOf(frame))
          })
        )
      )
      const count = yield* publishUntilDropped(topic, dropped, received)
      assert.deepStrictEqual(
        received,
        Array.from({ length: count }, (_, at) => at)
      )
      return { count, stalled: stalled.peer, topic }
    })

  it.scopedLive("loses the oldest of its backlog by dropOldest, holds nobody up, and gets the newest", () =>
    Effect.gen(function* () {
      const { count, stalled } = yield* stalling("dropOldest", 20)
      const frames = yield* Effect.replicateEffect(receiveFrame(stalled), count - 20)
      const numbers = frames.map(numberOf)
      const begun = numbers.length - capacity
      assert.deepStrictEqual(
        numbers.slice(0, begun),
        Array.from({ length: begun }, (_, at) => at)
      )
      assert.deepStrictEqual(
        numbers.slice(begun),
        Array.from({ length: capacity }, (_, at) => count - capacity + at)
      )
    })
  )

  it.scopedLive("loses the newest by dropNewest, and gets all that was before without a gap", () =>
    Effect.gen(function* () {
      const { count, stalled, topic } = yield* stalling("dropNewest", 20)
      const numbers = (yield* Effect.replicateEffect(receiveFrame(stalled), count - 20)).map(numberOf)
      assert.deepStrictEqual(
        numbers,
        Array.from({ length: count - 20 }, (_, at) => at)
      )
      // It has caught up: what comes now comes to it too.
      yield* Topic.publish(topic, numbered(count))
      assert.strictEqual(numberOf(yield* receiveFrame(stalled)), count)
    })
  )

  it.scopedLive("is disconnected with 1013 by disconnect, and is no member any more", () =>
    Effect.gen(function* () {
      const { count, stalled, topic } = yield* stalling("disconnect", 1)
      assert.strictEqual(yield* Topic.size(topic), 1)
      const numbers = (yield* Effect.replicateEffect(receiveFrame(stalled), count - 1 - capacity)).map(numberOf)
      assert.deepStrictEqual(
        numbers,
        Array.from({ length: count - 1 - capacity }, (_, at) => at)
      )
      const close = yield* receiveFrame(stalled)
      assert.deepStrictEqual([close.first, close.payload.readUInt16BE(0)], [0x88, 1013])
    })
  )
})
