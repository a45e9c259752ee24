/** The laws, over every kind of connection, by all ways of switching. */
import { describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Laws } from "../../src/testing/index.js"
import { runs } from "../support.js"
import { Target, targets } from "./targets.js"

const titles: Record<keyof typeof Laws.laws, string> = {
  bytes: "what follows the request is read after the switch, once and in order",
  oneAnswer: "each request has one answer, in order, and no HTTP follows a 101",
  noBody: "a 101 has no body, whoever gives it one",
  ignoredUpgrade: "an upgrade that is not acted on is invisible",
  scope: "nothing is left of a session that has ended",
  hostilePeers: "a reset, a FIN or garbage at any byte ends one connection at most",
  boundedMemory: "a reader that stops stops the sender",
  halfClose: "a FIN ends one direction, and the other goes on"
}

for (const [transport, targetLayer] of Object.entries(targets)) {
  describe(transport, () => {
    layer(targetLayer, { excludeTestServices: true, timeout: "20 seconds" })((it) => {
      for (const name of Object.keys(Laws.laws) as Array<keyof typeof Laws.laws>) {
        it.effect(titles[name], () =>
          Effect.flatMap(Target, (target) => Laws.laws[name](target, { numRuns: runs(10) }))
        )
      }
    })
  })
}
