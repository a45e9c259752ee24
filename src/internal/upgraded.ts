import type { Duplex } from "node:stream"
import type * as Headers from "@effect/platform/Headers"
import * as Chunk from "effect/Chunk"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import type { Protocol } from "../Protocol.js"
import type * as Public from "../Upgraded.js"
import type { ConnectionImpl } from "./connection.js"
import type { Wire } from "./duplex/wire.js"

export const TypeId: Public.TypeId = Symbol.for("effect-upgrade/Upgraded") as Public.TypeId

const variance = { _IO: (_: never) => _, _Token: (_: never) => _ }

export class UpgradedImpl<IO extends Duplex = Duplex, Token extends string = string>
  implements Public.Upgraded<IO, Token>
{
  readonly [TypeId] = variance
  readonly leftover: Chunk.Chunk<Uint8Array>

  constructor(
    readonly connection: ConnectionImpl<IO>,
    readonly wire: Wire,
    /** The protocol that was switched to. */
    readonly definition: Protocol<Token, any>,
    /** The fields of the 101 that the protocol agreed on: what it put there on the server, all of it on the client. */
    readonly agreed: Headers.Headers,
    /** This end asked for the switch. */
    readonly isClient = false
  ) {
    this.leftover = wire.peek()
  }

  get protocol(): Token {
    return this.definition.token
  }

  get socket(): IO {
    return this.connection.socket
  }

  toJSON() {
    return {
      _id: "effect-upgrade/Upgraded",
      protocol: this.protocol,
      leftover: Chunk.reduce(this.leftover, 0, (bytes, piece) => bytes + piece.length),
      connection: this.connection.toJSON()
    }
  }
  toString() {
    return Inspectable.format(this.toJSON())
  }
  [Inspectable.NodeInspectSymbol]() {
    return this.toJSON()
  }
  pipe() {
    return pipeArguments(this, arguments)
  }
}
