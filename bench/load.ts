/**
 * The load: node:net with one read buffer for all connections, requests and messages encoded beforehand. What comes
 * back is counted where it lies, so that a byte costs the load less than it costs any server.
 */
import { answer, ready } from "./commands.js"
import { flow, pingPong, verify } from "./load/bytes.js"
import { handshakes } from "./load/handshakes.js"
import { held, hold, push, resume, stall } from "./load/idle.js"
import { measure, stop } from "./load/running.js"
import { broadcast, messages, verifyMessages } from "./load/websocket.js"

answer({
  broadcast,
  flow,
  handshakes,
  held,
  hold,
  measure,
  messages,
  pingPong,
  push,
  resume,
  stall,
  stop,
  verify,
  verifyMessages
})
ready(0)
