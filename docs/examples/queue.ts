// The response as a value, and the connection as an effect that another fiber runs: `Upgrade.respond`, a Queue, and a
// chat room. Run it: npx tsx docs/examples/queue.ts
import { createServer } from "node:http"
import { HttpRouter, HttpServer } from "@effect/platform"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Context, Effect, Layer, PubSub, Queue, type Scope, Stream } from "effect"
import { Protocol, Upgrade, Upgraded, type UpgradeError, UpgradeServer } from "effect-upgrade"

type Joining = Effect.Effect<Upgraded.Upgraded, UpgradeError.SwitchError, Scope.Scope>

class Door extends Context.Tag("Door")<Door, Queue.Queue<Joining>>() {
  static readonly layer = Layer.effect(Door, Queue.unbounded<Joining>())
}

const handler = Effect.gen(function* () {
  const door = yield* Door
  const [response, upgraded] = yield* Upgrade.respond(Protocol.raw("chat"), { headers: { "x-room": "1" } })
  yield* Queue.offer(door, upgraded)
  return response
})

/** One who joins: hears the room, and is heard by it, until the peer ends. The Scope closes the connection. */
const member = (joining: Joining, room: PubSub.PubSub<Uint8Array>) =>
  Effect.gen(function* () {
    const heard = yield* Stream.fromPubSub(room, { scoped: true })
    const upgraded = yield* joining
    yield* Effect.raceFirst(
      Stream.run(heard, Upgraded.sink(upgraded)),
      Stream.runForEach(Upgraded.stream(upgraded), (said) => PubSub.publish(room, said))
    )
  }).pipe(
    Effect.scoped,
    Effect.catchAll((error) => Effect.logInfo(`left: ${error.message}`))
  )

const room = Effect.gen(function* () {
  const door = yield* Door
  // Of a member that does not keep up, the oldest words are dropped.
  const room = yield* PubSub.sliding<Uint8Array>(64)
  yield* Effect.forever(Effect.flatMap(Queue.take(door), (joining) => Effect.fork(member(joining, room))))
})

const port = Config.withDefault(Config.integer("PORT"), 3000)

Layer.merge(
  HttpRouter.empty.pipe(HttpRouter.get("/chat", handler), HttpServer.serve(), HttpServer.withLogAddress),
  Layer.scopedDiscard(Effect.forkScoped(room))
).pipe(
  Layer.provide(Door.layer),
  Layer.provide(UpgradeServer.layerConfig(() => createServer(), { port })),
  Layer.launch,
  NodeRuntime.runMain
)
