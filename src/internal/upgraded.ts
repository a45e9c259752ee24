import type { Duplex } from "node:stream"
import * as Chunk from "effect/Chunk"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
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
    readonly protocol: Token
  ) {
    this.leftover = wire.peek()
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
