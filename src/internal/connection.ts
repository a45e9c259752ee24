/**
 * A connection as a Scope: what closes it, who is interrupted when it is lost, and when it leaves the registry.
 */

import type { Duplex } from "node:stream"
import { clientAbortFiberId } from "@effect/platform/HttpServerError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import * as Scope from "effect/Scope"
import type * as Public from "../Connection.js"
import type { Wire } from "./duplex/wire.js"

export const TypeId: Public.TypeId = Symbol.for("effect-upgrade/Connection") as Public.TypeId

export const ListenerTypeId: Public.ListenerTypeId = Symbol.for(
  "effect-upgrade/Connection/Listener"
) as Public.ListenerTypeId

const variance = { _IO: (_: never) => _ }

/** What a server promises of its sockets. Its identity is what tells one server's connections from another's. */
export const makeListener = <IO extends Duplex>(tag: Context.Tag<any, Public.Listener<IO>>): Public.Listener<IO> => ({
  [ListenerTypeId]: variance,
  key: tag.key
})

type Fork = (effect: Effect.Effect<void>) => void

const kOwner = Symbol("effect-upgrade/ConnectionImpl")

type Owned = Duplex & { [kOwner]?: ConnectionImpl }

function onSocketClose(this: Owned) {
  this[kOwner]!.socketClosed()
}

/** The connection of a socket: made when it is first asked for, closed with the socket. */
export const connectionOf = (socket: Duplex, listener: Public.Listener, fork: Fork): ConnectionImpl =>
  (socket as Owned)[kOwner] ?? new ConnectionImpl(socket, listener, fork)

interface Addressed {
  readonly remoteAddress?: string
  readonly remotePort?: number
  readonly remoteFamily?: string
}

export class ConnectionImpl<IO extends Duplex = Duplex> implements Public.Connection<IO> {
  readonly [TypeId] = variance

  private ownScope: Scope.CloseableScope | undefined
  private closing = false
  private done: Effect.Latch | undefined
  /** The fiber that is the session: interrupted when the connection is lost or the server shuts down. */
  session: Fiber.RuntimeFiber<any, any> | undefined
  wire: Wire | undefined
  /** Told when all is closed. */
  registry: { readonly forget: (connection: ConnectionImpl) => void } | undefined

  constructor(
    readonly socket: IO,
    readonly listener: Public.Listener<IO>,
    private readonly fork: Fork
  ) {
    ;(socket as Duplex as Owned)[kOwner] = this
    socket.once("close", onSocketClose)
  }

  /** The socket closed while it was HTTP's, or another's. */
  socketClosed(): void {
    this.fork(this.shutdown())
  }

  get scope(): Scope.Scope {
    if (this.ownScope === undefined) {
      this.ownScope = Effect.runSync(Scope.make())
      if (this.closing) {
        // Asked for after the close: whoever extends into it finds it closed, as with any other closed Scope.
        Effect.runSync(Scope.close(this.ownScope, Exit.void))
      }
    }
    return this.ownScope
  }

  get peer(): Public.Peer {
    const { remoteAddress, remoteFamily, remotePort } = this.socket as Addressed
    return { address: remoteAddress, port: remotePort, family: remoteFamily }
  }

  get isClosed(): boolean {
    return this.closing
  }

  /** The connection is the wire's from now on: its end is the connection's. */
  own(wire: Wire): void {
    this.wire = wire
    this.socket.off("close", onSocketClose)
    if (wire.isClosed) {
      this.wireClosed()
    } else {
      wire.owner = this
    }
  }

  /** In a turn of its own, so that the typed error of a pending read or write comes first. */
  wireClosed(): void {
    setImmediate(() => this.ended())
  }

  private ended(): void {
    const wire = this.wire!
    if (this.closing) {
      return
    }
    const session = this.session
    if (session === undefined || session.unsafePoll() !== null) {
      this.fork(this.close(wire.error === undefined ? Exit.void : Exit.fail(wire.error)))
    } else if (wire.isLost && wire.informed !== session) {
      session.unsafeInterruptAsFork(clientAbortFiberId)
    }
  }

  /** Closes the Scope, then the socket; once. Everyone who asks waits for the end of it. */
  close(exit: Exit.Exit<unknown, unknown>): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.closing) {
        return this.awaitClosed
      }
      this.closing = true
      if (this.wire?.isLost && Exit.isSuccess(exit)) {
        // Whatever the session made of it: the connection had no orderly end.
        exit = Exit.fail(this.wire.error)
      }
      const { ownScope, wire } = this
      const closed =
        wire === undefined
          ? Effect.void
          : wire.tenant === undefined
            ? wire.close(Exit.isSuccess(exit))
            : Effect.flatMap(wire.tenant.farewell(exit), (orderly) => wire.close(orderly))
      return Effect.uninterruptible(
        ownScope === undefined ? closed : Effect.zipRight(Effect.exit(Scope.close(ownScope, exit)), closed)
      ).pipe(
        Effect.ensuring(
          Effect.sync(() => {
            this.session = undefined
            this.registry?.forget(this)
            this.latch.unsafeOpen()
          })
        )
      )
    })
  }

  /**
   * `close`, for a finalizer of the owner's: it does not wait where the connection is closing already, since that may be
   * what closes the owner.
   */
  release(exit: Exit.Exit<unknown, unknown>): Effect.Effect<void> {
    return Effect.suspend(() => (this.closing ? Effect.void : this.close(exit)))
  }

  /** Ends the session, and with it the connection. */
  shutdown(): Effect.Effect<void> {
    return Effect.suspend(() =>
      Effect.zipRight(
        this.session === undefined ? Effect.void : Fiber.interrupt(this.session),
        this.close(Exit.interrupt(FiberId.none))
      )
    )
  }

  /** `shutdown`, for whoever has no fiber to run it. */
  abandon(): void {
    this.fork(this.shutdown())
  }

  private get latch(): Effect.Latch {
    return (this.done ??= Effect.unsafeMakeLatch(false))
  }

  /** Done when the connection is closed. */
  get awaitClosed(): Effect.Effect<void> {
    return this.latch.await
  }

  toJSON() {
    return { _id: "effect-upgrade/Connection", listener: this.listener.key, peer: this.peer, closed: this.isClosed }
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
