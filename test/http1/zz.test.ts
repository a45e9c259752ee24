import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { asking, echo, message, serve } from "../support.js"
it.scoped("x", () => Effect.gen(function* () {
  const { connect, idle, server } = yield* serve(echo)
  server.on("clientError", (e) => console.log("clientError", e.message))
  server.on("connection", (s) => { s.on("close", () => console.log("server socket closed")); s.on("end", () => console.log("server socket end"));s.on("error", (e: Error) => console.log("server socket error", e)) })
  const peer = yield* connect
  yield* peer.send(asking("/", { method: "POST", fields: ["Transfer-Encoding: chunked"], content: "x\r\n" }))
  console.log("sent")
  console.log((yield* peer.receiveHead).raw)
  console.log((yield* Effect.either(peer.receiveAll)))
  yield* peer.end
  yield* idle
  console.log("idle")
}))
