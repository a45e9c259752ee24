import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { UpgradeError } from "../src/index.js"

const {
  AlreadyUpgraded,
  BodyOn101,
  ConnectionError,
  ConnectionLost,
  HandshakeRefused,
  NotSwitched,
  NotUpgradable,
  ProtocolMismatch,
  ProtocolNotOffered,
  ServerDraining,
  TooManyConnections,
  UpgradeTimeout
} = UpgradeError

const notUpgradable = (reason: UpgradeError.NotUpgradable["reason"], protocols = ["a", "b/2"]) =>
  new NotUpgradable({ reason, protocols, methods: ["GET", "POST"], description: "why" })

// The table of errors: what the client sees of each
const answers: ReadonlyArray<
  readonly [
    error: UpgradeError.UpgradeError,
    status: number,
    headers: Readonly<Record<string, string>>,
    annotated: number
  ]
> = [
  [notUpgradable("NoUpgrade"), 426, { connection: "upgrade", upgrade: "a, b/2" }, 426],
  [notUpgradable("NoConnectionOption"), 426, { connection: "upgrade", upgrade: "a, b/2" }, 426],
  [notUpgradable("HttpVersion"), 426, { connection: "upgrade", upgrade: "a, b/2" }, 426],
  [notUpgradable("Server"), 426, { connection: "upgrade", upgrade: "a, b/2" }, 426],
  [notUpgradable("Method"), 405, { allow: "GET, POST" }, 426],
  [new NotUpgradable({ reason: "Method", protocols: ["a"], description: "why" }), 405, { allow: "" }, 426],
  [new ProtocolNotOffered({ protocols: ["a"], offered: ["c"] }), 426, { connection: "upgrade", upgrade: "a" }, 426],
  [new HandshakeRefused({ protocol: "a", status: 400, description: "no" }), 400, {}, 400],
  [
    new HandshakeRefused({ protocol: "a", status: 403, description: "no", headers: { "x-a": "1" } }),
    403,
    { "x-a": "1" },
    400
  ],
  [
    new HandshakeRefused({
      protocol: "websocket",
      status: 426,
      description: "no",
      headers: { "sec-websocket-version": "13" }
    }),
    426,
    { connection: "upgrade", upgrade: "websocket", "sec-websocket-version": "13" },
    400
  ],
  [new BodyOn101({ protocol: "a", found: "Stream" }), 500, {}, 500],
  [new AlreadyUpgraded({ protocol: "a" }), 500, {}, 500],
  [new ConnectionLost({ protocol: "a", description: "gone" }), 500, {}, 500],
  [new UpgradeTimeout({ stage: "Body", millis: 5 }), 408, { connection: "close" }, 503],
  [new UpgradeTimeout({ stage: "Decision", millis: 5 }), 503, { connection: "close" }, 503],
  [new UpgradeTimeout({ stage: "Claim", millis: 5 }), 503, { connection: "close" }, 503],
  [new ServerDraining(), 503, { connection: "close", "retry-after": "1" }, 503],
  [new TooManyConnections({ limit: 7 }), 503, { connection: "close", "retry-after": "10" }, 503]
]

const name = (error: { readonly _tag: string; readonly reason?: string; readonly stage?: string }) =>
  `${error._tag} ${error.reason ?? error.stage ?? ""}`

describe("an error of the handshake", () => {
  it.effect.each(answers.map((row) => [name(row[0]), ...row] as const))(
    "answers for itself: %s",
    ([_, error, status, headers, annotated]) =>
      Effect.gen(function* () {
        const response = yield* HttpServerRespondable.toResponse(error as never)
        assert.strictEqual(response.status, status)
        for (const [field, value] of Object.entries(headers)) {
          assert.strictEqual(response.headers[field], value)
        }
        const schema = error.constructor as unknown as Schema.Schema.Any
        assert.strictEqual(HttpApiSchema.getStatusErrorAST(schema.ast), annotated)
      })
  )

  it.effect.each(answers.map((row) => [name(row[0]), row[0]] as const))(
    "is kept by the schema of UpgradeError: %s",
    ([_, error]) =>
      Effect.gen(function* () {
        const encoded = yield* Schema.encode(UpgradeError.UpgradeError)(error)
        const decoded = yield* Schema.decode(UpgradeError.UpgradeError)(JSON.parse(JSON.stringify(encoded)))
        assert.strictEqual(decoded._tag, error._tag)
        assert.strictEqual(decoded.message, error.message)
        assert.isTrue(UpgradeError.isUpgradeError(decoded))
      })
  )

  it("says what came, what was expected and what to do", () => {
    assert.include(
      new ProtocolNotOffered({ protocols: ["a", "b"], offered: ["c"] }).message,
      "offered c; this resource speaks a, b"
    )
    assert.include(new ProtocolNotOffered({ protocols: ["a"], offered: [] }).message, "no protocol")
    assert.include(new BodyOn101({ protocol: "a", found: "Content-Length" }).message, "Content-Length")
    assert.include(new AlreadyUpgraded({ protocol: "a" }).message, "once")
    assert.include(new TooManyConnections({ limit: 7 }).message, "7")
    assert.include(new UpgradeTimeout({ stage: "Body", millis: 5 }).message, "5 ms (bodyTimeout)")
    assert.include(new UpgradeTimeout({ stage: "Decision", millis: 5 }).message, "5 ms (decisionTimeout)")
    assert.include(new UpgradeTimeout({ stage: "Claim", millis: 5 }).message, "5 ms (claimTimeout)")
    assert.include(new ConnectionLost({ protocol: "a", description: "gone" }).message, "gone")
    assert.include(new ServerDraining().message, "shutting down")
    assert.strictEqual(new HandshakeRefused({ protocol: "a", status: 400, description: "the key" }).message, "the key")
  })
})

describe("NotSwitched", () => {
  it.each([
    ["Answered", "answered with 404"],
    ["Failed", "failed before"],
    ["Interrupted", "interrupted before"],
    ["SelfAwait", "Return the response first"]
  ] as const)("says why: %s", (reason, message) => {
    assert.include(new NotSwitched({ protocol: "a", reason, status: 404 }).message, message)
    assert.isFalse(UpgradeError.isUpgradeError(new NotSwitched({ protocol: "a", reason })))
  })

  it("without a status speaks of another response", () => {
    assert.include(new NotSwitched({ protocol: "a", reason: "Answered" }).message, "another response")
  })
})

describe("the other errors", () => {
  it("are told apart by their guards", () => {
    const error = new ConnectionError({ reason: "Reset", description: "reset", cause: new Error("ECONNRESET") })
    assert.isTrue(UpgradeError.isConnectionError(error))
    assert.isFalse(UpgradeError.isUpgradeError(error))
    assert.isFalse(UpgradeError.isConnectionError(new ServerDraining()))
    assert.isFalse(UpgradeError.isUpgradeError({ _tag: "ServerDraining" }))
    assert.isFalse(UpgradeError.isUpgradeError(undefined))
    assert.strictEqual(error.message, "reset")
    assert.strictEqual(new ProtocolMismatch({ protocol: "a", description: "other" }).message, "other")
  })
})
