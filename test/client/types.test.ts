import type * as net from "node:net"
import type { Duplex } from "node:stream"
import type * as tls from "node:tls"
import { HttpClientRequest } from "@effect/platform"
import type { Effect, Scope } from "effect"
import { pipe } from "effect"
import { describe, expectTypeOf, it } from "vitest"
import { Protocol, UpgradeClient, Upgraded, type UpgradeError } from "../../src/index.js"

const echo = Protocol.raw("echo")
declare const memory: Effect.Effect<Duplex, "no memory", Scope.Scope>
declare const given: Duplex
declare const url: string

type Asked<IO extends Duplex, Token extends string> = Effect.Effect<
  Upgraded.Upgraded<IO, Token>,
  UpgradeError.UpgradeClientError,
  Scope.Scope
>

describe("the types of a client's switch", () => {
  it("tell the socket by the scheme of a URL that is known", () => {
    expectTypeOf(() => UpgradeClient.upgrade("https://a/", echo)).returns.toEqualTypeOf<Asked<tls.TLSSocket, "echo">>()
    expectTypeOf(() => UpgradeClient.upgrade("wss://a/", echo)).returns.toEqualTypeOf<Asked<tls.TLSSocket, "echo">>()
    expectTypeOf(() => UpgradeClient.upgrade("http://a/", echo)).returns.toEqualTypeOf<Asked<net.Socket, "echo">>()
    expectTypeOf(() => UpgradeClient.upgrade("ws://a/", echo)).returns.toEqualTypeOf<Asked<net.Socket, "echo">>()
  })

  it("say that it is one of the two where the URL is not known", () => {
    type Either = Asked<net.Socket | tls.TLSSocket, "echo">
    expectTypeOf(() => UpgradeClient.upgrade(url, echo)).returns.toEqualTypeOf<Either>()
    expectTypeOf(() => UpgradeClient.upgrade(new URL(url), echo)).returns.toEqualTypeOf<Either>()
    expectTypeOf(() => UpgradeClient.upgrade(HttpClientRequest.get("https://a/"), echo)).returns.toEqualTypeOf<Either>()
  })

  it("have the tokens of all that is offered, and need nothing of what their checks need", () => {
    const keyed = Protocol.make({
      token: "keyed/1",
      check: () => null as unknown as Effect.Effect<void, never, "Keys">
    })
    expectTypeOf(() => UpgradeClient.upgrade("ws://a/", [echo, keyed])).returns.toEqualTypeOf<
      Asked<net.Socket, "echo" | "keyed/1">
    >()
  })

  it("pass on what a connection of one's own is and needs", () => {
    expectTypeOf(() => UpgradeClient.upgrade("https://a/", echo, { socket: given })).returns.toEqualTypeOf<
      Asked<Duplex, "echo">
    >()
    expectTypeOf(() => UpgradeClient.upgrade("https://a/", echo, { socket: memory })).returns.toEqualTypeOf<
      Effect.Effect<Upgraded.Upgraded<Duplex, "echo">, UpgradeError.UpgradeClientError | "no memory", Scope.Scope>
    >()
    const secured = () => Upgraded.secure(null as unknown as Upgraded.Upgraded, { role: "client", servername: "a" })
    expectTypeOf(() => UpgradeClient.upgrade("http://a/", echo, { socket: secured() })).returns.toEqualTypeOf<
      Effect.Effect<
        Upgraded.Upgraded<tls.TLSSocket, "echo">,
        UpgradeError.UpgradeClientError | UpgradeError.ConnectionError,
        Scope.Scope
      >
    >()
  })

  it("are the same in a pipe", () => {
    expectTypeOf(() => pipe("https://a/" as const, UpgradeClient.upgrade(echo))).returns.toEqualTypeOf<
      Asked<tls.TLSSocket, "echo">
    >()
    expectTypeOf(() => pipe(url, UpgradeClient.upgrade([echo], { socket: given }))).returns.toEqualTypeOf<
      Asked<Duplex, "echo">
    >()
  })

  it("know the hop to the proxy, and the older form", () => {
    expectTypeOf(() => UpgradeClient.connect("https://proxy", "a:1")).returns.toEqualTypeOf<
      Asked<tls.TLSSocket, "CONNECT">
    >()
    expectTypeOf(() => UpgradeClient.connect("http://proxy", "a:1", { socket: given })).returns.toEqualTypeOf<
      Asked<Duplex, "CONNECT">
    >()
    expectTypeOf(() => UpgradeClient.hijack("http://a/")).returns.toEqualTypeOf<Asked<net.Socket, "hijack">>()
    expectTypeOf(() => UpgradeClient.hijack("http://a/", { socket: given })).returns.toEqualTypeOf<
      Asked<Duplex, "hijack">
    >()
  })
})
